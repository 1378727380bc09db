"""The files that DeepSpeed would write for a checkpoint, handed over in place of being written.

Its own writers either make training wait for the disk or drop a file in silence when their process has died.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from longvid_train.training.save_queue import snapshot

EngineFiles = list[tuple[Path, dict[str, Any]]]
"""Where to write, and what."""


class _Handover(TorchCheckpointEngine):
    """DeepSpeed's writer of checkpoints that writes nothing."""

    def __init__(self, *, copied: bool) -> None:
        super().__init__()
        self.files: EngineFiles = []
        self._copied = copied

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        self.files.append((Path(path), snapshot(state_dict) if self._copied else state_dict))


@contextmanager
def handed_over(engine: Any, *, copied: bool) -> Iterator[EngineFiles]:
    """Collect what this rank's DeepSpeed engine writes for a checkpoint within.

    Args:
        engine: DeepSpeed's.
        copied: collect copies, which training on does not change.
    """
    writer, handover = engine.checkpoint_engine, _Handover(copied=copied)
    engine.checkpoint_engine = handover
    try:
        yield handover.files
    finally:
        engine.checkpoint_engine = writer
