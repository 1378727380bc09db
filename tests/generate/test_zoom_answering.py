"""Overview, draft, zoom and answer on a tiny model, against transformers' attention and prompts read from scratch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from longvid_train.generate.generation import generate_prompts
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.zoom.answering import ZoomedPrompt, ZoomOutcome, top_frames
from longvid_train.kvcache.attention import attending_on_codes
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.kvcache.watch import WATCHED_NAME, AttentionWatch
from longvid_train.models.splice import embed_and_splice
from tests.generate.zoom_models import (
    PLACEHOLDER,
    answering_of,
    decoder_of,
    frame_tokens,
    plan_of,
    prompt_of,
    tiny_model,
)

OPTIONS = GenerationOptions(max_new_tokens=12)
NO_ADJUSTING = {"adjusted_tokens": 0}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def plain(model: Any, ids: torch.Tensor, tokens: torch.Tensor, options: GenerationOptions, *ends: int) -> str:
    """Vanilla decoding of the same tokens."""
    (generated,) = generate_prompts(
        model, decoder_of(*ends), [ids], [tokens], options, placeholder_id=PLACEHOLDER, prefill_chunk=16
    )
    return generated.text


def longer(
    prompt: ZoomedPrompt, outcome: ZoomOutcome, *, behind_question: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt with the chosen frames where the settings say, written out by hand."""
    places = [place for place, frame in enumerate(outcome.trace.overview) if frame.chosen]
    zoomed = prompt.zoom_in(tuple(places))
    own = prompt.overview
    ids = [PLACEHOLDER] * len(zoomed)
    head, tail = [1, 7], [12, 13, 14, 15]
    if behind_question:
        return torch.tensor([*head, *[PLACEHOLDER] * len(own), *tail[:-1], *ids, tail[-1]]), torch.cat([own, zoomed])
    ids = [*head, *[PLACEHOLDER] * (len(own) + len(zoomed)), *tail]
    return torch.tensor(ids), torch.cat([own[:-1], zoomed, own[-1:]])


def eager_row(model: Any, ids: torch.Tensor, tokens: torch.Tensor, layers: range) -> torch.Tensor:
    """Mean over heads and layers of the last query's attention, by transformers' eager attention."""
    decoder = model.get_decoder()
    embeds = embed_and_splice(model.get_input_embeddings(), ids[None], tokens, PLACEHOLDER)
    decoder.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = decoder(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
    finally:
        decoder.set_attn_implementation("sdpa")
    return torch.stack([attentions[layer][0, :, -1] for layer in layers]).mean((0, 1))


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 3}])
def test_without_zoom_and_adjustment_it_is_vanilla(model: Any, sampled: dict[str, Any]) -> None:
    prompt = prompt_of(model, plan_of(zoomed=0))
    options = replace(OPTIONS, **sampled)
    outcome = answering_of(model, zoomed_frames=0, **NO_ADJUSTING).answer(prompt, options)
    assert outcome.generated.text == plain(model, prompt.input_ids, prompt.overview, options)
    assert outcome.generated.new_tokens == 12
    trace = outcome.trace
    assert (trace.zoom_tokens, trace.draft, trace.adjustments, trace.notes) == (0, "", (), ())
    assert all(frame.score is None and not frame.chosen for frame in trace.overview)
    assert trace.seconds.augmenter_s == 0


