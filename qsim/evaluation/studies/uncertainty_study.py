"""Monte Carlo study of the uncertainty that estimators state: are their intervals honest, and do they tell anything?

Every method maps the same noisy images around truths that are known exactly, and states an SD. In pure voxels, over all
noise realisations of one draw at one SNR, its intervals and its SD are judged (`qsim.evaluation.uncertainty`).

Errors, SD and widths are in percent of the true mean of the voxel's tissue in that draw: one number for each tissue, so
that within a tissue no order of voxels is changed, and tissues can be taken together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf, nan

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.special import ndtri
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Estimator, Status
from qsim.estimators.intervals import Interval, choose, log_wald, profile, wald
from qsim.estimators.least_squares import LeastSquares
from qsim.estimators.projection.profile_residual import residual_of
from qsim.evaluation.study import PURE, Case, Design, noisy_images, relative_bounds, told
from qsim.evaluation.uncertainty import (
    calibration_error,
    constant_width_crps,
    coverage,
    mean_crps,
    sparsification,
    spearman,
)
from qsim.kspace.noise import sigma_of
from qsim.signals.base import SignalModel

INTERVALS = ("wald", "log-wald", "profile", "choose")
# of the voxels of a region: all, and terciles of |error|, the smallest first
GROUPS = ("", "tercile 1", "tercile 2", "tercile 3")
TOGETHER = "all tissues"
# of every interval, with "_" and its name
OF_INTERVALS = ("coverage", "width", "width_over_bound", "one_sided_rate", "undefined_rate")
# of the SD; those after the first four for all voxels of a region only
OF_SD = (
    *("crps", "sd_over_bound", "undefined_rate", "at_bound_rate"),
    *("crps_over_constant", "calibration_error", "ence", "spearman", "ause", "aurg"),
)
STEPS, LEVELS, BINS = 50, 19, 10


def metric_names(kinds: Sequence[str]) -> tuple[str, ...]:
    """Columns of `Judged.figures`."""
    return (*(f"{metric}_{kind}" for kind in kinds for metric in OF_INTERVALS), *OF_SD)


@dataclass(frozen=True, slots=True)
class Said:
    """What one method says of the pure voxels of one draw, in all noise realisations.

    Attributes:
        estimate, sd: of the parameter; NaN where the method gives none [SI].
        at_bound: status of the estimate.
        ends: lower and upper end of each kind of interval, NaN where there is none [SI].
        one_sided: where an end of such an interval is that of the parameter's range.
        first: error and SD of the first realisation, NaN outside the pure voxels [SI].
    """

    estimate: Float[np.ndarray, "c v"]
    sd: Float[np.ndarray, "c v"]
    at_bound: Bool[np.ndarray, "c v"]
    ends: Mapping[str, tuple[Float[np.ndarray, "c v"], Float[np.ndarray, "c v"]]]
    one_sided: Mapping[str, Bool[np.ndarray, "c v"]]
    first: Float[np.ndarray, "2 *space"]


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of it, by region: every tissue, and all of them together.

    Attributes:
        figures: by region, group and `metric_names`: rates, coverage, errors and widths in percent, the others 1; NaN
            where a figure does not exist.
        n: voxels times realisations, by region and group.
        sparsification: error of the rest when the most uncertain are removed, and of the oracle, by region and share
            removed; of the whole it is 1.
        observed: share of voxels whose truth lies below the quantiles .05 to .95, by region [1].
        bins: root mean square SD, and RMSE, of bins of ascending SD, by region [%].
        first: error and SD of the first realisation, NaN outside the pure voxels [SI].
    """

    figures: Float[np.ndarray, "r 4 m"]
    n: Int[np.ndarray, "r 4"]
    sparsification: Float[np.ndarray, "r 2 steps"]
    observed: Float[np.ndarray, "r levels"]
    bins: Float[np.ndarray, "r 2 bins"]
    first: Float[np.ndarray, "2 *space"]


