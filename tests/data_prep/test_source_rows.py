"""The rows that each source's records become, word for word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.activitynet_qa import read_answers
from data_prep.captions import CAPTION_INSTRUCTIONS, caption_instruction
from data_prep.command_line import run_source
from data_prep.conversations import read_conversation, show_medium, split_rounds
from data_prep.msvd_qa import read_mapping
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from longvid_train.data.manifest import Turn
from longvid_train.errors import UserError


def rows(name: str, layout: Any, folder: Path, *further: str) -> list[dict[str, Any]]:
    out = folder / "data" / "out.jsonl"
    assert run_source(name, [*layout.arguments, "--out", str(out), "--overwrite", *further]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def make(layouts: dict[str, Callable[[Path], Any]], tmp_path: Path) -> Callable[[str], Any]:
    (tmp_path / "data").mkdir()
    return lambda name: layouts[name](tmp_path / "data")


def texts(row: dict[str, Any]) -> list[str]:
    return [turn["text"] for turn in row["conversation"]]


def change(path: Path, edit: Callable[[list[Any]], None]) -> None:
    records = json.loads(path.read_text(encoding="utf-8"))
    edit(records)
    path.write_text(json.dumps(records), encoding="utf-8")


def test_llava_pretrain_keeps_the_instruction_and_its_placeholder(make: Any, tmp_path: Path) -> None:
    row = rows("llava_pretrain", make("llava_pretrain"), tmp_path)[0]
    assert row["id"] == "llava_pretrain/004539375"
    assert row["media"] == [{"type": "image", "path": "images/00000/004539375.jpg"}]
    assert texts(row) == ["Describe it.\n<image>", "caption ä 00000/004539375.jpg"]


def test_webvid_asks_one_of_our_instructions_and_notes_the_duration(make: Any, tmp_path: Path) -> None:
    made = rows("webvid", make("webvid"), tmp_path)
    assert made[2]["id"] == "webvid/21179418"
    assert made[2]["media"] == [{"type": "video", "path": "videos/000000_000000/21179418.mp4"}]
    assert texts(made[2])[1] == 'Aerial shot, "winter" forest\nat dawn'
    assert made[2]["meta"] == {"kind": "caption", "duration_s": 65}
    asked = [texts(row)[0].removeprefix("<video>\n") for row in made]
    assert asked == [caption_instruction(row["id"].removeprefix("webvid/"), 0) for row in made]
    assert len(set(asked)) > 1


def test_caption_instructions_are_chosen_evenly_and_by_the_seed() -> None:
    chosen = [caption_instruction(str(key), 0) for key in range(2000)]
    assert all(150 < chosen.count(words) < 250 for words in CAPTION_INSTRUCTIONS)
    assert chosen != [caption_instruction(str(key), 1) for key in range(2000)]


def test_webvid_drops_long_clips_and_rows_without_a_folder(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make("webvid")
    text = layout.annotations.read_text()
    text = text.replace("PT00H01M05S,000001_000001,clip 7", "PT01H00M00S,000001_000001,clip 7")
    layout.annotations.write_text(text.replace("PT00H01M05S,000001_000001,clip 6", "PT00H01M05S,,clip 6"))
    made = rows("webvid", layout, tmp_path, "--max-duration", "65", "--json")
    assert [row["id"] for row in made] == [f"webvid/{21179416 + number}" for number in range(6)]
    dropped = json.loads(capsys.readouterr().out)["dropped"]
    assert dropped == {
        "the clip is longer than --max-duration": 1,
        "the row has no page_dir, so its clip was never downloadable": 1,
    }


def test_webvid_row_with_a_field_too_few_is_named_with_its_line(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make("webvid")
    layout.annotations.write_text(layout.annotations.read_text().replace(",000001_000001,clip 4", ",clip 4"))
    out = tmp_path / "data" / "out.jsonl"
    assert run_source("webvid", [*layout.arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{layout.annotations}:7: the record cannot be parsed (the row has 4 fields but the header names 5)" in error


def test_llava_instruct_numbers_repeated_ids_and_keeps_text_rows(make: Any, tmp_path: Path) -> None:
    made = rows("llava_instruct", make("llava_instruct"), tmp_path)
    assert [row["id"] for row in made][-3:] == [
        "llava_instruct/2404785",
        "llava_instruct/000000033471#2",
        "llava_instruct/wgByO4Y_0",
    ]
    assert texts(made[-2]) == ["Where?\n<image>", "Outside."]
    assert "media" not in made[-1] and texts(made[-1]) == ["Write a poem.", "Roses are red."]


def test_llava_instruct_cuts_long_conversations_and_shows_the_image_in_every_piece(make: Any, tmp_path: Path) -> None:
    made = rows("llava_instruct", make("llava_instruct"), tmp_path, "--max-rounds", "1")
    assert [row["id"] for row in made[:3]] == [
        "llava_instruct/000000033471/1",
        "llava_instruct/000000033471/2",
        "llava_instruct/2354786/1",
    ]
    assert texts(made[0]) == ["<image>\nWhat is it?", "A bus."]
    assert texts(made[1]) == ["<image>\nRed?", "Yes."]
    assert made[1]["media"] == made[0]["media"]
    assert len(made) == 5 * 2 + 1 + 1


def test_llava_instruct_can_drop_text_rows(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = rows("llava_instruct", make("llava_instruct"), tmp_path, "--no-texts", "--json")
    assert all("media" in row for row in made) and len(made) == 6
    assert json.loads(capsys.readouterr().out)["dropped"] == {"the record has no medium": 1}


def test_llava_instruct_reads_llama_vids_rows_with_videos(make: Any, tmp_path: Path) -> None:
    layout = make("llava_instruct")
    (tmp_path / "data" / "videos").mkdir()
    (tmp_path / "data" / "videos" / "v_abc.mkv").write_bytes(b"video")
    video = {"id": "v_abc", "video": "v_abc.mp4", "conversations": [{"from": "human", "value": "Why?\n<image>"}]}
    video["conversations"].append({"from": "gpt", "value": "Because."})  # type: ignore[attr-defined]
    change(layout.annotations, lambda records: records.append(video))
    made = rows("llava_instruct", layout, tmp_path, "--videos", str(tmp_path / "data" / "videos"))
    assert made[-1]["media"] == [{"type": "video", "path": "videos/v_abc.mkv"}]
    assert texts(made[-1]) == ["Why?\n<video>", "Because."]
    assert len(rows("llava_instruct", layout, tmp_path)) == len(made) - 1


def test_video_chatgpt_finds_any_container_and_numbers_questions(make: Any, tmp_path: Path) -> None:
    made = rows("video_chatgpt", make("video_chatgpt"), tmp_path)
    name = "video_chatgpt/v_k_ZXmr8pmrs"
    assert [row["id"] for row in made][::2] == [name, f"{name}#2", f"{name}#3"]
    assert made[1]["media"] == [{"type": "video", "path": "videos/v_p1QGn0IzfW0.mkv"}]
    assert texts(made[1]) == ["<video>\nQuestion 1?", "Answer 1."]


def test_msvd_translates_numbers_and_also_finds_numbered_files(make: Any, tmp_path: Path) -> None:
    layout = make("msvd_qa")
    made = rows("msvd_qa", layout, tmp_path)
    assert made[1]["id"] == "msvd_qa/test/30934"
    assert made[1]["media"][0]["path"] == "YouTubeClips/-7KMZQEsJW4_205_208.avi"
    assert texts(made[1]) == ["<video>\nwhat is chewing on a nut?", "word1"]
    assert made[1]["meta"] == {"kind": "open", "answer": "word1", "split": "test", "video_id": "2"}
    layout.medium.rename(layout.medium.with_name("vid2.avi"))
    assert rows("msvd_qa", layout, tmp_path)[1]["media"][0]["path"] == "YouTubeClips/vid2.avi"


@pytest.mark.parametrize(
    ("text", "told"),
    [("a vid1\nb vid1\n", "2: 'vid1' stands twice"), ("a\n", "1: 'a' is not of the form"), ("a b\n", "1: 'a b' is")],
)
def test_msvd_mapping_mistakes_are_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "map.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        read_mapping(InputFile(path))


@pytest.mark.parametrize("name", ["msvd_qa", "msrvtt_qa"])
def test_numbered_videos_cannot_lead_out_of_their_folder(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    layout = make(name)
    (tmp_path / "secret.mp4").write_bytes(b"secret")

    def edit(records: list[Any]) -> None:
        records[0]["video_id"] = "../../secret"

    change(layout.annotations, edit)
    assert run_source(name, [*layout.arguments, "--out", str(tmp_path / "data" / "out.jsonl")]) == 2
    assert "leads out of its folder" in capsys.readouterr().err


def test_msrvtt_keeps_the_category(make: Any, tmp_path: Path) -> None:
    row = rows("msrvtt_qa", make("msrvtt_qa"), tmp_path, "--split", "val")[2]
    assert row["id"] == "msrvtt_qa/val/158583"
    assert row["media"][0]["path"] == "TestVideo/video9770.mp4"
    assert row["meta"]["category_id"] == 9


def test_activitynet_joins_answers_by_id_and_adds_question_marks(make: Any, tmp_path: Path) -> None:
    layout = make("activitynet_qa")

    def edit(records: list[Any]) -> None:
        records[0].update(answer="running", type=0)

    change(tmp_path / "data" / "test_a.json", edit)  # answers stand in another order than questions
    made = rows("activitynet_qa", layout, tmp_path)
    assert [texts(row)[1] for row in made] == ["yes", "yes", "running"]
    assert texts(made[0])[0] == "<video>\nis the athlete wearing trousers?"
    assert [row["meta"]["type"] for row in made] == ["yes/no", "yes/no", "motion"]
    assert made[2]["id"] == "activitynet_qa/test/v_bc-DycGxV9E_2"


def test_activitynet_questions_without_answers_are_bad(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make("activitynet_qa")
    change(tmp_path / "data" / "test_a.json", lambda records: records.pop())
    assert run_source("activitynet_qa", [*layout.arguments, "--out", str(tmp_path / "data" / "out.jsonl")]) == 2
    assert "test_q.json:2 (element 1): no answer in test_a.json (v_1QIUV7WYKXg_0)" in capsys.readouterr().err


def test_activitynet_answer_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '[{"answer": "yes", "type": 3, "question_id": "q"},\n {"answer": "no", "type": 3, "question_id": "q"}]'
    )
    with pytest.raises(UserError, match=r"a\.json:2 \(element 2\): question_id 'q' is answered twice"):
        read_answers(InputFile(path))


def test_nextqa_asks_for_a_letter(make: Any, tmp_path: Path) -> None:
    row = rows("nextqa", make("nextqa"), tmp_path)[2]
    assert row["id"] == "nextqa/val/4010069381_8"
    assert row["media"][0]["path"] == "NExTVideo/1164/4010069381.mp4"
    question, answer = texts(row)
    assert question.startswith("<video>\nhow do the two man play the instrument?\nA. roll the handle\nB. tap")
    assert "\nE. pat with hand\n" in question
    assert answer == "C" == row["meta"]["answer"]
    assert row["meta"]["options"][2] == "strum the string" and row["meta"]["kind"] == "multiple_choice"


def test_nextqa_video_that_the_map_lacks_is_bad(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = make("nextqa")
    (tmp_path / "data" / "map_vid_vidorID.json").write_text('{"4010069381": "../4010069381"}')
    out = ["--out", str(tmp_path / "data" / "out.jsonl")]
    assert run_source("nextqa", [*layout.arguments, *out]) == 2
    assert "leads out of its folder" in capsys.readouterr().err
    (tmp_path / "data" / "map_vid_vidorID.json").write_text('{"4010069381": "1164/4010069381"}')
    assert run_source("nextqa", [*layout.arguments, *out]) == 2
    assert "val.csv:3: the video is not in the map (4882821564)" in capsys.readouterr().err


def test_nextqa_answer_that_is_no_option_is_bad(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = make("nextqa")
    layout.annotations.write_text(layout.annotations.read_text().replace("instrument,2,", "instrument,5,"))
    assert run_source("nextqa", [*layout.arguments, "--out", str(tmp_path / "data" / "out.jsonl")]) == 2
    assert "val.csv:4: the right option is not among the options (5 of 5)" in capsys.readouterr().err


def test_egoschema_subset_has_answers_and_the_rest_is_dropped(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = rows("egoschema", make("egoschema"), tmp_path, "--json")
    assert [texts(row)[1] for row in made] == ["D", "A", "E"]
    assert texts(made[0])[0].startswith("<video>\nWhat is C doing?\nA. C does thing 0\nB. C does thing 1\n")
    assert json.loads(capsys.readouterr().out)["dropped"] == {"the question has no public answer": 1}


def test_egoschema_without_answers_asks_every_question(make: Any, tmp_path: Path) -> None:
    layout = make("egoschema")
    at = layout.arguments.index("--answers")
    del layout.arguments[at : at + 2]
    made = rows("egoschema", layout, tmp_path)
    assert [len(row["conversation"]) for row in made] == [1, 1, 1, 1]
    assert all("answer" not in row["meta"] for row in made)

    def edit(records: list[Any]) -> None:
        records[0]["q_uid"] = "../videos/x"

    change(layout.annotations, edit)
    out = str(tmp_path / "data" / "escape.jsonl")
    assert run_source("egoschema", [*layout.arguments, "--out", out]) == 2


@pytest.mark.parametrize("answer", ["5", "-1", "true", '"3"', "null"])
def test_egoschema_answers_must_be_options(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    layout = make("egoschema")
    (tmp_path / "data" / "subset_answers.json").write_text(f'{{"uid": {answer}}}')
    assert run_source("egoschema", [*layout.arguments, "--out", str(tmp_path / "data" / "out.jsonl")]) == 2
    assert "it must be 0 to 4" in capsys.readouterr().err


def spoken(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def test_conversation_ends_that_teach_nothing_are_left_out_and_counted() -> None:
    talk = read_conversation(
        spoken(("system", "Be brief."), ("gpt", "lead"), ("human", "q"), ("gpt", "a"), ("human", "unanswered"))
    )
    assert talk.turns == (Turn("user", "q"), Turn("assistant", "a"))
    assert talk.notes == {"unusable_turns": 2, "system": "Be brief."}


@pytest.mark.parametrize(
    ("turns", "error", "reason"),
    [
        ([("human", "q")], DroppedError, "no question with an answer"),
        ([("gpt", "a"), ("human", "q")], DroppedError, "no question with an answer"),
        ([("system", "s")], DroppedError, "no question with an answer"),
        ([("human", "q"), ("human", "q"), ("gpt", "a")], BadRecordError, "two turns of one speaker"),
        ([("human", "q"), ("gpt", " \n")], BadRecordError, "an answer is blank"),
        ([("human", "q"), ("alien", "a")], BadRecordError, "a turn's speaker is unknown"),
    ],
)
def test_unusable_conversations_give_their_reason(
    turns: list[tuple[str, str]], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error) as caught:
        read_conversation(spoken(*turns))
    assert caught.value.reason.startswith(reason)  # type: ignore[attr-defined]


def test_conversation_values_must_be_text() -> None:
    with pytest.raises(BadRecordError, match="'value' is not text"):
        read_conversation({"conversations": [{"from": "human", "value": 3}]})
    with pytest.raises(BadRecordError, match="not a filled array"):
        read_conversation({"conversations": []})


def test_media_words_in_text_rows_are_dropped_by_name(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make("sharegpt")

    def edit(records: list[Any]) -> None:
        records[2]["conversations"][1]["value"] = "Use the <video> tag."

    change(layout.annotations, edit)
    assert len(rows("sharegpt", layout, tmp_path, "--json")) == 5
    assert json.loads(capsys.readouterr().out)["dropped"] == {"the text holds a literal <image> or <video>": 1}


def test_show_medium_adds_replaces_and_refuses_placeholders() -> None:
    def turns(question: str, answer: str = "a") -> tuple[Turn, ...]:
        return (Turn("user", question), Turn("assistant", answer))

    assert show_medium(turns("q"), "image")[0].text == "<image>\nq"
    assert show_medium(turns("q\n<image>"), "video")[0].text == "q\n<video>"
    with pytest.raises(BadRecordError, match="2 placeholders for one image"):
        show_medium(turns("<image> <image>"), "image")
    with pytest.raises(DroppedError):
        show_medium(turns("<image> q", "see <image>"), "image")


def test_split_rounds_loses_no_turn() -> None:
    turns = [Turn("user" if number % 2 == 0 else "assistant", str(number)) for number in range(14)]
    for most in range(1, 9):
        pieces = split_rounds(turns, most)
        assert [turn for piece in pieces for turn in piece] == turns
        assert all(len(piece) == 2 * most for piece in pieces[:-1]) and 0 < len(pieces[-1]) <= 2 * most
    assert split_rounds(turns, None) == [tuple(turns)]


def test_llava_pretrain_reads_llama_vids_rows_with_webvid_clips(make: Any, tmp_path: Path) -> None:
    layout = make("llava_pretrain")
    clip = tmp_path / "data" / "videos" / "000001_000050" / "1066674784.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"video")
    said = [{"from": "human", "value": "Sum it up.\n<image>"}, {"from": "gpt", "value": "Clouds."}]
    record = {"id": 1066674784, "video": "000001_000050/1066674784.mp4", "conversations": said}
    change(layout.annotations, lambda records: records.append(record))
    row = rows("llava_pretrain", layout, tmp_path, "--videos", str(tmp_path / "data" / "videos"))[-1]
    assert row["id"] == "llava_pretrain/1066674784"
    assert row["media"] == [{"type": "video", "path": "videos/000001_000050/1066674784.mp4"}]
    assert texts(row) == ["Sum it up.\n<video>", "Clouds."]


def test_activitynet_types_beyond_the_readme_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    answers = [{"answer": 2, "type": kind, "question_id": str(kind)} for kind in (-1, 0, 8, 9)]
    path.write_text(json.dumps(answers))
    read = read_answers(InputFile(path))
    assert [(answer.text, answer.type) for answer in read.values()] == [
        ("2", "-1"),
        ("2", "motion"),
        ("2", "other"),
        ("2", "9"),
    ]
