"""The stages of a nano backbone: its language model reads words, its tower learns to make them, both together.

1. ``language``: the language model alone. In place of visual tokens it gets bags of words (`clip_words`).
2. ``align``: the tower and the projector. Their tokens become the bags' sums of embeddings (mean squared error).
3. ``couple``: everything, on pictures, with the answers' loss.
4. ``polish``: the same on questions alone, without the long dense tasks.
5. ``finish``: the same, mostly on order, half of the clips with neighbours of one colour; OneVision also says what
   every cell shows (`frame_words`).

``B`` clips of ``N`` frames of ``T`` visual tokens each, ``H`` language-model width, ``S`` tokens of a conversation.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy, embedding_bag
from transformers import PreTrainedTokenizerFast

from longvid_train.models.backbones.language import multimodal_embeddings
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.training.nano.clip_batches import ClipBatch, ClipRecipe, clip_pictures, noisy_pixels
from longvid_train.training.nano.clip_words import clear_cells, frame_bags
from longvid_train.training.nano.dialogue import DialogueBatch
from longvid_train.training.nano.frame_words import FrameWords
from longvid_train.training.nano.schedule import Rate, exact_match
from longvid_train.types import IGNORE_INDEX
from longvid_train.world.clips import Clip


class WordTokens:
    """Visual tokens made of words: the sum of the embeddings of each cell's bag.

    Args:
        backbone: whose grid and embeddings are used.
        tokenizer: of the backbone.
    """

    def __init__(self, backbone: AnyBackbone, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backbone = backbone
        self._class_token = backbone.facts.grid.class_tokens == 1
        self._encode = lru_cache(maxsize=None)(lambda word: tokenizer.encode(f" {word}", add_special_tokens=False))

    def __call__(self, clips: tuple[Clip, ...]) -> torch.Tensor:
        """``(B * N, T, H)``, clip after clip."""
        frames = [
            frame_bags(clip.episode, time_s, class_token=self._class_token) for clip in clips for time_s in clip.times_s
        ]
        flat: list[int] = []
        offsets: list[int] = []
        for bag in (bag for frame in frames for bag in frame):
            offsets.append(len(flat))
            flat.extend(token for word in bag for token in self._encode(word))
        weight = self._backbone.model.get_input_embeddings().weight
        ids, starts = torch.tensor(flat, device=weight.device), torch.tensor(offsets, device=weight.device)
        sums = embedding_bag(ids, weight, starts, mode="sum")
        return sums.view(len(frames), len(frames[0]), -1)

    def clear(self, clips: tuple[Clip, ...]) -> torch.Tensor:
        """``(B * N, T)`` bool: tokens whose bag says all that the cell shows."""
        return torch.tensor(
            [
                clear_cells(clip.episode, time_s, class_token=self._class_token)
                for clip in clips
                for time_s in clip.times_s
            ]
        )


class PictureTokens:
    """Visual tokens made of pictures by the backbone, at its trained resolution.

    Args:
        backbone: makes the tokens.
        pictures: its video settings.
        noise: standard deviation added to the pictures, in grey levels.
        seed: of the noise.
    """

    def __init__(self, backbone: AnyBackbone, pictures: dict[str, Any], noise: float, seed: int) -> None:
        self._backbone = backbone
        self._mean, self._std = pictures["image_mean"], pictures["image_std"]
        self._noise = noise
        self._generator = np.random.default_rng(seed)

    def __call__(self, clips: tuple[Clip, ...]) -> torch.Tensor:
        """``(B * N, T, H)``, clip after clip; a joint-frame tower sees each clip as one group."""
        grid = self._backbone.facts.grid
        drawn = clip_pictures(clips, self._backbone.facts.image_side)
        pixels = noisy_pixels(drawn, self._generator, self._noise, self._mean, self._std)
        return self._backbone.frame_tokens(self._backbone.encode(pixels), *grid.pooled(grid.stride))


class _Stage(pl.LightningModule):
    """What the stages share: the model that is trained, its clips, and batches that are no plain collections."""

    def __init__(self, backbone: AnyBackbone, recipe: ClipRecipe, rate: Rate) -> None:
        super().__init__()
        self.backbone = backbone
        self.model: nn.Module = backbone.model
        self.recipe = recipe
        self.rate = rate

    def transfer_batch_to_device(self, batch: ClipBatch, device: torch.device, dataloader_idx: int) -> ClipBatch:
        """Clips are drawn on the CPU; their tensors are moved where they are used."""
        return batch

    def log_scores(self, scores: dict[str, float], clips: int) -> None:
        """Log means over the clips of a batch."""
        self.log_dict(scores, batch_size=clips)


class ConversationStage(_Stage):
    """Stages 1 and 3 to 5: answers about clips, whose tokens come from words or from pictures.

    Args:
        backbone: trained in place.
        visual: makes the frames' tokens.
        recipe: for its number of steps.
        rate: of learning.
        frame_words: weight of `FrameWords`' loss; 0 leaves it out.
    """

    def __init__(
        self,
        backbone: AnyBackbone,
        visual: WordTokens | PictureTokens,
        recipe: ClipRecipe,
        rate: Rate,
        *,
        frame_words: float = 0.0,
    ) -> None:
        super().__init__(backbone, recipe, rate)
        self.visual = visual
        self.frame_words: FrameWords | None = None
        self.frame_weight = frame_words
        if frame_words > 0:
            width = backbone.model.get_input_embeddings().weight.shape[1]
            self.frame_words = FrameWords(width, class_token=backbone.facts.grid.class_tokens == 1)

    def training_step(self, batch: ClipBatch, batch_index: int) -> torch.Tensor:
        """Mean cross-entropy of the supervised tokens, and the weighted loss of the frames' words."""
        tokens = self.visual(batch.clips)
        loss, scores = answers_loss(self.backbone, tokens, batch.dialogues)
        by_length = {f"{batch.frames}/{kind}": score for kind, score in scores.items()}
        self.log_scores({"loss": float(loss.detach()), **by_length}, len(batch.clips))
        if self.frame_words is None:
            return loss
        words = self.frame_words(tokens, batch.clips)
        self.log_scores({"frame_words": float(words.detach())}, len(batch.clips))
        return loss + self.frame_weight * words

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW over everything that gets a gradient."""
        return self.rate.optimizers([p for p in self.parameters() if p.requires_grad], self.recipe.steps)


class AlignStage(_Stage):
    """Stage 2: the mean squared distance of the tower's tokens from the bags', in units of the bags' own spread.

    Args:
        backbone: its tower and projector are trained in place.
        words: the targets.
        visual: makes the tokens.
        recipe: for its number of steps.
        rate: of learning.
    """

    def __init__(
        self, backbone: AnyBackbone, words: WordTokens, visual: PictureTokens, recipe: ClipRecipe, rate: Rate
    ) -> None:
        super().__init__(backbone, recipe, rate)
        self.words = words
        self.visual = visual

    def training_step(self, batch: ClipBatch, batch_index: int) -> torch.Tensor:
        """The loss over tokens whose bag says all that the cell shows."""
        clear = self.words.clear(batch.clips).to(self.device)
        with torch.no_grad():
            wanted = self.words(batch.clips)[clear]
        error = (self.visual(batch.clips)[clear] - wanted).square().mean()
        loss = error / wanted.var()
        self.log_scores({"unexplained": float(loss.detach())}, len(batch.clips))
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW over the tower and the projector."""
        language = {id(p) for p in self.backbone.model.model.language_model.parameters()}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in language]
        return self.rate.optimizers(trained, self.recipe.steps)


def answers_loss(
    backbone: AnyBackbone, frame_tokens: torch.Tensor, dialogues: DialogueBatch
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross-entropy of the answers' tokens, and the share of exact answers of each kind.

    Args:
        backbone: answers.
        frame_tokens: ``(B * N, T, H)``, clip after clip.
        dialogues: about the clips.
    """
    rows = len(dialogues.ids)
    end = backbone.end_tokens()
    by_clip = frame_tokens.reshape(rows, -1, frame_tokens.shape[-1])
    visual = torch.cat([by_clip, end.expand(rows, *end.shape)], dim=1).flatten(0, 1)
    embeds = multimodal_embeddings(backbone, dialogues.ids, visual)
    hidden = backbone.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    labels = dialogues.labels.to(hidden.device)
    supervised = labels[:, 1:] != IGNORE_INDEX
    logits = backbone.model.lm_head(hidden[:, :-1][supervised])
    targets = labels[:, 1:][supervised]
    right = torch.zeros_like(labels, dtype=torch.bool)
    right[:, 1:][supervised] = logits.argmax(-1) == targets
    return cross_entropy(logits, targets), exact_match(right, dialogues.answers)
