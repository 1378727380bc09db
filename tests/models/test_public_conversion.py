"""`longvid convert`: every public tensor lands, the forward equals the public one, and nothing that is off passes."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

from longvid_train.cli import main
from longvid_train.commands.init import NANO_PARTS
from longvid_train.models.llama_vid import LlamaVidProcessor, load_llama_vid
from longvid_train.models.llama_vid.public_config import stated_image_size
from longvid_train.models.llama_vid.public_names import compact
from tests.models import public_layout as public

TOKENIZER = str(NANO_PARTS / "tokenizer")


def convert(out, *options):
    return main(["convert", "--out", str(out), "--prompt-tokenizer", TOKENIZER, "--tokenizer", TOKENIZER, *options])


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def back_to_public(name, tensor):
    """The public names of one parameter of this project, written by hand from the public code."""
    for ours, theirs in (
        ("language_model.", ""),
        ("content_projector.", "model.mm_projector."),
        ("context_attention.query_projector.", "model.vlm_att_projector."),
        ("context_attention.key_projector.", "model.vlm_att_key_projector."),
        ("context_attention.value_projector.", "model.vlm_att_val_projector."),
        ("text_decoder.queries", "model.vlm_att_query"),
        ("text_decoder.vision_norm.", "model.vlm_att_ln."),
        ("text_decoder.vision_projector.", "model.vlm_att_bert_proj."),
        ("text_decoder.bert.", "model.vlm_att_encoder.bert."),
        ("text_decoder.qformer.", "model.vlm_att_encoder.bert."),
    ):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            if ours == "text_decoder.qformer.":
                name = name.replace("attention.attention.", "attention.self.")
                name = name.replace("embeddings.layernorm", "embeddings.LayerNorm")
            return {name: tensor}
    name = name.replace("vision_tower.embeddings.", public.EVA)
    name = name.replace("class_embedding", "cls_token").replace("position_embedding", "pos_embed")
    name = name.replace("patch_embedding", "patch_embed.proj").replace(
        "vision_tower.encoder.layers.", public.EVA + "blocks."
    )
    name = name.replace("layer_norm", "norm").replace("self_attn.projection", "attn.proj").replace("self_attn", "attn")
    if name.endswith("qkv.bias"):
        query, key, value = tensor.chunk(3)
        assert not key.any()
        return {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    return {name: tensor}


def is_buffer(name):
    return name.endswith(("position_ids", "inv_freq"))


@pytest.mark.parametrize("decoder", ["qformer", "bert"])
@torch.no_grad()
def test_a_whole_checkpoint_round_trips_and_computes_what_the_public_code_does(decoder, tmp_path, capsys):
    tensors = public.whole_model(decoder)
    values = public.config(bert_type={"qformer": "qformer_pretrain", "bert": "raw_bert_layer:2"}[decoder])
    source = public.save_folder(tmp_path / "public", tensors, values, shards=3)
    assert convert(tmp_path / "out", "--checkpoint", str(source), "--max-shard-gib", "0.0005") == 0
    shown = capsys.readouterr().out
    assert "newly initialised: nothing" in shown and "model.layers.{0..1}.self_attn.rotary_emb.inv_freq" in shown
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 5

    model = load_llama_vid(tmp_path / "out")
    inverse = {}
    for name, value in model.state_dict().items():
        new = back_to_public(name, value)
        assert not inverse.keys() & new.keys()
        inverse |= new
    assert inverse.keys() == {name for name in tensors if not is_buffer(name)}
    assert all(torch.equal(inverse[name], tensors[name]) for name in inverse)

    model = model.double()
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([5, 17, 400, 9])
    reference = public.Reference(tensors)
    expected = reference.tower(pixels)
    features = model.encode_frames(pixels.double())
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    found = model.visual_tokens(
        features, torch.tensor([[0, 3, 0]]), torch.tensor([1]), ids[None], torch.ones(1, 4, dtype=torch.long)
    )
    expected = reference.tokens(expected, ids, decoder).flatten(0, 1)
    # The attention's softmax runs in float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    processor = LlamaVidProcessor.from_pretrained(tmp_path / "out")
    assert (processor.settings.image_content_grid, processor.settings.video_content_grid) == (1, 1)
    assert (processor.settings.template, processor.settings.image_size) == ("vicuna_v1", 56)
    assert processor.visual_token_id == public.VOCAB


def stage1_sources(folder, *, dtype=torch.float16, blocks=40):
    """mm_projector.bin with its config, a Vicuna in safetensors, EVA-CLIP's 40 blocks with their classifier."""
    head = public.draw(public.head_names("qformer"), seed=1, dtype=torch.bfloat16)
    (folder / "stage1").mkdir(parents=True)
    torch.save(head, folder / "stage1" / "mm_projector.bin")
    (folder / "stage1" / "config.json").write_text(json.dumps(public.config(compress_type="grid:2")))
    language = public.draw(public.language_names(), seed=2, dtype=dtype)
    (folder / "vicuna").mkdir()
    save_file(language, folder / "vicuna" / "model.safetensors")
    (folder / "vicuna" / "config.json").write_text(json.dumps(public.config(model_type="llama")))
    eva = public.draw(
        public.eva_names(blocks) | {"head.weight": (10, public.C), "head.bias": (10,)}, seed=3, dtype=dtype
    )
    torch.save(eva, folder / "eva_vit_g.pth", _use_new_zipfile_serialization=False)
    return head, language, eva


