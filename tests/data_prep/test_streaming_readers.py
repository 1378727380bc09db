"""Readers of JSON arrays, JSON Lines and CSV: values, lines, encodings and damage, whatever the blocks."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.reading import inputs
from data_prep.reading.inputs import InputFile
from data_prep.reading.json_array import read_json_array
from data_prep.reading.json_lines import read_json_lines
from data_prep.reading.json_object import read_json_object
from data_prep.reading.table import read_table
from longvid_train.errors import UserError


class Blocks(InputFile):
    """Bytes in memory, given out ``size`` at a time."""

    def __init__(self, raw: bytes, size: int) -> None:
        super().__init__(Path("memory.json"))
        object.__setattr__(self, "_raw", raw)
        object.__setattr__(self, "_size", size)

    def blocks(self) -> Any:
        raw, size = self.__dict__["_raw"], self.__dict__["_size"]
        return (raw[start : start + size] for start in range(0, len(raw), size))


def file(folder: Path, raw: bytes, name: str = "in.json") -> InputFile:
    path = folder / name
    path.write_bytes(raw)
    return InputFile(path)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
few = settings(max_examples=60)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
sizes = st.integers(1, 40)


@few
@given(st.lists(values, max_size=8), sizes, st.booleans(), st.sampled_from([None, 0, 2]), st.booleans())
def test_json_arrays_give_every_element_with_its_line(
    elements: list[Any], size: int, ascii_only: bool, indent: int | None, marked: bool
) -> None:
    raw = json.dumps(elements, ensure_ascii=ascii_only, indent=indent)
    items = list(read_json_array(Blocks((b"\xef\xbb\xbf" if marked else b"") + raw.encode(), size)))
    assert [item.value for item in items] == elements
    lines, at = [], 1
    for element in elements:
        piece = json.dumps(element, ensure_ascii=ascii_only, indent=indent)
        lines.append(at if indent is None else at + 1)
        at += piece.count("\n") + (0 if indent is None else 1)
    assert [item.line for item in items] == lines
    assert [item.element for item in items] == list(range(1, len(elements) + 1))


@few
@given(st.lists(values, min_size=1, max_size=6), sizes, st.integers(1, 60))
def test_cut_off_json_arrays_never_pass_for_whole(elements: list[Any], size: int, cut: int) -> None:
    raw = json.dumps(elements).encode()
    cut = min(cut, len(raw) - 1)
    given_out: list[Any] = []
    with pytest.raises(UserError, match=r"memory\.json:1: "):
        for item in read_json_array(Blocks(raw[:-cut], size)):
            given_out.append(item.value)
    assert len(given_out) <= len(elements)
    assert given_out[:-1] == elements[: len(given_out)][:-1]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", r"in\.json:1: not JSON: the file must hold one JSON array"),
        (b'{"a": 1}', r":1: not JSON: the file must hold one JSON array"),
        (b'[{"a": 1}\n{"a": 2}]', r":2: not JSON: ',' or '\]' must follow the element of line 1"),
        (
            b'[{"a": 1},\n{"a" 2}]' + b" " * 50,
            r":2: not JSON: Expecting ':' delimiter in the element that starts on line 2",
        ),
        (b'[{"a": 1},\n\n{"b":\n\n2,}]', r":5: not JSON: .* that starts on line 3"),
        (b'[{"a": 1}]\n\n[]', r":3: not JSON: there is text behind"),
        (b'[{"a": 1},]', r":1: not JSON: Expecting value"),
        (b'[{"a": "\xe9"}]', r":1: byte 0xe9 is not UTF-8 \(perhaps Windows-1252"),
        (b'[{"a":\n\n "ab\xe9cd"}]', r":3: byte 0xe9"),
        (b'[{"a": "\xc3', r":1: the file ends in the middle of a UTF-8 character"),
        ('[{"a": 1}]'.encode("utf-16"), r"the file is UTF-16; convert it to UTF-8"),
        ('[{"a": 1}]'.encode("utf-32"), r"the file is UTF-32; convert it to UTF-8"),
        (b"[" * 200000, r":1: not JSON: the element cannot be read \(maximum recursion"),
        (b"[" + b"9" * 5000 + b"]", r":1: not JSON: the element cannot be read \(Exceeds the limit"),
    ],
)
def test_broken_json_arrays_are_named_with_their_line(tmp_path: Path, raw: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(read_json_array(file(tmp_path, raw)))


def test_bad_byte_behind_the_first_block_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 16)
    raw = b"[" + b",\n".join(b'{"number": %d}' % number for number in range(40)) + b',\n"\xc3\x28"]'
    with pytest.raises(UserError, match=r"in\.json:41: byte 0xc3"):
        list(read_json_array(file(tmp_path, raw)))


def test_elements_longer_than_a_block_are_read_in_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 64)
    long = "x" * 100_000
    source = file(tmp_path, json.dumps([{"text": long}, {"text": "short"}]).encode())
    decodes = 0
    scan = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, text: str, at: int = 0) -> Any:
        nonlocal decodes
        decodes += 1
        return scan(self, text, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    assert [item.value["text"] for item in read_json_array(source)] == [long, "short"]
    assert decodes < 25


@few
@given(st.lists(values, max_size=8), sizes, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_json_lines_give_every_line_that_is_not_blank(elements: list[Any], size: int, end: str, marked: bool) -> None:
    raw = end.join(json.dumps(element, ensure_ascii=False) for element in elements).encode()
    items = list(read_json_lines(Blocks((b"\xef\xbb\xbf" if marked else b"") + raw, size)))
    assert [item.value for item in items] == elements
    step = end.count("\n")
    assert [item.line for item in items] == [1 + step * number for number in range(len(elements))]


def test_a_broken_json_line_is_one_item_and_the_next_is_read(tmp_path: Path) -> None:
    items = list(read_json_lines(file(tmp_path, b'{"a": 1}\n{"a": \n"\xff"\n[1]')))
    assert [(item.line, item.problem is None) for item in items] == [(1, True), (2, False), (3, False), (4, True)]
    assert items[1].problem == "not JSON: Expecting value at column 7"
    assert items[2].problem is not None and items[2].problem.startswith("byte 0xff is not UTF-8")
    assert items[3].where.endswith("in.json:4")


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@given(st.lists(st.tuples(cells, cells, cells), max_size=8), sizes, st.booleans())
def test_tables_give_every_row_with_its_line(rows: list[tuple[str, str, str]], size: int, marked: bool) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows([("a", "b", "c"), *rows])
    raw = (b"\xef\xbb\xbf" if marked else b"") + stream.getvalue().encode()
    items = list(read_table(Blocks(raw, size), ["b", "a"]))
    assert [tuple(item.value[name] for name in "abc") for item in items] == rows
    starts = [2]
    for row in rows:
        starts.append(starts[-1] + 1 + sum(cell.count("\n") for cell in row))
    assert [item.line for item in items] == starts[:-1]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "the file is empty; its first line must name the columns name, url"),
        (b"nmae,url\n", r":1: column 'name' is missing; the file has nmae, url; did you mean 'nmae'"),
        (b"name,url,name\n", ":1: column 'name' stands twice"),
        (b'name,url\na,b\n"c,d\n', r":4: not CSV: unexpected end of data|:3: not CSV"),
        (b'name,url\n"a"b,c\n', r":2: not CSV: ',' expected after '\"'"),
        (b"name,url\na,\xe9\n", r":2: byte 0xe9 is not UTF-8"),
    ],
)
def test_broken_tables_are_named_with_their_line(tmp_path: Path, raw: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(read_table(file(tmp_path, raw, "t.csv"), ["name", "url"]))


def test_table_rows_of_another_width_are_bad_items(tmp_path: Path) -> None:
    items = list(read_table(file(tmp_path, b"a,b\n1,2\n1\n1,2,3\n\n5,6\n"), ["a"]))
    assert [item.line for item in items] == [2, 3, 4, 6]
    assert [item.problem for item in items][1:3] == [
        "the row has 1 fields but the header names 2",
        "the row has 3 fields but the header names 2",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "gz"])
def test_archived_and_zipped_files_read_as_the_file_itself(tmp_path: Path, kind: str) -> None:
    raw = json.dumps([{"text": "ä" * 5000}, {"text": "b"}]).encode()
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("in/side.json", raw)
    elif kind == "gz":
        archive.write_bytes(gzip.compress(raw))
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as tar:
            info = tarfile.TarInfo("in/side.json")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    name = str(archive) if kind == "gz" else f"{archive}::in/side.json"
    assert [item.value for item in read_json_array(InputFile.parse(name))] == json.loads(raw)
    if kind != "gz":
        with pytest.raises(UserError, match=r"the archive has no (member|file) 'other'"):
            list(InputFile.parse(f"{archive}::other").blocks())
    archive.write_bytes(archive.read_bytes()[: len(archive.read_bytes()) // 2])
    with pytest.raises(UserError, match=r"damaged or cut off|has no file"):
        list(InputFile.parse(name).blocks())


def test_damaged_zip_member_is_found_by_its_checksum(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("in.json", b'[{"answer": "yes"}]')
    archive.write_bytes(archive.read_bytes().replace(b'"yes"', b'"yet"'))
    with pytest.raises(UserError, match=r"a\.zip::in\.json: damaged or cut off \(Bad CRC-32"):
        list(read_json_array(InputFile.parse(f"{archive}::in.json")))


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        InputFile.parse(str(tmp_path / "none.json"))
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match="the member's name is missing"):
        InputFile.parse(f"{tmp_path}/a.zip::")


@settings(max_examples=20)
@given(st.dictionaries(texts, values, max_size=4))
def test_json_objects_are_read_whole(value: dict[str, Any]) -> None:
    assert read_json_object(Blocks(json.dumps(value).encode(), 7)) == value


@pytest.mark.parametrize(
    ("raw", "told"),
    [(b"[]", "must hold one JSON object"), (b'{"a": 1, "a": 2}', "key 'a' stands twice"), (b'{\n"a"}', ":2: not JSON")],
)
def test_broken_json_objects_are_named(tmp_path: Path, raw: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_json_object(file(tmp_path, raw))
