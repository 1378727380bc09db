"""ZoomVLM on small details: Tables 1 and 13 in kind, and its ablations (Tables 2, 11 and 12).

The paper's benchmark is detailed description of 32 frames, judged by GPT-3.5. Here a nano OneVision, trained on 8
frames of 4 tokens, is asked needle, order and small-detail questions about 8 frames, each question alone as ``longvid
ask`` asks it. Its overview shows 6 of them at half the side, 1 token a frame, which the nano tower was never trained
on. Its answers are one phrase: frames are chosen after the first token (``s = 1``), and no sentence ends before the
answer does.
"""

from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.claim import Check, Claim, keeps, percent, points
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.methods import ZOOM_ABLATIONS, ZOOM_METHODS
from longvid_train.evaluation.claims.pages import question_cost

DURATION_S = 8.0
FRAMES = 8
DETAIL = "detail"


def _held_out(episodes: int, frames: int, seed: int) -> tuple[HeldOut, ...]:
    return held_out_clips(episodes=episodes, duration_s=DURATION_S, frames=frames, seed=seed, seen_only=True)


def _checks(scores: Scores) -> tuple[Check, ...]:
    return (
        _better(scores, "Sec. 4.2: on small details the zoom beats the overview alone", "zoom", "overview"),
        _better(
            scores, "Table 13: overview and zoom beat spatial pooling (2.801 > 2.346)", "zoom", "pooled", kind=None
        ),
        _better(scores, "Table 13: and temporal sampling (2.801 > 2.727)", "zoom", "sampled", kind=None),
        _better(scores, "Table 1: and SlowFast (3.102 > 2.375), with fewer tokens", "zoom", "slowfast", kind=None),
        _kept(scores),
        _fewer_tokens(scores),
        _adjusted(scores, "Table 13: token adjustment adds to that (2.801 -> 3.102)", "adjusted", "zoom"),
    )


def _ablation_checks(scores: Scores) -> tuple[Check, ...]:
    middle = scores.gain(("layers12", FRAMES), ("layers01", FRAMES))
    late = scores.gain(("layers12", FRAMES), ("layers23", FRAMES))
    early = scores.gain(("s3", FRAMES), ("zoom", FRAMES))
    fewer = scores.gain(("k4", FRAMES), ("k1", FRAMES))
    return (
        Check(
            paper="Table 2: middle layers choose better than early ones (3.102 > 3.082)",
            here=points(middle),
            holds=middle.low > 0,
        ),
        Check(
            paper="Table 2: and better than late ones (3.102 > 3.084)",
            here=points(late),
            holds=late.low > 0,
        ),
        Check(
            paper="Table 12: choosing later is better (s = 5: 2.886, 10: 2.970, 15: 3.056, 20: 3.102)",
            here=f"s = 3 against 1: {points(early)}; an answer that ends before s tokens stands as the overview's",
            holds=early.low > 0,
        ),
        Check(
            paper="Sec. 4.2: more frames in full give more detail",
            here=f"k = 4 against 1: {points(fewer)}",
            holds=fewer.low > 0,
        ),
        _adjusted(scores, "Table 11: m = 10 is better than 20 and 30 (3.102 > 3.036, 3.062)", "m1", "m4"),
    )


def _better(scores: Scores, paper: str, better: str, worse: str, *, kind: str | None = DETAIL) -> Check:
    gain = scores.gain((better, FRAMES), (worse, FRAMES), kind=kind)
    where = "all questions" if kind is None else f"{kind} questions"
    return Check(paper=paper, here=f"{points(gain)} on {where}", holds=gain.low > 0)


def _kept(scores: Scores) -> Check:
    """Holds where a loss of five points is excluded."""
    gain = scores.gain(("zoom", FRAMES), ("vanilla", FRAMES), kind=DETAIL)
    return Check(
        paper="Table 13: overview and zoom keep vanilla's score to 5 points (2.801 against 2.843)",
        here=f"{points(gain)}: {percent(scores.interval('zoom', FRAMES, kind=DETAIL))} on detail questions",
        holds=keeps(gain),
    )


def _fewer_tokens(scores: Scores) -> Check:
    zoom, vanilla = (question_cost(scores, name, FRAMES).visual_tokens for name in ("zoom", "vanilla"))
    return Check(
        paper="Table 13: 2848 visual tokens in place of 4608 (0.62)",
        here=f"{zoom:.1f} in place of {vanilla:.1f} ({zoom / vanilla:.2f})",
        holds=zoom <= 0.65 * vanilla,
    )


def _adjusted(scores: Scores, paper: str, better: str, worse: str) -> Check:
    """Tokens are adjusted where a sentence ends; where none does, an adjusting method answers as one without."""
    gain = scores.gain((better, FRAMES), (worse, FRAMES))
    pairs = zip(scores.answers(better, FRAMES), scores.answers(worse, FRAMES), strict=True)
    differ = sum(one.answer != other.answer for one, other in pairs)
    why = f"{differ} answers differ" if differ else "no sentence of these answers ends before they do"
    return Check(paper=paper, here=f"{points(gain)}; {why}", holds=gain.low > 0)


CLAIM = Claim(
    name="zoomvlm",
    title="ZoomVLM: accuracy, tokens and time against vanilla and SlowFast (Tables 1 and 13)",
    model="nano_onevision",
    adapter=None,
    videos=f"videos of {DURATION_S:g} s as {FRAMES} frames, each question asked alone",
    grid=Grid(methods=ZOOM_METHODS, frames=(FRAMES,), one_by_one=True),
    held_out=_held_out,
    checks=_checks,
    cpu_s=86,
)

ABLATIONS = Claim(
    name="zoomvlm-ablations",
    title="ZoomVLM: ablations over k, s, m and the band of layers (Tables 2, 11 and 12)",
    model="nano_onevision",
    adapter=None,
    videos=f"half of the videos of {DURATION_S:g} s as {FRAMES} frames, each question asked alone",
    grid=Grid(
        methods=(*(one for one in ZOOM_METHODS if one.name == "zoom"), *ZOOM_ABLATIONS),
        frames=(FRAMES,),
        one_by_one=True,
    ),
    held_out=lambda episodes, frames, seed: _held_out(max(2, episodes // 2), frames, seed),
    checks=_ablation_checks,
    cpu_s=124,
)
