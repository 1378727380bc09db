"""Trained nano models under every cache: logits of a continuation, and needles by depth.

Any model that `longvid ask` knows; frames, prompts and visual tokens are made as it makes them. Calibration reads clips
of its own seed; nothing is evaluated on them. ``T`` tokens of a prompt, ``V`` of them visual, ``H`` their width.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.conversation import MediumLayout
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.asking import frames_of
from longvid_train.generate.chat import FramesRequest, VideoChat
from longvid_train.generate.engine import Asked
from longvid_train.generate.generation import generate_prompts
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.prompting import first_question
from longvid_train.generate.scoring import score_answer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.prefill import generate_from_tokens
from longvid_train.models.splice import embed_and_splice
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
FRAMES_A_SECOND = 8
LONGEST_S = 64.0
"""Videos that need more frames are as long and show more of them a second. The world has 36 names of objects, drawn
without repeats until all were used, and a needle's object must appear once: in the 100 objects of 256 s none does."""


@dataclass(frozen=True)
class Videos:
    """Which episodes of the test split are seen, through how many even frames."""

    clips: int
    frames: int
    duration_s: float
    seed: int


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question about the clip of a number: ids ``(1, T)`` with placeholders, and its visual tokens ``(V, H)``."""

    clip: int
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


def long_videos(chat: VideoChat, tokens: int, clips: int, seed: int) -> Videos:
    """Videos whose frames have about so many visual tokens, `LONGEST_S` long at most.

    Raises:
        UserError: not even the fewest frames that the model takes are so few tokens.
    """
    joint = chat.prompting.joint_frames
    once, twice = (_visual_tokens(chat, count * joint) for count in (1, 2))
    frames = tokens // (twice - once) * joint
    if not frames:
        raise UserError(f"--tokens {tokens}: {joint} frames of {chat.name} are {once} tokens; ask for {once} at least")
    return Videos(clips, frames, min(frames / FRAMES_A_SECOND, LONGEST_S), seed)


def prompts_of(chat: VideoChat, videos: Videos) -> list[Prompt]:
    """Up to `NEEDLES_A_CLIP` needle questions about each of the test episodes; their evidence is on a frame.

    Raises:
        UserError: none of the episodes can be asked one.
    """
    found = list(_asked_of(chat, videos))
    if not found:
        raise UserError(
            f"no needle can be asked about {videos.clips} videos of {videos.duration_s:g} s at {videos.frames} frames: "
            "a needle's object appears once and on a frame, objects of long videos repeat, and few frames miss them; "
            f"take at most {LONGEST_S:g} s and more frames a second"
        )
    return found


def _asked_of(chat: VideoChat, videos: Videos) -> Iterator[Prompt]:
    world = WorldSettings(duration_s=videos.duration_s)
    for index in range(videos.clips):
        clip = even_clip(make_episode(world, split="test", seed=videos.seed, index=index), videos.frames)
        questions = draw_questions(clip, ("needle",), NEEDLES_A_CLIP, random.Random(f"{videos.seed}/{index}"))
        if not questions:
            continue
        talk = chat.open([FramesRequest(frames_of(clip), clip.times_s)])
        kept = talk.encode().kept
        for question in questions:
            turns = talk.with_question(question.text)
            asked = Asked(
                sample=chat.prompting.encode(turns, talk.layouts),
                counts=chat.prompting.token_counts(turns, talk.layouts, NEW_TOKENS),
                shown=(0,),
                kept=kept,
            )
            middle = sum(question.evidence_s) / 2 / videos.duration_s
            depth = DEPTHS[min(int(len(DEPTHS) * middle), len(DEPTHS) - 1)]
            yield Prompt(index, asked.sample.input_ids[None], chat.engine.visual_tokens(asked), question, depth)


@torch.no_grad()
def observe(chat: VideoChat, prompts: Sequence[Prompt]) -> Statistics:
    """Statistics of calibration prompts, one question of a clip."""
    statistics = Statistics(cache_shape(chat.model.config))
    with observing(chat.model, statistics):
        for number, (_, group) in enumerate(itertools.groupby(prompts, key=lambda prompt: prompt.clip)):
            prompt = next(group)
            statistics.begin([number], torch.ones_like(prompt.ids), prompt.ids == _placeholder(chat))
            chat.model.get_decoder()(inputs_embeds=_embeddings(chat, prompt), use_cache=False)
    return statistics


@torch.no_grad()
def continuation(chat: VideoChat, prompt: Prompt, steps: int) -> torch.Tensor:
    """``(1, steps)``: what the model itself says next, without a cache that loses anything, past any end of text."""
    made: torch.Tensor = generate_from_tokens(
        chat.model,
        prompt.ids,
        torch.ones_like(prompt.ids),
        [prompt.tokens],
        placeholder_id=_placeholder(chat),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
    )
    return made[:, prompt.ids.shape[1] :]


@torch.no_grad()
def forced_logits(chat: VideoChat, prompt: Prompt, forced: torch.Tensor, cache: Cache) -> torch.Tensor:
    """``(steps, vocabulary)`` log-probabilities after the prompt and each forced token but the last, one step each."""
    decoder, head = chat.model.get_decoder(), chat.model.get_output_embeddings()
    hidden = decoder(inputs_embeds=_embeddings(chat, prompt), past_key_values=cache, use_cache=True).last_hidden_state[
        :, -1
    ]
    states = [hidden]
    for token in forced[0, :-1]:
        embedded = chat.model.get_input_embeddings()(token.view(1, 1))
        step = decoder(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        states.append(step.last_hidden_state[:, -1])
    logits: torch.Tensor = head(torch.cat(states))
    return logits.double().log_softmax(-1)


def fidelity(
    chat: VideoChat, prompt: Prompt, forced: torch.Tensor, exact: torch.Tensor, contender: Contender
) -> Fidelity:
    """Compare a cache's logits with ``exact``, those of the full-precision cache."""
    cache = contender.build()
    with contender.using(chat.model):
        found = forced_logits(chat, prompt, forced, cache)
    divergence = (exact.exp() * (exact - found)).sum(-1).mean()
    agreement = (exact.argmax(-1) == found.argmax(-1)).double().mean()
    return Fidelity(float(divergence), float(agreement), weigh(cache))


