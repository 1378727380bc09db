"""The context trace of an answer: of the question asked, of every medium shown, exact against the model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from longvid_train.errors import UserError
from longvid_train.generate import context_trace as context_trace_module
from longvid_train.generate.chat import ImageRequest, VideoChat, VideoRequest
from longvid_train.generate.context_trace import context_traces
from longvid_train.generate.media import ReadOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.models.llama_vid.context_scores import context_scores
from longvid_train.video import UniformFrames
from tests.generate.tiny_backbone_folder import save_tiny_backbone

IN_PROCESS = ReadOptions(isolated=False)
SHORT = GenerationOptions(max_new_tokens=4)


def asked(chat: VideoChat, files: Path, *questions: str):
    media = [VideoRequest(files / "a.mp4", UniformFrames(count=5)), ImageRequest(files / "picture.png")]
    talk = chat.open(media, read=IN_PROCESS)
    for question in questions:
        talk.ask(question, SHORT)
    return talk


def test_each_medium_has_a_trace_of_the_last_question(chat: VideoChat, files: Path) -> None:
    talk = asked(chat, files, "What is in the video?", "And after that?")
    video, image = context_traces(chat, talk, queries=2, count=3)
    assert (video.medium, image.medium) == (str(files / "a.mp4"), str(files / "picture.png"))
    assert video.question == image.question == "And after that?"
    assert video.answer == talk.turns[-1].text
    assert [frame.time_s for frame in video.frames] == list(talk.media[0].timestamps_s) and video.shown == 5
    ids, mask = chat.prompting.processor.encode_prompts(["And after that?"])
    for trace, kept in zip((video, image), talk.encoded.kept, strict=True):
        scores = context_scores(chat.model, kept, ids, mask, queries=2)
        found = torch.tensor([frame.scores for frame in trace.frames])
        assert found.shape == (len(kept), 2, trace.rows * trace.columns)
        torch.testing.assert_close(found, scores, atol=6e-5, rtol=0)
        for row, frame in enumerate(trace.frames):
            for query, top in enumerate(frame.top):
                assert list(top) == scores[row, query].argsort(descending=True)[:3].tolist()


def test_two_questions_have_two_traces(chat: VideoChat, files: Path) -> None:
    first = context_traces(chat, asked(chat, files, "What is in the video?"))
    second = context_traces(chat, asked(chat, files, "red green?"))
    assert first[0].frames[0].scores != second[0].frames[0].scores


def test_answers_are_the_same_with_and_without_a_trace(chat: VideoChat, files: Path) -> None:
    talk = asked(chat, files, "What is in the video?")
    context_traces(chat, talk)
    talk.ask("And after that?", SHORT)
    assert talk.turns == asked(chat, files, "What is in the video?", "And after that?").turns


def test_a_long_video_is_an_even_choice(chat: VideoChat, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_trace_module, "MOST_FRAMES", 3)
    trace = context_traces(chat, asked(chat, files, "What is in the video?"))[0]
    assert [frame.frame for frame in trace.frames] == [0, 2, 4] and trace.shown == 5


def test_it_is_plain_values(chat: VideoChat, files: Path) -> None:
    trace = context_traces(chat, asked(chat, files, "What?"))[0]
    assert json.loads(json.dumps(asdict(trace)))["frames"][0]["top"] == [list(top) for top in trace.frames[0].top]


def test_what_has_no_context_attention_is_refused(chat: VideoChat, files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was shown and asked yet"):
        context_traces(chat, asked(chat, files))
    with pytest.raises(UserError, match="nothing was shown and asked yet"):
        talk = chat.open([], read=IN_PROCESS)
        talk.ask("What?", SHORT)
        context_traces(chat, talk)
    other = VideoChat.load(save_tiny_backbone(tmp_path / "model"), device="cpu")
    with pytest.raises(UserError, match="is no LLaMA-VID"):
        context_traces(other, other.open([]))