JUDGED = tuple(field.name for field in fields(Judged))


def refusal(kind: str, method: Estimator, given: Sequence[str], model: SignalModel, parameter: str) -> str:
    """Why a method cannot have intervals of that kind; empty if it can.

    `wald` and `log-wald` need an SD alone. A profile is that of the likelihood of one voxel's series, so only a method
    that maximises it, and nothing else, can be asked for one.

    Args:
        method: not renamed.
        given: rows that it is told.
    """
    if kind in ("wald", "log-wald"):
        return ""
    if not isinstance(method, LeastSquares):
        return "the estimate is not the maximum of the Gaussian likelihood of one voxel's series"
    other = [row for row in given if row != "B"]
    if other:
        return f"{', '.join(other)} is told, and the profile knows B alone"
    try:
        time = residual_of(model, "B" in given)[1]
    except InputError as error:
        return str(error).removeprefix("intervals: ").removesuffix("; use log_wald")
    return "" if time.name == parameter else f"the profile is that of {time.name}"


def silence(case: Case, method: Estimator, design: Design, snr: float, parameter: str) -> str:
    """Why a method states no SD of the parameter, tried on one realisation; empty if it does."""
    names = [row.name for row in method.parameters]
    if parameter not in names:
        return f"it does not estimate {parameter}"
    images = noisy_images(case.signal, design.noise, snr, design.seed, case.draw, 0)
    known = told(case, design.model, design.told.get(method.name, ()))
    estimate = method(images, sigma=sigma_of(snr), mask=case.mask, known=known)
    if not estimate.variances:
        return "it states no variances"
    stated = _sd(estimate, names.index(parameter))[case.mask.to(estimate.kappa.device)]
    return "" if bool(torch.isfinite(stated).any()) else f"it states no finite variance of {parameter} in any voxel"


def ask(
    case: Case, method: Estimator, kinds: Sequence[str], design: Design, snr: float, parameter: str, level: float
) -> Said:
    """Map `design.repeats` noisy versions of one truth, and keep what the method says.

    Args:
        kinds: of intervals, that the method can have.
        level: nominal coverage.
    """
    sigma, where = sigma_of(snr), _pure(case)
    row = [each.name for each in method.parameters].index(parameter)
    whole = [each.name for each in design.model.parameters].index(parameter)
    known = told(case, design.model, design.told.get(method.name, ()))
    shape = design.repeats, int(where.sum())
    estimates, sds = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    at_bound = np.empty(shape, dtype=bool)
    ends = {kind: (np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)) for kind in kinds}
    one_sided = {kind: np.empty(shape, dtype=bool) for kind in kinds}
    first = np.full((2, *where.shape), nan, dtype=np.float32)
    for repeat in range(design.repeats):
        images = noisy_images(case.signal, design.noise, snr, design.seed, case.draw, repeat)
        # a copy: a method that works in place must not change what the intervals see
        estimate = _on_cpu(method(images.clone(), sigma=sigma, mask=case.mask, known=known))
        estimates[repeat] = estimate.kappa[row][where].float().numpy()
        sds[repeat] = _sd(estimate, row)[where].float().numpy()
        at_bound[repeat] = (estimate.status[where] == int(Status.AT_BOUND)).numpy()
        for kind in kinds:
            found: Interval
            if kind in ("wald", "log-wald"):
                found = (wald if kind == "wald" else log_wald)(estimate, row, level, method.parameters[row])
            else:
                make = choose if kind == "choose" else profile
                found = make(design.model, images, sigma, estimate, row, level, known)
            ends[kind][0][repeat] = found.lower[where].float().numpy()
            ends[kind][1][repeat] = found.upper[where].float().numpy()
            one_sided[kind][repeat] = found.one_sided[where].numpy()
        if repeat == 0:
            first[0, where.numpy()] = estimates[0] - case.kappa[whole][where].numpy()
            first[1, where.numpy()] = sds[0]
    return Said(estimates, sds, at_bound, ends, one_sided, first)


