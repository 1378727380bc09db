"""Several jobs may read one checkpoint folder of another number of processes at once: each has a copy of its own."""

import errno
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from longvid_train import cli
from longvid_train.training.checkpoint_io import CheckpointWriteError
from longvid_train.training.universal_checkpoint import remove_abandoned_copies, universal_copy

TAG = "engine"


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one file of a rank."""
    folder = tmp_path / "last-step=2.ckpt"
    (folder / TAG).mkdir(parents=True)
    (folder / TAG / "rank0.pt").write_text("weights")
    return folder


def convert(settings: Namespace) -> None:
    """DeepSpeed's converter: it refuses nothing and copies the one file."""
    (text,) = [path.read_text() for path in Path(settings.input_folder).iterdir()]
    (Path(settings.output_folder) / "merged.pt").write_text(text)


@pytest.fixture(autouse=True)
def converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspeed.checkpoint.ds_to_universal.main", convert)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_two_jobs_convert_one_folder_at_once(source: Path) -> None:
    with universal_copy(source, TAG) as first:
        with universal_copy(source, TAG) as second:
            remove_abandoned_copies(source.parent)
            assert first != second
            for copy in (first, second):
                assert (copy / TAG / "merged.pt").read_text() == "weights"
        assert first.is_dir() and not second.exists()
    assert hidden(source.parent) == []
    assert (source / TAG / "rank0.pt").read_text() == "weights"


def test_what_a_killed_job_left_is_removed_by_the_next(source: Path) -> None:
    left = source.with_name(f".{source.name}.universal.abcdefgh")
    for remove in (lambda: remove_abandoned_copies(source.parent), lambda: use(source)):
        (left / TAG).mkdir(parents=True)
        remove()
        assert hidden(source.parent) == []
        assert source.is_dir()


def use(source: Path) -> None:
    with universal_copy(source, TAG):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_copy_is_named_and_nothing_is_left(
    number: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(settings: Namespace) -> None:
        raise OSError(number, "the disk says no")

    monkeypatch.setattr("deepspeed.checkpoint.ds_to_universal.main", full)
    with pytest.raises(CheckpointWriteError, match=r"universal: cannot write .*\(the disk says no\); mend the folder"):
        use(source)
    assert hidden(source.parent) == []


def test_too_little_room_is_said_before_anything_is_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Namespace(free=20))
    with pytest.raises(
        CheckpointWriteError, match=r"written by another number of processes; converting it needs 0\.00"
    ):
        use(source)
    assert hidden(source.parent) == []


def test_a_continued_run_removes_what_a_killed_one_left_beside_its_checkpoint(
    fit_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it needs no copy itself; before anything is built."""
    run = tmp_path / "run"
    left = run / "checkpoints" / ".last-step=1.ckpt.universal.abcdefgh"
    left.mkdir(parents=True)
    monkeypatch.setattr(
        "longvid_train.training.cli.find_checkpoint", lambda folder, _: left.parent / "last-step=1.ckpt"
    )
    monkeypatch.setattr("longvid_train.training.cli.check_stage", lambda *_: None)
    config = fit_config(data__init_args__train="no/such.jsonl")
    assert cli.main(["fit", "--config", str(config), "--ckpt_path", "last"]) == 2
    assert not left.exists()
