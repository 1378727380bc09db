"""Which class a checkpoint gets, what its configuration says, and what is refused before weights are read."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import backbone_skeleton, load_backbone, read_facts, video_tokens
from longvid_train.models.backbones.load import BACKBONES, MODEL_TYPES, read_config
from tests.models import tiny_backbones as tiny

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptations"

# What matters of the config.json of llava-hf/LLaVA-NeXT-Video-7B-hf at revision 6ae32f6 and of 7B-DPO at d30328a.
EARLY_NEXT_VIDEO = {
    "architectures": ["LlavaNextVideoForConditionalGeneration"],
    "image_token_index": 32001,
    "model_type": "llava_next",
    "spatial_pool_mode": "average",
    "spatial_pool_out_channels": 1024,
    "spatial_pool_stride": 2,
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "factor": 2.0,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "type": "linear",
        "vocab_size": 32064,
    },
    "video_token_index": 32000,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
DPO_NEXT_VIDEO = EARLY_NEXT_VIDEO | {
    "text_config": EARLY_NEXT_VIDEO["text_config"] | {"rope_scaling": {"factor": 2.5, "type": "linear"}}
}


def write_config(folder, values):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One saved checkpoint of each backbone."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in tiny.BUILDERS:
        tiny.build(name).save_pretrained(root / name)
    return root


def edited(saved, name, tmp_path, **fields):
    values = json.loads((saved / name / "config.json").read_text())
    return write_config(tmp_path / "edited", values | fields)


@pytest.mark.parametrize("name", sorted(tiny.BUILDERS))
def test_the_class_is_the_one_the_checkpoint_names_whatever_the_folder_is_called(name, saved, tmp_path):
    misleading = tmp_path / "llava-onevision-llava-next-video-video-llava"
    misleading.symlink_to(saved / name)
    kind, config = read_config(misleading)
    assert kind is BACKBONES[config.architectures[0]]
    assert read_facts(misleading) == kind.facts_of(tiny.build(name).config)
    assert read_facts(misleading).model_type == config.model_type
    unnamed = edited(saved, name, tmp_path, architectures=None)
    assert read_config(unnamed)[0] is kind


@pytest.mark.parametrize(("values", "window"), [(EARLY_NEXT_VIDEO, 4096), (DPO_NEXT_VIDEO, 10240)])
def test_early_next_video_revisions_call_themselves_llava_next(values, window, tmp_path):
    folder = write_config(tmp_path / "early", values)
    facts = read_facts(folder)
    assert facts.model_type == "llava_next_video"
    assert (facts.grid.frame_tokens(facts.grid.stride), facts.trained.visual) == (144, 4608)
    assert (facts.trained.language, facts.placeholder_id) == (window, 32000)
    kind, config = read_config(folder)
    backbone = backbone_skeleton(config)
    assert type(backbone) is kind is BACKBONES["LlavaNextVideoForConditionalGeneration"]
    assert backbone.facts == facts


def test_early_next_video_weights_load_under_their_own_class(saved, tmp_path):
    folder = edited(saved, "next_video", tmp_path, model_type="llava_next")
    (folder / "model.safetensors").symlink_to(saved / "next_video" / "model.safetensors")
    loaded, expected = load_backbone(folder), tiny.build("next_video")
    assert type(loaded.model) is type(expected)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_the_dtype_asked_for_is_the_dtype_of_the_tokens(saved):
    backbone = load_backbone(saved / "video_llava", dtype=torch.bfloat16)
    plan = Adaptation().plan_frames(2, backbone.facts.grid)
    with torch.no_grad():
        tokens = video_tokens(backbone, tiny.pixels(backbone.model, 2), plan)
    assert tokens.dtype == backbone.model.dtype == torch.bfloat16 and not backbone.model.training


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": ["LlavaNextVideoForConditionalGenerations"]}, "did you mean 'LlavaNextVideoFor"),
        ({"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM', which is no backbone"),
        ({"architectures": ["A", "B"]}, r"names 2 architectures \(A, B\)"),
        ({"model_type": "llama"}, "holds a 'llama' model"),
        ({"vision_feature_select_strategy": "full"}, "has 1 class tokens; set it to 'default'"),
        ({"spatial_pool_stride": 4}, "stride 4 does not divide the 6 rows"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_before_weights_are_read(fields, said, saved, tmp_path):
    folder = edited(saved, "next_video", tmp_path, **fields)  # holds no weights
    with pytest.raises(UserError, match=said):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("onevision", {"vision_feature_select_strategy": "default"}, "has 0 class tokens; set it to 'full'"),
        ("video_llava", {"vision_config": {"model_type": "siglip_vision_model"}}, "has no class token"),
        ("next_image", {"vision_config": {"model_type": "dinov2"}}, "'dinov2' tower is not supported"),
    ],
)
def test_towers_that_the_family_does_not_have_are_refused(name, fields, said, saved, tmp_path):
    with pytest.raises(UserError, match=said):
        read_facts(edited(saved, name, tmp_path, **fields))


def test_shipped_adaptations_name_backbones_that_exist():
    named = [load_adaptation(path).backbones for path in sorted(CONFIGS.rglob("*.yaml"))]
    assert len(named) >= 30 and sum(map(bool, named)) >= 26
    assert {name for names in named for name in names} <= MODEL_TYPES.keys()


def test_llava_1_5_is_no_interleave_checkpoint():
    config = LlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig())
    with pytest.raises(UserError, match="no LLaVA-Interleave"):
        backbone_skeleton(config)


def test_weights_of_another_size_are_refused(saved, tmp_path):
    values = json.loads((saved / "onevision" / "config.json").read_text())
    folder = write_config(tmp_path / "wide", values | {"text_config": values["text_config"] | {"hidden_size": 48}})
    (folder / "model.safetensors").symlink_to(saved / "onevision" / "model.safetensors")
    with pytest.raises(UserError, match="wide: "):
        load_backbone(folder)


@pytest.mark.parametrize("missing", ["folder", "config"])
def test_missing_checkpoints_are_one_line(missing, tmp_path):
    if missing == "config":
        (tmp_path / "config").mkdir()
    with pytest.raises(UserError) as raised:
        load_backbone(tmp_path / missing)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_a_hub_name_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/no-such-model: no such folder") as raised:
        load_backbone("nobody/no-such-model")
    assert "\n" not in str(raised.value)
