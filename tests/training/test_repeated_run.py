"""A run is repeated from the files of its own folder, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
MEASURED = ("_per_s", "_s", "_bytes", "mfu", "wait", "share")
"""Ends of the names of metrics that are measured on the machine, not computed from the data."""


def computed(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not any(part in name for part in MEASURED)}
        for line in read_metrics(run)
    ]


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
