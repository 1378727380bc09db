"""The claims of `visual_window` where the frames come from longer videos: N seconds are shown as N frames.

There is more to tell apart at every step, so that accuracy also falls for reasons that no window can mend.
"""

from longvid_train.evaluation.claims.cells import Grid
from longvid_train.evaluation.claims.claim import Claim
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.methods import VISUAL_WINDOW_METHODS
from longvid_train.evaluation.claims.visual_window import FRAMES, window_checks


def _held_out(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    return held_out_clips(episodes=episodes, duration_s=float(frames), frames=frames, seed=seed, seen_only=True)


CLAIM = Claim(
    name="visual-window-long",
    title="Visual context window extension on longer videos",
    model="nano_onevision",
    adapter="nano_onevision_lora",
    videos="videos of N seconds as N frames; trained on at most 8 frames",
    grid=Grid(methods=VISUAL_WINDOW_METHODS, frames=FRAMES),
    held_out=_held_out,
    checks=window_checks,
    cpu_s=105,
)
