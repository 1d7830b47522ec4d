"""Anatomy with its parameters, and the signal of voxels that tissues share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from phantoms.base import Crop
from phantoms.maps import Mixture
from qsim.errors import InputError
from qsim.signals import ClosedForm
from qsim.signals.base import CoherentModel, SpatialModel, real_signal


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Tissue and its parameters, before any signal.

    Attributes:
        crops: where each patch was cut.
        voxels: which tissues share each voxel.
        kappa: maps of the tissue with the largest share, background included [SI].
        minor_kappa: parameters of the other tissues, in the order of `voxels.minor` [SI].
        moved: what the images after the first see, where organs move; empty where nothing does.
    """

    crops: Sequence[Crop]
    voxels: Mixture
    kappa: Float[Tensor, "q b *space"]
    minor_kappa: Float[Tensor, "q p"]
    moved: tuple["Anatomy", ...] = ()


def mixed_signal(model: CoherentModel, anatomy: Anatomy, part: slice) -> Float[Tensor, "n b *space"]:
    """Coherent signal of some of the samples: signals mix, before any modulus; relaxation times do not.

        S = sum_k share_k S(kappa of tissue k)

    Where the readout mixes voxels, magnetisations mix within them first, and one readout follows. Of a complex signal:
    its modulus, or its real part if the model is signed.
    """
    return real_signal(model, coherent_signal(model, anatomy, part))


def coherent_signal(model: CoherentModel, anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """The same with its phase, where the model has one."""
    signal = _still(model, anatomy, part)
    for image, seen in enumerate(anatomy.moved, start=1):
        signal[image] = _still(model, seen, part)[image]
    return signal


def _still(model: CoherentModel, anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """Of anatomy that does not move."""
    if isinstance(model, SpatialModel) and model.mixes_voxels:
        signal = model.image(_mixed_tissue(model.magnetisation, anatomy, part))
    elif isinstance(model, ClosedForm):
        signal = _mixed(model.coherent, anatomy, part)
    else:
        signal = _mixed_tissue(model.coherent, anatomy, part)
    # one sum instead of a test of every voxel: what is not finite stays so in it
    total = signal.sum() if signal.is_complex() else signal.sum(dtype=torch.float64)
    if not bool(torch.isfinite(total)):
        raise InputError(
            "model: the signal of some voxel is not finite: its relaxation is faster than the pulses or the lock "
            "(short T2, REL_B1 near 0), or a field is far too large; narrow tissues or fields"
        )
    return signal


def _mixed(function: Callable[[Tensor], Tensor], anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """Sum over the tissues of each voxel of share x function(kappa of the tissue)."""
    signal = function(anatomy.kappa[:, part]).mul_(anatomy.voxels.purity[part])
    minor = anatomy.voxels.minor
    if len(minor.share) == 0:
        return signal
    first, last = torch.searchsorted(minor.sample, torch.tensor((part.start, part.stop))).tolist()
    if last > first:
        other = function(anatomy.minor_kappa[:, first:last]).mul_(minor.share[first:last])
        voxels = signal[0, 0].numel()
        flat = (minor.sample[first:last] - part.start) * voxels + minor.voxel[first:last]
        signal.reshape(len(signal), -1).index_add_(1, flat, other)
    return signal


def _mixed_tissue(function: Callable[[Tensor], Tensor], anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """The same sum, computed only where there is tissue: worth the copies where a voxel costs more than they do."""
    purity, minor = anatomy.voxels.purity[part], anatomy.voxels.minor
    held = torch.nonzero(purity.flatten() > 0)[:, 0]
    first, last = torch.searchsorted(minor.sample, torch.tensor((part.start, part.stop))).tolist()
    voxels = purity[0].numel()
    where = torch.cat((held, (minor.sample[first:last] - part.start) * voxels + minor.voxel[first:last]))
    share = torch.cat((purity.flatten().index_select(0, held), minor.share[first:last]))
    majority = anatomy.kappa[:, part].flatten(1).index_select(1, held)
    signal = function(torch.cat((majority, anatomy.minor_kappa[:, first:last]), 1)).mul_(share)
    mixed = torch.zeros(len(signal), purity.numel(), dtype=signal.dtype).index_add_(1, where, signal)
    return mixed.reshape(-1, *purity.shape)
