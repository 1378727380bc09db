"""``longvid fit|validate|test|predict``: LightningCLI, with one clear line for a mistake in a config."""

import argparse
import logging
import re
import warnings

from longvid_train.errors import UserError


def run(subcommand: str, arguments: list[str]) -> int:
    """Run one LightningCLI subcommand and return 0.

    Raises:
        UserError: a mistake in a config, a flag, a manifest, a checkpoint or a video.
    """
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "jsonargparse"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Importing Lightning takes seconds: only the commands that train pay for it.
    from longvid_train.training.cli import RunCLI
    from longvid_train.training.config_errors import one_line

    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    try:
        RunCLI(subcommand, arguments)
    except argparse.ArgumentError as error:
        raise UserError(one_line(str(error), subcommand)) from error
    except UserError as error:
        raise UserError(_without_worker_trace(str(error))) from error
    except SystemExit as stop:
        if stop.code:
            raise
    return 0


def _without_worker_trace(message: str) -> str:
    """Keep the last line of an error that a data loader's worker process wrapped in its own traceback."""
    if not message.startswith("Caught UserError in DataLoader worker"):
        return message
    return re.sub(r"^[\w.]*UserError: ", "", message.strip().splitlines()[-1])
