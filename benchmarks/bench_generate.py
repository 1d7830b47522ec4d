"""Speed of making and of writing samples, each as a ratio against a named opponent in the same run.

1. `make_samples` of the sabidussi2021 problem, 31 inversion times on 40 x 40 voxels of the MNI phantom, against the
   same work written plainly in numpy, float64, one sample at a time: crop, draw of the tissue values, maps,
   signal, noise. CPU seconds on one thread. Required: 2.5 times as fast, aim 4.5.
2. `build` against plain Zarr writing of the same arrays with the same codecs, chunks and shards, where both are given
   the samples ready made. `build` adds checksums, markers, and waits until each shard is on the disk.
   Required: 0.7 of the rate.

    python benchmarks/bench_generate.py [--quick]
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import zarr

from generators.build import build
from generators.config import GeneratorConfig
from generators.sample import make_samples, scene
from generators.schema import ArraySpec
from qsim.distributions import Distribution, Streams

TI_MS = (
    *(139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538),
    *(565, 591, 618, 644, 671, 697, 724, 751, 777, 804, 838, 857, 883, 915, 937),
)


def config(samples: int, partial_volume: bool) -> GeneratorConfig:
    return GeneratorConfig.model_validate(
        {
            "seed": 1,
            "samples": samples,
            "patch": [40, 40],
            "partial_volume": partial_volume,
            "phantom": {"kind": "mni"},
            "tissues": {"kind": "sabidussi2021"},
            "model": {"kind": "inversion_recovery", "ti": [ti / 1000 for ti in TI_MS]},
            "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
        }
    )


def naive(chosen: GeneratorConfig, indices: range) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The same work in plain numpy: float64, one sample and one tissue after the other."""
    world = scene(chosen)
    phantom, table = world.phantom, world.table
    ti = np.array(chosen.signal_model.times).reshape(-1, 1, 1)
    made = []
    for index in indices:
        rng = np.random.default_rng([chosen.seed, index])
        # the crop is common to both: same voxels, same cost
        fractions = phantom.crop(chosen.patch, Streams(chosen.seed, index).rng("anatomy")).fractions.astype(np.float64)
        background = 1 - fractions.sum(0)
        largest, purity = fractions.argmax(0), fractions.max(0)
        inside = (purity >= background) & (purity > 0)
        labels = np.where(inside, largest + 1, 0)

        b = draw(table.per_sample["B"], rng)
        vary_a, vary_t1 = 1 + 0.05 * rng.standard_normal((2, *chosen.patch))
        kappa = np.zeros((3, *chosen.patch))
        images = np.zeros((len(ti), *chosen.patch))
        for t, tissue in enumerate(phantom.tissues):
            a = draw(table[tissue].values["A"], rng) * vary_a
            t1 = draw(table[tissue].values["T1"], rng) * vary_t1
            here = labels == t + 1
            kappa[0][here], kappa[1][here], kappa[2][here] = a[here], b, t1[here]
            if chosen.partial_volume:
                images += fractions[t] * (a * (1 - b * np.exp(-ti / t1)))
        if chosen.partial_volume:
            images = np.abs(images)
        else:
            a, b_map, t1 = kappa
            images[:, inside] = np.abs(a[inside] * (1 - b_map[inside] * np.exp(-ti[:, 0] / t1[inside])))
        sigma = draw(chosen.noise_model.sigma, rng)
        images += rng.normal(0, sigma, images.shape)
        made.append({"images": images, "kappa": kappa, "labels": labels, "purity": purity})
    return made


def draw(distribution: Distribution, rng: np.random.Generator) -> float:
    return float(distribution.ppf(rng.random(1))[0])


def best(
    works: Sequence[Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
    between: Callable[[], object] = lambda: None,
) -> list[float]:
    """Best time of each [s]; they take turns, so that a busy machine slows both, after a round that warms caches."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(1 + repeats):
        for work, own in zip(works, times, strict=True):
            between()
            begin = clock()
            work()
            own.append(clock() - begin)
    return [min(own[1:]) for own in times]


def in_batches(chosen: GeneratorConfig, n: int) -> None:
    """Make the samples in batches, as a build does: larger ones are handed back to the system after each use."""
    for start in range(0, n, 32):
        make_samples(chosen, range(start, min(start + 32, n)))


def bench_making(n: int, repeats: int) -> None:
    for partial_volume in (False, True):
        chosen = config(n, partial_volume)
        works: list[Callable[[], object]] = [partial(in_batches, chosen, n), partial(naive, chosen, range(n))]
        ours, plain = (n / seconds for seconds in best(works, repeats))
        print(
            f"make_samples, 31 x 40 x 40, float32, partial_volume {partial_volume}: {ours:.0f} per CPU-s; "
            f"plain numpy float64: {plain:.0f}; ratio {ours / plain:.2f} (required 2.5, aim 4.5)"
        )


def bench_writing(n: int, repeats: int) -> None:
    chosen = config(n, partial_volume=False)
    samples = make_samples(chosen, range(n))
    blocks = {name: getattr(samples, name).numpy() for name in samples.__slots__}

    def ready(_: object, specs: tuple[ArraySpec, ...], start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
        return {spec.name: blocks[spec.name][start:stop] for spec in specs}

    with tempfile.TemporaryDirectory() as folder:
        ours, plain, model = (Path(folder) / name for name in ("ours.zarr", "plain.zarr", "model.zarr"))

        def build_ready(path: Path = ours) -> None:
            with mock.patch("generators.tasks._make_blocks", ready):
                build(chosen, path, shard=512, chunk=8)

        build_ready(model)
        arrays: list[tuple[str, Any]] = list(zarr.open_group(model, mode="r").arrays())

        def write_plain() -> None:
            group = zarr.create_group(plain)
            for name, like in arrays:
                array = group.create_array(
                    name,
                    shape=like.shape,
                    dtype=like.dtype,
                    chunks=like.chunks,
                    shards=like.shards,
                    compressors=like.metadata.codecs[0].codecs[1:],
                )
                for start in range(0, n, 512):
                    array[start : start + 512] = blocks[name][start : start + 512]

        def clear() -> None:
            for path in (ours, plain):
                shutil.rmtree(path, ignore_errors=True)

        megabytes = sum(block.nbytes for block in blocks.values()) / 1e6
        for unit, clock in (("CPU-s", time.process_time), ("s of wall time", time.perf_counter)):
            rates = [megabytes / seconds for seconds in best([build_ready, write_plain], repeats, clock, clear)]
            print(
                f"build, {n} ready samples in shards of 512: {rates[0]:.0f} MB per {unit}; "
                f"plain zarr: {rates[1]:.0f}; ratio {rates[0] / rates[1]:.2f} (required 0.7)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, rougher figures")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    bench_making(128 if quick else 512, 2 if quick else 5)
    bench_writing(1024 if quick else 2048, 2 if quick else 5)


if __name__ == "__main__":
    main()
