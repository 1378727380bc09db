"""Shards are disjoint, complete and stable; merging verifies what receipts say; sampling."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.command_line import run_source, run_tool
from data_prep.counts import Counts
from data_prep.merge import merge
from data_prep.preparation import RunOptions, prepare
from data_prep.reading.item import Item
from data_prep.sample import draw
from data_prep.shard import Shard, key_hash
from data_prep.source import Origin
from longvid_train.data.manifest import Sample, Turn, write_manifest
from longvid_train.errors import UserError


@dataclass(frozen=True)
class Texts:
    """Text rows with the given keys."""

    keys: tuple[str, ...]
    origin: Origin = field(default_factory=lambda: Origin("texts", "CC0-1.0", "1"))

    def inputs(self) -> tuple[()]:
        return ()

    def settings(self) -> dict[str, Any]:
        return {"keys": len(self.keys)}

    def read(self) -> Any:
        return (Item(file="texts", line=at, value=(at, key)) for at, key in enumerate(self.keys, start=1))

    def key(self, value: Any) -> str:
        return str(value[1])

    def convert(self, value: Any, row_id: str) -> list[Sample]:
        turns = (Turn("user", str(value[0])), Turn("assistant", "a"))
        return [Sample(id=row_id, conversation=turns)]


keys = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3), max_size=40)


@given(keys, st.integers(1, 7))
def test_every_key_is_in_exactly_one_shard(made: list[str], count: int) -> None:
    for key in made:
        assert sum(Shard(index, count).holds(key) for index in range(1, count + 1)) == 1


def test_shards_are_the_same_on_every_machine_and_about_even() -> None:
    assert key_hash("v_k_ZXmr8pmrs") == 0x811DAE0F808CF17E
    sizes = [sum(Shard(index, 8).holds(str(key)) for key in range(8000)) for index in range(1, 9)]
    assert sum(sizes) == 8000 and all(880 < size < 1120 for size in sizes)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/2", ""])
def test_shards_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be I/N with 1 <= I <= N"):
        Shard.parse(text)


def test_shard_option_tells_the_rule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        run_source("sharegpt", ["--annotations", __file__, "--out", str(tmp_path / "o.jsonl"), "--shard", "5/4"]) == 2
    )
    assert "--shard 5/4 must be I/N with 1 <= I <= N" in capsys.readouterr().err


def prepared(source: Texts, folder: Path, count: int, name: str = "part") -> list[Path]:
    out = folder / f"{name}.jsonl"
    return [prepare(source, RunOptions(out=out, shard=Shard(i, count))).manifest for i in range(1, count + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_repeated_keys_are_numbered_alike_in_every_shard(tmp_path: Path, seed: int) -> None:
    made = tuple(str((at * 7 + seed) % 11) for at in range(60))
    source = Texts(made)
    whole = prepare(source, RunOptions(out=tmp_path / "whole.jsonl")).manifest
    merge(prepared(source, tmp_path, 3 + seed), tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == whole.read_bytes()
    ids = [json.loads(line)["id"] for line in whole.read_text().splitlines()]
    assert len(set(ids)) == 60
    assert f"texts/{made[0]}" in ids and f"texts/{made[0]}#5" in ids


def test_a_shard_without_records_is_fine_but_a_manifest_without_rows_is_not(tmp_path: Path) -> None:
    parts = prepared(Texts(("one",)), tmp_path, 4)
    assert sorted(part.stat().st_size > 0 for part in parts) == [False, False, False, True]
    assert merge(parts, tmp_path / "merged.jsonl").counts.rows == 1
    with pytest.raises(UserError, match=r"no row is left of 0 records; the source is empty"):
        prepare(Texts(()), RunOptions(out=tmp_path / "empty.jsonl"))
    assert not (tmp_path / "empty.jsonl").exists()


def edit_receipt(manifest: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = manifest.with_name(f"{manifest.stem}.receipt.json")
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_merge_refuses_what_is_not_whole(tmp_path: Path) -> None:
    parts = prepared(Texts(tuple(map(str, range(30)))), tmp_path, 3)
    out = tmp_path / "merged.jsonl"
    with pytest.raises(UserError, match="the shards given are 1/3, 3/3; give each of 1/3 to 3/3 once"):
        merge([parts[0], parts[2]], out)
    with pytest.raises(UserError, match="the shards given are 1/3, 1/3, 2/3, 3/3"):
        merge([*parts, parts[0]], out)
    other = prepared(Texts(tuple(map(str, range(31)))), tmp_path, 3, "other")
    with pytest.raises(UserError, match="made with another 'settings' than"):
        merge([parts[0], other[1], parts[2]], out)
    edit_receipt(parts[1], lambda receipt: receipt["order"].update(program="0.0.9"))
    with pytest.raises(UserError, match="made with another 'program' than"):
        merge(parts, out)
    assert not out.exists()


def test_merge_refuses_changed_files_and_counts_that_do_not_add_up(tmp_path: Path) -> None:
    parts = prepared(Texts(tuple(map(str, range(30)))), tmp_path, 3)
    out = tmp_path / "merged.jsonl"
    original = parts[1].read_bytes()
    parts[1].write_bytes(original.replace(b'"a"', b'"b"', 1))
    with pytest.raises(UserError, match=r"part\.shard-2-of-3\.jsonl: changed since it was written"):
        merge(parts, out)
    parts[1].write_bytes(original)
    edit_receipt(parts[1], lambda receipt: receipt["counts"].update(read=receipt["counts"]["read"] - 1))
    with pytest.raises(UserError, match="the shards read 29 records but the source has 30"):
        merge(parts, out)
    parts[2].with_name("part.shard-3-of-3.receipt.json").unlink()
    with pytest.raises(UserError, match=r"no receipt .* beside it; the shard is not finished"):
        merge(parts, out)
    assert not out.exists()


def test_merge_finds_an_id_that_stands_in_two_shards(tmp_path: Path) -> None:
    import hashlib

    parts = prepared(Texts(tuple(map(str, range(8)))), tmp_path, 2)
    first = json.loads(parts[0].read_text().splitlines()[0])["id"]
    lines = parts[1].read_text().splitlines()
    second = json.loads(lines[0])["id"]
    parts[1].write_text(parts[1].read_text().replace(f'"{second}"', f'"{first}"'))
    raw = parts[1].read_bytes()
    facts = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    edit_receipt(parts[1], lambda receipt: receipt["files"].update(jsonl=facts))
    with pytest.raises(UserError, match=f"id '{first}' stands in two places"):
        merge(parts, tmp_path / "merged.jsonl")
    assert not (tmp_path / "merged.jsonl").exists()


def test_merge_keeps_media_paths_true_and_an_old_manifest_whole(tmp_path: Path) -> None:
    parts = prepared(Texts(tuple(map(str, range(9)))), tmp_path, 2)
    with pytest.raises(UserError, match=r"must be in the folder of .*part\.shard-1-of-2"):
        merge(parts, tmp_path / "other" / "merged.jsonl")
    out = tmp_path / "merged.jsonl"
    merge(parts, out)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("merged.*")}
    assert set(before) == {"merged.jsonl", "merged.receipt.json", "merged.left_out.jsonl"}
    parts[0].write_bytes(b"")
    with pytest.raises(UserError, match="changed since it was written"):
        merge(parts, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("merged.*")} == before


def test_merging_shards_without_a_single_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the shards has a row"):
        merge(prepared(Texts(()), tmp_path, 2), tmp_path / "merged.jsonl")


def test_merge_command_joins_and_keeps_an_existing_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [str(part) for part in prepared(Texts(tuple(map(str, range(9)))), tmp_path, 2)]
    out = tmp_path / "merged.jsonl"
    assert run_tool("merge", [*parts, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 9
    assert run_tool("merge", [*parts, "--out", str(out)]) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert run_tool("merge", [*parts, "--out", str(out), "--overwrite"]) == 0


@given(st.lists(st.tuples(st.sampled_from(["dropped", "missing", "bad"]), st.sampled_from("xyz")), max_size=20))
def test_counts_add_up_and_survive_json(outcomes: list[tuple[str, str]]) -> None:
    parts = [Counts(), Counts()]
    for at, (kind, reason) in enumerate(outcomes):
        parts[at % 2].leave_out(kind, reason)
        parts[0].keep(2)
    total = parts[0] + parts[1]
    assert total.consistent and total.read == 2 * len(outcomes) and total.rows == 2 * len(outcomes)
    assert Counts.from_json(json.loads(json.dumps(total.as_json()))) == total
    assert sum(total.total(kind) for kind in total.left_out) == len(outcomes)


def manifest_of(path: Path, names: list[str]) -> Path:
    turns = (Turn("user", "q"), Turn("assistant", "a"))
    write_manifest([Sample(id=name, conversation=turns) for name in names], path)
    return path


def drawn(manifest: Path, rows: int, seed: int) -> list[str]:
    out = manifest.with_name("drawn.jsonl")
    draw(manifest, out, rows, seed)
    return [json.loads(line)["id"] for line in out.read_text().splitlines()]


def test_sample_is_the_same_for_a_seed_in_any_order_and_nested(tmp_path: Path) -> None:
    names = [f"row{number}" for number in range(200)]
    manifest = manifest_of(tmp_path / "m.jsonl", names)
    some = drawn(manifest, 50, 0)
    assert len(some) == 50 and some == [name for name in names if name in set(some)]
    assert set(drawn(manifest, 20, 0)) < set(some)
    assert set(drawn(manifest, 50, 1)) != set(some)
    backwards = manifest_of(tmp_path / "b.jsonl", names[::-1])
    assert drawn(backwards, 50, 0) == some[::-1]


def test_every_row_is_as_likely_to_be_drawn(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "m.jsonl", [f"row{number}" for number in range(20)])
    times = dict.fromkeys((f"row{number}" for number in range(20)), 0)
    for seed in range(160):
        for name in drawn(manifest, 5, seed):
            times[name] += 1
    assert sum(times.values()) == 800 and all(18 < count < 66 for count in times.values())


def test_sample_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(tmp_path / "m.jsonl", ["a", "b"])
    out = tmp_path / "s.jsonl"
    assert run_tool("sample", [str(manifest), "--rows", "3", "--out", str(out)]) == 2
    assert "has only 2" in capsys.readouterr().err
    assert run_tool("sample", [str(manifest), "--rows", "1", "--out", str(tmp_path / "sub" / "s.jsonl")]) == 2
    assert "must be in the folder of" in capsys.readouterr().err
    manifest.write_text('{"id": "a"}\n')
    assert run_tool("sample", [str(manifest), "--rows", "1", "--out", str(out)]) == 2
    assert "m.jsonl:1: field 'conversation' is missing" in capsys.readouterr().err
    assert not out.exists()
