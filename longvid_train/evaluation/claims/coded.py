"""Answers of a model whose KV cache is compressed, each method with a cache of its own, calibrated here where needed.

Everything goes the way of ``longvid ask``: a quantizer is saved, named in an adaptation, read back with its checks, and
questions pass the model in left-padded batches. Only frames are shared: a clip is encoded once for all methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longvid_train.adaptation.cache import CacheChoice
from longvid_train.adaptation.reading import adaptation_values
from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.answering import NEW_TOKENS, Answered, scored
from longvid_train.evaluation.claims.asking import ask_encoded, encoded_clips
from longvid_train.evaluation.claims.held_out import HeldOut, clips_hash
from longvid_train.evaluation.claims.methods import Method
from longvid_train.generate.answer import Answer
from longvid_train.generate.backbone_engine import BackboneEngine
from longvid_train.generate.backbone_prompting import BackbonePrompting
from longvid_train.generate.chat import Conversation, VideoChat
from longvid_train.generate.engine import Asked, Engine
from longvid_train.generate.llama_vid_engine import LlamaVidEngine
from longvid_train.generate.loading import read_prompting
from longvid_train.generate.prompting import Prompting
from longvid_train.kvcache.attention import rotation_of
from longvid_train.kvcache.calibration import observe_row
from longvid_train.kvcache.checkpoint import CalibrationRecord, QuantizerRecord, save_quantizer
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import preset
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.rows import CalibrationRow
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.identity import model_identity
from longvid_train.models.splice import embed_and_splice

FULL = "full"
"""The method that leaves the cache to transformers; every other is named after its preset."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """What the caches of a claim have in common.

    Attributes:
        adaptation: plan and window, without a cache; the window's frequencies are the same for every clip.
        recent_tokens: newest tokens in full precision: few, for the prompts of nano models are short.
        flush_tokens: tokens that leave them at once.
        calibration: clips to calibrate on; other episodes than those asked about.
    """

    adaptation: Adaptation
    recent_tokens: int
    flush_tokens: int
    calibration: Callable[[], tuple[HeldOut, ...]]

    def values(self, methods: Sequence[Method]) -> dict[str, Any]:
        """What makes the caches of these methods what they are, as JSON can hold it."""
        return {
            "recent_tokens": self.recent_tokens,
            "flush_tokens": self.flush_tokens,
            "calibration": clips_hash(self.calibration()),
            "presets": {one.name: repr(preset(one.name)) for one in methods if one.name != FULL},
        }


class CodedAnswers:
    """Answers of every method to the questions about one set of clips after the other; see the module.

    Args:
        source: folder of the model.
        coding: see `Coding`.
        held_out: questions of a number of frames and a seed.
        folder: for the quantizers; those it holds are used again.
    """

    def __init__(
        self, source: Path, coding: Coding, held_out: Callable[[int, int], tuple[HeldOut, ...]], folder: Path
    ) -> None:
        self._source, self._coding, self._held_out, self._folder = source, coding, held_out, folder
        self._plain = VideoChat.load(source, adaptation=coding.adaptation, device="cpu", dtype="float32")
        self._observed: tuple[Statistics, Rotation] | None = None
        self._shown: tuple[tuple[int, int], tuple[HeldOut, ...], list[Conversation]] | None = None

    def __call__(self, method: Method, frames: int, seed: int) -> list[Answered]:
        """Clip after clip, question after question."""
        clips, talks = self._clips(frames, seed)
        chat = self._plain if method.name == FULL else self._coded(method.name)
        return [
            replace(
                scored(one, question, answer.answer),
                cache_bits=None if answer.cache is None else answer.cache.bits_per_number,
                cache_bytes=self._cache_bytes(answer, rows),
            )
            for one, question, answer, rows in ask_encoded(chat, clips, talks, new_tokens=NEW_TOKENS)
        ]

    def _cache_bytes(self, answer: Answer, rows: int) -> float:
        """Of one question: the share of a compressed batch, or the positions of a plain cache; see `CacheUse`."""
        if answer.cache is not None:
            return answer.cache.total_bytes / rows
        shape = cache_shape(self._plain.model.config)
        numbers = 2 * shape.layers * shape.heads * shape.head_dim
        positions = answer.prompt_tokens + answer.new_tokens - 1
        return float(numbers * positions * self._plain.model.dtype.itemsize)

    def _clips(self, frames: int, seed: int) -> tuple[tuple[HeldOut, ...], list[Conversation]]:
        if self._shown is None or self._shown[0] != (frames, seed):
            clips = self._held_out(frames, seed)
            self._shown = (frames, seed), clips, encoded_clips(self._plain, clips)
        return self._shown[1], self._shown[2]

    def _coded(self, name: str) -> VideoChat:
        folder = self._folder / name
        if not folder.is_dir():
            self._calibrate(name, folder)
        adaptation = replace(self._coding.adaptation, cache=CacheChoice(quantizer=str(folder)))
        prompting = read_prompting(self._source, adaptation=adaptation)
        return VideoChat(_asked_by(self._plain.engine, prompting), name=name)

    def _calibrate(self, name: str, folder: Path) -> None:
        coding = self._coding
        policy = replace(preset(name), recent_tokens=coding.recent_tokens, flush_tokens=coding.flush_tokens)
        statistics, rotation = self._statistics(policy)
        if policy.calibrated:
            quantizer = fit_quantizer(policy, statistics, rotation)
        else:
            quantizer = uncalibrated(policy, statistics.shape)
        record = QuantizerRecord(
            model=model_identity(self._source),
            adaptation=adaptation_values(coding.adaptation),
            calibration=CalibrationRecord(
                set_hash=clips_hash(coding.calibration()),
                samples=len(statistics.samples),
                tokens=int(statistics.tokens.sum()),
                sample_tokens=statistics.sample_tokens,
                seed=statistics.seed,
            )
            if policy.calibrated
            else None,
            verdict={},
        )
        save_quantizer(folder, quantizer, record)

    @torch.no_grad()
    def _statistics(self, policy: CachePolicy) -> tuple[Statistics, Rotation]:
        """Of the calibration clips, read once for all methods."""
        if self._observed is None:
            chat, clips = self._plain, self._coding.calibration()
            prompts = [
                _prompt(chat, talk, question.text)
                for one, talk in zip(clips, encoded_clips(chat, clips), strict=True)
                for question in one.questions
            ]
            statistics = Statistics(cache_shape(chat.model.config), skip_tokens=policy.sink_tokens)
            with chat.engine.reading(chat.engine.extension(prompts[0].counts)):
                rotation = rotation_of(chat.model)
                with observing(chat.model, statistics):
                    for number, asked in enumerate(prompts):
                        observe_row(chat.model, statistics, _row(chat.engine, asked, number))
            self._observed = statistics, rotation
        return self._observed


def _asked_by(engine: Engine, prompting: Prompting) -> Engine:
    """The same weights under another adaptation."""
    if isinstance(engine, BackboneEngine):
        assert isinstance(prompting, BackbonePrompting)
        return BackboneEngine(engine.backbone, prompting, engine.options)
    return LlamaVidEngine(engine.model, prompting, engine.options)


def _prompt(chat: VideoChat, talk: Conversation, question: str) -> Asked:
    turns = talk.with_question(question)
    return Asked(
        sample=chat.prompting.encode(turns, talk.layouts),
        counts=chat.prompting.token_counts(turns, talk.layouts, NEW_TOKENS),
        shown=(0,),
        kept=talk.encode().kept,
    )


def _row(engine: Engine, asked: Asked, number: int) -> CalibrationRow:
    """A prompt as the decoder reads it; its last token stands for the answer, which statistics do not tell apart."""
    ids = asked.sample.input_ids[None]
    placeholder = engine.prompting.processor.visual_token_id
    return CalibrationRow(
        number=number,
        name=f"calibration prompt {number}",
        kind="",
        embeddings=embed_and_splice(engine.model.get_input_embeddings(), ids, engine.visual_tokens(asked), placeholder),
        visual=ids == placeholder,
        input_ids=ids[0],
        answer=(ids.shape[1] - 1, ids.shape[1]),
    )
