"""The two nano backbones: their transformers configurations, conversations and processor files."""

import random
import re
from collections.abc import Callable, Iterator
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
from longvid_train.training.nano.clip_words import frame_list
from longvid_train.training.nano.dialogue import DESCRIPTION_QUESTION, FRAMES_QUESTION, ChatFormat
from longvid_train.training.nano.tokenizer import learn_tokenizer
from longvid_train.world.clips import draw_questions, even_clip
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.questions import caption

IMAGE_SIDE = 56
TRAINED_FRAMES = 8
LANGUAGE_WINDOW = 160
"""Longest conversation of the nano OneVision's recipe, in tokens. Its language model has seen nothing longer."""

PRETRAINED = Path(longvid_train.__file__).parent / "assets" / "nano"
"""Tokenizer and language model that the nano Video-LLaVA starts from, as the real one starts from Vicuna."""

KINDS = ("needle", "order", "detail")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One nano backbone.

    Attributes:
        name: of its folder under ``assets``.
        chat: how it writes conversations.
        tokenizer: learns or reads the tokenizer; the argument is the seed of what it learns from.
        build: makes a backbone for a tokenizer: untrained, or with a language model that was trained before.
        pictures: video settings, as transformers names them.
        template: the chat template.
        finish: fills what the recipes do not train.
    """

    name: str
    chat: ChatFormat
    tokenizer: Callable[[int], PreTrainedTokenizerFast]
    build: Callable[[PreTrainedTokenizerFast], AnyBackbone]
    pictures: dict[str, Any]
    template: str
    finish: Callable[[AnyBackbone], None] = lambda backbone: None

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


def _qwen_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learned from training episodes told in the family's conversations."""
    specials = ("<|im_start|>", "<|im_end|>", "<image>", "<video>")
    between = "|".join(re.escape(one) for one in specials)
    return learn_tokenizer(
        (part for text in _corpus(ONEVISION.chat, seed) for part in re.split(between, text) if part),
        specials=("<unk>", "<pad>", *specials),
        extra_special_tokens=list(specials),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token=ONEVISION.chat.end,
        bos_token=None,
    )


def _corpus(chat: ChatFormat, seed: int) -> Iterator[str]:
    for index in range(300):
        episode = make_episode(WorldSettings(duration_s=12.0), split="train", seed=seed, index=index)
        clip = even_clip(episode, 12)
        for question in draw_questions(clip, (*KINDS, "count"), 6, random.Random(index)):
            yield chat.later.replace("{question}", question.text) + chat.lead + question.answer
        yield chat.later.replace("{question}", FRAMES_QUESTION) + chat.lead + frame_list(clip)
        yield chat.first.replace("{question}", DESCRIPTION_QUESTION) + chat.lead + caption(episode)
        yield "".join(f"{chat.lead}{a.colour} {a.shape}" for a in episode.appearances)


def _vicuna_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The pretrained language model's, with places for images and videos."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(PRETRAINED / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    return tokenizer


def _onevision(tokenizer: PreTrainedTokenizerFast) -> AnyBackbone:
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
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LANGUAGE_WINDOW,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[IMAGE_SIDE, IMAGE_SIDE]],
        tie_word_embeddings=True,
        trained_frames=TRAINED_FRAMES,
    )
    return LlavaOnevision(LlavaOnevisionForConditionalGeneration(config))


def _video_llava(tokenizer: PreTrainedTokenizerFast) -> AnyBackbone:
    language = LlamaForCausalLM.from_pretrained(PRETRAINED / "language_model", dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
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
        lead="",
        end="<|im_end|>",
    ),
    tokenizer=_qwen_tokenizer,
    build=_onevision,
    pictures=_PICTURES | {"size": _SQUARE, "image_mean": _HALVES, "image_std": _HALVES},
    template=(
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
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
    tokenizer=_vicuna_tokenizer,
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
