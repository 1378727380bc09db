"""Where numbers go: ``metrics.jsonl`` in the run folder always, wandb beside it (offline unless asked otherwise)."""

import json
import netrc
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from longvid_train.errors import UserError
from longvid_train.files import write_text

WandbMode = Literal["off", "offline", "online"]
METRICS_FILE = "metrics.jsonl"


class MetricsFile(Logger):
    """A Lightning logger that appends one JSON object a logged step to ``<run_dir>/metrics.jsonl``.

    Each line has ``step`` (optimiser steps done) and the metrics of that call. A fresh run starts an empty file; a
    resumed run first drops the lines at or after the step it continues from, so every step stands once.
    """

    def __init__(self, run_dir: str, *, resumed: bool) -> None:
        super().__init__()
        self.path = Path(run_dir) / METRICS_FILE
        self._run_dir = run_dir
        self._resumed = resumed
        self._started = False

    @property
    def name(self) -> str:
        """Lightning's name for the logger's folder; none is used."""
        return ""

    @property
    def version(self) -> str:
        """Lightning's version of the run; the run folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return self._run_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """No experiment object."""
        return

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line."""
        if not self._started:
            self._start(0 if step is None else step)
        line = json.dumps({"step": step, **{name: _plain(value) for name, value in metrics.items()}})
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder's ``config.yaml`` has the hyperparameters."""

    def _start(self, first_step: int) -> None:
        kept = ""
        if self._resumed and self.path.exists():
            lines = _whole_lines(self.path.read_text(encoding="utf-8"))
            kept = "".join(line + "\n" for line in lines if json.loads(line)["step"] < first_step)
        write_text(self.path, kept)
        self._started = True


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl`` in order."""
    text = (run_dir / METRICS_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in _whole_lines(text)]


def _whole_lines(text: str) -> list[str]:
    """Lines that end: a process that is killed can leave the start of one behind."""
    return text.split("\n")[:-1]


def build_loggers(run_dir: str, *, wandb: WandbMode, project: str, name: str, resumed: bool) -> list[Logger]:
    """Build the loggers of a run; ``WANDB_MODE=disabled`` in the environment switches wandb off, ``offline`` keeps it
    offline.

    Raises:
        UserError: ``wandb`` is ``"online"`` and no key is at hand (wandb would stop and ask for one).
    """
    loggers: list[Logger] = [MetricsFile(run_dir, resumed=resumed)]
    mode = {"disabled": "off", "dryrun": "offline", "offline": "offline"}.get(os.environ.get("WANDB_MODE", ""), wandb)
    if wandb == "off" or mode == "off":
        return loggers
    if mode == "online" and not _has_wandb_key():
        raise UserError("wandb is 'online' but no key is set; set WANDB_API_KEY, or use --wandb offline")
    return [*loggers, _wandb_logger(run_dir, offline=mode == "offline", project=project, name=name)]


def _wandb_logger(run_dir: str, *, offline: bool, project: str, name: str) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    Path(run_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=run_dir, project=project, name=name, offline=offline, log_model=False)


@contextmanager
def wandb_run_ends_here() -> Iterator[None]:
    """End the wandb run that the body began, marked as failed when the body raises.

    An open run would take in whatever the next training of this process logs, in place of a run of its own. A run
    that was open before, as under ``wandb.agent``, is its owner's to end.
    """
    before = _open_wandb_run()
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        run = _open_wandb_run()
        if run is not None and run is not before:
            run.finish(exit_code=exit_code)


def _open_wandb_run() -> Any:
    """The wandb run of this process; None when there is none or wandb was never imported (it takes a second)."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
