"""Cost of fields: of each map in a batch, of the inversion through its pulse, and against the plain sum of waves.

1. A smooth B0 and a smooth B1 on 64 x 64 voxels, in batches of 32; required: well under 0.5 ms each. Opponent: the
   same sum of 64 waves with one cosine per wave and voxel, in numpy.
2. B through an adiabatic pulse on 64 x 64 voxels from the table, against its step-by-step simulation.
3. `make_samples` of the sabidussi2021 problem (31 inversion times, 40 x 40) without and with b0, b1, pulse_inversion.

    python benchmarks/bench_fields.py [--quick]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from bench_generate import config as sabidussi_problem

from generators.config import GeneratorConfig
from generators.sample import make_samples
from phantoms.fields import Place, SmoothB0, SmoothB1
from phantoms.fields.base import to_maps
from phantoms.fields.pulse_table import Box, pulse_table, simulate
from phantoms.fields.smooth import Waves
from qsim.signals.pulses import hs1

BATCH = 32
HS1 = {"duration": 0.01024, "max_b1": 800.0, "beta": 672.0, "mu": 5.0}
PLACE = Place(
    origin=(40, 60, 90), block=(64, 64, 1), spacing_mm=(1.0, 1.0, 1.0), extent=None, slice_axis=2, patch=(64, 64)
)


def best(work: Callable[[], object], repeats: int) -> float:
    """Best CPU time of one call [s]."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def one_by_one(seed: int) -> np.ndarray:
    waves = Waves.draw(np.random.default_rng(seed), 3, 60.0)
    y, x = np.meshgrid(PLACE.positions(0), PLACE.positions(1), indexing="ij")
    phase = waves.phase + waves.frequency[:, 2] * PLACE.positions(2)
    angle = y[..., None] * waves.frequency[:, 0] + x[..., None] * waves.frequency[:, 1] + phase
    return np.cos(angle).sum(-1) * (2 / len(phase)) ** 0.5


def smooth(kind: type[SmoothB0] | type[SmoothB1]) -> torch.Tensor:
    field, maps = kind(), []
    for seed in range(BATCH):
        rng = np.random.Generator(np.random.Philox(seed))
        of = field.drawn(rng)
        g = Waves.draw(rng, 3, field.length_mm).at(PLACE)
        maps.append(of["mean"] * np.exp(of["sd"] * g) if kind is SmoothB1 else of["mean"] + of["sd"] * g)
    return to_maps(maps)


def bench_maps(repeats: int) -> None:
    np.testing.assert_allclose(
        Waves.draw(np.random.default_rng(5), 3, 60.0).at(PLACE), one_by_one(5), atol=2e-5, rtol=0
    )
    plain = best(lambda: [one_by_one(seed) for seed in range(BATCH)], max(repeats // 4, 1)) / BATCH
    for kind in (SmoothB0, SmoothB1):
        ours = best(lambda kind=kind: smooth(kind), repeats) / BATCH  # type: ignore[misc]
        print(
            f"{kind.__name__}, 64 x 64, batch of {BATCH}: {1e3 * ours:.3f} ms a map; "
            f"one cosine per wave and voxel: {1e3 * plain:.2f} ms; ratio {plain / ours:.1f} (required: 0.5 ms)"
        )


def bench_pulse(repeats: int) -> None:
    box = Box(r1=(0.2, 7.0), r2=(0.3, 140.0), rel_b1=(0.3, 2.2), delta_b0=(-240.0, 370.0))
    begin = time.process_time()
    table = pulse_table(hs1(**HS1), box)
    made = time.process_time() - begin
    rng = np.random.default_rng(1)
    y, x = np.meshgrid(*(np.linspace(-1, 1, 64),) * 2, indexing="ij")
    rates = [torch.from_numpy(rng.uniform(low, high, (64, 64))).float() for low, high in box.sides[:2]]
    b1, b0 = torch.from_numpy(0.9 + 0.2 * x * y).float(), torch.from_numpy(60 + 100 * (x + y)).float()
    ours = best(lambda: table.mz(1 / rates[0], 1 / rates[1], b1, b0), repeats)
    flat = [x.reshape(-1).double() for x in (*rates, b1, b0)]
    plain = best(lambda: simulate(table.pulse, *flat), max(repeats // 8, 1))
    error = (table.mz(1 / rates[0], 1 / rates[1], b1, b0).double().reshape(-1) - simulate(table.pulse, *flat)).abs()
    print(
        f"inversion through a pulse, 64 x 64: {1e3 * ours:.2f} ms, table once {made:.1f} s; "
        f"step by step: {1e3 * plain:.0f} ms; ratio {plain / ours:.0f}; largest error {float(error.max()):.1g}"
    )


def bench_samples(n: int, repeats: int) -> None:
    plain = sabidussi_problem(n, partial_volume=True)
    fields = [{"kind": "b0"}, {"kind": "b1"}, {"kind": "pulse_inversion", "pulse": {"pulse": "HS1", **HS1}}]
    several = GeneratorConfig.model_validate({**plain.model_dump(mode="json"), "fields": fields})

    def batches(chosen: GeneratorConfig) -> None:
        for start in range(0, n, BATCH):
            make_samples(chosen, range(start, min(start + BATCH, n)))

    without, with_fields = (best(lambda chosen=chosen: batches(chosen), repeats) / n for chosen in (plain, several))  # type: ignore[misc]
    print(
        f"make_samples, 31 x 40 x 40: {1e3 * without:.2f} ms a sample without fields, {1e3 * with_fields:.2f} ms with "
        f"b0, b1, pulse_inversion; ratio {with_fields / without:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, rougher figures")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench_maps(8 if quick else 30)
    bench_pulse(10 if quick else 40)
    bench_samples(64 if quick else 256, 2 if quick else 4)


if __name__ == "__main__":
    main()
