"""Where a search starts: the best local minima of a coarse grid over the free rows of a model.

Rows by which the signal scales (A, M0, C: those without an upper bound) are searched in closed form: for one set of the
other rows, d = S(A = 1, ...), the best A is y.d / d.d, and (y.d)^2 / d.d is what is explained. The grid runs over the
other free rows; where known maps differ from voxel to voxel it is built for a few of their levels, since starts need
not be exact.
"""

from collections.abc import Mapping
from itertools import product
from math import isinf

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.estimators.descent.identify import TYPICAL
from qsim.estimators.descent.voxel_problem import known_rows
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel

# nodes of each row of the grid, by how many rows it has; more rows: 4
_NODES = {1: 48, 2: 20, 3: 10, 4: 6}
_LEVELS = {1: 6, 2: 4}
_CHUNK = 1024
# numbers of one table of explained sums of squares
_TABLE = 200_000
# off-resonance that is searched [Hz]
_LARGEST_B0 = 300.0


def coarse_starts(
    model: SignalModel,
    parameters: tuple[Parameter, ...],
    y: Float[Tensor, "n v"],
    fixed: Mapping[str, Tensor],
    count: int,
) -> "list[tuple[Tensor, Tensor]]":
    """Chunks of starts (q, count, v) and their series: the best local minima of the grid, the best one first.

    A start that does not exist (fewer minima than `count`) is NaN.
    """
    grid = Grid(model, parameters, tuple(fixed))
    levels, level = _levels(fixed, y)
    tables = [grid.table(values, y.device) for values in levels]
    chunks = []
    for first in range(0, y.shape[1], _CHUNK):
        part = slice(first, min(first + _CHUNK, y.shape[1]))
        series = y[:, part]
        given_rows = known_rows(
            parameters, {n: v if v.numel() == 1 else v[part] for n, v in fixed.items()}, series.shape[1], y.device
        )
        kappa = series.new_full((len(parameters), count, series.shape[1]), torch.nan)
        for number, table in enumerate(tables):
            at = torch.nonzero(level[part] == number).squeeze(1) if len(tables) > 1 else slice(None)
            own = series[:, at]
            if own.shape[1]:
                kappa[:, :, at] = grid.starts(own, *table, count)
        known_there = ~torch.isnan(given_rows)
        exists = ~torch.isnan(kappa).any(0)
        kappa = torch.where((known_there[:, None] & exists[None]), given_rows[:, None], kappa)
        chunks.append((kappa, series))
    return chunks


