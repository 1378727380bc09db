"""What a continued run changes that its checkpoint does not say: the length of the run and the seed."""

from pathlib import Path
from typing import Any

import yaml

from longvid_train.training.record import CONFIG_FILE

_LENGTH = "the learning rate follows the schedule of the new length from here on"
_SEED = "random numbers follow the new seed from here on"
_WATCHED = {
    ("trainer", "max_steps"): _LENGTH,
    ("trainer", "max_epochs"): _LENGTH,
    ("seed_everything",): _SEED,
}


def changes_of_continued_run(run_dir: Path, settings: Any) -> list[str]:
    """One line for each watched setting that differs from the config of the run's last start.

    ``data.loading.seed`` is not watched: with another order of rows a checkpoint is refused.

    Args:
        run_dir: folder of the run; without a ``config.yaml`` there is nothing to compare with.
        settings: the config of this start.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        return []
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    lines = []
    for keys, consequence in _WATCHED.items():
        old, new = _value(before, keys), _value(settings, keys)
        if old != new:
            lines.append(f"continuing with {'.'.join(keys)} {new} instead of {old}: {consequence}")
    return lines


def _value(settings: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        settings = settings[key]
    return settings
