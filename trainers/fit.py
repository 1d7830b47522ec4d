"""The training loop: own, short, exact to resume.

Everything that an iteration uses is a pure function of (config, iteration), apart from the weights and the moments of
Adam; these are what a checkpoint holds. So a run that was killed and resumed ends with the weights of an unbroken one,
to the bit, on the same kind of machine with the same number of threads.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from generators.store import PatchStore
from qsim.distributions import Streams
from qsim.errors import InputError
from trainers.checkpoint import (
    METRICS,
    MODEL,
    STATE,
    Progression,
    best_weights,
    check_claim,
    claim,
    load_tensors,
    restore,
    restore_weights,
    save_tensors,
    training_tensors,
    trim_log,
    versions,
    write_text,
)
from trainers.config import TrainConfig
from trainers.data import Generated, PatchDataset, Source, loader, open_store
from trainers.global_stream import GLOBAL_STREAM
from trainers.infer import find_network
from trainers.progress import Bar
from trainers.relaxation.source import open_cohort_source
from trainers.relaxation.task import RelaxationLearning
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.tasks import Task, task_of
from trainers.variety import Variety

Device = Literal["auto", "cpu", "cuda"]
# samples that tell the scale of the images a network was trained on
_SCALE_SAMPLES = 64


class DivergedError(InputError):
    """The loss or its gradient stopped being a number."""


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Rate of one iteration: a linear rise over the warm-up, then constant or half a cosine down to 0."""
    rise = min(1.0, (iteration + 1) / (config.warmup + 1))
    if config.schedule == "constant":
        return config.lr * rise
    done = max(0, iteration - config.warmup) / (config.iterations - config.warmup)
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * done))


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto`: bf16 where the hardware multiplies it, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if hardware else "fp32"


def open_source(config: TrainConfig) -> Source:
    """The samples of a config.

    Raises: InputError if the store is missing, unfinished, or not one of this project.
    """
    data = config.data
    if data.cohort is not None:
        spec = config.mapping_task
        assert isinstance(spec, SelfSupervisedTask), "the config has checked that data and task fit"
        return open_cohort_source(data.cohort, spec.supervision)
    if data.generate is not None:
        return Generated(data.generate)
    assert data.store is not None, "the config holds one of the two"
    return open_store(PatchStore(data.store), data.memory_gb)


def _begin(net: nn.Module, config: TrainConfig) -> None:
    """Give a network the weights that the config begins with.

    Raises: InputError if there are none, or they are those of another network.
    """
    if config.initial is None:
        return
    try:
        path = find_network(config.initial)
        tensors, header = load_tensors(path)
    except InputError as error:
        raise InputError(f"initial: {error}") from None
    theirs, ours = header["config"]["network"], config.model_dump(mode="json")["network"]
    try:
        restore_weights(net, tensors, path)
    except InputError:
        differ = ", ".join(f"{key} {theirs.get(key)}" for key in theirs if theirs.get(key) != ours.get(key))
        raise InputError(
            f"initial: {config.initial} is another network ({differ or 'of other rows'}); "
            "take that network in the config too, or leave initial out"
        ) from None


def describe(config: TrainConfig, task: Task, source: Source, precision: str) -> dict[str, Any]:
    """What a network on disk says about itself."""
    return {
        "config": config.model_dump(mode="json"),
        **source.record,
        "data_digest": source.digest,
        "parameters": [p.name for p in task.parameters],
        "targets": list(task.targets),
        "precision": precision,
        "images_scale": images_scale(source, config.seed),
        "versions": versions(),
    }


def images_scale(source: Source, seed: int) -> list[float]:
    """Smallest and largest 99th percentile of the maximum image over training samples with tissue [units of A]."""
    samples = source.prepare(source.take(range(min(_SCALE_SAMPLES, len(source)))), seed, Variety())
    tops = [
        float(torch.quantile(images.amax(0)[inside], 0.99))
        for images, inside in zip(samples.series, samples.labels > 0, strict=True)
        if inside.any()
    ]
    if not tops:
        raise InputError("data: the first samples hold background only; nothing can be learned from them")
    return [min(tops), max(tops)]


def fit(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: Device = "auto",
    console: Console | None = None,
    source: Source | None = None,
) -> Path:
    """Train a network.

    On one thread unless the environment variable OMP_NUM_THREADS says otherwise. Several devices: start the command by
    `torchrun --nproc-per-node N -m trainers.cli train ...`; each takes its share of the batch.

    Args:
        config: what to train, on what, how long.
        out: folder of the run: config.json, metrics.jsonl, checkpoint.safetensors, and at the end model.safetensors.
        resume: go on from the last checkpoint of `out`; from the start if there is none yet.
        device: `auto` is CUDA where there is one.
        console: where the progress goes; None: stderr.
        source: the samples of the config, if they are at hand already.
    Returns: the file of the trained network.

    Raises:
        InputError: a folder that is not empty without `resume`, or holds another config; data that do not fit.
        DivergedError: the loss is no longer finite.
    """
    # dropout and loaders draw from the one stream of a process: a training in another thread waits
    with GLOBAL_STREAM:
        return _train(config, out, resume, device, console or Console(stderr=True), source)


def _train(
    config: TrainConfig, out: Path, resume: bool, device: Device, console: Console, source: Source | None
) -> Path:
    """As `fit`."""
    if "OMP_NUM_THREADS" not in os.environ:
        # trainings run side by side; several threads in each of them slow each other down
        torch.set_num_threads(1)
    fabric, precision = _fabric(config, device)
    ranks = fabric.world_size
    if config.batch % ranks:
        raise InputError(f"batch: {config.batch} samples cannot be divided among {ranks} devices")
    source = open_source(config) if source is None else source
    task = task_of(config.mapping_task, config.mapping_network, source, config.targets, config.seed)
    task.variety.check(source.model, source.stored)
    if isinstance(task, RelaxationLearning):
        task.check_batch(config.batch, ranks)
    n_validation = source.validation(config.validation)
    if not n_validation and (config.patience or config.keep == "best"):
        raise InputError("validation: patience and keep: best need samples to validate on; keep some")
    generator = torch.Generator().manual_seed(int(Streams(config.seed, 0).rng("weights").integers(2**63)))
    plain = config.mapping_network.build(task.model, task.parameters, generator)
    if not (resume and (out / STATE).is_file()):
        _begin(plain, config)
    if fabric.is_global_zero:
        check_claim(out, config, resume)
    # before anything is written: data that nothing can be learned from must not leave a folder
    description = describe(config, task, source, precision)
    if fabric.is_global_zero:
        claim(out, config, resume)
    fabric.barrier()

    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(plain.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    net, wrapped = fabric.setup(plain, optimiser)
    state = restore(out, plain, optimiser, description) if resume else Progression()
    if resume and fabric.is_global_zero:
        trim_log(out, state.iteration)
    run = _Run(fabric, config, out, source, task, plain, optimiser, description, state, best_weights(out, state))
    if state.iteration == 0 and resume:
        fabric.print(f"{out}: no checkpoint yet, starting at iteration 0")

    dataset = PatchDataset(source, config.seed, len(source) - n_validation)
    batches = loader(
        dataset,
        state.iteration,
        config.iterations,
        config.batch,
        rank=fabric.global_rank,
        ranks=ranks,
        workers=config.data.workers,
    )
    if run.ended:
        run.give_out()
        return out / MODEL
    net.train()
    with Bar(console, config.iterations, fabric.is_global_zero) as bar:
        for batch in batches:
            started = time.perf_counter()
            iteration = state.iteration
            # dropout and the like: the global stream of an iteration depends on its number only
            torch.manual_seed(int(Streams(config.seed, iteration).rng("iteration").integers(2**63)))
            rate = learning_rate(config, iteration)
            for group in optimiser.param_groups:
                group["lr"] = rate
            prepared = source.prepare(batch.to(fabric.device), config.seed, task.variety)
            if iteration == 0:
                task.begin(plain, prepared)
            for loss in task.updates(net, prepared):
                wrapped.zero_grad(set_to_none=True)
                fabric.backward(loss)
                _check_finite(loss, net, config, iteration, out)
                wrapped.step()

                total, count = state.losses
                mean = fabric.all_reduce(loss.detach())
                assert isinstance(mean, torch.Tensor)
                state.losses = total + mean.item(), count + 1
            state.iteration += 1
            state.seconds += time.perf_counter() - started
            bar.update(state)
            if run.report(rate, len(source) - n_validation, n_validation):
                break
    return out / MODEL


@dataclass
class _Run:
    """What is written while a training goes on."""

    fabric: Fabric
    config: TrainConfig
    out: Path
    source: Source
    task: Task
    net: nn.Module
    optimiser: torch.optim.Optimizer
    description: Mapping[str, Any]
    state: Progression
    best: dict[str, torch.Tensor]

    @property
    def ended(self) -> bool:
        """Whether all iterations are made, or patience is at its end."""
        state, config = self.state, self.config
        return state.iteration == config.iterations or (config.patience is not None and state.worse >= config.patience)

    def give_out(self) -> None:
        """Write the network of a training that has ended, if it is not there any more."""
        if self.fabric.is_global_zero and not (self.out / MODEL).is_file():
            self._write_model({**self.description, "progress": self._progress()})

    def _progress(self) -> dict[str, Any]:
        state = self.state
        return {
            "iteration": state.iteration,
            "seconds": state.seconds,
            "losses": list(state.losses),
            "metrics": state.metrics,
            **({} if math.isinf(state.best) else {"best": state.best, "worse": state.worse}),
        }

    def _write_model(self, described: Mapping[str, Any]) -> None:
        weights = self.best if self.config.keep == "best" else self.net.state_dict()
        if not weights:
            raise DivergedError(f"{self.out}: no validation was finite, so there is no best network; lower lr")
        save_tensors(self.out / MODEL, {f"net/{k}": t for k, t in weights.items()}, described)
        write_text(self.out / "model.json", json.dumps(described, indent=1) + "\n")

    def report(self, rate: float, first: int, n_validation: int) -> bool:
        """Log, validate and save where this iteration is due. Writes on the first device only.

        Returns: whether the training is at its end.
        """
        state, config = self.state, self.config
        last = state.iteration == config.iterations
        due = n_validation and (last or state.iteration % config.validate_every == 0)
        if due and (self.fabric.is_global_zero or config.patience is not None):
            # where it may end the training, every device must know
            state.metrics = self.validate(range(first, first + n_validation))
            score = sum(state.metrics.values())
            if score < state.best:
                state.best, state.worse = score, 0
                if config.keep == "best":
                    self.best = {name: each.detach().clone() for name, each in self.net.state_dict().items()}
            else:
                state.worse += 1
            last = self.ended
        line: dict[str, Any] = {}
        if last or state.iteration % config.log_every == 0:
            total, count = state.losses
            line |= {"loss": total / count, "lr": rate, "seconds": round(state.seconds, 3)}
            state.losses = (0.0, 0)
        if not self.fabric.is_global_zero:
            return last
        if due:
            line["validation"] = state.metrics
        if line:
            with (self.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"iteration": state.iteration, **line}) + "\n")
        if last or state.iteration % config.checkpoint_every == 0:
            described = {**self.description, "progress": self._progress()}
            # the network first: a kill in between leaves a checkpoint from which --resume writes both again
            if last:
                self._write_model(described)
            kept = {f"best/{name}": each for name, each in self.best.items()}
            save_tensors(self.out / STATE, {**training_tensors(self.net, self.optimiser), **kept}, described)
        return last

    def validate(self, indices: range) -> dict[str, float]:
        """Root mean square error of each target's coordinate over the labelled voxels of the validation samples, or
        what else the task measures there.
        """
        sums: dict[str, float] = {}
        self.net.eval()
        for start in range(indices.start, indices.stop, self.config.batch):
            rows = range(start, min(start + self.config.batch, indices.stop))
            # positions far from those of the training: noise of its own, the same at every validation
            batch = replace(self.source.take(rows), positions=torch.tensor(rows) + 2**40)
            batch = self.source.prepare(batch.to(self.fabric.device), self.config.seed, self.task.variety)
            with torch.no_grad(), self.fabric.autocast():
                for name, value in self.task.metrics(self.net, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        self.net.train()
        count = max(sums.pop("count"), 1.0)
        return {
            name.replace("mse", "rmse"): math.sqrt(value / count) if name.startswith("mse") else value / count
            for name, value in sums.items()
        }


def _fabric(config: TrainConfig, device: Device) -> tuple[Fabric, Literal["fp32", "bf16"]]:
    """The device, or this process's share of the devices that `torchrun` gave; and the precision that `auto` means."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; use --device cpu")
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    precision = resolve_precision(config.precision, torch.device(kind))
    # its line about precision is no news: the precision is in the checkpoint
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=kind,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric, precision


def _check_finite(loss: torch.Tensor, net: nn.Module, config: TrainConfig, iteration: int, out: Path) -> None:
    """Clip the gradient of all weights together, and stop where it or the loss is no number.

    Raises: DivergedError before the weights are touched.
    """
    limit = math.inf if config.clip is None else config.clip
    norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
    if not (np.isfinite(loss.item()) and np.isfinite(norm.item())):
        raise DivergedError(
            f"{out}: at iteration {iteration} the loss is {loss.item():g}, the norm of its gradient {norm.item():g}; "
            "lower lr, set clip, or try precision: fp32, with an --out of its own"
        )
