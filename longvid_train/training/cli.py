"""LightningCLI of this project: Lightning's conventions, plus a run folder that is never overwritten by accident."""

import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from longvid_train.errors import UserError
from longvid_train.training.answers import AnswerAccuracy
from longvid_train.training.boundary import StepBoundary
from longvid_train.training.callbacks import ADAPTER_FOLDER, MODEL_FOLDER, ExportModel
from longvid_train.training.checkpoint_folder import RunCheckpointIO, check_stage
from longvid_train.training.continued import changes_of_continued_run
from longvid_train.training.exact_parser import ExactParser
from longvid_train.training.finished_run import FinishedRun
from longvid_train.training.last_checkpoint import check_whole, newest_whole
from longvid_train.training.launch import check_launcher
from longvid_train.training.notices import notice
from longvid_train.training.profiling.callback import ProfileSteps, ProfileWindow
from longvid_train.training.progress import LineProgress
from longvid_train.training.ranks.board import RankBoard
from longvid_train.training.ranks.guard import RankGuard, ending_together
from longvid_train.training.ranks.monitor import Watchdog
from longvid_train.training.record import RunRecord, process_command_line
from longvid_train.training.run_checkpoint import RunCheckpoint
from longvid_train.training.shortened_rows import ShortenedRows
from longvid_train.training.stop_signal import StopOnSigterm
from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.throughput import Throughput
from longvid_train.training.tracking import METRICS_FILE, WandbMode, build_loggers
from longvid_train.training.universal_checkpoint import remove_abandoned_copies

CHECKPOINT_FOLDER = "checkpoints"
LAST = "last"
"""Value of ``--ckpt_path`` that means the newest whole checkpoint of the run."""

EXAMPLE = """
Example: train the first stage of the nano LLaMA-VID, then continue it after an interruption

  longvid fit --config configs/llama_vid/nano/stage1.yaml
  longvid fit --config configs/llama_vid/nano/stage1.yaml --ckpt_path last

Paths in a config are relative to the working directory. Any key can be overridden on the command line:
--run_dir runs/a --model.model runs/parts --model.optimizer.lr 1e-4 --data.train runs/train.jsonl --trainer.max_steps
100
"""


class RunCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` in subclass mode. Only the parser of the subcommand asked for is
    built."""

    def __init__(self, subcommand: str, arguments: list[str]) -> None:
        self._only = subcommand
        parsers: dict[str, Any] = {"exit_on_error": False, "description": EXAMPLE.strip()}
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunRecord,
            save_config_kwargs={"command_line": process_command_line(), "overwrite": True},
            seed_everything_default=1,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=ExactParser,
            parser_kwargs={"exit_on_error": False, "prog": "longvid", subcommand: parsers},
            args=[subcommand, *arguments],
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Return the one subcommand of this call: building the parsers of the other three costs seconds."""
        return {self._only: LightningCLI.subcommands()[self._only]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, tracking, checkpoints and held-out answers."""
        parser.add_argument(
            "--run_dir", type=str, required=True, help="folder of this run: everything is written there"
        )
        parser.add_argument(
            "--wandb", type=WandbMode, default="offline", help="wandb: off, offline (no network) or online"
        )
        parser.add_argument("--wandb_project", type=str, default="longvid-train", help="wandb project")
        parser.add_argument(
            "--log_interval_s", type=float, default=10.0, help="seconds between lines of progress in a log"
        )
        parser.add_argument(
            "--profile",
            type=ProfileWindow | None,
            default=None,
            help="profile a few steps of fit and say what they wait for, e.g. --profile.after_steps 10",
        )
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.save_on_exception": True})
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=_checkpoint_folder)
        parser.add_class_arguments(Watchdog, "watchdog")
        parser.add_lightning_class_args(AnswerAccuracy, "answers")
        parser.link_arguments("model.init_args.model", "data.init_args.processor")

    def before_instantiate_classes(self) -> None:
        """Check launcher, run folder and checkpoint before all is built; ``last`` becomes the newest whole file."""
        settings = self.config[self._only]
        check_accumulation_count(settings["trainer"]["accumulate_grad_batches"])
        check_launcher(os.environ, settings["trainer"])
        run_dir, checkpoint = Path(settings["run_dir"]), settings.get("ckpt_path")
        if checkpoint:
            settings["ckpt_path"] = str(find_checkpoint(run_dir, checkpoint))
            if self._only == "fit":
                check_stage(Path(settings["ckpt_path"]), zero_stage(settings["trainer"]["strategy"]))
                remove_abandoned_copies(Path(settings["ckpt_path"]).parent)
                for line in changes_of_continued_run(run_dir, settings):
                    notice(line)
        if self._only == "fit" and not checkpoint:
            check_fresh(run_dir)

    def instantiate_classes(self) -> None:
        """Build the classes; a ``UserError`` of a constructor comes out as it is, not wrapped by jsonargparse, and what
        Lightning says of its own settings as one."""
        try:
            super().instantiate_classes()
        except MisconfigurationException as error:
            raise UserError(_of_lightning(error)) from error
        except ValueError as error:
            mistake: BaseException | None = error
            while mistake is not None and not isinstance(mistake, UserError):
                mistake = mistake.__cause__
            raise (mistake or error) from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with this run's loggers, progress and export."""
        settings = self.config[self._only]
        run_dir = Path(settings["run_dir"])
        training = self._only == "fit"
        if training and not settings["trainer"]["logger"]:
            kwargs["logger"] = build_loggers(
                str(run_dir),
                wandb=settings["wandb"],
                project=settings["wandb_project"],
                name=run_dir.name,
                resumed=bool(settings.get("ckpt_path")),
            )
        extra = _guards(run_dir, self.config_init[self._only]["watchdog"]) if training else []
        window = self.config_init[self._only]["profile"]
        if training and window is not None:
            extra.append(ProfileSteps(run_dir, window))
        if not sys.stderr.isatty() and settings["trainer"]["enable_progress_bar"] is not False:
            extra.append(LineProgress(settings["log_interval_s"]))
        kwargs["callbacks"] = [*extra, *_listed(self.config_init[self._only]["trainer"]["callbacks"])]
        kwargs["plugins"] = [*_listed(self.config_init[self._only]["trainer"]["plugins"]), RunCheckpointIO()]
        trainer = self._lightning_trainer(**kwargs)
        if settings.get("ckpt_path") and isinstance(trainer.strategy, ZeroStrategy):
            trainer.strategy.continued_from = Path(settings["ckpt_path"])
        return trainer

    def _lightning_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(_of_lightning(error)) from error
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand; the processes of a failed job end together."""
        with ending_together(self.trainer):
            super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        """Do not read the checkpoint for hyperparameters, as Lightning does: ours hold none and can be large."""


def _guards(run_dir: Path, watchdog: Watchdog) -> list[Callback]:
    """Callbacks of every training run, in an order that matters.

    Progress is marked before anything that waits for other ranks. The clock is read before the others take time. A
    stop comes before a new step begins; the boundary stands before whatever may fail; the export comes before other
    ends of the run, whose failure must not cost the trained model.
    """
    guard = RankGuard(RankBoard(run_dir), watchdog)
    return [guard, Throughput(), StopOnSigterm(), StepBoundary(), ExportModel(run_dir), ShortenedRows(), FinishedRun()]


def _of_lightning(error: Exception) -> str:
    return f"{error} (check the keys of trainer and checkpoint; 'longvid fit --help' lists them)"


def _listed(value: Any) -> list[Any]:
    """A config's list, single value or nothing as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_accumulation_count(micro_batches: int | None) -> None:
    """Refuse optimiser steps of no micro-batch.

    Raises:
        UserError: ``trainer.accumulate_grad_batches`` is less than 1.
    """
    if micro_batches is not None and micro_batches < 1:
        raise UserError(f"trainer.accumulate_grad_batches is {micro_batches}; it must be at least 1")


def check_fresh(run_dir: Path) -> None:
    """Refuse a run folder that holds results of another run.

    Raises:
        UserError: the folder has an exported model or adapter, or checkpoints.
    """
    exports = [run_dir / MODEL_FOLDER, run_dir / ADAPTER_FOLDER]
    found = [path for path in (*exports, *(run_dir / CHECKPOINT_FOLDER).glob("*.ckpt")) if path.exists()]
    if found:
        raise UserError(
            f"{run_dir}: already holds a run ({found[0].relative_to(run_dir)}); continue it with --ckpt_path last, "
            "choose another --run_dir, or delete the folder"
        )


def find_checkpoint(run_dir: Path, checkpoint: str) -> Path:
    """The whole checkpoint file to load: the one named, or for ``last`` the newest of the run.

    Raises:
        UserError: there is none (Lightning would start from scratch when there is no ``last``), or it is damaged.
    """
    folder = run_dir / CHECKPOINT_FOLDER
    if checkpoint == LAST:
        if not list(folder.glob("*.ckpt")):
            raise UserError(
                f"--ckpt_path {checkpoint}: {folder} holds no checkpoint; start the run without --ckpt_path"
            )
        return newest_whole(folder, notice)
    path = Path(checkpoint)
    if not path.exists():
        raise UserError(f"--ckpt_path {checkpoint}: no such file; name a .ckpt file or folder, or '{LAST}'")
    check_whole(path)
    return path


def zero_stage(strategy: Any) -> int | None:
    """The stage of ZeRO that a config's ``trainer.strategy`` names; None for another strategy."""
    if isinstance(strategy, str):
        return None
    zero = issubclass(pkgutil.resolve_name(strategy["class_path"]), ZeroStrategy)
    return int(strategy["init_args"]["stage"]) if zero else None


def _checkpoint_folder(run_dir: str | None) -> str | None:
    """None without a run folder: that it is required is the parser's to say."""
    return None if run_dir is None else str(Path(run_dir) / CHECKPOINT_FOLDER)


__all__ = ["METRICS_FILE", "RunCLI", "check_fresh", "find_checkpoint"]
