"""Files written atomically have the mode that the umask allows, and no other thread ever meets another umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from longvid_train.files import atomic_folder, atomic_path, write_text


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], indirect=True, ids=oct)
def test_the_umask_holds_and_is_not_touched(tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "umask", lambda mask: set_to.append(mask) or umask)
        write_text(tmp_path / "file.json", "a")
        with atomic_folder(tmp_path / "folder") as folder:
            write_text(folder / "inner.txt", "b")
    assert not set_to
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file.json", "folder", "folder/inner.txt")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_a_broken_off_file_or_folder_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "file.json", "before")
    with pytest.raises(OSError, match="full"), atomic_path(tmp_path / "file.json") as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".file.") and temporary.suffix == ".json"
        temporary.write_text("after")
        raise OSError("full")
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "folder"):
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert (tmp_path / "file.json").read_text() == "before"
