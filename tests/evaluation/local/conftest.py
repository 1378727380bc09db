"""A tiny random model, three real clips and a manifest with every shape of row."""

import json
from pathlib import Path
from typing import Any

import pytest

from longvid_train.evaluation.local.settings import EvaluationSettings
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import write_clip

OPTIONS = ["a dog", "a cat", "a red car"]


def row(number: int, video: str, text: str, answer: str | None, **meta: Any) -> dict[str, Any]:
    conversation = [{"role": "user", "text": f"<video>\n{text}"}]
    if answer is not None:
        conversation.append({"role": "assistant", "text": answer})
    media = [{"type": "video", "path": f"{video}.mp4"}]
    return {"id": f"q{number}", "media": media, "conversation": conversation, "meta": meta}


def rows() -> list[dict[str, Any]]:
    listed = "\n".join(f"{'ABC'[number]}. {option}" for number, option in enumerate(OPTIONS))
    choice = {"kind": "multiple_choice", "options": OPTIONS, "task_type": "action"}
    several = row(5, "c", "What is first?", "red", kind=["needle", "order"])
    several["meta"]["answer"] = ["red", "blue"]
    several["conversation"] += [{"role": "user", "text": "And then?"}, {"role": "assistant", "text": "blue"}]
    part = row(6, "a", "What is in this part?", "green", kind="open", task_type="object")
    part["media"][0] |= {"start_s": 2.0, "end_s": 6.0}
    return [
        row(0, "a", "What is it?", "red", kind="open", task_type="object"),
        row(1, "b", "What is it?", "blue", kind="open", task_type="object"),
        row(2, "a", f"What runs?\n{listed}", "B", **choice),
        row(3, "b", "Who is it?", None, kind="open"),
        row(4, "c", "What is it?", "two", kind="open", task_type="object"),
        several,
        part,
    ]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_backbone(tmp_path_factory.mktemp("evaluated") / "model")


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """``set/manifest.jsonl`` with ``a.mp4`` (8 s), ``b.mp4`` (4 s) and ``c.mp4`` (8 s)."""
    folder = tmp_path / "set"
    folder.mkdir()
    for seed, (name, seconds) in enumerate({"a": 8, "b": 4, "c": 8}.items()):
        write_clip(folder / f"{name}.mp4", seconds=seconds, seed=seed)
    write_rows(folder, rows())
    return folder


def write_rows(folder: Path, given: list[dict[str, Any]]) -> Path:
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(one) + "\n" for one in given))
    return manifest


@pytest.fixture
def settings(benchmark: Path, tiny_model: Path) -> EvaluationSettings:
    return EvaluationSettings(
        manifests=(str(benchmark / "manifest.jsonl"),),
        model=str(tiny_model),
        frames=4,
        max_new_tokens=4,
        isolated=False,
        device="cpu",
    )
