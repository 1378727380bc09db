"""Packing a trained nano LLaMA-VID: halved weights, the chain of stages on record, and runs that cannot be packed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvid_train.evaluation.claims import llama_vid_variants
from longvid_train.files import write_json
from longvid_train.models.llama_vid.loading import load_llama_vid
from scripts import pack_llama_vid
from scripts.pack_llama_vid import main
from tests.generate.tiny_checkpoint import save_tiny_checkpoint


def record(run: Path, **more: object) -> None:
    start = {
        "command": f"longvid fit --config {run.name}.yaml",
        "git_commit": "c" * 40,
        "seed": [*pack_llama_vid.RUNS, run.name].index(run.name) + 1,
        "manifest_sha256": {"train.jsonl": "0"},
        "hardware": {"cpu_cores": 2},
        "duration_s": 1.5,
        "versions": {"torch": "2"},
        "finished_at": "2026-01-01",
    }
    write_json(run / "run.json", {"starts": [{"seed": -1}, start | more]})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, name in enumerate(pack_llama_vid.RUNS, start=1):
        run = tmp_path / "runs" / name
        save_tiny_checkpoint(run / "model", seed=number)
        record(run)
        lines = [
            {"step": 0, "answers/overall": 0.25, "answers/needle": 0.2},
            {"step": 1, "train/loss": 1.0},
            {"step": 9, "answers/overall": 0.5, "answers/needle": 0.7},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "runs"


def test_stages_are_halved_and_recorded(runs: Path, tmp_path: Path) -> None:
    config = runs / "finish" / "model" / "config.json"
    values = json.loads(config.read_text())
    write_json(config, values | {"text_config": values["text_config"] | {"_name_or_path": "/home/me/lm"}})
    assert main(["stages", str(runs), "--out", str(tmp_path / "out")]) == 0
    third = tmp_path / "out" / "nano_llama_vid"
    whole, halved = (load_file(folder / "model.safetensors") for folder in (runs / "finish" / "model", third))
    assert all(torch.equal(halved[name], whole[name].half()) for name in whole) and halved.keys() == whole.keys()
    made = json.loads((third / "provenance.json").read_text())
    assert {name: one["seed"] for name, one in made["stages"].items()} == {
        "stage1": 1,
        "stage2": 2,
        "stage3": 3,
        "finish": 4,
    }
    assert made["seed"] == 4 and made["commit"] == "c" * 40
    assert made["held_out"] == {
        "before": {"overall": 0.25, "needle": 0.2},
        "after": {"overall": 0.5, "needle": 0.7},
    }
    assert "/home/me" not in (third / "config.json").read_text()
    second = json.loads((tmp_path / "out" / "nano_llama_vid_stage2" / "provenance.json").read_text())
    assert second["stages"].keys() == {"stage1", "stage2"} and second["seed"] == 2
    loaded = load_llama_vid(third).state_dict()
    assert all(torch.equal(loaded[name].float(), halved[name].float()) for name in halved)
    assert {value.dtype for value in loaded.values() if value.is_floating_point()} == {torch.float32}


def test_variants_are_halved_and_name_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: llama_vid_variants.VARIANTS[name] for name in ("both", "content")}
    monkeypatch.setattr(pack_llama_vid, "VARIANTS", kept)
    for name in kept:
        for stage in ("stage1", "stage2"):
            record(tmp_path / name / stage)
        adapter = tmp_path / name / "stage2" / "adapter"
        write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(tmp_path), "r": 8})
        write_json(
            adapter / "adapter_record.json",
            {"base_model": str(tmp_path), "base_model_from_here": "../../stage1/model", "base_fingerprint": "f"},
        )
        save_file({"a": torch.full((3,), 1.0 + 2**-20)}, adapter / "adapter_model.safetensors")
    assert main(["variants", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "nano_llama_vid_variants"
    assert sorted(path.name for path in folder.iterdir()) == ["bert.json", "both", "content"]
    stored = load_file(folder / "both" / "adapter_model.safetensors")["a"]
    assert stored.dtype == torch.float16 and stored.tolist() == [1.0] * 3
    written = "".join(file.read_text() for file in folder.rglob("*.json"))
    assert str(tmp_path) not in written
    assert json.loads((folder / "content" / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "runs/llama_vid_variants/content/stage1/model",
        "r": 8,
    }
    assert json.loads((folder / "both" / "adapter_record.json").read_text())["base_fingerprint"] == "f"
    made = json.loads((folder / "both" / "provenance.json").read_text())
    assert len(made["parts"]["tower"]) == 64 and made["stages"]["stage1"]["seed"] == 1


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("stage2/run.json", "stage2/run.json does not exist; train the stage first"),
        ("unfinished", "stage3 has not finished; continue it with --ckpt_path last"),
        ("unanswered", "stage2 answered no held-out questions; train it with answers.enabled"),
        ("taken", "nano_llama_vid_stage2 exists; delete it, or name another folder with --out"),
    ],
)
def test_mistakes_are_one_line(broken: str, said: str, runs: Path, tmp_path: Path, capsys) -> None:
    if broken == "unfinished":
        write_json(runs / "stage3" / "run.json", {"starts": [{"command": "longvid fit"}]})
    elif broken == "unanswered":
        (runs / "stage2" / "metrics.jsonl").write_text("")
    elif broken == "taken":
        (tmp_path / "out" / "nano_llama_vid_stage2").mkdir(parents=True)
    else:
        (runs / broken).unlink()
    assert main(["stages", str(runs), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
