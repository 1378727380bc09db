"""Generation with visual tokens against references made of input embeddings and of plain forwards."""

import pytest
import torch

from longvid_train.errors import UserError


@pytest.fixture
def prompt(model, mixed):
    return mixed(model.config).batch((1, 2, 3), left=True)


def embeds_of(model, batch):
    batch = dict(batch)
    batch.pop("attention_mask")
    return model.multimodal_embeddings(**batch)


@torch.no_grad()
def test_greedy_with_cache_equals_teacher_forcing_without(model, prompt):
    new = model.generate(**prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    width = prompt["input_ids"].shape[1]
    assert torch.equal(new[:, :width], prompt["input_ids"])
    mask = torch.cat([prompt["attention_mask"], torch.ones(3, 6, dtype=torch.long)], dim=1)
    logits = model(**(prompt | {"input_ids": new, "attention_mask": mask}), use_cache=False).logits[:, width - 1 : -1]
    logits[..., 2] = -torch.inf  # min_new_tokens forbids the end token
    assert torch.equal(logits.argmax(-1), new[:, width:])


OPTIONS = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "beam sampling": {"num_beams": 2, "do_sample": True, "top_k": 10},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_options_equal_the_same_on_input_embeddings(model, prompt, options):
    torch.manual_seed(0)
    ours = model.generate(**prompt, max_new_tokens=5, **options)
    torch.manual_seed(0)
    embeds = embeds_of(model, prompt)
    mask = prompt["attention_mask"]
    expected = model.language_model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=5, **options)
    assert torch.equal(ours[:, prompt["input_ids"].shape[1] :], expected)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"prefill_chunk_size": 4}, {"prefill_chunk_size": 7}])
@torch.no_grad()
def test_cache_free_and_chunked_prefill_give_the_same_tokens(model, prompt, options):
    expected = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False, **options), expected)


@torch.no_grad()
def test_prompt_lookup_gives_the_greedy_tokens(model, mixed):
    batch = mixed(model.config).batch((3,))
    batch["input_ids"][0, -4:] = torch.tensor([10, 20, 10, 20])
    expected = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3), expected)


@torch.no_grad()
def test_frames_are_encoded_once_whatever_the_beams(model, prompt):
    frames = []
    model.vision_tower.register_forward_pre_hook(
        lambda _, __, kwargs: frames.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    model.generate(**prompt, max_new_tokens=4, num_beams=4)
    assert sum(frames) == 4


@torch.no_grad()
def test_a_streamer_gets_prompt_and_tokens(model, mixed):
    class Streamer:
        def __init__(self):
            self.parts, self.ended = [], False

        def put(self, value):
            self.parts += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    batch = mixed(model.config).batch((1,))
    ids = model.generate(**batch, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.parts == ids[0].tolist()
    assert streamer.ended


@torch.no_grad()
def test_text_only_generation_is_llamas(model):
    ids = torch.tensor([[1, 5, 9]])
    expected = model.language_model.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)


def test_visuals_without_ids_are_a_user_error(model, prompt):
    prompt.pop("input_ids")
    with pytest.raises(UserError, match="visual inputs need input_ids"):
        model.generate(**prompt)
