"""The quickstart's own world, parts and configs, through the real command line: every stage improves its measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGVID = Path(sys.executable).parent / "longvid"
CONFIGS = ROOT / "configs"


def longvid(cwd: Path, *arguments: str | Path) -> str:
    """Run a command as a user would, in ``cwd`` (the configs' paths are relative to it), and return its stdout."""
    done = subprocess.run(
        [LONGVID, *arguments],
        cwd=cwd,
        env={**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mean_score(run: Path, moment: str, kinds: set[str] | None = None) -> float:
    """Mean score of the held-out answers of a run, over some kinds of question."""
    records = [json.loads(line) for line in (run / f"answers_{moment}.jsonl").read_text().splitlines()]
    scores = [record["correct"] for record in records if kinds is None or record["kind"] in kinds]
    assert len(scores) >= 30
    return sum(scores) / len(scores)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three stages, trained as `scripts/quickstart.sh` does it; returns the folder that holds ``quickstart/``."""
    folder = tmp_path_factory.mktemp("stages")
    longvid(
        folder, "world", "--config", CONFIGS / "world/quickstart.yaml", "--out", "quickstart/world", "--workers", "2"
    )
    longvid(folder, "init", "--out", "quickstart/start")
    longvid(folder, "predict", "--config", CONFIGS / "llama_vid/nano/features.yaml")
    features = ("--data.media.features", "quickstart/features")
    for stage in (1, 2, 3):
        longvid(folder, "fit", "--config", CONFIGS / f"llama_vid/nano/stage{stage}.yaml", *features)
    return folder


@pytest.mark.slow
def test_stage_1_learns_to_caption(trained: Path) -> None:
    run = trained / "quickstart/stage1"
    before, after = mean_score(run, "before"), mean_score(run, "after")
    assert before < 0.2
    assert after > before + 0.3


@pytest.mark.slow
def test_stage_2_learns_to_answer(trained: Path) -> None:
    run = trained / "quickstart/stage2"
    assert mean_score(run, "after") > mean_score(run, "before") + 0.2


@pytest.mark.slow
def test_stage_3_learns_long_videos(trained: Path) -> None:
    run = trained / "quickstart/stage3"
    taught = {"needle", "order", "count", "detail"}
    assert mean_score(run, "after", taught) > mean_score(run, "before", taught) + 0.08
    assert mean_score(run, "after") > mean_score(run, "before") + 0.05


@pytest.mark.slow
def test_the_trained_model_answers_from_the_command_line(trained: Path) -> None:
    held_out = trained / "quickstart/world/stage3_heldout/val"
    rows = [json.loads(line) for line in (held_out / "manifest.jsonl").read_text().splitlines()]
    records = [json.loads(x) for x in (trained / "quickstart/stage3/answers_after.jsonl").read_text().splitlines()]
    row, record = rows[0], records[0]
    assert record["id"] == row["id"]
    medium = row["media"][0]
    out = longvid(
        trained,
        "ask",
        held_out / medium["path"],
        row["conversation"][0]["text"].removeprefix("<video>\n"),
        "--subtitles",
        held_out / medium["subtitles"],
        "--model",
        "quickstart/stage3/model",
        "--fps",
        "1",
        "--max-new-tokens",
        "16",
        "--json",
    )
    answer = json.loads(out)
    assert answer["answer"] == record["answer"]
    assert answer["visual_tokens"] == record["visual_tokens"] == 2 * record["frames"]
    assert answer["prompt_tokens"] == record["prompt_tokens"]
