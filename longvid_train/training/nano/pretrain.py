"""Pre-train a nano part and write it with the record of how it was made.

python -m longvid_train.training.nano.pretrain language --out longvid_train/assets/nano
python -m longvid_train.training.nano.pretrain lengthen --out longvid_train/assets/nano
python -m longvid_train.training.nano.pretrain vision --out longvid_train/assets/nano
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.loggers import CSVLogger

from longvid_train import world
from longvid_train.errors import UserError
from longvid_train.files import sha256_file, write_json
from longvid_train.training.nano.language import (
    LONG_RECIPE,
    LanguagePretraining,
    LanguageRecipe,
    ReadingBatches,
    nano_language_model,
)
from longvid_train.training.nano.tokenizer import train_tokenizer

RECORD = "provenance.json"


def main() -> None:
    """Parse the command line and pre-train one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("language", "lengthen", "vision"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano_parts"), help="where the training logs go")
    parser.add_argument("--steps", type=int, help="override the recipe's number of steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    code = _code()
    torch.set_num_threads(arguments.threads)
    overrides = {} if arguments.steps is None else {"steps": arguments.steps}
    if arguments.part == "language":
        pretrain_language(LanguageRecipe(**overrides), arguments.out, arguments.runs, code)
    elif arguments.part == "lengthen":
        lengthen_language(dataclasses.replace(LONG_RECIPE, **overrides), arguments.out, arguments.runs, code)
    else:
        pretrain_vision(overrides, arguments.out, arguments.runs, code)


def pretrain_language(recipe: LanguageRecipe, out: Path, runs: Path, code: dict[str, str]) -> None:
    """Make ``out/tokenizer`` and ``out/language_model``."""
    pl.seed_everything(recipe.seed, verbose=False)
    tokenizer = train_tokenizer(recipe.seed)
    tokenizer.save_pretrained(out / "tokenizer")
    module = LanguagePretraining(nano_language_model(tokenizer), recipe)
    seconds = _fit(module, ReadingBatches(tokenizer, recipe), recipe.steps, runs, "language")
    module.model.half().save_pretrained(out / "language_model")
    _record(out / "language_model", recipe, seconds, runs / "language", **code)


def lengthen_language(recipe: LanguageRecipe, out: Path, runs: Path, code: dict[str, str]) -> None:
    """Go on training ``out/language_model`` on longer readings; its record keeps that of the model it started from."""
    folder = out / "language_model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    before = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    pl.seed_everything(recipe.seed, verbose=False)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    module = LanguagePretraining(model, recipe)
    seconds = _fit(module, ReadingBatches(tokenizer, recipe), recipe.steps, runs, "lengthen")
    module.model.half().save_pretrained(folder)
    _record(folder, recipe, seconds, runs / "lengthen", **code, started_from=before)


def pretrain_vision(overrides: dict[str, int], out: Path, runs: Path, code: dict[str, str]) -> None:
    """Make ``out/tower`` and ``out/qformer``; needs the tokenizer of ``pretrain_language``."""
    from longvid_train.models.llama_vid import save_text_decoder
    from longvid_train.training.nano.vision import (
        FrameBatches,
        VisionPretraining,
        VisionRecipe,
        nano_qformer,
        nano_tower,
    )

    recipe = VisionRecipe(**overrides)

    if not (out / "tokenizer").is_dir():
        raise UserError(f"{out / 'tokenizer'} does not exist; pre-train the 'language' part first")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    pl.seed_everything(recipe.seed, verbose=False)
    module = VisionPretraining(nano_tower(), nano_qformer(len(tokenizer)), recipe)
    seconds = _fit(module, FrameBatches(tokenizer, recipe), recipe.steps, runs, "vision")
    module.tower.half().save_pretrained(out / "tower")
    save_text_decoder(module.qformer.half(), out / "qformer")
    for part in ("tower", "qformer"):
        _record(out / part, recipe, seconds, runs / "vision", **code)


def _fit(module: pl.LightningModule, batches: Any, steps: int, runs: Path, name: str) -> float:
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=1, prefetch_factor=4
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        log_every_n_steps=25,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
        logger=CSVLogger(runs, name=name, version=""),
    )
    start = time.perf_counter()
    trainer.fit(module, loader)
    return time.perf_counter() - start


def _record(folder: Path, recipe: Any, seconds: float, run: Path, **more: Any) -> None:
    """Write ``provenance.json``: seed, command, commit, hash of the generating code, versions and the last metrics."""
    write_json(
        folder / RECORD,
        {
            **more,
            "command": shlex.join(["python", "-m", "longvid_train.training.nano.pretrain", *sys.argv[1:]]),
            "data": "episodes of longvid_train.world, split 'train', drawn from the seed",
            "device": platform.processor() or platform.machine(),
            "final_metrics": _last_metrics(run / "metrics.csv"),
            "recipe": dataclasses.asdict(recipe),
            "seconds": round(seconds, 1),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
    )


def _code() -> dict[str, str]:
    """Commit, and one hash over the code that generates the data: the data are a pure function of it and the seed.

    Taken when the command starts: that is the code it runs, whatever the working tree becomes meanwhile.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    files = sorted(Path(world.__path__[0]).glob("*.py"))
    digest = hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()
    return {"commit": commit, "data_hash": digest}


def _last_metrics(path: Path) -> dict[str, float]:
    """The mean of the last eight logged rows of each metric."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))[-8:]
    columns = [name for name in rows[0] if name not in ("epoch", "step")]
    values = {name: [float(row[name]) for row in rows if row[name]] for name in columns}
    return {name: round(sum(found) / len(found), 4) for name, found in values.items() if found}


if __name__ == "__main__":
    main()
