"""A run is repeated from the files of its own folder, through the command line."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.repetition import MEASURED_METRICS
from longvid_train.training.tracking import read_metrics, wandb_run_ends_here

FitConfig = Callable[..., Path]


def computed(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in MEASURED_METRICS} for line in read_metrics(run)]


@pytest.mark.parametrize(
    ("sampling", "frames"),
    [
        ({"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 9, "at_most": True}}, 4),
        ({"class_path": "longvid_train.video.FramesPerSecond", "init_args": {"fps": 1.0, "max_frames": 3}}, 3),
        ({"class_path": "longvid_train.video.AtTimes", "init_args": {"times_s": [2.0, 0.0]}}, 2),
    ],
)
def test_the_config_in_the_run_folder_gives_the_same_run(
    fit_config: FitConfig, tmp_path: Path, sampling: dict[str, Any], frames: int
) -> None:
    config = fit_config(
        data__init_args__media={"sampling": sampling}, answers={"enabled": True, "max_new_tokens": 2}, wandb="off"
    )
    first, again = tmp_path / "first", tmp_path / "again"
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(first), "--trainer.max_steps", "2"]) == 0
    assert cli.main(["fit", "--config", str(first / "config.yaml"), "--run_dir", str(again)]) == 0
    assert computed(first) == computed(again)
    assert sum("train/loss" in line for line in computed(first)) == 2
    for name in ("answers_before.jsonl", "answers_after.jsonl"):
        assert (first / name).read_text() == (again / name).read_text()
    assert json.loads((first / "answers_after.jsonl").read_text().splitlines()[0])["frames"] == frames
    left, right = (load_file(run / "model" / "model.safetensors") for run in (first, again))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_continued_run_leaves_a_config_of_the_whole_run_and_its_end(
    fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = fit_config(), tmp_path / "run"
    assert cli.main(["fit", "--config", str(config), "--trainer.max_steps", "1"]) == 0
    words = ["--ckpt_path", "last", "--trainer.max_steps", "2"]
    capsys.readouterr()
    assert cli.main(["fit", "--config", str(config), *words]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: continuing with ")]
    assert said.startswith("longvid: continuing with trainer.max_steps 2 instead of 1: ")
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["ckpt_path"], written["trainer"]["max_steps"]) == (None, 2)
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert len(starts) == 2
    for start in starts:
        started_at, finished_at = (datetime.fromisoformat(start[name]) for name in ("started_at", "finished_at"))
        assert started_at.utcoffset() == timedelta(0)
        assert start["duration_s"] > 0
        assert abs((finished_at - started_at).total_seconds() - start["duration_s"]) < 2, "times are whole seconds"
        assert start["working_folder"] == str(Path.cwd())


def test_each_run_of_a_process_has_a_wandb_run_of_its_own(
    fit_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = fit_config(wandb="offline")
    for name in ("first", "second"):
        words = ["--run_dir", str(tmp_path / name), "--trainer.max_steps", "1"]
        assert cli.main(["fit", "--config", str(config), *words]) == 0
        assert wandb.run is None
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_a_wandb_run_that_was_open_before_is_left_open(
    fit_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(project="sweep", dir=tmp_path) as own:
        words = ["--config", str(fit_config(wandb="offline")), "--trainer.max_steps", "1"]
        assert cli.main(["fit", *words]) == 0
        assert wandb.run is own


def test_the_wandb_run_of_a_failed_training_is_marked_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    run = SimpleNamespace(finish=lambda exit_code: ended.append(exit_code))
    monkeypatch.setattr(wandb, "run", None)
    with pytest.raises(RuntimeError), wandb_run_ends_here():
        monkeypatch.setattr(wandb, "run", run)
        raise RuntimeError
    assert ended == [1]


def test_the_table_of_answers_in_the_offline_wandb_run(
    fit_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, run = fit_config(answers={"enabled": True, "max_new_tokens": 2}, wandb="offline"), tmp_path / "run"
    assert cli.main(["fit", "--config", str(config), "--trainer.max_steps", "1"]) == 0
    (path,) = (run / "wandb").glob("offline-run-*/files/media/table/answers_after*.table.json")
    table = json.loads(path.read_text())
    kept = [json.loads(line) for line in (run / "answers_after.jsonl").read_text().splitlines()]
    assert {"question", "answer", "truth", "correct"} <= set(table["columns"])
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == kept
