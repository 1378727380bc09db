"""``python -m data_prep.check``: every kind of mistake is named by file and line, and what is right passes."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import check as check_tool
from data_prep.checking import rows as rows_room
from data_prep.checking.findings import KINDS, LISTED, Findings
from data_prep.checking.media_table import MediaTable
from data_prep.checking.overview import histogram
from data_prep.checking.rows import chunks, lines_of, read_chunk
from data_prep.command_line import run_tool
from longvid_train.data.manifest import ManifestRules
from longvid_train.errors import UserError

Check = Callable[..., tuple[int, dict[str, Any]]]
SRT = "1\n00:00:00,100 --> 00:00:00,900\na line\n"


def write_video(path: Path, shade: int, frames: int = 20) -> None:
    """``frames`` frames at 10 per second, each a keyframe of noise, which takes a few KB."""
    noise = np.random.default_rng(shade)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "1", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = Fraction(1, 10)
        for _ in range(frames):
            picture = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def checked_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos ``a.mp4`` (2 s), ``b.mp4``, ``cut.mp4`` (its end is missing), ``torn.mp4`` (bytes in its middle changed),
    an image, a copy of ``a.mp4``, and subtitles, one of them broken."""
    folder = tmp_path_factory.mktemp("checked_media")
    write_video(folder / "a.mp4", 1)
    write_video(folder / "b.mp4", 2, frames=25)
    shutil.copy(folder / "a.mp4", folder / "copy_of_a.mp4")
    whole = (folder / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    torn = bytearray(whole)
    middle = len(whole) // 2
    torn[middle : middle + 4000] = bytes(4000)
    (folder / "torn.mp4").write_bytes(torn)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    (folder / "text.png").write_text("not an image")
    (folder / "a.srt").write_text(SRT)
    (folder / "broken.srt").write_text("1\n00:00:00,100 -> 00:00:00,900\n")
    return folder


@pytest.fixture
def media_folder(checked_media: Path, tmp_path: Path) -> Path:
    shutil.copytree(checked_media, tmp_path / "data")
    return tmp_path / "data"


def row(number: int, path: str | None = None, **changes: Any) -> dict[str, Any]:
    """A question about a file, or one without."""
    kind = "image" if path is not None and path.endswith(".png") else "video"
    return {
        "id": f"row-{number}",
        "media": [] if path is None else [{"type": kind, "path": path}],
        "conversation": [
            {"role": "user", "text": f"<{kind}>\nWhat is number {number}?" if path else f"What is {number}?"},
            {"role": "assistant", "text": f"answer {number}"},
        ],
        "source": "made",
        "license": "CC0-1.0",
        "version": "1",
        **changes,
    }


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def run_check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the tool with ``--json`` and return its status and report."""

    def run(*words: object) -> tuple[int, dict[str, Any]]:
        status = run_tool("check", [*map(str, words), "--json", "--debug"])
        return status, json.loads(capsys.readouterr().out)

    return run


def where(report: dict[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """Kind -> names of manifests and lines."""
    return {
        kind: [(Path(one["manifest"]).name, one["line"]) for one in found["first"]]
        for kind, found in report["findings"].items()
    }


def test_a_clean_manifest_passes_and_is_counted(media_folder: Path, run_check: Check) -> None:
    subtitled = [{"type": "video", "path": "b.mp4", "subtitles": "a.srt", "start_s": 1, "end_s": 2.5}]
    rows = [row(1, "a.mp4"), row(2, "a.mp4"), row(3, "b.mp4", media=subtitled), row(4, "red.png"), row(5)]
    manifest = write(media_folder / "m.jsonl", [rows[0], "", *rows[1:]])
    status, report = run_check(manifest)
    assert status == 0
    assert report["ok"] is True
    assert report["findings"] == {}
    (summary,) = report["manifests"]
    assert summary["rows"] == 5
    assert summary["bytes"] == manifest.stat().st_size
    assert summary["modalities"] == {"video": 3, "image": 1, "text": 1}
    assert summary["origins"] == [{"source": "made", "license": "CC0-1.0", "version": "1", "rows": 5}]
    assert summary["tokens"] is None
    media = report["media"]
    assert (media["media"], media["subtitles"], media["opened"]) == (3, 1, 2)
    assert media["duration_s"] == pytest.approx(2.0 + 2.5)


def broken_manifest(folder: Path) -> Path:
    """One row of each mistake, on known lines."""

    def shown(path: str, **more: Any) -> dict[str, Any]:
        return {"media": [{"type": "video", "path": path, **more}]}

    return write(
        folder / "broken.jsonl",
        [
            row(1, "a.mp4"),  # 1
            "{not JSON",
            row(1, "a.mp4", conversation=row(3, "a.mp4")["conversation"]),  # 3: its id is that of line 1
            "",
            row(5, "missing.mp4"),  # 5
            row(6, "cut.mp4"),
            row(7, "text.png"),
            row(8, "b.mp4", **shown("b.mp4", subtitles="broken.srt")),
            row(9, "b.mp4", **shown("b.mp4", subtitles="none.srt")),
            row(10, "b.mp4", **shown("b.mp4", start_s=2.4, end_s=3.0)),  # 10: within the slack
            row(11, "b.mp4", **shown("b.mp4", end_s=60)),
            row(12, "a.mp4", **shown("a.mp4", start_s=2.0)),
            row(13, "a.mp4", conversation=row(1, "a.mp4")["conversation"]),  # 13: what line 1 says
            row(14, "copy_of_a.mp4"),
            row(15, "../outside.mp4"),
            row(16, "torn.mp4"),  # 16: whole at its first and last frame
        ],
    )


EXPECTED = {
    "row": [2, 15],
    "repeated_id": [3],
    "missing_file": [5, 9],
    "unreadable_media": [6, 7],
    "bad_subtitles": [8],
    "window": [11, 12],
    "same_conversation": [13],
    "same_media": [14],
}


@pytest.mark.parametrize("words", [["--no-isolate"], ["--processes", "2"]], ids=["one process", "two, isolated"])
def test_every_mistake_is_named_by_line(media_folder: Path, run_check: Check, words: list[str]) -> None:
    status, report = run_check(broken_manifest(media_folder), "--decode", "sampled:2", *words)
    assert status == 1
    assert report["ok"] is False
    found = where(report)
    assert {kind: [line for _, line in lines] for kind, lines in found.items()} == EXPECTED
    messages = {kind: [one["message"] for one in kinds["first"]] for kind, kinds in report["findings"].items()}
    assert "id 'row-1' was already used on line 1" in messages["repeated_id"]
    assert "lasts 2.50 s and the row shows 0 s to 60 s" in messages["window"][0]
    assert "broken.srt:2: expected 'HH:MM:SS,mmm --> HH:MM:SS,mmm'" in messages["bad_subtitles"][0]
    assert "copy_of_a.mp4' holds the same bytes as" in messages["same_media"][0]
    assert all(found["fails"] for found in report["findings"].values())


def test_full_decoding_finds_what_samples_do_not(media_folder: Path, run_check: Check) -> None:
    manifest = write(media_folder / "m.jsonl", [row(1, "torn.mp4"), row(2, "a.mp4")])
    assert run_check(manifest, "--decode", "sampled:2", "--no-isolate")[0] == 0
    status, report = run_check(manifest, "--decode", "full", "--no-isolate")
    assert status == 1
    assert where(report) == {"unreadable_media": [("m.jsonl", 1)]}
    assert run_check(manifest, "--decode", "none")[1]["media"]["opened"] == 0


def test_files_can_be_left_alone(media_folder: Path, run_check: Check) -> None:
    manifest = write(media_folder / "m.jsonl", [row(1, "missing.mp4"), row(2, "cut.mp4")])
    assert where(run_check(manifest, "--decode", "none")[1]) == {"missing_file": [("m.jsonl", 1)]}
    assert run_check(manifest, "--no-files")[0] == 0


def test_leaks_between_splits(media_folder: Path, run_check: Check) -> None:
    """The same path, the same bytes under another name, and a question that both splits ask."""
    conversation = [
        {"role": "user", "text": "<video> WHAT is  number 1?"},
        {"role": "assistant", "text": "another answer"},
    ]
    train = write(media_folder / "train.jsonl", [row(1, "a.mp4"), row(2, "b.mp4"), row(3), row(4)])
    (media_folder / "other").mkdir()
    val = write(
        media_folder / "other" / "val.jsonl",
        [
            row(9, media=[{"type": "video", "path": str(media_folder / "a.mp4")}], conversation=conversation),
            row(8, "../copy_of_a.mp4"),
            row(3, source="another"),
            row(7, "../red.png"),
        ],
    )
    status, report = run_check(train, val, "--allow-outside", "--no-isolate")
    assert status == 1
    found = where(report)
    assert found["leaked_question"] == [("val.jsonl", 1), ("val.jsonl", 3)]
    assert found["leaked_media"] == [("val.jsonl", 1)]
    assert found["same_media"] == [("val.jsonl", 2)]
    assert set(found) == {"leaked_question", "leaked_media", "same_media"}, "ids may be shared by splits"
    assert f"is in {train}:1 too" in report["findings"]["leaked_media"]["first"][0]["message"]
    allowed = ["--ignore", "leaked_media,leaked_question,same_media"]
    status, report = run_check(train, val, "--allow-outside", "--no-isolate", *allowed)
    assert status == 0
    assert report["findings"]["leaked_question"]["count"] == 2
    assert report["findings"]["leaked_question"]["fails"] is False


def test_a_copy_in_another_split_is_a_leak(media_folder: Path, run_check: Check) -> None:
    train = write(media_folder / "train.jsonl", [row(1, "b.mp4"), row(2, "a.mp4")])
    val = write(media_folder / "val.jsonl", [row(3), row(4, "copy_of_a.mp4")])
    status, report = run_check(train, val, "--decode", "none")
    assert status == 1
    assert where(report) == {"leaked_media": [("val.jsonl", 2)]}
    assert report["findings"]["leaked_media"]["first"][0]["message"].endswith(
        f"{train}:2 too as '{media_folder / 'a.mp4'}'"
    )


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30), chunk_bytes=st.integers(1, 90), ends=st.booleans()
)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], chunk_bytes: int, ends: bool
) -> None:
    """Wherever the file is divided: the lines of all chunks, one after the other, are those of the file."""
    lines = [b"x" * length for length in lengths]
    path = tmp_path_factory.mktemp("chunks") / "m.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_room, "CHUNK_BYTES", chunk_bytes)
        divided = list(chunks(path))
    found = [[line.raw for line in lines_of(chunk)] for chunk in divided]
    assert [raw for part in found for raw in part] == path.read_bytes().splitlines(keepends=True)
    for chunk, part in zip(divided, found, strict=True):
        assert [line.number for line in lines_of(chunk)] == list(range(1, len(part) + 1))


def test_lines_are_counted_across_chunks(
    tmp_path: Path, run_check: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows_room, "CHUNK_BYTES", 500)
    rows: list[dict[str, Any] | str] = [row(number) for number in range(200)]
    rows[40] = rows[150] = "broken"
    rows[77] = ""
    rows[120] = row(20)
    rows[199] = row(300, conversation=row(33)["conversation"])
    status, report = run_check(write(tmp_path / "m.jsonl", rows))
    assert status == 1
    found = where(report)
    assert [line for _, line in found["row"]] == [41, 151]
    assert [line for _, line in found["repeated_id"]] == [121]
    assert [line for _, line in found["same_conversation"]] == [121, 200]
    assert report["manifests"][0]["rows"] == 197
    chosen_lines = set()
    for chunk in chunks(tmp_path / "m.jsonl"):
        chosen_lines |= {card.raw for card in read_chunk(chunk, ManifestRules(check_files=False)).cards}
    assert len(chosen_lines) >= rows_room.CARDS


def test_a_full_temporary_folder_is_a_users_error() -> None:
    facts = rows_room.ChunkFacts(
        media={rows_room.MediumUse(f"/videos/of some length/{number}", "video"): 1 for number in range(9000)}
    )
    with MediaTable() as table:
        table._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(UserError, match="set TMPDIR"):
            table.add(0, 1, facts)


def test_the_first_thousand_of_a_kind_are_kept() -> None:
    findings = Findings(["window"])
    for line in range(LISTED + 5):
        findings.add("window", "m", line, "x")
    assert findings.counts["window"] == LISTED + 5
    assert len(findings.listed["window"]) == LISTED
    assert not findings.failed, "it is ignored"
    findings.add("shortened", "m", 1, "x")
    assert not findings.failed, "it is a notice"
    findings.add("row", "m", 1, "x")
    assert findings.failed
    assert findings.kinds == ["row", "window", "shortened"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor whose tokens are words: 4 x 4 patches, content tokens only."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from longvid_train.models.llama_vid.processing import LlamaVidProcessor, ProcessorSettings

    words = ["<unk>", "<s>", "</s>", "<pad>", "<vis>", "USER", "ASSISTANT", ":", "what"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    picture = ProcessorSettings(image_size=8, patch_size=2, visual_token_id=4, use_context=False)
    folder = tmp_path_factory.mktemp("model")
    LlamaVidProcessor(fast, None, picture).save_pretrained(folder)
    return folder


def write_config(folder: Path, model: Path | None, **data: Any) -> Path:
    path = folder / "fit.yaml"
    values = {
        "model": {"class_path": "m", "init_args": {} if model is None else {"model": str(model)}},
        "data": {"class_path": "d", "init_args": {"train": "elsewhere.jsonl", "loading": {"batch_size": 3}, **data}},
        "trainer": {"max_epochs": 1},
    }
    path.write_text(json.dumps(values))
    return path


def test_lengths_are_those_of_training(
    media_folder: Path, model_folder: Path, run_check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvid_train.data.datamodule import ManifestDataModule

    long_text = [{"role": "user", "text": "<video>" + " why" * 60}, {"role": "assistant", "text": "so"}]
    rows = [row(1, "a.mp4"), row(2, "red.png"), row(3), row(4, "b.mp4", conversation=long_text), row(5, "cut.mp4")]
    manifest = write(media_folder / "m.jsonl", rows[:4])
    sampling = {"class_path": "longvid_train.video.FramesPerSecond", "init_args": {"fps": 10.0}}
    data = {"media": {"sampling": sampling}, "conversation": {"max_tokens": 1000}}
    status, report = run_check(manifest, "--config", write_config(media_folder, model_folder, **data), "--no-isolate")
    assert status == 0
    tokens = report["manifests"][0]["tokens"]
    from longvid_train.data.conversation import ConversationOptions
    from longvid_train.data.media import MediaOptions
    from longvid_train.video import FramesPerSecond

    table = ManifestDataModule(
        str(model_folder),
        train=str(manifest),
        conversation=ConversationOptions(max_tokens=1000),
        media=MediaOptions(sampling=FramesPerSecond(fps=10.0)),
    ).row_table()
    lengths = list(table.facts().lengths)
    assert tokens == {
        "rows": 4,
        "longest": max(lengths),
        "text_tokens": sum(table.text_tokens),
        "visual_tokens": sum(table.visual_tokens),
        "frames": 20 + 1 + 0 + 25,
    }
    assert tokens["visual_tokens"] == 20 + 16 + 25

    limit = lengths[0] - 3
    assert lengths[3] - 24 > limit > max(lengths[1:3])
    data = {
        "media": {"sampling": sampling},
        "conversation": {"max_tokens": limit},
        "budget": {"shorten": ["fewer_frames"]},
    }
    write(manifest, rows)
    status, report = run_check(
        manifest, "--config", write_config(media_folder, model_folder, **data), "--ignore", "unreadable_media"
    )
    assert status == 1
    found = where(report)
    assert found["too_long"] == [("m.jsonl", 4)]
    assert found["not_measured"] == [("m.jsonl", 5)]
    assert found["unreadable_media"] == [("m.jsonl", 5)]
    assert ("m.jsonl", 1) in found["shortened"]
    assert report["findings"]["shortened"]["first"][0]["message"] == (
        f"3 frames, 3 visual and 0 text tokens are left out to fit; {limit} tokens remain"
    )
    assert report["manifests"][0]["tokens"]["longest"] <= limit


def test_the_model_can_be_named_and_configs_override(
    media_folder: Path, model_folder: Path, run_check: Check, tmp_path: Path
) -> None:
    manifest = write(media_folder / "m.jsonl", [row(1)])
    base = write_config(media_folder, None, conversation={"max_tokens": 2}).rename(media_folder / "base.yaml")
    over = write_config(media_folder, model_folder, conversation={"max_tokens": 500})
    assert run_check(manifest, "--config", base, "--processor", model_folder)[0] == 1
    assert run_check(manifest, "--config", base, "--config", over)[0] == 0
    assert run_check(manifest, "--config", over, "--config", base)[0] == 1


def test_the_overview_shows_rows_and_findings(media_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    rows = [row(1, "a.mp4"), row(2, "red.png"), row(3, "cut.mp4", source="<script>alert(1)</script>"), "broken"]
    rows[0]["conversation"][0]["text"] += " <b>bold</b>"  # type: ignore[index]
    manifest = write(media_folder / "m.jsonl", rows)
    page = tmp_path / "overview.html"
    config = write_config(media_folder, model_folder)
    assert run_tool("check", [str(manifest), "--html", str(page), "--config", str(config), "--no-isolate"]) == 1
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;bold" in text
    assert re.findall(r'(?:src|href)="(?!data:)', text) == [], "nothing is fetched"
    assert text.count("data:image/jpeg;base64,") == 4 + 1, "four frames of the video, one image"
    assert f"{manifest}:4: not JSON" in text
    assert "cut.mp4" in text
    for word in ("3 rows in 1 manifest", "something is wrong", "tokens of a row", "length of videos", "row-1", "row-2"):
        assert word in text


@given(st.dictionaries(st.integers(0, 10**6), st.integers(1, 50), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_histograms_hold_every_value_once(values: dict[int, int]) -> None:
    bars = histogram(Counter(values))
    assert sum(bar.rows for bar in bars) == sum(values.values())
    assert max(bar.share for bar in bars) == 1
    for bar, after in pairwise(bars):
        assert after.low == bar.high + 1
    for bar in bars:
        assert bar.rows == sum(count for value, count in values.items() if bar.low <= value <= bar.high)
    assert len(bars) <= 25


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing.jsonl"], "manifest 'missing.jsonl' cannot be read: No such file"),
        (["{m}", "--decode", "some"], "must be none, sampled:K or full"),
        (["{m}", "--decode", "sampled:0"], "must be none, sampled:K or full"),
        (["{m}", "--ignore", "same_medium"], "did you mean 'same_media'?"),
        (["{m}", "{m}"], "is given twice"),
        (["{m}", "--processor", "x"], "--processor has no effect without --config"),
        (["{m}", "--processes", "0"], "must be a whole number, 1 or more"),
        (["{m}", "--config", "none.yaml"], "config 'none.yaml' cannot be read"),
        (["{m}", "--config", "{bad}"], "is not YAML"),
        (["{m}", "--config", "{typo}"], "did you mean 'conversation'?"),
        (["{m}", "--config", "{value}"], "max_tokens"),
        (["{m}", "--config", "{nameless}"], "name the model's folder with --processor"),
        (["{m}", "--jsn"], "did you mean '--json'?"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    files = {"m": write(tmp_path / "m.jsonl", [row(1)]), "bad": tmp_path / "bad.yaml"}
    files["bad"].write_text("a: [")
    for name, data in (
        ("typo", {"conversatoin": {}}),
        ("value", {"conversation": {"max_tokens": "many"}}),
        ("nameless", {}),
    ):
        files[name] = write_config(tmp_path, None, **data).rename(tmp_path / f"{name}.yaml")
    status = run_tool("check", [word.format(**files) for word in words])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("data_prep.check: ")
    assert expected in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_an_empty_manifest_is_wrong_and_the_table_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path / "m.jsonl", [""])
    assert run_tool("check", [str(manifest)]) == 1
    out = capsys.readouterr().out
    assert f"{manifest}:1: the manifest has no rows" in out
    assert f"1 x row: {KINDS['row']}" in out
    assert out.rstrip().endswith("something is wrong")
    assert check_tool.__doc__ is not None and "examples:" in check_tool.__doc__
