"""Training of public backbones under an adaptation: LoRA after window extension, or any stage in full.

Visual context window extension (arXiv 2409.20018, Sec. 4.1) fine-tunes LLaVA-OneVision's language decoder with LoRA
while the extended rotary positions are on. Here the extension is on in every forward pass, with ``s`` from the visual
tokens of each row, as at inference. Rows of a batch that need different ``s`` pass the language model one group after
the other, each under its own; a gradient step is the same as if they had been separate micro-batches.

``B`` rows of a batch, ``S`` tokens, ``T`` visual tokens, ``H`` language-model width.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import nn

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.backbone_datamodule import BackboneDataModule
from longvid_train.data.loading import LoadingOptions
from longvid_train.errors import UserError
from longvid_train.generate.decoding import AnswerDecoder, Generated
from longvid_train.generate.generation import generate_prompts
from longvid_train.generate.options import GenerationOptions
from longvid_train.models.backbones.adapted import AdaptationFile
from longvid_train.models.backbones.language import multimodal_embeddings
from longvid_train.models.backbones.load import AnyBackbone, backbone_skeleton, load_backbone, read_config
from longvid_train.models.backbones.planned import PlannedProcessor
from longvid_train.models.backbones.video import video_tokens
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.prefill import PREFILL_CHUNK
from longvid_train.models.supervised_loss import supervised_loss_sum
from longvid_train.rope.extension import Extension, installed, prepare
from longvid_train.rope.scale import TokenCounts
from longvid_train.rope.unextended import NoWindow
from longvid_train.tokens.plan import make_plan
from longvid_train.tokens.uniform import UniformPlan
from longvid_train.training.activations import ActivationMemory
from longvid_train.training.base import SupervisedTraining
from longvid_train.training.checkpoint_files import CheckpointFiles
from longvid_train.training.lora import LoraSettings
from longvid_train.training.optimizer import OptimizerConfig
from longvid_train.training.stages import Stage
from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.work import sequence_lengths
from longvid_train.types import Batch, TextInputs, VisualInputs


class BackboneTraining(SupervisedTraining):
    """Trains a backbone on the batches of a `BackboneDataModule`, under that module's adaptation.

    Args:
        model: folder of the backbone: model, tokenizer and processor.
        stage: what trains, by the names of transformers' model; ``trainable: []`` with ``lora`` trains adapters alone.
        optimizer: AdamW's settings.
        warmup_ratio: share of the optimiser steps spent warming up, from 0 up to but without 1.
        gradient_checkpointing: recompute the activations of each layer in the backward pass.
        torch_threads: CPU threads of each process; 0 keeps torch's own choice.
        lora: low-rank adapters in layers that the stage does not train; the run then exports an adapter folder.
        activations: what else is done about the language model's activations.
    """

    def __init__(
        self,
        model: str,
        stage: Stage,
        optimizer: OptimizerConfig,
        warmup_ratio: float = 0.03,
        gradient_checkpointing: bool = False,
        torch_threads: int = 0,
        lora: LoraSettings | None = None,
        activations: ActivationMemory = ActivationMemory(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            model, stage, optimizer, warmup_ratio, gradient_checkpointing, torch_threads, lora, activations
        )
        check_backbone_folder(Path(model))
        self.backbone: AnyBackbone | None = None

    def skeleton(self) -> nn.Module:
        """See `SupervisedTraining`."""
        _, config = read_config(Path(self.model_folder))
        model: nn.Module = backbone_skeleton(config).model
        return model

    def load(self) -> tuple[Any, Any]:
        """See `SupervisedTraining`."""
        self.backbone = load_backbone(Path(self.model_folder), dtype=torch.float32)
        return self.backbone.model, self._data.processor

    def prepare_data(self) -> None:
        """Check the data module before it is set up (Lightning calls this first).

        Raises:
            UserError: it is no `BackboneDataModule`.
        """
        if not isinstance(self.trainer.datamodule, BackboneDataModule):
            raise UserError(
                "BackboneTraining reads the adaptation from its data: set data.class_path to "
                "longvid_train.data.backbone_datamodule.BackboneDataModule"
            )

    def check_data(self, skeleton: nn.Module) -> None:
        """See `check_equal_passes`."""
        check_equal_passes(self.trainer.strategy, self._data.adaptation, self._data.loading)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss over the supervised tokens of a batch, each row under the window it needs."""
        text = batch["text"]
        tokens = self._visual_tokens(batch)
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        count = torch.zeros((), dtype=torch.int64, device=self.device)
        for group in self._groups(batch):
            with installed(self.model, group.extension):
                rows, length = group.rows, group.length
                embeds = multimodal_embeddings(
                    self._backbone, text["input_ids"][rows, :length], torch.cat([tokens[row] for row in rows])
                )
                embeds = embeds + self._zero_of_unused_parts(batch)
                loss, supervised = self._decoder_loss(text, rows, length, embeds)
            total, count = total + loss, count + supervised
        return total, count

    def _decoder_loss(
        self, text: TextInputs, rows: list[int], length: int, embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss over the first ``length`` tokens of some rows, given their ``(rows, length, H)`` embeddings."""
        labels = text["labels"][rows, :length]
        if self._shard is not None:
            return self._shard_loss(self._shard, embeds, labels)
        states = self.model.get_decoder()(
            inputs_embeds=embeds, attention_mask=text["attention_mask"][rows, :length], use_cache=False
        ).last_hidden_state
        return supervised_loss_sum(states, labels, self.model.get_output_embeddings())

    def answers(self, batch: Batch, decoder: AnswerDecoder, options: GenerationOptions) -> list[Generated]:
        """Answer every row under the window that it and the longest answer need."""
        text = batch["text"]
        with torch.no_grad():
            tokens = self._visual_tokens(batch)
        answers: dict[int, Generated] = {}
        for group in self._groups(batch, new_tokens=options.max_new_tokens):
            prompts = [
                ids[mask.bool()].cpu()
                for ids, mask in zip(text["input_ids"][group.rows], text["attention_mask"][group.rows], strict=True)
            ]
            with installed(self.model, group.extension):
                found = generate_prompts(
                    self.model,
                    decoder,
                    prompts,
                    [tokens[row] for row in group.rows],
                    options,
                    placeholder_id=self._backbone.facts.placeholder_id,
                    prefill_chunk=PREFILL_CHUNK,
                )
            answers |= dict(zip(group.rows, found, strict=True))
        return [answers[row] for row in range(len(answers))]

    def blank_visual_zero(self) -> torch.Tensor:
        """See `SupervisedTraining`: the fewest black frames that the tower takes."""
        facts = self._backbone.facts
        frames = facts.grid.joint_frames
        pixels = torch.zeros(frames, 3, facts.image_side, facts.image_side, dtype=self.model.dtype, device=self.device)
        tokens = video_tokens(self._backbone, pixels, make_plan(UniformPlan(stride=1), frames, facts.grid))
        return tokens.float().sum() * 0.0

    def step_counts(self, batch: Batch) -> dict[str, int]:
        """See `SupervisedTraining`; FLOPs are counted for LLaMA-VID only."""
        lengths = sequence_lengths(batch["text"])
        visual = batch["visual"]
        return {
            "samples": len(batch["sample_ids"]),
            "tokens": sum(lengths),
            "frames": 0 if visual is None else len(visual["pixel_values"]),
            "slots": batch["text"]["input_ids"].numel(),
        }

    def export_parts(self) -> Sequence[Any]:
        """Beside a model its tokenizer and processor; beside an adapter the adaptation."""
        if self.lora_shape is not None:
            return [AdaptationFile(self._data.adaptation)]
        return [CheckpointFiles(Path(self.model_folder))]

    @property
    def _data(self) -> BackboneDataModule:
        data = self.trainer.datamodule
        assert isinstance(data, BackboneDataModule)
        return data

    @property
    def _backbone(self) -> AnyBackbone:
        assert self.backbone is not None, "configure_model comes first"
        return self.backbone

    def _visual_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """``(T_r, H)`` of each row, in reading order; a clip that a row shows twice is encoded once."""
        showings = row_showings(batch, self.processor)
        pixels = _pixels(batch["visual"])
        made: dict[tuple[int, int, int], torch.Tensor] = {}
        for showing in {one for row in showings for one in row}:
            first, frames, grid = showing
            assert pixels is not None
            made[showing] = video_tokens(
                self._backbone, pixels[first : first + frames], self.processor.plan(grid, frames)
            )
        width = self.model.get_input_embeddings().weight.shape[1]
        none = torch.zeros(0, width, device=self.device)
        return [torch.cat([made[showing] for showing in row]) if row else none for row in showings]

    def _groups(self, batch: Batch, new_tokens: int = 0) -> Iterator["WindowGroup"]:
        """The rows of a batch by the scale of their windows."""
        rows_of: dict[float, list[int]] = defaultdict(list)
        widest: dict[float, Extension] = {}
        lengths = sequence_lengths(batch["text"])
        for row, (shown, length) in enumerate(zip(row_showings(batch, self.processor), lengths, strict=True)):
            visual = sum(self.processor.window_tokens(grid, frames) for _, frames, grid in shown)
            counts = TokenCounts(visual=visual, total=length + new_tokens)
            extension = prepare(
                self.model, self._data.adaptation.window, counts=counts, trained=self._backbone.facts.trained
            )
            rows_of[extension.scale].append(row)
            widest[extension.scale] = extension
        for scale, rows in rows_of.items():
            yield WindowGroup(rows, max(lengths[row] for row in rows), widest[scale])

    def _zero_of_unused_parts(self, batch: Batch) -> torch.Tensor:
        """0, attached to what trains and this batch does not pass: DDP waits for the gradient of every parameter.

        It is added to the embeddings: the language model's first layer then has a gradient to pass on, as with frames.
        ZeRO-3 gathers a layer's weights for that, on all ranks or on none.
        """
        zero = torch.zeros((), device=self.device)
        if batch["visual"] is not None or not torch.is_grad_enabled():
            return zero
        language = {id(value) for value in self.model.get_decoder().parameters()}
        language |= {id(value) for value in self.model.get_output_embeddings().parameters()}
        unused = [value for value in self.model.parameters() if value.requires_grad and id(value) not in language]
        return zero + sum((value.sum() * 0.0 for value in unused), start=zero)


@dataclass(frozen=True)
class WindowGroup:
    """Rows of a batch whose windows have one scale.

    Attributes:
        rows: their numbers.
        length: tokens of the longest.
        extension: of the language model.
    """

    rows: list[int]
    length: int
    extension: Extension


def row_showings(batch: Batch, processor: PlannedProcessor) -> list[list[tuple[int, int, int]]]:
    """First frame, frames and content grid of each showing of each row, in reading order."""
    visual = batch["visual"]
    ids = batch["text"]["input_ids"]
    if visual is None:
        return [[] for _ in ids]
    left = (ids == processor.visual_token_id).sum(dim=1).tolist()
    spans = iter(zip(visual["visual_spans"].tolist(), visual["content_grids"].tolist(), strict=True))
    rows: list[list[tuple[int, int, int]]] = []
    for tokens in left:
        shown: list[tuple[int, int, int]] = []
        while tokens > 0:
            (first, frames, _), grid = next(spans)
            shown.append((first, frames, grid))
            tokens -= processor.plan(grid, frames).visual_tokens
        assert tokens == 0, "placeholders of a row are those of whole showings"
        rows.append(shown)
    return rows


def check_equal_passes(strategy: Strategy, adaptation: Adaptation, loading: LoadingOptions) -> None:
    """Refuse micro-batches that could pass the layers more often on one rank than on another, where that matters.

    Rows of one micro-batch that need windows of different scales pass the language model one group after the other;
    ZeRO-3 gathers the layers' weights in every pass, on all ranks together.

    Raises:
        UserError: stage 3, an extended window and micro-batches of several rows.
    """
    sharded = isinstance(strategy, ZeroStrategy) and not strategy.whole_model_on_each_rank
    several = loading.batch_size > 1 or loading.max_tokens_per_batch is not None
    if sharded and several and adaptation.window.kind != NoWindow.kind:
        raise UserError(
            f"ZeRO stage 3 under window '{adaptation.window.kind}': rows of one micro-batch may need windows of "
            "different scales, and ranks would pass the layers a different number of times; set "
            "data.loading.batch_size to 1 (with data.loading.global_batch_size), or use stage 2"
        )


def check_backbone_folder(folder: Path) -> None:
    """Check, without loading weights, that ``folder`` holds a backbone this class trains.

    Raises:
        UserError: no such folder, another architecture, a configuration that its family does not have, or no weights.
    """
    kind, config = read_config(folder)
    if config.model_type == LlamaVidConfig.model_type:
        raise UserError(
            f"{folder} holds a LLaMA-VID; train it with model.class_path "
            "longvid_train.training.module.LlamaVidTraining and data.class_path "
            "longvid_train.data.datamodule.ManifestDataModule"
        )
    kind.facts_of(config)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors weights; name a complete checkpoint")


def _pixels(visual: VisualInputs | None) -> torch.Tensor | None:
    return None if visual is None else visual["pixel_values"]
