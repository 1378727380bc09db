"""What the YAML files of this folder call: rows of a data_prep manifest as lmms-eval's documents."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvid_train.evaluation.local.open_answer import contains, matches

FOLDERS = {"msvd_qa": "data/msvd", "msrvtt_qa": "data/msrvtt"}
"""Where the manifests lie; the variables ``LONGVID_MSVD_QA`` and ``LONGVID_MSRVTT_QA`` name other folders of media."""


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """Paths of the row's videos."""
    source = str(doc["id"]).partition("/")[0]
    folder = Path(os.environ.get(f"LONGVID_{source.upper()}", FOLDERS.get(source, ".")))
    return [str(folder / medium["path"]) for medium in doc["media"]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question, with the task's words in front and behind."""
    around = lmms_eval_specific_kwargs or {}
    question = str(doc["conversation"][0]["text"]).removeprefix("<video>\n")
    return f"{around.get('pre_prompt', '')}{question}{around.get('post_prompt', '')}"


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The right answer."""
    return str(doc["conversation"][1]["text"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Both scores of one answer, as ``longvid evaluate`` counts them."""
    truth = doc_to_target(doc)
    return {"exact_match": float(matches(results[0], truth)), "contains": float(contains(results[0], truth))}
