"""What a launcher must have set before a process of a job can find the others.

Lightning picks torchrun, SLURM or its own launcher by what is in the environment, and where a variable is missing it
picks another one or waits for processes that never come. Checked before anything is built.
"""

from collections.abc import Mapping
from typing import Any

import torch

from longvid_train.errors import UserError

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
HOSTS = ("MASTER_ADDR", "NODE_RANK")
INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which Lightning starts the processes itself."""


def check_launcher(environment: Mapping[str, str], trainer: Mapping[str, Any]) -> None:
    """Refuse to start where processes would not find each other.

    Args:
        environment: of this process.
        trainer: the config's ``trainer``.

    Raises:
        UserError: a variable of the launcher is missing, or it started another number of processes than the config
            asks for.
    """
    if torch.distributed.is_initialized():
        return  # the variables are this process's own by now
    nodes = int(trainer["num_nodes"])
    on_host = device_count(trainer["devices"])
    wanted = None if on_host is None else on_host * nodes
    if "RANK" in environment:
        _check_set(environment, TORCHRUN, sign="RANK", remedy="start it with torchrun (scripts/launch/torchrun.sh)")
        _check_count(environment["WORLD_SIZE"], "WORLD_SIZE", wanted)
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in INTERACTIVE:
        _check_set(environment, SLURM, sign="SLURM_NTASKS", remedy="start it with srun (scripts/launch/slurm.sh)")
        _check_count(environment["SLURM_NTASKS"], "SLURM_NTASKS", wanted)
    elif nodes > 1:
        missing = [name for name in HOSTS if not environment.get(name)]
        if missing:
            raise UserError(
                f"trainer.num_nodes is {nodes} but {' and '.join(missing)} {_are(missing)} not set, so this host "
                "cannot find the others; start it on each host with scripts/launch/torchrun.sh, or with srun"
            )


def device_count(devices: Any) -> int | None:
    """Processes on this host that ``trainer.devices`` asks for; None where the machine decides."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and not devices.isdigit():
        return None if devices in ("auto", "-1") else len([part for part in devices.split(",") if part.strip()])
    return None if int(devices) < 0 else int(devices)


def _check_set(environment: Mapping[str, str], names: tuple[str, ...], *, sign: str, remedy: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise UserError(
            f"{sign} is set but {', '.join(missing)} {_are(missing)} not; {remedy}, or unset {sign} to let longvid "
            "start the processes of this machine"
        )


def _check_count(text: str, name: str, wanted: int | None) -> None:
    if not text.isdigit():
        raise UserError(f"{name} is '{text}'; it must be the number of processes of the job")
    if wanted is not None and int(text) != wanted:
        raise UserError(
            f"{name} is {text} but the config asks for {wanted} (trainer.devices x trainer.num_nodes); start {wanted} "
            "processes, or set --trainer.devices and --trainer.num_nodes to what was started"
        )


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
