"""A run folder, as ``longvid fit`` writes it, to checked values."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from longvid_train.errors import UserError
from longvid_train.generate.record import AnswerRecord as Answer

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ANSWERS_BEFORE_FILE = "answers_before.jsonl"
ANSWERS_AFTER_FILE = "answers_after.jsonl"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run (a resumed run has several).

    Attributes:
        started_at: moment of the start.
        command: the command line, quoted for a shell.
        seed: seed of everything, if one was set.
        git_commit: commit of the working folder, with ``-dirty`` if tracked files differed; None outside git.
        manifest_sha256: SHA-256 of each manifest by its name in the config.
        versions: versions of Python and of the packages that decide a result.
        hardware: platform, core and thread counts, CUDA devices.
        duration_s: seconds to the end of the run, export and answers included; None if this start did not reach it.
    """

    started_at: datetime
    command: str
    seed: int | bool | None
    git_commit: str | None
    manifest_sha256: Mapping[str, str]
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    duration_s: float | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """The numbers of one optimiser step."""

    step: int
    loss: float
    lr: float
    tokens_per_s: float
    frames_per_s: float
    peak_bytes: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        stage: the stage's name.
        start_model: the checkpoint folder that training started from.
        config: the resolved config.
        starts: every start, oldest first.
        steps: every logged optimiser step in order.
        before: held-out answers before the first step.
        after: held-out answers after the last step, of the same questions in the same order.
    """

    folder: Path
    stage: str
    start_model: str
    config: Mapping[str, Any]
    starts: tuple[Start, ...]
    steps: tuple[Step, ...]
    before: tuple[Answer, ...]
    after: tuple[Answer, ...]

    @property
    def wall_s(self) -> float | None:
        """Seconds of the last start, from its set-up to the end of the run; None if the run record has no end."""
        return self.starts[-1].duration_s


def read_run(folder: Path) -> Run:
    """Read and check a finished run.

    Raises:
        UserError: the folder or a file of it is missing, the run is unfinished, or a file is broken; the message names
            the file, the line where there is one, and the remedy.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; name a folder that longvid fit wrote (its run_dir)")
    config = _read_config(folder / CONFIG_FILE)
    starts = _read_starts(folder / RECORD_FILE)
    before, after = _read_both_answers(folder)
    return Run(
        folder=folder,
        stage=str(config_value(config, "model.init_args.stage.name", folder / CONFIG_FILE)),
        start_model=str(config_value(config, "model.init_args.model", folder / CONFIG_FILE)),
        config=config,
        starts=starts,
        steps=_read_steps(folder / METRICS_FILE),
        before=before,
        after=after,
    )


def config_value(config: Mapping[str, Any], dotted: str, path: Path) -> Any:
    """Return the value of a dotted key of a config.

    Raises:
        UserError: the key is not there.
    """
    value: Any = config
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or value.get(key) is None:
            raise UserError(f"{path}: has no '{dotted}'; the report reads configs that longvid fit wrote")
        value = value[key]
    return value


