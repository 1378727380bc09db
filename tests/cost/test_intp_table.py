"""INTP's Table 1, digit for digit (arXiv 2409.12963), but for the slip in its 32-frame INT2 time."""

import pytest

from longvid_train.cost.intp_table import table_rows

# frames, bits: OPs (G), decode (ms), total (GB), KV (GB), as printed
PRINTED = {
    (8, 16): ("14.2", "18.6", "14.0", "1.1"),
    (16, 16): ("15.3", "20.1", "15.1", "2.1"),
    (16, 2): ("15.3", "17.6", "13.2", "0.3"),
    (32, 16): ("17.4", "22.9", "17.2", "4.3"),
    (32, 2): ("17.4", "18.0", "13.5", "0.5"),
    (64, 16): ("21.8", "28.6", "21.5", "8.6"),
    (64, 2): ("21.8", "18.8", "14.0", "1.1"),
    (128, 16): ("30.4", "39.9", "30.1", "17.2"),
    (128, 2): ("30.4", "20.4", "15.1", "2.1"),
}


def test_the_table_has_the_papers_rows_in_its_order():
    assert [(row.frames, row.kv_bits) for row in table_rows()] == list(PRINTED)


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: f"{row.frames}-{row.kv_bits}")
def test_every_digit(row):
    numbers = tuple(f"{value:.1f}" for value in (row.ops_g, row.decode_ms, row.total_gb, row.kv_gb))
    assert numbers == PRINTED[row.frames, row.kv_bits]
