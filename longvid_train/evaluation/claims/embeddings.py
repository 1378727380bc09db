"""Visual context window extension, Figure 1b: visual and text embeddings lie in two clusters of the language model.

The paper draws both by t-SNE and argues from the gap that the visual window must be extended on its own. Here the same
is drawn of the nano OneVision: one visual token of every frame of held-out videos, as the projector makes it, and the
embeddings of the words that questions and answers about them use. A silhouette near 1 is two clusters, near 0 none.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from longvid_train.adaptation.settings import Adaptation
from longvid_train.evaluation.charts import AFTER, chart_style, figure_png
from longvid_train.evaluation.claims.answering import encode_clips
from longvid_train.evaluation.claims.claim import Check, ComputedClaim, Finding
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.statistics import Interval, bootstrap_mean
from longvid_train.evaluation.tsne import principal_components, squared_distances, tsne
from longvid_train.models.backbones import BackboneProcessor, load_backbone
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.world.episode import COLOURS, DIGITS, SCENES, SHAPES

EPISODES = 30
FRAMES = 8
DURATION_S = 8.0
TITLE = "Visual context window extension: Figure 1b, embeddings of visual and text tokens"
WORDS = (*COLOURS, *SHAPES, *SCENES, *DIGITS)
"""What pictures and text have in common; they are named in the picture."""

APART = 0.25
"""Mean silhouette from which clusters count as distinct: below it structure is weak (Kaufman and Rousseeuw 1990)."""

_TEXT = "#c77b1d"


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """``(n, H)`` float64 of both kinds of token, and the text tokens' words."""

    visual: NDArray[np.float64]
    text: NDArray[np.float64]
    words: tuple[str, ...]


@torch.no_grad()
def read_embeddings(backbone: AnyBackbone, processor: BackboneProcessor, clips: tuple[HeldOut, ...]) -> Embeddings:
    """One visual token of every frame, drawn from the seed of its place, and every text token of the clips' questions.

    Args:
        backbone: with float32 weights.
        processor: of the checkpoint.
        clips: of one number of frames; their questions' and answers' tokens and `WORDS` are the text.
    """
    plan = Adaptation().plan_frames(len(clips[0].clip.times_s), backbone.facts.grid)
    tokens = encode_clips(backbone, processor, clips, plan)
    shown = tokens[:, : plan.frame_tokens]
    per_frame = shown.reshape(len(clips) * plan.frame_count, -1, shown.shape[-1])
    rng = random.Random(0)
    drawn = torch.tensor([rng.randrange(per_frame.shape[1]) for _ in per_frame])
    texts = [*WORDS, *(text for one in clips for q in one.questions for text in (q.text, q.answer))]
    ids = sorted({one for text in texts for one in processor.tokenizer.encode(f" {text}", add_special_tokens=False)})
    table = backbone.model.get_input_embeddings().weight
    return Embeddings(
        visual=per_frame[torch.arange(len(per_frame)), drawn].double().numpy(),
        text=table[torch.tensor(ids)].double().numpy(),
        words=tuple(processor.tokenizer.decode([one]).strip() for one in ids),
    )


def silhouettes(points: NDArray[np.float64], kinds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``(n,)`` between -1 and 1: how much nearer a point is to its own kind than to the other (Rousseeuw 1987).

    Args:
        points: ``(n, H)``.
        kinds: ``(n,)``, at least two points of each.
    """
    distances = np.sqrt(squared_distances(points))
    same = kinds[:, None] == kinds[None]
    own = (distances * same).sum(axis=1) / (same.sum(axis=1) - 1)
    other = (distances * ~same).sum(axis=1) / (~same).sum(axis=1)
    return np.asarray((other - own) / np.maximum(own, other))


def separation(found: Embeddings) -> tuple[Interval, float]:
    """Mean silhouette of all points, and the share of points whose nearest neighbour is of their own kind."""
    points, kinds = _all(found)
    distances = squared_distances(points)
    np.fill_diagonal(distances, np.inf)
    nearest = kinds[distances.argmin(axis=1)]
    return bootstrap_mean(list(silhouettes(points, kinds))), float((nearest == kinds).mean())


def _all(found: Embeddings) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    kinds = np.arange(len(found.visual) + len(found.text)) < len(found.visual)
    return np.concatenate([found.visual, found.text]), kinds


def embeddings_png(found: Embeddings) -> bytes:
    """t-SNE on the left, principal components on the right; the world's words are written beside their points."""
    points, kinds = _all(found)
    with chart_style():
        figure = Figure(figsize=(11, 5.2), facecolor="white")
        for axes, name, placed in zip(
            figure.subplots(1, 2),
            ("t-SNE", "principal components"),
            (tsne(points), principal_components(points)),
            strict=True,
        ):
            axes.scatter(*placed[kinds].T, s=9, color=AFTER, alpha=0.6, label="visual tokens", linewidths=0)
            axes.scatter(*placed[~kinds].T, s=14, color=_TEXT, label="text tokens", linewidths=0)
            _name_words(axes, placed[~kinds], found.words)
            axes.set_title(name, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
        figure.suptitle(TITLE, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
        return figure_png(figure)


def _name_words(axes: Any, placed: NDArray[np.float64], words: tuple[str, ...]) -> None:
    for point, word in zip(placed, words, strict=True):
        if word in WORDS:
            axes.annotate(word, point, xytext=(3, 2), textcoords="offset points", fontsize=6.5)


def _find(source: Path | None) -> Finding:
    assert source is not None, "this claim names a model"
    backbone = load_backbone(source, dtype="float32")
    clips = held_out_clips(episodes=EPISODES, duration_s=DURATION_S, frames=FRAMES, seed=0, seen_only=True)
    found = read_embeddings(backbone, BackboneProcessor.load(source, backbone.facts), clips)
    silhouette, own = separation(found)
    sizes = {kind: float(np.linalg.norm(points, axis=1).mean()) for kind, points in _kinds(found)}
    check = Check(
        paper="Figure 1b: visual and text embeddings form two distinct clusters",
        here=f"mean silhouette {silhouette.mean:.2f} ({silhouette.low:.2f} to {silhouette.high:.2f}); "
        f"{100 * own:.0f} % of the tokens have a neighbour of their own kind",
        holds=silhouette.low > APART,
    )
    rows = [f"| {kind} | {len(points)} | {sizes[kind]:.2f} |" for kind, points in _kinds(found)]
    return Finding(
        checks=(check,),
        tables="\n".join(["| tokens | points | mean length |", "|---|---|---|", *rows]),
        values={
            "claim": CLAIM.name,
            "title": TITLE,
            "checks": [asdict(check)],
            "silhouette": {"mean": silhouette.mean, "low": silhouette.low, "high": silhouette.high},
            "own_kind_neighbours": own,
            "mean_length": sizes,
        },
        plots={"embeddings.png": embeddings_png(found)},
    )


def _kinds(found: Embeddings) -> tuple[tuple[str, NDArray[np.float64]], ...]:
    return (("visual", found.visual), ("text", found.text))


CLAIM = ComputedClaim(name="embeddings", title=TITLE, model="nano_onevision", cpu_s=12, find=_find)
