"""Repeated keys are found exactly, in the order a reader meets them, without keeping the keys in memory."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.data import repeats as repeats_room
from longvid_train.data.repeats import Repeat, Repeats
from longvid_train.errors import UserError

keys = st.text(st.characters(codec="utf-8"), max_size=2) | st.sampled_from(["a", "A", "a ", "a\0", "a\0b", "é", ""])


@given(st.lists(keys, max_size=40))
@settings(deadline=None, max_examples=60)
def test_repeats_are_those_of_a_dictionary(added: list[str]) -> None:
    rows: dict[str, list[int]] = {}
    with Repeats() as found:
        for row, key in enumerate(added):
            found.add(key, row)
            rows.setdefault(key, []).append(row)
        expected = {key: tuple(where) for key, where in rows.items() if len(where) > 1}
        assert {repeat.key: repeat.rows for repeat in found.repeats()} == expected
        first = min(((where[1], key) for key, where in expected.items()), default=None)
        assert found.first() == (None if first is None else Repeat(first[1], expected[first[1]]))


def test_repeats_across_batches_and_questions_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats_room, "_BATCH_ROWS", 7)
    with Repeats() as found:
        for row in range(50):
            found.add(f"key {row}", row)
        assert found.first() is None
        found.add("key 3", 50)
        found.add("key 1", 51)
        assert found.first() == Repeat("key 3", (3, 50))
        assert [repeat.rows for repeat in found.repeats()] == [(1, 51), (3, 50)]


def test_a_full_temporary_folder_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats_room, "_BATCH_ROWS", 1)
    with Repeats() as found:
        found._connection.execute("PRAGMA max_page_count = 3")
        with pytest.raises(UserError, match="set TMPDIR"):
            for row in range(10_000):
                found.add(f"a key of some length {row}", row)


def test_the_files_are_gone_when_it_is_closed() -> None:
    with Repeats() as found:
        found.add("a", 1)
    with pytest.raises(sqlite3.ProgrammingError):
        list(found.repeats())


MEASURED = """
import hashlib, sys
from longvid_train.data import repeats
from longvid_train.data.repeats import Repeats
repeats._CACHE_KIB = 256
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
peaks = []
for rows in (20_000, 200_000):
    with Repeats() as found:
        for row in range(rows):
            found.add(hashlib.md5(str(row).encode()).hexdigest(), row)
        found.add(hashlib.md5(b"77").hexdigest(), rows)
        assert found.first().rows == (77, rows)
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counters")
def test_ten_times_the_rows_take_no_more_memory() -> None:
    """180,000 more keys in a dictionary would take some 20 MiB; SQLite's caches were full before."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 10
