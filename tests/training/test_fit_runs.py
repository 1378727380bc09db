"""``longvid fit`` on a tiny random LLaMA-VID and real mp4 files, through the command line's own entry."""

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
from longvid_train.training.answers import read_answers
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
NO_DROPOUT = {"name": "s", "trainable": ["context_attention", "content_projector", "language_model"]}
SMOOTH = {"lr": 1e-2, "eps": 1e-3}


def fit(config: Path, *words: str) -> int:
    return cli.main(["fit", "--config", str(config), *words])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "train/loss" in line]


def test_fit_trains_exports_answers_and_records(
    fit_config: FitConfig, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvid_train.models.llama_vid.loading import load_llama_vid

    config = fit_config(
        answers={"enabled": True, "max_new_tokens": 4}, model__init_args__optimizer={"lr": 2e-2}, wandb="offline"
    )
    assert fit(config, "--trainer.max_epochs", "10") == 0
    run = tmp_path / "run"
    lines = steps(run)
    assert len(lines) == 60
    assert lines[-1]["train/loss"] < 0.6 * lines[0]["train/loss"]
    assert {line["train/supervised_tokens"] for line in lines} <= {4.0, 6.0, 8.0}
    assert all(line["train/frames_per_s"] > 0 and line["train/peak_bytes"] > 2**20 for line in lines)
    before, after = load_file(tiny_model_folder / "model.safetensors"), weights(run)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"text_decoder", "context_attention", "content_projector", "language_model"}
    load_llama_vid(run / "model")
    rows = read_answers(run / "answers_before.jsonl")
    assert [row.id for row in rows] == ["held0", "held1", "held2", "held3"]
    assert {(row.frames, row.visual_tokens, row.kind) for row in rows} == {(2, 4, "description"), (2, 4, "detail")}
    assert rows[1].truth == "green"
    mean = sum(row.correct for row in read_answers(run / "answers_after.jsonl")) / 4
    assert [line["answers/overall"] for line in read_metrics(run) if "answers/overall" in line][-1] == mean
    start = json.loads((run / "run.json").read_text())["starts"][0]
    assert start["seed"] == 7
    assert {Path(path).name for path in start["manifest_sha256"]} == {"train.jsonl", "test.jsonl"}
    assert list((run / "wandb").glob("offline-run-*"))
    assert "step 60/60" in capsys.readouterr().err
    assert fit(config) == 2
    assert "--ckpt_path last" in capsys.readouterr().err


def test_accumulated_micro_batches_train_like_the_whole_batch(fit_config: FitConfig, tmp_path: Path) -> None:
    """Answers of 2 and 4 supervised tokens: averaging the averages would give another loss and another gradient."""
    config = fit_config(model__init_args__stage=NO_DROPOUT, model__init_args__optimizer=SMOOTH)
    whole, split = tmp_path / "whole", tmp_path / "split"
    assert fit(config, "--run_dir", str(whole), "--data.loading.batch_size", "4") == 0
    assert (
        fit(
            config,
            "--run_dir",
            str(split),
            "--data.loading.batch_size",
            "1",
            "--trainer.accumulate_grad_batches",
            "4",
        )
        == 0
    )
    assert len(steps(whole)) == len(steps(split)) == 3
    for one, other in zip(steps(whole), steps(split), strict=True):
        for name in ("train/loss", "train/grad_norm", "train/supervised_tokens"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(split)[name], rtol=1e-4, atol=1e-5)


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(fit_config: FitConfig, tmp_path: Path) -> None:
    """From the middle of an epoch, its end, and the middle of the second one; dropout of the text decoder is on."""
    config = fit_config(
        checkpoint={"every_n_train_steps": 3, "save_top_k": -1}, answers={"enabled": True, "max_new_tokens": 2}
    )
    whole = tmp_path / "whole"
    assert fit(config, "--run_dir", str(whole), "--trainer.max_epochs", "2") == 0
    names = ("step", "epoch", "train/loss", "train/grad_norm", "train/lr")
    expected = [[line[name] for name in names] for line in steps(whole)]
    assert len(expected) == 12
    for done in (3, 6, 9):
        run = tmp_path / f"from{done}"
        (checkpoint,) = (whole / "checkpoints").glob(f"epoch*-step={done}.ckpt")
        assert fit(config, "--run_dir", str(run), "--trainer.max_epochs", "2", "--ckpt_path", str(checkpoint)) == 0
        assert [[line[name] for name in names] for line in steps(run)] == expected[done:]
        assert not (run / "answers_before.jsonl").exists()
        for name, value in weights(whole).items():
            assert torch.equal(value, weights(run)[name]), (done, name)


def test_every_epoch_is_validated(fit_config: FitConfig, world: Any, tmp_path: Path) -> None:
    held_out = world.manifest("every_epoch.jsonl", 2, prefix="val")
    config = fit_config(data__init_args__train=str(held_out), data__init_args__val=str(held_out), trainer__max_epochs=3)
    assert fit(config) == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "val/loss" in line]
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (1, 1), (2, 2)]
    assert lines[0]["val/loss"] > lines[1]["val/loss"] > lines[2]["val/loss"]


def test_validate_gives_the_loss_over_all_tokens(
    fit_config: FitConfig, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fit_config()
    test_manifest = json.loads(config.read_text())["data"]["init_args"]["test"]
    words = ["--data.val", test_manifest, "--data.loading.eval_batch_size"]
    losses = []
    for size in ("1", "4"):
        assert cli.main(["validate", "--config", str(config), *words, size]) == 0
        losses.append([word for word in capsys.readouterr().out.split() if word.replace(".", "").isdigit()][-1])
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_train_like_one(fit_config: FitConfig, tmp_path: Path) -> None:
    config = fit_config(model__init_args__stage=NO_DROPOUT, model__init_args__optimizer=SMOOTH)
    one, two = tmp_path / "one", tmp_path / "two"
    assert fit(config, "--run_dir", str(one), "--data.loading.batch_size", "4") == 0
    words = ["--run_dir", str(two), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "longvid_train.cli", "fit", "--config", str(config), *words, "--debug"]
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
        for name in ("train/loss", "train/grad_norm", "train/supervised_tokens"):
            assert left[name] == pytest.approx(right[name], rel=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=1e-4, atol=1e-5)


def test_answers_before_are_the_checkpoint_s_and_answers_after_the_stretched_model_s(
    fit_config: FitConfig, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvid_train.models.llama_vid.loading import load_llama_vid
    from longvid_train.training import base

    factors: list[float] = []
    original = base.generate_answers

    def noting(model: Any, *rest: Any) -> list[Any]:
        factors.append(model.config.text_config.rope_parameters.get("factor", 1.0))
        return original(model, *rest)

    monkeypatch.setattr(base, "generate_answers", noting)
    config = fit_config(answers={"enabled": True, "max_new_tokens": 2}, model__init_args__rope_scaling=4.0)
    assert fit(config, "--trainer.max_steps", "1") == 0
    assert factors[0] == 1.0
    assert factors[-1] == 4.0
    exported = load_llama_vid(tmp_path / "run" / "model").config.text_config
    assert exported.rope_parameters["factor"] == 4.0
    assert (
        exported.max_position_embeddings
        == 4 * load_llama_vid(tiny_model_folder).config.text_config.max_position_embeddings
    )
