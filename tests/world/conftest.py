from pathlib import Path

import pytest

from longvid_train.world.settings import BuildSettings, SetSettings


@pytest.fixture
def small_world() -> BuildSettings:
    """Two splits of short, small videos with subtitles, and images."""
    return BuildSettings(
        seed=3,
        sets=(
            SetSettings(
                videos={"train": 2, "val": 1},
                images={"train": 1},
                texts={"train": 1},
                duration_s=(3.0, 4.0),
                size_px=48,
                subtitles=True,
                kinds=("needle", "order", "count", "detail", "subtitle"),
            ),
        ),
    )


@pytest.fixture
def read_files():
    """Every file under a folder: relative path -> bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read
