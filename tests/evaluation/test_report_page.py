"""The HTML page: its numbers, its shape, what it escapes, and that the same input gives the same bytes."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from longvid_train.errors import UserError
from longvid_train.evaluation import formatting
from longvid_train.evaluation.asked import read_asked
from longvid_train.evaluation.page import StagePart, render_page
from longvid_train.evaluation.reading import read_run
from longvid_train.evaluation.samples import read_samples
from longvid_train.evaluation.summary import summarise

MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br", "path", "use", "rect", "link"}


class Reader(HTMLParser):
    """Collects tags, table cells and links, and checks that tags balance."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def page(folder: Path, samples: int = 12) -> str:
    run = read_run(folder)
    part = StagePart(run=run, summary=summarise(run), samples=read_samples(run, samples))
    return render_page("A <title>", [part], [])


def parsed(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_whole_self_contained_and_escaped(make_run: MakeRun) -> None:
    text = page(make_run())
    reader = parsed(text)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert "<title>A &lt;title&gt;</title>" in text
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;sea&lt;/b&gt;" in text
    assert "longvid fit --config &#39;a &lt;i&gt;.yaml&#39;" in text
    assert reader.links
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in reader.links)
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert not re.search(r"https?://", text)


def test_table_holds_the_known_numbers(make_run: MakeRun) -> None:
    cells = [" ".join(cell.split()) for cell in parsed(page(make_run(), samples=0)).cells]
    space = " "  # split() above turned the narrow no-break space into this
    assert cells[:2] == ["needle", "4"]
    assert cells[2].startswith(f"25.0{space}% (0.0 to 75.0")
    assert cells[3].startswith(f"75.0{space}% (25.0 to 100.0")
    assert cells[4].startswith("+50.0 (0.0 to +100.0")
    assert cells[5:7] == ["caption *", "2"]
    assert cells[10:12] == ["overall", "6"]
    assert "12.5 (max 15)" in cells
    assert "1 min 30 s" in cells


def test_samples_show_frames_times_and_verdicts_in_words(make_run: MakeRun) -> None:
    text = page(make_run())
    assert text.count("<article") == 4
    assert text.count("data:image/jpeg") == 4 * 16
    assert "16 of the 20 frames shown to the model" in text
    assert re.findall(r'class="time">([^<]+)<', text)[:2] == ["0:00", "0:01"]
    verdicts = re.findall(r'class="mark \w+">&#\d+; ([^<]+)<', text)
    half = "partly right, 50.0\u202f%"
    assert verdicts == ["wrong", "right", "wrong", "wrong", "wrong", "right", half, half]


def test_same_input_same_bytes(make_run: MakeRun) -> None:
    folder = make_run()
    assert page(folder, samples=2) == page(folder, samples=2)


def test_a_changed_manifest_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    with (tmp_path / "held.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match=r"held\.jsonl: changed since .*--samples 0"):
        page(folder)
    assert "Sample questions" not in page(folder, samples=0)


def test_asked_conversations_are_read(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    clip = str(tmp_path / "clip.mp4")
    turn = {"question": "a?", "answer": "b", "frames": 2, "visual_tokens": 4, "prompt_tokens": 9, "new_tokens": 1}
    turn |= {"seconds": 1.75, "peak_bytes": 5}
    media = [{"path": clip, "type": "video", "frames": 2, "timestamps_s": [3.0, 7.0]}]
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({**turn, "media": media, "turns": [turn, {**turn, "question": "c?", "seconds": 2}]}))
    asked = read_asked(file)
    assert [(part.question, part.seconds) for part in asked.turns] == [("a?", 1.75), ("c?", 2.0)]
    assert asked.strips[0].times_s == (3.0, 7.0)
    assert [round(float(frame.mean()) / 10) for frame in asked.strips[0].frames] == [3, 7]
    file.write_text(json.dumps({**turn, "media": media, "frames": "two"}))
    with pytest.raises(UserError, match=r"asked\.json: field 'frames' is 'two'; it must be int"):
        read_asked(file)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (formatting.duration(372.4), "6 min 12 s"),
        (formatting.duration(59.6), "1 min 0 s"),
        (formatting.duration(0.0364), "36 ms"),
        (formatting.duration(0.14), "0.1 s"),
        (formatting.duration(7325), "2 h 2 min"),
        (formatting.duration(None), "not known"),
        (formatting.clock(83.25), "1:23.2"),
        (formatting.clock(0.0), "0:00"),
        (formatting.clock(2.9999999), "0:03"),
        (formatting.memory(812 * 2**20), "812 MiB"),
        (formatting.memory(1.5 * 2**30), "1.5 GiB"),
        (formatting.number(5204.3), "5\u202f204"),
        (formatting.number(12.5), "12.5"),
        (formatting.hardware({"cuda_devices": ["H100", "H100"], "cpu_cores": 8}), "2 x H100"),
        (formatting.hardware({"cuda_devices": [], "cpu_cores": 2}), "2 CPU cores"),
        (formatting.commit("0123456789abcdef0123456789abcdef01234567-dirty"), "0123456789ab-dirty"),
        (formatting.without_placeholders("<video>\nWhat?"), "What?"),
    ],
)
def test_numbers_read_well(found: str, expected: str) -> None:
    assert found == expected
