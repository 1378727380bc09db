"""Prefill in chunks against one forward of everything, with transformers' own generation behind it."""

import pytest
import torch
from transformers import DynamicCache

from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import generate, multimodal_embeddings, video_tokens
from longvid_train.models.backbones.load import BACKBONES
from longvid_train.models.prefill import generate_from_tokens
from longvid_train.rope.extension import extended
from longvid_train.rope.scale import TokenCounts, TrainedWindows
from longvid_train.rope.yarn import YarnWindow
from tests.models import tiny_backbones as tiny

NAMES = sorted(tiny.BUILDERS)
SCORES = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def loaded(name):
    model = tiny.build(name).double()
    backbone = BACKBONES[type(model).__name__](model)
    plan_frames = 4
    plan = Adaptation().plan_frames(plan_frames, backbone.facts.grid)
    return backbone, video_tokens(backbone, tiny.pixels(model, plan_frames), plan)


def chunked(backbone, ids, tokens, chunk, mask=None, **options):
    return generate_from_tokens(
        backbone.model,
        ids,
        torch.ones_like(ids) if mask is None else mask,
        tokens,
        placeholder_id=backbone.facts.placeholder_id,
        prefill_chunk=chunk,
        **(SCORES | options),
    )


@pytest.mark.parametrize("chunk", [1, 5, 64, 4096])
@pytest.mark.parametrize("name", NAMES)
def test_every_new_tokens_logits_are_those_of_one_forward(name, chunk):
    """Reference: transformers' generate from the whole spliced embeddings, in float64."""
    backbone, tokens = loaded(name)
    ids = tiny.prompt(name, len(tokens))
    with torch.no_grad():
        whole = backbone.model.generate(inputs_embeds=multimodal_embeddings(backbone, ids, tokens), **SCORES)
    ours = chunked(backbone, ids, [tokens], chunk)
    assert torch.equal(ours.sequences[:, ids.shape[1] :], whole.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(whole.logits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [3, 4096])
def test_left_padding_moves_nothing(chunk):
    backbone, tokens = loaded("onevision")
    short = tiny.prompt("onevision", len(tokens))
    long = torch.cat([short[:, :1], torch.full((1, 7), 9), short[:, 1:]], dim=1)
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), short], dim=1)
    mask = torch.ones(2, long.shape[1], dtype=torch.long)
    mask[1, :7] = 0
    together = chunked(backbone, torch.cat([long, padded]), [tokens, tokens], chunk, mask)
    for row, ids in enumerate((long, short)):
        alone = chunked(backbone, ids, [tokens], 4096)
        logits = torch.stack(together.logits)[:, row]
        torch.testing.assert_close(logits, torch.stack(alone.logits)[:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [4, 4096])
def test_beams_continue_the_prefilled_keys(chunk):
    backbone, tokens = loaded("next_video")
    ids = tiny.prompt("next_video", len(tokens))
    embeds = multimodal_embeddings(backbone, ids, tokens)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    with torch.no_grad():
        whole = backbone.model.generate(inputs_embeds=embeds, **options)
    ours = chunked(backbone, ids, [tokens], chunk, **options, return_dict_in_generate=False, output_logits=False)
    assert torch.equal(ours[:, ids.shape[1] :], whole)


@pytest.mark.parametrize("chunk", [4, 4096])
def test_a_prompt_may_end_with_a_visual_token(chunk):
    backbone, tokens = loaded("video_llava")
    ids = tiny.prompt("video_llava", len(tokens))[:, : 2 + len(tokens)]
    assert ids[0, -1] == backbone.facts.placeholder_id
    with torch.no_grad():
        whole = backbone.model.generate(inputs_embeds=multimodal_embeddings(backbone, ids, tokens), **SCORES)
    ours = chunked(backbone, ids, [tokens], chunk)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(whole.logits), rtol=1e-9, atol=1e-9)