def judge(
    said: Said,
    truth: Float[np.ndarray, " v"],
    bound: Float[np.ndarray, " v"],
    labels: UInt8[np.ndarray, " v"],
    tissues: Sequence[str],
    kinds: Sequence[str],
    level: float,
) -> Judged:
    """Figures and curves of what a method says, by region.

    Args:
        truth: of the pure voxels [SI].
        bound: Cramér-Rao bound of their SD in the problem that the method solves [SI].
        labels: 1 + index in `tissues`.
        kinds: of all methods of the study; those that this one has none of stay NaN.
    """
    count, names = len(tissues) + 1, metric_names(kinds)
    result = Judged(
        np.full((count, len(GROUPS), len(names)), nan),
        np.zeros((count, len(GROUPS)), dtype=np.int64),
        np.full((count, 2, STEPS), nan),
        np.full((count, LEVELS), nan),
        np.full((count, 2, BINS), nan),
        said.first,
    )
    unit = np.empty(truth.shape)
    for k in range(len(tissues)):
        inside = labels == k + 1
        unit[inside] = truth[inside].mean() / 100 if inside.any() else nan
    at = {name: i for i, name in enumerate(names)}
    for r in range(count):
        inside = labels == r + 1 if r < len(tissues) else labels > 0
        if not inside.any():
            continue
        # repeats of a voxel lie behind each other, whatever the number of voxels
        repeats, scale = len(said.estimate), np.tile(unit[inside], len(said.estimate))
        true = np.tile(truth[inside], repeats) / scale
        limit = np.tile(bound[inside], repeats) / scale
        estimate, sd = (each[:, inside].ravel().astype(np.float64) / scale for each in (said.estimate, said.sd))
        groups = _groups(estimate - true)
        result.n[r] = [int(group.sum()) for group in groups.values()]
        for kind, (lower, upper) in said.ends.items():
            low, high = (each[:, inside].ravel().astype(np.float64) / scale for each in (lower, upper))
            of_bound = _over(high - low, 2 * float(ndtri((1 + level) / 2)) * limit)
            open_end = said.one_sided[kind][:, inside].ravel()
            # the terciles that `coverage` adds are those of the voxels with this interval; these are of all
            rows = coverage(estimate, (low, high), true, level=level, tissues=groups)[1 : 1 + len(groups)]
            for g, (found, group) in enumerate(zip(rows, groups.values(), strict=True)):
                result.figures[r, g, at[f"coverage_{kind}"]] = 100 * found.observed
                result.figures[r, g, at[f"width_{kind}"]] = found.median_width
                result.figures[r, g, at[f"width_over_bound_{kind}"]] = _median(of_bound[group])
                result.figures[r, g, at[f"one_sided_rate_{kind}"]] = _rate(open_end[group])
                result.figures[r, g, at[f"undefined_rate_{kind}"]] = _rate(np.isnan(high - low)[group])
        bounded = said.at_bound[:, inside].ravel()
        stated = np.isfinite(estimate) & np.isfinite(sd) & (sd > 0)
        for g, group in enumerate(groups.values()):
            result.figures[r, g, at["crps"]] = mean_crps((estimate - true)[group & stated], sd[group & stated]).value
            result.figures[r, g, at["sd_over_bound"]] = _median(_over(sd, limit)[group & stated])
            result.figures[r, g, at["undefined_rate"]] = _rate(~stated[group])
            result.figures[r, g, at["at_bound_rate"]] = _rate(bounded[group])
        _of_whole(result, r, at, estimate - true, sd, stated)
    return result


