"""Random numbers of training as a pure function of (seed, rank, micro-batch).

Nothing about the generators needs saving: a continued run sets them to what the uninterrupted one had.
"""

import random

import numpy as np
import torch


def seed_micro_batch(seed: int, rank: int, micro_batch: int) -> None:
    """Seed Python's, numpy's and torch's generators (all devices) for one micro-batch.

    Args:
        seed: of the run.
        rank: the process; ranks draw different numbers.
        micro_batch: counted over the whole run on this rank, from 0.
    """
    words = np.random.SeedSequence([seed, rank, micro_batch]).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    np.random.seed(int(words[1] >> np.uint64(32)))
    random.seed(int(words[2]))