@torch.no_grad()
def captured(chat: VideoChat, prompt: Prompt, forced: torch.Tensor) -> list[LayerTensors]:
    """What every layer attends with as the model reads prompt and continuation."""
    embeds = torch.cat([_embeddings(chat, prompt), chat.model.get_input_embeddings()(forced)], dim=1)
    with recording(chat.model, forced.shape[1]) as found:
        chat.model.get_decoder()(inputs_embeds=embeds, use_cache=False)
    return found


@torch.no_grad()
def needle_scores(chat: VideoChat, prompts: Sequence[Prompt], contender: Contender) -> dict[str, float]:
    """Share of exact answers by depth and in all."""
    scores: dict[str, list[float]] = {depth: [] for depth in DEPTHS}
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        with contender.using(chat.model):
            answers = generate_prompts(
                chat.model,
                chat.prompting.decoder,
                [prompt.ids[0] for prompt in batch],
                [prompt.tokens for prompt in batch],
                GenerationOptions(max_new_tokens=NEW_TOKENS),
                placeholder_id=_placeholder(chat),
                prefill_chunk=max(prompt.ids.shape[1] for prompt in batch),
                cache=contender.build(),
            )
        for prompt, answer in zip(batch, answers, strict=True):
            scores[prompt.depth].append(score_answer(answer.text, prompt.question.answer, prompt.question.kind))
    together = [score for part in scores.values() for score in part]
    return {depth: sum(part) / len(part) for depth, part in (scores | {"all": together}).items() if part}


def _visual_tokens(chat: VideoChat, frames: int) -> int:
    """Of a prompt about a video."""
    layout = MediumLayout.without_subtitles("video", frames)
    return chat.prompting.counts([first_question("?", ["video"])], [layout]).visual


def _embeddings(chat: VideoChat, prompt: Prompt) -> torch.Tensor:
    """``(1, T, H)``."""
    return embed_and_splice(chat.model.get_input_embeddings(), prompt.ids, prompt.tokens, _placeholder(chat))


def _placeholder(chat: VideoChat) -> int:
    return int(chat.prompting.processor.visual_token_id)
