"""The caches of an adaptation for one model: its quantizer, whether it is the right one, and empty caches of it.

What of an adaptation must be that of the calibration: the model, the plan and the grouping, because they decide which
keys and values there are, and the frequencies that the window installs, because static parameters hold for one set. A
window whose scale follows the input (``scale`` and ``target_tokens`` unset) therefore fits inputs of the calibration's
scale only. How many frames are shown does not matter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.adaptation.reading import adaptation_of, adaptation_values
from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.checkpoint import load_quantizer
from longvid_train.kvcache.quantizer import Quantizer, cache_shape, uncalibrated
from longvid_train.kvcache.rotation import Rotation
from longvid_train.models.identity import model_identity

_COMPARED = ("plan", "grouping")


@dataclass(frozen=True, eq=False)
class CacheCompression:
    """What a model's caches are made from.

    Attributes:
        name: the preset, or the quantizer's folder.
        quantizer: policy and parameters.
        window: the calibration's, in words.
    """

    name: str
    quantizer: Quantizer
    window: str = ""

    def new_cache(self) -> QuantizedKVCache:
        """An empty cache; the model reads it inside ``attending_on_codes``."""
        return QuantizedKVCache(self.quantizer)

    def check_rotation(self, rotation: Rotation, window: str) -> None:
        """Refuse an input under other frequencies than those of the calibration.

        Args:
            rotation: of the model for this input.
            window: in words.

        Raises:
            UserError: naming both.
        """
        own = self.quantizer.rotation
        different = None if own is None else own.differs(rotation)
        if different is not None:
            raise UserError(
                f"cache: {self.name} was calibrated under window {self.window}, this input has {window} "
                f"({different}); fix the window's scale or target_tokens and calibrate under it"
            )


def read_compression(
    adaptation: Adaptation, source: str | Path, config: Any, *, adapter: Path | None = None
) -> CacheCompression | None:
    """The caches an adaptation asks for; no weights are loaded.

    Args:
        adaptation: may leave the cache as it is; then the result is ``None``.
        source: of the checkpoint.
        config: transformers' configuration of it.
        adapter: folder of an adapter that is in the model.

    Raises:
        UserError: the model cannot have such a cache, or the quantizer is broken or for another model or adaptation.
    """
    choice = adaptation.cache
    if choice is None:
        return None
    shape = cache_shape(config)
    if choice.preset is not None:
        return CacheCompression(choice.preset, uncalibrated(choice.policy(), shape))
    assert choice.quantizer is not None
    folder = Path(choice.quantizer)
    if not folder.is_dir():
        raise UserError(f"cache: {folder} is no folder; write one with `longvid calibrate --out {folder}`")
    identity = model_identity(source, adapter=adapter)
    quantizer, record = load_quantizer(folder, model=identity, shape=shape, rotation=None)
    calibrated = adaptation_of(record.adaptation, where=f"{folder}: adaptation")
    _check_adaptation(folder, calibrated, adaptation)
    return CacheCompression(str(folder), quantizer, window_words(calibrated))


def window_words(adaptation: Adaptation, scale: float | None = None) -> str:
    """An adaptation's window, e.g. ``{'kind': 'yarn', 'scale': 4.0} (s = 4)``."""
    settings = adaptation_values(adaptation).get("window", {"kind": adaptation.window.kind})
    return f"{settings}" if scale is None else f"{settings} at s = {scale:.6g}"


def _check_adaptation(folder: Path, calibrated: Adaptation, adaptation: Adaptation) -> None:
    for name in _COMPARED:
        own, given = getattr(calibrated, name), getattr(adaptation, name)
        if own != given:
            raise UserError(
                f"cache: {folder} was calibrated under {name} {own}, the adaptation has {given}; calibrate under this "
                "adaptation"
            )
