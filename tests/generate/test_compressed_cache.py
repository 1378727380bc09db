"""Answers from a compressed KV cache: of any model, under any window, in batches, chunks and beams."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import longvid_train
from longvid_train.adaptation.cache import CacheChoice
from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.backbone_datamodule import BackboneDataModule
from longvid_train.errors import UserError
from longvid_train.generate.answer import Answer
from longvid_train.generate.chat import Conversation, FramesRequest, VideoChat
from longvid_train.generate.engine import EngineOptions
from longvid_train.generate.loading import read_prompting
from longvid_train.generate.media import ReadOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.kvcache.attention import ATTENTION_NAME
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.codec import TEXT, VISUAL
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.schemes.bias_removed import BiasRemoved
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.models.adapter import WEIGHTS_FILE
from longvid_train.models.backbones import load
from longvid_train.models.backbones.adapted import BackboneAdapter, read_any_adapter
from longvid_train.models.identity import model_identity
from longvid_train.rope.scale import TokenCounts
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import save_tiny_checkpoint
from tests.generate.tiny_quantizer import fitted, save

ASSETS = Path(longvid_train.__file__).parent / "assets"
BACKBONES = ("onevision", "next_video", "video_llava", "joint", "interleave", "next_image")
MODELS = (*BACKBONES, "llama_vid")
WINDOWS = {
    "none": "",
    "ntk": "window: {kind: ntk, measure: visual, trained_tokens: 20}",
    "yarn": "window: {kind: visual_yarn, trained_tokens: 20, bounds: share, alpha: 0.2, beta: 0.8}",
    "fixed": "window: {kind: linear, measure: visual, trained_tokens: 20, scale: 40}",
}
SMALL = EngineOptions(prefill_chunk=7)
QUESTIONS = ["What is it?", "And which of them comes after that one?", "Who?"]
NEW = 6
LAYERS = 2
EXACT = "cache: {preset: full, recent_tokens: 3}"
GROUPS = "cache: {preset: kivi_g32, sink_tokens: 2, recent_tokens: 5}"
PLANS = {"interleave": "plan: {kind: uniform, stride: 2}", "next_image": "plan: {kind: uniform, stride: 3}"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models whose heads have 32 channels, as many as a group of KIVI's."""
    base = tmp_path_factory.mktemp("compressed")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return {
        **{name: save_tiny_backbone(base / name, name, **sizes) for name in BACKBONES},
        "llama_vid": save_tiny_checkpoint(base / "llama_vid"),
    }


def load_chat(folder: Path, *settings: str, engine: EngineOptions = SMALL) -> VideoChat:
    adaptation = parse_adaptation("\n".join(settings), where="test")
    return VideoChat.load(folder, adaptation=adaptation, device="cpu", dtype="float32", engine=engine)


def about(chat: VideoChat, frames: int = 8, seed: int = 0) -> Conversation:
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8)
    return chat.open([FramesRequest(pictures)], read=ReadOptions(isolated=False))


def asked(chat: VideoChat, **options: Any) -> tuple[list[Answer], torch.Tensor]:
    """Answers to `QUESTIONS` in one batch, and the logits of every step, ``(steps, rows, vocabulary)``."""
    talk, seen = about(chat), []
    hook = chat.model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[-1][:, -1].clone()))
    forks = [talk.fork() for _ in QUESTIONS]
    drawn = GenerationOptions(max_new_tokens=NEW, extra={"min_new_tokens": NEW}, **options)
    answers = chat.ask_batch(forks, QUESTIONS, drawn)
    hook.remove()
    return answers, torch.stack(seen)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        *((name, "yarn") for name in MODELS),
        *((name, window) for name in ("onevision", "llama_vid") for window in ("none", "ntk", "fixed")),
    ],
)
def test_codes_of_full_precision_change_no_logit(folders: dict[str, Path], name: str, window: str) -> None:
    """A left-padded batch in chunks: all keys and values go through pages, which hold them whole."""
    plan = PLANS.get(name, "")
    plain, wanted = asked(load_chat(folders[name], plan, WINDOWS[window]))
    chat = load_chat(folders[name], plan, WINDOWS[window], EXACT)
    coded, logits = asked(chat)
    assert logits.shape[:2] == (NEW, len(QUESTIONS)) and float(wanted[:, 0].std()) > 0.1
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
    assert all(one.cache is None for one in plain)
    assert all(one.cache.bits_per_number == 32 and one.cache.coded_bytes > 0 for one in coded)
    assert chat.model.get_decoder().config._attn_implementation != ATTENTION_NAME


@pytest.mark.parametrize("name", ["onevision", "llama_vid"])
def test_beams_and_draws_are_those_of_full_precision(folders: dict[str, Path], name: str) -> None:
    whole = EngineOptions(prefill_chunk=4096)
    for options in ({"num_beams": 3}, {"temperature": 0.7, "seed": 5}):
        plain, wanted = asked(load_chat(folders[name], WINDOWS["yarn"], engine=whole), **options)
        coded, logits = asked(load_chat(folders[name], WINDOWS["yarn"], EXACT, engine=whole), **options)
        assert [one.answer for one in coded] == [one.answer for one in plain]
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


