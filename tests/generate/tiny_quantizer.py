"""A quantizer for a tiny model: calibrated on prompts of a conversation, saved as ``longvid calibrate`` does."""

from pathlib import Path

import torch

from longvid_train.adaptation.reading import adaptation_values
from longvid_train.generate.chat import Conversation, VideoChat
from longvid_train.generate.engine import Asked
from longvid_train.kvcache.attention import rotation_of
from longvid_train.kvcache.calibration import observe_row
from longvid_train.kvcache.checkpoint import CalibrationRecord, QuantizerRecord, save_quantizer
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import Quantizer, cache_shape
from longvid_train.kvcache.rows import CalibrationRow
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.identity import model_identity
from longvid_train.models.splice import embed_and_splice


def prompt_of(chat: VideoChat, talk: Conversation, question: str, new_tokens: int) -> Asked:
    """What the engine gets of a first question."""
    turns = talk.with_question(question)
    return Asked(
        sample=chat.prompting.encode(turns, talk.layouts),
        counts=chat.prompting.token_counts(turns, talk.layouts, new_tokens),
        shown=(0,),
        kept=talk.encode().kept,
    )


@torch.no_grad()
def fitted(
    chat: VideoChat, talks: list[Conversation], questions: list[str], policy: CachePolicy, *, new_tokens: int
) -> Quantizer:
    """Observe every question about every video, under the window of the last."""
    prompts = [prompt_of(chat, talk, question, new_tokens) for talk in talks for question in questions]
    statistics = Statistics(cache_shape(chat.model.config), sample_tokens=512, skip_tokens=policy.sink_tokens)
    with chat.engine.reading(chat.engine.extension(prompts[-1].counts)):
        rotation = rotation_of(chat.model)
        with observing(chat.model, statistics):
            for number, asked in enumerate(prompts):
                observe_row(chat.model, statistics, _row(chat, asked, number))
    return fit_quantizer(policy, statistics, rotation)


def save(folder: Path, source: Path, chat: VideoChat, quantizer: Quantizer, *, adapter: Path | None = None) -> Path:
    """Write the checkpoint under the chat's adaptation."""
    record = QuantizerRecord(
        model=model_identity(source, adapter=adapter),
        adaptation=adaptation_values(chat.prompting.adaptation),
        calibration=CalibrationRecord(set_hash="", samples=2, tokens=100, sample_tokens=256, seed=0),
        verdict={},
    )
    save_quantizer(folder, quantizer, record)
    return folder


def _row(chat: VideoChat, asked: Asked, number: int) -> CalibrationRow:
    ids = asked.sample.input_ids[None]
    placeholder = chat.prompting.processor.visual_token_id
    tokens = chat.engine.visual_tokens(asked)
    return CalibrationRow(
        number=number,
        name=str(number),
        kind="",
        embeddings=embed_and_splice(chat.model.get_input_embeddings(), ids, tokens, placeholder),
        visual=ids == placeholder,
        input_ids=ids[0],
        answer=(ids.shape[1] - 1, ids.shape[1]),
    )
