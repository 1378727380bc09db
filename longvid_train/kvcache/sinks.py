"""The first tokens of every row, kept as they are.

Rows that are padded on the left start at different places, so each row keeps its own. Sink tokens have codes like all
others; while they lie in pages, attention hides the codes and uses what is kept here.
"""

from collections.abc import Callable

import torch


class SinkTokens:
    """Keys and values of ``count`` tokens a row.

    Args:
        count: tokens a row.
        padding: ``(B,)`` int64 tokens of padding on the left of each row.
        like: ``(B, H, T, D)`` keys, for shape, dtype and device.
    """

    def __init__(self, count: int, padding: torch.Tensor, like: torch.Tensor) -> None:
        rows, heads, _, head_dim = like.shape
        self.index = padding[:, None] + torch.arange(count, device=padding.device)
        self.keys = like.new_zeros(rows, heads, count, head_dim)
        self.values = torch.zeros_like(self.keys)

    def take(self, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        """Keep what is a sink among new tokens ``(B, H, T, D)``, the first of which has index ``start``."""
        inside = (self.index >= start) & (self.index < start + keys.shape[2])
        if not inside.any():
            return
        source = (self.index - start).clamp(0, keys.shape[2] - 1)[:, None, :, None].expand_as(self.keys)
        chosen = inside[:, None, :, None]
        self.keys = torch.where(chosen, keys.gather(2, source), self.keys)
        self.values = torch.where(chosen, values.gather(2, source), self.values)

    def hidden(self, start: int, stop: int) -> torch.Tensor:
        """``(B, stop - start)`` bool: which of the tokens ``start`` to ``stop - 1`` are sinks."""
        place = torch.arange(start, stop, device=self.index.device)
        return (self.index[:, :, None] == place).any(1)

    def restored(self, scores: torch.Tensor, rows: torch.Tensor, *, coded: int) -> torch.Tensor:
        """Scores ``(B, H, R, T)`` of rows ``(B, H, R, D)``, those of sinks among the first ``coded`` tokens exact."""
        inside = self.index < coded
        if not inside.any():
            return scores
        exact = rows @ self.keys.float().transpose(-1, -2)
        columns = torch.where(inside, self.index, scores.shape[-1])[:, None, None, :].expand_as(exact)
        return torch.nn.functional.pad(scores, (0, 1)).scatter(-1, columns, exact)[..., :-1]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change every tensor."""
        self.index, self.keys, self.values = change(self.index), change(self.keys), change(self.values)

    def nbytes(self) -> int:
        """Bytes kept."""
        return self.keys.nbytes + self.values.nbytes + self.index.nbytes
