"""Two processes under ZeRO that are stopped, and continued to the same bits; NaN on one of them stops both."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longvid_train.training.checkpoint_folder import folder_damage, read_index
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
END = """
import os
import subprocess
from pytorch_lightning.callbacks import Callback


class End(Callback):
    '''Has SIGTERM sent to one rank in the first micro-batch of the second step; another process sends it.'''

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            subprocess.run(["kill", "-s", "TERM", "--", str(os.getpid())])
"""
POISON = """
import math
from pytorch_lightning.callbacks import Callback


class Poison(Callback):
    '''Makes weights of one rank NaN before a micro-batch.'''

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.fit_loop.epoch_loop.total_batch_idx == 3:
            pl_module.model.content_projector[0].bias.data.fill_(math.nan)
"""


def losses(run: Path) -> list[list[float]]:
    names = ("step", "train/loss", "train/grad_norm", "train/lr")
    return [[line[name] for name in names] for line in read_metrics(run) if "train/loss" in line]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stopped_run_continues_to_the_same_bits(
    stage: int, job_words: list[str], start_fit: StartFit, finish_fit: FinishFit, tmp_path: Path
) -> None:
    (tmp_path / "ending.py").write_text(END)
    whole, run = tmp_path / "whole", tmp_path / "stopped"
    zero = ["--config", str(CONFIGS / f"zero{stage}.yaml")]
    assert finish_fit(start_fit(*job_words, *zero, "--run_dir", str(whole))) == (0, [])
    stopped = start_fit(*job_words, *zero, "--run_dir", str(run), "--trainer.callbacks+=ending.End", path=tmp_path)
    status, (line,) = finish_fit(stopped)
    assert status == 143
    assert line.startswith("longvid: stopped by SIGTERM after step 2; continue from ")
    newest = run / "checkpoints" / "last-step=2.ckpt"
    index = read_index(newest)
    assert index is not None
    assert (index.step, index.zero_stage, index.processes, folder_damage(newest)) == (2, stage, 2, None)
    assert finish_fit(start_fit(*job_words, *zero, "--run_dir", str(run), "--ckpt_path", "last")) == (0, [])
    assert losses(run) == losses(whole)
    left, right = (load_file(one / "model" / "model.safetensors") for one in (whole, run))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    other = ["--config", str(CONFIGS / f"zero{stage % 3 + 1}.yaml")]
    status, (line,) = finish_fit(start_fit(*job_words, *other, "--run_dir", str(run), "--ckpt_path", "last"))
    assert status == 2
    assert f"written under ZeRO stage {stage}, and trainer.strategy trains under ZeRO stage {stage % 3 + 1};" in line


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_nan_on_one_rank_stops_both_with_one_line(
    job_words: list[str], start_fit: StartFit, finish_fit: FinishFit, tmp_path: Path
) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    run = tmp_path / "run"
    zero = ["--config", str(CONFIGS / "zero3.yaml"), "--trainer.callbacks+=poison.Poison"]
    status, (line,) = finish_fit(start_fit(*job_words, *zero, "--run_dir", str(run), path=tmp_path))
    assert status == 1
    (at_fault,) = json.loads((run / "nonfinite_step_1.json").read_text())["micro_batches"]
    assert (at_fault["rank"], at_fault["loss_sum"]) == (1, "nan")
    assert "the loss is nan at step 1" in line
    assert str(run / "checkpoints" / "last-step=1.ckpt") in line
    assert folder_damage(run / "checkpoints" / "last-step=1.ckpt") is None
