"""Mz after a shaped pulse, tabulated once over relaxation rates and fields, and interpolated per voxel.

Over the rates Mz is nearly exponential: products of a few Chebyshev polynomials. Over the fields it turns faster: nodes
on a regular grid. The pulse is simulated on a grid that six points interpolate well; that grid is made denser by
six-point interpolation once, so that each voxel needs four points a field only.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, isfinite

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.reach import Range
from qsim.signals.bloch import ShapedPulse, Spins

# largest error of an interpolated Mz that is accepted where it is checked [M0]; promised: 1e-4
_TOLERANCE = 4e-5
# points at which it is checked
_CHECKED = 384
_REFINEMENTS = 4
# points of the simulated grid per grid interval
_DENSER = 3
# voxels of a block: their four rows of coefficients fit the second-level cache
_BLOCK = 4096
# a table of more points than this would take minutes
_LARGEST = 2_000_000
# weights of the six-point formula at 1/3 and 2/3 of an interval come from this
_SIX = np.arange(-2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Box:
    """The values that a table spans: R1, R2 [1/s], relative B1 [1] and off-resonance [Hz]."""

    r1: Range
    r2: Range
    rel_b1: Range
    delta_b0: Range

    @property
    def sides(self) -> tuple[Range, Range, Range, Range]:
        """The four ranges."""
        return self.r1, self.r2, self.rel_b1, self.delta_b0


def simulate(
    pulse: ShapedPulse,
    r1: Float[Tensor, " p"],
    r2: Float[Tensor, " p"],
    rel_b1: Float[Tensor, " p"],
    delta_b0: Float[Tensor, " p"],
) -> Float[Tensor, " p"]:
    """Mz after the pulse, from +M0, step by step (float64) [M0]."""
    spin = Spins(t1=1 / r1, t2=1 / r2, t1rho=None, t2rho=None, delta_b0=delta_b0, rel_b1=rel_b1)
    nothing = torch.zeros_like(r1)
    mz = pulse.apply(spin, (nothing, nothing, nothing + 1))[2]
    assert isinstance(mz, Tensor)
    return mz


@dataclass(frozen=True, slots=True)
class _Axis:
    """A regular grid that reaches beyond its range; a range of one point has one node and needs no weights."""

    first: float
    step: float
    nodes: int

    @classmethod
    def over(cls, range_: Range, step: float, margin: int) -> "_Axis":
        low, high = range_
        if high == low:
            return cls(low, 1.0, 1)
        intervals = max(ceil((high - low) / step), 1)
        step = (high - low) / intervals
        return cls(low - margin * step, step, intervals + 1 + 2 * margin)

    def points(self) -> Float[np.ndarray, " n"]:
        return self.first + self.step * np.arange(self.nodes)

    def denser(self) -> "_Axis":
        """The grid after `_upsampled`: six points around every interval of it were there."""
        if self.nodes == 1:
            return self
        return _Axis(self.first + 2 * self.step, self.step / _DENSER, (self.nodes - 5) * _DENSER + 1)

    def stencil(self, x: Float[Tensor, " p"]) -> tuple[Tensor, list[Tensor]]:
        """First of the four nodes around each x, and the weights of cubic Lagrange interpolation (products only).

        Single products and sums are the same in vector and in scalar code, so bytes do not depend on the batch.
        """
        if self.nodes == 1:
            return torch.zeros(len(x), dtype=torch.int64), [torch.ones(1, dtype=x.dtype)]
        t = (x - self.first) * (1 / self.step)
        node = t.floor()
        t = t - node
        before, after, next_ = t + 1, t - 1, t - 2
        weights = [
            t * after * next_ * (-1 / 6),
            before * after * next_ * 0.5,
            before * t * next_ * (-0.5),
            before * t * after * (1 / 6),
        ]
        return node.to(torch.int64) - 1, weights


@dataclass(frozen=True, slots=True)
class PulseTable:
    """Interpolated Mz after one pulse.

    Attributes:
        pulse: the pulse.
        box: what the table spans; values outside it are simulated.
        rates: number of Chebyshev polynomials of R1 and of R2.
        rel_b1, delta_b0: grids of the fields.
        coefficients: of the polynomials, at every node of the fields.
        error: largest difference to the simulation at the points that were checked [M0].
    """

    pulse: ShapedPulse
    box: Box
    rates: tuple[int, int]
    rel_b1: _Axis
    delta_b0: _Axis
    coefficients: Float[Tensor, "nodes terms"]
    error: float

    def mz(
        self,
        t1: Float[Tensor, "*space"],
        t2: Float[Tensor, "*space"],
        rel_b1: Float[Tensor, "*space"],
        delta_b0: Float[Tensor, "*space"],
    ) -> Float[Tensor, "*space"]:
        """Mz after the pulse, from +M0 [M0]; voxels outside the table are simulated step by step."""
        r1, r2, b1, b0 = ((x.reshape(-1).double()) for x in (1 / t1.double(), 1 / t2.double(), rel_b1, delta_b0))
        inside = torch.ones_like(r1, dtype=torch.bool)
        for x, (low, high) in zip((r1, r2, b1, b0), self.box.sides, strict=True):
            # one step of float32 beside the end is the end
            slack = 1e-6 * max(abs(low), abs(high))
            inside &= (x >= low - slack) & (x <= high + slack)
        every = bool(inside.all())
        kept = (r1, r2, b1, b0) if every else tuple(x[inside] for x in (r1, r2, b1, b0))
        parts = [self._interpolate(*part) for part in zip(*(x.split(_BLOCK) for x in kept), strict=True)]
        found = torch.cat(parts) if parts else r1.new_zeros(0)
        if not every:
            whole = torch.empty_like(r1)
            whole[inside] = found
            whole[~inside] = simulate(self.pulse, *(x[~inside] for x in (r1, r2, b1, b0)))
            found = whole
        return found.reshape(t1.shape).to(t1.dtype)

    def _interpolate(self, r1: Tensor, r2: Tensor, rel_b1: Tensor, delta_b0: Tensor) -> Float[Tensor, " p"]:
        node_b1, weights_b1 = self.rel_b1.stencil(rel_b1)
        node_b0, weights_b0 = self.delta_b0.stencil(delta_b0)
        node = node_b1 * self.delta_b0.nodes + node_b0
        total: Tensor | None = None
        for (i, of_b1), (j, of_b0) in product(enumerate(weights_b1), enumerate(weights_b0)):
            row = self.coefficients.index_select(0, node + (i * self.delta_b0.nodes + j))
            row.mul_((of_b1 * of_b0).to(row.dtype)[:, None])
            total = row if total is None else total.add_(row)
        assert total is not None
        first = _chebyshev(r1, self.box.r1, self.rates[0])
        second = _chebyshev(r2, self.box.r2, self.rates[1])
        terms = total.T.contiguous()
        mz = torch.zeros_like(r1)
        for k, (a, b) in enumerate(product(first, second)):
            mz += a * b * terms[k]
        return mz


def _chebyshev(x: Float[Tensor, " p"], range_: Range, n: int) -> list[Float[Tensor, " p"]]:
    """T_0 to T_{n-1} of x, scaled from its range to [-1, 1], by their recurrence."""
    low, high = range_
    s = (x - (low + high) / 2) * (2 / (high - low)) if high > low else torch.zeros_like(x)
    polynomials = [torch.ones_like(s), s]
    while len(polynomials) < n:
        polynomials.append(2 * s * polynomials[-1] - polynomials[-2])
    return polynomials[:n]


@lru_cache(maxsize=4)
def pulse_table(pulse: ShapedPulse, box: Box) -> PulseTable:
    """Simulate a pulse over a box, once per process; the grid is refined until it interpolates to 4e-5.

    Raises: InputError if the box is not finite, or so wide that the table would take minutes.
    """
    for name, (low, high) in zip(("R1", "R2", "REL_B1", "DELTA_B0"), box.sides, strict=True):
        if not (isfinite(low) and isfinite(high) and low <= high):
            raise InputError(f"pulse_inversion cannot span {name} from {low:g} to {high:g}; truncate its distribution")
    # steps in which the pulse turns the magnetisation by a fraction of a cycle
    peak = max(max(abs(a) for a in pulse.amplitude), 1e-9)
    for refinement in range(_REFINEMENTS):
        finer = 1.5**refinement
        table = _tabulate(pulse, box, 0.25 / (peak * pulse.width) / finer, 0.15 / pulse.width / finer, refinement)
        if table.error <= _TOLERANCE:
            return table
    raise InputError(
        f"pulse_inversion: the pulse could be tabulated to {table.error:.1g} only; "
        "narrow the ranges of T2, B0 and B1, or use another pulse"
    )


def _tabulate(pulse: ShapedPulse, box: Box, step_b1: float, step_b0: float, more: int) -> PulseTable:
    rates = tuple(
        1 if high == low else n + more + ceil(2 * (high - low) * pulse.width)
        for n, (low, high) in ((2, box.r1), (4, box.r2))
    )
    # three nodes beyond either end: two for six points, one for four
    b1, b0 = _Axis.over(box.rel_b1, step_b1, 3), _Axis.over(box.delta_b0, step_b0, 3)
    points = rates[0] * rates[1] * b1.nodes * b0.nodes
    if points > _LARGEST:
        raise InputError(
            f"pulse_inversion would simulate its pulse at {points} points, more than {_LARGEST}; "
            "narrow the ranges of T2, B0 and B1"
        )
    nodes = [_chebyshev_nodes(range_, n) for range_, n in zip((box.r1, box.r2), rates, strict=True)]
    grid = np.meshgrid(*nodes, b1.points(), b0.points(), indexing="ij")
    flat = torch.from_numpy(np.stack([axis.reshape(-1) for axis in grid]))
    mz = torch.cat([simulate(pulse, *part) for part in flat.split(_BLOCK * 4, dim=1)])
    values = mz.numpy().reshape(*rates, b1.nodes, b0.nodes)
    for axis in (0, 1):
        values = np.moveaxis(np.tensordot(_to_coefficients(rates[axis]), values, (1, axis)), 0, axis)
    for axis in (2, 3):
        values = _upsampled(values, axis)
    b1, b0 = b1.denser(), b0.denser()
    coefficients = torch.from_numpy(np.ascontiguousarray(values.reshape(-1, b1.nodes * b0.nodes).T)).float()
    table = PulseTable(pulse, box, (rates[0], rates[1]), b1, b0, coefficients, 0.0)
    rng = np.random.Generator(np.random.Philox(0))
    checked = [torch.from_numpy(rng.uniform(low, high, _CHECKED)) for low, high in box.sides]
    difference = simulate(pulse, *checked) - table.mz(1 / checked[0], 1 / checked[1], *checked[2:])
    return PulseTable(pulse, box, (rates[0], rates[1]), b1, b0, coefficients, float(difference.abs().max()))


def _chebyshev_nodes(range_: Range, n: int) -> Float[np.ndarray, " n"]:
    low, high = range_
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(n) + 0.5) / n)


def _to_coefficients(n: int) -> Float[np.ndarray, "n n"]:
    """From values at the Chebyshev nodes to coefficients: a discrete cosine transform."""
    k, j = np.arange(n)[:, None], np.arange(n)[None]
    matrix = 2 / n * np.cos(np.pi * k * (j + 0.5) / n)
    matrix[0] /= 2
    return matrix


def _upsampled(values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    """Values between the nodes of a regular grid by six-point Lagrange interpolation; each end loses two nodes."""
    n = values.shape[axis]
    if n == 1:
        return values
    moved = np.moveaxis(values, axis, -1)
    denser = np.empty((*moved.shape[:-1], (n - 5) * _DENSER + 1))
    denser[..., ::_DENSER] = moved[..., 2 : n - 2]
    for part in range(1, _DENSER):
        weights = _lagrange(part / _DENSER)
        denser[..., part::_DENSER] = sum(w * moved[..., k : n - 5 + k] for k, w in enumerate(weights))
    return np.moveaxis(denser, -1, axis)


def _lagrange(t: float) -> Float[np.ndarray, " 6"]:
    """Weights of the nodes -2 to 3 at t between 0 and 1."""
    weights = np.ones(6)
    for k, own in enumerate(_SIX):
        for other in np.delete(_SIX, k):
            weights[k] *= (t - other) / (own - other)
    return weights
