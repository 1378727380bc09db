"""Checkpoints that are folders: whole or passed over, two names without two copies, nothing in them is run to look."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longvid_train import cli
from longvid_train.errors import UserError
from longvid_train.training.checkpoint_folder import (
    INDEX_FILE,
    TAG,
    FolderIndex,
    check_stage,
    folder_damage,
    read_index,
)
from longvid_train.training.checkpoint_io import publish, remove_checkpoint, remove_in_progress
from longvid_train.training.cli import find_checkpoint
from longvid_train.training.last_checkpoint import by_age, newest_whole
from longvid_train.training.step_split import StepSplit


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.line,)


def make(folder: Path, *, start: int = 1, step: int = 1, content: object = None) -> Path:
    """A folder as a run of two processes writes it."""
    (folder / TAG).mkdir(parents=True)
    files = {}
    for rank in range(2):
        path = folder / TAG / f"rank_{rank}.pt"
        torch.save({"rank": rank, "weights": torch.full((300,), float(rank)), "extra": content}, path)
        files[f"{TAG}/{path.name}"] = path.stat().st_size
    (folder / "latest").write_text(TAG)
    files["latest"] = (folder / "latest").stat().st_size
    index = {"start": start, "step": step, "zero_stage": 2, "processes": 2, "trained": {"a": [3, 4]}, "files": files}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


def test_a_whole_folder_has_no_damage_and_says_what_wrote_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "a.ckpt", start=2, step=30)
    index = read_index(folder)
    assert isinstance(index, FolderIndex)
    assert (index.start, index.step, index.zero_stage, index.processes) == (2, 30, 2, 2)
    assert index.trained == {"a": [3, 4]}
    assert index.split is None
    assert folder_damage(folder) is None


def test_the_index_says_how_a_step_was_divided(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ckpt") / INDEX_FILE
    values = json.loads(path.read_text())
    split = {"batch_size": 1, "ranks": 2, "accumulate": 6, "batches": 12}
    path.write_text(json.dumps({**values, "split": split}))
    index = read_index(tmp_path / "a.ckpt")
    assert index is not None
    assert index.split == StepSplit(**split)
    for broken in ({"batch_size": 1}, [1, 2], "two"):
        path.write_text(json.dumps({**values, "split": broken}))
        assert read_index(tmp_path / "a.ckpt") is None
        assert folder_damage(tmp_path / "a.ckpt") == "no readable index.json"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / TAG / "rank_1.pt").unlink(), "checkpoint/rank_1.pt is missing"),
        (lambda folder: (folder / "latest").write_text("other"), "latest has 5 bytes, not 10"),
        (lambda folder: os.truncate(folder / TAG / "rank_0.pt", 700), "rank_0.pt has 700 bytes"),
        (lambda folder: flip_a_byte(folder / TAG / "rank_1.pt"), "checkpoint/rank_1.pt: "),
        (lambda folder: (folder / INDEX_FILE).write_text("{"), "no readable index.json"),
        (lambda folder: (folder / INDEX_FILE).unlink(), "no readable index.json"),
    ],
    ids=["missing", "longer", "cut", "flipped", "index broken", "index missing"],
)
def test_damage_is_seen_and_the_folder_passed_over(harm: object, message: str, tmp_path: Path) -> None:
    older, newer = make(tmp_path / "last-step=1.ckpt"), make(tmp_path / "last-step=2.ckpt", step=2)
    assert newest_whole(tmp_path, pytest.fail) == newer
    assert callable(harm)
    harm(newer)
    assert message in str(folder_damage(newer))
    lines: list[str] = []
    assert newest_whole(tmp_path, lines.append) == older
    (line,) = lines
    assert line.startswith(f"{newer} is damaged")
    assert line.endswith(f"falling back to {older.name} of step 1")
    with pytest.raises(UserError, match="is damaged"):
        find_checkpoint(tmp_path, str(newer))


def test_a_checkpoint_of_another_stage_or_of_none_is_refused(tmp_path: Path) -> None:
    folder, file = make(tmp_path / "a.ckpt"), tmp_path / "b.ckpt"
    torch.save({"global_step": 3}, file)
    check_stage(folder, 2)
    check_stage(file, None)
    with pytest.raises(UserError, match=r"written under ZeRO stage 2, and trainer\.strategy trains under ZeRO stage 3"):
        check_stage(folder, 3)
    with pytest.raises(UserError, match=r"written under ZeRO stage 2, and trainer\.strategy trains without ZeRO"):
        check_stage(folder, None)
    with pytest.raises(UserError, match=r"written without ZeRO, and trainer\.strategy trains under ZeRO stage 1"):
        check_stage(file, 1)


def test_the_command_refuses_another_stage_before_anything_is_built(
    fit_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run" / "checkpoints" / "last-step=1.ckpt")
    overlay = Path(__file__).parents[2] / "configs" / "deepspeed" / "zero3.yaml"
    for words, trains in (([], "without ZeRO"), (["--config", str(overlay)], "under ZeRO stage 3")):
        assert cli.main(["fit", "--config", str(fit_config()), *words, "--ckpt_path", "last"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
        assert f"written under ZeRO stage 2, and trainer.strategy trains {trains};" in line


def test_files_and_folders_are_ordered_by_start_and_step(tmp_path: Path) -> None:
    make(tmp_path / "c.ckpt", start=1, step=9)
    make(tmp_path / "b.ckpt", start=2, step=4)
    torch.save({"global_step": 3, "longvid_origin": {"start": 2}}, tmp_path / "a.ckpt")
    (tmp_path / "d.ckpt").mkdir()
    readable, unreadable = by_age(tmp_path)
    assert [age.path.name for age in readable] == ["b.ckpt", "a.ckpt", "c.ckpt"]
    assert [path.name for path in unreadable] == ["d.ckpt"]


def test_a_hostile_folder_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = make(tmp_path / "hostile.ckpt", content=Command(f"touch {mark}"))
    with pytest.raises(UserError, match=r"it names posix\.system, which no checkpoint of longvid fit holds"):
        find_checkpoint(tmp_path, str(folder))
    assert not mark.exists()


def test_a_second_name_shares_the_bytes_and_survives_the_first(tmp_path: Path) -> None:
    first = make(tmp_path / "best.ckpt", step=7)
    second = tmp_path / "last-step=7.ckpt"
    publish(first, second)
    for name in (f"{TAG}/rank_0.pt", "latest", INDEX_FILE):
        assert (first / name).stat().st_ino == (second / name).stat().st_ino
    with pytest.raises(FileExistsError):
        publish(first, second)
    remove_checkpoint(first)
    assert not first.exists()
    assert folder_damage(second) is None


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    whole = make(tmp_path / "last-step=1.ckpt")
    left = make(tmp_path / ".last-step=2.ckpt.in-progress")
    assert [age.path for age in by_age(tmp_path)[0]] == [whole]
    assert remove_in_progress(tmp_path) == [left]
    assert not left.exists()
    assert whole.exists()
