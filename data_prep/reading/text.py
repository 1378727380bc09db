"""Bytes to text: UTF-8, strictly, a byte-order mark allowed; anything else is named."""

import codecs
from collections.abc import Iterator

from data_prep.reading.inputs import InputFile
from longvid_train.errors import UserError

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
NOT_UTF8 = "is not UTF-8 (perhaps Windows-1252 or Latin-1); convert the file to UTF-8"


def text_blocks(source: InputFile) -> Iterator[str]:
    """The file as text, a block at a time.

    Raises:
        UserError: a byte is not UTF-8; the message names file and line.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
    line = 1
    for block in _without_other_marks(source):
        pending, _ = decoder.getstate()
        try:
            yield decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _not_utf8(source, line, pending + block, error) from error
        line += block.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{source.name}:{line}: the file ends in the middle of a UTF-8 character") from error


def byte_lines(source: InputFile) -> Iterator[bytes]:
    """The lines of the file without their ends and without a byte-order mark.

    Raises:
        UserError: the file is UTF-16 or UTF-32.
    """
    rest = b""
    first = True
    for block in _without_other_marks(source):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line.removeprefix(codecs.BOM_UTF8) if first else line
            first = False
    if rest:
        yield rest.removeprefix(codecs.BOM_UTF8) if first else rest


def text_lines(source: InputFile) -> Iterator[str]:
    """The lines of the file with a newline at the end of each.

    Raises:
        UserError: a byte is not UTF-8; the message names file and line.
    """
    for number, line in enumerate(byte_lines(source), start=1):
        try:
            yield line.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            raise _not_utf8(source, number, line, error) from error


def _not_utf8(source: InputFile, line: int, raw: bytes, error: UnicodeDecodeError) -> UserError:
    line += raw.count(b"\n", 0, error.start)
    return UserError(f"{source.name}:{line}: byte 0x{raw[error.start]:02x} {NOT_UTF8}")


def _without_other_marks(source: InputFile) -> Iterator[bytes]:
    first = True
    for block in source.blocks():
        if first:
            for mark, encoding in _OTHER_MARKS:
                if block.startswith(mark):
                    raise UserError(f"{source.name}: the file is {encoding}; convert it to UTF-8")
        first = False
        yield block
