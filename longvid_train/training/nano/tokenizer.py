"""The nano tokenizer: a byte-level BPE learned from world text. It reads any string; world words are single tokens."""

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longvid_train.world.episode import CODE_WORDS, WorldSettings, make_episode
from longvid_train.world.questions import CAPTION_INSTRUCTIONS, QUESTION_KINDS
from longvid_train.world.text import read_episode, transcript

UNK, BOS, EOS, PAD, VISUAL = "<unk>", "<s>", "</s>", "<pad>", "<visual>"
VOCAB_SIZE = 640

_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: hello ASSISTANT: hello"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn the tokenizer from training episodes. Digits stand alone, so that counts and glyphs are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[UNK, BOS, EOS, PAD, VISUAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[VISUAL],
        clean_up_tokenization_spaces=False,
    )


def _corpus(seed: int) -> Iterator[str]:
    settings = WorldSettings(duration_s=12.0, subtitles=True)
    for index in range(300):
        episode = make_episode(settings, split="train", seed=seed, index=index)
        reading = read_episode(episode, random.Random(index), kinds=tuple(QUESTION_KINDS), questions=6, merged=False)
        yield f"\nStory: {reading.caption}"
        yield f"{reading.caption}\nFrames:"
        yield transcript(episode)
        yield from (f"\nQuestion: {question.text} Answer: {question.answer}" for question in reading.questions)
        yield _CHAT
        yield "\n".join(CAPTION_INSTRUCTIONS)
        yield "".join(f" the word is {word}" for word in CODE_WORDS)
