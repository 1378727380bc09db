"""A killed stage 3 run goes on where it stopped and writes the bytes of a run that was not killed."""

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from data_prep.command_line import run_source
from data_prep.counts import Counts
from data_prep.preparation import RunOptions, prepare
from tests.data_prep.movienet_layout import MovieNetLayout

Arguments = list[str]


class KilledError(Exception):
    """Stands for the kill."""


def movienet(folder: Path) -> Arguments:
    layout = MovieNetLayout(folder)
    for number in range(4):
        layout.movie(f"tt{number}")
    places = ["--files", str(layout.files), "--key-frames", str(layout.key_frames), "--made", str(layout.made)]
    return ["--rows", "describe", *places]


def longalpaca(folder: Path) -> Arguments:
    path = folder / "LongAlpaca-12k.json"
    path.write_text(json.dumps([{"instruction": f"Question {n % 3}?", "output": "Answer."} for n in range(5)]))
    return ["--annotations", str(path)]


@pytest.mark.parametrize(("name", "layout"), [("movienet", movienet), ("longalpaca", longalpaca)])
@pytest.mark.parametrize("after", [1, 3])
def test_killed_run_goes_on(name: str, layout: Callable[[Path], Arguments], after: int, tmp_path: Path) -> None:
    words = layout(tmp_path)
    whole = tmp_path / "whole.jsonl"
    assert run_source(name, [*words, "--out", str(whole)]) == 0
    module = import_module(f"data_prep.{name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.add_argument("--out", type=Path)
    source = module.make_source(parser.parse_args([*words, "--out", str(tmp_path / "killed.jsonl")]))
    options = RunOptions(out=tmp_path / "killed.jsonl", chunk_records=1)
    chunks = 0

    def kill(counts: Counts) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == after:
            raise KilledError

    with pytest.raises(KilledError):
        prepare(source, options, on_progress=kill)
    assert not options.out.exists()
    prepared = prepare(source, options)
    assert prepared.resumed
    assert options.out.read_bytes() == whole.read_bytes()
