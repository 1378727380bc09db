"""``scripts/reproduce_run.py``: what it compares, and a tiny run repeated by it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvid_train import cli
from longvid_train.training.repetition import compare_runs, differing_facts
from scripts.reproduce_run import main

FitConfig = Callable[..., Path]
METRICS = [{"step": 0, "train/loss": 2.5, "train/step_s": 1.0}, {"step": 1, "train/loss": float("nan")}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with what a finished run leaves."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    save_file({"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.bfloat16)}, folder / "model" / "model.safetensors")
    write_metrics(folder, METRICS)
    (folder / "answers_after.jsonl").write_text('{"answer": "red"}\n{"answer": "blue"}\n')
    start = {"seed": 7, "git_commit": "abc", "versions": {"torch": "2"}, "working_folder": str(tmp_path)}
    (folder / "run.json").write_text(json.dumps({"starts": [{"seed": 1}, start]}))
    return folder


@pytest.fixture
def again(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "again"))


def write_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def differing(run: Path, again: Path) -> dict[str, str]:
    return {one.what: one.detail for one in compare_runs(run, again) if not one.same}


def test_a_copy_is_the_same_and_everything_is_counted(run: Path, again: Path) -> None:
    assert [(one.what, one.same, one.detail) for one in compare_runs(run, again)] == [
        ("model/model.safetensors", True, "2 tensors"),
        ("metrics.jsonl", True, "2 lines"),
        ("answers_after.jsonl", True, "2 lines"),
    ]
    assert differing_facts(run, again) == []


def test_times_may_differ_and_losses_may_not(run: Path, again: Path) -> None:
    write_metrics(again, [{**METRICS[0], "train/step_s": 9.0}, METRICS[1]])
    assert differing(run, again) == {}
    write_metrics(again, [METRICS[0], {"step": 1, "train/loss": 2.5000000001}])
    assert differing(run, again) == {"metrics.jsonl": "1 of 2 lines differ, the first is line 2 (step 1)"}
    write_metrics(again, METRICS[:1])
    assert differing(run, again) == {"metrics.jsonl": "1 of 2 lines differ, the first is line 2 (step 1)"}


@pytest.mark.parametrize(
    "changed",
    [
        {"a": torch.tensor([0.0, 0.0, -0.0])},
        {"a": torch.zeros(3, dtype=torch.float16)},
        {"a": torch.zeros(3, 1)},
        {"a": torch.tensor([0.0, 1e-45, 0.0])},
    ],
)
def test_weights_are_compared_to_the_bit(run: Path, again: Path, changed: dict[str, torch.Tensor]) -> None:
    path = again / "model" / "model.safetensors"
    save_file({**load_file(path), **changed}, path)
    assert differing(run, again) == {"model/model.safetensors": "1 of 2 tensors differ, the first is a"}


def test_a_missing_file_or_tensor_is_a_difference(run: Path, again: Path) -> None:
    (again / "answers_after.jsonl").rename(again / "answers_step_1.jsonl")
    save_file({"a": torch.zeros(3)}, again / "model" / "model.safetensors")
    assert differing(run, again) == {
        "model/model.safetensors": "1 of 2 tensors differ, the first is b",
        "answers_after.jsonl": f"missing in {again}",
        "answers_step_1.jsonl": f"missing in {run}",
    }


def test_the_script_prints_a_line_for_each_thing(
    run: Path, again: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), "--out", str(again), "--compare-only"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "same: model/model.safetensors: 2 tensors",
        "same: metrics.jsonl: 2 lines",
        "same: answers_after.jsonl: 2 lines",
    ]
    (again / "answers_after.jsonl").write_text('{"answer": "red"}\n{"answer": "green"}\n')
    record = json.loads((again / "run.json").read_text())
    record["starts"][-1]["versions"] = {"torch": "3"}
    (again / "run.json").write_text(json.dumps(record))
    assert main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'note: versions was {"torch": "2"} and is {"torch": "3"}'
    assert lines[-1] == "DIFFERS: answers_after.jsonl: 1 of 2 lines differ, the first is line 2"


def test_mistakes_are_one_line(run: Path, again: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no run.json; name the run folder" in capsys.readouterr().err
    assert main([str(run), "--out", str(again)]) == 2
    assert "exists already; name another folder with --out" in capsys.readouterr().err
    assert main([str(run), "--working-folder", str(tmp_path / "gone")]) == 2
    assert "name a folder with --working-folder" in capsys.readouterr().err
    shutil.rmtree(run / "model")
    assert main([str(run), "--out", str(again), "--compare-only"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_repeated_from_its_folder(
    fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fit_config(answers={"enabled": True, "max_new_tokens": 2}, wandb="off", model__init_args__torch_threads=1)
    run, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["fit", "--config", str(config)]) == 0
    capsys.readouterr()
    assert main([str(run), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines if not line.startswith("note: ")] == [
        ["same", "model/model.safetensors"],
        ["same", "metrics.jsonl"],
        ["same", "answers_after.jsonl"],
        ["same", "answers_before.jsonl"],
    ]
    weights = out / "model" / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, weights)
    assert main([str(run), "--out", str(out), "--compare-only"]) == 1
    assert f"DIFFERS: model/model.safetensors: 1 of {len(tensors)} tensors differ, the first is {name}" in (
        capsys.readouterr().out
    )
