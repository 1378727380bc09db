"""Each method's frequencies against float64 references and against transformers' own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longvid_train.errors import UserError
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.ntk import NtkWindow
from longvid_train.rope.unextended import NoWindow
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.yarn import YarnWindow

EXTENDING = [LinearWindow(), NtkWindow(), YarnWindow(), YarnWindow(ramp="index"), VisualYarnWindow()]
BASES = st.sampled_from([100.0, 10_000.0, 1e6])
DIMS = st.sampled_from([4, 8, 16, 64, 128])


def theta_of(base: float, dim: int) -> torch.Tensor:
    return torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)


def rope_config(base: float, dim: int, window: int, **rope) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=window,
        rope_parameters={"rope_theta": base} | rope,
    )


@given(BASES, DIMS, st.integers(8, 40_000))
def test_a_scale_of_one_is_the_identity(base: float, dim: int, window: int) -> None:
    theta = theta_of(base, dim)
    for method in [*EXTENDING, NoWindow()]:
        assert torch.allclose(method.rescale(theta, 1.0, window), theta, rtol=1e-15, atol=0)
        assert method.attention_scaling(1.0) == 1.0
    assert torch.equal(NoWindow().rescale(theta, 1.0, window), theta)


@given(BASES, DIMS, st.floats(1, 64))
def test_linear_is_transformers_linear(base: float, dim: int, scale: float) -> None:
    found = LinearWindow().rescale(theta_of(base, dim), scale, 128)
    expected, _ = ROPE_INIT_FUNCTIONS["linear"](rope_config(base, dim, 128, rope_type="linear", factor=scale))
    np.testing.assert_allclose(found.numpy(), expected.double().numpy(), rtol=2e-6)


@given(BASES, DIMS, st.floats(1, 64))
def test_ntk_raises_the_base(base: float, dim: int, scale: float) -> None:
    raised = base * scale ** (dim / (dim - 2))
    expected = [raised ** (-2 * i / dim) for i in range(dim // 2)]
    np.testing.assert_allclose(NtkWindow().rescale(theta_of(base, dim), scale, 77).numpy(), expected, rtol=1e-12)


@given(BASES, DIMS, st.integers(1, 16))
def test_ntk_is_transformers_dynamic_at_the_end_of_its_window(base: float, dim: int, scale: int) -> None:
    """``dynamic`` with factor 1 at length ``s L`` raises the base by ``s^(d/(d-2))``: there the two meet."""
    config = rope_config(base, dim, 128, rope_type="dynamic", factor=1.0)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=128 * scale)
    found = NtkWindow().rescale(theta_of(base, dim), float(scale), 128)
    np.testing.assert_allclose(found.numpy(), expected.double().numpy(), rtol=5e-6)


def test_ntk_keeps_the_fastest_and_divides_the_slowest() -> None:
    theta = theta_of(1e4, 128)
    ratio = NtkWindow().rescale(theta, 4.0, 4096) / theta
    assert ratio[0] == 1 and abs(float(ratio[-1]) - 0.25) < 1e-12 and bool((ratio[:-1] > ratio[1:]).all())


@given(BASES, DIMS, st.integers(8, 40_000), st.floats(1, 64), st.floats(0.1, 4), st.floats(0.1, 60))
def test_yarn_on_the_paper_s_ramp(base: float, dim: int, window: int, scale: float, alpha: float, width: float) -> None:
    method = YarnWindow(alpha=alpha, beta=alpha + width)
    expected = []
    for i in range(dim // 2):
        one = base ** (-2 * i / dim)
        turns = window / (2 * math.pi / one)
        gamma = min(1.0, max(0.0, (turns - alpha) / width))
        expected.append((gamma + (1 - gamma) / scale) * one)
    np.testing.assert_allclose(method.rescale(theta_of(base, dim), scale, window).numpy(), expected, rtol=1e-12)
    visual = VisualYarnWindow(alpha=alpha, beta=alpha + width)
    assert torch.equal(
        visual.rescale(theta_of(base, dim), scale, window), method.rescale(theta_of(base, dim), scale, window)
    )


@given(BASES, DIMS, st.integers(8, 40_000), st.floats(1.01, 64), st.floats(0.1, 4), st.floats(0.5, 60), st.booleans())
def test_yarn_on_the_index_ramp_is_transformers_yarn(
    base: float, dim: int, window: int, scale: float, alpha: float, width: float, truncate: bool
) -> None:
    method = YarnWindow(ramp="index", alpha=alpha, beta=alpha + width, truncate=truncate, temperature=True)
    config = rope_config(
        base,
        dim,
        window,
        rope_type="yarn",
        factor=scale,
        beta_slow=alpha,
        beta_fast=alpha + width,
        truncate=truncate,
        original_max_position_embeddings=window,
    )
    expected, temperature = ROPE_INIT_FUNCTIONS["yarn"](config)
    found = method.rescale(theta_of(base, dim), scale, window)
    np.testing.assert_allclose(found.numpy(), expected.double().numpy(), rtol=2e-5)
    assert method.attention_scaling(scale) == pytest.approx(temperature, rel=1e-12)


def test_the_two_ramps_differ_as_computed_for_one_vision() -> None:
    theta, window = theta_of(1e6, 128), 6272
    paper, index = VisualYarnWindow(), YarnWindow(ramp="index", measure="visual")
    assert float(paper.gamma(theta, window).sum()) == pytest.approx(20.6, abs=0.05)
    assert float(index.gamma(theta, window).sum()) == pytest.approx(24.0, abs=0.05)
    ratio = index.rescale(theta, 8.0, window) / paper.rescale(theta, 8.0, window)
    assert float(ratio.max()) == pytest.approx(2.17, abs=0.005)


def test_every_frequency_lies_between_interpolated_and_kept() -> None:
    theta = theta_of(1e6, 128)
    for method in EXTENDING:
        found = method.rescale(theta, 8.0, 6272)
        assert bool((found <= theta).all()) and bool((found >= theta / 8 * (1 - 1e-12)).all())


@pytest.mark.parametrize("ramp", ["paper", "index"])
def test_bounds_in_shares_mean_the_same_at_every_window(ramp) -> None:
    method = YarnWindow(ramp=ramp, bounds="share", alpha=0.2, beta=0.8)
    theta = theta_of(1e4, 16)
    small, large = method.gamma(theta, 32), method.gamma(theta, 32_768)
    assert torch.allclose(small, large)
    assert small[0] == 1 and small[-1] == 0
    fastest = 32 / (2 * math.pi)
    in_turns = YarnWindow(ramp=ramp, alpha=0.2 * fastest, beta=0.8 * fastest)
    assert torch.allclose(in_turns.gamma(theta, 32), small)


def test_a_ramp_that_degenerates_is_told() -> None:
    theta = theta_of(1e4, 16)
    (note,) = YarnWindow().notes(theta, 4.0, 32)
    assert "no frequency is kept: the fastest makes 5.09 turns in the training window of 32 tokens" in note
    assert "keeps a share of 0.13" in note and "beta below 5.09" in note and "'share'" in note
    linear = LinearWindow().rescale(theta, 4.0, 32)
    assert float((YarnWindow().rescale(theta, 4.0, 32) / linear - 1).abs().max()) < 0.4
    assert YarnWindow(bounds="share", alpha=0.2, beta=0.8).notes(theta, 4.0, 32) == []
    assert YarnWindow(beta=4.0).notes(theta, 4.0, 32) == []
    assert YarnWindow().notes(theta, 1.0, 32) == []
    (note,) = YarnWindow(alpha=0.001, beta=0.002).notes(theta_of(10.0, 16), 4.0, 32)
    assert "no frequency is interpolated" in note
    assert torch.equal(YarnWindow(alpha=0.001, beta=0.002).rescale(theta_of(10.0, 16), 4.0, 32), theta_of(10.0, 16))


def test_the_temperature_is_yarn_s() -> None:
    for method in (LinearWindow, NtkWindow, YarnWindow, VisualYarnWindow):
        assert method(temperature=True).attention_scaling(8.0) == 0.1 * math.log(8) + 1
        assert method().attention_scaling(8.0) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearWindow(scale=0.5), "scale is 0.5, which makes a window below the training window; use 1"),
        (lambda: LinearWindow(scale=math.nan), "scale is nan"),
        (lambda: LinearWindow(scale=math.inf), "scale is inf"),
        (lambda: LinearWindow(scale=2.0, target_tokens=9), "scale 2 and target_tokens 9 both fix the window"),
        (lambda: LinearWindow(trained_tokens=0), "trained_tokens is 0"),
        (lambda: NtkWindow(measure="visal"), "measure 'visal' is unknown; did you mean 'visual'"),
        (lambda: NtkWindow(checkpoint_scaling="add"), "checkpoint_scaling 'add' is unknown"),
        (lambda: YarnWindow(ramp="indx"), "ramp 'indx' is unknown; did you mean 'index'"),
        (lambda: YarnWindow(bounds="turn"), "bounds 'turn' is unknown; did you mean 'turns'"),
        (lambda: YarnWindow(alpha=4.0, beta=4.0), "alpha is 4 and beta 4"),
        (lambda: YarnWindow(alpha=0.0), "alpha is 0"),
        (lambda: YarnWindow(bounds="share", alpha=0.2, beta=2.0), "beta is 2, but with bounds 'share'"),
        (lambda: YarnWindow(truncate=False), "truncate has no effect on ramp 'paper'"),
        (lambda: VisualYarnWindow(measure="language"), "'visual_yarn' measures visual tokens.*use the window 'yarn'"),
        (lambda: NoWindow(scale=2.0), "scale has no effect on the window 'none'"),
        (lambda: NoWindow(temperature=True), "temperature has no effect on the window 'none'"),
        (lambda: NtkWindow().rescale(theta_of(1e4, 2), 2.0, 8), "'ntk' needs at least 2 rotary frequencies"),
        (lambda: YarnWindow(ramp="index").rescale(theta_of(1e4, 2), 2.0, 8), "ramp 'index' needs at least 2"),
        (
            lambda: YarnWindow(ramp="index").rescale(torch.tensor([1.0, 0.5, 0.1]).double(), 2.0, 8),
            "scales them one by one; use ramp 'paper'",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
