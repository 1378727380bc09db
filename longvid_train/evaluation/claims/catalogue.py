"""Every claim by its name."""

from longvid_train.errors import UserError, nearest
from longvid_train.evaluation.claims.claim import Claim
from longvid_train.evaluation.claims.intp_frames import CLAIM as INTP_FRAMES
from longvid_train.evaluation.claims.visual_window import CLAIM as VISUAL_WINDOW
from longvid_train.evaluation.claims.visual_window_long import CLAIM as VISUAL_WINDOW_LONG
from longvid_train.evaluation.claims.zoomvlm import ABLATIONS as ZOOMVLM_ABLATIONS
from longvid_train.evaluation.claims.zoomvlm import CLAIM as ZOOMVLM

CLAIMS = {claim.name: claim for claim in (VISUAL_WINDOW, VISUAL_WINDOW_LONG, INTP_FRAMES, ZOOMVLM, ZOOMVLM_ABLATIONS)}


def choose_claims(names: list[str]) -> list[Claim]:
    """The named claims in their order, all of them where none is named.

    Raises:
        UserError: a name is unknown.
    """
    for name in names:
        if name not in CLAIMS:
            hint = nearest(name, list(CLAIMS)) or "."
            raise UserError(f"claim '{name}' is unknown{hint} Claims: {', '.join(CLAIMS)}")
    return [claim for name, claim in CLAIMS.items() if not names or name in names]
