"""Every calibration config is read by the command's own parser, and what it asks for exists and can be."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.training.calibration.parsing import parse_job

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "calibration"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
ADAPTATIONS = sorted((FOLDER / "adaptations").glob("*.yaml"))
SHAPES = {"7b": CacheShape(layers=32, heads=32, head_dim=128), "nano": CacheShape(layers=4, heads=4, head_dim=32)}
HEADER = (
    "# Paper:    ",
    "# Command:  ",
    "# .* ?longvid calibrate --config configs/calibration/",
    "# Hardware: ",
    "# Expected: ",
)


def test_all_of_them_are_found():
    assert len(CONFIGS) == 6 and len(ADAPTATIONS) == 1
    assert sum("7b" in path.stem for path in CONFIGS) == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_a_job(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    flags = ["--trainer.accelerator", "cpu"]
    job, trainer = parse_job(["--config", str(path), "--out", str(tmp_path / "out"), *flags])
    assert torch.get_num_threads() == threads
    size = "7b" if "7b" in path.stem else "nano"
    shape = SHAPES[size]
    policy = job.cache.policy()
    policy.check_shape(shape.layers, shape.head_dim)
    assert policy.calibrated and policy.sink_tokens == 4
    assert (size == "7b") == (policy.recent_tokens == 128)
    assert trainer.num_devices == 1 and not job.force and job.gate.rows >= 30
    written = yaml.safe_load(path.read_text())
    assert written["trainer"]["accelerator"] == ("gpu" if size == "7b" else "cpu")
    adaptation = written["data"].get("adaptation")
    if adaptation is not None:
        window = load_adaptation(ROOT / adaptation).window
        assert window.measure == "visual" or window.scale or window.target_tokens, "one scale for all rows"
    if written["model"]["model"].startswith("longvid_train/"):
        assert (ROOT / written["model"]["model"]).is_dir()


@pytest.mark.parametrize("path", [*CONFIGS, *ADAPTATIONS], ids=lambda path: path.stem)
def test_a_config_says_what_it_is(path):
    text = path.read_text()
    for start in HEADER:
        assert re.search(f"^{start}", text, re.MULTILINE), start
    assert ("not yet run" in text) == ("7b" in path.stem or path in ADAPTATIONS)


@pytest.mark.parametrize("path", ADAPTATIONS, ids=lambda path: path.stem)
def test_an_adaptation_has_a_fixed_window(path):
    adaptation = load_adaptation(path)
    assert adaptation.cache is None
    assert adaptation.window.scale or adaptation.window.target_tokens
    assert any(str(path.relative_to(ROOT)) in config.read_text() for config in CONFIGS)
