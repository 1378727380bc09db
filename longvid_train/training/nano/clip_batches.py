"""Seeded streams of clips and of conversations about them, for the recipes of the nano backbones.

``B`` clips of a batch, ``N`` frames of a clip: one number for a whole batch, so that little is padding.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from longvid_train.training.nano.dialogue import (
    Dialogue,
    DialogueBatch,
    DialogueWriter,
    question_turns,
    with_dense_task,
)
from longvid_train.world.clips import Clip, even_clip
from longvid_train.world.episode import Episode, WorldSettings, make_episode
from longvid_train.world.render import render_frame


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """How clips and conversations are drawn.

    Attributes:
        steps: batches.
        clips: of a batch, ``B``.
        fewest_frames: fewest frames of a clip.
        first_most_frames: most frames of a clip at the start; one more every ``steps_per_frame`` steps.
        most_frames: most frames of a clip in the end.
        steps_per_frame: see there.
        spacing_s: shortest and longest time between frames.
        questions: most questions of a conversation.
        lists_frames: share of conversations whose dense task is the list of the frames; the others' is the description.
        dense: whether conversations have a dense task at all.
        kinds: of the questions.
        rivals: share of clips that are drawn until neighbouring objects have one colour, the pairs most often confused.
        seed: of all draws.
    """

    steps: int
    clips: int
    fewest_frames: int
    first_most_frames: int
    most_frames: int
    steps_per_frame: int
    spacing_s: tuple[float, float]
    questions: int = 4
    lists_frames: float = 0.5
    dense: bool = True
    kinds: tuple[str, ...] = ("needle", "order", "order", "detail")
    rivals: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """``B`` clips of ``frames`` frames and the conversation about each."""

    frames: int
    clips: tuple[Clip, ...]
    dialogues: DialogueBatch


class ClipBatches(IterableDataset[ClipBatch]):
    """An endless, seeded stream of batches.

    Args:
        recipe: what to draw.
        writer: writes the conversations.
        frame_tokens: visual tokens of a frame.
        end_tokens: visual tokens after the video.
    """

    def __init__(self, recipe: ClipRecipe, writer: DialogueWriter, frame_tokens: int, end_tokens: int) -> None:
        self._recipe = recipe
        self._writer = writer
        self._frame_tokens = frame_tokens
        self._end_tokens = end_tokens

    def __iter__(self) -> Iterator[ClipBatch]:
        """Yield ``recipe.steps`` batches."""
        rng = random.Random(self._recipe.seed)
        for step in range(self._recipe.steps):
            yield self._batch(rng, self._frames(rng, step))

    def _frames(self, rng: random.Random, step: int) -> int:
        """Drawn twice, the larger taken: longer clips are harder."""
        recipe = self._recipe
        most = min(recipe.most_frames, recipe.first_most_frames + step // recipe.steps_per_frame)
        return max(rng.randint(recipe.fewest_frames, most), rng.randint(recipe.fewest_frames, most))

    def _batch(self, rng: random.Random, frames: int) -> ClipBatch:
        clips: list[Clip] = []
        dialogues: list[Dialogue] = []
        while len(clips) < self._recipe.clips:
            clip = even_clip(self._episode(rng, frames), frames)
            lists = self._recipe.dense and rng.random() < self._recipe.lists_frames
            turns = question_turns(clip, self._recipe.kinds, self._recipe.questions, rng)
            if self._recipe.dense:
                turns = with_dense_task(turns, clip, rng, lists_frames=lists)
            if turns:
                clips.append(clip)
                dialogues.append(self._writer.write(turns, frames * self._frame_tokens + self._end_tokens))
        return ClipBatch(frames=frames, clips=tuple(clips), dialogues=self._writer.batch(dialogues))

    def _episode(self, rng: random.Random, frames: int) -> Episode:
        duration_s = max(2.0, round(frames * rng.uniform(*self._recipe.spacing_s), 2))
        wants_rivals = self._recipe.rivals > 0 and rng.random() < self._recipe.rivals
        while True:
            episode = make_episode(
                WorldSettings(duration_s=duration_s), split="train", seed=rng.getrandbits(32), index=0
            )
            if not wants_rivals or has_rivals(episode):
                return episode


def has_rivals(episode: Episode) -> bool:
    """Whether two objects that enter one after the other have one colour."""
    return any(first.colour == second.colour for first, second in pairwise(episode.appearances))


def clip_pictures(clips: tuple[Clip, ...], side: int) -> NDArray[np.uint8]:
    """``(B * N, side, side, 3)`` uint8: the frames of all clips, clip after clip."""
    return np.stack([render_frame(clip.episode, time_s, side) for clip in clips for time_s in clip.times_s])


def noisy_pixels(
    pictures: NDArray[np.uint8], noise: np.random.Generator, scale: float, mean: list[float], std: list[float]
) -> torch.Tensor:
    """``(F, 3, side, side)`` float32: noise in place of compression, then the processor's normalisation.

    Args:
        pictures: ``(F, side, side, 3)`` uint8.
        noise: of the run.
        scale: standard deviation in grey levels.
        mean: of each channel.
        std: of each channel.
    """
    values = pictures + scale * noise.standard_normal(pictures.shape, dtype=np.float32)
    pixels = torch.from_numpy(values.round().clip(0, 255)).permute(0, 3, 1, 2).div(255.0)
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
