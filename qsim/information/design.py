"""Times of a protocol that make the worst bound smallest.

Every image has its own time, so the Fisher information of a series is a sum over its images, I = sum_n g(t_n) g(t_n)^T
with g the slopes of the signal at one time. What is left of a parameter r after the others are eliminated is the last
pivot p of I, and var_r = 1 / p. The design maximises the smallest p r^2 over tissues and parameters:

1. g on a fine grid of times, from one call of the model, and a cubic spline through it;
2. counts of some 150 candidate times that need not be whole: one concave problem (`relaxed`), which also says how much
   better any design could be;
3. from these in whole images, and from other starts, exchange one time after the other until nothing gains
   (`exchange`), then move all together by sequential quadratic programming, max z with log(p r^2) >= z in every tissue:
   the worst case has kinks, its parts have none;
4. round to whole steps, and exchange with the neighbours.

Times may repeat: an optimal design often measures a few of them several times (Carathéodory).
Source: Fedorov 1972 (exchange of single points).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from math import ceil, floor, inf, sqrt
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy.random import Generator, Philox
from scipy.interpolate import CubicSpline
from torch import Tensor

from qsim.errors import InputError
from qsim.information.exchange import Search, Slopes
from qsim.information.fisher import jacobian
from qsim.information.rician_bound import information_factor
from qsim.signals.base import SignalModel, SpatialModel
from qsim.signals.multi_echo import MultiEchoSpinEcho
from qsim.signals.sequences import MOLLI, Bloch, LookLockerTrain

_Value = TypeVar("_Value")

# attributes that hold the free times of a series
TIME_FIELDS = ("ti", "ts", "te", "te_prep", "tsl")
# times at which the slopes are computed, random starts, and starts that are refined
_GRID, _RANDOM_STARTS, _REFINED = 1501, 8, 6
# where the counts of the relaxed design are cut into whole images
_OFFSETS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a design is for.

    Attributes:
        kappa: tissues, one column each [SI].
        sigma: noise SD [units of A].
        rows: parameters whose worst bound counts.
        shared: parameters that are one number for `n_voxels` equal voxels.
        known: parameters that are known.
        coils: 0: Gaussian noise; 1: Rician; more: non-central chi.
    """

    kappa: Float[Tensor, "q t"]
    sigma: float
    rows: tuple[str, ...]
    shared: tuple[str, ...] = ()
    n_voxels: int = 1
    known: tuple[str, ...] = ()
    coils: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What times may be chosen.

    Attributes:
        n: how many.
        low, high: smallest and largest [s].
        total: largest sum [s].
        step: they are multiples of it [s].
    """

    n: int
    low: float
    high: float
    total: float = inf
    step: float = 0.001

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"limits.n: must be at least 1, got {self.n}")
        if not 0 <= self.low < self.high < inf:
            raise InputError(
                f"limits.low must not be negative and must lie below high, got {self.low:g} and {self.high:g} s"
            )
        if not self.total >= self.n * self.low or self.total <= 0:
            raise InputError(
                f"limits.total: {self.n} times of at least {self.low:g} s need {self.n * self.low:g} s, got "
                f"{self.total:g}"
            )
        if not self.step > 0 or floor(self.high / self.step + 1e-9) < ceil(self.low / self.step - 1e-9):
            raise InputError(f"limits.step: no multiple of {self.step:g} s lies from {self.low:g} to {self.high:g} s")

    def allow(self, times: Sequence[float]) -> bool:
        """Whether a protocol keeps them."""
        slack = 1e-9
        inside = self.low - slack <= min(times) and max(times) <= self.high + slack
        return len(times) == self.n and inside and sum(times) <= self.total + slack


def time_field(model: SignalModel) -> str:
    """Attribute that holds the times of a series, of the model or of its preparation.

    Raises: InputError if the times of the model cannot be chosen one by one.
    """
    if isinstance(model, MultiEchoSpinEcho):
        raise InputError("model: the echoes of a multi_echo_spin_echo are equally spaced; their times are not free")
    kind = str(getattr(model, "kind", type(model).__name__))
    if isinstance(model, LookLockerTrain | MOLLI) or "look_locker" in kind:
        raise InputError(f"model: the images of a {kind} are of one train of pulses; their times are not free")
    holder = model.preparation if isinstance(model, Bloch) else model
    times = getattr(model, "times", None)
    for field in fields(holder) if is_dataclass(holder) else ():
        if field.name in TIME_FIELDS and getattr(holder, field.name) == times:
            return field.name
    raise InputError(f"model: {kind} has no list of times that could be chosen ({', '.join(TIME_FIELDS)})")


def with_times(model: SignalModel, times: tuple[float, ...]) -> SignalModel:
    """The same protocol with other times [s].

    Raises: InputError if they cannot be chosen; ValueError if the model refuses these.
    """
    name = time_field(model)
    if not isinstance(model, Bloch):
        return _replaced(model, **{name: times})
    preparation = model.preparation
    changes: dict[str, object] = {name: times}
    frequencies = getattr(preparation, "fsl", None)
    if isinstance(frequencies, tuple):
        if len(set(frequencies)) > 1:
            raise InputError("model.preparation.fsl: differs between the times; give one frequency for a design")
        changes["fsl"] = frequencies[0]
    return _replaced(model, preparation=_replaced(preparation, **changes))


def _replaced(thing: _Value, **changes: object) -> _Value:
    """A frozen value with some attributes changed."""
    return replace(thing, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Times of a design.

    Attributes:
        times: in rising order [s].
        cv: worst bound over tissues and wanted parameters [%].
        least_cv: no series of as many images within the limits has a smaller one, to about the width of the candidate
            grid [%].
    """

    times: tuple[float, ...]
    cv: float
    least_cv: float


