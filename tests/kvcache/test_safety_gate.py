"""The safety gate: what it measures is what a quantized cache does, and its verdict follows the thresholds."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import attending_on_codes, rotation_of
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.calibration import calibrate, observe_row
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.gate import LARGEST_KL, MOST_ANSWER_TOKENS, GateThresholds, RowComparison, compare_row, judge
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.presets import preset
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.kvcache.rows import CalibrationRow
from longvid_train.kvcache.statistics import Statistics

LOOSE = GateThresholds(mean_kl=100, max_kl=1000, top1_agreement=0.0, needle_drop=1.0, rows=1)


def row_of(model, number, *, length=60, answer=(50, 56), kind="needle", seed=3):
    ids = torch.randint(2, 48, (length,), generator=torch.Generator().manual_seed(100 * seed + number))
    return CalibrationRow(
        number=number,
        name=f"row{number}",
        kind=kind,
        embeddings=model.get_input_embeddings()(ids[None]).detach(),
        visual=(torch.arange(length) % 3 == 0)[None],
        input_ids=ids,
        answer=answer,
    )


def small(name, **changes):
    return replace(preset(name), **{"sink_tokens": 2, "recent_tokens": 4, "flush_tokens": 4, **changes})


@pytest.fixture(scope="module")
def model(shared_kv):
    return shared_kv.model(heads=2, kv_heads=1, head_dim=32)


@pytest.fixture(scope="module")
def quantizer_of(model):
    statistics = Statistics(cache_shape(model.config), sample_tokens=128, skip_tokens=2)
    with observing(model, statistics):
        for number in range(4):
            observe_row(model, statistics, row_of(model, number))
    return lambda policy: fit_quantizer(policy, statistics, rotation_of(model))


def compared(number=0, *, kl=(0.0,), agreed=(True,), right=True, kept_right=True, kind="needle", coded_tokens=9):
    return RowComparison(
        number=number,
        name=f"row{number}",
        kind=kind,
        kl=kl,
        agreed=agreed,
        right=right,
        kept_right=kept_right,
        coded_tokens=coded_tokens,
    )


def test_full_precision_differs_from_itself_by_rounding_only(model, quantizer_of):
    found = compare_row(model, quantizer_of(small("full")), row_of(model, 9), prefill_chunk=16)
    assert len(found.kl) == len(found.agreed) == 6
    assert max(found.kl) < 1e-9 and all(found.agreed)
    assert found.right == found.kept_right
    # of the 49 tokens in front of the answer's predictor, whole fours beyond the newest four
    assert found.coded_tokens == 44


@pytest.mark.parametrize(
    ("name", "separate"),
    [("lloyd2", False), ("lloyd2", True), ("static3", False), ("static3", True), ("kivi_g32", False)],
)
def test_the_divergence_is_that_of_a_cache_read_by_hand(model, quantizer_of, name, separate):
    row = row_of(model, 8)
    quantizer = quantizer_of(small(name, separate_visual=separate))
    found = compare_row(model, quantizer, row, prefill_chunk=49)
    ids = row.input_ids[None]
    with torch.no_grad():
        full = model(ids, use_cache=False).logits[0, 49:55].double()
        cache = QuantizedKVCache(quantizer)
        if separate:
            cache.describe(visual=row.visual[:, :49])
        with attending_on_codes(model):
            model(ids[:, :49], past_key_values=cache)
            steps = [model(ids[:, place : place + 1], past_key_values=cache).logits[0, -1] for place in range(49, 55)]
    quantized = torch.stack(steps).double()
    p, q = full.softmax(-1), quantized.softmax(-1)
    expected = [float(sum(a * (a / b).log() for a, b in zip(*pair, strict=True))) for pair in zip(p, q, strict=True)]
    assert found.kl == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert max(found.kl) > 1e-4
    assert list(found.agreed) == (full.argmax(-1) == quantized.argmax(-1)).tolist()
    assert found.right == bool((full.argmax(-1) == row.input_ids[50:56]).all())


def test_a_row_is_right_where_greedy_decoding_gives_its_answer(model, quantizer_of):
    row = row_of(model, 7)
    with torch.no_grad():
        made = model.generate(row.input_ids[None, :50], max_new_tokens=6, do_sample=False)[0]
    embeddings = model.get_input_embeddings()(made[None]).detach()
    told = replace(row, input_ids=made, embeddings=embeddings, visual=row.visual[:, : len(made)])
    assert compare_row(model, quantizer_of(small("static8")), told, prefill_chunk=16).right
    assert not compare_row(model, quantizer_of(small("static8")), row, prefill_chunk=16).right


def test_long_answers_are_compared_up_to_a_limit(model, quantizer_of):
    row = row_of(model, 5, length=150, answer=(20, 150))
    assert len(compare_row(model, quantizer_of(small("static8")), row, prefill_chunk=16).kl) == MOST_ANSWER_TOKENS


def test_fewer_bits_diverge_more_and_what_corrupts_is_refused(model):
    rows = [row_of(model, number) for number in range(6)]
    held_out = [row_of(model, number, seed=4) for number in range(8)]
    found = {
        name: calibrate(model, small(name), rows, held_out, prefill_chunk=64, sample_tokens=128)
        for name in ("static8", "static4", "static2", "intp2_minmax")
    }
    kls = [one.verdict.mean_kl for one in found.values()]
    assert kls == sorted(kls) and kls[0] < 0.1 < kls[1]
    strict, passed = found["intp2_minmax"].verdict, found["static8"].verdict
    assert not strict.passed and strict.reasons[0].startswith("mean_kl is ")
    again = small("intp2_minmax")
    loose = calibrate(model, again, rows, held_out, prefill_chunk=64, sample_tokens=128, thresholds=LOOSE).verdict
    assert loose.passed and strict.mean_kl == loose.mean_kl
    assert strict.positions == 48 and strict.rows == 8
    assert passed.passed and passed.reasons == ()
    assert json.loads(json.dumps(passed.values()))["thresholds"]["mean_kl"] == 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["static4", "bias2", "lloyd2"])
def test_a_gpu_calibrates_like_the_cpu(kv, name):
    model = kv.model(heads=2, kv_heads=1, head_dim=64)
    rows, held_out = ([row_of(model, number, seed=seed) for number in range(8)] for seed in (3, 4))
    on_cpu = calibrate(model, small(name, separate_visual=True), rows, held_out, prefill_chunk=16, sample_tokens=128)
    model.to("cuda")
    rows, held_out = ([replace(row, embeddings=row.embeddings.cuda()) for row in side] for side in (rows, held_out))
    on_gpu = calibrate(model, small(name, separate_visual=True), rows, held_out, prefill_chunk=16, sample_tokens=128)
    assert on_gpu.verdict.mean_kl == pytest.approx(on_cpu.verdict.mean_kl, rel=0.2)
    for ours, theirs in zip(on_gpu.quantizer.errors, on_cpu.quantizer.errors, strict=True):
        assert (ours.keys, ours.values) == pytest.approx((theirs.keys, theirs.values), rel=0.02)


def test_what_is_not_finite_names_sample_and_layer(kv):
    model = kv.model(layers=2)
    statistics = Statistics(cache_shape(model.config), sample_tokens=64, skip_tokens=2)
    row = row_of(model, 3)
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = torch.nan
    message = "calibration sample 'row3': layer 1: values hold NaN or infinity"
    with torch.no_grad(), observing(model, statistics), pytest.raises(UserError, match=message):
        observe_row(model, statistics, row)


def test_logits_of_full_precision_that_are_not_finite_are_no_measure(kv, quantizer_of):
    model = kv.model(heads=2, kv_heads=1, head_dim=32)
    model.lm_head.weight.data[4, 0] = torch.inf
    with pytest.raises(UserError, match="held-out row 'row2': logits of full precision hold NaN or infinity"):
        compare_row(model, quantizer_of(small("static8")), row_of(model, 2), prefill_chunk=64)


def test_a_quantized_side_that_is_not_finite_is_as_far_as_can_be(model, quantizer_of):
    quantizer = quantizer_of(small("static8"))
    broken = quantizer.layers[0].values | {name: x * torch.nan for name, x in quantizer.layers[0].values.items()}
    layers = (replace(quantizer.layers[0], values=broken), *quantizer.layers[1:])
    found = compare_row(model, replace(quantizer, layers=layers), row_of(model, 2), prefill_chunk=64)
    assert set(found.kl) == {LARGEST_KL}
    assert not judge([found], GateThresholds(rows=1)).passed


def test_each_threshold_refuses_alone():
    good = [compared(number) for number in range(8)]
    assert judge(good, GateThresholds()).passed
    one_of_80 = compared(8, kl=(9.0, *(0.0,) * 79), agreed=(False, *(True,) * 79))
    assert judge([*good, one_of_80], GateThresholds(mean_kl=0.2)).passed
    cases = {
        "mean_kl is 0.102 nats, at most 0.1 are allowed": [*good, one_of_80],
        "max_kl is 10.1 nats, at most 10 are allowed": [*good, compared(8, kl=(10.1, *(0.0,) * 199))],
        "top1_agreement is 0.889, at least 0.9 is asked for": [*good, compared(8, agreed=(False,))],
        "needle accuracy falls from 1.000 to 0.800 (2 of 10 answers), more than 5% of it (needle_drop)": [
            *good,
            compared(8, kept_right=False),
            compared(9, kept_right=False),
        ],
    }
    for reason, rows in cases.items():
        verdict = judge(rows, GateThresholds())
        assert (verdict.passed, verdict.reasons) == (False, (reason,))
    worst = judge(cases["max_kl is 10.1 nats, at most 10 are allowed"], GateThresholds())
    assert (worst.worst_row, worst.max_kl) == ("row8", 10.1)


def test_one_needle_alone_does_not_refuse_and_many_rows_hold_the_share():
    assert judge([*(compared(number) for number in range(8)), compared(8, kept_right=False)], GateThresholds()).passed
    for lost, passed in ((4, True), (5, False)):
        rows = [compared(number, kept_right=number >= lost) for number in range(80)]
        assert judge(rows, GateThresholds()).passed is passed


def test_accuracy_is_by_kind_and_unknown_answers_do_not_count():
    rows = [
        compared(0, right=True, kept_right=False),
        compared(1, right=False, kept_right=True),
        compared(2, kind="order", right=True, kept_right=True),
        compared(3, kind="", right=True, kept_right=False),
    ]
    assert judge(rows, LOOSE).accuracy == {
        "all": {"full": 2 / 3, "quantized": 2 / 3, "rows": 3},
        "needle": {"full": 0.5, "quantized": 0.5, "rows": 2},
        "order": {"full": 1.0, "quantized": 1.0, "rows": 1},
    }
    assert judge([compared(0, kind="")], LOOSE).accuracy == {}


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), kls=st.lists(st.floats(0, 20), min_size=6, max_size=6))
def test_the_verdict_does_not_depend_on_who_compared_what(order, kls):
    rows = [compared(number, kl=(kls[number], kls[number] / 3), agreed=(True, False)) for number in range(6)]
    assert judge([rows[number] for number in order], LOOSE).values() == judge(rows, LOOSE).values()


def test_nothing_is_said_without_enough_to_say_it_of():
    with pytest.raises(UserError, match=r"7 held-out rows, and the gate asks for at least 8 \(gate.rows\)"):
        judge([compared(number) for number in range(7)], GateThresholds())
    with pytest.raises(UserError, match="no token of any held-out row was coded"):
        judge([compared(number, coded_tokens=0) for number in range(8)], GateThresholds())


@pytest.mark.parametrize(
    ("name", "value"), [("mean_kl", 0), ("max_kl", -1), ("top1_agreement", 1.5), ("needle_drop", -0.1), ("rows", 0)]
)
def test_thresholds_that_say_nothing_are_refused(name, value):
    with pytest.raises(UserError, match=f"gate.{name} is {value}"):
        GateThresholds(**{name: value})
