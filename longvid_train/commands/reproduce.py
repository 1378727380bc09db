"""Check claims of the papers on nano models and held-out episodes of the world: paper | here | holds.

examples:
  longvid reproduce --out reproduce
  longvid reproduce visual-window intp-frames --out reproduce --episodes 40 --json
  longvid reproduce intp-kv-bits-llama-vid --llama-vid quickstart/stage3/model --out reproduce

Without a name every claim is checked, those about a LLaMA-VID where --llama-vid names one. --out gets every answer,
scores.json and a plot of each claim, and table.md of all of them. An interrupted run goes on where it stopped when the
command is given again. --json prints one JSON object.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import longvid_train
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.catalogue import CLAIMS, choose_claims
from longvid_train.evaluation.claims.cells import BackboneAnswers, CellStore, Scores, run_grid
from longvid_train.evaluation.claims.claim import Check, Claim
from longvid_train.evaluation.claims.coded import CodedAnswers
from longvid_train.evaluation.claims.held_out import HeldOut
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
    add("--llama-vid", type=Path, metavar="DIR", help="folder of a trained LLaMA-VID, e.g. quickstart/stage3/model")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Check the claims, write everything and print the tables."""
    if arguments.episodes < LEAST_EPISODES:
        raise UserError(f"--episodes is {arguments.episodes}; an interval needs at least {LEAST_EPISODES}")
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be at least 1")
    claims = choose_claims(arguments.claims, llama_vid=arguments.llama_vid is not None)
    for claim in claims:
        if not (_source(claim, arguments) / "config.json").is_file():
            wanted = claim.model or "a LLaMA-VID with --llama-vid"
            raise UserError(f"{_source(claim, arguments)} holds no model; name the folder of {wanted}")
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


def _source(claim: Claim, arguments: argparse.Namespace) -> Path:
    """Folder of the claim's model."""
    folder: Path = arguments.llama_vid if claim.model is None else arguments.models / claim.model
    return folder


def check_claim(claim: Claim, arguments: argparse.Namespace) -> tuple[Claim, Scores, tuple[Check, ...]]:
    """Run what is missing of one claim and write its scores and its plot; return it with the row of its adapter."""
    source = _source(claim, arguments)
    tuned = _tuned(claim, arguments.models)
    if tuned is not None:
        claim = replace(claim, grid=replace(claim.grid, methods=(*claim.grid.methods, tuned.method)))
    folder = arguments.out / claim.name
    store = CellStore(
        folder / "cells", {"claim": claim.name, "model": fingerprint(source), "episodes": arguments.episodes}
    )
    scores = run_grid(
        claim.grid,
        range(arguments.seeds),
        _answers(claim, source, tuned, arguments),
        store,
        on_progress=lambda done, cells: _show_progress(claim.name, done, cells),
    )
    checks = claim.checks(scores)
    write_json(folder / "scores.json", claim_values(claim, scores, checks))
    with atomic_path(folder / "accuracy.png") as temporary:
        temporary.write_bytes(claim_png(claim, scores))
    return claim, scores, checks


def _answers(
    claim: Claim, source: Path, tuned: "_Tuned | None", arguments: argparse.Namespace
) -> BackboneAnswers | CodedAnswers:
    """Who answers for the methods of a claim."""

    def held_out(frames: int, seed: int) -> tuple[HeldOut, ...]:
        return claim.held_out(arguments.episodes, frames, seed)

    if claim.coding is not None:
        return CodedAnswers(source, claim.coding, held_out, arguments.out / claim.name / "quantizers")
    backbone = load_backbone(source, dtype="float32")
    return BackboneAnswers(
        lambda method: tuned.backbone if tuned is not None and method is tuned.method else backbone,
        BackboneProcessor.load(source, backbone.facts),
        held_out,
        one_by_one=claim.grid.one_by_one,
    )


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
    assert claim.model is not None, "a claim with an adapter names the nano model it belongs to"
    base = adapter.base_folder(models / claim.model)
    digest = sha256_file(models / claim.adapter / WEIGHTS_FILE)
    backbone = load_adapted_backbone(base, adapter, dtype="float32", merged=True)
    return _Tuned(tuned_method(adapter.adaptation, digest[:12]), backbone)


def _show_progress(name: str, done: int, cells: int) -> None:
    print(f"\r{name}: {done} of {cells} cells", end="\n" if done == cells else "", file=sys.stderr, flush=True)
