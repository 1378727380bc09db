"""Run folders to numbers, and one clear line for everything that is wrong with one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from longvid_train.errors import UserError
from longvid_train.evaluation import reading
from longvid_train.evaluation.reading import read_run
from longvid_train.evaluation.samples import choose_rows, evidence_index, media_options, thin_out
from longvid_train.evaluation.summary import summarise
from longvid_train.training import answers, record, tracking
from longvid_train.video import FramesPerSecond

MakeRun = Callable[..., Path]


def test_file_names_are_those_that_training_writes() -> None:
    assert reading.METRICS_FILE == tracking.METRICS_FILE
    assert (reading.RECORD_FILE, reading.CONFIG_FILE) == (record.RECORD_FILE, record.CONFIG_FILE)
    assert reading.Answer.__dataclass_fields__.keys() == answers.AnswerRecord.__dataclass_fields__.keys()


def test_numbers_of_a_known_run(make_run: MakeRun) -> None:
    summary = summarise(read_run(make_run()))
    needle, caption = summary.kinds
    assert (needle.kind, needle.words, needle.before.mean, needle.after.mean, needle.after.n) == (
        "needle",
        False,
        0.25,
        0.75,
        4,
    )
    assert (caption.kind, caption.words, caption.before.mean, caption.after.mean) == ("caption", True, 0.25, 0.75)
    assert (summary.overall.before.mean, summary.overall.after.mean, summary.overall.mixed) == (0.25, 0.75, True)
    assert (needle.change.mean, caption.change.low, caption.change.high) == (0.5, 0.0, 1.0)
    assert (summary.frames.mean, summary.frames.most) == (12.5, 15)
    assert (summary.visual_tokens.mean, summary.visual_tokens.most) == (25, 30)
    assert (summary.prompt_tokens.mean, summary.prompt_tokens.most) == (102.5, 105)
    assert (summary.tokens_per_s, summary.frames_per_s, summary.peak_bytes) == (250, 25, 4 * 2**20)
    assert (summary.optimiser_steps, summary.last_loss, summary.wall_s, summary.starts) == (4, 1.25, 90, 1)


def test_change_interval_pairs_the_answers(make_run: MakeRun) -> None:
    """Every answer improves by the same amount: the paired interval is a point, an unpaired one would be wide."""
    folder = make_run()
    for name, scores in (("answers_before.jsonl", (0.0, 0.5)), ("answers_after.jsonl", (0.5, 1.0))):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        lines = [json.dumps({**row, "correct": scores[index % 2]}) + "\n" for index, row in enumerate(rows)]
        (folder / name).write_text("".join(lines))
    overall = summarise(read_run(folder)).overall
    assert (overall.change.low, overall.change.mean, overall.change.high) == (0.5, 0.5, 0.5)
    assert overall.after.low < overall.after.high


def test_rows_shown_are_the_first_right_and_first_wrong_of_each_kind(make_run: MakeRun) -> None:
    after = read_run(make_run()).after
    assert choose_rows(after, 12) == [0, 2, 5, 4]
    assert choose_rows(after, 3) == [0, 2, 5]
    assert choose_rows(after, 0) == []


def test_frames_are_thinned_out_evenly() -> None:
    assert thin_out(5, 16) == [0, 1, 2, 3, 4]
    assert thin_out(31, 16) == list(range(0, 31, 2))
    assert thin_out(1000, 3) == [0, 500, 999]


def test_the_evidence_is_among_the_frames_shown() -> None:
    assert thin_out(1000, 3, keep=30) == [30, 500, 999]
    assert thin_out(1000, 3, keep=500) == [0, 500, 999]
    assert thin_out(4, 16, keep=2) == [0, 1, 2, 3]
    times_s = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert evidence_index(times_s, (0.5, 3.2)) == 2
    assert evidence_index(times_s, (1.1, 1.9)) is None
    assert evidence_index(times_s, None) is None


def test_media_settings_come_from_the_config(make_run: MakeRun) -> None:
    options = media_options(read_run(make_run()))
    assert options.sampling == FramesPerSecond(fps=1.0)
    assert (options.reader, options.limits.max_frames) == ("pyav", 100)


def broken(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / name
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("answers_after.jsonl", lambda lines: [*lines[:2], lines[2][:20]], r"answers_after\.jsonl:3: is not JSON"),
        ("answers_after.jsonl", lambda lines: [lines[0], "[1]"], r"answers_after\.jsonl:2: holds a JSON list"),
        ("answers_after.jsonl", lambda lines: lines[1:], "answers other questions"),
        ("answers_before.jsonl", lambda lines: [], "is empty"),
        ("answers_before.jsonl", lambda lines: [lines[0].replace("0.0", "1.5")], r":1: field 'correct' is 1.5"),
        ("answers_before.jsonl", lambda lines: [lines[0].replace('"frames": 10, ', "")], "'frames' is missing"),
        ("metrics.jsonl", lambda lines: [lines[0]], "no line with 'train/loss'"),
        ("metrics.jsonl", lambda lines: [lines[1].replace("4.0", '"x"')], r":1: field 'train/loss' is 'x'"),
        ("metrics.jsonl", lambda lines: [lines[1].replace("4.0", "NaN")], "not finite"),
        ("run.json", lambda lines: ['{"starts": []}'], "at least one start"),
        ("config.yaml", lambda lines: ["model: {"], "is not YAML"),
        ("config.yaml", lambda lines: ["model: {}"], r"has no 'model\.init_args\.stage\.name'"),
    ],
)
def test_broken_files_are_named(
    make_run: MakeRun, name: str, change: Callable[[list[str]], list[str]], message: str
) -> None:
    folder = make_run()
    broken(folder, name, change)
    with pytest.raises(UserError, match=message):
        read_run(folder)


def test_missing_and_unfinished_runs_say_what_to_do(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        read_run(tmp_path / "nowhere")
    folder = make_run()
    (folder / "answers_after.jsonl").unlink()
    with pytest.raises(UserError, match=r"answers_after\.jsonl: no such file; .*--ckpt_path last"):
        read_run(folder)
