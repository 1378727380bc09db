"""Files that ``--ckpt_path`` refuses: one line, nothing in them is run."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longvid_train import cli
from longvid_train.errors import UserError
from longvid_train.training.cli import find_checkpoint


class Command:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __reduce__(self) -> Any:
        return os.system, (self.words,)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "b")


def cut(path: Path) -> None:
    torch.save({"global_step": 1, "state_dict": {}, "weights": torch.zeros(999)}, path)
    path.write_bytes(path.read_bytes()[:1500])


MAKERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("hello"), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "cut": (cut, "is damaged"),
    "zip": (zipped, "not a checkpoint of longvid fit"),
    "state_dict": (lambda path: torch.save({"a": torch.zeros(2)}, path), "not a checkpoint of longvid fit"),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "not a checkpoint of longvid fit"),
    "folder": (lambda path: path.mkdir(), r"is damaged \(no readable index.json\)"),
    "missing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_a_checkpoint_is_refused(kind: str, tmp_path: Path) -> None:
    make, message = MAKERS[kind]
    path = tmp_path / "some.ckpt"
    make(path)
    with pytest.raises(UserError, match=message) as refusal:
        find_checkpoint(tmp_path / "run", str(path))
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_hostile_checkpoint_runs_nothing(
    fit_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mark = tmp_path / "hostile.ckpt", tmp_path / "mark"
    torch.save({"global_step": 1, "hooks": Command(f"touch {mark}")}, path)
    assert cli.main(["fit", "--config", str(fit_config()), "--ckpt_path", str(path)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    assert len(lines) == 1
    assert "not a checkpoint of longvid fit" in lines[0]
    assert not mark.exists()
