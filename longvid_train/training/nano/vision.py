"""Image-text pre-training of the nano vision tower and Q-Former on world frames.

The tower learns visual n-grams (Li et al. 2017, arXiv:1612.09161): its mean patch feature predicts the words and word
pairs of the frame's caption. The Q-Former learns what a question asks of a frame: the mean of its query outputs
predicts the words of the answer, as far as one frame can tell. Both classifiers are thrown away.

``F`` frames of a batch, ``G`` n-grams, ``Lp`` tokens of a question.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import IterableDataset
from transformers import InstructBlipQFormerConfig, InstructBlipVisionConfig, PreTrainedTokenizerFast

from longvid_train.models.llama_vid import EvaVisionTower, QFormerTextDecoder
from longvid_train.models.llama_vid.frames import normalise, resize_and_crop
from longvid_train.world.episode import (
    COLOURS,
    DIGITS,
    SCENES,
    SHAPES,
    Appearance,
    Episode,
    WorldSettings,
    make_episode,
)
from longvid_train.world.questions import CAPTION_INSTRUCTIONS, IMAGE_INSTRUCTIONS
from longvid_train.world.render import render_frame
from longvid_train.world.text import NOTHING

IMAGE_SIZE = 84
PATCH_SIZE = 14
WIDTH = 96
QUERIES = 8

NGRAMS = (
    *COLOURS,
    *SHAPES,
    *DIGITS,
    *SCENES,
    NOTHING,
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"{shape} {digit}" for shape in SHAPES for digit in DIGITS),
)
_INDEX = {ngram: index for index, ngram in enumerate(NGRAMS)}


@dataclass(frozen=True, kw_only=True)
class VisionRecipe:
    """How the nano tower and Q-Former are pre-trained together."""

    steps: int = 2400
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    frame_size_px: int = 112
    noise: float = 4.0
    overlap: float = 0.3
    ngram_weight: float = 0.3
    seed: int = 0


class FrameBatch(TypedDict):
    """``(F, 3, h, w)`` pixels, ``(F, G)`` caption and answer n-grams (0 or 1), and the ``(F, Lp)`` question."""

    pixel_values: torch.Tensor
    caption: torch.Tensor
    answer: torch.Tensor
    prompt_input_ids: torch.Tensor
    prompt_attention_mask: torch.Tensor


class FrameBatches(IterableDataset[FrameBatch]):
    """An endless, seeded stream of frames, each with a question."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: VisionRecipe) -> None:
        self._tokenizer = tokenizer
        self._recipe = recipe

    def __iter__(self) -> Iterator[FrameBatch]:
        """Yield ``recipe.steps`` batches."""
        rng = random.Random(self._recipe.seed)
        noise = np.random.default_rng(self._recipe.seed)
        for _ in range(self._recipe.steps):
            yield self._batch(rng, noise)

    def _batch(self, rng: random.Random, noise: np.random.Generator) -> FrameBatch:
        frames: list[NDArray[np.uint8]] = []
        captions: list[torch.Tensor] = []
        questions: list[str] = []
        answers: list[torch.Tensor] = []
        settings = WorldSettings(duration_s=16.0, overlap=self._recipe.overlap)
        while len(frames) < self._recipe.batch_size:
            episode = make_episode(settings, split="train", seed=rng.getrandbits(32), index=0)
            for _ in range(4):
                time_s = rng.uniform(0.0, settings.duration_s)
                question, answer = ask_frame(episode, time_s, rng)
                frames.append(render_frame(episode, time_s, self._recipe.frame_size_px))
                captions.append(_hot(frame_ngrams(episode, time_s)))
                questions.append(question)
                answers.append(_hot(answer))
        prompts = self._tokenizer(questions, padding=True, add_special_tokens=False, return_tensors="pt")
        return {
            "pixel_values": _pixels(np.stack(frames), noise, self._recipe.noise),
            "caption": torch.stack(captions),
            "answer": torch.stack(answers),
            "prompt_input_ids": prompts["input_ids"],
            "prompt_attention_mask": prompts["attention_mask"],
        }


def frame_ngrams(episode: Episode, time_s: float) -> list[str]:
    """Words and word pairs of what a frame shows: scene, objects, their digits."""
    seen = episode.visible_at(time_s)
    return [
        episode.scene_at(time_s).name,
        *(word for a in seen for word in object_ngrams(a)),
        *([] if seen else [NOTHING]),
    ]


def object_ngrams(appearance: Appearance) -> list[str]:
    """Words and word pairs of one object."""
    a = appearance
    return [a.colour, a.shape, a.digit, a.name, f"{a.shape} {a.digit}"]


