"""The part of the comparison of caches that reads videos with models: which videos, which prompts, whose logits."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from longvid_train.errors import UserError
from longvid_train.generate.chat import VideoChat
from scripts.bench import kv_models
from scripts.bench.kv_models import PLAIN, TEST_SEED, Videos, long_videos, prompts_of

ASSETS = Path(__file__).parents[2] / "longvid_train" / "assets"


@pytest.fixture(scope="module")
def chat():
    return VideoChat.load(ASSETS / "nano_onevision", adaptation=PLAIN, device="cpu", dtype="float32")


def test_long_prompts_show_more_frames_a_second_of_a_video_that_still_has_needles(chat):
    """256 s at 8 frames a second repeat every name, so nothing could be asked about them."""
    assert long_videos(chat, 512, 3, seed=1) == Videos(3, 128, 16.0, 1)
    assert long_videos(chat, 2048, 1, seed=1) == Videos(1, 512, 64.0, 1)
    longest = long_videos(chat, 8192, 1, TEST_SEED)
    assert (longest.frames, longest.duration_s) == (2048, 64.0)
    assert prompts_of(chat, Videos(1, 16, longest.duration_s, TEST_SEED))


def test_what_gives_no_prompt_is_refused_in_words(chat):
    with pytest.raises(UserError, match=r"no needle can be asked about 1 videos of 256 s at 4 frames"):
        prompts_of(chat, Videos(1, 4, 256.0, TEST_SEED))
    with pytest.raises(UserError, match=r"--tokens 3: 1 frames of .*nano_onevision are 5 tokens; ask for 5 at least"):
        long_videos(chat, 3, 1, TEST_SEED)


def test_prompts_are_those_of_ask_and_their_forced_logits_those_of_the_model(chat):
    """Steps through a cache, and one pass over prompt and continuation, give the same distributions."""
    prompts = prompts_of(chat, Videos(2, 8, 8.0, TEST_SEED))
    assert {prompt.clip for prompt in prompts} == {0, 1}
    prompt = prompts[0]
    placeholder = chat.prompting.processor.visual_token_id
    assert prompt.question.text in chat.prompting.processor.tokenizer.decode(prompt.ids[0])
    assert int((prompt.ids == placeholder).sum()) == len(prompt.tokens) == 8 * 4 + 1
    forced = kv_models.continuation(chat, prompt, 5)
    logits = kv_models.forced_logits(chat, prompt, forced, DynamicCache(config=chat.model.config.get_text_config()))
    layers = kv_models.captured(chat, prompt, forced)
    allowed = logits.clone()
    allowed[:, chat.model.generation_config.eos_token_id] = -torch.inf
    assert torch.equal(allowed.argmax(-1)[None], forced), "the likeliest tokens, ends left out"
    assert [layer.keys.shape[2] for layer in layers] == [prompt.ids.shape[1] + 5] * len(layers)
    whole = chat.model(
        inputs_embeds=torch.cat(
            [kv_models._embeddings(chat, prompt), chat.model.get_input_embeddings()(forced[:, :-1])], dim=1
        )
    ).logits[0, -5:]
    assert torch.allclose(logits, whole.double().log_softmax(-1), atol=1e-4)
