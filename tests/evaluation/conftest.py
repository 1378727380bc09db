"""A synthetic run folder with known numbers over one real mp4 file."""

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

QUESTION = '<video>\nWhat is <script>alert("x")</script> & so on?'
# kind, truth, answer before, answer after, score before, score after
ROWS = [
    ("needle", "sea", "city", "sea", 0.0, 1.0),
    ("needle", "forest", "forest", "forest", 1.0, 1.0),
    ("needle", "city", "sea", "<b>sea</b>", 0.0, 0.0),
    ("needle", "snow", "sea", "snow", 0.0, 1.0),
    ("caption", "red ring", "ring", "ring", 0.5, 0.5),
    ("caption", "red ring", "blue", "red ring", 0.0, 1.0),
]
STARTED = "2026-01-02T03:04:05+00:00"


def _video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _answers(moment: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row{index}",
            "kind": row[0],
            "question": QUESTION,
            "answer": row[2 + moment],
            "truth": row[1],
            "correct": row[4 + moment],
            "frames": 10 + index,
            "visual_tokens": 20 + 2 * index,
            "prompt_tokens": 100 + index,
        }
        for index, row in enumerate(ROWS)
    ]


def _manifest(folder: Path) -> Path:
    rows = [
        {
            "id": f"row{index}",
            "media": [{"type": "video", "path": "clip.mp4"}],
            "conversation": [{"role": "user", "text": QUESTION}, {"role": "assistant", "text": row[1]}],
            "meta": {"kind": row[0]},
        }
        for index, row in enumerate(ROWS)
    ]
    return _json_lines(folder / "held.jsonl", rows)


def _steps() -> list[dict[str, Any]]:
    losses = [4.0, 3.0, 2.5, 1.25]
    return [
        {
            "step": step,
            "train/loss": loss,
            "train/lr": 1e-3,
            "train/tokens_per_s": 100.0 * (step + 1),
            "train/frames_per_s": 10.0 * (step + 1),
            "train/peak_bytes": float((step + 1) * 2**20),
        }
        for step, loss in enumerate(losses)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write ``tmp_path/<name>`` like ``longvid fit`` does; it took 90 s."""

    def make(name: str = "run") -> Path:
        run = tmp_path / name
        run.mkdir()
        if not (tmp_path / "clip.mp4").exists():
            _video(tmp_path / "clip.mp4")
        manifest = _manifest(tmp_path)
        media = {"sampling": {"start_s": 0.0, "end_s": None, "fps": 1.0, "max_frames": None}}
        media |= {"reader": "pyav", "isolated": False, "exact": True, "shortest_edge": None, "cache_bytes": 0}
        config = {
            "model": {"init_args": {"model": "parts", "stage": {"name": "long_video"}}},
            "data": {"init_args": {"test": str(manifest), "media": {**media, "limits": {"max_frames": 100}}}},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        start = {
            "started_at": STARTED,
            "command": "longvid fit --config 'a <i>.yaml'",
            "seed": 3,
            "git_commit": "0123456789abcdef0123456789abcdef01234567-dirty",
            "manifest_sha256": {str(manifest): hashlib.sha256(manifest.read_bytes()).hexdigest()},
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": {"cpu_cores": 2, "cuda_devices": [], "platform": "Linux", "torch_threads": 2},
            "duration_s": 90.0,
        }
        (run / "run.json").write_text(json.dumps({"starts": [start]}))
        _json_lines(run / "metrics.jsonl", [{"step": 0, "answers/overall": 0.25}, *_steps()])
        _json_lines(run / "answers_before.jsonl", _answers(0))
        _json_lines(run / "answers_after.jsonl", _answers(1))
        return run

    return make


@pytest.fixture(scope="session")
def untrained_onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano OneVision with random weights, as its recipe begins."""
    import torch

    from longvid_train.training.nano.families import ONEVISION

    torch.manual_seed(0)
    tokenizer = ONEVISION.tokenizer()
    folder = tmp_path_factory.mktemp("models") / "nano_onevision"
    ONEVISION.save(ONEVISION.build(tokenizer), tokenizer, folder)
    return folder
