"""Runs over real files: batches and processes change no word, interruptions lose nothing, other runs are refused."""

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from longvid_train.errors import UserError
from longvid_train.evaluation.local.answering import POOL_BATCHES
from longvid_train.evaluation.local.identity import RECORD_FILE, Asked, read_asked
from longvid_train.evaluation.local.lock import sole_use
from longvid_train.evaluation.local.predictions import Prediction, read_predictions
from longvid_train.evaluation.local.run import (
    LEFT_OUT_FILE,
    PREDICTIONS_FILE,
    STARTED,
    TORCHRUN,
    Rank,
    answer_all,
    answer_share,
    prepare,
    torchrun_rank,
)
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.generate.chat import VideoChat, VideoRequest
from longvid_train.generate.media import ReadOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.launcher import ELASTIC
from longvid_train.video import UniformFrames
from tests.evaluation.local.conftest import row, rows, write_rows


def predicted(out: Path) -> list[Prediction]:
    return read_predictions(out / PREDICTIONS_FILE)


def answers(out: Path) -> dict[str, str]:
    return {one.id: one.answer for one in predicted(out)}


def test_every_row_is_asked_as_a_conversation_would_ask_it(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path
) -> None:
    assert answer_all(settings, tmp_path / "out") == 8
    found = {one.id: one for one in predicted(tmp_path / "out")}
    assert list(found) == ["q0", "q1", "q2", "q3", "q4", "q5", "q5/2", "q6"]
    chat = VideoChat.load(settings.model or "", device="cpu")
    read, few = ReadOptions(isolated=False), GenerationOptions(max_new_tokens=4)

    def asked(video: str, question: str, history: tuple[tuple[str, str], ...] = (), **window: float) -> str:
        request = VideoRequest(benchmark / f"{video}.mp4", UniformFrames(count=4, **window))  # type: ignore[arg-type]
        return chat.open([request], read=read, history=history).ask(question, few).answer

    assert found["q0"].answer == asked("a", "What is it?")
    assert found["q5/2"].answer == asked("c", "And then?", (("What is first?", "red"),))
    assert found["q6"].answer == asked("a", "What is in this part?", start_s=2.0, end_s=6.0)
    assert len({one.answer for one in found.values()}) > 1
    assert (found["q5"].kind, found["q5/2"].kind, found["q5/2"].truth) == ("needle", "order", "blue")
    assert (found["q6"].duration_s, found["q1"].duration_s, found["q3"].truth) == (4.0, 4.0, None)
    assert found["q0"].frames == 4 and found["q0"].visual_tokens == 4 * 16 + 1


@pytest.mark.parametrize("batch_size", [2, 4])
def test_batches_of_alike_questions_give_the_same_answers(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path, batch_size: int
) -> None:
    words = ["What is it?", "Who is it?!", "Where is this", "Is it a big one?"]
    many = [row(number, "abc"[number % 3], words[number % 4], "red", kind="open") for number in range(14)]
    write_rows(benchmark, many)
    answer_all(settings, tmp_path / "one")
    answer_all(replace(settings, batch_size=batch_size), tmp_path / "several")
    assert answers(tmp_path / "several") == answers(tmp_path / "one")
    together = [one.batch for one in predicted(tmp_path / "several")]
    assert max(together) == batch_size
    assert batch_size * POOL_BATCHES >= len(many)  # one pool, so equal lengths meet whatever stands between them


def test_shares_of_processes_make_up_the_whole(settings: EvaluationSettings, tmp_path: Path) -> None:
    answer_all(settings, tmp_path / "one")
    out = tmp_path / "two"
    with ExitStack() as held:
        prepare(settings, out, "", held)
    answer_share(settings, out, Rank(1, 2))
    assert sorted(answers(out)) == ["q1", "q3"]  # the questions about the second of the three videos
    answer_share(settings, out, Rank(0, 2))
    assert answers(out) == answers(tmp_path / "one")


@pytest.mark.slow
def test_processes_write_one_file_of_the_same_answers(settings: EvaluationSettings, tmp_path: Path) -> None:
    answer_all(settings, tmp_path / "one")
    assert answer_all(replace(settings, processes=2), tmp_path / "two") == 8
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert len((tmp_path / "two" / PREDICTIONS_FILE).read_text().splitlines()) == 8


@pytest.mark.slow
def test_a_mistake_in_one_process_is_one_line_and_ends_all(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path
) -> None:
    (benchmark / "b.mp4").write_bytes(b"no video" * 50)
    with pytest.raises(UserError, match=r"row 'q1' cannot be asked: .*b\.mp4.*max_left_out is 0"):
        answer_all(replace(settings, processes=2), tmp_path / "out")


