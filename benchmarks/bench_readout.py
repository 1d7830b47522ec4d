"""Speed of a readout ordered in k-space: a 256 x 256 slice, spoiled gradient echo, 64 echoes, 4 shots, float32.

Both ways start from maps of T1 and rel_b1 and end at the image, and so does the opponent: the same in plain numpy, one
weighting and one full transform for each echo. CPU seconds on one thread, best of several runs.
Required: exact 60 ms, rank-4 subspace 20 ms at a relative error below 1e-4.

    python benchmarks/bench_readout.py [--quick]
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qsim.kspace.order import Acquisition, echo_of_line
from qsim.signals.readout import SpoiledGradientEcho, read, subspace
from qsim.signals.spins import Spins, spins

FLIP, TR, SIZE = math.radians(10), 0.005, 256


def smooth(rng: np.random.Generator, low: float, high: float) -> np.ndarray[Any, Any]:
    """A map of smooth regions and fine structure between two values."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = sum(np.sin(2 * np.pi * (rng.uniform(-3, 3) * x + rng.uniform(-3, 3) * y)) for _ in range(4))
    mixed = waves + rng.normal(size=x.shape)
    return (low + (high - low) * (mixed - mixed.min()) / np.ptp(mixed)).astype(np.float32)


def naive(
    t1: np.ndarray[Any, Any], rel_b1: np.ndarray[Any, Any], mz: np.ndarray[Any, Any], echoes: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Echo by echo: recursion, transform of the whole image, the lines of this echo."""
    e1, flip = np.exp(-TR / t1), FLIP * rel_b1
    spectrum, m = np.zeros(mz.shape, complex), mz
    for echo in range(echoes.max() + 1):
        lines = np.fft.fftshift(np.fft.fft(np.sin(flip) * m, axis=0), axes=0)
        spectrum[echoes == echo] = lines[echoes == echo]
        m = 1 + (m * np.cos(flip) - 1) * e1
    return np.fft.ifft(np.fft.ifftshift(spectrum, axes=0), axis=0)


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    repeats = 5 if parser.parse_args().quick else 30
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    t1, rel_b1, mz = smooth(rng, 0.3, 4.0), smooth(rng, 0.7, 1.3), smooth(rng, -1.0, 1.0)
    spin: Spins = spins(t1=torch.tensor(t1), t2=0.05, rel_b1=torch.tensor(rel_b1))
    series = torch.tensor(mz)[None]
    print("order      numpy [ms]  exact [ms]  ratio   rank 4 [ms]  ratio   error of rank 4   of exact against numpy")
    for order in ("linear", "centric", "segmented"):
        acquisition = Acquisition(lines=SIZE, shots=4, order=order, encoding="exact")
        exact = SpoiledGradientEcho(flip_angle=FLIP, tr=TR, acquisition=acquisition)
        short = replace(exact, acquisition=replace(acquisition, encoding="subspace", rank=4))
        echoes = echo_of_line(acquisition, SIZE).numpy()
        reference = naive(t1.astype(float), rel_b1.astype(float), mz.astype(float), echoes)
        images = read(exact, spin, series)[0].numpy(), read(short, spin, series)[0].numpy()
        wrong, off = (np.linalg.norm(image - reference) / np.linalg.norm(reference) for image in images)
        plain = milliseconds(lambda echoes=echoes: naive(t1, rel_b1, mz, echoes), max(2, repeats // 5))
        slow = milliseconds(lambda exact=exact: read(exact, spin, series), repeats)
        fast = milliseconds(lambda short=short: read(short, spin, series), repeats)
        print(
            f"{order:10s} {plain:10.1f} {slow:11.1f} {plain / slow:6.1f} {fast:13.1f} {plain / fast:6.1f}"
            f" {off:16.1e} {wrong:16.1e}"
        )
    print(f"share that rank 4 leaves out of its ensemble: {subspace(short).loss:.1e}")


if __name__ == "__main__":
    main()
