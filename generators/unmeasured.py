"""What artefacts do to k-space of which a part was not measured: those samples are 0 and stay 0.

A spike on such a sample changes nothing, and is said to. Noise and the like act on what was measured alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from qsim.errors import InputError
from qsim.kspace import KSpaceNoise
from qsim.kspace.artefacts.base import Artefact, Drawn
from qsim.kspace.artefacts.k_space_noise import KSpaceNoiseDrawn
from qsim.kspace.artefacts.spike import RFSpikeDrawn, Spike

# a transform there and back rounds by a few units of the last digit of the largest sample
_ROUNDING = 32.0


@dataclass(frozen=True, slots=True)
class Effective:
    """Draws without what falls on samples that were not measured, and a sentence on each that does."""

    drawn: tuple[Drawn | None, ...]
    notes: tuple[str, ...]


def effective(drawn: Sequence[Drawn | None], sampled: Bool[np.ndarray, "n 1 *space"]) -> Effective:
    """The part of every draw that reaches a measured sample.

    Args:
        sampled: which samples were measured, centred.
    Raises: InputError for a spike that is no sample of this k-space.
    """
    chosen: list[Drawn | None] = []
    notes: list[str] = []
    for number, each in enumerate(drawn):
        if isinstance(each, RFSpikeDrawn):
            if each.space != sampled.shape[2:]:
                raise InputError(
                    f"artefacts[{number}].ndim: a spike is one sample of k-space, which has {sampled.ndim - 2} axes "
                    f"here and gaps; got one of {len(each.space)} axes"
                )
            left, said = _hitting(each, sampled[:, 0])
            chosen.append(left)
            notes += [f"artefacts[{number}]: {line}" for line in said]
        else:
            chosen.append(each)
    return Effective(tuple(chosen), tuple(notes))


def _hitting(drawn: RFSpikeDrawn, sampled: Bool[np.ndarray, "n *space"]) -> tuple[RFSpikeDrawn, list[str]]:
    """The spikes on measured samples; written for each image where the images were not measured alike."""
    images, notes = len(sampled), []
    hits: list[tuple[Spike, list[int]]] = []
    for spike in drawn.spikes:
        place = tuple(k + n // 2 for k, n in zip(spike.k, drawn.space, strict=True))
        meant = range(images) if spike.image is None else [spike.image]
        there = [image for image in meant if sampled[(image, *place)]]
        missed = [image + 1 for image in meant if image not in there]
        if missed:
            where = "" if images == 1 or (not there and spike.image is None) else f" of image {_listed(missed)}"
            notes.append(f"spike at k = {spike.k} falls on a sample{where} that was not measured: no effect")
        if there:
            hits.append((spike, there))
    shared = drawn.count is None and all(len(there) == images for _, there in hits)
    if shared:
        return replace(drawn, spikes=tuple(spike for spike, _ in hits)), notes
    spikes = tuple(replace(spike, image=image) for spike, there in hits for image in there)
    return replace(drawn, count=images, spikes=spikes), notes


def _listed(images: Sequence[int]) -> str:
    return ", ".join(map(str, images)) if len(images) <= 8 else f"{images[0]} to {images[-1]} ({len(images)} of them)"


def noise_notes(
    artefacts: Sequence[Artefact[Any]], drawn: Sequence[Drawn | None], sampled: Bool[np.ndarray, "n 1 *space"]
) -> tuple[str, ...]:
    """What `snr_db` refers to where samples are missing."""
    notes = []
    for number, (artefact, each) in enumerate(zip(artefacts, drawn, strict=True)):
        if not (isinstance(artefact, KSpaceNoise) and isinstance(each, KSpaceNoiseDrawn)) or each.snr_db is None:
            continue
        share = sampled.mean(axis=tuple(range(1, sampled.ndim)))
        shares = share[share > 0] if artefact.reference == "image" else np.array([share.mean()])
        low, high = (-10 * log10(float(part)) for part in (shares.max(), shares.min()))
        more = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        notes.append(
            f"artefacts[{number}].snr_db counts the mean over all samples of k-space, those that were not measured "
            f"(0) included: over the measured ones the SNR is {more} dB higher"
        )
    return tuple(notes)


def merged(
    given: Complex[Tensor, "n c *space"],
    before: Complex[Tensor, "n c *space"],
    after: Complex[Tensor, "n c *space"],
    sampled: Bool[np.ndarray, "n 1 *space"] | None,
) -> Complex[Tensor, "n c *space"]:
    """The samples of a file with the change of an artefact, bit by bit as given where it changed nothing.

    Args:
        given: of the file.
        before, after: in double precision, transformed there and back, without and with artefacts.
        sampled: which were measured; None: all.
    """
    change = after - before
    # what is smaller is the rounding of the transforms
    rounding = _ROUNDING * torch.finfo(change.dtype).eps * max(float(before.abs().max()), float(after.abs().max()))
    changed = change.abs() > rounding
    if sampled is not None:
        changed &= torch.from_numpy(sampled)
    return torch.where(changed, (given + change).to(given.dtype), given)
