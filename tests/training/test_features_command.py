"""``longvid predict`` writes tower features and ``longvid fit`` trains from them, through the command line's entry."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.data.features.index import INDEX_FILE, read_index
from longvid_train.data.features.reader import FeatureReader
from longvid_train.data.features.shards import shard_paths
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
NO_DROPOUT = {"name": "s", "trainable": ["context_attention", "content_projector", "language_model"]}
SAMPLING = {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 2}}


@pytest.fixture
def predict_config(tiny_model_folder: Path, world: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write a complete config of an extraction; keywords are keys of ``data``."""

    def write(**data: Any) -> Path:
        manifests = [str(world.manifest("train.jsonl", 12)), str(world.manifest("test.jsonl", 4, prefix="held"))]
        config = {
            "run_dir": str(tmp_path / "features"),
            "model": {
                "class_path": "longvid_train.training.features.TowerFeatures",
                "init_args": {"model": str(tiny_model_folder)},
            },
            "data": {
                "class_path": "longvid_train.data.features.extraction.FeatureDataModule",
                "init_args": {
                    "manifests": manifests,
                    "media": {"sampling": SAMPLING},
                    "storage": {"dtype": "float32"},
                    **data,
                },
            },
            "trainer": {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False},
        }
        file = tmp_path / "predict.yaml"
        file.write_text(json.dumps(config))
        return file

    return write


def predict(config: Path, *words: str) -> int:
    return cli.main(["predict", "--config", str(config), *words])


def fit(config: Path, *words: str) -> int:
    return cli.main(["fit", "--config", str(config), *words])


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr since the last read."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this must not run")


def media_with(folder: Path, **more: Any) -> dict[str, Any]:
    return {"sampling": SAMPLING, "features": str(folder), **more}


