"""The table and the picture of results: which axis, which lines, and what a seed more changes."""

from pathlib import Path

import pytest

from longvid_train.ablation.chart import numeric_axis, results_png
from longvid_train.ablation.plan import cell_names
from longvid_train.ablation.recipe import Recipe
from longvid_train.ablation.sweep import Sweep, sweep_of
from longvid_train.ablation.table import CellResult, SeedResult, kinds_of, table_markdown, table_values


def sweep(**parameters: list[object]) -> Sweep:
    values = {"recipe": {"value": "r.yaml"}} | {name: {"values": each} for name, each in parameters.items()}
    return sweep_of({"method": "grid", "description": "What it is.", "parameters": values}, Path("grid.yaml"))


def result(cell: dict[str, object], *scores: float, missing: dict[int, str] | None = None) -> CellResult:
    seeds = {
        seed: SeedResult(
            scores={"overall": score, "needle": score},
            cost={"frames": 8.0, "visual_tokens": 4.0},
            questions=3,
            git_commit="c",
        )
        for seed, score in enumerate(scores)
    }
    return CellResult(name="-".join(map(str, cell.values())), cell=cell, seeds=seeds, missing=missing or {})


@pytest.mark.parametrize(
    ("parameters", "axis"),
    [
        ({"window": ["a", "b"], "frames": [8, 16, 32]}, "frames"),
        ({"frames": [8, 16]}, None),
        ({"flag": [True, False], "window": ["a", "b", "c"]}, None),
        ({"k": [1, 2, 3], "s": [1, 2, 3, 4]}, "s"),
    ],
)
def test_the_axis_is_the_longest_parameter_of_numbers(parameters: dict[str, list[object]], axis: str | None) -> None:
    assert numeric_axis(sweep(**parameters)) == axis


def test_the_same_results_give_the_same_picture_and_others_another() -> None:
    grid = sweep(window=["a", "b"], frames=[8, 16, 32])
    cells = [result(cell, 0.5, 0.7) for cell in grid.cells()]
    picture = results_png(grid, cells)
    assert picture == results_png(grid, cells) and picture.startswith(b"\x89PNG")
    assert picture != results_png(grid, [*cells[:-1], result(grid.cells()[-1], 0.5, 0.9)])
    words = sweep(window=["a", "b"])
    assert results_png(words, [result({"window": "a"}, 0.5), result({"window": "b"})]).startswith(b"\x89PNG")


def test_a_cell_of_one_seed_has_no_spread_and_one_of_none_no_score() -> None:
    grid = sweep(window=["a", "b"])
    cells = [result({"window": "a"}, 0.5), result({"window": "b"}, missing={0: "it broke", 1: "not run"})]
    table = table_markdown(grid, cells)
    assert table.startswith("What it is.\n\n| window | seeds | overall | needle | visual tokens |")
    assert "| a | 1 | 50.0 | 50.0 | 4.0 |" in table and "| b | 0 | - | - | - |" in table
    assert table.endswith("- failed: b, seed 0: it broke\n- runs not done yet: 1")
    recipe = Recipe(file=Path("r.yaml"), steps={}, choices={}, result="evaluate", values={})
    values = table_values(grid, recipe, cells)
    assert values["cells"][0]["scores"]["overall"] == {"mean": 0.5, "sd": None, "min": 0.5, "max": 0.5}
    assert values["cells"][1] == {
        "name": "b",
        "parameters": {"window": "b"},
        "scores": {},
        "cost": {},
        "seeds": {},
        "missing": {"0": "it broke", "1": "not run"},
    }
    assert kinds_of(cells) == ("overall", "needle") and values["git_commits"] == ["c"]


def test_parameters_of_one_name_are_told_apart_in_the_names_of_cells() -> None:
    grid = sweep(**{"stage1.lr": [1, 2], "stage2.lr": [1, 2]})
    assert list(cell_names(grid).values())[1] == "stage1.lr=1,stage2.lr=2"
