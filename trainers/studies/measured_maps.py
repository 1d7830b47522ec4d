"""Maps of measured repeats: a volume slice by slice, and networks told the unit of the scanner."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qsim.estimators.base import Estimate, Estimator, computable
from trainers.mapping.inputs import air_shifts
from trainers.network_estimator import NetworkEstimator
from trainers.studies.measured import Measured
from trainers.studies.methods import Chosen, Renamed, pools

# images up to this factor outside the range of a network's training are still mapped, as `qsim map` does
_SCALE_MARGIN = 4.0
# how a note begins that should not be overlooked
WARNS = "warning: "


class Mapped(NamedTuple):
    """Maps of one repeat. Attributes: kappa: rows of the estimator [SI]; status: one `Status` a voxel."""

    kappa: Float[Tensor, "q z y x"]
    status: UInt8[Tensor, "z y x"]


def map_repeat(
    measured: Measured, repeat: int, estimator: Estimator, mask: Bool[Tensor, "z y x"] | None = None
) -> Mapped:
    """Map one repeat: slice by slice, as `qsim map` does, so that what is common to voxels is so within a slice.

    Args:
        estimator: of `fit_to_scale`, or any other.
        mask: voxels to be mapped; None: those of the scans.
    """
    return map_volume(
        measured.images[repeat],
        estimator,
        measured.mask if mask is None else mask,
        sigma=measured.sigma,
        known=measured.known,
    )


def map_volume(
    images: Float[Tensor, "n z y x"],
    estimator: Estimator,
    mask: Bool[Tensor, "z y x"],
    sigma: float | None = None,
    known: Mapping[str, Float[Tensor, "*space_or_none"]] | None = None,
) -> Mapped:
    """Map a stack of slices, each by itself; slices without a voxel of the mask are left out."""
    own = [p.name for p in estimator.parameters]
    kappa = images.new_full((len(own), *images.shape[1:]), torch.nan)
    status = torch.full(tuple(images.shape[1:]), 3, dtype=torch.uint8)
    for z in range(images.shape[1]):
        if not bool(computable(images[:, z], mask[z]).any()):
            continue
        given = {name: value if value.ndim == 0 else value[z] for name, value in (known or {}).items()}
        # a copy: a method that works in place must not change what the next one sees
        found: Estimate = estimator(images[:, z].clone(), sigma=sigma, mask=mask[z], known=given or None)
        kappa[:, z] = found.kappa.detach().cpu().to(kappa.dtype)
        status[z] = found.status.cpu()
    return Mapped(kappa, status)


def fit_to_scale(estimator: Estimator, measured: Measured) -> tuple[Estimator, str]:
    """A network told in which unit the scanner counts, as `qsim map` does it; every other method as it is.

    Returns: the estimator, and a note (empty: nothing was changed).
    """
    network = estimator.estimator if isinstance(estimator, Renamed) else estimator
    if not isinstance(network, NetworkEstimator) or network.scale is None:
        return estimator, ""
    low, high = network.scale
    brightest = measured.images[0].amax(0)[measured.mask].double()
    top = float(np.quantile(brightest.numpy(), 0.99))
    unit, note = network.images_unit, ""
    if not low / _SCALE_MARGIN <= top / unit <= high * _SCALE_MARGIN:
        unit = top / high
        note = f"images divided by {unit:.4g} for {estimator.name}, so that they are as bright as those of its training"
    # looked at once, above: a slice at the edge of the object may be dark
    fitted = replace(network, images_unit=unit, scale=None)
    return (Renamed(estimator.name, fitted) if isinstance(estimator, Renamed) else fitted), note


def fit_methods(chosen: Sequence[Chosen], measured: Measured) -> tuple[tuple[Chosen, ...], tuple[str, ...]]:
    """`fit_to_scale` of every method of a study; its notes, and those on methods that air would mislead."""
    fitted = [fit_to_scale(each.estimator, measured) for each in chosen]
    found = tuple(replace(each, estimator=estimator) for each, (estimator, _) in zip(chosen, fitted, strict=True))
    misled: dict[tuple[str, ...], list[str]] = {}
    for each in chosen if measured.air else ():
        common = tuple(row for row in pools(each.estimator) if row not in measured.known)
        if common:
            misled.setdefault(common, []).append(each.name)
    warnings = [
        f"{WARNS}{', '.join(names)}: {air_shifts(rows, measured.air)}; "
        "mask: auto, or the file of a mask, in data.scans leaves them out"
        for rows, names in misled.items()
    ]
    return found, (*(note for _, note in fitted if note), *warnings)


def said_loudly(notes: Sequence[str]) -> list[str]:
    """Those of the notes that a page shows on top, without their head."""
    return [note.removeprefix(WARNS) for note in notes if note.startswith(WARNS)]
