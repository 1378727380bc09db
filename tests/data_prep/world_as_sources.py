"""World episodes exported in the layouts of the public sources, and a teacher who has seen them."""

import csv
import json
import random
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from longvid_train.world.build import build_world, episode_frames
from longvid_train.world.encode import srt_text
from longvid_train.world.episode import Episode
from longvid_train.world.plan import Job, make_plan
from longvid_train.world.questions import caption
from longvid_train.world.rows import draw_questions
from longvid_train.world.settings import BuildSettings
from longvid_train.world.text import transcript
from tests.data_prep.movienet_layout import MovieNetLayout, jpeg

Row = dict[str, Any]
MOVIE_FPS = 24
"""Movies pretend to run at 24 frames a second, with a key frame each second, three a shot."""
KINDS = ("needle", "order", "count", "detail")


@dataclass(frozen=True)
class World:
    """A built world: folder, rows of each ``set/split``, and what was rendered."""

    folder: Path
    rows: dict[str, list[Row]]
    jobs: tuple[Job, ...]

    @classmethod
    def build(cls, settings: BuildSettings, folder: Path) -> "World":
        build_world(settings, folder)
        manifests = {path.parent.relative_to(folder).as_posix(): path for path in folder.rglob("manifest.jsonl")}
        rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in manifests.items()}
        return cls(folder, rows, make_plan(settings).jobs)

    @property
    def episodes(self) -> dict[str, Episode]:
        return {job.episode.episode_id: job.episode for job in self.jobs}

    def media(self, part: str, row: Row) -> Path:
        return self.folder / part / row["media"][0]["path"]


def export_llava(world: World, part: str, folder: Path, *, kinds: tuple[str, ...]) -> Path:
    """Rows about images, and rows of text alone where ``kinds`` names them, as LLaVA's JSON array with its images."""
    records = []
    for row in world.rows[part]:
        kind = row["media"][0]["type"] if row.get("media") else "text"
        if kind not in kinds:
            continue
        record: Row = {"id": row["id"]}
        if kind == "image":
            record["image"] = f"00000/{world.media(part, row).name}"
            copy(world.media(part, row), folder / "images" / record["image"])
        speakers = {"user": "human", "assistant": "gpt"}
        record["conversations"] = [
            {"from": speakers[turn["role"]], "value": turn["text"]} for turn in row["conversation"]
        ]
        records.append(record)
    return write_json_array(folder / "annotations.json", records)


def export_webvid(world: World, part: str, folder: Path) -> Path:
    """Captioned videos as WebVid's table and folders."""
    path = folder / "results_2M_train.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for number, row in enumerate(video_rows(world, part), start=1000):
            page_dir = "000001_000050"
            copy(world.media(part, row), folder / "videos" / page_dir / f"{number}.mp4")
            duration = f"PT00H00M{round(row['meta']['duration_s']):02d}S"
            writer.writerow([number, f"https://example.org/{number}.mp4", duration, page_dir, answers(row)[0]])
    return path


def export_video_chatgpt(world: World, part: str, folder: Path) -> Path:
    """Questions about videos as VideoInstruct100K."""
    records = []
    for row in video_rows(world, part):
        name = f"v_{row['meta']['episode']}"
        copy(world.media(part, row), folder / "videos" / f"{name}.mp4")
        questions = [turn["text"].removeprefix("<video>\n") for turn in row["conversation"][::2]]
        records += [
            {"q": question, "a": answer, "video_id": name}
            for question, answer in zip(questions, answers(row), strict=True)
        ]
    return write_json_array(folder / "VideoInstruct100K.json", records)


def export_movienet(world: World, part: str, folder: Path) -> MovieNetLayout:
    """Long episodes as MovieNet: key frames a second apart, subtitles, script, meta and the frame rate's annotation."""
    layout = MovieNetLayout(folder)
    episodes = {row["meta"]["episode"] for row in world.rows[part]}
    for job in (job for job in world.jobs if job.episode.episode_id in episodes):
        episode, movie = job.episode, job.episode.episode_id
        assert job.fps == Fraction(1)
        pictures = [jpeg(frame, quality=95) for frame in episode_frames(job)]
        seconds = len(pictures)
        shots = [
            (MOVIE_FPS * start, MOVIE_FPS * end - 1, [MOVIE_FPS * second for second in range(start, end)])
            for start, end in ((start, min(start + 3, seconds)) for start in range(0, seconds, 3))
        ]
        layout.shots(movie, shots)
        names = (f"shot_{second // 3:04d}_img_{second % 3}.jpg" for second in range(seconds))
        layout.tar(movie, dict(zip(names, pictures, strict=True)))
        layout.write("subtitle", f"{movie}.srt", srt_text(episode.subtitles))
        layout.write("script", f"{movie}.script", f"{movie}\n{transcript(episode)}\n")
        layout.write("synopsis", f"{movie}.txt", f"{movie}\n{caption(episode)}\n")
        meta = {"imdb_id": movie, "title": f"{movie} (2026)", "version": [{"runtime": f"{seconds // 60 + 1} min"}]}
        layout.write("meta", f"{movie}.json", json.dumps(meta))
        whole = {"id": f"{movie}_0000", "frame": [0, MOVIE_FPS * seconds], "duration": [0.0, float(seconds)]}
        layout.write("annotation", f"{movie}.json", json.dumps({"imdb_id": movie, "story": [whole]}))
    return layout


class WorldTeacher:
    """Answers our prompts about a movie with questions about its episode whose answers are known to be right."""

    def __init__(self, world: World) -> None:
        self._episodes = world.episodes

    def __call__(self, request: dict[str, Any]) -> str:
        prompt = request["messages"][0]["content"]
        text = prompt.split("=" * 12)[1].strip()
        episode = self._episodes[text.splitlines()[0]]
        told = text.split("\n", 1)[1].strip()
        if '"brief"' in prompt:
            return json.dumps({"brief": told.split("; ")[0], "detailed": told})
        names = ["plot", "character"] if '"character"' in prompt else ["pairs"]
        stream = random.Random(f"{episode.episode_id} {'reason' in prompt} {names}")
        drawn = draw_questions(episode, KINDS, 5 * len(names), stream)
        pairs = [{"question": question.text, "answer": question.answer} for question in drawn]
        return json.dumps({name: pairs[5 * number : 5 * number + 5] for number, name in enumerate(names)})


def video_rows(world: World, part: str) -> list[Row]:
    return [row for row in world.rows[part] if row.get("media") and row["media"][0]["type"] == "video"]


def answers(row: Row) -> list[str]:
    return [turn["text"] for turn in row["conversation"][1::2]]


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_json_array(path: Path, records: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1))
    return path
