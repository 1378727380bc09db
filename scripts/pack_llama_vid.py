"""Put a trained nano LLaMA-VID, or its variants, into the package: weights in half precision, with how they were made.

    python -m scripts.pack_llama_vid stages runs/nano_llama_vid
    python -m scripts.pack_llama_vid variants runs/llama_vid_variants

``stages`` takes the run folders of ``scripts/train_nano_llama_vid.sh`` and writes ``nano_llama_vid`` (the third stage
with its finish) and ``nano_llama_vid_stage2``, which it was trained from. Their ``config.json`` keeps
float32, in which they compute.
``variants`` takes those of ``scripts/train_llama_vid_variants.sh`` and writes ``nano_llama_vid_variants``.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longvid_train.commands.reproduce import ASSETS
from longvid_train.console import OneLineParser, exit_status
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.llama_vid_long import FOLDERS
from longvid_train.evaluation.claims.llama_vid_variants import (
    BERT_FILE,
    FOLDER,
    PART_FILES,
    PARTS,
    PROVENANCE,
    VARIANTS,
)
from longvid_train.files import atomic_folder, sha256_file, write_json
from longvid_train.models.adapter import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from longvid_train.training.tracking import read_metrics

ROOT = Path(__file__).parents[1]
BERT = ROOT / "configs" / "llama_vid" / "nano" / BERT_FILE
STAGE_RUNS = "runs/nano_llama_vid"
RUNS = ("stage1", "stage2", "stage3", "finish")
LAST = {"stage2": "stage2", "stage3": "finish"}
"""The last run of each model of `FOLDERS`."""
VARIANT_RUNS = "runs/llama_vid_variants"
MODEL_WEIGHTS = "model.safetensors"
KEPT = ("command", "git_commit", "seed", "manifest_sha256", "hardware", "duration_s", "versions")
"""Entries of a start in ``run.json`` that a record keeps."""


def pack_stages(runs: Path, out: Path) -> None:
    """Write both models of ``runs`` into folders under ``out``, which must not exist.

    Raises:
        UserError: a stage is not there, or has not finished.
    """
    records = {name: stage_record(runs / name) for name in RUNS}
    for claimed, folder in FOLDERS.items():
        stage = LAST[claimed]
        chain = {name: records[name] for name in RUNS[: RUNS.index(stage) + 1]}
        with atomic_folder(_absent(out / folder)) as temporary:
            shutil.copytree(runs / stage / "model", temporary, dirs_exist_ok=True)
            halve(runs / stage / "model" / MODEL_WEIGHTS, temporary / MODEL_WEIGHTS)
            write_json(temporary / "config.json", without_places(read_json(temporary / "config.json")))
            write_json(
                temporary / PROVENANCE,
                {
                    "command": "bash scripts/train_nano_llama_vid.sh && "
                    f"python -m scripts.pack_llama_vid stages {STAGE_RUNS}",
                    "commit": records[stage]["git_commit"],
                    "seed": records[stage]["seed"],
                    "stages": chain,
                    "held_out": held_out_scores(runs / stage),
                    "edited": "weights rounded to half precision",
                },
            )


def pack_variants(runs: Path, out: Path) -> None:
    """Write the adapters of ``runs`` into a folder under ``out``, which must not exist.

    Raises:
        UserError: a variant is not there, or has not finished.
    """
    with atomic_folder(_absent(out / FOLDER)) as temporary:
        shutil.copyfile(BERT, temporary / BERT_FILE)
        for name in VARIANTS:
            stages = {stage: stage_record(runs / name / stage) for stage in ("stage1", "stage2")}
            adapter = runs / name / "stage2" / "adapter"
            (temporary / name).mkdir()
            base = f"{VARIANT_RUNS}/{name}/stage1/model"
            config, record = (read_json(adapter / file) for file in (CONFIG_FILE, RECORD_FILE))
            write_json(temporary / name / CONFIG_FILE, config | {"base_model_name_or_path": base})
            write_json(temporary / name / RECORD_FILE, record | {"base_model": base, "base_model_from_here": base})
            halve(adapter / WEIGHTS_FILE, temporary / name / WEIGHTS_FILE)
            write_json(
                temporary / name / PROVENANCE,
                {
                    "command": "bash scripts/train_llama_vid_variants.sh && "
                    f"python -m scripts.pack_llama_vid variants {VARIANT_RUNS}",
                    "commit": stages["stage2"]["git_commit"],
                    "parts": {part: sha256_file(ASSETS / PARTS / file) for part, file in PART_FILES.items()},
                    "stages": stages,
                    "edited": "weights rounded to half precision; the base model is named as in the script",
                },
            )


def stage_record(run: Path) -> dict[str, Any]:
    """What ``run.json`` says of a run's last start.

    Raises:
        UserError: no run there, or it did not reach its end.
    """
    path = run / "run.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; train the stage first")
    last = read_json(path)["starts"][-1]
    if "finished_at" not in last:
        raise UserError(f"{run} has not finished; continue it with --ckpt_path last")
    return {name: last[name] for name in KEPT}


def held_out_scores(run: Path) -> dict[str, dict[str, float]]:
    """Scores of the run's held-out questions before and after training, by kind.

    Raises:
        UserError: the run answered none.
    """
    rows = [row for row in read_metrics(run) if "answers/overall" in row]
    if len(rows) < 2:
        raise UserError(f"{run} answered no held-out questions; train it with answers.enabled")
    named = [{key.removeprefix("answers/"): round(row[key], 4) for key in row if key != "step"} for row in rows]
    return {"before": named[0], "after": named[-1]}


def halve(source: Path, target: Path) -> None:
    """Copy a safetensors file with its numbers in float16."""
    with safe_open(source, "pt") as stored:
        metadata = stored.metadata()
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in load_file(source).items()}
    save_file(tensors, target, metadata=metadata)
    target.chmod(0o644)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def without_places(values: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration without the folders that its parts were loaded from."""
    return {
        name: without_places(inner) if isinstance(inner, dict) else inner
        for name, inner in values.items()
        if name != "_name_or_path"
    }


def _absent(folder: Path) -> Path:
    if folder.exists():
        raise UserError(f"{folder} exists; delete it, or name another folder with --out")
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Pack what the command line names."""
    return exit_status("pack_llama_vid", arguments, _run)


def _run(words: list[str]) -> int:
    parser = OneLineParser(
        prog="pack_llama_vid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["stages", "variants"])
    parser.add_argument("runs", type=Path, help="folder of the trained stages or variants")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the nano models (the package's)")
    given = parser.parse_args(words)
    (pack_stages if given.what == "stages" else pack_variants)(given.runs, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
