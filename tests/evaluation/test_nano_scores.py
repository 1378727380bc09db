"""The table of what the shipped nano models solve: its numbers, its clips and wrong arguments."""

from pathlib import Path

import pytest

from longvid_train.evaluation.claims.answering import Answered
from longvid_train.evaluation.claims.llama_vid_long import FOLDERS
from scripts.nano_scores import ASSETS, SEED, WINDOWS, Window, main, scores_row, window_clips


def answered(kind: str, right: int, wrong: int) -> list[Answered]:
    scores = [1.0] * right + [0.0] * wrong
    return [Answered(episode="a", kind=kind, question="?", truth="a", answer="", score=score) for score in scores]


def test_a_row_has_shares_with_intervals_and_leaves_out_kinds_nobody_asked() -> None:
    row = scores_row("m", WINDOWS["nano_onevision"][0], [*answered("needle", 3, 1), *answered("order", 4, 0)])
    assert row == "| `m` | 8 s, 8 frames | 0.750 (0.25 to 1.00) | 1.000 (1.00 to 1.00) |  |  |"


@pytest.mark.parametrize("window", list(dict.fromkeys(window for windows in WINDOWS.values() for window in windows)))
def test_clips_fill_the_window_and_are_asked_each_kind_once(window: Window) -> None:
    clips = window_clips(window, 3, SEED)
    assert len(clips) == 3 and clips == window_clips(window, 3, SEED) != window_clips(window, 3, SEED + 1)
    for one in clips:
        assert one.clip.episode.split == "test" and one.clip.episode.duration_s == window.duration_s
        assert len(one.clip.times_s) == window.frames
        assert tuple(question.kind for question in one.questions) == window.kinds


def test_every_shipped_model_has_a_window() -> None:
    shipped = {folder.name for folder in ASSETS.glob("nano_*") if (folder / "config.json").is_file()}
    assert shipped == set(WINDOWS) >= set(FOLDERS.values())


def test_a_model_is_asked_and_its_needles_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nano_llama_vid_stage2", "--clips", "8"]) == 0
    head, rule, row = capsys.readouterr().out.splitlines()
    assert (
        head == "| 8 unseen clips each | window | needle | order | count | detail |"
        and rule == "|---|---|---|---|---|---|"
    )
    needle = float(row.split("|")[3].split()[0])
    assert row.startswith("| `nano_llama_vid_stage2` | 8 s, 8 frames | ") and needle >= 0.75


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nano_one"], "model 'nano_one' is unknown; known are nano_onevision, nano_video_llava"),
        (["--clips", "0"], "--clips is '0'; it must be a whole number of at least 1"),
        (["--seed", "-1"], "seed"),
        (["nano_onevision", "--models", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
