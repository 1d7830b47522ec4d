"""What networks are compared with on a cohort: methods without any training, and the bound.

two-point               T = t / log(I_first / I_later), limited to a range; limited voxels are counted
averaged-k              the same of images averaged over k x k voxels: what averaging alone gives
bilateral-k             the same of images averaged over those of k x k voxels that look alike in the images of the
                        input: w = softmax(-p d), see `answers.py`
empirical-bayes         the voxel's posterior mean with a prior found in the same two images
population-constant     one value for all: the median of the training subjects' regions
least-squares, rician   fits of all images
bound                   smallest SD of an unbiased estimate of one voxel from the images that the method was shown
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.estimators.base import Status
from qsim.evaluation.studies.cohort_maps import population_constant
from qsim.evaluation.studies.cohort_reference import Answer, Reference
from qsim.information.bound import crb
from trainers.networks.relaxation.answers import averages, neighbours, unlikeness, weights
from trainers.relaxation.cohort import Cohort, fit, ideal, part_of
from trainers.relaxation.contrasts import Contrast, Input, contrasts, joint_scale


def _pair(contrast: Contrast, chosen: Input) -> tuple[int, int]:
    """The two images of a contrast in an input."""
    other = next(image for image in chosen[1:] if image in contrast.images)
    return chosen[0], other


def limited_two_point(
    images: Float[Tensor, "s n y x"], contrast: Contrast, chosen: Input, limits: tuple[float, float]
) -> Answer:
    """Two-point times, those outside the range set to its ends and counted."""
    first, other = _pair(contrast, chosen)
    time = contrast.time(other) - contrast.time(first)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.log(images[:, first].double().numpy() / images[:, other].double().numpy()) / time
    low, high = limits
    # a quotient of 1 or less, of a negative image or of none at all: the decay is too slow to be seen
    slow = ~(rate > 1 / high)
    estimate = np.where(slow, high, 1 / np.where(slow, 1.0, np.minimum(rate, 1 / low)))
    return Answer(estimate=estimate, limited=slow | (rate > 1 / low))


def alike(images: Float[Tensor, "s n y x"], chosen: Input, side: int) -> Float[Tensor, "s n y x"]:
    """Images averaged over those voxels of a square of odd side [voxels] that look alike in the images of an input."""
    found = torch.empty_like(images)
    # one slice at a time: a square of 7 holds every image 49 times
    for i in range(len(images)):
        seen = images[i : i + 1, list(chosen)]
        unlike = unlikeness(seen / joint_scale(seen), side, ())
        # what an untrained network says: u = 0, and p the same everywhere
        share = weights(unlike.new_zeros(1, side**2 + 1, 1, 1), unlike)
        found[i] = (share[:, :, None] * neighbours(images[i : i + 1], side)).sum(1)[0]
    return found


def alone(
    name: str,
    images: Float[Tensor, "s n y x"],
    contrast: Contrast,
    chosen: Input,
    limits: tuple[float, float],
    sigma: Float[Tensor, " s"] | None,
) -> Answer:
    """The answer of a method that sees the two images of a contrast.

    Raises: InputError if the method cannot be used on them.
    """
    if name == "two-point":
        return limited_two_point(images, contrast, chosen, limits)
    if name.startswith("averaged-"):
        size = int(name.removeprefix("averaged-"))
        return limited_two_point(averages(images, (size,))[:, 0], contrast, chosen, limits)
    if name.startswith("bilateral-"):
        return limited_two_point(alike(images, chosen, int(name.removeprefix("bilateral-"))), contrast, chosen, limits)
    pair = list(_pair(contrast, chosen))
    model = part_of(ideal(contrast), tuple(contrast.images.index(image) for image in pair))
    estimator = build_estimator(name, model)
    maps = np.empty((len(images), *images.shape[-2:]))
    for i, one in enumerate(images[:, pair]):
        try:
            found = estimator(one, sigma=None if sigma is None else float(sigma[i]))
        except InputError as error:
            raise InputError(f"alone: {name}: {error}") from None
        kappa = found.kappa[1].double().numpy()
        maps[i] = np.where((found.status == int(Status.NOT_COMPUTED)).numpy(), np.nan, kappa)
    return Answer(estimate=maps)


def of_all(name: str, cohort: Cohort, slices: tuple[int, ...]) -> dict[str, Answer]:
    """The answers of a fit of all images, by row."""
    chosen = list(slices)
    sigma = None if cohort.sigma is None else cohort.sigma[chosen]
    found = fit(cohort.images[chosen], cohort.model, name, sigma)
    return {row: Answer(estimate=each.double().numpy()) for row, each in found.items()}


def constant(training: Reference, like: Reference) -> Answer:
    """One value everywhere."""
    value = population_constant(training)
    return Answer(estimate=np.full(like.fit.shape, value))


def bounds(
    cohort: Cohort, slices: tuple[int, ...], chosen: Input | None, limits: tuple[float, float]
) -> Mapping[str, float]:
    """Mean over the regions of interest of the bound's SD of each row [s]; empty where truth or sigma is not known.

    The signal of the first image stands for A.

    Args:
        chosen: an input; None: all images of each contrast.
        limits: voxels whose true time lies outside are left out.
    """
    if not cohort.truth or cohort.sigma is None:
        return {}
    found = {}
    for contrast in contrasts(cohort.model):
        images = list(contrast.images if chosen is None else _pair(contrast, chosen))
        model = part_of(ideal(contrast), tuple(contrast.images.index(image) for image in images))
        sds = []
        for i in slices:
            truth = cohort.truth[contrast.row.name][i]
            here = cohort.roi[i] & (truth > limits[0]) & (truth < limits[1])
            a = cohort.images[i, contrast.images[0]][here].double()
            kappa = torch.stack((a, truth[here].double()))
            sds.append(crb(model, kappa, float(cohort.sigma[i])).sd[1])
        found[contrast.row.name] = float(torch.cat(sds).mean())
    return found
