"""Installing a window: the exact frequencies in, the model back bit for bit, caches guarded, checkpoints composed."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache

from longvid_train.errors import UserError
from longvid_train.rope.export import save_extended
from longvid_train.rope.extension import Extension, extended, installed, prepare
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.ntk import NtkWindow
from longvid_train.rope.rotary import find_rotary
from longvid_train.rope.unextended import NoWindow
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.window import Window
from longvid_train.rope.yarn import YarnWindow

VISUAL = 64  # visual tokens on a visual window of 16: s = 4
SCALED = [
    LinearWindow(scale=4.0),
    NtkWindow(scale=4.0),
    YarnWindow(scale=4.0, beta=6.0),
    YarnWindow(scale=4.0, beta=6.0, ramp="index", temperature=True),
    VisualYarnWindow(beta=2.0),
]
names = pytest.mark.parametrize("window", SCALED, ids=lambda window: f"{window.kind}-{getattr(window, 'ramp', '')}")


def bits(model):
    """Everything a window may touch, to the bit."""
    rotary = model.model.rotary_emb
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    buffers = {name: (id(buffer), buffer.dtype, buffer.clone()) for name, buffer in model.named_buffers()}
    return buffers, rotary.attention_scaling, rotary.rope_type, set(vars(rotary)), hooks, set(model.state_dict())


def assert_same(before, after):
    for (name, (identity, dtype, value)), (other, (other_identity, other_dtype, other_value)) in zip(
        before[0].items(), after[0].items(), strict=True
    ):
        assert (name, identity, dtype) == (other, other_identity, other_dtype)
        assert torch.equal(value, other_value)
    assert before[1:] == after[1:]


@pytest.fixture
def extend(reference):
    """`extended` at 64 visual tokens of 72 unless told otherwise."""

    def enter(model, window: Window, visual=VISUAL, total=None, cache=None):
        return extended(model, window, counts=reference.counts(visual, total), trained=reference.trained, cache=cache)

    return enter


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_the_model_computes_with_the_extended_frequencies(reference, extend, family: str) -> None:
    """Against a float64 reference, and against the model built by transformers with that scaling."""
    model = reference.model(family, base=1e6)
    with extend(model, VisualYarnWindow(beta=2.0)) as extension:
        found = model.model.rotary_emb.inv_freq
        assert found.dtype == torch.float32 and extension.scale == 4.0
        np.testing.assert_allclose(found.double(), reference.paper_yarn(1e6, 16, 16, 4.0, beta=2.0), rtol=3e-7)
    linear = reference.model(family, base=1e6, rope_type="linear", factor=4.0)
    with extend(model, LinearWindow(scale=4.0)), torch.no_grad():
        ours = model(reference.ids()).logits
    torch.testing.assert_close(ours, linear(reference.ids()).logits, rtol=1e-5, atol=1e-5)
    yarn = reference.model(
        family, base=1e6, rope_type="yarn", factor=4.0, beta_fast=6.0, original_max_position_embeddings=64
    )
    with extend(model, YarnWindow(scale=4.0, beta=6.0, ramp="index", temperature=True)), torch.no_grad():
        ours = model(reference.ids()).logits
    torch.testing.assert_close(ours, yarn(reference.ids()).logits, rtol=1e-5, atol=1e-5)


@names
def test_the_model_comes_back_bit_for_bit(reference, extend, window: Window) -> None:
    model = reference.model()
    before, logits = bits(model), model(reference.ids()).logits
    with extend(model, window):
        assert not torch.equal(model(reference.ids()).logits, logits)
        assert set(model.state_dict()) == before[-1]
    assert_same(before, bits(model))
    assert torch.equal(model(reference.ids()).logits, logits)


@names
def test_the_model_comes_back_when_the_body_raises(reference, extend, window: Window) -> None:
    model = reference.model().half()
    before = bits(model)
    with pytest.raises(ZeroDivisionError), extend(model, window):
        model(reference.ids())
        raise ZeroDivisionError
    assert_same(before, bits(model))
    with pytest.raises(IndexError), extend(model, window):
        model(torch.tensor([[1000]]))
    assert_same(before, bits(model))


@pytest.mark.parametrize("window", [*SCALED, NoWindow()], ids=lambda window: window.kind)
def test_nothing_changes_where_the_tokens_fit(reference, extend, window: Window) -> None:
    model = reference.model(rope_type="linear", factor=2.5)
    logits = model(reference.ids()).logits
    settings = {name: value for name, value in vars(window).items() if name != "scale"}
    with extend(model, type(window)(**settings), visual=16) as extension:
        assert extension.scale == 1.0 and extension.factors is None
        assert torch.equal(model.model.rotary_emb.inv_freq, find_rotary(model).inv_freq)
        assert torch.equal(model(reference.ids()).logits, logits)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.half().float()])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "before"])
def test_frequencies_stay_exact_whatever_the_model_s_dtype(reference, extend, cast, inside: bool) -> None:
    window, model = VisualYarnWindow(beta=2.0), reference.model(base=1e6)
    with extend(model, window) as extension:
        exact = extension.inv_freq
    if not inside:
        cast(model)
        assert not torch.equal(model.model.rotary_emb.inv_freq.float(), find_rotary(model).inv_freq)
    with extend(model, window):
        cast(model)
        model(reference.ids())
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    with extend(model, NoWindow(), visual=8):
        model(reference.ids())
        assert torch.equal(model.model.rotary_emb.inv_freq, find_rotary(reference.model(base=1e6)).inv_freq)


def test_a_linear_checkpoint_is_composed_or_replaced(reference, extend) -> None:
    """LLaVA-NeXT-Video's later revisions carry linear x2.5."""
    model = reference.model(rope_type="linear", factor=2.5)
    with extend(model, VisualYarnWindow(beta=2.0)) as extension:
        expected = reference.paper_yarn(1e4, 16, 16, 4.0, beta=2.0, divisor=2.5)
        np.testing.assert_allclose(extension.inv_freq.double(), expected, rtol=4e-7)
        assert "linear x2.5" in extension.description[1] and "composed" in extension.description[1]
        assert extension.description[0] == "visual_yarn: 64 visual tokens on a window of 16, s = 4"
    replacing = VisualYarnWindow(beta=2.0, checkpoint_scaling="replace")
    with extend(model, replacing) as extension:
        np.testing.assert_allclose(
            extension.inv_freq.double(), reference.paper_yarn(1e4, 16, 16, 4.0, beta=2.0), rtol=4e-7
        )
        assert "linear x2.5" in extension.description[1] and "replaced" in extension.description[1]
    with extend(model, NoWindow(checkpoint_scaling="replace"), visual=8):
        assert torch.equal(model.model.rotary_emb.inv_freq, find_rotary(reference.model()).inv_freq)
    with extend(model, VisualYarnWindow(), visual=8) as extension:
        assert "kept as it is" in extension.description[1]
    with extend(model, YarnWindow(scale=4.0, beta=6.0, ramp="index")) as extension:
        plain = reference.model(rope_type="yarn", factor=4.0, beta_fast=6.0, original_max_position_embeddings=64)
        assert (extension.inv_freq * 2.5 <= find_rotary(plain).inv_freq * 2.5).all()


