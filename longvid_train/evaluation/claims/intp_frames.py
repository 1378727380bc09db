"""INTP (arXiv:2409.12963), Table 4: more frames of the same videos, and what the rearrangement is worth.

The nano Video-LLaVA sees 8 frames together and was trained on 8. The questions are the same at every number of frames;
8 frames miss a part of what is asked.
"""

from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Check, Claim, no_better, percent, points
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.methods import INTP_METHODS

DURATION_S = 24.0
FRAMES = (8, 16, 32, 64)


def _held_out(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    return held_out_clips(episodes=episodes, duration_s=DURATION_S, frames=frames, seed=seed, seen_only=False)


def _checks(scores: Scores) -> tuple[Check, ...]:
    base = ("none", FRAMES[0])
    identity = scores.gain(("intp", FRAMES[0]), base)
    last = scores.gain(("intp", 64), ("intp", 32))
    grouped = scores.gain_beyond("intp", "intp_consecutive", FRAMES[1:])
    return (
        Check(
            paper="Table 4: at 8 frames INTP loses a little (70.7 -> 69.5)",
            here=f"{points(identity)}; one group is neither rearranged nor stretched",
            holds=identity.high < 0,
        ),
        *(
            Check(
                paper=f"Table 4: {count} frames with INTP beat 8 without ({values})",
                here=f"{percent(scores.interval('intp', count))}, {points(scores.gain(('intp', count), base))}",
                holds=scores.gain(("intp", count), base).low > 0,
            )
            for count, values in ((16, "72.1 > 70.7"), (32, "72.0 > 70.7"))
        ),
        Check(
            paper="Table 4: at 64 frames accuracy no longer rises by 5 points (67.5 against 72.0 at 32)",
            here=f"{percent(scores.interval('intp', 64))}, {points(last)}",
            holds=no_better(last),
        ),
        Check(
            paper="Sec. 3.2: rearranged groups beat consecutive ones",
            here=f"{points(grouped)} over {FRAMES[1]} to {FRAMES[-1]} frames",
            holds=grouped.low > 0,
        ),
    )


CLAIM = Claim(
    name="intp-frames",
    title="INTP: Table 4, frames and rearrangement",
    model="nano_video_llava",
    adapter=None,
    videos=f"videos of {DURATION_S:g} s, the same questions at every number of frames; trained on 8 frames",
    grid=Grid(methods=INTP_METHODS, frames=FRAMES),
    held_out=_held_out,
    checks=_checks,
    cpu_s=82,
)
