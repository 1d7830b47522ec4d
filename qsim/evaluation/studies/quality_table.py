"""Tables of a study of image quality: a line per image and model, and the long table of what follows.

In the long table `estimator` is the model (with "; measured" where the images are no digital ones), `tissue` the kind
of image (a source, `clean`, `all`, `within`: mean of the correlations within the sources), `parameter` the figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import nan

import numpy as np
from jaxtyping import Float

from qsim.evaluation.studies.quality_results import (
    CLEAN,
    COMPARED,
    TOTAL,
    Correlation,
    QualityResults,
    Seen,
    aucs,
    coverage,
    leakage_of,
)
from qsim.evaluation.table import ALL, Row

HEADER = ("model", "image", "name", "anatomy", "measured", "kind", "repeat", "severity")


def figure_names(results: QualityResults) -> list[str]:
    """Columns of figures, those of all models."""
    return list(dict.fromkeys(name for figures in results.figures.values() for name in figures))


def image_lines(results: QualityResults) -> Iterator[Sequence[str | int | float]]:
    """Lines of images.csv after its header: the test, then the ladder as `ladder:<source>` with the rung as repeat."""
    names = figure_names(results)
    for model in results.models:
        yield from _lines(results, model, results.seen, results.figures[model], names, "")
        yield from _lines(results, model, results.ladder_seen, results.ladder.get(model, {}), names, "ladder:")


def _lines(
    results: QualityResults,
    model: str,
    seen: Seen,
    figures: Mapping[str, Float[np.ndarray, " i"]],
    names: Sequence[str],
    mark: str,
) -> Iterator[Sequence[str | int | float]]:
    for row, image in enumerate(seen.image.tolist()):
        kind = int(seen.kind[row])
        if mark and kind == 0:
            continue
        values = [float(figures[name][row]) if name in figures else nan for name in names]
        about = (image, results.names[image], int(results.anatomy[image]), int(results.measured[image]))
        yield (
            *(model, *about, mark + results.kind_name(kind), int(seen.repeat[row]), float(seen.severity[row])),
            *values,
        )


def rows(results: QualityResults, found: Sequence[Correlation]) -> Iterator[Row]:
    """The long table.

    Args:
        found: of `correlations`.
    """
    for each in found:
        who, metric = _who(each.model, each.group), f"spearman_{each.against}"
        yield _row(who, each.scope, each.figure, metric, each.rho, each.n, each.low, each.high)
        if np.isfinite(each.p):
            yield _row(who, each.scope, each.figure, f"{metric}_p", each.p, each.n)
    for group, there in results.groups.items():
        for model in results.models:
            who = _who(model, group)
            figures = results.figures[model]
            for kind in range(len(results.kinds) + 1):
                of = there & (results.seen.kind == kind)
                for name in ("dice", "dice_change", "ensemble_dice", *COMPARED):
                    known = figures[name][of & np.isfinite(figures[name])] if name in figures else np.zeros(0)
                    if known.size and not (kind == 0 and name == "dice_change"):
                        yield _row(who, results.kind_name(kind), name, "mean", float(known.mean()), known.size)
                        yield _row(who, results.kind_name(kind), name, "median", float(np.median(known)), known.size)
            yield from _of_heads(results, who, model, group)
            for form in ("paper", "calibrated"):
                for kind_name, held in coverage(results, model, group, form).items():
                    yield _row(who, kind_name, "volume", f"coverage_{form}", held.held, held.n)
                    yield _row(who, kind_name, "volume", f"width_{form}", held.width, held.n)


def _of_heads(results: QualityResults, who: str, model: str, group: str) -> Iterator[Row]:
    there, kind = results.groups[group], results.seen.kind
    n = {name: int((there & (kind == i)).sum()) for i, name in enumerate((CLEAN, *results.kinds))}
    for prefix in ("", "body_", "ratio_"):
        matrix = leakage_of(results, model, group, prefix)
        if matrix is None:
            continue
        for source, line, leads in zip(results.sources[model], *matrix, strict=True):
            for name, value in zip(results.kinds, line, strict=True):
                yield _row(who, name, f"{prefix}variance_{source}", "leakage", float(value), n[name])
            if source in results.kinds:
                yield _row(who, source, f"{prefix}variance_{source}", "diagonal_leads", float(leads), n[source])
    for name, (own, total) in aucs(results, model, group).items():
        yield _row(who, name, f"variance_{name}", "auc", own, n[name] + n[CLEAN])
        yield _row(who, name, TOTAL, "auc", total, n[name] + n[CLEAN])


def _who(model: str, group: str) -> str:
    return model if group == "digital" else f"{model}; {group}"


def _row(
    who: str, kind: str, figure: str, metric: str, value: float, n: int, low: float = nan, high: float = nan
) -> Row:
    return Row("quality", who, kind, figure, nan, nan, ALL, metric, value, low, high, n)
