"""Check claims: run what is missing of their grids, compute the others, and leave tables, JSON and plots on disk.

Claims do not depend on each other, so that several can be checked at once, each in a process of its own on one thread:
nano models are too small for more.
"""

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from longvid_train.evaluation.claims.cache_plot import cache_png
from longvid_train.evaluation.claims.catalogue import ALL, AnyClaim
from longvid_train.evaluation.claims.cells import BackboneAnswers, CellStore, run_grid
from longvid_train.evaluation.claims.claim import Claim, ComputedClaim, Finding
from longvid_train.evaluation.claims.coded import CodedAnswers
from longvid_train.evaluation.claims.held_out import HeldOut, clips_hash
from longvid_train.evaluation.claims.llama_vid_answers import ComparedAnswers
from longvid_train.evaluation.claims.methods import Method, tuned_method
from longvid_train.evaluation.claims.models_plot import models_png
from longvid_train.evaluation.claims.pages import claim_png, claim_tables, claim_values
from longvid_train.files import atomic_path, write_json
from longvid_train.models.backbones import BackboneProcessor, load_backbone
from longvid_train.models.backbones.adapted import load_adapted_backbone, read_backbone_adapter
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.models.fingerprint import file_digests, fingerprint
from longvid_train.pool import worker_pool

NANO_LLAMA_VID = "nano_llama_vid"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How claims are checked.

    Attributes:
        out: folder for answers, scores and plots, a subfolder a claim.
        episodes: of each seed and number of frames.
        seeds: sets of episodes.
        models: folder of the nano models.
        llama_vid: folder of a trained LLaMA-VID for the claims about any; ``None`` takes the shipped one.
    """

    out: Path
    episodes: int
    seeds: int
    models: Path
    llama_vid: Path | None

    def source(self, claim: AnyClaim) -> Path | None:
        """Folder of a claim's model, or None where it reads none."""
        if claim.model is not None:
            return self.models / claim.model
        return None if isinstance(claim, ComputedClaim) else self.llama_vid or self.models / NANO_LLAMA_VID


def check_claims(claims: Sequence[AnyClaim], settings: Settings, *, processes: int) -> list[Finding]:
    """What is found about every claim, in the order given.

    Args:
        claims: to check.
        settings: for all of them.
        processes: claims at once; with one, everything happens here.
    """
    processes = min(processes, len(claims))
    if processes <= 1:
        return [check_claim(claim, settings) for claim in claims]
    found: dict[str, Finding] = {}
    with worker_pool(processes, _set_up) as pool:
        longest_first = sorted(claims, key=lambda claim: claim.cpu_s, reverse=True)
        futures: dict[Future[Finding], str] = {
            pool.submit(_check_named, claim.name, settings): claim.name for claim in longest_first
        }
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            print(f"{futures[future]}: done, {len(found)} of {len(claims)} claims", file=sys.stderr, flush=True)
    return [found[claim.name] for claim in claims]


def _set_up() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def _check_named(name: str, settings: Settings) -> Finding:
    """In a process of its own: claims hold functions, which do not travel."""
    return check_claim(ALL[name], settings, shows_progress=False)


def check_claim(claim: AnyClaim, settings: Settings, *, shows_progress: bool = True) -> Finding:
    """Check one claim and write its scores and its plots.

    Raises:
        UserError: the folder has answers of other settings, or the model or its adapter cannot be read.
    """
    source = settings.source(claim)
    if isinstance(claim, ComputedClaim):
        found = claim.find(source)
    else:
        assert source is not None, "a claim about answers has a model"
        found = _check_grid(claim, source, settings, shows_progress=shows_progress)
    folder = settings.out / claim.name
    write_json(folder / "scores.json", found.values)
    for name, png in found.plots.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(png)
    return found


def _check_grid(claim: Claim, source: Path, settings: Settings, *, shows_progress: bool) -> Finding:
    """Run what is missing of the grid, with the row of the claim's adapter."""
    tuned = _tuned(claim, settings.models)
    if tuned is not None:
        claim = replace(claim, grid=replace(claim.grid, methods=(*claim.grid.methods, tuned.method)))
    store = CellStore(
        settings.out / claim.name / "cells",
        _cell_settings(claim, source, settings),
    )
    scores = run_grid(
        claim.grid,
        range(settings.seeds),
        _answers(claim, source, tuned, settings),
        store,
        on_progress=lambda done, cells: _show_progress(claim.name, done, cells) if shows_progress else None,
    )
    checks = claim.checks(scores)
    plots = {"accuracy.png": (claim_png if claim.compared is None else models_png)(claim, scores)}
    if claim.coding is not None:
        plots["bytes.png"] = cache_png(claim, scores)
    return Finding(
        checks=checks,
        tables=claim_tables(claim, scores),
        values=claim_values(claim, scores, checks),
        plots=plots,
    )


def _cell_settings(claim: Claim, source: Path, settings: Settings) -> dict[str, Any]:
    """What makes the answers of a claim what they are, beside the methods' adaptations."""
    return {
        "claim": claim.name,
        "model": _model_identity(claim, source, settings),
        "episodes": settings.episodes,
        "questions": {
            str(frames): clips_hash(claim.held_out(settings.episodes, frames, 0)) for frames in claim.grid.frames
        },
        "coding": None if claim.coding is None else claim.coding.values(claim.grid.methods),
    }


def _model_identity(claim: Claim, source: Path, settings: Settings) -> dict[str, str]:
    """What tells the answers of other models apart: weights, configs, processors and tokenizers."""
    if claim.compared is not None:
        return claim.compared.digests(settings.models)
    return {"fingerprint": fingerprint(source)} | file_digests(source, but=".safetensors")


def _answers(
    claim: Claim, source: Path, tuned: "_Tuned | None", settings: Settings
) -> BackboneAnswers | CodedAnswers | ComparedAnswers:
    """Who answers for the methods of a claim."""

    def held_out(frames: int, seed: int) -> tuple[HeldOut, ...]:
        return claim.held_out(settings.episodes, frames, seed)

    if claim.coding is not None:
        return CodedAnswers(source, claim.coding, held_out, settings.out / claim.name / "quantizers")
    if claim.compared is not None:
        return ComparedAnswers(claim.compared, settings.models, held_out)
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
    digest = hashlib.sha256(repr(sorted(file_digests(models / claim.adapter).items())).encode()).hexdigest()
    backbone = load_adapted_backbone(base, adapter, dtype="float32", merged=True)
    return _Tuned(tuned_method(adapter.adaptation, digest[:12]), backbone)


def _show_progress(name: str, done: int, cells: int) -> None:
    print(f"\r{name}: {done} of {cells} cells", end="\n" if done == cells else "", file=sys.stderr, flush=True)
