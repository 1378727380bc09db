"""Conversations: encoded once, answered as training would have it, batched as one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from longvid_train.data.collate import collate
from longvid_train.data.conversation import ConversationOptions, encode_conversation, encode_prompt
from longvid_train.data.manifest import Media, Turn
from longvid_train.data.media import MediaLoader, MediaOptions
from longvid_train.data.templates import VICUNA_V1
from longvid_train.errors import UserError
from longvid_train.generate import media as media_module
from longvid_train.generate.chat import Conversation, ImageRequest, VideoChat, VideoRequest
from longvid_train.generate.media import ReadOptions, encode_media, media_type
from longvid_train.generate.options import GenerationOptions
from longvid_train.video import DecodeLimits, FramesPerSecond, UniformFrames

IN_PROCESS = ReadOptions(isolated=False)
SHORT = GenerationOptions(max_new_tokens=6)
ASKED, AGAIN = "What is in the video?", "And after that?"


def video(path: Path, count: int = 4, subtitles: Path | None = None) -> VideoRequest:
    return VideoRequest(path, UniformFrames(count=count), subtitles)


def talk_about(chat: VideoChat, *media: Any, **options: Any) -> Conversation:
    return chat.open(media, read=IN_PROCESS, **options)


@pytest.fixture
def tower_calls(chat: VideoChat, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of each run of the tower."""
    calls: list[int] = []
    original = chat.model.vision_tower.encode
    monkeypatch.setattr(chat.model.vision_tower, "encode", lambda pixels: calls.append(len(pixels)) or original(pixels))
    return calls


def test_the_answer_is_that_of_the_data_rooms_batch(chat: VideoChat, files: Path) -> None:
    """Same ids as training up to the answer, same pixels, and transformers' greedy continuation of them."""
    sampling = UniformFrames(count=4)
    loader = MediaLoader(MediaOptions(sampling=sampling), chat.prompting.processor)
    loaded = loader.load(Media(type="video", path="a.mp4", subtitles="a.srt"), files)
    turns = [Turn("user", f"<video>\n{ASKED}"), Turn("assistant", "red")]
    arguments = (turns, [loaded], chat.prompting.processor, VICUNA_V1, ConversationOptions())
    trained = encode_conversation(*arguments, sample_id="row")
    row = encode_prompt(*arguments, sample_id="row")

    talk = talk_about(chat, video(files / "a.mp4", subtitles=files / "a.srt"))
    prompt = chat.prompting.encode(talk.with_question(ASKED), talk.layouts).input_ids
    assert torch.equal(prompt, row.input_ids)
    assert torch.equal(prompt, trained.input_ids[: len(prompt)])
    assert (trained.labels[: len(prompt)] == -100).all()
    assert trained.labels[len(prompt)] != -100

    batch = collate([row], chat.prompting.processor, "left")
    ids = chat.model.generate(
        input_ids=batch["text"]["input_ids"],
        attention_mask=batch["text"]["attention_mask"],
        **batch["visual"],
        max_new_tokens=6,
        do_sample=False,
    )
    wanted = chat.prompting.processor.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip()
    answer = talk.ask(ASKED, SHORT)
    assert answer.answer == wanted
    assert (answer.frames, answer.visual_tokens, answer.prompt_tokens) == (4, 4 * 2, len(prompt))
    assert answer.timestamps_s == (0.0, 2.5, 5.0, 7.5)
    assert answer.media[0].reader == answer.reader == "pyav"


def test_a_follow_up_reuses_the_frames_and_equals_a_fresh_conversation(
    chat: VideoChat, files: Path, tower_calls: list[int]
) -> None:
    talk = talk_about(chat, video(files / "a.mp4"))
    first = talk.ask(ASKED, SHORT)
    assert tower_calls == [3, 1]  # frame_chunk of the tiny model is 3
    second = talk.ask(AGAIN, SHORT)
    assert tower_calls == [3, 1]
    assert (second.decode_s, second.encode_s) == (0.0, 0.0)
    assert second.visual_tokens == 2 * first.visual_tokens  # shown again, with the follow-up's own context tokens
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "user", "assistant"]

    fresh = talk_about(chat, video(files / "a.mp4"), history=[(ASKED, first.answer)])
    again = fresh.ask(AGAIN, SHORT)
    assert tower_calls == [3, 1, 3, 1]
    assert again.answer == second.answer
    assert again.prompt_tokens == second.prompt_tokens
    unrelated = talk_about(chat, video(files / "b.mp4"), history=[(ASKED, first.answer)]).ask(AGAIN, SHORT)
    assert unrelated.answer != second.answer


def test_a_fork_shares_the_frames_and_not_the_turns(chat: VideoChat, files: Path, tower_calls: list[int]) -> None:
    talk = talk_about(chat, video(files / "a.mp4"))
    first = talk.ask(ASKED, SHORT)
    runs = len(tower_calls)
    twin = talk.fork()
    assert twin.ask(AGAIN, SHORT).answer == talk.fork().ask(AGAIN, SHORT).answer
    assert len(talk.turns) == 2
    assert len(twin.turns) == 4
    assert len(tower_calls) == runs
    assert first.frames == 4


