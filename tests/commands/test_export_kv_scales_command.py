"""``longvid export-kv-scales``: a folder that transformers still loads and that names its scales as vLLM reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import longvid_train
from longvid_train.cli import main
from longvid_train.kvcache.checkpoint import CalibrationRecord, QuantizerRecord, save_quantizer
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.statistics import Statistics
from longvid_train.models.backbones.load import read_config
from longvid_train.models.identity import model_identity

ASSETS = Path(longvid_train.__file__).parent / "assets"
MODEL = ASSETS / "nano_onevision"


def record():
    return QuantizerRecord(
        model=model_identity(MODEL),
        adaptation={"frames": 8},
        calibration=CalibrationRecord(set_hash="f0", samples=1, tokens=96, sample_tokens=64, seed=0),
        verdict={},
    )


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory):
    """Ranges of layer ``i``: keys up to ``2 (i + 1)``, values up to ``i + 1``."""
    shape = cache_shape(read_config(str(MODEL))[1])
    statistics = Statistics(shape, sample_tokens=64)
    statistics.begin([0], torch.ones(1, 100))
    for layer in range(shape.layers):
        x = torch.rand(1, shape.heads, 100, shape.head_dim, generator=torch.Generator().manual_seed(layer))
        x[0, 0, 0, 0] = 1.0
        statistics.observe(layer, x, -2.0 * (layer + 1) * x, (layer + 1) * x)
    folder = tmp_path_factory.mktemp("made") / "quantizer"
    rotation = Rotation(torch.ones(shape.head_dim // 2))
    save_quantizer(folder, fit_quantizer(PRESETS["static8"], statistics, rotation), record())
    return folder


def test_the_folder_has_scales_an_index_and_links(quantizer, tmp_path, capsys):
    out = tmp_path / "served"
    assert main(["export-kv-scales", str(quantizer), "--model", str(MODEL), "--out", str(out)]) == 0
    assert f"vllm serve {out} --kv-cache-dtype fp8" in capsys.readouterr().out
    scales = load_file(out / "model-kv-scales.safetensors")
    for layer in range(4):
        attention = f"language_model.model.layers.{layer}.self_attn"
        assert scales[f"{attention}.k_scale"].item() == pytest.approx(2 * (layer + 1) / 448, rel=1e-7)
        assert scales[f"{attention}.v_scale"].item() == pytest.approx((layer + 1) / 448, rel=1e-7)
    assert len(scales) == 8
    index = json.loads((out / "model.safetensors.index.json").read_text())
    weights = load_file(MODEL / "model.safetensors")
    assert set(index["weight_map"]) == set(scales) | set(weights)
    assert index["weight_map"]["language_model.model.layers.0.self_attn.k_scale"] == "model-kv-scales.safetensors"
    config = json.loads((out / "config.json").read_text())
    scheme = config.pop("quantization_config")
    assert config == json.loads((MODEL / "config.json").read_text())
    assert scheme["quant_method"] == "compressed-tensors" and scheme["config_groups"] == {}
    assert {name: scheme["kv_cache_scheme"][name] for name in ("num_bits", "type", "strategy", "symmetric")} == {
        "num_bits": 8,
        "type": "float",
        "strategy": "tensor",
        "symmetric": True,
    }
    assert (out / "model.safetensors").resolve() == (MODEL / "model.safetensors").resolve()
    assert (out / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()
    label = json.loads((out / "kv_scales.json").read_text())
    assert label["adaptation"] == {"frames": 8} and "vLLM keeps 8 bits" in label["not"]


def refused(capsys, tmp_path, *words):
    out = tmp_path / "served"
    assert main(["export-kv-scales", *map(str, words), "--out", str(out)]) == 2
    assert not out.exists() and not list(tmp_path.glob(".served*"))
    line = capsys.readouterr().err.strip()
    assert len(line.splitlines()) == 1
    return line


def test_mistakes_write_nothing(quantizer, tmp_path, capsys):
    other = ASSETS / "nano_video_llava"
    assert "was calibrated for" in refused(capsys, tmp_path, quantizer, "--model", other)
    assert "is no folder" in refused(capsys, tmp_path, quantizer, "--model", tmp_path / "missing")
    assert "cannot be read" in refused(capsys, tmp_path, tmp_path, "--model", MODEL)
    uncalibrated_folder = tmp_path / "kivi"
    shape = cache_shape(read_config(str(MODEL))[1])
    policy = PRESETS["k4v2"]
    plain = uncalibrated(type(policy)(keys=policy.keys, values=policy.keys), shape)
    save_quantizer(uncalibrated_folder, plain, record())
    said = refused(capsys, tmp_path, uncalibrated_folder, "--model", MODEL)
    assert "made without calibration, so no ranges are known" in said
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    (quantized / "config.json").write_text('{"model_type": "llava_onevision", "quantization_config": {}}')
    assert "has a quantization_config already" in refused(capsys, tmp_path, quantizer, "--model", quantized)
    (quantized / "config.json").write_text('{"model_type": "llama_vid"}')
    assert "which vLLM has no class for" in refused(capsys, tmp_path, quantizer, "--model", quantized)
