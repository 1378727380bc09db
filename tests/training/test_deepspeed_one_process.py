"""The real engine in the fast tests: one process at stage 3 is plain training, with shards, checkpoints and export."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.checkpoint_folder import folder_damage, read_index
from longvid_train.training.tracking import read_metrics

CONFIG = Path(__file__).parents[2] / "configs" / "deepspeed" / "zero3.yaml"


def test_one_process_at_stage_3_is_plain_training(
    fit_config: Callable[..., Path],
    tmp_path: Path,
    start_fit: Callable[..., "subprocess.Popen[str]"],
    finish_fit: Callable[["subprocess.Popen[str]"], tuple[int, list[str]]],
) -> None:
    config = fit_config(
        model__init_args__stage={"name": "alignment", "trainable": ["context_attention", "content_projector"]},
        model__init_args__optimizer={"lr": 1e-2, "eps": 1e-3},
        trainer__max_steps=2,
        trainer__gradient_clip_val=0.5,
        checkpoint={"every_n_train_steps": 1},
    )
    plain, zero = tmp_path / "plain", tmp_path / "zero"
    sharded = start_fit("--config", str(config), "--config", str(CONFIG), "--run_dir", str(zero))
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(plain)]) == 0
    assert finish_fit(sharded) == (0, [])
    for name in ("train/loss", "train/grad_norm", "train/lr"):
        left, right = ([line[name] for line in read_metrics(run) if name in line] for run in (plain, zero))
        assert len(left) == 2
        assert right == pytest.approx(left, rel=1e-5), name
    newest = zero / "checkpoints" / "last-step=2.ckpt"
    index = read_index(newest)
    assert index is not None
    assert (index.step, index.zero_stage, index.processes, folder_damage(newest)) == (2, 3, 1, None)
    assert {name.split(".")[1] for name in index.trained} == {"context_attention", "content_projector"}
    weights, found = (load_file(run / "model" / "model.safetensors") for run in (plain, zero))
    assert weights.keys() == found.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
