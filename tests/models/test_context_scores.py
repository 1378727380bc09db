"""Context scores are those of the context tokens that the language model is shown."""

import numpy as np
import pytest
import torch

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.context_scores import context_scores, top_patches

PROMPT = torch.tensor([[8, 9, 10, 11, 12]])


def asked(model, prompt=PROMPT):
    frames = torch.randn(7, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    features = model.encode_frames(frames)
    return features, context_scores(model, features, prompt, torch.ones_like(prompt), queries=100)


@pytest.mark.parametrize("kind", ["eva-qformer", "eva-bert", "clip-qformer"])
@torch.no_grad()
def test_they_make_the_context_tokens_of_the_question(llama_vid_kinds, kind) -> None:
    model = llama_vid_kinds[kind]()  # 3 frames pass at once: 7 leave a rest
    features, scores = asked(model)
    assert scores.shape[0] == 7 and scores.shape[2] == features.shape[1] - 1 and scores.dtype == torch.float32
    spans, grids = torch.tensor([[0, 7, 0]]), torch.tensor([1])
    tokens = model.visual_tokens(features, spans, grids, PROMPT, torch.ones_like(PROMPT))[::2]
    context = scores.softmax(-1).mean(1).unsqueeze(1) @ features[:, 1:]
    torch.testing.assert_close(model.context_attention.value_projector(context.squeeze(1)), tokens)


@torch.no_grad()
def test_they_are_the_products_of_the_formula(model) -> None:
    features, scores = asked(model.double())
    queries, _ = model.text_decoder(features[5:6], PROMPT, torch.ones_like(PROMPT))
    query = model.context_attention.query_projector(queries)[0].numpy()
    key = model.context_attention.key_projector(features[5, 1:]).numpy()
    np.testing.assert_allclose(scores[5].numpy(), query @ key.T / features.shape[-1] ** 0.5, rtol=1e-5, atol=1e-6)


def test_the_first_queries_alone_are_the_first_of_all(model) -> None:
    features, scores = asked(model)
    few = context_scores(model, features, PROMPT, torch.ones_like(PROMPT), queries=2)
    assert scores.shape[1] == 4  # the model's number
    torch.testing.assert_close(few, scores[:, :2])


def test_padding_of_a_prompt_is_no_query(bert_model) -> None:
    features, scores = asked(bert_model)
    padded, mask = torch.nn.functional.pad(PROMPT, (0, 3)), torch.nn.functional.pad(torch.ones_like(PROMPT), (0, 3))
    found = context_scores(bert_model, features, padded, mask, queries=100)
    assert found.shape[1] == PROMPT.shape[1]
    torch.testing.assert_close(found, scores)


def test_another_question_looks_elsewhere(model) -> None:
    scores, others = asked(model)[1], asked(model, torch.tensor([[30, 31, 32]]))[1]
    assert float((scores - others).abs().max()) > 1e-3


def test_a_model_without_context_tokens_is_refused(llama_vid_kinds) -> None:
    with pytest.raises(UserError, match="makes no context tokens"):
        asked(llama_vid_kinds["eva-content-only"]())


def test_top_patches_are_the_highest_first() -> None:
    scores = torch.tensor([[[0.1, 3.0, -1.0, 2.0]], [[5.0, 4.0, 3.0, 6.0]]])
    assert top_patches(scores, 2).tolist() == [[[1, 3]], [[3, 0]]]
    assert top_patches(scores, 9).tolist() == [[[1, 3, 0, 2]], [[3, 0, 1, 2]]]


def test_without_a_count_the_paper_s_share_is_marked() -> None:
    assert [top_patches(torch.rand(2, patches)).shape[1] for patches in (4, 36, 256, 576)] == [1, 2, 20, 20]
