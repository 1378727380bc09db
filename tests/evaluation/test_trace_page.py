"""Trace pages: numbers, heat and marks, what they escape, that their own script runs, and that they stay small."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longvid_train.evaluation import trace_page, trace_parts, trace_zoom
from longvid_train.evaluation.trace_page import write_trace_page
from longvid_train.evaluation.trace_parts import hottest
from longvid_train.generate.context_trace import ContextFrame, ContextTrace
from longvid_train.generate.zoom.trace import (
    CLASS_TOKEN,
    Adjustment,
    ModuleSeconds,
    Sentence,
    TokenPlace,
    TracedFrame,
    TracedPicture,
    ZoomTrace,
    trace_values,
)

EVIL = '<script>alert("x")</script> & so on?'


def zoom_trace(frames: int = 4, chosen: tuple[int, ...] = (1, 3), sentences: int = 2, cells: int = 2) -> ZoomTrace:
    """Every second frame of a video of 3 s a frame; masses rise with picture, cell and sentence."""
    overview = tuple(
        TracedFrame(frame=2 * place, time_s=6.0 * place, score=0.001 * (place + 1), chosen=place in chosen)
        for place in range(frames)
    )
    pictures = [
        TracedPicture(pathway="overview", frame=one.frame, time_s=one.time_s, rows=cells, columns=cells, class_tokens=0)
        for one in overview
    ] + [
        TracedPicture(pathway="zoom", frame=one.frame, time_s=one.time_s, rows=4, columns=3, class_tokens=1)
        for one in overview
        if one.chosen
    ]

    def mass(picture: int, sentence: int) -> tuple[float, ...]:
        one = pictures[picture]
        return tuple(1e-4 * (picture + cell + sentence) for cell in range(one.rows * one.columns))

    return ZoomTrace(
        question=EVIL,
        answer="<b>It</b> is red. Then",
        video="a <i>.mp4",
        settings={"draft_tokens": 20, "frames": len(chosen)},
        layers=(1, 2),
        frames_taken=2 * frames,
        overview=overview,
        pictures=tuple(pictures),
        overview_tokens=cells * cells * frames,
        zoom_tokens=13 * len(chosen),
        draft="The",
        draft_tokens=3,
        sentences=tuple(
            Sentence(
                text=f"<b>It</b> is {number}.",
                new_tokens=4 * (number + 1),
                frame_mass=tuple(sum(mass(picture, number)) for picture in range(len(pictures))),
                cell_mass=tuple(mass(picture, number) for picture in range(len(pictures))),
            )
            for number in range(sentences)
        ),
        adjustments=(
            Adjustment(
                sentences=1,
                new_tokens=4,
                copied=(
                    TokenPlace(picture=frames, frame=2 * chosen[0], row=3, column=2),
                    TokenPlace(picture=frames, frame=2 * chosen[0], row=CLASS_TOKEN, column=CLASS_TOKEN),
                ),
                dropped=(TokenPlace(picture=0, frame=0, row=1, column=0),),
                visual_tokens=43,
            ),
        ),
        seconds=ModuleSeconds(prefill_s=1.0, draft_s=0.5, generate_s=2.0, adjustment_s=0.5),
        new_tokens=10,
        notes=("the overview <answer> stands",),
    )


def context_trace() -> ContextTrace:
    scores = ((0.0, 1.0, 3.0, -1.0), (5.0, 5.0, 5.0, 5.0))
    return ContextTrace(
        question=EVIL,
        answer="a boat",
        medium="a.mp4",
        image=False,
        rows=2,
        columns=2,
        shown=7,
        frames=(
            ContextFrame(frame=0, time_s=0.0, scores=scores, top=((2, 1), (0, 1))),
            ContextFrame(frame=6, time_s=6.0, scores=((1.0, 1.0, 1.0, 1.5), scores[1]), top=((3, 0), (0, 1))),
        ),
    )


def pixels(count: int, side: int = 40) -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    return [draws.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


class Reader(HTMLParser):
    """Pictures, bars, links, table cells, the page's data and its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag
        self.texts.setdefault(tag, []).append("")

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside][-1] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])


def written(folder: Path, trace: ZoomTrace | ContextTrace, side: int = 40) -> tuple[str, Reader]:
    count = len(trace.overview if isinstance(trace, ZoomTrace) else trace.frames)
    path = write_trace_page(trace, pixels(count, side), folder)
    text = path.read_text(encoding="utf-8")
    return text, Reader(text)


def heat_of(view: dict[str, Any], picture: int) -> list[int]:
    return list(base64.b64decode(view["heat"][str(picture)]))


