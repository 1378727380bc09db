"""What an adaptation says about zooming (ZoomVLM): the overview, the frames shown again, and tokens adjusted."""

from dataclasses import dataclass
from fractions import Fraction

from longvid_train.errors import UserError, nearest
from longvid_train.tokens.overview import Counting, check_thinning

PLACES = ("overview", "question")

BAND = (Fraction(5, 32), Fraction(20, 32))
"""First and last layer of the paper's band for LLaVA-NeXT, as shares of the decoder's depth: 5 to 20 of 32."""

BANDS = {"llava_onevision": (Fraction(10, 28), Fraction(25, 28))}
"""By transformers' ``model_type``, where it is another: 10 to 25. The paper writes that for OneVision-0.5B, whose
decoder has 24 layers; it fits the 28 of the 7B."""


@dataclass(frozen=True, kw_only=True)
class ZoomChoice:
    """The defaults are the paper's.

    Attributes:
        draft_tokens: ``s``, tokens generated before frames are chosen; they are generated again afterwards.
        zoomed_frames: ``k``, frames shown again in full; 0 leaves the overview as it is.
        adjusted_tokens: ``m``, tokens copied and as many dropped at an adjustment; 0 adjusts nothing.
        every_sentences: sentences between adjustments. The text says three; Algorithm 1 adjusts after each, which is 1.
        layers: first and last layer, counted from 0, whose attention counts; ``None`` is the paper's band, by depth.
        temporal_ratio: ``r``, frames taken for one in the overview.
        counting: how ``N / r`` is rounded; see `tokens.overview`.
        overview_side: pixels a side of the overview's pictures; ``None`` is two thirds of the model's: 224 of 336, 256
            of 384.
        zoomed_after: ``"overview"`` puts the frames in full directly behind the overview: what the prompt has behind
            the video is read again. ``"question"`` puts them behind all of the prompt but its last token, as the
            paper's Eq. 9 is written: no more than that token is read again.
    """

    draft_tokens: int = 20
    zoomed_frames: int = 10
    adjusted_tokens: int = 10
    every_sentences: int = 3
    layers: tuple[int, int] | None = None
    temporal_ratio: float = 1.5
    counting: Counting = "table"
    overview_side: int | None = None
    zoomed_after: str = "overview"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        least = {"draft_tokens": 1, "zoomed_frames": 0, "adjusted_tokens": 0, "every_sentences": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {limit}")
        if self.overview_side is not None and self.overview_side < 1:
            raise UserError(f"overview_side is {self.overview_side}; it must be at least 1 pixel")
        if self.zoomed_after not in PLACES:
            hint = nearest(self.zoomed_after, PLACES) or "."
            raise UserError(f"zoomed_after '{self.zoomed_after}' is unknown{hint} Use one of {', '.join(PLACES)}")
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            raise UserError(f"layers is {list(self.layers)}; give the first and the last layer of the band, from 0")
        check_thinning(self.temporal_ratio, self.counting)

    def band(self, model_type: str, depth: int) -> range:
        """The layers whose attention counts.

        Args:
            model_type: transformers' name of the architecture.
            depth: layers of its decoder.

        Raises:
            UserError: the band lies outside the decoder.
        """
        if self.layers is None:
            first, last = (int(share * depth) for share in BANDS.get(model_type, BAND))
            return range(first, last + 1)
        if self.layers[1] >= depth:
            raise UserError(
                f"layers {self.layers[0]} to {self.layers[1]} are outside the decoder's 0 to {depth - 1}; "
                "choose a band inside, or leave layers out"
            )
        return range(self.layers[0], self.layers[1] + 1)

    def side(self, full_side: int) -> int:
        """Pixels a side of the overview's pictures, of a model whose pictures have ``full_side``.

        Raises:
            UserError: they would be no smaller.
        """
        side = 2 * full_side // 3 if self.overview_side is None else self.overview_side
        if side >= full_side:
            raise UserError(
                f"overview_side is {side}, but the model's own pictures have {full_side} pixels a side; lower it"
            )
        return side
