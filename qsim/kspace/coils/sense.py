"""Regular undersampling, and its unfolding with several coils.

Of an axis of N voxels every R-th line of k-space is measured, the one through k = 0 among them. The image of the
M = N / R lines, orthonormal like every transform here, is folded: with p counted from the middle of either image,

    a_j(p) = 1 / sqrt(R) sum_i s_j(p + i M) m(p + i M) + n_j(p)

so no transform is needed, and noise has the same sigma per sample of k-space, folded or not. With S the c x R matrix of
the sensitivities of the voxels that fold onto each other,

    m = sqrt(R) (S^H Psi^-1 S + lambda 1)^-1 S^H Psi^-1 a
    g_i = sqrt([(S^H Psi^-1 S)^-1]_ii [S^H Psi^-1 S]_ii) >= 1
    SD per real channel = sigma g_i sqrt(R) / sqrt([S^H Psi^-1 S]_ii)

With lambda the SD is that of the weights themselves, which shrink towards 0: g may be below 1 and m is biased.
Source: Pruessmann et al. 1999, doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S.
"""

from dataclasses import dataclass
from math import prod, sqrt

import torch
from jaxtyping import Bool, Complex, Float, Inexact
from torch import Tensor

from qsim.kspace.coils.combination import check_sensitivities, weighted
from qsim.kspace.coils.covariance import Factor
from qsim.kspace.fourier import require_complex
from qsim.values import value

# least part of a voxel's unit pattern, squared, that the voxels folded onto it leave unexplained: g up to a million
_PIVOT = 1e-12
# places of the folded image at once: larger pieces leave the cache
_VOXELS = 2048


