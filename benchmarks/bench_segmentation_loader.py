"""Segmentation of hearts (jacobs2025): augmentation sets A and B on a slice and its mask, and each part of B alone.

    python benchmarks/bench_segmentation_loader.py [--quick]

CPU ms and wall ms of one image on one thread, at 128 x 128 and at the 384 x 384 of the paper; all cases of a table in
turn within one run. No data are needed: the slice is a soft ring with texture, the mask is the ring. Other draws every
time, so the mean over draws is what a training pays; the 90th percentile stands beside it. The parts are as set B
draws them, each at probability 1 with everything else off, flips and turns included. A step of the network costs 20 ms
an image at 128 x 128.
"""

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import SimpleITK
import torch
from torch import Tensor

from trainers.segmentation.augment import Additional, RotationScaling

SIZES = (128, 384)
# aimed at, at the smaller size [CPU ms]
AIMS = {"set A": 5.0, "set B": 8.0}
PARTS = ("rotation_deg", "grid_distortion", "perspective", "brightness", "illumination", "blur", "noise", "rectangles")


@dataclass
class Case:
    """An augmentation with draws of its own."""

    augment: RotationScaling | Additional
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def spent(self, image: Tensor, mask: Tensor) -> tuple[float, float]:
        """CPU and wall time of one call [ms]."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.augment.apply(image, mask, self.rng)
        return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def ring(size: int) -> tuple[Tensor, Tensor]:
    """A slice from 0 to 1 and the mask of a ring in it."""
    axis = torch.linspace(-1, 1, size)
    radius = torch.hypot(axis[:, None], axis[None, :])
    mask = (radius - 0.4).abs() < 0.08
    image = 0.6 * mask + 0.2 * torch.exp(-2 * radius) * (1 + torch.cos(9 * axis)[:, None] * torch.cos(7 * axis))
    return image / image.max(), mask


def cases() -> dict[str, Case]:
    """The two sets, and parts of the second."""
    unscaled = (1.0, 1.0)
    off = {name: 0 if name == "rectangles" else 0.0 for name in PARTS}
    found = {"set A": Case(RotationScaling()), "set B": Case(Additional())}
    found["all of B"] = Case(Additional(probability=1.0))
    found["flips, quarter turns"] = Case(RotationScaling(scale=unscaled))
    for name in PARTS:
        strength = {**off, name: Additional.model_fields[name].default}
        found[name] = Case(Additional.model_validate({**strength, "scale": unscaled, "probability": 1.0}))
    return found


def bench(size: int, rounds: int) -> None:
    image, mask = ring(size)
    works = cases()
    taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds + 3):
        for name, case in works.items():
            spent = case.spent(image, mask)
            if number >= 3:
                taken[name].append(spent)
    print(f"{size} x {size}, ms an image, {rounds} draws\n")
    print(f"  {'':22s} {'CPU mean':>9s} {'median':>7s} {'90 %':>7s} {'wall mean':>10s} {'aim':>6s}")
    for name, pairs in taken.items():
        cpu, wall = zip(*pairs, strict=True)
        mean, high = statistics.mean(cpu), sorted(cpu)[round(0.9 * (len(cpu) - 1))]
        aim = AIMS.get(name) if size == SIZES[0] else None
        asked = f"{aim:6.0f} {'yes' if mean < aim else 'NO'}" if aim else ""
        print(
            f"  {name:22s} {mean:9.2f} {statistics.median(cpu):7.2f} {high:7.2f} {statistics.mean(wall):10.2f} {asked}"
        )
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for size in SIZES:
        bench(size, 40 if quick else 200)


if __name__ == "__main__":
    main()
