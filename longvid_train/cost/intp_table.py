"""INTP's Table 1 (arXiv 2409.12963), to the printed digit, with what its numbers really are.

The table was made with LLM-Viewer's roofline. It reproduces with 256 tokens a frame (the model has 257: its class token
is kept), the decode step of Vicuna-7B after that many tokens, and:

- operations in G, not "TB"; the head counts one operation a multiply-add, everything else two;
- the memory bandwidth of an RTX A6000, 768 GB/s, not of the A100 in the caption;
- weights without the embedding table and the head in "total memory", with the head in the time;
- no scales or zero points in the quantised cache;
- scores and softmax that pass through memory four times, in 16 bits.

One printed number is a slip: 32 frames in INT2 cannot take as long as in FP16 (22.9); the same formula gives 18.0.
"""

from dataclasses import dataclass

from longvid_train.cost.decoder import DecoderShape

VICUNA_7B = DecoderShape(
    layers=32, width=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128, vocabulary=32000
)
TOKENS_A_FRAME = 256
A6000_BYTES_PER_S = 768e9
ACTIVATION_BYTES = 2
SCORE_PASSES = 4
"""Scores are written, read, written as weights and read again."""
SOFTMAX_OPS = 5
NORM_OPS = 7

ROWS = ((8, 16), (16, 16), (16, 2), (32, 16), (32, 2), (64, 16), (64, 2), (128, 16), (128, 2))
"""Frames and bits of a cached number, in the table's order."""

PRINTED = {
    (8, 16): ("14.2", "18.6", "14.0", "1.1"),
    (16, 16): ("15.3", "20.1", "15.1", "2.1"),
    (16, 2): ("15.3", "17.6", "13.2", "0.3"),
    (32, 16): ("17.4", "22.9", "17.2", "4.3"),
    (32, 2): ("17.4", "22.9", "13.5", "0.5"),
    (64, 16): ("21.8", "28.6", "21.5", "8.6"),
    (64, 2): ("21.8", "18.8", "14.0", "1.1"),
    (128, 16): ("30.4", "39.9", "30.1", "17.2"),
    (128, 2): ("30.4", "20.4", "15.1", "2.1"),
}
"""The paper's numbers by frames and bits of a cached number, slips included: OPs, decode (ms), total (GB), KV (GB)."""

ERRATA = (
    "operations are in G (1e9), not TB",
    "times use 768 GB/s, an RTX A6000, not the A100 of the caption",
    "32 frames, INT2: 18.0 ms; the printed 22.9 repeats the FP16 row",
    "256 tokens a frame; the model keeps its class token and has 257",
    "scales, zero points, embedding table and head are left out of the memory",
)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row; numbers unrounded.

    Attributes:
        frames: of the video.
        kv_bits: bits of a cached number.
        ops_g: operations of one decode step, in 1e9.
        decode_ms: time of one decode step.
        total_gb: weights of the layers and the cache, in 1e9 bytes.
        kv_gb: the cache, in 1e9 bytes.
    """

    frames: int
    kv_bits: int
    ops_g: float
    decode_ms: float
    total_gb: float
    kv_gb: float


def table_rows() -> list[TableRow]:
    """All rows in the table's order."""
    return [_row(frames, bits) for frames, bits in ROWS]


def _row(frames: int, kv_bits: int) -> TableRow:
    shape, tokens = VICUNA_7B, frames * TOKENS_A_FRAME
    scores = shape.layers * shape.heads * tokens
    vectors = shape.layers * (2 * NORM_OPS + 2) * shape.width
    head = shape.head_elements
    ops = shape.linear_ops(1) + head + shape.attention_ops(tokens) + SOFTMAX_OPS * scores + vectors
    weight_bytes = ACTIVATION_BYTES * shape.matrix_elements
    kv_bytes = shape.kv_values_a_token * tokens * kv_bits / 8
    moved = weight_bytes + ACTIVATION_BYTES * (head + SCORE_PASSES * scores + _vectors_moved(shape)) + kv_bytes
    return TableRow(
        frames=frames,
        kv_bits=kv_bits,
        ops_g=ops / 1e9,
        decode_ms=1e3 * moved / A6000_BYTES_PER_S,
        total_gb=(weight_bytes + kv_bytes) / 1e9,
        kv_gb=kv_bytes / 1e9,
    )


def _vectors_moved(shape: DecoderShape) -> int:
    """Inputs and outputs of the matrices, norms and sums of one token, as LLM-Viewer counts them: each read and
    written by its own kernel."""
    attention = 2 * (shape.width + shape.query_width) + 2 * (shape.width + shape.kv_width)
    mlp = 3 * (shape.width + shape.intermediate)
    norms_and_sums = 4 * 2 * shape.width
    return shape.layers * (attention + mlp + norms_and_sums)
