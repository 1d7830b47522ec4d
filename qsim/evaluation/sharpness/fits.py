"""Sharpness of a boundary in maps: sigmoids fitted along the same profiles of every method, and paired t-tests.

Along a profile with positions s [mm], from the inside tissue (s < 0) to the outside one,

    v(s) = inside + (outside - inside) / (1 + exp(-(s - s0) / w)).

Three figures say how sharp it is:

    slope       1 / w  [1/mm]: that of the paper, whose model is V / (1 + exp(-nu (x - x0))) + b with nu = 1 / w
    width       2 ln(9) w  [mm]: from 10 to 90 % of the step
    steepness   |outside - inside| / (4 w)  [unit of the map per mm]: the derivative at the centre

Slope and width do not depend on the contrast; the steepness does, so a method that is biased in one tissue changes it.
Widths are compared by their logarithm, which noise moves less than the slope, and little up to 0.1 of the step. Over
voxels of 1 mm, along profiles of 8 mm, an edge of w = 0.8 mm reads 3 % narrower at a noise of 0.1 of the step (mean
slope 12 % larger), 18 % at 0.14 (40 %); one of w = 0.4 mm 0 % at 0.14 (11 %); along 16 mm the wide one 5 % (17 %). So
a noisy map looks sharper than a quiet one of the same edges: 0.14 against 0.03, w = 0.8 mm, 20 profiles of 8 mm, 16 %,
and a test at 5 % finds a difference in 15 % of cases, by slopes in 32 %. Warn where noise differs and exceeds 0.1.
A boundary that is blurred by a Gaussian is no sigmoid, but nearly one: of SD 1 its width is 2.56, the sigmoid's 2.6.

Source: sabidussi2021 section 5.3 (20 profiles drawn by hand, linear interpolation, least squares, paired t-test);
Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, log, nan, sqrt
from typing import Literal

import numpy as np
from jaxtyping import Float

from qsim.evaluation.sharpness.profiles import Profile, sample

Status = Literal["ok", "flat", "wrong contrast", "centre outside", "width not seen"]
Quantity = Literal["log width", "slope", "steepness"]
# 10 to 90 % of a sigmoid, in units of w
_TEN_TO_NINETY = 2 * log(9)
# starts: centres between the ends of the profile, widths w over its length [1]
_START_CENTRES = np.linspace(0.15, 0.85, 9)
_START_WIDTHS = np.geomspace(0.01, 0.5, 8)
# bounds of w: over the size of a voxel, and over the length of the profile [1]
_LEAST_WIDTH, _MOST_WIDTH = 0.01, 10.0
# a step that is narrower than this between 10 and 90 % is not seen by its voxels [voxels]
_LEAST_SEEN = 0.2
# a width that is known to no better than this factor is not seen: standard error of its logarithm [1]
_LEAST_KNOWN = 1.0
# variation of a profile that is rounding [1, of its largest value]
_FLAT = 1e-9
_FEWEST = 6


@dataclass(frozen=True, slots=True)
class EdgeFit:
    """A sigmoid along one profile.

    Attributes:
        inside, outside: levels far from the boundary [unit of the map].
        centre_mm: s0 [mm].
        w_mm: w [mm].
        log_width_se: standard error of ln w [1], from the residuals, with as many samples as the profile has voxels.
        rms: of the residuals [unit of the map].
        status: `flat` nothing varies; `wrong contrast` the step goes the other way than it must; `centre outside` the
            step lies within half a voxel of the ends of the profile; `width not seen` wider than the profile,
            narrower than a fifth of a voxel, or its standard error above a factor e.
    """

    inside: float
    outside: float
    centre_mm: float
    w_mm: float
    log_width_se: float
    rms: float
    status: Status

    @property
    def ok(self) -> bool:
        """Whether the fit is sensible."""
        return self.status == "ok"

    @property
    def slope(self) -> float:
        """The paper's slope nu = 1 / w [1/mm]."""
        return 1 / self.w_mm

    @property
    def width_mm(self) -> float:
        """From 10 to 90 % of the step: 2 ln(9) w [mm]."""
        return _TEN_TO_NINETY * self.w_mm

    @property
    def steepness(self) -> float:
        """|outside - inside| / (4 w) [unit of the map per mm]."""
        return abs(self.outside - self.inside) / (4 * self.w_mm)

    def at(self, positions: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        """The fitted values [unit of the map].

        Args:
            positions: along the profile [mm].
        """
        return self.inside + (self.outside - self.inside) * _sigmoid((positions - self.centre_mm) / self.w_mm)

    def quantity(self, name: Quantity) -> float:
        """What is compared between methods."""
        return {"log width": log(self.width_mm), "slope": self.slope, "steepness": self.steepness}[name]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two methods along the same profiles, those left out where either fit is not sensible.

    Attributes:
        first, second: the methods.
        quantity: compared.
        n: profiles in the test; what follows is NaN with fewer than two, or where all differences are equal.
        difference: mean of first minus second, in the unit of the quantity.
        low, high: its 95 % interval.
        t, p: of the paired t-test, two-sided.
        p_holm: corrected by Holm over the pairs of the table.
    """

    first: str
    second: str
    quantity: Quantity
    n: int
    difference: float
    low: float
    high: float
    t: float
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Profiles that every map could be read along, and what was found there.

    Attributes:
        profiles: those kept.
        values: by method, the samples of each profile [unit of the maps].
        fits: by method, in the order of the profiles.
        dropped: profiles left out for all methods, because a map has no value there.
    """

    profiles: tuple[Profile, ...]
    values: Mapping[str, tuple[Float[np.ndarray, " _"], ...]]
    fits: Mapping[str, tuple[EdgeFit, ...]]
    dropped: int

    def left_out(self, method: str) -> dict[str, int]:
        """Numbers of fits that are not sensible, by status."""
        return dict(Counter(fit.status for fit in self.fits[method] if not fit.ok))

    def compare(self, quantity: Quantity = "log width") -> tuple[PairedTest, ...]:
        """Paired t-tests between all methods."""
        return compare(self.fits, quantity)

    def describe(self) -> str:
        """How many profiles were measured and what was left out, as a sentence."""
        said = f"{len(self.profiles)} profiles in every map"
        if self.dropped:
            said += f", {self.dropped} more dropped for all methods because a map has no value there"
        for method in self.fits:
            lost = ", ".join(f"{count} {status}" for status, count in self.left_out(method).items())
            said += f"; {method}: left out {lost}" if lost else ""
        return said


def measure_sharpness(
    maps: Mapping[str, Float[np.ndarray, "*space"]],
    profiles: Sequence[Profile],
    *,
    rising: bool | None = None,
    order: Literal[1, 3] = 3,
) -> Sharpness:
    """Fit a sigmoid along every profile of every map.

    Args:
        maps: by method, of one parameter, all of the shape of the labels that placed the profiles.
        rising: whether the outside tissue has the larger value (T1 of grey against white matter: True); a fit that
            goes the other way is left out. None: either.
        order: of the interpolation, see `sample`.

    Raises: ValueError if there is nothing to compare, or every profile has a voxel without a value in some map.
    """
    if not maps:
        raise ValueError("maps is empty; give at least one")
    if not profiles:
        raise ValueError("profiles is empty; place them first")
    shapes = {name: values.shape for name, values in maps.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"maps must have one shape, got {shapes}")
    sampled = {name: [sample(values, each, order=order) for each in profiles] for name, values in maps.items()}
    known = [all(bool(np.isfinite(row[i]).all()) for row in sampled.values()) for i in range(len(profiles))]
    if not any(known):
        raise ValueError(f"maps: along each of the {len(profiles)} profiles a map has a voxel without a value")
    kept = [i for i, whole in enumerate(known) if whole]
    return Sharpness(
        profiles=tuple(profiles[i] for i in kept),
        values={name: tuple(row[i] for i in kept) for name, row in sampled.items()},
        fits={
            name: tuple(fit_edge(profiles[i].positions, row[i], profiles[i].voxel_mm, rising=rising) for i in kept)
            for name, row in sampled.items()
        },
        dropped=len(profiles) - len(kept),
    )


def fit_edge(
    positions: Float[np.ndarray, " s"],
    values: Float[np.ndarray, " s"],
    voxel_mm: float,
    *,
    rising: bool | None = None,
) -> EdgeFit:
    """Least-squares fit of a sigmoid, started from the best of a grid of centres and widths.

    Args:
        positions: ascending, equally spaced [mm].
        values: finite [unit of the map].
        voxel_mm: size of the voxels along the profile [mm].
        rising: whether the step must go up; None: either.
    """
    from scipy.optimize import least_squares

    if len(positions) < _FEWEST:
        raise ValueError(f"positions: a profile needs at least {_FEWEST} samples, got {len(positions)}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite along the profile")
    if not (isfinite(voxel_mm) and voxel_mm > 0):
        raise ValueError(f"voxel_mm must be finite and above 0, got {voxel_mm}")
    mean, spread = float(values.mean()), float(values.std())
    if spread <= _FLAT * float(np.abs(values).max()):
        return EdgeFit(mean, mean, nan, nan, nan, spread, "flat")
    scaled = (values - mean) / spread
    first, last = float(positions[0]), float(positions[-1])
    length = last - first

    low = np.array([-inf, -inf, first, log(_LEAST_WIDTH * voxel_mm)])
    high = np.array([inf, inf, last, log(_MOST_WIDTH * length)])
    start = np.minimum(np.maximum(_start(positions, scaled), low + 1e-6), high - 1e-6)
    found = least_squares(  # type: ignore[operator]
        _residuals, start, _jacobian, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12, args=(positions, scaled)
    )
    a, b, centre, log_w = (float(v) for v in found.x)
    w = float(np.exp(log_w))
    # interpolated samples are no new measurements: as many as there are voxels
    free = max(length / voxel_mm + 1 - 4, 1.0)
    curvature = found.jac.T @ found.jac * (length / voxel_mm + 1) / len(positions)
    error = 2 * found.cost * (length / voxel_mm + 1) / len(positions) / free
    log_se = sqrt(max(error * float(np.linalg.pinv(curvature)[3, 3]), 0.0))
    status: Status = "ok"
    if rising is not None and (b > a) != rising:
        status = "wrong contrast"
    elif not first + voxel_mm / 2 < centre < last - voxel_mm / 2:
        status = "centre outside"
    elif not (_LEAST_SEEN * voxel_mm < _TEN_TO_NINETY * w < length and log_se < _LEAST_KNOWN):
        status = "width not seen"
    return EdgeFit(
        inside=mean + spread * a,
        outside=mean + spread * b,
        centre_mm=centre,
        w_mm=w,
        log_width_se=log_se,
        rms=spread * sqrt(2 * found.cost / len(positions)),
        status=status,
    )


def compare(fits: Mapping[str, Sequence[EdgeFit]], quantity: Quantity = "log width") -> tuple[PairedTest, ...]:
    """Paired t-tests between every two methods, with Holm's correction over all pairs.

    Args:
        fits: by method, all along the same profiles in the same order.
        quantity: compared; the paper takes the slope, whose outliers (near-perfect steps) are far; the logarithm of the
            width has none, and its difference is a ratio of widths: exp(difference).
    """
    if len({len(row) for row in fits.values()}) > 1:
        raise ValueError(f"fits must be of the same profiles, got { {name: len(row) for name, row in fits.items()} }")
    tests = [_paired(one, other, fits[one], fits[other], quantity) for one, other in combinations(fits, 2)]
    corrected = holm([test[-1] for test in tests])
    return tuple(PairedTest(*test, p_holm=p) for test, p in zip(tests, corrected, strict=True))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down p-values, in the order given: max over j <= i of min(1, (m - j + 1) p_(j)); NaN stays NaN."""
    tested = sorted((value, i) for i, value in enumerate(p) if not np.isnan(value))
    corrected = [nan] * len(p)
    most = 0.0
    for rank, (value, i) in enumerate(tested):
        most = max(most, min(1.0, (len(tested) - rank) * value))
        corrected[i] = most
    return corrected


def _paired(
    one: str, other: str, first: Sequence[EdgeFit], second: Sequence[EdgeFit], quantity: Quantity
) -> tuple[str, str, Quantity, int, float, float, float, float, float]:
    from scipy.stats import ttest_rel

    both = [(f.quantity(quantity), s.quantity(quantity)) for f, s in zip(first, second, strict=True) if f.ok and s.ok]
    if len(both) < 2:
        return one, other, quantity, len(both), nan, nan, nan, nan, nan
    x, y = (np.array(column) for column in zip(*both, strict=True))
    if np.ptp(x - y) <= _FLAT * np.abs(x).max():
        # the same map twice: no spread to test against
        return one, other, quantity, len(both), float((x - y).mean()), nan, nan, nan, nan
    test = ttest_rel(x, y)
    interval = test.confidence_interval(0.95)
    low, high = float(interval.low), float(interval.high)
    return one, other, quantity, len(both), float((x - y).mean()), low, high, float(test.statistic), float(test.pvalue)


# parameters of the fit: levels inside and outside (values of mean 0 and SD 1), centre [mm], ln w [of mm]


def _residuals(
    p: Float[np.ndarray, "4"], positions: Float[np.ndarray, " s"], scaled: Float[np.ndarray, " s"]
) -> Float[np.ndarray, " s"]:
    return p[0] + (p[1] - p[0]) * _sigmoid((positions - p[2]) * np.exp(-p[3])) - scaled


def _jacobian(
    p: Float[np.ndarray, "4"],
    positions: Float[np.ndarray, " s"],
    scaled: Float[np.ndarray, " s"],  # noqa: ARG001  scipy hands both functions the same
) -> Float[np.ndarray, "s 4"]:
    g = _sigmoid((positions - p[2]) * np.exp(-p[3]))
    bell = (p[1] - p[0]) * g * (1 - g)
    return np.stack([1 - g, g, -bell * np.exp(-p[3]), -bell * (positions - p[2]) * np.exp(-p[3])], axis=1)


def _start(positions: Float[np.ndarray, " s"], scaled: Float[np.ndarray, " s"]) -> Float[np.ndarray, "4"]:
    """The centre and the width whose sigmoid correlates best with the values, and the levels that go with them."""
    first, length = positions[0], positions[-1] - positions[0]
    centre, w = (g.ravel() for g in np.meshgrid(first + length * _START_CENTRES, length * _START_WIDTHS))
    shapes = _sigmoid((positions - centre[:, None]) / w[:, None])
    deviation = shapes - shapes.mean(axis=1, keepdims=True)
    square = (deviation**2).sum(axis=1)
    step = deviation @ scaled / square
    best = int(np.argmax(step**2 * square))
    level = -step[best] * shapes[best].mean()
    return np.array([level, level + step[best], centre[best], np.log(w[best])])


def _sigmoid(x: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))
