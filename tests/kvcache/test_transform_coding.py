"""Transform coding against its formula in numpy float64, and what its directions and shares of bits are good for."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.kvcache.packing import unpack
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.kvcache.schemes.transform_coding import DISTORTION, GRANULE, WIDEST, TransformCoding, shared_out

HEADS, DIM = 2, 32


def correlated(tokens, *, seed):
    """``(1, H, T, D)``: a mean, and four strong directions that are no channels, under weak noise."""
    fixed = torch.Generator().manual_seed(0)
    mean = torch.randn(HEADS, 1, DIM, generator=fixed)
    strong = torch.randn(HEADS, 4, DIM, generator=fixed) * torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None]
    draw = torch.Generator().manual_seed(seed + 1)
    return (
        mean
        + torch.randn(1, HEADS, tokens, 4, generator=draw) @ strong
        + 0.1 * torch.randn(1, HEADS, tokens, DIM, generator=draw)
    )


def fitted(kv, scheme, *, separate=False):
    where, rotation = kv.places(1, 600, kinds=separate), kv.rotation(DIM)
    parameters = scheme.fit(kv.sample(correlated(600, seed=1), where), separate=separate, rotation=rotation)
    return parameters, scheme.codec(parameters, rotation=rotation)


def widths_of(parameters):
    return [int(width) for width in parameters["widths"].flatten().tolist()]


def numpy_code(vector, parameters, kind, head, widths):
    """One vector ``(D,)`` float64: codes, gain code and what they mean, written as the formula says."""
    mean, weight, deviation = (
        parameters[name][kind, head].double().numpy() for name in ("mean", "weight", "deviation")
    )
    directions, levels = (
        parameters["directions"][kind, head].double().numpy(),
        parameters["levels"][kind].double().numpy(),
    )
    normal = ((vector - mean) * weight) @ directions / deviation
    wide = np.array(widths) > 0
    size = np.sqrt((normal[wide] ** 2).mean())
    codes, chosen = np.zeros(DIM, dtype=int), np.zeros(DIM)
    for place, width in enumerate(widths):
        if width:
            own = levels[2**width - 2 : 2 ** (width + 1) - 2]
            codes[place] = np.abs(normal[place] / size - own).argmin()
            chosen[place] = own[codes[place]]
    gain = (deviation**2 * normal * chosen).sum() / (deviation**2 * chosen**2).sum()
    gain_code = int(np.clip(np.rint(16 * np.log2(gain)) + 128, 0, 255))
    meant = mean + 2.0 ** ((gain_code - 128) / 16) * (deviation * chosen) @ directions.T / weight
    return codes, gain_code, meant


@pytest.mark.parametrize("rotary", ["pre", "post"])
@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_codes_and_numbers_are_those_of_the_formula(kv, bits, separate, rotary):
    parameters, codec = fitted(kv, TransformCoding(bits=bits, rotary=rotary), separate=separate)
    x, where = correlated(40, seed=2), kv.places(1, 40, start=5, kinds=separate)
    coded, theta = codec.encode(x, where), kv.rotation(DIM).inv_freq
    found, widths = codec.decode(coded, where).double().numpy(), widths_of(parameters)
    plain = kv.rotate(x.double().numpy(), -where.positions, theta) if rotary == "pre" else x.double().numpy()
    expected, gains = np.empty(x.shape), np.empty((HEADS, 40), dtype=int)
    for head, token in itertools.product(range(HEADS), range(40)):
        kind = int(where.kinds[0, token]) if separate else 0
        codes, gains[head, token], expected[0, head, token] = numpy_code(
            plain[0, head, token], parameters, kind, head, widths
        )
        assert np.array_equal(stored_codes(coded["codes"][0, head, token], widths), codes)
    assert np.array_equal(coded["gain"][0].numpy(), gains)
    if rotary == "pre":
        expected = kv.rotate(expected, where.positions, theta)
    assert np.allclose(found, expected, atol=1e-4)


def stored_codes(packed, widths):
    """Codes of one token, run of equal widths after run."""
    codes, start, place = [], 0, 0
    for width, run in itertools.groupby(widths):
        count = len(list(run))
        stop = start + count * width // 8
        codes += unpack(packed[start:stop], width, count).tolist() if width else [0] * count
        start, place = stop, place + count
    assert start == len(packed) and place == DIM
    return np.array(codes)


def test_directions_are_orthonormal_and_uncorrelated_with_falling_deviations(kv):
    parameters, _ = fitted(kv, TransformCoding())
    directions, deviation = parameters["directions"][0], parameters["deviation"][0]
    assert torch.allclose(directions.transpose(-1, -2) @ directions, torch.eye(DIM).expand(HEADS, -1, -1), atol=1e-5)
    turned = (correlated(600, seed=1)[0] - parameters["mean"][0][:, None]) @ directions / deviation[:, None]
    assert torch.allclose(turned.transpose(-1, -2) @ turned / 600, torch.eye(DIM).expand(HEADS, -1, -1), atol=2e-3)
    assert (deviation[:, :-1] >= deviation[:, 1:]).all()
    strongest = directions.gather(-2, directions.abs().argmax(-2, keepdim=True))
    assert (strongest > 0).all()


def test_correlated_numbers_lose_far_less_than_channel_by_channel(kv):
    where, rotation = kv.places(1, 600), kv.rotation(DIM)
    sample, x = kv.sample(correlated(600, seed=1), where), correlated(100, seed=2)
    lost = {}
    for scheme in (LloydMax(), TransformCoding()):
        codec = scheme.codec(scheme.fit(sample, separate=False, rotation=None), rotation=rotation)
        there = kv.places(1, 100)
        lost[scheme.kind] = float((codec.decode(codec.encode(x, there), there) - x).square().mean())
    assert lost["transform_coding"] < 0.25 * lost["lloyd_max"]


def test_weights_move_the_error_to_where_no_query_looks(kv):
    """Independent channels of equal spread: queries that meet the first half get their scores from most of the bits."""
    scheme, where = TransformCoding(bits=1), kv.places(1, 500)
    x = torch.randn(1, HEADS, 500, DIM, generator=torch.Generator().manual_seed(0))
    sample = kv.sample(x, where)
    looked_at = (torch.arange(DIM) < DIM // 2).double().expand(HEADS, -1) + 1e-4
    sample = type(sample)(**{**vars(sample), "weights": looked_at})
    codec = scheme.codec(scheme.fit(sample, separate=False, rotation=None), rotation=None)
    error = (codec.decode(codec.encode(x, where), where) - x).square().mean((0, 1, 2))
    assert float(error[: DIM // 2].mean()) < 0.3 * float(error[DIM // 2 :].mean())


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3]),
    variances=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=4),
)
def test_no_other_shares_lose_less(bits, variances):
    falling = sorted(variances, reverse=True)
    widths = shared_out(torch.tensor(falling).repeat_interleave(GRANULE), bits)
    assert widths == sorted(widths, reverse=True)
    own = widths[::GRANULE]
    assert widths == [width for width in own for _ in range(GRANULE)] and sum(own) == bits * len(falling)

    def lost(choice):
        return sum(variance * DISTORTION[width] for variance, width in zip(falling, choice, strict=True))

    others = itertools.product(range(WIDEST + 1), repeat=len(falling))
    best = min(lost(choice) for choice in others if sum(choice) == bits * len(falling))
    assert lost(own) == pytest.approx(best, rel=1e-6)


def test_a_gain_is_a_sixteenth_of_an_octave_wide_and_nothing_is_nothing(kv):
    parameters, codec = fitted(kv, TransformCoding())
    where, mean = kv.places(1, 3), parameters["mean"][0][None, :, None]
    away = correlated(1, seed=2) - mean
    x = torch.cat([mean, mean + away, mean + 4 * away], dim=2)
    coded = codec.encode(x, where)
    gain, decoded = coded["gain"][0, 0].tolist(), codec.decode(coded, where)
    assert gain[0] == 0 and gain[2] == gain[1] + 32 and coded["gain"].dtype == torch.uint8
    assert torch.equal(decoded[:, :, :1], mean)
    assert torch.allclose(decoded[:, :, 2:] - mean, 4 * (decoded[:, :, 1:2] - mean), atol=1e-3)


def test_a_token_unlike_the_sample_does_not_blow_up(kv):
    """A sample of two directions only; another token has as much beside them."""
    where = kv.places(1, 200)
    flat = torch.zeros(1, HEADS, 200, DIM)
    flat[..., :2] = torch.randn(1, HEADS, 200, 2, generator=torch.Generator().manual_seed(0))
    scheme = TransformCoding()
    codec = scheme.codec(scheme.fit(kv.sample(flat, where), separate=False, rotation=None), rotation=None)
    token, there = torch.ones(1, HEADS, 1, DIM), kv.places(1, 1)
    decoded = codec.decode(codec.encode(token, there), there)
    assert float((decoded - token).square().sum()) < 1.05 * float(token.square().sum())
