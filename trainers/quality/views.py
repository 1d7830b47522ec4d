"""What a network is shown: a clean view of a block, and the same view after artefacts.

    block -> turned, scaled, mirrored -> stripped -> gamma -> coil shading -> clean
                                                                          -> artefacts in k-space -> corrupted
    both: modulus / intensity_scale x brightness -> cut to the patch

A pair is a pure function of (seed, position): neither workers nor interruptions change what is seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import torch
import torchio
from jaxtyping import Bool, Complex, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qsim.distributions import Streams
from qsim.kspace import Artefact, Drawn, apply_chain, magnitude
from qsim.kspace.chain import with_spacing
from trainers.quality.blocks import Blocks, classes_of, mask_of
from trainers.quality.config import Augment, DecoupledConfig, SourceConfig
from trainers.quality.scaling import intensity_scale

Present = Callable[[np.random.Generator], tuple[bool, ...]]
"""Which sources happen in an image, drawn from a generator."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Views of some blocks, before and after artefacts.

    Attributes:
        clean, corrupted: what a network sees [1]; the same where no source is present.
        target: class of each voxel.
        present: which sources happened.
        severity: of what happened, the sum over a source's artefacts; 0 where nothing did.
        anatomy: number of the subject.
    """

    clean: Float[Tensor, "b 1 x y z"]
    corrupted: Float[Tensor, "b 1 x y z"]
    target: Int[Tensor, "b x y z"]
    present: Bool[Tensor, "b s"]
    severity: Float[Tensor, "b s"]
    anatomy: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Pairs":
        """The same on another device."""
        return Pairs(
            clean=self.clean.to(device, non_blocking=True),
            corrupted=self.corrupted.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            present=self.present.to(device, non_blocking=True),
            severity=self.severity.to(device, non_blocking=True),
            anatomy=self.anatomy,
        )


def none_of(n: int) -> Present:
    """No source: clean images."""
    return only(0, n, 0.0)


def only(number: int, n: int, share: float) -> Present:
    """One source in a share of the images."""
    return lambda rng: tuple(bool(rng.random() < share) and i == number for i in range(n))


def each_by_itself(n: int, share: float) -> Present:
    """Every source independently, so that a share of the images has at least one."""
    one = 1 - (1 - share) ** (1 / n)
    return lambda rng: tuple(bool(rng.random() < one) for _ in range(n))


def always_one(n: int, together: float) -> Present:
    """One source, all equally likely; in a share of the images a second one."""

    def draw(rng: np.random.Generator) -> tuple[bool, ...]:
        chosen = rng.permutation(n)[: 2 if n > 1 and rng.random() < together else 1]
        return tuple(i in chosen for i in range(n))

    return draw


@dataclass(frozen=True)
class Views(Dataset[Pairs]):
    """The pairs of a training, by position; position p of an epoch of n blocks shows each block once.

    Attributes:
        blocks: to be shown.
        config: of the training.
        seed: of all draws.
        present: which sources happen.
        augmented: whether the augmentation of the config is applied; the place of the patch is drawn in any case.
    """

    blocks: Blocks
    config: DecoupledConfig
    seed: int
    present: Present
    augmented: bool = True

    def pair(self, position: int) -> Pairs:
        """The pair of one position, with an axis of images of length 1."""
        config, streams = self.config, Streams(self.seed, position)
        block = self._block(position)
        image, labels = self.blocks.images[block], self.blocks.labels[block]
        rng = streams.rng("augment")
        strip = bool(rng.random() < config.data.brain_only)
        if self.augmented:
            image, labels = turned(image, labels, config.augment, rng)
        image = image / intensity_scale(image)
        brain = mask_of(labels, self.blocks.tissues, config.data.brain)
        # a block of the jaw or neck stays as it is
        if strip and bool((image * brain).any()):
            image = image * brain
        brightness = 1.0
        if self.augmented:
            low, high = config.augment.gamma
            image = image ** exp(rng.uniform(log(low), log(high)))
            brightness = exp(rng.uniform(-config.augment.brightness, config.augment.brightness))
        clean = image.to(torch.complex64)[None]
        if self.augmented and config.augment.bias_field is not None:
            coil = config.augment.bias_field
            clean = coil.apply(clean, coil.draw(tuple(clean.shape), streams.rng("bias_field")))

        present = self.present(streams.rng("present"))
        corrupted, severity = spoiled(clean, config.sources, present, streams, self.blocks.spacing_mm)

        place = _place(tuple(labels.shape), config.patch, streams.rng("place"))
        window = tuple(slice(o, o + n) for o, n in zip(place, config.patch, strict=True))
        seen = [_seen(each, window, brightness) for each in (clean, corrupted)]
        return Pairs(
            clean=seen[0][None, None],
            corrupted=seen[1][None, None],
            target=classes_of(labels[window], self.blocks.tissues, config.data.target)[None],
            present=torch.tensor([present]),
            severity=torch.tensor([severity], dtype=torch.float32),
            anatomy=torch.tensor([int(self.blocks.anatomy[block])]),
        )

    def _block(self, position: int) -> int:
        epoch, place = divmod(position, len(self.blocks))
        return int(Streams(self.seed, epoch).rng("order").permutation(len(self.blocks))[place])

    def __getitem__(self, position: int) -> Pairs:
        return self.pair(position)

    def __len__(self) -> int:
        return len(self.blocks)


def spoiled(
    image: Complex[Tensor, "1 x y z"],
    sources: Sequence[SourceConfig],
    present: Sequence[bool],
    streams: Streams,
    spacing_mm: tuple[float, ...],
) -> tuple[Complex[Tensor, "1 x y z"], list[float]]:
    """An image after one artefact of each source that is present, in the order of the scanner; severity by source."""
    chosen: list[tuple[int, Artefact[Any], Drawn]] = []
    for number, (source, happens) in enumerate(zip(sources, present, strict=True)):
        if happens:
            shape = tuple(image.shape)
            chosen.append((number, *one_of(source.kinds, shape, streams.rng(f"sources/{source.name}"), spacing_mm)))
    severity = [0.0] * len(present)
    if not chosen:
        return image, severity
    chosen.sort(key=lambda each: each[1].stage)
    result = apply_chain(image, [each[1] for each in chosen], [each[2] for each in chosen])
    for (number, _, _), amount in zip(chosen, result.severity, strict=True):
        severity[number] += amount
    return result.images, severity


def one_of(
    artefacts: Sequence[Artefact[Any]], shape: tuple[int, ...], rng: np.random.Generator, spacing_mm: tuple[float, ...]
) -> tuple[Artefact[Any], Drawn]:
    """One of several artefacts, all equally likely, told the size of a voxel; and what it draws."""
    artefact = with_spacing(artefacts[int(rng.integers(len(artefacts)))], spacing_mm)
    return artefact, artefact.draw(shape, rng)


def turned(
    image: Float[Tensor, "x y z"], labels: UInt8[Tensor, "x y z"], augment: Augment, rng: np.random.Generator
) -> tuple[Float[Tensor, "x y z"], UInt8[Tensor, "x y z"]]:
    """Image and labels turned, scaled and mirrored alike, by TorchIO's transforms with values that were drawn here."""
    angles = rng.uniform(-augment.rotation_deg, augment.rotation_deg, 3)
    scales = np.exp(rng.uniform(-1, 1, 3) * log(1 + augment.scale))
    mirrored = tuple(axis for axis in range(3) if augment.flip and rng.random() < 0.5)
    subject: Any = torchio.Subject(
        image=torchio.ScalarImage(tensor=image[None]),  # type: ignore[no-untyped-call]
        labels=torchio.LabelMap(tensor=labels[None]),  # type: ignore[no-untyped-call]
    )
    if angles.any() or (scales != 1).any():
        subject = torchio.Affine(tuple(scales), tuple(angles), (0.0, 0.0, 0.0), default_pad_value=0)(subject)
    if mirrored:
        subject = torchio.Flip(mirrored)(subject)  # type: ignore[no-untyped-call]
    return subject["image"].data[0].clamp(min=0), subject["labels"].data[0].to(torch.uint8)


