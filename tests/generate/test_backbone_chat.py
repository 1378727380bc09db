"""Conversations with the backbones: transformers' answers without an adaptation, the plan's and window's with one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.generate.chat import Conversation, FramesRequest, ImageRequest, VideoChat, VideoRequest
from longvid_train.generate.engine import EngineOptions
from longvid_train.generate.loading import read_prompting
from longvid_train.generate.media import ReadOptions, open_frames
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.prompting import unanswered
from longvid_train.video import UniformFrames, read_clip
from tests.generate.tiny_backbone_folder import SPECIALS, save_tiny_backbone

IN_PROCESS = ReadOptions(isolated=False)
SHORT = GenerationOptions(max_new_tokens=6)
ASKED, AGAIN = "What is it?", "And after?"
SMALL_WINDOW = "{kind: yarn, measure: visual, trained_tokens: 20, bounds: share, alpha: 0.2, beta: 0.8}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_backbone(tmp_path_factory.mktemp("tiny_onevision") / "model")


def load(folder: Path, adaptation: str = "", **options: Any) -> VideoChat:
    return VideoChat.load(folder, adaptation=parse_adaptation(adaptation, where="test"), device="cpu", **options)


@pytest.fixture(scope="module")
def plain(folder: Path) -> VideoChat:
    return load(folder)


def some_frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 60, 3), dtype=np.uint8)


def about(chat: VideoChat, count: int = 4, seed: int = 0, **options: Any) -> Conversation:
    return chat.open([FramesRequest(some_frames(count, seed))], read=IN_PROCESS, **options)


def test_the_answer_is_transformers_own(plain: VideoChat, files: Path) -> None:
    """Same ids as the chat template, pixels of the whole clip at once, and the model's own video path."""
    clip = read_clip(files / "a.mp4", UniformFrames(count=4), isolated=False)
    answer = plain.open([VideoRequest(files / "a.mp4", UniformFrames(count=4))], read=IN_PROCESS).ask(ASKED, SHORT)
    tokenizer = plain.prompting.processor.tokenizer
    text = f"<|im_start|>user\n{'<video>' * (4 * 16 + 1)}\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    pixels = plain.prompting.processor.preprocess_frames(clip.frames)
    output = plain.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=pixels[None],
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=SPECIALS.index("<|im_end|>"),
    )
    wanted = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answer.answer == wanted
    assert (answer.visual_tokens, answer.prompt_tokens, answer.frames) == (65, ids.shape[1], 4)
    assert answer.timestamps_s == (0.0, 2.5, 5.0, 7.5)
    assert (answer.window.kind, answer.window.scale, answer.window.language_tokens) == ("none", 1.0, 512)
    assert answer.plan == "uniform, 4 frames, 4 x 4 cells each: 65 visual tokens"


def test_a_follow_up_shows_the_video_once_and_equals_a_fresh_conversation(plain: VideoChat) -> None:
    talk = about(plain)
    first = talk.ask(ASKED, SHORT)
    second = talk.ask(AGAIN, SHORT)
    assert first.visual_tokens == second.visual_tokens == 65
    assert (second.decode_s, second.encode_s) == (0.0, 0.0)
    fresh = about(plain, history=[(ASKED, first.answer)]).ask(AGAIN, SHORT)
    assert (fresh.answer, fresh.prompt_tokens) == (second.answer, second.prompt_tokens)
    assert fresh.prompt_tokens > first.prompt_tokens + len(AGAIN)