STATIC = CachePolicy(
    keys=BiasRemoved(bits=8),
    values=StaticChannel(bits=8, search="minmax"),
    sink_tokens=2,
    recent_tokens=5,
    flush_tokens=4,
)


def calibrated(folder: Path, source: Path, *settings: str, policy: CachePolicy = STATIC) -> Path:
    """``folder``, with a quantizer that was calibrated under these settings."""
    first = load_chat(source, *settings)
    save(folder, source, first, fitted(first, [about(first)], QUESTIONS[:2], policy, new_tokens=NEW))
    return folder


def bound(folder: Path, source: Path, *settings: str, policy: CachePolicy = STATIC) -> VideoChat:
    """A chat with a quantizer that was calibrated under the same settings and saved to ``folder``."""
    saved = calibrated(folder, source, *settings, policy=policy)
    return load_chat(source, *settings, f"cache: {{quantizer: {saved}}}")


@pytest.fixture(scope="module")
def quantizers(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the OneVision, by the window they were calibrated under; tests read them only."""
    base = tmp_path_factory.mktemp("quantizers")
    return {window: calibrated(base / window, folders["onevision"], WINDOWS[window]) for window in ("none", "fixed")}


@pytest.mark.parametrize("name", ["onevision", "llama_vid"])
def test_a_saved_quantizer_answers_under_its_window(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """8 bits stay near full precision, 2 bits do not: the parameters are used, and they are those of this window."""
    _, wanted = asked(load_chat(folders[name], WINDOWS["fixed"]))
    coarse = replace(STATIC, keys=BiasRemoved(bits=2), values=StaticChannel(bits=2))
    distances = []
    for number, policy in enumerate((STATIC, coarse)):
        chat = bound(tmp_path / str(number), folders[name], WINDOWS["fixed"], policy=policy)
        answers, logits = asked(chat)
        assert answers[0].cache is not None and answers[0].cache.name == str(tmp_path / str(number))
        assert answers[0].cache.bits_per_number == policy.keys.bits
        distances.append(float((logits[0] - wanted[0]).norm() / wanted[0].norm()))
    assert 0 < distances[0] < 0.05 and distances[1] > 3 * distances[0]


def test_visual_tokens_are_told_to_a_quantizer_that_tells_them_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    apart = replace(STATIC, separate_visual=True)
    chat = bound(tmp_path / "q", folders["onevision"], WINDOWS["fixed"], policy=apart)
    caches: list[QuantizedKVCache] = []
    new_cache = chat.engine.new_cache
    chat.engine.new_cache = lambda: caches.append(new_cache()) or caches[-1]  # type: ignore[method-assign]
    talk = about(chat)
    encoded = [chat.prompting.encode(talk.with_question(question), talk.layouts) for question in QUESTIONS]
    asked(chat)
    (cache,) = caches
    longest = max(len(one.input_ids) for one in encoded)
    kinds = cache.layers[0]._kinds
    assert kinds.shape == (3, longest + NEW - 1)
    for row, one in enumerate(encoded):
        told = torch.where(one.input_ids == chat.prompting.processor.visual_token_id, VISUAL, TEXT)
        start = longest - len(told)
        assert torch.equal(kinds[row, start:longest].long(), told.long())
        assert not kinds[row, :start].any() and not kinds[row, longest:].any()


def test_a_window_that_follows_the_input_fits_inputs_of_the_calibrations_scale(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    chat = bound(tmp_path / "q", folders["onevision"], WINDOWS["yarn"])
    about(chat, seed=1).ask(QUESTIONS[2], GenerationOptions(max_new_tokens=2))
    with pytest.raises(UserError) as caught:
        about(chat, frames=9).ask(QUESTIONS[0], GenerationOptions(max_new_tokens=2))
    said = str(caught.value)
    assert f"cache: {tmp_path / 'q'} was calibrated under window {{'kind': 'visual_yarn'" in said
    assert "this input has {'kind': 'visual_yarn'" in said and "at s = 7.2 (inverse frequency" in said
    assert "fix the window's scale or target_tokens and calibrate under it" in said and "\n" not in said


OTHERS = {
    "window: {kind: linear, measure: visual, trained_tokens: 20, scale: 41}": "scale': 41.0} at s = 41 (inverse frequ",
    "window: {kind: none, extrapolate: true}": "this input has {'kind': 'none', 'extrapolate': True} (inverse freq",
}


@pytest.mark.parametrize("settings", OTHERS)
def test_another_window_is_refused_before_anything_is_read(
    folders: dict[str, Path], quantizers: dict[str, Path], settings: str
) -> None:
    source = folders["onevision"]
    text = f"{settings}\ncache: {{quantizer: {quantizers['fixed']}}}"
    prompting = read_prompting(source, adaptation=parse_adaptation(text, where="test"))
    counts = TokenCounts(visual=128, total=160)
    with pytest.raises(UserError, match=re.escape(OTHERS[settings])):
        prompting.check_cache(prompting.skeleton(), counts)
    chat = load_chat(source, text)
    talk = about(chat)
    with pytest.raises(UserError, match=re.escape(OTHERS[settings])):
        talk.ask(QUESTIONS[0], GenerationOptions(max_new_tokens=2))
    assert talk.turns == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "plan: {kind: uniform, stride: 3}",
            "calibrated under plan UniformPlan(stride=None), the adaptation has Unifo",
        ),
        ("grouping: rearranged", "was calibrated under grouping consecutive, the adaptation has rearranged; calibrate"),
    ],
)
def test_another_adaptation_is_refused_without_weights(
    folders: dict[str, Path],
    quantizers: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    message: str,
) -> None:
    monkeypatch.setattr(load, "load_whole", None)
    with pytest.raises(UserError, match=re.escape(message)):
        load_chat(folders["onevision"], settings, f"cache: {{quantizer: {quantizers['none']}}}")


def test_another_model_or_a_missing_quantizer_is_refused_without_weights(
    folders: dict[str, Path], quantizers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same architecture with other weights is another model."""
    twin = shutil.copytree(folders["onevision"], tmp_path / "twin")
    weights = load_file(twin / "model.safetensors")
    name = next(name for name in weights if name.endswith("k_proj.weight"))
    weights[name][0, 0] += 1.0
    save_file(weights, twin / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(load, "load_whole", None)
    here = f"cache: {{quantizer: {quantizers['none']}}}"
    with pytest.raises(UserError, match=rf"was calibrated for {folders['onevision']} \(config .* is {twin} \(config"):
        load_chat(twin, here)
    with pytest.raises(UserError, match=r"cache: /nowhere/q is no folder; write one with `longvid calibrate --out"):
        load_chat(twin, "cache: {quantizer: /nowhere/q}")
    with pytest.raises(UserError, match=r"kv_quant_config.json cannot be read"):
        load_chat(twin, f"cache: {{quantizer: {twin}}}")


def test_identity_is_of_the_weights_and_of_the_adapter_in_them(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["onevision"]
    moved = shutil.copytree(source, tmp_path / "moved")
    base = model_identity(source)
    assert model_identity(moved).config_hash == base.config_hash != model_identity(folders["joint"]).config_hash
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / WEIGHTS_FILE).write_bytes(bytes([number]))
    tuned = [model_identity(source, adapter=tmp_path / str(number)) for number in range(2)]
    assert len({one.config_hash for one in (base, *tuned)}) == 3
    assert tuned[0].model_id == f"{source} with {tmp_path / '0'}"


def test_groups_that_do_not_fit_the_heads_are_refused_before_weights_load(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_whole", None)
    with pytest.raises(UserError, match="the head dim 8 is not a multiple of group 32; use a group that divides it"):
        load_chat(folders["llama_vid"], "cache: {preset: kivi_g32}")


def test_an_adapters_adaptation_may_get_a_cache_and_nothing_else() -> None:
    adapter = read_any_adapter(ASSETS / "nano_onevision_lora")
    assert isinstance(adapter, BackboneAdapter) and adapter.adaptation.cache is None
    source = adapter.base_folder(ASSETS / "nano_onevision")
    choice = CacheChoice(preset="kivi_g32")
    prompting = read_prompting(source, adapter=adapter, adaptation=replace(adapter.adaptation, cache=choice))
    assert prompting.compression is not None and prompting.compression.name == "kivi_g32"
    assert prompting.adaptation.window == adapter.adaptation.window
    with pytest.raises(UserError, match=r"is not the adaptation that .* was trained under"):
        read_prompting(source, adapter=adapter, adaptation=Adaptation(cache=choice))
    assert read_prompting(source, adapter=adapter).compression is None


def test_training_under_an_adaptation_with_a_cache_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("cache: {preset: kivi_g32}")
    with pytest.raises(UserError, match=r"a.yaml: training keeps no KV cache, so cache has no effect; leave it out"):
        BackboneDataModule(str(folders["onevision"]), adaptation=str(tmp_path / "a.yaml"))


def test_dynamic_groups_answer_under_a_window_that_follows_the_input(folders: dict[str, Path]) -> None:
    chat = load_chat(folders["onevision"], WINDOWS["yarn"], GROUPS)
    for frames in (5, 8):
        answer = about(chat, frames).ask(QUESTIONS[0], GenerationOptions(max_new_tokens=2))
        assert answer.cache is not None and answer.cache.bits_per_number == 3.0
        kept = answer.prompt_tokens + 1
        coded = (kept - 5) // 32 * 32
        assert answer.cache.coded_bytes == coded * 2 * 32 * LAYERS * 3 / 8
