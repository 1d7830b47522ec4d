"""The figures by which maps of a cohort are judged: errors, slopes, lesions, and whether the uncertainty is honest.

Maps are in seconds, (s, y, x) over all slices of all subjects; lengths of time among the figures are in milliseconds,
the others are ratios (`unit`). With the error e = estimate - reference, in a region:

    rmae = mean |e|     median_error = median |e|     p95_error = 95th percentile of |e|
    bias = mean e       rmse = sqrt(mean e^2)         (`rmae` as the paper calls it in the ROI, huang2022 Eq. 10)

Every figure against a reference ends in `_truth` or `_fit` (the map that all images of the series give by least
squares, as noisy as they are); without a truth there are those of the fit alone. A voxel without a finite estimate or
reference is left out of these figures and counted in `left_out_*`; outside the ROI so is one whose fit lies at a bound
of its range, where the images say nothing.

    slope_subjects, concordance_subjects    of the subjects' means in the ROI, on the reference's
    slope_within      of deviations from the mean of the slice's ROI, pooled over slices: 0 if a method paints means
    lesion_recovery   sum_s g_s (estimate in lesions - in the parenchyma) / sum_s g_s (the same of the reference)

over slices s with lesions, g_s = +-1 the sign of the reference's contrast, so that darker and brighter lesions do not
cancel. The parenchyma is the ROI without lesions. `lesion_recovery_fit` is held against the fit of the images without
noise: what the readout blurred is not the method's fault.

Of the uncertainty (SD in the unit of the map; total^2 = aleatoric^2 + epistemic^2): the mean by region (huang2022
Table 5), rank correlation with |e|, `ause_ratio` (area between the curve of sparsification and the oracle's, over that
between the random curve and the oracle's: 0 ideal, 1 says nothing), coverage of the 95 % interval with its width, and
CRPS beside that of the one width that is best for all voxels. In order (`spearman`, `ause_ratio`) a voxel without an SD
is the most uncertain; elsewhere it is left out and counted in `left_out_sd`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, isfinite, nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from qsim.evaluation.calibration import SdCalibration, calibrate_sd
from qsim.evaluation.metrics import slope
from qsim.evaluation.repeatability import concordance
from qsim.evaluation.studies.cohort_reference import (
    MS,
    Against,
    Answer,
    Reference,
    Region,
    any_of,
    error_of,
    map_of,
    population_constant,
    regions,
    same_shape,
    with_sd,
)
from qsim.evaluation.uncertainty import (
    constant_width_crps,
    coverage,
    crps_gaussian,
    half_width,
    mean_crps,
    sparsification,
    spearman,
)

Key = tuple[str, str]
Held = tuple[float, int]

REGIONS: tuple[Region, ...] = ("roi", "body", "lesion", "left", "right", "inside", "outside")
# where voxels are ranked
RANKED: tuple[Region, ...] = ("roi", "body")
_LEVEL = 0.95
# 5 % each, as in huang2022
_STEPS = 20
_GROUPS = 4000


class Judged(NamedTuple):
    """Figures by (region, metric), and the voxels (of `*_subjects`: subjects; of lesions: slices) behind each."""

    values: dict[Key, float]
    n: dict[Key, int]


class Curves(NamedTuple):
    """Mean |error| of what is left when the most uncertain voxels are removed [ms]."""

    fractions: Float[np.ndarray, " f"]
    method: Float[np.ndarray, " f"]
    oracle: Float[np.ndarray, " f"]
    random: Float[np.ndarray, " f"]


def unit(metric: str) -> str:
    """Unit of a figure: ms, voxels or 1."""
    if metric.startswith("left_out"):
        return "voxels"
    return "ms" if metric.startswith(("rmae", "median_error", "bias", "rmse", "p95", "sd_", "width", "crps")) else "1"


def judge(answer: Answer, reference: Reference) -> Judged:
    """All figures of one method; NaN where a figure does not exist in a region, absent where it cannot in any.

    `left` and `right` are the halves of the body at low and high x (the middle column of an odd number is right),
    `inside` and `outside` the ROI and the rest of the body.
    """
    same_shape("estimate", answer.estimate, reference.fit)
    # single voxels from here on: the air around the body is most of an image
    where = any_of(reference.roi, reference.body, reference.lesion)
    masks = {name: mask[where] for name, mask in regions(reference)}
    held: dict[Key, Held] = {}
    stated = {} if (total := answer.total) is None else {"": total}
    stated |= {} if answer.aleatoric is None else {"_aleatoric": answer.aleatoric}
    stated |= {} if answer.epistemic is None else {"_epistemic": answer.epistemic}
    sds = {source: MS * sd[where].astype(np.float64) for source, sd in stated.items()}
    for region, inside in masks.items():
        if answer.limited is not None:
            held[region, "limited_share"] = _mean(answer.limited[where][inside].astype(np.float64))
        for source, sd in sds.items():
            held |= {(region, name): value for name, value in _of_sd(source, sd[inside])}
    for against in reference.against:
        error, used = error_of(answer, reference, against)
        e, known = error[where], used[where]
        crps = crps_gaussian(e, sds[""]) if sds else None
        for region, inside in masks.items():
            here = inside & known
            of_error = e[here]
            found = dict(_of_error(of_error))
            found["left_out"] = float(inside.sum() - here.sum()), int(inside.sum())
            for source, sd in sds.items():
                if source != "_epistemic":
                    law = "_laplace" if source else ""
                    found[f"coverage_95{law}"] = _covered(of_error, _half(source, sd[here]))
            if crps is not None:
                found["crps"] = _mean(crps[here])
                if region in RANKED:
                    found |= dict(_ranked(of_error, sds[""][here]))
            held |= {(region, f"{name}_{against}"): value for name, value in found.items()}
        held |= {("roi", f"{name}_{against}"): value for name, value in _slopes(answer, reference, against)}
    for against in reference.against:
        of_lesions = reference.truth if against == "truth" else reference.noise_free
        if reference.lesion is not None and of_lesions is not None:
            held["lesion", f"lesion_recovery_{against}"] = _recovery(answer.estimate, of_lesions, reference)
    return Judged({key: value for key, (value, _) in held.items()}, {key: n for key, (_, n) in held.items()})


def curves(answer: Answer, reference: Reference, region: Region, against: Against = "truth") -> Curves:
    """Curves of sparsification in steps of 5 % of the voxels, all slices together (huang2022 Fig. 6)."""
    error, sd = with_sd(answer, reference, region, against)
    found = sparsification(error, _order(sd), "mae", _STEPS)
    return Curves(found.fraction, found.curve, found.oracle, found.random)


def _as_many(answers: Sequence[Answer], references: Sequence[Reference]) -> None:
    """Raises: ValueError if there are none, or not as many of both."""
    if len(answers) != len(references) or not answers:
        raise ValueError(f"answers: {len(answers)} for {len(references)} references; give as many, and at least one")


def calibrate(
    answers: Sequence[Answer],
    references: Sequence[Reference],
    level: float = _LEVEL,
    *,
    region: Region = "body",
    against: Against = "truth",
) -> float:
    """The factor of the SD with which the interval of that level covers a new voxel with that probability.

        factor = r_(k) / z,   k = ceil((n + 1) level),   r = |error| / SD in ascending order,   z = 1.96 at 95 %

    It holds for voxels that are exchangeable with these: of subjects who took no part in the training, and of few
    subjects only as far as those are like the others. Voxels without an SD or a reference are left out.
    Source: Lei et al. 2018, doi:10.1080/01621459.2017.1307116, section 2.2 (split conformal), with residuals over a
        scale (section 5.2).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: got {level:g}; give a probability between 0 and 1")
    _as_many(answers, references)
    ratios = []
    for answer, reference in zip(answers, references, strict=True):
        error, sd = with_sd(answer, reference, region, against)
        error, sd = np.abs(error[np.isfinite(sd)]), sd[np.isfinite(sd)]
        # an SD of 0 covers an error of 0 alone
        ratios.append(np.divide(error, sd, out=np.where(error > 0, np.inf, 0.0), where=sd > 0))
    ratio = np.concatenate(ratios)
    k = ceil((ratio.size + 1) * level)
    found = float(np.partition(ratio, k - 1)[k - 1]) if k <= ratio.size else nan
    if not isfinite(found):
        raise ValueError(
            f"answers: no factor covers {level:g} of {ratio.size} voxels with an SD ({int(np.isinf(ratio).sum())} of "
            "them 0); give more voxels, or SD above 0"
        )
    return found / float(half_width(1.0, level))


