"""What an ablation's folder says about itself and its runs: another grid, or results of other contents, are refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longvid_train.ablation.making import DONE_FILE, Facts, is_done
from longvid_train.ablation.plan import Run
from longvid_train.ablation.recipe import Recipe
from longvid_train.ablation.scores import Scored, result_values
from longvid_train.ablation.sweep import Sweep
from longvid_train.errors import UserError
from longvid_train.evaluation.reading import read_json_object
from longvid_train.files import write_json
from longvid_train.training.record import manifest_hashes, now

GRID_FILE, RUN_FILE, RESULT_FILE, FAILED_FILE = "grid.json", "run.json", "result.json", "failed.json"
_REMEDY = "choose another --out, or restore what changed"


def grid_values(sweep: Sweep, recipe: Recipe) -> dict[str, Any]:
    """What makes a grid what it is; seeds may be added."""
    values = {
        "name": sweep.name,
        "parameters": {name: list(values) for name, values in sweep.parameters.items()},
        "recipe": recipe.values,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def check_grid(out: Path, values: Mapping[str, Any]) -> None:
    """Refuse a folder of another grid, or one with other things in it.

    Raises:
        UserError: naming what differs.
    """
    path = out / GRID_FILE
    if path.is_file():
        known = read_json_object(path, _REMEDY)
        differing = [name for name in values if known.get(name) != values[name]]
        if differing:
            raise UserError(f"{out} holds another grid: {', '.join(differing)} differ; {_REMEDY}")
    elif out.is_file() or (out.is_dir() and any(not one.name.startswith(".") for one in out.iterdir())):
        raise UserError(f"{out}: is no folder of an ablation (it has no {GRID_FILE}); choose another --out")


def check_results(out: Path, runs: Sequence[Run]) -> None:
    """Refuse results whose configs, models or data have changed since.

    Raises:
        UserError: naming the run and the first step that is another now.
    """
    for run in runs:
        folder = run.folder(out)
        if not (folder / RESULT_FILE).is_file() or has_result(out, run):
            continue
        known = read_json_object(folder / RUN_FILE, _REMEDY).get("steps", {})
        changed = [one.name for one in run.result.in_order() if known.get(one.name, {}).get("identity") != one.identity]
        raise UserError(
            f"{folder}: was made with another {changed[0] if changed else 'result'} (its settings, or a file, model or "
            f"manifest that they name); {_REMEDY}"
        )


def has_result(out: Path, run: Run) -> bool:
    """Whether a run is done."""
    path = run.folder(out) / RESULT_FILE
    return path.is_file() and read_json_object(path, _REMEDY).get("identity") == run.result.identity


def write_run(out: Path, run: Run, scored: Sequence[Scored], sweep: Sweep, facts: Facts) -> None:
    """Write the record of a run and then its result, which is what says that it is done."""
    folder = run.folder(out)
    write_json(folder / RUN_FILE, run_values(out, run, sweep, facts))
    write_json(folder / RESULT_FILE, result_values(run.result.identity, scored))
    (folder / FAILED_FILE).unlink(missing_ok=True)


def write_failure(out: Path, run: Run, message: str) -> None:
    """Note why a run has no result."""
    write_json(run.folder(out) / FAILED_FILE, {"message": message, "failed_at": now()})


def failure(out: Path, run: Run) -> str | None:
    """Why a run failed the last time; ``None`` where it did not."""
    path = run.folder(out) / FAILED_FILE
    return str(read_json_object(path, _REMEDY).get("message")) if path.is_file() else None


def run_values(out: Path, run: Run, sweep: Sweep, facts: Facts) -> dict[str, Any]:
    """All that a run's numbers depend on."""
    steps = list(run.result.in_order())
    return {
        "ablation": sweep.name,
        "sweep": str(sweep.file),
        "cell": run.name,
        "parameters": dict(run.cell),
        "seed": run.seed,
        "steps": {
            one.name: {"folder": str(one.folder(out).relative_to(out)), "identity": one.identity} for one in steps
        },
        "config": {one.name: dict(one.config) for one in steps},
        "manifest_sha256": _manifests(out, run),
        "duration_s": sum(_duration_s(one.folder(out)) for one in steps),
        "finished_at": now(),
        **asdict(facts),
    }


def steps_done(out: Path, runs: Sequence[Run]) -> tuple[int, int]:
    """Steps that are made, and steps in all, each counted once."""
    folders = {one.folder(out) for run in runs for one in run.result.in_order()}
    return sum(is_done(folder) for folder in folders), len(folders)


def _manifests(out: Path, run: Run) -> dict[str, str]:
    """SHA-256 of all manifests that the steps name; names inside the ablation's folder are relative to it."""
    found: dict[str, str] = {}
    for step in run.result.in_order():
        for name, digest in manifest_hashes(step.resolved(out)).items():
            inside = Path(name).is_relative_to(out)
            found[str(Path(name).relative_to(out)) if inside else name] = digest
    return found


def _duration_s(folder: Path) -> float:
    return float(read_json_object(folder / DONE_FILE, _REMEDY)["duration_s"])
