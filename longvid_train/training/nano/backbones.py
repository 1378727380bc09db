"""Train a nano backbone in five stages and write it with the record of how it was made.

python -m longvid_train.training.nano.backbones onevision language --out runs/nano_onevision/language
python -m longvid_train.training.nano.backbones onevision align --start runs/nano_onevision/language \
    --out runs/nano_onevision/align
python -m longvid_train.training.nano.backbones onevision couple --start runs/nano_onevision/align \
    --out runs/nano_onevision/couple
python -m longvid_train.training.nano.backbones onevision polish --start runs/nano_onevision/couple \
    --out runs/nano_onevision/polish
python -m longvid_train.training.nano.backbones onevision finish --start runs/nano_onevision/polish \
    --out runs/nano_onevision/finish
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longvid_train.errors import UserError
from longvid_train.files import sha256_file
from longvid_train.models.backbones import load_backbone
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.training.nano.backbone_stages import AlignStage, ConversationStage, PictureTokens, WordTokens
from longvid_train.training.nano.clip_batches import ClipBatches, ClipRecipe
from longvid_train.training.nano.dialogue import DialogueWriter
from longvid_train.training.nano.families import FAMILIES, Family
from longvid_train.training.nano.fitting import fit
from longvid_train.training.nano.held_out import held_out_scores
from longvid_train.training.nano.provenance import RECORD, code_version, write_record
from longvid_train.training.nano.schedule import Rate

MODULE = "longvid_train.training.nano.backbones"
STAGES = ("language", "align", "couple", "polish", "finish")
WEIGHTS = "model.safetensors"
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
"""Lightning's names of torch's devices."""

WHOLE = ("couple", "polish", "finish")
"""Stages that train everything on pictures: their checkpoints are float16 and their records have held-out scores."""

NOISE = 4.0
"""Standard deviation of the noise on pictures, in grey levels: about what H.264 leaves at the world's quality."""


ORDER_HEAVY = ("needle", "order", "order", "order", "order", "detail")
"""Kinds of the last stage: order is what four stages leave weakest of what can be solved."""


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """The clips of a stage, its learning rate, and the weight of the loss on every frame's words (`FrameWords`)."""

    clips: ClipRecipe
    rate: Rate
    frame_words: float = 0.0


