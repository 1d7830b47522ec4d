"""Speed and quality of the methods that pool B: shared-b with its two poolings, and empirical-bayes.

    python benchmarks/bench_shared_b.py [--quick]

One thread, CPU seconds. First speed, and RMSE and bias of T1 over the Cramér-Rao bound of the same problem (B shared by
the same voxels), per voxel over repeats, then the median and the mean over voxels. Then the error of B on brain-like
images (three tissues, means drawn as in Table 1 of sabidussi2021, 5 % within a tissue, B = 2 - half-normal(.2), six
draws), and the RMSE of T1 on those.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.estimators import build_estimator
from qsim.information import crb
from qsim.kspace.noise import sigma_of
from qsim.signals import InversionRecovery
from tests.published import TABLE_1, TI_31
from tests.qsim.brain_like import brain_like, noisy_images

TISSUES = ("gm", "wm", "csf")
IR = InversionRecovery(ti=TI_31)
SIGMAS = (0.255, 0.149, 0.072, 0.023, 0.0065)


def cpu_seconds(function):
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def mixed(n: int, b: float, generator: torch.Generator) -> Tensor:
    """Equal parts of three tissues, A and T1 within 5 % of Table 1."""
    table = torch.tensor([TABLE_1[tissue][:2] for tissue in TISSUES], dtype=torch.float64)
    spread = torch.randn(2, n, generator=generator, dtype=torch.float64).clamp(-2, 2)
    rows = table[torch.arange(n) % 3].T * (1 + 0.05 * spread)
    return torch.stack((rows[0], torch.full((n,), b, dtype=torch.float64), rows[1]))


def noisy(kappa: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    clean = IR(kappa)
    return (clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).float()


def speed(n: int, repeats: int) -> None:
    """Voxels per CPU second including the search of B."""
    print(f"shared-b, 31 images, float32, {n} voxels, sigma given: million voxels per CPU-s ({repeats} runs), B found")
    generator = torch.Generator().manual_seed(1)
    for b in (1.5, 1.8, 1.95):
        for snr in (3.0, 5.0, 10.0, 30.0, 100.0):
            images, cells = noisy(mixed(n, b, generator), sigma_of(snr), generator), []
            for pooling in ("auto", "profile"):
                estimate = build_estimator("shared-b", IR, {"pooling": pooling})
                runs = [
                    cpu_seconds(lambda e=estimate, i=images, s=snr: e(i, sigma=sigma_of(s))) for _ in range(repeats)
                ]
                rates = sorted(n / seconds / 1e6 for _, seconds in runs)
                cells.append(f"{pooling} {rates[0]:.2f} to {rates[-1]:.2f}, B {float(runs[0][0].kappa[1, 0]):.4f}")
            print(f"B {b:4.2f}  SNR {snr:3.0f}   {'   '.join(cells)}")


def efficiency(n: int, repeats: int) -> None:
    """RMSE / bound and bias / bound of T1 per voxel over repeats."""
    # root of the median of a chi-square of that many degrees of freedom over them
    low = (1 - 2 / (9 * repeats)) ** 1.5
    print(f"\nT1 of {n} voxels, {repeats} repeats: CV of the bound [%]; RMSE / bound: median (efficient: {low:.3f}),")
    print("root mean square; bias / bound: mean over voxels and repeats")
    for b in (1.5, 1.8, 1.95):
        for snr in (5.0, 10.0, 30.0, 100.0):
            generator = torch.Generator().manual_seed(int(snr))
            kappa, sigma = mixed(n, b, generator), sigma_of(snr)
            bound = crb(IR, kappa, sigma, shared=("B",))
            estimate = build_estimator("shared-b", IR)
            fits = [estimate(noisy(kappa, sigma, generator), sigma=sigma).kappa for _ in range(repeats)]
            error = torch.stack([(found[2] - kappa[2]) / bound.sd[2] for found in fits])
            rmse, parts = error.square().mean(0).sqrt(), []
            for i, tissue in enumerate(TISSUES):
                own = rmse[i::3]
                parts.append(
                    f"{tissue} {float(bound.cv[2, i::3].mean()):5.2f}; {float(own.median()):5.3f}, "
                    f"{float(own.square().mean().sqrt()):6.3f}; {float(error[:, i::3].mean()):+6.3f}"
                )
            b_error = [float(found[1, 0]) - b for found in fits]
            print(
                f"B {b:4.2f} (RMS error {float(np.sqrt(np.mean(np.square(b_error)))):.4f}, bound "
                f"{float(bound.sd[1, 0]):.4f})  SNR {snr:3.0f}   {'   '.join(parts)}"
            )


def pooled_b(n: int, draws: int) -> None:
    """RMS error and bias of B, and what they are in units of the stated SD."""
    print(f"\nbrain-like images of {n} voxels, {draws} draws: RMS error of B (its mean; mean of (error / SD)^2)")
    for sigma in SIGMAS:
        cells = []
        for pooling in ("profile", "histogram", "auto"):
            errors, squares = [], []
            for draw in range(draws):
                kappa, _ = brain_like(draw, n)
                found = build_estimator("shared-b", IR, {"pooling": pooling, "covariance": True})(
                    noisy_images(kappa, sigma, 100 + draw), sigma=sigma
                )
                errors.append(float(found.kappa[1, 0] - kappa[1, 0]))
                squares.append(errors[-1] ** 2 / float(found.variances["noise"][1, 0]))
            rms, mean = float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(errors))
            cells.append(f"{pooling} {rms:.4f} ({mean:+.4f}; {float(np.mean(squares)):.2f})")
        print(f"sigma {sigma:6.4f}   {'   '.join(cells)}")


def brain_t1(n: int, draws: int, repeats: int) -> None:
    """RMSE of T1, and over the bound with B shared."""
    print(
        f"\nthe same images, {repeats} repeats of each: RMSE of T1 [%] per voxel, median over voxels; over the bound;"
    )
    print("slope of the estimate on the truth within a tissue; each the mean of the draws; CPU seconds per image")
    for sigma in SIGMAS:
        cells = []
        for name in ("shared-b", "empirical-bayes"):
            estimate, rows = build_estimator(name, IR), []
            for draw in range(draws):
                kappa, label = brain_like(draw, n)
                bound = crb(IR, kappa, sigma, shared=("B",)).cv[2]
                seconds, fits = 0.0, []
                for repeat in range(repeats):
                    images = noisy_images(kappa, sigma, 100 + draw + 1000 * repeat)
                    found, used = cpu_seconds(lambda e=estimate, i=images, s=sigma: e(i, sigma=s))
                    fits.append(found.kappa[2].double())
                    seconds += used / repeats
                t1 = torch.stack(fits)
                rmse = 100 * (t1 / kappa[2] - 1).square().mean(0).sqrt()
                slopes = []
                for tissue in range(3):
                    x = kappa[2, label == tissue] - kappa[2, label == tissue].mean()
                    slopes.append(float((t1[:, label == tissue] @ x).mean() / (x @ x)))
                rows.append((float(rmse.median()), float((rmse / bound).median()), float(np.median(slopes)), seconds))
            rms, ratio, slope, seconds = np.mean(rows, axis=0)
            cells.append(f"{name} {rms:6.2f}; {ratio:5.3f}; {slope:5.2f}; {seconds:.2f} s")
        print(f"sigma {sigma:6.4f}   {'   '.join(cells)}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer voxels and repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    speed(60_000 if quick else 240_000, 2 if quick else 5)
    efficiency(*((3000, 4) if quick else (24_000, 10)))
    pooled_b(4000 if quick else 24_000, 3 if quick else 6)
    brain_t1(*((3000, 2, 2) if quick else (12_000, 6, 5)))


if __name__ == "__main__":
    main()
