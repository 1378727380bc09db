"""Configuration of LLaMA-VID (arXiv:2311.17043): which tower, text decoder and language model, which tokens a frame."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from longvid_train.errors import UserError
from longvid_train.tokens.two_token import tokens_per_frame

EVA_MODEL_TYPE = "instructblip_vision_model"
CLIP_MODEL_TYPE = "clip_vision_model"
QFORMER_MODEL_TYPE = "instructblip_qformer"
BERT_MODEL_TYPE = "bert"
LANGUAGE_MODEL_TYPE = "llama"


@strict
class LlamaVidConfig(PreTrainedConfig):
    """Everything needed to build the architecture without weights.

    Attributes:
        vision_config: ``InstructBlipVisionConfig`` (EVA-CLIP style) or ``CLIPVisionConfig``, by ``model_type``.
        text_decoder_config: ``InstructBlipQFormerConfig``, a ``BertConfig`` with ``is_decoder`` and
            ``add_cross_attention``, or ``None`` for a model with content tokens only.
        text_config: ``LlamaConfig`` of the language model.
        num_queries: learned queries of the Q-Former (the BERT decoder has none: its text positions are the queries).
        use_context: a context token a frame. ``None`` means "if there is a text decoder".
        use_content: content tokens a frame.
        vision_select_layer: hidden state a CLIP tower gives (``-1``: its last layer's output); EVA-CLIP has no choice.
        image_size: side in pixels the model sees. ``None`` means the tower's own; another size interpolates the
            position embeddings (bicubic).
        visual_token_id: placeholder id of one visual token in ``input_ids``. It may lie outside the vocabulary.
        max_prompt_tokens: longest prompt the text decoder is given; longer ones are cut on the left.
        frame_chunk: frames (or frame-prompt pairs) that pass the tower (or the text decoder) at once.

    Raises:
        UserError: a combination that cannot be built; the line names the field and the rule.
    """

    model_type = "llama_vid"
    sub_configs_defaults = {  # noqa: RUF012 - transformers declares it as a ClassVar
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type=EVA_MODEL_TYPE),
        "text_decoder_config": SubConfigSpec(config_class=AutoConfig, model_type=QFORMER_MODEL_TYPE, optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type=LANGUAGE_MODEL_TYPE),
    }

    # Any: a dictionary or None only until __post_init__ has made each a configuration.
    vision_config: Any = None
    text_decoder_config: Any = None
    text_config: Any = None
    num_queries: int = 32
    use_context: bool | None = None
    use_content: bool = True
    vision_select_layer: int = -2
    image_size: Any = None
    visual_token_id: int = 32000
    max_prompt_tokens: int = 256
    frame_chunk: int = 64
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what is derived, then check every combination."""
        super().__post_init__(**kwargs)
        if self.use_context is None:
            self.use_context = self.text_decoder_config is not None
        if self.image_size is None:
            self.image_size = self.vision_config.image_size
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self._check_tokens()
        self._check_vision()
        self._check_text_decoder()
        self._check_numbers()

    @property
    def visual_grid(self) -> int:
        """Patches along one side of a frame: ``P = visual_grid ** 2``."""
        return int(self.image_size) // int(self.vision_config.patch_size)

    def tokens_per_frame(self, content_grid: int) -> int:
        """Visual tokens of one frame at ``content_grid`` (``longvid_train.types.ALL_PATCHES`` keeps every patch)."""
        return tokens_per_frame(
            content_grid, self.visual_grid, context=bool(self.use_context), content=bool(self.use_content)
        )

    def _check_tokens(self) -> None:
        if not self.use_context and not self.use_content:
            raise UserError("use_context and use_content are both false: a frame would have no token; set one to true")
        if self.use_context and self.text_decoder_config is None:
            raise UserError(
                "use_context is true but text_decoder_config is null: the context token needs a text decoder; "
                "give an InstructBlipQFormerConfig or a BertConfig, or set use_context to false"
            )
        if not self.use_context and self.text_decoder_config is not None:
            raise UserError(
                f"text_decoder_config is '{self.text_decoder_config.model_type}' but use_context is false: it would "
                "never run; set text_decoder_config to null or use_context to true"
            )
        if self.text_config.model_type != LANGUAGE_MODEL_TYPE:
            raise UserError(f"text_config.model_type is '{self.text_config.model_type}'; LLaMA-VID needs 'llama'")

    def _check_vision(self) -> None:
        vision = self.vision_config
        if vision.model_type not in (EVA_MODEL_TYPE, CLIP_MODEL_TYPE):
            raise UserError(
                f"vision_config.model_type is '{vision.model_type}'; "
                f"use '{EVA_MODEL_TYPE}' (EVA-CLIP) or '{CLIP_MODEL_TYPE}'"
            )
        if self.image_size % vision.patch_size:
            raise UserError(
                f"image_size {self.image_size} is not a multiple of vision_config.patch_size {vision.patch_size}"
            )
        if vision.model_type == CLIP_MODEL_TYPE:
            selected_layer_count(vision.num_hidden_layers, self.vision_select_layer)

    def _check_text_decoder(self) -> None:
        decoder = self.text_decoder_config
        if decoder is None:
            return
        if decoder.model_type not in (QFORMER_MODEL_TYPE, BERT_MODEL_TYPE):
            raise UserError(
                f"text_decoder_config.model_type is '{decoder.model_type}'; "
                f"use '{QFORMER_MODEL_TYPE}' or '{BERT_MODEL_TYPE}'"
            )
        if decoder.model_type == BERT_MODEL_TYPE and not (decoder.is_decoder and decoder.add_cross_attention):
            raise UserError(
                "text_decoder_config is a BERT without is_decoder and add_cross_attention; set both to true"
            )
        if self.max_prompt_tokens > decoder.max_position_embeddings:
            raise UserError(
                f"max_prompt_tokens {self.max_prompt_tokens} exceeds text_decoder_config.max_position_embeddings "
                f"{decoder.max_position_embeddings}; lower it"
            )

    def _check_numbers(self) -> None:
        for name in ("num_queries", "max_prompt_tokens", "frame_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.visual_token_id < 0:
            raise UserError(f"visual_token_id is {self.visual_token_id}; a token id is not negative")


def selected_layer_count(layer_count: int, select_layer: int) -> int:
    """Encoder layers that must run so that hidden state ``select_layer`` of ``layer_count`` layers exists.

    Hidden state 0 is the embeddings' output and hidden state ``layer_count`` the last layer's, as in transformers.

    Raises:
        UserError: there is no such hidden state.
    """
    count = select_layer if select_layer >= 0 else layer_count + 1 + select_layer
    if not 0 <= count <= layer_count:
        raise UserError(
            f"vision_select_layer {select_layer} is outside the tower's {layer_count} layers; "
            f"use {-layer_count - 1} to {layer_count}"
        )
    return count
