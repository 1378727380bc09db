"""The kept losses of the nano stages, two steps of each; ``python -m scripts.golden_losses`` compares all of them."""

import json
from pathlib import Path

import pytest

from scripts.golden_losses import (
    GOLDEN,
    NUMBERS,
    RELATIVE_TOLERANCE,
    STAGES,
    STEPS,
    Moved,
    compare,
    largest_difference,
    measure,
)


def test_the_first_steps_of_every_stage_have_the_kept_losses(tmp_path: Path) -> None:
    kept = json.loads(GOLDEN.read_text())["stages"]
    assert {(stage, name): len(kept[stage][name]) for stage in STAGES for name in NUMBERS} == dict.fromkeys(
        ((stage, name) for stage in STAGES for name in NUMBERS), STEPS
    )
    found = measure(tmp_path, steps=2)
    assert {len(values) for numbers in found.values() for values in numbers.values()} == {2}
    assert compare(kept, found, RELATIVE_TOLERANCE) == []
    assert kept["stage1"]["train/loss"][0] != pytest.approx(kept["stage1"]["train/loss"][1], rel=RELATIVE_TOLERANCE)


def test_a_number_outside_the_tolerance_is_named() -> None:
    kept = {"stage1": {"train/loss": [2.0, 4.0, 8.0]}}
    assert compare(kept, {"stage1": {"train/loss": [2.001, 4.0]}}, 1e-3) == []
    assert compare(kept, {"stage1": {"train/loss": [2.0, 4.01]}}, 1e-3) == [Moved("stage1", 1, "train/loss", 4.0, 4.01)]
    assert compare(kept, {"stage1": {"train/loss": [float("nan")]}}, 1e-3)[0].step == 0
    assert largest_difference(kept, {"stage1": {"train/loss": [2.0, 4.4]}}) == pytest.approx(0.1)
