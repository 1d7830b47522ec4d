"""What a network is shown at each position of its training: an image, or one of another contrast, changed.

    position -> series and image of the epoch's order -> perhaps a synthetic contrast of the same series -> augmentation

A view is a pure function of (seed, position): neither workers nor interruptions change what is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qsim.distributions import Streams
from trainers.segmentation.augment import Additional, RotationScaling
from trainers.segmentation.slices import Slices


@dataclass(frozen=True, slots=True)
class View:
    """Images with their masks.

    Attributes:
        images: as a network sees them [1].
        masks: of them.
    """

    images: Float[Tensor, "b 1 y x"]
    masks: Bool[Tensor, "b y x"]

    def to(self, device: torch.device) -> "View":
        """The same on another device."""
        return View(self.images.to(device, non_blocking=True), self.masks.to(device, non_blocking=True))


@dataclass(frozen=True)
class Views(Dataset[View]):
    """The views of a training; an epoch of n images shows each of them once.

    Attributes:
        slices: to be shown.
        augment: changes of every image; None: none.
        seed: of all draws.
        synthetic: further contrasts of each series, on the same squares, by the number of the series; None: none.
        share: of the views that are a synthetic contrast [1].
    """

    slices: Slices
    augment: RotationScaling | Additional | None
    seed: int
    synthetic: Float[Tensor, "s copies size size"] | None = None
    share: float = 0.0

    def view(self, position: int) -> View:
        """The view of one position, with an axis of images of length 1."""
        epoch, place = divmod(position, len(self.slices))
        number = int(Streams(self.seed, epoch).rng("order").permutation(len(self.slices))[place])
        image, mask = self.slices.images[number], self.slices.masks[number]
        streams = Streams(self.seed, position)
        if self.synthetic is not None:
            rng = streams.rng("synthetic")
            if rng.random() < self.share:
                image = self.synthetic[int(self.slices.series[number]), int(rng.integers(self.synthetic.shape[1]))]
        if self.augment is not None:
            image, mask = self.augment.apply(image, mask, streams.rng("augment"))
        return View(image[None, None], mask[None])

    def __getitem__(self, position: int) -> View:
        return self.view(position)

    def __len__(self) -> int:
        return len(self.slices)


def collated(views: Sequence[View]) -> View:
    """Views of several positions in one."""
    return View(torch.cat([each.images for each in views]), torch.cat([each.masks for each in views]))


def loader(views: Views, positions: Sequence[int], batch: int, workers: int) -> DataLoader[View]:
    """Batches of views in the order of their positions."""
    # forkserver: a forked process would share torch's threads
    context = "forkserver" if workers else None
    return DataLoader(
        views, batch, sampler=positions, collate_fn=collated, num_workers=workers, multiprocessing_context=context
    )
