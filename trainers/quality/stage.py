"""Training one network of a cascade; a stage that was stopped goes on to the bit.

All that an iteration uses is a pure function of (config, stage, iteration), apart from the weights, the moments of Adam
and the state of the plateaus, which a checkpoint holds.
"""

import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from qsim.distributions import Streams
from trainers.checkpoint import (
    METRICS,
    MODEL,
    STATE,
    Progression,
    load_tensors,
    restore_weights,
    resumed,
    save_tensors,
    training_tensors,
    trim_log,
    versions,
)
from trainers.devices import mixed_precision
from trainers.fit import DivergedError
from trainers.global_stream import GLOBAL_STREAM
from trainers.progress import Bar
from trainers.quality.blocks import Blocks
from trainers.quality.config import DecoupledConfig, StageConfig
from trainers.quality.losses import cross_entropy
from trainers.quality.network import DecoupledNet
from trainers.quality.plateau import Plateau
from trainers.quality.recipes import Recipe
from trainers.quality.views import Pairs, Views, each_by_itself, loader

_FIRST = 24
"""Views from which heads learn how statistics of images vary."""
_WINDOW, _PATIENCE = 50, 200
"""Least iterations over which a loss is averaged, and after which one that no longer falls halves epsilon and rate."""
_RISE = 20
"""Iterations over which the learning rate rises to its highest."""


@dataclass(frozen=True, slots=True)
class Anatomies:
    """The blocks of a cascade.

    Attributes:
        train, validation: clean blocks.
    """

    train: Blocks
    validation: Blocks

    @property
    def digest(self) -> str:
        """Of all that decides what is learned from."""
        return self.train.digest


def stage_seed(config: DecoupledConfig, name: str) -> int:
    """Seed of all that is drawn in one stage."""
    return int(Streams(config.seed, zlib.crc32(name.encode())).rng("stage").integers(2**62))


def describe(config: DecoupledConfig, name: str, anatomies: Anatomies, sources: tuple[str, ...]) -> dict[str, Any]:
    """What a network on disk says of itself."""
    return {
        "kind": "decoupled",
        "config": config.model_dump(mode="json"),
        "stage": name,
        "sources": ["task", *sources],
        "target": list(config.data.target),
        "patch": list(config.patch),
        "spacing_mm": list(anatomies.train.spacing_mm),
        "data_digest": anatomies.digest,
        "anatomies": list(anatomies.train.names),
        "versions": versions(),
    }


