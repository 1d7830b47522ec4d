"""Image quality (shaw2021): the artefacts of a training, a step of each stage, and the making of a view.

    python benchmarks/bench_quality.py [--quick]

CPU ms on one thread, medians, all cases of a table in turn within one run; only ratios within a run mean much. No data
are needed: the images are made up, smooth with a little noise, and everything else is what
`configs/shaw2021/train_gm_quality.yaml` says.

1. Each artefact on 96 x 96 x 96, as a view meets it: drawn (`one_of`) and applied (`apply_chain`) to a complex64 image
   whose phase is that of a coil. Other draws every time: how many axes are blurred and how often a head moves is drawn
   too, so the 90th percentile stands beside the median. The reference is one transform there and back (fftn, ifftn).
   Motion also with a number of movements that is not drawn.
2. The stages inside motion.
3. A step of training at 48 x 48 x 48: loss, backward, clipping, Adam. The student is trained on two images, the heads
   on two pairs, four images in all.
4. A view (`Views.pair`) of a block of 64 x 64 x 64, of the student and of the heads, and the stages inside.

`faults` counts pages of memory (4 KiB) that the system hands out anew during a call [1000]. glibc gives large arrays
back at once, so that the next call pays for them again; MALLOC_MMAP_THRESHOLD_=2147483648 and
MALLOC_TRIM_THRESHOLD_=8589934592 in the environment keep them.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from stage_times import StageTimes
from torch import Tensor, nn

from generators.reading import read_config
from qsim.distributions import Streams
from qsim.kspace import Artefact, Corrupted, Sudden, apply_chain
from qsim.kspace.motion import composite as composing
from qsim.kspace.motion import motion as moving
from trainers.fit import resolve_precision
from trainers.quality import views as viewing
from trainers.quality.blocks import Blocks
from trainers.quality.config import DecoupledConfig
from trainers.quality.network import DecoupledNet
from trainers.quality.recipes import Recipe
from trainers.quality.views import Pairs, Views, collated, one_of

CONFIG = Path(__file__).parent.parent / "configs" / "shaw2021" / "train_gm_quality.yaml"
SPACING = (1.0, 1.0, 1.0)
IMAGE, BLOCK, PATCH = 96, 64, (48, 48, 48)
SMALL = (8, 16, 32)
# aimed at [CPU ms]
ARTEFACT, MOTION, STEP = 30.0, 60.0, 300.0
MOVEMENTS = (1, 2, 5, 10)
CPU = torch.device("cpu")
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Spent:
    """What one call took: CPU time [ms], pages handed out [1000]."""

    ms: float
    faults: float


def spent(work: Work) -> Spent:
    """One call, of all threads of this process."""
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    work()
    ms = 1000 * (time.process_time() - began)
    return Spent(ms, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / 1000)


def in_turn(works: dict[str, Work], rounds: int) -> dict[str, list[Spent]]:
    """Every work once a round; the first round is to warm up."""
    found: dict[str, list[Spent]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, work in works.items():
            taken = spent(work)
            if number:
                found[name].append(taken)
    return found


def middle(taken: Sequence[Spent]) -> float:
    """Median [ms]."""
    return statistics.median(each.ms for each in taken)


def head(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """An ellipsoid of random smooth texture with a little noise [1], and labels: 1 outer, 2 grey, 3 white."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, size)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt((x / 0.75) ** 2 + (y / 0.9) ** 2 + (z / 0.85) ** 2)
    texture = np.zeros(x.shape)
    for _ in range(8):
        k = rng.uniform(-2, 2, 3)
        texture += np.cos(2 * pi * (k[0] * x + k[1] * y + k[2] * z) + rng.uniform(0, 2 * pi))
    labels = np.select([radius < 0.7 + 0.04 * texture, radius < 0.85, radius < 1.0], [3, 2, 1], 0)
    image = np.array([0.0, 0.3, 0.7, 1.0])[labels] * (1 + 0.03 * texture) + 0.01 * rng.standard_normal(x.shape)
    return torch.from_numpy(np.abs(image)).float(), torch.from_numpy(labels).to(torch.uint8)


def blocks(count: int) -> Blocks:
    """Made-up heads."""
    pairs = [head(BLOCK, seed) for seed in range(count)]
    return Blocks(
        images=torch.stack([image for image, _ in pairs]),
        labels=torch.stack([labels for _, labels in pairs]),
        tissues=("csf", "gm", "wm"),
        anatomy=np.arange(count),
        spacing_mm=SPACING,
        digest="",
        names=tuple(f"made up {number}" for number in range(count)),
    )


def clean_image(config: DecoupledConfig) -> Tensor:
    """What artefacts are applied to: complex, with the phase of a coil."""
    image = head(IMAGE, 0)[0].to(torch.complex64)[None]
    coil = config.augment.bias_field
    assert coil is not None, "the config shades its images"
    return coil.apply(image, coil.draw(tuple(image.shape), np.random.default_rng(0)))