def calibrate_by_sd(
    answers: Sequence[Answer],
    references: Sequence[Reference],
    level: float = _LEVEL,
    *,
    region: Region = "body",
    against: Against = "truth",
) -> SdCalibration:
    """As `calibrate`, with a factor for each group of voxels of like SD (`qsim.evaluation.calibration`).

    Raises: ValueError if there are too few voxels.
    """
    _as_many(answers, references)
    parts = [with_sd(answer, reference, region, against) for answer, reference in zip(answers, references, strict=True)]
    return calibrate_sd(
        np.concatenate([error for error, _ in parts]) / MS, np.concatenate([sd for _, sd in parts]) / MS, level
    )


def calibrated(answer: Answer, factor: float | SdCalibration) -> Answer:
    """The same answer with every SD times the factor, one for all or that of its total SD."""
    of_voxel: float | Float[np.ndarray, "s y x"]
    if isinstance(factor, SdCalibration):
        if (total := answer.total) is None:
            raise ValueError("answer: it states no uncertainty; give aleatoric or epistemic")
        of_voxel = factor(total)
    else:
        of_voxel = factor
    scaled = (None if sd is None else sd * of_voxel for sd in (answer.aleatoric, answer.epistemic))
    aleatoric, epistemic = scaled
    return replace(answer, aleatoric=aleatoric, epistemic=epistemic)


