"""Figures of a `grid` study: bias, CV and RMSE over the grid, with the bounds."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_figures import Curve, Plot, curve_figure
from qsim.evaluation.pages.heat_report import Picture
from qsim.evaluation.studies.grid import GridStudy
from qsim.kspace.noise import sigma_of
from qsim.parameters import PARAMETERS

# places in the palette of figures: the two fits of every study have theirs, black is for bounds
_FIXED = {"least-squares": 0, "shared-b": 1}
_OTHERS = (2, 3, 4, 5, 7, 8, 9)
BLACK = 6
_STYLES = ("--", "-.", ":")
_COLUMNS = 3
# axes of errors end here: what lies beyond says only that the method is lost [%]
MOST_SHOWN, _LEAST = 3000.0, 0.1
_MOST_BIAS = 300.0


def chosen(snrs: Sequence[float]) -> list[float]:
    """The lowest, a middle and the highest SNR."""
    if len(snrs) <= _COLUMNS:
        return list(snrs)
    return [snrs[0], snrs[len(snrs) // 2], snrs[-1]]


def places(names: Sequence[str]) -> dict[str, int]:
    """Place of each method in the palette, the same over the whole page."""
    others = iter(_OTHERS * 8)
    return {name: _FIXED[name] if name in _FIXED else next(others) for name in names}


def figure(study: GridStudy, snrs: Sequence[float]) -> Picture:
    """Bias, CV and RMSE over the grid, a column for each SNR."""
    name = PARAMETERS[study.parameter].symbol
    place = places([each.name for each in study.contenders])
    x = 1e3 * study.points
    plots = []
    reach = {
        snr: bias_limit([study.of(each, snr, "relative_bias_median") for each in study.contenders]) for snr in snrs
    }
    for metric, label in (("relative_bias_median", "relative bias"), ("cv", "CV"), ("rmse", "RMSE")):
        for snr in snrs:
            curves = [Curve(each.name, x, study.of(each, snr, metric), place[each.name]) for each in study.contenders]
            if metric != "relative_bias_median":
                curves += [
                    Curve("Cramér-Rao bound", x, study.bounds[bound, snr], BLACK, style)
                    for bound, style in zip(study.bound_names, _STYLES, strict=False)
                ]
            size = metric != "relative_bias_median"
            plots.append(
                Plot(
                    f"SNR {snr:g} (σ {sigma_of(snr):.3g})",
                    f"true ${name}$ [ms]",
                    f"{label} of ${name}$ [%]",
                    curves,
                    limits=error_limits(curves) if size else (-reach[snr], reach[snr]),
                    log=(True, size),
                    zero=not size,
                )
            )
    styles = [(style, f"bound: {bound}") for bound, style in zip(study.bound_names, _STYLES, strict=False)]
    return Picture(
        curve_figure(plots, len(snrs), styles), f"bias, CV and RMSE of {plain(study.parameter)} over the grid"
    )


def bias_limit(biases: Sequence[Float[np.ndarray, " p"]]) -> float:
    """Ends of an axis of bias, which few lost points do not stretch [%]."""
    sizes = np.abs(np.concatenate([np.asarray(b).ravel() for b in biases]))
    finite = sizes[np.isfinite(sizes)]
    typical = float(np.quantile(finite, 0.9)) if finite.size else 10.0
    return min(max(1.3 * typical, 10.0), _MOST_BIAS)


def error_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Ends of a logarithmic axis of errors [%]."""
    values = np.concatenate([np.asarray(curve.y).ravel() for curve in curves])
    finite = values[np.isfinite(values) & (values > 0)]
    if not finite.size:
        return _LEAST, MOST_SHOWN
    low = max(float(finite.min()) / 1.3, _LEAST)
    high = max(min(float(finite.max()) * 1.3, MOST_SHOWN), 3 * low)
    # less than a decade has hardly a tick
    widen = max(np.sqrt(10 * low / high), 1.0)
    return low / widen, high * widen
