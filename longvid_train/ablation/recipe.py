"""What a cell runs: steps in order, each a command of ``longvid`` with a config, and named choices of their settings.

::

    steps:
      start: {run: init, set: {seed: "${seed}"}}
      stage1: {run: fit, config: configs/llama_vid/nano/stage1.yaml, set: {model.model: "${start}"}}
    choices:
      tokens: {content: {start.no-text-decoder: true}, both: {}}
    result: stage1

``${start}`` is the output of an earlier step, ``${seed}`` the seed. Only steps that the result depends on are run. A
parameter of the sweep is a choice by its name, or a setting of a step: ``stage1.model.optimizer.lr``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.ablation.kinds import KINDS
from longvid_train.ablation.references import references
from longvid_train.ablation.sweep import SEED, Scalar, Sweep
from longvid_train.adaptation.records import as_mapping, check_keys, read_yaml
from longvid_train.errors import UserError, nearest

CONFIG = "config"
"""Key of a step that names its config file; as a setting (``stage1.config``) it takes another one."""

_STEP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class StepRecipe:
    """A step before anything is chosen.

    Attributes:
        kind: name of one of ``kinds.KINDS``.
        config: file its settings start from, if any.
        settings: laid over it, by dotted key.
    """

    kind: str
    config: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        file: it was read from.
        steps: in order.
        choices: parameter -> value, as written in a sweep file -> settings ``step.key``.
        result: the step whose answers are scored.
        values: the file's plain values.
    """

    file: Path
    steps: Mapping[str, StepRecipe]
    choices: Mapping[str, Mapping[str, Mapping[str, Any]]]
    result: str
    values: Mapping[str, Any]

    def settings_of(self, cell: Mapping[str, Scalar], where: str) -> dict[str, Any]:
        """Settings ``step.key`` that a cell's parameters stand for.

        Raises:
            UserError: a parameter that is neither a choice nor a setting of a step, a value that is no choice, or two
                parameters that set the same.
        """
        chosen: dict[str, Any] = {}
        for name, value in cell.items():
            for key, setting in self._meant(name, value, where).items():
                if key in chosen:
                    raise UserError(f"{where}: parameter '{name}' sets '{key}', which another one sets; leave one out")
                chosen[key] = setting
        return chosen

    def _meant(self, name: str, value: Scalar, where: str) -> Mapping[str, Any]:
        if name in self.choices:
            if str(value) in self.choices[name]:
                return self.choices[name][str(value)]
            valid = list(self.choices[name])
            hint = nearest(str(value), valid) or "."
            raise UserError(f"{where}: {name} has no choice {value!r}{hint} Choices in {self.file}: {', '.join(valid)}")
        step, dot, _ = name.partition(".")
        if not dot or step not in self.steps:
            valid = [*self.choices, *(f"{one}.KEY" for one in self.steps)]
            hint = nearest(name, [*self.choices, *self.steps]) or "."
            raise UserError(f"{where}: parameter '{name}' is unknown{hint} {self.file} has {', '.join(valid)}")
        if references(value):
            raise UserError(f"{where}: parameter '{name}' is {value!r}; references stand in {self.file} only")
        return {name: value}


def read_recipe(sweep: Sweep) -> Recipe:
    """Read the recipe of a sweep.

    Raises:
        UserError: the file is missing or not YAML, or a step, choice or reference in it cannot be.
    """
    where = str(sweep.recipe)
    given = as_mapping(read_yaml(sweep.recipe), where)
    check_keys(given, ("steps", "choices", "result"), where)
    steps: dict[str, StepRecipe] = {}
    for name, value in as_mapping(given.get("steps", {}), f"{where}: steps").items():
        steps[name] = _step(name, value, f"{where}: steps: {name}")
        _check_references(steps[name].settings, [*steps][:-1], f"{where}: steps: {name}")
    result = given.get("result")
    if result not in steps or not KINDS[steps[result].kind].answers:
        answering = [name for name, one in steps.items() if KINDS[one.kind].answers]
        raise UserError(
            f"{where}: result is {result!r}; it must name a step that answers questions: "
            f"{', '.join(answering) or 'none'}"
        )
    return Recipe(
        file=sweep.recipe,
        steps=steps,
        choices=_choices(given.get("choices", {}), steps, where),
        result=result,
        values=given,
    )


def _step(name: str, value: object, where: str) -> StepRecipe:
    given = as_mapping(value, where)
    check_keys(given, ("run", CONFIG, "set"), where)
    if not _STEP_NAME.fullmatch(name) or name == SEED:
        raise UserError(f"{where}: a step's name is of letters, digits and '_', and not '{SEED}'")
    kind, config = given.get("run"), given.get(CONFIG)
    if kind not in KINDS:
        hint = nearest(str(kind), list(KINDS)) or "."
        raise UserError(f"{where}: run is {kind!r}{hint} Use one of {', '.join(KINDS)}")
    if config is not None and not isinstance(config, str):
        raise UserError(f"{where}: config is {config!r}; it must be the name of a file")
    return StepRecipe(kind=kind, config=config, settings=as_mapping(given.get("set", {}), f"{where}: set"))


def _choices(value: object, steps: Mapping[str, StepRecipe], where: str) -> dict[str, dict[str, dict[str, Any]]]:
    choices: dict[str, dict[str, dict[str, Any]]] = {}
    for name, options in as_mapping(value, f"{where}: choices").items():
        choices[name] = {}
        for option, settings in _options(options, f"{where}: choices: {name}"):
            here = f"{where}: choices: {name}: {option}"
            choices[name][option] = dict(as_mapping(settings, here))
            _check_settings(choices[name][option], steps, here)
    return choices


def _options(value: object, where: str) -> Iterable[tuple[str, object]]:
    """Options of a choice; YAML reads some of their names as numbers or truth values."""
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where} must map values to settings, got {value!r}")
    return [(str(option), {} if settings is None else settings) for option, settings in value.items()]


def _check_settings(settings: Mapping[str, Any], steps: Mapping[str, StepRecipe], where: str) -> None:
    for key, value in settings.items():
        step, dot, _ = key.partition(".")
        if not dot or step not in steps:
            raise UserError(
                f"{where}: '{key}' is no setting of a step{nearest(step, list(steps)) or '.'} Write STEP.KEY"
            )
        _check_references(value, [*steps][: [*steps].index(step)], f"{where}: {key}")


def _check_references(value: object, earlier: list[str], where: str) -> None:
    for name in references(value):
        if name not in (SEED, *earlier):
            hint = nearest(name, [SEED, *earlier]) or "."
            raise UserError(f"{where}: ${{{name}}} is no earlier step{hint} Earlier: {', '.join([SEED, *earlier])}")