@pytest.mark.parametrize("prefill_chunk", [1, 7, 1000])
@pytest.mark.parametrize("classed", [False, True])
def test_the_zoomed_answer_is_that_of_the_longer_prompt(model: Any, prefill_chunk: int, classed: bool) -> None:
    """Keys and values of text and overview, reused, are those that a prompt read from scratch has."""
    plan = plan_of(classed=classed)
    prompt = prompt_of(model, plan)
    answering = answering_of(model, prefill_chunk=prefill_chunk, draft_tokens=5, zoomed_frames=2, **NO_ADJUSTING)
    outcome = answering.answer(prompt, OPTIONS)
    places = tuple(place for place, frame in enumerate(outcome.trace.overview) if frame.chosen)
    zoomed, own = prompt.zoom_in(places), prompt.overview
    frames = plan.overview.frame_tokens
    ids = torch.tensor([1, 7, *[PLACEHOLDER] * (len(own) + len(zoomed)), 12, 13, 14, 15])
    tokens = torch.cat([own[:frames], zoomed, own[frames:]])
    assert outcome.generated.text == plain(model, ids, tokens, OPTIONS)
    whole = DynamicCache(config=model.config.get_text_config())
    embeds = embed_and_splice(model.get_input_embeddings(), ids[None], tokens, PLACEHOLDER)
    with torch.no_grad():
        model.get_decoder()(inputs_embeds=embeds, past_key_values=whole)
    for kept, read in zip(outcome.cache.layers, whole.layers, strict=True):
        torch.testing.assert_close(kept.keys[:, :, : len(ids)], read.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(kept.values[:, :, : len(ids)], read.values, atol=1e-4, rtol=1e-4)


def test_text_and_overview_are_read_once(model: Any) -> None:
    """The decoder sees every position of text and overview in one forward pass only."""
    seen: list[int] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.extend(kwargs["position_ids"].flatten().tolist()), with_kwargs=True
    )
    prompt = prompt_of(model, plan_of())
    try:
        answering_of(model, draft_tokens=5, zoomed_frames=2, **NO_ADJUSTING).answer(prompt, OPTIONS)
    finally:
        hook.remove()
    overview_end = 2 + 6 * 4
    assert [seen.count(place) for place in range(overview_end)] == [1] * overview_end
    first = len(prompt.input_ids) + 4
    assert seen[:first] == list(range(first)), "prompt and all but the last token of the draft"
    assert seen[first:] == list(range(overview_end, overview_end + 18 + 5 + 11)), "frames, newline and question, answer"


def test_behind_the_question_only_the_last_token_is_read_again(model: Any) -> None:
    prompt = prompt_of(model, plan_of())
    settings = {"draft_tokens": 5, "zoomed_frames": 2, "zoomed_after": "question", **NO_ADJUSTING}
    outcome = answering_of(model, **settings).answer(prompt, OPTIONS)
    ids, tokens = longer(prompt, outcome, behind_question=True)
    assert outcome.generated.text == plain(model, ids, tokens, OPTIONS)


@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_scores_are_eager_attention_of_the_last_drafted_step(model: Any, draft_tokens: int) -> None:
    """Step ``s`` is the one that chose the ``s``-th token: its query is the token before."""
    prompt = prompt_of(model, plan_of())
    outcome = answering_of(model, draft_tokens=draft_tokens, zoomed_frames=2, **NO_ADJUSTING).answer(prompt, OPTIONS)
    trace = outcome.trace
    drafted = [int(word.strip("W.")) for word in trace.draft.split()]
    assert len(drafted) == trace.draft_tokens == draft_tokens
    ids = torch.cat([prompt.input_ids, torch.tensor(drafted[:-1], dtype=torch.int64)])
    row = eager_row(model, ids, prompt.overview, range(1, 3))
    wanted = row[2 : 2 + 24].reshape(6, 4).mean(1)
    scores = torch.tensor([frame.score for frame in trace.overview])
    torch.testing.assert_close(scores, wanted, atol=1e-6, rtol=1e-4)
    best = set(wanted.topk(2).indices.tolist())
    assert {place for place, frame in enumerate(trace.overview) if frame.chosen} == best
    assert [frame.frame for frame in trace.overview] == [0, 1, 3, 4, 6, 7]


def test_ties_go_to_the_earlier_frame_and_time_order_stays() -> None:
    assert top_frames(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3) == (1, 2, 3)
    assert top_frames(torch.ones(4), 2) == (0, 1)


