"""What one micro-batch asks of a LLaMA-VID, in counts: the shapes that decide its FLOPs. Padding is left out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.showings import plan_showings
from longvid_train.tokens.two_token import content_token_count
from longvid_train.types import IGNORE_INDEX, Batch, TextInputs, VisualInputs


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts of one micro-batch.

    Attributes:
        encoded_frames: distinct frames that pass the tower; none when their features came with the batch.
        shown_frames: distinct frames, encoded here or not.
        prompts: (frame, prompt) pairs that pass the text decoder, counted by the prompt's real tokens.
        content_cells: rows of the content projector.
        rows: sequences of the language model, counted by their real tokens.
        supervised: tokens whose logits are made.
        samples: rows of the batch.
        slots: places of the padded batch, real tokens and padding.
    """

    encoded_frames: int
    shown_frames: int
    prompts: Mapping[int, int]
    content_cells: int
    rows: Mapping[int, int]
    supervised: int
    samples: int
    slots: int

    @property
    def tokens(self) -> int:
        """Real tokens of the language model, visual ones included."""
        return sum(length * count for length, count in self.rows.items())


def work_of(batch: Batch, config: LlamaVidConfig) -> Work:
    """Count a batch."""
    text, visual = batch["text"], batch["visual"]
    lengths = sequence_lengths(text)
    supervised = int((text["labels"][:, 1:] != IGNORE_INDEX).sum()) if "labels" in text else 0
    shown, encoded, prompts, cells = (0, 0, {}, 0) if visual is None else _visual_counts(visual, config)
    return Work(
        encoded_frames=encoded,
        shown_frames=shown,
        prompts=prompts,
        content_cells=cells,
        rows=Counter(lengths),
        supervised=supervised,
        samples=len(batch["sample_ids"]),
        slots=text["input_ids"].numel(),
    )


def sequence_lengths(text: TextInputs) -> list[int]:
    """Real tokens of each sequence that attends to itself alone: the rows of a padded batch, the samples of a packed
    one."""
    if "attention_mask" in text:
        return [int(length) for length in text["attention_mask"].sum(dim=1).tolist()]
    positions = text["position_ids"].flatten()
    starts = (positions == 0).nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([len(positions)])])
    return [int(length) for length in (ends - starts).tolist()]


def _visual_counts(visual: VisualInputs, config: LlamaVidConfig) -> tuple[int, int, dict[int, int], int]:
    encoded = len(visual["pixel_values"]) if "pixel_values" in visual else 0
    shown = encoded or len(visual["visual_features"])
    plan = plan_showings(
        visual["visual_spans"],
        visual["content_grids"],
        frame_count=shown,
        prompt_count=len(visual["prompt_input_ids"]),
        patch_grid=config.visual_grid,
        context=bool(config.use_context),
        content=bool(config.use_content),
    )
    prompt_lengths = visual["prompt_attention_mask"].sum(dim=1).cpu()
    cells = sum(len(frames) * content_token_count(grid, config.visual_grid) for grid, frames in plan.content_groups)
    return shown, encoded, dict(Counter(prompt_lengths[plan.pair_prompts].tolist())), cells
