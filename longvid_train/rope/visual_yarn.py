"""Visual context window extension (Wei and Chen, Sec. 3.1, Eq. 3-5): YaRN by the window of visual tokens seen in
training.

``s = L_test_v / L_train_v`` from the real number of visual tokens of each input (never below 1), and ``r_i`` from
``L_train_v``: 6272 = 32 x 196 for LLaVA-OneVision, whose language window is 32,768. 256 frames give s = 8 where plain
YaRN has 1.53.
"""

from dataclasses import dataclass
from typing import ClassVar

from longvid_train.errors import UserError
from longvid_train.rope.window import Measure
from longvid_train.rope.yarn import YarnWindow


@dataclass(frozen=True, kw_only=True)
class VisualYarnWindow(YarnWindow):
    """YaRN whose window is the visual one; alpha 1, beta 32, the paper's ramp, no temperature."""

    kind: ClassVar[str] = "visual_yarn"

    measure: Measure = "visual"

    def __post_init__(self) -> None:
        """Refuse the other window, which would be plain YaRN."""
        super().__post_init__()
        if self.measure != "visual":
            raise UserError(f"window 'visual_yarn' measures visual tokens, not '{self.measure}'; use the window 'yarn'")
