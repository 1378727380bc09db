"""The wandb runs of an ablation: offline folders as ``wandb sync`` reads them, one a run, with all that is recorded."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from longvid_train.ablation.making import Facts
from longvid_train.ablation.plan import Run
from longvid_train.ablation.recipe import Recipe
from longvid_train.ablation.records import write_run
from longvid_train.ablation.scores import Scored
from longvid_train.ablation.sweep import Sweep
from longvid_train.ablation.tracking import log_run, summary_values

RECIPE: dict[str, Any] = {
    "steps": {
        "start": {"run": "init"},
        "train": {"run": "fit", "set": {"model.model": "${start}", "seed_everything": "${seed}"}},
    },
    "result": "train",
}
_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7


def records(path: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file: LevelDB's log format behind a header of 7 bytes, each a protobuf message."""
    data, place, whole = path.read_bytes(), _FILE_HEADER, b""
    assert data[:4] == b":W&B"
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        whole += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.fixture
def finished(planned: Callable[..., tuple[Sweep, Recipe, list[Run]]], tmp_path: Path) -> tuple[Path, Run, Sweep]:
    """A finished run of a cell: two trained steps and two answered questions."""
    sweep, _, (run, _) = planned(RECIPE, (3,), **{"train.trainer.max_steps": [2, 4]})
    out = tmp_path / "out"
    for step in run.result.in_order():
        (step.folder(out) / "out").mkdir(parents=True)
        (step.folder(out) / "done.json").write_text('{"duration_s": 1.5}')
    lines = [{"step": step, "train/loss": 5.0 - step, "train/lr": None} for step in range(2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.result.folder(out) / "out" / "metrics.jsonl").write_text(text)
    scored = [
        Scored(id=name, kind=name, score=score, frames=8, visual_tokens=16)
        for name, score in (("needle", 1), ("order", 0))
    ]
    facts = Facts(git_commit="abc-dirty", versions={"torch": "2"}, hardware={"cpu_cores": 2})
    write_run(out, run, scored, sweep, facts)
    return out, run, sweep


def test_a_run_is_one_offline_folder_with_group_config_curves_and_summary(
    finished: tuple[Path, Run, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    out, run, sweep = finished
    marker = run.folder(out) / "wandb.json"
    half = out / "wandb" / "offline-run-20200101_000000-dead"
    half.mkdir(parents=True)
    marker.write_text('{"id": "dead", "whole": false}')
    log_run(out, run, sweep)
    log_run(out, run, sweep)
    (folder,) = (out / "wandb").glob("offline-run-*")
    assert json.loads(marker.read_text()) == {"id": folder.name.rpartition("-")[2], "whole": True}
    found = list(records(next(folder.glob("run-*.wandb"))))
    started = next(one.run for one in found if one.HasField("run"))
    assert (started.run_group, started.display_name, started.project) == ("grid", f"{run.name}/seed3", "longvid-train")
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["parameters"] == {"train.trainer.max_steps": 2} and config["seed"] == 3
    assert (
        config["git_commit"] == "abc-dirty" and config["hardware"] == {"cpu_cores": 2} and config["duration_s"] == 3.0
    )
    assert config["config"]["train"]["seed_everything"] == 3 and config["versions"] == {"torch": "2"}
    logged = [
        {item.key or item.nested_key[0]: item.value_json for item in one.history.item}
        for one in found
        if one.HasField("history")
    ]
    assert [float(line["train/train/loss"]) for line in logged] == [5.0, 4.0]
    assert all("train/train/lr" not in line for line in logged), "what is no number is left out"
    summary = {
        (item.key or item.nested_key[0]): json.loads(item.value_json)
        for one in found
        if one.HasField("summary")
        for item in one.summary.update
    }
    assert summary["score"] == 0.5 and summary["score/needle"] == 1.0 and summary["cost/visual_tokens"] == 16
    assert any(one.HasField("exit") and one.exit.exit_code == 0 for one in found)


def test_wandb_that_is_switched_off_writes_nothing(
    finished: tuple[Path, Run, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    out, run, sweep = finished
    log_run(out, run, sweep)
    assert not (out / "wandb").exists() and not (run.folder(out) / "wandb.json").exists()


def test_the_metric_of_the_sweep_files_is_in_the_summary() -> None:
    values = summary_values({"scores": {"overall": 0.25, "order": 0.5}, "cost": {"frames": 8.0}})
    assert values == {"score": 0.25, "score/overall": 0.25, "score/order": 0.5, "cost/frames": 8.0}
