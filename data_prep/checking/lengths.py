"""Token lengths of rows under a training config, from text and containers alone, as training would plan them."""

import inspect
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_prep.checking.rows import Chunk, lines_of, three_digits
from longvid_train.data.manifest import ManifestRules, Sample, sample_from_json
from longvid_train.data.row_checks import RowError
from longvid_train.errors import UserError, nearest

if TYPE_CHECKING:
    from longvid_train.data.budget import RowPlan

_KEYS = ("template", "conversation", "media", "budget")
"""Keys of ``data.init_args`` that decide a row's length."""


@dataclass(frozen=True)
class LengthSettings:
    """What decides the length of a row.

    Attributes:
        configs: YAML files of ``longvid fit``; later ones override earlier ones.
        processor: folder of the model; None: the one the configs name.
        isolated: open containers in a process of their own.
        probe_cache: file in which frame counts are shared between processes; None: the config's, or none.
    """

    configs: tuple[str, ...]
    processor: str | None = None
    isolated: bool = True
    probe_cache: str | None = None


@dataclass
class LengthFacts:
    """Lengths of the rows of a chunk, or of many; line numbers count from the chunk's first line.

    Attributes:
        lines: lines of the chunk.
        tokens: rows by tokens after the budget, to three digits.
        rows: rows that fit.
        longest: tokens of the longest row that fits.
        text_tokens: of all rows that fit.
        visual_tokens: likewise.
        frames: likewise, distinct frames.
        shortened: line and message of rows that the budget takes something from.
        refused: line and message of rows that do not fit.
        unmeasured: line and message of rows whose media cannot be opened.
    """

    lines: int = 0
    tokens: "Counter[int]" = field(default_factory=Counter)
    rows: int = 0
    longest: int = 0
    text_tokens: int = 0
    visual_tokens: int = 0
    frames: int = 0
    shortened: list[tuple[int, str]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    unmeasured: list[tuple[int, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, int]:
        """Numbers only."""
        numbers = ("rows", "longest", "text_tokens", "visual_tokens", "frames")
        return {name: getattr(self, name) for name in numbers}

    def merge_numbers(self, other: "LengthFacts") -> None:
        """Add the numbers of other rows; lists of lines stay as they are."""
        self.tokens += other.tokens
        self.rows += other.rows
        self.longest = max(self.longest, other.longest)
        self.text_tokens += other.text_tokens
        self.visual_tokens += other.visual_tokens
        self.frames += other.frames


def measure_chunk(chunk: Chunk, rules: ManifestRules, settings: LengthSettings) -> LengthFacts:
    """Plan every row of a chunk that keeps the rules.

    Raises:
        UserError: the config or the model's folder cannot be read.
    """
    measurer = measurer_of(settings)
    folder = Path(chunk.path).parent.absolute()
    facts = LengthFacts()
    for number, raw in lines_of(chunk):
        facts.lines = number
        try:
            sample = sample_from_json(raw, require_answer=rules.require_answer, allow_outside=rules.allow_outside)
        except RowError:
            continue
        measurer.add(facts, number, sample, folder)
    return facts


class Measurer:
    """Plans rows as a training run with the same config would."""

    def __init__(self, settings: LengthSettings) -> None:
        """Read the configs and the model's tokenizers; no weights are loaded.

        Raises:
            UserError: the config or the model's folder cannot be read.
        """
        # Importing torch takes seconds: a check without a config does not pay for it.
        from longvid_train.data.budget import RowPlanner
        from longvid_train.data.datamodule import ManifestDataModule
        from longvid_train.data.media import MediaLoader

        options, named = _read_configs(settings.configs)
        folder = settings.processor or named
        if folder is None:
            raise UserError(
                f"{', '.join(settings.configs)}: names no model.model; name the model's folder with --processor"
            )
        data = ManifestDataModule(processor=folder, **options)
        media = replace(
            options["media"],
            features=None,
            isolated=settings.isolated,
            probe_cache=options["media"].probe_cache or settings.probe_cache,
        )
        self.max_tokens: int = data.conversation.max_tokens
        self._planner: RowPlanner = RowPlanner(data.processor, data.template, data.conversation, data.budget)
        self._loader: MediaLoader = MediaLoader(media, data.processor)

    def add(self, facts: LengthFacts, line: int, sample: Sample, folder: Path) -> None:
        """Plan one row and add its numbers to ``facts``."""
        from longvid_train.data.conversation import SampleTooLongError

        try:
            layouts = [self._loader.layout(medium, folder) for medium in sample.media]
            plan = self._planner.plan(sample.conversation, layouts)
        except SampleTooLongError as error:
            facts.refused.append((line, str(error)))
            return
        except UserError as error:
            facts.unmeasured.append((line, str(error)))
            return
        _note(facts, line, plan)


@lru_cache(maxsize=1)
def measurer_of(settings: LengthSettings) -> Measurer:
    """The measurer of this process."""
    return Measurer(settings)


def _note(facts: LengthFacts, line: int, plan: "RowPlan") -> None:
    facts.rows += 1
    facts.tokens[three_digits(plan.tokens.total)] += 1
    facts.longest = max(facts.longest, plan.tokens.total)
    facts.text_tokens += plan.tokens.text
    facts.visual_tokens += plan.tokens.visual
    facts.frames += plan.frames
    if plan.shortening is not None:
        left_out = plan.shortening
        message = (
            f"{left_out.frames} frames, {left_out.visual_tokens} visual and {left_out.text_tokens} text tokens are "
            f"left out to fit; {plan.tokens.total} tokens remain"
        )
        facts.shortened.append((line, message))


def _read_configs(paths: tuple[str, ...]) -> tuple[dict[str, Any], str | None]:
    """The options that decide lengths, as the classes of the data room, and the model's folder if one is named."""
    merged: dict[str, Any] = {}
    for path in paths:
        _merge(merged, _read_yaml(Path(path)))
    data, model = merged.get("data", {}), merged.get("model", {})
    arguments = data.get("init_args", {}) if "class_path" in data or "init_args" in data else data
    _check_names(arguments, ", ".join(paths))
    named = arguments.get("processor") or model.get("init_args", model).get("model")
    return _built({key: arguments[key] for key in _KEYS if key in arguments}, ", ".join(paths)), named


def _check_names(arguments: dict[str, Any], where: str) -> None:
    """Refuse a key that a data module does not have: a misspelt one would be measured as if it were not set."""
    from longvid_train.data.datamodule import ManifestDataModule

    known = list(inspect.signature(ManifestDataModule).parameters)
    for name in arguments:
        if name not in known:
            raise UserError(
                f"{where}: 'data.init_args.{name}' is not a key of ManifestDataModule{nearest(name, known)}"
            )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config '{path}' cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config '{path}' is not YAML: {' '.join(str(error).split())}") from error
    groups = [values] if not isinstance(values, dict) else [values.get("data", {}), values.get("model", {})]
    if not all(isinstance(group, dict) for group in groups):
        raise UserError(f"config '{path}' must hold the keys of 'longvid fit', with 'data' and 'model' as mappings")
    return dict(values)


def _merge(target: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _built(values: dict[str, Any], where: str) -> dict[str, Any]:
    from jsonargparse import ArgumentError, ArgumentParser

    from longvid_train.data.budget import TokenBudget
    from longvid_train.data.conversation import ConversationOptions
    from longvid_train.data.media import MediaOptions

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--template", type=str, default="vicuna_v1")
    parser.add_argument("--conversation", type=ConversationOptions, default=ConversationOptions())
    parser.add_argument("--media", type=MediaOptions, default=MediaOptions())
    parser.add_argument("--budget", type=TokenBudget, default=TokenBudget())
    try:
        built = parser.instantiate_classes(parser.parse_object(values))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{where}: data: {' '.join(str(error).split())[:400]}") from error
    return {key: built[key] for key in _KEYS}
