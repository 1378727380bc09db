"""An extended model, saved and loaded by plain transformers, computes the same bits."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from longvid_train.errors import UserError
from longvid_train.rope.export import longrope_parameters, save_extended
from longvid_train.rope.extension import extended, prepare
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.ntk import NtkWindow
from longvid_train.rope.rotary import find_rotary
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.window import Window
from longvid_train.rope.yarn import YarnWindow

WINDOWS = [
    LinearWindow(scale=3.7),
    NtkWindow(scale=4.0),
    YarnWindow(scale=4.0, beta=6.0, ramp="index", temperature=True),
    VisualYarnWindow(beta=2.0),
    VisualYarnWindow(beta=2.0, checkpoint_scaling="replace"),
]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("own", [{}, {"rope_type": "linear", "factor": 2.5}], ids=["plain", "linear"])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.kind)
def test_the_exported_model_has_identical_logits(reference, tmp_path: Path, family: str, own, window: Window) -> None:
    model = reference.model(family, base=1e6, **own)
    before = dict(model.config.rope_parameters)
    counts = reference.counts(64)
    with extended(model, window, counts=counts, trained=reference.trained) as extension, torch.no_grad():
        short, long = model(reference.ids(5)).logits, model(reference.ids(80)).logits
        save_extended(model, tmp_path / "extended", extension)
    assert (model.config.rope_parameters, model.config.max_position_embeddings) == (before, 64)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "extended").eval()
    with torch.no_grad():
        assert torch.equal(loaded(reference.ids(80)).logits, long)
        assert torch.equal(loaded(reference.ids(5)).logits, short)
        assert not torch.equal(model(reference.ids(80)).logits, long)
    parameters = json.loads((tmp_path / "extended" / "config.json").read_text())["rope_parameters"]
    assert parameters["rope_type"] == "longrope" and parameters["short_factor"] == parameters["long_factor"]
    assert loaded.config.max_position_embeddings == extension.extent.language_tokens == int(64 * extension.scale)


def test_an_export_is_fixed_and_can_be_extended_again(reference, tmp_path: Path) -> None:
    model = reference.model()
    first = prepare(model, LinearWindow(scale=2.0), counts=reference.counts(8), trained=reference.trained)
    save_extended(model, tmp_path / "twice", first)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twice").eval()
    again = prepare(loaded, LinearWindow(scale=3.0), counts=reference.counts(8), trained=reference.trained)
    assert torch.allclose(again.inv_freq, find_rotary(model).inv_freq / 6, rtol=3e-7)
    assert "longrope x2" in again.description[1] and "composed" in again.description[1]


def test_an_extension_that_changes_nothing_exports_the_model_as_it_is(reference, tmp_path: Path) -> None:
    model = reference.model(rope_type="linear", factor=2.5)
    same = prepare(model, VisualYarnWindow(), counts=reference.counts(8), trained=reference.trained)
    assert longrope_parameters(model.config, same) == model.config.rope_parameters
    save_extended(model, tmp_path / "same", same)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "same").eval()
    assert loaded.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(loaded(reference.ids()).logits, model(reference.ids()).logits)


def test_a_model_is_never_overwritten_and_the_config_returns_when_saving_fails(reference, tmp_path: Path) -> None:
    model = reference.model()
    extension = prepare(model, LinearWindow(scale=2.0), counts=reference.counts(8), trained=reference.trained)
    model.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        save_extended(model, tmp_path, extension)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match=r"Sequential is not a transformers model.*merge the adapter first"):
        save_extended(torch.nn.Sequential(model), tmp_path / "wrapped", extension)
    model.save_pretrained = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        save_extended(model, tmp_path / "new", extension)
    assert model.config.rope_parameters["rope_type"] == "default" and model.config.max_position_embeddings == 64


def test_a_composite_model_is_extended_and_exported_through_its_text_config(reference, tmp_path: Path) -> None:
    text = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_index=38, video_token_index=39)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    ids = reference.ids().clamp(max=37)
    with (
        extended(
            model, VisualYarnWindow(beta=2.0), counts=reference.counts(64), trained=reference.trained
        ) as extension,
        torch.no_grad(),
    ):
        logits = model(input_ids=ids).logits
        save_extended(model, tmp_path / "composite", extension)
    assert extension.scale == 4.0 and model.config.text_config.rope_parameters["rope_type"] == "default"
    loaded = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "composite").eval()
    assert loaded.config.text_config.rope_parameters["rope_type"] == "longrope"
    assert torch.equal(loaded(input_ids=ids).logits, logits)
    assert not torch.equal(model(input_ids=ids).logits, logits)
