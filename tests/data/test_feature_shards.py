"""The feature format: what is written is read back by the frame, bit for bit, and nothing else is believed."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.data import DataLoader

from longvid_train.data.features.index import INDEX_FILE, merge_index, read_index
from longvid_train.data.features.reader import FeatureReader
from longvid_train.data.features.settings import (
    DTYPES,
    FeatureSettings,
    StorageOptions,
    clip_key,
    describe_sampling,
    times_sha256,
)
from longvid_train.data.features.shards import Clip, OpenShard, read_header, shard_paths
from longvid_train.data.features.writer import FeatureWriter, stored_frames
from longvid_train.errors import UserError
from longvid_train.video import FramesPerSecond, UniformFrames

SETTINGS = FeatureSettings(
    tower="a" * 64,
    preprocessing={"image_size": 224, "image_mean": [0.5, 0.5, 0.5], "reader": "auto"},
    sampling=describe_sampling(FramesPerSecond(fps=1.0)),
    dtype="float32",
    patches="all",
    precision="32-true",
)
quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_clip(number: int, frames: int, of: FeatureSettings = SETTINGS) -> tuple[Clip, tuple[float, ...]]:
    """A clip of frames at 0, 1/3, 2/3 ... seconds."""
    times_s = tuple(frame / 3 for frame in range(frames))
    file, digest = f"{number:064x}", times_sha256(times_s)
    clip = Clip(clip_key(of, file, of.sampling, digest), f"/videos/{number}.mp4", file, of.sampling, frames, digest)
    return clip, times_s


def make_features(number: int, frames: int, tokens: int = 5, width: int = 3) -> torch.Tensor:
    return torch.randn(frames, tokens, width, generator=torch.Generator().manual_seed(number))


def write_clips(
    folder: Path, clips: dict[int, int], *, of: FeatureSettings = SETTINGS, piece: int = 3, **how: Any
) -> None:
    """Write ``{number: frames}`` in pieces."""
    writer = FeatureWriter(folder, of, how.pop("writer", "1of1-0of1"), **how)
    for number, frames in clips.items():
        clip, times_s = make_clip(number, frames, of)
        for first in range(0, frames, piece):
            writer.add(
                clip, first, times_s[first : first + piece], make_features(number, frames)[first : first + piece]
            )
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of three clips in several shards, merged."""
    write_clips(tmp_path / "cache", {1: 7, 2: 1, 3: 10}, shard_bytes=400)
    merge_index(tmp_path / "cache")
    assert len(shard_paths(tmp_path / "cache")) >= 3
    return tmp_path / "cache"


