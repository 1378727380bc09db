"""Metrics file, run record, loggers and the atomic export."""

import fcntl
import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from longvid_train.errors import UserError
from longvid_train.training.answers import AnswerRecord, frames_per_row, mean_scores
from longvid_train.training.checkpoint import save_folder
from longvid_train.training.cli import check_fresh, find_checkpoint
from longvid_train.training.continued import changes_of_continued_run
from longvid_train.training.record import features_hash, manifest_hashes
from longvid_train.training.staging import staging_folder
from longvid_train.training.tracking import MetricsFile, build_loggers, read_metrics


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    first = MetricsFile(str(tmp_path), resumed=False)
    for step in range(5):
        first.log_metrics({"loss": 10.0 + step}, step)
    resumed = MetricsFile(str(tmp_path), resumed=True)
    resumed.log_metrics({"loss": 0.5}, 3)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(0, 10), (1, 11), (2, 12), (3, 0.5)]
    MetricsFile(str(tmp_path), resumed=False).log_metrics({"loss": 1.0}, 2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2]


def test_manifest_hashes_find_every_manifest(tmp_path: Path) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text("1\n")
    two.write_text("2\n")
    settings = {"data": {"train": [{"path": str(one)}, str(two)], "val": str(tmp_path / "no.jsonl"), "n": 3}}
    assert manifest_hashes(settings) == {
        str(one): hashlib.sha256(b"1\n").hexdigest(),
        str(two): hashlib.sha256(b"2\n").hexdigest(),
    }


def test_wandb_online_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        build_loggers(str(tmp_path), wandb="online", project="p", name="n", resumed=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(build_loggers(str(tmp_path), wandb="online", project="p", name="n", resumed=False)) == 1


class Part:
    def __init__(self, text: str) -> None:
        self.text = text

    def save_pretrained(self, folder: Path) -> None:
        if not self.text:
            raise RuntimeError("disk full")
        (folder / "part.txt").write_text(self.text)


def test_export_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save_folder(target, Part("one"))
    with pytest.raises(RuntimeError, match="disk full"):
        save_folder(target, Part("two"), Part(""))
    assert (target / "part.txt").read_text() == "one"
    save_folder(target, Part("three"))
    assert (target / "part.txt").read_text() == "three"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "model"
    abandoned, written = (tmp_path / f".model.{name}" for name in ("killed", "busy"))
    for folder in (abandoned / "new", written, tmp_path / ".models.other"):
        folder.mkdir(parents=True)
    writer = os.open(written, os.O_RDONLY)
    fcntl.flock(writer, fcntl.LOCK_EX)
    try:
        with pytest.raises(RuntimeError, match="disk full"):
            save_folder(target, Part(""))
        assert abandoned.exists(), "it may hold the older model: it stays until a new one is in its place"
        save_folder(target, Part("one"))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".model.busy", ".models.other", "model"]
    finally:
        os.close(writer)
    save_folder(target, Part("two"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".models.other", "model"]


def test_a_folder_that_is_written_is_locked(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "model") as first, staging_folder(tmp_path / "model") as second:
        assert first != second
        save_folder(tmp_path / "model", Part("one"))
        assert first.is_dir() and second.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_record_names_the_features_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    media = {"features": str(tmp_path), "sampling": None}
    settings = {"data": {"init_args": {"media": media}}}
    assert features_hash(settings) == {str(tmp_path): hashlib.sha256(b"{}").hexdigest()}
    assert features_hash({"data": {"init_args": {"media": {"features": None}}}}) == {}
    assert features_hash({"data": {"init_args": {}}}) == {}


def test_a_changed_length_or_seed_of_a_continued_run_is_said(tmp_path: Path) -> None:
    before = {"trainer": {"max_steps": 100, "max_epochs": None}, "seed_everything": 7}
    assert changes_of_continued_run(tmp_path, before) == []
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before))
    assert changes_of_continued_run(tmp_path, before) == []
    longer = {"trainer": {"max_steps": 200, "max_epochs": None}, "seed_everything": 8}
    steps, seed = changes_of_continued_run(tmp_path, longer)
    assert steps.startswith("continuing with trainer.max_steps 200 instead of 100: the learning rate follows")
    assert seed.startswith("continuing with seed_everything 8 instead of 7: random numbers")


def test_a_run_is_never_overwritten_and_last_must_exist(tmp_path: Path) -> None:
    check_fresh(tmp_path / "new")
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(UserError, match="no such file"):
        find_checkpoint(tmp_path, str(tmp_path / "x.ckpt"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last-step=3.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="continue it with --ckpt_path last"):
        check_fresh(tmp_path)


def record(kind: str, correct: float) -> AnswerRecord:
    return AnswerRecord(
        id="i",
        kind=kind,
        question="q",
        answer="a",
        truth="t",
        correct=correct,
        frames=1,
        visual_tokens=2,
        prompt_tokens=3,
    )


def test_mean_scores_weigh_rows_not_kinds() -> None:
    scores = mean_scores([record("a", 1.0), record("b", 0.0), record("b", 0.5)])
    assert scores == {"overall": 0.5, "a": 1.0, "b": 0.25}
    assert json.dumps(mean_scores([])) == "{}"


def test_frames_of_a_row_are_counted_once_however_often_they_are_shown() -> None:
    import torch

    class TwoTokens:
        def frame_tokens(self, grid: int, frames: int) -> tuple[int, ...]:
            return (1 + grid * grid,) * frames

    visual = {
        "visual_spans": torch.tensor([[0, 4, 0], [0, 4, 1], [4, 3, 2]]),
        "content_grids": torch.tensor([1, 1, 2]),
    }
    assert frames_per_row(visual, [16, 0, 15], TwoTokens()) == [4, 0, 3]
    assert frames_per_row(None, [0, 0], TwoTokens()) == [0, 0]
