"""Instructions for rows whose answer is a caption; in stage 1 only the text decoder reads them."""

from data_prep.shard import key_hash

CAPTION_INSTRUCTIONS = (
    "What does this video show?",
    "Say in one sentence what happens here.",
    "Give a short caption for the clip.",
    "In a few words, what can be seen?",
    "Put the content of this video into one line.",
    "Sum up the clip for someone who cannot watch it.",
    "Name the main subject of the video and what it does.",
    "Write a brief title that fits these pictures.",
    "Which scene was filmed here?",
    "Tell me shortly what I am looking at.",
)


def caption_instruction(key: str, seed: int) -> str:
    """One of the instructions, chosen by the record's key and a seed: the same in every shard and run."""
    return CAPTION_INSTRUCTIONS[key_hash(f"{seed}:{key}") % len(CAPTION_INSTRUCTIONS)]
