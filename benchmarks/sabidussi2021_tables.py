"""The tables of docs/results/sabidussi2021.md: one function for each kind, from a finished study to Markdown.

`agreement` alone is made from maps: those of `qsim map`, of a measured series.
"""

from collections.abc import Callable
from math import isnan, nan
from pathlib import Path

import nibabel
import numpy as np
from results_page import table
from sabidussi2021_study import NOT_METHODS, Study, at_snr, figure, shown

from qsim.errors import InputError
from qsim.evaluation.repeatability import bland_altman, concordance
from qsim.evaluation.study import PAINTERS
from qsim.parameters import RELAXATION_TIMES

REFERENCE = "least-squares"


def noise_rmse(study: Study) -> str:
    """RMSE, bias and CV over all voxels of one tissue each."""
    what = study.parameter
    lines = []
    for who in study.methods:
        cells = []
        for snr in study.snrs:
            rmse, bias, cv = (
                study.value(who, "pure", what, snr, m) for m in ("rmse_median", "relative_bias_median", "cv_median")
            )
            cells.append("-" if isnan(rmse) else f"**{figure(rmse)}** {figure(bias, sign=True)}, {figure(cv)}")
        lines.append([shown(who), *cells])
    for bound in ("free", "shared", "known"):
        cells = [figure(study.value(f"bound-{bound}", "pure", what, snr, "bound_median")) for snr in study.snrs]
        if set(cells) != {"-"}:
            rows = {"free": "every row free", "shared": "one B", "known": "B known"}[bound]
            lines.append([f"*bound, {rows}*", *cells])
    text = f"{what}: **median RMSE** over voxels, median relative bias, median CV, all in percent."
    return text + "\n\n" + table(["SNR (sigma)", *(at_snr(study, snr) for snr in study.snrs)], lines)


def noise_tissues(study: Study) -> str:
    """RMSE and bias in each tissue."""
    what, tissues = study.parameter, study.tissues
    lines = []
    for who in study.methods:
        cells = []
        for snr in study.snrs:
            both = [
                (study.value(who, t, what, snr, "rmse_median"), study.value(who, t, what, snr, "relative_bias_median"))
                for t in tissues
            ]
            cells.append(" / ".join(f"{figure(rmse)} ({figure(bias, sign=True)})" for rmse, bias in both))
        lines.append([shown(who), *cells])
    text = f"{what}: median RMSE (median relative bias) in percent, {' / '.join(tissues)}."
    return text + "\n\n" + table(["SNR (sigma)", *(at_snr(study, snr) for snr in study.snrs)], lines)


def noise_slope(study: Study) -> str:
    """Does the estimate follow the voxel, or does it paint the tissue's mean?"""
    what, tissues = study.parameter, study.tissues
    lines = []
    for who in study.methods:
        cells = [
            " / ".join(f"{study.value(who, t, what, snr, 'slope_within'):.2f}".replace("nan", "-") for t in tissues)
            for snr in study.snrs
        ]
        lines.append([shown(who), *cells])
    text = (
        f"Slope of the estimate of {what} on the truth within {' / '.join(tissues)}; 1 follows every voxel, 0 paints."
    )
    return text + "\n\n" + table(["SNR (sigma)", *(at_snr(study, snr) for snr in study.snrs)], lines)


def noise_ratio(study: Study) -> str:
    """RMSE over that of the fit and of empirical Bayes, in the same images."""
    what = study.parameter
    opponents: list[str] = [o for o in ("shared-b", "rician", "least-squares") if o in study.methods][:1]
    opponents += [o for o in ("empirical-bayes",) if o in study.methods]
    lines = []
    for who in [m for m in study.methods if m not in PAINTERS]:
        cells = []
        for snr in study.snrs:
            own = study.value(who, "pure", what, snr, "rmse_median")
            theirs = [study.value(o, "pure", what, snr, "rmse_median") for o in opponents]
            cells.append(
                " / ".join("-" if not other or isnan(own / other) else f"{own / other:.2f}" for other in theirs)
            )
        lines.append([shown(who), *cells])
    text = f"Median RMSE of {what} over that of {' / '.join(opponents)}; under 1 is better."
    return text + "\n\n" + table(["SNR (sigma)", *(at_snr(study, snr) for snr in study.snrs)], lines)


