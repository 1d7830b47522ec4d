"""Speed and quality of the fits of mono-exponential decays, one thread, in CPU seconds.

    python benchmarks/bench_decays.py [--quick]

least-squares, two-point and log-linear through the whole estimator, and the search alone, against
scipy.optimize.curve_fit (Levenberg-Marquardt, start A = the largest image, T = 50 ms) on the same voxels of the same
run; RMSE over the Cramér-Rao bound; voxels whose objective lies more than 1e-6 above that of a dense grid.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import OptimizeWarning, curve_fit

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.estimators import Status, build_estimator
from qsim.estimators.projection.decay_search import DecaySearch
from qsim.information import crb
from qsim.signals import SpinLock, T2Prep
from tests.oracles import dense_grid_decay
from tests.published import TE_PREP

MODELS = {
    4: SpinLock(tsl=(0.0, 0.01, 0.03, 0.05)),
    6: T2Prep(te_prep=TE_PREP),
    8: T2Prep(te_prep=tuple(0.01 * k for k in range(1, 9))),
}
METHODS = ("least-squares", "log-linear", "two-point")


def cpu_seconds(function):
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def scipy_fit(times: np.ndarray, s: np.ndarray) -> np.ndarray | None:
    """(A, T), or None if it gives up."""
    try:
        return curve_fit(lambda t, a, tau: a * np.exp(-t / tau), times, s, p0=(s.max(), 0.05))[0]
    except RuntimeError:
        return None


def objective(times: np.ndarray, s: np.ndarray, fit) -> float:
    """Sum of squared residuals."""
    return np.inf if fit is None else float(np.sum((fit[0] * np.exp(-times / fit[1]) - s) ** 2))


def bench_speed(n: int, n_curve_fit: int, n_oracle: int) -> None:
    """Voxels per CPU second and failures; A 0.5 to 1.5, T 30 to 180 ms."""
    print(f"{n} voxels, float32; curve_fit on {n_curve_fit}; oracle on {n_oracle} per row; million voxels per CPU-s")
    print("images  snr   search  least-squares  log-linear  two-point   curve_fit   ratio   failures (ours, curve_fit)")
    for images, model in MODELS.items():
        times = np.array(model.times)
        search = DecaySearch(model.times, model.parameters[1])
        for snr in (0, 5, 10, 30, 100):
            generator = torch.Generator().manual_seed(snr)
            truth = torch.stack((torch.rand(n, generator=generator) + 0.5, torch.rand(n, generator=generator) * 0.15))
            truth[1] += 0.03
            noise = torch.randn(images, n, generator=generator)
            y = noise if snr == 0 else model(truth) + 0.65 / snr * noise
            rates = []
            fits = [search, *(build_estimator(name, model) for name in METHODS)]
            for fit in fits:
                fit(y[:, :10_000])
                rates.append(n / cpu_seconds(lambda fit=fit, y=y: fit(y))[1])
            series = y.double().numpy()
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", OptimizeWarning)  # of a covariance, which is not asked for
                theirs, slow = cpu_seconds(
                    lambda s=series, times=times: [scipy_fit(times, s[:, v]) for v in range(n_curve_fit)]
                )
                a, t, _, _ = search(y[:, :n_oracle])
                lost = [0, 0]
                for v in range(n_oracle):
                    limit = dense_grid_decay(times, series[:, v])[0] * (1 + 1e-6)
                    lost[0] += objective(times, series[:, v], (float(a[v]), float(t[v]))) > limit
                    lost[1] += objective(times, series[:, v], theirs[v]) > limit
            reference = n_curve_fit / slow
            print(
                f"{images:4d}   {snr or 'noise':>5}" + "".join(f"{rate / 1e6:11.2f}" for rate in rates)
                + f"   {reference:8.0f} {rates[1] / reference:9.0f}   {lost[0]}, {lost[1]} of {n_oracle}"
            )  # fmt: skip


def bench_quality(n: int) -> None:
    """RMSE and bias of T over the bound, voxels at a bound included and counted."""
    print(f"\nT over {n} repeats: RMSE / bound and bias / bound (share at a bound or not computed), A 0.65")
    print("images  T [ms]  snr   CV of the bound   " + "   ".join(f"{name:>24s}" for name in METHODS))
    for images, model in MODELS.items():
        for t in (0.045, 0.09):
            for snr in (5, 10, 30, 100):
                truth = torch.tensor([0.65, t], dtype=torch.float64)[:, None]
                generator = torch.Generator().manual_seed(snr)
                noise = torch.randn(images, n, generator=generator, dtype=torch.float64)
                y = (model(truth) + 0.65 / snr * noise).float()
                bound = crb(model, truth, 0.65 / snr)
                parts = []
                for name in METHODS:
                    found = build_estimator(name, model)(y)
                    there = found.status != Status.NOT_COMPUTED
                    error = (found.kappa[1, there].double() - t) / bound.sd[1]
                    other = 100 * float((found.status != Status.OK).double().mean())
                    parts.append(
                        f"{float(error.square().mean().sqrt()):8.3f} {float(error.mean()):+7.3f} ({other:4.1f} %)"
                    )
                print(f"{images:4d}   {1e3 * t:5.0f} {snr:6d} {float(bound.cv[1]):10.1f} %      " + "   ".join(parts))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer voxels")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench_speed(*((200_000, 50, 10) if quick else (1_000_000, 1000, 200)))
    bench_quality(10_000 if quick else 100_000)


if __name__ == "__main__":
    main()
