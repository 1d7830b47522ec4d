"""CPU-seconds of a training iteration, stage by stage, and what would make it faster, on one thread.

    python benchmarks/bench_training.py [configs] [--quick] [--compile] [--device cuda]

Each config of `configs/sabidussi2021/networks` (by name; without one, those of `CONFIGS`) trains for a few iterations
as `qsim train` does. Printed are

1. the stages of an iteration: draw the maps, simulate the series, what the task makes of them, the start of the voxels,
   the likelihood inside the network, the layers, backward, clipping, Adam;
2. fp32 against bf16, and features and weights as trained (channels-last) against the plain layout;
3. plain, foreach and fused Adam;
4. with --compile, and a C++ compiler: the layers of a step compiled against eager, the time to compile told apart.

Variants take turns, the least of several runs counts, and only ratios within a run mean much. On CUDA the same in
wall-clock seconds, after synchronisation. --quick: fewer runs of a third of the batch.
"""

import argparse
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from stage_times import StageTimes
from torch import Tensor, nn

from generators.reading import read_config
from trainers import mixture_task
from trainers.config import TrainConfig
from trainers.data import Batch, PatchDataset, simulate
from trainers.fit import open_source, resolve_precision
from trainers.networks.mixture import likelihood, local, residual
from trainers.networks.mixture.families import Decay, Recovery
from trainers.networks.mixture.parts import SafeConv
from trainers.networks.rim import RIM
from trainers.tasks import Task, supervised

FOLDER = Path(__file__).parent.parent / "configs" / "sabidussi2021" / "networks"
CONFIGS = ("rim_paper_t1_31_full", "rim_qsim_t1_31_small", "rim_qsim_t2_small", "resnet_qsim_t1_31_small")
LAYOUTS = ("as trained", "contiguous")


def now(device: torch.device) -> float:
    """CPU seconds of this process; on CUDA wall-clock seconds once the device is done [s]."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Training:
    """A few iterations of one config, with the same batch for all variants."""

    def __init__(self, name: str, share: int, device: torch.device) -> None:
        self.config: TrainConfig = read_config(FOLDER / f"{name}.yaml", TrainConfig)
        self.device = device
        self.batch_size = max(1, self.config.batch // share)
        self.source = open_source(self.config)
        data, config = self.source.config, self.config
        self.task: Task = supervised(
            config.mapping_task, config.mapping_network, data.signal_model, config.targets, data.noise.kind
        )
        self.dataset = PatchDataset(self.source, config.seed, len(self.source) - round(0.05 * len(self.source)))
        self.bf16 = resolve_precision(config.precision, device) == "bf16"

    def network(self, layout: str = "as trained") -> nn.Module:
        net = self.config.mapping_network.build(self.task.model, self.task.parameters, torch.Generator().manual_seed(0))
        if layout != "contiguous":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(net, RIM):
            # what follows has the layout of its input
            net.into.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        return net.to(self.device)

    def draw(self, iteration: int) -> Batch:
        first = iteration * self.batch_size
        batch = self.dataset.__getitems__(list(range(first, first + self.batch_size)))
        return batch.to(self.device)

    def simulate(self, batch: Batch) -> Batch:
        return simulate(batch, self.source.config, self.config.seed, self.task.variety)

    def forward(self, net: nn.Module, batch: Batch, bf16: bool) -> Tensor:
        called = _Mixed(net, self.device.type, bf16)
        return self.task.loss(called, batch)["total"]


class _Mixed(nn.Module):
    """The network in the precision of the training; the loss around it stays in float32."""

    def __init__(self, net: nn.Module, kind: str, bf16: bool) -> None:
        super().__init__()
        self.net, self.kind, self.bf16 = net, kind, bf16

    def forward(self, *args: object, **named: object) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.bf16):
            answer: Tensor = self.net(*args, **named)
        return answer.float()


def stages(training: Training, runs: int) -> None:
    """Seconds of each stage of an iteration."""
    net = training.network()
    adam = torch.optim.Adam(net.parameters(), lr=training.config.lr)
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(runs + 1):
        watch = StageTimes(partial(now, training.device))
        with ExitStack() as stack:
            for owner, attribute, name in (
                (mixture_task.MixtureLearning, "_pose", "task: truth and scene"),
                (local, "start", "start (empirical Bayes)"),
                (residual, "start", "start (empirical Bayes)"),
                (local, "alike", "voxels that look alike"),
                (residual, "alike", "voxels that look alike"),
                (Recovery, "local", "likelihood at a point"),
                (Decay, "local", "likelihood at a point"),
                (RIM, "start", "start"),
                (RIM, "gradient", "likelihood gradient"),
                (RIM, "_cell", "layers"),
                (local.LocalMixture, "_cell", "layers"),
                (local.LocalMixture, "_prior", "priors"),
            ):
                stack.enter_context(watch.timed(owner, attribute, name))
            with watch.stage("draw maps"):
                batch = training.draw(run)
            with watch.stage("simulate series"):
                batch = training.simulate(batch)
            with watch.stage("rest of forward and loss"):
                loss = training.forward(net, batch, training.bf16)
            with watch.stage("backward"):
                adam.zero_grad(set_to_none=True)
                loss.backward()
            with watch.stage("norm of the gradient"):
                nn.utils.clip_grad_norm_(net.parameters(), torch.inf)
            with watch.stage("Adam"):
                adam.step()
        # the first is to warm up
        if run:
            for name, seconds in watch.spent.items():
                found[name].append(seconds)
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    total = sum(middle.values())
    for name, seconds in middle.items():
        print(f"  {name:28s} {1000 * seconds:8.1f} ms   {100 * seconds / total:5.1f} %")
    print(f"  {'iteration':28s} {1000 * total:8.1f} ms")


def turns(variants: dict[str, Callable[[], object]], runs: int, device: torch.device) -> dict[str, float]:
    """Least seconds of each variant, which take turns; the first turn is to warm up."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs + 1):
        for name, work in variants.items():
            started = now(device)
            work()
            found[name].append(now(device) - started)
    return {name: min(seconds[1:]) for name, seconds in found.items()}


