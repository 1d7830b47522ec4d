"""Coverage and width of 95 % intervals over SNR, and their speed in CPU seconds on one thread.

    python benchmarks/bench_intervals.py [--quick]

Voxels of Table 1 (sabidussi2021) with Gaussian noise of known sigma, fitted by least-squares. Per protocol, tissue and
SNR: CV of the Cramér-Rao bound; coverage, and median width over that of the bound (2 x 1.96 SD), of wald, log_wald,
profile and choose; the share of open intervals. Then coverage by tissue and by tercile of the error, all tissues mixed.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.estimators.intervals import choose, log_wald, profile, wald
from qsim.estimators.least_squares import LeastSquares
from qsim.evaluation.uncertainty import coverage
from qsim.information import crb
from qsim.signals import InversionRecovery, SpinLock, T2Prep
from tests.published import TABLE_1, TE_PREP, TI_31

SL, T2, IR = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05)), T2Prep(te_prep=TE_PREP), InversionRecovery(ti=TI_31)
METHODS = ("wald", "log_wald", "profile", "choose")
Z = 1.959964


def voxels(model, values: list[float], sigma: float, n: int, seed: int):
    kappa = torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, n)
    generator = torch.Generator().manual_seed(seed)
    clean = model(kappa)
    return kappa, clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def intervals(model, images, sigma, estimate, row, known):
    """Each interval and its CPU seconds."""
    found = {}
    for name in METHODS:
        start = time.process_time()
        if name in ("wald", "log_wald"):
            interval = (wald if name == "wald" else log_wald)(estimate, row, 0.95, model.parameters[row])
        else:
            interval = (profile if name == "profile" else choose)(model, images, sigma, estimate, row, known=known)
        found[name] = interval, time.process_time() - start
    return found


def bench(name: str, model, row: int, tissues: dict[str, list[float]], snrs: list[float], known, n: int) -> None:
    print(f"\n{name}, {n} voxels each: coverage [%] / median width over the bound's / open intervals [%]")
    print(
        f"{'SNR':>4} {'tissue':6} {'bound CV':>8}  "
        + "".join(f"{m:>22}" for m in METHODS)
        + "   voxels/CPU-s (profile, choose)"
    )
    for snr in snrs:
        sigma, pooled = 0.65 / snr, {m: [] for m in METHODS}
        labels, truths, points = [], [], []
        for tissue, values in tissues.items():
            kappa, images = voxels(model, values, sigma, n, seed=int(snr))
            estimate = LeastSquares(model, covariance=True)(images, sigma=sigma, known=known)
            bound = crb(model, kappa[:, :1], sigma, known=tuple(known or ()))
            width, cv = 2 * Z * float(bound.sd[row, 0]), float(bound.cv[row, 0])
            cells, speed = "", ""
            for method, (interval, seconds) in intervals(model, images, sigma, estimate, row, known).items():
                held = (interval.lower <= values[row]) & (values[row] <= interval.upper)
                ratio = float(interval.width.nanmedian()) / width
                cells += f"{100 * float(held.double().mean()):8.1f} {ratio:6.2f} {_open(interval):6.1f}"
                pooled[method].append((interval.lower.numpy(), interval.upper.numpy()))
                if method in ("profile", "choose"):
                    speed += f"{n / max(seconds, 1e-6):10.0f}"
            print(f"{snr:4g} {tissue:6} {cv:7.1f}%  {cells}   {speed}", flush=True)
            labels += [tissue] * n
            truths.append(np.full(n, values[row]))
            points.append(estimate.kappa[row].numpy())
        groups = {tissue: np.array(labels) == tissue for tissue in tissues}
        for method in METHODS:
            ends = tuple(np.concatenate([pair[side] for pair in pooled[method]]) for side in (0, 1))
            rows = coverage(np.concatenate(points), ends, np.concatenate(truths), tissues=groups)
            cells = ", ".join(f"{r.group} {100 * r.observed:.1f}" for r in rows if r.group not in groups)
            left_out = f"; left out {rows[0].left_out}" if rows[0].left_out else ""
            print(f"     {method:9} {cells}{left_out}")


def _open(interval) -> float:
    return 100 * float(interval.one_sided.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the voxels")
    n = 1000 if parser.parse_args().quick else 10000
    torch.set_num_threads(1)
    snrs = [3.0, 5.0, 10.0, 30.0, 60.0, 100.0]
    tissue = {"gm": 0.055, "wm": 0.045, "muscle": 0.035}
    bench("spin_lock TSL 0, 10, 30, 50 ms", SL, 1, {k: [0.65, t] for k, t in tissue.items()}, snrs, None, n)
    t2 = {k: [a, t] for k, (a, _, t) in TABLE_1.items() if k != "csf"}
    bench("t2_prep 10 ... 320 ms", T2, 1, t2, snrs, None, n)
    t1 = {k: [a, 1.9, t] for k, (a, t, _) in TABLE_1.items()}
    bench("inversion_recovery, 31 times, B known", IR, 2, t1, snrs, {"B": 1.9}, n)
    bench("inversion_recovery, 31 times, B free", IR, 2, t1, [30.0, 100.0, 300.0, 1000.0], None, n // 5)


if __name__ == "__main__":
    main()