def _of_whole(
    result: Judged,
    r: int,
    at: Mapping[str, int],
    error: Float[np.ndarray, " v"],
    sd: Float[np.ndarray, " v"],
    stated: Bool[np.ndarray, " v"],
) -> None:
    """Figures and curves of all voxels of a region; where no SD is stated a voxel is as uncertain as can be."""
    if not stated.any():
        return
    figures = result.figures[r, 0]
    # the opponent is judged in the same voxels: those with an SD
    constant = constant_width_crps(error[stated])[0].value
    figures[at["crps_over_constant"]] = figures[at["crps"]] / constant if constant > 0 else nan
    calibration = calibration_error(error, sd, bins=BINS)
    figures[at["calibration_error"]], figures[at["ence"]] = 100 * calibration.quantile_error, 100 * calibration.ence
    result.observed[r] = calibration.observed
    result.bins[r, :, : len(calibration.sd)] = calibration.sd, calibration.rmse
    order = np.where(stated, sd, inf)
    figures[at["spearman"]] = spearman(error, order).value
    removed = sparsification(error, order, steps=STEPS)
    figures[at["ause"]], figures[at["aurg"]] = removed.ause, removed.aurg
    result.sparsification[r] = _over(np.stack([removed.curve, removed.oracle]), removed.curve[:1])


def pure_bound(case: Case, name: str, design: Design, snr: float, parameter: str) -> Float[np.ndarray, " v"]:
    """Bound of the CV of the parameter in the pure voxels [%].

    Args:
        name: of the bound, in `qsim.evaluation.study.BOUNDS`.
    """
    row = [each.name for each in design.model.parameters].index(parameter)
    return np.asarray(relative_bounds(case, design, snr)[name][row, _pure(case)[case.mask].numpy()], dtype=np.float64)


def pure_truth(case: Case, model: SignalModel, parameter: str) -> Float[np.ndarray, " v"]:
    """True values of the parameter in the pure voxels [SI]."""
    row = [each.name for each in model.parameters].index(parameter)
    return case.kappa[row][_pure(case)].double().numpy()


def pure_labels(case: Case) -> UInt8[np.ndarray, " v"]:
    """Labels of the pure voxels."""
    return case.labels[_pure(case)].numpy()


def _pure(case: Case) -> Bool[Tensor, "*space"]:
    return case.mask & (case.purity >= PURE)


def _sd(estimate: Estimate, row: int) -> Float[Tensor, "*space"]:
    """From the variances of all sources."""
    return torch.stack([rows[row] for rows in estimate.variances.values()]).sum(0).sqrt()


def _on_cpu(estimate: Estimate) -> Estimate:
    """Maps and variances alone, where the truth is."""
    return Estimate(
        estimate.kappa.detach().cpu(),
        estimate.status.cpu(),
        {source: rows.detach().cpu() for source, rows in estimate.variances.items()},
    )


def _groups(error: Float[np.ndarray, " v"]) -> dict[str, Bool[np.ndarray, " v"]]:
    """All voxels, and by rank of |error| a third of those with an estimate each."""
    valid = np.isfinite(error)
    rank = np.full(error.shape, -1)
    rank[valid] = np.argsort(np.argsort(np.abs(error[valid]), kind="stable"), kind="stable") * 3 // max(valid.sum(), 1)
    return {GROUPS[0]: np.ones(error.shape, dtype=bool)} | {GROUPS[1 + i]: rank == i for i in range(3)}


def _over(above: Float[np.ndarray, "*s"], below: Float[np.ndarray, "*t"]) -> Float[np.ndarray, "*s"]:
    """Voxel by voxel, NaN where the bound is 0 (known) or infinite (not identifiable)."""
    fit = np.broadcast_to(np.isfinite(below) & (below > 0), above.shape)
    return np.divide(above, below, out=np.full(above.shape, nan), where=fit)


def _median(values: Float[np.ndarray, " v"]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else nan


def _rate(event: Bool[np.ndarray, " v"]) -> float:
    return 100 * float(event.mean()) if event.size else nan
