"""Subjects with a series per slice and a region of interest: what huang2022 and huang2023 train and judge on.

A digital cohort knows its true maps; measured series do not. Both are held in memory, and a network sees of them only
images, so that a user's own series take the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.signals import SpinLock, T2Prep
from qsim.signals.base import SignalModel
from qsim.signals.joint_decay import SpinLockT2Prep
from trainers.relaxation.contrasts import Contrast, contrasts

# what the row of a fitted map is called beside the true one
FITTED = "fit/"
# voxels that are fitted together
_VOXELS = 1 << 17


@dataclass(frozen=True, slots=True)
class Cohort:
    """Slices of many subjects.

    Attributes:
        name: in reports.
        images: series of every slice [units of A].
        model: the ideal decay of the series.
        subject: of every slice; slices of a subject lie together.
        roi: parenchyma of the right lobe, drawn before any map was fitted.
        body: where there is tissue.
        truth: true maps by row, 0 outside of the body [SI]; empty: measured.
        labels, tissues: majority tissue of every voxel, number of the tissue + 1; None: measured.
        purity: share of that tissue [1]; None: measured.
        sigma: noise SD per real channel; None: unknown [units of A].
        spacing_mm: of the voxels (y, x).
        digest: of all that the cohort was made from.
    """

    name: str
    images: Float[Tensor, "s n y x"]
    model: SignalModel
    subject: Int[Tensor, " s"]
    roi: Bool[Tensor, "s y x"]
    body: Bool[Tensor, "s y x"]
    spacing_mm: tuple[float, float]
    digest: str
    truth: Mapping[str, Float[Tensor, "s y x"]] = field(default_factory=dict)
    labels: UInt8[Tensor, "s y x"] | None = None
    tissues: tuple[str, ...] = ()
    purity: Float[Tensor, "s y x"] | None = None
    sigma: Float[Tensor, " s"] | None = None

    @property
    def subjects(self) -> tuple[int, ...]:
        """In the order of the slices."""
        return tuple(dict.fromkeys(self.subject.tolist()))

    def slices_of(self, subjects: tuple[int, ...]) -> Int[np.ndarray, " k"]:
        """Numbers of the slices of these subjects."""
        return np.flatnonzero(np.isin(self.subject.numpy(), np.asarray(subjects, dtype=np.int64)))

    def tissue(self, name: str) -> Bool[Tensor, "s y x"] | None:
        """Voxels that hold this tissue and little else; None: not known."""
        if self.labels is None or self.purity is None or name not in self.tissues:
            return None
        return (self.labels == self.tissues.index(name) + 1) & (self.purity >= 0.9)


def folds(subjects: tuple[int, ...], n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Subjects in n groups of (almost) the same size; a subject is in one of them, with all of its slices.

    Raises: InputError for fewer subjects than groups, or a single group.
    """
    if not 2 <= n <= len(subjects):
        raise InputError(f"folds: got {n} groups for {len(subjects)} subjects; wanted 2 to {len(subjects)}")
    order = Streams(seed, 0).rng("folds").permutation(len(subjects))
    return tuple(tuple(sorted(subjects[i] for i in group)) for group in np.array_split(order, n))


def ideal(contrast: Contrast) -> SpinLock | T2Prep:
    """The decay of one contrast alone."""
    return SpinLock(tsl=contrast.times) if contrast.row.name == "T1RHO" else T2Prep(te_prep=contrast.times)


def part_of(model: SignalModel, chosen: tuple[int, ...]) -> SignalModel:
    """Ideal decay of some images of a series.

    Raises: ValueError if these cannot be told apart.
    """
    if isinstance(model, SpinLockT2Prep):
        tsl, te = tuple(model.tsl[i] for i in chosen), tuple(model.te_prep[i] for i in chosen)
        if len(set(te)) == 1:
            return SpinLock(tsl=tsl)
        return T2Prep(te_prep=te) if len(set(tsl)) == 1 else SpinLockT2Prep(tsl=tsl, te_prep=te)
    (whole,) = contrasts(model)
    return ideal(Contrast(whole.row, chosen, tuple(whole.time(i) for i in chosen)))


def fit(
    images: Float[Tensor, "s n y x"], model: SignalModel, method: str = "least-squares", sigma: Tensor | None = None
) -> dict[str, Float[Tensor, "s y x"]]:
    """Maps of all images of each contrast by a voxel-wise fit [s]; NaN where nothing can be computed.

    Args:
        images: series of the slices [units of A].
        model: the ideal decay of the series.
        method: name of an estimator of decays.
        sigma: noise SD of every slice, where the method needs it [units of A].
    """
    maps = {}
    for contrast in contrasts(model):
        estimator = build_estimator(method, ideal(contrast))
        series = images[:, list(contrast.images)].movedim(1, 0)
        per_part = max(1, _VOXELS // (images.shape[-1] * images.shape[-2]))
        found = []
        for first in range(0, len(images), per_part):
            part = slice(first, first + per_part)
            level = None if sigma is None else sigma[part, None, None].expand(series[0, part].shape)
            found.append(estimator(series[:, part], sigma=level).kappa[1])
        maps[contrast.row.name] = torch.cat(found)
    return maps
