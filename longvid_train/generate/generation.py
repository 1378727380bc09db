"""Open prompts to answers, with transformers' ``generate``.

``B`` rows, ``S`` tokens of the longest prompt, ``T_r`` visual tokens of row ``r``, ``H`` language-model width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache

from longvid_train.generate.decoding import AnswerDecoder, Generated
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.streaming import AnswerStreamer, OnText
from longvid_train.models.prefill import generate_from_tokens
from longvid_train.types import Batch


def generate_answers(
    model: Any,
    decoder: AnswerDecoder,
    batch: Batch,
    options: GenerationOptions,
    on_text: OnText | None = None,
) -> list[Generated]:
    """Answer every row of a collated batch; the model encodes its frames.

    Args:
        model: any backbone with transformers' ``generate``, in eval mode.
        decoder: see `AnswerDecoder`.
        batch: open prompts, padded on the left, on the model's device.
        options: how tokens are chosen.
        on_text: receives the text of a single row as it grows; with beam search, at the end and at once.

    Returns:
        One answer a row, in order.
    """
    prompt = batch["text"]["input_ids"]
    visual: Mapping[str, Any] = batch["visual"] or {}
    streamer = _streamer(decoder, options, on_text, len(prompt))
    with _seeded(options, prompt.device):
        output = model.generate(
            input_ids=prompt,
            attention_mask=batch["text"]["attention_mask"],
            **visual,
            **_keywords(decoder, options, streamer),
        )
    return _read(output[:, prompt.shape[1] :], decoder, on_text if streamer is None else None)


def generate_prompts(
    model: Any,
    decoder: AnswerDecoder,
    prompts: Sequence[torch.Tensor],
    visual_tokens: Sequence[torch.Tensor],
    options: GenerationOptions,
    on_text: OnText | None = None,
    *,
    placeholder_id: int,
    prefill_chunk: int,
    cache: Cache | None = None,
    stopping: StoppingCriteria | None = None,
) -> list[Generated]:
    """Answer prompts whose visual tokens are given, in one left-padded batch.

    Args:
        model: transformers' model, in eval mode.
        decoder: see `AnswerDecoder`.
        prompts: ``(S_r,)`` int64 each, with one ``placeholder_id`` a visual token.
        visual_tokens: ``(T_r, H)`` each, on any device.
        options: how tokens are chosen.
        on_text: as `generate_answers`.
        placeholder_id: stands for one visual token.
        prefill_chunk: positions that pass the decoder at once.
        cache: as ``generate_from_tokens``.
        stopping: sees the ids after every token, and may end answers.

    Returns:
        One answer a prompt, in order.
    """
    device = model.get_input_embeddings().weight.device
    ids = pad_sequence(list(prompts), batch_first=True, padding_value=decoder.pad_token_id, padding_side="left")
    mask = pad_sequence([torch.ones_like(one) for one in prompts], batch_first=True, padding_side="left")
    streamer = _streamer(decoder, options, on_text, len(prompts))
    with _seeded(options, device):
        output = generate_from_tokens(
            model,
            ids.to(device),
            mask.to(device),
            visual_tokens,
            placeholder_id=placeholder_id,
            prefill_chunk=prefill_chunk,
            cache=cache,
            stopping_criteria=None if stopping is None else StoppingCriteriaList([stopping]),
            **_keywords(decoder, options, streamer),
        )
    return _read(output[:, ids.shape[1] :], decoder, on_text if streamer is None else None)


def _streamer(
    decoder: AnswerDecoder, options: GenerationOptions, on_text: OnText | None, rows: int
) -> AnswerStreamer | None:
    assert on_text is None or rows == 1, "only a single row can be streamed"
    return AnswerStreamer(decoder.text, on_text) if on_text is not None and options.num_beams == 1 else None


def _keywords(decoder: AnswerDecoder, options: GenerationOptions, streamer: AnswerStreamer | None) -> dict[str, Any]:
    return {
        "pad_token_id": decoder.pad_token_id,
        "eos_token_id": decoder.end_token_ids,
        "streamer": streamer,
        **options.keywords(),
    }


def _read(new_ids: torch.Tensor, decoder: AnswerDecoder, on_text: OnText | None) -> list[Generated]:
    answers = [decoder.generated(row) for row in new_ids.tolist()]
    if on_text is not None:
        on_text(answers[0].text)
    return answers


@contextmanager
def _seeded(options: GenerationOptions, device: torch.device) -> Iterator[None]:
    """Draw from ``options.seed`` and give the program's own random state back afterwards."""
    if not options.samples:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        yield
