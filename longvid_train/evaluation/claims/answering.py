"""Answers of a backbone to held-out questions, many of one length at once.

``E`` clips of ``N`` frames, ``T`` visual tokens of a clip, ``H`` language-model width, ``B`` questions of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.held_out import HeldOut
from longvid_train.generate.scoring import score_answer
from longvid_train.models.backbones import BackboneProcessor, generate, video_tokens
from longvid_train.models.backbones.protocol import Backbone
from longvid_train.rope.extension import Fingerprint, installed, prepare
from longvid_train.rope.scale import TokenCounts
from longvid_train.tokens.plan import TokenPlan
from longvid_train.world.questions import Question
from longvid_train.world.render import render_frame

FRAME_SIDE_PX = 112
"""The world's videos: frames are drawn at this size and pass the checkpoint's own processor, as those of a file."""

NEW_TOKENS = 6
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question about an episode, the model's answer and its score between 0 and 1.

    Questions that were asked one by one (`asking`) also have what they took: tokens of the video, tokens generated and
    wall-clock seconds. Answers of a claim about KV caches (`coded`) have the measured bytes of the cache, a question's
    share of its batch, and of a compressed one the measured bits a number.
    """

    episode: str
    kind: str
    question: str
    truth: str
    answer: str
    score: float
    visual_tokens: int | None = None
    new_tokens: int | None = None
    seconds: float | None = None
    cache_bits: float | None = None
    cache_bytes: float | None = None


def scored(about: HeldOut, question: Question, answer: str) -> Answered:
    """An answer with its score and nothing measured."""
    return Answered(
        episode=about.clip.episode.episode_id,
        kind=question.kind,
        question=question.text,
        truth=question.answer,
        answer=answer,
        score=score_answer(answer, question.answer, question.kind),
    )


KnownTexts = dict[tuple[int, Fingerprint], list[str]]
"""Texts by the batch's first question and the rotations it was answered under: equal rotations compute the same."""


@torch.no_grad()
def encode_clips(
    backbone: Backbone, processor: BackboneProcessor, clips: Sequence[HeldOut], plan: TokenPlan
) -> torch.Tensor:
    """``(E, T, H)``: the visual tokens of each clip under a plan."""
    rows = []
    for one in clips:
        frames = [render_frame(one.clip.episode, time_s, FRAME_SIDE_PX) for time_s in one.clip.times_s]
        rows.append(video_tokens(backbone, processor.pixel_values(np.stack(frames)), plan, frame_chunk=64))
    return torch.stack(rows)


def answer_clips(
    backbone: Backbone,
    processor: BackboneProcessor,
    clips: Sequence[HeldOut],
    tokens: torch.Tensor,
    plan: TokenPlan,
    adaptation: Adaptation,
    known: KnownTexts | None = None,
) -> list[Answered]:
    """Answer every question of every clip, greedily, under the adaptation's window.

    The window's scale is that of the longest prompt of a batch; all clips have as many visual tokens.

    Args:
        backbone: answers.
        processor: of the checkpoint.
        clips: with their questions.
        tokens: ``(E, T, H)`` from `encode_clips`.
        plan: that made them.
        adaptation: its window is installed.
        known: of the same model, clips, tokens and plan: batches under rotations that it holds are not answered again,
            and the others are added. Windows that extend nothing yet share their answers so.

    Returns:
        Clip after clip, question after question.
    """
    asked = [(row, question) for row, one in enumerate(clips) for question in one.questions]
    prompts = [processor.prompt_ids(question.text, plan.visual_tokens)[0] for _, question in asked]
    texts: list[str] = []
    for first in range(0, len(asked), BATCH):
        rows = [row for row, _ in asked[first : first + BATCH]]
        texts += _answer(
            backbone,
            processor,
            prompts[first : first + BATCH],
            tokens[rows],
            plan,
            adaptation,
            {} if known is None else known,
            first,
        )
    return [scored(clips[row], question, text) for (row, question), text in zip(asked, texts, strict=True)]


def _answer(
    backbone: Backbone,
    processor: BackboneProcessor,
    prompts: Sequence[torch.Tensor],
    tokens: torch.Tensor,
    plan: TokenPlan,
    adaptation: Adaptation,
    known: KnownTexts,
    first: int,
) -> list[str]:
    """Texts of the batch that begins with question ``first``, its prompts padded on the left."""
    longest = max(len(ids) for ids in prompts)
    counts = TokenCounts(visual=plan.frame_tokens, total=longest + NEW_TOKENS)
    extension = prepare(backbone.model, adaptation.window, counts=counts, trained=backbone.facts.trained)
    if (first, extension.fingerprint) in known:
        return known[first, extension.fingerprint]
    padding = processor.tokenizer.pad_token_id
    ids = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0), value=padding) for one in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(one) for one in prompts]).long()
    with installed(backbone.model, extension):
        made = generate(
            backbone, ids, tokens.flatten(0, 1), attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )
    texts: list[str] = processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    known[first, extension.fingerprint] = [text.strip() for text in texts]
    return known[first, extension.fingerprint]
