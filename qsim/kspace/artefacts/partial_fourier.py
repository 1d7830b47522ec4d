"""Partial Fourier: the lines at one end of k-space are not measured, and are made up for.

    K(k) measured for |k| <= h and on one side beyond, h = (N - 1) // 2 - missing

A real object has K(-k) = K(k)*, so that half of k-space is enough; phase breaks that, and what is left of it after
the phase of the middle, |k| <= h, has been taken away is what each reconstruction gets wrong:

    zero_filled: missing lines are 0: blur along the axis.
    conjugate:   K(k) = K(-k)* on missing lines: exact for a real object, ghost-like errors with phase.
    homodyne:    m = Re[exp(-i theta) F^-1(w K)] exp(i theta), theta the phase of F^-1(K [|k| <= h]),
                 w 1 in the inner half of the middle, a ramp to 0 and 2 in the outer half: w(k) + w(-k) = 2.
    pocs:        in turn m <- Re[m exp(-i theta)] exp(i theta), and measured lines put back; no line that was
                 measured changes.

All of it happens along one axis, with the others in the image, as K(-k, x) = K(k, x)* holds for every x. On an even
axis k = -N / 2 and N / 2 are one line, its own mirror image: it counts to the side that is measured, without it no
half of k-space would do. Magnitudes suffer only where the object has phase, zero filling apart.
A ramp over the whole middle, the other weight of Noll et al., scales the image by 1 + s / (h + 1) where the phase turns
s times per field of view; a step at h rings. The ramp over half of it has the smaller error of all three.
Source: Margosian, Schmitt, Purdy 1986 (conjugate); Noll, Nishimura, Macovski 1991, doi:10.1109/42.79473 (homodyne);
Haacke, Lindskog, Lin 1991, J Magn Reson 92:126 (pocs).
"""

from dataclasses import dataclass
from math import floor
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.acquired import Acquired, line_order
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, reach
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.artefacts.sampling import ROUNDING, band, drawn_axis, lines_with, weighted
from qsim.values import value

Side = Literal["negative", "positive"]
Reconstruction = Literal["zero_filled", "conjugate", "homodyne", "pocs"]


@dataclass(frozen=True, slots=True)
class PartialFourierDrawn:
    """Attributes: space: extent [voxels]; axis: counted from 0; side: that is cut; missing: lines."""

    space: tuple[int, ...]
    axis: int
    side: Side
    missing: int

    @property
    def severity(self) -> float:
        """Share of the lines that is not measured [1]."""
        return self.missing / self.space[self.axis]

    @property
    def lines(self) -> tuple[int, ...]:
        """k of the missing lines, centred."""
        top = (self.space[self.axis] - 1) // 2
        ends = range(top - self.missing + 1, top + 1)
        return tuple(ends) if self.side == "positive" else tuple(-k for k in ends)

    @property
    def middle(self) -> int:
        """h: all lines with |k| <= h are measured."""
        return (self.space[self.axis] - 1) // 2 - self.missing


