"""Speed of `qsim map` after start-up, one thread: CPU seconds, best of several.

    python benchmarks/bench_map.py [--quick]

A slice of 256 x 192 voxels and 6 inversion times: files, sidecars and picture included, and how long each part takes;
then a volume of 40 such slices, with the memory that it takes beyond its images.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from phantoms.series.base import Series
from qsim.signals import InversionRecovery
from trainers.mapping import series as mapping
from trainers.mapping.inputs import MapJob

TI = (0.05, 0.1, 0.2, 0.5, 2.0, 4.0)


def head(slices: int) -> Series:
    """An ellipse of brain-like T1 in air, signed, SNR 50."""
    rng = np.random.default_rng(0)
    y, x = np.indices((192, 256))
    inside = ((y - 96) / 80) ** 2 + ((x - 128) / 105) ** 2 < 1
    t1 = (0.8 + 0.6 * (np.sin(x / 9) > 0) + 2.5 * (np.hypot(y - 96, x - 128) < 15)).astype(np.float32)
    volumes = []
    for ti in TI:
        one = np.where(inside, 900 * (1 - 1.86 * np.exp(-ti / t1)), 0)
        volumes.append((one + 18 * rng.standard_normal((slices, 192, 256), dtype=np.float32)).astype(np.float32))
    return Series("sub-01_IRT1", (), tuple(volumes), "InversionTime", TI)


def timed(series: Series, repeats: int, **job: object) -> tuple[float, float, float]:
    """Best CPU and wall seconds of a whole call, and CPU seconds of its picture."""
    model = InversionRecovery(ti=TI, signed=True)
    drawing, draw = [], mapping.picture

    def picture(*arguments: object) -> None:
        began = time.process_time()
        draw(*arguments)  # type: ignore[arg-type]
        drawing.append(time.process_time() - began)

    mapping.picture = picture  # type: ignore[assignment]
    cpu, wall = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            began, at = time.process_time(), time.perf_counter()
            mapping.map_series(series, model, MapJob(out=Path(folder) / "o", **job))  # type: ignore[arg-type]
            cpu.append(time.process_time() - began)
            wall.append(time.perf_counter() - at)
    mapping.picture = draw
    return min(cpu), min(wall), min(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    one = head(1)
    print("256 x 192, 6 inversion times, signed: CPU s (wall s), of which the picture")
    for label, job in (
        ("least-squares", {"method": "least-squares"}),
        ("least-squares --std", {"method": "least-squares", "std": True}),
        ("least-squares --mask auto", {"method": "least-squares", "mask": "auto"}),
        ("shared-b --mask auto", {"method": "shared-b", "mask": "auto"}),
    ):
        cpu, wall, drawing = timed(one, 3 if quick else 7, **job)
        print(f"  {label:28} {cpu:.2f} ({wall:.2f})  {drawing:.2f}")
    if quick:
        return
    volume = head(40)
    held = sum(v.nbytes for v in volume.volumes) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    cpu, wall, _ = timed(volume, 1, method="least-squares")
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    print(f"40 slices ({held:.0f} MB): {cpu:.1f} CPU s, {wall:.1f} s, {more:.0f} MB beyond what was held")


if __name__ == "__main__":
    main()
