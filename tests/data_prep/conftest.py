"""Small folders in the exact layout of every source, written by the tests."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@dataclass(frozen=True)
class Layout:
    """A source on disk.

    Attributes:
        arguments: options of its module, all but ``--out``.
        annotations: its main annotation file.
        records: records in it.
        rows: rows it gives.
        medium: one media file that exactly one record shows; None for text.
        name: how the annotations name it.
        field: a field or column that every record needs.
    """

    arguments: list[str]
    annotations: Path
    records: int
    rows: int
    medium: Path | None
    name: str
    field: str


def write_media(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"media " + name.encode())


def write_json_array(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def llava_pretrain(root: Path) -> Layout:
    names = [f"{number // 3:05d}/{4539375 + number:09d}.jpg" for number in range(9)]
    write_media(root / "images", *names)
    records = [
        {"id": Path(name).stem, "image": name, "conversations": talk("Describe it.\n<image>", f"caption ä {name}")}
        for name in names
    ]
    path = write_json_array(root / "blip_laion_cc_sbu_558k.json", records)
    arguments = ["--annotations", str(path), "--images", str(root / "images")]
    return Layout(arguments, path, 9, 9, root / "images" / names[4], names[4], "conversations")


def webvid(root: Path) -> Layout:
    columns = ["videoid", "contentUrl", "duration", "page_dir", "name"]
    rows = []
    for number in range(8):
        page = f"{number // 4:06d}_{number // 4:06d}"
        write_media(root / "videos", f"{page}/{21179416 + number}.mp4")
        caption = 'Aerial shot, "winter" forest\nat dawn' if number == 2 else f"clip {number}"
        rows.append([21179416 + number, f"https://ak.example/{number}.mp4", "PT00H01M05S", page, caption])
    path = write_table(root / "results_2M_val.csv", columns, rows)
    arguments = ["--csv", str(path), "--videos", str(root / "videos")]
    medium = root / "videos" / "000001_000001" / "21179421.mp4"
    return Layout(arguments, path, 8, 8, medium, "21179421", "page_dir")


def llava_instruct(root: Path) -> Layout:
    names = ["coco/train2017/000000033471.jpg", "gqa/images/2354786.jpg", "ocr_vqa/images/140031996.jpg"]
    names += ["textvqa/train_images/a0f0e0d2c0f.jpg", "vg/VG_100K_2/2404785.jpg"]
    write_media(root / "images", *names)
    records: list[dict[str, Any]] = [
        {"id": Path(name).stem, "image": name, "conversations": talk("<image>\nWhat is it?", "A bus.", "Red?", "Yes.")}
        for name in names
    ]
    records.append({"id": Path(names[0]).stem, "image": names[0], "conversations": talk("Where?\n<image>", "Outside.")})
    records.append({"id": "wgByO4Y_0", "model": "", "conversations": talk("Write a poem.", "Roses are red.")})
    path = write_json_array(root / "llava_v1_5_mix665k.json", records)
    arguments = ["--annotations", str(path), "--images", str(root / "images")]
    return Layout(arguments, path, 7, 7, root / "images" / names[3], names[3], "conversations")


def video_chatgpt(root: Path) -> Layout:
    names = ["v_k_ZXmr8pmrs.mp4", "v_p1QGn0IzfW0.mkv", "v_-x2.webm"]
    write_media(root / "videos", *names)
    ids = ["v_k_ZXmr8pmrs", "v_p1QGn0IzfW0", "v_k_ZXmr8pmrs", "v_-x2", "v_k_ZXmr8pmrs"]
    records = [{"q": f"Question {at}?", "a": f"Answer {at}.", "video_id": name} for at, name in enumerate(ids)]
    path = write_json_array(root / "VideoInstruct100K.json", records)
    arguments = ["--annotations", str(path), "--videos", str(root / "videos")]
    return Layout(arguments, path, 5, 5, root / "videos" / names[1], "v_p1QGn0IzfW0", "q")


def sharegpt(root: Path) -> Layout:
    records = [{"id": f"QWJhYv{at}_0", "conversations": talk(f"Hi {at}", "Hello.", "And?", "So.")} for at in range(6)]
    path = write_json_array(root / "ShareGPT_V3_unfiltered_cleaned_split.json", records)
    return Layout(["--annotations", str(path)], path, 6, 6, None, "", "conversations")


def allava(root: Path) -> Layout:
    names = [f"allava_laion/images/{100277305 + number}.jpeg" for number in range(5)]
    write_media(root, *names)
    records = [
        {
            "id": f"allava_laion_inst_{Path(name).stem}",
            "image": name,
            "conversations": talk("<image>\nHow does it affect value?", "It enhances it."),
            "original_caption": "ring",
            "url": "https://example.org/ring.jpg",
        }
        for name in names
    ]
    path = write_json_array(root / "allava_laion" / "ALLaVA-Instruct-LAION-4V.json", records)
    arguments = ["--annotations", str(path), "--images", str(root)]
    return Layout(arguments, path, 5, 5, root / names[2], names[2], "conversations")


def msvd_qa(root: Path) -> Layout:
    mapping = root / "youtube_mapping.txt"
    clips = ["-4wsuPCjDBc_5_15", "-7KMZQEsJW4_205_208", "-8y1Q0rA3n8_108_115"]
    mapping.write_text("".join(f"{clip} vid{number}\n" for number, clip in enumerate(clips, start=1)))
    write_media(root / "YouTubeClips", *(f"{clip}.avi" for clip in clips))
    records = [
        {"answer": f"word{number}", "id": 30933 + number, "question": "what is chewing on a nut?", "video_id": video}
        for number, video in enumerate([1, 2, 1, 3, 1])
    ]
    path = write_json_array(root / "test_qa.json", records)
    arguments = ["--annotations", str(path), "--videos", str(root / "YouTubeClips"), "--youtube-mapping", str(mapping)]
    return Layout(arguments, path, 5, 5, root / "YouTubeClips" / f"{clips[1]}.avi", "", "question")


def msrvtt_qa(root: Path) -> Layout:
    write_media(root / "TestVideo", *(f"video{number}.mp4" for number in (7010, 7011, 9770)))
    records = [
        {"answer": "band", "category_id": 9, "id": number, "question": "what is playing?", "video_id": video}
        for number, video in enumerate([7010, 7011, 9770, 7010], start=158581)
    ]
    path = write_json_array(root / "test_qa.json", records)
    arguments = ["--annotations", str(path), "--videos", str(root / "TestVideo")]
    return Layout(arguments, path, 4, 4, root / "TestVideo" / "video7011.mp4", "", "question")


def activitynet_qa(root: Path) -> Layout:
    write_media(root / "videos", "v_1QIUV7WYKXg.mp4", "v_bc-DycGxV9E.mkv")
    names = ["1QIUV7WYKXg", "1QIUV7WYKXg", "bc-DycGxV9E"]
    questions = [
        {"video_name": name, "question": "is the athlete wearing trousers", "question_id": f"v_{name}_{number}"}
        for number, name in enumerate(names)
    ]
    answers = [{"answer": "yes", "type": 3, "question_id": question["question_id"]} for question in questions]
    path = write_json_array(root / "test_q.json", questions)
    write_json_array(root / "test_a.json", answers[::-1])
    arguments = ["--questions", str(path), "--answers", str(root / "test_a.json"), "--videos", str(root / "videos")]
    return Layout(arguments, path, 3, 3, root / "videos" / "v_bc-DycGxV9E.mkv", '"bc-DycGxV9E', "video_name")


def nextqa(root: Path) -> Layout:
    columns = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type"]
    options = ["roll the handle", "tap their feet", "strum the string", "hit with sticks", "pat with hand"]
    videos = ["4010069381", "4882821564", "4010069381"]
    rows = [
        [video, 369, 640, 480, "how do the two man play the instrument", number, 6 + number, "CH", *options]
        for number, video in enumerate(videos)
    ]
    path = write_table(root / "val.csv", [*columns, "a0", "a1", "a2", "a3", "a4"], rows)
    places = {video: f"{1164 + number}/{video}" for number, video in enumerate(videos[:2])}
    (root / "map_vid_vidorID.json").write_text(json.dumps(places))
    write_media(root / "NExTVideo", *(f"{place}.mp4" for place in places.values()))
    arguments = ["--csv", str(path), "--map", str(root / "map_vid_vidorID.json")]
    arguments += ["--videos", str(root / "NExTVideo"), "--split", "val"]
    return Layout(arguments, path, 3, 3, root / "NExTVideo" / "1165" / "4882821564.mp4", "", "question")


def egoschema(root: Path) -> Layout:
    uids = [f"{number:08x}-81bd-4cd8-a574-0472ef3f6678" for number in range(4)]
    records = [
        {"q_uid": uid, "google_drive_id": "15yG", "question": "What is C doing?"}
        | {f"option {number}": f"C does thing {number}" for number in range(5)}
        for uid in uids
    ]
    path = write_json_array(root / "questions.json", records)
    (root / "subset_answers.json").write_text(json.dumps({uids[0]: 3, uids[1]: 0, uids[3]: 4}))
    write_media(root / "videos", *(f"{uid}.mp4" for uid in uids))
    arguments = ["--questions", str(path), "--answers", str(root / "subset_answers.json")]
    arguments += ["--videos", str(root / "videos")]
    return Layout(arguments, path, 4, 3, root / "videos" / f"{uids[1]}.mp4", "", "question")


def videomme(root: Path) -> Layout:
    videos = [("001", "short", "fFjv93ACGo8"), ("601", "long", "w-_Nb7kQx0c")]
    records = [
        {
            "video_id": number,
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "url": f"https://www.youtube.com/watch?v={name}",
            "videoID": name,
            "question_id": f"{number}-{at}",
            "task_type": "Counting Problem",
            "question": "Which decoration has the largest number?",
            "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."],
            "answer": answer,
        }
        for number, duration, name in videos
        for at, answer in enumerate("CA" if duration == "short" else "D", start=1)
    ]
    path = root / "videomme" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(records), path)
    write_media(root / "data", "fFjv93ACGo8.mp4", "w-_Nb7kQx0c.mp4")
    (root / "subtitle").mkdir()
    (root / "subtitle" / "fFjv93ACGo8.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,500\n"
        '<font color="white" size=".72c">[Music]</font>\n<font color="white" size=".72c">and new  at 6:00</font>\n\n'
        '2\n00:00:03,000 --> 00:00:04,000\n<font color="white" size=".72c"> </font>\n'
    )
    arguments = ["--annotations", str(path), "--videos", str(root / "data"), "--srt", str(root / "srt")]
    arguments += ["--subtitles", str(root / "subtitle")]
    return Layout(arguments, path, 3, 3, root / "data" / "w-_Nb7kQx0c.mp4", "", "videoID")


def mlvu(root: Path) -> Layout:
    def record(video: str, kind: str, candidates: list[Any], answer: Any, question: str) -> dict[str, Any]:
        return {
            "video": video,
            "duration": 467.98,
            "question": question,
            "candidates": candidates,
            "answer": answer,
            "question_type": kind,
        }

    colours = ["Yellow", "Red", "Green", "Blue"]
    needles = [
        record("needle_32.mp4", "findNeedle", ["Delivers a product", "Shakes hands"], "Shakes hands", "What is done"),
        record("needle_33.mp4", "findNeedle", colours, "Blue", "Which colour?"),
    ]
    path = write_json_array(root / "json" / "2_needle.json", needles)
    plots = [record("movie101_66.mp4", "plotQA", colours, name, "What colour?") for name in ("Yellow", "Red")]
    write_json_array(root / "json" / "1_plotQA.json", plots)
    counts = [record("count_9.mp4", "count", [4, 1, 2, 7], 7, "How many?")]
    write_json_array(root / "json" / "4_count.json", counts)
    summary = {
        "video": "217.mp4",
        "duration": 480.0,
        "question": "Summarise.",
        "answer": "A",
        "question_type": "summary",
    }
    write_json_array(root / "json" / "9_summary.json", [summary])
    for task, names in {
        "1_plotQA": ["movie101_66.mp4"],
        "2_needle": ["needle_32.mp4", "needle_33.mp4"],
        "4_count": ["count_9.mp4"],
    }.items():
        write_media(root / "video" / task, *names)
    files = [str(root / "json" / f"{name}.json") for name in ("1_plotQA", "2_needle", "4_count", "9_summary")]
    arguments = ["--annotations", *files, "--videos", str(root / "video")]
    return Layout(arguments, path, 6, 5, root / "video" / "2_needle" / "needle_33.mp4", "needle_33.mp4", "question")


def longvideobench(root: Path) -> Layout:
    videos = [("86CxyhFV9MI", 15, 9.5, 553.0), ("jPQXGdnIvPo", 3600, 1200.0, 0)]
    records = [
        {
            "video_id": name,
            "question": "In the video, which subtitles appear at the same time as the man with black hair?",
            "question_wo_referring_query": "Which subtitles appear?",
            "candidates": ["promisc has come to an end", "run out of time", "the end"][: 2 + at],
            "correct_choice": at,
            "position": [854, 1018],
            "topic_category": "NP-News-Programs",
            "question_category": ("TOS", "S2E")[at],
            "level": "L2-Relation",
            "id": f"{name}_{at}",
            "video_path": f"{name}.mp4",
            "subtitle_path": f"{name}_en.json",
            "duration_group": group,
            "starting_timestamp_for_subtitles": start,
            "duration": duration,
            "view_count": 31100,
        }
        for name, group, duration, start in videos
        for at in range(2 if group == 15 else 1)
    ]
    path = write_json_array(root / "lvb_val.json", records)
    write_media(root / "videos", *(f"{name}.mp4" for name, *_ in videos))
    clocked = [
        {"start": "00:09:11.000", "end": "00:09:12.900", "line": "before the clip"},
        {"start": "00:09:12.500", "end": "00:09:14.250", "line": "as it <i>starts</i>"},
        {"start": "00:09:20.000", "end": "00:09:40.000", "line": "until after its end"},
        {"start": "00:10:00.000", "end": "00:10:01.000", "line": "behind the clip"},
    ]
    write_json_array(root / "subtitles" / "86CxyhFV9MI_en.json", clocked)
    timed = [{"timestamp": [1181.5, None], "text": " last words "}, {"timestamp": [0.0, 2.25], "text": "hello"}]
    write_json_array(root / "subtitles" / "jPQXGdnIvPo_en.json", timed)
    arguments = ["--annotations", str(path), "--videos", str(root / "videos"), "--split", "val"]
    arguments += ["--srt", str(root / "srt"), "--subtitles", str(root / "subtitles")]
    return Layout(arguments, path, 3, 3, root / "videos" / "jPQXGdnIvPo.mp4", "jPQXGdnIvPo.mp4", "candidates")


def folder(root: Path) -> Layout:
    names = ["a/first.mp4", "a/b/second.MKV", "third.webm"]
    write_media(root / "videos", *names)
    (root / "videos" / "a" / "first.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n", encoding="utf-8")
    rows = [["a/first.mp4", "Who speaks?", "Ada"], ["third.webm", "Where?", ""], ["a/b/second.MKV", "When?", "Now"]]
    path = write_table(root / "questions.csv", ["video", "question", "answer"], rows)
    arguments = ["--videos", str(root / "videos"), "--questions", str(path)]
    return Layout(arguments, path, 3, 3, root / "videos" / "third.webm", "third.webm", "question")


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    maker.__name__: maker
    for maker in (
        llava_pretrain,
        webvid,
        llava_instruct,
        video_chatgpt,
        sharegpt,
        allava,
        msvd_qa,
        msrvtt_qa,
        activitynet_qa,
        nextqa,
        egoschema,
        videomme,
        mlvu,
        longvideobench,
        folder,
    )
}


@pytest.fixture(params=sorted(LAYOUTS))
def source(request: pytest.FixtureRequest) -> str:
    """Name of each source in turn."""
    return str(request.param)


@pytest.fixture
def layout(source: str, tmp_path: Path) -> Layout:
    """The source's layout, below ``tmp_path / "data"``."""
    (tmp_path / "data").mkdir()
    return LAYOUTS[source](tmp_path / "data")


@pytest.fixture
def layouts() -> dict[str, Callable[[Path], Layout]]:
    """Every layout by the name of its source."""
    return LAYOUTS