class Applied:
    """Draw and apply one artefact; another draw each time."""

    def __init__(self, artefact: Artefact[Any], image: Tensor) -> None:
        self.artefact, self.image, self.calls = artefact, image, 0

    def __call__(self) -> Corrupted:
        rng = Streams(1, self.calls).rng("draw")
        self.calls += 1
        artefact, drawn = one_of((self.artefact,), tuple(self.image.shape), rng, SPACING)
        return apply_chain(self.image, [artefact], [drawn])


def artefacts(config: DecoupledConfig) -> dict[str, Artefact[Any]]:
    """Of the config, the two wraps apart."""
    named = {}
    for source in config.sources:
        for artefact in source.kinds:
            pattern = getattr(artefact, "pattern", None)
            named[f"{source.name}, {pattern}" if pattern else source.name] = artefact
    return named


def bench_artefacts(config: DecoupledConfig, rounds: int) -> None:
    image = clean_image(config)
    reference = "fftn and ifftn"
    works: dict[str, Work] = {reference: lambda: torch.fft.ifftn(torch.fft.fftn(image, dim=(1, 2, 3)), dim=(1, 2, 3))}
    works |= {name: Applied(artefact, image) for name, artefact in artefacts(config).items()}
    motion = artefacts(config)["motion"]
    assert isinstance(motion, moving.Motion)
    assert isinstance(motion.trajectory, Sudden), "the config moves heads at once"
    for events in MOVEMENTS:
        fixed = replace(motion, trajectory=replace(motion.trajectory, events=events))
        works[f"motion, {events} moves"] = Applied(fixed, image)
    found = in_turn(works, rounds)
    unit = middle(found[reference])
    print(f"artefacts, {IMAGE}^3, complex64, CPU ms, {rounds} draws\n")
    print(f"  {'':18s} {'median':>8s} {'least':>8s} {'90 %':>8s} {'/ fft':>7s} {'faults':>7s} {'aim':>6s}")
    for name, taken in found.items():
        ms = sorted(each.ms for each in taken)
        aim = MOTION if name.startswith("motion") else ARTEFACT
        asked = "" if name == reference else f"{aim:6.0f} {'yes' if middle(taken) < aim else 'NO'}"
        faults = statistics.median(each.faults for each in taken)
        high = ms[min(len(ms) - 1, round(0.9 * len(ms)))]
        median = middle(taken)
        print(f"  {name:18s} {median:8.1f} {ms[0]:8.1f} {high:8.1f} {median / unit:7.2f} {faults:7.1f} {asked}")
    print(flush=True)


def bench_motion(config: DecoupledConfig, rounds: int) -> None:
    """Stages inside motion, means over draws."""
    apply = Applied(artefacts(config)["motion"], clean_image(config))
    apply()
    resampled: list[Any] = []
    watch = StageTimes(time.process_time)
    with ExitStack() as stack:
        for owner, attribute, name in (
            (moving.Motion, "draw", "draw, with severity"),
            (moving.Motion, "_energies", "energies of the lines"),
            (moving.Motion, "_seen", "mean pose"),
            (moving, "composite", "composite, the rest"),
            (composing, "_turned", "turns, by shears"),
            (composing, "_shift_lines", "translations, a ramp a line"),
            (moving, "shifted_lines", "composite, the rest"),
            (moving, "shared_poses", "poses that are shared"),
            (moving, "residual_shifts", "residual shift"),
            (moving, "noted", "trajectory as a table"),
        ):
            stack.enter_context(watch.timed(owner, attribute, name))
        for _ in range(rounds):
            with watch.stage("transforms there and back, the rest"):
                corrupted = apply()
            resampled.append(corrupted.facts[0]["poses"])
    whole = sum(watch.spent.values())
    print(f"inside motion, CPU ms, mean of {rounds} draws, {statistics.mean(resampled):.1f} poses each\n")
    for part, seconds in sorted(watch.spent.items(), key=lambda each: -each[1]):
        print(f"  {part:38s} {1000 * seconds / rounds:8.1f}   {100 * seconds / whole:5.1f} %")
    print(flush=True)


class Step:
    """A step of one stage on the same pairs each time."""

    def __init__(self, stage: str, config: DecoupledConfig, pairs: Pairs, bf16: bool, channels_last: bool) -> None:
        self.recipe, self.pairs, self.bf16 = Recipe(stage, config), pairs, bf16
        self.net = config.network.build(
            1 + len(config.data.target), self.recipe.sources, torch.Generator().manual_seed(0)
        )
        if channels_last:
            self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.net.requires_grad_(False)
        self.learned = self.recipe.learning(self.net)
        for weight in self.learned:
            weight.requires_grad_(True)
        self.adam = torch.optim.Adam(self.learned, lr=config.stage(stage).lr)
        self.recipe.begin(self.net, [pairs])
        self.net.train()

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.recipe.loss(self.net, self.pairs, {}, self.recipe.config.epsilon)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.adam.step()


