"""`qsim study` of kind `uncertainty`: its config, and how it is run."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import Field, model_validator

from qsim.errors import InputError
from qsim.estimators.base import Estimator
from qsim.evaluation.blocks import Arrays
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Page
from qsim.evaluation.pages.summary import few_repeats_warning
from qsim.evaluation.pages.uncertainty_curves import some
from qsim.evaluation.pages.uncertainty_page import lead, sections
from qsim.evaluation.studies.uncertainty_study import (
    INTERVALS,
    JUDGED,
    Judged,
    ask,
    judge,
    pure_bound,
    pure_labels,
    pure_truth,
    refusal,
    silence,
)
from qsim.evaluation.studies.uncertainty_table import Uncertainty, rows
from qsim.evaluation.study import Design
from qsim.parameters import RELAXATION_TIMES
from trainers.studies.block_runner import Command, finish
from trainers.studies.methods import Renamed, check_entries
from trainers.studies.outputs import say
from trainers.studies.study_files import open_files, stating_intervals, write_files
from trainers.studies.study_plan import AnatomyStudy, Plan, make_plan, tissue_prior


class UncertaintyConfig(AnatomyStudy):
    """A study of the uncertainty that methods state: coverage, width, calibration, and whether it finds the errors.

    A method that has the option `covariance` is given it.

    Attributes:
        level: nominal coverage of the intervals.
        intervals: kinds to judge; `profile` and `choose` of least-squares only, where its model has them.
        parameter: the relaxation time; the model's first if not given.
    """

    kind: Literal["uncertainty"]
    repeats: Annotated[int, Field(strict=True, ge=2)] = 20
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    intervals: tuple[str, ...] = ("wald", "log-wald", "choose")
    parameter: str | None = None

    @model_validator(mode="after")
    def _can_be_judged(self) -> "UncertaintyConfig":
        for i, kind in enumerate(self.intervals):
            if kind not in INTERVALS:
                raise ValueError(f"intervals[{i}]: got {kind!r}, wanted one of {', '.join(INTERVALS)}")
            if kind in self.intervals[:i]:
                raise ValueError(f"intervals[{i}]: {kind} is given twice")
        if not self.intervals:
            raise ValueError(f"intervals: empty; give at least one of {', '.join(INTERVALS)}")
        times = [p.name for p in self.data.signal_model.parameters if p.name in RELAXATION_TIMES]
        if self.parameter is not None and self.parameter not in times:
            raise ValueError(
                f"parameter: got {self.parameter}, wanted a relaxation time of the model: {', '.join(times)}"
            )
        stating = self.stating
        check_entries(stating.estimators, self.data.signal_model, tissue_prior(self.data, stating.estimators))
        return self

    @property
    def judged(self) -> str:
        """The relaxation time whose uncertainty is judged."""
        times = (p.name for p in self.data.signal_model.parameters if p.name in RELAXATION_TIMES)
        return self.parameter or next(times)

    @property
    def stating(self) -> "UncertaintyConfig":
        """The same study, its methods asked for their covariance."""
        return self.model_copy(update={"estimators": tuple(stating_intervals(entry) for entry in self.estimators)})


def run_uncertainty(config: UncertaintyConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Run the study, or finish one of the same config; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, report.html, provenance.json and the blocks.
        command: where it runs, and the user's own methods.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    plan = make_plan(config.stating, command)
    # before anything is written: somebody must state something
    kinds, refusals, silent = _asked(plan, config)
    digest = open_files(config, plan.methods, out)
    began = time.monotonic()
    compute = partial(_compute, plan=plan, config=config, kinds=kinds)
    found = finish(out / "blocks", digest, list(plan.blocks), compute, "blocks (draw x SNR)", command)
    judged: dict[float, list[Mapping[str, Judged]]] = {snr: [] for snr in config.snr}
    bounds: dict[float, list[Mapping[str, Float[np.ndarray, " r"]]]] = {snr: [] for snr in config.snr}
    for (_, snr), arrays in zip(plan.blocks.values(), found, strict=True):
        judged[snr].append({name: Judged(*(arrays[f"{name}/{field}"] for field in JUDGED)) for name in kinds})
        bounds[snr].append({name: arrays[f"bound/{plan.bound_of[name]}"] for name in kinds})
    result = Uncertainty(
        parameter=config.judged,
        level=config.level,
        kinds=config.intervals,
        methods=list(kinds),
        silent=silent,
        refusals=refusals,
        tissues=plan.cases[0].tissues,
        snrs=config.snr,
        repeats=config.repeats,
        judged=judged,
        bounds=bounds,
        bound_of=plan.bound_of,
    )
    flat = plan.cases[0].labels.ndim == 2
    views = {snr: {name: judged[snr][0][name].first for name in kinds} for snr in some(config.snr)} if flat else {}
    page = Page(
        title=f"Uncertainty of {plain(config.judged)}",
        meta=f"{plan.anatomy} · draws: {config.draws} × {config.repeats} noise realisations at SNR "
        f"{', '.join(f'{snr:g}' for snr in config.snr)} · "
        f"seed {config.seed}",
        lead=lead(result),
        sections=sections(result, views),
        methods=_methods(config, plan, result),
        versions={},
        files="results.csv (every figure, each draw) beside this page",
        config="",
        digest=digest,
        warnings=_warnings(config, plan),
    )
    path = write_files(config, plan.methods, out, rows(result), None, page)
    say(f"study: {len(found)} blocks in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _design(plan: Plan, config: UncertaintyConfig) -> Design:
    return Design(
        model=config.data.signal_model,
        noise=config.data.noise_model,
        seed=config.seed,
        repeats=config.repeats,
        shared=plan.shared,
        nuisance=plan.nuisance,
        told=plan.told,
    )


def _inner(method: Estimator) -> Estimator:
    return method.estimator if isinstance(method, Renamed) else method


def _asked(
    plan: Plan, config: UncertaintyConfig
) -> tuple[dict[str, tuple[str, ...]], dict[tuple[str, str], str], dict[str, str]]:
    """Kinds of interval of each method that states an SD; why a method has none of a kind; why others state none.

    Raises: InputError if none states any, or no method has an interval of any kind.
    """
    design = _design(plan, config)
    kinds: dict[str, tuple[str, ...]] = {}
    silent: dict[str, str] = {}
    refusals: dict[tuple[str, str], str] = {}
    for method in plan.estimators:
        # where the noise is lowest: an SD may be infinite at low SNR
        why = silence(plan.cases[0], method, design, max(config.snr), config.judged)
        if why:
            silent[method.name] = why
            continue
        for kind in config.intervals:
            said = refusal(kind, _inner(method), plan.told[method.name], design.model, config.judged)
            if said:
                refusals[method.name, kind] = said
        kinds[method.name] = tuple(kind for kind in config.intervals if (method.name, kind) not in refusals)
    if not kinds:
        said = "; ".join(f"{name}: {why}" for name, why in silent.items())
        raise InputError(f"estimators: none states an uncertainty of {config.judged} ({said})")
    if not any(kinds.values()):
        said = "; ".join(f"{name}, {kind}: {why}" for (name, kind), why in refusals.items())
        raise InputError(f"intervals: no method has one of {', '.join(config.intervals)} ({said}); add wald")
    return kinds, refusals, silent


def _compute(key: str, plan: Plan, config: UncertaintyConfig, kinds: Mapping[str, tuple[str, ...]]) -> Arrays:
    """The block of that name, wherever this runs."""
    draw, snr = plan.blocks[key]
    case, design, parameter = plan.cases[draw], _design(plan, config), config.judged
    truth, labels = pure_truth(case, design.model, parameter), pure_labels(case)
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
    cv = {}
    for bound in sorted({plan.bound_of[name] for name in kinds}):
        cv[bound] = pure_bound(case, bound, design, snr, parameter)
        tissues = [labels == k + 1 for k in range(len(case.tissues))]
        medians = [np.median(cv[bound][inside]) if inside.any() else np.nan for inside in (*tissues, labels > 0)]
        arrays[f"bound/{bound}"] = np.array(medians)
    for method in plan.estimators:
        if method.name not in kinds:
            continue
        said = ask(case, method, kinds[method.name], design, snr, parameter, config.level)
        limit = cv[plan.bound_of[method.name]] / 100 * truth
        judged = judge(said, truth, limit, labels, case.tissues, config.intervals, config.level)
        for field in JUDGED:
            # maps are shown of the first draw only
            values = getattr(judged, field)
            arrays[f"{method.name}/{field}"] = np.empty((2, 0, 0)) if field == "first" and draw else values
    return arrays


def _methods(config: UncertaintyConfig, plan: Plan, found: Uncertainty) -> list[tuple[str, str]]:
    told = {name: given for name, given in plan.told.items() if given and name in found.methods}
    level = f"{100 * config.level:g} %"
    words = {"free": "every row free", "shared": "what is one number per image shared", "known": "that row known"}
    bounds = "; ".join(f"{name}: {words[found.bound_of[name]]}" for name in found.methods)
    return [
        (
            "voxels",
            "those of at least 90 % one tissue. Errors, SD and widths in % of that tissue's true mean in the draw.",
        ),
        (
            "wald",
            f"estimate ± z SD, {level}; ends beyond the range of {plain(config.judged)} are put on it: one-sided.",
        ),
        ("log-wald", "estimate × exp(± z SD / estimate)."),
        (
            "profile, choose",
            f"profile: all {plain(config.judged)} whose best fit has (RSS − min RSS) / σ² within the quantile of "
            "chi-square with 1 degree of freedom, σ given (Venzon and Moolgavkar 1988, doi:10.2307/2347496); choose: "
            "log-wald where the SD is under 5 % of the estimate and no image of a magnitude recovery is near its zero, "
            "else profile. Both take the noise for Gaussian.",
        ),
        (
            "coverage",
            "share of the intervals that hold the truth, of all voxels that have one; of one draw with Wilson's "
            "binomial interval, as if voxels were independent (they are not where a method pools them), of all draws "
            "with the t-interval of their mean. By tercile of |error|, those of an ideal Gaussian SD hold 100, 100 and "
            "85 % at a level of 95 %.",
        ),
        ("width / bound's", "median of width / (2 z × Cramér-Rao bound of the SD in that voxel). " + bounds + "."),
        (
            "CRPS",
            "of a Gaussian of that SD (Gneiting et al. 2005, doi:10.1175/MWR2904.1); constant: the one SD that is best "
            "for these voxels, found with the errors known. Above 1, one constant SD would have served better.",
        ),
        (
            "quantile error, ENCE",
            "mean |share of truths below the quantile − its level| of the quantiles .05 to .95 (Kuleshov et al. 2018, "
            "arXiv:1807.00263); mean |SD − RMSE| / SD over ten bins of ascending SD (Levi et al. 2022, "
            "doi:10.3390/s22155540).",
        ),
        ("Spearman", "rank correlation of SD and |error|."),
        (
            "AUSE, AURG",
            "area between the sparsification curve and its oracle (Ilg et al. 2018, doi:10.1007/978-3-030-01234-2_40), "
            "and between random order and the curve (Poggi et al. 2020, doi:10.1109/CVPR42600.2020.00329); RMSE of "
            "all = 1.",
        ),
        (
            "no finite SD",
            "share of voxels × realisations with no estimate, or an SD that is not finite and positive. They are left "
            "out of CRPS (and of the constant width), quantiles and ENCE, and rank as the most uncertain. An "
            "infinite SD has an interval as wide as the range, and counts in coverage and width.",
        ),
        ("SNR", "0.65 / σ. Every method is given σ."),
        *([("told", "; ".join(f"{name}: {', '.join(given)}" for name, given in told.items()))] if told else []),
    ]


def _warnings(config: UncertaintyConfig, plan: Plan) -> list[str]:
    said = []
    if plan.seen:
        said.append(f"The training of {', '.join(plan.seen)} may have held this anatomy: its figures are flattered.")
    if config.data.noise_model.kind not in ("gaussian", "signed"):
        said.append(
            f"The noise is {config.data.noise_model.kind}; so is the bound, but profiles and the SD of least "
            "squares are those of Gaussian noise, and a bias that the noise floor makes is not in them."
        )
    shared = (
        "Coverage counts all voxels, but those of an image share the error of what a method pools, which is drawn once "
        "in each realisation."
    )
    return said + few_repeats_warning(config.repeats, shared)
