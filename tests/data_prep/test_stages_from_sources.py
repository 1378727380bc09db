"""The three stages from manifests that `data_prep` makes of public layouts: world episodes stand in for the sources."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from data_prep.command_line import run_source
from longvid_train.data.manifest import Sample, read_manifest
from longvid_train.video import UniformFrames, read_clip
from longvid_train.world.settings import BuildSettings, SetSettings
from tests.data_prep.world_as_sources import (
    KINDS,
    World,
    WorldTeacher,
    answers,
    export_llava,
    export_movienet,
    export_video_chatgpt,
    export_webvid,
    video_rows,
)
from tests.endpoint.local_endpoint import LocalEndpoint, serve

CONFIGS = Path(__file__).parents[2] / "configs"
LONGVID = Path(sys.executable).parent / "longvid"
STAGES = [(1, 16, 0.75), (2, 17, 0.75), (3, 9, 0.9)]
"""Stage, optimiser steps of each of its two epochs, and what share of the first one's loss the second's may be."""

NO_PROXY = ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")


def world_sets(*, images: int, clips: int, asked_about: int, texts: int, movies: int, held_out: int) -> BuildSettings:
    """Sets for the three stages; held-out videos of each where ``held_out`` is above 0."""
    still: dict[str, Any] = {"fps": Fraction(4), "overlap": 0.15}
    asked: dict[str, Any] = {"kinds": (*KINDS, "description"), "questions_per_episode": 4}
    movie: dict[str, Any] = {"duration_s": (60.0, 66.0), "fps": Fraction(1), "subtitles": True, "most_objects": 16}
    captions = SetSettings(
        name="stage1",
        images={"train": images},
        videos={"train": clips},
        duration_s=(3.0, 8.0),
        style="caption",
        **still,
    )
    questions = SetSettings(
        name="stage2",
        videos={"train": asked_about},
        texts={"train": texts},
        duration_s=(6.0, 10.0),
        multi_turn=True,
        **asked,
        **still,
    )
    movies_set = SetSettings(name="stage3", videos={"train": movies}, kinds=KINDS, **movie)
    sets = [captions, questions, movies_set]
    if held_out:
        seen = {"val": held_out}
        sets.append(SetSettings(name="stage1_heldout", videos=seen, duration_s=(3.0, 8.0), style="caption", **still))
        sets.append(SetSettings(name="stage2_heldout", videos=seen, duration_s=(6.0, 10.0), **asked, **still))
        sets.append(SetSettings(name="stage3_heldout", videos=seen, kinds=KINDS, questions_per_episode=5, **movie))
    return BuildSettings(sets=tuple(sets), seed=7)


@dataclass(frozen=True)
class Prepared:
    """Manifests of each stage."""

    captions: tuple[Path, ...]
    instructions: tuple[Path, ...]
    movies: tuple[Path, ...]


def prepare(module: str, out: Path, *words: str | Path) -> Path:
    """Run a source module as its command line does, and return the manifest."""
    assert run_source(module, [*map(str, words), "--out", str(out)]) == 0
    return out


def prepare_stages(world: World, data: Path) -> Prepared:
    """Export the world in the layouts of the sources and prepare each with its module."""
    pairs = export_llava(world, "stage1/train", data / "llava_pretrain", kinds=("image",))
    table = export_webvid(world, "stage1/train", data / "webvid")
    mix = export_llava(world, "stage2/train", data / "mix", kinds=("text",))
    instruct = export_video_chatgpt(world, "stage2/train", data / "activitynet")
    movies = export_movienet(world, "stage3/train", data / "movienet")
    (data / "mix" / "images").mkdir(exist_ok=True)
    captions = (
        prepare("llava_pretrain", data / "pretrain.jsonl", "--annotations", pairs, "--images", pairs.parent / "images"),
        prepare("webvid", data / "webvid.jsonl", "--csv", table, "--videos", table.parent / "videos"),
    )
    instructions = (
        prepare("llava_instruct", data / "mix.jsonl", "--annotations", mix, "--images", mix.parent / "images"),
        prepare(
            "video_chatgpt", data / "videos.jsonl", "--annotations", instruct, "--videos", instruct.parent / "videos"
        ),
    )
    index = prepare(
        "movienet",
        data / "movies.jsonl",
        *("--rows", "index", "--files", movies.files, "--key-frames", movies.key_frames, "--made", movies.made),
    )
    with serve(LocalEndpoint(answer=WorldTeacher(world))) as teacher:
        questions = prepare(
            "long_videoqa",
            data / "long_videoqa.jsonl",
            *("--movies", index, "--teacher-base-url", teacher.base_url, "--teacher-model", "world"),
            *("--teacher-cache", data / "teacher_cache", "--teacher-api-key-env", ""),
        )
    return Prepared(captions, instructions, (questions,))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_PROXY:
        monkeypatch.delenv(name, raising=False)


def samples(paths: tuple[Path, ...]) -> Iterator[Sample]:
    for path in paths:
        yield from read_manifest(path)


def test_what_the_sources_hold_arrives_in_the_manifests(tmp_path: Path) -> None:
    """Every caption, question and answer of the world, and every frame of its movies."""
    world = World.build(world_sets(images=3, clips=3, asked_about=3, texts=2, movies=2, held_out=0), tmp_path / "world")
    made = prepare_stages(world, tmp_path / "data")
    told = sorted(sample.conversation[1].text for sample in samples(made.captions))
    assert told == sorted(answers(row)[0] for row in world.rows["stage1/train"])
    asked = sorted(turn.text for sample in samples(made.instructions) for turn in sample.conversation[1::2])
    assert asked == sorted(answer for row in world.rows["stage2/train"] for answer in answers(row))
    pairs = list(samples(made.movies))
    assert len(pairs) == 22 * 2
    for sample in pairs:
        episode = world.episodes[sample.meta["imdb_id"]]
        clip = read_clip(tmp_path / "data" / sample.media[0].path, UniformFrames(count=1000, at_most=True))
        assert clip.timestamps_s == pytest.approx([float(second) for second in range(round(episode.duration_s))])
        assert sample.media[0].subtitles is not None
    originals = {row["meta"]["episode"]: world.media("stage3/train", row) for row in video_rows(world, "stage3/train")}
    for movie, path in originals.items():
        before = read_clip(path, UniformFrames(count=1000, at_most=True)).frames.astype(int)
        after = read_clip(tmp_path / "data/movienet/made" / f"{movie}.mp4", UniformFrames(count=1000, at_most=True))
        assert abs(after.frames - before).mean() < 4


def longvid(cwd: Path, *arguments: str | Path) -> None:
    """Run a command as a user would."""
    done = subprocess.run(
        [LONGVID, *arguments],
        cwd=cwd,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr


def training_losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano stages, one behind the other, on nothing but what the modules made; a budget of minutes."""
    folder = tmp_path_factory.mktemp("from_sources")
    sets = world_sets(images=64, clips=64, asked_about=32, texts=8, movies=3, held_out=3)
    world = World.build(sets, folder / "world")
    with pytest.MonkeyPatch.context() as patch:
        for name in NO_PROXY:
            patch.delenv(name, raising=False)
        made = prepare_stages(world, folder / "data")
    longvid(folder, "init", "--out", "start")
    model = "start"
    for number, manifests in enumerate((made.captions, made.instructions, made.movies), start=1):
        held_out = folder / "world" / f"stage{number}_heldout" / "val" / "manifest.jsonl"
        longvid(
            folder,
            "fit",
            *("--config", CONFIGS / f"llama_vid/nano/stage{number}.yaml"),
            *("--run_dir", f"stage{number}", "--model.model", model, "--wandb", "off"),
            *("--data.train", json.dumps([{"path": str(path)} for path in manifests])),
            *("--data.test", str(held_out), "--trainer.max_epochs", "2"),
            *("--data.loading.batch_size", "8", "--model.torch_threads", "1"),
        )
        model = f"stage{number}/model"
    return folder


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("stage", "steps", "share"), STAGES)
def test_every_stage_learns_from_what_the_modules_made(trained: Path, stage: int, steps: int, share: float) -> None:
    """Every epoch holds every row once, so the mean losses of two epochs are about the same text."""
    losses = training_losses(trained / f"stage{stage}")
    assert len(losses) == 2 * steps
    assert sum(losses[steps:]) < share * sum(losses[:steps])


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_last_stage_answers_about_held_out_movies(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "stage3/answers_after.jsonl").read_text().splitlines()]
    assert len(records) == 3 * 5
    assert all(record["visual_tokens"] == 2 * record["frames"] >= 120 for record in records)
