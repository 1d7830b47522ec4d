"""Dictionaries with derivatives: signals on a grid, found by the largest inner product, refined off the grid.

For one set of known values the atoms are the model's signals (A = 1) on a grid of the searched rows, relaxation times
in their logarithm. Beside each atom stand the first and second derivatives of the signal *before* its modulus,

    c(theta) = c_0 + sum_a D_a h_a + 1/2 sum_ab H_ab h_a h_b,     h = theta - theta_node

so that signals between the nodes are known to third order in half a step, without a call of the model per voxel. The
modulus is taken after it, so that a zero of the signal is no obstacle. Derivatives are differences of the signal in
float64 (ten times faster than differentiating the model, and right to 1e-5).

1.  Match: the atom with the largest inner product with the series among those of unit norm, and the next local maxima
    that come near it. Long series are compressed first, onto the singular vectors of the atoms; no atom loses more than
    `_LOST` of its energy.
2.  Refine each, and take the lowest: Gauss-Newton, then Newton steps on theta with A in closed form (variable
    projection); a step that does not lower the sum of squares is shortened; a step into another cell goes on with that
    cell's expansion.
3.  Where known values are maps, steps 1 and 2 run on the dictionary of the voxel's slice of the maps, narrow enough for
    a start (the signal turns by at most `_TURN` over it); then the same steps go on with the model itself at the
    voxel's own values. Slices therefore leave no error.

Source: dictionary matching: Ma et al. 2013, doi:10.1038/nature11971; compression: McGivney et al. 2014,
doi:10.1109/TMI.2014.2337321.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import ceil, log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qsim.estimators.matching.dictionary_refine import Here, descend, projected
from qsim.estimators.matching.match_starts import BLOCK, starts
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import CoherentModel, SignalModel

# angle on the unit sphere by which a signal turns over one slice of a known map [rad]
_TURN = 0.1
_SAMPLES = 65
# part of an atom's energy that compression may lose
_LOST = 1e-4
# columns that the model is called with, numbers of one table of inner products, voxels that are refined together
_COLUMNS = 8192
_PRODUCTS = 400_000
_VOXELS = 4096
# how short the last step is with the expansions, and with the model itself after them, which leaves an error of the
# order of its square; in steps of the grid
_SMALL = 1e-3
_LAST = 1e-2
# differences for derivatives, in steps of the grid
_DIFFERENCE = 1e-2
_ONE_SIDED = 1e-5


@dataclass(frozen=True, slots=True)
class Axis:
    """Nodes of one row, evenly spaced in theta (its logarithm for relaxation times).

    Attributes:
        name: of the row.
        low, step: theta of the first node, and from one to the next.
        count: nodes.
    """

    name: str
    low: float
    step: float
    count: int

    @property
    def log(self) -> bool:
        return self.name in RELAXATION_TIMES

    def theta(self, value: Tensor) -> Tensor:
        """Place of a value in steps from the first node."""
        return ((value.log() if self.log else value) - self.low) / self.step

    def value(self, place: Tensor) -> Tensor:
        theta = self.low + self.step * place
        return theta.exp() if self.log else theta


def axis(parameter: Parameter, lower: float, upper: float, count: int) -> Axis:
    """`count` nodes from `lower` to `upper`."""
    ends = (log(lower), log(upper)) if parameter.name in RELAXATION_TIMES else (lower, upper)
    return Axis(parameter.name, ends[0], (ends[1] - ends[0]) / (count - 1), count)


@dataclass(frozen=True, slots=True)
class Space:
    """The signals of a model by the rows that vary.

    Attributes:
        model: its voxels do not mix.
        searched: rows that are searched.
        mapped: rows known as maps; their nodes are the middles of the slices.
        constants: the other rows.
        modulus: the images are the modulus of the signal.
    """

    model: SignalModel
    searched: tuple[Axis, ...]
    mapped: tuple[Axis, ...]
    constants: Mapping[str, float]
    modulus: bool

    @property
    def axes(self) -> tuple[Axis, ...]:
        return *self.searched, *self.mapped

    @property
    def nodes(self) -> Float[Tensor, "p g"]:
        """Places of the searched rows' nodes."""
        ticks = [torch.arange(a.count, dtype=torch.float64) for a in self.searched]
        return torch.stack([tick.flatten() for tick in torch.meshgrid(*ticks, indexing="ij")])

    def channels(self, place: Float[Tensor, "d v"]) -> Float[Tensor, "c v"]:
        """Signal before the modulus at A = 1; a complex one as its real and its imaginary parts."""
        at = {a.name: a.value(row) for a, row in zip(self.axes, place, strict=True)}
        one = torch.ones_like(place[0])
        rows = [at[p.name] if p.name in at else one * self.constants[p.name] for p in self.model.parameters]
        kappa = torch.stack(rows)
        signal = self.model.coherent(kappa) if isinstance(self.model, CoherentModel) else self.model(kappa)
        return torch.cat((signal.real, signal.imag)) if signal.is_complex() else signal

    def expansion(self, place: Float[Tensor, "d v"]) -> Float[Tensor, "k c v"]:
        """c_0, D_a, and H_ab (a <= b) of the searched rows, in steps of the axes."""
        p = len(self.searched)
        step = torch.eye(len(place), dtype=place.dtype, device=place.device)[:p, :, None] * _DIFFERENCE
        middle = self.channels(place)
        up, down = ([self.channels(place + sign * h) for h in step] for sign in (1, -1))
        rows = [middle, *((u - d) / (2 * _DIFFERENCE) for u, d in zip(up, down, strict=True))]
        for i, j in combinations_with_replacement(range(p), 2):
            if i == j:
                bend = up[i] - 2 * middle + down[i]
            else:
                both = self.channels(place + step[i] + step[j]) + self.channels(place - step[i] - step[j])
                bend = (both + 2 * middle - up[i] - down[i] - up[j] - down[j]) / 2
            rows.append(bend / _DIFFERENCE**2)
        return torch.nan_to_num(torch.stack(rows))

    def images(self, channels: Float[Tensor, "c v"]) -> Float[Tensor, "n v"]:
        """What is measured of the signal."""
        n = self.model.n_images
        if not self.modulus:
            return channels[:n]
        return channels.abs() if len(channels) == n else torch.hypot(channels[:n], channels[n:])

    def between(
        self, terms: Float[Tensor, "k c v"], h: Float[Tensor, "p v"]
    ) -> tuple[Float[Tensor, "n v"], Float[Tensor, "p n v"], list[Tensor]]:
        """Images at A = 1, their first and second derivatives, `h` away from the nodes of `terms`; the second are
        left out where the images are the modulus of a complex signal.
        """
        p = len(self.searched)
        value, slopes, bends = terms[0].clone(), [row.clone() for row in terms[1 : 1 + p]], list(terms[1 + p :])
        for bend, (i, j) in zip(bends, combinations_with_replacement(range(p), 2), strict=True):
            slopes[i].addcmul_(bend, h[j])
            if i != j:
                slopes[j].addcmul_(bend, h[i])
        for i in range(p):
            # D + H h / 2 is the middle between the slope at the node and the one here
            value.addcmul_(terms[1 + i] + slopes[i], h[i] / 2)
        return self._measured(value, slopes, bends)

    def exact(self, place: Float[Tensor, "d v"]) -> tuple[Float[Tensor, "n v"], Float[Tensor, "p n v"], list[Tensor]]:
        """Images at A = 1 and their derivatives by the model, without second ones."""
        value, slopes = self.channels(place), []
        for i in range(len(self.searched)):
            beside = place.clone()
            beside[i] += _ONE_SIDED
            slopes.append((self.channels(beside) - value) / _ONE_SIDED)
        return self._measured(value, slopes, [])

    def _measured(
        self, value: Float[Tensor, "c v"], slopes: list[Tensor], bends: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        n = self.model.n_images
        if not self.modulus:
            # of a complex signal that keeps its sign: the real part
            return value[:n], torch.stack([row[:n] for row in slopes]), [bend[:n] for bend in bends]
        if len(value) == n:
            sign = torch.where(value < 0, -1.0, 1.0)
            return value.abs(), torch.stack([row * sign for row in slopes]), [bend * sign for bend in bends]
        size = torch.hypot(value[:n], value[n:])
        turned = value / size.clamp_min(1e-30).repeat(2, 1)
        return size, torch.stack([turned[:n] * row[:n] + turned[n:] * row[n:] for row in slopes]), []


def slices(space: Space, name: str, values: Float[Tensor, " v"], medians: Mapping[str, float]) -> Axis:
    """Nodes for a known map: as many as keep the turn over each under `_TURN`, at several values of the others.

    Args:
        space: without maps: every row that is not searched is in its constants.
        medians: of all maps.
    """
    low, high = float(values.min()), float(values.max())
    parameter = next(p for p in space.model.parameters if p.name == name)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        width = 1e-3 * max(abs(low), 1e-3)
        return Axis(name, log(low) if name in RELAXATION_TIMES else low, width, 1)
    fine = axis(parameter, low, high, _SAMPLES)
    probe = Space(space.model, space.searched, (fine,), {**space.constants, **medians}, space.modulus)
    # the searched rows at a sixth to five sixths of their range
    shares = torch.tensor([1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6], dtype=torch.float64)
    along = torch.arange(_SAMPLES, dtype=torch.float64)
    places = [(shares * (a.count - 1)).repeat_interleave(_SAMPLES) for a in space.searched]
    signal = probe.channels(torch.stack([*places, along.repeat(len(shares))]))
    unit = (signal / signal.norm(dim=0).clamp_min(1e-30)).reshape(len(signal), len(shares), _SAMPLES)
    fastest = float((unit[..., 1:] - unit[..., :-1]).norm(dim=0).max())
    count = max(1, ceil(fastest * (_SAMPLES - 1) / _TURN))
    width = fine.step * (_SAMPLES - 1) / count
    return Axis(name, fine.low + width / 2, width, count)


@dataclass(frozen=True, slots=True)
class Matched:
    """Where the search ended, per voxel.

    Attributes:
        place: of the searched rows, in steps of their axes.
        a: amplitude [units of the images].
        objective: sum of squared residuals.
        converged: whether the steps became small.
    """

    place: Float[Tensor, "p v"]
    a: Float[Tensor, " v"]
    objective: Float[Tensor, " v"]
    converged: Bool[Tensor, " v"]


def match(space: Space, y: Float[Tensor, "n v"], known: Float[Tensor, "m v"]) -> Matched:
    """The best signal of every voxel.

    Args:
        y: float64 [units of A].
        known: places of the mapped rows, in steps of their axes.
    """
    p, v = len(space.searched), y.shape[1]
    ended = torch.zeros(v, dtype=torch.bool, device=y.device)
    found = Matched(y.new_zeros(p, v), y.new_zeros(v), y.new_zeros(v), ended)
    nodes = space.nodes.to(y.device)
    last = torch.tensor([a.count - 1 for a in space.mapped], dtype=torch.float64, device=y.device)[:, None]
    middles = torch.minimum(known.round().clamp_min(0), last)
    # voxels in the order of their slices; only slices that occur are made
    code = torch.zeros(v, dtype=torch.long, device=y.device)
    for row, a in zip(middles, space.mapped, strict=True):
        code = code * a.count + row.long()
    order = code.argsort(stable=True)
    ends = torch.unique_consecutive(code[order], return_counts=True)[1].cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    many = max(1, _COLUMNS // nodes.shape[1])
    for first in range(0, len(ends), many):
        block = range(first, min(first + many, len(ends)))
        own = order[[starts[i] for i in block]]
        place = torch.cat((nodes.repeat(1, len(block)), middles[:, own].repeat_interleave(nodes.shape[1], 1)))
        terms = torch.cat([space.expansion(part) for part in place.split(_COLUMNS, 1)], 2)
        for number, i in enumerate(block):
            table = terms[..., number * nodes.shape[1] : (number + 1) * nodes.shape[1]]
            _search(space, table, y, order[starts[i] : ends[i]], found)
    if space.mapped:
        for part in torch.arange(v, device=y.device).split(_VOXELS):
            _polish(space, y[:, part], known[:, part], part, found)
    return found


def _search(
    space: Space, terms: Float[Tensor, "k c g"], y: Float[Tensor, "n v"], members: Int[Tensor, " m"], found: Matched
) -> None:
    """Match and refine the voxels of one slice."""
    atoms = space.images(terms[0])
    norm = atoms.norm(dim=0)
    unit = torch.where(norm > 1e-12 * norm.max(), atoms / norm.clamp_min(1e-300), 0.0).T
    basis = _basis(unit)
    compressed = (unit @ basis).float()
    # atoms of zeros, so that all blocks are full
    compressed = torch.nn.functional.pad(compressed, (0, 0, 0, -len(unit) % min(BLOCK, len(unit))))
    nodes, flat = space.nodes.to(y.device), terms.flatten(0, 1)
    last = torch.tensor([a.count - 1 for a in space.searched], device=y.device)
    strides = torch.tensor([int((last[i + 1 :] + 1).prod()) for i in range(len(last))], device=y.device)
    for part in members.split(_VOXELS):
        series = y[:, part]
        reduced = (basis.T @ series).float()
        size = max(64, _PRODUCTS // len(unit))
        shape = tuple(axis.count for axis in space.searched)
        # each start: the number of its voxel, and its atom
        pieces = [(i * size, *starts(compressed, few, shape)) for i, few in enumerate(reduced.split(size, 1))]
        owner = torch.cat([shift + own for shift, own, _ in pieces])
        first = torch.cat([node for _, _, node in pieces])
        own_series = series[:, owner]

        def at(
            place: Tensor, starts: Tensor, newton: bool, series: Tensor = own_series
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            node = place.round()
            column = (node.long() * strides[:, None]).sum(0)
            own = flat.index_select(1, column).reshape(*terms.shape[:2], -1)
            s, rows, bends = space.between(own, place - node)
            return projected(s, rows, bends if newton else [], series[:, starts], place, last)

        # an end may be the middle of a symmetry, where the slope is zero whatever the series: start beside it
        place = torch.minimum(nodes.index_select(1, first).clamp_min(0.4), last[:, None] - 0.4)
        ends = descend(at, place, last, _SMALL)
        # the lowest of each voxel; of equal ones the first
        lowest = torch.full_like(series[0], torch.inf).scatter_reduce_(0, owner, ends[2], "amin")
        equal = torch.nonzero(ends[2] == lowest[owner])[:, 0]
        chosen = torch.full_like(part, len(owner) - 1).scatter_reduce_(0, owner[equal], equal, "amin")
        rows = tuple(end.index_select(-1, chosen) for end in ends)
        found.place[:, part], found.a[part], found.objective[part], found.converged[part] = rows


def _polish(
    space: Space, series: Float[Tensor, "n v"], known: Float[Tensor, "m v"], part: Int[Tensor, " v"], found: Matched
) -> None:
    """Go on with the model itself."""
    last = torch.tensor([a.count - 1 for a in space.searched], device=series.device)

    def at(place: Tensor, voxels: Tensor, newton: bool) -> Here:  # noqa: ARG001  no second derivatives here
        return projected(*space.exact(torch.cat((place, known[:, voxels]))), series[:, voxels], place, last)

    rows = descend(at, found.place[:, part], last, _LAST)
    found.place[:, part], found.a[part], found.objective[part], found.converged[part] = rows


def _basis(unit: Float[Tensor, "g n"]) -> Float[Tensor, "n r"]:
    """Singular vectors that keep the energy of every atom."""
    vectors = torch.linalg.eigh(unit.T @ unit)[1].flip(1)
    lost = unit.square().sum(1, keepdim=True) - (unit @ vectors).square().cumsum(1)
    return vectors[:, : int((lost.amax(0) > _LOST).sum()) + 1]
