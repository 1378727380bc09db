"""Packed, token-budgeted and divided batches through the real command line: same losses and weights, exact resumes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.data.budget import TokenBudget
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
NO_DROPOUT = {"name": "s", "trainable": ["context_attention", "content_projector", "language_model"]}
SMOOTH = {"lr": 1e-2, "eps": 1e-3}
NAMES = ("train/loss", "train/grad_norm", "train/supervised_tokens")


def fit(config: Path, *words: str) -> int:
    return cli.main(["fit", "--config", str(config), *words])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "train/loss" in line]


def mixed_manifest(world: Any) -> Path:
    """Videos, text-only rows and a row that asks twice."""
    rows: list[dict[str, Any]] = []
    for number, colour in enumerate(["red", "green", "blue", "red", "green", "blue"]):
        question = {"role": "user", "text": "<video>\nwhat colour is the video ?"}
        turns = [question, {"role": "assistant", "text": colour if number % 2 else f"a {colour} video"}]
        if number == 3:
            turns += [{"role": "user", "text": "what is the colour ?"}, {"role": "assistant", "text": "red"}]
        media = [{"type": "video", "path": f"{colour}.mp4"}]
        rows.append({"id": f"v{number}", "media": media, "conversation": turns})
        turns = [{"role": "user", "text": "what is " + "a " * number + "video ?"}, {"role": "assistant", "text": "red"}]
        rows.append({"id": f"t{number}", "conversation": turns})
    path: Path = world.write("mixed.jsonl", rows)
    return path


def test_packed_micro_batches_train_like_the_padded_batch(fit_config: FitConfig, world: Any, tmp_path: Path) -> None:
    config = fit_config(
        model__init_args__stage=NO_DROPOUT,
        model__init_args__optimizer=SMOOTH,
        data__init_args__train=str(mixed_manifest(world)),
    )
    runs = {
        "padded": ["--data.loading.batch_size", "4"],
        "packed": ["--data.loading.batch_size", "4", "--data.loading.packing", "true"],
        "packed_in_two": [
            *("--data.loading.batch_size", "2", "--data.loading.packing", "true"),
            *("--data.loading.global_batch_size", "4"),
        ],
    }
    for name, words in runs.items():
        assert fit(config, "--run_dir", str(tmp_path / name), *words) == 0
    expected, trained = steps(tmp_path / "padded"), weights(tmp_path / "padded")
    assert len(expected) == 3
    for name in ("packed", "packed_in_two"):
        assert len(steps(tmp_path / name)) == 3
        for one, other in zip(expected, steps(tmp_path / name), strict=True):
            for metric in NAMES:
                assert one[metric] == pytest.approx(other[metric], rel=1e-4), (name, metric)
        for part, value in trained.items():
            torch.testing.assert_close(value, weights(tmp_path / name)[part], rtol=1e-4, atol=1e-5)


def test_packed_token_batches_resume_bit_for_bit(fit_config: FitConfig, world: Any, tmp_path: Path) -> None:
    """With a worker, accumulation and dropout on; from the middle of the second epoch."""
    config = fit_config(
        data__init_args__train=str(mixed_manifest(world)),
        data__init_args__conversation={"max_tokens": 140},
        data__init_args__loading={
            "max_tokens_per_batch": 140,
            "packing": True,
            "group_by_modality": True,
            "num_workers": 1,
        },
        checkpoint={"every_n_train_steps": 1, "save_top_k": -1},
        trainer__accumulate_grad_batches=2,
        trainer__max_epochs=2,
    )
    whole = tmp_path / "whole"
    assert fit(config, "--run_dir", str(whole)) == 0
    expected = [[line[name] for name in NAMES] for line in steps(whole)]
    assert len(expected) >= 6
    done = len(expected) // 2 + 1
    run = tmp_path / "resumed"
    (checkpoint,) = (whole / "checkpoints").glob(f"*step={done}.ckpt")
    words = ["--run_dir", str(run), "--ckpt_path", str(checkpoint), "--data.loading.num_workers", "0"]
    assert fit(config, *words) == 0
    assert [[line[name] for name in NAMES] for line in steps(run)] == expected[done:]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(run)[name]), name


def test_what_a_budget_left_out_is_reported(
    fit_config: FitConfig, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Videos of 4 frames in rows that hold 3 beside their text; text-only rows are not touched."""
    manifest = world.manifest("budget.jsonl", 4)
    config = fit_config(
        data__init_args__train=str(manifest),
        data__init_args__media={
            "sampling": {"class_path": "longvid_train.video.FramesPerSecond", "init_args": {"fps": 1.0}}
        },
        data__init_args__loading={"batch_size": 2},
        trainer__max_epochs=2,
    )
    from longvid_train.data.conversation import ConversationOptions
    from longvid_train.data.datamodule import ManifestDataModule

    model = json.loads(config.read_text())["model"]["init_args"]["model"]
    whole = ManifestDataModule(model, train=str(manifest)).row_table()
    assert list(whole.frames) == [4, 4, 4, 4]
    limit = min(whole.text_tokens) + 6
    words = ["--data.conversation.max_tokens", str(limit)]
    assert fit(config, *words, "--data.budget.shorten", '["fewer_frames"]') == 0
    cut = ManifestDataModule(
        model,
        train=str(manifest),
        conversation=ConversationOptions(max_tokens=limit),
        budget=TokenBudget(shorten=("fewer_frames",)),
    ).row_table()
    dropped = sum(cut.frames_dropped)
    assert dropped == sum(4 - frames for frames in cut.frames) >= 4
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "shortened_rows.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["row0", "row1", "row2", "row3"], "each once, in two epochs"
    assert sum(row["frames"] for row in rows) == dropped
    assert [line["data/frames_dropped"] for line in read_metrics(run) if "data/frames_dropped" in line][
        -1
    ] == 2 * dropped
    assert (
        f"{2 * dropped} frames, {4 * dropped} visual and 0 text tokens of 8 shortened samples"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("loading", "changes", "expected"),
    [
        (
            {"batch_size": 4, "global_batch_size": 6},
            {},
            "loading.global_batch_size 6 cannot be divided into batches of 4 rows on 1 rank (4 rows at once); "
            "use batch_size 3, or a global_batch_size that is a multiple of 4",
        ),
        (
            {"batch_size": 2, "global_batch_size": 8},
            {"trainer__accumulate_grad_batches": 3},
            "trainer.accumulate_grad_batches is 3, but loading.global_batch_size 8 of batches of 2 on 1 ranks needs 4",
        ),
        ({"batch_size": 2, "max_tokens_per_batch": 4096}, {}, "batches are counted in rows or in tokens"),
        ({"max_tokens_per_batch": 512}, {}, "less than conversation.max_tokens = 2048"),
        ({"max_token_per_batch": 512}, {}, "did you mean 'max_tokens_per_batch'?"),
        (
            {"group_by_length": True},
            {"data__init_args__conversation": {"max_tokens": 10}},
            "train.jsonl:1 (sample 'row0'): the row has ",
        ),
    ],
)
def test_batches_that_cannot_be_made(
    fit_config: FitConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    loading: dict[str, Any],
    changes: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setattr("longvid_train.training.module.load_for_training", None)
    assert fit(fit_config(data__init_args__loading=loading, **changes)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert expected in lines[0]


@pytest.mark.slow
def test_packed_batches_of_two_ranks_train_like_the_padded_batch(
    fit_config: FitConfig, world: Any, tmp_path: Path
) -> None:
    """Rows of text stand beside videos, so that some batches of some ranks run no vision."""
    config = fit_config(
        model__init_args__stage=NO_DROPOUT,
        model__init_args__optimizer=SMOOTH,
        data__init_args__train=str(mixed_manifest(world)),
    )
    one, two = tmp_path / "one", tmp_path / "two"
    grouped = ["--data.loading.group_by_modality", "true"]
    assert fit(config, "--run_dir", str(one), "--data.loading.batch_size", "4", *grouped) == 0
    words = ["--run_dir", str(two), "--trainer.devices", "2", "--trainer.strategy", "ddp", *grouped]
    words += ["--data.loading.batch_size", "2", "--data.loading.packing", "true"]
    command = [sys.executable, "-m", "longvid_train.cli", "fit", "--config", str(config), *words]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors
    assert len(steps(one)) == len(steps(two)) == 3
    for left, right in zip(steps(one), steps(two), strict=True):
        for name in NAMES:
            assert left[name] == pytest.approx(right[name], rel=1e-4), name
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=1e-4, atol=1e-5)
