"""Held-out rows that not every process has one of are refused when manifests are read, on all processes alike."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.errors import UserError


def on_rank(module: ManifestDataModule, rank: int, world_size: int) -> ManifestDataModule:
    shares = {"rank": rank, "num_replicas": world_size}
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=world_size, distributed_sampler_kwargs=shares)
    module.trainer = trainer
    return module


@pytest.mark.parametrize(("split", "key"), [("val", "val"), ("test", "test"), ("predict", "test")])
def test_fewer_held_out_rows_than_processes_are_one_line_of_each(
    make_module: Callable[..., ManifestDataModule], video_row: Callable[..., dict[str, Any]], split: str, key: str
) -> None:
    rows = [video_row(number) for number in range(3)]
    for rank in range(4):
        with pytest.raises(UserError, match=rf"^data\.{key} has 3 rows and the run has 4 processes, .* at most 3 proc"):
            on_rank(make_module(rows), rank, 4).dataset(split)
    assert len(on_rank(make_module(rows), 2, 3).dataset(split)) == 3
    assert len(on_rank(make_module(rows), 0, 4).dataset("train")) == 3, "training has its own rule"
