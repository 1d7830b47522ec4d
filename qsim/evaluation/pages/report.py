"""One self-contained page about a study: summary first, then the table, the figures and how to read them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from jinja2 import Environment, PackageLoader, StrictUndefined

from qsim.evaluation.pages.content import TITLES, Method, Picture, Report, symbol, title
from qsim.evaluation.pages.figures import (
    box_figure,
    colours,
    css_gradient,
    diverging,
    map_png,
    nice,
    sequential,
    slope_figure,
)
from qsim.evaluation.pages.report_tables import (
    bound_rows,
    key_rows,
    protocol,
    slope_rows,
    status_rows,
    time_rows,
    tissue_rows,
    variation,
)
from qsim.evaluation.pages.summary import (
    BIAS_SHARE,
    BOUND_LIMIT,
    EFFICIENT,
    SLOPE,
    SLOPE_SNR,
    Subject,
    few_repeats,
    headline,
    number,
    verdicts,
)
from qsim.evaluation.table import Table
from qsim.kspace.noise import sigma_of
from qsim.parameters import RELAXATION_TIMES, Parameter

# the page is mailed and opened on telephones
_LARGEST = 3_000_000
_BOUND_NAMES = {"free": "all free", "shared": "shared", "known": "known"}
# tissues of the main figure; the others stand in a fold below it
_COLUMNS = 3


def write_report(path: Path, report: Report) -> None:
    """Write the page whole or not at all; fewer pictures if it would pass 3 MB."""
    for n_pictures in (3, 2, 1, 0):
        page = render(report, n_pictures)
        if len(page.encode()) < _LARGEST:
            break
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def render(report: Report, n_pictures: int = 3) -> str:
    """The page as text, with the maps of at most `n_pictures` SNRs."""
    table = Table(report.rows)
    main = next((p for p in report.estimated if p.name in RELAXATION_TIMES), report.estimated[-1])
    tissues = _by_size(table, report, main.name)
    shown = dict(list(tissues.items())[:_COLUMNS])
    rest = dict(list(tissues.items())[_COLUMNS:])
    names = [method.name for method in report.methods]
    real = tuple(method.name for method in report.methods if method.role != "painter")
    bounds = _bounds(table, report, main.name, tissues)
    references = {method.name: method.bound if method.bound in bounds else "free" for method in report.methods}
    snrs = tuple(sorted(report.snrs))
    about = Subject(
        table=table,
        parameter=main.name,
        symbol=symbol(main),
        tissues=tissues,
        snrs=snrs,
        repeats=report.repeats,
        methods=real,
        networks=tuple(method.name for method in report.methods if method.role == "network"),
        references=references,
        given=report.given,
    )
    others = [p for p in report.estimated if p is not main]
    mixed = table.get("truth", "mixed", main.name, snrs[0], "truth_mean") is not None
    regions = {
        **tissues,
        "pure": TITLES["pure"] if mixed else "All voxels",
        **({"mixed": TITLES["mixed"]} if mixed else {}),
    }
    environment = Environment(
        loader=PackageLoader("qsim.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        r=report,
        main=main,
        symbol=symbol,
        number=number,
        sigma_of=sigma_of,
        snrs=snrs,
        headline=headline(about, report.artefacts),
        verdicts=verdicts(about),
        warnings=_warnings(report),
        key=[key_rows(table, report, t, title, main, references, snrs) for t, title in regions.items()],
        columns=len(shown),
        others_key=[
            (p, [key_rows(table, report, t, title, p, references, snrs) for t, title in tissues.items()])
            for p in others
        ],
        references=references,
        boxes=_boxes(table, report, main, shown, names, snrs, with_status=True),
        more_boxes=[(p, _boxes(table, report, p, shown, names, snrs, with_status=False)) for p in others],
        rest_boxes=_boxes(table, report, main, rest, names, snrs, with_status=True) if rest else "",
        slopes=slope_figure(table, main.name, main.symbol, shown, names, snrs),
        slope_rows=[(title, slope_rows(table, t, main.name, names, snrs)) for t, title in tissues.items()],
        floor_rows=[
            (title, [(m, [number(table.value(m, t, main.name, s, "noise_free_error")) for s in snrs]) for m in real])
            for t, title in regions.items()
        ],
        status_rows=[(title, status_rows(table, t, real, snrs)) for t, title in regions.items()],
        bound_rows=bound_rows(table, tissues, report.estimated, bounds, snrs),
        bound_names=[_BOUND_NAMES[b] for b in bounds],
        times=time_rows(table, real, snrs),
        panels=_panels(report, main, real, n_pictures),
        colours=colours(names),
        tissue_rows=tissue_rows(table, report, tissues, snrs),
        variation=variation(report),
        protocol=protocol(report),
        model_text=" ".join((report.model.__doc__ or "").strip().split("\n\n")[0].split()),
        few_repeats=few_repeats(report.repeats),
        limits={
            "slope": SLOPE,
            "slope_snr": SLOPE_SNR,
            "efficient": EFFICIENT,
            "bias": BIAS_SHARE,
            "bound": BOUND_LIMIT,
        },
    )


def _by_size(table: Table, report: Report, parameter: str) -> dict[str, str]:
    """Titles of the tissues that have pure voxels, the largest first."""
    sizes = {
        t: row.n for t in report.tissues if (row := table.get("truth", t, parameter, report.snrs[0], "truth_mean"))
    }
    return {t: title(t) for t in sorted(sizes, key=lambda t: -sizes[t]) if sizes[t]}


def _bounds(table: Table, report: Report, parameter: str, tissues: Mapping[str, str]) -> list[str]:
    return [
        name
        for name in _BOUND_NAMES
        if any(table.get(f"bound-{name}", t, parameter, report.snrs[0], "bound_median") for t in tissues)
    ]


def _boxes(
    table: Table,
    report: Report,
    parameter: Parameter,
    tissues: Mapping[str, str],
    names: Sequence[str],
    snrs: Sequence[float],
    *,
    with_status: bool,
) -> str:
    real = [m.name for m in report.methods if m.role != "painter"]
    some = any(table.value(m, t, "", s, "at_bound_rate") > 0 for m in real for t in tissues for s in snrs)
    return box_figure(table, parameter.name, parameter.symbol, tissues, names, snrs, with_status=with_status and some)


@dataclass(frozen=True, slots=True)
class _Panel:
    """Maps of one SNR."""

    snr: float
    truth: str
    maps: list[tuple[str, str, str, str]]
    gradient: str
    error_gradient: str
    low: str
    high: str
    error: str
    unit: str
    width: int
    height: int


def _panels(report: Report, parameter: Parameter, names: Sequence[str], n_pictures: int) -> list[_Panel]:
    """Truth, estimate and error of the first draw at the lowest, a middle and the highest SNR."""
    pictures = sorted(report.pictures, key=lambda picture: picture.snr)
    if len(pictures) > n_pictures:
        chosen = np.linspace(0, len(pictures) - 1, n_pictures) if n_pictures > 1 else np.zeros(n_pictures)
        pictures = [pictures[int(np.floor(i))] for i in chosen]
    q = report.parameters.index(parameter)
    factor, unit = (1000.0, "ms") if parameter.unit == "s" else (1.0, "" if parameter.unit == "1" else parameter.unit)
    panels = []
    for picture in pictures:
        truth, mask = _slice(picture.truth[q]) * factor, _slice(picture.mask)
        box = _box(mask)
        truth, mask = truth[box], mask[box]
        maps = {
            name: _slice(picture.estimates[name][q])[box] * factor for name in names if picture.estimates[name].size
        }
        maps = {name: values for name, values in maps.items() if np.isfinite(values).any()}
        # a tissue of much longer times (T2 of CSF) may saturate, so that the others are not all black
        upper, top = np.percentile(truth[mask], (75, 99))
        high = nice(min(1.02 * float(top), 3 * float(upper)))
        typical = [np.nanpercentile(np.abs(values - truth)[mask], 90) for values in maps.values()]
        error = nice(float(np.median(typical))) if typical else 1.0
        palette, signed = sequential(parameter.name), diverging()
        panels.append(
            _Panel(
                snr=picture.snr,
                truth=map_png(truth, mask, 0.0, high, palette),
                maps=[
                    (
                        name,
                        map_png(values, mask, 0.0, high, palette),
                        map_png(values - truth, mask, -error, error, signed),
                        number(100 * float(np.nanmedian(np.abs((values - truth)[mask] / truth[mask])))),
                    )
                    for name, values in maps.items()
                ],
                gradient=css_gradient(palette),
                error_gradient=css_gradient(signed),
                low="0",
                high=f"{high:g}",
                error=f"{error:g}",
                unit=unit,
                width=truth.shape[1],
                height=truth.shape[0],
            )
        )
    return panels


def _slice(values: np.ndarray) -> np.ndarray:
    """The map itself, or the middle slice of a block."""
    return values if values.ndim == 2 else values[values.shape[0] // 2]


def _box(mask: Bool[np.ndarray, "y x"]) -> tuple[slice, slice]:
    """Bounding box of the mask and one voxel around it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return slice(None), slice(None)
    return slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)


def _warnings(report: Report) -> list[str]:
    """What limits the study, said before its numbers."""
    found = []
    if report.split != "test":
        found.append("This study ran on the anatomy that networks were trained on (allow_training_anatomy: true).")
    elif report.seen:
        found.append(f"{', '.join(report.seen)} may have been trained on this anatomy (allow_training_anatomy: true).")
    if report.draws < 6:
        found.append(
            f"{report.draws} draw{'s' if report.draws > 1 else ''} of tissue values instead of at least 6: intervals "
            "over draws are wide or missing."
        )
    if report.repeats < 50:
        found.append(
            f"{report.repeats} noise realisations: the CV and RMSE of a single voxel carry a relative error of about "
            f"{100 / np.sqrt(2 * (report.repeats - 1)):.0f} %, which widens the boxes; medians hardly move."
        )
    return found


__all__ = ["Method", "Picture", "Report", "render", "write_report"]
