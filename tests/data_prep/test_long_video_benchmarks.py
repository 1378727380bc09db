"""Rows of Video-MME, MLVU and LongVideoBench, word for word; and what ``longvid evaluate`` reports of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.command_line import run_source
from data_prep.longvideobench import read_lines
from data_prep.outcome import BadRecordError
from data_prep.subtitles import MadeSubtitles, without_markup
from longvid_train.errors import UserError
from longvid_train.evaluation.local.predictions import Prediction
from longvid_train.evaluation.local.scores import Score
from longvid_train.evaluation.local.summary import Row, summarise
from longvid_train.types import Subtitle
from longvid_train.video.subtitles import read_subtitles

Make = Callable[[str], Any]


@pytest.fixture
def make(layouts: dict[str, Callable[[Path], Any]], tmp_path: Path) -> Make:
    (tmp_path / "data").mkdir()
    return lambda name: layouts[name](tmp_path / "data")


def rows(name: str, layout: Any, folder: Path, *further: str) -> list[dict[str, Any]]:
    out = folder / "data" / "out.jsonl"
    assert run_source(name, [*layout.arguments, "--out", str(out), "--overwrite", *further]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def refused(name: str, layout: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out = folder / "data" / "out.jsonl"
    assert run_source(name, [*layout.arguments, "--out", str(out)]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def texts(row: dict[str, Any]) -> list[str]:
    return [turn["text"] for turn in row["conversation"]]


def change(path: Path, edit: Callable[[list[Any]], None]) -> None:
    if path.suffix == ".parquet":
        records = pq.read_table(path).to_pylist()
        edit(records)
        pq.write_table(pa.Table.from_pylist(records), path)
        return
    records = json.loads(path.read_text(encoding="utf-8"))
    edit(records)
    path.write_text(json.dumps(records), encoding="utf-8")


def test_videomme_writes_each_option_with_one_letter_and_what_tables_are_by(make: Make, tmp_path: Path) -> None:
    first, _, last = rows("videomme", make("videomme"), tmp_path)
    assert (first["id"], last["id"]) == ("videomme/001-1", "videomme/601-1")
    question, answer = texts(first)
    assert question.splitlines()[:4] == [
        "<video>",
        "Which decoration has the largest number?",
        "A. Apples.",
        "B. Candles.",
    ]
    assert answer == "C" == first["meta"]["answer"]
    assert first["meta"]["options"] == ["Apples.", "Candles.", "Berries.", "The three kinds are of the same number."]
    reported = {name: last["meta"][name] for name in ("duration", "domain", "sub_category", "task_type")}
    assert reported == {
        "duration": "long",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "task_type": "Counting Problem",
    }


def test_videomme_subtitles_lose_their_markup_and_videos_without_have_none(make: Make, tmp_path: Path) -> None:
    first, second, last = rows("videomme", make("videomme"), tmp_path)
    assert first["media"] == second["media"]
    assert first["media"] == [{"type": "video", "path": "data/fFjv93ACGo8.mp4", "subtitles": "srt/fFjv93ACGo8.srt"}]
    assert last["media"] == [{"type": "video", "path": "data/w-_Nb7kQx0c.mp4"}]
    found = read_subtitles(tmp_path / "data" / "srt" / "fFjv93ACGo8.srt")
    assert found == [Subtitle(1.0, 2.5, "[Music]\nand new at 6:00")]


def test_videomme_without_subtitles_shows_none(make: Make, tmp_path: Path) -> None:
    layout = make("videomme")
    del layout.arguments[-2:]
    assert all("subtitles" not in row["media"][0] for row in rows("videomme", layout, tmp_path))
    assert not (tmp_path / "data" / "srt").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answer", "E", "the right option is not among the options (4 of 4)"),
        ("answer", "Berries.", "field 'answer' is not a letter"),
        ("options", ["A. Apples.", " "], "an option is not text"),
        ("duration", " ", "field 'duration' is not text"),
        ("videoID", "../fFjv93ACGo8", "leads out of its folder"),
    ],
)
def test_videomme_records_that_break_the_format_are_named_by_element(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any, message: str
) -> None:
    layout = make("videomme")
    change(layout.annotations, lambda records: records[1].update({field: value}))
    said = refused("videomme", layout, tmp_path, capsys)
    assert message in said and f"{layout.annotations} (element 2)" in said


def test_videomme_subtitles_folder_must_hold_some(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make("videomme")
    srt = tmp_path / "data" / "subtitle" / "fFjv93ACGo8.srt"
    srt.write_text("1\nno times\n")
    assert f"the subtitles are broken ({srt}:2: expected" in refused("videomme", layout, tmp_path, capsys)
    srt.unlink()
    assert "subtitle holds no VIDEOID.srt; unpack subtitle.zip" in refused("videomme", layout, tmp_path, capsys)


def test_parquet_that_is_none_or_lacks_a_column_is_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make("videomme")
    whole = layout.annotations.read_bytes()
    layout.annotations.write_bytes(whole[:-20])
    assert f"{layout.annotations}: not a whole Parquet file" in refused("videomme", layout, tmp_path, capsys)
    layout.annotations.write_bytes(whole)
    table = pq.read_table(layout.annotations)
    pq.write_table(
        table.rename_columns([{"task_type": "task_typ"}.get(name, name) for name in table.column_names]),
        layout.annotations,
    )
    said = refused("videomme", layout, tmp_path, capsys)
    assert f"{layout.annotations}: column 'task_type' is missing; the file has video_id, " in said
    assert "did you mean 'task_typ'?" in said


def test_mlvu_names_tasks_as_its_tables_do_and_finds_the_answer_among_the_candidates(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = rows("mlvu", make("mlvu"), tmp_path, "--json")
    assert [row["id"] for row in made] == [
        "mlvu/plotQA/movie101_66",
        "mlvu/plotQA/movie101_66#2",
        "mlvu/needle/needle_32",
        "mlvu/needle/needle_33",
        "mlvu/count/count_9",
    ]
    assert [texts(row)[1] for row in made] == ["A", "B", "B", "D", "D"]
    assert made[2]["media"] == [{"type": "video", "path": "video/2_needle/needle_32.mp4"}]
    assert texts(made[2])[0].startswith("<video>\nWhat is done?\nA. Delivers a product\nB. Shakes hands\n")
    assert made[2]["meta"]["task"] == "needle" and made[2]["meta"]["duration_s"] == 467.98
    assert made[4]["meta"]["options"] == ["4", "1", "2", "7"]
    dropped = json.loads(capsys.readouterr().out)["dropped"]
    assert dropped == {"a generation task, which MLVU's own judge scores": 1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answer", "Purple", 'the answer is not among the candidates ("Purple")'),
        ("question_type", "plot", "field 'question_type' is no task of MLVU"),
        ("candidates", ["Blue", None], "a candidate or the answer is not text"),
        ("duration", "8 min", "field 'duration' is not a number, 0 or more"),
    ],
)
def test_mlvu_records_that_break_the_format_are_named_by_line(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any, message: str
) -> None:
    layout = make("mlvu")
    change(layout.annotations, lambda records: records[1].update({field: value}))
    said = refused("mlvu", layout, tmp_path, capsys)
    assert message in said and f"{layout.annotations}:1 (element 2)" in said


def test_longvideobench_rows_and_their_subtitles_in_the_videos_time(make: Make, tmp_path: Path) -> None:
    first, second, last = rows("longvideobench", make("longvideobench"), tmp_path)
    assert [row["id"].removeprefix("longvideobench/val/") for row in (first, second, last)] == [
        "86CxyhFV9MI_0",
        "86CxyhFV9MI_1",
        "jPQXGdnIvPo_0",
    ]
    assert (texts(first)[1], texts(second)[1]) == ("A", "B")
    assert second["meta"]["options"] == ["promisc has come to an end", "run out of time", "the end"]
    assert {name: last["meta"][name] for name in ("duration_group", "question_category", "duration_s")} == {
        "duration_group": "3600",
        "question_category": "TOS",
        "duration_s": 1200.0,
    }
    assert first["media"][0]["subtitles"] == "srt/86CxyhFV9MI.srt"
    assert read_subtitles(tmp_path / "data" / "srt" / "86CxyhFV9MI.srt") == [
        Subtitle(0.0, 1.25, "as it starts"),
        Subtitle(7.0, 9.5, "until after its end"),
    ]
    spoken = read_subtitles(tmp_path / "data" / "srt" / "jPQXGdnIvPo.srt")
    assert spoken == [Subtitle(0.0, 2.25, "hello"), Subtitle(1181.5, 1200.0, "last words")]


def test_longvideobench_test_rows_have_no_answers(make: Make, tmp_path: Path) -> None:
    layout = make("longvideobench")
    change(layout.annotations, lambda records: [record.pop("correct_choice") for record in records])
    layout.arguments[layout.arguments.index("val")] = "test"
    made = rows("longvideobench", layout, tmp_path)
    assert [len(row["conversation"]) for row in made] == [1, 1, 1]
    assert all("answer" not in row["meta"] for row in made) and made[0]["id"].startswith("longvideobench/test/")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"timestamp": ["1", 2.0], "text": "x"}], "a time is not a number of seconds"),
        ([{"start": "1 s", "end": "00:00:02", "line": "x"}], "a time is not of the form 00:00:01.000"),
        ([{"start": "00:00:01", "end": "00:00:02"}], "field 'line' is missing"),
        ([{"timestamp": [1, 2], "text": 3}], "a line is not text"),
    ],
)
def test_longvideobench_subtitles_that_are_broken_are_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = tmp_path / "a_en.json"
    path.write_text(json.dumps(lines))
    with pytest.raises(BadRecordError) as found:
        read_lines(path, end_s=10.0)
    assert found.value.reason == "the subtitles are broken" and str(path) in found.value.detail
    assert message in found.value.detail


def test_missing_subtitles_are_missing_media(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = make("longvideobench")
    (tmp_path / "data" / "subtitles" / "jPQXGdnIvPo_en.json").unlink()
    assert "subtitles is missing" in refused("longvideobench", layout, tmp_path, capsys)
    assert len(rows("longvideobench", layout, tmp_path, "--skip-missing", "1")) == 2


def test_subtitles_are_written_again_only_when_they_differ(tmp_path: Path) -> None:
    made = MadeSubtitles.open(tmp_path / "srt", tmp_path / "out.jsonl")
    assert made.write("a", [Subtitle(0.0, 1.0, "x"), Subtitle(1.0, 2.0, "")]) == "srt/a.srt"
    path = tmp_path / "srt" / "a.srt"
    before = path.stat().st_ino
    made.write("a", [Subtitle(0.0, 1.0, "x")])
    assert path.stat().st_ino == before and read_subtitles(path) == [Subtitle(0.0, 1.0, "x")]
    made.write("a", [Subtitle(0.0, 1.0, "y")])
    assert read_subtitles(path)[0].text == "y"
    with pytest.raises(BadRecordError, match="leads out of its folder"):
        made.write("../a", [])


def test_two_manifests_of_one_folder_keep_their_subtitles_apart(tmp_path: Path) -> None:
    """Video-MME and LongVideoBench may show the same video of YouTube, the latter a cut of it."""
    whole, cut = (MadeSubtitles.open(None, tmp_path / name) for name in ("videomme.jsonl", "lvb.jsonl"))
    assert whole.write("a", [Subtitle(0.0, 1.0, "whole")]) == "videomme_srt/a.srt"
    assert cut.write("a", [Subtitle(0.0, 1.0, "cut")]) == "lvb_srt/a.srt"
    assert read_subtitles(tmp_path / "videomme_srt" / "a.srt")[0].text == "whole"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--srt .*file: the folder cannot be made \(File exists\)"):
        MadeSubtitles.open(tmp_path / "file", tmp_path / "lvb.jsonl")


def test_markup_goes_and_other_angles_stay() -> None:
    assert without_markup('{\\an8}<I>a</i>  <font color="white" size=".72c">b < c</font>\n \n<3') == "a b < c\n<3"


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("videomme", {"duration": ["short", "long"]}),
        ("mlvu", {"task": ["count", "needle", "plotQA"]}),
        ("longvideobench", {"duration_group": ["15", "3600"], "question_category": ["S2E", "TOS"]}),
    ],
)
def test_evaluate_reports_by_what_the_benchmark_reports_by(
    make: Make, tmp_path: Path, name: str, tables: dict[str, list[str]]
) -> None:
    """And no table is by a number of seconds."""
    made = rows(name, make(name), tmp_path)
    answered = [
        Row(
            prediction=Prediction(
                id=row["id"],
                manifest="out.jsonl",
                place=(0, number, 0),
                kind=row["meta"]["kind"],
                question=texts(row)[0],
                options=tuple(row["meta"]["options"]),
                truth=row["meta"]["answer"],
                answer="A",
                meta=row["meta"],
                video=row["media"][0]["path"],
                duration_s=10.0,
                frames=1,
                visual_tokens=1,
                prompt_tokens=1,
                new_tokens=1,
                scale=1.0,
                batch=1,
                generate_s=1.0,
            ),
            score=Score(
                id=row["id"], metric="choice", score=float(row["meta"]["answer"] == "A"), chosen="A", rule="letter"
            ),
        )
        for number, row in enumerate(made)
    ]
    summary = summarise(answered, questions=len(answered))
    found = {one.name: [group.name for group in one.groups] for one in summary.breakdowns}
    assert found == tables


def test_configs_name_the_modules_that_write_their_manifests() -> None:
    folder = Path(__file__).parents[2] / "configs" / "evaluation"
    listed = {
        one["task"]: one["local"] for one in yaml.safe_load((folder / "benchmarks.yaml").read_text())["benchmarks"]
    }
    for task, name in {"videomme": "videomme", "mlvu_dev": "mlvu", "longvideobench_val_v": "longvideobench"}.items():
        assert listed[task] == f"{name}.yaml"
        assert f"python -m data_prep.{name} " in (folder / f"{name}.yaml").read_text()
