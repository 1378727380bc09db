"""Prompt ids and pixels are those of transformers' own processors; the number of visual tokens is the plan's."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlavaNextVideoProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VideoLlavaProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import BackboneProcessor
from longvid_train.models.backbones.load import BACKBONES
from tests.models import tiny_backbones as tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
QUESTION = "What is it?"

TEMPLATES = {
    "onevision": CHATML,
    "interleave": CHATML,
    "next_image": VICUNA,
    "next_video": VICUNA,
    "video_llava": VICUNA,
}


def tokenizer(begins):
    """Bytes, the special tokens, and a first token where ``begins``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<image>", "<video>", "<|im_start|>", "<|im_end|>"])
    if begins:
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    bos = {"bos_token": "<s>"} if begins else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>", **bos)


CLIP_PICTURES = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
PICTURES = {
    "onevision": {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
    "interleave": {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "next_image": CLIP_PICTURES | {"image_grid_pinpoints": [[24, 48], [48, 24], [48, 48]]},
    "next_video": CLIP_PICTURES,
    "video_llava": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
}


def facts_of(name, read):
    model = tiny.build(name)
    facts = BACKBONES[type(model).__name__].facts_of(model.config)
    return replace(facts, placeholder_id=read.convert_tokens_to_ids(f"<{facts.medium}>"))


def processing(name, template, **options):
    read = tokenizer(begins=name not in ("onevision", "interleave"))
    return BackboneProcessor(read, facts_of(name, read), PICTURES[name], chat_template=template, **options)


def some_frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 40, 60, 3), dtype=np.uint8)


