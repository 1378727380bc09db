"""Mistakes through the real command line: one line on stderr, exit status 2, and nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longvid_train import cli
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def complaint(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run ``fit``, check the exit status and that stderr has one line, and return it."""
    assert cli.main(["fit", "--config", str(config), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "words", "expected"),
    [
        ({"trainr": {"max_epochs": 1}}, [], "'trainr' is not a key; did you mean 'trainer'?"),
        ({"trainer__max_epoch": 1}, [], "'trainer.max_epoch' is not a key; did you mean 'max_epochs'?"),
        ({"model__init_args__optimizer": {"lrr": 1}}, [], "did you mean 'lr'?"),
        ({"model__init_args__lr": 1}, [], "did you mean 'optimizer.lr'?"),
        ({"model__init_args__warmup_ration": 1}, [], "did you mean 'warmup_ratio'?"),
        ({"data__init_args__trian": "x"}, [], "did you mean 'train'?"),
        ({"answers": {"max_new_token": 3}}, [], "did you mean 'max_new_tokens'?"),
        ({}, ["--trainer.max_stepz", "3"], "did you mean 'max_steps'?"),
        ({}, ["--trainer.max_step", "3"], "'trainer.max_step' is not a key; did you mean 'max_steps'?"),
        ({}, ["--run_di=x"], "'run_di' is not a key; did you mean 'run_dir'?"),
        ({}, ["--watchdog.stal_s", "3"], "'watchdog.stal_s' is not a key; did you mean 'stall_s'?"),
        ({}, ["--profil.steps", "3"], "'profil' is not a key; did you mean 'profile'?"),
        ({}, ["--answers.en", "true"], "'answers.en' is not a key; did you mean 'enabled'?"),
        ({}, ["--data.loading.batch", "3"], "'loading.batch' is not a key of"),
        ({}, ["--model.init_args.optimizer.l", "1"], "did you mean 'lr'?"),
        ({"data__init_args__loading": {"batch": 2}}, [], "did you mean 'batch_size'?"),
        ({"model__init_args__optimizer": {"lr": "fast"}}, [], "Expected a float. Got value: fast"),
        ({"model__init_args__optimizer": {"lr": -1}}, [], "optimizer lr is -1"),
        ({"wandb": "maybe"}, [], "wandb"),
        ({"model__class_path": "longvid_train.training.module.Nope"}, [], "Nope"),
        ({"model__init_args__stage": {"name": "s", "trainable": ["contxt_attention"]}}, [], "'context_attention'?"),
        ({"trainer__accumulate_grad_batches": 9}, [], "fewer than accumulate_grad_batches = 9"),
        ({"trainer__accumulate_grad_batches": 0}, [], "trainer.accumulate_grad_batches is 0; it must be at least 1"),
        ({"trainer__strategy": "deepspeed_stage_9"}, [], "invalid strategy name: `strategy='deepspeed_stage_9'`"),
        ({"trainer__devices": 0}, [], "value is not a valid input using cpu accelerator. (check the keys of trainer"),
        ({"checkpoint": {"every_n_train_steps": -3}}, [], "every_n_train_steps=-3. Must be >= 0 (check the keys of"),
        ({"data__init_args__train": "missing.jsonl"}, [], "missing.jsonl"),
        ({"model__init_args__model": "missing_folder"}, [], "missing_folder"),
        ({}, ["--ckpt_path", "last"], "holds no checkpoint"),
        ({"answers": {"enabled": True}, "data__init_args__test": None}, [], "data.test"),
    ],
)
def test_mistakes_in_a_config(
    fit_config: FitConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: list[str],
    expected: str,
) -> None:
    assert expected in complaint(fit_config(**changes), capsys, *words)
    assert not (tmp_path / "run" / "model").exists()


