"""What an adaptation says about the KV cache: a preset that needs no calibration, or a quantizer checkpoint."""

from dataclasses import dataclass, replace

from longvid_train.errors import UserError
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class CacheChoice:
    """One of ``preset`` and ``quantizer``; without a choice an adaptation leaves transformers' own cache.

    Attributes:
        preset: a name of ``kvcache.presets`` whose schemes have no static parameters.
        quantizer: folder that ``longvid calibrate`` wrote. In a file it may be relative to the file's folder; a record
            that was read from a file has it absolute.
        sink_tokens: first tokens kept in full precision; ``None`` is the preset's, and a quantizer brings its own.
        recent_tokens: newest tokens kept in full precision; likewise.
    """

    preset: str | None = None
    quantizer: str | None = None
    sink_tokens: int | None = None
    recent_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what names no cache."""
        if (self.preset is None) == (self.quantizer is None):
            given = "neither" if self.preset is None else "both"
            raise UserError(f"{given} of preset and quantizer is given; give one of them, e.g. preset: kivi_g32")
        if self.quantizer is not None:
            self._check_quantizer()
        else:
            self._check_preset(self.policy())

    def policy(self) -> CachePolicy:
        """The preset's settings.

        Raises:
            UserError: it is unknown, or a window is below 0.
        """
        assert self.preset is not None, "a quantizer's settings are in its checkpoint"
        own = preset(self.preset)
        return replace(
            own,
            sink_tokens=own.sink_tokens if self.sink_tokens is None else self.sink_tokens,
            recent_tokens=own.recent_tokens if self.recent_tokens is None else self.recent_tokens,
        )

    def _check_quantizer(self) -> None:
        if not self.quantizer:
            raise UserError("quantizer is empty; name the folder that `longvid calibrate` wrote")
        for name in ("sink_tokens", "recent_tokens"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"{name} has no effect: a quantizer keeps what it was calibrated with; leave it out, or calibrate "
                    f"with {name}: {getattr(self, name)}"
                )

    def _check_preset(self, policy: CachePolicy) -> None:
        if policy.calibrated:
            ready = ", ".join(name for name, one in PRESETS.items() if not one.calibrated)
            raise UserError(
                f"preset '{self.preset}' has static parameters: run `longvid calibrate` with it and name the folder it "
                f"writes with quantizer: FOLDER; without calibration there are {ready}"
            )