def stage1_options(folder):
    return (
        *("--checkpoint", str(folder / "stage1" / "mm_projector.bin"), "--language", str(folder / "vicuna")),
        *("--tower", str(folder / "eva_vit_g.pth")),
    )


def test_a_stage_1_checkpoint_joins_vicuna_and_eva_each_in_its_own_dtype(tmp_path, capsys):
    head, language, eva = stage1_sources(tmp_path)
    assert convert(tmp_path / "out", *stage1_options(tmp_path), "--image-size", "84") == 0
    assert "blocks.39.attn.qkv.weight" in capsys.readouterr().out
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["language_model.model.layers.1.mlp.up_proj.weight"].dtype == torch.float16
    assert torch.equal(written["language_model.model.embed_tokens.weight"], language["model.embed_tokens.weight"])
    assert torch.equal(written["text_decoder.queries"], head["model.vlm_att_query"])
    positions = eva["pos_embed"].float()
    square = positions[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(square, size=(6, 6), mode="bicubic", align_corners=False)
    larger = torch.cat([positions[:, :1], larger.permute(0, 2, 3, 1).reshape(1, 36, -1)], 1).half()
    assert torch.equal(written["vision_tower.embeddings.position_embedding"], larger)
    model = load_llama_vid(tmp_path / "out", dtype=torch.float32)
    assert (model.config.image_size, model.config.vision_config.image_size) == (84, 84)
    processor = LlamaVidProcessor.from_pretrained(tmp_path / "out")
    assert (processor.settings.template, processor.tokens_per_frame(2)) == ("plain", 5)
    assert processor.settings.video_content_grid == 2


def lavis_qformer(folder):
    names = {f"Qformer.bert.{n}": s for n, s in public.bert_names(12, queries=True, cross_width=public.C).items()}
    names |= {
        "query_tokens": (1, public.QUERIES, public.Q),
        "ln_vision.weight": (public.C,),
        "ln_vision.bias": (public.C,),
    }
    tensors = public.draw(names | public.dense("llm_proj", 4096, public.Q), seed=5)
    torch.save({"model": tensors}, folder / "instruct_blip.pth")
    return tensors


def test_fresh_projections_on_lavis_files_depend_on_the_seed_only(tmp_path, capsys):
    stage1_sources(tmp_path, blocks=40)
    qformer = lavis_qformer(tmp_path)
    options = (*stage1_options(tmp_path)[2:], "--qformer", str(tmp_path / "instruct_blip.pth"))
    written = {}
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert convert(tmp_path / out, *options, "--seed", seed) == 0
        written[out] = load_file(tmp_path / out / "model.safetensors")
    shown = capsys.readouterr().out
    assert "llm_proj.weight" in shown
    assert "newly initialised: content_projector.{0,2}.bias, content_projector.{0,2}.weight" in shown
    assert torch.equal(written["a"]["text_decoder.vision_norm.weight"], qformer["ln_vision.weight"])
    key = "Qformer.bert.encoder.layer.11.output_query.dense.weight"
    assert torch.equal(written["a"]["text_decoder.qformer.encoder.layer.11.output_query.dense.weight"], qformer[key])
    assert all(torch.equal(written["a"][name], written["b"][name]) for name in written["a"])
    differing = {name.split(".")[0] for name in written["a"] if not torch.equal(written["a"][name], written["c"][name])}
    assert differing == {"context_attention", "content_projector"}
    weights = written["a"]["context_attention.key_projector.weight"]
    assert 0.018 < weights.std() < 0.022 and not written["a"]["context_attention.key_projector.bias"].any()


def test_a_clip_tower_keeps_the_layers_below_the_selected_one(tmp_path):
    torch.manual_seed(0)
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=20,
            num_hidden_layers=24,
            num_attention_heads=1,
            image_size=56,
            patch_size=14,
        )
    ).eval()
    clip = {f"vision_model.{name}": value for name, value in theirs.state_dict().items()}
    clip |= {"text_model.final_layer_norm.bias": torch.zeros(3), "logit_scale": torch.ones(())}
    stage1_sources(tmp_path)
    lavis_qformer(tmp_path)
    (tmp_path / "clip").mkdir()
    save_file({name: value.contiguous() for name, value in clip.items()}, tmp_path / "clip" / "model.safetensors")
    options = ("--language", str(tmp_path / "vicuna"), "--tower", str(tmp_path / "clip"))
    assert (
        convert(tmp_path / "out", *options, "--qformer", str(tmp_path / "instruct_blip.pth"), "--dtype", "float32") == 0
    )
    model = load_llama_vid(tmp_path / "out")
    assert len(model.vision_tower.encoder.layers) == 23
    assert model.text_decoder.vision_projector.weight.shape == (public.C, 64)  # CLIP's width to the Q-Former's
    pixels = torch.randn(2, 3, 56, 56)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.encode_frames(pixels), expected, rtol=1e-5, atol=1e-5)


