"""Frames for pictures are those of the tower: its size, its crop, its colours."""

from pathlib import Path

import numpy as np
import pytest

from longvid_train.generate import seen
from longvid_train.generate.chat import VideoChat
from longvid_train.generate.media import ReadOptions, open_frames, open_image, open_video, probe_video
from longvid_train.generate.seen import seen_frames
from longvid_train.models.llama_vid.frames import resize_and_crop
from longvid_train.video import UniformFrames, read_clip
from tests.generate.tiny_backbone_folder import save_tiny_backbone

IN_PROCESS = ReadOptions(isolated=False)
SIDE = 28


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_frames_of_the_tower_s_size_come_back_as_they_are(chat: VideoChat) -> None:
    frames = noise(5, SIDE, SIDE)
    found = seen_frames(open_frames(frames), chat.engine, IN_PROCESS, [0, 2, 4])
    assert np.array_equal(np.stack(found), frames[[0, 2, 4]])


def test_frames_of_a_backbone_come_back_as_they_are(tmp_path: Path) -> None:
    chat = VideoChat.load(save_tiny_backbone(tmp_path / "model"), device="cpu")
    side = chat.model.config.vision_config.image_size
    frames = noise(3, side, side)
    assert np.array_equal(np.stack(seen_frames(open_frames(frames), chat.engine, IN_PROCESS, [0, 1, 2])), frames)


def test_a_wide_frame_is_cut_as_the_tower_has_it(chat: VideoChat) -> None:
    frames = noise(2, 32, 80)
    found = np.stack(seen_frames(open_frames(frames), chat.engine, IN_PROCESS, [0, 1]))
    expected = resize_and_crop(frames, SIDE).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, expected)


def test_frames_of_a_file_are_those_of_the_answer(
    chat: VideoChat, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "CHUNK", 2)
    sampling = UniformFrames(count=5)
    medium = open_video(probe_video(files / "a.mp4", IN_PROCESS), sampling)
    clip = read_clip(files / "a.mp4", sampling)
    found = seen_frames(medium, chat.engine, IN_PROCESS, [0, 1, 4])
    whole = seen_frames(open_frames(clip.frames), chat.engine, IN_PROCESS, range(5))
    assert len(found) == 3
    assert all(np.array_equal(one, whole[number]) for one, number in zip(found, (0, 1, 4), strict=True))


def test_an_image_is_one_frame(chat: VideoChat, files: Path) -> None:
    (found,) = seen_frames(open_image(files / "picture.png"), chat.engine, IN_PROCESS, [0])
    assert found.shape == (SIDE, SIDE, 3) and found.std() > 10
