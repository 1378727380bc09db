"""Every scheme against its formula written in numpy float64; attention on the codes against attention on numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.kvcache.clipping import codes_of, least_squares_levels, minmax_levels
from longvid_train.kvcache.packing import unpack
from longvid_train.kvcache.schemes.bias_removed import BiasRemoved
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.kvcache.schemes.full_precision import FullPrecision
from longvid_train.kvcache.schemes.intp import Intp, IntpCodec
from longvid_train.kvcache.schemes.lloyd_max import LloydMax, lloyd_levels
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.schemes.transform_coding import TransformCoding

ROWS, HEADS, TOKENS, DIM = 2, 2, 45, 16

SCHEMES = [
    FullPrecision(),
    Intp(bits=2),
    Intp(bits=3, search="minmax"),
    *(StaticChannel(bits=bits) for bits in (1, 2, 3, 4, 8)),
    StaticChannel(bits=2, search="minmax"),
    BiasRemoved(bits=2),
    BiasRemoved(bits=4, search="minmax"),
    LloydMax(bits=2),
    LloydMax(bits=3, gain=False),
    LloydMax(bits=2, rotary="pre"),
    LloydMax(bits=4, rotary="pre", gain=False),
    TransformCoding(bits=1),
    TransformCoding(bits=2),
    TransformCoding(bits=2, rotary="pre"),
    TransformCoding(bits=3, rotary="pre"),
    DynamicGroups(bits=2, along="tokens", group=32),
    DynamicGroups(bits=3, along="tokens", group=5),
    DynamicGroups(bits=4, along="channels", group=None),
    DynamicGroups(bits=2, along="channels", group=8),
]


def fitted(kv, scheme, *, separate=False):
    """Parameters and codec from one sequence, and other numbers to code."""
    where = kv.places(1, 400, kinds=separate)
    rotation = kv.rotation(DIM)
    parameters = scheme.fit(
        kv.sample(kv.heavy(1, HEADS, 400, DIM, seed=1), where), separate=separate, rotation=rotation
    )
    codec = scheme.codec(parameters, rotation=rotation)
    x = kv.heavy(ROWS, HEADS, TOKENS, DIM, seed=2)
    return parameters, codec, x, kv.places(ROWS, TOKENS, start=3, padding=[0, 5], kinds=separate)


def numpy_levels(coded, bits):
    return unpack(coded["codes"], bits, DIM).double().numpy()


def per_kind(parameter, where, separate):
    """``(K, h, d)`` to ``(B, h, T, d)`` in float64, one token at a time."""
    parameter = parameter.double().numpy()
    rows, tokens = where.positions.shape
    kinds = where.kinds.numpy() if separate else np.zeros((rows, tokens), dtype=int)
    return np.stack([np.stack([parameter[kind] for kind in row], axis=1) for row in kinds])


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
@pytest.mark.parametrize("search", ["minmax", "mse"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_static_channels_are_scale_times_code_plus_offset(kv, bits, search, separate):
    parameters, codec, x, where = fitted(kv, StaticChannel(bits=bits, search=search), separate=separate)
    scale, offset = (per_kind(parameters[name], where, separate) for name in ("scale", "offset"))
    codes = np.clip(np.rint((x.double().numpy() - offset) / scale), 0, 2**bits - 1)
    coded = codec.encode(x, where)
    assert np.array_equal(numpy_levels(coded, bits), codes)
    assert np.allclose(codec.decode(coded, where).numpy(), scale * codes + offset, rtol=1e-6, atol=1e-6)


def test_minmax_covers_the_calibrated_range_to_half_a_step(kv):
    parameters, codec, _, _ = fitted(kv, StaticChannel(bits=3, search="minmax"))
    seen = kv.heavy(1, HEADS, 400, DIM, seed=1)
    where = kv.places(1, 400)
    error = (codec.decode(codec.encode(seen, where), where) - seen).abs()
    assert (error <= parameters["scale"][:, :, None, :] / 2 * (1 + 1e-5)).all()
    assert (error.amax(2) > parameters["scale"] * 0.4).all()


@pytest.mark.parametrize("search", ["minmax", "mse"])
def test_intp_is_equation_3_7(kv, search):
    scheme = Intp(bits=2, search=search)
    parameters, codec, x, where = fitted(kv, scheme)
    scale, zero = float(parameters["scale"]), float(parameters["zero"])
    assert zero == round(zero)
    numbers = x.double().numpy()
    expected = scale * (np.clip(np.rint(numbers / scale) - zero, -2, 1) + zero)
    assert np.allclose(codec.decode(codec.encode(x, where), where).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert len(np.unique(expected)) >= 3


def test_intp_rounds_before_it_subtracts_as_printed():
    """At a tie, round(x/S) - Z and round(x/S - Z) differ for odd Z."""
    codec = IntpCodec(
        bits=2, scale=torch.ones(1, 1, 1), offset=-torch.ones(1, 1, 1), zero=torch.ones(1, 1, 1), head_dim=4
    )
    x = torch.tensor([-0.5, 0.5, 1.5, 2.5]).view(1, 1, 1, 4)
    assert codec.decode(codec.encode(x, None), None).flatten().tolist() == [0.0, 0.0, 2.0, 2.0]


def test_intp_minmax_by_hand(kv):
    """Range -1 to 5 at 2 bits: S = 2, and Z puts the lowest level at round(-1/2) S = 0."""
    x = torch.tensor([-1.0, 5.0, 0.3, 2.2]).view(1, 1, 2, 2)
    parameters = Intp(search="minmax").fit(kv.sample(x, kv.places(1, 2)), separate=False, rotation=None)
    assert float(parameters["scale"]) == 2.0
    assert float(parameters["zero"]) == 2.0
    codec = Intp(search="minmax").codec(parameters, rotation=None)
    assert codec.decode(codec.encode(x, None), None).flatten().tolist() == [0.0, 4.0, 0.0, 2.0]


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
def test_bias_removed_codes_what_the_rotated_mean_leaves(kv, separate):
    parameters, codec, x, where = fitted(kv, BiasRemoved(bits=2), separate=separate)
    mean, scale, offset = (per_kind(parameters[name], where, separate) for name in ("mean", "scale", "offset"))
    bias = kv.rotate(np.broadcast_to(mean, x.shape), where.positions, kv.rotation(DIM).inv_freq)
    codes = np.clip(np.rint((x.double().numpy() - bias - offset) / scale), 0, 3)
    coded = codec.encode(x, where)
    assert (numpy_levels(coded, 2) != codes).mean() < 1e-3
    decoded = bias + scale * numpy_levels(coded, 2) + offset
    assert np.allclose(codec.decode(coded, where).numpy(), decoded, atol=1e-5)


@pytest.mark.parametrize("rotary", ["pre", "post"])
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
def test_lloyd_max_picks_the_nearest_level_and_the_least_squares_gain(kv, rotary, gain, separate):
    parameters, codec, x, where = fitted(kv, LloydMax(bits=2, gain=gain, rotary=rotary), separate=separate)
    mean, deviation, levels = (per_kind(parameters[n], where, separate) for n in ("mean", "deviation", "levels"))
    numbers = x.double().numpy()
    theta = kv.rotation(DIM).inv_freq
    if rotary == "pre":
        numbers = kv.rotate(numbers, -where.positions, theta)
    normal = (numbers - mean) / deviation
    size = np.sqrt((normal**2).mean(-1, keepdims=True)) if gain else 1.0
    codes = np.abs((normal / size)[..., None] - levels[..., None, :]).argmin(-1)
    coded = codec.encode(x, where)
    assert (numpy_levels(coded, 2) != codes).mean() < 1e-3
    chosen = np.take_along_axis(np.broadcast_to(levels, (*codes.shape[:3], 4)), codes, axis=-1)
    factor = (normal * chosen).sum(-1, keepdims=True) / (chosen**2).sum(-1, keepdims=True) if gain else 1.0
    if gain:
        assert np.allclose(coded["gain"].float().numpy(), factor[..., 0], rtol=1e-3)
    decoded = mean + factor * deviation * chosen
    if rotary == "pre":
        decoded = kv.rotate(decoded, where.positions, theta)
    assert np.allclose(codec.decode(coded, where).numpy(), decoded, atol=2e-2 if gain else 1e-5)


def test_lloyd_levels_of_a_normal_distribution_are_those_of_max(kv):
    """Max (1960), Table I: outputs .4528 and 1.510 for 4 levels."""
    grid = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    levels = lloyd_levels(grid, torch.ones_like(grid), 2)
    assert torch.allclose(levels, torch.tensor([-1.510, -0.4528, 0.4528, 1.510], dtype=torch.float64), atol=1e-3)


def test_lloyd_levels_follow_the_weights():
    numbers = torch.cat([torch.full((100,), -3.0), torch.linspace(0, 1, 1000)]).double()
    heavy_tail = torch.where(numbers < 0, 1000.0, 1.0).double()
    assert lloyd_levels(numbers, heavy_tail, 1)[0] == -3.0


@pytest.mark.parametrize("group", [4, 32])
@pytest.mark.parametrize("bits", [2, 4])
def test_groups_along_tokens_span_their_own_extremes(kv, bits, group):
    codec = DynamicGroups(bits=bits, along="tokens", group=group).codec({}, rotation=None)
    x, where = kv.heavy(ROWS, HEADS, TOKENS, DIM), kv.places(ROWS, TOKENS)
    coded = codec.encode(x, where)
    expected = np.empty(x.shape)
    for start in range(0, TOKENS, group):
        piece = x[:, :, start : start + group].double().numpy()
        low = np.float16(piece.min(2, keepdims=True)).astype(np.float64)
        step = np.float16((piece.max(2, keepdims=True) - low) / (2**bits - 1)).astype(np.float64)
        step[step <= 0] = 1.0  # a last group of one token, whose value float16 rounds up
        expected[:, :, start : start + group] = low + step * np.clip(np.rint((piece - low) / step), 0, 2**bits - 1)
    assert np.allclose(codec.decode(coded, where).numpy(), expected, atol=1e-5)
    assert coded["scale"].shape == (ROWS, HEADS, -(-TOKENS // group), DIM)


@pytest.mark.parametrize(("group", "count"), [(4, 4), (None, 1)])
@pytest.mark.parametrize("bits", [2, 4])
def test_groups_along_channels_span_their_own_extremes(kv, bits, group, count):
    codec = DynamicGroups(bits=bits, along="channels", group=group).codec({}, rotation=None)
    x, where = kv.heavy(ROWS, HEADS, TOKENS, DIM), kv.places(ROWS, TOKENS)
    coded = codec.encode(x, where)
    numbers = x.double().numpy().reshape(ROWS, HEADS, TOKENS, count, -1)
    low = np.float16(numbers.min(-1, keepdims=True)).astype(np.float64)
    step = np.float16((numbers.max(-1, keepdims=True) - low) / (2**bits - 1)).astype(np.float64)
    expected = low + step * np.clip(np.rint((numbers - low) / step), 0, 2**bits - 1)
    assert np.allclose(codec.decode(coded, where).numpy(), expected.reshape(x.shape), atol=1e-5)
    assert coded["scale"].shape == (ROWS, HEADS, TOKENS, count)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (StaticChannel(bits=2), 2.0),
        (StaticChannel(bits=3), 3.0),
        (Intp(bits=2), 2.0),
        (BiasRemoved(bits=2), 2.0),
        (LloydMax(bits=2), 2.125),
        (LloydMax(bits=2, gain=False), 2.0),
        (TransformCoding(bits=2), 2.0625),
        (TransformCoding(bits=1, rotary="pre"), 1.0625),
        (DynamicGroups(bits=2, along="tokens", group=32), 3.0),
        (DynamicGroups(bits=2, along="tokens", group=128), 2.25),
        (DynamicGroups(bits=2, along="channels", group=None), 2.25),
        (DynamicGroups(bits=4, along="channels", group=None), 4.25),
        (FullPrecision(), 32.0),
    ],
    ids=str,
)
def test_bits_a_number_counted_from_the_stored_bytes(kv, scheme, expected):
    where, rotation = kv.places(1, 256), kv.rotation(128)
    x = kv.heavy(1, 2, 256, 128)
    codec = scheme.codec(scheme.fit(kv.sample(x, where), separate=False, rotation=rotation), rotation=rotation)
    coded = codec.encode(x, where)
    assert 8 * sum(tensor.nbytes for tensor in coded.values()) / x.numel() == expected


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_scores_and_mixtures_on_codes_are_those_of_the_decoded_numbers(kv, scheme, separate):
    _, codec, x, where = fitted(kv, scheme, separate=separate)
    coded = codec.encode(x, where)
    decoded = codec.decode(coded, where).double()
    query, weights = torch.randn(ROWS, HEADS, 3, DIM), torch.rand(ROWS, HEADS, 3, TOKENS)
    scores = torch.einsum("bhrd,bhtd->bhrt", query.double(), decoded)
    mixed = torch.einsum("bhrt,bhtd->bhrd", weights.double(), decoded)
    assert torch.allclose(codec.scores(query, coded, where).double(), scores, atol=2e-4, rtol=1e-4)
    assert torch.allclose(codec.mix(weights, coded, where).double(), mixed, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_error_shrinks_with_bits_and_codes_of_a_piece_do_not_depend_on_its_neighbours(kv, scheme):
    _, codec, x, where = fitted(kv, scheme)
    cut = scheme.block_tokens if scheme.block_tokens > 1 else 20
    whole = codec.decode(codec.encode(x, where), where)
    parts = [
        codec.decode(codec.encode(x[:, :, start:stop], piece), piece)
        for start, stop in ((0, cut), (cut, TOKENS))
        for piece in [where.slice(start, stop)]
    ]
    assert torch.allclose(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=1e-5)
    spread = (x - x.mean(2, keepdim=True)).square().mean()
    relative = (whole - x).square().mean() / spread
    assert relative < {16: 1e-12, 8: 1e-3, 4: 0.05, 3: 0.5, 2: 2.5, 1: 0.6}[scheme.bits]


@pytest.mark.parametrize(
    "make", [StaticChannel, BiasRemoved, LloydMax, TransformCoding], ids=lambda scheme: scheme.kind
)
def test_separate_parameters_serve_two_kinds_better_than_shared_ones(kv, make):
    where = kv.places(1, 300, kinds=True)
    visual = where.kinds.bool()[:, None, :, None]
    x = torch.where(visual, kv.heavy(1, HEADS, 300, DIM, seed=5) + 8.0, kv.heavy(1, HEADS, 300, DIM, seed=6))
    errors = {}
    for separate in (False, True):
        scheme, rotation = make(bits=2), kv.rotation(DIM)
        codec = scheme.codec(scheme.fit(kv.sample(x, where), separate=separate, rotation=rotation), rotation=rotation)
        errors[separate] = float((codec.decode(codec.encode(x, where), where) - x).square().mean())
    assert errors[True] < 0.6 * errors[False]


def test_searched_levels_beat_the_full_range_where_there_are_outliers(kv):
    x = kv.heavy(1, HEADS, 400, DIM)
    x[:, :, 7] *= 30
    where = kv.places(1, 400)
    errors = []
    for scheme in (StaticChannel(search="minmax"), StaticChannel(search="mse"), Intp(search="minmax"), Intp()):
        codec = scheme.codec(scheme.fit(kv.sample(x, where), separate=False, rotation=None), rotation=None)
        errors.append(float((codec.decode(codec.encode(x, where), where) - x).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[3] < errors[2]
    assert errors[1] < errors[3]


def test_intp_search_weighs_channels_by_the_queries(kv):
    """Queries that look at one channel only make its error the one that counts."""
    x = kv.heavy(1, 1, 400, DIM)
    x[..., 0] = torch.randn(400, generator=torch.Generator().manual_seed(3)) * 0.5
    sample = kv.sample(x, kv.places(1, 400))
    narrow = torch.full((1, DIM), 1e-9, dtype=torch.float64)
    narrow[0, 0] = 1.0
    looking = Intp().fit(type(sample)(**{**vars(sample), "weights": narrow}), separate=False, rotation=None)
    even = Intp().fit(sample, separate=False, rotation=None)
    assert float(looking["scale"]) < 0.4 * float(even["scale"])


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 8]),
    numbers=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40),
)
def test_refinement_never_loses_to_the_full_range(bits, numbers):
    x = torch.tensor(numbers, dtype=torch.float64)[:, None]
    low, high = x.amin(0), x.amax(0)

    def error(levels):
        scale, offset = levels
        return float((codes_of(x, scale, offset, bits) * scale + offset - x).square().sum())

    assert error(least_squares_levels(x, low, high, bits)) <= error(minmax_levels(low, high, bits))


def test_channels_that_never_change_are_exact(kv):
    x = torch.full((1, HEADS, 50, DIM), 3.5)
    where = kv.places(1, 50)
    for scheme in (
        StaticChannel(),
        StaticChannel(search="minmax"),
        LloydMax(),
        TransformCoding(),
        DynamicGroups(along="tokens"),
    ):
        codec = scheme.codec(scheme.fit(kv.sample(x, where), separate=False, rotation=None), rotation=None)
        assert torch.equal(codec.decode(codec.encode(x, where), where), x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StaticChannel(bits=5), "static_channel: bits is 5; use one of 1, 2, 3, 4, 8"),
        (lambda: LloydMax(bits=8), "lloyd_max: bits is 8; at most 4, or use static_channel"),
        (lambda: TransformCoding(bits=4), "transform_coding: bits is 4; at most 3, or use static_channel"),
        (
            lambda: TransformCoding().check_head_dim(20),
            "transform_coding: the head dim 20 is not a multiple of 8; use lloyd_max",
        ),
        (lambda: Intp(search="mes"), "search 'mes' is unknown; did you mean 'mse'? Use one of minmax, mse"),
        (lambda: DynamicGroups(along="tokens", group=None), "a group along tokens needs a length; set group, e.g. 32"),
        (lambda: DynamicGroups(along="tokens", group=1), "group is 1; a group has at least 2 numbers, e.g. 32"),
        (
            lambda: DynamicGroups(along="channels", group=32).check_head_dim(80),
            "the head dim 80 is not a multiple of group 32; use a group that divides it",
        ),
        (
            lambda: DynamicGroups(bits=3, along="channels", group=None).check_head_dim(20),
            "head dim 20 at 3 bits does not fill bytes; use 4 or 8 bits",
        ),
        (
            lambda: LloydMax(rotary="pre").codec(dict.fromkeys(("mean", "deviation", "levels")), rotation=None),
            "lloyd_max: takes the rotary embedding off, and none was given; pass the model's rotation",
        ),
    ],
)
def test_mistakes_name_the_value_and_the_remedy(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)


def test_a_kind_that_calibration_never_saw_is_refused(kv):
    sample = kv.sample(kv.heavy(1, HEADS, 20, DIM), kv.places(1, 20))
    with pytest.raises(UserError, match="layer 0 keys: no visual token in the calibration sample"):
        StaticChannel().fit(sample, separate=True, rotation=None)
