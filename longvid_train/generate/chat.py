"""Conversations with a model about videos and images.

>>> chat = VideoChat.load("quickstart/stage3/model")
>>> talk = chat.open([VideoRequest("clip.mp4", FramesPerSecond(fps=1.0))])
>>> talk.ask("What is in the video?").answer

A medium is decoded and passes the vision tower once, at the first question.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.conversation import shown_media
from longvid_train.data.manifest import Turn
from longvid_train.errors import UserError
from longvid_train.generate.answer import Answer, CacheUse, ShownMedium, WindowUse, peak_bytes
from longvid_train.generate.engine import Answered, Asked, Engine, EngineOptions
from longvid_train.generate.loading import load_engine, read_prompting
from longvid_train.generate.media import (
    EncodedMedia,
    Medium,
    OnProgress,
    ReadOptions,
    check_frame_counts,
    encode_media,
    no_progress,
    open_frames,
    open_image,
    open_video,
    probe_video,
)
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.prompting import Prompting, first_question, next_question
from longvid_train.generate.streaming import OnText
from longvid_train.generate.zoom.trace import ZoomTrace
from longvid_train.models.adapter import Adapter
from longvid_train.models.backbones.adapted import BackboneAdapter
from longvid_train.rope.scale import TokenCounts, extent_of
from longvid_train.video import Sampling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class VideoRequest:
    """A video, which of its frames to show, and its subtitles if any."""

    path: str | Path
    sampling: Sampling
    subtitles: str | Path | None = None


@dataclass(frozen=True)
class ImageRequest:
    """A still image to show."""

    path: str | Path


@dataclass(frozen=True, eq=False)
class FramesRequest:
    """Frames of a video that are in memory: ``(N, height, width, 3)`` uint8 RGB in time order; see ``open_frames``."""

    frames: NDArray[np.uint8]
    timestamps_s: Sequence[float] | None = None
    subtitles: str | Path | None = None
    name: str = "frames"


class VideoChat:
    """A loaded model that answers questions about media.

    Args:
        engine: the model and how it is asked.
        name: what answers call the model.
    """

    def __init__(self, engine: Engine, *, name: str) -> None:
        self.engine = engine
        self.name = name

    @property
    def model(self) -> Any:
        """transformers' model."""
        return self.engine.model

    @property
    def prompting(self) -> Prompting:
        """How the model is asked."""
        return self.engine.prompting

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        adaptation: Adaptation | None = None,
        adapter: Adapter | BackboneAdapter | None = None,
        prompting: Prompting | None = None,
        template: str | None = None,
        prompt: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        engine: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
    ) -> "VideoChat":
        """Load a checkpoint, recognised by its ``config.json``: a LLaMA-VID or any backbone.

        Args:
            source: a folder written by ``save_pretrained``, or for a backbone a hub id (``str``).
            adaptation: how videos are shown and how the window is extended; default: the model as it is.
            adapter: trained on that checkpoint, from ``read_any_adapter``; its window is used, and a LLaMA-VID's
                processor or a backbone's adaptation.
            prompting: already read from the source; then what it was read with is not used.
            template: see ``read_prompting``.
            prompt: see ``read_prompting``.
            device: ``"auto"`` takes CUDA where there is one; else torch's name of a device.
            dtype: ``"auto"`` keeps the checkpoint's; or a key of `DTYPES`.
            engine: see `EngineOptions`.

        Raises:
            UserError: no such checkpoint, another architecture, weights that do not fit, no such device or dtype, or as
                ``read_prompting``.
        """
        place, kept_type = resolve_device(device), resolve_dtype(dtype)
        asked = prompting or read_prompting(
            source, adaptation=adaptation, adapter=adapter, template=template, prompt=prompt
        )
        loaded = load_engine(source, asked, adapter=adapter, device=place, dtype=kept_type, options=engine)
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        return cls(loaded, name=str(source if adapter is None else adapter.folder))

    def open(
        self,
        media: Sequence[VideoRequest | ImageRequest | FramesRequest | Medium],
        *,
        read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
        history: Sequence[tuple[str, str]] = (),
        on_progress: OnProgress = no_progress,
    ) -> "Conversation":
        """Start a conversation; containers are probed now, frames are decoded at the first question.

        Args:
            media: what it is about, in the order shown; may be empty.
            read: how files are read.
            history: earlier questions and answers.
            on_progress: told about reading and encoding.

        Raises:
            UserError: a file cannot be read, does not hold the frames asked for, or they are too many.
        """
        opened = tuple(_opened(medium, read) for medium in media)
        check_frame_counts(opened, read)
        return Conversation(self, opened, read=read, history=history, on_progress=on_progress)

    def ask_batch(
        self,
        conversations: Sequence["Conversation"],
        questions: Sequence[str],
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - frozen
        *,
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """Ask each conversation its question, all in one left-padded batch; each keeps its answer as a turn.

        Answers are those of asking one by one (up to the rounding of batched arithmetic, and to the draws when tokens
        are drawn).

        Raises:
            UserError: a question is empty or too long for the window (before anything is decoded), or a file cannot be
                decoded.
        """
        if len(conversations) != len(questions):
            raise UserError(f"{len(conversations)} conversations but {len(questions)} questions; give one for each")
        if len({id(conversation) for conversation in conversations}) != len(conversations):
            raise UserError("a conversation stands twice in the batch; fork it, or ask one question after the other")
        if not conversations:
            return []
        self.prompting.check_generation(options)
        asked = [talk.with_question(question) for talk, question in zip(conversations, questions, strict=True)]
        for talk, turns in zip(conversations, asked, strict=True):
            self.prompting.check_window(turns, talk.layouts, options.max_new_tokens)
        fresh = [talk.encoded is None for talk in conversations]
        media = [talk.encode() for talk in conversations]
        prompts = [
            Asked(
                sample=self.prompting.encode(turns, talk.layouts),
                counts=self.prompting.token_counts(turns, talk.layouts, options.max_new_tokens),
                shown=tuple(shown_media(turns, self.prompting.options)),
                kept=encoded.kept,
            )
            for talk, turns, encoded in zip(conversations, asked, media, strict=True)
        ]
        clock = time.perf_counter()
        answered = self.engine.answer(prompts, options, on_text)
        generate_s = time.perf_counter() - clock
        answers = []
        for row, talk in enumerate(conversations):
            spent_s = (media[row].decode_s, media[row].encode_s, generate_s) if fresh[row] else (0.0, 0.0, generate_s)
            answers.append(self._answer(questions[row], talk, prompts[row], answered[row], media[row], spent_s))
            talk.turns = (*asked[row], Turn("assistant", answered[row].generated.text))
        return answers

    def _answer(
        self,
        question: str,
        talk: "Conversation",
        asked: Asked,
        answered: Answered,
        encoded: EncodedMedia,
        spent_s: tuple[float, float, float],
    ) -> Answer:
        shown = tuple(
            ShownMedium(
                path=medium.path,
                type=medium.type,
                frames=medium.layout.frame_count,
                timestamps_s=medium.timestamps_s,
                duration_s=medium.duration_s,
                reader=reader,
            )
            for medium, reader in zip(talk.media, encoded.readers, strict=True)
        )
        trace = _trace(question, shown, answered, encode_s=spent_s[1])
        zoomed_tokens = 0 if trace is None else trace.zoom_tokens
        return Answer(
            question=question,
            answer=answered.generated.text,
            frames=sum(medium.frames for medium in shown),
            timestamps_s=tuple(time_s for medium in shown for time_s in medium.timestamps_s),
            visual_tokens=int((asked.sample.input_ids == self.prompting.processor.visual_token_id).sum())
            + zoomed_tokens,
            prompt_tokens=len(asked.sample.input_ids) + zoomed_tokens,
            new_tokens=answered.generated.new_tokens,
            seconds=sum(spent_s),
            decode_s=spent_s[0],
            encode_s=spent_s[1],
            generate_s=spent_s[2],
            peak_bytes=peak_bytes(self.model.device),
            model=self.name,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.model.device),
            reader=",".join(dict.fromkeys(encoded.readers)),
            media=shown,
            plan=self.prompting.plan_words(talk.layouts),
            window=_window_use(self.prompting, asked.counts),
            cache=_cache_use(self.prompting, answered),
            notes=(*self._notes(talk, asked), *(() if trace is None else trace.notes)),
            trace=trace,
        )

    def _notes(self, talk: "Conversation", asked: Asked) -> tuple[str, ...]:
        extension = self.engine.extension(asked.counts)
        return (
            *self.prompting.notes(talk.layouts, asked.counts),
            *(() if extension is None else extension.description),
        )


