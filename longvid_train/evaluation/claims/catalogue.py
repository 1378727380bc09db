"""Every claim by its name."""

from longvid_train.errors import UserError, nearest
from longvid_train.evaluation.claims.claim import Claim, ComputedClaim
from longvid_train.evaluation.claims.embeddings import CLAIM as EMBEDDINGS
from longvid_train.evaluation.claims.intp_frames import CLAIM as INTP_FRAMES
from longvid_train.evaluation.claims.intp_roofline import CLAIM as INTP_ROOFLINE
from longvid_train.evaluation.claims.kv_bits import CLAIM as KV_BITS
from longvid_train.evaluation.claims.kv_bits import LLAMA_VID_CLAIM as KV_BITS_LLAMA_VID
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
    )
}
"""Claims about answers."""

COMPUTED = {claim.name: claim for claim in (INTP_ROOFLINE, EMBEDDINGS)}
"""Claims that ask nothing."""

ALL: dict[str, AnyClaim] = {**CLAIMS, **COMPUTED}


def choose_claims(names: list[str], *, llama_vid: bool) -> list[AnyClaim]:
    """The named claims in their order, all of them where none is named.

    Args:
        names: from the command line.
        llama_vid: whether there is a LLaMA-VID; without one its claims are not among all.

    Raises:
        UserError: a name is unknown, or its claim needs a LLaMA-VID.
    """
    for name in names:
        if name not in ALL:
            hint = nearest(name, list(ALL)) or "."
            raise UserError(f"claim '{name}' is unknown{hint} Claims: {', '.join(ALL)}")
        if _needs_llama_vid(ALL[name]) and not llama_vid:
            raise UserError(f"claim '{name}' is about a LLaMA-VID, and none ships; name a folder with --llama-vid")
    chosen = [claim for name, claim in ALL.items() if not names or name in names]
    return [claim for claim in chosen if llama_vid or not _needs_llama_vid(claim)]


def _needs_llama_vid(claim: AnyClaim) -> bool:
    return isinstance(claim, Claim) and claim.model is None
