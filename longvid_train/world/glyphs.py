"""A 5x7 bitmap font of the ten digits: the small detail that ``detail`` questions ask about."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError

GLYPH_WIDTH = 5
GLYPH_HEIGHT = 7

_ROWS = {
    "0": ".###. #...# #...# #...# #...# #...# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ..##. .#... #.... #####",
    "3": "####. ....# ....# .###. ....# ....# ####.",
    "4": "#..#. #..#. #..#. ##### ...#. ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": "..##. .#... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. ..#.. ..#.. ..#..",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ...#. .##..",
}


@cache
def glyph(digit: str) -> NDArray[np.bool_]:
    """Return the digit's ``(7, 5)`` bool bitmap, True on ink.

    Raises:
        UserError: ``digit`` is not one of ``"0"`` to ``"9"``.
    """
    if digit not in _ROWS:
        raise UserError(f"no glyph for {digit!r}; the world's objects carry one of the digits 0 to 9")
    bitmap = np.array([[cell == "#" for cell in row] for row in _ROWS[digit].split()])
    bitmap.flags.writeable = False
    return bitmap
