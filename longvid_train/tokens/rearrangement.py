"""In which groups a joint-frame tower encodes the frames: INTP's rearrangement (paper Sec. 3.2, Fig. 2).

A tower that was trained on ``K = joint_frames`` frames at a time gets ``N = m K`` frames as ``m`` groups. INTP gives
group ``i`` the frames ``i, i + m, ..., i + (K - 1) m``, so that each group spans the whole video as the tower's
training clips did, and puts the results back in time order: ``out[i + k m] = encoded_i[k]``. Consecutive groups
(frames ``i K .. i K + K - 1``) are the plain way. At ``m = 1`` both are the same, and so they are, whatever ``m``, for
a tower that sees one frame at a time: Video-LLaVA's original tower has temporal attention and notices the grouping,
transformers' port of it is per-frame and does not.
"""

from typing import Literal, get_args

from longvid_train.errors import UserError, nearest
from longvid_train.tokens.grid import FrameGrid

Grouping = Literal["consecutive", "rearranged"]


def encoding_groups(frames: int, joint_frames: int, grouping: Grouping) -> tuple[tuple[int, ...], ...]:
    """Frames that pass the tower together, each group in time order.

    Args:
        frames: distinct frames of the video, a multiple of ``joint_frames``.
        joint_frames: frames the tower sees together.
        grouping: ``"rearranged"`` is INTP's.

    Raises:
        UserError: ``frames`` is no multiple of ``joint_frames``, or the grouping is unknown.
    """
    if grouping not in get_args(Grouping):
        raise UserError(
            f"grouping '{grouping}' is unknown{nearest(str(grouping), list(get_args(Grouping))) or '.'} "
            f"Groupings: {', '.join(get_args(Grouping))}"
        )
    if frames < 1 or frames % joint_frames:
        raise UserError(
            f"{frames} frames cannot be encoded by a tower that takes {joint_frames} together; "
            f"{_multiples(frames, joint_frames)}"
        )
    groups = frames // joint_frames
    if grouping == "rearranged":
        return tuple(tuple(range(first, frames, groups)) for first in range(groups))
    return tuple(tuple(range(first, first + joint_frames)) for first in range(0, frames, joint_frames))


def restore_order(groups: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Where each frame, in time order, stands among the encoded frames: ``in_time_order = encoded[restore_order]``."""
    encoded = [frame for group in groups for frame in group]
    return tuple(sorted(range(len(encoded)), key=encoded.__getitem__))


def changes_encoding(frames: int, grid: FrameGrid) -> bool:
    """Whether rearranging ``frames`` changes what the tower sees together."""
    return grid.joint_frames > 1 and frames > grid.joint_frames


def rearrangement_note(frames: int, grid: FrameGrid) -> str | None:
    """What to tell a user whose rearrangement has no effect; ``None`` where it has one."""
    if changes_encoding(frames, grid):
        return None
    if grid.joint_frames == 1:
        return (
            "rearranging the frames changes nothing here: this backbone's tower encodes each frame alone, "
            "so the features are the same in any grouping"
        )
    return (
        f"rearranging {frames} frames changes nothing: the tower takes {grid.joint_frames} together, "
        f"which is one group; use {2 * grid.joint_frames} frames or more"
    )


def _multiples(frames: int, joint_frames: int) -> str:
    lower = frames // joint_frames * joint_frames
    return f"use {lower} or {lower + joint_frames}" if lower >= joint_frames else f"use {joint_frames}"