class Conversation:
    """Media and the turns so far; made by `VideoChat.open`.

    Attributes:
        media: what it is about.
        turns: questions and answers so far, in the data room's form.
        encoded: what the engine keeps of their frames; None before the first question.
    """

    def __init__(
        self,
        chat: VideoChat,
        media: tuple[Medium, ...],
        *,
        read: ReadOptions,
        history: Sequence[tuple[str, str]],
        on_progress: OnProgress,
    ) -> None:
        self.media = media
        self.layouts = tuple(medium.layout for medium in media)
        self.turns: tuple[Turn, ...] = ()
        self.encoded: EncodedMedia | None = None
        self._chat = chat
        self._read = read
        self._on_progress = on_progress
        for question, answer in history:
            self.turns = (*self.with_question(question), Turn("assistant", answer))

    def ask(
        self,
        question: str,
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - frozen
        *,
        on_text: OnText | None = None,
    ) -> Answer:
        """Ask, and keep question and answer as turns.

        Args:
            question: in plain words; the first may place the media by ``<video>`` and ``<image>``.
            options: how the answer is drawn.
            on_text: receives the answer's text as it is generated.

        Raises:
            UserError: as `VideoChat.ask_batch`; the conversation stays as it was.
        """
        return self._chat.ask_batch([self], [question], options, on_text=on_text)[0]

    def fork(self) -> "Conversation":
        """A conversation with the same turns that goes its own way; it shares the frames if they are encoded."""
        twin = Conversation(self._chat, self.media, read=self._read, history=(), on_progress=self._on_progress)
        twin.turns, twin.encoded = self.turns, self.encoded
        return twin

    def encode(self) -> EncodedMedia:
        """Decode and encode the media unless that is done.

        Raises:
            UserError: a file cannot be decoded.
        """
        if self.encoded is None:
            self.encoded = encode_media(self.media, self._chat.engine, self._read, on_progress=self._on_progress)
        return self.encoded

    def with_question(self, question: str) -> tuple[Turn, ...]:
        """The turns with a question behind them.

        Raises:
            UserError: see `first_question` and `next_question`.
        """
        asked = next_question(question) if self.turns else first_question(question, [m.type for m in self.media])
        return (*self.turns, asked)


