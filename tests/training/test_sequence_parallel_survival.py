"""Processes that share sequences are stopped and continued to the same bits, and validate as one process does."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.checkpoint_folder import folder_damage, read_index
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
SHARED = ["--config", str(CONFIGS / "sequence_parallel_zero2.yaml"), "--trainer.devices", "2"]
END = """
import os
import subprocess
from pytorch_lightning.callbacks import Callback


class End(Callback):
    '''Has SIGTERM sent to the second part's rank in the first micro-batch of the fourth step, after a validation.'''

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.fit_loop.epoch_loop.total_batch_idx == 6:
            subprocess.run(["kill", "-s", "TERM", "--", str(os.getpid())])
"""


def logged(run: Path, *names: str) -> list[list[float]]:
    """The named metrics, with their steps, of the lines that have them all."""
    return [[line["step"], *(line[name] for name in names)] for line in read_metrics(run) if set(names) <= set(line)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_stopped_run_continues_to_the_same_bits(
    fit_config: FitConfig, world: Any, start_fit: StartFit, finish_fit: FinishFit, tmp_path: Path
) -> None:
    """Two epochs of three steps of two micro-batches, rows of unequal lengths, with dropout; stopped in the second."""
    config = fit_config(
        data__init_args__train=str(world.uneven("shared_stopped.jsonl", 12)),
        data__init_args__val=str(world.manifest("shared_stopped_val.jsonl", 3, prefix="val")),
        data__init_args__loading={"batch_size": 2, "global_batch_size": 4},
        trainer__max_epochs=2,
        trainer__val_check_interval=2,
        checkpoint={"every_n_train_steps": 1},
    )
    (tmp_path / "ending.py").write_text(END)
    whole, run = tmp_path / "whole", tmp_path / "stopped"
    words = ["--config", str(config), *SHARED]
    assert finish_fit(start_fit(*words, "--run_dir", str(whole))) == (0, [])
    stopped = start_fit(*words, "--run_dir", str(run), "--trainer.callbacks+=ending.End", path=tmp_path)
    status, (line,) = finish_fit(stopped)
    assert status == 143
    assert line.startswith("longvid: stopped by SIGTERM after step 4; continue from ")
    newest = run / "checkpoints" / "last-step=4.ckpt"
    index = read_index(newest)
    assert index is not None
    assert (index.step, index.zero_stage, index.processes, folder_damage(newest)) == (4, 2, 2, None)
    assert index.split is not None
    assert (index.split.ranks, index.split.rows) == (1, 4), "a group reads as one"
    assert finish_fit(start_fit(*words, "--run_dir", str(run), "--ckpt_path", "last")) == (0, [])
    losses = logged(whole, "train/loss", "train/grad_norm", "train/lr")
    assert [step for step, *_ in losses] == list(range(6))
    assert logged(run, "train/loss", "train/grad_norm", "train/lr") == losses
    assert len(logged(whole, "val/loss")) == 6
    assert logged(run, "val/loss") == logged(whole, "val/loss")
    left, right = (load_file(one / "model" / "model.safetensors") for one in (whole, run))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_validation_and_held_out_answers_are_those_of_one_process(
    fit_config: FitConfig,
    world: Any,
    dropout_free_folder: Path,
    start_fit: StartFit,
    finish_fit: FinishFit,
    validated: Callable[..., float],
    tmp_path: Path,
) -> None:
    """Held-out rows are divided over all processes, one of which has fewer; so they are by ``longvid validate``."""
    config = fit_config(
        data__init_args__train=str(world.uneven("shared_validated.jsonl", 12)),
        data__init_args__val=str(world.uneven("shared_validated_val.jsonl", 5)),
        data__init_args__test=str(world.manifest("shared_validated_test.jsonl", 5, prefix="held")),
        data__init_args__loading={"batch_size": 4},
        model__init_args__model=str(dropout_free_folder),
        model__init_args__optimizer={"lr": 1e-2, "eps": 1e-3},
        trainer__val_check_interval=1,
        answers={"enabled": True, "every_n_steps": 2, "max_new_tokens": 4},
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(one)]) == 0
    assert finish_fit(start_fit("--config", str(config), *SHARED, "--run_dir", str(two))) == (0, [])
    wanted = logged(one, "val/loss")
    assert len(wanted) == 3
    assert wanted[0][1] > wanted[-1][1], "training changes it"
    for left, right in zip(wanted, logged(two, "val/loss"), strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    for moment in ("before", "step_2", "after"):
        left, right = ((run / f"answers_{moment}.jsonl").read_text() for run in (one, two))
        assert left == right, moment
    assert len(left.splitlines()) == 5
    read = ["--config", str(config), *SHARED, "--run_dir", str(two), "--ckpt_path", "last"]
    assert validated(*read) == pytest.approx(wanted[-1][1], rel=1e-5)