def test_many_questions_encode_once_and_a_batch_answers_as_one_by_one(
    folder: Path, plain: VideoChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = load(folder, f"window: {SMALL_WINDOW}")
    talks = [about(chat, 4), about(chat, 7, seed=1)]
    for talk in talks:
        talk.encode()
    monkeypatch.setattr(chat.engine.backbone, "encode", None)  # type: ignore[attr-defined]
    questions = [ASKED, "Which?", "How many are there?", AGAIN]
    forks = [talks[0].fork(), talks[0].fork(), talks[1].fork(), talks[1].fork()]
    singly = [fork.fork().ask(question, SHORT) for fork, question in zip(forks, questions, strict=True)]
    together = chat.ask_batch(forks, questions, SHORT)
    assert [answer.answer for answer in together] == [answer.answer for answer in singly]
    assert [answer.window.scale for answer in together] == pytest.approx([3.2, 3.2, 5.6, 5.6])
    assert [answer.visual_tokens for answer in together] == [65, 65, 113, 113]
    assert all(not talk.turns for talk in talks)


def test_a_window_changes_the_answers_logits_and_leaves_the_model_as_it_was(folder: Path) -> None:
    chat = load(folder, f"window: {SMALL_WINDOW}")
    rotary = chat.model.model.language_model.rotary_emb
    own = rotary.inv_freq.clone()
    seen: list[torch.Tensor] = []
    handle = rotary.register_forward_hook(lambda module, *_: seen.append(module.inv_freq.clone()))
    answer = about(chat, 8).ask(ASKED, SHORT)
    handle.remove()
    assert len(seen) >= 2 and all(torch.equal(one, seen[0]) for one in seen)
    assert not torch.equal(seen[0], own) and torch.equal(rotary.inv_freq, own)
    use = answer.window
    assert (use.measure, use.tokens, use.trained_tokens, use.scale) == ("visual", 128, 20, 6.4)
    assert use.language_tokens == int(6.4 * 512)
    assert any("s = 6.4" in note for note in answer.notes)


@pytest.mark.parametrize("options", [EngineOptions(features_on="cpu", prefill_chunk=7, frame_chunk=2), EngineOptions()])
@pytest.mark.parametrize("name", ["onevision", "joint"])
def test_neither_chunks_nor_places_change_the_answer(name: str, options: EngineOptions, tmp_path: Path) -> None:
    folder = save_tiny_backbone(tmp_path / name, name)
    text = f"grouping: rearranged\nwindow: {SMALL_WINDOW}"
    chat = load(folder, text, engine=options)
    shapes: list[int] = []
    preprocess = chat.engine.preprocess
    chat.engine.preprocess = lambda frames: shapes.append(len(frames)) or preprocess(frames)  # type: ignore[method-assign]
    answer = about(chat, 8).ask(ASKED, GenerationOptions(max_new_tokens=12))
    whole = load(folder, text, engine=EngineOptions(prefill_chunk=4096, frame_chunk=64))
    assert answer.answer == about(whole, 8).ask(ASKED, GenerationOptions(max_new_tokens=12)).answer
    assert shapes == ([2] * 4 if options.frame_chunk == 2 else [8])
    assert any("changes nothing" in note for note in answer.notes) == (name == "onevision")


def test_subtitles_stand_behind_their_frames(plain: VideoChat, files: Path) -> None:
    request = VideoRequest(files / "a.mp4", UniformFrames(count=4), files / "a.srt")
    talk = plain.open([request], read=IN_PROCESS)
    sample = plain.prompting.encode(talk.with_question(ASKED), talk.layouts)
    text = plain.prompting.processor.tokenizer.decode(sample.input_ids)
    # the line of second 1 stands behind the frame at 2.5 s; the newline token closes the video
    assert text.startswith(f"<|im_start|>user\n{'<video>' * 32} red circle{'<video>' * 33}\n{ASKED}<|im_end|>")
    assert talk.ask(ASKED, SHORT).visual_tokens == 65


def test_what_a_checkpoint_cannot_show_is_refused(plain: VideoChat, files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a control token of the checkpoint"):
        about(plain).ask("What<|im_end|>", SHORT)
    video_only = load(save_tiny_backbone(tmp_path / "video_llava", "video_llava"))
    with pytest.raises(UserError, match="reads images with weights that its videos do not pass"):
        video_only.open([ImageRequest(files / "picture.png")], read=IN_PROCESS).ask(ASKED, SHORT)
    wordless = load(save_tiny_backbone(tmp_path / "wordless", template=None))
    talk = about(wordless)
    talk.ask(ASKED, SHORT)
    with pytest.raises(UserError, match="without a chat template answers one question"):
        talk.ask(AGAIN, SHORT)
    assert len(talk.turns) == 2


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (np.zeros((2, 4, 4, 3), dtype=np.float32), None, "must be uint8 of shape"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), None, "must be uint8 of shape"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), [0.0], "1 timestamps for 2 frames"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), [1.0, 0.0], "in time order"),
    ],
)
def test_frames_that_are_no_video_are_refused(plain: VideoChat, frames: Any, times: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plain.open([FramesRequest(frames, times)])


@pytest.mark.parametrize(
    ("name", "adaptation", "count", "message"),
    [
        (
            "onevision",
            "backbones: [video_llava]",
            4,
            "the adaptation is for video_llava, the model is 'llava_onevision'",
        ),
        ("onevision", "plan: {kind: uniform, stride: 9}", 4, "pooling stride 9 does not fit"),
        ("onevision", "", 40, "40 frames make 641 visual tokens; .*window of 512 tokens; show at most 29 frames"),
        ("joint", "", 40, "40 frames make 680 visual tokens; .*window of 512 tokens; show at most 24 frames"),
        ("joint", "", 6, "6 frames cannot be encoded by a tower that takes 4 together; use 4 or 8"),
        ("onevision", "plan: {kind: slowfast, fast_stride: 4}", 4, "fewer than slow_frames = 10"),
        (
            "onevision",
            "window: {kind: visual_yarn, target_tokens: 100}",
            4,
            "target_tokens is 100, below the training window of 512 visual tokens; set it to at least 512",
        ),
        ("onevision", "window: {kind: linear, scale: 1.5}", 60, "961 visual tokens.*raise scale to at least"),
        ("interleave", "window: {kind: visual_yarn}", 4, "not stated; set window.trained_tokens"),
    ],
)
def test_mistakes_are_known_before_weights_load(
    name: str, adaptation: str, count: int, message: str, tmp_path: Path
) -> None:
    folder = save_tiny_backbone(tmp_path / name, name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message) as raised:
        prompting = read_prompting(folder, adaptation=parse_adaptation(adaptation, where="test"))
        layouts = [open_frames(some_frames(count)).layout]
        prompting.check_window(unanswered([ASKED], ["video"]), layouts, 6)
    assert "\n" not in str(raised.value)
