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
) -> Bound:
    """Cramér-Rao bound of every parameter of every voxel.

    Args:
        kappa: true values [SI]. With `shared`, its voxels are the set over which the parameter is one number; they may
            differ in every other row.
        sigma: noise SD, a number or broadcastable against the voxels [units of A].
        shared: names of the parameters that are one number for all voxels; () leaves every parameter free per voxel.
        n_voxels: how many times the voxels of `kappa` occur in the shared set: `crb(model, one_voxel, sigma,
            shared=("B",), n_voxels=200)` is B shared over 200 equal voxels. Without `shared` it changes nothing.
        known: names of the parameters that are known; their bound is 0.
    Raises: ValueError if a name is not a row of the model, or is both shared and known.
    """
    names = [p.name for p in model.parameters]
    for field, given in (("shared", shared), ("known", known)):
        for name in given:
            if name not in names:
                raise ValueError(f"{field}: the model has no parameter {name!r}; it has {', '.join(names)}")
    if set(shared) & set(known):
        raise ValueError(f"known: {', '.join(sorted(set(shared) & set(known)))} cannot be shared and known")
    if n_voxels < 1:
        raise ValueError(f"n_voxels must be at least 1, got {n_voxels}")
    kappa = kappa.double()
    space = kappa.shape[1:]
    information = fisher_information(model, kappa, sigma)
    # sigma may carry voxel axes that kappa broadcasts against
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
