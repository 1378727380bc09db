"""A backbone under an extended window, with LoRA and a trained projector, on two ranks: one may see text alone."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.tracking import read_metrics
from tests.training.backbone_folders import save_backbone

StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
WINDOW = "{kind: visual_yarn, trained_tokens: 16, bounds: share, alpha: 0.2, beta: 0.8}"
ADAPTATION = f"backbones: [llava_onevision]\nframes: 4\nfps: 1.0\nwindow: {WINDOW}\n"


def rows() -> list[dict[str, Any]]:
    """Videos of 2 and 4 frames, which need windows of different scales, and two rows of text alone."""
    made: list[dict[str, Any]] = []
    for number in range(8):
        colour = ("red", "green", "blue")[number % 3]
        media = {"type": "video", "path": f"{colour}.mp4", **({"end_s": 2.0} if number % 2 else {})}
        row = {"id": f"row{number}", "media": [media]}
        question = {"role": "user", "text": "<video>\nwhat colour is the video ?"}
        if number in (2, 5):
            row, question = {"id": f"row{number}"}, {"role": "user", "text": "what is it ?"}
        answer = {"role": "assistant", "text": colour if number % 2 else f"a {colour} video"}
        made.append({**row, "conversation": [question, answer]})
    return made


@pytest.fixture(scope="module")
def config(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("zero_backbone")
    (folder / "adaptation.yaml").write_text(ADAPTATION)
    settings = {
        "seed_everything": 7,
        "run_dir": str(folder / "run"),
        "wandb": "off",
        "model": {
            "class_path": "longvid_train.training.backbones.BackboneTraining",
            "init_args": {
                "model": str(save_backbone(folder / "onevision", "onevision")),
                "stage": {"name": "lora", "trainable": ["model.multi_modal_projector"]},
                "optimizer": {"lr": 1e-2, "eps": 1e-3},
                "lora": {"r": 4, "alpha": 8, "target_modules": ["model.language_model"]},
            },
        },
        "data": {
            "class_path": "longvid_train.data.backbone_datamodule.BackboneDataModule",
            "init_args": {
                "train": str(world.write("zero_backbone.jsonl", rows())),
                "adaptation": str(folder / "adaptation.yaml"),
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def one(config: Path) -> Path:
    run = config.parent / "one"
    words = ["--config", str(config), "--run_dir", str(run), "--data.loading.batch_size", "4"]
    assert cli.main(["fit", *words]) == 0
    return run


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("overlay", "accumulate"), [("zero2", 2), ("zero3", 2), ("sequence_parallel_zero2", 4)])
def test_two_ranks_train_the_adapter_that_one_trains(
    overlay: str,
    accumulate: int,
    config: Path,
    one: Path,
    start_fit: StartFit,
    finish_fit: FinishFit,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    words = ["--config", str(config), "--config", str(CONFIGS / f"{overlay}.yaml"), "--run_dir", str(run)]
    words += ["--trainer.devices", "2", "--trainer.accumulate_grad_batches", str(accumulate)]
    assert finish_fit(start_fit(*words)) == (0, [])
    assert len(losses(one)) == 4
    assert losses(run) == pytest.approx(losses(one), rel=1e-5)
    left, right = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (one, run))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-5)
