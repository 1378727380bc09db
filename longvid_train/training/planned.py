"""A LLaMA-VID job in numbers, from its configuration on the meta device: for ``longvid cost``."""

import torch

from longvid_train.cost.decoder import DecoderShape, decoder_shape
from longvid_train.cost.inference import VisionCost
from longvid_train.cost.tower import TowerShape, tower_shape
from longvid_train.cost.training import TrainingJob
from longvid_train.errors import UserError
from longvid_train.models.backbones.video import FRAME_CHUNK
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.models.supervised_loss import TOKEN_CHUNK
from longvid_train.training.flops import LANGUAGE_MODEL, count_flops
from longvid_train.training.stages import LLAMA_VID_STAGES, apply_stage
from longvid_train.training.work import Work


class PlannedLlamaVid:
    """A LLaMA-VID without weights.

    Attributes:
        config: its configuration.
        decoder: the language model's shape.
        tower: the vision tower's.
    """

    def __init__(self, config: LlamaVidConfig) -> None:
        """Build ``config`` on the meta device."""
        self.config = config
        self.decoder: DecoderShape = decoder_shape(config.text_config)
        self.tower: TowerShape = tower_shape(config.vision_config, class_tokens=1)
        with torch.device("meta"):
            self._model = LlamaVidForConditionalGeneration(config).eval()
        self.parameters = sum(parameter.numel() for parameter in self._model.parameters())

    def vision_cost(self, frames: int, prompt_tokens: int, *, content_cells: int, value_bytes: int = 2) -> VisionCost:
        """Tower, text decoder, context attention and content projector for one question about a video.

        Args:
            frames: of the video.
            prompt_tokens: of the question, as the text decoder reads it; what is over its limit is cut.
            content_cells: content tokens of all frames.
            value_bytes: of a parameter and an activation.
        """
        self._model.requires_grad_(False)
        work = self._work(frames, prompt_tokens, content_cells)
        counted = count_flops(self._model, work)
        chunk = min(FRAME_CHUNK, frames)
        features = frames * self.tower.tokens * self.tower.width
        return VisionCost(
            ops=sum(flops.forward for part, flops in counted.items() if part != LANGUAGE_MODEL),
            elements=self.parameters - self.decoder.elements,
            working_bytes=value_bytes * (self.tower.working_values(chunk) + features),
            chunks=-(-frames // chunk),
        )

    def training_job(
        self, stage: int, frames: int, text_tokens: int, *, rows: int, gpus: int, zero: int
    ) -> TrainingJob:
        """A micro-batch of one of the paper's stages: every row has ``frames`` frames of two tokens, all text is loss.

        Raises:
            UserError: no such stage, or a number of devices or ZeRO stage that does not exist.
        """
        if stage not in LLAMA_VID_STAGES:
            raise UserError(f"train-stage is {stage}; LLaMA-VID has {', '.join(map(str, LLAMA_VID_STAGES))}")
        report = apply_stage(self._model, LLAMA_VID_STAGES[stage])
        cells = frames if self.config.use_content else 0
        tokens = cells + (frames if self.config.use_context else 0) + text_tokens
        work = self._work(frames * rows, text_tokens, cells * rows, tokens, rows)
        counted = count_flops(self._model, work)
        chunk = min(FRAME_CHUNK, frames)
        features = frames * rows * self.tower.tokens * self.tower.width
        return TrainingJob(
            parameters=self.parameters,
            trainable=report.trainable_parameters,
            sequence_tokens=tokens,
            rows=rows,
            flops=sum(flops.total for flops in counted.values()),
            vision_bytes=2 * (self.tower.working_values(chunk) + features),
            supervised_chunk=TOKEN_CHUNK,
            gpus=gpus,
            zero=zero,
        )

    def _work(
        self, frames: int, prompt_tokens: int, content_cells: int, sequence_tokens: int = 0, rows: int = 1
    ) -> Work:
        read = min(prompt_tokens, self.config.max_prompt_tokens)
        return Work(
            encoded_frames=frames,
            shown_frames=frames,
            prompts={read: frames} if self.config.use_context else {},
            content_cells=content_cells,
            rows={sequence_tokens: rows} if sequence_tokens else {},
            supervised=sequence_tokens * rows,
            samples=rows,
            slots=sequence_tokens * rows,
        )
