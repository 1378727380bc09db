"""Sweep files: what is read, what is refused, and which cells ``--only`` means."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from longvid_train.ablation.sweep import parse_only, read_sweep, sweep_of
from longvid_train.errors import UserError

GRID = {
    "method": "grid",
    "parameters": {
        "recipe": {"value": "recipe.yaml"},
        "tokens": {"values": ["content", "both"]},
        "evaluate.frames": {"values": [8, 16, 32]},
        "seed": {"values": [0, 4]},
    },
}


def sweep_file(folder: Path, **changes: object) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
    return path


def test_cells_are_all_combinations_in_the_order_of_the_file(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path))
    assert [(one["tokens"], one["evaluate.frames"]) for one in sweep.cells()] == [
        ("content", 8),
        ("content", 16),
        ("content", 32),
        ("both", 8),
        ("both", 16),
        ("both", 32),
    ]
    assert sweep.seeds == (0, 4) and sweep.recipe == Path("recipe.yaml") and sweep.name == "grid"
    assert sweep.varied == ("tokens", "evaluate.frames")


def test_only_selects_by_every_name_and_any_of_its_values(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path))
    selection = parse_only(["evaluate.frames=8", "tokens=both", "evaluate.frames=32", "seed=4"])
    assert [(one["tokens"], one["evaluate.frames"]) for one in selection.cells(sweep)] == [("both", 8), ("both", 32)]
    assert selection.seeds(sweep) == (4,)
    assert len(parse_only([]).cells(sweep)) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["token=both"], "no such parameter; did you mean 'tokens'"),
        (["tokens=all"], "not a value of .* values: content, both"),
        (["evaluate.frames=8.0"], "not a value"),
        (["tokens"], "NAME=VALUE"),
    ],
)
def test_only_refuses_what_the_grid_does_not_have(tmp_path: Path, words: list[str], message: str) -> None:
    sweep = read_sweep(sweep_file(tmp_path))
    with pytest.raises(UserError, match=message):
        parse_only(words).cells(sweep)


@given(st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False), st.text(min_size=1, max_size=8)))
def test_a_value_is_found_by_the_word_that_wandbs_agent_writes(value: object) -> None:
    """The agent writes ``f"{name}={value}"``."""
    parameters = {"recipe": {"value": "r"}, "x": {"values": [value]}}
    sweep = sweep_of({**GRID, "parameters": parameters}, Path("grid.yaml"))
    word = create_sweep_command_args({"args": {"x": {"value": value}}})["args_no_hyphens"][0]
    assert parse_only([word]).cells(sweep) == ({"x": value},)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, "method is 'bayes'; offline only grid"),
        ({"methods": "grid"}, "'methods' is unknown; did you mean 'method'"),
        ({"parameters": {}}, "the grid is empty"),
        ({"parameters": {"recipe": {"value": "r"}, "x": {"values": []}}}, "parameters: x: the grid is empty"),
        ({"parameters": {"x": {"values": [1]}}}, "the parameter 'recipe' must be one file"),
        ({"parameters": {"recipe": {"value": "r"}, "x": {"min": 0, "max": 1}}}, "'min' is unknown"),
        ({"parameters": {"recipe": {"value": "r"}, "x": {"values": [1, 1]}}}, "a value stands twice"),
        ({"parameters": {"recipe": {"value": "r"}, "x": {"values": [{"a": 1}]}}}, "must be words or numbers"),
        ({"parameters": {"recipe": {"value": "r"}, "x y": {"values": [1]}}}, "wandb allows letters"),
        ({"parameters": {"recipe": {"value": "r"}, "seed": {"values": [-1]}}}, "seed -1 must be a whole number"),
        ({"parameters": {"recipe": {"value": "r"}, "x": {"value": 1, "values": [1]}}}, "one of value and values"),
    ],
)
def test_a_file_that_is_no_grid_is_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_sweep(sweep_file(tmp_path, **changes))
    assert str(tmp_path / "grid.yaml") in str(raised.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        read_sweep(tmp_path / "broken.yaml")
