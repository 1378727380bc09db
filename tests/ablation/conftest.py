"""Grids in a folder of their own: a sweep file, a recipe, and the runs they make."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longvid_train.ablation.plan import Run, plan_runs
from longvid_train.ablation.recipe import Recipe, read_recipe
from longvid_train.ablation.sweep import Sweep, read_sweep

WriteGrid = Callable[..., Path]


@pytest.fixture
def write_grid(tmp_path: Path) -> WriteGrid:
    """Writes ``grid.yaml`` with the parameters given and ``recipe.yaml``, and returns the first."""

    def write(recipe: dict[str, Any], seeds: tuple[int, ...] = (0,), **parameters: list[Any]) -> Path:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        values: dict[str, Any] = {"recipe": {"value": str(tmp_path / "recipe.yaml")}}
        values |= {name: {"values": each} for name, each in parameters.items()} | {"seed": {"values": list(seeds)}}
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({"method": "grid", "parameters": values}, sort_keys=False))
        return path

    return write


@pytest.fixture
def planned(write_grid: WriteGrid) -> Callable[..., tuple[Sweep, Recipe, list[Run]]]:
    """Writes a grid and plans all of its runs."""

    def plan(
        recipe: dict[str, Any], seeds: tuple[int, ...] = (0,), **parameters: list[Any]
    ) -> tuple[Sweep, Recipe, list[Run]]:
        sweep = read_sweep(write_grid(recipe, seeds, **parameters))
        read = read_recipe(sweep)
        return sweep, read, plan_runs(sweep, read, sweep.cells(), sweep.seeds)

    return plan
