"""Which start of a job this process belongs to, by what all its ranks know before they are connected.

Ranks begin seconds apart: a rank that begins late must tell what another has already written from what an earlier start
left, and the time of a file does not say.
"""

import uuid
from collections.abc import Mapping
from datetime import timedelta

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, but not in its __all__

START_VARIABLE = "LONGVID_START"
"""The start of the processes that Lightning starts from this one."""
UNKNOWN = ""
"""The start where the ranks share nothing yet: several hosts, or processes, that no launcher knows together."""
STEP_OF_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_START_TIME",
    "SLURM_STEP_LAUNCHER_PORT",
)
"""The same for all tasks of an ``srun``; the last three, as far as a version of SLURM sets them, not for two."""
STORE_TIMEOUT = timedelta(seconds=60)


def start_of_job(cluster: ClusterEnvironment, *, nodes: int, environment: Mapping[str, str]) -> str:
    """The same text on each rank of a start and on none of another; `UNKNOWN` where there is no such text.

    Args:
        cluster: what Lightning takes for the launcher.
        nodes: hosts of the job.
        environment: of this process.
    """
    if isinstance(cluster, TorchElasticEnvironment):
        return _of_torchrun(cluster, environment)
    if isinstance(cluster, SLURMEnvironment):
        return _of_slurm(environment)
    if nodes > 1:
        return UNKNOWN
    if cluster.creates_processes_externally:
        return environment.get(START_VARIABLE, UNKNOWN)
    return uuid.uuid4().hex


def _of_torchrun(cluster: ClusterEnvironment, environment: Mapping[str, str]) -> str:
    """What the first rank to ask has left in the store of torchrun, which is there before the ranks are."""
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return UNKNOWN
    store = TCPStore(cluster.main_address, cluster.main_port, is_master=False, timeout=STORE_TIMEOUT)
    key = f"longvid/start/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return bytes(store.compare_set(key, "", uuid.uuid4().hex)).decode()


def _of_slurm(environment: Mapping[str, str]) -> str:
    """The step of the job, and what ``srun`` tells its tasks alone; a job that goes back to the queue keeps its number
    and counts its steps anew."""
    if not environment.get("SLURM_JOB_ID") or not environment.get("SLURM_STEP_ID"):
        return UNKNOWN
    return " ".join(f"{name}={environment[name]}" for name in STEP_OF_SLURM if name in environment)
