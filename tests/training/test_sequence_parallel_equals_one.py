"""Processes that divide each sequence among them train like one process with whole sequences."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "train/loss" in line]


@pytest.fixture(scope="module")
def grouped_heads_folder(dropout_free_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with four attention heads over two key-value heads, and without dropout."""
    folder = shutil.copytree(dropout_free_folder, tmp_path_factory.mktemp("grouped") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    LlamaVidForConditionalGeneration(LlamaVidConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def film_config(
    fit_config_in: FitConfig, world: Any, grouped_heads_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Stage 3 over rows of many lengths: answers of 1 to 9 tokens that may lie in any part, and rows of text alone."""
    return fit_config_in(
        tmp_path_factory.mktemp("sequence"),
        data__init_args__train=str(world.uneven("films.jsonl", 14)),
        data__init_args__media={
            "sampling": {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 4}}
        },
        model__init_args__model=str(grouped_heads_folder),
        model__init_args__stage={"name": "long_video", "trainable": ["language_model", "content_projector"]},
        model__init_args__rope_scaling=4.0,
        model__init_args__gradient_checkpointing=True,
        model__init_args__optimizer={"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.1},
        trainer__max_epochs=1,
        trainer__gradient_clip_val=1.0,
    )


@pytest.fixture(scope="module")
def whole_sequences(film_config: Path) -> Path:
    """The run of one process with batches of four."""
    run = film_config.parent / "one"
    words = ["--config", str(film_config), "--run_dir", str(run), "--data.loading.batch_size", "4"]
    assert cli.main(["fit", *words]) == 0
    return run


SIZE = "--trainer.strategy.init_args.sequence_parallel_size"
PACKED = ["--data.loading.packing=true"]
TILES = ["--model.init_args.activations.mlp_tile_tokens=7", "--model.init_args.activations.offload=true"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("overlay", "processes", "batch_size", "more"),
    [
        pytest.param("sequence_parallel_zero1", 2, 1, [], id="zero1"),
        pytest.param("sequence_parallel_zero2", 2, 4, [], id="zero2 with rows of unequal lengths in a batch"),
        pytest.param("sequence_parallel_zero3", 2, 1, [], id="zero3"),
        pytest.param("sequence_parallel_zero2", 4, 2, [], id="two groups"),
        pytest.param("sequence_parallel_zero1", 4, 2, [f"{SIZE}=4"], id="fewer key-value heads than parts"),
        pytest.param("sequence_parallel_zero2", 2, 4, PACKED, id="zero2 with packed rows"),
        pytest.param("sequence_parallel_zero2", 2, 1, TILES, id="zero2 with tiles"),
        pytest.param("zero3", 2, 1, TILES, id="whole sequences of unequal lengths with tiles under zero3"),
    ],
)
def test_parts_of_sequences_train_like_the_whole_ones(
    overlay: str,
    processes: int,
    batch_size: int,
    more: list[str],
    film_config: Path,
    whole_sequences: Path,
    start_fit: StartFit,
    finish_fit: FinishFit,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    words = ["--config", str(film_config), "--config", str(CONFIGS / f"{overlay}.yaml"), *more]
    words += ["--run_dir", str(run), "--trainer.devices", str(processes)]
    words += ["--data.loading.batch_size", str(batch_size), "--data.loading.global_batch_size", "4"]
    assert finish_fit(start_fit(*words)) == (0, [])
    assert len(steps(whole_sequences)) == len(steps(run)) == 4
    for left, right in zip(steps(whole_sequences), steps(run), strict=True):
        assert left["train/supervised_tokens"] == right["train/supervised_tokens"]
        for name in ("train/loss", "train/grad_norm", "train/lr"):
            assert left[name] == pytest.approx(right[name], rel=2e-5), name
    left, right = (load_file(one / "model" / "model.safetensors") for one in (whole_sequences, run))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-5)
