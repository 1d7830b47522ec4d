"""Search for the times of a series: exchange of single times, then all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from jaxtyping import Float
from numpy.random import Generator
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize

from qsim.information.relaxed import Relaxed, relaxed_design

# candidates of an exchange, and most rounds of it
_CANDIDATES, _ROUNDS = 150, 30
# times that move as one, as a share of their range
_TOGETHER = 2e-3
# information below this share of what was there before the elimination is rounding
_LOST = 1e-12
# neighbours of a rounded time that are tried, in steps
_NEAR = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
# gain of the precision below which an exchange is rounding
_GAIN = 1e-9


@dataclass(frozen=True, slots=True)
class Slopes:
    """Slopes of the signal and the weight of an image over its time, for the unknown rows.

    Attributes:
        slope: spline of dS/dkappa / sigma, times (n) -> (q, n, t).
        weight: spline of the share of the information that a magnitude keeps, (n) -> (n, t); None: all of it.
        local: how many rows are not shared; the shared ones come after them.
        targets: index among the rows, and value in each tissue, of each wanted parameter.
    """

    slope: CubicSpline
    weight: CubicSpline | None
    local: int
    targets: tuple[tuple[int, Float[np.ndarray, " t"]], ...]


def information_left(information: Float[np.ndarray, "q q *s"], row: int) -> Float[np.ndarray, "*s"]:
    """Information on one parameter once the others are eliminated: 1 / its variance; 0 if nothing is left.

    Gauss elimination without pivoting, safe for a matrix that is positive semidefinite: a row that is used up has no
    coupling left.
    """
    left = information.copy()
    own = np.stack([information[i, i] for i in range(len(information))])
    rest = [i for i in range(len(information)) if i != row]
    while rest:
        k = rest.pop()
        usable = left[k, k] > _LOST * own[k]
        inverse = np.where(usable, 1 / np.where(usable, left[k, k], 1.0), 0.0)
        for i in (*rest, row):
            scaled = left[i, k] * inverse
            for j in (*rest, row):
                if j <= i:
                    left[i, j] = left[j, i] = left[i, j] - scaled * left[k, j]
    return np.where(left[row, row] > _LOST * own[row], left[row, row], 0.0)


@dataclass(frozen=True, slots=True)
class Search:
    """Search for n times between two limits whose sum is limited.

    Attributes:
        alone: share of what a shared parameter adds to the variance: 1 / voxels; 1 without shared parameters.
    """

    slopes: Slopes
    n: int
    low: float
    high: float
    total: float
    alone: float

    def information(self, times: Float[np.ndarray, " n"]) -> Float[np.ndarray, "q q n t"]:
        """Information of one image at each time."""
        slope = self.slopes.slope(times)
        products = (slope[:, None].conj() * slope[None]).real
        return products if self.slopes.weight is None else products * self.slopes.weight(times)

    def precision(self, information: Float[np.ndarray, "q q *s t"]) -> Float[np.ndarray, "*s"]:
        """Smallest (value / SD)^2 over tissues and wanted parameters; 0 where one cannot be told."""
        worst = np.full(information.shape[2:-1], inf)
        local = self.slopes.local
        for row, value in self.slopes.targets:
            found = information_left(information, row)
            if row >= local:
                found = found / self.alone
            elif self.alone < 1:
                # var = alone / own + (1 - alone) / pooled
                pooled = information_left(information[:local, :local], row)
                both = self.alone * pooled + (1 - self.alone) * found
                found = found * pooled / np.where(both > 0, both, 1.0)
            worst = np.minimum(worst, (found * value**2).min(-1))
        return np.asarray(worst)

    def merit(self, times: Float[np.ndarray, " n"]) -> float:
        """Precision of a series."""
        return float(self.precision(self.information(times).sum(2)))

    def relaxed(self) -> Relaxed:
        """The best counts of candidates, not whole."""
        times, slopes = self.candidates(), self.slopes
        information = self.information(times)
        return relaxed_design(information, times, slopes.targets, slopes.local, self.alone, self.n, self.total)

    def regular_starts(self) -> list[Float[np.ndarray, " n"]]:
        """Times equally spaced, and in groups at the ends."""
        ends = np.where(np.arange(self.n) % 2 == 0, self.low, self.high)
        return [self.feasible(np.linspace(self.low, self.high, self.n)), self.feasible(ends)]

    def random_start(self, rng: Generator) -> Float[np.ndarray, " n"]:
        """Times spread over the interval, dense at its lower end."""
        return self.feasible(self.low + (self.high - self.low) * rng.random(self.n) ** 2)

    def feasible(self, times: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The times, drawn towards the lowest until their sum is allowed."""
        times = np.clip(times, self.low, self.high)
        spare = self.total - self.n * self.low
        excess = float((times - self.low).sum())
        return times if excess <= spare else self.low + (times - self.low) * (spare / excess)

    def candidates(self) -> Float[np.ndarray, " c"]:
        """Times of an exchange: equally spaced, and geometrically."""
        half = _CANDIDATES // 2
        grids = np.linspace(self.low, self.high, half), np.geomspace(max(self.low, self.high / 300), self.high, half)
        return np.unique(np.clip(np.concatenate(grids), self.low, self.high))

    def exchanged(self, times: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Exchange one time after the other for the best candidate, until a round gains nothing."""
        candidates = self.candidates()
        return self._exchange(times, [candidates] * self.n, self.information(candidates))

    def _exchange(
        self,
        times: Float[np.ndarray, " n"],
        candidates: Sequence[Float[np.ndarray, " _"]],
        information: Float[np.ndarray, "q q c t"] | None,
    ) -> Float[np.ndarray, " n"]:
        """Exchange over candidates of each time, whose information is given where they are the same for all."""
        times = times.copy()
        of_images = self.information(times)
        best = float(self.precision(of_images.sum(2)))
        for _ in range(_ROUNDS):
            before = best
            for i in range(self.n):
                of_candidates = self.information(candidates[i]) if information is None else information
                others = of_images[:, :, np.arange(self.n) != i].sum(2)
                merits = self.precision(others[:, :, None] + of_candidates)
                allowed = candidates[i] <= self.total - (times.sum() - times[i]) + 1e-9
                merits = np.where(allowed, merits, -1.0)
                k = int(merits.argmax())
                if merits[k] > best * (1 + _GAIN):
                    times[i], of_images[:, :, i], best = candidates[i][k], of_candidates[:, :, k], float(merits[k])
            if best <= before * (1 + 1e-6):
                break
        return times

    def refined(self, times: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Move all times together: max z with log precision >= z in every tissue. The better of before and after.

        Times that are nearly equal move as one.
        """
        if self.merit(times) == 0:
            return times
        ordered = np.sort(times)
        group = np.concatenate([[0], np.cumsum(np.diff(ordered) > _TOGETHER * (self.high - self.low))])
        counts = np.bincount(group).astype(float)
        middle = np.bincount(group, ordered) / counts
        k = len(counts)

        def margins(x: Float[np.ndarray, " k_and_1"]) -> tuple[np.ndarray, np.ndarray]:
            """By how much each log precision exceeds z, and the slope of that over the times and z."""
            values, slopes = self._log_precisions(np.clip(x[:k], self.low, self.high), counts)
            return values - x[k], np.column_stack([slopes, -np.ones(len(slopes))])

        constraints = [{"type": "ineq", "fun": lambda x: margins(x)[0], "jac": lambda x: margins(x)[1]}]
        if self.total < self.n * self.high:
            used = np.append(-counts, 0.0)
            constraints.append({"type": "ineq", "fun": lambda x: self.total + used @ x, "jac": lambda _: used})
        up = np.append(np.zeros(k), -1.0)
        result = minimize(  # type: ignore[no-untyped-call]
            lambda x: -x[k],
            np.append(middle, self._log_precisions(middle, counts)[0].min()),
            jac=lambda _: up,
            bounds=[(self.low, self.high)] * k + [(None, None)],
            constraints=constraints,
            method="SLSQP",
            options={"maxiter": 60, "ftol": 1e-7},
        )
        moved = self.feasible(result.x[group]) if np.isfinite(result.x).all() else times
        return moved if self.merit(moved) > self.merit(times) else times

    def _log_precisions(
        self, times: Float[np.ndarray, " n"], counts: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k n"]]:
        """Log precision of each wanted parameter in each tissue, and its slope over each time, measured so often.

        With c the row of I^-1 of the parameter: d var = -sum_n (2 w_n (c . g_n) (c . dg_n) + (c . g_n)^2 dw_n).
        """
        g, dg = self.slopes.slope(times), self.slopes.slope(times, 1)
        weight = self.slopes.weight
        each = counts[:, None] * np.ones(g.shape[2])
        w = each if weight is None else each * weight(times)
        dw = np.zeros_like(w) if weight is None else each * weight(times, 1)
        values, slopes = [], []
        local = self.slopes.local
        for row, value in self.slopes.targets:
            parts = [(len(g), 1.0)]
            if row >= local:
                parts = [(len(g), self.alone)]
            elif self.alone < 1:
                parts = [(len(g), self.alone), (local, 1 - self.alone)]
            variance: Float[np.ndarray, " t"] = np.zeros(g.shape[2])
            slope = np.zeros(g.shape[1:])
            for size, share in parts:
                own, own_slope = _variance(g[:size], dg[:size], w, dw, row)
                variance, slope = variance + share * own, slope + share * own_slope
            values.append(2 * np.log(value) - np.log(variance))
            slopes.append(-slope / variance)
        return np.concatenate(values), np.concatenate([slope.T for slope in slopes])

    def rounded(self, times: Float[np.ndarray, " n"], step: float) -> Float[np.ndarray, " n"]:
        """The times in whole steps within the limits, exchanged with their neighbours until nothing gains."""
        # plus 0: no time is minus 0
        first, last = np.ceil(self.low / step - 1e-6) + 0.0, np.floor(self.high / step + 1e-6)
        steps = np.clip(np.rint(times / step), first, last)
        while steps.sum() * step > self.total + 1e-9:
            # the one that was rounded up most, of those that can be lower
            steps[np.argmax(np.where(steps > first, steps - times / step, -inf))] -= 1
        for _ in range(_ROUNDS):
            near = [np.unique(np.clip(at + _NEAR, first, last)) for at in steps]
            moved = np.rint(self._exchange(steps * step, [at * step for at in near], None) / step)
            if (moved == steps).all():
                break
            steps = moved
        return steps * step


def _variance(
    g: Float[np.ndarray, "q n t"],
    dg: Float[np.ndarray, "q n t"],
    w: Float[np.ndarray, "n t"],
    dw: Float[np.ndarray, "n t"],
    row: int,
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, "n t"]]:
    """Variance of one parameter in each tissue, and its slope over the time of each image."""
    information = np.einsum("int,jnt,nt->tij", g.conj(), g, w).real
    own = np.einsum("tii->ti", information)
    scale = np.sqrt(np.where(own > 0, own, 1.0))
    # a design that tells nothing has a large variance here, and a slope that leads away from it
    regular = information / scale[:, :, None] / scale[:, None] + 1e-14 * np.eye(len(g))
    inverse = np.linalg.inv(regular) / scale[:, :, None] / scale[:, None]
    c = inverse[:, row]
    along, ahead = np.einsum("ti,int->nt", c, g), np.einsum("ti,int->nt", c, dg)
    return np.maximum(c[:, row], 1e-300), -(2 * w * (along.conj() * ahead).real + dw * np.abs(along) ** 2)