def read_json_lines(path: Path, remedy: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("file:line", object)`` for every line of a JSON Lines file that is not blank.

    Args:
        path: the file.
        remedy: ends the message if the file is missing.

    Raises:
        UserError: the file is missing, or a line is not a JSON object.
    """
    for number, line in enumerate(_read_text(path, remedy).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _json_object(line, f"{path}:{number}")


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: the file is missing or does not hold one.
    """
    return _json_object(_read_text(path, remedy), str(path))


def field(row: Mapping[str, Any], name: str, types: type | tuple[type, ...], where: str) -> Any:
    """Return ``row[name]`` after checking that it is of one of ``types`` (a boolean does not count as a number).

    Raises:
        UserError: it is missing or of another type.
    """
    value = row.get(name)
    allowed = types if isinstance(types, tuple) else (types,)
    if name not in row or not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        found = f"is {value!r}" if name in row else "is missing"
        raise UserError(f"{where}: field '{name}' {found}; it must be {wanted}")
    return value


def _read_both_answers(folder: Path) -> tuple[tuple[Answer, ...], tuple[Answer, ...]]:
    rerun = "set answers.enabled: true in the config and run longvid fit again"
    unfinished = (
        "the run is unfinished (continue it with longvid fit --ckpt_path last) or answered nothing; else " + rerun
    )
    after = _read_answers(folder / ANSWERS_AFTER_FILE, unfinished)
    before = _read_answers(folder / ANSWERS_BEFORE_FILE, rerun)
    if [answer.id for answer in before] != [answer.id for answer in after]:
        raise UserError(
            f"{folder / ANSWERS_BEFORE_FILE}: answers other questions than {ANSWERS_AFTER_FILE}; "
            "a comparison needs the same held-out rows, so run longvid fit again"
        )
    return before, after


def _read_answers(path: Path, remedy: str) -> tuple[Answer, ...]:
    answers = tuple(_answer(row, where) for where, row in read_json_lines(path, remedy))
    if not answers:
        raise UserError(f"{path}: is empty; {remedy}")
    return answers


def _answer(row: dict[str, Any], where: str) -> Answer:
    texts = {name: field(row, name, str, where) for name in ("id", "kind", "question", "answer", "truth")}
    counts = {name: field(row, name, int, where) for name in ("frames", "visual_tokens", "prompt_tokens")}
    correct = float(field(row, "correct", (int, float), where))
    if not 0 <= correct <= 1:
        raise UserError(f"{where}: field 'correct' is {correct}; it must be a score from 0 to 1")
    return Answer(**texts, **counts, correct=correct)


def _read_steps(path: Path) -> tuple[Step, ...]:
    rows = read_json_lines(path, "name a folder that longvid fit wrote")
    steps = tuple(_step(row, where) for where, row in rows if "train/loss" in row)
    if not steps:
        raise UserError(f"{path}: has no line with 'train/loss'; train at least one step with longvid fit")
    return steps


def _step(row: dict[str, Any], where: str) -> Step:
    names = ("loss", "lr", "tokens_per_s", "frames_per_s", "peak_bytes")
    numbers = {name: float(field(row, f"train/{name}", (int, float), where)) for name in names}
    if not all(math.isfinite(value) for value in numbers.values()):
        raise UserError(f"{where}: a number of step {row.get('step')} is not finite; the run diverged, train it again")
    return Step(step=field(row, "step", int, where), **numbers)


def _read_starts(path: Path) -> tuple[Start, ...]:
    record = read_json_object(path, "name a folder that longvid fit wrote")
    rows = field(record, "starts", list, str(path))
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: field 'starts' must be a list of at least one start, as longvid fit writes it")
    return tuple(_start(row, str(path)) for row in rows)


def _start(row: dict[str, Any], where: str) -> Start:
    started_at = field(row, "started_at", str, where)
    try:
        moment = datetime.fromisoformat(started_at)
    except ValueError as error:
        raise UserError(f"{where}: field 'started_at' is '{started_at}'; it must be an ISO 8601 time") from error
    return Start(
        started_at=moment if moment.tzinfo else moment.replace(tzinfo=UTC),
        command=field(row, "command", str, where),
        seed=field(row, "seed", (int, bool, type(None)), where),
        git_commit=field(row, "git_commit", (str, type(None)), where),
        manifest_sha256=field(row, "manifest_sha256", dict, where),
        versions=field(row, "versions", dict, where),
        hardware=field(row, "hardware", dict, where),
        duration_s=None if "duration_s" not in row else float(field(row, "duration_s", (int, float), where)),
    )


def _read_config(path: Path) -> dict[str, Any]:
    text = _read_text(path, "name a folder that longvid fit wrote")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())}); run longvid fit again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no settings; name a folder that longvid fit wrote")
    return config


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg}); the file is cut off or edited, write it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds a JSON {type(value).__name__}; it must be an object")
    return value


def _read_text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); {remedy}") from error
