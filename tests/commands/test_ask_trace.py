"""``longvid ask --trace``: JSON and page of a zoomed answer and of a LLaMA-VID's, through the real command line."""

import json
from pathlib import Path

import pytest

from longvid_train.cli import main
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import save_tiny_checkpoint, write_clip

ZOOM = "zoom: {draft_tokens: 2, zoomed_frames: 2, adjusted_tokens: 1, every_sentences: 1}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask_trace")
    save_tiny_backbone(folder / "model", "onevision")
    save_tiny_checkpoint(folder / "llama_vid")
    write_clip(folder / "a.mp4", seed=1)
    (folder / "zoom.yaml").write_text(ZOOM)
    return folder


def ask(place: Path, model: str, *words: str) -> int:
    return main(["ask", str(place / "a.mp4"), *words, "--model", str(place / model), "--max-new-tokens", "6"])


def test_a_zoomed_answer(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["What?", "And then?", "--adaptation", str(place / "zoom.yaml"), "--frames", "6", "--json"]
    assert ask(place, "model", *words, "--trace", str(tmp_path / "out")) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert "trace" not in report
    assert report["trace_pages"] == [str(tmp_path / "out" / "trace_2.html")]
    assert [turn["trace_pages"] for turn in report["turns"]] == [
        [str(tmp_path / "out" / f"{name}.html")] for name in ("trace", "trace_2")
    ]
    assert f"trace: {tmp_path / 'out' / 'trace.html'}" in printed.err
    for name, turn in zip(("trace", "trace_2"), report["turns"], strict=True):
        trace = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
        assert (trace["question"], trace["answer"]) == (turn["question"], turn["answer"])
        assert trace["video"] == str(place / "a.mp4")
        assert [frame["frame"] for frame in trace["overview"]] == [0, 1, 3, 4]
        times = [turn["timestamps_s"][frame] for frame in (0, 1, 3, 4)]
        assert [frame["time_s"] for frame in trace["overview"]] == pytest.approx(times)
        assert sum(frame["chosen"] for frame in trace["overview"]) == 2
        assert turn["visual_tokens"] == trace["overview_tokens"] + trace["zoom_tokens"] == 4 * 4 + 1 + 2 * 16
        page = (tmp_path / "out" / f"{name}.html").read_text(encoding="utf-8")
        assert page.count("data:image/") >= 6, "four frames of the overview and two in full"


def test_a_llama_vid(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(place, "llama_vid", "What?", "--trace", str(tmp_path / "out")) == 0
    trace = json.loads((tmp_path / "out" / "trace.json").read_text(encoding="utf-8"))
    assert trace["answer"] == capsys.readouterr().out.strip()
    assert (tmp_path / "out" / "trace.html").is_file()


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("model", [], "there is nothing to trace"),
        ("model", ["--adaptation", "zoom.yaml", "--num-beams", "2"], "num_beams is 2, and the adaptation zooms"),
        ("llama_vid", ["--adaptation", "zoom.yaml"], "is a LLaMA-VID, whose frames have as many tokens"),
        ("model", ["--adaptation", "zoom.yaml", "--frames", "2"], "lower zoomed_frames|zoom at most 2|fewer|has 2"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(
    place: Path, model: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(place / word) if word.endswith(".yaml") else word for word in words]
    if "--frames" in words:
        (place / "many.yaml").write_text("zoom: {zoomed_frames: 3}\n")
        words[1] = str(place / "many.yaml")
    assert ask(place, model, "What?", *words, "--trace", str(tmp_path / "out")) == 2
    printed = capsys.readouterr()
    assert any(part in printed.err for part in message.split("|"))
    assert len(printed.err.strip().splitlines()) == 1, "said before anything is loaded"
    assert not (tmp_path / "out").exists()


def test_an_earlier_trace_is_not_replaced(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--adaptation", str(place / "zoom.yaml"), "--frames", "6", "--trace", str(tmp_path / "out")]
    assert ask(place, "model", "What?", *words) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == {"trace.html", "trace.json"}
    capsys.readouterr()
    assert ask(place, "model", "Why?", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, "before anything is loaded"
    assert f"{tmp_path / 'out'} holds the trace of an earlier answer (trace.json); name a new folder" in said[0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_file_is_no_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(place, "model", "What?", "--adaptation", str(place / "zoom.yaml"), "--trace", str(place / "a.mp4")) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
