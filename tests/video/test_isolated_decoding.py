"""The isolated decoder gives the same frames, obeys its limits, and is not trusted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longvid_train.errors import UserError
from longvid_train.video import AtTimes, DecodeLimits, FramesPerSecond, UniformFrames, probe, read_clip
from longvid_train.video.decoding import Request
from longvid_train.video.wire import MAGIC, decode_request, encode_request, header_bytes

Videos = Callable[[str], Path]


@pytest.mark.parametrize("sampling", [UniformFrames(count=7), AtTimes(times_s=(2.0, 0.5, 2.0)), FramesPerSecond(fps=4)])
def test_same_frames_as_in_process(sampling: UniformFrames, videos: Videos) -> None:
    path = videos("h264_open")
    here = read_clip(path, sampling, shortest_edge=24)
    there = read_clip(path, sampling, shortest_edge=24, isolated=True)
    np.testing.assert_array_equal(there.frames, here.frames)
    np.testing.assert_array_equal(there.timestamps_s, here.timestamps_s)
    assert (there.duration_s, there.reader, there.path) == (here.duration_s, here.reader, here.path)


def test_same_probe_as_in_process(videos: Videos) -> None:
    here, there = probe(videos("rotated_90")), probe(videos("rotated_90"), isolated=True)
    np.testing.assert_array_equal(there.timestamps_s, here.timestamps_s)
    for name in ("path", "container", "codec", "width", "height", "rotation_deg", "duration_s", "frame_count"):
        assert getattr(there, name) == getattr(here, name), name


def test_errors_of_the_child_are_the_same_errors(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("nothing")
    messages = []
    for isolated in (False, True):
        with pytest.raises(UserError) as caught:
            read_clip(text, UniformFrames(count=1), isolated=isolated)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert str(text) in messages[0]


def test_a_deadline_kills_the_child(videos: Videos) -> None:
    with pytest.raises(UserError, match=r"h264_closed.*took longer than limits\.timeout_s = 0\.001 s and was stopped"):
        read_clip(videos("h264_closed"), UniformFrames(count=1), isolated=True, limits=DecodeLimits(timeout_s=0.001))
    assert not children()


def children() -> list[str]:
    """Command lines of this process's live children that are isolated decoders."""
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if "longvid_train.video.child" in line]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
def test_memory_is_limited(tmp_path: Path, videos: Videos) -> None:
    limits = DecodeLimits(max_memory_bytes=700 << 20, max_frames=200_000, max_output_bytes=4 << 30)
    with pytest.raises(UserError, match=r"h264_closed.*max_memory_bytes = 734003200"):
        times = tuple(np.linspace(0, 2.3, 120_000).tolist())
        read_clip(videos("h264_closed"), AtTimes(times_s=times), isolated=True, limits=limits)
    assert not children()


def test_the_child_starts_without_torch() -> None:
    code = "import sys, longvid_train.video.child; print({'torch', 'decord', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_child_confines_itself() -> None:
    code = (
        "import resource; from longvid_train.video.child import confine; from longvid_train.video import DecodeLimits;"
        "confine(DecodeLimits(max_memory_bytes=1 << 31));"
        "print([resource.getrlimit(k)[1] for k in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1 << 31, 0, 0]


HEADER = {"frames": 1, "height": 48, "width": 64, "duration_s": 2.4, "reader": "pyav"}


def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, then: str = "") -> None:
    """Replace the child by a program that answers with ``answer`` and then runs ``then``."""
    (tmp_path / "answer").write_bytes(answer)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/order\ncat {tmp_path}/answer\n{then}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    ("answer", "then", "message"),
    [
        (b"EVIL" + bytes(8), "", "malformed"),
        (MAGIC + (1 << 40).to_bytes(8, "big"), "", "malformed"),
        (MAGIC + (4).to_bytes(8, "big") + b"nope", "", "malformed"),
        (header_bytes({**HEADER, "width": "64"}), "", "malformed"),
        (header_bytes({**HEADER, "reader": "other"}) + bytes(8 + 9216), "", "malformed"),
        (header_bytes({**HEADER, "duration_s": float("inf")}) + bytes(8 + 9216), "", "malformed"),
        (header_bytes({**HEADER, "frames": 10**6}), "", "malformed"),
        (header_bytes({**HEADER, "height": 8000, "width": 8000}), "", "max_output_bytes"),
        (header_bytes(HEADER) + bytes(100), "exit 3", "exit status 3"),
        (header_bytes(HEADER) + bytes(100), "kill -SEGV $$", "killed by SIGSEGV"),
        (b"", "echo no such module >&2; exit 1", "no such module"),
        (header_bytes({"error": "a\x1b[31mb\nc"}), "", r"a \[31mb c"),
    ],
)
def test_nothing_a_child_says_is_trusted(
    answer: bytes, then: str, message: str, tmp_path: Path, videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor(tmp_path, monkeypatch, answer, then)
    limits = DecodeLimits(timeout_s=20, max_output_bytes=1 << 20)
    with pytest.raises(UserError, match=message):
        read_clip(videos("h264_closed"), UniformFrames(count=1), isolated=True, limits=limits)


def test_the_environment_is_not_passed_on(tmp_path: Path, videos: Videos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    impostor(tmp_path, monkeypatch, b"", f"env > {tmp_path}/env; exit 1")
    with pytest.raises(UserError):
        read_clip(videos("h264_closed"), UniformFrames(count=1), isolated=True)
    assert "secret" not in (tmp_path / "env").read_text()


def test_requests_survive_the_wire() -> None:
    for sampling in (
        UniformFrames(count=3, at_most=True, start_s=1.5),
        FramesPerSecond(fps=0.5, max_frames=9, end_s=4.0),
        AtTimes(times_s=(1.0, 0.5)),
    ):
        limits = replace(DecodeLimits(), allowed_schemes=("https",))
        request = Request(
            path="ä b.mp4", sampling=sampling, reader="auto", limits=limits, shortest_edge=24, exact=False
        )
        assert decode_request(json.loads(json.dumps(encode_request(request)))) == request
