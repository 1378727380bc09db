"""Codes of 1, 2, 3, 4 or 8 bits in bytes.

Code ``i`` of a row takes bits ``i b`` to ``(i + 1) b - 1`` of the row, bit 0 being the lowest of the first byte. A row
is the last axis and ends with a whole byte, so tokens can be appended, cut and selected without touching other tokens.
"""

import torch

BIT_WIDTHS = (1, 2, 3, 4, 8)

_WORDS = {1: (8, 1), 2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}
"""Codes and bytes of the smallest group of codes that fills whole bytes."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a row of ``count`` codes."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes along the last axis.

    Args:
        codes: ``(..., D)`` uint8, each below ``2 ** bits``.
        bits: one of `BIT_WIDTHS`.

    Returns:
        ``(..., packed_bytes(D, bits))`` uint8.
    """
    _check(codes, bits)
    if bits == 8:
        return codes.clone()
    per_word, word_bytes = _WORDS[bits]
    count = codes.shape[-1]
    padded = torch.nn.functional.pad(codes, (0, -count % per_word))
    grouped = torch.unflatten(padded, -1, (-1, per_word)).to(torch.int32)
    words = (grouped << _shifts(per_word, bits, codes.device)).sum(-1, dtype=torch.int32)
    as_bytes = (words.unsqueeze(-1) >> _shifts(word_bytes, 8, codes.device)) & 0xFF
    return as_bytes.to(torch.uint8).flatten(-2)[..., : packed_bytes(count, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `pack`.

    Args:
        packed: ``(..., packed_bytes(count, bits))`` uint8.
        bits: as packed.
        count: codes a row ``D``.

    Returns:
        ``(..., D)`` uint8.
    """
    _check(packed, bits)
    assert packed.shape[-1] == packed_bytes(count, bits), (packed.shape, bits, count)
    if bits == 8:
        return packed.clone()
    per_word, word_bytes = _WORDS[bits]
    if word_bytes == 1:
        shifts = _shifts(per_word, bits, packed.device).to(torch.uint8)
        return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % word_bytes))
    grouped = torch.unflatten(padded, -1, (-1, word_bytes)).to(torch.int32)
    words = (grouped << _shifts(word_bytes, 8, packed.device)).sum(-1, dtype=torch.int32)
    codes = (words.unsqueeze(-1) >> _shifts(per_word, bits, packed.device)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten(-2)[..., :count]


def _shifts(count: int, step: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, count * step, step, dtype=torch.int32, device=device)


def _check(rows: torch.Tensor, bits: int) -> None:
    assert bits in BIT_WIDTHS, bits
    assert rows.dtype == torch.uint8, rows.dtype
