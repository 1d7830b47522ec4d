"""Ghosts: lines of k-space that differ from their neighbours in turn.

    K(k) -> K(k) (1 + a cos theta(k)) exp(i phi cos theta(k)),    theta(k) = 2 pi k / p + psi

A modulation of period p lines puts copies of the image at multiples of N / p along the axis. For an amplitude
alone (phi = 0)

    m(y) -> m(y) + a / 2 [exp(i psi) m(y + N / p) + exp(-i psi) m(y - N / p)]

for a phase alone (a = 0), by the Jacobi-Anger expansion,

    m(y) -> sum_n i^n J_n(phi) exp(i n psi) m(y + n N / p)

N/2 ghost of an echo-planar readout: lines in turn forth and back, p = 2 and psi = 0, phase +phi on even k, -phi on odd:

    m(y) -> cos(phi) m(y) + i sin(phi) m(y - N / 2)

Where N / p is no whole number the copies stand between voxels and are interpolated by the Fourier series.
Source: Buonocore and Gao 1997, doi:10.1002/mrm.1910380114 (N/2); Abramowitz and Stegun 9.1.41 (expansion).
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.acquired import Acquired, line_order
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.artefacts.sampling import along_axes, centre, drawn_axis, weighted
from qsim.values import value

Pattern = Literal["n_over_2", "periodic"]


@dataclass(frozen=True, slots=True)
class GhostingDrawn:
    """What was drawn.

    Attributes:
        space: extent [voxels].
        axis: along which the ghosts stand, counted from 0.
        phase: phi [rad].
        amplitude: a [1].
        period: p [lines].
        start: psi [rad].
        intact: lines around k = 0 that are left as they are, over all [1].
        severity: see `Ghosting`.
    """

    space: tuple[int, ...]
    axis: int
    phase: float
    amplitude: float
    period: float
    start: float
    intact: float
    severity: float


@value
class Ghosting:
    """Ghosts from lines that are modulated in turn; in 3D a line is the plane of all samples with its k.

    Attributes:
        pattern: `n_over_2`: even and odd lines differ; `periodic`: with a period, as breathing or a pulse leaves it on
            lines measured one after another.
        phase: phi, phase modulation [rad].
        amplitude: a, amplitude modulation, at most 1 [1].
        period: p of a periodic pattern, at least 2 [lines]; None: drawn from 2.5 to 12.
        axis: -1 is x, -2 y, -3 z; None: drawn.
        intact: share of the lines, around k = 0, that are left as they are [1].
        probability, ndim: see `Artefact`.
    Severity: root of the mean over lines of |factor - 1|^2: the change of the image over the image, for an object
        whose energy is even over k-space; 2 sin(phi / 2) for an N/2 ghost of phase phi.
    Not: motion itself, which displaces what is imaged: see `Motion`.
    """

    stage: ClassVar[Stage] = Stage.READOUT
    kind: Literal["ghosting"] = "ghosting"
    pattern: Pattern = "n_over_2"
    phase: Amount = (0.1, 0.5)
    amplitude: Amount = 0
    period: Amount | None = None
    axis: int | None = None
    intact: Amount = 0
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        if self.pattern not in ("n_over_2", "periodic"):
            raise ValueError(f"pattern must be n_over_2 or periodic, got {self.pattern!r}")
        check_amount("phase", self.phase, low=0)
        check_amount("amplitude", self.amplitude, low=0, high=1)
        check_amount("period", self._period, low=2)
        check_amount("intact", self.intact, low=0, high=1)
        check_common(self.probability, self.ndim)
        if self.pattern == "n_over_2" and self.period is not None:
            raise ValueError(
                f"period of an N/2 ghost is 2 lines; leave it out or say pattern: periodic ({self.period})"
            )

    @property
    def _period(self) -> Amount:
        if self.period is not None:
            return self.period
        return 2 if self.pattern == "n_over_2" else (2.5, 12)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> GhostingDrawn:
        """Axis, strengths, period and where in it the readout starts.

        Raises: ValueError if the axis does not exist.
        """
        _, space = drawn_for(shape, self.ndim)
        phase = draw_amount(self.phase, rng)
        amplitude = draw_amount(self.amplitude, rng)
        period = draw_amount(self._period, rng)
        intact = draw_amount(self.intact, rng)
        axis = drawn_axis(self.axis, space, rng)
        start = 0.0 if self.pattern == "n_over_2" else float(rng.uniform(0, 2 * pi))
        factors = modulation(space[axis], phase, amplitude, period, start, intact)
        severity = float((factors - 1).abs().square().mean().sqrt())
        return GhostingDrawn(space, axis, phase, amplitude, period, start, intact, severity)

    def act(self, acquired: Acquired, drawn: GhostingDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        n = drawn.space[drawn.axis]
        factors = modulation(n, drawn.phase, drawn.amplitude, drawn.period, drawn.start, drawn.intact)
        return weighted(acquired, [drawn.axis], along_axes(acquired, {drawn.axis: factors}))

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: GhostingDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def modulation(
    n: int, phase: float, amplitude: float, period: float, start: float, intact: float
) -> Complex[Tensor, " n"]:
    """The factor of each line, in the order of the FFT; 1 for the lines around k = 0 that are intact."""
    wave = torch.cos(2 * pi * line_order(n).double() / period + start)
    factors = (1 + amplitude * wave) * torch.exp(1j * phase * wave)
    factors[[k % n for k in centre(n, intact)]] = 1
    return factors
