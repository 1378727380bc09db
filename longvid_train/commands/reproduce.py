"""Check claims of the papers on nano models and held-out episodes of the world: paper | here | holds.

examples:
  longvid reproduce --out reproduce
  longvid reproduce visual-window intp-frames --out reproduce --episodes 40 --json

Without a name every claim is checked. --out gets every answer, scores.json and a plot of each claim, and table.md of
all of them. An interrupted run goes on where it stopped when the command is given again. --json prints one JSON object.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import longvid_train
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.catalogue import CLAIMS, choose_claims
from longvid_train.evaluation.claims.cells import CellStore, Scores, run_grid
from longvid_train.evaluation.claims.claim import Check, Claim
from longvid_train.evaluation.claims.methods import Method, tuned_method
from longvid_train.evaluation.claims.pages import checks_table, claim_png, claim_values, costs_table, scores_table
from longvid_train.files import atomic_path, sha256_file, write_json, write_text
from longvid_train.models.adapter import WEIGHTS_FILE
from longvid_train.models.backbones import BackboneProcessor, load_backbone
from longvid_train.models.backbones.adapted import load_adapted_backbone, read_backbone_adapter
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.models.fingerprint import fingerprint

ASSETS = Path(longvid_train.__file__).parent / "assets"
EPISODES = 30
LEAST_EPISODES = 2
SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("claims", metavar="CLAIM", nargs="*", help=f"claims to check (all): {', '.join(CLAIMS)}")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for answers, tables and plots")
    add(
        "--episodes", type=int, default=EPISODES, metavar="N", help=f"episodes a seed and number of frames ({EPISODES})"
    )
    add(
        "--seeds", type=int, default=SEEDS, metavar="N", help=f"sets of episodes, each with a seed of its own ({SEEDS})"
    )
    add("--models", type=Path, default=ASSETS, metavar="DIR", help="folder of the nano models (those of the package)")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Check the claims, write everything and print the tables."""
    if arguments.episodes < LEAST_EPISODES:
        raise UserError(f"--episodes is {arguments.episodes}; an interval needs at least {LEAST_EPISODES}")
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be at least 1")
    claims = choose_claims(arguments.claims)
    for claim in claims:
        if not (arguments.models / claim.model / "config.json").is_file():
            raise UserError(f"{arguments.models / claim.model} holds no model; name the folder of {claim.model}")
    found = [check_claim(claim, arguments) for claim in claims]
    table = checks_table([(claim, checks) for claim, _, checks in found])
    parts = [table, *(f"## {claim.title}\n\n{_tables(claim, scores)}" for claim, scores, _ in found)]
    write_text(arguments.out / "table.md", "\n\n".join(parts) + "\n")
    if arguments.json:
        values = [claim_values(claim, scores, checks) for claim, scores, checks in found]
        print(json.dumps({"out": str(arguments.out), "claims": values}))
    else:
        print("\n\n".join(parts))
    return 0


def _tables(claim: Claim, scores: Scores) -> str:
    table = scores_table(claim, scores)
    return f"{table}\n\n{costs_table(claim, scores)}" if claim.grid.one_by_one else table


def check_claim(claim: Claim, arguments: argparse.Namespace) -> tuple[Claim, Scores, tuple[Check, ...]]:
    """Run what is missing of one claim and write its scores and its plot; return it with the row of its adapter."""
    source = arguments.models / claim.model
    tuned = _tuned(claim, arguments.models)
    if tuned is not None:
        claim = replace(claim, grid=replace(claim.grid, methods=(*claim.grid.methods, tuned.method)))
    folder = arguments.out / claim.name
    store = CellStore(
        folder / "cells", {"claim": claim.name, "model": fingerprint(source), "episodes": arguments.episodes}
    )
    backbone = load_backbone(source, dtype="float32")
    processor = BackboneProcessor.load(source, backbone.facts)
    scores = run_grid(
        claim.grid,
        range(arguments.seeds),
        lambda method: tuned.backbone if tuned is not None and method is tuned.method else backbone,
        processor,
        store,
        held_out=lambda frames, seed: claim.held_out(arguments.episodes, frames, seed),
        on_progress=lambda done, cells: _show_progress(claim.name, done, cells),
    )
    checks = claim.checks(scores)
    write_json(folder / "scores.json", claim_values(claim, scores, checks))
    with atomic_path(folder / "accuracy.png") as temporary:
        temporary.write_bytes(claim_png(claim, scores))
    return claim, scores, checks


@dataclass(frozen=True)
class _Tuned:
    """A method with an adapter, and the model with the adapter merged into its weights."""

    method: Method
    backbone: AnyBackbone


def _tuned(claim: Claim, models: Path) -> _Tuned | None:
    """What stands beside the claim's model.

    Raises:
        UserError: the adapter is broken, or of another model.
    """
    if claim.adapter is None or not (models / claim.adapter).is_dir():
        return None
    adapter = read_backbone_adapter(models / claim.adapter)
    base = adapter.base_folder(models / claim.model)
    digest = sha256_file(models / claim.adapter / WEIGHTS_FILE)
    backbone = load_adapted_backbone(base, adapter, dtype="float32", merged=True)
    return _Tuned(tuned_method(adapter.adaptation, digest[:12]), backbone)


def _show_progress(name: str, done: int, cells: int) -> None:
    print(f"\r{name}: {done} of {cells} cells", end="\n" if done == cells else "", file=sys.stderr, flush=True)