def ask_frame(episode: Episode, time_s: float, rng: random.Random) -> tuple[str, list[str]]:
    """A question and the n-grams one frame can answer it with; an object that is not on screen gives ``nothing``."""
    seen = episode.visible_at(time_s)
    present = bool(seen) and rng.random() < 0.7
    asked = rng.choice(seen) if present else rng.choice(episode.appearances)
    found = asked if asked in seen else None
    kind = rng.choice(("detail", "detail", "needle", "order", "count", "subtitle", "colour", "describe"))
    if kind == "detail":
        return f"Which digit does the {asked.name} carry?", [found.digit] if found else [NOTHING]
    if kind == "needle":
        return f"In which scene did the {asked.name} appear?", [episode.scene_at(time_s).name] if found else [NOTHING]
    if kind == "subtitle":
        return f"Which word was said when the {asked.name} was there?", object_ngrams(found) if found else [NOTHING]
    if kind == "count":
        counted = [word for a in seen if a.shape == asked.shape for word in object_ngrams(a)]
        return f"How many times did a {asked.shape} appear?", counted or [NOTHING]
    if kind == "colour":
        alike = [a.colour for a in seen if a.shape == asked.shape]
        return f"What colour is the {asked.shape}?", alike or [NOTHING]
    if kind == "order":
        return f"What came right after the {asked.name}?", frame_ngrams(episode, time_s)
    return rng.choice(CAPTION_INSTRUCTIONS + IMAGE_INSTRUCTIONS), frame_ngrams(episode, time_s)


def _hot(ngrams: list[str]) -> torch.Tensor:
    target = torch.zeros(len(NGRAMS))
    target[[_INDEX[ngram] for ngram in ngrams]] = 1.0
    return target


def _pixels(frames: NDArray[np.uint8], noise: np.random.Generator, scale: float) -> torch.Tensor:
    """Downscale as the processor does, add noise in place of compression artefacts, normalise."""
    pixels = resize_and_crop(frames, IMAGE_SIZE).float()
    pixels += scale * torch.from_numpy(noise.standard_normal(tuple(pixels.shape), dtype=np.float32))
    return normalise(pixels.round().clamp(0, 255).to(torch.uint8))


def nano_tower() -> EvaVisionTower:
    """An EVA-CLIP-style ViT of about a third of a million parameters."""
    return EvaVisionTower(
        InstructBlipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_act="gelu",
            initializer_range=0.02,
        )
    )


def nano_qformer(vocab_size: int) -> QFormerTextDecoder:
    """A two-layer Q-Former of the same width, cross-attending in its first layer."""
    config = InstructBlipQFormerConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=WIDTH,
        cross_attention_frequency=2,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return QFormerTextDecoder(config, vision_width=WIDTH, num_queries=QUERIES)


class VisionPretraining(pl.LightningModule):
    """Predict the caption's n-grams from the tower and the answer's from the Q-Former."""

    def __init__(self, tower: EvaVisionTower, qformer: QFormerTextDecoder, recipe: VisionRecipe) -> None:
        super().__init__()
        self.tower = tower
        self.qformer = qformer
        self.caption_head = nn.Linear(WIDTH, len(NGRAMS))
        self.answer_head = nn.Linear(WIDTH, len(NGRAMS))
        self.recipe = recipe

    def training_step(self, batch: FrameBatch, batch_index: int) -> torch.Tensor:
        """Return the weighted sum of both n-gram losses (binary cross-entropy over n-grams, mean over frames)."""
        features = self.tower.encode(batch["pixel_values"])
        queries, _ = self.qformer(features, batch["prompt_input_ids"], batch["prompt_attention_mask"])
        caption = self.caption_head(features[:, 1:].mean(1))
        answer = self.answer_head(queries.mean(1))
        caption_loss = _ngram_loss(caption, batch["caption"])
        answer_loss = _ngram_loss(answer, batch["answer"])
        self.log_dict({"caption_loss": caption_loss, "answer_loss": answer_loss}, prog_bar=True)
        self.log("caption_exact", _exact(caption, batch["caption"]))
        self.log("answer_exact", _exact(answer, batch["answer"]))
        digits = slice(_INDEX[DIGITS[0]], _INDEX[DIGITS[-1]] + 1)
        self.log("caption_digits_exact", _exact(caption[:, digits], batch["caption"][:, digits]))
        return self.recipe.ngram_weight * caption_loss + answer_loss

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW with warm-up and cosine decay to zero."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / recipe.warmup_steps)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _ngram_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)


def _exact(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((logits > 0) == targets.bool()).all(-1).float().mean()
