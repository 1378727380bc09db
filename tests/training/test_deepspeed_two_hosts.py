"""Two hosts, as network namespaces of one machine, run one job through scripts/launch/torchrun.sh."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvid_train.training.tracking import read_metrics

ZERO = Path(__file__).parents[2] / "configs" / "deepspeed" / "zero2.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hosts_train_one_model(two_hosts: Any, fit_config: Callable[..., Path], tmp_path: Path) -> None:
    config = fit_config(data__init_args__loading={"batch_size": 1}, trainer__max_steps=2)
    run = tmp_path / "run"
    two_hosts.fit("--config", str(config), "--config", str(ZERO), "--run_dir", str(run))
    assert [line["step"] for line in read_metrics(run) if "train/loss" in line] == [0, 1]
    assert (run / "model" / "model.safetensors").is_file()