def test_a_yarn_checkpoint_keeps_its_temperature(reference, extend) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = reference.model(**yarn)
    own = 0.1 * math.log(4) + 1
    with extend(model, LinearWindow(scale=2.0)) as extension:
        assert extension.attention_scaling == pytest.approx(own)
        assert torch.allclose(extension.inv_freq, find_rotary(model).inv_freq / 2, rtol=3e-7)
    with extend(model, LinearWindow(scale=2.0, temperature=True)) as extension:
        assert model.model.rotary_emb.attention_scaling == pytest.approx(own * (0.1 * math.log(2) + 1))
    with extend(model, LinearWindow(scale=2.0, checkpoint_scaling="replace")) as extension:
        assert extension.attention_scaling == 1.0
    with pytest.raises(UserError, match="scales them one by one"), extend(model, YarnWindow(ramp="index", scale=2.0)):
        pass


def test_a_checkpoint_whose_frequencies_move_is_replaced_or_refused(reference, extend) -> None:
    model = reference.model(rope_type="dynamic", factor=2.0, window=16)
    with pytest.raises(UserError, match=r"rope_type 'dynamic' changes.*checkpoint_scaling to 'replace'"):
        extend(model, LinearWindow(scale=2.0)).__enter__()
    with extend(model, LinearWindow(scale=4.0, checkpoint_scaling="replace")):
        model(reference.ids(24))
        expected = find_rotary(reference.model()).inv_freq / 4
        assert torch.allclose(model.model.rotary_emb.inv_freq, expected, rtol=3e-7)
    assert model.model.rotary_emb.rope_type == "dynamic"
    logits = model(reference.ids(24)).logits
    with extend(model, NoWindow(), visual=8):
        assert torch.equal(model(reference.ids(24)).logits, logits)


