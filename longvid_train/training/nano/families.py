"""The two nano backbones: their transformers configurations, conversations and processor files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

import longvid_train
from longvid_train.files import write_json, write_text
from longvid_train.models.backbones.llava_onevision import LlavaOnevision
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.models.backbones.video_llava_joint import (
    JointVideoLlavaConfig,
    JointVideoLlavaForConditionalGeneration,
    VideoLlavaJoint,
)
from longvid_train.training.nano.dialogue import ChatFormat

IMAGE_SIDE = 56
TRAINED_FRAMES = 8
PRETRAINED = Path(longvid_train.__file__).parent / "assets" / "nano"
"""Tokenizer and language model that both start from, as the real ones start from Qwen2 and Vicuna."""

KINDS = ("needle", "order", "detail")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One nano backbone.

    Attributes:
        name: of its folder under ``assets``.
        chat: how it writes conversations.
        specials: special tokens that the pretrained tokenizer lacks.
        begin: first token of a conversation, if the family has one.
        build: makes a backbone for a tokenizer: with the pretrained language model, the rest untrained.
        pictures: video settings, as transformers names them.
        template: the chat template.
        finish: fills what the recipes do not train.
    """

    name: str
    chat: ChatFormat
    specials: tuple[str, ...]
    begin: str | None
    build: Callable[[PreTrainedTokenizerFast], AnyBackbone]
    pictures: dict[str, Any]
    template: str
    finish: Callable[[AnyBackbone], None] = lambda backbone: None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The pretrained tokenizer with the family's special tokens."""
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(PRETRAINED / "tokenizer")
        tokenizer.add_special_tokens({"additional_special_tokens": list(self.specials)})
        tokenizer.bos_token, tokenizer.eos_token = self.begin, self.chat.end
        return tokenizer

    def save(self, backbone: AnyBackbone, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Write a folder that `load_backbone` and `BackboneProcessor` read; weights as they are in memory."""
        backbone.model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            do_sample=False,
            max_new_tokens=32,
        )
        backbone.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_text(folder / "chat_template.jinja", self.template)
        write_json(folder / "video_preprocessor_config.json", self.pictures)
        write_json(folder / "preprocessor_config.json", self.pictures)


def _language_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The pretrained language model, with rows for the family's special tokens."""
    language = LlamaForCausalLM.from_pretrained(PRETRAINED / "language_model", dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return language


def _as_qwen(
    language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> tuple[Qwen2Config, dict[str, torch.Tensor]]:
    """The same function as a Qwen2: configuration and weights. Its attention adds biases, which begin at 0."""
    llama = language.config
    config = Qwen2Config(
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        intermediate_size=llama.intermediate_size,
        num_hidden_layers=llama.num_hidden_layers,
        num_attention_heads=llama.num_attention_heads,
        num_key_value_heads=llama.num_key_value_heads,
        max_position_embeddings=llama.max_position_embeddings,
        rms_norm_eps=llama.rms_norm_eps,
        rope_parameters=llama.rope_parameters,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    weights = dict(language.model.state_dict())
    for name in list(weights):
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights[name.removesuffix("weight") + "bias"] = torch.zeros(len(weights[name]))
    return config, weights


def _onevision(tokenizer: PreTrainedTokenizerFast) -> AnyBackbone:
    text_config, weights = _as_qwen(_language_model(tokenizer), tokenizer)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIDE,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[IMAGE_SIDE, IMAGE_SIDE]],
        tie_word_embeddings=True,
        trained_frames=TRAINED_FRAMES,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.model.language_model.load_state_dict(weights)
    return LlavaOnevision(model)


def _video_llava(tokenizer: PreTrainedTokenizerFast) -> AnyBackbone:
    language = _language_model(tokenizer)
    config = JointVideoLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIDE,
            patch_size=28,
        ),
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        joint_frames=TRAINED_FRAMES,
        tie_word_embeddings=True,
    )
    model = JointVideoLlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    return VideoLlavaJoint(model)


def _share_image_tower(backbone: AnyBackbone) -> None:
    """Images are encoded by the video tower without its attention over frames."""
    image = backbone.model.model.image_tower
    shared = backbone.model.model.video_tower.state_dict()
    image.load_state_dict({name: shared[name] for name in image.state_dict()})


_HALVES = [0.5, 0.5, 0.5]
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_PICTURES = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
_SQUARE = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}

_PARTS = (
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
)

ONEVISION = Family(
    name="nano_onevision",
    chat=ChatFormat(
        first="<|im_start|>user <video>\n{question}<|im_end|><|im_start|>assistant\n",
        later="<|im_start|>user {question}<|im_end|><|im_start|>assistant\n",
        lead=" ",
        end="<|im_end|>",
    ),
    specials=("<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    begin=None,
    build=_onevision,
    pictures=_PICTURES | {"size": _SQUARE, "image_mean": _HALVES, "image_std": _HALVES},
    template=(
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n ' }}"
        "{% else %}{{ '<|im_start|>' + message['role'] + ' ' }}{% endif %}"
        + _PARTS
        + "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)

VIDEO_LLAVA = Family(
    name="nano_video_llava",
    chat=ChatFormat(
        first="USER: <video>\n{question} ASSISTANT:",
        later="USER: {question} ASSISTANT:",
        lead=" ",
        end="</s>",
    ),
    specials=("<image>", "<video>"),
    begin="<s>",
    build=_video_llava,
    pictures=_PICTURES
    | {
        "size": {"shortest_edge": IMAGE_SIDE},
        "do_center_crop": True,
        "crop_size": _SQUARE,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
    template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}{% else %}{{ 'USER: ' }}{% endif %}"
        + _PARTS
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    ),
    finish=_share_image_tower,
)

FAMILIES = {"onevision": ONEVISION, "video_llava": VIDEO_LLAVA}
