"""The script that trains the shipped nano LLaMA-VID: each of its commands parses, and the stages follow each other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from longvid_train import cli
from longvid_train.world.settings import BuildSettings, parse_world
from scripts.nano_scores import WINDOWS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_nano_llama_vid.sh"
WORLD = ROOT / "configs" / "world" / "nano_llama_vid.yaml"
FINISH = WORLD.with_name("nano_llama_vid_finish.yaml")


def commands(tmp_path: Path, stages: str) -> list[list[str]]:
    """The words of every ``longvid`` command, from a stand-in that writes them down."""
    stand_in, heard = tmp_path / "longvid", tmp_path / "heard.jsonl"
    heard.write_text("")
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(heard)!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))\n"
    )
    stand_in.chmod(0o755)
    environment = {**os.environ, "LONGVID": str(stand_in), "STAGES": stages}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "work")], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{done.returncode}: {done.stderr.strip()} ({heard.read_text()!r} was run)")
    return [json.loads(line) for line in heard.read_text().splitlines()]


def parsed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main([*words, "--print_config"]) == 0
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return values


def world(path: Path = WORLD) -> BuildSettings:
    return parse_world(yaml.safe_load(path.read_text()), where="world")


def test_stages_parse_and_follow_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    work = tmp_path / "work"
    run = commands(tmp_path, "stage1 stage2 stage3 finish")
    assert [words[:3] for words in run if words[0] == "world"] == [
        ["world", "--config", "configs/world/nano_llama_vid.yaml"],
        ["world", "--config", "configs/world/nano_llama_vid_finish.yaml"],
    ]
    stages = [words for words in run if words[0] in ("predict", "fit")]
    sets = {one.name for one in world().sets}
    *stages, encoding, fitting = stages
    features, fit = parsed(encoding, capsys), parsed(fitting, capsys)
    assert (
        fit["model"]["init_args"] | {"model": f"{work}/stage3/model", "rope_scaling": 1.0, "torch_threads": 2}
        == (fit["model"]["init_args"])
    )
    data = fit["data"]["init_args"]
    assert data["train"] == [f"{work}/world_finish/{name}/train/manifest.jsonl" for name in ("long", "short")]
    assert features["data"]["init_args"]["manifests"] == [*data["train"], data["test"]]
    assert data["media"]["features"] == features["run_dir"]
    for number, (encoding, fitting) in enumerate(zip(stages[::2], stages[1::2], strict=True), start=1):
        features, fit = parsed(encoding, capsys), parsed(fitting, capsys)
        start = "start" if number == 1 else f"stage{number - 1}/model"
        assert fit["model"]["init_args"]["model"] == f"{work}/{start}"
        assert fit["run_dir"] == f"{work}/stage{number}"
        assert fit["model"]["init_args"]["torch_threads"] == (2 if number == 3 else 1)
        data = fit["data"]["init_args"]
        assert data["media"]["features"] == features["run_dir"]
        assert features["data"]["init_args"]["manifests"] == [data["train"], data["test"]]
        train, held_out = (Path(data[name]).relative_to(f"{work}/world").parts for name in ("train", "test"))
        assert train == (f"stage{number}", "train", "manifest.jsonl") and held_out[1:] == ("val", "manifest.jsonl")
        assert {train[0], held_out[0]} <= sets
    assert len(stages) == 6


def test_the_world_s_held_out_lengths_are_trained() -> None:
    by_name = {one.name: one for one in world().sets}
    for stage in ("stage2", "stage3"):
        train, held_out = by_name[stage], by_name[f"{stage}_heldout"]
        assert train.splits == ("train",) and held_out.splits == ("val",)
        assert train.duration_s[0] <= held_out.duration_s[0] and train.duration_s[1] == held_out.duration_s[1]
        assert train.most_objects == held_out.most_objects


def test_the_finish_shows_new_videos_of_both_windows() -> None:
    trained, finish = world(), world(FINISH)
    assert finish.seed >= trained.seed + len(trained.sets)  # no episode of the stages comes again
    by_name = {one.name: one for one in (*trained.sets, *finish.sets)}
    for name, like in (("short", "stage2"), ("long", "stage3")):
        new, known = by_name[name], by_name[like]
        assert (new.duration_s, new.most_objects, new.overlap) == (known.duration_s, known.most_objects, known.overlap)
        assert new.splits == ("train",) and set(new.kinds) <= set(known.kinds)


def test_scores_are_of_videos_as_trained() -> None:
    by_name = {one.name: one for one in world().sets}
    assert WINDOWS["nano_llama_vid"][:1] == WINDOWS["nano_llama_vid_stage2"]
    for window, name in zip(WINDOWS["nano_llama_vid"], ("stage2", "stage3"), strict=True):
        trained = by_name[name]
        assert trained.duration_s[0] <= window.duration_s <= trained.duration_s[1]
        assert window.most_objects == trained.most_objects
        assert window.frames == window.duration_s  # one frame a second, as in both stages
        assert set(window.kinds) <= set(trained.kinds)


def test_an_unknown_stage_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"^2: stage 'stage4' is unknown; stages are stage1, stage2, stage3 and finish \(''"
    ):
        commands(tmp_path, "stage1 stage4")


def test_a_stage_of_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    work = tmp_path / "work"
    commands(tmp_path, "stage1 stage3")
    (work / "stage1" / "model").mkdir(parents=True)
    (work / "stage3" / "model").mkdir(parents=True)
    assert [words[0] for words in commands(tmp_path, "stage1 stage3")] == ["world", "init"]  # both are there
    recipe = work / "stage3.recipe"
    recipe.write_text(recipe.read_text().replace("max_epochs 5", "max_epochs 4"))
    with pytest.raises(RuntimeError, match=r"^2: .*/stage3 was trained by another recipe .*; delete .*stage3\.recipe"):
        commands(tmp_path, "stage1 stage3")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FAMILIES": "llama"}, "family 'llama' is unknown; known are onevision, video_llava and llama_vid"),
        ({"FAMILIES": "llama_vid", "DEVICE": "cuda"}, "DEVICE is 'cuda', but llama_vid is trained on the CPU"),
        ({"FAMILIES": "llama_vid"}, "longvid_train/assets/nano_llama_vid exists; delete it, or name another folder"),
    ],
)
def test_all_families_script_refuses_before_it_trains(environment: dict[str, str], message: str) -> None:
    script = ROOT / "scripts" / "train_nano.sh"
    plain = {name: value for name, value in os.environ.items() if name not in ("FAMILIES", "DEVICE", "OUT")}
    done = subprocess.run(["bash", str(script)], env={**plain, **environment}, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("path", [SCRIPT, WORLD, FINISH], ids=lambda path: path.name)
def test_the_recipe_names_its_hardware(path: Path) -> None:
    assert "# Hardware: " in path.read_text()
