"""One line that says what a run waits for, from the parts of a step on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from longvid_train.training.profiling.marks import Part

MIN_WAIT_SHARE = 0.25
"""A run that waits for nothing for as long as this share of a step is bound by its computation."""


class Cause(StrEnum):
    """What bounds the speed of a run."""

    COMPUTE = "compute"
    DATA = "data"
    COPY = "copies to the device"
    COMMUNICATION = "communication"
    RANKS = "other ranks"
    HOST = "the host"
    CHECKPOINTS = "checkpoints"
    VALIDATION = "validation"
    CALLBACKS = "callbacks and logging"


CAUSES = {
    Part.DATA: Cause.DATA,
    Part.COPY: Cause.COPY,
    Part.FORWARD: Cause.COMPUTE,
    Part.BACKWARD: Cause.COMPUTE,
    Part.OPTIMIZER: Cause.COMPUTE,
    Part.COMMUNICATION: Cause.COMMUNICATION,
    Part.WAITING: Cause.RANKS,
    Part.HOST: Cause.HOST,
    Part.CHECKPOINT: Cause.CHECKPOINTS,
    Part.VALIDATION: Cause.VALIDATION,
    Part.OTHER: Cause.CALLBACKS,
}

_REMEDIES = {
    Cause.DATA: "raise data.loading.num_workers (now {workers}), set data.media.cache_bytes, or read tower features "
    "(data.media.features)",
    Cause.COPY: "set data.loading.pin_memory to true",
    Cause.COMMUNICATION: "raise trainer.accumulate_grad_batches under DDP, take a lower stage of ZeRO, or check which "
    "network the ranks use (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)",
    Cause.RANKS: "give the ranks like work: data.loading.max_tokens_per_batch or group_by_length; if it is always the "
    "same rank, look at its machine",
    Cause.HOST: "give the device more work at a time: raise data.loading.batch_size, or take out gradient "
    "checkpointing where memory allows",
    Cause.CHECKPOINTS: "raise checkpoint.every_n_train_steps",
    Cause.VALIDATION: "raise trainer.val_check_interval, or lower trainer.limit_val_batches",
    Cause.CALLBACKS: "raise trainer.log_every_n_steps and answers.every_n_steps, or look for the callback at fault",
    Cause.COMPUTE: "no wait is worth removing first; train/mfu says how well the device is used",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What bounds a run.

    Attributes:
        cause: what.
        rank: the rank that the others wait for; its parts decide.
        share: of a step of that rank that goes to the cause; for ``Cause.RANKS``, of a step of the other ranks.
        text: the line.
    """

    cause: Cause
    rank: int
    share: float
    text: str


def cause_shares(parts_s: Mapping[Part, float]) -> dict[Cause, float]:
    """Shares of a rank's time by cause; they add up to 1."""
    whole = sum(parts_s.values())
    shares = dict.fromkeys(Cause, 0.0)
    for part, seconds in parts_s.items():
        shares[CAUSES[part]] += seconds / whole
    return shares


def judge(ranks: Sequence[Mapping[Part, float]], *, steps: int, workers: int) -> Verdict:
    """Say what a run waits for.

    The rank that waits least for others sets the pace. If it waits for something else, at least `MIN_WAIT_SHARE` of a
    step, that is the cause (the largest, where there are several). If not, and the others wait so long for it, the
    ranks have unlike work; otherwise the run is bound by computation.

    Args:
        ranks: seconds of the window by part, for each rank.
        steps: optimiser steps in the window.
        workers: loader workers of a rank.
    """
    shares = [cause_shares(parts) for parts in ranks]
    pace = min(range(len(ranks)), key=lambda rank: shares[rank][Cause.RANKS])
    others = [share[Cause.RANKS] for rank, share in enumerate(shares) if rank != pace]
    waited = sum(others) / len(others) if others else 0.0
    cause: Cause = max((name for name in Cause if name is not Cause.COMPUTE), key=lambda name: shares[pace][name])
    share = shares[pace][cause]
    if share < MIN_WAIT_SHARE:
        unlike = waited >= MIN_WAIT_SHARE
        cause = Cause.RANKS if unlike else Cause.COMPUTE
        share = waited if unlike else shares[pace][Cause.COMPUTE]
    step_s = sum(ranks[pace].values()) / steps
    line = f"{_claim(cause, pace, len(ranks))}: {share:.0%} of a step of {step_s:.3g} s"
    line += f" ({_listed(shares[pace], cause)})"
    if others and cause is not Cause.RANKS:
        line += f"; rank {pace} sets the pace, the others wait {waited:.0%} of a step for it"
    return Verdict(cause=cause, rank=pace, share=share, text=f"{line}; {_REMEDIES[cause].format(workers=workers)}")


def _claim(cause: Cause, pace: int, ranks: int) -> str:
    if cause is Cause.COMPUTE:
        return "bound by compute"
    if cause is Cause.RANKS and ranks > 1:
        return f"ranks wait for rank {pace}"
    return f"waits for {cause}"


def _listed(shares: Mapping[Cause, float], cause: Cause) -> str:
    """The other causes' shares of the rank that sets the pace, those of a per cent and more."""
    rest = sorted(((share, name) for name, share in shares.items() if name is not cause), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in rest if share >= 0.005) or "nothing else"
