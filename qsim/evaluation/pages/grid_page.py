"""The page of a `grid` study: bias, CV and RMSE over the grid beside the bounds, intervals, methods."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from qsim.evaluation.pages.content import plain, symbol
from qsim.evaluation.pages.grid_figures import MOST_SHOWN, chosen, figure
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Page, Points, Section, Text
from qsim.evaluation.pages.summary import BIAS_SHARE, BOUND_LIMIT, EFFICIENT, number
from qsim.evaluation.studies.grid import Z95, Contender, GridStudy, Truth
from qsim.kspace.noise import sigma_of
from qsim.parameters import PARAMETERS

# intervals are judged where the bound is under this [%]; they should then cover 93 to 97 %, at most this wide
COVERED, WIDEST, _INTERVALS_BELOW = (93.0, 97.0), 1.5, 10.0

# repeats under which a pooled row is not known well
_FEW = 50


def page(study: GridStudy) -> Page:
    """The page, without config, versions and digest."""
    truth, model = study.truth, study.truth.model
    shown = chosen(study.ascending)
    rest = [snr for snr in study.ascending if snr not in shown]
    sections = [
        Section("In one table", [Text(_CAPTION, soft=True), _table(study)]),
        Section("Method by method", [Points([_verdict(study, each) for each in study.contenders])]),
        Section("Bias, CV and RMSE over the grid", [figure(study, shown), Text(_FIGURE_CAPTION, soft=True)]),
    ]
    if rest:
        sections.append(Section("The same at the other SNRs", [figure(study, rest)], folded=True))
    if any(np.isfinite(study.of(each, snr, "coverage")).any() for each in study.contenders for snr in study.snrs):
        sections.append(Section("95 % intervals", _intervals(study)))
    sections.append(Section("Every point", _points(study), folded=True))
    kind = getattr(model, "kind", type(model).__name__)
    return Page(
        title=f"Bias, CV and RMSE over a grid of {plain(study.parameter)}",
        meta=f"{kind}, {model.n_images} images · {getattr(truth.noise, 'kind', 'own')} noise · {len(study.points)} "
        f"points × {truth.voxels} voxels × {truth.repeats} repeats at {len(study.snrs)} SNRs · seed {truth.seed}",
        lead=[_lead(study)],
        sections=sections,
        methods=_methods(study),
        versions={},
        files="results.csv (every figure with its interval) and grid.csv (one line for each method, SNR and point)",
        config="",
        digest="",
        warnings=precision(study.truth, study.contenders),
    )


_CAPTION = (
    "Large: median over the points of the RMSE [%]. Below: median over the points of the median bias · CV [%] · RMSE / "
    "bound, of the bound named beside the method; and the median size of the error, which a few lost voxels do not "
    "move. Green: smallest RMSE at that SNR."
)
_FIGURE_CAPTION = (
    "Bias: median over voxels and repeats; the grey band is ±5 %. A triangle at the edge: the point lies beyond the "
    "axis. Black: Cramér-Rao bound of an unbiased method under the noise that was added. A method under its bound is "
    "biased, or held by the ends of its range, or knows more. "
    f"Axes of errors end at {MOST_SHOWN:g} %."
)


def _lead(study: GridStudy) -> Markup:
    parts = []
    for snr in chosen(study.ascending):
        errors = {each.name: _typical(study.of(each, snr, "rmse")) for each in study.contenders}
        known = {name: error for name, error in errors.items() if np.isfinite(error)}
        if not known:
            continue
        best = min(known, key=lambda name: known[name])
        parts.append(Markup("<b>{}</b> {} % at SNR {:g}").format(best, number(known[best]), snr))
    text = Markup("{} RMSE of {}, median over the grid: {}.").format(
        "Smallest" if len(study.contenders) > 1 else "The",
        symbol(PARAMETERS[study.parameter]),
        Markup("; ").join(parts),
    )
    free = {snr: study.bounds["free", snr] for snr in study.ascending}
    told = [snr for snr, bound in free.items() if (bound < BOUND_LIMIT).any()]
    if not told:
        return text + Markup(
            " With every row free in every voxel the protocol does not give it to within {:g} % at any point or SNR of "
            "this study."
        ).format(BOUND_LIMIT)
    low = told[0]
    inside = study.points[free[low] < BOUND_LIMIT]
    return text + Markup(
        " With every row free in every voxel, the bound is under {:g} % from SNR {:g} on: there at {} of {} points, {} "
        "to {} ms."
    ).format(BOUND_LIMIT, low, len(inside), len(study.points), _ms(inside[0]), _ms(inside[-1]))


def _typical(values: Float[np.ndarray, " p"]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _table(study: GridStudy) -> Grid:
    rows: list[list[str | Markup]] = []
    best: list[tuple[int, int]] = []
    typical = [[_typical(study.of(each, snr, "rmse")) for snr in study.ascending] for each in study.contenders]
    for i, each in enumerate(study.contenders):
        cells: list[str | Markup] = [Markup("{}<br><small>bound: {}</small>").format(each.name, each.bound)]
        for s, snr in enumerate(study.ascending):
            column = [line[s] for line in typical if np.isfinite(line[s])]
            if column and typical[i][s] == min(column):
                best.append((i, s + 1))
            bound = study.own_bound(each, snr)
            ratio = _ratio(study.of(each, snr, "rmse"), bound)
            cell = Markup("{}<small>{} · {} · ×{}</small><small>|error| {}</small>").format(
                number(typical[i][s]),
                number(_typical(study.of(each, snr, "relative_bias_median"))),
                number(_typical(study.of(each, snr, "cv"))),
                number(_typical(ratio)),
                number(_typical(study.of(each, snr, "abs_error_median"))),
            )
            cells.append(cell + _rates(study, each, snr))
        rows.append(cells)
    for name in study.bound_names:
        bounds = [number(_typical(study.bounds[name, snr])) for snr in study.ascending]
        rows.append([Markup("<i>bound: {}</i>").format(name), *bounds])
    return Grid(["method", *snr_heads(study.ascending)], rows, best=best)


def snr_heads(snrs: Sequence[float]) -> list[Markup]:
    """Heads of the columns of SNRs, with their sigma."""
    return [Markup("SNR {:g}<small>σ {:.3g}</small>").format(snr, sigma_of(snr)) for snr in snrs]


def _rates(study: GridStudy, each: Contender, snr: float) -> Markup:
    said = Markup()
    for metric, text in (("at_bound_rate", "at bound"), ("failure_rate", "failed")):
        rate = float(study.of(each, snr, metric).mean())
        if rate >= 0.5:
            said += Markup("<small>{} % {}</small>").format(number(rate), text)
    return said


def _ratio(above: Float[np.ndarray, " p"], below: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    fit = np.isfinite(below) & (below > 0)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=fit)


def _verdict(study: GridStudy, each: Contender) -> Markup:
    """Efficiency, bias and intervals of one method, where its bound is small; and where it fails."""
    ratios, shares, coverage, widths = [], [], [], []
    for snr in study.snrs:
        bound = study.own_bound(each, snr)
        small = bound < BOUND_LIMIT
        ratios += _ratio(study.of(each, snr, "rmse"), bound)[small].tolist()
        shares += np.abs(_ratio(study.of(each, snr, "relative_bias_median"), bound))[small].tolist()
        narrow = (bound < _INTERVALS_BELOW) & np.isfinite(study.of(each, snr, "coverage"))
        coverage += study.of(each, snr, "coverage")[narrow].tolist()
        widths += _ratio(study.of(each, snr, "interval_width"), 2 * Z95 * bound)[narrow].tolist()
    text = Markup("<b>{}</b>, against the bound “{}”: ").format(each.name, each.bound)
    inside = [k for k, ratio in enumerate(ratios) if np.isfinite(ratio)]
    if not inside:
        none = "it gives no estimate where the bound" if ratios else "at no point and SNR the bound"
        text += Markup("{} is under {:g} %.").format(none, BOUND_LIMIT)
    else:
        found = np.array(ratios)[inside]
        good = np.mean((found >= EFFICIENT[0]) & (found <= EFFICIENT[1]))
        share = np.array(shares)[inside]
        text += Markup(
            "RMSE / bound {} to {} (median {}) where the bound is under {:g} %, {} % of {} points and SNRs within {:g} "
            "to {:g}; |median bias| under {:g} bound at {} % of them, at most {} bound."
        ).format(
            number(found.min()),
            number(found.max()),
            number(float(np.median(found))),
            BOUND_LIMIT,
            number(100 * float(good)),
            len(found),
            *EFFICIENT,
            BIAS_SHARE,
            number(100 * float(np.mean(share < BIAS_SHARE))),
            number(share.max()),
        )
    if coverage:
        covered = np.array(coverage)
        text += Markup(
            " Its 95 % intervals cover the truth in {} to {} % (median {}) where the bound is under {:g} %, at {} to "
            "{} times the width of the bound's."
        ).format(
            number(covered.min(), 3),
            number(covered.max(), 3),
            number(float(np.median(covered)), 3),
            _INTERVALS_BELOW,
            number(min(widths)),
            number(max(widths)),
        )
    return text + _worst(study, each, "failure_rate", "fails") + _worst(study, each, "at_bound_rate", "ends at a bound")


def _worst(study: GridStudy, each: Contender, metric: str, verb: str) -> Markup:
    rate, snr, point = max(
        (float(rate), snr, float(point))
        for snr in study.snrs
        for rate, point in zip(study.of(each, snr, metric), study.points, strict=True)
    )
    if rate < 1:
        return Markup()
    return Markup(" It {} most often at {} ms and SNR {:g}: {} %.").format(verb, _ms(point), snr, number(rate))


def _intervals(study: GridStudy) -> list[Block]:
    rows: list[list[str | Markup]] = []
    for each in study.contenders:
        if not any(np.isfinite(study.of(each, snr, "coverage")).any() for snr in study.snrs):
            continue
        cells: list[str | Markup] = [each.name]
        for snr in study.ascending:
            bound, covered = study.own_bound(each, snr), study.of(each, snr, "coverage")
            width = _ratio(study.of(each, snr, "interval_width"), 2 * Z95 * bound)
            narrow = (bound < _INTERVALS_BELOW) & np.isfinite(covered)
            cell = Markup()
            for where, text in ((narrow, "narrow"), (~narrow & np.isfinite(covered), "wide")):
                if where.any():
                    cell += Markup("{}{}, ×{}{}").format(
                        Markup("<small>") if text == "wide" else Markup(),
                        f"{number(float(covered[where].min()), 3)} to {number(float(covered[where].max()), 3)} %",
                        number(_typical(width[where])),
                        Markup("</small>") if text == "wide" else Markup(),
                    )
            cells.append(cell or Markup("–"))
        rows.append(cells)
    caption = (
        f"Share of voxels whose interval holds the truth, over the points (asked for: {COVERED[0]:g} to {COVERED[1]:g} "
        f"%), and the median width over that of the bound (at most {WIDEST:g}). Large: points whose bound is under "
        f"{_INTERVALS_BELOW:g} %; small: the others. Interval: estimate × exp(∓1.96 SD / estimate), SD as the method "
        "states it."
    )
    return [Text(caption, soft=True), Grid(["method", *snr_heads(study.ascending)], rows)]


def _points(study: GridStudy) -> list[Block]:
    blocks: list[Block] = [Text("Bias (median) · CV · RMSE [%].", soft=True)]
    for snr in study.ascending:
        rows: list[list[str | Markup]] = []
        for i, point in enumerate(study.points):
            cells: list[str | Markup] = [_ms(point)]
            for each in study.contenders:
                values = [study.of(each, snr, metric)[i] for metric in ("relative_bias_median", "cv", "rmse")]
                cells.append(" · ".join(number(float(v)) for v in values))
            cells += [number(float(study.bounds[name, snr][i])) for name in study.bound_names]
            rows.append(cells)
        heads = [f"{plain(study.parameter)} [ms]", *(each.name for each in study.contenders)]
        heads += [f"bound: {name}" for name in study.bound_names]
        blocks += [Heading(f"SNR {snr:g}"), Grid(heads, rows)]
    return blocks


def precision(truth: Truth, contenders: Sequence[Contender]) -> list[str]:
    """How well the figures are known, where they rest on few independent trials.

    A method that pools a row has one error of it per image, the same in all its voxels: only the repeats are
    independent.
    """
    said = []
    trials, repeats = truth.voxels * truth.repeats, truth.repeats
    if trials < 1000:
        said.append(
            f"{trials} voxels and repeats at each point: CV and RMSE carry a relative error of about "
            f"{100 / np.sqrt(2 * (trials - 1)):.0f} %, biases one of {100 / np.sqrt(trials):.0f} % of the CV."
        )
    pooling = dict.fromkeys(each.name for each in contenders if each.pools)
    if pooling and repeats < _FEW:
        rows = dict.fromkeys(plain(row) for each in contenders for row in each.pools)
        said.append(
            f"{', '.join(pooling)}: the voxels of an image share the error of the pooled {', '.join(rows)}, so only "
            f"the {repeats} repeats are independent: where that error is most of the CV, CV and RMSE carry a relative "
            f"error of about {100 / np.sqrt(2 * (repeats - 1)):.0f} %, biases one of {100 / np.sqrt(repeats):.0f} % of "
            "the CV, however many voxels there are."
        )
    return said


def _methods(study: GridStudy) -> list[tuple[str, Markup | str]]:
    truth = study.truth
    rows = [parameter.name for parameter in truth.model.parameters]
    fixed = ", ".join(
        f"{plain(row)} {float(truth.kappa[i, 0]):g}" for i, row in enumerate(rows) if row != study.parameter
    )
    about = " ".join((truth.model.__doc__ or "").strip().split("\n\n")[0].split())
    return [
        ("signal", f"{about} At every point: {fixed}."),
        (
            "noise",
            f"{getattr(truth.noise, 'kind', 'own')}, sigma = 0.65 / SNR, the same images for every method.",
        ),
        (
            "images",
            f"a repeat is one image of all {len(study.points)} points with {truth.voxels} voxels of each: what a "
            "method pools (B, a histogram of tissue values) is pooled over them all.",
        ),
        (
            "figures",
            "relative bias = 100 (estimate − truth) / truth; CV = SD / mean; RMSE = 100 sqrt(mean(((estimate − truth) "
            "/ truth)²)), over voxels and repeats together; estimates that are not finite are left out and counted as "
            "failures. Intervals in results.csv: 95 %, t over repeats.",
        ),
        (
            "bound",
            "Cramér-Rao bound of the noise that was added, with every row free in each voxel, B shared over all voxels "
            "of an image, or known. doi:10.1002/mrm.10728; magnitudes: "
            "doi:10.1002/(SICI)1522-2594(199903)41:3<614::AID-MRM26>3.0.CO;2-1.",
        ),
        ("colours", "doi:10.1038/s41467-020-19160-7"),
    ]
