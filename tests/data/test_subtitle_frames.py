"""Which frame a subtitle line follows: exactly one, the first at or after its start."""

from hypothesis import given
from hypothesis import strategies as st

from longvid_train.data.subtitles import lines_after_frames, lines_in_window
from longvid_train.types import Subtitle


def test_lines_follow_the_first_frame_at_or_after_their_start() -> None:
    subtitles = [
        Subtitle(0.0, 1.0, "at the first frame"),
        Subtitle(0.5, 5.0, "between"),
        Subtitle(1.0, 1.5, "at\n the  second"),
        Subtitle(1.2, 1.3, "  "),
        Subtitle(3.5, 4.0, "after the last"),
    ]
    lines = lines_after_frames(subtitles, [0.0, 1.0, 2.0])
    assert lines == (("at the first frame",), ("between", "at the second"), ("after the last",))


def test_window_keeps_what_is_on_screen_in_it() -> None:
    before, into, inside, out_of, after = (
        Subtitle(0, 2, "before"),
        Subtitle(1, 2.5, "into"),
        Subtitle(3, 4, "inside"),
        Subtitle(4.9, 7, "out of"),
        Subtitle(5, 6, "after"),
    )
    assert lines_in_window([after, inside, into, before, out_of], 2.0, 5.0) == [into, inside, out_of]
    assert lines_in_window([after, inside, into, before, out_of], 2.0, None) == [into, inside, out_of, after]


times = st.floats(0, 100, allow_nan=False)


@given(st.lists(times, max_size=20), st.lists(times, min_size=1, max_size=20))
def test_every_line_stands_exactly_once_in_order_and_never_early(starts: list[float], frames: list[float]) -> None:
    subtitles = lines_in_window([Subtitle(s, s + 1, f"{n}") for n, s in enumerate(starts)], 0.0, None)
    timestamps_s = sorted(frames)
    placed = lines_after_frames(subtitles, timestamps_s)
    assert len(placed) == len(timestamps_s)
    assert [line for lines in placed for line in lines] == [line.text for line in subtitles]
    for number, lines in enumerate(placed):
        for line in lines:
            start_s = starts[int(line)]
            if number + 1 < len(timestamps_s):
                assert start_s <= timestamps_s[number], "a line is not told before it is on screen"
            if number:
                assert start_s > timestamps_s[number - 1], "nor later than the first frame that can tell it"
