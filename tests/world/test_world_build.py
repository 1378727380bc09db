import dataclasses
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longvid_train.errors import UserError
from longvid_train.world.build import build_world
from longvid_train.world.plan import make_plan
from longvid_train.world.render import render_frame
from longvid_train.world.settings import BuildSettings, SetSettings


def rows_of(plan_or_text: str) -> list[dict]:
    return [json.loads(line) for line in plan_or_text.splitlines()]


def one_set(**settings: object) -> BuildSettings:
    return BuildSettings(sets=(SetSettings(**{"videos": {"train": 4}, "duration_s": (6.0, 9.0), **settings}),))


def test_a_world_is_the_same_bytes_with_any_number_of_workers(
    tmp_path: Path, small_world: BuildSettings, read_files
) -> None:
    build_world(small_world, tmp_path / "a", workers=1)
    build_world(small_world, tmp_path / "b", workers=2)
    first, second = read_files(tmp_path / "a"), read_files(tmp_path / "b")
    assert first == second
    assert {Path(name).suffix for name in first} == {".mp4", ".srt", ".png", ".jsonl", ".json"}


def test_every_media_path_exists_and_every_file_is_named(tmp_path: Path, small_world: BuildSettings) -> None:
    build_world(small_world, tmp_path)
    named = set()
    for manifest in tmp_path.rglob("manifest.jsonl"):
        for row in rows_of(manifest.read_text()):
            for item in row["media"]:
                named |= {manifest.parent / item[key] for key in ("path", "subtitles") if key in item}
    written = {path for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".srt", ".png")}
    assert named == written
    assert len(written) == 3 + 3 + 1


def test_the_video_has_the_length_and_rate_its_row_says(tmp_path: Path, small_world: BuildSettings) -> None:
    build_world(small_world, tmp_path)
    row = rows_of((tmp_path / "val/manifest.jsonl").read_text())[0]
    with av.open(str(tmp_path / "val" / row["media"][0]["path"])) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 4
        assert float(stream.duration * stream.time_base) == row["meta"]["duration_s"]
        assert stream.frames == row["meta"]["duration_s"] * 4


def test_an_image_is_the_frame_its_row_tells_of(tmp_path: Path, small_world: BuildSettings) -> None:
    build_world(small_world, tmp_path)
    job = next(job for job in make_plan(small_world).jobs if job.time_s is not None)
    picture = np.asarray(Image.open(tmp_path / job.path))
    assert np.array_equal(picture, render_frame(job.episode, job.time_s, 48))


def test_resuming_renders_only_what_is_missing(tmp_path: Path, small_world: BuildSettings, read_files) -> None:
    first = build_world(small_world, tmp_path)
    assert (first.rendered, first.kept) == (4, 0)
    before = read_files(tmp_path)
    lost = sorted(tmp_path.rglob("*.mp4"))[1]
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    progress: list[tuple[int, int]] = []
    again = build_world(small_world, tmp_path, on_progress=lambda done, total: progress.append((done, total)))
    assert (again.rendered, again.kept) == (1, 3)
    assert progress == [(4, 4)]
    assert read_files(tmp_path) == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_another_world_is_refused_and_overwritten_only_when_asked(tmp_path: Path, small_world: BuildSettings) -> None:
    build_world(small_world, tmp_path)
    mine = tmp_path / "notes.txt"
    mine.write_text("keep me")
    other = dataclasses.replace(small_world, seed=4)
    with pytest.raises(UserError, match="--overwrite"):
        build_world(other, tmp_path)
    build_world(other, tmp_path, overwrite=True)
    assert mine.read_text() == "keep me"
    assert {path.name.split("-")[1] for path in tmp_path.rglob("*.mp4")} == {"4"}


def test_overwriting_never_trusts_files_of_an_unknown_world(tmp_path: Path, small_world: BuildSettings) -> None:
    build_world(small_world, tmp_path)
    (tmp_path / "world.json").unlink()
    video = sorted(tmp_path.rglob("*.mp4"))[0]
    whole = video.read_bytes()
    video.write_bytes(b"old")
    with pytest.raises(UserError, match="--overwrite"):
        build_world(small_world, tmp_path)
    build_world(small_world, tmp_path, overwrite=True)
    assert video.read_bytes() == whole


