"""Every rule of the manifest format: what it accepts, and the line a broken row gets."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longvid_train.data.manifest import (
    ManifestRules,
    Media,
    Sample,
    Turn,
    read_manifest,
    sample_from_json,
    sample_to_json,
    write_manifest,
)
from longvid_train.errors import UserError

NO_FILES = ManifestRules(check_files=False)
ANY = ManifestRules(check_files=False, require_answer=False, allow_outside=True)


def good_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "ep-7-q2",
        "media": [{"type": "video", "path": "videos/ep-7.mp4", "subtitles": "videos/ep-7.srt", "end_s": 9.5}],
        "conversation": [
            {"role": "user", "text": "<video>\nWhich digit?"},
            {"role": "assistant", "text": "7"},
        ],
        "meta": {"kind": "needle"},
    }
    row.update(changes)
    return row


def write_lines(path: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_row_is_read_field_by_field(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", good_row(), "", good_row(id="b", source="s", license="l", version="v"))
    manifest = read_manifest(path, NO_FILES)
    assert len(manifest) == 2
    assert manifest[0] == Sample(
        id="ep-7-q2",
        media=(Media(type="video", path="videos/ep-7.mp4", subtitles="videos/ep-7.srt", start_s=0.0, end_s=9.5),),
        conversation=(Turn("user", "<video>\nWhich digit?"), Turn("assistant", "7")),
        meta={"kind": "needle"},
    )
    assert (manifest[1].source, manifest[1].license, manifest[1].version) == ("s", "l", "v")
    assert manifest.line_number(1) == 3, "a blank line counts as a line but is no row"
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.resolve("videos/ep-7.mp4") == tmp_path / "videos" / "ep-7.mp4"
    assert manifest.resolve("/data/a.mp4") == Path("/data/a.mp4")


TURNS = good_row()["conversation"]
BROKEN: list[tuple[str, Any, str]] = [
    ("text", "hello", "not JSON: Expecting value at column 1; each line must hold one JSON object"),
    ("array", "[1]", "the line holds a JSON array; each line must hold one JSON object"),
    ("utf8", b'{"id": "\xff"}', "byte 8 of the line is not UTF-8; save the file as UTF-8"),
    ("nan", '{"id": "a", "meta": {"x": NaN}}', "NaN is not a JSON number; use a finite number or null"),
    ("twice", '{"id": "a", "id": "b"}', "key 'id' stands twice in one object; keep one"),
    ("huge int", '{"id": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
    ("deep", "[" * 100_000, "the JSON is nested too deeply"),
    ("unknown key", good_row(conversations=[]), "unknown field 'conversations'; did you mean 'conversation'?"),
    ("strange key", good_row(zzz=1), "unknown field 'zzz'; it can hold ['id', 'media',"),
    ("no id", {"conversation": TURNS}, "field 'id' is missing"),
    ("id number", good_row(id=7), "field 'id' is 7; it must be a string"),
    ("id blank", good_row(id=" "), "field 'id' is ' '; it cannot be blank"),
    ("surrogate", good_row(id="\ud800"), "field 'id' holds half a surrogate pair at character 0"),
    ("meta list", good_row(meta=[]), "field 'meta' is []; it must be a JSON object"),
    ("source", good_row(source=None), "field 'source' is null; it must be a string"),
    ("media object", good_row(media={}), "field 'media' is {}; it must be a JSON array"),
    (
        "media type",
        good_row(media=[{"type": "gif", "path": "a"}]),
        "field 'media[0].type' is 'gif'; it must be 'image' or 'video'",
    ),
    (
        "media list type",
        good_row(media=[{"type": [], "path": "a"}]),
        "field 'media[0].type' is []; it must be 'image' or 'video'",
    ),
    ("media key", good_row(media=[{"type": "video", "file": "a"}]), "unknown field 'media[0].file'"),
    (
        "image srt",
        good_row(media=[{"type": "image", "path": "a", "subtitles": "b"}]),
        "unknown field 'media[0].subtitles'",
    ),
    ("no path", good_row(media=[{"type": "video"}]), "field 'media[0].path' is missing"),
    (
        "escape",
        good_row(media=[{"type": "video", "path": "../a.mp4"}]),
        "field 'media[0].path' is '../a.mp4'; it must stay inside",
    ),
    (
        "start",
        good_row(media=[{"type": "video", "path": "a", "start_s": -1}]),
        "field 'media[0].start_s' is -1; it must be a number",
    ),
    (
        "bool",
        good_row(media=[{"type": "video", "path": "a", "start_s": True}]),
        "field 'media[0].start_s' is true; it must be a number",
    ),
    (
        "end",
        good_row(media=[{"type": "video", "path": "a", "start_s": 3, "end_s": 3}]),
        "field 'media[0].end_s' is 3; it must be after start_s (3)",
    ),
    (
        "no turns",
        good_row(conversation=[]),
        "field 'conversation' is empty; it needs a user turn and an assistant turn",
    ),
    (
        "role",
        good_row(conversation=[TURNS[0], {"role": "gpt", "text": "7"}]),
        "field 'conversation[1].role' is 'gpt'; it must be 'user' or 'assistant'",
    ),
    (
        "assistant first",
        good_row(conversation=TURNS[::-1]),
        "field 'conversation[0].role' is 'assistant'; turns alternate from the user on, so it must be 'user'",
    ),
    (
        "open",
        good_row(conversation=TURNS[:1]),
        "field 'conversation[0].role' is 'user'; the last turn must be the assistant's answer",
    ),
    (
        "blank answer",
        good_row(conversation=[TURNS[0], {"role": "assistant", "text": "\n"}]),
        "field 'conversation[1].text' is '\n'; an answer cannot be blank",
    ),
    (
        "turn key",
        good_row(conversation=[TURNS[0], {"role": "assistant", "value": "7"}]),
        "unknown field 'conversation[1].value'",
    ),
    (
        "wrong type",
        good_row(conversation=[{"role": "user", "text": "<image>"}, TURNS[1]]),
        "field 'conversation[0].text' holds '<image>' but media[0] is a video",
    ),
    (
        "too many",
        good_row(conversation=[{"role": "user", "text": "<video><video>"}, TURNS[1]]),
        "field 'conversation[0].text' holds '<video>' but 'media' has only 1 entry",
    ),
    (
        "too few",
        good_row(conversation=[{"role": "user", "text": "hi"}, TURNS[1]]),
        "field 'media' has 1 entry but the user turns hold 0 placeholders; put '<video>' where media[0] is shown",
    ),
    (
        "in answer",
        good_row(conversation=[TURNS[0], {"role": "assistant", "text": "<video>"}]),
        "field 'conversation[1].text' holds '<video>'; only user turns show media",
    ),
]


@pytest.mark.parametrize(("line", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_row_names_file_line_and_rule(tmp_path: Path, line: Any, message: str) -> None:
    path = write_lines(tmp_path / "m.jsonl", good_row(id="first"), line)
    with pytest.raises(UserError) as caught:
        read_manifest(path, NO_FILES)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", good_row(), good_row(id="x"), good_row())
    with pytest.raises(UserError, match=r"m\.jsonl:3: id 'ep-7-q2' was already used on line 1"):
        read_manifest(path, NO_FILES)


def test_missing_media_and_subtitle_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", good_row())
    with pytest.raises(
        UserError, match=r"m\.jsonl:1: field 'media\[0\]\.path' names '.*/videos/ep-7\.mp4', which is not"
    ):
        read_manifest(path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "ep-7.mp4").touch()
    with pytest.raises(
        UserError, match=r"m\.jsonl:1: field 'media\[0\]\.subtitles' names '.*/videos/ep-7\.srt', which"
    ):
        read_manifest(path)
    (tmp_path / "videos" / "ep-7.srt").touch()
    assert len(read_manifest(path)) == 1


def test_rules_can_be_loosened(tmp_path: Path) -> None:
    row = good_row(media=[{"type": "video", "path": "../a.mp4"}], conversation=TURNS[:1])
    path = write_lines(tmp_path / "m.jsonl", row)
    assert read_manifest(path, ANY)[0].media[0].path == "../a.mp4"
    with pytest.raises(UserError, match="the last turn must be"):
        read_manifest(path, ManifestRules(check_files=False, allow_outside=True))


def test_a_name_with_dots_is_no_escape(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", good_row(media=[{"type": "video", "path": "a..b/..c.mp4"}]))
    assert read_manifest(path, NO_FILES)[0].media[0].path == "a..b/..c.mp4"


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_and_missing_manifests(tmp_path: Path, content: str) -> None:
    path = tmp_path / "m.jsonl"
    with pytest.raises(UserError, match=r"m\.jsonl' cannot be read: No such file"):
        read_manifest(path)
    path.write_text(content)
    with pytest.raises(UserError, match=r"m\.jsonl' has no rows"):
        read_manifest(path)


def test_a_manifest_that_changes_in_use_is_noticed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", good_row())
    manifest = read_manifest(path, NO_FILES)
    write_lines(path, good_row(id="another"))
    with pytest.raises(UserError, match="changed while it was in use"):
        manifest[0]


def test_index_out_of_range(tmp_path: Path) -> None:
    manifest = read_manifest(write_lines(tmp_path / "m.jsonl", good_row()), NO_FILES)
    for index in (1, -1):
        with pytest.raises(IndexError):
            manifest[index]


def test_rows_are_not_kept_in_memory(tmp_path: Path) -> None:
    rows = (good_row(id=f"{number}", source="x" * 1000) for number in range(500))
    path = write_lines(tmp_path / "m.jsonl", *rows)
    manifest = read_manifest(path, NO_FILES)
    assert len(pickle.dumps(manifest)) < 20 * len(manifest), "rows are not kept: 16 bytes each"
    copy = pickle.loads(pickle.dumps(manifest))
    assert copy[499] == manifest[499] and copy[499].id == "499"


text = st.text(st.characters(codec="utf-8"), max_size=20)
words = text.filter(lambda value: value.strip() and "<" not in value)
seconds = st.floats(0, 1e6, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
paths = words.filter(lambda value: "\0" not in value and ".." not in value)


@st.composite
def videos(draw: st.DrawFn) -> Media:
    start_s = draw(seconds)
    end_s = draw(st.none() | seconds.map(lambda length_s: start_s + length_s + 1))
    return Media(type="video", path=draw(paths), subtitles=draw(st.none() | paths), start_s=start_s, end_s=end_s)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    media = draw(st.lists(videos() | st.builds(Media, type=st.just("image"), path=paths), max_size=3))
    shown = "".join(f"<{medium.type}>" for medium in media)
    turns = [Turn("user", shown + draw(words)), Turn("assistant", draw(words))]
    if draw(st.booleans()):
        turns += [Turn("user", draw(words)), Turn("assistant", draw(words))]
    return Sample(
        id=draw(words),
        media=tuple(media),
        conversation=tuple(turns),
        source=draw(text),
        license=draw(text),
        version=draw(text),
        meta=draw(st.dictionaries(text, json_values, max_size=3)),
    )


@given(samples())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_row_round_trip(sample: Sample) -> None:
    raw = sample_to_json(sample)
    assert b"\n" not in raw
    assert sample_from_json(raw, require_answer=True, allow_outside=False) == sample


def test_write_then_read(tmp_path: Path) -> None:
    rows = [Sample(id=f"r{n}", conversation=(Turn("user", "é\n?"), Turn("assistant", "ja"))) for n in range(3)]
    assert write_manifest(iter(rows), tmp_path / "new" / "m.jsonl") == 3
    assert list(read_manifest(tmp_path / "new" / "m.jsonl")) == rows


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            Sample(id="a", conversation=(Turn("user", "hi"),)),
            r"m\.jsonl:2 \(not written\): id 'a' was already used on line 1",
        ),
        (Sample(id="b", conversation=()), r"m\.jsonl:2 \(not written\): field 'conversation' is empty"),
        (Sample(id="b", conversation=(Turn("user", "hi"),), meta={"x": float("nan")}), "cannot be written as JSON"),
        (Sample(id="b", conversation=(Turn("user", "hi"),), meta={"x": Path("a")}), "cannot be written as JSON"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, second: Sample, message: str) -> None:
    target = tmp_path / "m.jsonl"
    target.write_text("old")
    with pytest.raises(UserError, match=message):
        write_manifest([Sample(id="a", conversation=(Turn("user", "hi"),)), second], target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
