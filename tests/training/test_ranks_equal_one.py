"""Two DDP processes with accumulation train like one process with the whole batch, and stop together."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.checkpoint_io import damage
from longvid_train.training.last_checkpoint import read_age
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
EVERYTHING = {"name": "instruction", "trainable": ["*", "!vision_tower"]}
SMOOTH = {"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.1}
POISON = """
import math
from pytorch_lightning.callbacks import Callback


class Poison(Callback):
    '''Makes weights of one rank NaN before a micro-batch: a loss that is not finite on that rank alone.'''

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.fit_loop.epoch_loop.total_batch_idx == 3:
            pl_module.model.content_projector[0].bias.data.fill_(math.nan)
"""


def two_ranks(config: Path, run: Path) -> list[str]:
    return ["--config", str(config), "--run_dir", str(run), "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "train/loss" in line]


@pytest.mark.slow
def test_two_ranks_with_accumulation_train_like_the_whole_batch(
    fit_config: FitConfig,
    world: Any,
    dropout_free_folder: Path,
    tmp_path: Path,
    start_fit: StartFit,
    finish_fit: FinishFit,
) -> None:
    """Everything but the tower trains, in float64, with plain DDP although texts use no vision and nothing reads what
    the last layer of a Q-Former makes of the prompt. Averaging averages would be wrong by per cents."""
    config = fit_config(
        data__init_args__train=str(world.uneven("uneven.jsonl", 12)),
        model__init_args__model=str(dropout_free_folder),
        model__init_args__stage=EVERYTHING,
        model__init_args__optimizer=SMOOTH,
        trainer__max_epochs=2,
        trainer__precision="64-true",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(one), "--data.loading.batch_size", "4"]) == 0
    split = ["--data.loading.batch_size", "1", "--trainer.accumulate_grad_batches", "2"]
    status, lines = finish_fit(start_fit(*two_ranks(config, two), *split))
    assert (status, lines) == (0, [])
    assert len(steps(one)) == len(steps(two)) == 6
    assert len({line["train/supervised_tokens"] for line in steps(one)}) > 1
    for left, right in zip(steps(one), steps(two), strict=True):
        assert left["train/supervised_tokens"] == right["train/supervised_tokens"]
        norms = [name for name in left if name.startswith("train/grad_norm")]
        assert norms
        for name in ("train/loss", *norms):
            assert left[name] == pytest.approx(right[name], rel=1e-6), name
    left, right = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_nan_on_one_rank_stops_both_with_one_line(
    fit_config: FitConfig, tmp_path: Path, start_fit: StartFit, finish_fit: FinishFit
) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    config = fit_config(
        data__init_args__loading={"batch_size": 1},
        trainer__accumulate_grad_batches=2,
        checkpoint={"every_n_train_steps": 1},
    )
    run = tmp_path / "run"
    process = start_fit(*two_ranks(config, run), "--trainer.callbacks+=poison.Poison", path=tmp_path)
    status, lines = finish_fit(process)
    assert status == 1
    assert len(lines) == 1, lines
    report = json.loads((run / "nonfinite_step_1.json").read_text())
    (at_fault,) = report["micro_batches"]
    assert (at_fault["rank"], at_fault["loss_sum"]) == (1, "nan")
    assert f"the loss is nan at step 1 for samples {report['samples'][0]}" in lines[0]
    assert f"(sample '{at_fault['sample_ids'][0]}')" in lines[0]
    (newest,) = (run / "checkpoints").glob("last-*.ckpt")
    assert lines[0].count(str(newest)) == 1
    assert damage(newest) is None
    age = read_age(newest)
    assert age is not None
    assert age.step == 1
