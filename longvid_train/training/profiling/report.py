"""A profile as a table and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from longvid_train.training.profiling.marks import Part
from longvid_train.training.profiling.verdict import Verdict


def table(ranks: Sequence[Mapping[Part, float]], steps: int) -> str:
    """Seconds of a step by part, one column a rank, parts that took no time left out; Markdown.

    Args:
        ranks: seconds of the window by part, for each rank.
        steps: optimiser steps in the window.
    """
    names = [f"rank {rank}" for rank in range(len(ranks))]
    lines = ["| seconds a step | " + " | ".join(names) + " |", "|---" * (1 + len(ranks)) + "|"]
    for part in Part:
        if any(parts[part] for parts in ranks):
            cells = [f"{parts[part] / steps:.4f} ({parts[part] / sum(parts.values()):.1%})" for parts in ranks]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
    lines.append("| step | " + " | ".join(f"{sum(parts.values()) / steps:.4f}" for parts in ranks) + " |")
    return "\n".join(lines) + "\n"


def as_json(
    ranks: Sequence[Mapping[Part, float]], verdict: Verdict, *, first_step: int, steps: int, device: str
) -> dict[str, Any]:
    """What ``profile/steps_<first>-<last>.json`` holds."""
    return {
        "first_step": first_step,
        "steps": steps,
        "device": device,
        "verdict": {"cause": str(verdict.cause), "rank": verdict.rank, "share": verdict.share, "text": verdict.text},
        "seconds_per_step": [{str(part): parts[part] / steps for part in Part} for parts in ranks],
    }