def precision_of(config: DecoupledConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision of the U-Net where it is asked for."""
    return mixed_precision(config.precision, device)


def learning_rate(stage: StageConfig, iteration: int) -> float:
    """Rate of one iteration: a short linear rise, then constant or half a cosine down to 0."""
    if stage.schedule != "cosine":
        return stage.lr * _rise(iteration)
    return stage.lr * _rise(iteration) * 0.5 * (1 + math.cos(math.pi * iteration / stage.iterations))


def _rise(iteration: int) -> float:
    """Part of the rate that the first iterations take [1]."""
    return min(1.0, (iteration + 1) / _RISE)


def plateau_of(config: DecoupledConfig, stage: StageConfig) -> Plateau:
    """The schedule of epsilon: its windows are those of 30 000 iterations, in proportion, but not so short that the
    noise of the loss alone looks like a plateau.
    """
    return Plateau(
        epsilon=config.epsilon,
        lr=stage.lr,
        window=max(_WINDOW, stage.iterations // 300),
        patience=max(_PATIENCE, stage.iterations // 60),
    )


def load_net(path: Path, config: DecoupledConfig, sources: tuple[str, ...], device: torch.device) -> DecoupledNet:
    """A trained network of this cascade, frozen.

    Raises: InputError if the file is missing, damaged, or another network's.
    """
    tensors, _ = load_tensors(path)
    net = config.network.build(1 + len(config.data.target), sources, torch.Generator())
    restore_weights(net, tensors, path)
    net.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    net.eval()
    return net.requires_grad_(False)


@dataclass(slots=True)
class _Training:
    """A stage under way.

    Attributes:
        recipe: what it learns; it holds the config of the cascade.
        views: what it learns from.
        validation: clean blocks of other anatomies.
        out: its folder.
        device: where it runs.
        described: what its network on disk says of itself.
        teachers: networks of the stages that it needs, frozen.
        net: what is trained.
        learned: the weights that move.
        optimiser: of these.
        plateau: the schedule of epsilon, now.
        state: where the training stands.
    """

    recipe: Recipe
    views: Views
    validation: Blocks
    out: Path
    device: torch.device
    described: Mapping[str, Any]
    teachers: Mapping[str, DecoupledNet]
    net: DecoupledNet
    learned: Sequence[torch.nn.Parameter]
    optimiser: torch.optim.Optimizer
    plateau: Plateau
    state: Progression = field(default_factory=Progression)

    @property
    def config(self) -> DecoupledConfig:
        return self.recipe.config

    @property
    def stage(self) -> StageConfig:
        return self.config.stage(self.recipe.name)

    @property
    def rate(self) -> float:
        """Learning rate of the next iteration."""
        if self.stage.schedule == "plateau":
            return self.plateau.lr * _rise(self.state.iteration)
        return learning_rate(self.stage, self.state.iteration)

    @property
    def epsilon(self) -> float:
        """Of the loss of the next iteration."""
        return self.plateau.epsilon if self.stage.schedule == "plateau" else self.config.epsilon

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one; what has been logged since is cut off.

        Raises: InputError if its data are others.
        """
        path = self.out / STATE
        if path.is_file():
            self.state, _, header = resumed(path, self.net, self.optimiser, self.described["data_digest"])
            self.plateau = Plateau.from_state(header["progress"]["plateau"])
        trim_log(self.out, self.state.iteration)

    def begin(self) -> None:
        """Before the first iteration: heads that look at statistics of images learn how these vary."""
        with precision_of(self.config, self.device):
            self.recipe.begin(self.net, [self.views.pair(position).to(self.device) for position in range(_FIRST)])

    def batches(self) -> DataLoader[Pairs]:
        """Those that are still to come."""
        size = self.stage.batch
        positions = range(self.state.iteration * size, self.stage.iterations * size)
        return loader(self.views, positions, size, self.config.data.workers)

    def step(self, pairs: Pairs) -> None:
        """One iteration.

        Raises: DivergedError.
        """
        started = time.perf_counter()
        state = self.state
        torch.manual_seed(int(Streams(self.views.seed, state.iteration).rng("iteration").integers(2**62)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        with precision_of(self.config, self.device):
            loss = self.recipe.loss(self.net, pairs.to(self.device), self.teachers, self.epsilon)
        value = float(loss.detach())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        if not (math.isfinite(value) and bool(torch.isfinite(norm))):
            raise DivergedError(f"{self.out}: the loss of iteration {state.iteration} is no number; lower stages.lr")
        self.optimiser.step()
        self.plateau = self.plateau.after(value)
        state.losses = state.losses[0] + value, state.losses[1] + 1
        state.iteration += 1
        state.seconds += time.perf_counter() - started

    def report(self) -> None:
        """Validate, log and save where the last iteration is due."""
        state, config = self.state, self.config
        last = state.iteration == self.stage.iterations
        line: dict[str, Any] = {}
        if last or state.iteration % config.validate_every == 0:
            state.metrics = validate(self.net, self.recipe, self.validation, self.device)
            line["validation"] = state.metrics
        if last or state.iteration % config.log_every == 0:
            total, count = state.losses
            line = {
                "loss": total / count,
                "lr": self.optimiser.param_groups[0]["lr"],
                "epsilon": self.plateau.epsilon,
                "seconds": round(state.seconds, 3),
                **line,
            }
            state.losses = (0.0, 0)
        if line:
            with (self.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"iteration": state.iteration, **line}) + "\n")
        if last or state.iteration % config.checkpoint_every == 0:
            self._save(last)

    def _save(self, last: bool) -> None:
        """The checkpoint, and after the last iteration the network."""
        progress = {
            "iteration": self.state.iteration,
            "seconds": self.state.seconds,
            "losses": list(self.state.losses),
            "metrics": self.state.metrics,
            "plateau": self.plateau.state(),
        }
        header = {**self.described, "progress": progress}
        if last:
            weights = {f"net/{key}": each for key, each in self.net.state_dict().items()}
            save_tensors(self.out / MODEL, weights, header)
        save_tensors(self.out / STATE, training_tensors(self.net, self.optimiser), header)


def train_stage(
    config: DecoupledConfig,
    name: str,
    anatomies: Anatomies,
    folder: Path,
    device: torch.device,
    console: Console,
) -> Path:
    """Train a stage, or go on with it.

    Args:
        folder: of all stages; those that this one needs have ended.
    Returns: the file of the network.

    Raises: InputError if a network it needs is not there; DivergedError if the loss is no longer finite.
    """
    with GLOBAL_STREAM:
        return _train(config, name, anatomies, folder, device, console)


def _train(
    config: DecoupledConfig, name: str, anatomies: Anatomies, folder: Path, device: torch.device, console: Console
) -> Path:
    out = folder / name
    if (out / MODEL).is_file():
        return out / MODEL
    out.mkdir(parents=True, exist_ok=True)
    training = _training(config, name, anatomies, folder, device)
    training.restore()
    if training.state.iteration == 0:
        training.begin()
    training.net.train()
    with Bar(console, training.stage.iterations, True) as bar:
        for pairs in training.batches():
            training.step(pairs)
            bar.update(training.state)
            training.report()
    return out / MODEL


def _training(
    config: DecoupledConfig, name: str, anatomies: Anatomies, folder: Path, device: torch.device
) -> _Training:
    """A stage before its first iteration."""
    recipe = Recipe(name, config)
    teachers = {
        needed: load_net(folder / needed / MODEL, config, Recipe(needed, config).sources, device)
        for needed in recipe.needs
    }
    seed = stage_seed(config, name)
    weights = torch.Generator().manual_seed(int(Streams(seed, 0).rng("weights").integers(2**62)))
    net = config.network.build(1 + len(config.data.target), recipe.sources, weights)
    net.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if recipe.begins_from is not None:
        net.segmentation.load_state_dict(teachers[recipe.begins_from].segmentation.state_dict())
    net.requires_grad_(False)
    learned = recipe.learning(net)
    for weight in learned:
        weight.requires_grad_(True)
    stage = config.stage(name)
    return _Training(
        recipe=recipe,
        views=Views(anatomies.train, config, seed, recipe.present),
        validation=anatomies.validation,
        out=folder / name,
        device=device,
        described=describe(config, name, anatomies, recipe.sources),
        teachers=teachers,
        net=net,
        learned=learned,
        optimiser=torch.optim.Adam(learned, lr=stage.lr),
        plateau=plateau_of(config, stage),
    )


@torch.no_grad()
def validate(net: DecoupledNet, recipe: Recipe, blocks: Blocks, device: torch.device) -> dict[str, float]:
    """On fixed views of other anatomies, half of them corrupted: Dice of all classes together, clean and corrupted,
    cross entropy, and the mean variance of each source.
    """
    config, n = recipe.config, len(recipe.config.sources)
    views = Views(blocks, config, config.seed, each_by_itself(n, 0.5), augmented=False)
    sums: dict[str, float] = {}
    overlap: dict[str, Float[Tensor, " 2"]] = {}
    net.eval()
    for position in range(config.validation_views):
        pairs = views.pair(position).to(device)
        with precision_of(config, device):
            answer = net(pairs.corrupted)
        found, there = answer.logits.argmax(1), pairs.target
        kind = "dice_corrupted" if bool(pairs.present.any()) else "dice_clean"
        both = torch.stack(
            [((found == there) & (there > 0)).sum() * 2.0, ((found > 0).sum() + (there > 0).sum()) * 1.0]
        )
        overlap[kind] = overlap.get(kind, torch.zeros(2)) + both.cpu()
        sums["cross_entropy"] = sums.get("cross_entropy", 0.0) + float(cross_entropy(answer.logits, there).mean())
        for source, mean in zip(("task", *recipe.sources), answer.log_variance.exp().mean((0, 2, 3, 4)), strict=True):
            sums[f"variance_{source}"] = sums.get(f"variance_{source}", 0.0) + float(mean)
    net.train()
    means = {key: total / config.validation_views for key, total in sums.items()}
    return {**means, **{key: float(top / bottom) if bottom else 1.0 for key, (top, bottom) in overlap.items()}}
