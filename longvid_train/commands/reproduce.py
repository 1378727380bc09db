"""Check claims of the papers on nano models and held-out episodes of the world: paper | here | holds.

examples:
  longvid reproduce --out reproduce
  longvid reproduce visual-window intp-frames --out reproduce --episodes 40 --json
  longvid reproduce intp-kv-bits-llama-vid --llama-vid quickstart/stage3/model --out reproduce

Without a name every claim is checked. --out gets every answer, scores.json and a plot of each claim, and table.md of
all of them. An interrupted run goes on where it stopped when the command is given again. --json prints one JSON object.
"""

import argparse
import json
import os
from pathlib import Path

import transformers

import longvid_train
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.catalogue import ALL, AnyClaim, choose_claims
from longvid_train.evaluation.claims.checking import Settings, check_claims
from longvid_train.evaluation.claims.claim import Claim, ComputedClaim
from longvid_train.evaluation.claims.pages import checks_table
from longvid_train.files import write_text

ASSETS = Path(longvid_train.__file__).parent / "assets"
EPISODES = 30
LEAST_EPISODES = 2
SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    claims = ", ".join(f"{claim.name} {claim.cpu_s} s" for claim in ALL.values())
    add("claims", metavar="CLAIM", nargs="*", help=f"claims to check (all), here with their CPU seconds: {claims}")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for answers, tables and plots")
    add(
        "--episodes", type=int, default=EPISODES, metavar="N", help=f"episodes a seed and number of frames ({EPISODES})"
    )
    add(
        "--seeds", type=int, default=SEEDS, metavar="N", help=f"sets of episodes, each with a seed of its own ({SEEDS})"
    )
    add("--models", type=Path, default=ASSETS, metavar="DIR", help="folder of the nano models (those of the package)")
    add(
        "--llama-vid", type=Path, metavar="DIR", help="a LLaMA-VID of yours, e.g. quickstart/stage3/model (the shipped)"
    )
    add("--processes", type=int, metavar="N", help="claims at once, on one thread each (as many as there are cores)")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Check the claims, write everything and print the tables."""
    if arguments.episodes < LEAST_EPISODES:
        raise UserError(f"--episodes is {arguments.episodes}; an interval needs at least {LEAST_EPISODES}")
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be at least 1")
    processes = len(os.sched_getaffinity(0)) if arguments.processes is None else arguments.processes
    if processes < 1:
        raise UserError(f"--processes is {processes}; it must be at least 1")
    claims = choose_claims(arguments.claims)
    settings = Settings(
        out=arguments.out,
        episodes=arguments.episodes,
        seeds=arguments.seeds,
        models=arguments.models,
        llama_vid=arguments.llama_vid,
    )
    for claim in claims:
        _check_source(claim, settings)
    transformers.utils.logging.disable_progress_bar()
    found = check_claims(claims, settings, processes=processes)
    named = list(zip(claims, found, strict=True))
    table = checks_table([(claim.name, one.checks) for claim, one in named])
    parts = [table, *(f"## {claim.title}\n\n{one.tables}" for claim, one in named)]
    write_text(arguments.out / "table.md", "\n\n".join(parts) + "\n")
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "claims": [one.values for one in found]}))
    else:
        print("\n\n".join(parts))
    return 0


def _check_source(claim: AnyClaim, settings: Settings) -> None:
    """Refuse a claim whose model is not there, before any other is run."""
    if isinstance(claim, ComputedClaim) and claim.model is None:
        return
    if isinstance(claim, Claim) and claim.compared is not None:
        claim.compared.check(settings.models)
        return
    source = settings.source(claim)
    if source is None or not (source / "config.json").is_file():
        remedy = "a LLaMA-VID with --llama-vid" if claim.model is None else f"{claim.model} with --models"
        raise UserError(f"{source} holds no model; name the folder of {remedy}")
