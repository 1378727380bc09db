"""LongAlpaca-12k: instruction and answer as a text row, named by their digest."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.command_line import run_source
from longvid_train.data.manifest import Sample, Turn, read_manifest

RECORDS: list[dict[str, Any]] = [
    {"instruction": "Below is a paper. " + "word " * 100 + "\nWhat is it about?", "output": "It is about words."},
    {"instruction": "Add the numbers.", "input": "1 and 2", "output": "3", "file": "short.txt"},
    {"instruction": "Add the numbers.", "input": "", "output": "Which ones?\n"},
]


def write(folder: Path, records: Any) -> Path:
    path = folder / "LongAlpaca-12k.json"
    path.write_text(json.dumps(records, indent=1))
    return path


def prepare(folder: Path, records: Any, *words: str) -> tuple[int, Path]:
    out = folder / "manifest.jsonl"
    status = run_source("longalpaca", ["--annotations", str(write(folder, records)), "--out", str(out), *words])
    return status, out


def rows(path: Path) -> list[Sample]:
    return list(read_manifest(path))


def test_records_become_text_rows(tmp_path: Path) -> None:
    status, out = prepare(tmp_path, RECORDS)
    assert status == 0
    made = rows(out)
    assert made[0].conversation == (
        Turn("user", RECORDS[0]["instruction"]),
        Turn("assistant", "It is about words."),
    )
    assert made[1].conversation == (Turn("user", "Add the numbers.\n\n1 and 2"), Turn("assistant", "3"))
    assert made[1].meta == {"characters": len("Add the numbers.\n\n1 and 2") + 1, "file": "short.txt"}
    assert made[2].conversation == (Turn("user", "Add the numbers."), Turn("assistant", "Which ones?"))
    assert all(not row.media and row.license == "CC-BY-NC-4.0" for row in made)


def test_ids_depend_on_the_text_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, first = prepare(tmp_path / "a", RECORDS)
    _, second = prepare(tmp_path / "b", [*reversed(RECORDS), RECORDS[0]])
    ids = [row.id for row in rows(first)]
    assert [row.id for row in rows(second)] == [*reversed(ids), f"{ids[0]}#2"]
    assert len(set(ids)) == 3 and all(row_id.startswith("longalpaca/") for row_id in ids)


def test_short_records_are_dropped_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = prepare(tmp_path, RECORDS, "--min-characters", "100", "--json")
    assert len(rows(out)) == 1
    assert json.loads(capsys.readouterr().out)["dropped"] == {"shorter than --min-characters": 2}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "a"}, "field 'output' is missing"),
        ({"instruction": "a", "output": " "}, "field 'output' is not text"),
        ({"instruction": "a", "output": "b", "input": 3}, "field 'input' is not text"),
        ({"instruction": "a", "output": "b", "system": "c"}, "unknown field 'system'"),
        (["a"], "not a JSON object"),
    ],
)
def test_broken_records_are_named_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: Any, message: str
) -> None:
    status, out = prepare(tmp_path, [RECORDS[2], record])
    told = capsys.readouterr().err
    assert status == 2 and not out.exists()
    assert message in told and "LongAlpaca-12k.json:7" in told
    status, out = prepare(tmp_path, [RECORDS[2], record], "--skip-bad", "1")
    assert status == 0 and len(rows(out)) == 1