def _window_use(prompting: Prompting, counts: TokenCounts) -> WindowUse:
    window = prompting.adaptation.window
    extent = extent_of(window, counts, prompting.trained)
    return WindowUse(
        kind=window.kind,
        measure=window.measure,
        tokens=extent.measured_tokens,
        trained_tokens=extent.trained_tokens,
        scale=extent.scale,
        language_tokens=extent.language_tokens,
    )


def _trace(question: str, shown: tuple[ShownMedium, ...], answered: Answered, *, encode_s: float) -> ZoomTrace | None:
    if answered.zoom is None:
        return None
    (video,) = shown
    return answered.zoom.told(
        question=question, video=video.path, times_s=video.timestamps_s, overview_encode_s=encode_s
    )


def _cache_use(prompting: Prompting, answered: Answered) -> CacheUse | None:
    used = answered.cache
    if used is None:
        return None
    assert prompting.compression is not None
    return CacheUse(
        name=prompting.compression.name,
        bits_per_number=used.bits_per_number,
        total_bytes=used.total,
        coded_bytes=used.coded,
        exact_bytes=used.exact,
        parameter_bytes=used.parameters,
        row_bytes=used.rows,
    )


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: torch has no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device '{name}' cannot be used here ({reason}); use cpu or auto") from error


def resolve_dtype(name: str) -> torch.dtype | str:
    """torch's dtype of a name of `DTYPES`; ``"auto"`` stays, the checkpoint's own.

    Raises:
        UserError: the name is not known.
    """
    if name == "auto":
        return name
    if name not in DTYPES:
        raise UserError(f"dtype '{name}' is not known; use auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _opened(medium: VideoRequest | ImageRequest | FramesRequest | Medium, read: ReadOptions) -> Medium:
    if isinstance(medium, Medium):
        return medium
    if isinstance(medium, ImageRequest):
        return open_image(medium.path)
    if isinstance(medium, FramesRequest):
        return open_frames(
            medium.frames, timestamps_s=medium.timestamps_s, subtitles=medium.subtitles, name=medium.name
        )
    info = probe_video(medium.path, read)
    return open_video(info, medium.sampling, subtitles=medium.subtitles, reader=read.reader)
