"""The benchmark over frames compares two ways to the same answer."""

from pathlib import Path

import pytest
import torch

from longvid_train.adaptation.settings import Adaptation
from scripts.bench.frames_memory import (
    ADAPTATIONS,
    answer_by_transformers,
    answer_by_us,
    build,
    plot,
    some_frames,
    table,
)


def test_both_ways_answer_alike_and_fewer_tokens_answer_otherwise() -> None:
    backbone = build("nano", "cpu")
    frames = some_frames(24)
    ours = answer_by_us(backbone, frames, Adaptation())
    assert ours.shape == (1, 8)
    assert torch.equal(ours, answer_by_transformers(backbone, frames))
    plan = ADAPTATIONS["progressive"].plan_frames(24, backbone.facts.grid)
    assert plan.visual_tokens == 6 * 16 + 18 * 1 + 1
    assert answer_by_us(backbone, frames, ADAPTATIONS["progressive"]).shape == (1, 8)


def test_the_table_divides_by_the_baseline_of_the_same_frames(tmp_path: Path) -> None:
    def row(frames: int, curve: str, mib: int, seconds: float) -> dict[str, object]:
        return {"frames": frames, "curve": curve, "visual_tokens": 1, "peak_bytes": mib * 2**20, "seconds": seconds}

    failed = {"frames": 16, "curve": "transformers", "visual_tokens": 1, "failed": "out of memory"}
    rows = [row(8, "transformers", 100, 2.0), row(8, "ours", 25, 3.0), failed, row(16, "ours", 30, 4.0)]
    lines = table(rows).splitlines()[2:]
    assert lines[1] == "| 8 | ours | 1 | 25 | 0.25 | 3.00 | 1.50 |"
    assert lines[2] == "| 16 | transformers | 1 | out of memory | | | |"
    assert lines[3] == "| 16 | ours | 1 | 30 |  | 4.00 |  |"
    plot(rows, tmp_path / "plot.png", "test")
    assert (tmp_path / "plot.png").stat().st_size > 5000


@pytest.mark.parametrize("curve", sorted(ADAPTATIONS))
def test_every_curve_is_an_adaptation_that_the_paper_has(curve: str) -> None:
    assert ADAPTATIONS[curve].plan_frames(256, build("nano", "meta").facts.grid).visual_tokens in (256 * 16 + 1, 1217)