def test_linear_rope_scaling_becomes_rope_parameters_and_a_wider_window(tmp_path):
    values = public.config(rope_scaling={"type": "linear", "factor": 16.0})
    source = public.save_folder(tmp_path / "public", public.whole_model(), values)
    assert convert(tmp_path / "out", "--checkpoint", str(source)) == 0
    model = load_llama_vid(tmp_path / "out")
    text = model.config.text_config
    assert text.rope_parameters == {"rope_type": "linear", "factor": 16.0, "rope_theta": 10000.0}
    assert text.max_position_embeddings == 65536
    head_width = public.H // 4
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2) / head_width) / 16
    rotary = model.language_model.model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, frequencies)


class Calls:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/should-not-exist-longvid"),))


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def resize(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


WRONG = {
    "missing": (
        drop("model.vlm_att_ln.bias", "model.layers.0.mlp.up_proj.weight"),
        {},
        r"2 weights are missing .*vision_norm.bias",
    ),
    "missing layers": (
        lambda t: [t.pop(f"{public.EVA}blocks.{i}.norm1.bias") for i in (3, 4, 5, 9)],
        {},
        r"4 weights are missing .*vision_tower.encoder.layers.\{3..5,9\}.layer_norm1.bias",
    ),
    "half a bias": (
        drop(public.EVA + "blocks.7.attn.q_bias"),
        {},
        r"1 weights are missing.*layers.7.self_attn.qkv.bias",
    ),
    "unexpected": (resize("model.vlm_att_extra.weight", 3), {}, r"1 unexpected keys.*model.vlm_att_extra.weight"),
    "plain llava": (
        lambda t: [t.pop(name) for name in list(t) if "vlm_att" in name],
        {},
        r"no key starts with 'model.vlm_att_'.*plain LLaVA",
    ),
    "shape": (
        resize("model.mm_projector.2.weight", 48, 48),
        {},
        r"'model.mm_projector.2.weight' is \(48, 48\), not \(32, 32\).*5120 wide: 13B",
    ),
    "depth": (lambda t: None, {"num_hidden_layers": 1}, r"9 weights beyond what config.json describes.*layers.1.mlp"),
    "width": (lambda t: None, {"intermediate_size": 41}, r"is \(40, 32\), not \(41, 32\)"),
    "integers": (
        lambda t: t.update({"lm_head.weight": t["lm_head.weight"].int()}),
        {},
        "'lm_head.weight' is torch.int32",
    ),
    "rope": (lambda t: None, {"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling is .*dynamic"),
    "compress": (lambda t: None, {"compress_type": "max"}, "compress_type is 'max'"),
    "no width": (lambda t: None, {"hidden_size": ...}, "config.json lacks hidden_size"),
}


@pytest.mark.parametrize(("change", "values", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(change, values, message, tmp_path, capsys):
    tensors = public.whole_model()
    change(tensors)
    config = {name: value for name, value in public.config(**values).items() if value is not ...}
    source = public.save_folder(tmp_path / "public", tensors, config)
    assert convert(tmp_path / "out", "--checkpoint", str(source)) == 2
    assert re.search(message, error_line(capsys))
    assert [path.name for path in tmp_path.iterdir()] == ["public"]


def test_broken_and_hostile_files_are_refused(tmp_path, capsys):
    source = public.save_folder(tmp_path / "public", public.whole_model(), public.config(), shards=2)
    shard = source / "pytorch_model-00001-of-00002.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert convert(tmp_path / "out", "--checkpoint", str(source)) == 2
    assert "pytorch_model-00001-of-00002.bin" in error_line(capsys)
    shard.write_bytes(pickle.dumps({"a": Calls()}))
    assert convert(tmp_path / "out", "--checkpoint", str(source)) == 2
    assert "a pickle can run code" in error_line(capsys)
    assert not Path("/tmp/should-not-exist-longvid").exists()
    shard.unlink()
    assert convert(tmp_path / "out", "--checkpoint", str(source)) == 2
    assert "lacks the shards pytorch_model-00001-of-00002.bin" in error_line(capsys)


def test_sources_that_are_absent_or_twice_there_are_named(tmp_path, capsys):
    stage1_sources(tmp_path)
    options = stage1_options(tmp_path)
    whole = public.save_folder(tmp_path / "public", public.whole_model(), public.config())
    for given, message in (
        (options[:2], "no language model .*give --language"),
        (options[:4], "no vision tower .*give --tower"),
        (options[2:], "no text decoder: give --checkpoint, or --qformer"),
        (("--checkpoint", str(whole), *options[2:4]), "has its own language model"),
        (("--checkpoint", str(whole), *options[4:]), "has its own vision tower"),
        (("--checkpoint", str(tmp_path / "nowhere")), "nowhere does not exist"),
        (("--checkpoint", str(whole), "--image-size", "60"), "not a multiple"),
    ):
        assert convert(tmp_path / "out", *given) == 2
        assert re.search(message, error_line(capsys)), message
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    source = public.save_folder(tmp_path / "public", public.whole_model(), public.config())
    written = []

    def failing(shard, path, **options):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        save_file(shard, path, **options)

    monkeypatch.setattr("longvid_train.models.llama_vid.conversion.save_file", failing)
    assert convert(tmp_path / "out", "--checkpoint", str(source), "--max-shard-gib", "0.0005") == 1
    assert written and [path.name for path in tmp_path.iterdir()] == ["public"]


def test_no_more_than_a_shard_is_held(tmp_path, monkeypatch):
    source = public.save_folder(tmp_path / "public", public.whole_model(), public.config(), shards=4)
    sizes = []

    def measured(shard, path, **options):
        sizes.append(sum(value.nbytes for value in shard.values()))
        save_file(shard, path, **options)

    monkeypatch.setattr("longvid_train.models.llama_vid.conversion.save_file", measured)
    assert convert(tmp_path / "out", "--checkpoint", str(source), "--max-shard-gib", "0.0005") == 0
    assert max(sizes) <= 0.0005 * 1024**3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sum(sizes) == index["metadata"]["total_size"]


def test_a_tokenizer_with_more_tokens_than_the_weights_is_refused(tmp_path, capsys):
    source = public.save_folder(tmp_path / "public", public.whole_model(), public.config())
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens([f"extra{i}" for i in range(651 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path / "large")
    assert convert(tmp_path / "out", "--checkpoint", str(source), "--prompt-tokenizer", str(tmp_path / "large")) == 2
    assert "prompt tokenizer has 651 tokens but the weights embed 650" in error_line(capsys)


def test_vicunas_sentencepiece_model_gives_its_ids_and_pads_with_unknown(tmp_path):
    source = public.save_folder(tmp_path / "public", public.whole_model(), public.config())
    text = "USER: what is in the video? ASSISTANT: a red square enters."
    SentencePieceTrainer.train(
        sentence_iterator=iter([text]),
        model_prefix=str(source / "tokenizer"),
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False, "unk_token": "<unk>", "bos_token": "<s>"})
    )
    assert (
        main(["convert", "--out", str(tmp_path / "out"), "--checkpoint", str(source), "--prompt-tokenizer", TOKENIZER])
        == 0
    )
    tokenizer = LlamaVidProcessor.from_pretrained(tmp_path / "out").tokenizer
    theirs = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    assert tokenizer(text, add_special_tokens=False).input_ids == theirs.encode(text)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0


def test_names_in_a_line_and_the_public_picture_sizes():
    names = [f"a.{i}.b.{j}" for i in (0, 1, 2, 7) for j in ("x", "y")]
    assert compact([*names, "c", "d.4.e"]) == "a.{0..2,7}.b.x, a.{0..2,7}.b.y, c, d.4.e"
    assert stated_image_size({"image_processor": "./llamavid/processor/clip-patch14-336"}) == 336
    assert stated_image_size({"image_processor": "./my-336"}) is None
