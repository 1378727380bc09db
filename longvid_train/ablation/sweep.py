"""A grid as wandb sweeps write it: https://docs.wandb.ai/models/sweeps/define-sweep-configuration, ``method: grid``.

The same file works with ``wandb sweep FILE`` and ``wandb agent``. Read here are its name, the parameters and the seeds;
the constant parameter ``recipe`` names the file that says what a cell runs.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longvid_train.adaptation.records import as_mapping, check_keys, read_yaml
from longvid_train.errors import UserError, nearest

Scalar = str | int | float | bool

RECIPE, SEED = "recipe", "seed"
"""Parameters with a meaning of their own; every other one is a choice or a setting of the recipe."""

_KEYS = ("name", "description", "project", "entity", "program", "command", "method", "metric", "run_cap", "parameters")
_PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
"""wandb's own rule for the name of a parameter (``sweeps/config/schema.json`` of https://github.com/wandb/sweeps)."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        file: it was read from.
        name: of the ablation; ``file``'s own where it gives none.
        description: for people.
        project: wandb project of the runs.
        recipe: file that says what a cell runs.
        parameters: names and their values, in the file's order, without ``recipe`` and ``seed``.
        seeds: every cell is run with each of them.
    """

    file: Path
    name: str
    description: str
    project: str
    recipe: Path
    parameters: Mapping[str, tuple[Scalar, ...]]
    seeds: tuple[int, ...]

    def cells(self) -> tuple[dict[str, Scalar], ...]:
        """All combinations of the values; the last parameter varies fastest."""
        combined = itertools.product(*self.parameters.values())
        return tuple(dict(zip(self.parameters, values, strict=True)) for values in combined)

    @property
    def varied(self) -> tuple[str, ...]:
        """Parameters with more than one value."""
        return tuple(name for name, values in self.parameters.items() if len(values) > 1)


@dataclass(frozen=True)
class Selection:
    """Which cells and seeds are run: those with one of the given values of every parameter named.

    Attributes:
        wanted: words as given on the command line, by parameter.
    """

    wanted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cells(self, sweep: Sweep) -> tuple[dict[str, Scalar], ...]:
        """The sweep's cells that are selected.

        Raises:
            UserError: a parameter or value that the grid does not have.
        """
        self._check(sweep)
        return tuple(cell for cell in sweep.cells() if all(self._takes(name, value) for name, value in cell.items()))

    def seeds(self, sweep: Sweep) -> tuple[int, ...]:
        """The sweep's seeds that are selected."""
        return tuple(seed for seed in sweep.seeds if self._takes(SEED, seed))

    def _takes(self, name: str, value: Scalar) -> bool:
        return name not in self.wanted or any(_same(word, value) for word in self.wanted[name])

    def _check(self, sweep: Sweep) -> None:
        values: dict[str, Sequence[Scalar]] = {
            **sweep.parameters,
            SEED: sweep.seeds,
            RECIPE: (str(sweep.recipe),),
        }
        for name, words in self.wanted.items():
            if name not in values:
                hint = nearest(name, list(values)) or "."
                raise UserError(f"--only {name}: {sweep.file} has no such parameter{hint} Names: {', '.join(values)}")
            for word in words:
                if not any(_same(word, value) for value in values[name]):
                    valid = ", ".join(str(value) for value in values[name])
                    raise UserError(f"--only {name}={word}: not a value of {sweep.file}; values: {valid}")


def parse_only(words: Sequence[str]) -> Selection:
    """Read ``name=value`` words; a name may stand several times.

    Raises:
        UserError: a word of another form.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UserError(f"--only {word}: must be NAME=VALUE, e.g. --only tokens=both seed=0")
        wanted[name] = (*wanted.get(name, ()), value)
    return Selection(wanted)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: it is missing, not YAML, not a grid, has no cells, or says what no server needs to be asked about.
    """
    return sweep_of(read_yaml(path), path)


def sweep_of(value: object, path: Path) -> Sweep:
    """Read plain values; ``path`` names them in messages.

    Raises:
        UserError: as `read_sweep`.
    """
    where = str(path)
    given = as_mapping(value, where)
    check_keys(given, _KEYS, where)
    if given.get("method") != "grid":
        raise UserError(
            f"{where}: method is {given.get('method')!r}; offline only grid can be run, which needs no server"
        )
    parameters = _parameters(given.get("parameters"), where)
    recipe = parameters.pop(RECIPE, ())
    if len(recipe) != 1 or not isinstance(recipe[0], str):
        raise UserError(f"{where}: the parameter 'recipe' must be one file, e.g. recipe: {{value: recipe.yaml}}")
    return Sweep(
        file=path,
        name=str(given.get("name", path.stem)),
        description=str(given.get("description", "")),
        project=str(given.get("project", "longvid-train")),
        recipe=Path(recipe[0]),
        seeds=_seeds(parameters.pop(SEED, (0,)), where),
        parameters=parameters,
    )


def _parameters(value: object, where: str) -> dict[str, tuple[Scalar, ...]]:
    if not value:
        raise UserError(f"{where}: the grid is empty; name parameters: {{name: {{values: [...]}}}}")
    return {
        name: _values(name, one, f"{where}: parameters: {name}")
        for name, one in as_mapping(value, f"{where}: parameters").items()
    }


def _values(name: str, value: object, where: str) -> tuple[Scalar, ...]:
    if not _PARAMETER_NAME.fullmatch(name):
        raise UserError(f"{where}: wandb allows letters, digits, '_', '.' and '-' in the name of a parameter")
    given = dict(as_mapping(value, where))
    check_keys(given, ("value", "values"), where)
    if len(given) != 1:
        raise UserError(f"{where}: give one of value and values")
    values = [given["value"]] if "value" in given else given["values"]
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: the grid is empty: values is {values!r}; list at least one")
    if any(not isinstance(one, str | int | float | bool) for one in values):
        raise UserError(
            f"{where}: values must be words or numbers, got {values!r}; name a choice in the recipe instead"
        )
    if len({str(one) for one in values}) < len(values):
        raise UserError(f"{where}: a value stands twice in {values!r}; leave one out")
    return tuple(values)


def _seeds(values: Sequence[Scalar], where: str) -> tuple[int, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise UserError(f"{where}: seed {value!r} must be a whole number from 0 to below 2**32")
    return tuple(int(value) for value in values)


def _same(word: str, value: Scalar) -> bool:
    """Whether a word of the command line means a value; wandb's agent writes ``str(value)``."""
    if word == str(value):
        return True
    try:
        read: Any = yaml.safe_load(word)
    except yaml.YAMLError:
        return False
    return type(read) is type(value) and read == value
