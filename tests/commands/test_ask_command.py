import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longvid_train.cli import main
from tests.generate.tiny_checkpoint import save_tiny_checkpoint, write_clip, write_picture

FEW = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    save_tiny_checkpoint(folder / "model")
    write_clip(folder / "a.mp4")
    write_picture(folder / "picture.png")
    (folder / "broken.mp4").write_bytes(b"not a video" * 99)
    (folder / "broken.srt").write_text("1\n00:00:01,000 -> 00:00:02,000\nred\n")
    (folder / "other").mkdir()
    (folder / "other/config.json").write_text('{"model_type": "llama"}')
    return folder


def ask(folder: Path, *words: str) -> int:
    return main(["ask", str(folder / "a.mp4"), *words, "--model", str(folder / "model"), "--no-isolate"])


def test_json_has_every_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", str(folder / "a.mp4"), "--model", str(folder / "model"), "--frames", "4", "What is it?", "--json"]
    assert main([*words, *FEW]) == 0  # isolated, as is the default
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert isinstance(report["answer"], str)
    assert report["frames"] == 4
    assert report["timestamps_s"] == [0.0, 2.5, 5.0, 7.5]
    assert report["visual_tokens"] == 4 * 2
    assert report["prompt_tokens"] > report["visual_tokens"]
    assert 1 <= report["new_tokens"] <= 6
    parts_s = [report[name] for name in ("decode_s", "encode_s", "generate_s")]
    assert all(part_s > 0 for part_s in parts_s)
    assert report["seconds"] == pytest.approx(sum(parts_s))
    assert report["peak_bytes"] > 50 * 2**20
    assert (report["reader"], report["dtype"], report["device"]) == ("pyav", "float32", "cpu")
    assert report["model"] == str(folder / "model")
    assert report["media"][0]["duration_s"] == 8.0
    assert "turns" not in report
    assert "encoding frames: 4/4" in printed.err


