"""The trace of an answer: what it adds up, and its JSON."""

import json
from pathlib import Path

from longvid_train.generate.zoom.trace import (
    Adjustment,
    ModuleSeconds,
    Sentence,
    TokenPlace,
    TracedFrame,
    TracedPicture,
    ZoomTrace,
    trace_values,
    write_trace,
)


def example() -> ZoomTrace:
    return ZoomTrace(
        question="What is it?",
        answer="A red circle. It leaves.",
        video="clip.mp4",
        settings={"draft_tokens": 20, "zoomed_frames": 1},
        layers=(1, 2),
        frames_taken=3,
        overview=(
            TracedFrame(frame=0, time_s=0.0, score=0.125, chosen=False),
            TracedFrame(frame=1, time_s=0.5, score=1 / 3, chosen=True),
        ),
        pictures=(
            TracedPicture(pathway="overview", frame=0, time_s=0.0, rows=1, columns=1, class_tokens=0),
            TracedPicture(pathway="overview", frame=1, time_s=0.5, rows=1, columns=1, class_tokens=0),
            TracedPicture(pathway="zoom", frame=1, time_s=0.5, rows=1, columns=2, class_tokens=1),
        ),
        overview_tokens=2,
        zoom_tokens=3,
        draft="A r",
        draft_tokens=2,
        sentences=(
            Sentence(
                text="A red circle.",
                new_tokens=5,
                frame_mass=(0.1, 0.2, 0.3),
                cell_mass=((0.1,), (0.2,), (0.125, 0.1)),
            ),
        ),
        adjustments=(
            Adjustment(
                sentences=1,
                new_tokens=5,
                copied=(TokenPlace(picture=2, frame=1, row=0, column=1),),
                dropped=(TokenPlace(picture=0, frame=0, row=0, column=0),),
                visual_tokens=5,
            ),
        ),
        seconds=ModuleSeconds(prefill_s=1.0, draft_s=0.25, scoring_s=0.5, zoom_encode_s=2.0, zoom_prefill_s=4.0),
        new_tokens=9,
        notes=("a note",),
    )


def test_chosen_frames_are_those_marked() -> None:
    assert [frame.frame for frame in example().chosen] == [1]


def test_the_augmenter_is_what_stands_between_the_prefill_and_the_answer() -> None:
    seconds = example().seconds
    assert seconds.augmenter_s == 6.75
    assert seconds.total_s == 7.75


def test_values_are_json_with_rounded_numbers(tmp_path: Path) -> None:
    trace = example()
    write_trace(trace, tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert read == trace_values(trace)
    assert read["overview"][1] == {"frame": 1, "time_s": 0.5, "score": 0.33333333, "chosen": True}
    assert read["sentences"][0]["cell_mass"] == [[0.1], [0.2], [0.125, 0.1]]
    assert read["adjustments"][0]["copied"] == [{"picture": 2, "frame": 1, "row": 0, "column": 1}]
    assert read["layers"] == [1, 2]
