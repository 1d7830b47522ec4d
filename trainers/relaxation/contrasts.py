"""Which images of a series one relaxation time joins, and what a network is shown of them.

In huang2023 a slice has one image without any preparation, three with a spin-lock and three with a T2 preparation. Two
contrasts share the first image: T1rho joins it to the spin-locked ones, T2 to the T2-prepared ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.parameters import RELAXATION_TIMES, T1RHO, T2, Parameter
from qsim.signals import Bloch, SpinLockPreparation, T2Preparation
from qsim.signals.base import SignalModel
from qsim.signals.decays import BiExponential, MonoExponential, OffsetDecay
from qsim.signals.joint_decay import SpinLockT2Prep

Input = tuple[int, ...]
# brightness that becomes 1: a few hot voxels, or a small bright object, do not move it [1]
_TOP = 0.99


@dataclass(frozen=True, slots=True)
class Contrast:
    """The images of a series that one relaxation time joins.

    Attributes:
        row: that relaxation time.
        images: their numbers in the series, by time.
        times: of each [s].
    """

    row: Parameter
    images: tuple[int, ...]
    times: tuple[float, ...]

    def time(self, image: int) -> float:
        """Of an image, by its number in the series [s]."""
        return self.times[self.images.index(image)]


def _contrast(row: Parameter, images: tuple[int, ...], times: tuple[float, ...]) -> Contrast:
    order = sorted(range(len(images)), key=lambda i: times[i])
    return Contrast(row, tuple(images[i] for i in order), tuple(times[i] for i in order))


def contrasts(model: SignalModel) -> tuple[Contrast, ...]:
    """The contrasts of a series.

    Raises: InputError if the model is no decay.
    """
    if isinstance(model, SpinLockT2Prep):
        locked = tuple(i for i, te in enumerate(model.te_prep) if te == min(model.te_prep))
        prepared = tuple(i for i, tsl in enumerate(model.tsl) if tsl == min(model.tsl))
        return (
            _contrast(T1RHO, locked, tuple(model.tsl[i] for i in locked)),
            _contrast(T2, prepared, tuple(model.te_prep[i] for i in prepared)),
        )
    if isinstance(model, MonoExponential | OffsetDecay | BiExponential):
        times, rows = model.times, [p for p in model.parameters if p.name in RELAXATION_TIMES]
        return (_contrast(rows[-1], tuple(range(len(times))), times),)
    if isinstance(model, Bloch) and isinstance(model.preparation, SpinLockPreparation | T2Preparation):
        part = model.preparation
        times, row = (part.tsl, T1RHO) if isinstance(part, SpinLockPreparation) else (part.te, T2)
        return (_contrast(row, tuple(range(len(times))), times),)
    raise InputError(
        f"model: {type(model).__name__} is no decay; relaxation constraints join images of spin-lock or T2 preparation"
    )


def inputs(model: SignalModel) -> tuple[Input, ...]:
    """The inputs of huang2022 and huang2023: the common first image, and the k-th later one of each contrast.

    Raises: InputError if the model is no decay, has no image later than its first, or one at the same time as it, or
        its contrasts differ in length or in their first image.
    """
    found = contrasts(model)
    for each in found:
        if each.times[-1] <= each.times[0]:
            raise InputError(
                f"model: {len(each.images)} image(s) at {1e3 * each.times[0]:g} ms alone tell no {each.row.name}; "
                "give images of at least two times"
            )
    if len({(len(each.images), each.images[0]) for each in found}) > 1:
        raise InputError("model: its contrasts do not share a first image, or differ in length; give task.inputs")
    for each in found:
        if each.times[1] <= each.times[0]:
            raise InputError(
                f"model: images {each.images[0]} and {each.images[1]} are both at {1e3 * each.times[0]:g} ms, and say "
                f"nothing of {each.row.name} together; give task.inputs of images at different times"
            )
    return tuple((found[0].images[0], *later) for later in zip(*(each.images[1:] for each in found), strict=True))


def check_input(chosen: Input, model: SignalModel) -> None:
    """Refuse an input that is not one image common to all contrasts and one of each.

    Raises: InputError with what is wrong.
    """
    found = contrasts(model)
    first, *others = chosen or (-1,)
    if not all(first in each.images for each in found):
        raise InputError(f"task.inputs: image {first} of {list(chosen)} is not common to all contrasts")
    if len(others) != len(found):
        raise InputError(f"task.inputs: {list(chosen)} holds {len(others)} later images, wanted {len(found)}")
    for each, other in zip(found, others, strict=True):
        if other not in each.images or each.time(other) <= each.time(first):
            raise InputError(f"task.inputs: image {other} of {list(chosen)} is no later image of {each.row.name}")


def intervals(chosen: Input, found: tuple[Contrast, ...]) -> tuple[float, ...]:
    """Time from the common image to the later one of each contrast [s]."""
    first, *others = chosen
    return tuple(each.time(other) - each.time(first) for each, other in zip(found, others, strict=True))


def joint_scale(images: Float[Tensor, "b k *space"]) -> Float[Tensor, "b *ones"]:
    """The one number that all images of a series are divided by [units of the images].

    The 99th percentile of the first image of the input over the slice. An image that was scaled by itself would lose
    the ratio to the others, which is all that tells the relaxation time.
    """
    first = images[:, 0].flatten(1).float()
    top = torch.quantile(first, _TOP, dim=1)
    # an image of zeros stays one
    return torch.where(top > 0, top, torch.ones_like(top)).reshape(-1, *(1,) * (images.ndim - 1))
