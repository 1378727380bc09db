"""What a launcher must have set before a process of a job can find the others.

Lightning picks torchrun, SLURM or its own launcher by what is in the environment, and where a variable is missing it
picks another one, starts a job of one process, or waits for processes that never come. Checked before anything is
built, in the order in which Lightning looks.
"""

from collections.abc import Mapping
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.launcher import BY_TORCHRUN, ELASTIC, are, check_number, check_set

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
BY_HAND = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning sets for the processes that it starts, and needs from who starts them in its place."""
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""Any of these says that a launcher started this process; shells also set addresses and ``NODE_RANK`` for later."""
SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
SLURM_TASKS = ("SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE")
"""Of a job of several tasks: only ``srun`` sets the first, and Lightning insists on the second."""
HOSTS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which Lightning starts the processes itself."""
BY_SRUN = "start it with srun and --ntasks-per-node (scripts/launch/slurm.sh)"


def check_launcher(environment: Mapping[str, str], trainer: Mapping[str, Any]) -> None:
    """Refuse to start where processes would not find each other.

    Args:
        environment: of this process.
        trainer: the config's ``trainer``.

    Raises:
        UserError: a variable of the launcher is missing or no number, or it started another number of processes than
            the config asks for.
    """
    if torch.distributed.is_initialized():
        return  # the variables are this process's own by now
    nodes, on_host = int(trainer["num_nodes"]), device_count(trainer["devices"])
    wanted = None if on_host is None else on_host * nodes
    sign = next((name for name in OF_A_RANK if name in environment), None)
    if ELASTIC not in environment and _lightning_sees_slurm(environment):
        _check_slurm(environment, nodes, on_host)
    elif sign is not None or ELASTIC in environment:
        _check_rank(environment, sign or ELASTIC, wanted)
    else:
        _check_lonely_task(environment)
        _check_hosts(environment, nodes)


def device_count(devices: Any) -> int | None:
    """Processes on this host that ``trainer.devices`` asks for; None where the machine decides."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and not devices.isdigit():
        return None if devices in ("auto", "-1") else len([part for part in devices.split(",") if part.strip()])
    return None if int(devices) < 0 else int(devices)


def _lightning_sees_slurm(environment: Mapping[str, str]) -> bool:
    return "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in INTERACTIVE


def _check_rank(environment: Mapping[str, str], sign: str, wanted: int | None) -> None:
    """The variables of torchrun, or of Lightning's own launcher, which sets ``NODE_RANK`` and no ``RANK``."""
    by_hand = "NODE_RANK" in environment and "RANK" not in environment and ELASTIC not in environment
    check_set(environment, BY_HAND if by_hand else TORCHRUN, sign=sign, remedy=BY_TORCHRUN)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_PORT"):
        check_number(environment, name)
    if "WORLD_SIZE" in environment:
        _check_count(environment["WORLD_SIZE"], "WORLD_SIZE", wanted, "trainer.devices x trainer.num_nodes")


def _check_slurm(environment: Mapping[str, str], nodes: int, on_host: int | None) -> None:
    check_set(environment, SLURM, sign="SLURM_NTASKS", remedy=BY_SRUN)
    for name in SLURM:
        check_number(environment, name)
    if int(environment["SLURM_NTASKS"]) > 1:
        check_set(environment, SLURM_TASKS, sign="SLURM_NTASKS", remedy=BY_SRUN)
    if nodes > 1 and "MASTER_ADDR" not in environment:
        check_set(environment, ("SLURM_NODELIST",), sign="SLURM_NTASKS", remedy=BY_SRUN)
    counts = {"trainer.devices": on_host, "trainer.num_nodes": nodes}
    for name, key in (("SLURM_NTASKS_PER_NODE", "trainer.devices"), ("SLURM_NNODES", "trainer.num_nodes")):
        if name in environment:
            _check_count(environment[name], name, counts[key], key)
    wanted = None if on_host is None else on_host * nodes
    _check_count(environment["SLURM_NTASKS"], "SLURM_NTASKS", wanted, "trainer.devices x trainer.num_nodes")


def _check_lonely_task(environment: Mapping[str, str]) -> None:
    """Refuse a later task of ``srun`` that Lightning takes for a process alone."""
    task = environment.get("SLURM_PROCID") or "0"
    if task == "0":
        return
    name = environment.get("SLURM_JOB_NAME")
    why = f"SLURM_JOB_NAME is '{name}'" if name in INTERACTIVE else "SLURM_NTASKS is not set"
    remedy = "set another SLURM_JOB_NAME" if name in INTERACTIVE else "leave SLURM_NTASKS as srun sets it"
    raise UserError(
        f"SLURM_PROCID is {task} but {why}, so each task would be a job of its own; {remedy}, or start one task"
    )


def _check_hosts(environment: Mapping[str, str], nodes: int) -> None:
    """Lightning starts the processes of this host; those of others must be found."""
    if nodes == 1:
        if environment.get("NODE_RANK", "0") != "0":
            raise UserError(
                f"NODE_RANK is '{environment['NODE_RANK']}' but trainer.num_nodes is 1; unset NODE_RANK, or set "
                "--trainer.num_nodes to the number of hosts"
            )
        return
    missing = [name for name in HOSTS if not environment.get(name)]
    if missing:
        raise UserError(
            f"trainer.num_nodes is {nodes} but {', '.join(missing)} {are(missing)} not set, so this host cannot find "
            "the others; start it on each host with scripts/launch/torchrun.sh, or with srun"
        )


def _check_count(text: str, name: str, wanted: int | None, keys: str) -> None:
    if not text.isdigit():
        raise UserError(f"{name} is '{text}'; it must be the number of processes of the job")
    if wanted is not None and int(text) != wanted:
        raise UserError(
            f"{name} is {text} but the config asks for {wanted} ({keys}); start {wanted} "
            "processes, or set --trainer.devices and --trainer.num_nodes to what was started"
        )
