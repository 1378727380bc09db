"""One-line notices to the user on stderr, from rank 0 only."""

import sys

from pytorch_lightning.utilities.rank_zero import rank_zero_only


@rank_zero_only
def notice(text: str) -> None:
    """Print ``longvid: <text>`` to stderr."""
    print(f"longvid: {text}", file=sys.stderr, flush=True)
