"""The whole training step of nano LLaMA-VID that ``scripts.bench.loss_memory`` measures as scope ``train``.

The row is a film with its subtitles, as stage 3 has it: a quarter of its tokens are visual, two a frame, and the last
share of it is supervised. Everything but the tower trains; layers are recomputed in the backward pass; AdamW steps.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from longvid_train.commands.init import NANO_PARTS
from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration, build_llama_vid
from longvid_train.training.optimizer import OptimizerConfig, build_adamw
from longvid_train.training.stages import Stage, apply_stage
from longvid_train.types import IGNORE_INDEX, VisualInputs

FRAME_TOKENS = 2
TOKENS_PER_FRAME_OF_ROW = 8
"""A frame's two tokens and six of text."""
PROMPT_TOKENS = 12


def load_llama_vid(words: int) -> LlamaVidForConditionalGeneration:
    """Nano LLaMA-VID from the shipped parts, ready to train, with ``words`` words and a placeholder behind them."""
    torch.manual_seed(0)
    model = build_llama_vid(
        vision_tower=NANO_PARTS / "tower",
        text_decoder=NANO_PARTS / "qformer",
        language_model=NANO_PARTS / "language_model",
        visual_token_id=words,
    )
    language_model: PreTrainedModel = model.language_model
    if words != language_model.config.vocab_size:
        language_model.resize_token_embeddings(words, mean_resizing=False)
    apply_stage(model, Stage(name="bench", trainable=("*", "!vision_tower")))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def film_row(model: LlamaVidForConditionalGeneration, tokens: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``(1, tokens)`` ids with two placeholders at the start of every eight, and their labels."""
    placeholder = model.config.visual_token_id
    ids = torch.randint(0, placeholder, (1, tokens), generator=torch.Generator().manual_seed(0))
    at = torch.arange(tokens)
    frames = tokens // TOKENS_PER_FRAME_OF_ROW
    ids[:, (at % TOKENS_PER_FRAME_OF_ROW < FRAME_TOKENS) & (at < frames * TOKENS_PER_FRAME_OF_ROW)] = placeholder
    labels = torch.full_like(ids, IGNORE_INDEX)
    first = tokens - round(share * tokens)
    labels[:, first:] = ids[:, first:]
    labels[ids == placeholder] = IGNORE_INDEX
    return ids, labels


def film_frames(model: LlamaVidForConditionalGeneration, frames: int) -> VisualInputs:
    """One clip of random frames, shown once with a prompt."""
    side = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(frames, 3, side, side, generator=generator),
        "visual_spans": torch.tensor([[0, frames, 0]]),
        "content_grids": torch.tensor([1]),
        "prompt_input_ids": torch.arange(5, 5 + PROMPT_TOKENS)[None],
        "prompt_attention_mask": torch.ones(1, PROMPT_TOKENS, dtype=torch.int64),
    }


def training_step(
    model: LlamaVidForConditionalGeneration, tokens: int, share: float, *, plain_loss: bool
) -> Callable[[], torch.Tensor]:
    """Forward pass, backward pass and optimiser step on one row; the function returns the mean loss.

    Args:
        model: see `load_llama_vid`.
        tokens: of the row.
        share: of the row's end that is supervised, visual tokens excepted.
        plain_loss: transformers' loss over the logits of all positions instead of this project's.
    """
    ids, labels = film_row(model, tokens, share)
    visual = film_frames(model, tokens // TOKENS_PER_FRAME_OF_ROW)
    optimizer = build_adamw(model, OptimizerConfig(lr=1e-5))

    def run() -> torch.Tensor:
        if plain_loss:
            logits = model(input_ids=ids, **visual, use_cache=False).logits
            loss = model.language_model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        else:
            total, count = model.loss_sum(input_ids=ids, labels=labels, **visual)
            loss = total / count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run