def test_a_batch_answers_as_one_by_one(chat: VideoChat, files: Path) -> None:
    media: list[list[Any]] = [
        [video(files / "a.mp4")],
        [ImageRequest(files / "picture.png")],
        [],
        [video(files / "b.mp4", 3), ImageRequest(files / "picture.png")],
    ]
    questions = [ASKED, "Which red square?", "What is green?", AGAIN]
    singly = [talk_about(chat, *shown).ask(question, SHORT) for shown, question in zip(media, questions, strict=True)]
    together = chat.ask_batch([talk_about(chat, *shown) for shown in media], questions, SHORT)
    assert [answer.answer for answer in together] == [answer.answer for answer in singly]
    assert [answer.prompt_tokens for answer in together] == [answer.prompt_tokens for answer in singly]
    assert [answer.new_tokens for answer in together] == [answer.new_tokens for answer in singly]
    assert [answer.visual_tokens for answer in together] == [4 * 2, 1 + 4, 0, 3 * 2 + 5]
    assert [answer.frames for answer in together] == [4, 1, 0, 4]
    assert len({answer.answer for answer in together}) == 4
    assert together[3].reader == "pyav,pillow"


@pytest.mark.parametrize("beams", [1, 2])
def test_the_stream_adds_up_to_the_answer(chat: VideoChat, files: Path, beams: int) -> None:
    pieces: list[str] = []
    options = GenerationOptions(max_new_tokens=24, num_beams=beams)
    answer = talk_about(chat, video(files / "a.mp4")).ask(ASKED, options, on_text=pieces.append)
    assert "".join(pieces) == answer.answer != ""


def test_draws_follow_the_seed_and_leave_the_programs_own(chat: VideoChat, files: Path) -> None:
    talk = talk_about(chat, video(files / "a.mp4"))
    talk.encode()
    before = torch.get_rng_state()
    drawn = [
        talk.fork().ask(ASKED, GenerationOptions(max_new_tokens=12, temperature=1.5, seed=seed)).answer
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_frames_are_encoded_in_pieces_to_the_same_features(
    chat: VideoChat, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = talk_about(chat, VideoRequest(files / "a.mp4", FramesPerSecond(fps=1.0)))
    whole = talk.encode()
    assert whole.kept[0].shape == (8, 5, 16)
    monkeypatch.setattr(media_module, "PIECE_BYTES", 3 * 48 * 32 * 3)
    seen: list[tuple[str, int, int]] = []
    pieces = encode_media(talk.media, chat.engine, IN_PROCESS, on_progress=lambda *report: seen.append(report))
    assert torch.equal(pieces.kept[0], whole.kept[0])
    assert [done for what, done, _ in seen if what == "encoding frames"] == [3, 6, 8]
    assert {total for _, _, total in seen} == {8}


def test_the_ceiling_on_frames_holds_over_all_pieces(
    chat: VideoChat, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "PIECE_BYTES", 1)
    read = ReadOptions(isolated=False, limits=DecodeLimits(max_frames=4))
    assert chat.open([video(files / "a.mp4", 4)], read=read).encode().kept
    with pytest.raises(UserError, match=r"a\.mp4: 5 frames asked for, more than limits\.max_frames = 4"):
        chat.open([video(files / "a.mp4", 5)], read=read)


def test_too_many_frames_are_refused_before_anything_is_decoded(
    chat: VideoChat, files: Path, tower_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(media_module, "read_clip", lambda path, *_, **__: decoded.append(path))
    talk = talk_about(chat, video(files / "a.mp4", 16))
    text = chat.prompting.counts(talk.with_question(ASKED), talk.layouts).total - 16 * 2
    room = 512 - text - 10 * 2
    with pytest.raises(UserError) as error:
        talk.ask(ASKED, GenerationOptions(max_new_tokens=room))
    message = str(error.value)
    assert "16 frames make 32 visual tokens" in message
    assert f"{text} text tokens and {room} new tokens" in message
    assert "window of 512 tokens" in message
    assert "--frames 10" in message
    assert decoded == tower_calls == []
    assert talk.turns == ()


def test_the_largest_conversation_that_fits_is_answered(chat: VideoChat, files: Path) -> None:
    talk = talk_about(chat, video(files / "a.mp4"))
    prompt = chat.prompting.counts(talk.with_question(ASKED), talk.layouts).total
    chat.prompting.check_window(talk.with_question(ASKED), talk.layouts, 512 - prompt)
    with pytest.raises(UserError, match="is 513, more than"):
        chat.prompting.check_window(talk.with_question(ASKED), talk.layouts, 513 - prompt)


def test_placeholders_must_be_the_media(chat: VideoChat, files: Path) -> None:
    talk = talk_about(chat, video(files / "a.mp4"), ImageRequest(files / "picture.png"))
    written = talk.with_question("Is <video> like <image>?")
    assert written[0].text == "Is <video> like <image>?"
    assert talk.with_question("Alike?")[0].text == "<video><image>\nAlike?"
    with pytest.raises(UserError, match="write one placeholder for each"):
        talk.with_question("Is <image> like <video>?")
    with pytest.raises(UserError, match="only the first question"):
        talk_about(chat, video(files / "a.mp4"), history=[("Red?", "Yes")]).with_question("And <video>?")


def test_a_file_is_known_by_its_content(files: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "looks_like.mp4"
    disguised.write_bytes((files / "picture.png").read_bytes())
    assert media_type(disguised) == "image"
    assert media_type(files / "a.mp4") == "video"
    assert media_type(files / "broken.mp4") == "video"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.5}, "no effect at temperature 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
        ({"num_beams": 0}, "num_beams is 0"),
    ],
)
def test_bad_generation_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationOptions(**options)
