"""Principal directions instead of channels, and bits where the variance is: transform coding of keys and values.

``x^ = mu + g_t (sigma L[c]) U^T / w``. ``U`` turns a head into its principal directions (the Karhunen-Loeve transform
of the calibration sample). Their variances differ far more than those of channels, so the bits are shared out among
them (Huang and Schultheiss 1963): wide codes for the first, none for the last, ``b`` bits a number on average. The
heads of a layer have the same widths, so that all tokens take the same bytes. ``L`` are levels fitted as in
`lloyd_max`, one set for each width. Each token and head stores one byte for its gain, ``g = 2^((c - 128) / 16)``, in
steps of 4.4 %, a small part of what two bits lose. Together ``b + 8 / D`` bits a number.

Keys are coded before rotation with ``rotary="pre"``, where few directions hold most of their variance; ``w`` is the
root of the energy ``E[q_d^2]`` that meets each channel, so that directions are those of scores, not of keys. For values
``w`` is 1. Without a rotary embedding in between, ``U``, ``mu`` and ``sigma`` leave the loop over tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import TEXT, VISUAL, Codec, Coded, Places, choose_kind, split_kinds
from longvid_train.kvcache.packing import pack, packed_bytes, unpack
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import (
    Parameters,
    Sample,
    check_bits,
    check_choice,
    check_rotation,
    in_one_row,
    kinds_of,
    out_of_row,
)
from longvid_train.kvcache.schemes.lloyd_max import lloyd_levels, pair_mean, root_mean_square

WIDEST = 4
GRANULE = 8
"""Directions of one width come in eights, so that they fill whole bytes."""

DISTORTION = (1.0, 0.3634, 0.1175, 0.03454, 0.009497)
"""Mean squared error of 0 to 4 bits on a normal variable with the best levels (Max 1960, Table I)."""

LEAST_SHARE = 1e-3
"""Least weight or deviation, as a share of the largest of a head, so that a direction that the sample hardly has does
not blow up what another token has there."""

_STEPS_AN_OCTAVE = 16
_UNIT_GAIN = 128


@dataclass(frozen=True)
class Segment:
    """Directions ``start`` to ``stop - 1``, coded in ``width`` bits each, 0 to 4."""

    start: int
    stop: int
    width: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformCodec(Codec):
    """Static mean, weights, directions, deviations and levels.

    Attributes:
        mean: ``(K, H, D)`` float32.
        weight: ``(K, H, D)`` float32 ``w``, above 0.
        directions: ``(K, H, D, D)`` float32 ``U``, a direction a column, the widest codes first.
        deviation: ``(K, H, D)`` float32 of each direction, above 0.
        levels: ``(K, 2 + 4 + 8 + 16)`` float32, rising, for widths 1 to 4.
        segments: widths of the directions, in order.
        rotation: given where keys are coded before rotation.
    """

    mean: torch.Tensor
    weight: torch.Tensor
    directions: torch.Tensor
    deviation: torch.Tensor
    levels: torch.Tensor
    segments: tuple[Segment, ...]
    rotation: Rotation | None

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """Nearest levels of the vectors brought to the levels' size; then the gain that fits them best."""
        plain = x.double() if self.rotation is None else self.rotation.remove(x.double(), places.positions)
        found = [self._encode_kind(kind, plain) for kind in range(len(self.mean))]
        return {name: _of_own_kind([one[name] for one in found], places) for name in found[0]}

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``mu + g (sigma L[c]) U^T / w``, rotated where it was coded before rotation."""
        gain = _gain_of(coded["gain"]).unsqueeze(-1)
        found = [
            self._mean(kind) + self._out_of_directions(kind, gain * self._chosen(kind, coded["codes"]))
            for kind in range(len(self.mean))
        ]
        decoded = _of_own_kind(found, places)
        return decoded if self.rotation is None else self.rotation.apply(decoded, places.positions)

    def scores(self, query: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``q . mu + g (q / w U sigma) . L[c]`` where there is no rotation in between."""
        if self.rotation is not None:
            return super().scores(query, coded, places)
        gain = _gain_of(coded["gain"]).unsqueeze(-2)
        found = [
            gain * (self._into_directions(kind, query) @ self._chosen(kind, coded["codes"]).transpose(-1, -2))
            + (query * self._mean(kind)).sum(-1, keepdim=True)
            for kind in range(len(self.mean))
        ]
        return choose_kind(found, places)

    def mix(self, weights: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``(sigma ((p g) . L[c])) U^T / w + mu sum p`` where there is no rotation in between."""
        if self.rotation is not None:
            return super().mix(weights, coded, places)
        gain = _gain_of(coded["gain"]).unsqueeze(-2)
        mixed = torch.zeros((), device=weights.device)
        for kind, part in enumerate(split_kinds(weights, len(self.mean), places)):
            mixed = mixed + self._out_of_directions(kind, (part * gain) @ self._chosen(kind, coded["codes"]))
            mixed = mixed + self._mean(kind) * part.sum(-1, keepdim=True)
        return mixed

    def _encode_kind(self, kind: int, x: torch.Tensor) -> Coded:
        deviation = self.deviation[kind][:, None, :].double()
        weighted = (x - self._mean(kind).double()) * self.weight[kind][:, None, :].double()
        normal = (weighted @ self.directions[kind].double()) / deviation
        scaled = normal / root_mean_square(normal[..., : _coded(self.segments)])
        pieces, chosen = [], torch.zeros_like(normal)
        for segment in self.segments:
            if segment.width:
                levels = _levels_of_width(self.levels[kind], segment.width).double()
                part = slice(segment.start, segment.stop)
                codes = torch.bucketize(scaled[..., part].contiguous(), (levels[1:] + levels[:-1]) / 2)
                chosen[..., part] = levels[codes]
                pieces.append(pack(codes.to(torch.uint8), segment.width))
        importance = deviation.square()
        size = (importance * chosen.square()).sum(-1)
        factor = (importance * normal * chosen).sum(-1) / torch.where(size > 0, size, 1.0)
        return {"codes": torch.cat(pieces, dim=-1), "gain": _gain_code(factor)}

    def _chosen(self, kind: int, codes: torch.Tensor) -> torch.Tensor:
        """``(B, H, T, D)`` float32 levels of the directions; 0 for those without a code."""
        pieces, start = [], 0
        for segment in self.segments:
            count = segment.stop - segment.start
            if not segment.width:
                pieces.append(torch.zeros(*codes.shape[:-1], count, device=codes.device))
                continue
            stop = start + packed_bytes(count, segment.width)
            levels = _levels_of_width(self.levels[kind], segment.width)
            pieces.append(levels[unpack(codes[..., start:stop], segment.width, count).int()])
            start = stop
        return torch.cat(pieces, dim=-1)

    def _mean(self, kind: int) -> torch.Tensor:
        return self.mean[kind][:, None, :]

    def _into_directions(self, kind: int, query: torch.Tensor) -> torch.Tensor:
        """``q / w U sigma``: what a query is to the levels."""
        turned = (query / self.weight[kind][:, None, :]) @ self.directions[kind]
        return turned * self.deviation[kind][:, None, :]

    def _out_of_directions(self, kind: int, levels: torch.Tensor) -> torch.Tensor:
        """``(sigma L) U^T / w``."""
        turned = (levels * self.deviation[kind][:, None, :]) @ self.directions[kind].transpose(-1, -2)
        return turned / self.weight[kind][:, None, :]


@dataclass(frozen=True, kw_only=True)
class TransformCoding:
    """Directions with a share of the bits each.

    Attributes:
        bits: mean over a head's numbers, 1 to 3; a direction has up to 4.
        rotary: ``"pre"`` takes the rotary embedding off first; keys only.
    """

    kind: ClassVar[str] = "transform_coding"
    granularity: ClassVar[str] = "direction + token gain"
    formula: ClassVar[str] = (
        "x^ = [R(position)] (mean + g * (deviation * levels[code]) directions^T / weight), "
        "g = 2^((gain - 128) / 16), 0 where gain is 0"
    )

    bits: int = 2
    rotary: Literal["pre", "post"] = "post"

    symmetric: ClassVar[bool] = False
    calibrated: ClassVar[bool] = True
    block_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be coded."""
        check_bits(self.bits, self.kind)
        check_choice(self.rotary, ("pre", "post"), "rotary")
        if self.bits >= WIDEST:
            raise UserError(f"{self.kind}: bits is {self.bits}; at most {WIDEST - 1}, or use static_channel")

    def check_head_dim(self, head_dim: int) -> None:
        """Refuse a head whose directions do not come in eights.

        Raises:
            UserError: naming it.
        """
        if head_dim % GRANULE:
            raise UserError(f"{self.kind}: the head dim {head_dim} is not a multiple of {GRANULE}; use lloyd_max")

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """See `TransformCodec`; ``widths (1, 1, D)`` are whole numbers, one a direction."""
        taken_off = self._rotation(rotation)
        found = [_principal(group, taken_off) for group in sample.groups(separate)]
        mean, weight, directions, deviation = (
            torch.stack(column).float() for column in zip(*(one.parameters() for one in found), strict=True)
        )
        widths = shared_out(torch.stack([one.deviation for one in found]).square().sum((0, 1)), self.bits)
        levels = torch.stack([_fit_levels(one.normal, one.deviation, _segments(widths)) for one in found]).float()
        return {
            "mean": mean,
            "weight": weight,
            "directions": directions,
            "deviation": deviation,
            "levels": levels,
            "widths": torch.tensor(widths, dtype=torch.float32)[None, None],
        }

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        kinds = kinds_of(separate)
        return {
            **dict.fromkeys(("mean", "weight", "deviation"), (kinds, heads, head_dim)),
            "directions": (kinds, heads, head_dim, head_dim),
            "levels": (kinds, _first_level(WIDEST + 1)),
            "widths": (1, 1, head_dim),
        }

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """Bind everything."""
        return TransformCodec(
            bits=self.bits,
            mean=parameters["mean"],
            weight=parameters["weight"],
            directions=parameters["directions"],
            deviation=parameters["deviation"],
            levels=parameters["levels"],
            segments=_segments([int(width) for width in parameters["widths"].flatten().tolist()]),
            rotation=self._rotation(rotation),
        )

    def _rotation(self, rotation: Rotation | None) -> Rotation | None:
        return check_rotation(rotation, self.kind) if self.rotary == "pre" else None


def shared_out(variance: torch.Tensor, bits: int) -> list[int]:
    """Widths of directions by falling variance, ``bits`` on average, with the least error by `DISTORTION`.

    What a further bit saves falls with the bits a direction has, so it is best to give bit after bit to where it saves
    most.

    Args:
        variance: ``(D,)``, falling.
        bits: mean width.
    """
    granules = variance.view(-1, GRANULE).sum(-1).tolist()
    widths = [0] * len(granules)
    for _ in range(bits * len(granules)):
        open_ones = [place for place, width in enumerate(widths) if width < WIDEST]
        best = max(open_ones, key=lambda place: granules[place] * _saved(widths[place]))
        widths[best] += 1
    return [width for width in widths for _ in range(GRANULE)]


@dataclass(frozen=True, eq=False)
class _Principal:
    """A sample in its principal directions.

    Attributes:
        mean: ``(H, D)``.
        weight: ``(H, D)``.
        directions: ``(H, D, D)``.
        deviation: ``(H, D)``, falling.
        normal: ``(N, H, D)`` over the deviation.
    """

    mean: torch.Tensor
    weight: torch.Tensor
    directions: torch.Tensor
    deviation: torch.Tensor
    normal: torch.Tensor

    def parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a codec keeps."""
        return self.mean, self.weight, self.directions, self.deviation


def _principal(sample: Sample, rotation: Rotation | None) -> _Principal:
    vectors, energy = sample.vectors.double(), sample.weights.double()
    if rotation is not None:
        row, positions = in_one_row(sample)
        vectors, energy = out_of_row(rotation.remove(row, positions)), pair_mean(energy)
    weight = _at_least_a_share(energy.sqrt())
    mean = vectors.mean(0)
    weighted = (vectors - mean) * weight
    covariance = torch.einsum("nhd,nhe->hde", weighted, weighted) / len(weighted)
    directions = _with_signs(torch.linalg.eigh(covariance).eigenvectors.flip(-1))
    turned = torch.einsum("nhd,hde->nhe", weighted, directions)
    deviation = _at_least_a_share(turned.square().mean(0).sqrt())
    return _Principal(mean, weight, directions, deviation, turned / deviation)


def _fit_levels(normal: torch.Tensor, deviation: torch.Tensor, segments: tuple[Segment, ...]) -> torch.Tensor:
    """``(30,)``: levels of widths 1 to 4; a width that no direction has gets quantiles of a normal distribution."""
    scaled = normal / root_mean_square(normal[..., : _coded(segments)])
    nothing = normal.new_zeros(0)
    found = {width: lloyd_levels(nothing, nothing, width) for width in range(1, WIDEST + 1)}
    for segment in segments:
        if segment.width:
            part = slice(segment.start, segment.stop)
            importance = deviation[:, part].square().expand_as(scaled[..., part])
            found[segment.width] = lloyd_levels(scaled[..., part].flatten(), importance.flatten(), segment.width)
    return torch.cat(list(found.values()))


def _segments(widths: list[int]) -> tuple[Segment, ...]:
    """Runs of equal widths."""
    edges = [place for place in range(1, len(widths)) if widths[place] != widths[place - 1]]
    starts, stops = [0, *edges], [*edges, len(widths)]
    return tuple(Segment(start, stop, widths[start]) for start, stop in zip(starts, stops, strict=True))


def _coded(segments: tuple[Segment, ...]) -> int:
    """Directions that have codes; they come first."""
    return max(segment.stop for segment in segments if segment.width)


def _saved(width: int) -> float:
    return DISTORTION[width] - DISTORTION[width + 1]


def _first_level(width: int) -> int:
    """Where the levels of a width begin: behind ``2 + 4 + ...`` of the narrower ones."""
    return 2**width - 2


def _levels_of_width(levels: torch.Tensor, width: int) -> torch.Tensor:
    return levels[_first_level(width) : _first_level(width + 1)]


def _gain_code(gain: torch.Tensor) -> torch.Tensor:
    """One byte: sixteenths of an octave around 1; 0 for gains too small for that."""
    octaves = gain.clamp_min(torch.finfo(torch.float64).tiny).log2()
    code = (octaves * _STEPS_AN_OCTAVE).round() + _UNIT_GAIN
    return code.clamp(0, 255).to(torch.uint8)


def _gain_of(code: torch.Tensor) -> torch.Tensor:
    """float32."""
    return torch.where(code > 0, torch.exp2((code.float() - _UNIT_GAIN) / _STEPS_AN_OCTAVE), 0.0)


def _at_least_a_share(x: torch.Tensor) -> torch.Tensor:
    """``(H, D)`` raised to `LEAST_SHARE` of each head's largest; 1 where all of a head is 0."""
    largest = x.amax(-1, keepdim=True)
    return torch.where(largest > 0, torch.maximum(x, largest * LEAST_SHARE), 1.0)


def _with_signs(directions: torch.Tensor) -> torch.Tensor:
    """Each column with its largest entry positive, which the eigenvalue problem leaves open."""
    largest = directions.gather(-2, directions.abs().argmax(-2, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def _of_own_kind(candidates: list[torch.Tensor], places: Places) -> torch.Tensor:
    """Of one ``(B, H, T, ...)`` tensor a kind, the entries of each token's own kind."""
    if len(candidates) == 1:
        return candidates[0]
    assert places.kinds is not None, "separate parameters need the kind of every token"
    text = (places.kinds == TEXT)[:, None, :]
    own = text if candidates[TEXT].dim() == text.dim() else text[..., None]
    return torch.where(own, candidates[TEXT], candidates[VISUAL])