def pil_reference(frames, side, mean, std, crop):
    """Frames resized one by one with PIL: the short side, then the middle; or straight to the square."""
    rows = []
    for frame in frames:
        picture = Image.fromarray(frame)
        width, height = picture.size
        if crop:
            picture = picture.resize((width * side // height, side), Image.Resampling.BICUBIC)
            left = (picture.width - side) // 2
            picture = picture.crop((left, 0, left + side, side))
        else:
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        values = (np.asarray(picture, dtype=np.float64) / 255 - mean) / std
        rows.append(values.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(rows)).float()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_pixels_are_resized_and_normalised_as_the_checkpoint_says(name):
    ours = processing(name, TEMPLATES[name])
    mean = np.array(PICTURES[name].get("image_mean", OPENAI_CLIP_MEAN))
    std = np.array(PICTURES[name].get("image_std", OPENAI_CLIP_STD))
    frames = some_frames(3)
    crop = name in ("next_video", "video_llava")
    expected = pil_reference(frames, ours.facts.image_side, mean, std, crop)
    torch.testing.assert_close(ours.pixel_values(frames), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("onevision", LlavaOnevisionProcessor),
        ("next_video", LlavaNextVideoProcessor),
        ("video_llava", VideoLlavaProcessor),
    ],
)
def test_video_prompts_are_those_of_transformers_processors(name, own, frames):
    ours = processing(name, TEMPLATES[name])
    plan = Adaptation().plan_frames(frames, ours.facts.grid)
    # A whole processor needs torchvision; its count of placeholders needs these settings only.
    settings = SimpleNamespace(patch_size=4, num_additional_image_tokens=1, num_image_tokens=49, video_token="<video>")
    placeholders = own.replace_video_token(
        settings, {"pixel_values_videos": [ours.pixel_values(some_frames(frames))]}, 0
    )
    text = ours.prompt_text(QUESTION)
    assert text.startswith("<s>") == (name != "onevision")
    expected = ours.tokenizer(text.replace("<video>", placeholders), add_special_tokens=False)["input_ids"]
    assert ours.prompt_ids(QUESTION, plan.visual_tokens).tolist() == [expected]


@pytest.mark.parametrize("frames", [1, 3])
def test_interleave_shows_each_frame_as_an_image(frames):
    ours = processing("interleave", CHATML)
    plan = Adaptation().plan_frames(frames, ours.facts.grid)
    whole = LlavaProcessor(SiglipImageProcessorPil(**PICTURES["interleave"]), ours.tokenizer, 4, "full")
    text = ours.prompt_text(QUESTION).replace("<image>", "<image>" * frames)
    own = whole(text=text, images=list(some_frames(frames)), return_tensors="pt")
    assert ours.prompt_ids(QUESTION, plan.visual_tokens).tolist() == own["input_ids"].tolist()
    torch.testing.assert_close(ours.pixel_values(some_frames(frames)), own["pixel_values"], atol=1e-6, rtol=0)


def test_llava_1_6_shows_the_base_view_of_each_frame():
    ours = processing("next_image", VICUNA)
    own = LlavaNextImageProcessorPil(**PICTURES["next_image"])(list(some_frames(2)), return_tensors="pt")
    assert own["pixel_values"].shape[1] > 2  # a base view and tiles
    torch.testing.assert_close(ours.pixel_values(some_frames(2)), own["pixel_values"][:, 0], atol=1e-6, rtol=0)
    ids = ours.prompt_ids(QUESTION, 5)[0].tolist()
    assert ids.count(ours.facts.placeholder_id) == 5


def test_more_frames_than_a_chunk_are_preprocessed_alike():
    ours = processing("video_llava", VICUNA)
    frames = some_frames(130)
    whole = ours.pixel_values(frames)
    assert len(whole) == 130
    assert torch.equal(whole[100:], ours.pixel_values(frames[100:]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("onevision", f"<|im_start|>user <video>\n{QUESTION}<|im_end|><|im_start|>assistant\n"),
        ("interleave", f"<|im_start|>user <image>\n{QUESTION}<|im_end|><|im_start|>assistant"),
        ("video_llava", f"USER: <video>\n{QUESTION} ASSISTANT:"),
    ],
)
def test_without_a_chat_template_the_documented_prompt_is_used(name, text):
    ours = processing(name, None)
    assert ours.prompt_text(QUESTION) == text
    ids = ours.prompt_ids(QUESTION, 1)[0].tolist()
    assert ours.tokenizer.decode(ids) == ("<s>" if name == "video_llava" else "") + text


@pytest.mark.parametrize("name", ["next_video", "next_image"])
def test_a_family_with_several_prompts_needs_one(name):
    with pytest.raises(UserError, match="has no chat template, and its family has several prompts"):
        processing(name, None)
    medium = "<video>" if name == "next_video" else "<image>"
    given_one = processing(name, None, prompt=f"USER: {medium}\n{{question}} ASSISTANT:")
    assert given_one.prompt_text("{question}?") == f"USER: {medium}\n{{question}}? ASSISTANT:"


@pytest.mark.parametrize("prompt", ["{question}", "<video>", "<video> <video> {question}", ""])
def test_a_prompt_without_its_parts_is_refused(prompt):
    with pytest.raises(UserError, match="exactly once"):
        processing("video_llava", VICUNA, prompt=prompt)


def test_a_question_with_the_placeholder_is_refused():
    with pytest.raises(UserError, match="the question holds <video>"):
        processing("video_llava", VICUNA).prompt_ids("what is <video>?", 3)


def test_a_template_that_shows_no_video_is_refused():
    ours = processing("video_llava", "{{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(UserError, match="makes 0 times <video> of 1 videos"):
        ours.prompt_ids(QUESTION, 3)


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_both_file_layouts_of_transformers_are_read(name, layout, tmp_path):
    ours = processing(name, TEMPLATES[name])
    ours.tokenizer.save_pretrained(tmp_path)
    pictures = PICTURES[name]
    if layout == "new":
        own_part = "image_processor" if ours.facts.medium == "image" else "video_processor"
        (tmp_path / "processor_config.json").write_text(json.dumps({own_part: pictures}))
        (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    else:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[name]}))
    again = BackboneProcessor.load(tmp_path, ours.facts)
    assert again.prompt_ids(QUESTION, 7).tolist() == ours.prompt_ids(QUESTION, 7).tolist()
    assert torch.equal(again.pixel_values(some_frames(2)), ours.pixel_values(some_frames(2)))
    asked = BackboneProcessor.load(tmp_path, ours.facts, prompt=f"{ours.placeholder} {{question}}")
    assert asked.prompt_text("why?") == f"{ours.placeholder} why?"


def test_a_folder_without_a_processor_is_one_line(tmp_path):
    with pytest.raises(UserError, match="its processor cannot be read") as raised:
        BackboneProcessor.load(tmp_path, processing("video_llava", VICUNA).facts)
    assert "\n" not in str(raised.value)


VIDEO_LLAVA = processing("video_llava", VICUNA)


@given(question=st.text(max_size=30).filter(lambda text: "<" not in text), visual_tokens=st.integers(1, 300))
def test_the_placeholders_stand_together_and_the_text_around_them_is_untouched(question, visual_tokens):
    ids = VIDEO_LLAVA.prompt_ids(question, visual_tokens)[0].tolist()
    one = VIDEO_LLAVA.prompt_ids(question, 1)[0].tolist()
    place = one.index(VIDEO_LLAVA.facts.placeholder_id)
    assert ids[:place] == one[:place] and ids[place + visual_tokens :] == one[place + 1 :]
    assert set(ids[place : place + visual_tokens]) == {VIDEO_LLAVA.facts.placeholder_id}
