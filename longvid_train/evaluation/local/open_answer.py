"""Open answers against short right ones, normalised as in VQA (Antol et al. 2015, github.com/GT-Vision-Lab/VQA).

Its rules: lower case, no articles, no punctuation, number words as digits, ``dont`` the same as ``don't``. Here
apostrophes are dropped on both sides, which does what its table of contractions does.
"""

from longvid_train.generate.scoring import normalise

_APOSTROPHES = str.maketrans("", "", "'’`")
_DIGITS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    )
} | {"none": "0"}


def vqa_normalise(text: str) -> str:
    """Words of a short answer as they are compared."""
    words = normalise(text.translate(_APOSTROPHES)).split()
    return " ".join(_DIGITS.get(word, word) for word in words)


def matches(answer: str, truth: str) -> bool:
    """Whether both are the same, normalised."""
    return vqa_normalise(answer) == vqa_normalise(truth)


def contains(answer: str, truth: str) -> bool:
    """Whether the words of the right answer stand in the answer, in a row; an empty right answer is in none."""
    wanted = vqa_normalise(truth)
    return bool(wanted) and f" {wanted} " in f" {vqa_normalise(answer)} "
