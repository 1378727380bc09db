"""Pre-train a nano part and write it with the record of how it was made.

python -m longvid_train.training.nano.pretrain language --out longvid_train/assets/nano
python -m longvid_train.training.nano.pretrain lengthen --out longvid_train/assets/nano
python -m longvid_train.training.nano.pretrain vision --out longvid_train/assets/nano
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers

from longvid_train.errors import UserError
from longvid_train.training.nano.fitting import fit
from longvid_train.training.nano.language import (
    LONG_RECIPE,
    LanguagePretraining,
    LanguageRecipe,
    ReadingBatches,
    nano_language_model,
)
from longvid_train.training.nano.provenance import RECORD, code_version, write_record
from longvid_train.training.nano.tokenizer import train_tokenizer

MODULE = "longvid_train.training.nano.pretrain"


def main() -> None:
    """Parse the command line and pre-train one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("language", "lengthen", "vision"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano_parts"), help="where the training logs go")
    parser.add_argument("--steps", type=int, help="override the recipe's number of steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    code = code_version()
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
    seconds = fit(module, ReadingBatches(tokenizer, recipe), recipe.steps, runs, "language", workers=1)
    module.model.half().save_pretrained(out / "language_model")
    _record(out / "language_model", recipe, seconds, runs / "language", code)


def lengthen_language(recipe: LanguageRecipe, out: Path, runs: Path, code: dict[str, str]) -> None:
    """Go on training ``out/language_model`` on longer readings; its record keeps that of the model it started from."""
    folder = out / "language_model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    before = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    pl.seed_everything(recipe.seed, verbose=False)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    module = LanguagePretraining(model, recipe)
    seconds = fit(module, ReadingBatches(tokenizer, recipe), recipe.steps, runs, "lengthen", workers=1)
    module.model.half().save_pretrained(folder)
    _record(folder, recipe, seconds, runs / "lengthen", code, started_from=before)


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
    seconds = fit(module, FrameBatches(tokenizer, recipe), recipe.steps, runs, "vision", workers=1)
    module.tower.half().save_pretrained(out / "tower")
    save_text_decoder(module.qformer.half(), out / "qformer")
    for part in ("tower", "qformer"):
        _record(out / part, recipe, seconds, runs / "vision", code)


def _record(folder: Path, recipe: Any, seconds: float, run: Path, code: dict[str, str], **more: Any) -> None:
    write_record(
        folder,
        module=MODULE,
        recipe=dataclasses.asdict(recipe),
        seconds=seconds,
        metrics=run / "metrics.csv",
        code=code,
        **more,
    )


if __name__ == "__main__":
    main()
