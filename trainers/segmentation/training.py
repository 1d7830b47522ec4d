"""The training of one network: all folds but one, Adam, 1 - Dice; it resumes where it was stopped.

series -> folds by subject -> images of the highest SNR -> views -> network -> model.safetensors
"""

import json
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qsim.distributions import Streams
from qsim.errors import InputError
from trainers.checkpoint import (
    METRICS,
    MODEL,
    STATE,
    Progression,
    check_claim,
    claim,
    restore_weights,
    resumed,
    save_tensors,
    training_tensors,
    trim_log,
    versions,
)
from trainers.devices import device_of, mixed_precision, one_thread
from trainers.fit import DivergedError
from trainers.global_stream import GLOBAL_STREAM
from trainers.progress import Bar
from trainers.segmentation.config import SegmentationConfig
from trainers.segmentation.losses import one_minus_dice
from trainers.segmentation.network import SegmentationNet
from trainers.segmentation.physics_bank import physics_bank
from trainers.segmentation.running import dice_of, probabilities
from trainers.segmentation.slices import SeriesSet, Slices, check_domains, prepared, read_domain, split_of
from trainers.segmentation.views import View, Views, loader
from trainers.segmentation.views_picture import views_picture

DATA, VIEWS = "data", "views.png"
# side of which five halvings leave one voxel
_ONE_VOXEL = 32


@dataclass(frozen=True, slots=True)
class Material:
    """What trainings of one data set share.

    Attributes:
        series: all of them.
        slices: the images of the highest SNR, prepared.
        synthetic: contrasts of each series that physics made, prepared; None: none.
    """

    series: SeriesSet
    slices: Slices
    synthetic: Float[Tensor, "s copies size size"] | None


def train_segmentation(
    config: SegmentationConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 1,
    console: Console | None = None,
) -> Path:
    """Train a network, or go on with it.

    Args:
        config: what is learned, from what, how long.
        out: folder of the run: config.json, data/, views.png (the first views), metrics.jsonl, and at the end
            model.safetensors.
        resume: go on with the same config in the same folder.
        device: `auto` is CUDA where there is one.
        workers: processes that make the data set; no number depends on it.
        console: where the progress goes; None: stderr.
    Returns: the file of the network.

    Raises: InputError if the folder is taken, or data do not fit; DivergedError if the loss is no longer finite.
    """
    console = console or Console(stderr=True)
    one_thread()
    place = device_of(device)
    check_claim(out, config, resume)
    if (out / MODEL).is_file():
        console.print(f"{out}: nothing left to do")
        return out / MODEL
    check_domains(config.data, physics=config.physics is not None)
    claim(out, config, resume)
    (out / DATA).mkdir(exist_ok=True)
    material = read_material(config, out / DATA, workers, console)
    views = views_of(config, material)
    views_picture(out / VIEWS, views, f"what the network is shown: the first views of {len(views)} an epoch")
    return fit_network(config, material, out, place, console)


def read_material(config: SegmentationConfig, folder: Path, workers: int, console: Console) -> Material:
    """The data set of a training; what is to be made is made in `folder`, or found there.

    Raises: InputError naming the field at fault.
    """
    data = config.data
    series = read_domain(data.train, data.target, folder, "data.train", workers, console)
    try:
        slices = prepared(series, data.train.images, data.size)
    except InputError as error:
        raise InputError(f"data.train: {error}") from None
    synthetic = None
    if config.physics is not None:
        synthetic = physics_bank(series, config.physics, data.size, folder)
    return Material(series, slices, synthetic)


def fit_network(
    config: SegmentationConfig, material: Material, out: Path, device: torch.device, console: Console
) -> Path:
    """Train on material that has been read; the folder is that of a run of this config.

    Raises: InputError; DivergedError.
    """
    if (out / MODEL).is_file():
        return out / MODEL
    # dropout draws from the global stream; it is as before afterwards
    with GLOBAL_STREAM, torch.random.fork_rng(devices=[]):
        training = _begin(config, material, out, device)
        training.restore()
        training.net.train()
        with Bar(console, training.iterations, True) as bar:
            asked = time.process_time()
            for view in training.batches():
                training.loading += time.process_time() - asked
                training.step(view)
                bar.update(training.state)
                training.report()
                asked = time.process_time()
    return out / MODEL


