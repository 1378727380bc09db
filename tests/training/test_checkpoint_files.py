"""Checkpoint files without a run: whole or absent, never replaced, ordered by a clock no copy can turn; traces."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.strategies import SingleDeviceStrategy

from longvid_train.errors import UserError
from longvid_train.training import checkpoint_io
from longvid_train.training.checkpoint_io import (
    CheckpointWriteError,
    damage,
    in_progress,
    publish,
    remove_in_progress,
    tensor_bytes,
    write_checkpoint,
)
from longvid_train.training.last_checkpoint import ORIGIN_KEY, by_age, check_whole, newest_whole
from longvid_train.training.nan_guard import NonFiniteError, check_finite_state
from longvid_train.training.optimizer import OptimizerConfig, build_adamw, cosine_schedule, follow_config
from longvid_train.training.randomness import seed_micro_batch
from longvid_train.training.stop_signal import StopRequestedError, how_to_continue
from longvid_train.training.trace import differences, digest, read_trace


def content(step: int, start: int = 1) -> dict[str, Any]:
    return {"state_dict": {"a": torch.full((1000,), float(step))}, "global_step": step, ORIGIN_KEY: {"start": start}}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_published_file_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "a.ckpt"
    write_checkpoint(content(1), target)
    before = target.read_bytes()
    with pytest.raises(FileExistsError):
        write_checkpoint(content(2), target)
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["a.ckpt"]


def test_publishing_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", refused)
    first, second = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    write_checkpoint(content(1), first)
    publish(first, second)
    assert second.read_bytes() == first.read_bytes()
    with pytest.raises(FileExistsError):
        publish(first, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


def test_no_room_is_found_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 3999, 3999))
    with pytest.raises(CheckpointWriteError, match=r"needs 0\.00 MB and the disk has 0\.00 MB left; make room"):
        write_checkpoint(content(1), tmp_path / "a.ckpt")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 4000, 4000))
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    assert tensor_bytes([content(1), (torch.zeros(3, dtype=torch.int16),)]) == 4006


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    write_checkpoint(content(1), tmp_path / "a.ckpt")
    monkeypatch.setattr(checkpoint_io.os, "fsync", failing)
    with pytest.raises(CheckpointWriteError, match=r"b\.ckpt: cannot write the checkpoint .*--ckpt_path last"):
        write_checkpoint(content(2), tmp_path / "b.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_a_kill_left_in_progress_is_not_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    left = in_progress(tmp_path / "b.ckpt")
    shutil.copy(tmp_path / "a.ckpt", left)
    readable, unreadable = by_age(tmp_path)
    assert ([age.path.name for age in readable], unreadable) == (["a.ckpt"], [])
    assert remove_in_progress(tmp_path) == [left]
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@given(st.data())
def test_every_flipped_bit_and_every_cut_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bits")
    path = folder / "a.ckpt"
    write_checkpoint(content(1), path)
    whole = path.read_bytes()
    assert damage(path) is None
    start = whole.index(torch.full((1000,), 1.0).numpy().tobytes())
    at, bit = data.draw(st.integers(start, start + 3999)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    assert damage(path) is not None
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 23))])
    assert damage(path) is not None


def test_the_newest_is_of_the_last_start_whatever_the_dates_say(tmp_path: Path) -> None:
    """A run continued from step 3 goes on from its own step 5, not from the step 9 it left behind."""
    for name, step, start in (("a", 9, 1), ("b", 3, 1), ("c", 4, 2), ("d", 5, 2)):
        write_checkpoint(content(step, start), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1e9 - step, 1e9 - step))
    notes: list[str] = []
    assert newest_whole(tmp_path, notes.append).name == "d.ckpt"
    assert notes == []
    whole = (tmp_path / "d.ckpt").read_bytes()
    place = whole.index(torch.full((1000,), 5.0).numpy().tobytes())
    (tmp_path / "d.ckpt").write_bytes(whole[:place] + b"x" + whole[place + 1 :])
    (tmp_path / "e.ckpt").write_bytes(whole[:500])
    assert newest_whole(tmp_path, notes.append).name == "c.ckpt"
    assert [note.split(" is damaged")[0] for note in notes] == [str(tmp_path / "e.ckpt"), str(tmp_path / "d.ckpt")]
    assert all(note.endswith("falling back to c.ckpt of step 4") for note in notes)
    with pytest.raises(UserError, match=r"--ckpt_path .*d\.ckpt: the file is damaged"):
        check_whole(tmp_path / "d.ckpt")
    for name in "abc":
        (tmp_path / f"{name}.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint is whole"):
        newest_whole(tmp_path, notes.append)


def test_random_numbers_are_those_of_seed_rank_and_micro_batch() -> None:
    def drawn(*key: int) -> tuple[float, float, float]:
        seed_micro_batch(*key)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    keys = [(7, 0, 5), (8, 0, 5), (7, 1, 5), (7, 0, 6)]
    first = [drawn(*key) for key in keys]
    assert [drawn(*key) for key in keys] == first
    for column in zip(*first, strict=True):
        assert len(set(column)) == len(keys)


def test_a_moment_that_is_not_finite_is_named(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()

    class Trainer:
        optimizers = (optimizer,)
        strategy = SingleDeviceStrategy("cpu")
        global_step = 4
        checkpoint_callback = None
        default_root_dir = str(tmp_path)

    check_finite_state(Trainer(), net)
    optimizer.state[net.bias]["exp_avg_sq"][0] = torch.inf
    with pytest.raises(NonFiniteError, match="optimiser state exp_avg_sq of bias is not finite after step 4"):
        check_finite_state(Trainer(), net)


def test_a_restored_optimizer_follows_the_config() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))

    def built(**settings: Any) -> tuple[Any, Any, OptimizerConfig]:
        config = OptimizerConfig(**settings)
        optimizer = build_adamw(net, config)
        return optimizer, cosine_schedule(optimizer, warmup_ratio=0.0, total_steps=4), config

    old, schedule, config = built(lr=1.0, weight_decay=0.1)
    old.step()
    schedule.step()
    assert follow_config(old, schedule, config) == []
    new, continued, wanted = built(lr=0.5, weight_decay=0.2)
    new.load_state_dict(old.state_dict())
    continued.load_state_dict(schedule.state_dict())
    assert new.param_groups[0]["lr"] == old.param_groups[0]["lr"]
    changes = follow_config(new, continued, wanted)
    assert changes == [
        "continuing with optimizer lr 0.5 instead of 1.0",
        "continuing with optimizer weight_decay 0.2 instead of 0.1",
    ]
    assert [group["weight_decay"] for group in new.param_groups] == [0.2, 0.0]
    assert new.param_groups[0]["lr"] == pytest.approx(0.5 * old.param_groups[0]["lr"])
    new.step()
    continued.step()
    assert new.param_groups[1]["lr"] == pytest.approx(0.25)


def test_traces_differ_where_runs_do(tmp_path: Path) -> None:
    lines = [{"micro_batch": number, "parameters": str(number)} for number in range(3)]
    assert differences(lines, [lines[0], lines[1], lines[1], lines[2]]) == []
    assert differences(lines, [lines[0], {**lines[1], "parameters": "x"}, *lines[1:]]) == [
        "micro-batch 1: parameters differs"
    ]
    assert differences(lines, lines[:2]) == ["micro-batch 2: missing"]
    assert differences(lines[:2], lines) == ["micro-batch 2: not in the whole run"]
    trace = tmp_path / "trace.jsonl"
    assert read_trace(trace) == []
    trace.write_text('{"a": 1}\n{"a"{"a": 2}\n{"a": 3}\n{"a":')
    assert read_trace(trace) == [{"a": 1}, {"a": 3}]


def test_a_digest_is_exact_to_the_bit() -> None:
    value = {"a": torch.tensor([1.0, -0.0]), "b": [np.arange(3), "text", None]}
    same = {"b": [np.arange(3), "text", None], "a": torch.tensor([1.0, -0.0])}
    assert digest(value) == digest(same)
    changed = [
        {**value, "a": torch.tensor([1.0, 0.0])},
        {**value, "a": torch.tensor([1.0, -0.0], dtype=torch.float64)},
        {**value, "a": torch.tensor([[1.0, -0.0]])},
        {**value, "b": [np.arange(3), "text", 0]},
    ]
    assert len({digest(one) for one in [value, *changed]}) == 5
    assert digest(torch.tensor([1.0], dtype=torch.bfloat16)) != digest(torch.tensor([2.0], dtype=torch.bfloat16))


def test_a_stopped_run_says_how_to_continue(tmp_path: Path) -> None:
    stop = StopRequestedError(12)
    words = ["longvid", "fit", "--ckpt_path", "old.ckpt", "--run_dir", "a b"]
    assert how_to_continue(stop, words) == (
        "stopped by SIGTERM after step 12; nothing to continue from; start again with: longvid fit --run_dir 'a b'"
    )
    stop.checkpoint = tmp_path / "last-step=12.ckpt"
    assert how_to_continue(stop, ["longvid", "fit", "--ckpt_path=x", "--run_dir", "r"]) == (
        f"stopped by SIGTERM after step 12; continue from {stop.checkpoint} with: "
        "longvid fit --run_dir r --ckpt_path last"
    )