def test_a_forged_record_removes_nothing_outside(tmp_path: Path, small_world: BuildSettings) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    world = tmp_path / "world"
    world.mkdir()
    (world / "world.json").write_text(json.dumps({"counts": {"../outside": {}, ".": {}, str(outside): {}}}))
    build_world(small_world, world, overwrite=True)
    assert outside.is_dir()


def test_a_file_in_the_way_and_no_workers_are_refused(tmp_path: Path, small_world: BuildSettings) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        build_world(small_world, tmp_path / "file")
    with pytest.raises(UserError, match="workers 0"):
        build_world(small_world, tmp_path / "new", workers=0)


def test_an_interrupted_build_can_be_taken_up(tmp_path: Path, small_world: BuildSettings, read_files) -> None:
    build_world(small_world, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_world(small_world, tmp_path / "part", on_progress=stop)
    assert build_world(small_world, tmp_path / "part").rendered == 2
    assert read_files(tmp_path / "part") == read_files(tmp_path / "whole")


def test_row_ids_are_unique_and_splits_share_no_episode() -> None:
    sets = tuple(
        SetSettings(
            name=name,
            videos={"train": 60, "val": 30, "test": 30},
            images={"train": 30, "val": 10},
            texts={"train": 10},
            duration_s=(4.0, 12.0),
            questions_per_episode=6,
        )
        for name in ("one", "two")
    )
    plan = make_plan(BuildSettings(sets=sets))
    rows = [row for path, text in plan.texts.items() if path.endswith(".jsonl") for row in rows_of(text)]
    assert len({row["id"] for row in rows}) == len(rows) > 600
    by_split: dict[str, set[str]] = {}
    for job in plan.jobs:
        events = repr((job.episode.scenes, job.episode.appearances))
        by_split.setdefault(job.episode.split, set()).add(events)
    assert [len(by_split[split]) for split in ("train", "val", "test")] == [180, 80, 60]
    assert not by_split["train"] & by_split["val"]
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & by_split["test"]


def test_more_videos_keep_the_episodes_there_were() -> None:
    few = make_plan(one_set(videos={"train": 3}, images={"train": 2}))
    many = make_plan(one_set(videos={"train": 5}, images={"train": 2}))
    assert set(few.jobs) < set(many.jobs)
    assert few.record["content_sha256"] != many.record["content_sha256"]


def test_a_row_has_the_manifest_schema() -> None:
    plan = make_plan(one_set(kinds=("order",), questions_per_episode=1, subtitles=True))
    row = rows_of(plan.texts["train/manifest.jsonl"])[0]
    episode = plan.jobs[0].episode
    assert row["id"] == "train-0-000000-order"
    assert row["media"] == [
        {"type": "video", "path": "videos/train-0-000000.mp4", "subtitles": "videos/train-0-000000.srt"}
    ]
    assert [turn["role"] for turn in row["conversation"]] == ["user", "assistant"]
    assert row["conversation"][0]["text"].startswith("<video>\nWhat came right after the ")
    assert row["conversation"][1]["text"] == row["meta"]["answer"]
    assert (row["source"], row["license"], row["version"]) == ("longvid-world", "CC0-1.0", "1")
    assert row["meta"]["kind"] == "order"
    assert (row["meta"]["split"], row["meta"]["episode"]) == ("train", "train-0-000000")
    assert row["meta"]["duration_s"] == episode.duration_s
    assert 0 <= row["meta"]["evidence_s"][0] < row["meta"]["evidence_s"][1] <= episode.duration_s


def test_several_questions_make_one_conversation_with_one_placeholder() -> None:
    row = rows_of(make_plan(one_set(multi_turn=True)).texts["train/manifest.jsonl"])[0]
    questions = [turn["text"] for turn in row["conversation"][::2]]
    assert len(questions) == 3
    assert len(set(questions)) == 3
    assert [text.count("<video>") for text in questions] == [1, 0, 0]
    assert row["meta"]["answer"] == [turn["text"] for turn in row["conversation"][1::2]]
    assert len(row["meta"]["kind"]) == len(row["meta"]["evidence_s"]) == 3


def test_captions_tell_the_whole_video_and_exactly_what_the_image_shows() -> None:
    plan = make_plan(one_set(style="caption", videos={"train": 5}, images={"train": 40}))
    rows = rows_of(plan.texts["train/manifest.jsonl"])
    assert [row["media"][0]["type"] for row in rows] == ["video"] * 5 + ["image"] * 40
    assert {row["meta"]["kind"] for row in rows} == {"caption"}
    for row, job in zip(rows, plan.jobs, strict=True):
        told = row["conversation"][1]["text"]
        if job.time_s is None:
            shown = list(job.episode.appearances)
        else:
            shown = [a for a in job.episode.appearances if a.enter_s - 0.25 < job.time_s < a.leave_s + 0.25]
            assert shown
        positions = [told.index(f"{a.colour} {a.shape} {a.digit}") for a in shown]
        assert positions == sorted(positions)
        assert sum(character.isdigit() for character in told) == len(shown)


def test_image_questions_are_about_the_frame_only() -> None:
    plan = make_plan(one_set(videos={}, images={"train": 40}, kinds=("count", "order")))
    jobs = {job.episode.episode_id: job for job in plan.jobs}
    for row in rows_of(plan.texts["train/manifest.jsonl"]):
        assert row["meta"]["kind"] == "count"
        job = jobs[row["meta"]["episode"]]
        shape = row["conversation"][0]["text"].split(" did a ")[1].split()[0]
        seen = sum(a.shape == shape for a in job.episode.appearances if a.enter_s <= job.time_s < a.leave_s)
        assert row["meta"]["answer"] == str(seen)
        assert row["meta"]["evidence_s"] == [job.time_s, job.time_s]


def test_text_rows_have_no_media_and_open_with_the_transcript() -> None:
    plan = make_plan(one_set(videos={}, texts={"train": 30}, kinds=("order",)))
    assert plan.jobs == ()
    for row in rows_of(plan.texts["train/manifest.jsonl"]):
        transcript, question = row["conversation"][0]["text"].rsplit("\n", 1)
        assert row["media"] == []
        assert transcript.startswith("0: ")
        assert row["meta"]["answer"] in transcript
        assert question.startswith("What came right after")


def test_an_hour_is_sparse_enough_to_be_asked_about_and_durations_are_whole_frames() -> None:
    hour = make_plan(one_set(videos={"test": 2}, duration_s=(3600.0, 3600.0), questions_per_episode=8))
    assert len(rows_of(hour.texts["test/manifest.jsonl"])) == 16
    assert all(20 <= len(job.episode.appearances) <= 40 for job in hour.jobs)
    film = make_plan(one_set(fps=Fraction(30000, 1001)))
    for job in film.jobs:
        frames = Fraction(job.episode.duration_s) * job.fps
        assert abs(frames - round(frames)) < 1e-9
        assert 5.9 < job.episode.duration_s < 9.1


def test_a_split_nothing_can_be_asked_about_is_refused() -> None:
    with pytest.raises(UserError, match=r"train: no question of kinds description"):
        make_plan(one_set(kinds=("description",), duration_s=(60.0, 60.0)))


def test_the_record_holds_settings_counts_and_version(tmp_path: Path, small_world: BuildSettings) -> None:
    summary = build_world(small_world, tmp_path)
    record = json.loads((tmp_path / "world.json").read_text())
    assert record["seed"] == 3
    assert record["sets"][0]["duration_s"] == [3.0, 4.0]
    assert record["counts"]["val"]["videos"] == 1
    assert record["counts"]["train"]["rows"] == len(rows_of((tmp_path / "train/manifest.jsonl").read_text()))
    assert record["content_sha256"] == summary.content_sha256
    shutil.rmtree(tmp_path)
