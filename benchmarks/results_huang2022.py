"""Tables of docs/results/huang2022.md from the studies of configs/huang2022.

    python benchmarks/results_huang2022.py STUDIES [--page PAGE] [--out PAGE]

STUDIES holds a folder for each finished study, named as its config without `study_` (t1rho_small, pair_small; the full
one is shown where both are there). What stands between `<!-- table: STUDY KIND -->` and `<!-- end -->` is replaced by
the table; where the study is missing or unfinished the page is left as it is there, and a line says so.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path

# the project, and the modules beside this one wherever it is run from
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from results_page import command, finished, folders, table

from qsim.errors import InputError
from qsim.evaluation.pages.cohort_published import (
    ABLATION_2022,
    CORRUPTED_2023,
    INPUTS_2022,
    METHODS_2022,
    METHODS_2023,
)
from qsim.evaluation.studies.cohort_results import ALL_IMAGES
from qsim.evaluation.table import Row

PAGE = Path(__file__).parents[1] / "docs" / "results" / "huang2022.md"
NAMES = {"T1RHO": "T1rho", "T2": "T2"}


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        name: of its folder.
        figures: mean over runs and half-width of its interval, by (method, input, condition, region, row, metric).
        methods, inputs: in the order of the table of results.
        runs: of each network.
    """

    name: str
    figures: Mapping[tuple[str, str, str, str, str, str], tuple[float, float]]
    methods: Sequence[str]
    inputs: Sequence[str]
    runs: int

    def of(self, method: str, row: str, metric: str, region: str = "roi", condition: str = "plain") -> list[float]:
        """A figure of each input; of methods that see all images one number."""
        found = [self.figures.get((method, shown, condition, region, row, metric)) for shown in self.inputs]
        if not any(found):
            found = [self.figures.get((method, ALL_IMAGES, condition, region, row, metric))]
        return [nan if each is None else each[0] for each in found]

    def mean(self, method: str, row: str, metric: str, region: str = "roi", condition: str = "plain") -> float:
        """The mean over inputs."""
        values = self.of(method, row, metric, region, condition)
        return sum(values) / len(values)

    def spread(self, method: str, row: str, metric: str) -> float:
        """Half-width of the interval over runs, the largest of the inputs; NaN where no seed changes anything."""
        found = [self.figures.get((method, shown, "plain", "roi", row, metric)) for shown in self.inputs]
        return max((each[1] for each in found if each is not None), default=nan)


def read(folder: Path) -> Study | None:
    """A study, or None where it is missing or unfinished."""
    found = finished(folder)
    if found is None:
        return None
    rows, _ = found
    figures, methods, inputs = {}, dict[str, None](), dict[str, None]()
    for row in rows:
        method, shown, condition = row.estimator.split("; ")
        figures[method, shown, condition, row.tissue, row.parameter, row.metric] = row.value, _half(row)
        if row.metric == "rmae_truth":
            methods.setdefault(method)
            if shown != ALL_IMAGES:
                inputs.setdefault(shown)
    order = sorted(inputs, key=lambda shown: float(shown.split(", ")[1].removesuffix(" ms")))
    return Study(folder.name, figures, list(methods), order, max(row.n for row in rows))


def _half(row: Row) -> float:
    return (row.high - row.low) / 2 if isfinite(row.high) and isfinite(row.low) else nan


def number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if isfinite(value) else ""


def said(study: Study, text: str) -> str:
    return f"`study_{study.name}`, {study.runs} runs of each network. {text}\n\n"


