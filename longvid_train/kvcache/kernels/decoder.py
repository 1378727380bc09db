"""One launch over all pages of a layer: tables, grids and buffers around the kernels of `split_kv`.

``B`` rows, ``H`` key-value heads, ``R`` query rows (queries times heads of a group), ``D`` head dim, ``T`` tokens.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from longvid_train.kvcache.kernels import split_kv
from longvid_train.kvcache.kernels.sides import Side, Stored, word_bytes
from longvid_train.kvcache.online_softmax import Partial
from longvid_train.kvcache.pages import Page

BLOCK_TOKENS = 64
"""Tokens a program decodes at a time: two tiles of 64 x 128 numbers."""
WARPS = 8
PROGRAMS_PER_PROCESSOR = 4
"""Programs wanted for each multiprocessor; pages are cut into parts until there are as many."""
MERGED_PIECES = 32
LEAST_TILE = 16
"""Rows and channels of the smallest matrix product on tensor cores."""

_STORED: dict[Stored, int] = {"nothing": 0, "token gain": 1, "channel groups": 2, "token groups": 3}


class PageDecoder:
    """Attention of few queries over the pages of one layer.

    Args:
        keys: of the layer, on its device.
        values: of the layer.
        heads: ``H``.
        head_dim: ``D``.
        exact: multiply in float32, for models in float32; otherwise on tensor cores in bfloat16.
        parts: pieces a page is cut into; ``None`` fills the device.
    """

    def __init__(
        self, keys: Side, values: Side, *, heads: int, head_dim: int, exact: bool, parts: int | None = None
    ) -> None:
        self._keys, self._values = keys, values
        self._heads, self._head_dim = heads, head_dim
        self._exact, self._parts = exact, parts
        self._block = math.gcd(BLOCK_TOKENS, keys.group) if keys.stored == "token groups" else BLOCK_TOKENS
        self._tabled: tuple[Page, ...] = ()
        self._table = torch.empty(0)
        self._near_cos, self._near_sin = self._near_angles()

    def attend(
        self,
        rows: torch.Tensor,
        pages: Sequence[Page],
        *,
        queries: int,
        mask: torch.Tensor | None,
        first_position: torch.Tensor,
        padding: torch.Tensor,
        sink_tokens: int,
    ) -> Partial:
        """Attention over every coded token that is visible and no sink.

        Args:
            rows: ``(B, H, R, D)`` float32 queries, scaled; those of one head of a group after the other.
            pages: of the layer, at least one.
            queries: of each head; ``R`` is a multiple.
            mask: ``(B or 1, 1, queries, at least T)`` bool, or numbers to add; ``None`` hides nothing.
            first_position: ``(B,)`` int64 rotary position of token 0.
            padding: ``(B,)`` int64 tokens before the first sink.
            sink_tokens: hidden after the padding.
        """
        batch, heads, count, head_dim = rows.shape
        assert (heads, head_dim) == (self._heads, self._head_dim) and pages
        longest = max(page.length for page in pages)
        parts = self._parts or _parts(rows.device, batch * heads * len(pages), longest, self._block)
        part_tokens = -(-longest // (parts * self._block)) * self._block
        pieces = len(pages) * parts
        peaks, masses = (rows.new_empty(batch, heads, pieces, count) for _ in range(2))
        mixed = rows.new_empty(batch, heads, pieces, count, head_dim)
        peak, mass = (rows.new_empty(batch, heads, count, 1) for _ in range(2))
        whole = rows.new_empty(batch, heads, count, head_dim)
        seen, mask_row, mask_query = _mask_view(mask, rows)
        with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():
            split_kv.split_pass[(batch * heads, pieces)](
                rows.contiguous(),
                self._page_table(pages),
                peaks,
                masses,
                mixed,
                *self._static(rows),
                first_position,
                padding,
                seen,
                mask_row,
                mask_query,
                heads,
                count,
                queries,
                parts,
                part_tokens,
                SINKS=sink_tokens,
                MASK=0 if mask is None else 1 if mask.dtype == torch.bool else 2,
                BR=max(_power(count), LEAST_TILE),
                **self.constants(),
                num_warps=WARPS,
            )
            split_kv.merge_pass[(batch * heads, count)](
                peaks,
                masses,
                mixed,
                rows if self._values.scale is None else self._values.scale,
                rows if self._values.offset is None else self._values.offset,
                peak,
                mass,
                whole,
                heads,
                count,
                pieces,
                D=head_dim,
                DP=_power(head_dim),
                BP=MERGED_PIECES,
                STATIC=self._values.scale is not None,
            )
        return Partial(peak, mass, whole)

    def _page_table(self, pages: Sequence[Page]) -> torch.Tensor:
        """Addresses of the pages; made anew when a page has changed, once in a flush."""
        if len(pages) == len(self._tabled) and all(map(lambda one, other: one is other, pages, self._tabled)):
            return self._table
        entries, start = [], 0
        for page in pages:
            entries.append(
                [page.length, start, *_addresses(page.keys, self._keys), *_addresses(page.values, self._values)]
            )
            start += page.length
        device = pages[0].keys["codes"].device
        self._tabled, self._table = tuple(pages), torch.tensor(entries, dtype=torch.int64).to(device)
        return self._table

    def _static(self, unused: torch.Tensor) -> list[torch.Tensor]:
        keys, values = self._keys, self._values
        theta = None if keys.rotation is None else keys.rotation.inv_freq
        given = [keys.scale, keys.offset, keys.levels, keys.mean, theta, self._near_cos, self._near_sin, values.levels]
        return [unused if tensor is None else tensor for tensor in given]

    def constants(self) -> dict[str, int | bool]:
        """What `split_kv.split_pass` is compiled for, beside query rows, sinks and mask."""
        head_dim, keys = self._head_dim, self._keys
        return {
            "D": head_dim,
            "BT": self._block,
            "EXACT": self._exact,
            "ROTATES": 0 if keys.rotation is None else 2 if keys.rotates_codes else 1,
            "DH": max(_power(head_dim // 2), LEAST_TILE),
            **_side_constants("K", keys, head_dim // 2 if keys.rotates_codes else head_dim),
            **_side_constants("V", self._values, head_dim),
        }

    def _near_angles(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """``(block, D / 2)`` cosines and sines inside a block, times the rotation's scaling."""
        rotation = self._keys.rotation
        if rotation is None:
            return None, None
        steps = torch.arange(self._block, device=rotation.inv_freq.device, dtype=torch.float64)
        angles = steps[:, None] * rotation.inv_freq.double()
        cos, sin = (rotation.scaling * part for part in (angles.cos(), angles.sin()))
        return cos.float().contiguous(), sin.float().contiguous()