@torch.no_grad()
def test_a_cache_is_refused_under_another_window(reference, extend) -> None:
    model, other, window = reference.model(), LinearWindow(scale=2.0), LinearWindow(scale=4.0)
    with extend(model, window) as extension:
        filled = model(reference.ids(8), use_cache=True).past_key_values
        model(reference.ids(2), past_key_values=filled)  # goes on under its own window
    assert filled.get_seq_length() == 10
    with pytest.raises(UserError, match="the cache holds 10 keys that were rotated under another window"):
        extend(model, other, cache=filled).__enter__()
    with extend(model, other), pytest.raises(UserError, match="holds 10 keys"):
        model(reference.ids(2), past_key_values=filled)
    with extend(model, other), pytest.raises(UserError, match="holds 10 keys"):
        model(reference.ids(2), past_key_values=copy.deepcopy(filled))
    with extend(model, NoWindow(), visual=8), pytest.raises(UserError, match="holds 10 keys"):
        model(reference.ids(2), past_key_values=filled)
    assert filled.get_seq_length() == 10
    with installed(model, extension, cache=filled):  # and again, later
        model(reference.ids(2), past_key_values=filled)
    filled.crop(-filled.get_seq_length())
    with extend(model, other, cache=filled):  # an empty cache may change its window
        model(reference.ids(2), past_key_values=filled)


@torch.no_grad()
def test_a_cache_of_the_plain_model_is_refused_too(reference, extend) -> None:
    model = reference.model()
    plain = model(reference.ids(8), use_cache=True).past_key_values
    with pytest.raises(UserError, match="holds 8 keys"):
        extend(model, LinearWindow(scale=4.0), cache=plain).__enter__()
    with extend(model, LinearWindow(scale=1.0), visual=8, cache=plain):  # the same frequencies
        model(reference.ids(2), past_key_values=plain)
    with extend(model, LinearWindow(scale=4.0)):
        empty = DynamicCache(config=model.config)
        model(reference.ids(8), past_key_values=empty)
    with extend(model, LinearWindow(scale=2.0)), pytest.raises(UserError, match="holds 8 keys"):
        model(reference.ids(2), past_key_values=empty)


@torch.no_grad()
def test_a_cache_is_known_even_if_the_model_failed_while_filling_it(reference, extend) -> None:
    model, cache = reference.model(), DynamicCache()
    failing = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), extend(model, LinearWindow(scale=4.0)):
        model(reference.ids(8), past_key_values=cache)
    failing.remove()
    assert cache.get_seq_length() == 8
    with pytest.raises(UserError, match="holds 8 keys"), extend(model, LinearWindow(scale=2.0)):
        model(reference.ids(2), past_key_values=cache)


