"""Variables of a launcher that are missing or contradict the config are one line before anything is built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvid_train import cli
from longvid_train.errors import UserError
from longvid_train.training.launch import (
    BY_HAND,
    HOSTS,
    OF_A_RANK,
    SLURM,
    SLURM_TASKS,
    TORCHRUN,
    check_launcher,
    device_count,
)

TORCHRUN_ENV = dict.fromkeys(TORCHRUN, "1") | {"WORLD_SIZE": "4", "MASTER_ADDR": "host0"}
SLURM_ENV = dict.fromkeys(SLURM, "0") | {
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NAME": "train",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NODELIST": "host[0-1]",
}
BY_HAND_ENV = dict.fromkeys(BY_HAND, "1") | {"MASTER_ADDR": "host0"}
SALLOC_ENV = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODELIST": "host[0-1]", "MASTER_ADDR": "host0"}
"""What the shell of an allocation has, and a login script that exports an address for later."""


def without(environment: dict[str, str], name: str) -> dict[str, str]:
    return {key: text for key, text in environment.items() if key != name}


def trainer(devices: Any = 2, num_nodes: int = 2) -> dict[str, Any]:
    return {"devices": devices, "num_nodes": num_nodes}


@pytest.mark.parametrize(
    ("devices", "count"),
    [(2, 2), ("3", 3), ([0, 2], 2), ("0,1,5", 3), ("0,", 1), ("auto", None), (-1, None), ("-1", None)],
)
def test_devices_are_counted(devices: Any, count: int | None) -> None:
    assert device_count(devices) == count


@pytest.mark.parametrize(
    "environment",
    [
        TORCHRUN_ENV,
        SLURM_ENV,
        BY_HAND_ENV,
        {**BY_HAND_ENV, "WORLD_SIZE": "4"},
        without(BY_HAND_ENV, "LOCAL_RANK"),
        {**TORCHRUN_ENV, "TORCHELASTIC_RUN_ID": "none", "NODE_RANK": "1", "SLURM_NTASKS": "2"},
        {**SLURM_ENV, "RANK": "0", "WORLD_SIZE": "4"},
        {**without(SLURM_ENV, "SLURM_NODELIST"), "MASTER_ADDR": "host0"},
    ],
    ids=["torchrun", "srun", "hand", "children", "hosts", "torchrun-in-srun", "srun-sets-ranks", "srun-and-address"],
)
def test_whole_environments_are_left_alone(environment: dict[str, str]) -> None:
    check_launcher(environment, trainer())
    check_launcher(environment, trainer("auto"))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SALLOC_ENV,
        {**SALLOC_ENV, "MASTER_PORT": "29500", "NODE_RANK": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "interactive"},
        {**SALLOC_ENV, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "train"},
    ],
    ids=["nothing", "address", "allocation", "batch-script"],
)
def test_a_shell_that_has_launched_nothing_starts_the_processes_of_its_machine(environment: dict[str, str]) -> None:
    check_launcher(environment, trainer(8, num_nodes=1))
    check_launcher(environment, trainer("auto", num_nodes=1))


@pytest.mark.parametrize("name", [name for name in TORCHRUN if name != "RANK"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_of_torchrun_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in TORCHRUN_ENV.items() if key != name}
    if value is not None:
        environment[name] = value
    with pytest.raises(UserError, match=f"^RANK is set but {name} is not; start it with torchrun"):
        check_launcher(environment, trainer())


@pytest.mark.parametrize("sign", OF_A_RANK)
def test_a_variable_of_torchrun_alone_is_not_taken_for_a_job_of_one_process(sign: str) -> None:
    missing = ", ".join(name for name in TORCHRUN if name != sign)
    with pytest.raises(
        UserError, match=f"^{sign} is set but {missing} are not; start it with torchrun .*unset {sign} "
    ):
        check_launcher({sign: "0"}, trainer(1, num_nodes=1))


def test_torchrun_without_the_rank_is_not_taken_for_another_launcher() -> None:
    environment = {**without(TORCHRUN_ENV, "RANK"), "NODE_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    with pytest.raises(UserError, match=r"^LOCAL_RANK is set but RANK is not; start it with torchrun"):
        check_launcher(environment, trainer())
    with pytest.raises(UserError, match=r"^TORCHELASTIC_RUN_ID is set but RANK, LOCAL_RANK, WORLD_SIZE, "):
        check_launcher({"TORCHELASTIC_RUN_ID": "none"}, trainer(1, num_nodes=1))


@pytest.mark.parametrize("name", [name for name in BY_HAND if name not in ("LOCAL_RANK", "NODE_RANK")])
def test_processes_started_by_hand_need_what_lightning_gives_its_own(name: str) -> None:
    with pytest.raises(UserError, match=f"^LOCAL_RANK is set but {name} is not; start it with torchrun"):
        check_launcher(without(BY_HAND_ENV, name), trainer())
    with pytest.raises(UserError, match=r"^WORLD_SIZE is set but LOCAL_RANK is not; "):
        check_launcher({**without(BY_HAND_ENV, "LOCAL_RANK"), "WORLD_SIZE": "4"}, trainer())


@pytest.mark.parametrize("name", [name for name in (*SLURM, *SLURM_TASKS, "SLURM_NODELIST") if name != "SLURM_NTASKS"])
def test_a_missing_variable_of_slurm_is_named(name: str) -> None:
    environment = without(SLURM_ENV, name)
    with pytest.raises(UserError, match=f"^SLURM_NTASKS is set but {name} is not; start it with srun"):
        check_launcher(environment, trainer())
    check_launcher({**environment, "SLURM_JOB_NAME": "bash"}, trainer(2, num_nodes=1))


@pytest.mark.parametrize("name", SLURM_TASKS)
def test_a_job_of_one_task_needs_no_step_of_srun(name: str) -> None:
    check_launcher({**without(SLURM_ENV, name), "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}, trainer(1, 1))


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}, "SLURM_NTASKS is not set"),
        ({**SLURM_ENV, "SLURM_PROCID": "3", "SLURM_JOB_NAME": "interactive"}, "SLURM_JOB_NAME is 'interactive'"),
    ],
)
def test_tasks_that_would_each_be_a_job_are_refused(environment: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=f"^SLURM_PROCID is 3 but {why}, so each task would be a job of its own; "):
        check_launcher(environment, trainer(1, num_nodes=1))
    check_launcher({**environment, "SLURM_PROCID": "0"}, trainer(1, num_nodes=1))


@pytest.mark.parametrize(
    ("environment", "name", "asked"),
    [
        ({**SLURM_ENV, "SLURM_NTASKS_PER_NODE": "4"}, "SLURM_NTASKS_PER_NODE", r"2 \(trainer\.devices\)"),
        ({**SLURM_ENV, "SLURM_NNODES": "4"}, "SLURM_NNODES", r"2 \(trainer\.num_nodes\)"),
    ],
)
def test_tasks_divided_otherwise_over_the_hosts_are_refused(environment: dict[str, str], name: str, asked: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is 4 but the config asks for {asked}; start 2"):
        check_launcher(environment, trainer())


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "GROUP_RANK", "MASTER_PORT"])
def test_a_value_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is '%q'; it must be a whole number"):
        check_launcher({**TORCHRUN_ENV, name: "%q"}, trainer())


@pytest.mark.parametrize("name", HOSTS)
def test_several_hosts_without_a_launcher_need_to_know_of_each_other(name: str) -> None:
    environment = {key: "0" for key in HOSTS if key != name}
    with pytest.raises(UserError, match=f"^trainer.num_nodes is 2 but {name} is not set"):
        check_launcher(environment, trainer())


def test_a_later_host_is_not_a_job_of_one_host() -> None:
    with pytest.raises(UserError, match=r"^NODE_RANK is '1' but trainer.num_nodes is 1; unset NODE_RANK"):
        check_launcher({"NODE_RANK": "1"}, trainer(1, num_nodes=1))


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (TORCHRUN_ENV, "WORLD_SIZE"),
        (without(SLURM_ENV, "SLURM_NTASKS_PER_NODE") | {"SLURM_NTASKS": "1"}, "SLURM_NTASKS"),
    ],
)
def test_another_number_of_processes_than_asked_for_is_refused(environment: dict[str, str], name: str) -> None:
    started = environment[name]
    with pytest.raises(UserError, match=rf"^{name} is {started} but the config asks for 6 \(trainer\.devices x"):
        check_launcher(environment, trainer(3))
    with pytest.raises(UserError, match=f"^{name} is 'four'; it must be "):
        check_launcher({**environment, name: "four"}, trainer())


@pytest.mark.parametrize(("command", "name"), [("fit", "RANK"), ("test", "RANK"), ("fit", "WORLD_SIZE")])
def test_the_command_says_so_before_anything_is_built(
    command: str,
    name: str,
    fit_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    for other in (*TORCHRUN, *BY_HAND):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "2")
    config = fit_config(model__init_args__model="no/such/folder")
    assert cli.main([command, "--config", str(config)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    missing = ", ".join(other for other in TORCHRUN if other != name)
    assert line.startswith(f"longvid: {name} is set but {missing} are not; start it with torchrun")