def test_an_answer_that_ends_in_the_draft_stands(model: Any) -> None:
    prompt = prompt_of(model, plan_of())
    free = plain(model, prompt.input_ids, prompt.overview, OPTIONS)
    words = [int(word.strip("W.")) for word in free.split()]
    end = next(word for place, word in enumerate(words) if place >= 2 and word not in words[:place])
    length = words.index(end) + 1
    heard: list[str] = []
    outcome = answering_of(model, end, draft_tokens=length, zoomed_frames=2).answer(prompt, OPTIONS, heard.append)
    assert outcome.generated.new_tokens == length
    assert outcome.generated.text == plain(model, prompt.input_ids, prompt.overview, OPTIONS, end)
    assert "".join(heard) == outcome.generated.text
    trace = outcome.trace
    assert trace.zoom_tokens == 0
    assert not trace.chosen
    assert trace.notes == (
        f"the answer ended after {length} tokens, before frames were chosen (draft_tokens = {length}): the overview's "
        "answer stands",
    )
    assert trace.sentences[-1].new_tokens == length
    later = answering_of(model, end, draft_tokens=length - 1, zoomed_frames=2).answer(prompt, OPTIONS)
    assert later.trace.zoom_tokens == 18


def test_a_short_answer_chooses_after_its_last_token(model: Any) -> None:
    outcome = answering_of(model, zoomed_frames=2).answer(
        prompt_of(model, plan_of()), GenerationOptions(max_new_tokens=3)
    )
    assert outcome.trace.draft_tokens == 3
    assert outcome.generated.new_tokens == 3
    assert outcome.trace.zoom_tokens == 18
    assert outcome.trace.notes[0].startswith("frames were chosen after 3 tokens, not draft_tokens = 20")


def test_the_answer_streams_and_the_draft_does_not(model: Any) -> None:
    heard: list[str] = []
    outcome = answering_of(model, draft_tokens=5, zoomed_frames=2).answer(
        prompt_of(model, plan_of()), OPTIONS, heard.append
    )
    assert "".join(heard) == outcome.generated.text
    assert len(heard) > 5


class PhysicalCopies:
    """Algorithm 1 done literally: eager attention, and keys and values copied and removed at sentence ends."""

    def __init__(self, model: Any, prompt: ZoomedPrompt, layers: range) -> None:
        self.model, self.layers = model, layers
        self.cache = DynamicCache(config=model.config.get_text_config())
        self.ids = prompt.input_ids
        frames = prompt.plan.overview.frame_tokens
        self.token = torch.full((len(self.ids) - 1,), -1)
        self.token[2 : 2 + frames] = torch.arange(frames)
        self.embeds = embed_and_splice(model.get_input_embeddings(), self.ids[None], prompt.overview, PLACEHOLDER)

    def step(self, embeds: torch.Tensor, position: int) -> tuple[int, torch.Tensor]:
        positions = torch.arange(position, position + embeds.shape[1])[None]
        # copies share a position, so the mask cannot follow from the cache's length
        output = self.model.get_decoder()(
            inputs_embeds=embeds, position_ids=positions, past_key_values=self.cache, output_attentions=True
        )
        row = torch.stack([output.attentions[layer][0, :, -1] for layer in self.layers]).mean((0, 1))
        return int(self.model.lm_head(output.last_hidden_state[0, -1]).argmax()), row

    @torch.no_grad()
    def answer(self, new_tokens: int, every: int, most: int) -> tuple[list[int], list[tuple[set[int], set[int]]]]:
        self.model.get_decoder().set_attn_implementation("eager")
        try:
            return self._answer(new_tokens, every, most)
        finally:
            self.model.get_decoder().set_attn_implementation("sdpa")

    def _answer(self, new_tokens: int, every: int, most: int) -> tuple[list[int], list[tuple[set[int], set[int]]]]:
        self.step(self.embeds[:, :-1], 0)
        made: list[int] = []
        adjusted, embeds, sentences = [], self.embeds[:, -1:], 0
        for number in range(new_tokens):
            token, row = self.step(embeds, len(self.ids) - 1 + number)
            self.token = torch.cat([self.token, torch.tensor([-1])])
            made.append(token)
            embeds = self.model.get_input_embeddings()(torch.tensor([[token]]))
            ended = sum(one % 3 == 0 for one in made[:-1])  # seen with the first token of the next sentence
            if ended // every > sentences // every:
                adjusted.append(self.adjust(row, most))
            sentences = ended
        return made, adjusted

    def adjust(self, row: torch.Tensor, most: int) -> tuple[set[int], set[int]]:
        of_token: dict[int, float] = {}
        for column, token in enumerate(self.token.tolist()):
            if token >= 0:
                of_token[token] = float(row[column])
        ranked = sorted(of_token, key=lambda token: -of_token[token])
        copied, dropped = set(ranked[:most]), set(ranked[-most:])
        index: list[int] = []
        gone: set[int] = set()
        for column, token in enumerate(self.token.tolist()):
            if token in dropped and token not in gone:
                gone.add(token)
                continue
            index += [column, column] if token in copied and self.token.tolist().index(token) == column else [column]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]
        self.token = self.token[index]
        return copied, dropped


