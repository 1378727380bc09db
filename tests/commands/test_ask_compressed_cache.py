"""``longvid ask`` with the shipped nano OneVision about videos of the world, from 2-bit KV caches."""

import json
from pathlib import Path
from typing import Any

import pytest

import longvid_train
from longvid_train.adaptation.reading import load_adaptation
from longvid_train.cli import main
from longvid_train.generate.chat import VideoChat, VideoRequest
from longvid_train.generate.media import ReadOptions
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.video import UniformFrames
from longvid_train.world.backgrounds import SCENES
from tests.generate.tiny_quantizer import fitted, save

MODEL = Path(longvid_train.__file__).parent / "assets" / "nano_onevision"
FRAMES, LAYERS, WIDTH, HEAD_DIM, RECENT, SINKS = 32, 4, 128, 32, 16, 4
SETTINGS = f"frames: {FRAMES}\nwindow: {{kind: none, extrapolate: true}}\n"
LLOYD2 = CachePolicy(
    keys=LloydMax(bits=2, rotary="pre"), values=LloydMax(bits=2), recent_tokens=RECENT, flush_tokens=16
)
CACHES = {
    "plain": "",
    "full": "cache: {preset: full, recent_tokens: 16}\n",
    "kivi": f"cache: {{preset: kivi_g32, recent_tokens: {RECENT}}}\n",
    "saved": "cache: {quantizer: q}\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 16 s: ``test`` to ask about, ``train`` to calibrate ``q`` on; an adaptation a cache."""
    folder = tmp_path_factory.mktemp("compressed_ask")
    words = [
        "--split",
        "test=3",
        "--split",
        "train=3",
        "--duration",
        "16",
        "--fps",
        "2",
        "--size",
        "56",
        "--seed",
        "7",
    ]
    words += ["--kinds", "needle", "--questions-per-episode", "1"]
    assert main(["world", "--out", str(folder / "world"), *words]) == 0
    for name, cache in CACHES.items():
        (folder / f"{name}.yaml").write_text(SETTINGS + cache)
    chat = VideoChat.load(MODEL, adaptation=load_adaptation(folder / "plain.yaml"), device="cpu")
    videos = sorted((folder / "world" / "train" / "videos").glob("*.mp4"))
    talks = [
        chat.open([VideoRequest(path, UniformFrames(count=FRAMES))], read=ReadOptions(isolated=False))
        for path in videos
    ]
    quantizer = fitted(chat, talks, ["In which scene did the red ring appear?"], LLOYD2, new_tokens=6)
    save(folder / "q", MODEL, chat, quantizer)
    return folder


def rows(folder: Path) -> list[tuple[Path, str]]:
    """Video and question of each row of the test split."""
    read = [json.loads(line) for line in (folder / "world" / "test" / "manifest.jsonl").read_text().splitlines()]
    return [
        (
            folder / "world" / "test" / row["media"][0]["path"],
            row["conversation"][0]["text"].removeprefix("<video>\n"),
        )
        for row in read
    ]


def ask(capsys: pytest.CaptureFixture[str], folder: Path, name: str, video: Path, question: str) -> dict[str, Any]:
    words = ["--model", str(MODEL), "--adaptation", str(folder / f"{name}.yaml"), "--max-new-tokens", "6"]
    assert main(["ask", str(video), question, *words, "--json", "--no-isolate"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.parametrize(("name", "bits"), [("kivi", 3.0), ("saved", 2.0 + 16 / 32)])
def test_a_two_bit_cache_answers_at_four_times_the_trained_frames(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, bits: float
) -> None:
    """Bits count the float16 gain of every token and head, or the ranges of groups; bytes are those of the shapes."""
    for video, question in rows(folder):
        coded = ask(capsys, folder, name, video, question)
        assert coded["answer"] in SCENES
        cache, kept = coded["cache"], coded["prompt_tokens"] + coded["new_tokens"] - 1
        block = 32 if name == "kivi" else 16
        pages = (kept - RECENT) // block * block
        assert cache["coded_bytes"] == pages * 2 * LAYERS * WIDTH * bits / 8
        assert cache["bits_per_number"] == bits
        assert cache["exact_bytes"] == (kept - pages + SINKS) * 2 * LAYERS * WIDTH * 2 + LAYERS * SINKS * 8  # places
        assert cache["name"] == ("kivi_g32" if name == "kivi" else str(folder / "q"))
        # lloyd2: a mean and a deviation a channel and four levels, of keys and of values, and the keys' frequencies
        floats = 0 if name == "kivi" else LAYERS * (2 * (2 * WIDTH + 4) + HEAD_DIM // 2)
        assert cache["parameter_bytes"] == 4 * floats
        parts = [cache[f"{part}_bytes"] for part in ("coded", "exact", "parameter", "row")]
        assert cache["total_bytes"] == sum(parts) < kept * 2 * LAYERS * WIDTH * 2


def test_what_is_wrong_with_a_cache_is_one_line_before_weights_load(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, question = rows(folder)[0]
    wrong = {
        "cache: {preset: lloyd2}": "run `longvid calibrate` with it and name the folder it writes with quantizer",
        "cache: {quantizer: nowhere}": f"cache: {folder / 'nowhere'} is no folder; write one with `longvid calibrate",
        "window: {kind: ntk, scale: 4}\ncache: {quantizer: q}": "calibrated under window {'kind': 'none', 'extrapol",
        "grouping: rearranged\ncache: {quantizer: q}": "calibrated under grouping consecutive, the adaptation has rear",
    }
    for text, message in wrong.items():
        (folder / "wrong.yaml").write_text(f"frames: {FRAMES}\n{text}\n")
        assert (
            main(["ask", str(video), question, "--model", str(MODEL), "--adaptation", str(folder / "wrong.yaml")]) == 2
        )
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1] and not any("loading" in line for line in said)


def test_codes_of_full_precision_answer_as_no_codes_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for video, question in rows(folder):
        plain = ask(capsys, folder, "plain", video, question)
        coded = ask(capsys, folder, "full", video, question)
        assert plain["cache"] is None and plain["answer"] == coded["answer"]
        assert coded["cache"]["bits_per_number"] == 16 and coded["cache"]["coded_bytes"] > 0


def test_the_bytes_are_said_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, question = rows(folder)[0]
    words = [str(video), question, "--model", str(MODEL), "--max-new-tokens", "6", "--no-isolate"]
    assert main(["ask", *words, "--adaptation", str(folder / "saved.yaml")]) == 0
    assert f"cache {folder / 'q'}: 2.50 bits a number, 0.0" in capsys.readouterr().err
    assert main(["ask", *words, "--adaptation", "configs/adaptations/kv/kivi_g32.yaml", "--frames", "8"]) == 0
    assert "cache kivi_g32: nothing is coded, the sink and recent windows hold" in capsys.readouterr().err
