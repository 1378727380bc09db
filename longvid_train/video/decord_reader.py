"""Frames with decord, for the files where it is right (see ``routing.py``). Optional: imported when used."""

from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.pyav_reader import usable_cores
from longvid_train.video.source import Source

BATCH = 16
"""Frames fetched at a time: decord returns full-size copies, so a larger batch would cost memory beyond the
result's."""

_TOLERANCE_S = 2e-3


class DecordReader:
    """Reads H.264 and VP9 with closed GOPs in MP4 and Matroska."""

    name = "decord"

    def __init__(self, workers: int | None = None) -> None:
        """See `Reader`."""
        self.workers = workers or usable_cores()

    def read(self, source: Source, indices: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Reader.read`."""
        import decord

        width, height = size
        output = np.empty((len(indices), height, width, 3), dtype=np.uint8)
        try:
            video = decord.VideoReader(source.path, num_threads=self.workers)
            self._check_agrees(source, video)
            for start in range(0, len(indices), BATCH):
                batch = video.get_batch(indices[start : start + BATCH].tolist()).asnumpy()
                for slot, picture in enumerate(batch, start):
                    output[slot] = _resized(picture, width, height)
        except (RuntimeError, decord.DECORDError) as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"{source.path}: decord cannot decode it ({reason}); use reader 'pyav'") from error
        return output

    def _check_agrees(self, source: Source, video: Any) -> None:
        """Refuse the file if decord counts other frames, or shows them at other times, than the packets say."""
        times = np.asarray(video.get_frame_timestamp(range(len(video))))[:, 0]
        expected = source.info.timestamps_s
        if len(times) != len(expected) or float(np.abs(times - times[0] - expected).max()) > _TOLERANCE_S:
            raise UserError(
                f"{source.path}: decord counts {len(times)} frames, the file has {len(expected)}; use reader 'pyav'"
            )


def _resized(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if picture.shape[:2] == (height, width):
        return picture
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    scaled = frame.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray()
    return np.asarray(scaled, dtype=np.uint8)