@pytest.mark.parametrize(("every", "most", "share"), [(1, 2, 1.0), (2, 3, 1.0), (1, 3, 0.0), (1, 2, 0.1)])
def test_adjustment_is_algorithm_1_with_real_copies(model: Any, every: int, most: int, share: float) -> None:
    """With every share of removed tokens at which the cache is rewritten; 1.0 never does, 0.0 always."""
    prompt = prompt_of(model, plan_of(zoomed=0))
    settings = {"zoomed_frames": 0, "adjusted_tokens": most, "every_sentences": every}
    options = GenerationOptions(max_new_tokens=40)
    outcome = answering_of(model, compact_share=share, **settings).answer(prompt, options)
    made, adjusted = PhysicalCopies(model, prompt, range(1, 3)).answer(40, every, most)
    assert len(adjusted) >= 3, "the model must end sentences"
    assert [int(word.strip("W.")) for word in outcome.generated.text.split()] == made
    token_of = {
        (picture, row, column): 4 * picture + 2 * row + column
        for picture in range(6)
        for row in (0, 1)
        for column in (0, 1)
    }
    found = [
        tuple(
            {token_of[one.picture, one.row, one.column] for one in part}
            for part in (adjustment.copied, adjustment.dropped)
        )
        for adjustment in outcome.trace.adjustments
    ]
    assert found == adjusted
    assert {adjustment.visual_tokens for adjustment in outcome.trace.adjustments} == {24}
    unadjusted = plain(model, prompt.input_ids, prompt.overview, options)
    assert outcome.generated.text != unadjusted, "adjusting must make a difference"
    removed = outcome.cache.layers[0].removed
    assert (removed > 0) == (share < 1.0)


def test_codes_are_adjusted_as_full_precision_is(model: Any) -> None:
    """The preset that codes without error: the same answer, choices and adjustments."""
    plan = plan_of()
    settings = {"draft_tokens": 5, "zoomed_frames": 2, "adjusted_tokens": 3, "every_sentences": 1}
    options = GenerationOptions(max_new_tokens=20)
    own = answering_of(model, **settings).answer(prompt_of(model, plan), options)
    policy = replace(PRESETS["full"], recent_tokens=8, flush_tokens=4)
    cache = QuantizedKVCache(uncalibrated(policy, cache_shape(model.config)), page_tokens=16)
    with attending_on_codes(model):
        coded = answering_of(model, **settings).answer(prompt_of(model, plan), options, cache=cache)
    assert cache.layers[0].pages
    assert coded.generated == own.generated
    assert coded.trace.adjustments == own.trace.adjustments
    assert len(own.trace.adjustments) >= 3
    assert [frame.chosen for frame in coded.trace.overview] == [frame.chosen for frame in own.trace.overview]


def test_a_sentences_heat_is_eager_attention_of_its_last_token(model: Any) -> None:
    prompt = prompt_of(model, plan_of())
    outcome = answering_of(model, draft_tokens=5, zoomed_frames=2, **NO_ADJUSTING).answer(prompt, OPTIONS)
    trace = outcome.trace
    ids, tokens = longer(prompt, outcome)
    made = [int(word.strip("W.")) for word in trace.answer.split()]
    for sentence in trace.sentences[:-1]:
        seen = torch.tensor(made[: sentence.new_tokens - 1])
        assert int(seen[-1]) % 3 == 0
        assert sentence.text.endswith(f"W{int(seen[-1])}.")
        row = eager_row(model, torch.cat([ids, seen]), tokens, range(1, 3))
        visual = row[2 : 2 + 24 + 18]
        wanted = [*visual[:24].reshape(6, 4).sum(1).tolist(), *visual[24:].reshape(2, 9).sum(1).tolist()]
        assert sentence.frame_mass == pytest.approx(wanted, abs=1e-5)
        assert sentence.cell_mass[6] == pytest.approx(visual[24:33].tolist(), abs=1e-5)
    assert [picture.pathway for picture in trace.pictures] == ["overview"] * 6 + ["zoom"] * 2
    assert [picture.frame for picture in trace.pictures[6:]] == [frame.frame for frame in trace.chosen]
    assert " ".join(sentence.text for sentence in trace.sentences) == trace.answer
    assert len(trace.sentences) > 2


