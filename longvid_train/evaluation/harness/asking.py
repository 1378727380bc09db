"""Requests to answers: the same showing, batches and engine as ``longvid evaluate``."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longvid_train.data.conversation import MediumLayout
from longvid_train.data.manifest import Media
from longvid_train.evaluation.harness.requests import HarnessRequest, VideoPart
from longvid_train.evaluation.local.answering import POOL_BATCHES, generation_options
from longvid_train.evaluation.local.batches import alike
from longvid_train.evaluation.local.encoded import EncodedMedia
from longvid_train.evaluation.local.loading import read_model
from longvid_train.evaluation.local.questions import Question
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.evaluation.local.showing import Showing, turns_of
from longvid_train.generate.answer import Answer
from longvid_train.generate.chat import Conversation
from longvid_train.generate.media import MEMORY_READER, Medium, ReadOptions
from longvid_train.generate.options import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A request whose media are open; ``videos`` is None where pictures are among them."""

    media: tuple[Medium, ...]
    videos: tuple[VideoPart, ...] | None
    text: str
    alike: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """How requests that share their generation settings are asked."""

    showing: Showing
    options: GenerationOptions
    batch_size: int

    @property
    def pool(self) -> int:
        """Requests that are open at once."""
        return self.batch_size * POOL_BATCHES if self.batch_size > 1 else 1


class HarnessAsker:
    """A loaded model that answers requests.

    Args:
        settings: ``model``, ``adapter``, ``adaptation`` and how media are shown; manifests and scores have no part.

    Raises:
        UserError: settings, model, adapter and adaptation do not go together.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings
        self.chat = read_model(settings).load(settings, device=settings.device)
        self._read = ReadOptions(reader=settings.reader, isolated=settings.isolated)
        self._encoded = EncodedMedia(settings.cached_videos)

    def answer(self, requests: Iterable[HarnessRequest], generation: Mapping[str, Any]) -> Iterator[Answer]:
        """Answer requests that share their generation settings, alike ones together.

        A pool of requests is taken, opened, answered and let go before the next is taken, so that the pictures of a
        whole benchmark are never in memory.

        Args:
            requests: in any order.
            generation: lmms-eval's ``generation_kwargs``.

        Yields:
            Answers in the order of the requests.

        Raises:
            UserError: a file cannot be shown, or a request is too long for the window.
        """
        settings = with_generation(self.settings, generation)
        showing = Showing(prompting=self.chat.prompting, settings=settings, read=self._read)
        asking = _Asking(showing=showing, options=generation_options(settings), batch_size=settings.batch_size)
        stream = iter(requests)
        while answers := self._pool_answers(islice(stream, asking.pool), asking):
            yield from answers

    def _pool_answers(self, requests: Iterable[HarnessRequest], asking: _Asking) -> list[Answer]:
        opened = [self._open(request, asking) for request in requests]
        answers: dict[int, Answer] = {}
        for batch in alike([one.alike for one in opened], asking.batch_size):
            talks = [self._conversation(opened[place]) for place in batch]
            said = self.chat.ask_batch(talks, [opened[place].text for place in batch], asking.options)
            answers |= dict(zip(batch, said, strict=True))
        return [answers[place] for place in range(len(opened))]

    def _open(self, request: HarnessRequest, asking: _Asking) -> _Opened:
        media = tuple(_medium(one, request.text, asking.showing) for one in request.media)
        turns = turns_of(_question((), request.text), request.text, [medium.type for medium in media])
        layouts = [medium.layout for medium in media]
        self.chat.prompting.check_window(turns, layouts, asking.options.max_new_tokens)
        counts = self.chat.prompting.token_counts(turns, layouts, asking.options.max_new_tokens)
        shown = tuple(layout.frame_count for layout in layouts)
        videos = tuple(one for one in request.media if isinstance(one, VideoPart))
        return _Opened(
            media=media,
            videos=videos if len(videos) == len(media) else None,
            text=request.text,
            alike=(counts.total, *shown),
        )

    def _conversation(self, one: _Opened) -> Conversation:
        """The media of a request without turns; the last few videos are kept encoded, pictures in memory are not."""
        if one.videos is None:
            return self.chat.open(one.media, read=self._read)
        key = (one.videos, one.alike[1:])
        return self._encoded.fork(key, lambda: self.chat.open(one.media, read=self._read))


def with_generation(settings: EvaluationSettings, generation: Mapping[str, Any]) -> EvaluationSettings:
    """The settings with what a task says about generation.

    ``until`` is not followed: an answer ends where the chat template ends it, and lmms-eval's default of a blank line
    would cut descriptions.
    """
    samples = bool(generation.get("do_sample", True)) and (generation.get("temperature") or 0.0) > 0
    return replace(
        settings,
        max_new_tokens=int(generation.get("max_new_tokens", settings.max_new_tokens)),
        temperature=float(generation["temperature"]) if samples else 0.0,
        top_p=float(generation.get("top_p") or 1.0) if samples else 1.0,
        num_beams=int(generation.get("num_beams") or 1),
    )


def _question(media: tuple[Media, ...], text: str) -> Question:
    """A request in the form that local evaluation opens."""
    return Question(
        id="request",
        manifest="lmms-eval",
        place=(0, 0, 0),
        kind="open",
        text=text,
        history=(),
        truth=None,
        options=(),
        media=media,
        folder=Path.cwd(),
        meta={},
    )


def _medium(one: VideoPart | Image.Image, text: str, showing: Showing) -> Medium:
    if isinstance(one, VideoPart):
        part = Media(type="video", path=one.path, start_s=one.start_s, end_s=one.end_s)
        (medium,) = showing.open(_question((part,), text), text)
        return medium
    return Medium(
        path="picture",
        type="image",
        timestamps_s=(0.0,),
        duration_s=0.0,
        layout=MediumLayout.without_subtitles("image", 1),
        reader=MEMORY_READER,
        frames=np.asarray(one.convert("RGB"))[None],
    )
