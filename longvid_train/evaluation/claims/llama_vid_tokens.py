"""LLaMA-VID (arXiv:2311.17043), Tables 4, 5 and 6: which tokens stand for an image, how many, and what guides them.

As in the paper's ablations the settings are still images. The world's are crowded: about every second one shows two
objects, so that what a question asks about must be told apart from what else is there.
"""

import random

from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Check, Claim, points
from longvid_train.evaluation.claims.held_out import MOST_DRAWS, HeldOut
from longvid_train.evaluation.claims.llama_vid_answers import Compared
from longvid_train.evaluation.claims.llama_vid_variants import FOLDER, PARTS, VARIANTS, load_variant, variant_files
from longvid_train.evaluation.claims.methods import Method
from longvid_train.world.clips import Clip
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.plan import still_time_s
from longvid_train.world.questions import Question, ask
from longvid_train.world.rows import still_of

KINDS = ("needle", "count", "detail")
ONE = (1,)
LEAST_SIDE_BY_SIDE = 2


def held_out_stills(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    """Still images of two objects, each with one question of each of `KINDS`, from split ``test``.

    Args:
        episodes: how many images, each of an episode of its own.
        frames: 1.
        seed: of the episodes, the moments and the questions.

    Raises:
        UserError: hardly an episode has such a moment.
    """
    assert frames == 1, "a still image is one frame"
    settings = WorldSettings(duration_s=6.0, overlap=1.0)
    found: list[HeldOut] = []
    for index in range(MOST_DRAWS * episodes):
        if len(found) == episodes:
            return tuple(found)
        episode = make_episode(settings, split="test", seed=seed, index=index)
        rng = random.Random(f"{seed}/{index}/still")
        time_s = still_time_s(episode, rng)
        shown = still_of(episode, time_s)
        drawn = [next(filter(None, (ask(shown, kind, rng) for _ in range(8))), None) for kind in KINDS]
        questions: list[Question] = [question for question in drawn if question is not None]
        if len(shown.appearances) >= LEAST_SIDE_BY_SIDE and len(questions) == len(KINDS):
            found.append(HeldOut(clip=Clip(episode=episode, times_s=(time_s,)), questions=tuple(questions)))
    raise UserError(f"{len(found)} of {MOST_DRAWS * episodes} episodes show two objects at once, {episodes} are wanted")


def _checks(scores: Scores) -> tuple[Check, ...]:
    def better(paper: str, name: str, other: str) -> Check:
        gain, detail = (scores.gain_beyond(name, other, ONE, kind=kind) for kind in (None, "detail"))
        return Check(paper=paper, here=f"{points(gain)}; detail {points(detail)}", holds=gain.low > 0)

    return (
        better(
            "Table 4: the context token alone beats the content token alone (GQA 54.3 > 53.3)", "context", "content"
        ),
        better(
            "Tables 4 and 6: both beat the content token alone, without text guidance (55.5 > 53.3)", "both", "content"
        ),
        better("Table 4: both beat the context token alone (55.5 > 54.3)", "both", "context"),
        better("Table 5: a context token helps beside all content tokens (63.0 > 61.9)", "all", "all_content"),
        better("Table 5: all content tokens beat one, beside a context token (63.0 > 55.5)", "all", "both"),
        better("Table 5: 4 content tokens beat one, beside a context token (56.2 > 55.5)", "both_4", "both"),
        better("Table 5: 9 content tokens beat 4 (there 16: 58.2 > 56.2)", "both_9", "both_4"),
        better("Table 5: all content tokens beat 9 (there 64: 63.0 > 60.8)", "all", "both_9"),
        better("Table 6: guidance by a fresh 2-layer BERT beats none (54.1 > 53.3)", "bert", "content"),
        better("Table 6: the pretrained Q-Former beats the BERT (55.5 > 54.1)", "both", "bert"),
    )


CLAIM = Claim(
    name="llama-vid-tokens",
    title="LLaMA-VID's tokens of a still image (Tables 4, 5 and 6)",
    model=FOLDER,
    adapter=None,
    videos="still images of two objects (needle / count / detail)",
    grid=Grid(
        methods=tuple(
            Method(name=variant.name, words=variant.words, file="", adaptation=Adaptation())
            for variant in VARIANTS.values()
        ),
        frames=ONE,
    ),
    held_out=held_out_stills,
    checks=_checks,
    cpu_s=46,
    kinds=KINDS,
    compared=Compared(files=variant_files, folders=(PARTS, FOLDER), load=load_variant),
)
