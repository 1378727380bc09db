"""A tiny random LLaMA-VID with byte-level tokenizers, saved as a folder, and real files to ask it about."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, InstructBlipQFormerConfig, LlamaConfig, PreTrainedTokenizerFast

from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.processing import LlamaVidProcessor

WINDOW = 512
PATCHES = 4
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. ",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "USER: ASSISTANT: What is in the video? And after that? red green blue circle square",
] * 3


def _tokenizer(specials: dict[str, str]) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(specials.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **specials)


def save_tiny_checkpoint(folder: Path, *, window: int = WINDOW, seed: int = 0) -> Path:
    """4 patches a frame; a frame of a video takes 2 tokens (context, content), an image 1 + 4."""
    tokenizer = _tokenizer({"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    prompt_tokenizer = _tokenizer({"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "initializer_range": 0.2}
    config = LlamaVidConfig(
        vision_config=CLIPVisionConfig(**size, num_hidden_layers=2, image_size=28, patch_size=14),
        text_decoder_config=InstructBlipQFormerConfig(
            **size,
            num_hidden_layers=2,
            vocab_size=len(prompt_tokenizer),
            encoder_hidden_size=16,
            max_position_embeddings=64,
        ),
        text_config=LlamaConfig(
            **(size | {"initializer_range": 0.3}),
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=window,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        num_queries=4,
        max_prompt_tokens=32,
        visual_token_id=len(tokenizer),
        frame_chunk=3,
    )
    torch.manual_seed(seed)
    model = LlamaVidForConditionalGeneration(config).eval()
    with torch.no_grad():  # make the frames and the prompts count in the answer
        for part in (model.context_attention, model.content_projector):
            for parameter in part.parameters():
                parameter.normal_(std=1.0)
    model.save_pretrained(folder)
    LlamaVidProcessor.for_model(config, tokenizer, prompt_tokenizer).save_pretrained(folder)
    return folder


def write_clip(path: Path, *, seconds: int = 8, fps: int = 2, seed: int = 0) -> Path:
    """Noisy blocks of colour that change with every frame, at ``fps``."""
    draws = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"threads": "1", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(seconds * fps):
            blocks = draws.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(blocks.repeat(8, axis=0).repeat(8, axis=1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_picture(path: Path, seed: int = 9) -> Path:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1)).save(path)
    return path
