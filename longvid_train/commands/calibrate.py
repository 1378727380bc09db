"""``longvid calibrate``: a quantizer of a model's KV cache, fitted to a calibration set and judged on held-out rows."""

import argparse

from longvid_train.console import EXIT_FAILURE
from longvid_train.errors import UserError


def run(name: str, arguments: list[str]) -> int:
    """Calibrate; 0 where the checkpoint was written, 1 where the gate refused it.

    Raises:
        UserError: a mistake in a config, a flag, a manifest, a model or a video.
    """
    # Importing Lightning takes seconds: only the commands that need it pay for it.
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from longvid_train.commands.lightning import named_configs, quiet_libraries
    from longvid_train.training.calibration.parsing import mistake_in_words, parse_job
    from longvid_train.training.calibration.run_folder import REPORT_FILE, run_folder
    from longvid_train.training.notices import notice

    quiet_libraries()
    try:
        job, trainer = parse_job(arguments)
        verdict = job.run(trainer)
    except argparse.ArgumentError as error:
        raise UserError(named_configs(str(error), arguments) + mistake_in_words(str(error))) from error
    except UserError:
        if rank_zero_only.rank:
            return EXIT_FAILURE  # all processes have it; rank 0 reports it
        raise
    except SystemExit as stop:
        if stop.code:
            raise
        return 0
    notice(verdict.summary())
    if verdict.passed or verdict.forced:
        notice(f"{job.out}: {'passed' if verdict.passed else 'written by --force: ' + '; '.join(verdict.reasons)}")
        return 0
    report = run_folder(job.out) / REPORT_FILE
    notice(
        f"refused: {'; '.join(verdict.reasons)}. Nothing was written to {job.out}; the report is {report}. Keep more "
        "bits or more tokens in full precision, or write it all the same with --force"
    )
    return 0 if rank_zero_only.rank else EXIT_FAILURE
