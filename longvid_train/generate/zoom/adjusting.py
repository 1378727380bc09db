"""Adaptive token adjustment (paper Sec. 4.3, Eq. 10 to 12): the most attended visual tokens copied, the least dropped.

A copy stands at its token's position with its token's key and value, so copying and dropping only changes how often a
cached token counts (`kvcache.watch`). Tokens are ranked by the attention of one copy; each of the ``m`` highest gets
one more copy, each of the ``m`` lowest loses one, with its last it is gone. Ties go to the token that is read first.

Tokens that are gone stay in the cache, hidden, until they are a share `COMPACT_SHARE` of it; then a full-precision
cache is rewritten without them. Codes are never moved.

``T`` visual tokens of the pictures.
"""

from dataclasses import dataclass
from typing import Any

import torch

from longvid_train.kvcache.thinning import ThinningCache
from longvid_train.kvcache.watch import AttentionWatch

COMPACT_SHARE = 1 / 16
"""Rewriting a cache takes about the time of reading it twice, which removing this much saves within 32 tokens."""


@dataclass(frozen=True)
class Adjusted:
    """Numbers of the tokens copied (most attended first) and dropped (least attended first)."""

    copied: list[int]
    dropped: list[int]


class TokenAdjuster:
    """See the module.

    Args:
        watch: of the model that generates.
        positions: ``(T,)`` int64, where the visual tokens stand in the cache, ascending.
        cache: that it reads.
        compact_share: see `COMPACT_SHARE`.
    """

    def __init__(
        self, watch: AttentionWatch, positions: torch.Tensor, cache: Any, *, compact_share: float = COMPACT_SHARE
    ) -> None:
        self._watch = watch
        self._columns = positions.cpu().clone()
        self._held = torch.ones(len(positions), dtype=torch.bool)
        self._cache = cache
        self._compact_share = compact_share
        self.counts = torch.ones(len(positions), dtype=torch.int64)

    @property
    def tokens(self) -> int:
        """Visual tokens now, copies counted."""
        return int(self.counts.sum())

    def attention(self) -> torch.Tensor:
        """``(T,)`` float32 on the CPU: attention of the last query on each token, its copies together."""
        row = self._watch.row().cpu()
        found = torch.zeros(len(self._columns))
        found[self._held] = row[self._columns[self._held]]
        return found

    def adjust(self, most: int, attention: torch.Tensor) -> Adjusted:
        """Copy ``most`` tokens and drop as many; fewer where fewer than twice as many are left.

        Args:
            most: tokens.
            attention: `attention` now.
        """
        live = self.counts.nonzero().flatten()
        number = min(most, len(live) // 2)
        of_a_copy = attention[live] / self.counts[live]
        highest = live[of_a_copy.argsort(descending=True, stable=True)[:number]]
        left = ~torch.isin(live, highest)
        lowest = live[left][of_a_copy[left].argsort(stable=True)[:number]]
        self.counts[highest] += 1
        self.counts[lowest] -= 1
        self._compact()
        self._watch.set_multiplicity(self._by_column())
        return Adjusted(highest.tolist(), lowest.tolist())

    def _by_column(self) -> torch.Tensor:
        """How often each of the cache's first tokens counts, up to the last visual one."""
        counts = torch.ones(int(self._columns.max()) + 1, dtype=torch.int64)
        counts[self._columns[self._held]] = self.counts[self._held]
        return counts

    def _compact(self) -> None:
        if not isinstance(self._cache, ThinningCache):
            return
        gone = self._held & (self.counts == 0)
        if int(gone.sum()) < self._compact_share * self._cache.held:
            return
        kept = torch.ones(self._cache.held, dtype=torch.bool)
        kept[self._columns[gone]] = False
        self._cache.remove(kept.nonzero().flatten())
        self._columns = (kept.cumsum(0) - 1)[self._columns]
        self._held &= ~gone
