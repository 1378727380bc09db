"""A manifest and its Parquet files hold the same rows, field by field, and the datasets library reads them."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.command_line import run_tool
from data_prep.parquet import SCHEMA, read_parquet, write_parquet
from longvid_train.data.manifest import ManifestRules, Media, Sample, Turn, read_manifest, write_manifest
from longvid_train.errors import UserError

RULES = ManifestRules(check_files=False)
said = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: text.replace("<", "") + ".")
json_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | said
metas = st.dictionaries(said, json_leaves | st.lists(json_leaves, max_size=2), max_size=3)
times_s = st.floats(0, 1e5, allow_nan=False)


@st.composite
def made_samples(draw: st.DrawFn, number: int) -> Sample:
    """A row with up to two media, one of them with a window and subtitles."""
    media = []
    if draw(st.booleans()):
        start_s = draw(times_s)
        end_s = draw(st.none() | times_s.map(lambda more: math.nextafter(start_s + more, math.inf)))
        subtitles = draw(st.none() | st.just("é.srt"))
        media.append(Media(type="video", path="v.mp4", subtitles=subtitles, start_s=start_s, end_s=end_s))
    if draw(st.booleans()):
        media.append(Media(type="image", path="p i.png"))
    asked = "".join(f"<{medium.type}>" for medium in media) + draw(said)
    turns = [Turn("user", asked), Turn("assistant", draw(said))]
    turns += [Turn("user", draw(said)), Turn("assistant", draw(said))] * draw(st.integers(0, 2))
    names = {name: draw(st.just("") | said) for name in ("source", "license", "version")}
    return Sample(id=f"{number} {draw(said)}", media=tuple(media), conversation=tuple(turns), meta=draw(metas), **names)


@given(data=st.data(), count=st.integers(1, 6), rows_per_file=st.integers(1, 4))
@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
def test_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, rows_per_file: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    rows = [data.draw(made_samples(number)) for number in range(count)]
    write_manifest(rows, folder / "m.jsonl")
    manifest = read_manifest(folder / "m.jsonl", RULES)
    assert write_parquet(manifest, folder / "files", manifest, rows_per_file=rows_per_file) == count
    names = sorted(path.name for path in (folder / "files").iterdir())
    files = -(-count // rows_per_file)
    assert names == [f"train-{number:05d}-of-{files:05d}.parquet" for number in range(files)]
    assert [pq.read_metadata(folder / "files" / name).num_rows for name in names][:-1] == [rows_per_file] * (files - 1)
    read = list(read_parquet(folder / "files", RULES))
    assert read == rows
    write_manifest(read, folder / "again.jsonl")
    assert (folder / "again.jsonl").read_bytes() == (folder / "m.jsonl").read_bytes()


@pytest.fixture
def manifest_file(tmp_path: Path) -> Path:
    rows = [
        Sample(
            id=f"r{number}",
            media=(Media(type="video", path=f"v{number}.mp4", end_s=1.5),) if number % 2 else (),
            conversation=(Turn("user", "<video> é?" if number % 2 else "?"), Turn("assistant", str(number))),
            meta={"n": number},
        )
        for number in range(7)
    ]
    write_manifest(rows, tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def test_datasets_streams_what_was_written(
    manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the folder's name alone, with the split's name, and one row at a time."""
    from datasets import load_dataset

    words = [str(manifest_file), str(tmp_path / "out"), "--split", "validation", "--rows-per-file", "3", "--json"]
    assert run_tool("parquet", words) == 0
    assert json.loads(capsys.readouterr().out) == {
        "source": str(manifest_file),
        "out": str(tmp_path / "out"),
        "rows": 7,
    }
    rows = list(load_dataset(str(tmp_path / "out"), split="validation", streaming=True))
    assert [row["id"] for row in rows] == [f"r{number}" for number in range(7)]
    assert rows[1] == {
        "id": "r1",
        "media": [{"type": "video", "path": "v1.mp4", "subtitles": None, "start_s": 0.0, "end_s": 1.5}],
        "conversation": [{"role": "user", "text": "<video> é?"}, {"role": "assistant", "text": "1"}],
        "source": "",
        "license": "",
        "version": "",
        "meta": '{"n": 1}',
    }
    metadata = pq.read_schema(tmp_path / "out" / "validation-00000-of-00003.parquet").metadata
    assert metadata[b"longvid_manifest_sha256"].decode() == read_manifest(manifest_file, RULES).sha256
    assert run_tool("parquet", ["--back", str(tmp_path / "out"), str(tmp_path / "again.jsonl")]) == 0
    assert (tmp_path / "again.jsonl").read_bytes() == manifest_file.read_bytes()