def _plain(self: SafeConv, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(self, x.contiguous())


def _finite(net: nn.Module) -> bool:
    return all(bool(w.grad.isfinite().all()) for w in net.parameters() if w.grad is not None)


def layouts(training: Training, batch: Batch, runs: int) -> None:
    """Forward and backward in both precisions and all layouts."""
    nets = {(layout, bf16): training.network(layout) for bf16 in (False, True) for layout in LAYOUTS}

    def work(layout: str, bf16: bool) -> None:
        net = nets[layout, bf16]
        net.zero_grad(set_to_none=True)
        with ExitStack() as stack:
            if layout == "contiguous":
                stack.enter_context(patch.object(SafeConv, "forward", _plain))
            training.forward(net, batch, bf16).backward()

    variants = {f"{k}": lambda k=k: work(*k) for k in nets}
    seconds = turns(variants, runs, training.device)
    reference = seconds[str(("as trained", False))]
    for key, net in nets.items():
        layout, bf16 = key
        least = seconds[str(key)]
        note = "" if _finite(net) else "   the gradient is no number"
        name = f"{'bf16' if bf16 else 'fp32'}, {layout}"
        print(f"  {name:28s} {1000 * least:8.1f} ms   x {reference / least:4.2f}{note}")


def optimisers(training: Training, runs: int) -> None:
    """One step of Adam, three ways."""
    variants: dict[str, Callable[[], object]] = {}
    for name in ("plain", "foreach", "fused"):
        net = training.network()
        for w in net.parameters():
            w.grad = torch.zeros_like(w)
        adam = torch.optim.Adam(net.parameters(), foreach=name == "foreach", fused=name == "fused")
        variants[name] = adam.step
    seconds = turns(variants, 10 * runs, training.device)
    for name, least in seconds.items():
        print(f"  Adam, {name:22s} {1000 * least:8.2f} ms   x {seconds['plain'] / least:4.2f}")


def compiled(training: Training, batch: Batch, runs: int) -> None:
    """The layers of a step (`_cell`; of a residual network each block) compiled, against eager.

    Under Rician noise also the search for the amplitude, which is nothing but arithmetic on each number.
    """
    eager, fused = training.network(), training.network()
    if isinstance(fused, residual.ResidualMixture):
        for i, block in enumerate(fused.blocks):
            fused.blocks[i] = torch.compile(block)  # type: ignore[assignment]
    else:
        fused._cell = torch.compile(fused._cell)  # type: ignore[operator,union-attr]

    def work(net: nn.Module) -> None:
        net.zero_grad(set_to_none=True)
        training.forward(net, batch, training.bf16).backward()

    variants = {"eager": lambda: work(eager), "layers compiled": lambda: work(fused)}
    if getattr(training.task, "rician", False):
        amplitude = torch.compile(likelihood.rician_amplitude)

        def with_amplitude() -> None:
            with patch.object(likelihood, "rician_amplitude", amplitude):
                work(eager)

        variants["amplitude compiled"] = with_amplitude
    costs = {}
    for name, first in variants.items():
        began = time.perf_counter(), sum(os.times()[:4])
        first()
        wall, costs[name] = time.perf_counter() - began[0], sum(os.times()[:4]) - began[1]
        print(f"  first run, {name:19s} {wall:6.1f} s, {costs[name]:.1f} CPU-s with the compiler")
    seconds = turns(variants, runs, training.device)
    for name, least in seconds.items():
        saved = seconds["eager"] - least
        paid = f"   paid back after {costs[name] / saved:.0f} iterations" if saved > 0 else ""
        print(f"  {name:28s} {1000 * least:8.1f} ms   x {seconds['eager'] / least:4.2f}{paid}")
    pairs = zip(eager.parameters(), fused.parameters(), strict=True)
    apart = [float((a.grad - b.grad).norm() / a.grad.norm().clamp_min(1e-30)) for a, b in pairs if a.grad is not None]
    print(f"  gradients of the compiled layers {max(apart):.1e} apart (relative, worst weight)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS, help="names in configs/sabidussi2021/networks")
    parser.add_argument("--quick", action="store_true", help="fewer runs of a third of the batch")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=3, help="of each variant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    runs, share = (1, 3) if options.quick else (options.runs, 1)
    for name in options.configs:
        training = Training(name, share, device)
        net = training.network()
        weights = sum(w.numel() for w in net.parameters())
        print(f"{name}: {training.batch_size} samples, {weights} weights, {'bf16' if training.bf16 else 'fp32'}")
        stages(training, runs)
        batch = training.simulate(training.draw(0))
        layouts(training, batch, runs)
        optimisers(training, runs)
        if options.compile and (device.type == "cuda" or shutil.which("g++") or shutil.which("clang++")):
            compiled(training, batch, runs)
        elif options.compile:
            print("  not compiled: no C++ compiler (g++ or clang++) on the path")
        print(flush=True)


if __name__ == "__main__":
    main()