def test_no_more_than_a_chunk_passes_the_decoder_and_no_logits_are_made_of_it(monkeypatch):
    backbone, tokens = loaded("onevision")
    ids = tiny.prompt("onevision", len(tokens))
    seen, headed = [], []
    decoder, head = backbone.model.get_decoder(), backbone.model.get_output_embeddings()
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    head.register_forward_pre_hook(lambda _, args: headed.append(args[0].shape[1]))
    chunked(backbone, ids, [tokens.to("cpu")], 10, max_new_tokens=2)
    whole, rest = divmod(ids.shape[1] - 1, 10)
    assert seen == [(1, 10)] * whole + [(1, rest)] * (rest > 0) + [(1, 1)] * 2
    assert headed == [1, 1]


@pytest.mark.parametrize("chunk", [3, 4096])
def test_an_extension_holds_for_prefill_and_generation(chunk):
    """The same frequencies from the first chunk to the last new token, and other logits than without it."""
    backbone, tokens = loaded("onevision")
    ids = tiny.prompt("onevision", len(tokens))
    window = YarnWindow(bounds="share", alpha=0.2, beta=0.8, temperature=True)
    counts = TokenCounts(visual=len(tokens) - 1, total=ids.shape[1] + 6)
    trained = TrainedWindows(visual=None, language=20)
    rotary = backbone.model.model.language_model.rotary_emb
    used = []
    rotary.register_forward_hook(lambda module, *_: used.append(module.inv_freq.clone()))
    with extended(backbone.model, window, counts=counts, trained=trained) as extension:
        ours = chunked(backbone, ids, [tokens], chunk)
        with torch.no_grad():
            whole = backbone.model.generate(inputs_embeds=multimodal_embeddings(backbone, ids, tokens), **SCORES)
    assert all(torch.equal(one, extension.inv_freq) for one in used)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(whole.logits), rtol=1e-6, atol=1e-6)
    plain = chunked(backbone, ids, [tokens], chunk)
    assert not torch.allclose(plain.logits[0], ours.logits[0], rtol=1e-3)


def test_a_given_cache_is_filled_and_one_beyond_the_prompt_refused():
    backbone, tokens = loaded("next_video")
    ids = tiny.prompt("next_video", len(tokens))
    cache = DynamicCache(config=backbone.model.config.get_text_config())
    given = chunked(backbone, ids, [tokens], 5, cache=cache)
    assert torch.equal(given.sequences, chunked(backbone, ids, [tokens], 5).sequences)
    assert cache.get_seq_length() == given.sequences.shape[1] - 1
    with pytest.raises(UserError, match=rf"holds {cache.get_seq_length()} tokens, the prompt has {ids.shape[1]}; give"):
        chunked(backbone, ids, [tokens], 5, cache=cache)


@pytest.mark.parametrize("kept", [1, 20, None])
def test_a_cache_of_the_prompts_first_positions_is_continued_behind_them(kept):
    """What the model generated is cropped away; only the positions behind the kept ones pass the decoder."""
    backbone, tokens = loaded("onevision")
    ids = tiny.prompt("onevision", len(tokens))
    kept = ids.shape[1] - 1 if kept is None else kept
    cache = DynamicCache(config=backbone.model.config.get_text_config())
    whole = chunked(backbone, ids, [tokens], 4096, cache=cache)
    cache.crop(kept - cache.get_seq_length())
    seen = []
    backbone.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    again = chunked(backbone, ids, [tokens], 4096, cache=cache)
    assert sum(seen) == ids.shape[1] - kept + 5
    assert torch.equal(again.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(again.logits), torch.stack(whole.logits), rtol=1e-9, atol=1e-9)


def test_numbers_that_do_not_belong_together_are_refused():
    backbone, tokens = loaded("video_llava")
    ids = tiny.prompt("video_llava", len(tokens))
    with pytest.raises(UserError, match=f"holds {len(tokens)} visual placeholders .* but {len(tokens) - 1} visual"):
        chunked(backbone, ids, [tokens[1:]], 8)
    with pytest.raises(UserError, match="prefill_chunk is 0"):
        chunked(backbone, ids, [tokens], 0)
    with pytest.raises(UserError, match="make the prompt with the plan's count"):
        generate(backbone, ids, tokens[1:])
