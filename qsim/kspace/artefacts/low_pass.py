"""Low-pass: a lower resolution along some axes.

    K(k) -> K(k) w(k) [|k| <= N / (2 factor)]    along each of the axes

A box in k-space, centred on k = 0, whose samples stay together in conjugate pairs: real objects stay real. As a box
has 2 floor(N / 2 factor) + 1 samples, the factor that comes out is N over that, and is noted. What is lost is
the energy outside (Parseval); nothing is folded back, unlike after a nearest neighbour interpolation.
Source: shaw2021 section 5 (one or more random axes, factors 2 to 12).
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.acquired import Acquired, Json
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, whole_pair
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_axis, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.artefacts.sampling import along_axes, band, half_width, lines_with, weighted
from qsim.values import value

Window = Literal["box", "hamming"]


@dataclass(frozen=True, slots=True)
class LowPassDrawn:
    """What was drawn.

    Attributes:
        space: extent [voxels].
        axes: that lose resolution, counted from 0.
        half_widths: largest |k| that is kept along each of them.
        severity: 1 - the mean weight over k-space [1]; with a box, the share of k-space that is lost.
    """

    space: tuple[int, ...]
    axes: tuple[int, ...]
    half_widths: tuple[int, ...]
    severity: float


@value
class LowPass:
    """Lower resolution along one or more axes.

    Attributes:
        factor: voxel that comes out over voxel that came in, one drawn for each axis [1]; at least 1.
        axes: -1 is x, -2 y, -3 z; None: drawn.
        n_axes: how many axes are drawn, a pair is a range, both ends included; None: every set of axes that is not
            empty is as likely.
        window: `box`: weight 1 inside; `hamming`: .54 + .46 cos(pi k / (h + 1)) with h the largest k that is kept,
            which trades ringing for blur, and filters at factor 1 too.
        probability, ndim: see `Artefact`.
    Severity: share of k-space that is lost; with a window, 1 - its mean weight.
    Source: shaw2021 section 5.
    """

    stage: ClassVar[Stage] = Stage.SAMPLING
    kind: Literal["low_pass"] = "low_pass"
    factor: Amount = (2, 12)
    axes: tuple[int, ...] | None = None
    n_axes: int | tuple[int, int] | None = None
    window: Window = "box"
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("factor", self.factor, low=1)
        if self.axes is not None and not self.axes:
            raise ValueError("axes is empty; name at least one, or leave it out to have them drawn")
        if self.n_axes is not None:
            if self.axes is not None:
                raise ValueError("n_axes is for axes that are drawn; leave it out where axes are named")
            check_amount("n_axes", self.n_axes, low=1, high=3)
        if self.window not in ("box", "hamming"):
            raise ValueError(f"window must be box or hamming, got {self.window!r}")
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> LowPassDrawn:
        """Axes, and a factor for each.

        Raises: ValueError if space lacks an axis that is named, or as many as are to be drawn.
        """
        _, space = drawn_for(shape, self.ndim)
        axes = self._axes(space, rng)
        half_widths = tuple(half_width(space[a], 1 / draw_amount(self.factor, rng)) for a in axes)
        weights = [
            weights_of(space[a], half, self.window).mean().item() for a, half in zip(axes, half_widths, strict=True)
        ]
        return LowPassDrawn(space, axes, half_widths, 1 - float(np.prod(weights)))

    def _axes(self, space: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
        n = len(space)
        if self.axes is not None:
            axes = sorted(check_axis("axes", a, space) for a in self.axes)
            if len(set(axes)) < len(axes):
                raise ValueError(f"axes: {self.axes} names an axis twice")
            return tuple(axes)
        if self.n_axes is None:
            chosen = int(rng.integers(1, 2**n))
            return tuple(a for a in range(n) if chosen >> a & 1)
        low, high = whole_pair(self.n_axes)
        if high > n:
            raise ValueError(f"n_axes: up to {high} axes cannot be drawn from {n}")
        count = int(rng.integers(low, high + 1))
        return tuple(sorted(int(a) for a in rng.choice(n, count, replace=False)))

    def act(self, acquired: Acquired, drawn: LowPassDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        kept = zip(drawn.axes, drawn.half_widths, strict=True)
        weights = {a: weights_of(drawn.space[a], half, self.window) for a, half in kept}
        noted = acquired.noting(factors=factors_of(drawn))
        if drawn.severity == 0:
            return noted
        return weighted(noted, drawn.axes, along_axes(noted, weights))

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: LowPassDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def factors_of(drawn: LowPassDrawn) -> list[Json]:
    """Factor that came out along each axis: lines over lines that are kept."""
    kept = zip(drawn.axes, drawn.half_widths, strict=True)
    return [drawn.space[a] / len(band(drawn.space[a], half)) for a, half in kept]


def weights_of(n: int, half: int, window: Window) -> Float[Tensor, " n"]:
    """The weight of each line of an axis, in the order of the FFT; 0 where |k| > half."""
    inside = band(n, half)
    weights = lines_with(n, inside, 1, 0)
    if window == "hamming":
        k = torch.tensor(inside, dtype=torch.float64)
        weights[[line % n for line in inside]] = 0.54 + 0.46 * torch.cos(pi * k / (half + 1))
    return weights