@quick
@given(
    clips=st.dictionaries(st.integers(0, 99), st.integers(1, 12), min_size=1, max_size=4),
    piece=st.integers(1, 5),
    shard_bytes=st.integers(1, 2000),
    dtype=st.sampled_from(list(DTYPES)),
    data=st.data(),
)
def test_any_frames_come_back_as_stored(
    tmp_path_factory: pytest.TempPathFactory,
    clips: dict[int, int],
    piece: int,
    shard_bytes: int,
    dtype: Any,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    of = replace(SETTINGS, dtype=dtype)
    write_clips(folder, clips, of=of, piece=piece, shard_bytes=shard_bytes)
    merge_index(folder)
    index = read_index(folder)
    assert index.settings == of
    assert index.frame_count == sum(clips.values())
    reader = FeatureReader(folder)
    for number, frames in clips.items():
        clip, times_s = make_clip(number, frames, of)
        entry = index.entries[clip.key]
        assert entry.clip == clip
        assert reader.times_s(entry) == times_s
        numbers = data.draw(st.lists(st.integers(0, frames - 1), min_size=1, max_size=8))
        assert torch.equal(reader.frames(entry, numbers), make_features(number, frames).to(DTYPES[dtype])[numbers])


@pytest.mark.parametrize(
    "changed",
    [
        replace(SETTINGS, tower="b" * 64),
        replace(SETTINGS, preprocessing={**SETTINGS.preprocessing, "image_size": 336}),
        replace(SETTINGS, preprocessing={**SETTINGS.preprocessing, "shortest_edge": 90}),
        replace(SETTINGS, sampling=describe_sampling(FramesPerSecond(fps=2.0))),
        replace(SETTINGS, dtype="float16"),
        replace(SETTINGS, patches="grid:4"),
        replace(SETTINGS, precision="bf16-mixed"),
        replace(SETTINGS, version=2),
    ],
)
def test_every_setting_is_part_of_the_key_and_is_named_when_it_differs(
    changed: FeatureSettings, tmp_path: Path
) -> None:
    key = clip_key(SETTINGS, "f", "s", "t")
    assert clip_key(changed, "f", "s", "t") != key
    ((name, here, there),) = SETTINGS.differences(changed)
    assert here != there
    write_clips(tmp_path, {1: 2})
    with pytest.raises(UserError, match="the features were made with") as caught:
        stored_frames(tmp_path, changed)
    for word in (f"{name} = {here}", there):
        assert word in str(caught.value)


def test_file_window_and_exact_times_are_part_of_the_key() -> None:
    keys = {
        clip_key(SETTINGS, *parts) for parts in (("f", "s", "t"), ("g", "s", "t"), ("f", "r", "t"), ("f", "s", "u"))
    }
    assert len(keys) == 4
    assert clip_key(replace(SETTINGS), "f", "s", "t") in keys
    assert times_sha256([0.0, 1 / 3]) != times_sha256([0.0, 0.3333333])
    whole, part = FramesPerSecond(fps=1.0), FramesPerSecond(fps=1.0, end_s=5.0)
    assert len({describe_sampling(one) for one in (whole, part, UniformFrames(count=1), None)}) == 4


@quick
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_an_error_that_names_the_shard(folder: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(shard_paths(folder)))
    whole = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
    try:
        with pytest.raises(UserError, match="damaged") as caught:
            shard = OpenShard(path)
            for name, piece in shard.pieces.items():
                shard.read(name, range(len(piece.times_s)))
        assert str(path) in str(caught.value)
    finally:
        path.write_bytes(whole)


def test_an_unharmed_neighbour_of_a_damaged_frame_is_still_read(folder: Path) -> None:
    """Checksums are a frame's: what is not read is not read for its checksum either."""
    path = shard_paths(folder)[0]
    piece = read_header(path).pieces[0]
    assert len(piece.times_s) > 1
    raw = path.read_bytes()
    with safe_open(path, framework="pt") as stream:
        start = raw.rindex(stream.get_tensor(piece.name)[0].numpy().tobytes())
    path.write_bytes(raw[:start] + bytes([raw[start] ^ 255]) + raw[start + 1 :])
    shard = OpenShard(path)
    assert shard.read(piece.name, [1]).shape == (1, 5, 3)
    with pytest.raises(UserError, match=f"frame {piece.first_frame} of '{piece.clip.path}'"):
        shard.read(piece.name, [1, 0])


def test_a_cut_off_missing_or_grown_shard_is_found_before_it_is_used(folder: Path) -> None:
    path = shard_paths(folder)[0]
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x", whole[:4], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            read_index(folder)
        with pytest.raises(UserError, match=path.name):
            merge_index(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: the shard is missing"):
        read_index(folder)


def test_a_changed_index_is_refused(folder: Path) -> None:
    path = folder / INDEX_FILE
    values = json.loads(path.read_text())
    values["clips"][0]["frame_count"] += 1
    for text in (json.dumps(values), "{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"index\.json"):
            read_index(folder)
    path.unlink()
    with pytest.raises(UserError, match="longvid predict"):
        read_index(folder)


def test_an_unfinished_clip_is_counted_and_not_listed(tmp_path: Path) -> None:
    clip, times_s = make_clip(1, 6)
    writer = FeatureWriter(tmp_path, SETTINGS, "w")
    writer.add(clip, 0, times_s[:4], make_features(1, 6)[:4])
    writer.close()
    index = merge_index(tmp_path)
    assert index is not None
    assert (index.entries, index.unfinished) == ({}, 1)
    assert stored_frames(tmp_path, SETTINGS) == {(clip.file_sha256, clip.sampling): (4, clip)}
    writer.add(clip, 4, times_s[4:], make_features(1, 6)[4:])
    writer.close()
    index = merge_index(tmp_path)
    assert index is not None
    assert list(index.entries) == [clip.key]
    assert torch.equal(FeatureReader(tmp_path).frames(index.entries[clip.key], range(6)), make_features(1, 6))


def test_shards_of_several_writers_merge_whatever_they_repeat(tmp_path: Path) -> None:
    write_clips(tmp_path, {1: 5, 2: 4}, writer="1of2-0of1", shard_bytes=1)
    write_clips(tmp_path, {2: 4, 3: 6}, writer="2of2-0of1", piece=4)
    index = merge_index(tmp_path)
    assert index is not None
    reader = FeatureReader(tmp_path)
    assert index.frame_count == 15
    for number, frames in {1: 5, 2: 4, 3: 6}.items():
        entry = index.entries[make_clip(number, frames)[0].key]
        assert torch.equal(reader.frames(entry, range(frames)), make_features(number, frames))


def test_shards_of_different_settings_do_not_merge(tmp_path: Path) -> None:
    write_clips(tmp_path, {1: 5})
    write_clips(tmp_path / "other", {2: 5}, of=replace(SETTINGS, tower="b" * 64))
    (stray,) = shard_paths(tmp_path / "other")
    stray.rename(tmp_path / stray.name)
    with pytest.raises(UserError, match="tower") as caught:
        merge_index(tmp_path)
    assert "a" * 64 in str(caught.value)
    assert "b" * 64 in str(caught.value)


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile", "RssShmem")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counters")
def test_reading_a_frame_touches_that_frame_only(tmp_path: Path) -> None:
    """128 MiB in one shard and one tensor; five frames of 256 KiB are read. The kernel maps up to 2 MiB around each."""
    frames = 512
    clip, times_s = make_clip(1, frames)
    stored = torch.arange(frames, dtype=torch.float32).view(frames, 1, 1).expand(frames, 64, 1024)
    writer = FeatureWriter(tmp_path, SETTINGS, "w")
    writer.add(clip, 0, times_s, stored)
    writer.close()
    index = merge_index(tmp_path)
    assert index is not None
    assert sum(index.shards.values()) > 128 << 20
    reader = FeatureReader(tmp_path)
    before = _resident_bytes()
    for number in range(0, 500, 100):
        assert reader.frames(index.entries[clip.key], [number])[0, -1, -1] == number
    assert _resident_bytes() - before < 32 << 20


class _Frames(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, folder: Path) -> None:
        self.index = read_index(folder)
        self.reader = FeatureReader(folder)
        self.wanted = [
            (entry, frame) for entry in self.index.entries.values() for frame in range(entry.clip.frame_count)
        ]

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, row: int) -> torch.Tensor:
        entry, frame = self.wanted[row]
        return self.reader.frames(entry, [frame])[0]


def test_workers_read_at_once_also_when_the_parent_had_shards_open(folder: Path) -> None:
    dataset = _Frames(folder)
    expected = [dataset[row] for row in range(len(dataset))]
    for number, frames in {1: 7, 2: 1, 3: 10}.items():
        entry = dataset.index.entries[make_clip(number, frames)[0].key]
        assert torch.equal(dataset.reader.frames(entry, range(frames)), make_features(number, frames))
    for _ in range(2):
        read = list(DataLoader(dataset, batch_size=None, num_workers=2))
        assert all(torch.equal(one, other) for one, other in zip(read, expected, strict=True))
    copy: FeatureReader = pickle.loads(pickle.dumps(dataset.reader))
    assert torch.equal(copy.frames(*[(entry, [frame]) for entry, frame in dataset.wanted][3])[0], expected[3])


def _write_for_ever(folder: Path) -> None:
    for number in range(10**9):
        write_clips(folder, {number: 9}, piece=4, shard_bytes=500)


def test_a_killed_writer_leaves_whole_shards_only(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for wait_s in (0.02, 0.05, 0.11):
        had = len(shard_paths(tmp_path))
        process = context.Process(target=_write_for_ever, args=(tmp_path,))
        process.start()
        while len(shard_paths(tmp_path)) <= had:
            time.sleep(0.001)
        time.sleep(wait_s)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        stored = stored_frames(tmp_path, SETTINGS)
        assert stored
        index = merge_index(tmp_path)
        assert index is not None
        reader = FeatureReader(tmp_path)
        for entry in index.entries.values():
            number = int(entry.clip.file_sha256, 16)
            assert torch.equal(reader.frames(entry, range(9)), make_features(number, 9))
    (tmp_path / ".1of1-0of1.123.safetensors").write_bytes(b"half")
    (tmp_path / ".2of2-0of1.123.safetensors").write_bytes(b"of a job that still runs")
    FeatureWriter(tmp_path, SETTINGS, "1of1-0of1")
    assert [path.name for path in tmp_path.glob(".*.safetensors")] == [".2of2-0of1.123.safetensors"]


def test_shards_can_be_read_by_others(tmp_path: Path) -> None:
    """safetensors itself makes files of mode 600."""
    write_clips(tmp_path, {1: 1})
    (tmp_path / "plain").touch()
    (path,) = shard_paths(tmp_path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_values_the_storage_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    clip, times_s = make_clip(1, 1)
    features = torch.full((1, 5, 3), 70000.0)
    with pytest.raises(UserError, match=r"7e\+04, more than float16 holds; set data.storage.dtype to bfloat16"):
        FeatureWriter(tmp_path, replace(SETTINGS, dtype="float16"), "w").add(clip, 0, times_s, features)
    FeatureWriter(tmp_path, replace(SETTINGS, dtype="bfloat16"), "w").add(clip, 0, times_s, features)
    with pytest.raises(UserError, match=f"{clip.path}: the tower gives features that are not finite"):
        FeatureWriter(tmp_path, SETTINGS, "w").add(clip, 0, times_s, features * float("nan"))
    assert not shard_paths(tmp_path)


@pytest.mark.parametrize(
    ("patches", "dtype", "expected"),
    [
        ("all", "float16", 723_712),
        ("all", "float32", 1_447_424),
        ("grid:8", "float16", 183_040),
        ("grid:4", "bfloat16", 47_872),
        ("grid:1", "float16", 5_632),
    ],
)
def test_bytes_per_frame_of_an_eva_g_tower(tmp_path: Path, patches: str, dtype: Any, expected: int) -> None:
    """257 tokens of 1408: the public code's pickles take 724 KB. The file has nothing but a header beside them."""
    options = StorageOptions(dtype=dtype, patches=patches)
    assert options.bytes_per_frame(16, 1408) == expected
    frames, tokens = 4, 1 + (options.grid or 16) ** 2
    of = replace(SETTINGS, dtype=dtype, patches=patches)
    clip, times_s = make_clip(1, frames, of)
    writer = FeatureWriter(tmp_path, of, "w")
    writer.add(clip, 0, times_s, make_features(1, frames, tokens, 1408))
    writer.close()
    (path,) = shard_paths(tmp_path)
    assert 0 < path.stat().st_size - frames * expected < 2000


@pytest.mark.parametrize("patches", ["grid:0", "grid", "4", "grid:-1", "half", ""])
def test_storage_must_be_all_or_a_grid(patches: str) -> None:
    with pytest.raises(UserError, match="must be 'all' or 'grid:n'"):
        StorageOptions(patches=patches)
