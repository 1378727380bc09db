"""Requests in lmms-eval's forms are asked as conversations are; lmms-eval itself is not needed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvid_train.errors import UserError
from longvid_train.evaluation.harness.asking import HarnessAsker, with_generation
from longvid_train.evaluation.harness.requests import HarnessRequest, VideoPart, chat_request, simple_request
from longvid_train.evaluation.harness.tasks import video_qa
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.generate.chat import ImageRequest, VideoRequest
from longvid_train.generate.media import ReadOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.video import UniformFrames
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import write_clip, write_picture

READ = ReadOptions(isolated=False)
FEW = GenerationOptions(max_new_tokens=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    save_tiny_backbone(folder / "model")
    write_clip(folder / "a.mp4", seed=1)
    write_clip(folder / "b.mp4", seconds=4, seed=2)
    write_picture(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def asker(folder: Path) -> HarnessAsker:
    return HarnessAsker(
        EvaluationSettings(model=str(folder / "model"), frames=4, batch_size=2, device="cpu", isolated=False)
    )


def test_batches_of_requests_are_the_conversations_answers_in_order(asker: HarnessAsker, folder: Path) -> None:
    a, b = str(folder / "a.mp4"), str(folder / "b.mp4")
    wanted = [(a, "What?", {}), (b, "Who is it?", {}), (b, "What!", {}), (a, "What?", {"start_s": 2.0, "end_s": 6.0})]
    requests = [
        HarnessRequest((VideoPart(path, window.get("start_s", 0.0), window.get("end_s")),), text)
        for path, text, window in wanted
    ]
    found = asker.answer(requests, {"max_new_tokens": 5, "temperature": 0, "until": ["\n\n"]})
    for answer, (path, text, window) in zip(found, wanted, strict=True):
        talk = asker.chat.open([VideoRequest(path, UniformFrames(count=4, **window))], read=READ)  # type: ignore[arg-type]
        assert answer.answer == talk.ask(text, FEW).answer
    assert len({answer.answer for answer in found}) > 1
    assert [answer.frames for answer in found] == [4] * 4


def test_a_picture_in_memory_is_the_picture_of_the_file(asker: HarnessAsker, folder: Path) -> None:
    with Image.open(folder / "picture.png") as picture:
        (answer,) = asker.answer([simple_request("<image>\nWhat?", [picture])], {"max_new_tokens": 5})
    talk = asker.chat.open([ImageRequest(folder / "picture.png")], read=READ)
    assert answer.answer == talk.ask("What?", FEW).answer


def test_forms_of_requests() -> None:
    picture = Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    assert simple_request("<video>\nWhat?", ["a.mp4"]) == HarnessRequest((VideoPart("a.mp4"),), "What?")
    assert simple_request("Only words", None) == HarnessRequest((), "Only words")
    content = [
        {"type": "video", "url": "a.mp4", "start_time": 2.0, "end_time": None},
        {"type": "image", "url": picture},
        {"type": "text", "text": "What?"},
    ]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    asked = chat_request([system, {"role": "user", "content": content}])
    assert asked == HarnessRequest((VideoPart("a.mp4", 2.0), picture), "Be brief.\nWhat?")


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "What?"}]}
    with pytest.raises(UserError, match=r"messages of \['user', 'assistant', 'user'\]"):
        chat_request([user, {"role": "assistant", "content": []}, user])
    with pytest.raises(UserError, match="sends audio"):
        chat_request([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}])
    with pytest.raises(UserError, match="shows a dict"):
        simple_request("What?", [{"array": []}])
    with pytest.raises(UserError, match="no model is named"):
        HarnessAsker(EvaluationSettings())


def test_generation_settings_of_tasks() -> None:
    base = EvaluationSettings(max_new_tokens=32)
    greedy = with_generation(base, {"max_new_tokens": 64, "temperature": 0.7, "do_sample": False, "top_p": 0.9})
    assert (greedy.max_new_tokens, greedy.temperature, greedy.top_p) == (64, 0.0, 1.0)
    drawn = with_generation(base, {"temperature": 0.7, "top_p": 0.9, "num_beams": None})
    assert (drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.num_beams) == (32, 0.7, 0.9, 1)
    assert with_generation(base, {"temperature": None, "do_sample": True}).temperature == 0.0


def test_rows_of_a_manifest_as_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    doc = {
        "id": "msvd_qa/test/1",
        "media": [{"type": "video", "path": "videos/vid1.avi"}],
        "conversation": [{"role": "user", "text": "<video>\nWho runs?"}, {"role": "assistant", "text": "dog"}],
    }
    assert video_qa.doc_to_visual(doc) == ["data/msvd/videos/vid1.avi"]
    monkeypatch.setenv("LONGVID_MSVD_QA", "/data")
    assert video_qa.doc_to_visual(doc) == ["/data/videos/vid1.avi"]
    assert video_qa.doc_to_text(doc, {"post_prompt": "\nBriefly."}) == "Who runs?\nBriefly."
    assert video_qa.process_results(doc, ["A dog."]) == {"exact_match": 1.0, "contains": 1.0}
    assert video_qa.process_results(doc, ["It is a dog"]) == {"exact_match": 0.0, "contains": 1.0}
