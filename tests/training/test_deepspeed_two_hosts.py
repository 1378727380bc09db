"""Two hosts, as network namespaces of one machine, run one job through scripts/launch/torchrun.sh."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from longvid_train.training.tracking import read_metrics

ROOT = Path(__file__).parents[2]
HOSTS = {"lvhost0": ("lv0", "10.213.77.1"), "lvhost1": ("lv1", "10.213.77.2")}


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces are not allowed here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[dict[str, tuple[str, str]]]:
    """Two namespaces with a cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the ip command (iproute2)")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        (first, (left, _)), (second, (right, _)) = HOSTS.items()
        ip("link", "add", left, "netns", first, "type", "veth", "peer", "name", right, "netns", second)
        for name, (device, address) in HOSTS.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield HOSTS
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hosts_train_one_model(
    hosts: dict[str, tuple[str, str]], fit_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = fit_config(data__init_args__loading={"batch_size": 1}, trainer__max_steps=2)
    run, zero = tmp_path / "run", ROOT / "configs" / "deepspeed" / "zero2.yaml"
    words = ["--config", str(config), "--config", str(zero), "--run_dir", str(run)]
    processes = []
    for rank, (name, (device, _)) in enumerate(hosts.items()):
        environment = {
            **os.environ,
            "NNODES": "2",
            "NODE_RANK": str(rank),
            "NPROC": "1",
            "MASTER_ADDR": HOSTS["lvhost0"][1],
            "TORCHRUN": str(Path(sys.executable).with_name("torchrun")),
            "GLOO_SOCKET_IFNAME": device,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = ["ip", "netns", "exec", name, "bash", str(ROOT / "scripts" / "launch" / "torchrun.sh"), *words]
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        )
    try:
        errors = [process.communicate(timeout=1500)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert [line["step"] for line in read_metrics(run) if "train/loss" in line] == [0, 1]
    assert (run / "model" / "model.safetensors").is_file()
