"""The rotary position embedding of a model, applied to and taken off cached keys.

A cache receives keys ``scaling R(p) k``, as transformers rotates them: dimension ``i`` is paired with ``i + D/2`` and
turned by ``p theta_i``. Angles are float32 products, as the model computes them; the rest is done in the dtype of the
input. ``B`` rows, ``H`` heads, ``T`` tokens, ``D`` head dim.
"""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Rotation:
    """Frequencies and the factor on cos and sin.

    Attributes:
        inv_freq: ``(D/2,)`` float32.
        scaling: transformers' ``attention_scaling``.
    """

    inv_freq: torch.Tensor
    scaling: float = 1.0

    def apply(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``scaling R(p) x`` of ``x (B, H, T, D)`` at ``positions (B, T)``."""
        cos, sin = self._cos_sin(positions, x.dtype)
        return _turn(x, cos, sin) * self.scaling

    def remove(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The inverse of `apply`."""
        cos, sin = self._cos_sin(positions, x.dtype)
        return _turn(x, cos, -sin) / self.scaling

    def scores(self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Dot products of queries with one key that is rotated to every position.

        ``q . R(p) k = sum_i cos(p theta_i) (q_i k_i + q_j k_j) + sin(p theta_i) (q_j k_i - q_i k_j)`` with
        ``j = i + D/2``: no rotated key is made.

        Args:
            query: ``(B, H, R, D)``.
            key: ``(H, D)``, not rotated.
            positions: ``(B, T)``.

        Returns:
            ``(B, H, R, T)``.
        """
        cos, sin = self._cos_sin(positions, query.dtype)
        first, second = query.chunk(2, dim=-1)
        key_first, key_second = (half[:, None, :] for half in key.to(query.dtype).chunk(2, dim=-1))
        even = first * key_first + second * key_second
        odd = second * key_first - first * key_second
        return (even @ cos.transpose(-1, -2) + odd @ sin.transpose(-1, -2)) * self.scaling

    def fingerprint(self) -> str:
        """Hex SHA-256, equal for equal rotations."""
        digest = hashlib.sha256(self.inv_freq.float().cpu().numpy().tobytes())
        digest.update(repr(float(self.scaling)).encode())
        return digest.hexdigest()

    def differs(self, other: "Rotation") -> str | None:
        """Words that say where another rotation differs, own value first; ``None`` where it does not."""
        own, others = self.inv_freq.float().cpu(), other.inv_freq.float().cpu()
        if own.shape != others.shape:
            return f"{len(own)} frequencies and {len(others)}"
        if self.scaling != other.scaling:
            return f"attention scaling {self.scaling} and {other.scaling}"
        different = (own != others).nonzero().flatten().tolist()
        if not different:
            return None
        place = different[-1]
        return f"inverse frequency {place}: {own[place].item():.8g} and {others[place].item():.8g}"

    def to(self, device: torch.device | str) -> "Rotation":
        """The same rotation on a device."""
        return Rotation(self.inv_freq.to(device), self.scaling)

    def _cos_sin(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Each ``(B, 1, T, D/2)``."""
        angles = (positions[:, None, :, None].float() * self.inv_freq).to(dtype)
        return angles.cos(), angles.sin()


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
