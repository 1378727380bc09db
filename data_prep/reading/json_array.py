"""JSON arrays of any size, one element at a time, with the line of each.

The standard decoder does the parsing; this file only keeps a window of text in front of it. (Streaming libraries such
as ijson do not tell the line of an element, and a user with a bad row in a gigabyte needs it.)
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.text import text_blocks
from longvid_train.errors import UserError

MAX_ELEMENT_CHARACTERS = 1 << 27
_NUMBER_TAIL = 4
_SPACE = re.compile(r"[ \t\r\n]+")


def read_json_array(source: InputFile) -> Iterator[Item]:
    """Yield the elements of the array that the file holds.

    Memory: a few times the larger of 1 MiB and the longest element.

    Raises:
        UserError: the file is not one JSON array, is cut off, or an element is broken (what follows a broken element
            cannot be trusted, so none is passed over).
    """
    window = _Window(source)
    if window.next_character() != "[":
        window.fail("the file must hold one JSON array, so it starts with '['")
    window.skip(1)
    if window.next_character() == "]":
        window.skip(1)
    else:
        yield from _elements(window)
    if window.next_character():
        window.fail("there is text behind the array's closing ']'")


def _elements(window: "_Window") -> Iterator[Item]:
    for number in itertools.count(1):
        window.next_character()
        line = window.line
        yield Item(file=window.name, line=line, element=number, value=window.element())
        follows = window.next_character()
        if follows not in (",", "]"):
            window.fail(f"',' or ']' must follow the element of line {line}" if follows else "the array is cut off")
        window.skip(1)
        if follows == "]":
            return


class _Window:
    """The text that was read and not yet used."""

    def __init__(self, source: InputFile) -> None:
        self.name = source.name
        self.line = 1
        self._blocks = text_blocks(source)
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def next_character(self) -> str:
        """Pass over white space; the character that follows, which stays, or "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self.line += space.group().count("\n") if space else 0
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def skip(self, characters: int) -> None:
        """Pass over characters that are no line breaks."""
        self._at += characters

    def element(self) -> Any:
        """Parse the value that starts here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._surely_broken(error) or not self._read_more():
                    self._fail_inside(error)
            except (ValueError, RecursionError) as error:
                self.fail(f"the element cannot be read ({error})")
            else:
                if len(self._text) - end < _NUMBER_TAIL and self._read_more():
                    continue  # a number may go on: 1 may be 1.5 or 1e+5
                self.line += self._text.count("\n", self._at, end)
                self._at = end
                return value

    def fail(self, rule: str) -> NoReturn:
        """Raise `UserError` for the place where the window stands."""
        raise UserError(f"{self.name}:{self.line}: not JSON: {rule}")

    def _surely_broken(self, error: json.JSONDecodeError) -> bool:
        """Whether more text cannot mend it: the error stands before the end of what was read."""
        unused = len(self._text) - self._at
        at_the_end = error.msg.startswith("Unterminated string") or len(self._text) - error.pos < 16
        return unused > MAX_ELEMENT_CHARACTERS or not at_the_end

    def _fail_inside(self, error: json.JSONDecodeError) -> NoReturn:
        line = self.line + self._text.count("\n", self._at, error.pos)
        cut = " (the file may be cut off)" if self._ended else ""
        raise UserError(
            f"{self.name}:{line}: not JSON: {error.msg} in the element that starts on line {self.line}{cut}"
        ) from error

    def _read_more(self) -> bool:
        """Append as much text as is unused, at least one block; False, and nothing changes, at the end of the file."""
        unused = len(self._text) - self._at
        pieces: list[str] = []
        read = 0
        while not self._ended and (read == 0 or read < unused):
            block = next(self._blocks, None)
            self._ended = block is None
            pieces.append(block or "")
            read += len(pieces[-1])
        if read:
            self._text = self._text[self._at :] + "".join(pieces)
            self._at = 0
        return read > 0
