"""`longvid init --vision --language`: transformers' InstructBLIP and Llama checkpoints become a LLaMA-VID."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaForCausalLM,
)

from longvid_train.cli import main
from longvid_train.commands.init import NANO_PARTS
from longvid_train.models.llama_vid import LlamaVidProcessor, load_llama_vid


@pytest.fixture
def pair(tiny, tmp_path):
    """Folders of a tiny random InstructBLIP and a tiny random Llama, each with its tokenizer."""
    torch.manual_seed(0)
    vision, qformer, text = tiny.eva(), tiny.qformer(vocab_size=640, max_position_embeddings=256), tiny.llama()
    config = InstructBlipConfig(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), text_config=text.to_dict(), num_query_tokens=5
    )
    blip = InstructBlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in blip.parameters():  # the queries start at zero, norms at one
            parameter.add_(torch.randn_like(parameter) * 0.1)
    blip.save_pretrained(tmp_path / "blip", max_shard_size="40KB")
    LlamaForCausalLM(tiny.llama(vocab_size=640)).half().save_pretrained(tmp_path / "vicuna")
    tokenizer = AutoTokenizer.from_pretrained(NANO_PARTS / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "vicuna")
    tokenizer.save_pretrained(tmp_path / "blip" / "qformer_tokenizer")
    return tmp_path


def stored(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def init(folder, *options):
    pair = ("--vision", str(folder / "blip"), "--language", str(folder / "vicuna"))
    return main(["init", "--out", str(folder / "out"), *pair, *options])


def test_every_tensor_lands_and_what_is_fresh_is_listed(pair, capsys):
    assert init(pair, "--dtype", "float32") == 0
    assert "newly initialised: content_projector.{0,2}.bias, content_projector.{0,2}.weight, context_attention." in (
        capsys.readouterr().out
    )
    blip, vicuna, written = stored(pair / "blip"), stored(pair / "vicuna"), stored(pair / "out")
    used = set()
    for name, value in written.items():
        part, _, rest = name.partition(".")
        if part in ("context_attention", "content_projector"):
            continue
        source = {
            "vision_tower": f"vision_model.{rest}",
            "language_model": rest,
            "text_decoder": rest.replace("vision_norm", "vision_model.post_layernorm").replace(
                "queries", "query_tokens"
            ),
        }[part]
        origin = vicuna if part == "language_model" else blip
        assert torch.equal(value, origin[source].float()), name
        used.add((part == "language_model", source))
    assert {source for language, source in used if language} == vicuna.keys()
    left = blip.keys() - {source for language, source in used if not language}
    assert {name.split(".")[0] for name in left} == {"language_projection", "language_model"}
    config = load_llama_vid(pair / "out").config
    assert (config.num_queries, config.image_size, config.visual_token_id) == (
        5,
        28,
        4,
    )  # the nano tokenizer has a <visual>


def test_336_resizes_the_position_embeddings_once_and_for_all(pair):
    assert init(pair, "--image-size", "42", "--dtype", "float16") == 0
    model = load_llama_vid(pair / "out", dtype=torch.float32)
    assert (model.config.vision_config.image_size, model.config.image_size) == (42, 42)
    positions = stored(pair / "blip")["vision_model.embeddings.position_embedding"]
    square = positions[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(square, size=(6, 6), mode="bicubic", align_corners=False)
    expected = torch.cat([positions[:, :1], larger.permute(0, 2, 3, 1).reshape(1, 36, -1)], 1)
    found = model.vision_tower.embeddings.position_embedding
    torch.testing.assert_close(found, expected.half().float(), rtol=0, atol=0)
    assert model.encode_frames(torch.randn(1, 3, 42, 42)).shape == (1, 37, 32)
    assert LlamaVidProcessor.from_pretrained(pair / "out").tokens_per_frame(0) == 37
    with safe_open(next((pair / "out").glob("*.safetensors")), "pt") as handle:
        assert all(handle.get_slice(name).get_dtype() == "F16" for name in handle.keys())  # noqa: SIM118


def test_a_clip_tower_or_a_fresh_bert_replaces_one_half_of_instructblip(pair, tiny, capsys):
    config = {**tiny.clip().to_dict(), "hidden_size": 48, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**config)).save_pretrained(pair / "clip")
    assert init(pair, "--tower", str(pair / "clip")) == 0
    assert "text_decoder.vision_projector.weight" in capsys.readouterr().out
    model = load_llama_vid(pair / "out")
    assert model.text_decoder.vision_projector.weight.shape == (32, 48)
    assert torch.equal(model.text_decoder.queries, stored(pair / "blip")["query_tokens"])
    (pair / "out").rename(pair / "clip_out")
    bert = str(NANO_PARTS.parents[2] / "configs" / "llama_vid" / "nano" / "bert.json")
    assert init(pair, "--text-decoder", bert) == 0
    assert "text_decoder.bert.encoder.layer.{0..1}.crossattention.self.key.weight" in capsys.readouterr().out
    tower = load_llama_vid(pair / "out").vision_tower.state_dict()
    assert torch.equal(
        tower["embeddings.class_embedding"], stored(pair / "blip")["vision_model.embeddings.class_embedding"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vision", "nowhere"], "--vision nowhere: no such folder, and not a hub id like 'owner/name'"),
        (["--vision", "{vicuna}", "--prompt-tokenizer", "{vicuna}"], "holds a 'llama' model, not 'instructblip'"),
        (["--language", "{blip}"], "holds a 'instructblip' model, not 'llama'"),
        (["--tower", "x", "--no-text-decoder"], "would give nothing"),
        (["--image-size", "30"], "not a multiple"),
    ],
)
def test_mistakes_are_one_line(pair, capsys, options, message):
    options = [word.format(vicuna=pair / "vicuna", blip=pair / "blip") for word in options]
    assert init(pair, *options) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (pair / "out").exists()


def test_an_instructblip_without_its_queries_is_refused(pair, capsys):
    index = pair / "blip" / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    file = pair / "blip" / values["weight_map"].pop("query_tokens")
    save_file(
        {name: value for name, value in load_file(file).items() if name != "query_tokens"}, file, {"format": "pt"}
    )
    index.write_text(json.dumps(values))
    assert init(pair) == 2
    assert "lacks 1 of the model's weights, first query_tokens" in capsys.readouterr().err
