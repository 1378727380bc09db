"""The cost of answering one question about one video: encode, prefill, decode.

Matrix products count, a multiply-add as two; norms, rotations, softmax and activations do not: they are far below one
percent of a prefill, and a decode step waits for memory. Causal attention counts the pairs that the mask leaves.
"""

from dataclasses import dataclass

from longvid_train.cost.decoder import DecoderShape, causal_pairs
from longvid_train.cost.hardware import Hardware
from longvid_train.cost.kv_storage import KvStorage
from longvid_train.cost.roofline import Kernel, total_bytes, total_ms, total_ops


@dataclass(frozen=True, kw_only=True)
class VisionCost:
    """What a model's vision part costs, in the order a video passes it.

    Attributes:
        ops: operations of encoding, resampling and projecting all frames.
        elements: parameters of the vision part.
        working_bytes: alive at once while one chunk of frames is encoded.
        chunks: how many times the vision weights are read.
    """

    ops: int
    elements: int
    working_bytes: int
    chunks: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """One batch of equal questions.

    Attributes:
        visual_tokens: of the video.
        text_tokens: of the prompt around it.
        new_tokens: of the answer.
        rows: questions answered at once.
        prefill_chunk: tokens of the prompt that pass the decoder at once; the last one passes alone, as the first step
            of generation. ``None`` for all at once.
    """

    visual_tokens: int
    text_tokens: int
    new_tokens: int
    rows: int = 1
    prefill_chunk: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Visual and text tokens."""
        return self.visual_tokens + self.text_tokens

    @property
    def sequence_tokens(self) -> int:
        """Prompt and answer: what the window must hold."""
        return self.prompt_tokens + self.new_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of a row in the cache when the answer ends: its last token is never fed back."""
        return self.prompt_tokens + max(0, self.new_tokens - 1)

    @property
    def split(self) -> bool:
        """Whether some queries of more than one token attend to a cache of earlier ones."""
        return self.chunks[1:] > [1]

    @property
    def chunks(self) -> list[int]:
        """Tokens of each prefill step."""
        if self.prefill_chunk is None:
            return [self.prompt_tokens]
        whole, rest = divmod(self.prompt_tokens - 1, self.prefill_chunk)
        return [self.prefill_chunk] * whole + [rest] * (rest > 0) + [1]


@dataclass(frozen=True, kw_only=True)
class InferenceCost:
    """What a request needs on one device.

    Attributes:
        sequence_tokens: of one row: prompt and answer.
        encode_ops: operations of the vision part.
        prefill_ops: operations of the decoder on the prompt, and of one position's logits.
        decode_ops: operations of the last decode step.
        ops: of the whole request.
        bytes_moved: through the device's memory, in the whole request.
        weight_bytes: all parameters.
        kv_bytes: the cache when the answer ends.
        activation_bytes: the most that is alive beside weights and cache.
        total_bytes: the peak of the three together.
        encode_ms: roofline time of the vision part.
        prefill_ms: roofline time of the decoder on the prompt.
        decode_ms: roofline time of the last decode step, the slowest.
        answer_ms: all three for the whole answer.
        decode_bound: what the last decode step waits for, ``"memory"`` or ``"compute"``.
    """

    sequence_tokens: int
    encode_ops: int
    prefill_ops: int
    decode_ops: int
    ops: int
    bytes_moved: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    total_bytes: int
    encode_ms: float
    prefill_ms: float
    decode_ms: float
    answer_ms: float
    decode_bound: str


def inference_cost(
    shape: DecoderShape,
    vision: VisionCost,
    request: Request,
    storage: KvStorage,
    hardware: Hardware,
    *,
    weight_value_bytes: int = 2,
) -> InferenceCost:
    """Plan one request.

    Args:
        shape: the language model.
        vision: everything in front of it.
        request: what is asked.
        storage: how its cache stores keys and values.
        hardware: where it runs.
        weight_value_bytes: bytes of a parameter and of an activation.
    """
    encode = [_encode_kernel(vision, weight_value_bytes)]
    prefill = _prefill_kernels(shape, request, storage, weight_value_bytes)
    steps = [
        _decode_kernels(shape, request, storage, weight_value_bytes, request.prompt_tokens + step)
        for step in range(request.new_tokens)
    ]
    last = steps[-1] if steps else []
    everything = [*encode, *prefill, *(kernel for step in steps for kernel in step)]
    weight_bytes = weight_value_bytes * (shape.elements + vision.elements)
    kv_bytes = storage.stored_bytes(shape, request.cached_tokens, request.rows)
    encode_peak = vision.working_bytes
    prefill_peak = _prefill_activations(shape, request, storage, weight_value_bytes)
    activation_bytes = max(encode_peak, prefill_peak)
    return InferenceCost(
        sequence_tokens=request.sequence_tokens,
        encode_ops=total_ops(encode),
        prefill_ops=total_ops(prefill),
        decode_ops=total_ops(last),
        ops=total_ops(everything),
        bytes_moved=total_bytes(everything),
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        activation_bytes=activation_bytes,
        total_bytes=weight_bytes + max(encode_peak, prefill_peak + kv_bytes),
        encode_ms=total_ms(encode, hardware),
        prefill_ms=total_ms(prefill, hardware),
        decode_ms=total_ms(last, hardware),
        answer_ms=total_ms(everything, hardware),
        decode_bound=max(last, key=lambda kernel: kernel.time_ms(hardware)).bound(hardware) if last else "memory",
    )