def bench_steps(config: DecoupledConfig, made: Blocks, rounds: int) -> None:
    small = config.model_copy(update={"network": type(config.network)(features=SMALL), "patch": PATCH})
    works: dict[str, Work] = {}
    for stage in ("student", "heads"):
        views = Views(made, small, 1, Recipe(stage, small).present)
        pairs = collated([views.pair(position) for position in range(config.stage(stage).batch)])
        for name, bf16, last in (
            ("bf16, channels-last", True, True),
            ("fp32, channels-last", False, True),
            ("bf16, plain layout", True, False),
            ("fp32, plain layout", False, False),
        ):
            works[f"{stage}, {name}"] = Step(stage, small, pairs, bf16, last)
        works[f"{stage}, {'-'.join(map(str, config.network.features))}, bf16"] = Step(stage, config, pairs, True, True)
    step = works["student, bf16, channels-last"]
    assert isinstance(step, Step)
    count = sum(weight.numel() for weight in step.net.segmentation.parameters())
    heads = sum(weight.numel() for weight in step.net.heads.parameters())
    chosen = resolve_precision(config.precision, CPU)
    print(f"steps, {PATCH[0]}^3, batch {config.stage('student').batch}, features {list(SMALL)}: {count} weights")
    print(f"and {heads} of the heads; CPU ms, {rounds} steps; precision auto is {chosen} here\n")
    found = in_turn(works, rounds)
    print(f"  {'':28s} {'median':>8s} {'least':>8s} {'fp32 / it':>10s} {'faults':>7s} {'aim':>6s}")
    for name, taken in found.items():
        stage = name.split(",")[0]
        ratio = middle(found[f"{stage}, fp32, channels-last"]) / middle(taken)
        least = min(each.ms for each in taken)
        asked = f"{STEP:6.0f} {'yes' if middle(taken) <= STEP else 'NO'}" if "bf16, channels" in name else ""
        faults = statistics.median(each.faults for each in taken)
        print(f"  {name:28s} {middle(taken):8.0f} {least:8.0f} {ratio:10.2f} {faults:7.1f} {asked}")
    print("\n  inside a step of the heads, bf16, channels-last, means\n")
    heads_step = works["heads, bf16, channels-last"]
    watch = StageTimes(time.process_time)
    with ExitStack() as stack:
        stack.enter_context(watch.timed(DecoupledNet, "segment", "frozen U-Net, forward"))
        stack.enter_context(watch.timed(DecoupledNet, "uncertainty", "heads, forward"))
        stack.enter_context(watch.timed(Tensor, "backward", "backward"))
        for _ in range(rounds):
            with watch.stage("losses, clipping, Adam"):
                heads_step()
    for part, seconds in watch.spent.items():
        print(f"  {part:28s} {1000 * seconds / rounds:8.0f}")
    print(flush=True)


def bench_views(config: DecoupledConfig, made: Blocks, positions: int) -> None:
    chosen = config.model_copy(update={"patch": PATCH})
    for stage in ("student", "heads"):
        views = Views(made, chosen, 1, Recipe(stage, chosen).present)
        views.pair(0)
        whole: list[Spent] = []
        watch = StageTimes(time.process_time)
        with ExitStack() as stack:
            for owner, attribute, name in (
                (viewing, "turned", "turned, scaled, mirrored"),
                (viewing, "spoiled", "artefacts"),
                (viewing, "_seen", "modulus, intensity, cut"),
                (viewing, "intensity_scale", "intensity"),
                (viewing, "mask_of", "brain"),
                (type(config.augment.bias_field), "apply", "coil shading"),
            ):
                stack.enter_context(watch.timed(owner, attribute, name))
            for position in range(1, positions + 1):
                with watch.stage("the rest"):
                    whole.append(spent(partial(views.pair, position)))
        ms = [each.ms for each in whole]
        print(f"views of the {stage}, {BLOCK}^3, {positions} positions, CPU ms:", end=" ")
        print(f"median {statistics.median(ms):.0f},", end=" ")
        print(f"mean {statistics.mean(ms):.0f}, from {min(ms):.0f} to {max(ms):.0f};", end=" ")
        print(f"faults {statistics.mean(each.faults for each in whole):.1f}; the stages, means:\n")
        for part, seconds in sorted(watch.spent.items(), key=lambda each: -each[1]):
            print(f"  {part:28s} {1000 * seconds / positions:8.1f}")
        print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    config = read_config(CONFIG, DecoupledConfig)
    made = blocks(4)
    bench_artefacts(config, 7 if quick else 31)
    bench_motion(config, 5 if quick else 21)
    bench_steps(config, made, 3 if quick else 9)
    bench_views(config, made, 8 if quick else 32)


if __name__ == "__main__":
    main()