@value
class PartialFourier:
    """Partial Fourier: lines at one end of an axis not measured; in 3D a line is the plane of samples with its k.

    Attributes:
        fraction: of the lines that is measured, in (0.5, 1], rounded up to whole lines [1].
        axis: -1 is x, -2 y, -3 z; None: drawn.
        side: that is cut; None: drawn.
        reconstruction: how it is made up for; see this module.
        iterations: of `pocs`, and only there; None: 10.
        probability, ndim: see `Artefact`.
    Severity: share of the lines that is not measured, whatever the reconstruction.
    Assumes: for `conjugate` a real object; for `homodyne` and `pocs` a phase that the middle of k-space resolves.
    """

    stage: ClassVar[Stage] = Stage.SAMPLING
    kind: Literal["partial_fourier"] = "partial_fourier"
    fraction: Amount = 0.75
    axis: int | None = None
    side: Side | None = None
    reconstruction: Reconstruction = "zero_filled"
    iterations: int | None = None
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("fraction", self.fraction, low=0.5, high=1)
        if reach(self.fraction)[0] == 0.5:
            raise ValueError(f"fraction must lie in (0.5, 1], got {self.fraction}; half of the lines has no middle")
        if self.side not in (None, "negative", "positive"):
            raise ValueError(f"side must be negative or positive, got {self.side!r}")
        if self.reconstruction not in ("zero_filled", "conjugate", "homodyne", "pocs"):
            raise ValueError(
                f"reconstruction must be zero_filled, conjugate, homodyne or pocs, got {self.reconstruction!r}"
            )
        if self.iterations is not None:
            if self.reconstruction != "pocs":
                raise ValueError(f"iterations are those of pocs; leave them out with {self.reconstruction}")
            check_amount("iterations", self.iterations, low=1)
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> PartialFourierDrawn:
        """Fraction, side and axis.

        Raises: ValueError if the axis does not exist.
        """
        _, space = drawn_for(shape, self.ndim)
        fraction = draw_amount(self.fraction, rng)
        side: Side = ("negative", "positive")[int(rng.integers(2))]
        axis = drawn_axis(self.axis, space, rng)
        n = space[axis]
        # more than half is measured, whatever the rounding
        missing = min(floor((n - fraction * n) * (1 + ROUNDING)), (n - 1) // 2)
        return PartialFourierDrawn(space, axis, self.side or side, missing)

    def act(self, acquired: Acquired, drawn: PartialFourierDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        n, axis = drawn.space[drawn.axis], drawn.axis
        measured = acquired.along(lines_with(n, drawn.lines, 0, 1), axis)
        if self.reconstruction == "zero_filled":
            return weighted(acquired, [axis], [measured])
        others = set(range(len(drawn.space))) - {axis}
        there = acquired.brought(kspace=[axis], image=others)
        if self.reconstruction == "conjugate":
            return there.with_values(_mirrored(there.values, drawn))
        turned = _phase(there, drawn)
        if self.reconstruction == "homodyne":
            doubled = weighted(there, [axis], [there.along(homodyne_weights(drawn), axis)]).brought(image=[axis])
            return doubled.with_values(_real_about(doubled.values, turned))
        data = there.values
        current = weighted(there, [axis], [measured])
        lines = torch.tensor(drawn.lines, device=data.device) % n
        for _ in range(10 if self.iterations is None else self.iterations):
            image = current.brought(image=[axis])
            guess = image.with_values(_real_about(image.values, turned)).brought(kspace=[axis]).values
            made_up = guess.index_select(axis + 2, lines)
            current = current.with_values(data.index_copy(axis + 2, lines, made_up))
        return current

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: PartialFourierDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def homodyne_weights(drawn: PartialFourierDrawn) -> Float[Tensor, " n"]:
    """w(k), in the order of the FFT: 0 on missing lines, 2 on their mirror images, 1 around k = 0, a ramp between.

    w(k) = 1 +- (2 |k| / (h + 1) - 1) within [0, 2]; 1 on the line N / 2 of an even axis, its own mirror image.
    """
    n, h = drawn.space[drawn.axis], drawn.middle
    k = line_order(n).double()
    towards = -k.sign() if drawn.side == "positive" else k.sign()
    weights = 1 + towards * (2 * k.abs() / (h + 1) - 1).clamp(0, 1)
    if n % 2 == 0:
        weights[n // 2] = 1
    return weights


def _mirrored(values: Tensor, drawn: PartialFourierDrawn) -> Tensor:
    """K(k) = K(-k)* on the missing lines."""
    n, dim = drawn.space[drawn.axis], drawn.axis + 2
    k = torch.tensor(drawn.lines, device=values.device)
    return values.index_copy(dim, k % n, values.index_select(dim, -k % n).conj().resolve_conj())


def _phase(there: Acquired, drawn: PartialFourierDrawn) -> Tensor:
    """exp(i theta) of the image from the middle of k-space; 1 where that is 0."""
    middle = lines_with(drawn.space[drawn.axis], band(drawn.space[drawn.axis], drawn.middle), 1, 0)
    low = there.with_values(there.values * there.along(middle, drawn.axis)).brought(image=[drawn.axis]).values
    return torch.where(low == 0, 1, torch.sgn(low))


def _real_about(values: Tensor, turned: Tensor) -> Tensor:
    """Re[m exp(-i theta)] exp(i theta): the part whose phase is theta, or opposite."""
    return (values * turned.conj()).real * turned
