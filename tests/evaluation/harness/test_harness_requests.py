"""Requests in lmms-eval's forms are asked as conversations are; lmms-eval itself is not needed."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longvid_train.errors import UserError
from longvid_train.evaluation.harness import asking
from longvid_train.evaluation.harness.arguments import TAKEN, settings_of_arguments
from longvid_train.evaluation.harness.asking import HarnessAsker, with_generation
from longvid_train.evaluation.harness.requests import HarnessRequest, VideoPart, chat_request, simple_request
from longvid_train.evaluation.harness.tasks import video_qa
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.generate.chat import ImageRequest, VideoRequest
from longvid_train.generate.media import Medium, ReadOptions
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
    found = list(asker.answer(requests, {"max_new_tokens": 5, "temperature": 0, "until": ["\n\n"]}))
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


def open_media() -> int:
    return sum(type(one) in (Medium, Image.Image) for one in gc.get_objects())


def test_no_more_than_a_pool_of_requests_is_open_at_once(asker: HarnessAsker, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = open_media(), []

    def benchmark() -> Iterator[HarnessRequest]:
        for number in range(10):
            opened.append(open_media() - before)
            picture = Image.fromarray(np.full((8, 8, 3), 25 * number, np.uint8))
            yield HarnessRequest((picture,), ("What?", "Who is it?", "Is it red?!")[number % 3])
            del picture

    def answers() -> list[str]:
        opened.clear()
        return [answer.answer for answer in asker.answer(benchmark(), {"max_new_tokens": 3})]

    monkeypatch.setattr(asking, "POOL_BATCHES", 2)  # of 2 requests each
    pooled = answers()
    assert opened == [0, 2, 3, 4] * 2 + [0, 2]  # the pixels of a pool, and the picture opened last
    monkeypatch.setattr(asking, "POOL_BATCHES", 5)
    assert answers() == pooled and opened[-1] == 10
    assert len(set(pooled)) > 1


@pytest.mark.parametrize(("cached_videos", "encoded"), [(4, ["a", "b", "a"]), (1, ["a", "b", "a", "a"])])
def test_questions_about_a_video_share_its_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cached_videos: int, encoded: list[str]
) -> None:
    words = {"model": str(folder / "model"), "frames": 4, "device": "cpu", "isolated": False}
    asker = HarnessAsker(settings_of_arguments({**words, "cached_videos": cached_videos}))
    seen: list[str] = []
    encode = asking.Conversation.encode

    def noted(talk: asking.Conversation) -> Any:
        if talk.encoded is None:
            seen.append(Path(talk.media[0].path).stem)
        return encode(talk)

    monkeypatch.setattr(asking.Conversation, "encode", noted)
    a, b = str(folder / "a.mp4"), str(folder / "b.mp4")
    asked = [(a, "What?"), (a, "Who is it?"), (b, "What?"), (a, "Where?")]
    requests = [HarnessRequest((VideoPart(path),), text) for path, text in asked]
    requests.append(HarnessRequest((VideoPart(a, 2.0, 6.0),), "What?"))
    found = [answer.answer for answer in asker.answer(requests, {"max_new_tokens": 5})]
    assert seen == encoded
    for number, window in ((0, {}), (3, {}), (4, {"start_s": 2.0, "end_s": 6.0})):
        talk = asker.chat.open([VideoRequest(a, UniformFrames(count=4, **window))], read=READ)  # type: ignore[arg-type]
        assert found[number] == talk.ask(requests[number].text, FEW).answer


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


def test_arguments_of_a_model() -> None:
    given = {"pretrained": "folder", "fps": 2, "isolated": False, "max_batch_size": 8, "device": None}
    settings = settings_of_arguments({**given, "batch_size": "4"})
    assert settings == EvaluationSettings(
        model="folder", fps=2.0, isolated=False, batch_size=4, max_new_tokens=1024, device="auto"
    )
    assert settings_of_arguments({"model": "folder", "batch_size": 1, "max_new_tokens": 64}).max_new_tokens == 64


def test_tasks_that_name_no_length_get_that_of_lmms_eval() -> None:
    silent = {"until": ["\n\n"], "do_sample": False}  # what lmms-eval passes for video_dc499 and the tasks of VDC
    assert with_generation(settings_of_arguments({"model": "folder"}), silent).max_new_tokens == 1024
    assert with_generation(settings_of_arguments({"max_new_tokens": 64}), silent).max_new_tokens == 64
    assert with_generation(settings_of_arguments({}), {**silent, "max_new_tokens": 16}).max_new_tokens == 16


@pytest.mark.parametrize("word", ["auto", "auto:4", "0", "-1", "2.5"])
def test_a_batch_size_that_is_no_number_is_refused(word: str) -> None:
    with pytest.raises(UserError) as refused:
        settings_of_arguments({"model": "folder", "batch_size": word})
    assert str(refused.value) == (
        f"--batch_size is '{word}'; it must be a whole number of at least 1, for no size is searched: "
        "give e.g. --batch_size 4"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": "all"}, "model_args: frames is 'all'; it must be a whole number or null"),
        ({"isolated": "no"}, "model_args: isolated is 'no'; it must be true or false"),
        ({"frames": 0}, "model_args: frames is 0; it must be at least 1"),
        ({"frame": 8}, f"model_args: 'frame' is unknown; did you mean 'frames'? Keys: {', '.join(TAKEN)}"),
        ({"judge": "a"}, f"model_args: 'judge' is unknown. Keys: {', '.join(TAKEN)}"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        settings_of_arguments({"model": "folder", "batch_size": "2", **given})
    assert str(refused.value) == message
    assert "batch_size" not in TAKEN  # lmms-eval's own keyword; it would collide


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
