"""The shipped nano LLaMA-VIDs: whole, small, recorded, and right about episodes that they were not trained on."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import longvid_train
from longvid_train.evaluation.claims.catalogue import CLAIMS
from longvid_train.evaluation.claims.llama_vid_answers import ComparedAnswers
from longvid_train.evaluation.claims.llama_vid_long import FOLDERS
from scripts.nano_scores import WINDOWS, answers_in_window
from scripts.pack_llama_vid import LAST, RUNS

ASSETS = Path(longvid_train.__file__).parent / "assets"
LONG = CLAIMS["llama-vid-long-video"]
LEAST = 0.8
"""Two standard errors of 40 answers below the .90 that 400 clips show."""


@pytest.mark.parametrize("stage", FOLDERS)
def test_a_stage_is_small_and_says_how_it_was_made(stage: str) -> None:
    folder = ASSETS / FOLDERS[stage]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 4_000_000
    record = json.loads((folder / "provenance.json").read_text())
    assert record["stages"].keys() == set(RUNS[: RUNS.index(LAST[stage]) + 1])
    for made in record["stages"].values():
        assert made.keys() >= {"command", "git_commit", "seed", "manifest_sha256", "hardware", "versions"}
        assert len(made["git_commit"]) == 40, "made from a clean commit"
    assert record["held_out"]["after"]["overall"] > record["held_out"]["before"]["overall"]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118 - no mapping
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    text = config["text_config"]
    assert (text["max_position_embeddings"], text["rope_parameters"]["rope_type"]) == (
        (512, "linear") if stage == "stage3" else (256, "default")
    )


@pytest.mark.parametrize("stage", ["stage2", pytest.param("stage3", marks=pytest.mark.slow)])
def test_unseen_clips_of_the_trained_window_are_answered(stage: str) -> None:
    name = FOLDERS[stage]
    answered = answers_in_window(ASSETS / name, WINDOWS[name][-1], clips=40, seed=11)
    for kind in ("needle", "order"):
        scores = [one.score for one in answered if one.kind == kind]
        assert len(scores) == 40
        assert sum(scores) / 40 >= LEAST, kind


@pytest.mark.slow
def test_the_third_stage_reads_digits_of_long_videos_and_gains_on_the_second() -> None:
    assert LONG.compared is not None
    answers = ComparedAnswers(LONG.compared, ASSETS, lambda frames, seed: LONG.held_out(24, frames, seed))
    second, third = (answers(method, 120, 40) for method in LONG.grid.methods)
    assert sum(row.score for row in third) > sum(row.score for row in second)
    digits = [row.score for row in third if row.kind == "detail"]
    assert sum(digits) / len(digits) > 0.6