def accuracy(study: Study) -> str:
    """Every method of huang2022: errors, slopes, lesions."""
    row, rows = "T1RHO", []
    for method in sorted(study.methods, key=lambda each: study.mean(each, row, "rmae_truth")):
        errors = study.of(method, row, "rmae_truth")
        single = len(errors) == 1
        spread = study.spread(method, row, "rmae_truth")
        rows.append(
            [
                method,
                *([""] * 3 if single else [number(each) for each in errors]),
                f"**{number(study.mean(method, row, 'rmae_truth'))}**" + (f" +-{spread:.2f}" if spread > 0 else ""),
                number(study.mean(method, row, "rmae_fit")),
                number(study.mean(method, row, "median_error_truth")),
                number(study.mean(method, row, "bias_truth")),
                number(study.mean(method, row, "rmse_truth")),
                number(study.mean(method, row, "slope_subjects_truth")),
                number(study.mean(method, row, "concordance_subjects_truth")),
                number(study.mean(method, row, "slope_within_truth")),
                number(study.mean(method, row, "lesion_recovery_truth", "lesion")),
                number(study.mean(method, row, "lesion_recovery_fit", "lesion")),
                number(study.mean(method, row, "median_error_truth", "body")),
            ]
        )
    inputs = [f"RMAE, {shown}" for shown in study.inputs]
    heads = ["method", *inputs, "RMAE, mean", "RMAE, fit", "median error", "bias", "RMSE", "slope, subjects"]
    heads += ["concordance", "slope within", "lesions", "lesions / noise-free fit", "median error, body"]
    bound = ", ".join(
        f"{shown}: {number(study.figures.get(('bound', shown, 'plain', 'roi', row, 'bound_sd'), (nan, nan))[0])}"
        for shown in (*study.inputs, ALL_IMAGES)
    )
    text = "T1rho in the ROI against the truth (RMAE, fit: against the fit of all images) [ms]; sorted by RMAE; "
    text += "+-: half-width of the 95 % interval over runs, the largest of the inputs."
    return (
        said(study, text) + table(heads, rows) + f"\n\nBound (SD of an unbiased estimate of one voxel) [ms]: {bound}."
    )


def papers(study: Study) -> str:
    """Tables 2, 3 and 4 of huang2022."""
    row, rows = "T1RHO", []
    for method in study.methods:
        printed = [METHODS_2022.column(row).get(method, nan)]
        printed += [INPUTS_2022.column(time).get(method, nan) for time in ("10", "30", "50")]
        printed += [ABLATION_2022.column(row).get(method, nan)]
        if any(isfinite(each) for each in printed):
            errors = study.of(method, row, "rmae_fit")
            cells = [number(study.mean(method, row, "rmae_fit")), *(number(each) for each in errors)]
            rows.append([method, *cells, *(number(each) for each in printed)])
    heads = ["method", "mean", *study.inputs, "paper: table 2", "table 3, 10 ms", "30 ms", "50 ms", "table 4"]
    return said(study, "RMAE of T1rho against the fit of all images, as the paper has it [ms].") + table(heads, rows)


def uncertainty(study: Study) -> str:
    """Whether the uncertainty is honest."""
    rows = []
    parameters = list(dict.fromkeys(key[4] for key in study.figures if key[4] in NAMES))
    for method in study.methods:
        for row in parameters:
            if not isfinite(study.mean(method, row, "spearman_truth", "body")):
                continue
            name = method if len(parameters) == 1 else f"{method}, {NAMES[row]}"
            both = [
                f"{100 * study.mean(method, row, 'coverage_95_truth', region, when):.1f}"
                for when in ("plain", "calibrated")
                for region in ("body", "roi")
            ]
            rows.append(
                [
                    name,
                    number(study.mean(method, row, "spearman_truth", "body")),
                    number(study.mean(method, row, "ause_ratio_truth", "body")),
                    number(study.mean(method, row, "ause_ratio_truth")),
                    f"{both[0]} / {both[1]}",
                    f"{both[2]} / {both[3]}",
                    number(study.mean(method, row, "width_median", "body", "calibrated"), 1),
                    number(study.mean(method, row, "crps_truth", "body", "calibrated")),
                    number(study.mean(method, row, "crps_constant_truth", "body", "calibrated")),
                    *(
                        number(study.mean(method, row, "sd_mean", each), 1)
                        for each in ("left", "right", "inside", "outside")
                    ),
                ]
            )
    heads = ["method", "Spearman, body", "AUSE ratio, body", "ROI", "coverage, body / ROI [%]", "calibrated"]
    heads += [
        "median width, body",
        "CRPS, body",
        "of the best constant width",
        "mean SD, left half",
        "right",
        "in the ROI",
        "outside",
    ]
    return said(study, "Total SD, its 95 % interval, calibrated by the SD stated on validation subjects [ms].") + table(
        heads, rows
    )


