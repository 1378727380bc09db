"""One wandb run a cell and seed: offline in the ablation's folder, or the run that a wandb agent started this for."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longvid_train.ablation.kinds import Fit
from longvid_train.ablation.plan import Run
from longvid_train.ablation.records import RESULT_FILE, RUN_FILE
from longvid_train.ablation.sweep import Sweep
from longvid_train.files import write_json
from longvid_train.training.tracking import METRICS_FILE, read_metrics

WANDB_FILE = "wandb.json"
_AGENT = "WANDB_SWEEP_ID"


def under_agent(environment: Mapping[str, str]) -> bool:
    """Whether a wandb agent started this process for one run of its sweep."""
    return _AGENT in environment


def log_run(out: Path, run: Run, sweep: Sweep) -> None:
    """Write the wandb run of a finished run; one that is written stays, half of one that was interrupted is replaced.

    ``wandb sync`` reads the folder ``wandb/offline-run-...`` in ``out``. Under a wandb agent the numbers go to the
    agent's run instead. ``WANDB_MODE=disabled`` writes none.
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        return
    folder = run.folder(out)
    if under_agent(os.environ):
        _write(out, run, folder, {})
        return
    marker = folder / WANDB_FILE
    if marker.is_file():
        known = json.loads(marker.read_text(encoding="utf-8"))
        if known["whole"]:
            return
        for half in (out / "wandb").glob(f"offline-run-*-{known['id']}"):
            shutil.rmtree(half)
    run_id = uuid.uuid4().hex[:8]
    write_json(marker, {"id": run_id, "whole": False})
    title = f"{run.name}/seed{run.seed}"
    own = {"mode": "offline", "id": run_id, "project": sweep.project, "group": sweep.name, "name": title}
    _write(out, run, folder, {**own, "job_type": "ablation", "reinit": "create_new"})
    write_json(marker, {"id": run_id, "whole": True})


def _write(out: Path, run: Run, folder: Path, identity: dict[str, Any]) -> None:
    import wandb

    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    with wandb.init(dir=str(out), config=record, settings=wandb.Settings(silent=True), **identity) as tracked:
        for step, values in _curves(out, run):
            tracked.define_metric(f"{step}/*", step_metric=f"{step}/step")
            tracked.log(values)
        tracked.summary.update(summary_values(result))


def summary_values(result: Mapping[str, Any]) -> dict[str, float]:
    """``score`` over all questions, which the sweep files name as their metric, and the rest beside it."""
    scores = {f"score/{kind}": value for kind, value in result["scores"].items()}
    return {"score": result["scores"]["overall"], **scores, **{f"cost/{name}": v for name, v in result["cost"].items()}}


def _curves(out: Path, run: Run) -> Iterator[tuple[str, dict[str, float]]]:
    """Logged numbers of every training step of the run, under the step's name."""
    for step in run.result.in_order():
        output = step.output(out)
        if isinstance(step.kind, Fit) and (output / METRICS_FILE).is_file():
            for line in read_metrics(output):
                numbers = {f"{step.name}/{name}": value for name, value in line.items() if _finite(value)}
                yield step.name, numbers


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
