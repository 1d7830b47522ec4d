"""Independent references: scipy and dense grids, sharing no code with the package."""

import warnings

import numpy as np
from scipy.optimize import curve_fit, minimize, minimize_scalar


def recovery_objective(x, ti, s, signed=False):
    """sum_n (|A (1 - B exp(-TI_n / T1))| - S_n)^2."""
    f = x[0] * (1 - x[1] * np.exp(-ti / x[2]))
    return float(np.sum(((f if signed else np.abs(f)) - s) ** 2))


def dense_t1_objective(ti, s, b, n_t=40_001, t_bounds=(0.01, 6.0)):
    """Lowest sum_n (A |1 - B exp(-TI_n / T1)| - S_n)^2 over A >= 0 and a dense grid of T1, of every column of `s`."""
    atoms = np.abs(1 - b * np.exp(-ti[:, None] / np.geomspace(*t_bounds, n_t)))
    projected = np.maximum(s.T @ (atoms / np.linalg.norm(atoms, axis=0)), 0)
    return (s**2).sum(0) - projected.max(1) ** 2


def dense_grid_recovery(ti, s, signed=False, n_b=301, n_t=240, starts=6, b_bounds=(0.0, 3.0), t_bounds=(0.01, 6.0)):
    """Global minimum over A >= 0, B, T1 by brute force over (B, T1), then polishing the best local minima.

    Returns: objective, (A, B, T1).
    """
    b = np.linspace(*b_bounds, n_b)
    t = np.geomspace(*t_bounds, n_t)
    atoms = 1 - b[:, None, None] * np.exp(-ti / t[:, None])[None]
    atoms = atoms if signed else np.abs(atoms)
    p = atoms @ s
    q = (atoms**2).sum(-1)
    a = np.maximum(p / np.maximum(q, 1e-300), 0)
    cost = s @ s - 2 * a * p + a**2 * q
    # local minima of the grid, best first
    padded = np.pad(cost, 1, constant_values=np.inf)
    local = np.ones_like(cost, dtype=bool)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            local &= cost <= padded[1 + i : 1 + i + n_b, 1 + j : 1 + j + n_t]
    rows, columns = np.nonzero(local)
    order = np.argsort(cost[rows, columns])[:starts]
    best = np.inf, None

    def reduced(x):
        atom = 1 - x[0] * np.exp(-ti / np.exp(x[1]))
        atom = atom if signed else np.abs(atom)
        amplitude = max(atom @ s / max(atom @ atom, 1e-300), 0.0)
        return float(np.sum((amplitude * atom - s) ** 2))

    bounds = [b_bounds, tuple(np.log(t_bounds))]
    for i, j in zip(rows[order], columns[order], strict=True):
        x = np.array([b[i], np.log(t[j])])
        simplex = np.array([x, x + np.array([0.01, 0]), x + np.array([0, 0.03])])
        simplex[:, 0] = np.clip(simplex[:, 0], *bounds[0])
        simplex[:, 1] = np.clip(simplex[:, 1], *bounds[1])
        simplex[2, 1] = simplex[2, 1] if simplex[2, 1] != x[1] else x[1] - 0.03
        simplex[1, 0] = simplex[1, 0] if simplex[1, 0] != x[0] else x[0] - 0.01
        for _ in range(3):  # restarts: a simplex may collapse on a kink
            result = minimize(
                reduced,
                x,
                method="Nelder-Mead",
                bounds=bounds,
                options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 2000, "initial_simplex": simplex},
            )
            x = result.x
            simplex = np.array(
                [
                    x,
                    np.clip(x + np.array([1e-3, 0]), *zip(*bounds, strict=True)),
                    np.clip(x + np.array([0, -1e-3]), *zip(*bounds, strict=True)),
                ]
            )
        if result.fun < best[0]:
            atom = 1 - x[0] * np.exp(-ti / np.exp(x[1]))
            atom = atom if signed else np.abs(atom)
            best = result.fun, (max(atom @ s / (atom @ atom), 0.0), x[0], np.exp(x[1]))
    return best


def curve_fit_recovery(ti, s):
    """scipy.optimize.curve_fit, Levenberg-Marquardt, plain start A = max, B = 2, T1 = 1 s; None if it gives up."""
    model = lambda t, a, b, t1: np.abs(a * (1 - b * np.exp(-t / t1)))  # noqa: E731
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of a singular covariance, which is not asked for
            return curve_fit(model, ti, s, p0=(s.max(), 2.0, 1.0), method="lm")[0]
    except RuntimeError:
        return None


def dense_grid_decay(times, s, t_bounds=(0.001, 4.0)):
    """Global minimum of sum_n (A exp(-t_n / T) - S_n)^2 over A >= 0 and T: a dense grid, then bounded Brent steps."""

    def reduced(u):
        atom = np.exp(-times / np.exp(u))
        amplitude = max(atom @ s / max(atom @ atom, 1e-300), 0.0)
        return float(np.sum((amplitude * atom - s) ** 2))

    grid = np.linspace(*np.log(t_bounds), 4000)
    cost = np.array([reduced(u) for u in grid])
    i = int(cost.argmin())
    ends = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    result = minimize_scalar(reduced, bounds=ends, method="bounded", options={"xatol": 1e-12})
    if result.fun < cost[i]:
        return result.fun, np.exp(result.x)
    return cost[i], np.exp(grid[i])


def dense_grid_offset_decay(times, s, t_bounds=(0.001, 4.0)):
    """Global minimum of sum_n (A exp(-t_n / T) + C - S_n)^2 over A >= 0, C and T: a dense grid, then Brent steps."""

    def reduced(u):
        design = np.stack([np.exp(-times / np.exp(u)), np.ones_like(times)], 1)
        # an active constraint A = 0 leaves the mean
        (a, c), *_ = np.linalg.lstsq(design, s, rcond=None)
        if a < 0:
            a, c = 0.0, s.mean()
        return float(np.sum((a * design[:, 0] + c - s) ** 2))

    grid = np.linspace(*np.log(t_bounds), 2000)
    cost = np.array([reduced(u) for u in grid])
    best = cost.min()
    for i in np.flatnonzero(cost <= np.minimum(np.append(cost[1:], np.inf), np.append(np.inf, cost[:-1]))):
        ends = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        best = min(best, minimize_scalar(reduced, bounds=ends, method="bounded", options={"xatol": 1e-12}).fun)
    return best
