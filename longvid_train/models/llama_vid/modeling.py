"""LLaMA-VID (arXiv:2311.17043) as a transformers model.

``B`` rows, ``S`` tokens a row, ``F`` distinct frames, ``P`` patches a frame, ``R`` prompts of ``Lp`` tokens,
``V`` showings, ``T`` visual tokens, ``C`` tower width, ``H`` language-model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput, can_return_tuple

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.configuration import BERT_MODEL_TYPE, LlamaVidConfig
from longvid_train.models.llama_vid.context_attention import ContextAttention
from longvid_train.models.llama_vid.head import build_content_projector, check_cells, content_tokens, context_tokens
from longvid_train.models.llama_vid.showings import plan_showings
from longvid_train.models.llama_vid.text_decoder_bert import BertTextDecoder
from longvid_train.models.llama_vid.text_decoder_qformer import QUERY_INIT_STD, QFormerTextDecoder
from longvid_train.models.llama_vid.vision_tower import build_vision_tower, encode_in_chunks
from longvid_train.models.splice import embed_and_splice
from longvid_train.models.supervised_loss import supervised_loss_sum
from longvid_train.types import IGNORE_INDEX

VISUAL_KEYS = (
    "pixel_values",
    "visual_features",
    "visual_spans",
    "content_grids",
    "prompt_input_ids",
    "prompt_attention_mask",
)
"""Keyword arguments of ``forward`` and ``generate`` that make up ``longvid_train.types.VisualInputs``."""


@dataclass
class LlamaVidOutput(ModelOutput):
    """What ``forward`` returns.

    Attributes:
        loss: scalar float32 when ``labels`` are given.
        logits: ``(B, kept, vocabulary)``; absent when ``labels`` are given and ``logits_to_keep`` is not.
        past_key_values: the cache, when used.
        hidden_states: of every layer, when asked for.
        attentions: of every layer, when asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class LlamaVidForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The whole model.

    Training stages name these parts: ``vision_tower``, ``text_decoder`` (``None`` without context tokens),
    ``context_attention`` (likewise), ``content_projector`` (``None`` without content tokens) and ``language_model``.
    """

    config_class = LlamaVidConfig
    config: LlamaVidConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)
    _no_split_modules = (
        "InstructBlipEncoderLayer",
        "InstructBlipVisionEmbeddings",
        "CLIPEncoderLayer",
        "CLIPVisionEmbeddings",
        "QFormerTextDecoder",
        "BertTextDecoder",
        "ContextAttention",
        "LlamaDecoderLayer",
    )

    def __init__(self, config: LlamaVidConfig) -> None:
        super().__init__(config)
        vision_width, language_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.vision_tower = build_vision_tower(config)
        self.text_decoder = build_text_decoder(config)
        self.context_attention: ContextAttention | None = None
        if config.use_context:
            query_width = config.text_decoder_config.hidden_size
            self.context_attention = ContextAttention(query_width, vision_width, language_width)
        self.content_projector: nn.Sequential | None = None
        if config.use_content:
            self.content_projector = build_content_projector(vision_width, language_width)
        self.language_model = LlamaForCausalLM(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormerTextDecoder):
            initialization.normal_(module.queries, mean=0.0, std=QUERY_INIT_STD)

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the language model without its head (adapters included)."""
        return self.language_model.get_decoder()

    def encode_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Run the tower.

        Args:
            pixel_values: ``(F, 3, h, w)`` float, preprocessed.

        Returns:
            ``(F, 1 + P, C)``, CLS first. It carries no graph when the tower is frozen.

        Raises:
            UserError: the frames are not of the configured size.
        """
        side = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise UserError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; this model takes (frames, 3, {side}, {side}): "
                "preprocess the frames with the model's own processor"
            )
        return encode_in_chunks(self.vision_tower, pixel_values, self.config.frame_chunk)

    def visual_tokens(
        self,
        features: torch.Tensor,
        visual_spans: torch.Tensor,
        content_grids: torch.Tensor,
        prompt_input_ids: torch.Tensor,
        prompt_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Make the visual tokens of a batch in reading order.

        A (frame, prompt) pair, and a (frame, grid) pair, that several showings ask for is computed once.

        Args:
            features: ``(F, 1 + P, C)`` from ``encode_frames``, or ``(F, 1 + n * n, C)`` from a cache of pooled cells;
                on any device.
            visual_spans: ``(V, 3)`` int64 ``[first_frame, frame_count, prompt_row]``.
            content_grids: ``(V,)`` int64.
            prompt_input_ids: ``(R, Lp)`` int64.
            prompt_attention_mask: ``(R, Lp)`` int64.

        Returns:
            ``(T, H)``.

        Raises:
            UserError: a span outside the frames or prompts, or a grid that does not divide the patches or cells.
        """
        if self.content_projector is not None:
            check_cells(features, content_grids, self.config.visual_grid)
        plan = plan_showings(
            visual_spans,
            content_grids,
            frame_count=len(features),
            prompt_count=len(prompt_input_ids),
            patch_grid=self.config.visual_grid,
            context=self.context_attention is not None,
            content=self.content_projector is not None,
        )
        pool: list[torch.Tensor] = []
        if self.text_decoder is not None and self.context_attention is not None:
            pool += context_tokens(
                self.text_decoder,
                self.context_attention,
                features,
                plan,
                prompt_input_ids,
                prompt_attention_mask,
                self.config.frame_chunk,
            )
        if self.content_projector is not None:
            pool += content_tokens(self.content_projector, features, plan)
        tokens = torch.cat(pool)
        return tokens[plan.order.to(tokens.device)]

    def multimodal_embeddings(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        visual_spans: torch.Tensor | None = None,
        content_grids: torch.Tensor | None = None,
        prompt_input_ids: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed ``(B, S)`` ids with the visual tokens in their places: ``(B, S, H)``.

        Raises:
            UserError: placeholders and visual tokens differ in number, or only part of the visual inputs is given.
        """
        if visual_spans is None:
            if pixel_values is not None or visual_features is not None:
                raise UserError(
                    "frames are given without visual_spans; pass all of VisualInputs, or none for text only"
                )
            tokens = input_ids.new_zeros(0, self.config.text_config.hidden_size, dtype=self.dtype)
        else:
            if content_grids is None or prompt_input_ids is None or prompt_attention_mask is None:
                raise UserError("visual_spans need content_grids, prompt_input_ids and prompt_attention_mask too")
            features = self._features(pixel_values, visual_features)
            tokens = self.visual_tokens(features, visual_spans, content_grids, prompt_input_ids, prompt_attention_mask)
        embeds = embed_and_splice(self.get_input_embeddings(), input_ids, tokens, self.config.visual_token_id)
        if visual_spans is None and self.training and torch.is_grad_enabled():
            embeds = embeds + self._zero_of_unused_parts()
        return embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        visual_spans: torch.Tensor | None = None,
        content_grids: torch.Tensor | None = None,
        prompt_input_ids: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LlamaVidOutput:
        """Run the model.

        Args:
            input_ids: ``(B, S)`` int64, one ``visual_token_id`` per visual token; or give ``inputs_embeds``.
            attention_mask: ``(B, S)`` int64, 1 on real tokens; padding may stand on either side.
            position_ids: ``(B, S)`` int64. Default: counted over real tokens, so padding moves nothing.
            past_key_values: cache of earlier tokens.
            inputs_embeds: ``(B, S, H)`` instead of ``input_ids``, with the visual tokens already in place.
            labels: ``(B, S)`` int64 with ``IGNORE_INDEX``.
            pixel_values: see ``longvid_train.types.VisualInputs``, as the five that follow.
            visual_features: see above.
            visual_spans: see above.
            content_grids: see above.
            prompt_input_ids: see above.
            prompt_attention_mask: see above.
            use_cache: whether to return a cache.
            logits_to_keep: how many last positions' logits to make (0: all; or indices). Default: none when labels are
                given, else all.
            num_items_in_batch: divide the sum of losses by this instead of by this batch's supervised tokens, so that
                accumulated micro-batches give the gradient of the whole batch.
            **kwargs: passed to the language model (``output_hidden_states``, ``output_attentions``, ...).

        Raises:
            UserError: see ``multimodal_embeddings``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            if cached_length(past_key_values) and visual_spans is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                inputs_embeds = self.multimodal_embeddings(
                    input_ids,
                    pixel_values,
                    visual_features,
                    visual_spans,
                    content_grids,
                    prompt_input_ids,
                    prompt_attention_mask,
                )
        if position_ids is None and not cached_length(past_key_values):
            position_ids = positions_of(attention_mask)
        outputs = self.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss = None
        if labels is not None:
            total, count = supervised_loss_sum(hidden_states, labels, self.get_output_embeddings())
            loss = total / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return LlamaVidOutput(
            loss=loss,
            logits=self._logits(hidden_states, logits_to_keep, wanted=labels is None),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def loss_sum(self, **batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses of all supervised tokens of a batch, and their number.

        Args:
            **batch: ``forward``'s arguments with ``labels``.

        Returns:
            The float32 scalar sum and the int64 scalar count.
        """
        count = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        return self(**batch, num_items_in_batch=1, use_cache=False).loss, count

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Generate with all of transformers' options; the visuals are encoded once, whatever the number of beams.

        Args:
            inputs: ``(B, S)`` prompt ids (or as ``input_ids``), padded on the left.
            **kwargs: ``VisualInputs`` and transformers' generation options.

        Returns:
            What transformers returns for a prompt of ids: ``(rows, S + new)`` ids with the prompt in front.

        Raises:
            UserError: see ``multimodal_embeddings``.
        """
        visual = {name: kwargs.pop(name, None) for name in VISUAL_KEYS}
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if any(value is not None for value in visual.values()):
            if input_ids is None:
                raise UserError("visual inputs need input_ids with their placeholders; inputs_embeds hold them already")
            kwargs["spliced_prompt"] = self.multimodal_embeddings(input_ids, **visual)
        return super().generate(inputs=input_ids, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        spliced_prompt: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Feed the spliced prompt wherever its positions are not in the cache yet, and token ids after it.

        Holds for a prefill in one go or in chunks, for generation without a cache and for candidate tokens behind the
        prompt. The other arguments are transformers'.

        Args:
            spliced_prompt: ``(rows, S, H)`` from ``generate``.
        """
        start = cached_length(past_key_values)
        if spliced_prompt is not None and start < spliced_prompt.shape[1]:
            if next_sequence_length is not None:
                input_ids, next_sequence_length = input_ids[:, -next_sequence_length:], None
            inputs_embeds = spliced_prompt[:, start : start + input_ids.shape[1]]
            behind = self.get_input_embeddings()(input_ids[:, inputs_embeds.shape[1] :])
            inputs_embeds, is_first_iteration = torch.cat([inputs_embeds, behind], dim=1), True
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _features(self, pixel_values: torch.Tensor | None, visual_features: torch.Tensor | None) -> torch.Tensor:
        if pixel_values is not None and visual_features is None:
            return self.encode_frames(pixel_values)
        if visual_features is not None and pixel_values is None:
            return visual_features
        raise UserError("visual_spans need exactly one of pixel_values and visual_features")

    def _logits(
        self, hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor | None, *, wanted: bool
    ) -> torch.Tensor | None:
        if logits_to_keep is None:
            if not wanted:
                return None
            logits_to_keep = 0
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.get_output_embeddings()(hidden_states[:, kept])

    def _zero_of_unused_parts(self) -> torch.Tensor:
        """A zero that depends on every trained parameter of the visual side.

        A text-only batch runs no vision. Data-parallel reducers still expect a gradient from each rank for each trained
        parameter, so this gives zeros.
        """
        zeros = [parameter.float().sum().to(self.device) * 0 for parameter in self._trained_visual_parameters()]
        return torch.stack(zeros).sum() if zeros else torch.zeros((), device=self.device)

    def _trained_visual_parameters(self) -> Iterator[nn.Parameter]:
        for part in (self.vision_tower, self.text_decoder, self.context_attention, self.content_projector):
            if part is not None:
                yield from (parameter for parameter in part.parameters() if parameter.requires_grad)


def build_text_decoder(config: LlamaVidConfig) -> QFormerTextDecoder | BertTextDecoder | None:
    """Build the text decoder of ``config.text_decoder_config`` with fresh weights; ``None`` without one."""
    decoder, vision_width = config.text_decoder_config, config.vision_config.hidden_size
    if decoder is None:
        return None
    if decoder.model_type == BERT_MODEL_TYPE:
        return BertTextDecoder(decoder, vision_width=vision_width)
    return QFormerTextDecoder(decoder, vision_width=vision_width, num_queries=config.num_queries)


def cached_length(cache: Cache | None) -> int:
    """Tokens a cache already holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def positions_of(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Positions counted over the real tokens of a ``(B, S)`` mask; ``None`` for no mask or a prepared 4-D one."""
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