def _side_constants(letter: str, side: Side, channels: int) -> dict[str, int | bool]:
    taken = word_bytes(side.bits, channels)
    in_word = 8 * taken // side.bits
    return {
        f"{letter}_BITS": side.bits,
        f"{letter}_IN_WORD": in_word,
        f"{letter}_WORD_BYTES": taken,
        f"{letter}_PADDED_WORDS": max(_power(channels // in_word), LEAST_TILE // in_word, 1),
        f"{letter}_LEVELS": 0 if side.levels is None else len(side.levels),
        f"{letter}_STORED": _STORED[side.stored],
        f"{letter}_GROUP": side.group,
    }


def _addresses(coded: dict[str, torch.Tensor], side: Side) -> list[int]:
    tensors = [coded[name] for name in side.tensor_names]
    assert all(tensor.is_contiguous() for tensor in tensors), "pages hold contiguous tensors"
    return [*(tensor.data_ptr() for tensor in tensors), 0, 0][:3]


def _mask_view(mask: torch.Tensor | None, unused: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The mask as bytes or float32, and its strides over rows and queries."""
    if mask is None:
        return unused, 0, 0
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    seen = mask.view(torch.uint8) if mask.dtype == torch.bool else mask.float()
    return seen, seen.stride(0) if len(seen) > 1 else 0, seen.stride(2) if seen.shape[2] > 1 else 0


def _parts(device: torch.device, programs: int, tokens: int, block: int) -> int:
    if device.type != "cuda":
        return 1
    wanted = PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(-(-wanted // programs), -(-tokens // block)))


def _power(number: int) -> int:
    """The least power of two that is not below ``number``."""
    return 1 << (number - 1).bit_length()
