"""The flags of scripts/quickstart.sh: what every command is called with, recorded by stand-ins for them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGVID = """#!/usr/bin/env bash
echo "$*" >> calls
case $1 in
    init) mkdir -p quickstart/start ;;
    fit) [[ $3 =~ (stage[123])\\.yaml$ ]] && mkdir -p "quickstart/${BASH_REMATCH[1]}/model" ;;
    ask) echo '{}' ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
if [[ $1 == - ]]; then printf '%s\\n' a.mp4 a.srt 'What is it?'; fi
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the script in a folder where setting up does nothing and commands are written down."""
    stubs = {"scripts/setup.sh": "exit 0\n", ".venv/bin/longvid": LONGVID, ".venv/bin/python": PYTHON}
    for name, text in stubs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(ROOT / "scripts" / "quickstart.sh", tmp_path / "scripts")
    shutil.copytree(ROOT / "configs" / "deepspeed", tmp_path / "configs" / "deepspeed")
    shutil.copytree(ROOT / "configs" / "llama_vid" / "nano", tmp_path / "configs" / "llama_vid" / "nano")
    return tmp_path


def run(tree: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(tree / "scripts" / "quickstart.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))


def calls(tree: Path, *flags: str) -> list[list[str]]:
    done = run(tree, *flags)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in (tree / "calls").read_text().splitlines()]


def value(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def test_without_flags_the_configs_say_everything(tree: Path) -> None:
    made = calls(tree)
    assert [words[0] for words in made] == ["world", "init", "predict", "fit", "fit", "fit", "ask", "report"]
    assert made[2] == ["predict", "--config", "configs/llama_vid/nano/features.yaml"]
    for stage, words in enumerate(made[3:6], start=1):
        config = f"configs/llama_vid/nano/stage{stage}.yaml"
        assert words == ["fit", "--config", config, "--data.media.features", "quickstart/features"]


@pytest.mark.parametrize(("accelerator", "processes"), [("cpu", 2), ("gpu", 8)])
def test_one_flag_takes_zero_from_two_processes_to_eight_gpus(tree: Path, accelerator: str, processes: int) -> None:
    made = calls(tree, "--strategy", "zero2", "--devices", f"{accelerator}:{processes}", "--steps", "3")
    for words in made[2:6]:
        configs = [words[number + 1] for number, word in enumerate(words) if word == "--config"]
        assert configs[1:] == ["configs/deepspeed/zero2.yaml"]
        assert value(words, "--trainer.accelerator") == accelerator
        assert value(words, "--trainer.devices") == str(processes)
        assert ("--model.torch_threads" in words) == (accelerator == "cpu")
    for words, rows in zip(made[3:6], (32, 16, 8), strict=True):
        assert value(words, "--data.loading.global_batch_size") == str(rows)
        assert value(words, "--data.loading.batch_size") == str(rows // processes)
        assert value(words, "--trainer.max_steps") == "3"


def test_a_run_that_was_interrupted_is_continued_and_whole_stages_are_kept(tree: Path) -> None:
    (tree / "quickstart" / "stage1" / "model").mkdir(parents=True)
    (tree / "quickstart" / "stage2" / "checkpoints" / "last-step=5.ckpt").mkdir(parents=True)
    fits = [words for words in calls(tree, "--strategy", "ddp", "--devices", "cpu:4") if words[0] == "fit"]
    assert [words[2][-11:] for words in fits] == ["stage2.yaml", "stage3.yaml"]
    assert [value(words, "--ckpt_path") for words in fits] == ["last", None]
    assert [value(words, "--trainer.strategy") for words in fits] == ["ddp", "ddp"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "tpu:1"], "--devices is 'tpu:1'; it must be cpu:N or gpu:N, e.g. cpu:2"),
        (["--devices", "cpu:0"], "--devices is 'cpu:0'; it must be cpu:N or gpu:N, e.g. cpu:2"),
        (["--strategy", "zero9"], "--strategy is 'zero9'; it must be ddp or one of zero1 zero1_offload zero2"),
        (["--strategy"], "--strategy needs a value"),
        (["--steps", "none"], "--steps is 'none'; it must be a number of at least 1"),
        (["--fast", "1"], "'--fast' is not an option; --strategy, --devices and --steps are (--help)"),
        (["--devices", "cpu:3"], "32 rows of a step of stage 1 cannot be divided over 3 processes"),
    ],
)
def test_a_mistake_is_one_line(tree: Path, flags: list[str], message: str) -> None:
    done = run(tree, *flags)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("quickstart: ")]
    assert line.startswith(f"quickstart: {message}")
    if "cpu:3" not in flags:
        assert not (tree / "calls").exists()
