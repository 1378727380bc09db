"""Scores of generated answers against known ones. Pure functions, shared by training callbacks and evaluation."""

import string

SEQUENCE_KINDS = frozenset({"caption", "description"})
"""Kinds of question whose answer is a sentence: scored by ``ordered_word_score``, all others by ``exact_match``."""

FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "has",
        "have",
        "in",
        "into",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "that",
        "the",
        "then",
        "there",
        "this",
        "to",
        "was",
        "were",
        "with",
    ]
)
"""Words that carry no content; left out of sentence scores, so that a fluent but wrong sentence earns nothing for its
glue."""

_NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def normalise(text: str) -> str:
    """Lower-case, turn ASCII punctuation into spaces, drop the articles a, an, the, and join words by single spaces."""
    words = text.lower().translate(_NO_PUNCTUATION).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def content_words(text: str) -> list[str]:
    """Words of ``text`` in order: lower-cased, without punctuation and without ``FUNCTION_WORDS``."""
    return [word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in FUNCTION_WORDS]


def exact_match(answer: str, truth: str) -> float:
    """Return 1.0 if both are the same after ``normalise``, else 0.0. An empty truth matches only an empty answer."""
    return float(normalise(answer) == normalise(truth))


def ordered_word_score(answer: str, truth: str) -> float:
    """Return LCS(answer, truth) / max(len(answer), len(truth)) over content words, from 0 to 1.

    LCS is the longest common subsequence of the two word lists: words must be right and in the right order, but a
    missing word does not shift the rest. Dividing by the longer list means that listing every word there is earns
    nothing. 1.0 if both lists are empty.
    """
    said, wanted = content_words(answer), content_words(truth)
    longest = max(len(said), len(wanted))
    return _longest_common_subsequence(said, wanted) / longest if longest else 1.0


def score_answer(answer: str, truth: str, kind: str) -> float:
    """Score from 0 to 1 by the rule of the question's ``kind``: ``ordered_word_score`` for sentences, else
    ``exact_match``."""
    return ordered_word_score(answer, truth) if kind in SEQUENCE_KINDS else exact_match(answer, truth)


def _longest_common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook table kept one row at a time."""
    previous = [0] * (len(right) + 1)
    for word in left:
        current = [0]
        for index, other in enumerate(right):
            current.append(previous[index] + 1 if word == other else max(previous[index + 1], current[index]))
        previous = current
    return previous[-1]
