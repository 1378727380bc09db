"""Predictions on disk to scores, metrics and tables on disk; no model is needed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from longvid_train.evaluation.local.identity import read_asked
from longvid_train.evaluation.local.predictions import Prediction, read_left_out, read_predictions
from longvid_train.evaluation.local.run import LEFT_OUT_FILE, PREDICTIONS_FILE
from longvid_train.evaluation.local.scores import score_prediction
from longvid_train.evaluation.local.summary import Row, Summary, summarise
from longvid_train.evaluation.local.tables import summary_table
from longvid_train.files import write_json, write_text

SCORES_FILE = "scores.jsonl"
METRICS_FILE = "metrics.json"
TABLE_FILE = "table.md"


def score_folder(
    out: Path,
    *,
    categories: Sequence[str] = (),
    duration_edges_s: Sequence[float] = (),
) -> Summary:
    """Score the predictions of a folder again and write what follows from them.

    Answers to rows beyond the ``limit`` of the last start are in no score.

    Args:
        out: folder of the evaluation.
        categories: see `summarise`.
        duration_edges_s: see `summarise`.

    Raises:
        UserError: there is no record of an evaluation, there are no predictions, or a line is broken; as `summarise`.
    """
    predictions = asked_predictions(out) if _has_some(out) else []
    left_out = read_left_out(out / LEFT_OUT_FILE)
    rows = [Row(prediction=one, score=score_prediction(one)) for one in predictions]
    summary = summarise(
        rows,
        questions=read_asked(out).questions,
        left_out=left_out,
        categories=categories,
        duration_edges_s=duration_edges_s,
    )
    lines = [json.dumps(asdict(row.score), ensure_ascii=False) + "\n" for row in rows]
    write_text(out / SCORES_FILE, "".join(lines))
    write_json(out / METRICS_FILE, summary.values())
    write_text(out / TABLE_FILE, summary_table(summary) + "\n")
    return summary


def asked_predictions(out: Path) -> list[Prediction]:
    """The predictions of the rows that the last start was to ask; earlier ones may have asked more.

    Raises:
        UserError: there is no record of an evaluation, there are no predictions, or a line is broken.
    """
    limit, found = read_asked(out).limit, read_predictions(out / PREDICTIONS_FILE)
    return [one for one in found if limit is None or one.place[1] < limit]


def _has_some(out: Path) -> bool:
    """Whether there are predictions; where every row was left out there is no file of them."""
    return (out / PREDICTIONS_FILE).is_file() or not (out / LEFT_OUT_FILE).is_file()
