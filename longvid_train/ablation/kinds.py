"""What a step can run: a command of ``longvid`` on one config, or an adaptation written to a file.

A kind says how its config is checked before anything runs, which words start the command, and how it goes on after an
interruption.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from longvid_train.ablation.settings import without_keys
from longvid_train.adaptation.reading import adaptation_of, adaptation_values, load_adaptation, write_adaptation
from longvid_train.adaptation.records import as_mapping, read_yaml
from longvid_train.evaluation.local.settings import settings_of
from longvid_train.files import write_text
from longvid_train.world.settings import parse_world

CONFIG_FILE = "config.yaml"
OUTPUT = "out"
"""In a step's folder: the settings the command gets, and what it writes."""

ParseWords = Callable[[Sequence[str]], None]
"""Reads the words of a ``longvid`` command with its own parser and runs nothing; raises ``UserError``."""


class Kind:
    """A command that takes ``--config`` and ``--out`` and goes on where it stopped when it is given again.

    Attributes:
        command: of ``longvid``; empty for none.
        answers: whether it leaves scored answers to questions.
        owned: keys of its config that the ablation sets itself.
        output: what a reference to the step means, in its folder.
        starts_over: an unfinished output is removed before the next start.
    """

    command: ClassVar[str] = ""
    answers: ClassVar[bool] = False
    owned: ClassVar[tuple[str, ...]] = ()
    output: ClassVar[str] = OUTPUT
    starts_over: ClassVar[bool] = False

    def read(self, path: Path) -> dict[str, Any]:
        """Settings of a config file, without those that the ablation sets.

        Raises:
            UserError: it is missing or no mapping.
        """
        return without_keys(as_mapping(read_yaml(path), str(path)), self.owned)

    def check(self, config: Mapping[str, Any], where: str, parse: ParseWords) -> None:
        """Refuse settings that the command would refuse.

        Args:
            config: settings, with paths in place of references.
            where: names the step in messages.
            parse: see `ParseWords`.

        Raises:
            UserError: a key is unknown or a value cannot be used.
        """
        with tempfile.TemporaryDirectory(prefix="longvid_ablate_") as name:
            folder = Path(name)
            self.write(folder, config)
            parse(self.words(folder, config))

    def write(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the config that the command gets."""
        write_text(folder / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False))

    def words(self, folder: Path, config: Mapping[str, Any]) -> list[str]:
        """The command; empty where there is nothing to run."""
        return [self.command, "--config", str(folder / CONFIG_FILE), "--out", str(folder / OUTPUT)]


class World(Kind):
    """``longvid world``: renders what is missing."""

    command = "world"

    def check(self, config: Mapping[str, Any], where: str, parse: ParseWords) -> None:
        """Read it as the command does."""
        parse_world(config, where=where)


class Init(Kind):
    """``longvid init``: settings are its options."""

    command = "init"
    owned = ("out",)
    starts_over = True

    def words(self, folder: Path, config: Mapping[str, Any]) -> list[str]:
        """Options in place of a config file; ``true`` is an option without a value, ``false`` and null none at all."""
        words = [self.command, "--out", str(folder / OUTPUT)]
        for key, value in config.items():
            if value is True:
                words.append(f"--{key}")
            elif value is not False and value is not None:
                words += [f"--{key}", str(value)]
        return words


class Predict(Kind):
    """``longvid predict``: a tower's features, only those that are missing."""

    command = "predict"
    owned = ("run_dir",)

    def words(self, folder: Path, config: Mapping[str, Any]) -> list[str]:
        """Lightning's conventions."""
        return [self.command, "--config", str(folder / CONFIG_FILE), "--run_dir", str(folder / OUTPUT)]


class Fit(Kind):
    """``longvid fit``, continued from its newest whole checkpoint; its wandb run is the cell's."""

    command = "fit"
    answers = True
    owned = ("run_dir", "wandb", "ckpt_path")

    def words(self, folder: Path, config: Mapping[str, Any]) -> list[str]:
        """Continue where a checkpoint is."""
        out = folder / OUTPUT
        words = [self.command, "--config", str(folder / CONFIG_FILE), "--run_dir", str(out), "--wandb", "off"]
        return [*words, "--ckpt_path", "last"] if any((out / "checkpoints").glob("*.ckpt")) else words


class Calibrate(Kind):
    """``longvid calibrate``: goes on from its statistics, and writes the checkpoint whole."""

    command = "calibrate"
    owned = ("out",)
    starts_over = True


class AdaptationFile(Kind):
    """An adaptation as a YAML file; nothing is run."""

    output = f"{OUTPUT}/adaptation.yaml"

    def read(self, path: Path) -> dict[str, Any]:
        """A quantizer's folder in it becomes absolute, for the file moves."""
        return adaptation_values(load_adaptation(path))

    def check(self, config: Mapping[str, Any], where: str, parse: ParseWords) -> None:
        """Read it as every command does."""
        adaptation_of(config, where=where)

    def write(self, folder: Path, config: Mapping[str, Any]) -> None:
        """The file itself."""
        write_text(folder / self.output, write_adaptation(adaptation_of(config, where=str(folder))))

    def words(self, folder: Path, config: Mapping[str, Any]) -> list[str]:
        """Nothing to run."""
        return []


class Evaluate(Kind):
    """``longvid evaluate``: asks what is not answered yet."""

    command = "evaluate"
    answers = True

    def check(self, config: Mapping[str, Any], where: str, parse: ParseWords) -> None:
        """Read it as the command does."""
        settings_of(config, where=where).check_runnable()


KINDS: dict[str, Kind] = {
    "world": World(),
    "init": Init(),
    "predict": Predict(),
    "fit": Fit(),
    "calibrate": Calibrate(),
    "adaptation": AdaptationFile(),
    "evaluate": Evaluate(),
}
