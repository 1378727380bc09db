"""Archives are unpacked inside their folder only, whole files only, and again only where something is missing."""

import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.command_line import run_tool

FILES = {"00000/a.jpg": b"a" * 3000, "00000/deep/b.jpg": b"b" * 10, "c.jpg": b""}


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return path


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def archive_of(path: Path, files: dict[str, bytes]) -> Path:
    return zip_of(path, files) if path.suffix == ".zip" else tar_of(path, files)


def there(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack(*words: object) -> int:
    return run_tool("unpack", [str(word) for word in words])


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_files_are_unpacked_and_kept_the_second_time(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, into = archive_of(tmp_path / name, FILES), tmp_path / "into"
    assert unpack(archive, "--into", into, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(into), "written": 3, "kept": 0}
    assert there(into) == FILES
    (into / "00000" / "a.jpg").write_bytes(b"short")
    (into / "c.jpg").unlink()
    assert unpack(archive, "--into", into, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(into), "written": 2, "kept": 1}
    assert there(into) == FILES


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
@pytest.mark.parametrize("member", ["../evil.jpg", "/evil.jpg", "x/../../evil.jpg", "..", "x\\..\\evil.jpg"])
def test_members_that_lead_out_of_the_folder_are_refused(
    tmp_path: Path, name: str, member: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = archive_of(tmp_path / name, {"good.jpg": b"x", member: b"evil"})
    assert unpack(archive, "--into", tmp_path / "into" / "deep") == 2
    assert "leads out of the folder; such archives are refused" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil*"))


def test_links_and_devices_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    zipped = tmp_path / "a.zip"
    with zipfile.ZipFile(zipped, "w") as archive_zip:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive_zip.writestr(info, "/etc")
    for path in (tar, zipped):
        assert unpack(path, "--into", tmp_path / "into") == 2
        assert "'link' is a link or device" in capsys.readouterr().err
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_damaged_archives_are_named_and_leave_whole_files_only(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{number}.bin": bytes([number]) * 50_000 for number in range(8)}
    archive, into = archive_of(tmp_path / name, files), tmp_path / "into"
    raw = bytearray(archive.read_bytes())
    if name == "a.zip":
        raw[200_000] ^= 0xFF
    else:
        del raw[len(raw) * 3 // 5 :]
    archive.write_bytes(bytes(raw))
    assert unpack(archive, "--into", into) == 2
    error = capsys.readouterr().err
    assert f"{archive}: damaged or cut off" in error and error.count("\n") == 1
    assert all(files[name] == content for name, content in there(into).items())


def test_what_is_no_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_text("hello")
    assert unpack(tmp_path / "a.zip", "--into", tmp_path / "into") == 2
    assert "damaged or cut off" in capsys.readouterr().err
    assert unpack(tmp_path / "none.zip", "--into", tmp_path / "into") == 2
    assert "none.zip: no such archive" in capsys.readouterr().err
