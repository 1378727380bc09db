"""Run a finished ``longvid fit`` again from its own run folder and compare the two bit for bit.

    python -m scripts.reproduce_run quickstart/stage2                     # writes quickstart/stage2_again
    python -m scripts.reproduce_run quickstart/stage2 --out /tmp/stage2   # another folder for the repetition

The run is started with its ``config.yaml`` in the working folder that its ``run.json`` names, without wandb. One line
is printed for each thing compared: every weight file, the metrics but what was measured on the machine (times, rates,
memory), and every file of answers. Before it, one line for each recorded fact that is different now: commit,
manifests, versions, hardware. Exit status 0 if all is the same, 1 if not or if the repetition failed, 2 for a mistake.

The same bits need the same kind of processor and number of threads, and the folders that the config names (manifests,
videos, features, the model it starts from) as they were.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from longvid_train.errors import UserError
from longvid_train.training.record import CONFIG_FILE
from longvid_train.training.repetition import compare_runs, differing_facts, last_start


def repeat(run: Path, out: Path, working_folder: Path) -> int:
    """Run the config of ``run`` again into ``out``; the exit status of ``longvid fit``."""
    config, target = (run / CONFIG_FILE).resolve(), out.resolve()
    words = ["fit", "--config", str(config), "--run_dir", str(target), "--wandb", "off"]
    command = [sys.executable, "-m", "longvid_train.cli", *words]
    return subprocess.run(command, cwd=working_folder, check=False).returncode


def folder_to_run_in(run: Path, given: Path | None) -> Path:
    """Where paths of the run's config are relative to.

    Raises:
        UserError: the folder is not there, or the run does not say.
    """
    recorded = last_start(run).get("working_folder")
    folder = given or (Path(recorded) if recorded else None)
    if folder is None or not folder.is_dir():
        raise UserError(
            f"{run}: its working folder {f'{folder} is not there' if folder else 'is not recorded'}, and paths in its "
            "config are relative to it; name a folder with --working-folder"
        )
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Repeat, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="folder of the repetition (RUN_again)")
    parser.add_argument("--working-folder", type=Path, help="where the config's relative paths start (as recorded)")
    parser.add_argument("--compare-only", action="store_true", help="compare RUN with a repetition that is in --out")
    options = parser.parse_args(arguments)
    out = options.out or options.run.with_name(f"{options.run.name}_again")
    try:
        working_folder = folder_to_run_in(options.run, options.working_folder)
        if not options.compare_only:
            if out.exists():
                raise UserError(f"{out}: exists already; name another folder with --out, or use --compare-only")
            status = repeat(options.run, out, working_folder)
            if status:
                print(f"repeating {options.run} ended with exit status {status}")
                return 1
        for fact in differing_facts(options.run, out):
            print(f"note: {fact}")
        found = compare_runs(options.run, out)
    except UserError as error:
        print(f"reproduce_run: {error}", file=sys.stderr)
        return 2
    for one in found:
        print(f"{'same' if one.same else 'DIFFERS'}: {one.what}: {one.detail}")
    return 0 if all(one.same for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