def improvement(a: float, b: float) -> float:
    """By what share the error `a` is below the error `b`, 1 - a / b; NaN where b is 0 [1]."""
    return 1 - a / b if b else nan


# figures of one region


def _mean(values: Float[np.ndarray, " v"]) -> Held:
    known = values[np.isfinite(values)]
    return (float(known.mean()) if known.size else nan), int(known.size)


def _of_error(error: Float[np.ndarray, " v"]) -> Iterator[tuple[str, Held]]:
    n, size = error.size, np.abs(error)
    # sums of nothing and of a median's own are warnings in numpy
    values = (nan,) * 5
    if n:
        median, p95 = np.percentile(size, (50, 95))
        values = float(size.mean()), float(median), float(error.mean()), float(np.sqrt(np.mean(size**2))), float(p95)
    for name, value in zip(("rmae", "median_error", "bias", "rmse", "p95_error"), values, strict=True):
        yield name, (value, n)


def _half(source: str, sd: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """Half of the 95 % interval: of a Gaussian of the total SD, of a Laplace law (b = SD / sqrt 2) of the aleatoric."""
    return half_width(sd / np.sqrt(2), _LEVEL, "laplace") if source else half_width(sd, _LEVEL)


def _of_sd(source: str, sd: Float[np.ndarray, " v"]) -> Iterator[tuple[str, Held]]:
    known = sd[np.isfinite(sd)]
    yield f"sd_mean{source}", _mean(sd)
    median = float(np.median(known)) if known.size else nan
    yield f"sd_median{source}", (median, known.size)
    if source != "_epistemic":
        law = "_laplace" if source else ""
        yield f"width_median{law}", (2 * float(_half(source, np.array([median]))[0]), known.size)
    if not source:
        yield "left_out_sd", (float(sd.size - known.size), sd.size)


def _covered(error: Float[np.ndarray, " v"], half: Float[np.ndarray, " v"]) -> Held:
    known = np.isfinite(half)
    n = int(known.sum())
    return (float((np.abs(error[known]) <= half[known]).mean()) if n else nan), n


def _order(sd: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """Where none is stated a voxel is as uncertain as can be."""
    return np.where(np.isfinite(sd), sd, np.inf)


def _ranked(error: Float[np.ndarray, " v"], sd: Float[np.ndarray, " v"]) -> Iterator[tuple[str, Held]]:
    """Figures that need the voxels in order."""
    # every figure sorts by the error again, which costs little once it is done; no figure depends on the order given
    first = np.argsort(np.abs(error), kind="stable")
    error, sd = error[first], sd[first]
    order = _order(sd)
    rank = spearman(error, order)
    yield "spearman", (rank.value, rank.n)
    removed = sparsification(error, order, "mae", _STEPS)
    area = removed.ause + removed.aurg
    yield "ause_ratio", (removed.ause / area if area > 0 else nan, removed.n)
    stated = np.isfinite(sd)
    e, s = error[stated], sd[stated]
    # an error of 0 +- SD is that of the estimate
    for i, row in enumerate(coverage(e, s, np.zeros(e.shape), level=_LEVEL)[1:]):
        yield f"coverage_95_tercile_{i + 1}", (row.observed, row.n)
    yield "crps_constant", (_constant_crps(e), e.size)


def _constant_crps(error: Float[np.ndarray, " v"]) -> float:
    """Mean CRPS of the best constant width; the width is sought on means of groups of like |error|.

    Groups are enough, as the CRPS is flat about its smallest value, and nearly linear in an error above the width.
    """
    if error.size <= 10 * _GROUPS:
        return constant_width_crps(error)[0].value
    size = np.sort(np.abs(error))
    # of equal number but for one voxel
    first = np.arange(_GROUPS) * size.size // _GROUPS
    groups = np.add.reduceat(size, first) / np.diff(first, append=size.size)
    return mean_crps(error, constant_width_crps(groups)[1]).value


# subjects, slices and lesions


def _group_means(
    values: Float[np.ndarray, " v"], group: Int[np.ndarray, " v"], n: Int[np.ndarray, " g"]
) -> Float[np.ndarray, " g"]:
    return np.bincount(group, values, len(n)) / np.maximum(n, 1)


def _slopes(answer: Answer, reference: Reference, against: Against) -> Iterator[tuple[str, Held]]:
    """In the ROI."""
    of = map_of(reference, against)
    used = reference.roi & np.isfinite(of) & np.isfinite(answer.estimate)
    y, x = answer.estimate[used].astype(np.float64), of[used].astype(np.float64)
    of_slice = np.nonzero(used)[0]
    subject = np.unique(reference.subject, return_inverse=True)[1][of_slice]
    n = np.bincount(subject)
    means_y, means_x = (_group_means(each, subject, n)[n > 0] for each in (y, x))
    count = len(means_x)
    yield "slope_subjects", (slope(means_y, means_x), count)
    yield "concordance_subjects", (concordance(means_y, means_x).value, count)
    n = np.bincount(of_slice, minlength=len(of))
    # about the mean of all, so that the rounding of a constant map is seen as such
    deviation = x - _group_means(x, of_slice, n)[of_slice] + (x.mean() if x.size else nan)
    yield "slope_within", (slope(y - _group_means(y, of_slice, n)[of_slice], deviation), y.size)


def _recovery(
    estimate: Float[np.ndarray, "s y x"], of: Float[np.ndarray, "s y x"], reference: Reference
) -> tuple[float, int]:
    assert reference.lesion is not None
    known = np.isfinite(estimate) & np.isfinite(of)
    over = under = 0.0
    slices = 0
    for s in range(len(of)):
        lesion, parenchyma = known[s] & reference.lesion[s], known[s] & reference.roi[s] & ~reference.lesion[s]
        if not (lesion.any() and parenchyma.any()):
            continue
        of_estimate, of_reference = (
            float(each[s][lesion].mean(dtype=np.float64) - each[s][parenchyma].mean(dtype=np.float64))
            for each in (estimate, of)
        )
        over += np.sign(of_reference) * of_estimate
        under += abs(of_reference)
        slices += 1
    return (over / under if under > 0 else nan), slices


__all__ = [
    "REGIONS",
    "Answer",
    "Curves",
    "Judged",
    "Reference",
    "calibrate",
    "calibrated",
    "curves",
    "improvement",
    "judge",
    "population_constant",
    "unit",
]
