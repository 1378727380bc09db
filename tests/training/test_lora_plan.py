"""LoRA in a stage: which layers get matrices, which modules train in full, what is refused."""

import re
from pathlib import Path

import pytest
import torch

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.loading import llama_vid_skeleton, load_llama_vid
from longvid_train.training.lora import LoraSettings, apply_lora, plan_lora
from longvid_train.training.optimizer import parameter_groups
from longvid_train.training.stages import Stage, frozen_modules

DECODER = "language_model.model.layers"
ATTENTION = [f"{DECODER}.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qkvo"]
MLP = [f"{DECODER}.{layer}.mlp.{name}_proj" for layer in (0, 1) for name in ("gate", "up", "down")]


def lora(*targets: str, **fields: float) -> LoraSettings:
    return LoraSettings(**({"r": 2, "alpha": 4.0, "target_modules": list(targets)} | fields))


def stage(*patterns: str) -> Stage:
    return Stage(name="s", trainable=list(patterns))


@pytest.mark.parametrize(
    ("targets", "patterns", "layers", "whole"),
    [
        (["language_model.model"], [], ATTENTION + MLP, []),
        (["language_model.*.[qv]_proj"], ["content_projector"], ATTENTION[0::2], ["content_projector"]),
        (
            ["language_model", "!*.lm_head", "!*.mlp"],
            ["*", "!vision_tower", "!language_model"],
            ATTENTION,
            ["text_decoder", "context_attention", "content_projector"],
        ),
        (
            [f"{DECODER}.1.mlp"],
            ["*.norm", "content_projector.0"],
            MLP[3:],
            ["content_projector.0", "language_model.model.norm"],
        ),
    ],
)
def test_patterns_choose_layers_and_whole_modules(
    tiny_model_folder: Path, targets: list[str], patterns: list[str], layers: list[str], whole: list[str]
) -> None:
    skeleton = llama_vid_skeleton(tiny_model_folder)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    shape = plan_lora(skeleton, stage(*patterns), lora(*targets, dropout=0.25))
    assert sorted(shape.target_modules) == sorted(layers)
    assert sorted(shape.modules_to_save) == sorted(whole)
    assert (shape.r, shape.alpha, shape.dropout) == (2, 4.0, 0.25)


@pytest.mark.parametrize(
    ("targets", "patterns", "message"),
    [
        (
            ["language_model.*.q_prj"],
            [],
            "lora.target_modules: pattern 'language_model.*.q_prj' matches no linear layer",
        ),
        (["langage_model"], [], "did you mean 'language_model'?"),
        (["language_model.model.embed_tokens"], [], "matches no linear layer"),
        (["language_model", "!language_model"], [], "selects no layer"),
        (["language_model.*.q_proj"], ["language_model"], "which stage 's' trains in full; leave it out of one"),
        (["language_model.*.q_proj"], ["contxt_attention"], "did you mean 'context_attention'?"),
        (["language_model.*.q_proj"], ["text_decoder.queries"], "trains text_decoder.queries but not all of 'text_dec"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_model_folder: Path, targets: list[str], patterns: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        plan_lora(llama_vid_skeleton(tiny_model_folder), stage(*patterns), lora(*targets))
    assert "\n" not in str(caught.value)


def test_a_head_tied_to_the_embeddings_is_refused(tiny_model_folder: Path) -> None:
    model = load_llama_vid(tiny_model_folder)
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    with pytest.raises(UserError, match=r"whose weight is also language_model\.model\.embed_tokens\.weight"):
        plan_lora(model, stage(), lora("language_model"))
    assert len(plan_lora(model, stage(), lora("language_model", "!*.lm_head")).target_modules) == 14


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "lora.r is 0; it must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"alpha": float("nan")}, "lora.alpha is nan"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"target_modules": []}, "lora.target_modules is empty"),
    ],
)
def test_numbers_outside_their_range(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        lora("language_model", **fields)


def test_what_trains_what_is_in_eval_mode_and_what_decays(tiny_model_folder: Path) -> None:
    model = load_llama_vid(tiny_model_folder).train()
    shape = plan_lora(model, stage("content_projector"), lora("language_model.*.q_proj", dropout=0.5))
    report = apply_lora(model, shape)
    matrices = [f"{DECODER}.{n}.self_attn.q_proj.lora_{side}.default.weight" for n in (0, 1) for side in "AB"]
    projector = [f"content_projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {*matrices, *projector}
    assert report.trainable_parameters == 4 * 16 * 2 + 2 * (16 * 16 + 16)

    query = model.get_submodule(f"{DECODER}.0.self_attn.q_proj")
    assert not query.base_layer.training
    assert query.lora_dropout["default"].training, "the adapter's own dropout is on"
    assert not model.get_submodule(f"{DECODER}.0.mlp").training
    frozen = [path for path, _ in frozen_modules(model)]
    assert {"vision_tower", "text_decoder", "context_attention", "language_model.lm_head"} <= set(frozen)

    decayed, rest = parameter_groups(model, 0.1)
    named = dict(model.named_parameters())
    weights = [name for name in (*matrices, *projector) if name.endswith("weight")]
    assert {id(value) for value in decayed["params"]} == {id(named[name]) for name in weights}
    assert {id(value) for value in rest["params"]} == {id(named[name]) for name in projector if name.endswith("bias")}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert torch.equal(query.lora_B["default"].weight, torch.zeros(16, 2))
