"""Exact answers of a nano backbone about unseen clips of its trained length, for its record."""

import random

import torch

from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.training.nano.backbone_stages import PictureTokens, answers_loss
from longvid_train.training.nano.dialogue import Dialogue, DialogueWriter, Turn
from longvid_train.training.nano.families import KINDS, TRAINED_FRAMES, Family
from longvid_train.world.clips import Clip, ask_clip, even_clip
from longvid_train.world.episode import WorldSettings, make_episode

CLIPS = 100
_BATCH = 25


@torch.no_grad()
def held_out_scores(
    backbone: AnyBackbone, family: Family, writer: DialogueWriter, clips: int = CLIPS
) -> dict[str, float]:
    """Share of exact greedy answers of each kind: one question alone about each clip of one frame a second.

    Args:
        backbone: in eval mode.
        family: for the settings of its pictures.
        writer: of its conversations.
        clips: of split ``val``; those that show no evidence for a kind are not asked about it.
    """
    grid = backbone.facts.grid
    visual = PictureTokens(backbone, family.pictures, 0.0, 0)
    drawn = [
        even_clip(
            make_episode(WorldSettings(duration_s=float(TRAINED_FRAMES)), split="val", seed=0, index=index),
            TRAINED_FRAMES,
        )
        for index in range(clips)
    ]
    tokens = TRAINED_FRAMES * grid.frame_tokens(grid.stride) + grid.end_tokens
    scores: dict[str, float] = {}
    for kind in KINDS:
        asked = [(clip, written) for clip in drawn if (written := _ask(clip, kind, writer, tokens)) is not None]
        right = 0.0
        for first in range(0, len(asked), _BATCH):
            part = asked[first : first + _BATCH]
            _, found = answers_loss(
                backbone, visual(tuple(clip for clip, _ in part)), writer.batch([written for _, written in part])
            )
            right += found[kind] * len(part)
        scores[kind] = round(right / len(asked), 4)
    return scores


def _ask(clip: Clip, kind: str, writer: DialogueWriter, tokens: int) -> Dialogue | None:
    question = ask_clip(clip, kind, random.Random(f"{clip.episode.episode_id}/{kind}"))
    if question is None:
        return None
    return writer.write([Turn(kind=kind, question=question.text, answer=question.answer)], tokens)
