from pathlib import Path

import pytest

from longvid_train.generate.chat import VideoChat
from tests.generate.tiny_checkpoint import save_tiny_checkpoint, write_clip, write_picture


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny_chat") / "model")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a.mp4`` (8 s at 2 fps), ``b.mp4``, ``a.srt``, ``picture.png``, ``broken.mp4``."""
    folder = tmp_path_factory.mktemp("chat_files")
    write_clip(folder / "a.mp4", seed=1)
    write_clip(folder / "b.mp4", seconds=4, seed=2)
    write_picture(folder / "picture.png")
    (folder / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nred circle\n")
    (folder / "broken.mp4").write_bytes(b"not a video" * 99)
    return folder


@pytest.fixture(scope="session")
def chat(checkpoint: Path) -> VideoChat:
    return VideoChat.load(checkpoint, device="cpu")