@dataclass(slots=True)
class _Training:
    """A training under way.

    Attributes:
        config: of the training.
        views: what it learns from.
        test: images of the fold that is left out.
        out: its folder.
        device: where it runs.
        described: what the network on disk says of itself.
        net, optimiser: what is trained.
        mean: running mean of its weights, in evaluation mode; None: none is kept.
        state: where the training stands.
        loading, stepping: CPU time of this process for views and for updates since the last line of the log [s].
    """

    config: SegmentationConfig
    views: Views
    test: Slices
    out: Path
    device: torch.device
    described: Mapping[str, Any]
    net: SegmentationNet
    optimiser: torch.optim.Optimizer
    mean: SegmentationNet | None
    state: Progression = field(default_factory=Progression)
    loading: float = 0.0
    stepping: float = 0.0

    @property
    def iterations(self) -> int:
        """Updates in all."""
        return self.iteration_of(self.config.epochs)

    def iteration_of(self, epoch: int) -> int:
        """Updates after which so many epochs are over."""
        return math.ceil(epoch * len(self.views) / self.config.batch)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one; what has been logged since is cut off.

        Raises: InputError if its data are others.
        """
        path = self.out / STATE
        if path.is_file():
            self.state, tensors, _ = resumed(path, self.net, self.optimiser, self.described["data_digest"])
            if self.mean is not None:
                restore_weights(self.mean, _of(tensors, "mean/"), path)
        trim_log(self.out, self.state.iteration)

    def batches(self) -> DataLoader[View]:
        """Those that are still to come."""
        size, last = self.config.batch, self.config.epochs * len(self.views)
        return loader(self.views, range(self.state.iteration * size, last), size, self.config.data.workers)

    def step(self, view: View) -> None:
        """One update.

        Raises: DivergedError.
        """
        started, used = time.perf_counter(), time.process_time()
        state = self.state
        # of dropout
        torch.manual_seed(int(Streams(self.config.seed, state.iteration).rng("iteration").integers(2**62)))
        shown = view.to(self.device)
        with mixed_precision(self.config.precision, self.device):
            logits = self.net(shown.images.contiguous(memory_format=torch.channels_last))
        loss = one_minus_dice(logits, shown.masks)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(f"{self.out}: the loss of iteration {state.iteration} is no number; lower lr")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.mean is not None:
            follow(self.mean, self.net, self.config.average, state.iteration)
        state.losses = state.losses[0] + value, state.losses[1] + 1
        state.iteration += 1
        state.seconds += time.perf_counter() - started
        self.stepping += time.process_time() - used

    def report(self) -> None:
        """Log, look at the fold that is left out, and save where an epoch is over and it is due."""
        state, config = self.state, self.config
        epoch = state.iteration * config.batch // len(self.views)
        last = state.iteration == self.iterations
        if not last and state.iteration != self.iteration_of(max(epoch, 1)):
            return
        total, count = state.losses
        line: dict[str, Any] = {
            "epoch": epoch,
            "loss": total / count,
            "seconds": round(state.seconds, 3),
            "cpu_seconds_views": round(self.loading, 3),
            "cpu_seconds_steps": round(self.stepping, 3),
            "updates": count,
        }
        state.losses, self.loading, self.stepping = (0.0, 0), 0.0, 0.0
        if last or epoch % config.validate_every == 0:
            state.metrics = {"dice_left_out": self._dice_left_out()}
            line["validation"] = state.metrics
        with (self.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": state.iteration, **line}) + "\n")
        if last or epoch % config.checkpoint_every == 0:
            self._save(last)

    @property
    def given(self) -> SegmentationNet:
        """The network that is given out."""
        return self.net if self.mean is None else self.mean

    def _dice_left_out(self) -> float:
        self.net.eval()
        found = dice_of(probabilities(self.given, self.test.images, self.config, self.device), self.test.masks)
        self.net.train()
        return float(found.mean())

    def _save(self, last: bool) -> None:
        """The checkpoint, and after the last update the network."""
        state = self.state
        progress = {
            "iteration": state.iteration,
            "seconds": state.seconds,
            "losses": list(state.losses),
            "metrics": state.metrics,
        }
        header = {**self.described, "progress": progress}
        # the network last: where it is, nothing is left to do
        means = {} if self.mean is None else {f"mean/{key}": each for key, each in self.mean.state_dict().items()}
        save_tensors(self.out / STATE, {**training_tensors(self.net, self.optimiser), **means}, header)
        if last:
            weights = {f"net/{key}": each for key, each in self.given.state_dict().items()}
            save_tensors(self.out / MODEL, weights, header)


def _begin(config: SegmentationConfig, material: Material, out: Path, device: torch.device) -> _Training:
    """A training before its first update."""
    data = config.data
    split = split_of(material.series, data.folds, data.fold, data.split_seed)
    shown = config.epochs * len(material.slices.of(split.train))
    if data.size <= _ONE_VOXEL and shown % config.batch == 1:
        raise InputError(
            f"batch: of {shown} images in all the last would be alone, and at size {data.size} the coarsest level is "
            "one voxel, which has no variance to normalise by; take another batch, other epochs, or a larger size"
        )
    weights = torch.Generator().manual_seed(int(Streams(config.seed, 0).rng("weights").integers(2**62)))
    net = config.network.build(weights)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Training(
        config=config,
        views=views_of(config, material),
        test=material.slices.of(split.test),
        out=out,
        device=device,
        described=describe(config, material.series),
        net=net,
        optimiser=torch.optim.Adam(net.parameters(), lr=config.lr),
        mean=deepcopy(net).eval().requires_grad_(False) if config.average else None,
    )


@torch.no_grad()
def follow(mean: nn.Module, net: nn.Module, keep: float, update: int) -> None:
    """Move a running mean of weights and statistics towards those of a network.

        mean <- k mean + (1 - k) net,   k = min(keep, (1 + u) / (10 + u)) at update u, from 0,

    so that the first updates do not stay in it.
    """
    share = min(keep, (1 + update) / (10 + update))
    pairs = list(zip(mean.state_dict().values(), net.state_dict().values(), strict=True))
    moving = [(m, n) for m, n in pairs if m.is_floating_point()]
    torch._foreach_lerp_([m for m, _ in moving], [n for _, n in moving], 1 - share)
    for m, n in pairs:
        if not m.is_floating_point():
            m.copy_(n)


def _of(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """Tensors of another network than the one in training, as its own."""
    return {f"net/{name.removeprefix(start)}": each for name, each in tensors.items() if name.startswith(start)}


def views_of(config: SegmentationConfig, material: Material) -> Views:
    """What a network is shown."""
    data = config.data
    split = split_of(material.series, data.folds, data.fold, data.split_seed)
    return Views(
        material.slices.of(split.train),
        config.augmentation,
        config.seed,
        material.synthetic,
        0.0 if config.physics is None else float(config.physics.share),
    )


def describe(config: SegmentationConfig, series: SeriesSet) -> dict[str, Any]:
    """What a network on disk says of itself."""
    split = split_of(series, config.data.folds, config.data.fold, config.data.split_seed)
    return {
        "kind": config.kind,
        "config": config.model_dump(mode="json"),
        "data_digest": series.digest,
        "trained_on": [series.names[i] for i in split.train],
        "left_out": [series.names[i] for i in split.test],
        "field_mm": series.field_mm(split.train),
        "versions": versions(),
    }
