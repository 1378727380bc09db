"""What the schemes have in common whose fixed levels calibration searches: bits, and how the range is chosen."""

from dataclasses import dataclass
from typing import ClassVar

from longvid_train.kvcache.clipping import SEARCHES, Search
from longvid_train.kvcache.scheme import check_bits, check_choice


@dataclass(frozen=True, kw_only=True)
class SearchedLevels:
    """Base of a scheme with calibrated, asymmetric levels for single tokens; a subclass names its ``kind``.

    Attributes:
        bits: of a code.
        search: ``"minmax"`` or ``"mse"``.
    """

    kind: ClassVar[str]

    bits: int = 2
    search: Search = "mse"

    symmetric: ClassVar[bool] = False
    calibrated: ClassVar[bool] = True
    block_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be coded."""
        check_bits(self.bits, self.kind)
        check_choice(self.search, SEARCHES, "search")

    def check_head_dim(self, head_dim: int) -> None:
        """Every head dim will do."""
