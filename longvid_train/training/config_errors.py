"""Turns jsonargparse's multi-line reports into one line that names the key and the nearest valid one."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytorch_lightning as pl

from longvid_train.errors import nearest
from longvid_train.training.answers import AnswerAccuracy
from longvid_train.training.ranks.monitor import Watchdog
from longvid_train.training.run_checkpoint import RunCheckpoint

_NOISE = re.compile(r"^(Does not validate|Subtypes:|Errors:|- Expected a <class 'NoneType'>|Given value)")
_CLASS_PATH = re.compile(r"class_path '([\w.]+)'")
_NO_VALUE = re.compile(r'Parser key "(run_dir)":\s+Expected a .*\. Got value: None')
_UNKNOWN = (
    re.compile(r"Subcommand '\w+' does not accept option '([\w.]+)'"),
    re.compile(r"Group '[\w.]+' does not accept option '([\w.]+)'"),
    re.compile(r"Option '([\w.]+)' is not accepted"),
    re.compile(r"unrecognized arguments: --([\w.]+)"),
)
TOP_LEVEL = (
    "model",
    "data",
    "trainer",
    "checkpoint",
    "answers",
    "watchdog",
    "profile",
    "run_dir",
    "wandb",
    "wandb_project",
    "log_interval_s",
    "seed_everything",
    "ckpt_path",
)


def one_line(message: str, subcommand: str) -> str:
    """Return ``message`` of jsonargparse as one line with a hint for a mistyped key."""
    for pattern in _UNKNOWN:
        found = pattern.search(message)
        if found:
            return _unknown_key(found.group(1), message, subcommand)
    missing = re.search(r"following arguments are required: (.+)", message) or _NO_VALUE.search(message)
    if missing:
        example = "--config configs/llama_vid/nano/stage1.yaml"
        return f"{subcommand}: no value for {missing.group(1)}; give a config, e.g. {example}"
    lines = [line.strip() for line in message.splitlines()]
    kept = [
        re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", line) for line in lines if line and not _NOISE.match(line)
    ]
    return " ".join(kept)[:600] + f" ('longvid {subcommand} --help' lists the keys)"


def _unknown_key(key: str, message: str, subcommand: str) -> str:
    hint = _hint(key, message)
    where = _CLASS_PATH.search(message)
    owner = f" of {where.group(1)}" if where else ""
    if not where and key.split(".")[0] not in TOP_LEVEL:
        key = key.split(".")[0]
    return f"'{key}' is not a key{owner}{hint} ('longvid {subcommand} --help' lists the keys)"


def _hint(key: str, message: str) -> str:
    first, _, rest = key.partition(".")
    where = _CLASS_PATH.search(message)
    if where:
        name, places = key.rsplit(".", 1)[-1], _places_of(where.group(1))
        return f"; did you mean '{places[name]}'?" if name in places else nearest(name, list(places))
    if first == "trainer":
        return nearest(rest, _parameters(pl.Trainer))
    if first == "checkpoint":
        return nearest(rest, [*_parameters(pl.callbacks.ModelCheckpoint), *_parameters(RunCheckpoint)])
    if first == "answers":
        return nearest(rest, _parameters(AnswerAccuracy))
    if first == "watchdog":
        return nearest(rest, _parameters(Watchdog))
    return nearest(first, TOP_LEVEL)


def _places_of(class_path: str) -> dict[str, str]:
    """Parameters of a class and fields of its dataclass parameters, by name: where in the config each one stands."""
    module, _, name = class_path.rpartition(".")
    owner = getattr(importlib.import_module(module), name)
    places = {name: name for name in _parameters(owner)}
    for parameter in inspect.signature(owner).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            for field in dataclasses.fields(parameter.annotation):
                places.setdefault(field.name, f"{parameter.name}.{field.name}")
    return places


def _parameters(owner: Any) -> list[str]:
    return [name for name in inspect.signature(owner).parameters if name != "self"]