def test_refused_commands_leave_nothing_in_the_way_of_the_right_one(
    fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused by the data and, with the record of the start already written, by the model."""
    config, run = fit_config(), tmp_path / "run"
    complaint(config, capsys, "--data.loading.global_batch_size", "5")
    complaint(config, capsys, "--model.stage.trainable", "[contxt_attention]")
    assert (run / "run.json").exists()
    assert cli.main(["fit", "--config", str(config)]) == 0
    assert [line["step"] for line in read_metrics(run) if "train/loss" in line] == [*range(6)]
    *refused, last = json.loads((run / "run.json").read_text())["starts"]
    assert ["finished_at" in start for start in (*refused, last)] == [False, True]
    assert (run / "model" / "model.safetensors").exists()
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["loading"]["global_batch_size"] is None
    )


def test_no_config_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "give a config, e.g. --config" in lines[0]


def test_a_missing_config_and_a_broken_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in complaint(tmp_path / "nowhere.yaml", capsys)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: }")
    assert "broken.yaml" in complaint(broken, capsys)


def test_a_broken_manifest_line(
    fit_config: FitConfig, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = world.manifest("good.jsonl", 3).read_text()
    (world.folder / "broken.jsonl").write_text(good + '{"id": "x"\n')
    config = fit_config(data__init_args__train=str(world.folder / "broken.jsonl"))
    assert "broken.jsonl:4:" in complaint(config, capsys)


def test_a_pattern_that_matches_nothing_is_said_before_weights_are_read(
    fit_config: FitConfig, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With damaged weights the complaint is still about the pattern; with a right pattern it is about the weights."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    changes = {
        "model__init_args__model": str(folder),
        "model__init_args__stage": {"name": "s", "trainable": ["*", "!towr"]},
    }
    message = complaint(fit_config(**changes), capsys)
    assert "stage 's': pattern '!towr' matches no parameter" in message
    changes["model__init_args__stage"] = {"name": "s", "trainable": ["*", "!vision_tower"]}
    assert "not a whole safetensors file" in complaint(
        fit_config(**changes), capsys, "--run_dir", str(tmp_path / "two")
    )


def test_a_checkpoint_of_another_architecture(
    fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    message = complaint(fit_config(model__init_args__model=str(folder)), capsys)
    assert "'bert'" in message
    assert "llama_vid" in message


def test_an_unreadable_video_loses_no_step(
    fit_config: FitConfig, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run stops with a line that names file and sample; with the file mended it continues to the same weights."""
    from safetensors.torch import load_file

    folder = tmp_path / "videos"
    shutil.copytree(world.folder, folder)
    manifest = folder / "train.jsonl"
    rows = [json.loads(line) for line in world.manifest("train.jsonl", 12).read_text().splitlines()]
    shutil.copy(folder / "red.mp4", folder / "fragile.mp4")
    rows[11]["media"][0]["path"] = "fragile.mp4"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = fit_config(data__init_args__train=str(manifest), data__init_args__loading={"batch_size": 1})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(whole)]) == 0
    capsys.readouterr()
    (folder / "fragile.mp4").write_text("not a video")
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(broken)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "fragile.mp4" in message
    assert "row11" in message
    assert "finished_at" not in json.loads((broken / "run.json").read_text())["starts"][0]
    done = len(read_metrics(broken))
    assert 0 < done < 12, "the broken row must stand in the middle of the epoch for this test to say anything"
    shutil.copy(folder / "red.mp4", folder / "fragile.mp4")
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(broken), "--ckpt_path", "last"]) == 0
    assert ["finished_at" in start for start in json.loads((broken / "run.json").read_text())["starts"]] == [
        False,
        True,
    ]
    losses = [[line["train/loss"] for line in read_metrics(run)] for run in (whole, broken)]
    assert losses[0] == losses[1]
    left, right = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert all((left[name] == right[name]).all() for name in left)


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "longvid fit --config configs/llama_vid/nano/stage1.yaml" in text
    assert "--run_dir" in text


def test_every_nano_config_parses(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--print_config`` builds every parser and checks every key and type without starting."""
    found = sorted((CONFIGS / "llama_vid" / "nano").rglob("*.yaml"))
    parsed = 0
    for path in found:
        command = "predict" if path.name == "features.yaml" else "fit"
        assert cli.main([command, "--config", str(path), "--print_config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["run_dir"].startswith("quickstart/")
        header = path.read_text().split("\nseed_everything")[0]
        for word in ("# Paper:", "# Command:", "# Hardware:", "# Expected:"):
            assert word in header, (path, word)
        parsed += 1
    assert parsed == 7, "3 stages, 3 with LoRA, 1 of predict"
