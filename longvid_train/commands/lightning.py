"""``longvid fit|validate|test|predict``: LightningCLI, with one clear line for a mistake in a config."""

import argparse
import logging
import re
import warnings

from longvid_train.console import say
from longvid_train.errors import UserError


def run(subcommand: str, arguments: list[str]) -> int:
    """Run one LightningCLI subcommand and return 0, 143 after a SIGTERM, or the status of the rank that failed.

    Raises:
        UserError: a mistake in a config, a flag, a manifest, a checkpoint or a video.
    """
    # Importing Lightning takes seconds: only the commands that train pay for it.
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from longvid_train.training.cli import RunCLI
    from longvid_train.training.config_errors import one_line
    from longvid_train.training.nan_guard import NonFiniteError
    from longvid_train.training.notices import notice
    from longvid_train.training.ranks.guard import JobFailedError
    from longvid_train.training.stop_signal import EXIT_STOPPED, StopRequestedError, how_to_continue
    from longvid_train.training.tracking import wandb_run_ends_here

    quiet_libraries()
    try:
        with wandb_run_ends_here():
            RunCLI(subcommand, arguments)
    except argparse.ArgumentError as error:
        raise UserError(named_configs(str(error), arguments) + one_line(str(error), subcommand)) from error
    except UserError as error:
        raise UserError(_without_worker_trace(str(error))) from error
    except StopRequestedError as stop:
        notice(how_to_continue(stop, ["longvid", subcommand, *arguments]))
        return 0 if rank_zero_only.rank else EXIT_STOPPED
    except JobFailedError as failed:
        if failed.line is not None:
            say(failed.line)
        return failed.status
    except NonFiniteError:
        # All ranks raise it together: rank 0 reports it, and is not killed because another rank failed first.
        if not rank_zero_only.rank:
            raise
    except SystemExit as stop:
        if stop.code:
            raise
    return 0


def quiet_libraries() -> None:
    """Leave a command's log to the command: no notices and progress bars of the libraries under it."""
    import pytorch_lightning  # noqa: F401 - sets its loggers to INFO when it is imported, and must come first
    import transformers

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "jsonargparse"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    # torchdata 0.11 calls a function of torch that does nothing any more.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated", module="torchdata")
    transformers.utils.logging.disable_progress_bar()


def named_configs(message: str, arguments: list[str]) -> str:
    """Name the config files when YAML cannot be parsed: the parser's own message does not."""
    if "Problems parsing config" not in message:
        return ""
    words = [word.removeprefix("--config=") for word in arguments]
    files = [word for word, before in zip(words, ["", *words], strict=False) if before in ("-c", "--config")]
    files += [word for word, given in zip(words, arguments, strict=True) if word != given]
    return f"{' or '.join(files)}: " if files else ""


def _without_worker_trace(message: str) -> str:
    """Keep the last line of an error that a data loader's worker process wrapped in its own traceback."""
    if not message.startswith("Caught UserError in DataLoader worker"):
        return message
    return re.sub(r"^[\w.]*UserError: ", "", message.strip().splitlines()[-1])
