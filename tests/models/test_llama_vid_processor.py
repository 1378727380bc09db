"""Pixels against transformers' CLIP processor, prompts, token counts, files."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from longvid_train.errors import UserError
from longvid_train.models.llama_vid import LlamaVidProcessor, ProcessorSettings
from longvid_train.models.llama_vid.frames import CLIP_STD, resize_and_crop


def word_tokenizer(special=True):
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        raw.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")


def processor(**fields):
    values = {"image_size": 28, "patch_size": 7, "visual_token_id": 12, "max_prompt_tokens": 6} | fields
    return LlamaVidProcessor(word_tokenizer(), word_tokenizer(), ProcessorSettings(**values))


def clip_by_two_passes(frame, side):
    """Width first, then height: the order of every Pillow before 13, which resizes tall pictures height first."""
    height, width = frame.shape[:2]
    size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = Image.fromarray(frame).resize((size[1], height), Image.BICUBIC).resize(size[::-1], Image.BICUBIC)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[:, top : top + side, left : left + side]


@given(st.integers(5, 90), st.integers(5, 90), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
@example(height=59, width=29, seed=0)
def test_resize_is_pillow_s_in_two_passes_up_to_rounding(height, width, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = torch.stack([clip_by_two_passes(frame, 28) for frame in frames])
    levels = (resize_and_crop(frames, 28).float() - expected.float()).abs()
    assert levels.max() <= 2
    assert (levels > 1).float().mean() < 0.002


@given(st.integers(5, 90), st.integers(5, 90), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_pixels_are_transformers_clip_s_up_to_rounding(height, width, seed):
    assume(height <= 2 * width)  # taller ones Pillow 13 resizes in the other order, which noise shows
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = theirs([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
    pixels = processor().preprocess_frames(frames)
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.float32, True)
    levels = (pixels - expected).abs() * torch.tensor(CLIP_STD).view(1, 3, 1, 1) * 255
    # PIL rounds to whole grey levels after each of its two passes, torch after its own: two levels at worst.
    assert levels.max() < 2.001
    assert levels.mean() < 0.05
    assert (levels > 1.001).float().mean() < 0.002


def test_pixels_of_the_right_size_are_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    assert torch.equal(resize_and_crop(frames, 28), torch.from_numpy(frames).permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(28, 28, 3), (1, 28, 28, 4), (1, 0, 5, 3)])
def test_wrong_frames_are_user_errors(shape):
    with pytest.raises(UserError, match="frames"):
        processor().preprocess_frames(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(UserError, match="float64"):
        processor().preprocess_frames(np.zeros((1, 28, 28, 3)))


def test_long_prompts_lose_their_beginning_and_short_ones_are_padded_on_the_right():
    ids, mask = processor().encode_prompts(["a b c d e f g h", "a"])
    assert ids.tolist() == [[2, 8, 9, 10, 11, 3], [2, 4, 3, 0, 0, 0]]
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


def test_no_prompt_and_an_empty_prompt():
    plain = LlamaVidProcessor(word_tokenizer(), word_tokenizer(special=False), processor().settings)
    ids, mask = plain.encode_prompts(["", ""])
    assert ids.shape == (2, 1)
    assert not mask.any()
    assert plain.encode_prompts([])[0].shape == (0, 1)


def test_tokens_per_frame():
    assert [processor().tokens_per_frame(grid) for grid in (0, 1, 2, 4)] == [17, 2, 5, 17]
    assert processor(use_content=False).tokens_per_frame(2) == 1
    with pytest.raises(UserError, match="content_grid 3 does not divide"):
        processor().tokens_per_frame(3)


def test_save_and_load(tmp_path):
    first = processor()
    first.save_pretrained(tmp_path)
    again = LlamaVidProcessor.from_pretrained(tmp_path)
    assert again.settings == first.settings
    prompts = ["h g f e d c b a", "b"]
    for ours, theirs in zip(first.encode_prompts(prompts), again.encode_prompts(prompts), strict=True):
        assert torch.equal(ours, theirs)
    assert again.tokenizer("a b")["input_ids"] == [2, 4, 5, 3]
    path = tmp_path / "llama_vid_processor.json"
    path.write_text(path.read_text().replace('"patch_size"', '"patch_sise"'))
    with pytest.raises(UserError, match="unknown setting 'patch_sise'; did you mean 'patch_size'"):
        LlamaVidProcessor.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"llama_vid_processor.json does not exist"):
        LlamaVidProcessor.from_pretrained(tmp_path / "empty")


def test_a_context_token_needs_a_prompt_tokenizer():
    with pytest.raises(UserError, match="there is no prompt_tokenizer"):
        LlamaVidProcessor(word_tokenizer(), None, processor().settings)
