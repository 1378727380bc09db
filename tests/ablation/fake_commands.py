"""Stands in for the server that starts commands: each is a forked process that writes what the real one would."""

import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path

import yaml

from longvid_train.evaluation.local.predictions import Prediction

KINDS = ("needle", "order")
QUESTIONS = 4


class FakeLauncher:
    """Starts `fake_command`, and counts."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.environments: list[Mapping[str, str]] = []

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int) -> BaseProcess:
        """As `launching.Launcher.start`."""
        self.started.append(words[0])
        self.environments.append(environment)
        process = multiprocessing.get_context("fork").Process(target=_leave_with, args=(list(words), log))
        process.start()
        return process


def _leave_with(words: list[str], log: Path) -> None:
    """A fork of a pool's thread cannot leave as a process does: it would join that thread, itself."""
    os._exit(fake_command(words, log))


def fake_command(words: list[str], log: Path) -> int:
    """``world`` leaves a manifest; ``evaluate`` answers as many questions right as its ``limit`` says.

    ``max_left_out`` 13 fails as a command does, ``max_left_out`` 99 sleeps until it is stopped.
    """
    folder = Path(words[words.index("--out") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    if words[0] == "world":
        (folder / "manifest.jsonl").write_text("{}\n")
        return 0
    settings = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text())
    if settings.get("max_left_out") == 99:
        time.sleep(600)
    if settings.get("max_left_out") == 13:
        with log.open("a") as stream:
            stream.write("Traceback\nlongvid: the thirteenth was left out\n\n")
        return 2
    right = settings["limit"] + settings["seed"]
    lines = [json.dumps(asdict(prediction(number, right=number < right))) + "\n" for number in range(QUESTIONS)]
    (folder / "predictions.jsonl").write_text("".join(lines))
    return 0


def prediction(number: int, *, right: bool) -> Prediction:
    return Prediction(
        id=f"q{number}",
        manifest="m",
        place=(0, number, 0),
        kind=KINDS[number % 2],
        question="?",
        options=(),
        truth="red",
        answer="red" if right else "blue",
        meta={},
        video="v",
        duration_s=8.0,
        frames=8,
        visual_tokens=33,
        prompt_tokens=50,
        new_tokens=1,
        scale=1.0,
        batch=1,
        generate_s=0.1,
    )