def _encode_kernel(vision: VisionCost, value_bytes: int) -> Kernel:
    moved = vision.chunks * (value_bytes * vision.elements + 2 * vision.working_bytes)
    return Kernel(name="encode", ops=vision.ops, bytes=moved)


def _prefill_kernels(shape: DecoderShape, request: Request, storage: KvStorage, value_bytes: int) -> list[Kernel]:
    kernels, past = [], 0
    for tokens in request.chunks:
        kernels += _decoder_kernels(shape, request.rows, tokens, past, storage, value_bytes, causal=True)
        past += tokens
    return [*kernels, _head_kernel(shape, request.rows, value_bytes)]


def _decode_kernels(
    shape: DecoderShape, request: Request, storage: KvStorage, value_bytes: int, past: int
) -> list[Kernel]:
    layers = _decoder_kernels(shape, request.rows, 1, past, storage, value_bytes, causal=False)
    return [*layers, _head_kernel(shape, request.rows, value_bytes)]


def _decoder_kernels(
    shape: DecoderShape, rows: int, tokens: int, past: int, storage: KvStorage, value_bytes: int, *, causal: bool
) -> list[Kernel]:
    """The matrices and the attention of all layers for ``tokens`` new tokens behind ``past`` cached ones."""
    pairs = rows * (causal_pairs(tokens, past) if causal else tokens * (past + tokens))
    crossing = rows * tokens * value_bytes
    a_layer = 4 * shape.width + 2 * shape.query_width + 2 * shape.kv_width + 3 * shape.intermediate
    matrices = value_bytes * (shape.matrix_elements + shape.vector_elements) + crossing * shape.layers * a_layer
    cached = storage.stored_bytes(shape, past + tokens, rows)
    return [
        Kernel(name="matrices", ops=shape.linear_ops(rows * tokens), bytes=matrices),
        Kernel(
            name="attention",
            ops=shape.attention_ops(pairs),
            bytes=cached + 2 * crossing * shape.layers * shape.query_width,
        ),
    ]


def _head_kernel(shape: DecoderShape, rows: int, value_bytes: int) -> Kernel:
    """Logits of one position a row."""
    moved = value_bytes * (shape.head_elements + rows * (shape.width + shape.vocabulary))
    return Kernel(name="head", ops=shape.head_ops(rows), bytes=moved)


def _prefill_activations(shape: DecoderShape, request: Request, storage: KvStorage, value_bytes: int) -> int:
    """The visual tokens, the chunk they are spliced into, and the most that one layer keeps alive of a chunk; logits
    of one position in float32.

    Beside the layer's input, its residual and its norm stand either queries, keys, values and what the rotation makes
    of them; or queries, their results and what attention to earlier chunks needs; or the sum behind the attention and
    three inner activations of the MLP (the gate, the other branch and their product). The rotation's sines and cosines
    stay all the time, and from the second chunk on the causal mask.
    """
    longest = max(request.chunks)
    crossing = value_bytes * request.rows * longest
    stages = [
        crossing * (3 * shape.width + 2 * shape.query_width + 5 * shape.kv_width),
        crossing * (4 * shape.width + 3 * shape.intermediate),
    ]
    mask = 0
    if request.split:
        mask = request.rows * longest * request.prompt_tokens
        reading = storage.attention_bytes(shape, longest, request.prompt_tokens, request.rows)
        stages.append(crossing * 2 * (shape.width + shape.query_width + shape.kv_width) + reading)
    visual = value_bytes * request.rows * request.visual_tokens * shape.width
    logits = 4 * request.rows * shape.vocabulary
    return max(stages) + mask + crossing * (shape.width + 2 * shape.head_dim) + visual + logits
