"""A batch as keyword arguments."""

from typing import Any

from longvid_train.types import Batch


def visual_keywords(batch: Batch) -> dict[str, Any]:
    """Return the visual inputs of a batch as keyword arguments of the model; none for a batch of text."""
    return {} if batch["visual"] is None else {**batch["visual"]}