def _levels(fixed: Mapping[str, Tensor], y: Tensor) -> tuple[list[dict[str, float]], Tensor]:
    """A few typical sets of the known values, and which of them is the nearest of each voxel."""
    maps = [name for name, values in fixed.items() if values.numel() > 1 and bool((values != values[0]).any())]
    number = _LEVELS.get(len(maps), 2)
    middle = (torch.arange(number, dtype=torch.float64, device=y.device) + 0.5) / number
    centres: dict[str, list[float]] = {}
    index = torch.zeros(y.shape[1], dtype=torch.long, device=y.device)
    for name, values in fixed.items():
        if name not in maps:
            centres[name] = values.flatten()[:1].tolist()
            continue
        # `quantile` takes 16 million numbers at most
        nodes = torch.quantile(values[:: max(1, values.numel() // 100_000)], middle)
        centres[name] = nodes.tolist()
        nearest = torch.bucketize(values, (nodes[1:] + nodes[:-1]) / 2)
        index = index * number + nearest
    sets = [dict(zip(centres, chosen, strict=True)) for chosen in product(*centres.values())]
    return sets, index


class Grid:
    """The nodes of the free rows.

    Args:
        parameters: rows, with the ranges to search.
        known: names of the rows that are not searched.
    """

    def __init__(self, model: SignalModel, parameters: tuple[Parameter, ...], known: tuple[str, ...]) -> None:
        self.model, self.parameters = model, parameters
        self.free = [i for i, p in enumerate(parameters) if p.name not in known]
        # the row that scales the signal, if it is free and its known companions do not fix the scale
        unlimited = [i for i, p in enumerate(parameters) if isinf(p.upper)]
        self.scale = unlimited[0] if unlimited and all(i in self.free for i in unlimited) else None
        self.scale = self.scale if self.scale is not None and self._homogeneous(unlimited) else None
        self.unlimited = unlimited
        searched = [i for i in self.free if i != self.scale]
        self.axes = {i: self._nodes(parameters[i], len(searched)) for i in searched}

    def _homogeneous(self, rows: list[int]) -> bool:
        """Whether twice these rows make twice the signal."""
        point = [TYPICAL.get(p.name, p.start) for p in self.parameters]
        double = [2 * x if i in rows else x for i, x in enumerate(point)]
        kappa = torch.tensor([point, double], dtype=torch.float64).T.contiguous()
        once, twice = self.model(kappa).unbind(1)
        return bool(torch.allclose(2 * once, twice, rtol=1e-9, atol=1e-12))

    def _nodes(self, parameter: Parameter, rows: int) -> Float[Tensor, " g"]:
        n = _NODES.get(rows, 4)
        lower, upper = parameter.lower, parameter.upper
        if parameter.name in RELAXATION_TIMES:
            ends = torch.tensor([lower, upper], dtype=torch.float64).log()
            return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n, dtype=torch.float64)).exp()
        if isinf(upper):
            # relative to the row that scales the signal, or where none does, to the usual size of the row itself
            shares = [-1.0, -0.3, 0.0, 0.1, 0.3, 1.0] if lower < 0 else [0.1, 0.3, 1.0]
            wide = [-3.0, -1.0, -0.3, 0.3, 1.0, 3.0] if lower < 0 else [0.1, 0.3, 1.0, 3.0, 10.0]
            return torch.tensor(shares if self.scale is not None else wide, dtype=torch.float64) * parameter.scale
        if parameter.name == "DELTA_B0":
            lower, upper = max(lower, -_LARGEST_B0), min(upper, _LARGEST_B0)
        # the ends of a linear range are left out: rows rest there, and see nothing of where they came from
        return lower + (upper - lower) * (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def table(self, known: Mapping[str, float], device: torch.device) -> tuple[Tensor, Tensor]:
        """Nodes (q, *grid) and their signals (n, *grid)."""
        axes = list(self.axes.values())
        mesh = torch.meshgrid(*axes, indexing="ij") if axes else ()
        shape = mesh[0].shape if axes else torch.Size((1,))
        rows = []
        for i, p in enumerate(self.parameters):
            if i in self.axes:
                rows.append(mesh[list(self.axes).index(i)])
            else:
                rows.append(torch.full(shape, known.get(p.name, 1.0), dtype=torch.float64))
        nodes = torch.stack(rows).to(device)
        signal = self.model(nodes.flatten(1)).reshape(-1, *shape)
        return nodes, signal

    def starts(
        self, y: Float[Tensor, "n v"], nodes: Float[Tensor, "q *grid"], signal: Float[Tensor, "n *grid"], count: int
    ) -> Float[Tensor, "q count v"]:
        """The best local maxima of what each node explains, in order."""
        size = max(8, _TABLE // max(1, nodes[0].numel()))
        parts = [self._starts(part, nodes, signal, count) for part in y.split(size, 1)]
        return torch.cat(parts, 2)

    def _starts(self, y: Tensor, nodes: Tensor, signal: Tensor, count: int) -> Tensor:
        atoms = torch.nan_to_num(signal.flatten(1))
        q = (atoms * atoms).sum(0)
        p = atoms.T @ y
        if self.scale is not None:
            explained = p.clamp_min(0).square() / q.clamp_min(1e-30)[:, None]
            # a start at A = 0 would see nothing of the other rows
            amplitude = torch.maximum(p / q.clamp_min(1e-30)[:, None], 1e-3 * y.abs().amax(0))
        else:
            # nothing scales: |y|^2 - |y - d|^2
            explained = 2 * p - q[:, None]
        shaped = explained.reshape(*nodes.shape[1:], y.shape[1])
        peak = torch.ones_like(shaped, dtype=torch.bool)
        for axis in range(shaped.ndim - 1):
            length = shaped.shape[axis]
            if length > 1:
                rise = shaped.narrow(axis, 1, length - 1) >= shaped.narrow(axis, 0, length - 1)
                peak.narrow(axis, 1, length - 1).logical_and_(rise)
                peak.narrow(axis, 0, length - 1).logical_and_(~rise | (shaped.diff(dim=axis) == 0))
        ranked = torch.where(peak.reshape(explained.shape), explained, -torch.inf)
        take = min(count, ranked.shape[0])
        value, at = ranked.topk(take, 0)
        kappa = nodes.flatten(1)[:, at.flatten()].reshape(nodes.shape[0], take, y.shape[1])
        rows = list(kappa)
        if self.scale is not None:
            scaled = amplitude.gather(0, at)
            rows[self.scale] = scaled
            for i in self.unlimited:
                rows[i] = rows[i] * scaled if i in self.axes else rows[i]
        # the first start always exists
        exists = torch.isfinite(value)
        exists[0] = True
        kappa = torch.where(exists, torch.stack(rows), torch.nan)
        missing = kappa.new_full((nodes.shape[0], count - take, y.shape[1]), torch.nan)
        return torch.cat((kappa, missing), 1)
