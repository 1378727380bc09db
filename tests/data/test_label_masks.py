"""Both templates token by token: what the model reads, what is supervised, and that a prompt is a prefix of its row."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from longvid_train.data.conversation import (
    ConversationOptions,
    LoadedMedium,
    MediumLayout,
    encode_conversation,
    encode_prompt,
    sequence_length,
)
from longvid_train.data.manifest import Turn
from longvid_train.data.templates import PLAIN, VICUNA_V1, piece_ids, template_by_name
from longvid_train.errors import UserError
from longvid_train.types import IGNORE_INDEX

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
VIS = "<vis>"
OPTIONS = ConversationOptions()


def medium(kind: str, *lines: tuple[str, ...]) -> LoadedMedium:
    return LoadedMedium(MediumLayout(kind, lines), torch.arange(len(lines)).float().reshape(-1, 1, 1, 1))  # type: ignore[arg-type]


def two_frames() -> LoadedMedium:
    return medium("video", (), ())


def turns(*texts: str) -> list[Turn]:
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def expected(processor: Any, *pieces: tuple[str, bool]) -> tuple[list[int], list[int]]:
    """Ids and labels of pieces of text written out by hand; ``<vis>``, ``<s>`` and ``</s>`` are control tokens."""
    ids: list[int] = []
    labels: list[int] = []
    for text, supervised in pieces:
        control = processor.tokenizer.convert_tokens_to_ids(text) if text in (VIS, "<s>", "</s>") else None
        new = [control] if control is not None else processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += new
        labels += new if supervised else [IGNORE_INDEX] * len(new)
    return ids, labels


def test_vicuna_of_two_turns(processor: Any) -> None:
    row = encode_conversation(
        turns("<video>\nWhich digit?", " 7\n", "And what came after?", "a blue circle"),
        [two_frames()],
        processor,
        VICUNA_V1,
        OPTIONS,
        sample_id="a",
    )
    ids, labels = expected(
        processor,
        ("<s>", False),
        (f"{SYSTEM}USER: ", False),
        *[(VIS, False)] * 4,
        ("\nWhich digit? ASSISTANT:", False),
        (" 7", True),
        ("</s>", True),
        ("USER: ", False),
        *[(VIS, False)] * 4,
        ("\nAnd what came after? ASSISTANT:", False),
        (" a blue circle", True),
        ("</s>", True),
    )
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert row.spans.tolist() == [[0, 2, 0], [0, 2, 1]], "the frames are stored once and shown to both prompts"
    assert row.prompts == ("Which digit?", "And what came after?")
    assert row.content_grids.tolist() == [1, 1]
    assert row.pixel_values is not None and row.pixel_values.shape[0] == 2


def test_vicuna_as_written_shows_media_once(processor: Any) -> None:
    options = ConversationOptions(media_per_turn="as_written")
    row = encode_conversation(
        turns("<video>\nA?", "b", "C?", "d"), [two_frames()], processor, VICUNA_V1, options, sample_id="a"
    )
    assert row.spans.tolist() == [[0, 2, 0]]
    assert row.prompts == ("A?",)


def test_vicuna_text_only(processor: Any) -> None:
    row = encode_conversation(turns("Hi", "Yo"), [], processor, VICUNA_V1, OPTIONS, sample_id="a")
    ids, labels = expected(
        processor, ("<s>", False), (f"{SYSTEM}USER: Hi ASSISTANT:", False), (" Yo", True), ("</s>", True)
    )
    assert (row.input_ids.tolist(), row.labels.tolist()) == (ids, labels)
    assert row.pixel_values is None and row.spans.shape == (0, 3) and row.prompts == ()


def test_plain_keeps_the_instruction_out_of_the_text(processor: Any) -> None:
    row = encode_conversation(
        turns("<image>\nDescribe it.", "a red square"), [medium("image", ())], processor, PLAIN, OPTIONS, sample_id="a"
    )
    ids, labels = expected(processor, ("<s>", False), *[(VIS, False)] * 17, ("a red square\n", True))
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert row.prompts == ("Describe it.",)
    assert row.content_grids.tolist() == [0]


def test_plain_of_two_turns(processor: Any) -> None:
    row = encode_conversation(
        turns("<video>\nDescribe.", "one", "Again.", "two"), [two_frames()], processor, PLAIN, OPTIONS, sample_id="a"
    )
    vis = [(VIS, False)] * 4
    ids, labels = expected(processor, ("<s>", False), *vis, ("one\n", True), *vis, ("two\n", True))
    assert (row.input_ids.tolist(), row.labels.tolist()) == (ids, labels)
    assert row.prompts == ("Describe.", "Again.")


def test_subtitles_follow_their_frame_unsupervised(processor: Any) -> None:
    row = encode_conversation(
        turns("<video>\nQ?", "a"),
        [medium("video", ("hello there",), (), ("one", "two"))],
        processor,
        VICUNA_V1,
        OPTIONS,
        sample_id="a",
    )
    vis = [(VIS, False)] * 2
    ids, labels = expected(
        processor,
        ("<s>", False),
        (f"{SYSTEM}USER: ", False),
        *vis,
        (" hello there", False),
        *vis,
        *vis,
        (" one", False),
        (" two", False),
        ("\nQ? ASSISTANT:", False),
        (" a", True),
        ("</s>", True),
    )
    assert (row.input_ids.tolist(), row.labels.tolist()) == (ids, labels)


def test_several_media_are_numbered_over_the_conversation(processor: Any) -> None:
    row = encode_conversation(
        turns("Compare <image> with <video>.", "ok", "And <image>?", "no", "Why?", "so"),
        [medium("image", ()), two_frames(), medium("image", ())],
        processor,
        VICUNA_V1,
        OPTIONS,
        sample_id="a",
    )
    assert row.spans.tolist() == [[0, 1, 0], [1, 2, 0], [3, 1, 1], [0, 1, 2], [1, 2, 2], [3, 1, 2]]
    assert row.content_grids.tolist() == [0, 1, 0, 0, 1, 0]
    assert row.prompts == ("Compare  with .", "And ?", "Why?")


def test_a_turn_before_any_medium_shows_nothing(processor: Any) -> None:
    row = encode_conversation(
        turns("Hi", "yo", "<image>\nWhat?", "x"), [medium("image", ())], processor, VICUNA_V1, OPTIONS, sample_id="a"
    )
    assert row.spans.tolist() == [[0, 1, 0]]
    assert row.prompts == ("What?",)


@pytest.mark.parametrize(
    ("text", "position", "ids_text"),
    [
        ("<image>\nWhat?", "first", [VIS, "\nWhat?"]),
        ("What?\n<image>", "first", [VIS, "\nWhat?"]),
        ("What? <image>", "as_written", ["What? ", VIS]),
        ("Is <image> red?", "first", ["Is ", VIS, " red?"]),
        ("<image>", "first", [VIS]),
    ],
)
def test_placeholder_position(processor: Any, text: str, position: Any, ids_text: list[str]) -> None:
    options = ConversationOptions(placeholder_position=position, image_content_grid=1)
    row = encode_conversation(turns(text, "a"), [medium("image", ())], processor, VICUNA_V1, options, sample_id="a")
    at = ids_text.index(VIS)
    before, after = "".join(ids_text[:at]), "".join(ids_text[at + 1 :])
    ids, _ = expected(
        processor,
        ("<s>", False),
        (f"{SYSTEM}USER: {before}", False),
        *[(VIS, False)] * 2,
        (f"{after} ASSISTANT:", False),
        (" a", True),
        ("</s>", True),
    )
    assert row.input_ids.tolist() == ids


def test_random_position_is_drawn_from_seed_epoch_and_id(processor: Any) -> None:
    options = ConversationOptions(placeholder_position="random", image_content_grid=1)

    def at_end(**changes: Any) -> bool:
        arguments: dict[str, Any] = {"sample_id": "a", "seed": 0, "epoch": 0, **changes}
        row = encode_conversation(
            turns("<image>\nWhat?", "a"), [medium("image", ())], processor, VICUNA_V1, options, **arguments
        )
        first = len(expected(processor, ("<s>", False), (f"{SYSTEM}USER: ", False))[0])
        return row.input_ids[first].item() != processor.visual_token_id

    for key, values in (("epoch", range(16)), ("seed", range(16)), ("sample_id", "abcdefghijklmnop")):
        drawn = [at_end(**{key: value}) for value in values]
        assert drawn == [at_end(**{key: value}) for value in values]
        assert 2 <= sum(drawn) <= 14


def test_control_tokens_in_text_stay_text(processor: Any) -> None:
    row = encode_conversation(
        turns("ignore </s> and <vis> <s>", "</s><vis>"), [], processor, VICUNA_V1, OPTIONS, sample_id="a"
    )
    ids = row.input_ids.tolist()
    assert ids.count(processor.visual_token_id) == 0
    assert ids.count(processor.tokenizer.eos_token_id) == 1 and ids[-1] == processor.tokenizer.eos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1 and ids[0] == processor.tokenizer.bos_token_id
    assert processor.tokenizer.decode(ids[1:-1]).endswith("ignore </s> and <vis> <s> ASSISTANT: </s><vis>")


def test_too_long_names_id_length_limit_and_remedy(processor: Any) -> None:
    media = [two_frames()]
    conversation = turns("<video>\nQ?", "a")
    length = sequence_length(conversation, [media[0].layout], processor, VICUNA_V1, OPTIONS)
    fits = ConversationOptions(max_tokens=length)
    assert len(encode_conversation(conversation, media, processor, VICUNA_V1, fits, sample_id="a").input_ids) == length
    with pytest.raises(
        UserError, match=f"'ep-1' has {length} tokens and max_tokens is {length - 1}; sample fewer frames"
    ):
        encode_conversation(
            conversation, media, processor, VICUNA_V1, ConversationOptions(max_tokens=length - 1), sample_id="ep-1"
        )


def test_unknown_template_names_the_nearest() -> None:
    with pytest.raises(UserError, match="template 'vicuna' does not exist; did you mean 'vicuna_v1'"):
        template_by_name("vicuna")


def test_a_tokenizer_that_merges_over_the_answer_is_refused() -> None:
    vocabulary = {":": 0, " ": 1, "a": 2, ": ": 3, "<s>": 4}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", " ")])))
    with pytest.raises(UserError, match="merges ':' with the text ' a'"):
        piece_ids(" a", tokenizer, continues=True)


def test_sentencepiece_style_tokenizer_gets_the_ids_of_the_whole_text() -> None:
    """Llama's convention: a word-start mark in front of every text. The answer must not get a second one."""
    from tokenizers import normalizers

    words = ["▁ASSISTANT", ":", "▁Hi", "▁", "H", "i"]
    backend = Tokenizer(models.Unigram([("<unk>", -100.0), *[(word, -1.0) for word in words]], unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    whole = piece_ids("ASSISTANT: Hi", tokenizer)
    assert tokenizer.convert_ids_to_tokens(whole) == ["▁ASSISTANT", ":", "▁Hi"]
    assert piece_ids("ASSISTANT:", tokenizer) + piece_ids(" Hi", tokenizer, continues=True) == whole


words = st.text("ab c:\n.?é▁", min_size=1, max_size=12).filter(str.strip)
lines = st.lists(st.lists(words, max_size=2).map(tuple), min_size=1, max_size=4).map(tuple)


@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=3),
    lines,
    st.sampled_from([VICUNA_V1, PLAIN]),
    st.sampled_from(["as_written", "every_turn"]),
    st.sampled_from(["as_written", "first", "random"]),
    st.sampled_from([0, 1, 2, 4]),
    st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_prompt_is_the_row_up_to_its_answer_and_lengths_are_exact(
    processor: Any, pairs: Any, lines: Any, template: Any, per_turn: Any, position: Any, grid: int, epoch: int
) -> None:
    options = ConversationOptions(media_per_turn=per_turn, placeholder_position=position, video_content_grid=grid)
    conversation = turns(*[text for pair in pairs for text in pair])
    conversation[0] = Turn("user", f"<video>\n{pairs[0][0]}")
    media = [medium("video", *lines)]
    row = encode_conversation(conversation, media, processor, template, options, sample_id="a", epoch=epoch)
    frames = len(lines)
    showings = len(pairs) if per_turn == "every_turn" else 1
    tokens = showings * frames * processor.tokens_per_frame(grid)
    assert (row.input_ids == processor.visual_token_id).sum() == tokens
    assert [span[:2] for span in row.spans.tolist()] == [[0, frames]] * showings
    for asked in range(len(pairs)):
        prompt = encode_prompt(
            conversation[: 2 * asked + 1], media, processor, template, options, sample_id="a", epoch=epoch
        )
        size = len(prompt.input_ids)
        assert prompt.input_ids.tolist() == row.input_ids[:size].tolist()
        assert row.labels[size].item() == row.input_ids[size].item(), "the next token is the answer's first"
        if asked == len(pairs) - 1:
            assert (row.labels[size:] == row.input_ids[size:]).all()
            assert prompt.prompts == row.prompts
    asked_again = encode_prompt(conversation, media, processor, template, options, sample_id="a", epoch=epoch)
    assert asked_again.input_ids.tolist() == prompt.input_ids.tolist(), "the last answer is left out"
    if position != "random":
        all_last = MediumLayout("video", ((),) * (frames - 1) + (tuple(line for frame in lines for line in frame),))
        assert sequence_length(conversation, [all_last], processor, template, options) == len(row.input_ids)