RECIPES: dict[tuple[str, str], StageRecipe] = {
    ("onevision", "language"): StageRecipe(
        clips=ClipRecipe(
            steps=500,
            clips=24,
            fewest_frames=3,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.8, 1.25),
            seed=1,
        ),
        rate=Rate(peak=7e-4, decay_from=0.9),
    ),
    ("onevision", "align"): StageRecipe(
        clips=ClipRecipe(
            steps=1800,
            clips=16,
            fewest_frames=8,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(1.0, 3.0),
            questions=1,
            seed=2,
        ),
        rate=Rate(peak=1.5e-3, decay_from=0.3),
    ),
    ("onevision", "couple"): StageRecipe(
        clips=ClipRecipe(
            steps=420,
            clips=24,
            fewest_frames=2,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.8, 1.25),
            seed=3,
        ),
        rate=Rate(peak=5e-4, decay_from=0.2),
        frame_words=0.3,
    ),
    ("video_llava", "language"): StageRecipe(
        clips=ClipRecipe(
            steps=500,
            clips=24,
            fewest_frames=4,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.5, 3.0),
            seed=4,
        ),
        rate=Rate(peak=7e-4, decay_from=0.9),
    ),
    ("video_llava", "align"): StageRecipe(
        clips=ClipRecipe(
            steps=900,
            clips=16,
            fewest_frames=8,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.5, 3.0),
            questions=1,
            seed=5,
        ),
        rate=Rate(peak=1.5e-3, decay_from=0.3),
    ),
    ("video_llava", "couple"): StageRecipe(
        clips=ClipRecipe(
            steps=450,
            clips=24,
            fewest_frames=8,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.5, 3.0),
            seed=6,
        ),
        rate=Rate(peak=5e-4, decay_from=0.2),
    ),
    ("onevision", "polish"): StageRecipe(
        clips=ClipRecipe(
            steps=300,
            clips=32,
            fewest_frames=6,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.9, 1.25),
            dense=False,
            seed=7,
        ),
        rate=Rate(peak=5e-4, warmup_steps=30, decay_from=0.1),
        frame_words=0.3,
    ),
    ("video_llava", "polish"): StageRecipe(
        clips=ClipRecipe(
            steps=300,
            clips=32,
            fewest_frames=8,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.6, 1.8),
            dense=False,
            seed=8,
        ),
        rate=Rate(peak=5e-4, warmup_steps=30, decay_from=0.1),
    ),
    ("onevision", "finish"): StageRecipe(
        clips=ClipRecipe(
            steps=1400,
            clips=32,
            fewest_frames=7,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.9, 1.25),
            dense=False,
            kinds=ORDER_HEAVY,
            rivals=0.5,
            seed=9,
        ),
        rate=Rate(peak=7e-4, warmup_steps=30, decay_from=0.3),
        frame_words=0.1,
    ),
    ("video_llava", "finish"): StageRecipe(
        clips=ClipRecipe(
            steps=480,
            clips=32,
            fewest_frames=8,
            first_most_frames=8,
            most_frames=8,
            steps_per_frame=1,
            spacing_s=(0.6, 1.8),
            dense=False,
            kinds=ORDER_HEAVY,
            rivals=0.5,
            seed=10,
        ),
        rate=Rate(peak=5e-4, warmup_steps=30, decay_from=0.2),
    ),
}
"""By family and stage."""


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=tuple(FAMILIES))
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--start", type=Path, help="folder of the stage before")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano_backbones"), help="where the training logs go")
    parser.add_argument("--steps", type=int, help="override the recipe's number of steps")
    parser.add_argument("--clips", type=int, help="override the recipe's clips of a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=tuple(ACCELERATORS), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    overrides = {name: getattr(arguments, name) for name in ("steps", "clips")}
    given = {name: value for name, value in overrides.items() if value is not None}
    recipe = RECIPES[arguments.family, arguments.stage]
    train_stage(
        FAMILIES[arguments.family],
        arguments.stage,
        dataclasses.replace(recipe, clips=dataclasses.replace(recipe.clips, **given)),
        start=arguments.start,
        out=arguments.out,
        runs=arguments.runs,
        accelerator=ACCELERATORS[arguments.device],
    )


def train_stage(
    family: Family,
    stage: str,
    recipe: StageRecipe,
    *,
    start: Path | None,
    out: Path,
    runs: Path,
    accelerator: str = "cpu",
) -> AnyBackbone:
    """Run one stage and write the checkpoint.

    The same arguments on the same device with as many threads give the same files.

    Args:
        family: the backbone.
        stage: of `STAGES`.
        recipe: of the stage.
        start: folder that the stage before wrote; the first stage has none.
        out: folder to write.
        runs: for the logs.
        accelerator: Lightning's name of the device.

    Raises:
        UserError: ``start`` is missing, or given for the first stage.
    """
    code = code_version()
    pl.seed_everything(recipe.clips.seed, verbose=False)
    backbone, tokenizer = _start(family, stage, start)
    backbone.model.train()
    module = _module(family, stage, backbone, tokenizer, recipe)
    batches = _batches(family, backbone, tokenizer, recipe.clips)
    name = f"{family.name}_{stage}"
    seconds = fit(module, batches, recipe.clips.steps, runs, name, accelerator=accelerator)
    backbone.model.cpu().eval()
    more: dict[str, Any] = {}
    if stage in WHOLE:
        more["held_out"] = held_out_scores(backbone, family, DialogueWriter(tokenizer, family.chat))
        family.finish(backbone)
        backbone.model.half()
    family.save(backbone, tokenizer, out)
    if start is not None:
        more["started_from_sha256"] = sha256_file(start / WEIGHTS)
    before = None if start is None else json.loads((start / RECORD).read_text(encoding="utf-8"))
    write_record(
        out,
        module=MODULE,
        recipe=dataclasses.asdict(recipe),
        seconds=seconds,
        metrics=runs / name / "metrics.csv",
        code=code,
        started_from=before,
        **more,
    )
    return backbone


def _start(family: Family, stage: str, start: Path | None) -> tuple[AnyBackbone, PreTrainedTokenizerFast]:
    if (start is None) != (stage == STAGES[0]):
        raise UserError(
            f"stage '{stage}' {'needs --start, the folder of the stage before' if start is None else 'has no --start'}"
        )
    if start is None:
        tokenizer = family.tokenizer()
        return family.build(tokenizer), tokenizer
    return load_backbone(start, dtype=torch.float32), AutoTokenizer.from_pretrained(start)


def _module(
    family: Family, stage: str, backbone: AnyBackbone, tokenizer: PreTrainedTokenizerFast, recipe: StageRecipe
) -> pl.LightningModule:
    words = WordTokens(backbone, tokenizer)
    if stage == "language":
        return ConversationStage(backbone, words, recipe.clips, recipe.rate)
    visual = PictureTokens(backbone, family.pictures, NOISE, recipe.clips.seed)
    if stage == "align":
        return AlignStage(backbone, words, visual, recipe.clips, recipe.rate)
    return ConversationStage(backbone, visual, recipe.clips, recipe.rate, frame_words=recipe.frame_words)


def _batches(
    family: Family, backbone: AnyBackbone, tokenizer: PreTrainedTokenizerFast, recipe: ClipRecipe
) -> ClipBatches:
    grid = backbone.facts.grid
    return ClipBatches(recipe, DialogueWriter(tokenizer, family.chat), grid.frame_tokens(grid.stride), grid.end_tokens)


if __name__ == "__main__":
    main()
