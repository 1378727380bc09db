"""Statistics on disk while a calibration runs: what each process has so far, whole after a kill at any moment.

``statistics.safetensors`` is what was put together; ``part-<rank>.safetensors`` is what one process added since. Every
file is written aside and renamed. A part whose samples the whole holds already is left from a kill between two steps of
`consolidate`, and is dropped.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from longvid_train.errors import UserError
from longvid_train.files import atomic_path
from longvid_train.kvcache.statistics import Statistics

WHOLE = "statistics.safetensors"
_PART = "part-*.safetensors"


def save_part(folder: Path, rank: int, statistics: Statistics) -> None:
    """Write what the process ``rank`` observed since the last `consolidate`."""
    _save(folder / f"part-{rank}.safetensors", statistics)


def consolidate(folder: Path, empty: Statistics) -> Statistics:
    """Put all parts together on disk and return the whole. One process calls this while no other writes.

    Args:
        folder: of the run.
        empty: statistics without samples, of the run's settings.
    """
    whole = empty
    if (folder / WHOLE).exists():
        whole.merge([_load(folder / WHOLE)])
    parts = sorted(folder.glob(_PART))
    for path in parts:
        part = _load(path)
        if not part.samples <= whole.samples:
            whole.merge([part])
    _save(folder / WHOLE, whole)
    for path in parts:
        path.unlink()
    return whole


def observed_samples(folder: Path) -> set[int]:
    """Numbers of the rows that the whole holds."""
    with safe_open(folder / WHOLE, framework="pt") as file:
        return set(file.get_tensor("samples").tolist())


def _save(path: Path, statistics: Statistics) -> None:
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in statistics.state().items()}, temporary)


def _load(path: Path) -> Statistics:
    try:
        tensors: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder and calibrate again") from error
    return Statistics.from_state(tensors)
