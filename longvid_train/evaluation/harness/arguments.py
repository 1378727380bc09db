"""lmms-eval's ``--model_args`` and ``--batch_size`` to the settings of an evaluation; lmms-eval is not needed."""

from collections.abc import Mapping
from typing import Any

from longvid_train.adaptation.records import check_keys
from longvid_train.errors import UserError
from longvid_train.evaluation.local.settings import EvaluationSettings, settings_of

TAKEN = (
    "model",
    "adapter",
    "adaptation",
    "template",
    "prompt",
    "frames",
    "fps",
    "max_new_tokens",
    "cached_videos",
    "device",
    "dtype",
    "features_on",
    "reader",
    "isolated",
)
"""Settings that ``--model_args`` may give; ``pretrained`` is another word for ``model``."""

MAX_NEW_TOKENS = 1024
"""Longest answer where neither the task nor ``--model_args`` says: that of lmms-eval's own models.

Tasks that ask for descriptions (``video_dc499``, the five of VDC) say nothing and rely on it.
"""


def settings_of_arguments(given: Mapping[str, Any]) -> EvaluationSettings:
    """What lmms-eval passes to a model: the values of ``--model_args`` and of its own ``--batch_size``.

    Raises:
        UserError: an unknown name, or a value of another type or out of its range.
    """
    known = {name: value for name, value in given.items() if name != "max_batch_size" and value is not None}
    batch_size = _batch_size(known.pop("batch_size", 1))
    if "pretrained" in known:
        known["model"] = known.pop("pretrained")
    check_keys(known, TAKEN, "model_args")
    values = {"max_new_tokens": MAX_NEW_TOKENS, **known, "batch_size": batch_size}
    return settings_of(values, where="model_args")


def _batch_size(given: object) -> int:
    """lmms-eval passes what stood behind ``--batch_size``, as a word."""
    word = str(given)
    size = int(word) if word.isdecimal() else 0
    if size < 1:
        raise UserError(
            f"--batch_size is '{word}'; it must be a whole number of at least 1, for no size is searched: "
            "give e.g. --batch_size 4"
        )
    return size
