"""``longvid ask`` with any model: recognised from its folder, mistakes said before weights load."""

import json
from pathlib import Path

import pytest

from longvid_train.cli import main
from tests.generate.tiny_backbone_folder import save_tiny_backbone
from tests.generate.tiny_checkpoint import save_tiny_checkpoint, write_clip, write_picture

FEW = ["--max-new-tokens", "6"]
SMALL_YARN = "{kind: visual_yarn, trained_tokens: 20, bounds: share, alpha: 0.2, beta: 0.8}"
ADAPTATIONS = {
    "yarn": f"window: {SMALL_YARN}\n",
    "frames": f"frames: 5\nwindow: {SMALL_YARN}\n",
    "progressive": "plan: {kind: progressive, group: 4, high_stride: 1, low_stride: 2}\n",
    "llama_vid": f"plan: {{kind: progressive, group: 4, high_stride: 1, low_stride: 2}}\nwindow: {SMALL_YARN}\n",
    "slowfast": "plan: {kind: slowfast, slow_frames: 2, slow_stride: 1, fast_stride: 2}\n",
    "rate": "fps: 1.0\n",
    "elsewhere": "backbones: [video_llava]\n",
    "uneven": "plan: {kind: uniform, stride: [1, 2]}\n",
    "small": "window: {kind: visual_yarn, target_tokens: 8, trained_tokens: 20}\n",
    "short": "window: {kind: yarn, scale: 1.01}\n",
    "typo": "plan: {kind: unifrom}\n",
    "unstated": "window: {kind: visual_yarn}\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask_backbones")
    for name in ("onevision", "joint"):
        save_tiny_backbone(folder / name, name)
    save_tiny_checkpoint(folder / "llama_vid")
    for name in ("onevision", "llama_vid"):
        (folder / f"{name}_without_weights").mkdir()
        for file in (folder / name).iterdir():
            if file.suffix != ".safetensors":
                (folder / f"{name}_without_weights" / file.name).symlink_to(file)
    write_clip(folder / "a.mp4")
    write_picture(folder / "picture.png")
    (folder / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nred circle\n")
    for name, text in ADAPTATIONS.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def report_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, object], str]:
    assert main(["ask", "a.mp4", "What?", *words, "--json", "--no-isolate", *FEW]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_json_says_what_plan_and_window_did(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    report, said = report_of(capsys, "--model", "onevision", "--adaptation", "yarn.yaml", "--frames", "8")
    assert (report["frames"], report["visual_tokens"]) == (8, 8 * 16 + 1)
    assert report["plan"] == "uniform, 8 frames, 4 x 4 cells each: 129 visual tokens"
    assert report["window"] == {
        "kind": "visual_yarn",
        "measure": "visual",
        "tokens": 128,
        "trained_tokens": 20,
        "scale": 6.4,
        "language_tokens": 3276,
    }
    notes = report["notes"]
    assert isinstance(notes, list)
    assert "visual_yarn: 128 visual tokens on a window of 20, s = 6.4" in notes
    assert all(note in said for note in notes)
    assert report["peak_bytes"] > 50 * 2**20  # type: ignore[operator]
    assert all(report[part] > 0 for part in ("decode_s", "encode_s", "generate_s"))  # type: ignore[operator]


def test_options_for_memory_change_no_word(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = ["--model", "onevision", "--adaptation", "yarn.yaml", "--frames", "8"]
    whole, _ = report_of(capsys, *words)
    small, said = report_of(capsys, *words, "--prefill-chunk", "9", "--features-on", "cpu", "--frame-chunk", "3")
    assert small["answer"] == whole["answer"]
    assert "encoding frames: 8/8" in said


def test_frames_are_the_adaptations_or_those_of_training_in_whole_groups(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert report_of(capsys, "--model", "onevision", "--adaptation", "frames.yaml")[0]["frames"] == 5
    report, said = report_of(capsys, "--model", "onevision")
    assert report["frames"] == 16  # all of the clip: fewer than the 32 of training
    assert "showing 16 frames, evenly spaced: the model was trained on 32" in said
    report, said = report_of(capsys, "--model", "joint")
    assert report["frames"] == 4
    report, _ = report_of(capsys, "--model", "joint", "--adaptation", "rate.yaml", "--end", "7")
    assert report["frames"] == 4  # 7 at 1 a second, in whole groups of 4
    assert report["visual_tokens"] == 4 * 17


def test_llama_vid_is_shown_by_plans_and_extended_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 patches a frame: a context token and 4 or 1 content tokens."""
    monkeypatch.chdir(folder)
    words = ["--model", "llama_vid", "--frames", "8"]
    plain, _ = report_of(capsys, *words)
    assert (plain["visual_tokens"], plain["plan"]) == (8 * 2, "")
    adapted, said = report_of(capsys, *words, "--adaptation", "llama_vid.yaml", "--subtitles", "a.srt")
    assert adapted["visual_tokens"] == 2 * (1 + 4) + 6 * (1 + 1)
    assert adapted["window"]["scale"] == pytest.approx(22 / 20)  # type: ignore[index]
    assert "the first of every 4 at 2 x 2 cells, the others at 1 x 1: 22 visual tokens" in said
    both, _ = report_of(capsys, *words, "--adaptation", "slowfast.yaml")
    assert both["visual_tokens"] == 2 * (1 + 4) + 8 * (1 + 1)


def test_a_follow_up_streams_the_same_words_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = ["And?", "--model", "joint", "--frames", "8"]
    report, _ = report_of(capsys, *words)
    turns = report["turns"]
    assert isinstance(turns, list)
    assert [turn["visual_tokens"] for turn in turns] == [8 * 17, 8 * 17]
    assert turns[1]["encode_s"] == 0
    assert main(["ask", "a.mp4", "What?", *words, "--no-isolate", *FEW]) == 0
    assert capsys.readouterr().out == "".join(turn["answer"] + "\n" for turn in turns)


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("onevision", ["--frames", "99"], "a.mp4: 99 frames asked for"),
        ("onevision", ["--adaptation", "elsewhere.yaml"], "is for video_llava, the model is 'llava_onevision'"),
        ("onevision", ["--adaptation", "typo.yaml"], "did you mean 'uniform'"),
        ("onevision", ["--adaptation", "absent.yaml"], "absent.yaml: cannot be read"),
        ("onevision", ["--adaptation", "small.yaml"], "target_tokens is 8, below the training window of 20"),
        ("onevision", ["--adaptation", "short.yaml", "--frames", "16", "--max-new-tokens", "300"], "raise scale to at"),
        ("onevision", ["--frames", "16", "--max-new-tokens", "400"], "show at most 5 frames (--frames 5)"),
        ("onevision", ["--template", "vicuna_v1"], "--template vicuna_v1 has no effect"),
        ("onevision", ["--prompt", "{question}"], "must hold <video> exactly once"),
        ("onevision", ["--prefill-chunk", "0"], "prefill_chunk is 0"),
        ("onevision", ["--frame-chunk", "0"], "frame_chunk is 0"),
        ("onevision", ["--features-on", "cpus"], "did you mean 'cpu'"),
        ("llama_vid", ["--adaptation", "unstated.yaml"], "not stated; set window.trained_tokens"),
        ("llama_vid", ["--adaptation", "uneven.yaml"], "content tokens are square blocks; use one stride"),
        ("llama_vid", ["--prompt", "<video> {question}"], "--prompt has no effect"),
    ],
)
def test_a_mistake_is_one_line_before_weights_load(
    folder: Path,
    model: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    asked = ["ask", "a.mp4", "What?", "--model", f"{model}_without_weights", "--no-isolate"]
    assert main([*asked, *([] if "--max-new-tokens" in words else FEW), *words]) == 2
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("longvid: ")]
    assert len(said) == 1 and message in said[0]
    assert "loading" not in printed.err and printed.out == ""
