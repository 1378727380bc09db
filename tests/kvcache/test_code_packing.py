"""Codes in bytes: exact both ways, and in the documented order of bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.kvcache.packing import BIT_WIDTHS, pack, packed_bytes, unpack

rows_of_codes = st.sampled_from(BIT_WIDTHS).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        st.integers(1, 40).flatmap(
            lambda width: st.lists(
                st.lists(st.integers(0, 2**bits - 1), min_size=width, max_size=width), min_size=1, max_size=4
            )
        ),
    )
)


@settings(max_examples=50, deadline=None)
@given(rows_of_codes)
def test_unpack_is_the_inverse_of_pack(case):
    bits, rows = case
    codes = torch.tensor(rows, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(rows), packed_bytes(len(rows[0]), bits))
    assert torch.equal(unpack(packed, bits, len(rows[0])), codes)


@settings(max_examples=50, deadline=None)
@given(rows_of_codes)
def test_code_i_takes_bits_i_b_of_a_little_endian_row(case):
    bits, rows = case
    packed = pack(torch.tensor(rows, dtype=torch.uint8), bits)
    for row, stored in zip(rows, packed.tolist(), strict=True):
        number = sum(code << (place * bits) for place, code in enumerate(row))
        assert int.from_bytes(bytes(stored), "little") == number


@pytest.mark.parametrize(("bits", "expected"), [(1, 16), (2, 32), (3, 48), (4, 64), (8, 128)])
def test_a_head_of_128_takes_exactly_its_bits(bits, expected):
    assert packed_bytes(128, bits) == expected
    assert pack(torch.zeros(2, 3, 128, dtype=torch.uint8), bits).nbytes == 2 * 3 * expected


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_tokens_are_packed_one_by_one(bits):
    codes = torch.randint(0, 2**bits, (2, 3, 7, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    whole = pack(codes, bits)
    parts = torch.cat([pack(codes[:, :, :4], bits), pack(codes[:, :, 4:], bits)], dim=2)
    assert torch.equal(whole, parts)
