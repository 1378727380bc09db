"""The head against float64 numpy written from the formulas, one frame and one prompt at a time."""

import numpy as np
import pytest
import torch

from longvid_train.errors import UserError


def linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def reference_context(model, patches, queries):
    """``queries`` holds the real ones only."""
    attention = model.context_attention
    q, k = linear(attention.query_projector, queries), linear(attention.key_projector, patches)
    scores = q @ k.T / np.sqrt(patches.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return linear(attention.value_projector, (weights @ patches).mean(axis=0))


def reference_content(model, patches, grid):
    side = int(np.sqrt(len(patches)))
    if grid == 0:
        cells = patches
    else:
        block = side // grid
        square = patches.reshape(side, side, -1)
        cells = np.stack(
            [
                square[r * block : (r + 1) * block, c * block : (c + 1) * block].mean(axis=(0, 1))
                for r in range(grid)
                for c in range(grid)
            ]
        )
    hidden = linear(model.content_projector[0], cells)
    erf = torch.erf(torch.from_numpy(hidden / np.sqrt(2))).numpy()
    return linear(model.content_projector[2], hidden * 0.5 * (1 + erf))


def reference_tokens(model, features, data):
    tokens = []
    for first, count, prompt, grid in (showing for row in data.showings for showing in row):
        for frame in range(first, first + count):
            patches = features[frame, 1:].numpy()
            if model.text_decoder is not None:
                ids = torch.tensor([data.prompts[prompt]])
                queries, _ = model.text_decoder(features[frame : frame + 1], ids, torch.ones_like(ids))
                tokens.append(reference_context(model, patches, queries[0].numpy())[None])
            if model.content_projector is not None:
                tokens.append(reference_content(model, patches, grid))
    return np.concatenate(tokens)


@torch.no_grad()
def test_visual_tokens_equal_the_formulas(any_model, mixed):
    model = any_model.double()
    data = mixed(model.config)
    batch = data.batch()
    features = model.encode_frames(data.pixel_values.double())
    names = ("visual_spans", "content_grids", "prompt_input_ids", "prompt_attention_mask")
    tokens = model.visual_tokens(features, *(batch[name] for name in names))
    expected = reference_tokens(model, features, data)
    assert tokens.shape == expected.shape
    # The attention's softmax runs in float32, so the context token is exact to that precision only.
    np.testing.assert_allclose(tokens.numpy(), expected, rtol=0, atol=3e-5 * np.abs(expected).max())
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3  # neighbours differ: order is really tested


@torch.no_grad()
def test_context_attention_does_not_see_cls_but_the_text_decoder_does(model):
    torch.manual_seed(3)
    features = torch.randn(1, 17, 32)
    other = features.clone()
    other[:, 0] += torch.randn(32)
    ids = torch.tensor([[5, 6]])
    queries, _ = model.text_decoder(features, ids, torch.ones_like(ids))
    moved, _ = model.text_decoder(other, ids, torch.ones_like(ids))
    assert (queries - moved).abs().max() > 1e-3
    same = model.context_attention(queries, None, features[:, 1:])
    spans, grids = torch.tensor([[0, 1, 0]]), torch.tensor([1])
    token = model.visual_tokens(features, spans, grids, ids, torch.ones_like(ids))[0]
    torch.testing.assert_close(token, same[0])


@torch.no_grad()
def test_the_context_token_depends_on_the_prompt_and_the_content_tokens_do_not(model, mixed):
    features = model.encode_frames(mixed(model.config).pixel_values)
    spans, grids = torch.tensor([[0, 1, 0], [0, 1, 1]]), torch.tensor([1, 1])
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    tokens = model.visual_tokens(features, spans, grids, prompts, torch.ones_like(prompts))
    assert (tokens[0] - tokens[2]).abs().max() > 1e-4
    assert torch.equal(tokens[1], tokens[3])


def test_each_pair_is_computed_once(model, mixed):
    data = mixed(model.config)
    batch = data.batch()
    frames_seen, pairs_seen = [], []
    model.vision_tower.register_forward_pre_hook(
        lambda _, __, kwargs: frames_seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    model.text_decoder.register_forward_pre_hook(lambda _, inputs: pairs_seen.append(len(inputs[0])))
    with torch.no_grad():
        model(**batch)
    assert sum(frames_seen) == 4
    assert sum(pairs_seen) == 1 + 3 + 3 + 4  # the row with three showings asks prompt 3 of frames 0 to 3
    assert max(frames_seen + pairs_seen) <= model.config.frame_chunk


@pytest.mark.parametrize(
    ("span", "grid", "message"),
    [
        ([2, 3, 0], 1, "asks for 3 frames from frame 2 but the batch has 4"),
        ([0, 1, 9], 1, "asks for prompt 9 but the batch has 4 prompts"),
        ([0, 1, 0], 3, "content_grid 3 does not divide the tower's 4 x 4 patches"),
    ],
)
def test_wrong_spans_are_user_errors(model, mixed, span, grid, message):
    batch = mixed(model.config).batch((0,))
    batch |= {"visual_spans": torch.tensor([span]), "content_grids": torch.tensor([grid])}
    with pytest.raises(UserError, match=message):
        model(**batch)


def test_placeholders_that_do_not_match_name_both_numbers(model, mixed):
    batch = mixed(model.config).batch((1,))
    batch["input_ids"][0, 2] = 5
    with pytest.raises(UserError, match=r"hold 5 visual placeholders .* make 6 visual tokens"):
        model(**batch)
    with pytest.raises(UserError, match=r"hold 1 visual placeholders .* make 0 visual tokens"):
        model(input_ids=torch.tensor([[1, 60, 5]]))
