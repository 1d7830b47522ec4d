"""Bias and speed of the magnitude likelihood, one thread, in CPU seconds.

    python benchmarks/bench_magnitude.py [--quick]

T1rho 45 ms from TSL 0, 10, 30, 50 ms, Rician noise, SNR = A / sigma at TSL 0 (A = 0.65, so SNR = 0.65 / sigma): bias
of the median and of the mean over all voxels, share at a bound, beside the Gaussian fit of the same images; then other
models by the general search, and the posterior mode.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.estimators import Status, TissuePrior, build_estimator
from qsim.signals import InversionRecovery, MultiEchoSpinEcho, SpinLock
from qsim.tissues import Sabidussi2021

LOCK = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))


def cpu_seconds(function):
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def magnitudes(signal, sigma, generator, coils=1):
    """Root of sum of squares of the channels."""
    channels = sigma * torch.randn(2 * coils, *signal.shape, generator=generator, dtype=torch.float64)
    channels[0] += signal
    return channels.square().sum(0).sqrt()


def bench_bias(n: int) -> None:
    """The target of the project, and what a Gaussian fit makes of the same images."""
    print(f"T1rho 45 ms, {n} voxels, float32; bias of T1rho: median, mean [%]")
    print("coils  SNR   voxels/CPU-s   likelihood          at bound  not converged   Gaussian fit")
    truth = torch.tensor([[0.65], [0.045]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for coils, snrs in ((1, (2, 3, 5, 7, 10, 20, 50, 100)), (4, (5, 10, 20))):
        fit = build_estimator("rician", LOCK, {"coils": coils})
        for snr in snrs:
            images = magnitudes(LOCK(truth).expand(4, n), 0.65 / snr, generator, coils).float()
            fit(images[:, :5000], 0.65 / snr)
            found, seconds = cpu_seconds(lambda fit=fit, images=images, s=0.65 / snr: fit(images, s))
            gaussian = build_estimator("least-squares", LOCK)(images)
            rows = []
            for estimate in (found, gaussian):
                t = estimate.kappa[1].double() / 0.045 - 1
                rows.append(f"{100 * float(t.median()):+7.2f} {100 * float(t.mean()):+9.2f}")
            bound = float((found.status == Status.AT_BOUND).double().mean())
            lost = int((found.status == Status.NOT_CONVERGED).sum())
            print(f"{coils:5d} {snr:4d} {n / seconds:14.0f}   {rows[0]} {100 * bound:9.2f} % {lost:10d}   {rows[1]}")


def bench_general(n: int) -> None:
    """Models without a search of their own."""
    print(f"\ngeneral search, {n} voxels, SNR 20")
    generator = torch.Generator().manual_seed(2)
    uniform = torch.rand(3, n, generator=generator, dtype=torch.float64)
    recovery = InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0))
    train = MultiEchoSpinEcho(te=tuple(0.01 * i for i in range(1, 11)), t1=1.0)
    cases = (
        (recovery, torch.stack((0.5 + uniform[0], 1.7 + 0.3 * uniform[1], 0.4 + 1.6 * uniform[2])), None),
        (train, torch.stack((0.5 + uniform[0], 0.03 + 0.15 * uniform[1], 0.7 + 0.25 * uniform[2])), "REL_B1"),
    )
    for model, kappa, name in cases:
        images = magnitudes(model(kappa), 0.05, generator)
        known = {name: kappa[2]} if name else None
        fit = build_estimator("rician", model)
        _, seconds = cpu_seconds(lambda fit=fit, images=images, known=known: fit(images, 0.05, known=known))
        print(f"rician  {model.kind:22s} {n / seconds:9.0f} voxels/CPU-s")
    model = InversionRecovery(ti=tuple(0.03 * i for i in range(1, 32)))
    prior = TissuePrior.from_table(Sabidussi2021().table(), model.parameters, {"gm": 1.0, "wm": 1.0, "csf": 1.0})
    tissue = torch.randint(0, 3, (n,), generator=generator)
    normals = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    kappa = (prior.median.log()[tissue] + prior.spread[tissue] * normals).exp().T
    print("map, 31 inversion times, truths from the prior of three tissues: RMSE of T1 [%], and of least squares")
    for snr in (5, 10, 30, 100):
        images = model(kappa) + 0.65 / snr * torch.randn(31, n, generator=generator, dtype=torch.float64)
        fit = build_estimator("map", model, prior=prior)
        found, seconds = cpu_seconds(lambda fit=fit, images=images, s=0.65 / snr: fit(images, s))
        other = build_estimator("least-squares", model)(images)
        ours, theirs = (100 * float((e.kappa[2] / kappa[2] - 1).square().mean().sqrt()) for e in (found, other))
        print(f"SNR {snr:3d} {n / seconds:9.0f} voxels/CPU-s   {ours:6.1f} {theirs:8.1f}")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer voxels")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench_bias(20_000 if quick else 100_000)
    bench_general(500 if quick else 3000)


if __name__ == "__main__":
    main()
