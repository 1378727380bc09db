"""Encoded samples to one `Batch`: text padded, frames of all rows in one tensor, prompts without repeats."""

from collections.abc import Sequence
from typing import Literal

import torch

from longvid_train.data.conversation import EncodedSample
from longvid_train.data.processing import MultimodalProcessor, joined_prompts
from longvid_train.errors import UserError
from longvid_train.types import IGNORE_INDEX, Batch, Shortening, TextInputs, VisualInputs

PaddingSide = Literal["right", "left"]


def collate(
    samples: Sequence[EncodedSample], processor: MultimodalProcessor, padding_side: PaddingSide = "right"
) -> Batch:
    """Join rows of any mix of images, videos and text.

    Args:
        samples: at least one row.
        processor: tokenises the prompts and knows the padding token.
        padding_side: ``"right"`` for training, ``"left"`` for generation.

    Returns:
        A batch whose ``visual`` is None when no row shows anything, so that text costs no vision.

    Raises:
        UserError: the tokenizer has neither a padding nor an end token.
    """
    assert samples, "a batch needs at least one row"
    return Batch(
        text=_text_inputs(samples, _pad_token_id(processor), padding_side),
        visual=_visual_inputs(samples, processor),
        sample_ids=[sample.sample_id for sample in samples],
        shortened=_shortened(samples),
    )


def pack(samples: Sequence[EncodedSample], processor: MultimodalProcessor) -> Batch:
    """Join rows as `collate` does, one behind the other in a single row without padding.

    Positions start at 0 with each sample; transformers keeps the attention of such samples apart (a block-diagonal
    mask, or flash attention's variable lengths) where no attention mask is given. A sample's first token is never
    predicted, so its label is dropped: in the packed row it would be predicted from the sample before.

    Args:
        samples: at least one row.
        processor: tokenises the prompts.

    Returns:
        A batch of one row whose text has ``position_ids`` and no ``attention_mask``.
    """
    assert samples, "a batch needs at least one row"
    labels = [sample.labels.clone() for sample in samples]
    for first in labels:
        first[:1] = IGNORE_INDEX
    return Batch(
        text=TextInputs(
            input_ids=torch.cat([sample.input_ids for sample in samples])[None],
            position_ids=torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])[None],
            labels=torch.cat(labels)[None],
        ),
        visual=_visual_inputs(samples, processor),
        sample_ids=[sample.sample_id for sample in samples],
        shortened=_shortened(samples),
    )


def _shortened(samples: Sequence[EncodedSample]) -> dict[str, Shortening]:
    return {sample.sample_id: sample.shortening for sample in samples if sample.shortening is not None}


def _pad_token_id(processor: MultimodalProcessor) -> int:
    tokenizer = processor.tokenizer
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise UserError("the tokenizer has neither a pad token nor an end token to pad batches with; set pad_token")


def _text_inputs(samples: Sequence[EncodedSample], pad_token_id: int, side: PaddingSide) -> TextInputs:
    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    return TextInputs(
        input_ids=padded([sample.input_ids for sample in samples], pad_token_id),
        attention_mask=padded([torch.ones_like(sample.input_ids) for sample in samples], 0),
        labels=padded([sample.labels for sample in samples], IGNORE_INDEX),
    )


def _visual_inputs(samples: Sequence[EncodedSample], processor: MultimodalProcessor) -> VisualInputs | None:
    """Frames of all rows in one tensor; spans moved to the batch's frame and prompt numbers."""
    shown = [sample for sample in samples if len(sample.spans)]
    if not shown:
        return None
    prompts, row_of_prompt = joined_prompts([prompt for sample in shown for prompt in sample.prompts])
    spans: list[torch.Tensor] = []
    first_frame = first_prompt = 0
    for sample in shown:
        moved = sample.spans.clone()
        moved[:, 0] += first_frame
        moved[:, 2] = torch.tensor(row_of_prompt[first_prompt:], dtype=torch.int64)[sample.spans[:, 2]]
        spans.append(moved)
        first_frame += len(_frames(sample))
        first_prompt += len(sample.prompts)
    prompt_ids, prompt_mask = processor.encode_prompts(prompts)
    visual = VisualInputs(
        visual_spans=torch.cat(spans),
        content_grids=torch.cat([sample.content_grids for sample in shown]),
        prompt_input_ids=prompt_ids,
        prompt_attention_mask=prompt_mask,
    )
    frames = torch.cat([_frames(sample) for sample in shown])
    if shown[0].visual_features is None:
        visual["pixel_values"] = frames
    else:
        visual["visual_features"] = frames
    return visual


def _frames(sample: EncodedSample) -> torch.Tensor:
    """Preprocessed frames or tower features of a row that shows something; all rows of a data set have the same."""
    frames = sample.pixel_values if sample.visual_features is None else sample.visual_features
    assert frames is not None, f"row '{sample.sample_id}' shows frames it does not hold"
    return frames
