"""Scoring a folder again: the run's own tables, of what the run was to ask."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from longvid_train.cli import main
from longvid_train.errors import UserError
from longvid_train.evaluation.local.identity import Asked, open_record
from longvid_train.evaluation.local.predictions import LineLog
from longvid_train.evaluation.local.run import PREDICTIONS_FILE
from longvid_train.evaluation.local.scoring import METRICS_FILE, TABLE_FILE, score_folder
from tests.evaluation.local.test_evaluation_summary import BASE

RED = [
    replace(BASE, id=f"q{number}", place=(0, number, 0), meta={"type": "ab"[number % 2]}, duration_s=40.0 * number)
    for number in range(4)
]
ASKED = Asked(questions=8, limit=None, categories=("type",), duration_edges_s=(60.0, 120.0))


def folder(tmp_path: Path, asked: Asked) -> Path:
    """Four answers of a run that was ended then."""
    tmp_path.mkdir(exist_ok=True)
    open_record(tmp_path, {"model": "m"}, asked, {"command": "longvid evaluate"})
    LineLog(tmp_path / PREDICTIONS_FILE).append(RED)
    return tmp_path


def tables(out: Path) -> list[str]:
    return list(json.loads((out / METRICS_FILE).read_text())["by"])


def test_half_a_run_is_not_said_to_be_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder(tmp_path / "out", ASKED)
    assert main(["evaluate", "--rescore", str(out)]) == 0
    assert "4 of 8 questions answered" in capsys.readouterr().out
    assert "4 of 8 questions answered" in (out / TABLE_FILE).read_text()
    assert tables(out) == ["type", "video length"]


@pytest.mark.parametrize(
    ("config", "words", "found"),
    [
        ("max_new_tokens: 8\n", [], ["type", "video length"]),
        ("categories: [kind]\n", [], ["kind", "video length"]),
        ("duration_edges_s: []\n", [], ["type"]),
        ("{}\n", ["--category", "kind"], ["kind", "video length"]),
    ],
)
def test_tables_of_the_run_stay_unless_others_are_asked_for(
    tmp_path: Path, config: str, words: list[str], found: list[str]
) -> None:
    out = folder(tmp_path / "out", ASKED)
    (tmp_path / "judge.yaml").write_text(config)
    assert main(["evaluate", "--config", str(tmp_path / "judge.yaml"), "--rescore", str(out), *words]) == 0
    assert tables(out) == found


def test_answers_beyond_the_limit_of_the_last_start_are_in_no_score(tmp_path: Path) -> None:
    out = folder(tmp_path, replace(ASKED, questions=2, limit=2))
    summary = score_folder(out)
    assert (summary.answered, summary.questions) == (2, 2)
    assert summary.overall is not None and summary.overall.score.n == 2


def test_a_record_without_what_was_asked_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, ASKED) / "evaluation.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "asked": {**record["asked"], "questions": "8"}}))
    with pytest.raises(UserError, match=r"evaluation\.json: field 'questions' is '8'; it must be int"):
        score_folder(tmp_path)