def test_training_from_features_is_training_from_pixels(
    fit_config: FitConfig, predict_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32: every loss and weight bit for bit, and neither a video nor the tower is touched. float16 and bfloat16:
    the first loss, before any step, within 1e-3 and 1e-2 of it."""
    from longvid_train.data import media as media_room
    from longvid_train.models.llama_vid.vision_tower import ClipVisionTower

    config = fit_config(model__init_args__stage=NO_DROPOUT)
    assert fit(config, "--run_dir", str(tmp_path / "pixels")) == 0
    caches = {}
    for dtype in ("float32", "float16", "bfloat16"):
        caches[dtype] = tmp_path / dtype
        assert predict(predict_config(storage={"dtype": dtype}), "--run_dir", str(caches[dtype])) == 0
    for name in ("read_clip", "probe", "read_image"):
        monkeypatch.setattr(media_room, name, refuse)
    monkeypatch.setattr(ClipVisionTower, "encode", refuse)
    for dtype, cache in caches.items():
        words = ["--data.media.features", str(cache), "--data.loading.num_workers", "2" if dtype == "float32" else "0"]
        answers = ["--answers.enabled", "true", "--answers.max_new_tokens", "2"]
        assert fit(config, "--run_dir", str(tmp_path / f"{dtype}_run"), *words, *answers) == 0
    exact = losses(tmp_path / "pixels")
    assert len(exact) == 6
    assert losses(tmp_path / "float32_run") == exact
    left, right = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("pixels", "float32_run"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    for dtype, tolerance in (("float16", 1e-3), ("bfloat16", 1e-2)):
        stored = losses(tmp_path / f"{dtype}_run")
        assert stored[0] == pytest.approx(exact[0], rel=tolerance)
        assert stored != exact, "stored in less than float32, something must differ"


def test_predict_writes_each_medium_once_and_continues(
    predict_config: FitConfig,
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16 rows show 3 videos. A second run finds all there; one more row costs one more clip."""
    from longvid_train.training import features as feature_room

    encoded: list[int] = []
    original = feature_room.encode_in_chunks

    def counting(tower: Any, pixels: torch.Tensor, chunk: int) -> torch.Tensor:
        encoded.append(len(pixels))
        return original(tower, pixels, chunk)

    monkeypatch.setattr(feature_room, "encode_in_chunks", counting)
    config = predict_config(frames_per_batch=1)
    assert predict(config) == 0
    assert encoded == [1] * 6
    index = read_index(tmp_path / "features")
    assert (len(index.entries), index.frame_count, len(index.shards)) == (3, 6, 1)
    assert "3 of 3 media" in capsys.readouterr().err
    assert predict(config) == 0
    assert len(encoded) == 6
    rows = [json.loads(line) for line in world.manifest("train.jsonl", 12).read_text().splitlines()]
    rows[5]["media"][0]["end_s"] = 2.0
    assert predict(predict_config(manifests=str(world.write("windowed.jsonl", rows)))) == 0
    assert encoded[6:] == [2]
    assert len(read_index(tmp_path / "features").entries) == 4


def test_jobs_write_disjoint_shards_and_the_last_index_is_complete(
    predict_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = predict_config(num_workers=1)
    keys: list[set[str]] = []
    for job in ("1/2", "2/2"):
        assert predict(config, "--run_dir", str(tmp_path / job.replace("/", "of")), "--data.shard", job) == 0
        keys.append(set(read_index(tmp_path / job.replace("/", "of")).entries))
        assert predict(config, "--data.shard", job) == 0
    assert [len(one) for one in keys] == [2, 1]
    assert keys[0].isdisjoint(keys[1])
    index = read_index(tmp_path / "features")
    assert set(index.entries) == keys[0] | keys[1]
    assert len(index.shards) == 2
    said = capsys.readouterr().err
    assert "2 of 3 media" in said
    assert "this was job 1 of 2" in said
    assert predict(predict_config(), "--run_dir", str(tmp_path / "whole")) == 0
    whole = read_index(tmp_path / "whole")
    for key, entry in whole.entries.items():
        read = [FeatureReader(one.folder).frames(one.entries[key], [1, 0]) for one in (whole, index)]
        assert torch.equal(*read), entry.clip.path


def other_model(folder: Path, source: Path) -> Path:
    """The same checkpoint with one weight of the tower changed."""
    from safetensors.torch import save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision_tower."))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_cache_that_does_not_fit_is_refused_before_weights_load(
    fit_config: FitConfig,
    predict_config: FitConfig,
    tiny_model_folder: Path,
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from longvid_train.data.features.settings import DTYPES
    from longvid_train.models.llama_vid.tower_file import tower_sha256
    from longvid_train.training import module

    assert set(DTYPES) == {"float32", "float16", "bfloat16"}
    cache, pooled = tmp_path / "cache", tmp_path / "pooled"
    assert predict(predict_config(), "--run_dir", str(cache)) == 0
    assert predict(predict_config(storage={"patches": "grid:1"}), "--run_dir", str(pooled)) == 0
    capsys.readouterr()
    monkeypatch.setattr(module, "load_for_training", refuse)

    other = other_model(tmp_path / "other", tiny_model_folder)
    assert fit(fit_config(model__init_args__model=str(other), data__init_args__media=media_with(cache))) == 2
    said = complaint(capsys)
    assert str(cache) in said
    assert f"tower = {tower_sha256(tiny_model_folder)} and this run has {tower_sha256(other)}" in said

    sampling = {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 3}}
    assert fit(fit_config(data__init_args__media=media_with(cache, sampling=sampling))) == 2
    said = complaint(capsys)
    assert '"count":2' in said
    assert '"count":3' in said

    assert fit(fit_config(data__init_args__media=media_with(cache, shortest_edge=30))) == 2
    assert "preprocessing.shortest_edge = None and this run has 30" in complaint(capsys)

    stage = {"name": "all", "trainable": ["*"]}
    assert fit(fit_config(data__init_args__media=media_with(cache), model__init_args__stage=stage)) == 2
    assert "the stage trains the vision tower" in complaint(capsys)

    lora = {"r": 2, "alpha": 2, "target_modules": ["vision_tower"]}
    changes = {"model__init_args__stage": NO_DROPOUT, "model__init_args__lora": lora}
    assert fit(fit_config(data__init_args__media=media_with(cache), **changes)) == 2
    assert "the stage trains the vision tower" in complaint(capsys)

    assert fit(fit_config(data__init_args__media=media_with(pooled))) == 2
    assert "keep grid:1, but the model's context token attends to all patches" in complaint(capsys)

    grid = {"data__init_args__conversation": {"video_content_grid": 2}}
    assert fit(fit_config(data__init_args__media=media_with(pooled, allow_pooled_context=True), **grid)) == 2
    assert re.search(r"train\.jsonl:1: .*video_content_grid 2 needs 2 x 2 cells", complaint(capsys))

    assert fit(fit_config(data__init_args__media=media_with(tmp_path / "nowhere"))) == 2
    assert "nowhere/index.json" in complaint(capsys)

    exact = media_with(cache, exact=False)
    assert fit(fit_config(data__init_args__media=exact)) == 2
    assert "media.exact is false" in complaint(capsys)

    (shard,) = shard_paths(cache)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert fit(fit_config(data__init_args__media=media_with(cache))) == 2
    assert str(shard) in complaint(capsys)


def test_rows_and_features_that_disagree_are_named_by_line(
    fit_config: FitConfig,
    predict_config: FitConfig,
    world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A video that is not in the cache, a part of it that is not, and one that was replaced by another of its size."""
    from longvid_train.training import module

    folder = tmp_path / "videos"
    shutil.copytree(world.folder, folder)
    rows = [json.loads(line) for line in world.manifest("train.jsonl", 3).read_text().splitlines()]
    manifest = folder / "train.jsonl"

    def write(changed: list[dict[str, Any]]) -> None:
        manifest.write_text("\n".join(json.dumps(row) for row in changed))

    def refused() -> str:
        changes = {"data__init_args__train": str(manifest), "data__init_args__test": None}
        assert fit(fit_config(data__init_args__media=media_with(tmp_path / "features"), **changes)) == 2
        return complaint(capsys)

    write(rows)
    assert predict(predict_config(manifests=str(manifest))) == 0
    capsys.readouterr()
    monkeypatch.setattr(module, "load_for_training", refuse)
    shutil.copy(folder / "blue.mp4", folder / "new.mp4")
    (folder / "new.mp4").write_bytes((folder / "new.mp4").read_bytes() + b"\0")
    write([*rows[:2], {**rows[2], "media": [{"type": "video", "path": "new.mp4"}]}])
    said = refused()
    assert f"{manifest}:3: field 'media[0].path': '{folder / 'new.mp4'}' is not in the features" in said

    write([rows[0], {**rows[1], "media": [{**rows[1]["media"][0], "end_s": 3.0}]}])
    said = refused()
    assert f"{manifest}:2:" in said
    assert '"end_s":3.0' in said

    write(rows)
    before = (folder / "red.mp4").stat()
    content = bytearray((folder / "red.mp4").read_bytes())
    content[-1] ^= 1
    (folder / "red.mp4").write_bytes(content)
    os.utime(folder / "red.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))
    said = refused()
    assert f"{manifest}:1:" in said
    assert re.search(r"has SHA-256 [0-9a-f]{16} and the features in .* were made from [0-9a-f]{16}", said)


@pytest.mark.slow
def test_a_copied_video_needs_no_new_features(
    fit_config: FitConfig, predict_config: FitConfig, world: Any, tmp_path: Path
) -> None:
    """Content counts, not names: the same bytes elsewhere have the same features."""
    assert predict(predict_config()) == 0
    moved = tmp_path / "moved"
    shutil.copytree(world.folder, moved)
    (moved / "red.mp4").rename(moved / "crimson.mp4")
    text = (moved / "train.jsonl").read_text().replace('"red.mp4"', '"crimson.mp4"')
    (moved / "train.jsonl").write_text(text)
    media = media_with(tmp_path / "features", rehash_files=True)
    changes = {"data__init_args__train": str(moved / "train.jsonl"), "data__init_args__test": None}
    assert fit(fit_config(data__init_args__media=media, **changes), "--trainer.max_steps", "1") == 0


def test_a_flipped_byte_stops_training_and_names_the_shard(
    fit_config: FitConfig, predict_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(predict_config()) == 0
    (shard,) = shard_paths(tmp_path / "features")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 16
    shard.write_bytes(content)
    capsys.readouterr()
    config = fit_config(data__init_args__media=media_with(tmp_path / "features"))
    for workers in ("0", "1"):
        run = ["--run_dir", str(tmp_path / f"run{workers}"), "--data.loading.num_workers", workers]
        assert fit(config, *run) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{shard}: the shard is damaged (checksum of frame" in said
        assert "train.jsonl:" in said


def test_pooled_features_train_a_model_with_content_tokens_exactly(
    fit_config: FitConfig, predict_config: FitConfig, tmp_path: Path
) -> None:
    """A model without context tokens reads only pooled cells: 2 of 5 tokens a frame are kept, and no loss changes."""
    from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration, LlamaVidProcessor
    from longvid_train.models.llama_vid.processing import ProcessorSettings

    source = Path(json.loads(fit_config().read_text())["model"]["init_args"]["model"])
    values = LlamaVidConfig.from_pretrained(source).to_dict()
    config = LlamaVidConfig(**{**values, "text_decoder_config": None, "use_context": False})
    folder = tmp_path / "content_only"
    torch.manual_seed(1)
    LlamaVidForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = LlamaVidProcessor.from_pretrained(source).tokenizer
    processor = LlamaVidProcessor.for_model(config, tokenizer, None)
    assert processor.settings == ProcessorSettings(
        image_size=28, patch_size=14, visual_token_id=config.visual_token_id, use_context=False, max_prompt_tokens=32
    )
    processor.save_pretrained(folder)
    extraction = predict_config(storage={"dtype": "float32", "patches": "grid:1"})
    assert predict(extraction, "--model.model", str(folder)) == 0
    sizes = [path.stat().st_size for path in shard_paths(tmp_path / "features")]
    assert sum(sizes) < 6 * 2 * 16 * 4 + 3000
    stage = {"name": "s", "trainable": ["content_projector", "language_model"]}
    changes = {"model__init_args__model": str(folder), "model__init_args__stage": stage}
    assert fit(fit_config(**changes), "--run_dir", str(tmp_path / "pixels")) == 0
    config_with = fit_config(**changes, data__init_args__media=media_with(tmp_path / "features"))
    assert fit(config_with, "--run_dir", str(tmp_path / "cells")) == 0
    assert losses(tmp_path / "cells") == losses(tmp_path / "pixels")


@pytest.mark.slow
def test_pooled_features_train_a_context_token_when_asked_to(
    fit_config: FitConfig, predict_config: FitConfig, tmp_path: Path
) -> None:
    """The tiny tower's random attention is nearly a mean over patches, so the loss is near that of all patches."""
    stage = {"model__init_args__stage": NO_DROPOUT}
    assert predict(predict_config(storage={"dtype": "float32", "patches": "grid:1"})) == 0
    media = media_with(tmp_path / "features", allow_pooled_context=True)
    assert fit(fit_config(**stage, data__init_args__media=media), "--run_dir", str(tmp_path / "cells")) == 0
    assert fit(fit_config(**stage), "--run_dir", str(tmp_path / "pixels")) == 0
    assert losses(tmp_path / "cells") == pytest.approx(losses(tmp_path / "pixels"), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "words", "expected"),
    [
        ({}, ["--data.shard", "3/2"], "shard is '3/2'"),
        ({"storage": {"patches": "grid:3"}}, [], "n must divide 2"),
        ({"storage": {"patchs": "all"}}, [], "did you mean 'patches'"),
        ({"frames_per_batch": 0}, [], "frames_per_batch is 0"),
        ({"media": {"exact": False}}, [], "media.exact is false"),
        ({"media": {"features": "x"}}, [], "features are made from pixels"),
        ({"manifests": "missing.jsonl"}, [], "missing.jsonl"),
    ],
)
def test_mistakes_of_an_extraction(
    predict_config: FitConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: list[str],
    expected: str,
) -> None:
    assert predict(predict_config(**changes), *words) == 2
    assert expected in complaint(capsys)
    assert not (tmp_path / "features" / INDEX_FILE).exists()


def test_an_extraction_with_other_settings_needs_another_folder(
    predict_config: FitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(predict_config()) == 0
    capsys.readouterr()
    assert predict(predict_config(storage={"dtype": "bfloat16"})) == 2
    assert "dtype = float32 and this run would make them with bfloat16" in complaint(capsys)


def test_an_unreadable_video_stops_or_is_skipped_within_a_limit(
    predict_config: FitConfig, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(world.folder, folder)
    (folder / "green.mp4").write_text("not a video")
    manifest = folder / "train.jsonl"
    shutil.copy(world.manifest("train.jsonl", 3), manifest)
    assert predict(predict_config(manifests=str(manifest), num_workers=1)) == 2
    said = complaint(capsys)
    assert said.startswith(f"longvid: {manifest}:2: ")
    assert "green.mp4" in said
    skip = {"on_bad_sample": "skip", "max_bad_samples": 1}
    assert predict(predict_config(manifests=str(manifest), bad_samples=skip)) == 0
    said = capsys.readouterr().err
    assert "2 of 3 media" in said
    assert "green.mp4" in said
    skip["max_bad_samples"] = 0
    assert predict(predict_config(manifests=str(manifest), bad_samples=skip)) == 2
    assert "more than max_bad_samples = 0" in capsys.readouterr().err


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "longvid_train.cli", "predict", "--config", str(config), *words, "--debug"]


@pytest.fixture
def many_videos(world: Any) -> Path:
    """A manifest of 40 videos of two sampled frames each, different files of the same pictures."""
    rows = []
    for second in range(1, 41):
        shutil.copy(world.folder / "red.mp4", world.folder / f"copy{second}.mp4")
        with (world.folder / f"copy{second}.mp4").open("ab") as stream:
            stream.write(b"\0\0\0\x09free" + bytes([second]))
        row = json.loads(world.manifest("train.jsonl", 1).read_text())
        rows.append({**row, "id": f"r{second}", "media": [{"type": "video", "path": f"copy{second}.mp4"}]})
    manifest: Path = world.write("many.jsonl", rows)
    return manifest


def kill_when(process: "subprocess.Popen[str]", cache: Path, shards: int) -> int:
    """Kill a process and its children once so many shards are there; how many there were in the end."""
    while len(shard_paths(cache)) < shards:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return len(shard_paths(cache))


def started(words: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(*processes: "subprocess.Popen[str]") -> list[str]:
    """What processes wrote to stderr; all are ended."""
    try:
        errors = [process.communicate(timeout=280)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in processes] == [0] * len(processes), errors
    return errors


def assert_same_features(cache: Path, other: Path) -> None:
    index, expected = read_index(cache), read_index(other)
    assert index.settings == expected.settings
    assert index.entries.keys() == expected.entries.keys()
    for key, entry in expected.entries.items():
        numbers = range(entry.clip.frame_count)
        read = [FeatureReader(one.folder).frames(one.entries[key], numbers) for one in (expected, index)]
        assert torch.equal(*read), entry.clip.path


@pytest.mark.slow
def test_a_killed_extraction_is_continued(predict_config: FitConfig, many_videos: Path, tmp_path: Path) -> None:
    config = predict_config(manifests=str(many_videos), frames_per_batch=1)
    words = ["--model.shard_bytes", "1"]
    cache = tmp_path / "features"
    assert 1 <= kill_when(started(command(config, *words)), cache, 1) < 80
    assert not (cache / INDEX_FILE).exists()
    assert predict(config, *words) == 0
    index = read_index(cache)
    assert (len(index.entries), index.frame_count, len(index.shards)) == (40, 80, 80)
    assert predict(config, "--run_dir", str(tmp_path / "whole")) == 0
    assert_same_features(cache, tmp_path / "whole")


TWO_RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_two_ranks_killed_at_a_random_point_are_continued(
    predict_config: FitConfig, many_videos: Path, tmp_path: Path, dtype: str
) -> None:
    """SIGKILL to both ranks behind a random number of shards; one rank continues, and the features are those of a run
    that was left alone."""
    config = predict_config(
        manifests=str(many_videos), frames_per_batch=1, storage={"dtype": dtype, "patches": "grid:1"}
    )
    words = ["--model.shard_bytes", "1"]
    shards = random.randint(1, 60)
    print(f"killed behind {shards} shards")
    cache = tmp_path / "features"
    had = kill_when(started(command(config, *words, *TWO_RANKS)), cache, shards)
    assert shards <= had
    assert predict(config, *words) == 0
    index = read_index(cache)
    assert (len(index.entries), index.frame_count) == (40, 80)
    assert index.settings.dtype == dtype
    assert predict(config, "--run_dir", str(tmp_path / "whole")) == 0
    assert_same_features(cache, tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_share_the_media(predict_config: FitConfig, tmp_path: Path) -> None:
    (errors,) = finished(started(command(predict_config(), *TWO_RANKS)))
    index = read_index(tmp_path / "features")
    assert (len(index.entries), index.frame_count, len(index.shards)) == (3, 6, 2)
    assert "3 of 3 media" in errors


@pytest.mark.slow
def test_two_nodes_share_the_media(predict_config: FitConfig, tmp_path: Path) -> None:
    """Lightning's own way to several machines: each runs the same command with its node's number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = command(predict_config(), "--trainer.num_nodes", "2", "--trainer.strategy", "ddp")
    nodes = [
        started(words, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK=str(node), LOCAL_RANK="0")
        for node in range(2)
    ]
    errors = finished(*nodes)
    index = read_index(tmp_path / "features")
    assert (len(index.entries), index.frame_count, len(index.shards)) == (3, 6, 2)
    assert "3 of 3 media" in errors[0]
    assert predict(predict_config(), "--run_dir", str(tmp_path / "whole")) == 0
    assert_same_features(tmp_path / "features", tmp_path / "whole")
