"""Which cached tokens are cells of which picture.

``T`` visual tokens of the pictures, in reading order; tokens after the video belong to none.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch

from longvid_train.generate.zoom.trace import TokenPlace
from longvid_train.tokens.overview import ZoomPlan
from longvid_train.tokens.plan import TokenPlan


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One frame at one resolution.

    Attributes:
        pathway: ``"overview"`` or ``"zoom"``.
        place: of the frame in the overview.
        frame: its number among the frames taken.
        rows: of cells.
        columns: of cells.
        class_tokens: in front of the cells.
    """

    pathway: str
    place: int
    frame: int
    rows: int
    columns: int
    class_tokens: int

    @property
    def tokens(self) -> int:
        """Class tokens and cells."""
        return self.class_tokens + self.rows * self.columns


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in reading order and where their tokens stand.

    Attributes:
        shown: the pictures.
        positions: ``(T,)`` int64, positions of their tokens in the prompt.
    """

    shown: tuple[Picture, ...]
    positions: torch.Tensor

    def __post_init__(self) -> None:
        """Assert that both are of the same tokens."""
        assert len(self.positions) == sum(picture.tokens for picture in self.shown)

    def split(self, of_tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``(T,)`` numbers, those of each picture."""
        return torch.split(of_tokens, [picture.tokens for picture in self.shown])

    def token_places(self, tokens: list[int]) -> tuple[TokenPlace, ...]:
        """Picture, frame, row and column of some of the ``T`` tokens."""
        starts = list(accumulate((picture.tokens for picture in self.shown), initial=0))
        found = []
        for token in tokens:
            number = next(number for number, stop in enumerate(starts[1:]) if token < stop)
            picture = self.shown[number]
            cell = token - starts[number] - picture.class_tokens
            row, column = divmod(cell, picture.columns) if cell >= 0 else (-1, -1)
            found.append(TokenPlace(picture=number, frame=picture.frame, row=row, column=column))
        return tuple(found)

    def and_zoomed(self, zoomed: "Pictures") -> "Pictures":
        """Both, one after the other."""
        return Pictures((*self.shown, *zoomed.shown), torch.cat([self.positions, zoomed.positions]))


def overview_pictures(plan: ZoomPlan, placeholders: torch.Tensor) -> Pictures:
    """The overview's pictures.

    Args:
        plan: of the video.
        placeholders: ``(T + end tokens,)`` int64, positions of the prompt's visual tokens.
    """
    shown = _pictures("overview", plan.overview, tuple(range(len(plan.shown))), plan)
    return Pictures(shown, placeholders[: plan.overview.frame_tokens])


def zoomed_pictures(plan: ZoomPlan, chosen: tuple[int, ...], start: int) -> Pictures:
    """Chosen frames in full, whose tokens stand from position ``start`` on; ``chosen`` are places in the overview."""
    encoded, zoom = plan.zoomed(chosen)
    return Pictures(_pictures("zoom", zoom, encoded, plan), torch.arange(start, start + zoom.frame_tokens))


def _pictures(name: str, shown: TokenPlan, places: tuple[int, ...], plan: ZoomPlan) -> tuple[Picture, ...]:
    return tuple(
        Picture(
            pathway=name,
            place=places[one.frame],
            frame=plan.shown[places[one.frame]],
            rows=one.rows,
            columns=one.columns,
            class_tokens=shown.grid.class_tokens,
        )
        for one in shown.pathways[0].frames
    )
