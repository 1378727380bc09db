"""Saving, loading and building from parts."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    LlamaForCausalLM,
)

from longvid_train.errors import UserError
from longvid_train.models.llama_vid import (
    LlamaVidConfig,
    LlamaVidForConditionalGeneration,
    build_llama_vid,
    load_llama_vid,
    load_text_decoder,
    save_text_decoder,
)


@torch.no_grad()
def test_a_sharded_folder_gives_the_same_bits(any_model, mixed, tmp_path):
    any_model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    batch = mixed(any_model.config).batch()
    expected = any_model(**batch).logits
    for loaded in (load_llama_vid(tmp_path), AutoModel.from_pretrained(tmp_path).eval()):
        assert type(loaded) is LlamaVidForConditionalGeneration
        assert loaded.state_dict().keys() == any_model.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in any_model.state_dict().items())
        assert torch.equal(loaded(**batch).logits, expected)
    written = without_load_state(AutoConfig.from_pretrained(tmp_path).to_dict())
    assert written == without_load_state(load_llama_vid(tmp_path).config.to_dict())
    assert written == without_load_state(any_model.config.to_dict())


def without_load_state(value: object) -> object:
    """A configuration without what loading and saving note in it: dtypes, class names and the library's version."""
    noted = ("dtype", "architectures", "transformers_version", "_name_or_path")
    if isinstance(value, dict):
        return {name: without_load_state(part) for name, part in value.items() if name not in noted}
    return value


def test_tied_embeddings_stay_tied_and_are_saved_once(tiny, mixed, tmp_path):
    model = tiny.build(tiny.eva(), None, language=tiny.llama(tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    loaded = load_llama_vid(tmp_path)
    for each in (model, loaded):
        assert each.get_output_embeddings().weight is each.get_input_embeddings().weight
    batch = mixed(model.config).batch()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_dtype_and_device_map(model, mixed, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_llama_vid(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    batch = mixed(model.config).batch()
    assert loaded(**batch).logits.dtype == torch.bfloat16
    eager = load_llama_vid(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(eager(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-4)


def test_wrong_folders_are_user_errors(model, tiny, tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_llama_vid(tmp_path / "nowhere")
    LlamaForCausalLM(tiny.llama()).save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="holds a 'llama' model, not 'llama_vid'"):
        load_llama_vid(tmp_path / "llama")
    folder = tmp_path / "short"
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"lacks \d+ of the model's weights, first language_model.model.layers.2"):
        load_llama_vid(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="weights cannot be read"):
        load_llama_vid(folder)


@pytest.mark.parametrize("kind", ["qformer", "bert"])
@torch.no_grad()
def test_a_model_from_parts_has_their_weights_and_fresh_projections(tiny, mixed, tmp_path, kind):
    source = tiny.build(tiny.eva(), getattr(tiny, kind)())
    tower = InstructBlipVisionModel(tiny.eva())
    tower.load_state_dict(source.vision_tower.state_dict(), strict=False)
    tower.save_pretrained(tmp_path / "tower")
    source.language_model.save_pretrained(tmp_path / "language_model")
    save_text_decoder(source.text_decoder, tmp_path / "decoder")
    torch.manual_seed(7)
    built = build_llama_vid(
        vision_tower=tmp_path / "tower",
        language_model=tmp_path / "language_model",
        text_decoder=tmp_path / "decoder",
        visual_token_id=60,
        max_prompt_tokens=16,
    )
    for part in ("vision_tower", "text_decoder", "language_model"):
        theirs = getattr(source, part).state_dict()
        ours = getattr(built, part).state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    assert not any(p.is_meta for p in built.parameters())
    assert not any(b.is_meta for b in built.buffers())
    for fresh in (built.context_attention.key_projector, built.content_projector[0]):
        assert not fresh.bias.any()
        assert 0.08 < fresh.weight.std() < 0.12  # initializer_range 0.1
    built.save_pretrained(tmp_path / "whole")
    batch = mixed(built.config).batch()
    assert torch.equal(load_llama_vid(tmp_path / "whole")(**batch).logits, built(**batch).logits)


def test_parts_can_be_a_clip_tower_and_a_fresh_bert(tiny, tmp_path):
    CLIPVisionModel(tiny.clip()).save_pretrained(tmp_path / "tower")
    LlamaForCausalLM(tiny.llama()).save_pretrained(tmp_path / "lm")
    parts = {"vision_tower": tmp_path / "tower", "language_model": tmp_path / "lm", "visual_token_id": 60}
    model = build_llama_vid(text_decoder=tiny.bert(), max_prompt_tokens=16, dtype=torch.bfloat16, **parts)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert build_llama_vid(text_decoder=None, **parts).config.use_context is False
    parts["vision_tower"] = tmp_path / "lm"
    with pytest.raises(UserError, match="'llama' model, not 'instructblip_vision_model' or 'clip_vision_model'"):
        build_llama_vid(text_decoder=None, **parts)


def test_a_text_decoder_folder_that_is_not_whole(tiny, model, tmp_path):
    save_text_decoder(model.text_decoder, tmp_path)
    assert torch.equal(load_text_decoder(tmp_path).queries, model.text_decoder.queries)
    description = json.loads((tmp_path / "text_decoder.json").read_text())
    (tmp_path / "text_decoder.json").write_text(json.dumps(description | {"num_queries": 5}))
    with pytest.raises(UserError, match="not a whole text decoder"):
        load_text_decoder(tmp_path)
    (tmp_path / "text_decoder.json").unlink()
    with pytest.raises(UserError, match=r"text_decoder.json does not exist"):
        load_text_decoder(tmp_path)


WRONG = {
    "no token": ({"use_content": False, "use_context": False}, "a frame would have no token"),
    "context without decoder": ({"use_context": True}, "the context token needs a text decoder"),
    "decoder without context": ({"use_context": False, "decoder": "qformer"}, "it would never run"),
    "size": ({"image_size": 30}, "image_size 30 is not a multiple"),
    "prompt": ({"max_prompt_tokens": 65, "decoder": "qformer"}, "max_prompt_tokens 65 exceeds"),
    "layer": ({"vision": "clip", "vision_select_layer": -5}, "outside the tower's 3 layers"),
    "queries": ({"num_queries": 0}, "num_queries is 0"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_wrong_combinations_are_user_errors(tiny, fields, message):
    fields = dict(fields)
    decoder = getattr(tiny, fields.pop("decoder"))() if "decoder" in fields else None
    vision = getattr(tiny, fields.pop("vision", "eva"))()
    fields = {"max_prompt_tokens": 16} | fields
    with pytest.raises(UserError, match=message):
        LlamaVidConfig(vision_config=vision, text_decoder_config=decoder, text_config=tiny.llama(), **fields)


def test_the_default_configuration_round_trips():
    config = LlamaVidConfig(vision_config=InstructBlipVisionConfig(image_size=336))
    again = LlamaVidConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.tokens_per_frame(0) == 576
    assert (again.use_context, again.visual_grid) == (False, 24)
