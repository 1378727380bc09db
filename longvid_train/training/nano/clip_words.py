"""What the cells of a frame show, in words: bags of words in place of visual tokens.

A language model that has never seen a picture learns to read clips from these bags; the tower then learns to make them.
``N`` frames of a clip, ``T`` visual tokens of a frame.
"""

from longvid_train.world.clips import Clip
from longvid_train.world.episode import Appearance, Episode
from longvid_train.world.text import NOTHING

SIDES = (False, True, False, True)
"""Whether each of the 2 x 2 cells, row by row, lies in the right half. Objects never cross the middle of the frame."""

Bag = tuple[str, ...]


def frame_bags(episode: Episode, time_s: float, *, class_token: bool) -> tuple[Bag, ...]:
    """One bag a token: scene and object of the cell's half of the frame; of all of it for a class token, in front."""
    scene = episode.scene_at(time_s).name
    visible = episode.visible_at(time_s)
    cells = tuple((scene, *_words([a for a in visible if _right(a) == right])) for right in SIDES)
    return ((scene, *_words(visible)), *cells) if class_token else cells


def clear_cells(episode: Episode, time_s: float, *, class_token: bool) -> tuple[bool, ...]:
    """Which tokens of a frame `frame_bags` describes fully: not those of a half into which an object is sliding."""
    visible = set(episode.visible_at(time_s))
    sliding = [a for a in episode.sliding_or_visible_at(time_s) if a not in visible]
    cells = tuple(all(_right(a) != right for a in sliding) for right in SIDES)
    return (not sliding, *cells) if class_token else cells


def frame_list(clip: Clip) -> str:
    """Every sampled frame in words: ``"forest red circle 7, forest nothing"``."""
    return ", ".join(
        " ".join((clip.episode.scene_at(time_s).name, *_words(clip.episode.visible_at(time_s))))
        for time_s in clip.times_s
    )


def _words(seen: list[Appearance] | tuple[Appearance, ...]) -> Bag:
    return tuple(word for a in seen for word in (a.colour, a.shape, a.digit)) or (NOTHING,)


def _right(appearance: Appearance) -> bool:
    return appearance.start_xy[0] > 0.5
