"""The config and flags of ``longvid calibrate``: Lightning's conventions, with a calibration's own keys."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ActionConfigFile

from longvid_train.errors import UserError, nearest
from longvid_train.kvcache.gate import GateThresholds
from longvid_train.training.calibration.cache_settings import CacheSettings
from longvid_train.training.calibration.datamodule import CalibrationData
from longvid_train.training.calibration.job import CalibrationJob
from longvid_train.training.calibration.progress import RowProgress
from longvid_train.training.calibration.settings import ModelSettings
from longvid_train.training.exact_parser import ExactParser
from longvid_train.training.launch import check_launcher

EXAMPLE = """
Example: a 2-bit cache for the nano LLaVA-OneVision, then another scheme and two processes

  longvid calibrate --config configs/calibration/nano_onevision.yaml --out runs/kv/onevision_lloyd2
  longvid calibrate --config configs/calibration/nano_onevision.yaml --out runs/kv/onevision_static2
    --cache.preset static2 --trainer.devices 2 --trainer.strategy ddp

The same command goes on after an interruption. Paths in a config are relative to the working directory.
"""

_TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "inference_mode": False,
}
_UNKNOWN = re.compile(r"(?:does not accept option|[Oo]ption|unrecognized arguments:) '?-{0,2}([\w.]+)'?")


def parse_job(arguments: list[str]) -> tuple[CalibrationJob, pl.Trainer]:
    """Read configs and flags.

    Raises:
        UserError: a value that cannot be.
        argparse.ArgumentError: words or keys that the parser does not take.
    """
    parser = calibration_parser()
    config = parser.parse_args(arguments)
    check_launcher(os.environ, config["trainer"])
    try:
        built = parser.instantiate_classes(config)
    except ValueError as error:
        mistake: BaseException | None = error
        while mistake is not None and not isinstance(mistake, UserError):
            mistake = mistake.__cause__
        raise (mistake or error) from None
    job = CalibrationJob(
        model=built.model,
        data=built.data,
        cache=built.cache,
        gate=built.gate,
        out=Path(built.out),
        force=built.force,
    )
    settings = dict(built.trainer)
    callbacks = [] if settings["callbacks"] is None else [*settings["callbacks"]]
    if not sys.stderr.isatty() and settings["enable_progress_bar"] is not False:
        callbacks.append(RowProgress(built.log_interval_s))
    return job, pl.Trainer(**{**settings, "callbacks": callbacks})


def calibration_parser() -> ExactParser:
    """The parser of a calibration's config."""
    parser = ExactParser(prog="longvid calibrate", description=EXAMPLE.strip(), exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; later ones and flags override it")
    parser.add_argument("--out", type=str, required=True, help="new folder of the quantizer checkpoint")
    parser.add_argument("--force", action="store_true", help="write the checkpoint although the gate refuses it")
    parser.add_argument("--log_interval_s", type=float, default=10.0, help="seconds between lines of progress in a log")
    parser.add_class_arguments(ModelSettings, "model")
    parser.add_lightning_class_args(CalibrationData, "data")
    parser.add_class_arguments(CacheSettings, "cache")
    parser.add_class_arguments(GateThresholds, "gate")
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in _TRAINER_DEFAULTS.items()})
    parser.link_arguments("model.model", "data.model")
    return parser


def mistake_in_words(message: str) -> str:
    """jsonargparse's report as one line, with the nearest key for a mistyped one."""
    found = _UNKNOWN.search(message)
    if found is not None:
        keys = [*calibration_parser().get_defaults().keys()]
        last = found.group(1).rsplit(".", 1)[-1]
        hint = nearest(found.group(1), keys) or next(
            (f"; did you mean '{key}'?" for key in keys if key.rsplit(".")[-1] == last), ""
        )
        return f"'{found.group(1)}' is not a key of a calibration{hint} ('longvid calibrate --help' lists the keys)"
    return " ".join(message.split())[:600] + " ('longvid calibrate --help' lists the keys)"