def _place(block: tuple[int, ...], patch: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """First voxel of a patch that is drawn uniformly inside the block."""
    return tuple(int(rng.integers(n - p + 1)) for n, p in zip(block, patch, strict=True))


def _seen(image: Complex[Tensor, "1 x y z"], window: tuple[slice, ...], brightness: float) -> Float[Tensor, "p q r"]:
    """What the network sees: the modulus over its intensity, cut to the patch."""
    modulus = magnitude(image)[0]
    return (modulus[window] * (brightness / intensity_scale(modulus))).contiguous()


def collated(pairs: Sequence[Pairs]) -> Pairs:
    """Pairs of several positions in one."""
    return Pairs(
        clean=torch.cat([each.clean for each in pairs]),
        corrupted=torch.cat([each.corrupted for each in pairs]),
        target=torch.cat([each.target for each in pairs]),
        present=torch.cat([each.present for each in pairs]),
        severity=torch.cat([each.severity for each in pairs]),
        anatomy=torch.cat([each.anatomy for each in pairs]),
    )


def loader(views: Views, positions: Sequence[int], batch: int, workers: int) -> DataLoader[Pairs]:
    """Batches of views in the order of their positions."""
    return DataLoader(
        views, batch, sampler=list(positions), collate_fn=collated, num_workers=workers, persistent_workers=False
    )
