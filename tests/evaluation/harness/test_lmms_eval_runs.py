"""The real lmms-eval lists and runs our model on local tasks, offline; skipped where lmms-eval is not installed."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own (docs/evaluation.md)")

from lmms_eval.api.instance import Instance

from longvid_train.evaluation.harness import tasks
from longvid_train.evaluation.harness.model import LongvidSimple
from longvid_train.generate.chat import VideoChat, VideoRequest
from longvid_train.generate.media import ReadOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.video import UniformFrames
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import write_clip

TASK = """\
task: world_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {manifest}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function video_qa.doc_to_visual
doc_to_text: !function video_qa.doc_to_text
doc_to_target: !function video_qa.doc_to_target
process_results: !function video_qa.process_results
generation_kwargs: {{max_new_tokens: 5, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms")
    save_tiny_backbone(folder / "model")
    rows = []
    for number, name in enumerate(("a", "b")):
        write_clip(folder / f"{name}.mp4", seed=number)
        turns = [{"role": "user", "text": "<video>\nWhat is it?"}, {"role": "assistant", "text": "red"}]
        media = [{"type": "video", "path": str(folder / f"{name}.mp4")}]
        rows.append({"id": f"world/{number}", "media": media, "conversation": turns})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    source = Path(tasks.__file__).parent / "video_qa.py"
    (folder / "tasks/video_qa.py").write_text(source.read_text())
    (folder / "tasks/world.yaml").write_text(TASK.format(kind="qa", manifest=folder / "manifest.jsonl"))
    return folder


def lmms_eval(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "lmms_eval", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def samples(folder: Path) -> Sequence[dict[str, Any]]:
    (path,) = folder.rglob("*samples*world_qa.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_a_local_task_gets_our_answers(folder: Path, tmp_path: Path, simple: bool) -> None:
    words = ["--model", "longvid", "--tasks", "world_qa", "--include_path", str(folder / "tasks"), "--batch_size", "2"]
    words += ["--model_args", f"model={folder / 'model'},frames=4,device=cpu,isolated=False"]
    words += ["--log_samples", "--output_path", str(tmp_path), *(["--force_simple"] if simple else [])]
    assert "exact_match" in lmms_eval(folder, *words)
    chat = VideoChat.load(folder / "model", device="cpu")
    for name, sample in zip("ab", sorted(samples(tmp_path), key=lambda one: one["doc_id"]), strict=True):
        request = VideoRequest(folder / f"{name}.mp4", UniformFrames(count=4))
        talk = chat.open([request], read=ReadOptions(isolated=False))
        wanted = talk.ask("What is it?", GenerationOptions(max_new_tokens=5)).answer
        said = sample["filtered_resps"]
        assert (said[0] if isinstance(said, list) else said) == wanted


def test_documents_are_read_as_they_are_asked_and_answers_keep_their_order(folder: Path) -> None:
    """Two groups of generation settings."""
    model = LongvidSimple(model=str(folder / "model"), device="cpu", isolated=False, batch_size="1")
    given: list[ReferenceType[Image.Image]] = []
    alive: list[int] = []

    def visual(document: int) -> list[Image.Image]:
        alive.append(sum(one() is not None for one in given))
        picture = Image.fromarray(np.full((8, 8, 3), 30 * document, np.uint8))
        given.append(ref(picture))
        return [picture]

    def request(number: int) -> Instance:
        generation = {"max_new_tokens": 2 if number < 4 else 3, "do_sample": False}
        arguments = ("What is it?", generation, visual, number, "world", "test")
        metadata = {"task": "world", "doc_id": number, "repeats": 1}
        return Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)

    model.task_dict = {"world": {"test": list(range(8))}}
    found = model.generate_until([request(number) for number in range(8)])
    assert alive == [0] * 8
    assert [one.token_counts.output_tokens for one in found] == [2] * 4 + [3] * 4
    assert [one.text for one in found] == [model.generate_until([request(number)])[0].text for number in range(8)]
    assert len({one.text for one in found[4:]}) > 1


def test_lmms_eval_lists_our_model_in_both_interfaces(folder: Path) -> None:
    """Its registry does; its command ``models`` prints the built-in ones only."""
    asked = (
        "from lmms_eval.models import MODEL_REGISTRY_V2 as registry; print(registry.list_model_names(), "
        "[registry.get_model_class('longvid', force_simple=one).__name__ for one in (False, True)])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=280, cwd=folder)
    assert "'longvid'" in done.stdout and "['LongvidChat', 'LongvidSimple']" in done.stdout, done.stderr[-2000:]


def test_our_tasks_are_found_by_lmms_eval() -> None:
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(Path(tasks.__file__).parent), include_defaults=False)
    assert {"longvid_msvd_qa", "longvid_msrvtt_qa"} <= set(manager.all_tasks)
