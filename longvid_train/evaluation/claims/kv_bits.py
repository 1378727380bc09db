"""INTP (arXiv:2409.12963), Sec. 3.4: what the KV cache loses at 8 to 2 bits, and how other schemes compare.

The paper offers two bits as free, with Eq. 3.7 (one S and Z a layer), and states no accuracy for them. Here every token
of the prompt but 4 sinks and the newest few is coded, and answers are read from the codes: the first new token by the
prompt's last position, which attends to them. A prompt of a nano model passes the decoder in one piece, so that what
is coded was computed in full precision.
"""

from collections.abc import Callable
from functools import partial

from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Check, Claim, keeps, percent, points
from longvid_train.evaluation.claims.coded import FULL, Coding
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.llama_vid_long import GAP_S
from longvid_train.evaluation.claims.methods import Method
from longvid_train.rope.unextended import NoWindow

CALIBRATION_SEED = 1_000_003
CALIBRATION_EPISODES = 8
WORDS = {
    FULL: "full precision",
    "static8": "8 bits, static, by channel",
    "static4": "4 bits, static, by channel",
    "static3": "3 bits, static, by channel",
    "static2": "2 bits, static, by channel",
    "bias2": "2 bits, mean key turned with the position",
    "lloyd2": "2 bits, uneven levels, gain a token",
    "transform2": "2 bits, shared out among principal directions",
    "k4v2": "keys 4 bits a token, values 2 bits",
    "kivi_g32": "KIVI's groups of 32, 2 bits",
    "kivi_g128": "KIVI's groups of 128, 2 bits",
    "intp2": "2 bits, INTP's Eq. 3.7",
}
ADAPTATION = Adaptation(window=NoWindow(extrapolate=True))


def _methods() -> tuple[Method, ...]:
    return tuple(Method(name=name, words=words, file="none", adaptation=ADAPTATION) for name, words in WORDS.items())


def _checks(scores: Scores, frames: tuple[int, ...]) -> tuple[Check, ...]:
    def kept(paper: str, name: str, kind: str | None = None) -> Check:
        gain = scores.gain_beyond(name, FULL, frames, kind=kind)
        bits, here = scores.bits(name), scores.interval(name, *frames, kind=kind)
        return Check(
            paper=paper,
            here=f"{percent(here)} at {bits:.2f} bits, {points(gain)}",
            holds=keeps(gain),
        )

    def better(paper: str, name: str, other: str) -> Check:
        gain = scores.gain_beyond(name, other, frames)
        both = f"{scores.bits(name):.2f} and {scores.bits(other):.2f} bits"
        return Check(paper=paper, here=f"{points(gain)} at {both}", holds=gain.low > 0)

    return (
        kept("Sec. 3.4: INTP's 2 bits keep the accuracy to 5 points (the paper states none)", "intp2"),
        kept("The same of the needle questions alone", "intp2", "needle"),
        kept("8 bits by channel keep the accuracy to 5 points", "static8"),
        kept("4 bits by channel keep it so", "static4"),
        better("2 bits by channel beat 2 bits by layer", "static2", "intp2"),
        better("uneven levels with a gain beat even ones by channel, at 2 bits", "lloyd2", "static2"),
        kept("uneven levels with a gain keep it so at 2 bits", "lloyd2"),
        kept("2 bits shared out among principal directions keep it so", "transform2"),
        kept("KIVI (arXiv:2402.02750): 2-bit groups of 32 keep it so", "kivi_g32"),
        better("keys need more bits than values: K4V2 beats 2 bits for both", "k4v2", "static2"),
    )


def _questions(
    episodes: int, frames: int, seed: int, *, duration_s: float, gap_s: tuple[float, float]
) -> tuple[HeldOut, ...]:
    return held_out_clips(
        episodes=episodes, duration_s=duration_s, frames=frames, seed=seed, seen_only=True, gap_s=gap_s
    )


def _claim(
    name: str,
    title: str,
    *,
    model: str | None,
    frames: tuple[int, ...],
    questions: Callable[[int, int, int], tuple[HeldOut, ...]],
    videos: str,
    cpu_s: int,
    share: int = 1,
) -> Claim:
    """A claim that is asked about one of every ``share`` episodes, where each is costly."""
    calibration = partial(questions, CALIBRATION_EPISODES, frames[-1], CALIBRATION_SEED)
    return Claim(
        name=name,
        title=title,
        model=model,
        adapter=None,
        videos=videos,
        grid=Grid(methods=_methods(), frames=frames),
        held_out=lambda episodes, count, seed: questions(
            episodes if share == 1 else max(2, episodes // share), count, seed
        ),
        checks=partial(_checks, frames=frames),
        cpu_s=cpu_s,
        coding=Coding(adaptation=ADAPTATION, recent_tokens=16, flush_tokens=16, calibration=calibration),
    )


CLAIM = _claim(
    "intp-kv-bits",
    "KV cache: accuracy against bits, nano OneVision (INTP Sec. 3.4)",
    model="nano_onevision",
    frames=(32, 48),
    questions=partial(_questions, duration_s=8.0, gap_s=(0.0, 0.8)),
    videos="videos of 8 s as N frames of 4 tokens, no window extension; trained on at most 8 frames",
    cpu_s=208,
)

LLAMA_VID_CLAIM = _claim(
    "intp-kv-bits-llama-vid",
    "KV cache: accuracy against bits, nano LLaMA-VID (INTP Sec. 3.4)",
    model=None,
    frames=(128,),
    questions=partial(_questions, duration_s=128.0, gap_s=GAP_S),
    videos="half of the videos, of 128 s as N frames of 2 tokens, within the window of the third stage",
    cpu_s=176,
    share=2,
)
