"""Where LLaMA-VID's context attention looked for a question (paper Figures 6 and 11), read after the answer.

The tower's features are kept between questions, so that nothing is recorded while the model answers: the text decoder
passes over the kept frames once more, for the trace alone.
"""

from dataclasses import dataclass
from math import isqrt

import torch

from longvid_train.errors import UserError
from longvid_train.generate.chat import Conversation, VideoChat
from longvid_train.generate.llama_vid_prompting import LlamaVidPrompting
from longvid_train.generate.media import Medium
from longvid_train.models.llama_vid.context_scores import FIGURE_QUERIES, context_scores, top_patches

MOST_FRAMES = 512
"""Frames a trace holds; of more, an even choice with first and last."""

SCORE_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class ContextFrame:
    """One frame.

    Attributes:
        frame: its number among the frames shown.
        time_s: in the video; 0 for an image.
        scores: of each query, the score before the softmax of each patch, row by row.
        top: of each query, the patches that score highest, the best first.
    """

    frame: int
    time_s: float
    scores: tuple[tuple[float, ...], ...]
    top: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ContextTrace:
    """One question on one medium.

    Attributes:
        question: as the text decoder read it.
        answer: the model's.
        medium: path of the video or image.
        image: whether it is a still image.
        rows: patches from top to bottom.
        columns: patches from left to right.
        shown: frames the model was shown, of which `frames` are all or an even choice.
        frames: in time order.
    """

    question: str
    answer: str
    medium: str
    image: bool
    rows: int
    columns: int
    shown: int
    frames: tuple[ContextFrame, ...]


def context_traces(
    chat: VideoChat, talk: Conversation, *, queries: int = FIGURE_QUERIES, count: int | None = None
) -> tuple[ContextTrace, ...]:
    """Read the last question that showed something: a trace of each medium it showed, in order.

    Args:
        chat: the model.
        talk: with an answer.
        queries: of the text decoder's queries, how many from the first.
        count: highest patches to mark a query; see `top_patches`.

    Raises:
        UserError: another model, nothing asked or shown, or a model without context tokens.
    """
    prompting = chat.prompting
    if not isinstance(prompting, LlamaVidPrompting):
        raise UserError(
            f"{chat.name} is no LLaMA-VID and has no context attention to trace; trace an adaptation that zooms"
        )
    if talk.encoded is None or not talk.media:
        raise UserError("nothing was shown and asked yet; ask about a video or an image, then trace it")
    sample = prompting.encode(talk.turns[:-1], talk.layouts)
    ids, mask = prompting.processor.encode_prompts([sample.prompts[-1]])
    firsts = sample.spans[sample.spans[:, 2] == len(sample.prompts) - 1, 0].tolist()
    starts = [sum(layout.frame_count for layout in talk.layouts[:number]) for number in range(len(talk.layouts))]
    traces = []
    for number, start in enumerate(starts):
        medium = talk.media[number]
        if not any(start <= first < start + medium.layout.frame_count for first in firsts):
            continue
        chosen = _even_choice(medium.layout.frame_count)
        scores = context_scores(
            chat.model,
            talk.encoded.kept[number][chosen],
            ids.to(chat.engine.device),
            mask.to(chat.engine.device),
            queries=queries,
        )
        traces.append(_trace(sample.prompts[-1], talk.turns[-1].text, medium, chosen, scores, count))
    return tuple(traces)


def _even_choice(frames: int) -> list[int]:
    """All frames, or `MOST_FRAMES` spread evenly over them, first and last included."""
    most = min(frames, MOST_FRAMES)
    return [round(place * (frames - 1) / max(1, most - 1)) for place in range(most)]


def _trace(
    question: str, answer: str, medium: Medium, chosen: list[int], scores: torch.Tensor, count: int | None
) -> ContextTrace:
    side = isqrt(scores.shape[-1])
    top = top_patches(scores, count)
    return ContextTrace(
        question=question,
        answer=answer,
        medium=medium.path,
        image=medium.type == "image",
        rows=side,
        columns=side,
        shown=medium.layout.frame_count,
        frames=tuple(
            ContextFrame(
                frame=frame,
                time_s=medium.timestamps_s[frame],
                scores=tuple(tuple(round(score, SCORE_DIGITS) for score in query) for query in scores[row].tolist()),
                top=tuple(map(tuple, top[row].tolist())),
            )
            for row, frame in enumerate(chosen)
        ),
    )
