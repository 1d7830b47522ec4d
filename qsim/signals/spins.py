"""Tissue and fields of the voxels that a Bloch simulation carries, checked once."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError


@dataclass(frozen=True, slots=True)
class Spins:
    """What the tissue and the fields are in each voxel; all of one shape, dtype and device.

    Attributes:
        t1, t2: relaxation times [s].
        t1rho: relaxation time along a resonant spin-lock field; None where no event locks [s].
        t2rho: across it; None: the rate of the pure Bloch equation, (2 R2 + R1 - R1rho_B) / 2 [s].
        delta_b0: off-resonance [Hz].
        rel_b1: actual over nominal transmit field [1].
    """

    t1: Float[Tensor, "*space"]
    t2: Float[Tensor, "*space"]
    t1rho: Float[Tensor, "*space"] | None
    t2rho: Float[Tensor, "*space"] | None
    delta_b0: Float[Tensor, "*space"]
    rel_b1: Float[Tensor, "*space"]

    def map(self, function: "SpinFunction") -> "Spins":
        """The spins with a function applied to every map."""
        return Spins(
            t1=function(self.t1),
            t2=function(self.t2),
            t1rho=None if self.t1rho is None else function(self.t1rho),
            t2rho=None if self.t2rho is None else function(self.t2rho),
            delta_b0=function(self.delta_b0),
            rel_b1=function(self.rel_b1),
        )


class SpinFunction(Protocol):
    """A function of one map."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


def spins(
    *,
    t1: float | Tensor,
    t2: float | Tensor,
    t1rho: float | Tensor | None = None,
    t2rho: float | Tensor | None = None,
    delta_b0: float | Tensor = 0.0,
    rel_b1: float | Tensor = 1.0,
) -> Spins:
    """Spins from numbers and maps that broadcast: float64 if all are numbers, else the dtype of the maps.

    Args:
        t1, t2, t1rho, t2rho: relaxation times [s].
        delta_b0: off-resonance [Hz].
        rel_b1: actual over nominal transmit field [1].
    Raises: InputError, naming the argument, if a value is not physical: a time not above 0, T2 above 2 T1 (the
        transverse rate of any tissue is at least half the longitudinal one), NaN or infinity, a negative field.
    """
    given = {"t1": t1, "t2": t2, "t1rho": t1rho, "t2rho": t2rho, "delta_b0": delta_b0, "rel_b1": rel_b1}
    maps = {name: one for name, one in given.items() if one is not None}
    tensors = [one for one in maps.values() if isinstance(one, Tensor)]
    dtype = torch.float64
    if tensors:
        dtype = tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)
    if not dtype.is_floating_point:
        raise InputError(f"{next(iter(maps))}: maps must hold floating-point numbers, got {dtype}")
    device = tensors[0].device if tensors else torch.device("cpu")
    whole = dict(
        zip(
            maps,
            torch.broadcast_tensors(*(torch.as_tensor(one, dtype=dtype, device=device) for one in maps.values())),
            strict=True,
        )
    )
    for name, values in whole.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"{name}: must be finite everywhere; leave the background out or give it tissue values")
        if name in ("t1", "t2", "t1rho", "t2rho") and bool((values <= 0).any()):
            raise InputError(f"{name}: must be above 0 s everywhere, got {float(values.min()):g}")
    if bool((whole["t2"] > 2 * whole["t1"]).any()):
        raise InputError("t2: exceeds 2 t1, which no tissue can; check that both are in seconds and not swapped")
    if bool((whole["rel_b1"] < 0).any()):
        raise InputError(f"rel_b1: must not be negative, got {float(whole['rel_b1'].min()):g}")
    return Spins(
        t1=whole["t1"],
        t2=whole["t2"],
        t1rho=whole.get("t1rho"),
        t2rho=whole.get("t2rho"),
        delta_b0=whole["delta_b0"],
        rel_b1=whole["rel_b1"],
    )
