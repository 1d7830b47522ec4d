"""CPU-seconds of a RIM training step and of mapping one slice, bf16 against fp32 in the same run, on one thread.

    python benchmarks/bench_rim.py [--quick]

Sizes: a step is 24 patches of 31 x 40 x 40, 36 features, J = 6, forward, backward and Adam; mapping is one slice of
31 x 256 x 256. Required: a step in at most 1.2 CPU-s, a slice in at most 1.5 CPU-s.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from qsim.signals import InversionRecovery
from trainers.networks import MappingNetwork, ResNetNetwork, RIMNetwork

# the 31 inversion times of sabidussi2021 Table 2 [s]
TI = tuple(
    t / 1000
    for t in (
        139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538,
        565, 591, 618, 644, 671, 697, 724, 751, 777, 804, 838, 857, 883, 915, 937,
    )
)  # fmt: skip
MODEL = InversionRecovery(ti=TI)
SIGMA = 0.02
# required of a step and of a slice [CPU-s]
LIMITS = 1.2, 1.5


def series(b: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images and their maps."""
    g = torch.Generator().manual_seed(0)
    t1 = 0.5 + 2 * torch.rand(b, size, size, generator=g)
    kappa = torch.stack((torch.full_like(t1, 0.8), torch.full_like(t1, 1.9), t1))
    images = MODEL(kappa).movedim(0, 1)
    return (images + SIGMA * torch.randn(images.shape, generator=g)).contiguous(), kappa.movedim(0, 1)


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Least process time of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def bench(
    name: str,
    spec: MappingNetwork,
    patches: int,
    patch: int,
    size: int,
    repeats: int,
    limits: tuple[float, float] | None = None,
) -> None:
    """Print one network's figures."""
    images, kappa = series(patches, patch)
    slice_images, _ = series(1, size)
    sigma = torch.full((1, 1, 1), SIGMA)
    figures = {}
    for precision in ("fp32", "bf16"):
        net = spec.build(MODEL, MODEL.parameters, torch.Generator().manual_seed(0))
        net.to(memory_format=torch.channels_last)
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
        truth = net.coordinates.encode(kappa)[:, None]
        bf16 = precision == "bf16"

        def step(net=net, adam=adam, truth=truth, bf16=bf16):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                u = net(images, sigma)
            loss = (u.float() - truth).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

        def infer(net=net, bf16=bf16):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                net(slice_images, sigma, True)

        figures[precision] = cpu_seconds(step, repeats), cpu_seconds(infer, repeats)
    weights = sum(w.numel() for w in net.parameters())
    print(f"{name}, {weights} weights")
    for i, what in enumerate((f"step, {patches} x (31, {patch}, {patch})", f"mapping 31 x {size} x {size}")):
        fp32, bf16 = figures["fp32"][i], figures["bf16"][i]
        wanted = f"   (required {limits[i]})" if limits else ""
        print(f"  {what:28s} fp32 {fp32:5.2f}   bf16 {bf16:5.2f} CPU-s   fp32 / bf16 {fp32 / bf16:4.2f}{wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one repeat")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    patches, patch, size, repeats = (4, 24, 64, 1) if quick else (24, 40, 256, 3)
    sizes = patches, patch, size, repeats
    paper = RIMNetwork(update="additive", gradient="per_n", start="fixed")
    limits = None if quick else LIMITS
    bench("RIM of the paper: 36 features, 1 x 1 gates, J = 6, additive update", paper, *sizes, limits)
    bench("RIM, default: the same layers, posterior update, start from a dictionary", RIMNetwork(), *sizes, limits)
    bench("RIM of the paper with 3 x 3 gates", replace(paper, gates=3), *sizes)
    bench("ResNet, 12 blocks", ResNetNetwork(), patches, patch, size, 1)


if __name__ == "__main__":
    main()