def perturbed(study: Study) -> str:
    """More noise, a bright square, a lesion."""
    row, rows = "T1RHO", []
    levels = sorted({float(key[2].split()[1]) for key in study.figures if key[2].startswith("snr ")})
    for method in study.methods:

        def sd(condition: str, region: str, metric: str, method: str = method) -> float:
            found = [
                v
                for k, v in study.figures.items()
                if (k[0], k[2], k[3], k[4], k[5]) == (method, condition, region, row, metric)
            ]
            return found[0][0] if found else nan

        if not isfinite(sd(f"snr {levels[0]:g}" if levels else "", "roi", "sd_mean")):
            continue
        objects = []
        for what in ("square", "lesion"):
            before, after = (sd(each, what, "sd_mean_epistemic") for each in (f"{what} before", what))
            objects += [f"{before:.2f} -> {after:.2f}", f"{after / before:.1f}"]
        rows.append([method, *(number(sd(f"snr {level:g}", "roi", "sd_mean"), 1) for level in levels), *objects])
    heads = ["method", *(f"mean SD in the ROI, SNR {level:g}" for level in levels)]
    heads += ["epistemic SD in the square, before -> after", "ratio", "in the lesion", "ratio"]
    return said(study, "Of the middle input [ms].") + table(heads, rows)


def pair(study: Study) -> str:
    """Table II of huang2023."""
    rows = []
    for method in study.methods:
        if ", T2 " in method or method.startswith("weights"):
            continue
        cells = [method]
        for row in NAMES:
            spread = study.spread(method, row, "rmae_truth")
            cells += [
                f"**{number(study.mean(method, row, 'rmae_truth'))}**" + (f" +-{spread:.2f}" if spread > 0 else ""),
                number(study.mean(method, row, "rmae_fit")),
                number(METHODS_2023.column(row).get(method, nan)),
                number(study.mean(method, row, "slope_subjects_truth")),
                number(study.mean(method, row, "concordance_subjects_truth")),
                number(study.mean(method, row, "lesion_recovery_fit", "lesion")),
            ]
        rows.append(cells)
    heads = ["method"]
    for name in NAMES.values():
        heads += [f"{name} RMAE", "against fit", "paper", "slope", "concordance", "lesions / noise-free fit"]
    return said(study, "ROI, against the truth, mean over the inputs [ms].") + table(heads, rows)


def weights(study: Study) -> str:
    """The figure of manual and learned weights."""
    chosen = [m for m in study.methods if m.startswith("weights")] + ["baseline", "HETEU", "HOMOU"]
    rows = [
        [
            {"baseline": "weights 0.5/0.5 (baseline)"}.get(m, m),
            *(number(study.mean(m, row, "rmae_truth")) for row in NAMES),
        ]
        for m in chosen
    ]
    return said(study, "RMAE in the ROI against the truth, weights of T1rho/T2 [ms].") + table(
        ["method", *NAMES.values()], rows
    )


def disturbed(study: Study) -> str:
    """Table III of huang2023."""
    rows = []
    for what in ("T2 x100", "T2 x10000", "T2 motion"):
        for method in ("baseline", "HETEU", "HOMOU"):
            name = f"{method}, {what}"
            cells = [what, method]
            for row in NAMES:
                before, after = (study.mean(each, row, "rmae_truth") for each in (method, name))
                printed = CORRUPTED_2023[what].column(row).get(method, nan)
                change = 100 * (after / before - 1)
                cells += [number(after), f"{change:+.1f}" if isfinite(change) else "", number(printed)]
            rows.append(cells)
    heads = ["in the loss", "method"]
    for name in NAMES.values():
        heads += [f"{name} RMAE", "change [%]", "paper"]
    return said(study, "ROI, against the truth; change against the same method undisturbed [ms].") + table(heads, rows)


def seconds(study: Study) -> str:
    """Table IV of huang2023."""
    rows = []
    for method in study.methods:
        found = [v[0] for k, v in study.figures.items() if k[0] == method and k[5] == "cpu_seconds_per_slice"]
        if found and ", T2 " not in method and not method.startswith("weights"):
            rows.append([method, f"{1e3 * sum(found) / len(found):.1f}"])
    return said(
        study, "CPU time of one slice on one thread, one pass [ms]; the paper: 17 (network), 88 (pixel-wise fit)."
    ) + table(["method", "ms"], rows)


TABLES: dict[str, Callable[[Study], str]] = {
    "accuracy": accuracy,
    "papers": papers,
    "uncertainty": uncertainty,
    "perturbed": perturbed,
    "pair": pair,
    "weights": weights,
    "disturbed": disturbed,
    "seconds": seconds,
}


def main() -> None:
    command(__doc__, PAGE, TABLES, _of)


def _of(studies: Path, name: str) -> Study | None:
    """The full study where it is finished, else the small one."""
    return next((found for each in folders(studies, name) if (found := read(each)) is not None), None)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"results: {error}")
