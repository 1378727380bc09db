"""The files of a checkpoint that are neither weights nor its configuration: tokenizer, processor, chat template."""

import shutil
from dataclasses import dataclass
from pathlib import Path

PATTERNS = (
    "tokenizer*",
    "*processor_config.json",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
"""Names that transformers gives them."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Copies them as they are, so that a trained model is asked exactly as the one it started from."""

    source: Path

    def save_pretrained(self, folder: Path) -> None:
        """Copy them into ``folder``."""
        for pattern in PATTERNS:
            for path in sorted(self.source.glob(pattern)):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
