"""``python -m data_prep.check_features``: every damaged byte of a cache is found, and a whole one is counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.command_line import run_tool
from longvid_train.data.features.index import INDEX_FILE, merge_index
from longvid_train.data.features.settings import FeatureSettings, clip_key, describe_sampling, times_sha256
from longvid_train.data.features.shards import Clip, shard_paths
from longvid_train.data.features.writer import FeatureWriter
from longvid_train.video import FramesPerSecond

OF = FeatureSettings(
    tower="a" * 64,
    preprocessing={"image_size": 8},
    sampling=describe_sampling(FramesPerSecond(fps=1.0)),
    dtype="bfloat16",
    patches="grid:2",
    precision="32-true",
)


def add_clip(writer: FeatureWriter, number: int, frames: int, stored: int | None = None) -> None:
    """A clip of ``frames`` frames of 5 tokens of 3 values, of which the first ``stored`` are written."""
    times_s = tuple(float(frame) for frame in range(frames))
    file, digest = f"{number:064x}", times_sha256(times_s)
    clip = Clip(clip_key(OF, file, OF.sampling, digest), f"/v/{number}.mp4", file, OF.sampling, frames, digest)
    kept = frames if stored is None else stored
    writer.add(clip, 0, times_s[:kept], torch.randn(kept, 5, 3))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three shards: clips of 70 and 4 frames, and one of which 2 frames of 9 are there."""
    for writer, number, frames, stored in (("a", 1, 70, None), ("b", 2, 4, None), ("c", 3, 9, 2)):
        feature_writer = FeatureWriter(tmp_path / "cache", OF, writer)
        add_clip(feature_writer, number, frames, stored)
        feature_writer.close()
    merge_index(tmp_path / "cache")
    return tmp_path / "cache"


def checked(cache: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = run_tool("check_features", [str(cache), "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def test_a_whole_cache_is_counted(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = checked(cache, capsys)
    assert status == 0
    assert facts == {
        "ok": True,
        "folder": str(cache),
        "dtype": "bfloat16",
        "patches": "grid:2",
        "clips": 2,
        "unfinished": 1,
        "shards": 3,
        "file_bytes": sum(path.stat().st_size for path in shard_paths(cache)),
        "frames": 70 + 4 + 2,
        "frame_bytes": 76 * 5 * 3 * 2,
        "problems": [],
    }
    assert run_tool("check_features", [str(cache)]) == 0
    assert capsys.readouterr().out.endswith("every checksum is right\n")


def test_every_damaged_shard_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last byte of one, which is a feature's, and the end of another; the third is still read."""
    first, second, third = shard_paths(cache)
    first.write_bytes(first.read_bytes()[:-1] + bytes([first.read_bytes()[-1] ^ 1]))
    second.write_bytes(second.read_bytes()[:-1])
    status, facts = checked(cache, capsys)
    assert status == 1
    assert facts["ok"] is False
    assert str(first) in facts["problems"][0]
    assert str(second) in facts["problems"][1]
    assert "checksum of frame" in facts["problems"][0]
    assert not any(third.name in problem for problem in facts["problems"])
    assert run_tool("check_features", [str(cache)]) == 1
    out = capsys.readouterr().out
    assert str(first) in out
    assert out.endswith("something is wrong\n")


def test_a_shard_that_is_missing_or_not_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = FeatureWriter(cache, OF, "late")
    add_clip(writer, 4, 3)
    writer.close()
    status, facts = checked(cache, capsys)
    assert status == 1
    (problem,) = facts["problems"]
    assert problem.endswith("index.json does not list it; run the same longvid predict again, which merges all shards")
    merge_index(cache)
    assert checked(cache, capsys)[0] == 0
    shard_paths(cache)[0].unlink()
    status, facts = checked(cache, capsys)
    assert status == 1
    assert "the shard is missing" in facts["problems"][0]
    (cache / INDEX_FILE).unlink()
    assert "index.json" in checked(cache, capsys)[1]["problems"][0]


def test_a_folder_without_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("check_features", [str(tmp_path)]) == 2
    assert "holds no shard of features; name the --run_dir of a longvid predict" in capsys.readouterr().err