@pytest.mark.parametrize("trace", [zoom_trace(), context_trace()], ids=["zoom", "context"])
def test_the_page_is_self_contained_and_escaped(tmp_path: Path, trace: ZoomTrace | ContextTrace) -> None:
    text, page = written(tmp_path, trace)
    assert not page.all("link") and not page.all("iframe")
    sources = [found["src"] for found in page.all("img") if "src" in found]
    assert len(sources) == (6 if isinstance(trace, ZoomTrace) else 2)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:|//)""", text)
    assert text.count("alert(") == 2  # title and heading, both escaped
    assert "<title>&lt;script&gt;alert" in text and "<b>" not in text and "a <i>" not in text
    assert len(page.texts["script"]) == 2
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    digest = base64.b64encode(hashlib.sha256(page.texts["script"][1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_json_is_the_whole_trace(tmp_path: Path) -> None:
    written(tmp_path, zoom_trace())
    assert json.loads((tmp_path / "trace.json").read_text()) == trace_values(zoom_trace())
    path = write_trace_page(context_trace(), pixels(2), tmp_path, name="second")
    assert path == tmp_path / "second.html"
    assert json.loads((tmp_path / "second.json").read_text())["frames"][1]["top"] == [[3, 0], [0, 1]]


def test_bars_are_scores_and_then_the_mass_of_both_resolutions(tmp_path: Path) -> None:
    _, page = written(tmp_path, zoom_trace())
    views = page.data["views"]
    assert views[0]["bars"] == [250, 500, 750, 1000]
    first = zoom_trace().sentences[0].frame_mass
    whole = [first[0], first[1] + first[4], first[2], first[3] + first[5]]
    assert views[1]["bars"] == [round(1000 * one / max(whole)) for one in whole]
    rects = page.all("rect")[:4]
    assert [float(found["height"]) for found in rects] == [16.0, 32.0, 48.0, 64.0]
    assert [float(found["x"]) for found in rects] == pytest.approx([0, 976 / 3, 2 * 976 / 3, 976], abs=0.01)
    assert ["chosen" in found["class"] for found in rects] == [False, True, False, True]


def test_heat_is_the_root_of_the_share_of_the_hottest_cell_of_a_sentence(tmp_path: Path) -> None:
    _, page = written(tmp_path, zoom_trace())
    first, second = page.data["views"][1:]
    assert page.data["views"][0]["heat"] == {}
    for number, view in enumerate((first, second)):
        cells = zoom_trace().sentences[number].cell_mass
        most = max(max(one) for one in cells)
        for picture, found in enumerate(cells):
            assert heat_of(view, picture) == [round(255 * (cell / most) ** 0.5) for cell in found]


def test_marks_stand_behind_their_sentence_and_class_tokens_have_none(tmp_path: Path) -> None:
    _, page = written(tmp_path, zoom_trace())
    assert [view["marks"] for view in page.data["views"]] == [[], [[4, 3, 2, "copied"], [0, 1, 0, "dropped"]], []]
    words = [cell for cell in page.texts["td"] if "class token" in cell]
    assert words == ["0:06+ (3, 2); 0:06+ class token"]


def test_pictures_are_in_their_groups_at_their_resolutions(tmp_path: Path) -> None:
    _, page = written(tmp_path, zoom_trace())
    buttons = page.all("button", type="button")
    assert [(found["data-picture"], found["data-rows"], found["data-columns"]) for found in buttons] == [
        ("4", "4", "3"),
        ("5", "4", "3"),
        *((str(number), "2", "2") for number in range(4)),
    ]
    assert buttons[0]["aria-label"] == "frame at 0:06, chosen: enlarge"
    assert buttons[2]["aria-label"] == "frame at 0:00: enlarge"
    shown = Image.open(io.BytesIO(base64.b64decode(page.all("img")[2]["src"].split(",")[1])))
    assert np.abs(np.asarray(shown).astype(int) - pixels(1)[0].astype(int)).mean() < 12  # JPEG of noise


def test_times_and_tokens_are_summed_up(tmp_path: Path) -> None:
    text, page = written(tmp_path, zoom_trace())
    cells = page.texts["td"]
    assert cells[cells.index("tokens of the answer") + 1 : cells.index("tokens of the answer") + 3] == [
        "2.0 s",
        "50.0\u202f%",
    ]
    assert cells[cells.index("all") + 1] == "4.0 s"
    assert "4.0 s in all; 4 tokens/s" in text  # 10 tokens in 2.5 s
    assert "2 tokens copied, 1 dropped; 12.5\u202f% of the time" in text
    assert "the overview &lt;answer&gt; stands" in text


def test_an_answer_without_a_zoom_has_a_page(tmp_path: Path) -> None:
    plain = zoom_trace(chosen=(1,))
    overview = tuple(replace(one, score=None, chosen=False) for one in plain.overview)
    bare = replace(
        plain,
        overview=overview,
        pictures=plain.pictures[:4],
        sentences=(),
        adjustments=(),
        draft="",
        draft_tokens=0,
        answer="",
        seconds=ModuleSeconds(),
    )
    text, page = written(tmp_path, bare)
    assert "no frame was scored" in text and "(nothing)" in text and "not timed" in text
    assert "Chosen frames" not in text and "Time by module" not in text
    assert page.data["views"][0]["bars"] == [0, 0, 0, 0]


def test_one_frame_stands_at_the_start(tmp_path: Path) -> None:
    _, page = written(tmp_path, zoom_trace(frames=1, chosen=(0,)))
    assert [found["x"] for found in page.all("rect")[:1]] == ["0.0"]


def test_512_frames_stay_small(tmp_path: Path) -> None:
    text, page = written(tmp_path, zoom_trace(frames=512, chosen=tuple(range(0, 512, 51)), sentences=4, cells=8), 96)
    assert len(page.all("rect", width="1.56")) == 512
    sizes = {Image.open(io.BytesIO(base64.b64decode(one["src"].split(",")[1]))).size for one in page.all("img")[11:13]}
    assert sizes == {(80, 80)}
    assert len(text) < 9 << 20  # noise, the worst of pictures


def test_more_frames_than_pictures_are_an_even_choice_with_a_bar_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_zoom, "MOST_PICTURES", 3)
    text, page = written(tmp_path, zoom_trace(frames=9, chosen=(1,)))
    assert [found["data-picture"] for found in page.all("button", type="button")] == ["9", "0", "4", "8"]
    assert "3 of the 9 frames, evenly chosen" in text
    assert len(page.data["views"][1]["bars"]) == 9
    assert set(page.data["views"][1]["heat"]) == {"0", "4", "8", "9"}


def test_beyond_its_bound_a_view_keeps_its_hottest_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = written(tmp_path / "a", zoom_trace())
    assert "hottest pictures only" not in whole
    monkeypatch.setattr(trace_page, "HEAT_CELLS", 3 * 28)  # 28 of 40 cells for each of 3 views
    text, page = written(tmp_path / "b", zoom_trace())
    assert "hottest pictures only" in text
    assert set(page.data["views"][1]["heat"]) == {"3", "4", "5"}  # 4 + 12 + 12 cells


def test_the_hottest_are_kept_whole_and_in_order() -> None:
    heat = {3: np.array([0.1, 0.9]), 1: np.array([0.5]), 2: np.array([0.2, 0.3])}
    assert hottest(heat, 5) == [1, 2, 3] and hottest(heat, 3) == [1, 3] and hottest(heat, 2) == [3]
    assert hottest(heat, 1) == [] and hottest({}, 5) == []


def test_context_heat_is_stretched_a_frame_and_top_patches_are_marked(tmp_path: Path) -> None:
    text, page = written(tmp_path, context_trace())
    first, second = page.data["views"]
    assert heat_of(first, 0) == [64, 128, 255, 0] and heat_of(first, 1) == [0, 0, 0, 255]
    assert heat_of(second, 0) == [0, 0, 0, 0]
    assert first["marks"] == [[0, 1, 0, "top"], [0, 0, 1, "top"], [1, 1, 1, "top"], [1, 0, 0, "top"]]
    assert first["bars"] == [1000, 0] and second["bars"] == [0, 0]
    assert first["scale"] == "scores from -1.00 to 3.00"
    assert "2 of the 7, evenly chosen" in text and "Time by module" not in text


def test_a_picture_s_side_falls_with_their_number() -> None:
    def side(count: int) -> int:
        picture = trace_parts.Picture(number=0, place=0, time_s=0.0, image=pixels(1)[0], rows=1, columns=1)
        return trace_parts.Group(title="", note="", pictures=(picture,) * count).side

    assert [side(count) for count in (1, 32, 33, 128, 129, 512)] == [256, 256, 128, 128, 80, 80]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_script_runs_in_a_browser_under_its_policy(tmp_path: Path) -> None:
    path = write_trace_page(zoom_trace(), pixels(4), tmp_path)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert found.count('<canvas width="48" height="64">') == 2  # the chosen frames: 3 x 4 cells of 16
    assert found.count('<canvas width="32" height="32">') == 4
