"""Speed of the signal models on maps, one thread, in CPU seconds.

    python benchmarks/bench_bloch.py [--quick]

256 x 256 voxels x 31 times: inversion recovery in closed form against numpy in place; the balanced spin-lock cluster
under B0 and B1 against 31 closed-form decays (the cheapest thing a T1rho series can be) and against the same cluster
by the textbook route, one rotation and one relaxation after the other on whole maps; with --compile also fused by
torch.compile. Then patches of 64 x 64 with four spin-lock times through the whole generator.
"""

import argparse
import sys
import time
from math import pi
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from generators import GeneratorConfig, make_samples
from qsim.signals import InversionRecovery, SpinLock
from qsim.signals.bloch import compile_longitudinal, spins
from qsim.signals.preparations import SpinLockPreparation

SIZE, TIMES = 256, 31


def cpu_ms(function, repeats: int) -> tuple[float, float]:
    """Lowest and median CPU milliseconds of a call."""
    function()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append((time.process_time() - start) * 1e3)
    return min(taken), float(np.median(taken))


def row(name: str, figures: tuple[float, float], size: int, note: str = "") -> None:
    best, median = figures
    print(f"{name:46}{best:9.2f}{median:9.2f}{size / median / 1e3:12.0f}   {note}")


def uniform(low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(SIZE, SIZE, generator=generator)


def textbook(spin, tsl: torch.Tensor) -> torch.Tensor:
    """BSL on whole maps with full 3 x 3 rotations about the effective field, R1rho along and R2rho across."""
    m = torch.zeros(3, TIMES, SIZE, SIZE)
    m[2] = 1

    def pulse(m, angle, x, y):
        c, s = torch.cos(angle * spin.rel_b1), torch.sin(angle * spin.rel_b1)
        along = m[0] * x + m[1] * y
        cross = (-m[2] * y, m[2] * x, m[0] * y - m[1] * x)
        return torch.stack(
            (
                m[0] * c + cross[0] * s + x * along * (1 - c),
                m[1] * c + cross[1] * s + y * along * (1 - c),
                m[2] * c + cross[2] * s,
            )
        )

    def lock(m, share, y):
        w1, dw = 2 * pi * 400 * spin.rel_b1 * y, 2 * pi * spin.delta_b0
        w = torch.sqrt(w1**2 + dw**2)
        ny, nz = w1 / w, dw / w
        r1, r2 = 1 / spin.t1, 1 / spin.t2
        along = r1 * nz**2 + ny**2 / spin.t1rho
        across = (2 * r2 + r1 - (r1 * nz**2 + r2 * ny**2)) / 2
        t = share * tsl
        e1, e2 = torch.exp(-t * along), torch.exp(-t * across)
        c, s = torch.cos(w * t), torch.sin(w * t)
        p = m[1] * ny + m[2] * nz
        qx, qy, qz = m[0], m[1] - p * ny, m[2] - p * nz
        cx, cy, cz = qy * nz - qz * ny, -qx * nz, qx * ny
        p = p * e1 + nz * r1 / along * (1 - e1)
        return torch.stack(((qx * c + cx * s) * e2, (qy * c + cy * s) * e2 + p * ny, (qz * c + cz * s) * e2 + p * nz))

    m = lock(pulse(m, pi / 2, 1, 0), 0.25, 1)
    m = lock(pulse(m, pi, 0, 1), 0.5, -1)
    m = lock(pulse(m, pi, 0, -1), 0.25, 1)
    return pulse(m, pi / 2, -1, 0)[2]


def patch_config(readout: dict[str, object], partial_volume: bool = False) -> GeneratorConfig:
    values = {
        "A": {"kind": "uniform", "low": 0.8, "high": 1.0},
        "T1": {"kind": "uniform", "low": 0.7, "high": 0.9},
        "T2": {"kind": "uniform", "low": 0.03, "high": 0.05},
        "T1RHO": {"kind": "uniform", "low": 0.04, "high": 0.06},
    }
    return GeneratorConfig(
        seed=1,
        samples=1,
        patch=(64, 64),
        phantom={"kind": "mni"},
        tissues={
            "kind": "table",
            "name": "bench",
            "field_strength": 3.0,
            "tissues": [
                {"name": t, "source": "made up", "values": values} for t in ("csf", "gm", "wm", "skull", "skin")
            ],
            "within": {name: {"relative": 0.05} for name in ("A", "T1", "T2", "T1RHO")},
        },
        model={
            "kind": "bloch",
            "preparation": {"kind": "spin_lock", "cluster": "BSL", "tsl": [0.0, 0.01, 0.03, 0.05], "fsl": 400.0},
            "readout": readout,
        },
        fields=[{"kind": "b0", "field_strength": 3.0}, {"kind": "b1", "field_strength": 3.0}],
        noise={"kind": "rician", "sigma": {"kind": "constant", "value": 0.02}},
        partial_volume=partial_volume,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (half a minute, needs a compiler)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 5 if arguments.quick else 25
    g = torch.Generator().manual_seed(0)
    size = SIZE * SIZE * TIMES
    print(f"{SIZE} x {SIZE} voxels x {TIMES} times, one thread, float32")
    print(f"{'':46}{'best ms':>9}{'median':>9}{'million/s':>12}")

    ti = tuple(np.linspace(0.03, 0.94, TIMES).tolist())
    kappa = torch.stack((uniform(0.5, 1, g), uniform(1.6, 2, g), uniform(0.5, 3, g)))
    model = InversionRecovery(ti=ti)
    a, b, t1 = (x.numpy() for x in kappa)
    out, column = np.empty((TIMES, SIZE, SIZE), np.float32), np.array(ti, np.float32)[:, None, None]

    def numpy_in_place() -> None:
        np.divide(-column, t1, out=out)
        np.exp(out, out=out)
        np.multiply(out, -(a * b), out=out)
        np.add(out, a, out=out)
        np.abs(out, out=out)

    tsl = tuple(np.linspace(0, 0.06, TIMES).tolist())
    spin = spins(
        t1=uniform(0.8, 1.5, g),
        t2=uniform(0.04, 0.1, g),
        t1rho=uniform(0.04, 0.1, g),
        delta_b0=uniform(-100, 100, g),
        rel_b1=uniform(0.8, 1.2, g),
    )
    prepare = SpinLockPreparation(cluster="BSL", tsl=tsl, fsl=400.0)
    decay = SpinLock(tsl=tsl)
    maps = torch.stack((torch.ones_like(spin.t1), spin.t1rho))
    lock_times = torch.tensor(tsl)[:, None, None]
    with torch.no_grad():
        row("inversion recovery, numpy in place", cpu_ms(numpy_in_place, repeats), size)
        row("inversion recovery, closed form", cpu_ms(lambda: model(kappa), repeats), size, "at least 800")
        row("decay, closed form", cpu_ms(lambda: decay(maps), repeats), size)
        row("BSL with B0 and B1, textbook", cpu_ms(lambda: textbook(spin, lock_times), max(2, repeats // 5)), size)
        row("BSL with B0 and B1, engine", cpu_ms(lambda: prepare.apply(spin), repeats), size, "at most 120 ms")
        if arguments.compile:
            fused = compile_longitudinal(prepare.events(tsl, 400.0))
            one = torch.ones_like(spin.t1)
            row(
                "BSL with B0 and B1, engine, compiled", cpu_ms(lambda: fused(spin, one), repeats), size, "at most 40 ms"
            )
            print(f"{'':46}largest difference {float((fused(spin, one) - prepare.apply(spin)).abs().max()):.1e}")

    print("\npatches of 64 x 64, BSL at 4 spin-lock times, B0 and B1 fields, Rician noise")
    gre = {"kind": "spoiled_gradient_echo", "flip_angle": 0.17, "tr": 0.005, "acquisition": {"lines": 64}}
    subspace = gre | {"acquisition": {"lines": 64, "encoding": "subspace"}}
    exact = gre | {"acquisition": {"lines": 64, "encoding": "exact"}}
    n = 16 if arguments.quick else 128
    readouts = {
        "ideal readout": {"kind": "ideal"},
        "train": gre,
        "train, rank-4 subspace": subspace,
        "train, exact": exact,
    }
    configs = {name: patch_config(readout) for name, readout in readouts.items()}
    configs["ideal readout, partial volume"] = patch_config({"kind": "ideal"}, partial_volume=True)
    for name, config in configs.items():
        make_samples(config, [0])
        start = time.process_time()
        for first in range(0, n, 16):
            make_samples(config, range(first, first + 16))
        rate = n / (time.process_time() - start)
        print(f"{name:46}{rate:9.0f} patches per CPU-s{'   at least 300' if 'ideal' in name else ''}")


if __name__ == "__main__":
    main()
