"""INTP's Table 1, digit for digit (arXiv 2409.12963), but for the slip in its 32-frame INT2 time."""

import pytest

from longvid_train.cost.intp_table import PRINTED, table_rows

RIGHT = PRINTED | {(32, 2): ("17.4", "18.0", "13.5", "0.5")}
"""The paper's numbers but for its slip."""


def test_the_table_has_the_papers_rows_in_its_order():
    assert [(row.frames, row.kv_bits) for row in table_rows()] == list(PRINTED)


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: f"{row.frames}-{row.kv_bits}")
def test_every_digit(row):
    numbers = tuple(f"{value:.1f}" for value in (row.ops_g, row.decode_ms, row.total_gb, row.kv_gb))
    assert numbers == RIGHT[row.frames, row.kv_bits]
