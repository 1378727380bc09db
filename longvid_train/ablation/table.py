"""Results of a grid: a row a cell, mean and spread over its seeds, as values and as Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from longvid_train.ablation.plan import Run, value_words
from longvid_train.ablation.recipe import Recipe
from longvid_train.ablation.records import RESULT_FILE, RUN_FILE, failure, has_result
from longvid_train.ablation.sweep import SEED, Scalar, Sweep
from longvid_train.training.answers import OVERALL

NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One finished run.

    Attributes:
        scores: mean score of all questions and by kind.
        cost: means over the questions.
        questions: how many there are.
        git_commit: that it was made with.
    """

    scores: Mapping[str, float]
    cost: Mapping[str, float]
    questions: int
    git_commit: str | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A row.

    Attributes:
        name: of the cell.
        cell: its parameters.
        seeds: results by seed.
        missing: why a seed has none.
    """

    name: str
    cell: Mapping[str, Scalar]
    seeds: Mapping[int, SeedResult]
    missing: Mapping[int, str]

    def values(self, kind: str) -> list[float]:
        """Mean scores of the seeds that have questions of this kind."""
        return [one.scores[kind] for one in self.seeds.values() if kind in one.scores]

    def spread(self, kind: str) -> dict[str, float | None]:
        """Mean over seeds, sample standard deviation (``None`` of a single one), smallest and largest."""
        found = self.values(kind)
        deviation = stdev(found) if len(found) > 1 else None
        return {"mean": fmean(found), "sd": deviation, "min": min(found), "max": max(found)}


def read_results(out: Path, runs: Sequence[Run]) -> tuple[CellResult, ...]:
    """Results of the runs that are done, by cell in the order of the runs."""
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.name, []).append(run)
    return tuple(_cell(out, name, its_runs) for name, its_runs in cells.items())


def kinds_of(results: Sequence[CellResult]) -> tuple[str, ...]:
    """All kinds of questions, ``"overall"`` first."""
    found = (kind for cell in results for one in cell.seeds.values() for kind in one.scores)
    return tuple(dict.fromkeys((OVERALL, *found)))


def table_values(sweep: Sweep, recipe: Recipe, results: Sequence[CellResult]) -> dict[str, Any]:
    """What ``results.json`` holds."""
    kinds = kinds_of(results)
    return {
        "name": sweep.name,
        "description": sweep.description,
        "sweep": str(sweep.file),
        "recipe": str(recipe.file),
        "result_step": recipe.result,
        "parameters": {name: list(values) for name, values in sweep.parameters.items()},
        "varied": list(sweep.varied),
        "kinds": list(kinds),
        "git_commits": sorted({str(one.git_commit) for cell in results for one in cell.seeds.values()}),
        "cells": [
            {
                "name": cell.name,
                "parameters": dict(cell.cell),
                "scores": {kind: cell.spread(kind) for kind in kinds if cell.values(kind)},
                "cost": _mean_cost(cell),
                "seeds": {
                    str(seed): {"scores": dict(one.scores), "questions": one.questions}
                    for seed, one in cell.seeds.items()
                },
                "missing": {str(seed): reason for seed, reason in cell.missing.items()},
            }
            for cell in results
        ],
    }


def table_markdown(sweep: Sweep, results: Sequence[CellResult]) -> str:
    """A row a cell: parameters, seeds, percent by kind as mean ± sample standard deviation over seeds."""
    kinds = kinds_of(results)
    varied = sweep.varied or tuple(sweep.parameters)
    head = [*(name.rpartition(".")[2] for name in varied), "seeds", *kinds, "visual tokens"]
    rows = [_row(sweep, varied, kinds, cell) for cell in results]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
    missing = [(cell.name, seed, why) for cell in results for seed, why in cell.missing.items()]
    notes = [f"- failed: {name}, {SEED} {seed}: {why}" for name, seed, why in missing if why != NOT_RUN]
    waiting = sum(why == NOT_RUN for *_, why in missing)
    notes += [f"- runs not done yet: {waiting}"] if waiting else []
    return "\n\n".join(part for part in (sweep.description, table, "\n".join(notes)) if part)


def _row(sweep: Sweep, varied: Sequence[str], kinds: Sequence[str], cell: CellResult) -> list[str]:
    scores = [_percent(cell, kind) for kind in kinds]
    tokens = f"{_mean_cost(cell)['visual_tokens']:.1f}" if cell.seeds else "-"
    return [*(value_words(sweep, name, cell.cell[name]) for name in varied), str(len(cell.seeds)), *scores, tokens]


def _percent(cell: CellResult, kind: str) -> str:
    if not cell.values(kind):
        return "-"
    found = cell.spread(kind)
    assert found["mean"] is not None
    spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.1f}"
    return f"{100 * found['mean']:.1f}{spread}"


def _mean_cost(cell: CellResult) -> dict[str, float]:
    every = list(cell.seeds.values())
    return {name: fmean(one.cost[name] for one in every) for name in every[0].cost} if every else {}


def _cell(out: Path, name: str, runs: Sequence[Run]) -> CellResult:
    done = {run.seed: _seed_result(run.folder(out)) for run in runs if has_result(out, run)}
    missing = {run.seed: failure(out, run) or NOT_RUN for run in runs if run.seed not in done}
    return CellResult(name=name, cell=runs[0].cell, seeds=done, missing=missing)


def _seed_result(folder: Path) -> SeedResult:
    result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return SeedResult(
        scores=result["scores"],
        cost=result["cost"],
        questions=len(result["questions"]),
        git_commit=record["git_commit"],
    )
