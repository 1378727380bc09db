"""Adapters in peft's own format: written here, read by peft, and back; what does not fit is named."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from longvid_train.errors import UserError
from longvid_train.models.adapter import AdapterRecord, read_adapter
from longvid_train.models.backbones.adapted import read_any_adapter
from longvid_train.models.fingerprint import fingerprint
from longvid_train.models.llama_vid import load_llama_vid
from longvid_train.models.llama_vid.adapted import load_adapted
from longvid_train.models.lora import LoraExport, LoraShape, insert_lora

LAYER = "language_model.model.layers"
SHAPE = LoraShape(
    r=3,
    alpha=5.0,
    dropout=0.0,
    target_modules=(f"{LAYER}.0.self_attn.q_proj", f"{LAYER}.1.mlp.down_proj", "vision_tower.encoder.layers.0.mlp.fc1"),
    modules_to_save=("content_projector",),
)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.fixture
def saved(model, mixed, tmp_path: Path):
    """The base folder, an adapter folder of a model all of whose adapter weights were moved, and its logits."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    insert_lora(model, SHAPE)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.config.text_config.max_position_embeddings = 4096
    folder.mkdir()
    LoraExport(model, SHAPE, str(base)).save_pretrained(folder)
    record = AdapterRecord.of(model.config, base=base, base_fingerprint=fingerprint(base), folder=folder)
    record.save_pretrained(folder)
    return base, folder, logits(model.eval(), mixed(model.config).batch())


def test_the_file_holds_the_adapter_and_no_other_base_weight(saved) -> None:
    base, folder, _ = saved
    names = load_file(folder / "adapter_model.safetensors").keys()
    expected = {f"base_model.model.{path}.lora_{side}.weight" for path in SHAPE.target_modules for side in "AB"}
    expected |= {f"base_model.model.content_projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert set(names) == expected
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 5.0, "LORA")
    assert config["target_modules"] == sorted(SHAPE.target_modules)
    assert config["modules_to_save"] == ["content_projector"]
    assert config["base_model_name_or_path"] == str(base)


def test_saved_and_loaded_gives_the_same_logits_here_and_in_peft_merged_and_not(saved, mixed) -> None:
    base, folder, expected = saved
    adapter = read_any_adapter(folder)
    ours = load_adapted(adapter.base_folder(), adapter)
    batch = mixed(ours.config).batch()
    assert torch.equal(logits(ours, batch), expected)
    assert ours.config.text_config.max_position_embeddings == 4096
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())

    plain = load_llama_vid(base)
    assert (logits(plain, batch) - expected).abs().max() > 0.1, "the adapter must matter for this test to say anything"
    theirs = PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(logits(theirs.eval(), batch), expected, rtol=1e-5, atol=1e-5)

    merged = load_adapted(base, adapter, merged=True)
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == load_llama_vid(base).state_dict().keys()
    weight = f"{LAYER}.0.self_attn.q_proj"
    stored = load_file(folder / "adapter_model.safetensors")
    update = stored[f"base_model.model.{weight}.lora_B.weight"] @ stored[f"base_model.model.{weight}.lora_A.weight"]
    before = load_file(base / "model.safetensors")[f"{weight}.weight"]
    torch.testing.assert_close(merged.get_submodule(weight).weight, before + 5 / 3 * update)


def test_a_fresh_adapter_changes_nothing_and_only_it_asks_for_gradients(model, mixed) -> None:
    batch = mixed(model.config).batch()
    before = logits(model, batch)
    insert_lora(model, SHAPE)
    assert torch.equal(logits(model.eval(), batch), before)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {f"{path}.lora_{side}.default.weight" for path in SHAPE.target_modules for side in "AB"}
    projector = {f"content_projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert trains == matrices | projector


def test_the_base_is_found_after_a_move_and_refused_when_it_is_another(saved, tmp_path: Path) -> None:
    base, folder, _ = saved
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved / "adapter")
    assert read_any_adapter(moved / "adapter").base_folder() == base.resolve()
    base.rename(moved / "base")
    assert read_any_adapter(moved / "adapter").base_folder() == (moved / "base").resolve()
    with pytest.raises(UserError, match=r"its base model .*base is not there; name the folder with --model"):
        read_any_adapter(folder).base_folder()
    assert read_any_adapter(folder).base_folder(moved / "base") == moved / "base"

    weights = load_file(moved / "base" / "model.safetensors")
    weights[f"{LAYER}.0.self_attn.q_proj.weight"] += 1e-3
    save_file(weights, moved / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"base is not the model that .* was trained on"):
        read_any_adapter(moved / "adapter").base_folder()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("base_model.model.content_projector.0.bias"),
            r"lacks base_model\.model\.content_projector\.0",
        ),
        (lambda t: t.update(extra=torch.zeros(1)), "has extra left over"),
        (
            lambda t: t.update({f"base_model.model.{SHAPE.target_modules[0]}.lora_A.weight": torch.zeros(4, 40)}),
            r"lora_A\.weight has shape \(4, 40\), not \(3, 40\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(saved, change, message: str) -> None:
    base, folder, _ = saved
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_adapted(base, read_any_adapter(folder))
    assert "\n" not in str(caught.value)


def test_broken_folders_are_named(saved, tmp_path: Path) -> None:
    base, folder, _ = saved
    config = json.loads((folder / "adapter_config.json").read_text())

    def complaint(name: str, text: str | None) -> str:
        place = tmp_path / "broken"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        os.unlink(place / name)
        if text is not None:
            (place / name).write_text(text)
        with pytest.raises(UserError) as caught:
            load_adapted(base, read_any_adapter(place))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "adapter_model.safetensors does not exist" in complaint("adapter_model.safetensors", None)
    assert "adapter_model.safetensors cannot be read" in complaint("adapter_model.safetensors", "x" * 99)
    assert "adapter_record.json does not exist" in complaint("adapter_record.json", None)
    assert "adapter_record.json is not valid JSON" in complaint("adapter_record.json", "{")
    assert "its keys must be architecture, base_fingerprint" in complaint("adapter_record.json", '{"a": 1}')
    assert "peft_type is 'IA3'" in complaint("adapter_config.json", json.dumps(config | {"peft_type": "IA3"}))
    assert "not peft's LoRA config" in complaint("adapter_config.json", json.dumps({"peft_type": "LORA"}))
    lost = json.dumps(config | {"target_modules": ["language_model.nowhere"]})
    assert "the base model has no module 'language_model.nowhere'" in complaint("adapter_config.json", lost)
    with pytest.raises(UserError, match="adapts a 'llama_vid' model; this needs 'llava_onevision'"):
        read_adapter(folder, "llava_onevision")
    with pytest.raises(UserError, match="holds a whole model, not an adapter; name it with --model"):
        read_any_adapter(base)
    with pytest.raises(UserError, match="is not a folder"):
        read_any_adapter(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds an adapter, not a whole model.*longvid merge"):
        load_llama_vid(folder)
