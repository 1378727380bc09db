"""A loaded model that conversations are held with: frames to what is kept of them, kept media and prompts to answers.

Each family has its own engine: what is kept of a video's frames differs (`llama_vid_engine`: tower features, because
its context tokens depend on the question; `backbone_engine`: the plan's visual tokens). Window, prefill and generation
are the same for all. ``N`` frames of one medium, ``T`` visual tokens of one prompt, ``H`` language-model width.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.data.conversation import EncodedSample, MediumLayout
from longvid_train.errors import UserError, nearest
from longvid_train.generate.decoding import Generated
from longvid_train.generate.generation import generate_prompts
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.prompting import Prompting
from longvid_train.generate.streaming import OnText
from longvid_train.generate.zoom.answering import ZoomOutcome
from longvid_train.kvcache.attention import attending_on_codes
from longvid_train.kvcache.cache import CacheBytes, QuantizedKVCache
from longvid_train.models.prefill import PREFILL_CHUNK
from longvid_train.rope.extension import Extension, installed
from longvid_train.rope.scale import TokenCounts

FEATURE_PLACES = ("device", "cpu")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Memory against time.

    Attributes:
        features_on: where what is kept of frames waits for its question: ``"device"``, with the model, or ``"cpu"``.
        prefill_chunk: positions of a prompt that pass the language model at once.
        frame_chunk: frames that are preprocessed and pass the vision tower at once; ``None`` is the model's own.
        sentence_attention: whether the trace of a zoomed answer holds its sentences, with the attention at each one's
            end. It takes time that an answer which nobody looks into can be spared; answers are the same.
    """

    features_on: str = "device"
    prefill_chunk: int = PREFILL_CHUNK
    frame_chunk: int | None = None
    sentence_attention: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.features_on not in FEATURE_PLACES:
            hint = nearest(self.features_on, FEATURE_PLACES) or "."
            raise UserError(f"features_on '{self.features_on}' is unknown{hint} Use {' or '.join(FEATURE_PLACES)}")
        if self.prefill_chunk < 1:
            raise UserError(f"prefill_chunk is {self.prefill_chunk}; it must be at least 1 token")
        if self.frame_chunk is not None and self.frame_chunk < 1:
            raise UserError(f"frame_chunk is {self.frame_chunk}; it must be at least 1 frame")


@dataclass(frozen=True, eq=False)
class Asked:
    """One open prompt and its media.

    Attributes:
        sample: ids, spans and prompts.
        counts: tokens of the prompt and of its longest answer.
        shown: number of the medium of each showing, in reading order.
        kept: of each medium, from `Engine.keep`.
    """

    sample: EncodedSample
    counts: TokenCounts
    shown: tuple[int, ...]
    kept: tuple[Any, ...]


@dataclass(frozen=True)
class Answered:
    """One prompt's answer.

    Attributes:
        generated: its text.
        cache: of the batch it was answered in, when the last token was made; ``None`` for a cache in full precision.
        zoom: what was noted on the way, where the adaptation zooms.
    """

    generated: Generated
    cache: CacheBytes | None
    zoom: ZoomOutcome | None = None


class Engine(ABC):
    """See the module.

    Args:
        model: transformers' model, in eval mode, on its device.
        prompting: how it is asked.
        options: see `EngineOptions`.
    """

    def __init__(self, model: Any, prompting: Prompting, options: EngineOptions) -> None:
        self.model = model
        self.prompting = prompting
        self.options = options

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def store_device(self) -> torch.device:
        """Where `keep` puts what it keeps."""
        return torch.device("cpu") if self.options.features_on == "cpu" else self.device

    @property
    @abstractmethod
    def frame_chunk(self) -> int:
        """Frames to preprocess and to give to `keep` at once."""

    def preprocess(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(n, height, width, 3)`` uint8 RGB -> ``(n, 3, h, w)`` pixels."""
        return self.prompting.processor.preprocess_frames(frames)

    def prepare(self, frames: NDArray[np.uint8]) -> Any:
        """``(n, height, width, 3)`` uint8 RGB -> what `keep` takes of them; here pixels of `preprocess`."""
        return self.preprocess(frames)

    @abstractmethod
    def keep(self, chunks: Iterable[Any], layout: MediumLayout) -> Any:
        """Encode one medium, a chunk of frames at a time.

        Args:
            chunks: from `prepare`, ``N`` frames over all.
            layout: of the medium.

        Returns:
            What prompts need of its frames, on `store_device`.
        """

    @abstractmethod
    def visual_tokens(self, asked: Asked) -> torch.Tensor:
        """``(T, H)`` of one prompt in reading order, on any device."""

    def extension(self, counts: TokenCounts) -> Extension | None:
        """What the window does to this model for an input; raises as `Prompting.extension`."""
        return self.prompting.extension(self.model, counts)

    def new_cache(self) -> QuantizedKVCache | None:
        """An empty cache as the adaptation wants it, to be read inside `reading`; ``None`` is transformers' own."""
        compression = self.prompting.compression
        return None if compression is None else compression.new_cache()

    @contextmanager
    def reading(self, extension: Extension | None) -> Iterator[None]:
        """The block in which the model reads prompts: under their window, and on the codes of a compressed cache.

        Args:
            extension: from `extension`, for every prompt and cache that is read in the block.
        """
        with ExitStack() as block:
            if extension is not None:
                block.enter_context(installed(self.model, extension))
            if self.prompting.compression is not None:
                block.enter_context(attending_on_codes(self.model))
            yield

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[Asked], options: GenerationOptions, on_text: OnText | None = None
    ) -> list[Answered]:
        """Answer prompts together: in one left-padded batch, or one for each set of frequencies their windows give.

        The frequencies are fixed for prefill and generation of a prompt. Each batch has a cache of its own.

        Args:
            prompts: at least one.
            options: how tokens are chosen.
            on_text: receives the text of a single prompt's answer as it grows.

        Returns:
            One answer a prompt, in order.

        Raises:
            UserError: a prompt does not fit its window, or the cache was calibrated under another.
        """
        for asked in prompts:
            self.prompting.check_cache(self.model, asked.counts)
        extensions = [self.extension(asked.counts) for asked in prompts]
        alike: dict[object, list[int]] = defaultdict(list)
        for row, extension in enumerate(extensions):
            alike[None if extension is None else extension.fingerprint].append(row)
        answers: dict[int, Answered] = {}
        for rows in alike.values():
            cache = self.new_cache()
            with self.reading(extensions[rows[0]]):
                generated = generate_prompts(
                    self.model,
                    self.prompting.decoder,
                    [prompts[row].sample.input_ids for row in rows],
                    [self.visual_tokens(prompts[row]) for row in rows],
                    options,
                    on_text,
                    placeholder_id=self.prompting.processor.visual_token_id,
                    prefill_chunk=self.options.prefill_chunk,
                    cache=cache,
                )
            used = None if cache is None else cache.used_bytes()
            answers |= {row: Answered(one, used) for row, one in zip(rows, generated, strict=True)}
        return [answers[row] for row in range(len(prompts))]
