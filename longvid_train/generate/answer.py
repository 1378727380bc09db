"""One answer with everything it cost."""

import resource
import sys
from dataclasses import dataclass

import torch

from longvid_train.generate.zoom.trace import ZoomTrace


@dataclass(frozen=True, kw_only=True)
class ShownMedium:
    """One medium an answer is about: its file, ``image`` or ``video``, its frames' times and who decoded it."""

    path: str
    type: str
    frames: int
    timestamps_s: tuple[float, ...]
    duration_s: float
    reader: str


@dataclass(frozen=True, kw_only=True)
class WindowUse:
    """The window an answer was made under.

    Attributes:
        kind: of the window, e.g. ``"visual_yarn"``; ``"none"`` extends nothing.
        measure: what it measures: ``"visual"`` tokens or the whole ``"language"`` sequence.
        tokens: of this input, so measured; the tokens that may be generated count to a sequence.
        trained_tokens: what the model was trained on, in the same measure: the window before.
        scale: ``s``; 1 changes nothing.
        language_tokens: the longest sequence it takes: the window after.
    """

    kind: str
    measure: str
    tokens: int
    trained_tokens: int
    scale: float
    language_tokens: int


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """The compressed KV cache of an answer, when its last token was made; of the whole batch when many were answered.

    Attributes:
        name: the preset, or the quantizer's folder.
        bits_per_number: of the coded keys and values, metadata included; 0 where nothing was coded yet.
        total_bytes: all that is allocated: the sum of the four that follow.
        coded_bytes: codes with their metadata.
        exact_bytes: sink and recent tokens in full precision.
        parameter_bytes: static parameters of the quantizer.
        row_bytes: what is known of rows: padding, positions, kinds of tokens.
    """

    name: str
    bits_per_number: float
    total_bytes: int
    coded_bytes: int
    exact_bytes: int
    parameter_bytes: int
    row_bytes: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer.

    Attributes:
        question: as asked.
        answer: the model's words, stripped.
        frames: distinct frames shown, an image being one.
        timestamps_s: time of each frame, over all media in order; an image's is 0.
        visual_tokens: visual tokens in the prompt, earlier questions' included.
        prompt_tokens: all tokens of the prompt.
        new_tokens: tokens generated, the end token included.
        seconds: wall-clock seconds from question to answer, the sum of the three that follow.
        decode_s: reading and preprocessing frames; 0 when an earlier question did it.
        encode_s: the vision tower; 0 likewise.
        generate_s: the text decoder and the language model; of the whole batch when many were answered at once.
        peak_bytes: on a CPU the largest resident memory of this process so far (the isolated decoder's not counted); on
            CUDA the most memory allocated on the device since the model was loaded.
        model: the checkpoint.
        dtype: of the weights, e.g. ``"float32"``.
        device: e.g. ``"cpu"``.
        reader: who decoded the media, joined by commas when several did.
        media: each medium's share of the above.
        plan: how the frames are shown, in words; empty without a token plan.
        window: see `WindowUse`.
        cache: see `CacheUse`; ``None`` where the adaptation leaves the cache in full precision.
        notes: lines for the user: what plan, window and zoom did, and what has no effect.
        trace: see `ZoomTrace`; ``None`` where the adaptation does not zoom.
    """

    question: str
    answer: str
    frames: int
    timestamps_s: tuple[float, ...]
    visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    decode_s: float
    encode_s: float
    generate_s: float
    peak_bytes: int
    model: str
    dtype: str
    device: str
    reader: str
    media: tuple[ShownMedium, ...]
    plan: str
    window: WindowUse
    cache: CacheUse | None
    notes: tuple[str, ...]
    trace: ZoomTrace | None


def peak_bytes(device: torch.device) -> int:
    """See `Answer`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