def test_follow_ups_stream_and_json_agree(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(folder, "What is it?", "And after that?", "--frames", "3", "--json", *FEW) == 0
    report = json.loads(capsys.readouterr().out)
    turns = report["turns"]
    assert [turn["question"] for turn in turns] == ["What is it?", "And after that?"]
    assert report["answer"] == turns[1]["answer"]
    assert [turn["visual_tokens"] for turn in turns] == [3 * 2, 2 * 3 * 2]
    assert turns[1]["encode_s"] == 0

    monkeypatch.setattr(sys, "stdin", io.StringIO("\nAnd after that?\n"))
    assert ask(folder, "What is it?", "--frames", "3", "--stdin", *FEW) == 0
    printed = capsys.readouterr()
    assert printed.out == "".join(turn["answer"] + "\n" for turn in turns)
    assert printed.err.count("visual tokens of") == 2


def test_without_a_rate_a_video_is_shown_at_1_fps_capped_by_the_window(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(folder, "What is it?", "--json", *FEW) == 0
    plenty = json.loads(capsys.readouterr().out)
    assert plenty["timestamps_s"] == [float(second) for second in range(8)]

    text = plenty["prompt_tokens"] - plenty["visual_tokens"]
    narrow = shutil.copytree(folder / "model", folder / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = text + 5 * 2 + 1 + 6  # room for 5 frames of 2 tokens
    (narrow / "config.json").write_text(json.dumps(config))
    words = ["ask", str(folder / "a.mp4"), "What is it?", "--model", str(narrow), "--no-isolate", "--json", *FEW]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["frames"] == 5
    assert "would be 8 frames" in printed.err
    assert "room for 5" in printed.err


def test_without_a_limit_answers_leave_half_a_small_window_to_the_questions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = shutil.copytree(folder / "model", folder / "small")
    config = json.loads((small / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 320
    (small / "config.json").write_text(json.dumps(config))
    words = ["ask", str(folder / "a.mp4"), "What is it?", "And?", "--frames", "2", "--json", "--no-isolate"]
    assert main([*words, "--model", str(small)]) == 0
    printed = capsys.readouterr()
    assert all(turn["new_tokens"] <= 80 for turn in json.loads(printed.out)["turns"])
    assert "answers have up to 80 tokens each: the language model's window is 320" in printed.err


def test_a_pipe_is_refused_and_not_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = folder / "pipe.mp4"
    os.mkfifo(pipe)
    assert main(["ask", str(pipe), "What is it?", "--model", str(folder / "model"), "--no-isolate"]) == 2
    assert f"{pipe}: not a regular file" in capsys.readouterr().err


def test_a_picture_beside_a_video(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(folder / "picture.png")
    assert ask(folder, "Alike?", "--media", picture, "--start", "2", "--end", "4", "--json", *FEW) == 0
    report = json.loads(capsys.readouterr().out)
    assert [medium["type"] for medium in report["media"]] == ["video", "image"]
    assert report["timestamps_s"] == [2.0, 3.0, 0.0]
    assert report["visual_tokens"] == 2 * 2 + (1 + 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.mp4", " ", "--model", "model"], "the question is empty"),
        (["a.mp4", "--model", "model"], "no question"),
        (["a.mp4", "What?"], "bash scripts/quickstart.sh"),
        (["a.mp4", "What?", "--model", "absent"], "absent is not a folder"),
        (["a.mp4", "What?", "--model", "other"], "'llama' model, not 'llava_onevision'"),
        (["absent.mp4", "What?", "--model", "model"], "absent.mp4: no such file"),
        (["broken.mp4", "What?", "--model", "model"], "broken.mp4: not a readable video"),
        (["a.mp4", "What?", "--model", "model", "--frames", "99"], "a.mp4: 99 frames asked for"),
        (["a.mp4", "What?", "--model", "model", "--subtitles", "broken.srt"], "broken.srt:2:"),
        (
            ["a.mp4", "What?", "--model", "model", "--frames", "4", "--limits.max_frames", "3"],
            "a.mp4: 4 frames asked for, more than limits.max_frames = 3; raise limits.max_frames",
        ),
        (
            ["a.mp4", "What?", "--model", "model", "--limits.max_duration_s", "7.5"],
            "a.mp4: 8 seconds, more than limits.max_duration_s = 7.5; raise limits.max_duration_s",
        ),
        (
            ["a.mp4", "What?", "--model", "absent", "--limits.timeout_s", "9"],
            "--limits.timeout_s has no effect with --no-isolate",
        ),
        (["https://a.b/c.mp4", "What?", "--model", "model"], "add 'https' to limits.allowed_schemes"),
        (
            ["ftp://a.b/c.mp4", "What?", "--model", "model", "--limits.allowed_schemes", "http,ftp"],
            "scheme 'ftp' is not supported",
        ),
        (
            ["picture.png", "What?", "--model", "model", "--limits.max_pixels_per_frame", "9"],
            "more than limits.max_pix",
        ),
        (["picture.png", "What?", "--model", "model", "--frames", "2"], "--frames has no effect"),
        (["picture.png", "What?", "--model", "model", "--subtitles", "a.srt"], "there are 0 videos"),
        (["a.mp4", "What?", "--model", "model", "--max-new-tokens", "500"], "--max-new-tokens"),
        (["a.mp4", "What?", "--model", "model", "--frames", "16", "--max-new-tokens", "420"], "window of 512"),
        (
            ["a.mp4", "What?", "And?", "--model", "model", "--frames", "16", "--max-new-tokens", "370"],
            "each of 2 quest",
        ),
        (["a.mp4", "What?", "--model", "model", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["a.mp4", "What?", "--model", "model", "--dtype", "int4"], "dtype 'int4' is not known"),
        (["a.mp4", "What?", "--model", "model", "--template", "vicuna"], "did you mean 'vicuna_v1'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    folder: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["ask", *words, "--no-isolate"]) == 2
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("longvid: ")]
    assert len(said) == 1
    assert message in said[0]
    assert printed.out == ""


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom longvid_train.cli import main\n"
        "try:\n    main(['ask', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(3 if 'torch' in sys.modules or 'transformers' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--max-new-tokens" in done.stdout