def propose_times(model: SignalModel, wanted: Wanted, limits: Limits) -> Proposal:
    """Times that make the largest bound of the wanted parameters over the tissues smallest.

    The same for the same arguments: the random starts come from a fixed seed. A protocol of the model that keeps the
    limits is one of the starts, so the proposal is no worse, rounding aside.

    Raises: InputError if the times of the model cannot be chosen, or no times tell the wanted parameters.
    """
    names = [p.name for p in model.parameters]
    wrong = [row for row in wanted.rows if row not in names or row in wanted.known]
    if wrong or not wanted.rows:
        raise InputError(
            f"wanted.rows: {', '.join(wrong) or 'empty'}; the model has {', '.join(names)}, less the known"
        )
    alone = 1 / wanted.n_voxels if wanted.shared else 1.0
    search = Search(_slopes(model, wanted, limits), limits.n, limits.low, limits.high, limits.total, alone)
    relaxed, candidates, rng = search.relaxed(), search.candidates(), Generator(Philox(4))
    spread = [search.feasible(relaxed.spread(candidates, limits.n, offset)) for offset in _OFFSETS]
    starts = [*spread, *search.regular_starts(), *(search.random_start(rng) for _ in range(_RANDOM_STARTS))]
    exchanged = _best([search.exchanged(start) for start in starts], search)
    found = [*_best(spread, search)[:2], *exchanged[:_REFINED]]
    given = tuple(getattr(model, "times", ()))
    if limits.allow(given):
        found.append(np.array(given))
    refined = [search.refined(times) for times in found]
    rounded = [search.rounded(times, limits.step) for times in (*refined, exchanged[0])]
    best = _best(rounded, search)[0]
    if search.merit(best) == 0:
        raise InputError(f"model: no {limits.n} times within the limits tell {', '.join(wanted.rows)} in every tissue")
    times = tuple(sorted(round(float(time), 9) for time in best))
    cv = 100 / sqrt(search.merit(best))
    # between two candidates there may be a time that is a little better than both
    return Proposal(times, cv, min(cv, 100 / sqrt(relaxed.bound)))


def _best(designs: list[Float[np.ndarray, " n"]], search: Search) -> list[Float[np.ndarray, " n"]]:
    """The designs without repeats, the best first."""
    distinct = {tuple(np.sort(times).round(7).tolist()): times for times in designs}
    return sorted(distinct.values(), key=search.merit, reverse=True)


def _slopes(model: SignalModel, wanted: Wanted, limits: Limits) -> Slopes:
    """Slopes on a grid of times, and the spline through them."""
    names = [p.name for p in model.parameters]
    local = [name for name in names if name not in wanted.shared and name not in wanted.known]
    unknown = [*local, *(name for name in names if name in wanted.shared)]
    grid = np.linspace(limits.low, limits.high, _GRID)
    series = with_times(model.pointwise if isinstance(model, SpatialModel) else model, tuple(grid.tolist()))
    if getattr(series, "signed", None) is False:
        # the same information without the kinks of a modulus; complex images, which have no sign, keep them: there the
        # spline is a little off
        with suppress(ValueError):
            series = _replaced(series, signed=True)
    kappa = wanted.kappa.double()
    rows = jacobian(series, kappa)[[names.index(name) for name in unknown]] / wanted.sigma
    weight = None
    if wanted.coils:
        factor = information_factor(series(kappa).abs() / wanted.sigma, wanted.coils)
        weight = CubicSpline(grid, factor.numpy())  # type: ignore[no-untyped-call]
    return Slopes(
        slope=CubicSpline(grid, rows.numpy(), axis=1),  # type: ignore[no-untyped-call]
        weight=weight,
        local=len(local),
        targets=tuple((unknown.index(row), kappa[names.index(row)].abs().numpy()) for row in wanted.rows),
    )
