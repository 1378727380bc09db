"""Sentences of an answer while it is generated, on the decoded text, so that they are the same for every tokenizer.

A sentence ends behind

- ``.``, ``!`` or ``?`` (several, and closing quotes and brackets behind them), if white space and then no lower-case
  letter follows: what follows must be there, so the end is seen one token later, and a decimal (``3.5``) or a file name
  never is one;
- full-width ``。``, ``！`` or ``？``, with what closes quotes behind them, if anything else follows;
- the end of a line that holds a letter.

No end is a full stop behind one capital letter (``J. Smith``), behind a number that opens a line (``2. A man``), or
behind an abbreviation of `ABBREVIATIONS`. ``etc.`` and the like are decided by the letter that follows.
"""

import re

ABBREVIATIONS = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "e.g", "i.e", "cf", "fig", "no", "vol", "dept", "gen")
)

REPLACEMENT = "\ufffd"
"""Stands at the end of a text whose last character is not complete yet (byte-level tokens)."""

_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[^\s])|[。！？]+[」』”’]*(?=[^。！？」』”’])|\n+")
_CLOSING = tuple("\"'”’)]」』")
_INSIDE = frozenset(".!?。！？\n" + REPLACEMENT)
_LAST_WORD = re.compile(r"(\S+?)\.[\"'”’)\]]*$")


def may_end(piece: str) -> bool:
    """Whether a token with this text can be part of a sentence's end: marks, white space, unfinished characters."""
    return not piece.strip() or not _INSIDE.isdisjoint(piece)


def undecided(rest: str) -> bool:
    """Whether what comes next decides if ``rest``, the text behind the last complete sentence, is one."""
    return rest[-1:] in _CLOSING or may_end(rest[-1:])


def split_sentences(text: str) -> tuple[list[str], str]:
    """Complete sentences, stripped, and the rest.

    What is complete stays so, whatever is written behind it. (Tokens of single bytes can make a decoded text shorter
    for a moment: count the most there were.)
    """
    text = text.rstrip(REPLACEMENT)
    sentences, start = [], 0
    for found in _END.finditer(text):
        sentence = text[start : found.end()].strip()
        if not any(map(str.isalnum, sentence)) or not _ends(found.group(), sentence, text[found.end() :].lstrip()):
            continue
        sentences.append(sentence)
        start = found.end()
    return sentences, text[start:].strip()


def _ends(mark: str, sentence: str, following: str) -> bool:
    if mark.isspace():
        return any(map(str.isalpha, sentence))
    if mark[0] in "。！？":
        return True
    if following[0].islower():
        return False
    word = _LAST_WORD.search(sentence)
    if word is None or mark.startswith(("!", "?", "..")):
        return True
    last = word.group(1).lstrip("(\"'“‘[")
    opens_line = sentence.splitlines()[-1].strip() == word.group(0)
    return not (
        last.lower() in ABBREVIATIONS or (len(last) == 1 and last.isupper()) or (last.isdecimal() and opens_line)
    )
