"""The benchmark of long sequences: every way computes one step, and its table."""

from typing import Any

import pytest

from longvid_train.training.optimizer import OptimizerConfig, build_adamw
from scripts.bench.long_sequences import WAYS, Cell, Parts, build_model, film, step_of, table


def cell(way: str, **changes: Any) -> Cell:
    return Cell(**({"way": way, "tokens": 96, "model": "nano", "lora": False, "device": "cpu", "share": 0.5} | changes))


def test_every_way_of_one_process_takes_the_same_step() -> None:
    losses = {}
    for way in [name for name, one in WAYS.items() if one.processes == 1]:
        model = build_model(cell(way))
        step = step_of(model, build_adamw(model, OptimizerConfig(lr=1e-3)), Parts("cpu"), film(model, cell(way), 96))
        losses[way] = [step(), step()]
    assert set(losses) == {"plain", "checkpointing", "offload", "tiled"}
    assert losses["plain"][1] < losses["plain"][0]
    for way in losses:
        assert losses[way] == pytest.approx(losses["plain"], rel=1e-5), way


def test_lora_trains_adapters_and_the_projector_alone() -> None:
    model = build_model(cell("checkpointing", lora=True))
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"language_model", "content_projector"}
    assert all("lora_" in name for name in trained if name.startswith("language_model"))


def test_peaks_stand_beside_that_of_checkpointing_at_the_same_length() -> None:
    measured = {"seconds": 2.0, "mean_loss": 1.5, "rank": 0}
    rows = [
        {"tokens": 4096, "way": "plain", "peak_bytes": 300 * 2**20, **measured},
        {"tokens": 4096, "way": "checkpointing", "peak_bytes": 100 * 2**20, **measured, "mfu": 0.45},
        {"tokens": 8192, "way": "checkpointing", "failed": "over 24 GiB"},
        {"tokens": 8192, "way": "parallel", "peak_bytes": 50 * 2**20, **measured},
    ]
    assert table(rows).splitlines()[2:] == [
        "| 4096 | plain | 0 | 300 | 3.00 | 2.0 | 2,048 |  | 1.500000 |",
        "| 4096 | checkpointing | 0 | 100 | 1.00 | 2.0 | 2,048 | 45.0% | 1.500000 |",
        "| 8192 | checkpointing | | over 24 GiB | | | | | |",
        "| 8192 | parallel | 0 | 50 |  | 2.0 | 4,096 |  | 1.500000 |",
    ]
