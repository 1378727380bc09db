"""A cell and a seed to steps. A step is known by all that decides its output, so that cells share what is the same."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.ablation.contents import Contents
from longvid_train.ablation.kinds import KINDS, Kind, ParseWords
from longvid_train.ablation.recipe import CONFIG, Recipe
from longvid_train.ablation.references import filled, references
from longvid_train.ablation.settings import with_settings, without_keys
from longvid_train.ablation.sweep import SEED, Scalar, Sweep
from longvid_train.errors import UserError

STEPS = "steps"
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command with all its settings.

    Attributes:
        name: in the recipe.
        kind: what it runs.
        config: settings; ``${name}`` stands for the output of an input.
        inputs: steps whose output it reads.
        identity: hex SHA-256 over kind, settings, contents of the files they name, and the inputs' identities.
    """

    name: str
    kind: Kind
    config: Mapping[str, Any]
    inputs: Mapping[str, "Step"]
    identity: str

    def folder(self, out: Path) -> Path:
        """Of the step, in an ablation's folder."""
        return out / STEPS / f"{self.name}-{self.identity[:_DIGITS]}"

    def output(self, out: Path) -> Path:
        """What references to the step mean."""
        return self.folder(out) / self.kind.output

    def resolved(self, out: Path) -> dict[str, Any]:
        """The settings with paths in place of references."""
        values: dict[str, Any] = filled(self.config, {name: str(one.output(out)) for name, one in self.inputs.items()})
        return values

    def in_order(self) -> Iterator["Step"]:
        """The steps that this one needs, inputs first, each once, then itself."""
        seen: set[str] = set()
        for one in self._before():
            if one.identity not in seen:
                seen.add(one.identity)
                yield one

    def _before(self) -> Iterator["Step"]:
        for one in self.inputs.values():
            yield from one._before()
        yield self


@dataclass(frozen=True, kw_only=True)
class Run:
    """One cell with one seed.

    Attributes:
        cell: values of the sweep's parameters.
        name: of the cell, for files and tables.
        seed: of the run.
        result: the step whose answers are its score.
    """

    cell: Mapping[str, Scalar]
    name: str
    seed: int
    result: Step

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name} seed={self.seed}"

    def folder(self, out: Path) -> Path:
        """Of the run's record and result, in an ablation's folder."""
        return out / "cells" / self.name / f"seed{self.seed}"


class Planner:
    """Makes the steps of runs; equal steps are made once.

    Args:
        sweep: the grid.
        recipe: what its cells run.
    """

    def __init__(self, sweep: Sweep, recipe: Recipe) -> None:
        self._sweep, self._recipe = sweep, recipe
        self._contents = Contents()
        self._bases: dict[tuple[str, str], dict[str, Any]] = {}

    def result(self, cell: Mapping[str, Scalar], seed: int) -> Step:
        """The step that answers for a cell, with all that it needs.

        Raises:
            UserError: a parameter is unknown, or a config cannot be read.
        """
        chosen = self._recipe.settings_of(cell, str(self._sweep.file))
        steps: dict[str, Step] = {}

        def step(name: str) -> Step:
            if name not in steps:
                config = self._config(name, chosen, seed)
                steps[name] = self._step(name, config, {one: step(one) for one in references(config)})
            return steps[name]

        return step(self._recipe.result)

    def _config(self, name: str, chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
        recipe = self._recipe.steps[name]
        kind = KINDS[recipe.kind]
        given = {key.partition(".")[2]: value for key, value in chosen.items() if key.partition(".")[0] == name}
        settings = {**recipe.settings, **given}
        file = settings.get(CONFIG, recipe.config)
        base = {} if file is None else self._base(recipe.kind, str(file))
        config = with_settings(base, without_keys(settings, (CONFIG,)))
        taken = [key for key in kind.owned if key in config]
        if taken:
            raise UserError(f"{self._sweep.file}: '{name}.{taken[0]}' is set by the ablation itself; leave it out")
        kept = {one: f"${{{one}}}" for one in references(config)}
        filled_in: dict[str, Any] = filled(config, {**kept, SEED: seed})
        return filled_in

    def _base(self, kind: str, file: str) -> dict[str, Any]:
        if (kind, file) not in self._bases:
            self._bases[kind, file] = KINDS[kind].read(Path(file))
        return self._bases[kind, file]

    def _step(self, name: str, config: dict[str, Any], inputs: dict[str, Step]) -> Step:
        kind = KINDS[self._recipe.steps[name].kind]
        facts = {
            "kind": type(kind).__name__,
            "config": config,
            "contents": self._contents.named_by(config),
            "inputs": {one: step.identity for one, step in inputs.items()},
        }
        identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Step(name=name, kind=kind, config=config, inputs=inputs, identity=identity)


def plan_runs(sweep: Sweep, recipe: Recipe, cells: tuple[dict[str, Scalar], ...], seeds: tuple[int, ...]) -> list[Run]:
    """Every cell with every seed, seed after seed, so that a first row of each cell comes early.

    Raises:
        UserError: as `Planner.result`; or a parameter sets a step that no cell runs.
    """
    planner, names = Planner(sweep, recipe), cell_names(sweep)
    runs = [
        Run(cell=cell, name=names[_key(cell)], seed=seed, result=planner.result(cell, seed))
        for seed in seeds
        for cell in cells
    ]
    reached = {step.name for run in runs for step in run.result.in_order()}
    for name in sweep.parameters:
        if runs and name not in recipe.choices and name.partition(".")[0] not in reached:
            raise UserError(
                f"{sweep.file}: parameter '{name}' has no effect: no cell runs the step '{name.partition('.')[0]}'; "
                f"refer to it in {recipe.file}, or leave the parameter out"
            )
    return runs


def check_runs(runs: list[Run], out: Path, where: str, parse: ParseWords) -> None:
    """Read the settings of every step as its command will; of steps that differ in seeds only, one is read.

    Raises:
        UserError: a key that the step's config does not have, or a value that it cannot have.
    """
    first = runs[0].seed if runs else 0
    seen: set[str] = set()
    for run in runs:
        for step in run.result.in_order() if run.seed == first else ():
            if step.identity in seen:
                continue
            seen.add(step.identity)
            try:
                step.kind.check(step.resolved(out), f"step '{step.name}'", parse)
            except UserError as error:
                raise UserError(f"{where}: {run.name}: step '{step.name}': {error}") from None


def cell_names(sweep: Sweep) -> dict[str, str]:
    """The name of every cell: its varied parameters, as a folder can be called; by `_key`."""
    shown = {name: name.rpartition(".")[2] for name in sweep.varied}
    if len(set(shown.values())) < len(shown):
        shown = {name: name for name in sweep.varied}
    named = {
        _key(cell): ",".join(f"{shown[name]}={value_words(sweep, name, cell[name])}" for name in sweep.varied) or "all"
        for cell in sweep.cells()
    }
    return {key: _file_name(name, key) for key, name in named.items()}


def value_words(sweep: Sweep, name: str, value: Scalar) -> str:
    """A parameter's value in few words: of files the name, where that tells them apart."""
    values = sweep.parameters[name]
    if isinstance(value, str) and "/" in value and len({Path(str(one)).stem for one in values}) == len(values):
        return Path(value).stem
    return str(value)


def _file_name(name: str, key: str) -> str:
    plain = "".join(letter if letter.isalnum() or letter in "=,._+-" else "_" for letter in name)
    if plain == name and len(plain) <= 100:
        return plain
    return f"{plain[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _key(cell: Mapping[str, Scalar]) -> str:
    return json.dumps(cell, sort_keys=True)
