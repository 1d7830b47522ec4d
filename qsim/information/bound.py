"""The Cramér-Rao bound, with each parameter free in every voxel, shared by voxels, or known."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.information.fisher import SINGULAR, fisher_information, invert_information
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel


@dataclass(frozen=True, slots=True)
class Bound:
    """Cramér-Rao bound of the standard deviation of any unbiased estimator.

    Attributes:
        parameters: names of the rows.
        kappa: where it was evaluated [SI].
        sd: smallest standard deviation; inf where the series cannot identify the parameter, 0 where it is known [SI].
    """

    parameters: tuple[Parameter, ...]
    kappa: Float[Tensor, "q *space"]
    sd: Float[Tensor, "q *space"]

    @property
    def cv(self) -> Float[Tensor, "q *space"]:
        """`sd` in percent of |kappa|."""
        return 100 * self.sd / self.kappa.abs()

    @property
    def identifiable(self) -> Tensor:
        """Where the bound is finite, per row and voxel."""
        return torch.isfinite(self.sd)


def crb(
    model: SignalModel,
    kappa: Float[Tensor, "q *space"],
    sigma: float | Tensor,
    *,
    shared: Sequence[str] = (),
    n_voxels: int = 1,
    known: Sequence[str] = (),
    coils: int = 0,
) -> Bound:
    """Cramér-Rao bound of every parameter of every voxel.

    Args:
        kappa: true values [SI]. With `shared`, its voxels are the set over which the parameter is one number; they may
            differ in every other row.
        sigma: noise SD per real channel, a number or broadcastable against the voxels [units of A].
        shared: names of the parameters that are one number for all voxels; () leaves every parameter free per voxel.
        n_voxels: how many times the voxels of `kappa` occur in the shared set: `crb(model, one_voxel, sigma,
            shared=("B",), n_voxels=200)` is B shared over 200 equal voxels. Without `shared` it changes nothing.
        known: names of the parameters that are known; their bound is 0.
        coils: 0: Gaussian noise; 1: Rician; more: non-central chi of so many coils.
    Raises: ValueError if a name is not a row of the model, or is both shared and known, or sigma is not positive.
    """
    names = [p.name for p in model.parameters]
    _check(names, shared, known, n_voxels)
    noise = torch.as_tensor(sigma, dtype=torch.float64)
    if not bool((torch.isfinite(noise) & (noise > 0)).all()):
        raise ValueError("sigma: must be positive and finite")
    sigma = noise.reshape(()) if noise.numel() == 1 else noise
    information = fisher_information(model, kappa, sigma, coils)
    # sigma may carry voxel axes against which kappa is broadcast
    space = information.shape[2:]
    kappa = kappa.double().reshape(len(names), *(1,) * (len(space) + 1 - kappa.ndim), *kappa.shape[1:])
    kappa = kappa.expand(len(names), *space)
    information = information.reshape(len(names), len(names), prod(space))
    local = [i for i, name in enumerate(names) if name not in shared and name not in known]
    common = [i for i, name in enumerate(names) if name in shared]

    variances = torch.zeros(len(names), prod(space), dtype=torch.float64, device=kappa.device)
    local_bound = invert_information(information[local][:, local])
    if common:
        cross = information[local][:, common]
        # a voxel whose own parameters cannot be identified tells nothing certain about the shared one
        usable = torch.isfinite(local_bound).all(0).all(0) if local else torch.ones_like(variances[0], dtype=torch.bool)
        finite = torch.where(usable, local_bound, 0.0)
        gain = torch.einsum("ijv,jkv->ikv", finite, cross)
        own = information[common][:, common]
        left = torch.where(usable, own - torch.einsum("jkv,jlv->klv", cross, gain), 0.0)
        # Schur complement: what the set of voxels says about the shared parameters once their own are eliminated
        total = left.sum(-1)
        # as many images as own parameters: nothing is left for the shared one but the rounding of the difference
        told = total.diagonal() > SINGULAR * own.sum(-1).diagonal()
        common_bound = invert_information(n_voxels * torch.where(told[:, None] & told, total, 0.0))
        # inf x 0 would be NaN where an unidentifiable shared parameter does not touch a voxel
        spread = gain[:, :, None] * gain[:, None]
        extra = torch.where(spread == 0, 0.0, spread * common_bound[:, :, None]).sum((1, 2))
        diagonal = torch.einsum("iiv->iv", local_bound)
        variances[local] = torch.where(torch.isnan(diagonal + extra), torch.inf, diagonal + extra)
        variances[common] = torch.einsum("kk->k", common_bound)[:, None].expand(-1, prod(space))
    else:
        variances[local] = torch.einsum("iiv->iv", local_bound)
    return Bound(model.parameters, kappa, variances.sqrt().reshape(kappa.shape))


def crb_of_equal_voxels(
    model: SignalModel,
    kappa: Float[Tensor, "q *space"],
    sigma: float | Tensor,
    *,
    shared: Sequence[str],
    n_voxels: int,
    known: Sequence[str] = (),
    coils: int = 0,
) -> Bound:
    """Bound of every voxel as if it shared parameters with `n_voxels` - 1 others like itself, and with no other voxel.

    With g the slope of a voxel's own parameter on the shared ones, and s the information that one voxel has of them,

        var_shared = var_known + g^T (N s)^-1 g = var_known + (var_free - var_known) / N

    and of a shared parameter var_free / N. So all voxels of `kappa` are done at once; `crb` takes them for one set.

    Args: as `crb`.
    """
    _check([p.name for p in model.parameters], shared, known, n_voxels)
    free = crb(model, kappa, sigma, known=known, coils=coils)
    given = crb(model, kappa, sigma, known=(*known, *shared), coils=coils)
    variance, least = free.sd.square(), given.sd.square()
    # infinity minus infinity would be no number
    mixed = torch.where(torch.isinf(variance), torch.inf, least + (variance - least) / n_voxels)
    return Bound(free.parameters, free.kappa, mixed.sqrt())


def _check(names: Sequence[str], shared: Sequence[str], known: Sequence[str], n_voxels: int) -> None:
    """Refuse names that the model does not have. Raises: ValueError."""
    for field, given in (("shared", shared), ("known", known)):
        if isinstance(given, str):
            raise ValueError(f"{field}: got the text {given!r}; give a list of names, ({given!r},)")
        for name in given:
            if name not in names:
                raise ValueError(f"{field}: the model has no parameter {name!r}; it has {', '.join(names)}")
    if set(shared) & set(known):
        raise ValueError(f"known: {', '.join(sorted(set(shared) & set(known)))} cannot be shared and known")
    if n_voxels < 1:
        raise ValueError(f"n_voxels must be at least 1, got {n_voxels}")
