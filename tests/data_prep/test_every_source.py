"""What every source must do, in the exact layout of each."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from data_prep.command_line import run_source, run_tool
from data_prep.counts import Counts
from data_prep.merge import merge
from data_prep.preparation import RunOptions, prepare
from data_prep.registry import SOURCES, TOOLS
from data_prep.shard import Shard
from data_prep.source import Source
from longvid_train.data.manifest import Manifest, ManifestRules, read_manifest

Layout = Any

ELSEWHERE = {"movienet", "longalpaca", "long_videoqa"}
"""Sources whose layouts are in tests of their own."""

TEXT_SOURCES = sorted(set(SOURCES) - ELSEWHERE - {"videomme"})
"""Sources whose annotations are text; those of ``videomme`` are Parquet (test_long_video_benchmarks.py)."""


def rows_of(manifest: Path) -> Manifest:
    return read_manifest(manifest, ManifestRules(require_answer=False))


def source_of(name: str, arguments: list[str], out: Path) -> Source:
    module = import_module(f"data_prep.{name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.add_argument("--out", type=Path)
    made: Source = module.make_source(parser.parse_args([*arguments, "--out", str(out)]))
    return made


def run(name: str, layout: Layout, out: Path, *further: str) -> int:
    return run_source(name, [*layout.arguments, "--out", str(out), *further])


def test_every_source_has_a_layout(layouts: dict[str, Any]) -> None:
    assert set(SOURCES) - ELSEWHERE == set(layouts)


def test_help_shows_an_example_that_parses(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_source(source, ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"python -m data_prep.{source} --" in text and "--shard I/N" in text and "--skip-bad LIMIT" in text


def test_rows_are_a_manifest_with_origin(source: str, layout: Layout, tmp_path: Path) -> None:
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out) == 0
    samples = list(rows_of(out))
    assert len(samples) == layout.rows
    for sample in samples:
        assert sample.source == source and sample.license and sample.version
        assert sample.id.startswith(f"{source}/")
        assert all(not Path(medium.path).is_absolute() for medium in sample.media)


def test_media_outside_the_manifest_folder_get_absolute_paths(source: str, layout: Layout, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "out.jsonl"
    assert run(source, layout, out) == 0
    paths = [medium.path for sample in rows_of(out) for medium in sample.media]
    assert bool(paths) == (layout.medium is not None)
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths)


def test_receipt_and_summary_add_up(
    source: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["read"] == layout.records and summary["rows"] == layout.rows
    left_out = sum(sum(summary[kind].values()) for kind in ("dropped", "missing", "bad"))
    assert summary["kept"] + left_out == layout.records
    receipt = json.loads((tmp_path / "data" / "out.receipt.json").read_text())
    assert receipt["records"] == layout.records
    assert receipt["files"]["jsonl"]["bytes"] == out.stat().st_size
    assert len((tmp_path / "data" / "out.left_out.jsonl").read_text().splitlines()) == left_out
    assert not list((tmp_path / "data").glob(".*.partial"))


@pytest.mark.parametrize("count", [2, 5])
def test_merged_shards_are_the_unsharded_manifest(source: str, layout: Layout, tmp_path: Path, count: int) -> None:
    out = tmp_path / "data" / "out.jsonl"
    made = source_of(source, layout.arguments, out)
    prepare(made, RunOptions(out=out))
    parts = tmp_path / "data" / "part.jsonl"
    shards = [
        prepare(made, RunOptions(out=parts, shard=Shard(index, count), chunk_records=2)).manifest
        for index in range(1, count + 1)
    ]
    seen = [json.loads(line)["id"] for shard in shards for line in shard.read_text().splitlines()]
    assert len(set(seen)) == len(seen) == layout.rows
    merged = tmp_path / "data" / "merged.jsonl"
    receipt = merge(shards[::-1], merged)
    assert merged.read_bytes() == out.read_bytes()
    assert receipt.counts.read == layout.records
    whole, joined = (json.loads((tmp_path / "data" / f"{name}.receipt.json").read_text()) for name in ("out", "merged"))
    assert joined == whole


class KilledError(Exception):
    pass


def killer(after: int) -> Callable[[Counts], None]:
    calls = 0

    def on_progress(counts: Counts) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KilledError

    return on_progress


@pytest.mark.parametrize("after", [0, 1])
def test_killed_run_goes_on_and_writes_the_same_bytes(source: str, layout: Layout, tmp_path: Path, after: int) -> None:
    whole, out = tmp_path / "data" / "whole.jsonl", tmp_path / "data" / "out.jsonl"
    made = source_of(source, layout.arguments, out)
    prepare(made, RunOptions(out=whole))
    options = RunOptions(out=out, chunk_records=1)
    with pytest.raises(KilledError):
        prepare(made, options, on_progress=killer(after))
    assert not out.exists()
    converted: list[Any] = []
    recording = Recording(made, converted)
    prepared = prepare(recording, replace(options, chunk_records=2))
    assert prepared.resumed
    assert len(converted) == layout.records - (after + 1)
    assert out.read_bytes() == whole.read_bytes()
    assert prepare(made, options).found_finished


class Recording:
    """A source that notes what it converts."""

    def __init__(self, inner: Source, converted: list[Any]) -> None:
        self.origin = inner.origin
        self.inputs, self.settings, self.read, self.key = inner.inputs, inner.settings, inner.read, inner.key
        self._inner = inner
        self._converted = converted

    def convert(self, value: Any, row_id: str) -> Any:
        self._converted.append(row_id)
        return self._inner.convert(value, row_id)


def test_cut_off_annotations_write_nothing(
    source: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout.annotations.suffix == ".csv":
        layout.annotations.write_bytes(layout.annotations.read_bytes().rpartition(b",")[0])
    else:
        layout.annotations.write_bytes(layout.annotations.read_bytes()[:-20])
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out) == 2
    error = capsys.readouterr().err
    assert f"{layout.annotations}:" in error and error.count("\n") == 1
    assert not out.exists() and not (tmp_path / "data" / "out.receipt.json").exists()


@pytest.mark.parametrize("source", TEXT_SOURCES, indirect=True)
def test_byte_order_mark_is_accepted(source: str, layout: Layout, tmp_path: Path) -> None:
    plain, marked = tmp_path / "data" / "plain.jsonl", tmp_path / "data" / "marked.jsonl"
    assert run(source, layout, plain) == 0
    layout.annotations.write_bytes(b"\xef\xbb\xbf" + layout.annotations.read_bytes())
    assert run(source, layout, marked) == 0
    assert marked.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("source", TEXT_SOURCES, indirect=True)
@pytest.mark.parametrize(("encoding", "told"), [("utf-16", "UTF-16"), ("cp1252", "is not UTF-8")])
def test_other_encodings_are_named(
    source: str, layout: Layout, tmp_path: Path, encoding: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = layout.annotations.read_text(encoding="utf-8").replace("e", "é")
    layout.annotations.write_bytes(text.encode(encoding))
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out) == 2
    error = capsys.readouterr().err
    assert told in error and str(layout.annotations) in error
    assert not out.exists()


@pytest.mark.parametrize("source", TEXT_SOURCES, indirect=True)
def test_missing_field_is_named(
    source: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = layout.annotations.read_text(encoding="utf-8")
    changed = text.replace(f'"{layout.field}"', '"wrong"') if layout.annotations.suffix == ".json" else None
    layout.annotations.write_text(changed or text.replace(layout.field, "wrong", 1), encoding="utf-8")
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out) == 2
    error = capsys.readouterr().err
    assert f"'{layout.field}' is missing" in error and f"{layout.annotations}:" in error
    assert not out.exists()


def test_missing_medium_stops_the_run_unless_allowed(
    source: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout.medium is None:
        assert source == "sharegpt"
        return
    layout.medium.unlink()
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out) == 2
    error = capsys.readouterr().err
    assert "is missing" in error and layout.medium.with_suffix("").name in error and "--skip-missing" in error
    assert not out.exists()
    assert run(source, layout, out, "--skip-missing", "1", "--json") == 0
    assert sum(json.loads(capsys.readouterr().out)["missing"].values()) == 1
    assert len(rows_of(out)) == layout.rows - 1
    left_out = [json.loads(line) for line in (tmp_path / "data" / "out.left_out.jsonl").read_text().splitlines()]
    missing = [entry for entry in left_out if entry["kind"] == "missing"]
    assert len(missing) == 1
    assert layout.medium.with_suffix("").name in missing[0]["detail"]
    assert missing[0]["where"].startswith(f"{layout.annotations}{' (' if source == 'videomme' else ':'}")


def test_path_out_of_the_media_folder_is_refused(
    source: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not layout.name:
        assert source in ("sharegpt", "msvd_qa", "msrvtt_qa", "nextqa", "egoschema", "videomme")  # in their own tests
        return
    quote = '"' if layout.name.startswith('"') else ""
    name = layout.name.removeprefix('"')
    text = layout.annotations.read_text(encoding="utf-8")
    assert layout.name in text
    layout.annotations.write_text(text.replace(layout.name, f"{quote}../../{name}"), encoding="utf-8")
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out) == 2
    assert "leads out of its folder" in capsys.readouterr().err
    assert run(source, layout, out, "--skip-bad", "1", "--json") == 0
    assert sum(json.loads(capsys.readouterr().out)["bad"].values()) == 1
    assert ".." not in out.read_text()


def test_archives_are_read_in_place(source: str, layout: Layout, tmp_path: Path) -> None:
    import zipfile

    plain, zipped = tmp_path / "data" / "plain.jsonl", tmp_path / "data" / "zipped.jsonl"
    assert run(source, layout, plain) == 0
    archive = tmp_path / "annotations.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write(layout.annotations, "set/annotations.bin")
    member = f"{archive}::set/annotations.bin"
    arguments = [member if word == str(layout.annotations) else word for word in layout.arguments]
    assert run(source, replace(layout, arguments=arguments), zipped) == 0
    assert zipped.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("source", "kind"), [("llava_pretrain", "image"), ("webvid", "video"), ("nextqa", "video")], indirect=["source"]
)
def test_probing_refuses_media_that_are_none(
    source: str, kind: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data" / "out.jsonl"
    assert run(source, layout, out, "--probe") == 2  # the layouts' media are a few letters
    error = capsys.readouterr().err
    assert f"the {kind} cannot be read" in error and f"{layout.annotations}:" in error
    assert not out.exists()


def test_probing_opens_images(layouts: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    layout = layouts["allava"](tmp_path)
    for path in (tmp_path / "allava_laion" / "images").iterdir():
        Image.new("RGB", (4, 4)).save(path)
    layout.medium.write_bytes(layout.medium.read_bytes()[:60])
    assert run("allava", layout, tmp_path / "out.jsonl", "--probe", "--skip-bad", "1") == 0
    assert len(rows_of(tmp_path / "out.jsonl")) == layout.rows - 1


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_help_of_every_tool_shows_an_example(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_tool(tool, ["--help"])
    assert end.value.code == 0 and f"python -m data_prep.{tool} " in capsys.readouterr().out


def test_the_list_names_every_module(capsys: pytest.CaptureFixture[str]) -> None:
    from data_prep.__main__ import main

    assert main() == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in (*SOURCES, *TOOLS))
    folder = Path(__file__).parents[2] / "data_prep"
    runnable = {path.stem for path in folder.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert runnable == {*SOURCES, *TOOLS, "__main__"}
