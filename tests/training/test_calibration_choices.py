"""What a calibration decides before it runs: its rows, its scheme, and what it goes on from."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.statistics import Statistics
from longvid_train.training.calibration.cache_settings import CacheSettings
from longvid_train.training.calibration.parts import WHOLE, consolidate, observed_samples, save_part
from longvid_train.training.calibration.passes import last_answer
from longvid_train.training.calibration.run_folder import begin
from longvid_train.training.calibration.selection import first_rows, split_rows

SHAPE = CacheShape(layers=2, heads=2, head_dim=4)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_no_medium_is_on_both_sides_and_the_share_is_kept(keys: list[str], share: float, seed: int) -> None:
    chosen = split_rows(keys, held_out_share=share, seed=seed)
    assert sorted((*chosen.calibration, *chosen.held_out)) == list(range(len(keys)))
    assert not {keys[row] for row in chosen.calibration} & {keys[row] for row in chosen.held_out}
    largest = max(keys.count(key) for key in keys)
    assert share * len(keys) <= len(chosen.held_out) < share * len(keys) + largest


def test_the_seed_chooses_and_nothing_else() -> None:
    keys = [f"video{number // 3}" for number in range(60)]
    first = split_rows(keys, held_out_share=0.25, seed=0)
    assert first == split_rows([f"/moved/{key}" for key in keys], held_out_share=0.25, seed=0)
    assert first != split_rows(keys, held_out_share=0.25, seed=1)
    assert first.held_out != tuple(range(15)), "not the first rows"


def test_fewer_rows_are_a_part_of_more() -> None:
    rows = range(100, 160)
    ten, twenty = (first_rows(rows, most, seed=3) for most in (10, 20))
    assert len(ten) == 10 and set(ten) < set(twenty) < set(rows)
    assert list(ten) == sorted(ten) and ten != first_rows(rows, 10, seed=4)
    assert first_rows(rows, None, seed=3) == tuple(rows)


def statistics(numbers: list[int]) -> Statistics:
    made = Statistics(SHAPE, sample_tokens=64, skip_tokens=2)
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        made.begin([number], torch.ones(1, 20))
        for layer in range(SHAPE.layers):
            made.observe(layer, *(torch.randn(1, heads, 20, 4, generator=generator) for heads in (4, 2, 2)))
    return made


def same(first: Statistics, second: Statistics) -> bool:
    own, others = first.state(), second.state()
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


def test_parts_of_any_number_of_processes_become_one_whole(tmp_path: Path) -> None:
    save_part(tmp_path, 0, statistics([0, 2, 4]))
    save_part(tmp_path, 1, statistics([1, 3]))
    assert same(consolidate(tmp_path, statistics([])), statistics([0, 1, 2, 3, 4]))
    assert [path.name for path in tmp_path.iterdir()] == [WHOLE]
    save_part(tmp_path, 0, statistics([7]))
    save_part(tmp_path, 0, statistics([7, 5]))
    assert same(consolidate(tmp_path, statistics([])), statistics([0, 1, 2, 3, 4, 5, 7]))
    assert observed_samples(tmp_path) == {0, 1, 2, 3, 4, 5, 7}


def test_a_kill_between_the_whole_and_its_parts_counts_nothing_twice(tmp_path: Path) -> None:
    for rank, numbers in enumerate(([0, 2], [1, 3])):
        save_part(tmp_path, rank, statistics(numbers))
    consolidate(tmp_path, statistics([]))
    save_part(tmp_path, 1, statistics([1, 3]))
    assert same(consolidate(tmp_path, statistics([])), statistics([0, 1, 2, 3]))
    assert [path.name for path in tmp_path.iterdir()] == [WHOLE]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-0.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"part-0\.safetensors cannot be read .*delete its folder"):
        consolidate(tmp_path, statistics([]))


def test_an_empty_calibration_has_a_whole_of_no_rows(tmp_path: Path) -> None:
    consolidate(tmp_path, statistics([]))
    assert observed_samples(tmp_path) == set()


def test_another_calibration_does_not_go_on_from_this_one(tmp_path: Path) -> None:
    begin(tmp_path / "run", {"seed": 0, "rows": [1, 2]})
    begin(tmp_path / "run", {"seed": 0, "rows": [1, 2]})
    with pytest.raises(UserError, match=r"holds statistics of another calibration: seed was 0 and is now 1; name"):
        begin(tmp_path / "run", {"seed": 1, "rows": [1, 2]})
    with pytest.raises(UserError, match=r"dtype was null and is now .float32.; name"):
        begin(tmp_path / "run", {"seed": 0, "rows": [1, 2], "dtype": "float32"})


def test_an_out_that_cannot_be_written_is_named_before_weights_load(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/out\.calibration cannot be written \(.+\); name another --out"):
        begin(tmp_path / "file" / "out.calibration", {"seed": 0})


def test_a_preset_and_what_to_change_of_it() -> None:
    assert CacheSettings(preset="static2").policy() == PRESETS["static2"]
    changed = CacheSettings(preset="bias2", recent_tokens=0, protected_layers=[0, -1], separate_visual=True).policy()
    assert changed == replace(PRESETS["bias2"], recent_tokens=0, protected_layers=(0, -1), separate_visual=True)
    schemes = CacheSettings(
        keys={"kind": "lloyd_max", "bits": 3, "rotary": "pre"}, values={"kind": "static_channel"}, sink_tokens=2
    )
    assert schemes.policy() == CachePolicy(keys=LloydMax(bits=3, rotary="pre"), values=StaticChannel(), sink_tokens=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "cache has neither a preset nor schemes; give cache.preset"),
        ({"preset": "static2", "keys": {"kind": "intp"}}, "cache has both a preset and schemes"),
        ({"preset": "statik2"}, "cache policy 'statik2' is unknown; did you mean 'static2'?"),
        ({"keys": {"bits": 2}}, "cache.keys: kind None is no scheme"),
        ({"values": {"kind": "loyd_max"}}, "cache.values: kind 'loyd_max' is no scheme; did you mean 'lloyd_max'?"),
        ({"keys": {"kind": "intp", "bit": 2}}, "cache.keys: 'bit' is unknown; did you mean 'bits'?"),
        ({"preset": "static2", "recent_tokens": -1}, "recent_tokens is -1; it must be at least 0"),
    ],
)
def test_a_scheme_that_cannot_be_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        CacheSettings(**given).policy()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([-100, -100, 5, 6], (2, 4)),
        ([-100, 5, -100, 6, 7, -100, -100], (3, 5)),
        ([-100, 5, 6, -100], (1, 3)),
    ],
)
def test_the_last_answer_is_the_last_run_of_supervised_tokens(labels: list[int], expected: tuple[int, int]) -> None:
    assert last_answer(torch.tensor(labels)) == expected
