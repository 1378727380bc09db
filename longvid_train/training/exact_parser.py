"""The parser of configs and flags: every key by its whole name."""

from typing import Any

from pytorch_lightning.cli import LightningArgumentParser


class ExactParser(LightningArgumentParser):
    """Lightning's parser without abbreviations.

    jsonargparse lets ``--trainer.max_step`` mean ``--trainer.max_steps``, and a later version's new key would change
    what a shortened one means. It builds the parsers of nested classes from the class of the outer parser, so that a
    setting of the outer parser alone would leave those open.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})
