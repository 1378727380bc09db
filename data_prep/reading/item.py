"""What a reader yields: one value and the line it starts on, or what is wrong with it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """One element of an annotation file.

    Attributes:
        file: name of the file, as the user gave it.
        line: line on which the element starts, counted from 1; 0 where the element is the file itself.
        element: which element of an array it is, counted from 1 (published arrays are often one long line); 0 where
            lines count.
        value: the parsed element; None if it could not be parsed.
        problem: why it could not be parsed; the reader could go on behind it.
    """

    file: str
    line: int
    element: int = 0
    value: Any = None
    problem: str | None = None

    @property
    def where(self) -> str:
        """``file:line``, and in an array the number of the element."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} (element {self.element})" if self.element else place