def test_lora_trains_under_the_extension(reference, tmp_path) -> None:
    """The gradients of an adapter are those on the exported model, which transformers runs without this package."""
    adapters = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    counts, window = reference.counts(64), VisualYarnWindow(beta=2.0)
    plain = reference.model()
    save_extended(plain, tmp_path, prepare(plain, window, counts=counts, trained=reference.trained))
    gradients = []
    for base in (plain, AutoModelForCausalLM.from_pretrained(tmp_path)):
        torch.manual_seed(1)
        model = get_peft_model(base, adapters)
        context = extended(model, window, counts=counts, trained=reference.trained) if base is plain else nullcontext()
        with context:
            model(reference.ids(40), labels=reference.ids(40)).loss.backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert len(gradients[0]) == 8 and all("lora" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=0)


def test_cached_steps_equal_one_pass(reference, extend) -> None:
    model = reference.model()
    with extend(model, VisualYarnWindow(beta=2.0)), torch.no_grad():
        whole = model(reference.ids(12)).logits
        cache = DynamicCache(config=model.config)
        steps = [model(reference.ids(12)[:, i : i + 1], past_key_values=cache).logits for i in range(12)]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)
        greedy = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        cached, plain = (model.generate(reference.ids(8), use_cache=use, **greedy) for use in (True, False))
    assert cached.shape == (1, 14) and torch.equal(cached, plain)


def test_windows_do_not_nest(reference, extend) -> None:
    model = reference.model()
    with extend(model, LinearWindow(scale=4.0)) as outer:
        with pytest.raises(UserError, match="another window is installed on this model"):
            extend(model, LinearWindow(scale=2.0)).__enter__()
        assert torch.equal(model.model.rotary_emb.inv_freq, outer.inv_freq)
    counts = reference.counts(VISUAL)
    with extend(model, LinearWindow(scale=4.0)):
        ready = prepare(model, LinearWindow(scale=2.0), counts=counts, trained=reference.trained)
    assert torch.allclose(ready.inv_freq, find_rotary(model).inv_freq / 2, rtol=3e-7)


def test_prepare_changes_nothing_and_is_reusable(reference) -> None:
    model = reference.model()
    before = bits(model)
    extension = prepare(model, NtkWindow(), counts=reference.counts(VISUAL, 256), trained=reference.trained)
    assert isinstance(extension, Extension) and extension.scale == 4.0
    assert_same(before, bits(model))
    for _ in range(2):
        with installed(model, extension):
            assert torch.equal(model.model.rotary_emb.inv_freq, extension.inv_freq)
        assert_same(before, bits(model))


def test_what_the_user_is_told(reference, extend) -> None:
    model = reference.model()
    with extend(model, VisualYarnWindow(temperature=True)) as extension:
        assert extension.description[0] == (
            "visual_yarn: 64 visual tokens on a window of 16, s = 4, attention temperature 1.139"
        )
        assert "no frequency is kept" in extension.description[1]
    with extend(model, NoWindow(extrapolate=True), visual=200) as extension:
        assert extension.description == ("none: 208 tokens on a window of 64, extrapolated",)
    with extend(model, YarnWindow(), visual=8) as extension:
        assert extension.description == ("yarn: 16 tokens on a window of 64, s = 1, nothing is extended",)


def test_models_that_cannot_be_extended(reference, extend) -> None:
    with pytest.raises(UserError, match="Linear has 0 rotary embeddings"):
        extend(torch.nn.Linear(2, 2), LinearWindow(scale=2.0)).__enter__()
    two = torch.nn.ModuleList([reference.model(), reference.model()])
    with pytest.raises(UserError, match=r"has 2 rotary embeddings with frequencies: 0.model.rotary_emb, 1.model"):
        extend(two, LinearWindow(scale=2.0)).__enter__()
    changed = reference.model()
    changed.model.rotary_emb.inv_freq = changed.model.rotary_emb.inv_freq / 2
    with pytest.raises(UserError, match="do not follow from its config"):
        extend(changed, LinearWindow(scale=2.0)).__enter__()
    with pytest.raises(UserError, match="are over the window of 256"):
        extend(reference.model(), LinearWindow(scale=4.0), visual=300).__enter__()
