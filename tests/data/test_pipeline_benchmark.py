"""The data pipeline's benchmark: its contenders make the same batches, and its table has the right ratios."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("decord")

from scripts.bench.data_pipeline import READERS, Pass, measure, rows_of_table


@pytest.mark.parametrize("name", list(READERS))
def test_the_naive_readers_read_one_frame_a_second(video_folder: Path, name: str) -> None:
    """40 frames at 10 a second, each 6 levels brighter than the one before."""
    frames = READERS[name](video_folder / "ramp.mp4")
    assert frames.shape == (4, 48, 64, 3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - [0, 60, 120, 180]).max() < 3


def test_contenders_make_the_same_tokens_and_frames(
    processor_folder: str, write_rows: Callable[..., Path], video_row: Any
) -> None:
    path = write_rows([video_row(number) for number in range(3)], "pipeline")
    arguments = argparse.Namespace(manifest=path, model=processor_folder, batch_size=2, features=None)
    names = ["decord", "seek", "ours", "ours-cached"]
    passes = [measure(name, 0, arguments) for name in names]
    assert {(one.samples, one.frames) for one in passes} == {(3, 12)}
    assert len({one.tokens for one in passes}) == 1
    assert passes[0].tokens > 3 * 4 * 2, "more than the visual tokens"


def test_ratios_are_of_medians_to_the_first_with_as_many_workers() -> None:
    def one(contender: str, workers: int, wall_s: float, cpu_s: float) -> Pass:
        return Pass(contender, workers, 10, 500, 40, 0.25, wall_s, cpu_s)

    passes = [one("decord", 0, wall_s, 8.0) for wall_s in (2.0, 4.0, 90.0)]
    passes += [one("ours", 0, wall_s, 2.0) for wall_s in (1.0, 1.0, 70.0)]
    passes += [one("decord", 2, 5.0, 4.0), one("ours", 2, 2.5, 6.0)]
    assert list(rows_of_table(passes))[2:] == [
        "| 0 | decord | 2.50 | 1.00 | 125 | 8.00 | 1.00 | 25.0% |",
        "| 0 | ours | 10.00 | 4.00 | 500 | 2.00 | 0.25 | 25.0% |",
        "| 2 | decord | 2.00 | 1.00 | 100 | 4.00 | 1.00 | 25.0% |",
        "| 2 | ours | 4.00 | 2.00 | 200 | 6.00 | 1.50 | 25.0% |",
    ]
