"""Two DDP processes that are stopped or killed in the middle of an epoch, and continued."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train.training.checkpoint_io import damage
from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.trace import differences, read_trace
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
TRACE = "longvid_train.training.trace.StateTrace"
END = """
import os
import subprocess
from pytorch_lightning.callbacks import Callback


class End(Callback):
    '''Has a signal sent in the fifth micro-batch, the first of the third step: to one rank, or to the whole job.

    Another process sends it, as a cluster does.
    '''

    def __init__(self, name: str, rank: int, whole_job: bool) -> None:
        self.name, self.rank, self.whole_job = name, rank, whole_job

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == self.rank and batch_idx == 4:
            target = -os.getpgid(0) if self.whole_job else os.getpid()
            subprocess.run(["kill", "-s", self.name, "--", str(target)])
"""


def words(config: Path, run: Path) -> list[str]:
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    trace = [f"--trainer.callbacks+={TRACE}", f"--trainer.callbacks.path={run / 'trace.jsonl'}"]
    return ["--config", str(config), "--run_dir", str(run), *ranks, *trace]


@pytest.fixture(scope="module")
def config_and_folder(
    fit_config_in: FitConfig, world: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run of one epoch: 6 steps of two micro-batches on each of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "ending.py").write_text(END)
    config = fit_config_in(
        folder,
        data__init_args__train=str(world.manifest("ranks.jsonl", 24)),
        data__init_args__loading={"batch_size": 1, "num_workers": 2},
        trainer__accumulate_grad_batches=2,
        checkpoint={"every_n_train_steps": 1},
    )
    return config, folder


def whole_run(config: Path, folder: Path, start_fit: StartFit, finish_fit: FinishFit) -> Path:
    """The run in one go, made by the first test that needs it."""
    whole = folder / "whole"
    if not whole.exists():
        assert finish_fit(start_fit(*words(config, whole))) == (0, [])
    assert len(read_trace(whole / "trace.jsonl")) == 12
    return whole


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "rank", "whole_job"),
    [("SIGTERM", 1, False), ("SIGTERM", 0, True), ("SIGKILL", 0, True)],
    ids=["one rank is told to stop", "a cluster stops the job", "the job is killed"],
)
def test_two_ranks_continue_to_the_same_bits(
    config_and_folder: tuple[Path, Path],
    start_fit: StartFit,
    finish_fit: FinishFit,
    tmp_path: Path,
    name: str,
    rank: int,
    whole_job: bool,
) -> None:
    config, folder = config_and_folder
    whole = whole_run(config, folder, start_fit, finish_fit)
    run = tmp_path / "run"
    callback = ["--trainer.callbacks+=ending.End", f"--trainer.callbacks.name={name.removeprefix('SIG')}"]
    callback += [f"--trainer.callbacks.rank={rank}", f"--trainer.callbacks.whole_job={str(whole_job).lower()}"]
    status, lines = finish_fit(start_fit(*words(config, run), *callback, path=folder))
    readable, unreadable = by_age(run / "checkpoints")
    assert (damage(readable[0].path), unreadable) == (None, [])
    if name == "SIGTERM":
        assert (status, readable[0].step) == (143, 3), "the step in which the signal came is finished"
        (line,) = lines
        assert line.startswith("longvid: stopped by SIGTERM after step 3; continue from ")
        assert line.endswith("--ckpt_path last")
        assert len(read_trace(run / "trace.jsonl")) == 6
    else:
        assert (status, readable[0].step) == (-9, 2)
    assert not (run / "model").exists()
    assert finish_fit(start_fit(*words(config, run), "--ckpt_path", "last")) == (0, [])
    assert differences(read_trace(whole / "trace.jsonl"), read_trace(run / "trace.jsonl")) == []
    left, right = (load_file(one / "model" / "model.safetensors") for one in (whole, run))
    assert [weight for weight in left if not torch.equal(left[weight], right[weight])] == []
    names = ("step", "train/loss", "train/grad_norm")
    kept = [[[line[key] for key in names] for line in read_metrics(one)] for one in (whole, run)]
    assert kept[0] == kept[1]
