"""Speed of the receive coils, one thread, in CPU seconds.

    python benchmarks/bench_coils.py [--quick]

8 coils, 31 images of 128 x 128 (126 rows for R = 3), complex64: sensitivities from the fields of the loops, noise of a
covariance, combinations, SENSE with its weights and with weights at hand; beside a loop over voxels with a
pseudo-inverse each, as textbooks write SENSE. Then how near adaptive comes to the best SNR, and what R costs in g.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from qsim.kspace.coils import (
    Acceleration,
    CoilArray,
    NeighbourCoilNoise,
    adaptive,
    coil_noise,
    matched,
    root_sum_of_squares,
    sense,
    undersample,
    unfolding,
    whiten,
)

COILS, IMAGES, SIZE, SIGMA = 8, 31, 128, 0.03


def cpu_ms(function, repeats: int) -> float:
    """Lowest CPU milliseconds of a call."""
    function()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append((time.process_time() - start) * 1e3)
    return min(taken)


def row(name: str, ms: float, note: str = "") -> None:
    print(f"{name:52}{ms:10.1f}   {note}")


def series(rows: int) -> torch.Tensor:
    """A disc with a phase, whose brightness falls from image to image."""
    y, x = np.mgrid[: rows - rows % 2, :SIZE]
    y, x = y - rows // 2, x - SIZE // 2
    disc = (x**2 + y**2 < (0.42 * SIZE) ** 2) * np.exp(1j * (0.03 * x - 0.02 * y))
    decay = np.exp(-np.linspace(0, 1, IMAGES))
    return torch.from_numpy((decay[:, None, None] * disc).astype(np.complex64))


def pinv_loop(folded: torch.Tensor, sensitivities: torch.Tensor, psi: torch.Tensor, r: int) -> np.ndarray:
    """SENSE along y, voxel by voxel."""
    a, s = folded.numpy(), sensitivities.numpy()
    white = np.linalg.inv(np.linalg.cholesky(psi.numpy()))
    n, m = s.shape[1], a.shape[2]
    shift = n // 2 - m // 2
    result = np.empty((len(a), *s.shape[1:]), np.complex64)
    for u in range(m):
        rows = [(u + shift + j * m) % n for j in range(r)]
        for x in range(s.shape[2]):
            weights = np.sqrt(r) * np.linalg.pinv(white @ s[:, rows, x]) @ white
            result[:, rows, x] = a[:, :, u, x] @ weights.T
    return result


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 3 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    array = CoilArray(coils=COILS)

    print(f"{COILS} coils, {IMAGES} images of {SIZE} x {SIZE}, complex64, one thread: lowest CPU ms")
    row("sensitivities, 2D", cpu_ms(lambda: array.sensitivities((SIZE, SIZE)), repeats))
    sensitivities = array.sensitivities((SIZE, SIZE))
    psi = NeighbourCoilNoise(rho=0.3).covariance(array.loops())
    images = series(SIZE)
    heard = images[:, None] * sensitivities
    shape = tuple(heard.shape)
    row("noise of a covariance", cpu_ms(lambda: coil_noise(shape, psi, SIGMA, generator), repeats))
    heard = heard + coil_noise(shape, psi, SIGMA, generator)
    row("root of sum of squares", cpu_ms(lambda: root_sum_of_squares(heard), repeats))
    row("matched filter", cpu_ms(lambda: matched(heard, sensitivities, psi), repeats))
    row("adaptive, block 5", cpu_ms(lambda: adaptive(heard, psi), repeats))

    for r in (2, 3, 4):
        rows = SIZE - SIZE % r
        acceleration = Acceleration(factors=(r,))
        s = array.sensitivities((rows, SIZE))
        folded = undersample(series(rows)[:, None] * s, acceleration)
        folded = folded + coil_noise(tuple(folded.shape), psi, SIGMA, generator)
        whole = cpu_ms(lambda folded=folded, s=s, a=acceleration: sense(folded, s, a, psi), repeats)
        weights = unfolding(s, acceleration, psi)
        applied = cpu_ms(lambda folded=folded, weights=weights: weights(folded), repeats)
        loop = cpu_ms(lambda folded=folded, s=s, r=r: pinv_loop(folded, s, psi, r), 1)
        apart = np.abs(pinv_loop(folded, s, psi, r) - weights(folded).numpy()).max()
        note = f"loop {loop:.0f} ms, {loop / whole:.0f} x; largest difference {apart:.1e}"
        row(f"SENSE, R = {r}, weights and images", whole, note)
        row(f"SENSE, R = {r}, images, weights at hand", applied)
        inside = series(rows)[0].abs() > 0
        g = weights.g[inside]
        print(f"{'':52}{'':10}   g in the disc: mean {float(g.mean()):.2f}, largest {float(g.max()):.2f}")

    print("\nSNR of adaptive over that of known sensitivities, in the disc: mean, smallest")
    inside = images[0].abs() > 0
    for count in (1, 31):
        for snr in (3, 10, 30, 100):
            some = images[:count, None] * sensitivities
            found = adaptive(some + coil_noise(tuple(some.shape), psi, 1 / snr, generator), psi).sensitivities
            white = whiten(torch.stack((sensitivities, found)), psi)
            share = (white[1].conj() * white[0]).sum(0).abs() / torch.linalg.vector_norm(white[0], dim=0)
            share = share[inside]
            print(f"{count:3d} images, |m| / sigma = {snr:4d}   {float(share.mean()):.4f}  {float(share.min()):.4f}")


if __name__ == "__main__":
    main()
