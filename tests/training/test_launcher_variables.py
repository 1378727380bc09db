"""Variables of a launcher that are missing or contradict the config are one line before anything is built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvid_train import cli
from longvid_train.errors import UserError
from longvid_train.training.launch import HOSTS, SLURM, TORCHRUN, check_launcher, device_count

TORCHRUN_ENV = dict.fromkeys(TORCHRUN, "1") | {"WORLD_SIZE": "4", "MASTER_ADDR": "host0"}
SLURM_ENV = dict.fromkeys(SLURM, "0") | {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}


def trainer(devices: Any = 2, num_nodes: int = 2) -> dict[str, Any]:
    return {"devices": devices, "num_nodes": num_nodes}


@pytest.mark.parametrize(
    ("devices", "count"),
    [(2, 2), ("3", 3), ([0, 2], 2), ("0,1,5", 3), ("0,", 1), ("auto", None), (-1, None), ("-1", None)],
)
def test_devices_are_counted(devices: Any, count: int | None) -> None:
    assert device_count(devices) == count


@pytest.mark.parametrize("environment", [TORCHRUN_ENV, SLURM_ENV, {"MASTER_ADDR": "host0", "NODE_RANK": "0"}])
def test_whole_environments_are_left_alone(environment: dict[str, str]) -> None:
    check_launcher(environment, trainer())
    check_launcher(environment, trainer("auto"))
    check_launcher({}, trainer(8, num_nodes=1))


@pytest.mark.parametrize("name", [name for name in TORCHRUN if name != "RANK"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_of_torchrun_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in TORCHRUN_ENV.items() if key != name}
    if value is not None:
        environment[name] = value
    with pytest.raises(UserError, match=f"^RANK is set but {name} is not; start it with torchrun"):
        check_launcher(environment, trainer())


@pytest.mark.parametrize("name", [name for name in SLURM if name != "SLURM_NTASKS"])
def test_a_missing_variable_of_slurm_is_named(name: str) -> None:
    environment = {key: text for key, text in SLURM_ENV.items() if key != name}
    with pytest.raises(UserError, match=f"^SLURM_NTASKS is set but {name} is not; start it with srun"):
        check_launcher(environment, trainer())
    check_launcher({**environment, "SLURM_JOB_NAME": "bash"}, trainer(2, num_nodes=1))


@pytest.mark.parametrize("name", HOSTS)
def test_several_hosts_without_a_launcher_need_to_know_of_each_other(name: str) -> None:
    environment = {key: "0" for key in HOSTS if key != name}
    with pytest.raises(UserError, match=f"^trainer.num_nodes is 2 but {name} is not set"):
        check_launcher(environment, trainer())


@pytest.mark.parametrize(("environment", "name"), [(TORCHRUN_ENV, "WORLD_SIZE"), (SLURM_ENV, "SLURM_NTASKS")])
def test_another_number_of_processes_than_asked_for_is_refused(environment: dict[str, str], name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is 4 but the config asks for 6 \(trainer\.devices x"):
        check_launcher(environment, trainer(3))
    with pytest.raises(UserError, match=f"^{name} is 'four'; it must be the number of processes"):
        check_launcher({**environment, name: "four"}, trainer())


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_command_says_so_before_anything_is_built(
    command: str,
    fit_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    config = fit_config(model__init_args__model="no/such/folder")
    assert cli.main([command, "--config", str(config)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    assert line.startswith("longvid: RANK is set but LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK,")