def noise_others(study: Study) -> str:
    """The rows that are no relaxation time: A, and B of a recovery."""
    rows = [r for r in dict.fromkeys(r.parameter for r in study.rows) if r and r not in RELAXATION_TIMES]
    lines = []
    for who in study.methods:
        cells = []
        for snr in study.snrs:
            parts = []
            for row in rows:
                rmse, bias = (study.value(who, "pure", row, snr, m) for m in ("rmse_median", "relative_bias_median"))
                parts.append("-" if isnan(rmse) else f"{figure(rmse)} ({figure(bias, sign=True)})")
            cells.append(" / ".join(parts))
        lines.append([shown(who), *cells])
    text = f"Median RMSE (median relative bias) of {' / '.join(rows)} in percent."
    return text + "\n\n" + table(["SNR (sigma)", *(at_snr(study, snr) for snr in study.snrs)], lines)


def blurriness(study: Study) -> str:
    """Bias without and with the structure, and the contrast that is left."""
    what, texts = study.parameter, []
    places = [t.removesuffix(", structure") for t in study.tissues if t.endswith(", structure")]
    for snr in study.snrs:
        lines = []
        for who in study.methods:
            cells = []
            for place in places:
                where = f"{place}, structure"
                before, after, kept, rate = (
                    study.value(who, where, what, snr, m)
                    for m in ("relative_bias_E1", "relative_bias_E2", "contrast_recovery", "significant_rate")
                )
                left = "-" if isnan(kept) else f"{100 * kept:.0f}"
                said = f"{figure(before, sign=True)} → {figure(after, sign=True)}, **{left}**"
                cells.append(said if isnan(rate) else f"{said}, {rate:.0f}")
            lines.append([shown(who), *cells])
        texts.append(f"SNR {at_snr(study, snr)}\n\n" + table(["", *places], lines))
    text = (
        f"{what} in the structure: relative bias without it (E1) → with it (E2) [%], **contrast kept** [%], and in how "
        "many of a hundred draws E1 and E2 differ (p < .05)."
    )
    return text + "\n\n" + "\n\n".join(texts)


def phantom(study: Study) -> str:
    """Means over the covered spheres."""
    metrics = ("abs_bias", "bias", "cv", "rmse", "slope")
    lines = []
    for who in study.methods:
        cells = []
        for snr in study.snrs or [nan]:
            bias, signed, cv, rmse, slope = (study.value(who, "covered", study.parameter, snr, m) for m in metrics)
            last = "-" if isnan(slope) else f"{slope:.3f}"
            cells.append(f"**{figure(bias)}** ({figure(signed, sign=True)}), {figure(cv)}, {figure(rmse)}, {last}")
        lines.append([shown(who), *cells])
    text = (
        f"{study.parameter}, means over the covered spheres [%]: **size of the bias** (its signed mean), CV over "
        "scans, RMSE; then the slope of estimate on nominal value."
    )
    return text + "\n\n" + table(["SNR (sigma)", *([at_snr(study, s) for s in study.snrs] or ["the scan"])], lines)


def generalisation(study: Study) -> str:
    """Every method on every protocol."""
    what, texts = study.parameter, []
    names = [n for n in study.methods if " on " in n]
    protocols = list(dict.fromkeys(n.rpartition(" on ")[2] for n in names))
    methods = list(dict.fromkeys(n.rpartition(" on ")[0] for n in names))
    methods = [m for m in methods if m not in (*PAINTERS, *NOT_METHODS)]
    for snr in study.snrs:
        lines = []
        for who in methods:
            cells = []
            for protocol in protocols:
                cv, rmse = (
                    study.value(f"{who} on {protocol}", "pure", what, snr, m) for m in ("cv_median", "rmse_median")
                )
                cells.append("-" if isnan(rmse) else f"**{figure(cv)}**, {figure(rmse)}")
            lines.append([who, *cells])
        texts.append(f"SNR {at_snr(study, snr)}\n\n" + table(["inversion times", *protocols], lines))
    text = f"{what}: **median CV** (the paper's figure), median RMSE [%]; - : takes no other times than its own."
    return text + "\n\n" + "\n\n".join(texts)


def run_time(study: Study) -> str:
    """Seconds beside errors; never divided by those of another machine."""
    lines = []
    for who in study.methods:
        cells = []
        for snr in study.snrs:
            best, error = (
                study.value(who, "", study.parameter, snr, m) for m in ("cpu_seconds_min", "abs_error_median")
            )
            cells.append(f"**{figure(best)}**, {figure(error)}")
        lines.append([shown(who), *cells])
    published = study.config["published"]
    assert isinstance(published, list)
    lines += [[f"*the paper's {each['name']}*", *[f"{each['seconds']:g}"] * len(study.snrs)] for each in published]
    text = f"**CPU-seconds**, best of several, one thread; median size of the error of {study.parameter} [%]."
    return text + "\n\n" + table(["SNR (sigma)", *(at_snr(study, snr) for snr in study.snrs)], lines)


