"""A run of two processes, continued by one and by three, ends as it would have; other commands read its folders."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.checkpoint_folder import RunCheckpointIO, read_index
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
ROWS = 12
"""Of an optimiser step: as many for one, two and three processes."""


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in read_metrics(run) if "train/loss" in line}


@pytest.fixture(scope="module")
def config(fit_config_in: FitConfig, world: Any, dropout_free_folder: Path, tmp_path_factory: Any) -> Path:
    """Two epochs of two steps over videos and texts, without dropout, with decayed and undecayed weights."""
    return fit_config_in(
        tmp_path_factory.mktemp("other_processes"),
        data__init_args__train=str(world.uneven("other_processes.jsonl", 2 * ROWS)),
        data__init_args__val=str(world.manifest("other_processes_val.jsonl", 3, prefix="val")),
        data__init_args__loading={"batch_size": 1, "global_batch_size": ROWS},
        model__init_args__model=str(dropout_free_folder),
        model__init_args__optimizer={"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.1},
        trainer__max_epochs=2,
        trainer__limit_val_batches=0,
        trainer__gradient_clip_val=1.0,
        checkpoint={"every_n_train_steps": 1, "save_top_k": -1},
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_and_three_processes_continue_what_two_began(
    stage: int,
    config: Path,
    start_fit: StartFit,
    finish_fit: FinishFit,
    validated: Callable[..., float],
    tmp_path: Path,
) -> None:
    words = ["--config", str(config), "--config", str(CONFIGS / f"zero{stage}.yaml")]
    whole = tmp_path / "whole"
    assert finish_fit(start_fit(*words, "--run_dir", str(whole), "--trainer.devices", "2")) == (0, [])
    wanted = load_file(whole / "model" / "model.safetensors")
    for processes, step in ((1, 1), (3, 3)):
        (source,) = (whole / "checkpoints").glob(f"epoch=*-step={step}.ckpt")
        kept = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
        run = tmp_path / f"by_{processes}"
        other = ["--run_dir", str(run), "--trainer.devices", str(processes), "--ckpt_path", str(source)]
        status, (line,) = finish_fit(start_fit(*words, *other))
        assert status == 0
        assert line.endswith(f"written by 2 processes and continued by {processes}, in DeepSpeed's universal form")
        assert losses(run) == pytest.approx({at: loss for at, loss in losses(whole).items() if at >= step}, rel=1e-5)
        found = load_file(run / "model" / "model.safetensors")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == kept
        assert [path.name for path in source.parent.iterdir() if path.name.startswith(".")] == []
    folder = whole / "checkpoints" / "last-step=4.ckpt"
    weights = RunCheckpointIO().load_checkpoint(folder)["state_dict"]
    index = read_index(folder)
    assert index is not None
    assert index.trained.keys() <= weights.keys()
    for name in index.trained:
        torch.testing.assert_close(weights[name], wanted[name.removeprefix("model.")], rtol=0, atol=0)
    everything = ["--run_dir", str(whole), "--trainer.limit_val_batches", "1.0"]
    read = [*everything, "--ckpt_path", str(folder)]
    plain = validated("--config", str(config), "--model.model", str(whole / "model"), *everything)
    assert validated("--config", str(config), *read) == pytest.approx(plain, rel=1e-6)
    assert validated(*words, *read, "--trainer.devices", "2") == pytest.approx(plain, rel=1e-6)


def test_a_step_with_other_rows_ends_before_weights_load(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of three processes whose steps had 9 rows; one process is the run's own and joins no group."""
    folder = tmp_path / "run" / "checkpoints" / "last-step=1.ckpt"
    folder.mkdir(parents=True)
    split = {"batch_size": 1, "ranks": 3, "accumulate": 3, "batches": 8}
    index = {"start": 1, "step": 1, "zero_stage": 2, "processes": 3, "trained": {}, "files": {}, "split": split}
    (folder / "index.json").write_text(json.dumps(index))

    def never(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("longvid_train.training.module.load_for_training", never)
    monkeypatch.setattr("longvid_train.training.strategies.zero.use_cpu", lambda: None)
    monkeypatch.setattr("longvid_train.training.strategies.zero.ZeroStrategy.setup_distributed", lambda _: None)
    words = ["--config", str(config), "--config", str(CONFIGS / "zero2.yaml"), "--run_dir", str(tmp_path / "run")]
    assert cli.main(["fit", *words, "--ckpt_path", "last"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: --ckpt_path")]
    assert "an optimiser step had 1 x 3 x 3 = 9 rows and now has 1 x 1 x 12 = 12" in line