@value
class Acceleration:
    """Every R-th line of k-space along some axes.

    Attributes:
        factors: R of each axis, whole numbers that divide its voxels.
        axes: -1 is x, -2 y, -3 z.
    """

    factors: tuple[int, ...]
    axes: tuple[int, ...] = (-2,)

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.axes) or not self.factors:
            raise ValueError(f"factors must be one for each of the axes {list(self.axes)}, got {list(self.factors)}")
        if min(self.factors) < 1:
            raise ValueError(f"factors must be at least 1, got {list(self.factors)}")
        if not set(self.axes) <= {-1, -2, -3}:
            raise ValueError(f"axes must be -1 (x), -2 (y) or -3 (z), got {list(self.axes)}")
        if len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes: {list(self.axes)} names an axis twice")

    @property
    def total(self) -> int:
        """R of all axes together."""
        return prod(self.factors)

    def of_axes(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """R of every axis of space, 1 where nothing is left out.

        Raises: ValueError if there is no such axis, or R does not divide it.
        """
        every = [1] * len(space)
        for factor, axis in zip(self.factors, self.axes, strict=True):
            if -axis > len(space):
                raise ValueError(f"axes: axis {axis} does not exist in space of {len(space)} axes")
            n = space[axis]
            if n % factor:
                more = n + factor - n % factor
                nearest = f"crop or pad it to {n - n % factor} or {more}" if n > factor else f"pad it to {more}"
                raise ValueError(f"factors: {factor} does not divide the {n} voxels of axis {axis}; {nearest}")
            every[axis] = factor
        return tuple(every)


@dataclass(frozen=True, slots=True)
class Sense:
    """An unfolded series.

    Attributes:
        images: [units of the images].
        g: what the geometry of the coils costs, 1 or more; 0 outside the mask [1].
        noise: SD per real channel of `images` over sigma; 0 outside the mask [1].
    """

    images: Complex[Tensor, "n *space"]
    g: Float[Tensor, "*space"]
    noise: Float[Tensor, "*space"]


@dataclass(frozen=True, slots=True)
class Unfolding:
    """The weights of one geometry, for any number of series.

    Attributes:
        weights: of each coil for each of the voxels that fold onto each other.
        factors: R of each axis of space.
        g, noise: as in `Sense`.
    """

    weights: Complex[Tensor, "r c *reduced"]
    factors: tuple[int, ...]
    g: Float[Tensor, "*space"]
    noise: Float[Tensor, "*space"]

    def __call__(self, folded: Complex[Tensor, "n c *reduced"]) -> Complex[Tensor, "n *space"]:
        """Unfolded images.

        Raises: ValueError if the images are real, or of another extent.
        """
        require_complex(folded)
        if folded.shape[1:] != self.weights.shape[1:]:
            raise ValueError(
                f"folded images of {folded.shape[1]} coils and {tuple(folded.shape[2:])} voxels do not fit weights for "
                f"{self.weights.shape[1]} and {tuple(self.weights.shape[2:])}; undersample with the same acceleration"
            )
        weights = self.weights.to(folded.dtype)
        parts = torch.stack([weighted(each, folded) for each in weights])
        return _spread(parts, self.factors)


def undersample(images: Complex[Tensor, "n c *space"], acceleration: Acceleration) -> Complex[Tensor, "n c *reduced"]:
    """Folded images of the coils, as the lines that are kept give them.

    Raises: ValueError if the images are real, or R does not divide an axis.
    """
    require_complex(images)
    factors = acceleration.of_axes(tuple(images.shape[2:]))
    return _together(images, factors).sum(0) / sqrt(acceleration.total)


def unfolding(
    sensitivities: Complex[Tensor, "c *space"],
    acceleration: Acceleration,
    psi: Inexact[Tensor, "c c"] | None = None,
    regularisation: float = 0.0,
    mask: Bool[Tensor, "*space"] | None = None,
) -> Unfolding:
    """Weights and noise of the reconstruction; computed in double precision.

    Args:
        psi: covariance of the noise; None: white.
        regularisation: lambda; R sigma^2 over the variance per channel that is expected of the image is best [1].
        mask: voxels that hold something; the others are taken as 0, which helps those they fold onto. None: all.
    Raises: ValueError if R exceeds the coils or does not divide an axis, a voxel is seen by no coil, or voxels that
        fold onto each other look the same to the coils.
    """
    coils, *extent = sensitivities.shape
    space = tuple(extent)
    check_sensitivities(sensitivities, coils, space)
    factors = acceleration.of_axes(space)
    total = acceleration.total
    if total > coils:
        raise ValueError(f"factors: {total} voxels fold onto each other, which {coils} coils cannot tell apart")
    if not 0 <= regularisation < float("inf"):
        raise ValueError(f"regularisation must be finite and at least 0, got {regularisation}")
    where = torch.ones(space, dtype=torch.bool, device=sensitivities.device) if mask is None else mask
    factor = None if psi is None else Factor.of(psi, coils)

    seen = _together(torch.where(where, sensitivities, 0), factors)
    held = _together(where, factors).flatten(1)
    reduced = tuple(seen.shape[2:])
    solved: list[_Solved] = []
    for patterns, wanted in zip(seen.flatten(2).split(_VOXELS, -1), held.split(_VOXELS, -1), strict=True):
        wide = patterns.to(torch.complex128)
        columns = (wide if factor is None else factor.white(wide)).permute(2, 1, 0).contiguous()
        solved.append(_solve(columns, wanted.T, regularisation))
    _check_told_apart(torch.cat([each.alike for each in solved]), reduced)
    weights = torch.cat([each.weights for each in solved]) * sqrt(total)
    power, size = (torch.cat([getattr(each, name) for each in solved]) for name in ("power", "size"))
    real = sensitivities.real.dtype
    g, noise = (
        _spread(each.T.reshape(total, *reduced), factors).to(real) for each in (size * power.sqrt(), size * sqrt(total))
    )
    if factor is not None:
        weights = factor.white_rows(weights)
    weights = weights.to(sensitivities.dtype).permute(1, 2, 0).reshape(total, coils, *reduced)
    return Unfolding(weights.contiguous(), factors, g, noise)


def sense(
    folded: Complex[Tensor, "n c *reduced"],
    sensitivities: Complex[Tensor, "c *space"],
    acceleration: Acceleration,
    psi: Inexact[Tensor, "c c"] | None = None,
    regularisation: float = 0.0,
    mask: Bool[Tensor, "*space"] | None = None,
) -> Sense:
    """Unfold a series that `undersample` folded; arguments as of `unfolding`."""
    weights = unfolding(sensitivities, acceleration, psi, regularisation, mask)
    return Sense(weights(folded), weights.g, weights.noise)


@dataclass(frozen=True, slots=True)
class _Solved:
    """Weights for whitened coils, [S^H Psi^-1 S]_ii, length of the weights, and where no solution is."""

    weights: Complex[Tensor, "v r c"]
    power: Float[Tensor, "v r"]
    size: Float[Tensor, "v r"]
    alike: Bool[Tensor, " v"]


def _solve(s: Complex[Tensor, "v c r"], wanted: Bool[Tensor, "v r"], regularisation: float) -> _Solved:
    """(S^H S + lambda 1)^-1 S^H for every place of the folded image, S whitened."""
    normal = s.mH @ s
    power = normal.diagonal(dim1=1, dim2=2).real
    blind = wanted & ~(power > 0)
    if regularisation == 0 and bool(blind.any()):
        raise ValueError("sensitivities: some voxels are seen by no coil; leave them out by a mask of the object")
    # columns of unit length: the pivots of the factor are then shares, whatever the brightness
    scale = torch.where(power + regularisation > 0, power + regularisation, 1).rsqrt()
    shares = normal * scale[:, :, None] * scale[:, None, :]
    shares = shares + torch.diag_embed(1 - shares.diagonal(dim1=1, dim2=2).real)
    lower, failed = torch.linalg.cholesky_ex(shares)
    alike = (failed != 0) | (lower.diagonal(dim1=1, dim2=2).real.square() < _PIVOT).any(1)
    weights = torch.cholesky_solve(s.mH * scale[:, :, None], lower) * scale[:, :, None]
    return _Solved(weights, power, torch.view_as_real(weights).square().sum((2, 3)).sqrt(), alike)


def _check_told_apart(alike: Bool[Tensor, " v"], reduced: tuple[int, ...]) -> None:
    """Refuse sensitivities that leave places without a solution, naming the first."""
    if bool(alike.any()):
        place = int(alike.nonzero()[0, 0])
        raise ValueError(
            f"sensitivities: in {int(alike.sum())} of {len(alike)} places the voxels that fold onto each other look "
            f"the same to the coils, first at folded voxel {_index(place, reduced)}; choose a smaller factor or "
            "another axis, or give a mask or a regularisation"
        )


def _together(values: Tensor, factors: tuple[int, ...]) -> Tensor:
    """(*lead, *space) -> (r, *lead, *reduced): the voxels that fold onto each other along the first axis."""
    space = values.shape[values.ndim - len(factors) :]
    lead = values.ndim - len(factors)
    shifts = [n // f // 2 - n // 2 for n, f in zip(space, factors, strict=True)]
    if any(shifts):
        values = torch.roll(values, shifts, tuple(range(lead, values.ndim)))
    split = values.reshape(*values.shape[:lead], *(x for n, f in zip(space, factors, strict=True) for x in (f, n // f)))
    which = [lead + 2 * a for a in range(len(factors))]
    inside = [a + 1 for a in which]
    ordered = split.permute(*which, *range(lead), *inside)
    return ordered.flatten(0, len(factors) - 1)


def _spread(values: Tensor, factors: tuple[int, ...]) -> Tensor:
    """The inverse of `_together`."""
    d = len(factors)
    lead = values.ndim - 1 - d
    reduced = values.shape[1 + lead :]
    split = values.reshape(*factors, *values.shape[1:])
    pairs = [x for a in range(d) for x in (a, d + lead + a)]
    space = [n * f for n, f in zip(reduced, factors, strict=True)]
    whole = split.permute(*range(d, d + lead), *pairs).reshape(*values.shape[1 : 1 + lead], *space)
    shifts = [n // 2 - m // 2 for n, m in zip(space, reduced, strict=True)]
    return torch.roll(whole, shifts, tuple(range(lead, whole.ndim))) if any(shifts) else whole


def _index(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape))
