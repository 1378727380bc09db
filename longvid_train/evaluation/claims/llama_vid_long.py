"""LLaMA-VID (arXiv:2311.17043), Sec. 3.3: what the third stage, tuning on long videos, gains on long videos.

The paper shows it by examples and states no number. Here the shipped nano model of the third stage is asked beside the
second stage's, which it was trained from, about videos of two minutes and more: 1 frame a second, 2 tokens a frame,
more than the second stage's window of 256 tokens with the question.
"""

from pathlib import Path

from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Check, Claim, percent, points
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.llama_vid_answers import Compared
from longvid_train.evaluation.claims.methods import Method
from longvid_train.generate.chat import VideoChat
from longvid_train.rope.unextended import NoWindow

FOLDERS = {"stage2": "nano_llama_vid_stage2", "stage3": "nano_llama_vid"}
KINDS = ("needle", "order", "count", "detail")
FRAMES = (120, 150)
GAP_S = (8.0, 24.0)
"""Pauses between objects: seven or eight in two minutes, as in the third stage's training."""

FILES = ("config.json", "model.safetensors", "llama_vid_processor.json")
ADAPTATION = Adaptation(window=NoWindow(extrapolate=True))


def _files(models: Path) -> tuple[Path, ...]:
    return tuple(models / folder / file for folder in FOLDERS.values() for file in FILES)


def _load(models: Path, name: str) -> VideoChat:
    return VideoChat.load(models / FOLDERS[name], adaptation=ADAPTATION, device="cpu", dtype="float32")


def _held_out(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    """Half as many videos as asked for at each of the two lengths, of as many seconds as frames.

    Each length has seeds of its own: an episode of another length is the same one, cut or prolonged.
    """
    return held_out_clips(
        episodes=max(2, episodes // len(FRAMES)),
        duration_s=float(frames),
        frames=frames,
        seed=seed * len(FRAMES) + FRAMES.index(frames),
        seen_only=True,
        gap_s=GAP_S,
        kinds=KINDS,
    )


def _checks(scores: Scores) -> tuple[Check, ...]:
    def check(paper: str, kind: str | None) -> Check:
        gain = scores.gain_beyond("stage3", "stage2", FRAMES, kind=kind)
        before, after = (scores.interval(stage, *FRAMES, kind=kind) for stage in ("stage2", "stage3"))
        return Check(paper=paper, here=f"{percent(before)} to {percent(after)}, {points(gain)}", holds=gain.low > 0)

    return (
        check("Sec. 3.3: tuning on long videos helps on long videos (the paper states no number)", None),
        *(check(f"The same of {kind} questions", kind) for kind in KINDS),
    )


CLAIM = Claim(
    name="llama-vid-long-video",
    title="LLaMA-VID's third stage on long videos (Sec. 3.3)",
    model=FOLDERS["stage3"],
    adapter=None,
    videos="videos of N s as N frames of 2 tokens (needle / order / count / detail)",
    grid=Grid(
        methods=(
            Method(name="stage2", words="after stage 2", file="none", adaptation=ADAPTATION),
            Method(name="stage3", words="after stage 3", file="none", adaptation=ADAPTATION),
        ),
        frames=FRAMES,
    ),
    held_out=_held_out,
    checks=_checks,
    cpu_s=76,
    kinds=KINDS,
    compared=Compared(files=_files, folders=tuple(FOLDERS.values()), load=_load),
)
