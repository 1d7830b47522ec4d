"""Speed and quality of the classical estimators, one thread, in CPU seconds.

    python benchmarks/bench_estimators.py [--quick]

least-squares against scipy.optimize.curve_fit (Levenberg-Marquardt, start A = max, B = 2, T1 = 1 s) on the same
voxels of the same run, with failures counted against a dense-grid oracle.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.estimators import Status
from qsim.estimators.least_squares import LeastSquares
from qsim.kspace.noise import sigma_of
from qsim.signals import InversionRecovery
from tests.oracles import curve_fit_recovery, dense_grid_recovery, recovery_objective
from tests.published import TABLE_1, TI_31

TISSUES = {"gm": 0.30, "wm": 0.25, "csf": 0.30}  # SD of T1 between subjects [s], Table 1 of sabidussi2021
IR = InversionRecovery(ti=TI_31)
TI = np.array(TI_31)


def cpu_seconds(function):
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def spread_voxels(tissue: str, n: int, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Table 1 with its whole spread cut at 2 SD, B 1.5 to 2 per voxel."""
    a, t1, _ = TABLE_1[tissue]

    def cut(mean, sd):
        return mean + sd * np.clip(rng.standard_normal(n), -2, 2)

    signal = np.abs(cut(a, 0.3) * (1 - rng.uniform(1.5, 2, n) * np.exp(-TI[:, None] / cut(t1, TISSUES[tissue]))))
    return signal + sigma_of(snr) * rng.standard_normal(signal.shape)


def bench_least_squares(n: int, n_curve_fit: int, n_oracle: int) -> None:
    """Voxels per CPU second, ratio to curve_fit, failures, at-bound rates."""
    rng = np.random.default_rng(1)
    fit = LeastSquares(IR)
    print(f"least-squares, 31 images, float32, {n} voxels; curve_fit on {n_curve_fit}; oracle on {n_oracle} per row")
    print("snr   tissue  voxels/CPU-s  curve_fit   ratio  at bound  failures (ours, curve_fit) of the oracle's voxels")
    for snr in (10.0, 30.0, 100.0):
        per_voxel: list[tuple[float, float]] = []
        for tissue in TISSUES:
            images = spread_voxels(tissue, n, snr, rng)
            single = torch.tensor(images, dtype=torch.float32)
            fit(single[:, :5000])
            found, ours = cpu_seconds(lambda single=single: fit(single))
            theirs, slow = cpu_seconds(lambda s=images: [curve_fit_recovery(TI, s[:, v]) for v in range(n_curve_fit)])
            double = fit(torch.tensor(images[:, :n_oracle])).kappa.numpy()
            failed, lost = 0, 0
            for v in range(n_oracle):
                lowest, _ = dense_grid_recovery(TI, images[:, v])
                failed += recovery_objective(double[:, v], TI, images[:, v]) > lowest * (1 + 1e-6)
                other = theirs[v]
                lost += other is None or recovery_objective(other, TI, images[:, v]) > lowest * (1 + 1e-6)
            bound = float((found.status == Status.AT_BOUND).float().mean())
            rate, reference = n / ours, n_curve_fit / slow
            per_voxel.append((1 / rate, 1 / reference))
            print(
                f"{snr:3.0f}   {tissue:5s} {rate:12.0f} {reference:10.0f} {rate / reference:8.0f} "
                f"{100 * bound:7.1f} %   {failed}, {lost} of {n_oracle}"
            )
        rate, reference = (len(per_voxel) / sum(column) for column in zip(*per_voxel, strict=True))
        print(f"{snr:3.0f}   pooled {rate:12.0f} {reference:10.0f} {rate / reference:8.0f}   (as many voxels of each)")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer voxels")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench_least_squares(*((20_000, 200, 20) if quick else (100_000, 1000, 200)))


if __name__ == "__main__":
    main()
