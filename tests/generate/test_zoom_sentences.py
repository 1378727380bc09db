"""Where a sentence ends: the rules, and that the tokenizer does not matter."""

from functools import lru_cache

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longvid_train.generate.zoom.answer_watch import AnswerWatch
from longvid_train.generate.zoom.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences", "rest"),
    [
        ("A man walks. He sits", ["A man walks."], "He sits"),
        ("A man walks.", [], "A man walks."),
        ("A man walks. ", [], "A man walks."),
        ("Really?! Yes.", ["Really?!"], "Yes."),
        ('He says "Stop." Then', ['He says "Stop."'], "Then"),
        ("It takes 3.5 s. Then 2", ["It takes 3.5 s."], "Then 2"),
        ("Mr. Smith and Dr. Who. They", ["Mr. Smith and Dr. Who."], "They"),
        ("J. Smith runs, e.g. Fast. He", ["J. Smith runs, e.g. Fast."], "He"),
        ("Cups, plates etc. on a table. A", ["Cups, plates etc. on a table."], "A"),
        ("Cups, plates etc. The table", ["Cups, plates etc."], "The table"),
        ("Wait... what? No", ["Wait... what?"], "No"),
        ("He waits... Then", ["He waits..."], "Then"),
        ("1. A man walks.\n2. He sits.\n", ["1. A man walks.", "2. He sits."], ""),
        ("Steps:\n- cut\n- fry", ["Steps:", "- cut"], "- fry"),
        ("\n\nA man", [], "A man"),
        ("In 1999. Then", ["In 1999."], "Then"),
        ("他走了。她笑了！然后", ["他走了。", "她笑了！"], "然后"),
        ("clip.mp4 shows it. A", ["clip.mp4 shows it."], "A"),
        ("他走了。\ufffd", [], "他走了。"),
        ("他说：「走。」他", ["他说：「走。」"], "他"),
        ("", [], ""),
    ],
)
def test_the_rules(text: str, sentences: list[str], rest: str) -> None:
    assert split_sentences(text) == (sentences, rest)


@given(st.text(alphabet='aB1. !?\n"。e', max_size=40))
def test_what_is_complete_stays_so(text: str) -> None:
    before: list[str] = []
    for stop in range(len(text) + 1):
        found, rest = split_sentences(text[:stop])
        assert found[: len(before)] == before
        assert "".join("".join([*found, rest]).split()) == "".join(text[:stop].split())
        before = found


ANSWER = "A man walks 3.5 km. “He sits.” 他走了。Then, e.g. Now!\nDr. Who leaves. The end."


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={one: number for number, one in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama's and Vicuna's: words with a leading ``▁``, bytes for what the vocabulary lacks."""
    words = ["▁A", "▁man", "▁walks", "▁", "3", ".", "5", "▁km", "▁He", "▁sits", "▁Then", ",", "▁e", "g", "▁Now", "!"]
    words += ["▁Dr", "▁Who", "▁leaves", "▁The", "▁end", "“", "▁“", "He", "”", "<0x0A>", "▁Th"]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    vocabulary = {one: number for number, one in enumerate(dict.fromkeys(["<unk>", *bytes_, *words]))}
    pieces = [(word, -1.0 if word in words else -10.0) for word in vocabulary]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_every_tokenizer_gives_the_same_sentences_one_token_at_a_time(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    ids = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    counts, decoded = [], ""
    for stop in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:stop], skip_special_tokens=True)
        counts.append(len(split_sentences(decoded)[0]))
    assert decoded == ANSWER
    assert max(counts) == counts[-1], "bytes of an unfinished character take a sentence back at most"
    assert split_sentences(decoded) == (
        ["A man walks 3.5 km.", "“He sits.”", "他走了。", "Then, e.g. Now!", "Dr. Who leaves."],
        "The end.",
    )
    assert counts[-1] == 5


@lru_cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return {"byte_level": byte_level, "sentencepiece": sentencepiece}[name]()


@example("sentencepiece", 'A."")))))) He')
@given(st.sampled_from(["byte_level", "sentencepiece"]), st.text(alphabet='AeB1. !?\n"。)他', max_size=30))
def test_ends_are_seen_at_the_token_where_reading_everything_sees_them(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def read(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True)).strip()

    wanted, most = [], 0
    for stop in range(1, len(ids) + 1):
        found, _ = split_sentences(read(ids[:stop]))
        if len(found) > most:
            most = len(found)
            wanted.append((found, stop))
    seen: list[tuple[list[str], int]] = []
    watch = AnswerWatch(read, 2, lambda sentences, tokens: seen.append((sentences, tokens)))
    prompt = [7, 8]
    for stop in range(1, len(ids) + 1):
        stopped = watch(torch.tensor([[*prompt, *ids[:stop]]]), None)
        assert stopped.tolist() == [False]
    assert seen == wanted
    assert watch.ids == ids