@pytest.mark.slow
def test_torchrun_ranks_write_one_file(settings: EvaluationSettings, tmp_path: Path) -> None:
    answer_all(settings, tmp_path / "one")
    words = ["--manifest", settings.manifests[0], "--model", str(settings.model), "--frames", "4"]
    words += ["--max-new-tokens", "4", "--device", "cpu", "--out", str(tmp_path / "two"), "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "--standalone", "-m", "longvid_train.cli", "evaluate", *words],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answered"] == 8  # printed once
    assert answers(tmp_path / "two") == answers(tmp_path / "one")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is '4' but TORCHELASTIC_RUN_ID is not set"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS is '2' but .*start one with --processes N, or unset"),
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "MASTER_PORT": "1"},
            "WORLD_SIZE, MASTER_ADDR are not; start it with",
        ),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}, "MASTER_ADDR is not; start"),
        ({**dict.fromkeys(TORCHRUN, "1"), ELASTIC: "a", "RANK": "one"}, "RANK is 'one'; it must be a whole number"),
    ],
)
def test_half_a_launcher_is_refused_before_anything_is_read(
    settings: EvaluationSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    message: str,
) -> None:
    for name in (ELASTIC, *TORCHRUN, *STARTED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        answer_all(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ranks_wait_for_each_other_for_days(
    settings: EvaluationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default of half an hour would end a run whose shares differ by as much."""
    waits: list[timedelta] = []

    def stop(backend: str, timeout: timedelta) -> None:
        waits.append(timeout)
        raise UserError("far enough")

    monkeypatch.setattr(dist, "init_process_group", stop)
    for name in STARTED:
        monkeypatch.delenv(name, raising=False)
    for name, value in {ELASTIC: "a", **dict.fromkeys(TORCHRUN, "1")}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="far enough"):
        answer_all(settings, tmp_path / "out")
    assert waits == [timedelta(days=7)]


def test_the_only_task_of_a_launcher_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ELASTIC, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name in STARTED:
        monkeypatch.setenv(name, "1")
    assert torchrun_rank() is None


def test_an_interrupted_run_goes_on_and_keeps_what_it_has(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken video stops the run midway; its file also ends in half a line, as after a kill."""
    good = (benchmark / "b.mp4").read_bytes()
    (benchmark / "b.mp4").write_bytes(b"no video" * 50)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"row 'q1' cannot be asked: .*b\.mp4.*max_left_out is 0"):
        answer_all(settings, out)
    path = out / PREDICTIONS_FILE
    first = path.read_bytes()
    assert [one.id for one in predicted(out)] == ["q0"]
    path.write_bytes(first + b'{"id": "q1", "ans')
    (benchmark / "b.mp4").write_bytes(good)
    assert answer_all(settings, out) == 8
    said = capsys.readouterr().err
    assert "an unfinished last line of 17 bytes was cut off" in said and "1 of 8 questions are answered" in said
    assert path.read_bytes().startswith(first)
    assert len(answers(out)) == len(path.read_text().splitlines()) == 8
    assert not (out / LEFT_OUT_FILE).exists()
    answer_all(settings, tmp_path / "whole")
    assert answers(out) == answers(tmp_path / "whole")


def test_a_finished_run_loads_no_model_again(
    settings: EvaluationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_all(settings, tmp_path / "out")
    monkeypatch.setattr(VideoChat, "load", lambda *given, **named: pytest.fail("weights were loaded"))
    assert answer_all(settings, tmp_path / "out") == 8


def test_missing_videos_are_named_and_counted_before_weights(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (benchmark / "c.mp4").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(VideoChat, "load", lambda *given, **named: pytest.fail("weights were loaded"))
        with pytest.raises(
            UserError, match=r"3 rows name 1 files that do not exist \(.*c\.mp4\), and max_left_out is 2"
        ):
            answer_all(replace(settings, max_left_out=2), tmp_path / "out")
    assert answer_all(replace(settings, max_left_out=3), tmp_path / "out") == 8
    assert list(answers(tmp_path / "out")) == ["q0", "q1", "q2", "q3", "q6"]
    left = [json.loads(line) for line in (tmp_path / "out" / LEFT_OUT_FILE).read_text().splitlines()]
    assert [one["id"] for one in left] == ["q4", "q5", "q5/2"]
    assert all(one["reason"].endswith("c.mp4: no such file") for one in left)


def test_a_file_that_goes_missing_later_is_named_and_counted(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``b.mp4`` is missing when the folder is made ready, ``c.mp4`` from then on."""
    monkeypatch.setattr(VideoChat, "load", lambda *given, **named: pytest.fail("weights were loaded"))
    (benchmark / "b.mp4").unlink()
    out, allowed = tmp_path / "out", replace(settings, max_left_out=4)
    with ExitStack() as held:
        assert prepare(allowed, out, "", held) == (8, 6)
    (benchmark / "c.mp4").unlink()
    with pytest.raises(UserError, match=r"row 'q5/2' cannot be asked: .*c\.mp4: no such file; that makes 5 left out"):
        answer_share(allowed, out, Rank())
    left = [json.loads(line)["id"] for line in (out / LEFT_OUT_FILE).read_text().splitlines()]
    assert left == ["q1", "q3", "q4", "q5", "q5/2"]
    (benchmark / "a.mp4").unlink()
    answer_share(replace(settings, max_left_out=8), out, Rank())
    left = [json.loads(line)["id"] for line in (out / LEFT_OUT_FILE).read_text().splitlines()]
    assert left == ["q1", "q3", "q4", "q5", "q5/2", "q0", "q2", "q6"]


def test_a_second_start_in_a_folder_is_refused(settings: EvaluationSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with sole_use(out), pytest.raises(UserError, match=r"out: longvid evaluate is at work there \(process \d+\); wait"):
        answer_all(settings, out)
    assert not (out / RECORD_FILE).exists()
    with sole_use(out):
        pass


def test_answers_without_a_record_are_not_adopted(settings: EvaluationSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / PREDICTIONS_FILE).write_text('{"id": "q0"}\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl holds answers, but evaluation\.json beside it is missing"):
        answer_all(settings, out)
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == [PREDICTIONS_FILE]


def test_rows_that_cannot_be_shown_count_with_the_missing_ones(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path
) -> None:
    (benchmark / "c.mp4").unlink()
    (benchmark / "b.mp4").write_bytes(b"no video" * 50)
    with pytest.raises(UserError, match="that makes 5 left out and max_left_out is 4"):
        answer_all(replace(settings, max_left_out=4), tmp_path / "out")
    assert answer_all(replace(settings, max_left_out=5, batch_size=4), tmp_path / "out") == 8
    assert list(answers(tmp_path / "out")) == ["q0", "q2", "q6"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 5}, "frames differ (frames was 4, is 5)"),
        ({"open_suffix": "Be brief."}, "open_suffix differ"),
        ({"temperature": 0.5}, "temperature differ"),
    ],
)
def test_other_settings_are_refused(
    settings: EvaluationSettings, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    answer_all(replace(settings, limit=1), tmp_path / "out")
    with pytest.raises(UserError, match="holds predictions of another run") as raised:
        answer_all(replace(settings, **changes), tmp_path / "out")  # type: ignore[arg-type]
    assert said in str(raised.value)
    assert len(answers(tmp_path / "out")) == 1


def test_another_manifest_or_adaptation_is_refused(
    settings: EvaluationSettings, benchmark: Path, tmp_path: Path
) -> None:
    answer_all(replace(settings, limit=1), tmp_path / "out")
    (tmp_path / "two.yaml").write_text("plan: {kind: uniform, stride: 2}\n")
    with pytest.raises(UserError, match=r"another run: adaptation differ \(adaptation was {}, is .*stride"):
        answer_all(replace(settings, adaptation=str(tmp_path / "two.yaml")), tmp_path / "out")
    write_rows(benchmark, rows()[:-1])
    with pytest.raises(UserError, match="another run: manifests differ"):
        answer_all(settings, tmp_path / "out")


def test_settings_that_change_no_answer_may_change(settings: EvaluationSettings, tmp_path: Path) -> None:
    answer_all(replace(settings, limit=2), tmp_path / "out")
    changed = replace(settings, batch_size=2, cached_videos=1, max_left_out=1, limit=4, categories=("kind",))
    assert answer_all(changed, tmp_path / "out") == 4
    assert len(answers(tmp_path / "out")) == 4
    assert read_asked(tmp_path / "out") == Asked(questions=4, limit=4, categories=("kind",), duration_edges_s=())


def test_adaptation_decides_frames_and_tokens(settings: EvaluationSettings, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("frames: 6\nplan: {kind: uniform, stride: 4}\n")
    adapted = replace(settings, frames=None, adaptation=str(tmp_path / "two.yaml"), limit=2)
    answer_all(adapted, tmp_path / "out")
    assert {(one.frames, one.visual_tokens) for one in predicted(tmp_path / "out")} == {(6, 6 * 4 + 1)}


def test_a_suffix_stands_behind_open_questions_only(settings: EvaluationSettings, tmp_path: Path) -> None:
    answer_all(replace(settings, open_suffix="Be brief.", limit=3), tmp_path / "out")
    asked = {one.id: one.question for one in predicted(tmp_path / "out")}
    assert asked["q0"] == "<video>\nWhat is it?\nBe brief." and asked["q2"].endswith("C. a red car")


def test_shared_ids_and_late_media_are_refused(settings: EvaluationSettings, benchmark: Path, tmp_path: Path) -> None:
    twice = replace(settings, manifests=settings.manifests * 2)
    with pytest.raises(UserError, match=r"manifest.jsonl:1: id 'q0' also stands in .*evaluate the manifests apart"):
        answer_all(twice, tmp_path / "out")
    late = row(0, "a", "What?", "red", kind="open")
    late["media"] *= 2
    late["conversation"] += [{"role": "user", "text": "<video>\nAnd?"}, {"role": "assistant", "text": "x"}]
    write_rows(benchmark, [late])
    with pytest.raises(UserError, match="row 'q0' shows media in turn 2"):
        answer_all(settings, tmp_path / "out")
    write_rows(benchmark, [row(0, "a", "What?", "B", kind="multiple_choice")])
    with pytest.raises(UserError, match=r"multiple choice, but meta\.options is no list"):
        answer_all(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
