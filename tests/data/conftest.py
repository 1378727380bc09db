"""A small real processor (byte-level BPE trained here), a real mp4 file and a manifest about it."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.data.loading import LoadingOptions
from longvid_train.models.llama_vid.processing import LlamaVidProcessor, ProcessorSettings

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def _tokenizer(corpus: list[str], specials: dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


@pytest.fixture(scope="session")
def processor() -> LlamaVidProcessor:
    """Tower of 4 x 4 patches of 2 pixels; a frame takes 1 context token and 1, 4 or 16 content tokens."""
    corpus = [SYSTEM, "USER: ASSISTANT: Which digit does the red square carry? What came after the blue circle?"] * 3
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<vis>"}
    prompt_specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = _tokenizer(corpus, specials)
    settings = ProcessorSettings(image_size=8, patch_size=2, visual_token_id=tokenizer.convert_tokens_to_ids("<vis>"))
    return LlamaVidProcessor(tokenizer, _tokenizer(corpus, prompt_specials), settings)


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ramp.mp4``: 40 frames at 10 fps whose grey level is 6 * number; ``ramp.srt``; ``grey.png``; ``broken.mp4``."""
    folder = tmp_path_factory.mktemp("videos")
    with av.open(str(folder / "ramp.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = Fraction(1, 10)
        for number in range(40):
            picture = np.full((48, 64, 3), 6 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    times = [("00:00:00,500", "00:00:01,000", "first line"), ("00:00:02,100", "00:00:03,900", "second line")]
    blocks = [f"{number}\n{start} --> {end}\n{text}\n" for number, (start, end, text) in enumerate(times, start=1)]
    (folder / "ramp.srt").write_text("\n".join(blocks))
    av.VideoFrame.from_ndarray(np.full((10, 12, 3), 90, dtype=np.uint8), format="rgb24").to_image().save(
        folder / "grey.png"
    )
    (folder / "broken.mp4").write_bytes(b"this is not a video" * 50)
    return folder


@pytest.fixture
def write_rows(video_folder: Path) -> Callable[..., Path]:
    """Write rows to ``<name>.jsonl`` beside the videos and return the path."""

    def write(rows: list[dict[str, Any]], name: str = "rows") -> Path:
        path = video_folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def video_row() -> Callable[..., dict[str, Any]]:
    """A row with one question about ``ramp.mp4`` (or another file)."""

    def row(number: int, path: str = "ramp.mp4", **changes: Any) -> dict[str, Any]:
        return {
            "id": f"row-{number}",
            "media": [{"type": "video", "path": path}],
            "conversation": [
                {"role": "user", "text": f"<video>\nWhich digit is number {number}?"},
                {"role": "assistant", "text": str(number)},
            ],
            **changes,
        }

    return row


@pytest.fixture(scope="session")
def processor_folder(processor: LlamaVidProcessor, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_module(processor_folder: str, write_rows: Callable[..., Path]) -> Callable[..., ManifestDataModule]:
    """A data module whose training, validation and test rows are the same; batches of 2."""

    def make(rows: list[dict[str, Any]], **changes: Any) -> ManifestDataModule:
        loading = LoadingOptions(**{"batch_size": 2, "seed": 5, **changes.pop("loading", {})})
        path = str(write_rows(rows, "data"))
        return ManifestDataModule(processor_folder, train=path, val=path, test=path, loading=loading, **changes)

    return make