def retest(study: Study) -> str:
    """Repeatability, and what it costs."""
    what, texts = study.parameter, []
    for snr in study.snrs:
        lines = []
        for who in [m for m in study.methods if " / " not in m and " - " not in m]:
            figures = [study.value(who, "all", what, snr, m) for m in ("cv_mean", "within_cv", "bias_median", "rmse")]
            if all(isnan(each) for each in figures):
                continue
            difference = 1e3 * study.value(who, "all", what, snr, "reference_difference")
            agreement = study.value(who, "all", what, snr, "reference_concordance")
            width = next((r.value for r in study.rows if (r.estimator, r.snr, r.metric) == (who, snr, "width_mm")), nan)
            cv, within, bias, rmse = figures
            lines.append(
                [
                    *(shown(who), figure(cv), figure(within), figure(bias, sign=True), figure(rmse)),
                    *(figure(difference, sign=True), "-" if isnan(agreement) else f"{agreement:.3f}"),
                    "-" if isnan(width) else f"{width:.2f}",
                ]
            )
        head = ["", "mean CV [%]", "within-subject CV [%]", "median bias [%]", "RMSE [%]"]
        head += ["difference to the reference [ms]", "concordance with it", "edge width [mm]"]
        texts.append(f"SNR {at_snr(study, snr)}\n\n" + table(head, lines))
    reference = study.config.get("reference")
    return f"{what} of all voxels; reference: {reference}.\n\n" + "\n\n".join(texts)


# of each kind of table: the kind of study that it is of
KINDS: dict[str, tuple[str, Callable[[Study], str]]] = {
    "rmse": ("noise", noise_rmse),
    "tissues": ("noise", noise_tissues),
    "slope": ("noise", noise_slope),
    "ratio": ("noise", noise_ratio),
    "others": ("noise", noise_others),
    "blurriness": ("blurriness", blurriness),
    "phantom": ("phantom", phantom),
    "generalisation": ("generalisation", generalisation),
    "run_time": ("run_time", run_time),
    "retest": ("test_retest", retest),
}


def agreement(folder: Path) -> str | None:
    """Maps of a measured series against the least-squares map of the same series.

    Args:
        folder: one folder of derivatives for each method; None is returned where the reference is missing.
    """
    maps = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    if REFERENCE not in maps:
        return None
    what, reference, fine = _map_of(maps[REFERENCE])
    lines = []
    for who, path in maps.items():
        if who == REFERENCE:
            continue
        _, values, usable = _map_of(path)
        both = fine & usable
        pair = bland_altman(reference[both], values[both])
        relative = 100 * (values[both] / reference[both] - 1)
        lines.append(
            [
                *(who, figure(1e3 * pair.difference.value, sign=True)),
                f"{figure(1e3 * pair.low.value, sign=True)} to {figure(1e3 * pair.high.value, sign=True)}",
                *(figure(float(np.median(relative)), sign=True), figure(float(np.median(np.abs(relative))))),
                *(f"{concordance(reference[both], values[both]).value:.3f}", str(int(both.sum()))),
            ]
        )
    head = [
        "",
        "mean difference [ms]",
        "95 % limits [ms]",
        "median difference [%]",
        "median size of the difference [%]",
    ]
    text = f"{what} against the {REFERENCE} map, voxels where both are inside their range."
    return text + "\n\n" + table([*head, "concordance", "voxels"], lines)


def _map_of(folder: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Name of the relaxation time, its map [s], and where it is an estimate and no limit."""
    found = [p for p in folder.rglob("*_T[12]map.nii.gz") if "_desc-" not in p.name]
    if len(found) != 1:
        raise InputError(f"{folder}: wanted one T1 or T2 map, found {len(found)}; run `qsim map` into an empty folder")
    what = found[0].name[-len("T1map.nii.gz") :][:2]
    status = found[0].with_name(found[0].name.replace(f"_{what}map", f"_desc-status_{what}map"))
    values, states = (nibabel.nifti1.Nifti1Image.from_filename(p).get_fdata() for p in (found[0], status))
    return what, values, (states == 0) & np.isfinite(values)
