"""Numbers to text, the same everywhere in a report."""

import re
from collections.abc import Mapping
from typing import Any

from longvid_train.evaluation.statistics import Interval

_PLACEHOLDER = re.compile(r"<(?:image|video)>\n?")


def percent(value: float) -> str:
    """``0.125`` to ``"12.5 %"``, with a narrow no-break space."""
    return _tenths(100 * value) + "\u202f%"


def interval(value: Interval) -> str:
    """The ends of an interval of scores, e.g. ``"40.0 to 61.5 %"``."""
    return f"{_tenths(100 * value.low)} to {percent(value.high)}"


def change(value: Interval) -> str:
    """A signed difference of scores in percentage points."""
    return _signed(value.mean)


def change_interval(value: Interval) -> str:
    """The ends of the interval of a difference, in percentage points."""
    return f"{_signed(value.low)} to {_signed(value.high)}"


def duration(seconds: float | None) -> str:
    """``372.4`` to ``"6 min 12 s"``, ``0.0364`` to ``"36 ms"``; None to ``"not known"``."""
    if seconds is None:
        return "not known"
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clock(seconds: float) -> str:
    """Time in a video: ``83.25`` to ``"1:23.2"``, whole seconds without decimals."""
    tenths = int(seconds * 10 + 1e-3)
    minutes, rest = divmod(tenths, 600)
    whole, tenth = divmod(rest, 10)
    return f"{minutes}:{whole:02d}" + (f".{tenth}" if tenth else "")


def memory(count: float) -> str:
    """Bytes in binary units: ``"812 MiB"``, ``"1.4 GiB"``."""
    mebibytes = count / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1000 else f"{mebibytes:.0f} MiB"


def number(value: float) -> str:
    """A count or a rate: thousands separated, decimals only below 100."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.1f}"


def small(value: float) -> str:
    """A loss: three decimals."""
    return f"{value:.3f}"


def hardware(facts: Mapping[str, Any]) -> str:
    """The run record's hardware in a few words: CUDA devices if there are any, else CPU cores."""
    devices, cores = list(facts.get("cuda_devices") or []), facts.get("cpu_cores")
    if devices:
        names = dict.fromkeys(str(device) for device in devices)
        return ", ".join(f"{devices.count(name)} x {name}" for name in names)
    return "an unrecorded machine" if cores is None else f"{cores} CPU core{'s' if cores != 1 else ''}"


def commit(name: str) -> str:
    """A commit's first 12 digits, keeping ``-dirty``."""
    digits, dash, mark = name.partition("-")
    return (digits[:12] + dash + mark) if len(digits) == 40 else name


def without_placeholders(question: str) -> str:
    """A question without the marks that stand for media."""
    return _PLACEHOLDER.sub("", question).strip()


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _signed(share: float) -> str:
    """Percentage points with a sign (a true minus), none on zero."""
    points = round(100 * share, 1)
    return f"{points:+.1f}".replace("-", "\u2212") if points else "0.0"
