"""Gibbs ringing: k-space ends too early, on every axis.

    box:     K(k) kept where |k_a| <= kept N_a / 2 on every axis a
    ellipse: K(k) kept where sum_a (2 k_a / N_a)^2 <= d kept^2,    d axes of more than one sample

`kept` is the half width of what is kept over that of k-space: along every axis for the box, along the diagonal for
the ellipse, whose corners are thereby reached at 1; below 1 / sqrt(d) the ellipse lies within k-space.
At 1 both keep every sample, in 2D and in 3D. Both are centred on k = 0 and keep conjugate pairs together.
Next to an ideal edge the ringing overshoots by 8.95 % of the step, however much is kept:

    (Si(pi) - pi / 2) / pi = 0.08949

Source: Wilbraham 1848, Gibbs 1899; Jerri, The Gibbs Phenomenon in Fourier Analysis, Splines and Wavelet
Approximations, 1998.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Complex, Int
from torch import Tensor

from qsim.kspace.acquired import Acquired, line_order
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, reach
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.artefacts.sampling import ROUNDING, along_axes, band, half_width, lines_with, weighted
from qsim.values import value

Support = Literal["box", "ellipse"]

# numbers of a slab: its temporaries stay in the cache
_SLAB = 131_072


@dataclass(frozen=True, slots=True)
class GibbsDrawn:
    """Attributes: space: extent [voxels]; kept: see `Gibbs` [1]; samples: of k-space that are kept."""

    space: tuple[int, ...]
    kept: float
    samples: int

    @property
    def severity(self) -> float:
        """Share of the samples of k-space that is lost [1]."""
        return 1 - self.samples / prod(self.space)


@value
class Gibbs:
    """Gibbs ringing from a k-space that ends too early on every axis.

    Attributes:
        kept: half width of what is kept over that of k-space, in (0, 1]: along each axis for a box, along the diagonal
            for an ellipse [1].
        support: shape of what is kept.
        probability, ndim: see `Artefact`.
    Severity: share of the samples of k-space that is lost.
    Not: a voxel of another size; the image keeps its grid, as after zero filling. For one axis alone see `LowPass`.
    """

    stage: ClassVar[Stage] = Stage.SAMPLING
    kind: Literal["gibbs"] = "gibbs"
    kept: Amount = (0.3, 0.7)
    support: Support = "box"
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("kept", self.kept, low=0, high=1)
        if reach(self.kept)[0] == 0:
            raise ValueError(f"kept must lie in (0, 1], got {self.kept}; without samples there is no image")
        if self.support not in ("box", "ellipse"):
            raise ValueError(f"support must be box or ellipse, got {self.support!r}")
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> GibbsDrawn:
        _, space = drawn_for(shape, self.ndim)
        kept = draw_amount(self.kept, rng)
        if self.support == "box":
            return GibbsDrawn(space, kept, prod(len(band(n, half_width(n, kept))) for n in space))
        rows = (2 * row_half_widths(space, kept) + 1).clamp(0, space[-1])
        return GibbsDrawn(space, kept, int(rows.sum()))

    def act(self, acquired: Acquired, drawn: GibbsDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        axes = range(len(drawn.space))
        half_widths = [half_width(n, drawn.kept) for n in drawn.space]
        # where less is kept, what the smaller transforms save outweighs that they are made axis by axis
        if self.support == "box" and not acquired.in_kspace and 4 * drawn.samples < prod(drawn.space):
            return acquired.with_values(boxed(acquired.values, half_widths))
        if self.support == "ellipse":
            inside = ellipse(drawn.space, drawn.kept, acquired.values.device)
            return weighted(acquired, axes, [inside.to(acquired.values.real.dtype)])
        boxes = {a: lines_with(n, band(n, half_widths[a]), 1, 0) for a, n in enumerate(drawn.space)}
        return weighted(acquired, axes, along_axes(acquired, boxes))

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: GibbsDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def boxed(values: Complex[Tensor, "n c *space"], half_widths: Sequence[int]) -> Complex[Tensor, "n c *space"]:
    """Images to images through the box of k-space: an axis is cut as soon as it is transformed, the next are smaller.

    In slabs of the first axis that fit in the cache. At `kept` 0.5 this is 1.2 times as fast as the transform of all
    axes, at 0.3 1.8 times.
    """
    dims = range(2, values.ndim)
    rows = values.shape[2]
    thickness = max(1, _SLAB * rows // values.numel()) if values.device.type == "cpu" else rows
    slabs = values.split(thickness, dim=2)
    narrow = torch.cat([_cut(slab, dims[1:], half_widths[1:]) for slab in slabs], dim=2)
    narrow = _widened(_cut(narrow, dims[:1], half_widths[:1]), dims[:1], half_widths[:1], (rows,))
    result = torch.empty_like(values)
    for whole, slab in zip(result.split(thickness, dim=2), narrow.split(thickness, dim=2), strict=True):
        whole.copy_(_widened(slab, dims[1:], half_widths[1:], values.shape[3:]))
    return result


def _cut(values: Tensor, dims: Sequence[int], half_widths: Sequence[int]) -> Tensor:
    """To k-space along some axes, the last one first, without the lines outside the box."""
    for dim, half in reversed(list(zip(dims, half_widths, strict=True))):
        values, n = torch.fft.fft(values, dim=dim, norm="ortho"), values.shape[dim]
        if 2 * half + 1 < n:
            values = torch.cat([values.narrow(dim, 0, half + 1), values.narrow(dim, n - half, half)], dim)
    return values


def _widened(values: Tensor, dims: Sequence[int], half_widths: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Back from `_cut`, to axes of their sizes."""
    for dim, half, n in zip(dims, half_widths, sizes, strict=True):
        if 2 * half + 1 < n:
            gap = [*values.shape[:dim], n - 2 * half - 1, *values.shape[dim + 1 :]]
            parts = [values.narrow(dim, 0, half + 1), values.new_zeros(gap), values.narrow(dim, half + 1, half)]
            values = torch.cat(parts, dim)
        values = torch.fft.ifft(values, dim=dim, norm="ortho")
    return values


def ellipse(space: tuple[int, ...], kept: float, device: torch.device) -> Bool[Tensor, "*space"]:
    """Where the samples are that the ellipse keeps, in the order of the FFT."""
    rows = row_half_widths(space, kept).to(device=device, dtype=torch.int32)
    return line_order(space[-1], device).to(torch.int32).abs() <= rows[..., None]


def row_half_widths(space: tuple[int, ...], kept: float) -> Int[Tensor, "*rows"]:
    """The largest |k| along x in the ellipse, for every sample of the other axes; negative where there is none."""
    # an axis of one sample has only k = 0
    room = torch.tensor(sum(n > 1 for n in space) * kept**2 * (1 + ROUNDING), dtype=torch.float64)
    for n in space[:-1]:
        room = room[..., None] - (2 * line_order(n) / n).double() ** 2
    reached = torch.floor(torch.sqrt(room.clamp(min=0)) * space[-1] / 2)
    return torch.where(room < 0, -1, reached).long()