@pytest.mark.parametrize("adjusted", [0, 3])
def test_only_attention_that_somebody_needs_is_read(model: Any, monkeypatch: pytest.MonkeyPatch, adjusted: int) -> None:
    """Without sentences in the trace: the same answer, one row for the frames and one an adjustment; without
    adjustments the answer's tokens pass a model that nobody watches.
    """
    settings = {"draft_tokens": 5, "zoomed_frames": 2, "adjusted_tokens": adjusted, "every_sentences": 2}
    rows, attention, row = [0], [], AttentionWatch.row

    def counted(watch: AttentionWatch) -> torch.Tensor:
        rows[0] += 1
        return row(watch)

    monkeypatch.setattr(AttentionWatch, "row", counted)
    prompt = prompt_of(model, plan_of())
    told = answering_of(model, **settings).answer(prompt, OPTIONS)
    assert len(told.trace.sentences) > 2
    assert rows[0] > 1 + len(told.trace.adjustments)
    rows[0] = 0
    noting = model.get_decoder().register_forward_pre_hook(
        lambda decoder, _args: attention.append(decoder.config._attn_implementation)
    )
    try:
        brief = answering_of(model, sentence_attention=False, **settings).answer(prompt, OPTIONS)
    finally:
        noting.remove()
    assert brief.generated == told.generated
    assert brief.trace.adjustments == told.trace.adjustments
    assert bool(brief.trace.adjustments) == bool(adjusted)
    assert brief.trace.overview == told.trace.overview
    assert brief.trace.sentences == ()
    assert rows[0] == 1 + len(brief.trace.adjustments)
    assert attention[0] == WATCHED_NAME
    assert attention[-1] == (WATCHED_NAME if adjusted else "sdpa")


def test_class_tokens_count_to_a_frame_and_are_no_cells(model: Any) -> None:
    prompt = prompt_of(model, plan_of(classed=True))
    trace = answering_of(model, draft_tokens=3, zoomed_frames=2).answer(prompt, OPTIONS).trace
    sentence = trace.sentences[0]
    assert [len(cells) for cells in sentence.cell_mass] == [4] * 6 + [9] * 2
    assert all(mass > sum(cells) for mass, cells in zip(sentence.frame_mass, sentence.cell_mass, strict=True))


def test_the_model_is_as_it_was_also_after_an_error(model: Any) -> None:
    prompt = prompt_of(model, plan_of())

    def broken(chosen: tuple[int, ...]) -> torch.Tensor:
        raise RuntimeError("no such frames")

    decoder = model.get_decoder()
    with pytest.raises(RuntimeError, match="no such frames"):
        answering_of(model, draft_tokens=3, zoomed_frames=2).answer(replace(prompt, zoom_in=broken), OPTIONS)
    assert decoder.config._attn_implementation == "sdpa"
    assert not any(layer.self_attn._forward_pre_hooks for layer in decoder.layers)


def test_tokens_of_the_caller_are_used(model: Any) -> None:
    """Frames in full are those of the chosen places."""
    plan = plan_of()
    asked: list[tuple[int, ...]] = []
    prompt = prompt_of(model, plan)
    in_full = frame_tokens(plan, 40)

    def noted(chosen: tuple[int, ...]) -> torch.Tensor:
        asked.append(chosen)
        return in_full[list(chosen)].flatten(0, 1)

    outcome = answering_of(model, draft_tokens=3, zoomed_frames=2).answer(replace(prompt, zoom_in=noted), OPTIONS)
    assert asked == [tuple(place for place, frame in enumerate(outcome.trace.overview) if frame.chosen)]
