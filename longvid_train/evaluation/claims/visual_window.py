"""Visual context window extension (Wei and Chen, arXiv:2409.20018): Figure 1a, Table 4 and Table 5 in kind.

The nano OneVision was trained on at most 8 frames of 4 tokens, a visual window of 32; its language model on text of at
most 256. As in the paper, the same is asked about the same videos at more and more frames, up to 8 times that window.
"""

from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Check, Claim, keeps, percent, points
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.methods import TUNED, VISUAL_WINDOW_METHODS

DURATION_S = 8.0
FRAMES = (8, 16, 32, 64)
BEYOND = FRAMES[1:]


def _held_out(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    return held_out_clips(episodes=episodes, duration_s=DURATION_S, frames=frames, seed=seed, seen_only=False)


def window_checks(scores: Scores) -> tuple[Check, ...]:
    """Rows of the table, all questions together."""
    trained, longest = scores.interval("none", FRAMES[0]), scores.interval("none", FRAMES[-1])
    return (
        Check(
            paper="Figure 1a: without an extension accuracy declines beyond the visual window",
            here=f"{FRAMES[0]} frames {percent(trained)}, {FRAMES[-1]} frames {percent(longest)}",
            holds=longest.high < trained.low,
        ),
        _better(scores, "Table 4: YaRN by the language window beats no extension (58.5 > 56.2)", "yarn", "none"),
        _better(
            scores,
            "Table 4: YaRN by the visual window beats YaRN by the language window (61.0 > 58.5)",
            "visual_yarn",
            "yarn",
        ),
        _better(scores, "Table 4: YaRN by the visual window beats no extension (61.0 > 56.2)", "visual_yarn", "none"),
        *_tuned(scores),
        _pooled(scores),
    )


def _tuned(scores: Scores) -> tuple[Check, ...]:
    """The row of the adapter, where there is one."""
    paper = "Table 4: LoRA after the extension beats the extension alone (61.8 > 61.0)"
    return (_better(scores, paper, TUNED, "visual_yarn"),) if scores.has(TUNED) else ()


def _better(scores: Scores, paper: str, better: str, worse: str) -> Check:
    """Paired over 16 to 64 frames; holds where the whole interval lies above 0."""
    gain = scores.gain_beyond(better, worse, BEYOND)
    return Check(paper=paper, here=f"{points(gain)} over {BEYOND[0]} to {BEYOND[-1]} frames", holds=gain.low > 0)


def _pooled(scores: Scores) -> Check:
    """Holds where a loss of five points is excluded."""
    gain = scores.gain_beyond("visual_yarn_progressive", "visual_yarn", BEYOND)
    return Check(
        paper="Table 5: progressive pooling keeps the accuracy to 5 points with fewer tokens (61.3 against 61.0)",
        here=f"{points(gain)} with 7 tokens in place of 16, over {BEYOND[0]} to {BEYOND[-1]} frames",
        holds=keeps(gain),
    )


CLAIM = Claim(
    name="visual-window",
    title="Visual context window extension: Figure 1a, Tables 4 and 5",
    model="nano_onevision",
    adapter="nano_onevision_lora",
    videos=f"videos of {DURATION_S:g} s, the same questions at every number of frames; trained on at most 8 frames",
    grid=Grid(methods=VISUAL_WINDOW_METHODS, frames=FRAMES),
    held_out=_held_out,
    checks=window_checks,
    cpu_s=107,
)
