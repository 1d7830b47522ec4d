"""What a signal model is, and the checks of timings that every model makes."""

from functools import lru_cache
from math import isfinite
from statistics import median
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.parameters import Parameter

# longest plausible time of each timing argument [s]: above it, milliseconds were meant
_LONGEST = {"te": 5.0, "te_prep": 5.0, "tsl": 5.0, "ti": 60.0, "ts": 60.0, "tr": 60.0}


@runtime_checkable
class SignalModel(Protocol):
    """Noise-free images of a tissue described by kappa."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Names of the rows of kappa, in order."""
        ...

    @property
    def n_images(self) -> int:
        """Length of the series."""
        ...

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "n *space"]:
        """Images [units of A] of the maps `kappa` [SI unit of each row]."""
        ...


@runtime_checkable
class CoherentModel(SignalModel, Protocol):
    """A model that gives its signal before the modulus, which is what adds up within a voxel."""

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "n *space"]:
        """Signed or complex signal [units of A]; the images are its modulus unless the model keeps the sign."""
        ...


@runtime_checkable
class SpatialModel(CoherentModel, Protocol):
    """A model whose readout mixes the voxels of an image: what adds up within a voxel is what stands before it."""

    @property
    def mixes_voxels(self) -> bool:
        """Whether it does; False: `coherent` acts on each voxel by itself."""
        ...

    @property
    def pointwise(self) -> SignalModel:
        """The same model without the mixing: the contrast at the centre of k-space."""
        ...

    def magnetisation(self, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "k *space"]:
        """What the readout starts from, per voxel; tissues that share a voxel add up in it [units of A]."""
        ...

    def image(self, magnetisation: Inexact[Tensor, "k *space"]) -> Inexact[Tensor, "n *space"]:
        """Signed or complex images; the phase axis is the last but one, leading axes are a batch [units of A]."""
        ...


@runtime_checkable
class DifferentiableModel(SignalModel, Protocol):
    """A model that knows its derivatives in closed form."""

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """d S_n / d kappa_q. On the kink of a magnitude (S = 0): the derivative of the branch S > 0."""
        ...


def may_overwrite(tensor: Tensor, *others: Tensor) -> bool:
    """Whether an operation with the others may write its result into the tensor.

    No gradient is recorded, no function transform (jvp, vmap) runs, and the result has the tensor's shape.
    """
    if torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return all(np.broadcast_shapes(tensor.shape, other.shape) == tensor.shape for other in others)


def real_signal(model: SignalModel, signal: Inexact[Tensor, "n *space"]) -> Float[Tensor, "n *space"]:
    """Of a complex signal its modulus, or its real part if the model is signed.

    Both channels have the same noise, so the phase counts only where the model keeps the sign.
    """
    if not signal.is_complex():
        return signal
    return signal.real if getattr(model, "signed", False) else signal.abs()


def check_times(name: str, times: tuple[float, ...]) -> None:
    """Refuse timings that cannot be seconds.

    Raises: ValueError if the list is empty, or a time is not finite, negative, or so long that it must be milliseconds.
    """
    if not times:
        raise ValueError(f"{name} is empty; give at least one time in seconds")
    for time in times:
        if not isfinite(time):
            raise ValueError(f"{name} must hold finite times in seconds, got {time}")
        if time < 0:
            raise ValueError(f"{name} must not be negative, got {time}")
    if max(times) > _LONGEST[name] or (name == "ti" and median(times) > 10):
        raise ValueError(f"{name} must be in seconds, got {max(times):g}; divide by 1000 if these are milliseconds")


def time_axis(times: tuple[float, ...], like: Float[Tensor, "*space"]) -> Float[Tensor, "n *ones"]:
    """The times [s] as a column that broadcasts against the maps `like`."""
    return _column(times, like.ndim, like.dtype, like.device)


@lru_cache(maxsize=64)
def _column(times: tuple[float, ...], ndim: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n *ones"]:
    return torch.tensor(times, dtype=dtype, device=device).reshape(-1, *(1,) * ndim)
