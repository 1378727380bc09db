"""Every claim by its name."""

from longvid_train.errors import UserError, nearest
from longvid_train.evaluation.claims.claim import Claim, ComputedClaim
from longvid_train.evaluation.claims.embeddings import CLAIM as EMBEDDINGS
from longvid_train.evaluation.claims.intp_frames import CLAIM as INTP_FRAMES
from longvid_train.evaluation.claims.intp_roofline import CLAIM as INTP_ROOFLINE
from longvid_train.evaluation.claims.kv_bits import CLAIM as KV_BITS
from longvid_train.evaluation.claims.kv_bits import LLAMA_VID_CLAIM as KV_BITS_LLAMA_VID
from longvid_train.evaluation.claims.llama_vid_long import CLAIM as LLAMA_VID_LONG
from longvid_train.evaluation.claims.llama_vid_tokens import CLAIM as LLAMA_VID_TOKENS
from longvid_train.evaluation.claims.visual_window import CLAIM as VISUAL_WINDOW
from longvid_train.evaluation.claims.visual_window_long import CLAIM as VISUAL_WINDOW_LONG
from longvid_train.evaluation.claims.zoomvlm import ABLATIONS as ZOOMVLM_ABLATIONS
from longvid_train.evaluation.claims.zoomvlm import CLAIM as ZOOMVLM

AnyClaim = Claim | ComputedClaim

CLAIMS = {
    claim.name: claim
    for claim in (
        VISUAL_WINDOW,
        VISUAL_WINDOW_LONG,
        INTP_FRAMES,
        ZOOMVLM,
        ZOOMVLM_ABLATIONS,
        KV_BITS,
        KV_BITS_LLAMA_VID,
        LLAMA_VID_TOKENS,
        LLAMA_VID_LONG,
    )
}
"""Claims about answers."""

COMPUTED = {claim.name: claim for claim in (INTP_ROOFLINE, EMBEDDINGS)}
"""Claims that ask nothing."""

ALL: dict[str, AnyClaim] = {**CLAIMS, **COMPUTED}


def choose_claims(names: list[str]) -> list[AnyClaim]:
    """The named claims in their order, all of them where none is named.

    Args:
        names: from the command line.

    Raises:
        UserError: a name is unknown.
    """
    for name in names:
        if name not in ALL:
            hint = nearest(name, list(ALL)) or "."
            raise UserError(f"claim '{name}' is unknown{hint} Claims: {', '.join(ALL)}")
    return [claim for name, claim in ALL.items() if not names or name in names]
