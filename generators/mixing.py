"""Anatomy with its parameters, and the signal of voxels that tissues share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Inexact, Int
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
        changed: of such an image: voxels that hold other tissues than in the first.
    """

    crops: Sequence[Crop]
    voxels: Mixture
    kappa: Float[Tensor, "q b *space"]
    minor_kappa: Float[Tensor, "q p"]
    moved: tuple["Anatomy", ...] = ()
    changed: Bool[Tensor, "b *space"] | None = None


def mixed_signal(model: CoherentModel, anatomy: Anatomy, part: slice) -> Float[Tensor, "n b *space"]:
    """Coherent signal of some of the samples: signals mix, before any modulus; relaxation times do not.

        S = sum_k share_k S(kappa of tissue k)

    Where the readout mixes voxels, magnetisations mix within them first, and one readout follows. Of a complex signal:
    its modulus, or its real part if the model is signed.
    """
    return real_signal(model, coherent_signal(model, anatomy, part))


def coherent_signal(model: CoherentModel, anatomy: Anatomy, part: slice) -> Inexact[Tensor, "n b *space"]:
    """The same with its phase, where the model has one."""
    if isinstance(model, SpatialModel) and model.mixes_voxels:
        signal = _of_images([model.image(mixed) for mixed in _mixed_seen(model.magnetisation, anatomy, part)])
    elif isinstance(model, ClosedForm) and not anatomy.moved:
        signal = _mixed(model.coherent, anatomy, part)
    else:
        signal = _of_images(_mixed_seen(model.coherent, anatomy, part))
    # one sum instead of a test of every voxel: what is not finite stays so in it
    total = signal.sum() if signal.is_complex() else signal.sum(dtype=torch.float64)
    if not bool(torch.isfinite(total)):
        raise InputError(
            "model: the signal of some voxel is not finite: its relaxation is faster than the pulses or the lock "
            "(short T2, REL_B1 near 0), or a field is far too large; narrow tissues or fields"
        )
    return signal


def _of_images(series: Sequence[Inexact[Tensor, "n b *space"]]) -> Inexact[Tensor, "n b *space"]:
    """The series in which image k is that of the anatomy that it sees.

    Args:
        series: of the anatomy of the first image; then, where organs move, of that of every other.
    """
    return series[0] if len(series) == 1 else torch.stack([images[k] for k, images in enumerate(series)])


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


@dataclass(frozen=True, slots=True)
class _Terms:
    """The tissues of some voxels, one term of the sum each.

    Attributes:
        voxel: flat index within the samples.
        share: of the voxel [1].
        kappa: parameters [SI].
    """

    voxel: Int[Tensor, " m"]
    share: Float[Tensor, " m"]
    kappa: Float[Tensor, "q m"]


def _mixed_seen(
    function: Callable[[Tensor], Tensor], anatomy: Anatomy, part: slice
) -> list[Inexact[Tensor, "n b *space"]]:
    """The same sum for the anatomy of every image that sees another one, computed only where there is tissue.

    That is worth the copies where a voxel costs more than they do. Where organs move, only voxels that changed are
    computed anew, all of them in one call.
    """
    shape = anatomy.voxels.purity[part].shape
    terms = [_terms(anatomy, part), *(_terms(seen, part) for seen in anatomy.moved)]
    values = function(torch.cat([each.kappa for each in terms], 1)).mul_(torch.cat([each.share for each in terms]))
    mixed: list[Inexact[Tensor, "n b *space"]] = []
    changes = (None, *(seen.changed for seen in anatomy.moved))
    of_terms = values.split([len(each.share) for each in terms], 1)
    for each, value, changed in zip(terms, of_terms, changes, strict=True):
        total = torch.zeros(len(values), shape.numel(), dtype=values.dtype).index_add_(1, each.voxel, value)
        total = total.reshape(-1, *shape)
        mixed.append(total if changed is None else torch.where(changed[part], total, mixed[0]))
    return mixed


def _terms(anatomy: Anatomy, part: slice) -> _Terms:
    """Of all voxels that hold tissue, or of those that changed."""
    purity, minor = anatomy.voxels.purity[part], anatomy.voxels.minor
    first, last = torch.searchsorted(minor.sample, torch.tensor((part.start, part.stop))).tolist()
    voxel = (minor.sample[first:last] - part.start) * purity[0].numel() + minor.voxel[first:last]
    share, kappa = minor.share[first:last], anatomy.minor_kappa[:, first:last]
    there = purity > 0
    if anatomy.changed is not None:
        only = anatomy.changed[part]
        there = there & only
        kept = torch.nonzero(only.flatten().index_select(0, voxel))[:, 0]
        voxel, share, kappa = voxel[kept], share[kept], kappa.index_select(1, kept)
    held = torch.nonzero(there.flatten())[:, 0]
    majority = anatomy.kappa[:, part].flatten(1).index_select(1, held)
    return _Terms(
        torch.cat((held, voxel)),
        torch.cat((purity.flatten().index_select(0, held), share)),
        torch.cat((majority, kappa), 1),
    )
