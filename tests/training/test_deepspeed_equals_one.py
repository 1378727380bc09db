"""Two processes under each stage of ZeRO train like one process with the whole batch."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
ZeroWords = Callable[..., list[str]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
STAGES = {
    "alignment": ["context_attention", "content_projector"],
    "instruction": ["*", "!vision_tower"],
    "long_video": ["language_model", "content_projector"],
}


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "train/loss" in line]


@pytest.fixture(scope="module")
def uneven_config(fit_config_in: FitConfig, world: Any, dropout_free_folder: Path, tmp_path_factory: Any) -> Path:
    """Videos and texts with 2 to 9 supervised tokens each, everything but the tower trains, without dropout."""
    return fit_config_in(
        tmp_path_factory.mktemp("zero"),
        data__init_args__train=str(world.uneven("uneven_zero.jsonl", 14)),
        model__init_args__model=str(dropout_free_folder),
        model__init_args__stage={"name": "instruction", "trainable": STAGES["instruction"]},
        model__init_args__optimizer={"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.1},
        trainer__max_epochs=2,
        trainer__gradient_clip_val=1.0,
    )


@pytest.fixture(scope="module")
def whole_batch(uneven_config: Path) -> Path:
    """The run of one process with batches of four."""
    run = uneven_config.parent / "one"
    words = ["--config", str(uneven_config), "--run_dir", str(run), "--data.loading.batch_size", "4"]
    assert cli.main(["fit", *words]) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_with_accumulation_train_like_the_whole_batch(
    stage: int, uneven_config: Path, whole_batch: Path, start_fit: StartFit, finish_fit: FinishFit, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    zero = ["--config", str(CONFIGS / f"zero{stage}.yaml"), "--trainer.devices", "2"]
    split = ["--data.loading.batch_size", "1", "--trainer.accumulate_grad_batches", "2"]
    process = start_fit("--config", str(uneven_config), "--run_dir", str(run), *zero, *split)
    assert finish_fit(process) == (0, [])
    assert len(steps(whole_batch)) == len(steps(run)) == 8
    for left, right in zip(steps(whole_batch), steps(run), strict=True):
        assert left["train/supervised_tokens"] == right["train/supervised_tokens"]
        for name in ("train/loss", "train/grad_norm", "train/lr"):
            assert left[name] == pytest.approx(right[name], rel=2e-5), name
    left, right = (load_file(one / "model" / "model.safetensors") for one in (whole_batch, run))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-5)
