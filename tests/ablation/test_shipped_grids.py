"""Every sweep file of ``configs/ablations``: its header, its grid, and the command that wandb's agent makes of it."""

import shlex
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from longvid_train.ablation.plan import check_runs, plan_runs
from longvid_train.ablation.recipe import read_recipe
from longvid_train.ablation.sweep import parse_only, read_sweep
from longvid_train.commands import ablate
from longvid_train.commands.ablate import parse_words
from longvid_train.console import OneLineParser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "ablations"
GRIDS = sorted(FOLDER.glob("*.yaml"))
RECIPES = sorted((FOLDER / "recipes").glob("*.yaml"))
SWEEP_KEYS = {"name", "description", "project", "program", "command", "method", "metric", "parameters"}
"""Keys we use of those that ``sweeps/config/schema.json`` of https://github.com/wandb/sweeps allows."""

grids = pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in configs are relative to it."""
    monkeypatch.chdir(ROOT)


def test_all_grids_of_the_papers_are_there() -> None:
    names = {path.stem for path in GRIDS}
    assert {"llama_vid_token_types", "llama_vid_token_numbers", "llama_vid_text_decoders"} <= names
    used = {read_sweep(path).recipe.resolve() for path in GRIDS}
    assert used == {path.resolve() for path in RECIPES}, "a recipe that no grid uses"


@pytest.mark.parametrize("path", [*GRIDS, *RECIPES], ids=lambda path: path.stem)
def test_the_header_says_paper_command_hardware_and_what_to_expect(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for field in ("Paper:", "Command:", "Hardware:", "Expected:"):
        assert sum(line.startswith(f"# {field}") for line in head) == 1, field


@grids
def test_the_grid_is_planned_and_every_run_has_a_name_of_its_own(path: Path) -> None:
    sweep = read_sweep(path.relative_to(ROOT))
    runs = plan_runs(sweep, read_recipe(sweep), sweep.cells(), sweep.seeds)
    assert len({(run.name, run.seed) for run in runs}) == len(runs) == len(sweep.cells()) * len(sweep.seeds)
    assert len({run.result.identity for run in runs}) == len(runs), "two runs would be the same"
    assert sweep.name == path.stem and sweep.varied
    check_runs(runs, ROOT / "nowhere", path.stem, lambda words: None)


@grids
def test_the_command_that_wandbs_agent_runs_is_one_cell_with_one_seed(path: Path) -> None:
    """As ``wandb_agent.Agent._command_run`` expands it."""
    config = load_sweep_config(str(path))
    assert (
        config is not None and set(config) <= SWEEP_KEYS and config["metric"] == {"name": "score", "goal": "maximize"}
    )
    sweep = read_sweep(path)
    cell, seed = sweep.cells()[-1], sweep.seeds[-1]
    drawn = {**cell, "seed": seed, "recipe": str(sweep.recipe)}
    assert set(drawn) == set(config["parameters"])
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})
    macros["env"] = ["/usr/bin/env"]
    words: list[str] = []
    for word in create_sweep_command(config["command"]):
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    assert words[:3] == ["/usr/bin/env", "longvid", "ablate"]
    parser = OneLineParser(prog="longvid ablate", allow_abbrev=False)
    ablate.add_arguments(parser)
    arguments = parser.parse_intermixed_args(words[3:])
    assert (ROOT / arguments.config).samefile(path)
    selection = parse_only(arguments.only)
    assert selection.cells(sweep) == (cell,) and selection.seeds(sweep) == (seed,)


@grids
def test_the_command_in_the_header_is_the_one_in_the_file(path: Path) -> None:
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("# Command:"))
    assert shlex.split(line.partition(":")[2])[:5] == yaml.safe_load(text)["command"][1:6]


@pytest.mark.slow
@grids
def test_every_steps_settings_are_read_by_its_commands_own_parser(path: Path) -> None:
    sweep = read_sweep(path.relative_to(ROOT))
    check_runs(
        plan_runs(sweep, read_recipe(sweep), sweep.cells(), sweep.seeds), ROOT / "nowhere", path.stem, parse_words
    )
