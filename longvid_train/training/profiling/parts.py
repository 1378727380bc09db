"""A rank's window divided into parts of a step, and waiting for other ranks told from transfer."""

import numpy as np
from numpy.typing import NDArray

from longvid_train.training.profiling.intervals import NONE, Spans, partition
from longvid_train.training.profiling.marks import Part
from longvid_train.training.profiling.trace import RankTrace

_ORDER = (Part.DATA, Part.COPY, Part.FORWARD, Part.BACKWARD, Part.CHECKPOINT, Part.VALIDATION, Part.OPTIMIZER)
_LAUNCHING = (Part.FORWARD, Part.BACKWARD, Part.OPTIMIZER)


def collective_lengths_s(trace: RankTrace) -> NDArray[np.float64]:
    """``(n,)`` seconds from the moment this rank joined each collective to its end."""
    return trace.collectives[:, 1] - trace.collectives[:, 0]


def rank_parts_s(trace: RankTrace, shortest_s: NDArray[np.float64]) -> dict[Part, float]:
    """Seconds of the window by part; together they are the window.

    A collective that another rank joins late lasts on this rank until that one has come and the transfer is done; on
    the last to come it lasts as long as the transfer. So the transfer takes what the collective takes where it is
    shortest, at its end, and what is before that is waiting. No clock of another rank is needed.

    Computation comes first: what runs behind it costs no time. On a CPU the main thread is the device, so that its
    data wait is too; an accelerator may compute meanwhile.

    Args:
        trace: of the rank.
        shortest_s: ``(n,)``, the least of `collective_lengths_s` over the ranks.
    """
    begun, ended = trace.collectives[:, 0], trace.collectives[:, 1]
    joined = ended - np.minimum(shortest_s, ended - begun)
    transfer = (Part.COMMUNICATION, np.stack([joined, ended], axis=1))
    waiting = (Part.WAITING, np.stack([begun, joined], axis=1))
    computing = [(part, trace.computing.get(part, NONE)) for part in (*_ORDER, Part.OTHER)]
    host = [(part, trace.marks.get(part, NONE)) for part in _ORDER]
    if trace.on_accelerator:
        device = [*computing, transfer, waiting, (Part.COPY, trace.copying)]
        layers = [*device, *((Part.HOST if part in _LAUNCHING else part, marked) for part, marked in host)]
    else:
        layers = [*host[:2], *computing, transfer, waiting, *host[2:]]
    shares = dict.fromkeys(Part, 0.0)
    for name, seconds in partition(trace.window, _named(layers), Part.OTHER).items():
        shares[Part(name)] = seconds
    return shares


def _named(layers: list[tuple[Part, Spans]]) -> list[tuple[str, Spans]]:
    return [(part.value, covered) for part, covered in layers]
