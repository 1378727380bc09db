"""Trained nano backbones under every cache: logits of a continuation, and needles by depth.

Calibration reads clips of its own seed; nothing is evaluated on them. ``T`` tokens of a prompt.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.answering import encode_clips
from longvid_train.evaluation.claims.held_out import HeldOut
from longvid_train.generate.scoring import score_answer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.backbones import BackboneProcessor, generate
from longvid_train.models.backbones.language import multimodal_embeddings
from longvid_train.models.backbones.protocol import Backbone
from longvid_train.rope.unextended import NoWindow
from longvid_train.world.clips import draw_questions, even_clip
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.questions import Question
from scripts.bench.kv_contenders import Contender, Weight, weigh
from scripts.bench.kv_tensors import LayerTensors, recording

PLAIN = Adaptation(window=NoWindow(extrapolate=True))
DEPTHS = ("early", "middle", "late")
NEW_TOKENS = 6
BATCH = 32
NEEDLES_A_CLIP = 4
CALIBRATION_SEED, TEST_SEED = 31, 32


@dataclass(frozen=True)
class Videos:
    """Which episodes of the test split are seen, through how many even frames."""

    clips: int
    frames: int
    duration_s: float
    seed: int


@dataclass(frozen=True, eq=False)
class Prompt:
    """A clip with a question: ids ``(1, T)`` with placeholders, and its visual tokens ``(V, W)``."""

    ids: torch.Tensor
    tokens: torch.Tensor
    question: Question
    depth: str


@dataclass(frozen=True)
class Fidelity:
    """A cache against none over teacher-forced steps: mean KL in nats, share of equal best tokens, and bytes."""

    divergence: float
    agreement: float
    weight: Weight


def prompts_of(backbone: Backbone, processor: BackboneProcessor, videos: Videos) -> list[Prompt]:
    """Up to `NEEDLES_A_CLIP` needle questions about each of the test episodes; their evidence is on a frame."""
    found: list[Prompt] = []
    plan = PLAIN.plan_frames(videos.frames, backbone.facts.grid)
    world = WorldSettings(duration_s=videos.duration_s)
    for index in range(videos.clips):
        clip = even_clip(make_episode(world, split="test", seed=videos.seed, index=index), videos.frames)
        questions = draw_questions(clip, ("needle",), NEEDLES_A_CLIP, random.Random(f"{videos.seed}/{index}"))
        if not questions:
            continue
        tokens = encode_clips(backbone, processor, (HeldOut(clip=clip, questions=questions),), plan)[0]
        for question in questions:
            middle = sum(question.evidence_s) / 2 / videos.duration_s
            depth = DEPTHS[min(int(len(DEPTHS) * middle), len(DEPTHS) - 1)]
            found.append(Prompt(processor.prompt_ids(question.text, plan.visual_tokens), tokens, question, depth))
    return found


@torch.no_grad()
def observe(backbone: Backbone, prompts: Sequence[Prompt]) -> Statistics:
    """Statistics of calibration prompts, one question of a clip."""
    statistics = Statistics(cache_shape(backbone.model.config))
    with observing(backbone.model, statistics):
        for number, (_, group) in enumerate(itertools.groupby(prompts, key=lambda prompt: id(prompt.tokens))):
            prompt = next(group)
            visual = prompt.ids == backbone.facts.placeholder_id
            statistics.begin([number], torch.ones_like(prompt.ids), visual)
            backbone.model(
                inputs_embeds=multimodal_embeddings(backbone, prompt.ids, prompt.tokens),
                use_cache=False,
                logits_to_keep=1,
            )
    return statistics


@torch.no_grad()
def continuation(backbone: Backbone, prompt: Prompt, steps: int) -> torch.Tensor:
    """``(1, steps)``: what the model itself says next, without a cache that loses anything, past any end of text."""
    made: torch.Tensor = generate(
        backbone, prompt.ids, prompt.tokens, max_new_tokens=steps, min_new_tokens=steps, do_sample=False
    )
    return made


@torch.no_grad()
def forced_logits(backbone: Backbone, prompt: Prompt, forced: torch.Tensor, cache: Cache) -> torch.Tensor:
    """``(steps, vocabulary)`` log-probabilities after the prompt and each forced token but the last, one step each."""
    decoder, head = backbone.model.get_decoder(), backbone.model.get_output_embeddings()
    hidden = decoder(
        inputs_embeds=multimodal_embeddings(backbone, prompt.ids, prompt.tokens), past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1]
    states = [hidden]
    for token in forced[0, :-1]:
        embedded = backbone.model.get_input_embeddings()(token.view(1, 1))
        step = decoder(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        states.append(step.last_hidden_state[:, -1])
    logits: torch.Tensor = head(torch.cat(states))
    return logits.double().log_softmax(-1)


def fidelity(
    backbone: Backbone, prompt: Prompt, forced: torch.Tensor, exact: torch.Tensor, contender: Contender
) -> Fidelity:
    """Compare a cache's logits with ``exact``, those of the full-precision cache."""
    cache = contender.build()
    with contender.using(backbone.model):
        found = forced_logits(backbone, prompt, forced, cache)
    divergence = (exact.exp() * (exact - found)).sum(-1).mean()
    agreement = (exact.argmax(-1) == found.argmax(-1)).double().mean()
    return Fidelity(float(divergence), float(agreement), weigh(cache))


@torch.no_grad()
def captured(backbone: Backbone, prompt: Prompt, forced: torch.Tensor) -> list[LayerTensors]:
    """What every layer attends with as the model reads prompt and continuation."""
    embeds = multimodal_embeddings(backbone, prompt.ids, prompt.tokens)
    embeds = torch.cat([embeds, backbone.model.get_input_embeddings()(forced)], dim=1)
    with recording(backbone.model, forced.shape[1]) as found:
        backbone.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
    return found


def needle_scores(
    backbone: Backbone, processor: BackboneProcessor, prompts: Sequence[Prompt], contender: Contender
) -> dict[str, float]:
    """Share of exact answers by depth and in all."""
    scores: dict[str, list[float]] = {depth: [] for depth in DEPTHS}
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        for prompt, text in zip(batch, _answers(backbone, processor, batch, contender), strict=True):
            scores[prompt.depth].append(score_answer(text, prompt.question.answer, prompt.question.kind))
    together = [score for part in scores.values() for score in part]
    return {depth: sum(part) / len(part) for depth, part in (scores | {"all": together}).items() if part}


def _answers(
    backbone: Backbone, processor: BackboneProcessor, prompts: Sequence[Prompt], contender: Contender
) -> list[str]:
    longest, padding = max(prompt.ids.shape[1] for prompt in prompts), processor.tokenizer.pad_token_id
    ids = torch.stack([_padded(prompt.ids[0], longest, padding) for prompt in prompts])
    mask = torch.stack([_padded(torch.ones_like(prompt.ids[0]), longest, 0) for prompt in prompts])
    tokens = torch.cat([prompt.tokens for prompt in prompts])
    with contender.using(backbone.model):
        made = generate(
            backbone,
            ids,
            tokens,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            cache=contender.build(),
        )
    return [text.strip() for text in processor.tokenizer.batch_decode(made, skip_special_tokens=True)]


def _padded(row: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (length - len(row), 0), value=value)
