"""Held-out questions asked through a conversation, as ``longvid ask`` asks them.

One by one is what zooming needs: frames are encoded once a clip and charged to each of its questions, so that methods
compare in time as in tokens. In batches, models and caches share the frames that one of them encoded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.answering import BATCH, FRAME_SIDE_PX, NEW_TOKENS, Answered, scored
from longvid_train.evaluation.claims.held_out import HeldOut
from longvid_train.generate.answer import Answer
from longvid_train.generate.backbone_engine import BackboneEngine
from longvid_train.generate.backbone_prompting import BackbonePrompting
from longvid_train.generate.chat import Conversation, FramesRequest, VideoChat
from longvid_train.generate.engine import EngineOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.zoom.engine import ZoomEngine
from longvid_train.generate.zoom.prompting import ZoomPrompting
from longvid_train.models.backbones import BackboneProcessor
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.world.clips import Clip, even_clip
from longvid_train.world.questions import Question
from longvid_train.world.render import render_frame


def chat_under(backbone: AnyBackbone, processor: BackboneProcessor, adaptation: Adaptation) -> VideoChat:
    """The model under an adaptation, which may zoom; nobody looks at sentences."""
    config, engine = backbone.model.config, EngineOptions(sentence_attention=False)
    if adaptation.zoom is None:
        plain = BackboneEngine(backbone, BackbonePrompting(processor, config, adaptation), engine)
        return VideoChat(plain, name=backbone.facts.model_type)
    zooming = ZoomEngine(backbone, ZoomPrompting(processor, config, adaptation), engine)
    return VideoChat(zooming, name=backbone.facts.model_type)


def ask_clips(chat: VideoChat, clips: Sequence[HeldOut], *, new_tokens: int = NEW_TOKENS) -> list[Answered]:
    """Answer every question of every clip, greedily.

    Args:
        chat: from `chat_under`. An adaptation with ``frames`` shows so many of the same video, else the clip's.
        clips: with their questions.
        new_tokens: longest answer.

    Returns:
        Clip after clip, question after question; seconds are those from frames in memory to the answer.
    """
    frames = chat.prompting.adaptation.frames
    options = GenerationOptions(max_new_tokens=new_tokens)
    answered = []
    for one in clips:
        clip = one.clip if frames is None else even_clip(one.clip.episode, frames)
        talk = chat.open([FramesRequest(frames_of(clip), clip.times_s)])
        encoded = talk.encode()
        for question in one.questions:
            answer = talk.fork().ask(question.text, options)
            answered.append(
                replace(
                    scored(one, question, answer.answer),
                    visual_tokens=answer.visual_tokens,
                    new_tokens=answer.new_tokens,
                    seconds=encoded.decode_s + encoded.encode_s + answer.seconds,
                )
            )
    return answered


def frames_of(clip: Clip) -> NDArray[np.uint8]:
    """``(N, side, side, 3)`` uint8 RGB."""
    return np.stack([render_frame(clip.episode, time_s, FRAME_SIDE_PX) for time_s in clip.times_s])


def encoded_clips(chat: VideoChat, clips: Sequence[HeldOut]) -> list[Conversation]:
    """A conversation about each clip, its frames rendered and encoded."""
    talks = [chat.open([FramesRequest(frames_of(one.clip), one.clip.times_s)]) for one in clips]
    for talk in talks:
        talk.encode()
    return talks


def ask_encoded(
    chat: VideoChat, clips: Sequence[HeldOut], talks: Sequence[Conversation], *, new_tokens: int
) -> Iterator[tuple[HeldOut, Question, Answer, int]]:
    """Answer every question of every clip, greedily, in left-padded batches.

    Args:
        chat: answers; another model, cache or adaptation than that of ``talks`` may be asked, of the same tower.
        clips: with their questions.
        talks: about them, from `encoded_clips`; they stay as they are.
        new_tokens: longest answer.

    Yields:
        Clip after clip, question after question: the clip, the question, its answer and how many its batch had.
    """
    asked = [(talk, one, question) for talk, one in zip(talks, clips, strict=True) for question in one.questions]
    options = GenerationOptions(max_new_tokens=new_tokens)
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        twins = [_same_media(chat, talk) for talk, _, _ in batch]
        answers = chat.ask_batch(twins, [question.text for _, _, question in batch], options)
        for (_, one, question), answer in zip(batch, answers, strict=True):
            yield one, question, answer, len(batch)


def _same_media(chat: VideoChat, talk: Conversation) -> Conversation:
    """A conversation of another chat about frames that are encoded already."""
    twin = chat.open(talk.media)
    twin.encoded = talk.encoded
    return twin
