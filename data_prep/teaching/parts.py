"""Long texts in parts that fit a teacher's window, and questions shared out among them."""

import re

_SCENE = re.compile(r"^(?=[ \t]*(?:\d+[.\s]+)?(?:INT|EXT|I/E|INT/EXT)[. /])", re.MULTILINE)
_PARAGRAPH = re.compile(r"(?<=\n)(?=[ \t]*\n)")
_LINE = re.compile(r"(?<=\n)")
_WORD = re.compile(r"(?<=\s)(?=\S)")
_SEAMS = (_SCENE, _PARAGRAPH, _LINE, _WORD)
"""Where a text may be cut, the best first: before a scene heading, between paragraphs, lines, words."""


def split_text(text: str, most_characters: int) -> list[str]:
    """Cut a text into consecutive parts of at most so many characters, at the best seams that serve.

    The parts joined are the text.
    """
    assert most_characters >= 1
    return _packed(_pieces(text, most_characters, _SEAMS), most_characters)


def share_out(count: int, sizes: list[int]) -> list[int]:
    """``count`` things by size, largest remainder first, the earlier one first among equals; the sum is ``count``."""
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (-(count * sizes[index] % total), index))
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    return shares


def _pieces(text: str, most_characters: int, seams: tuple[re.Pattern[str], ...]) -> list[str]:
    """Pieces that fit: cut at the first kind of seam, and at the next kind what is still too long."""
    if len(text) <= most_characters:
        return [text]
    if not seams:
        return [text[start : start + most_characters] for start in range(0, len(text), most_characters)]
    cut = [piece for piece in seams[0].split(text) if piece]
    return [smaller for piece in cut for smaller in _pieces(piece, most_characters, seams[1:])]


def _packed(pieces: list[str], most_characters: int) -> list[str]:
    """Neighbouring pieces joined as long as they fit."""
    parts = [""]
    for piece in pieces:
        if len(parts[-1]) + len(piece) <= most_characters:
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts
