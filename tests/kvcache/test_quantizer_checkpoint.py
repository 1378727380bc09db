"""The quantizer checkpoint: what comes back is what went in; everything else is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvid_train.errors import UserError
from longvid_train.files import sha256_file
from longvid_train.kvcache.checkpoint import (
    CONFIG_NAME,
    TENSORS_NAME,
    CalibrationRecord,
    ModelIdentity,
    QuantizerRecord,
    load_quantizer,
    save_quantizer,
)
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape, uncalibrated
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.kvcache.statistics import Statistics

SHAPE = CacheShape(layers=3, heads=2, head_dim=32)
MODEL = ModelIdentity(model_id="nano/one-vision", revision="abc", config_hash="0123456789abcdef")
RECORD = QuantizerRecord(
    model=MODEL,
    adaptation={"window": {"kind": "linear", "scale": 2.0}},
    calibration=CalibrationRecord(set_hash="ff", samples=2, tokens=192, sample_tokens=128, seed=0),
    verdict={"passed": True, "logit_kl": 0.01},
)


@pytest.fixture(scope="module")
def statistics():
    made = Statistics(SHAPE, sample_tokens=128)
    generator = torch.Generator().manual_seed(0)
    for number in range(2):
        made.begin([number], torch.ones(1, 100), torch.arange(100)[None] % 2 == 0)
        for layer in range(SHAPE.layers):
            made.observe(layer, *(torch.randn(1, heads, 100, 32, generator=generator) for heads in (4, 2, 2)))
    return made


def quantizer_of(kv, statistics, name="lloyd2", **changes):
    policy = replace(PRESETS[name], protected_layers=(-1,), **changes)
    return fit_quantizer(policy, statistics, kv.rotation(32))


def load(kv, folder, **changes):
    given = {"model": MODEL, "shape": SHAPE, "rotation": kv.rotation(32)} | changes
    return load_quantizer(folder, **given)


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith(("kivi", "full"))])
def test_a_quantizer_comes_back_as_it_was(kv, statistics, tmp_path, name, separate):
    quantizer = quantizer_of(kv, statistics, name, separate_visual=separate)
    save_quantizer(tmp_path / "q", quantizer, RECORD)
    loaded, record = load(kv, tmp_path / "q")
    assert record == RECORD
    assert (loaded.policy, loaded.shape, loaded.errors) == (quantizer.policy, SHAPE, quantizer.errors)
    assert loaded.rotation.differs(quantizer.rotation) is None
    for own, theirs in zip(loaded.layers, quantizer.layers, strict=True):
        for side in ("keys", "values"):
            first, second = getattr(own, side), getattr(theirs, side)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)
    x, places = kv.heavy(1, 2, 9, 32), kv.places(1, 9, kinds=separate)
    for own, theirs in zip(loaded.codecs(0), quantizer.codecs(0), strict=True):
        assert torch.equal(own.decode(own.encode(x, places), places), theirs.decode(theirs.encode(x, places), places))


def test_a_policy_without_parameters_is_saved_too(kv, tmp_path):
    groups = DynamicGroups(along="channels", group=None)
    quantizer = uncalibrated(CachePolicy(keys=groups, values=groups, sink_tokens=7), SHAPE)
    save_quantizer(tmp_path / "q", quantizer, replace(RECORD, calibration=None, verdict={}))
    loaded, record = load(kv, tmp_path / "q")
    assert loaded.policy == quantizer.policy and loaded.rotation is None and record.calibration is None


def test_the_config_says_what_another_program_needs(kv, statistics, tmp_path):
    save_quantizer(tmp_path / "q", quantizer_of(kv, statistics), RECORD)
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == [TENSORS_NAME, CONFIG_NAME]
    config = json.loads((tmp_path / "q" / CONFIG_NAME).read_text())
    assert config["layers"][0]["keys"] == {
        "kind": "lloyd_max",
        "bits": 2,
        "granularity": "channel + token gain",
        "symmetric": False,
        "rotary": "pre",
        "dequantization": "x^ = [R(position)] (mean + [gain *] deviation * levels[code])",
    }
    assert config["layers"][2]["keys"]["bits"] == 16
    assert 0.1 < config["layers"][1]["error"]["values"] < 0.6
    assert config["rope"] == {"attention_scaling": 1.0, "fingerprint": kv.rotation(32).fingerprint()}
    assert config["versions"]["torch"] == torch.__version__
    assert config["tensors_sha256"] == sha256_file(tmp_path / "q" / TENSORS_NAME)
    assert config["policy"]["keys"] == {"kind": "lloyd_max", "bits": 2, "gain": True, "rotary": "pre"}


def test_the_same_quantizer_gives_the_same_bytes(kv, statistics, tmp_path):
    for name in "ab":
        save_quantizer(tmp_path / name, quantizer_of(kv, statistics), RECORD)
    for name in (TENSORS_NAME, CONFIG_NAME):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            lambda kv: {"model": replace(MODEL, model_id="other", config_hash="fedcba9876543210")},
            "for nano/one-vision (config 0123456789ab), the model is other (config fedcba987654); calibrate",
        ),
        (
            lambda kv: {"shape": replace(SHAPE, layers=4)},
            "is for 3 layers of 2 heads of 32, the model has 4 layers of 2 heads of 32; calibrate",
        ),
        (
            lambda kv: {"rotation": kv.rotation(32, scaling=1.25)},
            "another rotary embedding than the model's (attention scaling 1.0 and 1.25); use the same window",
        ),
        (
            lambda kv: {"rotation": kv.rotation(32, base=20_000.0)},
            "(inverse frequency 15: 0.00017782794 and 9.285",
        ),
    ],
    ids=["model", "shape", "scaling", "frequencies"],
)
def test_what_does_not_belong_together_is_refused_naming_both(kv, statistics, tmp_path, changes, words):
    save_quantizer(tmp_path / "q", quantizer_of(kv, statistics), RECORD)
    with pytest.raises(UserError) as caught:
        load(kv, tmp_path / "q", **changes(kv))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def edit_config(folder, change):
    config = json.loads((folder / CONFIG_NAME).read_text())
    change(config)
    (folder / CONFIG_NAME).write_text(json.dumps(config))


def edit_tensors(folder, change):
    tensors = load_file(folder / TENSORS_NAME)
    change(tensors)
    save_file(tensors, folder / TENSORS_NAME)
    edit_config(folder, lambda config: config.update(tensors_sha256=sha256_file(folder / TENSORS_NAME)))


DAMAGES = {
    "format_version is 7, this program reads 1": lambda q: edit_config(q, lambda c: c.update(format_version=7)),
    "field 'extra' is missing or unknown": lambda q: edit_config(q, lambda c: c.update(extra=1)),
    "field 'verdict' is missing or unknown": lambda q: edit_config(q, lambda c: c.pop("verdict")),
    "a field is missing, unknown or wrong": lambda q: edit_config(q, lambda c: c["policy"].update(color="red")),
    "bits is 5; use one of": lambda q: edit_config(q, lambda c: c["policy"]["values"].update(bits=5)),
    "kv_quant_config.json cannot be read": lambda q: (q / CONFIG_NAME).write_text("{"),
    "cannot be read": lambda q: (q / TENSORS_NAME).unlink(),
    "SHA-256 is": lambda q: edit_config(q, lambda c: c.update(tensors_sha256="0" * 64)),
    "unknown tensor layers.2.keys.mean": lambda q: edit_tensors(
        q, lambda t: t.update({"layers.2.keys.mean": torch.ones(1)})
    ),
    "layers.0.keys.levels is missing, 'lloyd_max' needs (1, 1, 4) float32": lambda q: edit_tensors(
        q, lambda t: t.pop("layers.0.keys.levels")
    ),
    "layers.1.values.mean is (1, 2, 31) torch.float32, 'lloyd_max' needs (1, 2, 32)": lambda q: edit_tensors(
        q, lambda t: t.update({"layers.1.values.mean": torch.ones(1, 2, 31)})
    ),
    "only one of both files holds a rotation": lambda q: edit_tensors(q, lambda t: t.pop("rope.inv_freq")),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damage_is_refused_in_one_line(kv, statistics, tmp_path, words):
    save_quantizer(tmp_path / "q", quantizer_of(kv, statistics), RECORD)
    DAMAGES[words](tmp_path / "q")
    with pytest.raises(UserError) as caught:
        load(kv, tmp_path / "q")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_overwritten_or_left_half_written(kv, statistics, tmp_path, monkeypatch):
    quantizer = quantizer_of(kv, statistics)
    save_quantizer(tmp_path / "q", quantizer, RECORD)
    with pytest.raises(UserError, match="q exists and is not an empty folder; name a new one"):
        save_quantizer(tmp_path / "q", quantizer, RECORD)

    def fail(*_args):
        raise OSError("no space left on device")

    monkeypatch.setattr("longvid_train.kvcache.checkpoint.write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        save_quantizer(tmp_path / "other", quantizer, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
