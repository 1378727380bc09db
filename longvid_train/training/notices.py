"""One-line notices to the user on stderr, from rank 0 only."""

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from longvid_train.console import say


@rank_zero_only
def notice(text: str) -> None:
    """Print ``longvid: <text>`` to stderr."""
    say(text)