def test_nothing_is_replaced_and_nothing_half_written(
    manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    assert run_tool("parquet", [str(manifest_file), str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert run_tool("parquet", ["--back", str(out), str(manifest_file)]) == 2
    assert "m.jsonl: exists; add --overwrite" in capsys.readouterr().err
    with manifest_file.open("a") as stream:
        stream.write("broken\n")
    assert run_tool("parquet", [str(manifest_file), str(tmp_path / "new")]) == 2
    assert f"{manifest_file}:8: not JSON" in capsys.readouterr().err
    rows = (Sample(id=f"x{n}", conversation=(Turn("user", "?"), Turn("assistant", "!"))) for n in range(2))
    write_manifest(rows, tmp_path / "two.jsonl")
    two = read_manifest(tmp_path / "two.jsonl", RULES)
    late = [two[0], Sample(id="y", media=(Media(type="video", path="a", end_s=2**53 + 1),), conversation=())]
    with pytest.raises(UserError, match="row 'y': 9007199254740993 s is no 64-bit number"):
        write_parquet(late, tmp_path / "new", two, rows_per_file=1)
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "out", "two.jsonl"]


def table(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "a",
        "media": [],
        "conversation": [{"role": "user", "text": "?"}, {"role": "assistant", "text": "!"}],
        "source": "",
        "license": "",
        "version": "",
        "meta": "{}",
    }
    return {**row, **changes}


@pytest.mark.parametrize(
    ("row", "schema", "expected"),
    [
        (table(), SCHEMA.remove(1), "column 'media' is missing"),
        (table(), SCHEMA.set(0, pa.field("id", pa.int64())), "column 'id' is int64 and must be string"),
        (table(), SCHEMA.append(pa.field("more", pa.string())), "column 'more' is none of a manifest's"),
        (table(meta="["), SCHEMA, "row 1: not a manifest's row"),
        (table(meta="[]"), SCHEMA, "row 1: field 'meta' is []; it must be a JSON object"),
        (table(media=None), SCHEMA, "row 1: not a manifest's row"),
        (table(media=[{"type": "video", "path": "../a.mp4"}]), SCHEMA, "row 1: field 'media[0].path' is '../a.mp4'"),
        (table(conversation=[]), SCHEMA, "row 1: field 'conversation' is empty"),
    ],
)
def test_files_of_others_are_checked_as_manifests_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], schema: pa.Schema, expected: str
) -> None:
    (tmp_path / "files").mkdir()
    if schema.field("id").type == pa.int64():
        row = {**row, "id": 1}
    values = {name: row.get(name) for name in schema.names}
    path = tmp_path / "files" / "x.parquet"
    pq.write_table(pa.Table.from_pylist([values], schema), path)
    assert run_tool("parquet", ["--back", str(tmp_path / "files"), str(tmp_path / "m.jsonl")]) == 2
    complaint = capsys.readouterr().err.strip()
    assert complaint.startswith(f"data_prep.parquet: {path}: ")
    assert expected in complaint
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--back", "{t}", "{t}/new.jsonl"], "holds no .parquet file"),
        (["{t}/none.jsonl", "{t}/out"], "none.jsonl' cannot be read"),
        (["{m}", "{t}/out", "--split", "a b"], "--split 'a b' must be a word"),
        (["{m}", "{t}/out", "--rows-per-file", "0"], "must be a whole number, 1 or more"),
    ],
)
def test_mistakes_of_a_conversion(
    manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert run_tool("parquet", [word.format(m=manifest_file, t=tmp_path) for word in words]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_parquet(manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("parquet", [str(manifest_file), str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    assert run_tool("parquet", ["--back", str(tmp_path / "out"), str(tmp_path / "again.jsonl")]) == 2
    assert f"{path}: not a Parquet file" in capsys.readouterr().err
