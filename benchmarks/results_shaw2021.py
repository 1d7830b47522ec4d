"""Tables of docs/results/shaw2021.md from the studies of configs/shaw2021.

    python benchmarks/results_shaw2021.py STUDIES [--page PAGE] [--out PAGE]

STUDIES holds a folder for each finished study, named as its config without `study_` (quality, quality_small: other
data, so that each has its own tables). What stands between `<!-- table: STUDY KIND -->` and `<!-- end -->` is replaced
by the table; where the study is missing or unfinished the page is left as it is there, and a line says so.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite, nan
from pathlib import Path

# the project, and the modules beside this one wherever it is run from
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from results_page import command, finished, table

from qsim.errors import InputError
from qsim.evaluation.pages.quality_figures import WORDS
from qsim.evaluation.studies.quality_results import ALL_KINDS, CLEAN, TOTAL, WITHIN
from qsim.evaluation.table import Row

PAGE = Path(__file__).parents[1] / "docs" / "results" / "shaw2021.md"
STUDY = "quality"
DIGITAL, MEASURED = "", "; measured"


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        name: of its folder.
        rows: by (model, kind of image, figure, metric); models of measured images end in `MEASURED`.
        models: in the order of the table of results.
        kinds: of images, `clean` first, without `all`.
    """

    name: str
    rows: Mapping[tuple[str, str, str, str], Row]
    models: Sequence[str]
    kinds: Sequence[str]

    @property
    def sources(self) -> list[str]:
        """Kinds with an artefact."""
        return [kind for kind in self.kinds if kind != CLEAN]

    def of(self, model: str, kind: str, figure: str, metric: str) -> float:
        """A number of the table; NaN where there is none."""
        row = self.rows.get((model, kind, figure, metric))
        return nan if row is None else row.value

    def n(self, model: str, kind: str) -> int:
        """Images that have a Dice."""
        row = self.rows.get((model, kind, "dice", "mean"))
        return 0 if row is None else row.n


def read(folder: Path) -> Study | None:
    """A study, or None where it is missing or unfinished.

    Raises: InputError if it is a study of another kind.
    """
    found = finished(folder)
    if found is None:
        return None
    rows, _ = found
    other = sorted({row.study for row in rows} - {STUDY})
    if other:
        raise InputError(
            f"{folder}: is a study of {', '.join(other)}, not of {STUDY}; give the folders of configs/shaw2021"
        )
    models, kinds = dict[str, None](), dict[str, None]()
    for row in rows:
        models.setdefault(row.estimator.removesuffix(MEASURED))
        if (row.parameter, row.metric) == ("dice", "mean"):
            kinds.setdefault(row.tissue)
    figures = {(row.estimator, row.tissue, row.parameter, row.metric): row for row in rows}
    return Study(folder.name, figures, list(models), list(kinds))


def number(value: float, digits: int = 2) -> str:
    # + 0.0: what is rounded to zero has no sign
    return f"{round(value, digits) + 0.0:.{digits}f}" if isfinite(value) else ""


def p_value(value: float) -> str:
    if not isfinite(value):
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}" if value > 0 else "< 1e-300"


def rank(row: Row | None) -> str:
    """rho, and its interval where it has one."""
    if row is None or not isfinite(row.value):
        return ""
    interval = f" [{number(row.low)}, {number(row.high)}]" if isfinite(row.low) and isfinite(row.high) else ""
    return number(row.value) + interval


def told(study: Study, group: str, text: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table under a line that says of which images it is."""
    what = "measured" if group else "digital"
    clean, corrupted = (
        max((sum(study.n(model + group, kind) for kind in kinds) for model in study.models), default=0)
        for kinds in ([CLEAN], study.sources)
    )
    if not clean + corrupted:
        return f"`study_{study.name}` has no {what} images."
    if not rows:
        return f"`study_{study.name}` has none of these figures."
    return f"`study_{study.name}`, {clean} {what} images clean, {corrupted} with an artefact. {text}\n\n" + table(
        heads, rows
    )


def ranks(study: Study) -> str:
    """Every figure that is compared: Spearman's rank correlation with Dice."""
    rows = []
    for model in study.models:
        for figure, words in WORDS.items():
            pooled, within, change, change_within = (
                study.rows.get((model, scope, figure, metric))
                for metric in ("spearman_dice", "spearman_dice_change")
                for scope in (ALL_KINDS, WITHIN)
            )
            if pooled is None:
                continue
            p = study.of(model, ALL_KINDS, figure, "spearman_dice_p")
            rows.append(
                [model, words, rank(pooled), p_value(p), str(pooled.n), rank(within), rank(change), rank(change_within)]
            )
    heads = ["model", "figure", "with Dice, pooled", "p", "n", "within the sources"]
    heads += ["with the change of Dice, pooled", "within the sources"]
    text = "Spearman's rho [95 % interval over anatomies]; p as if images were independent; change of Dice: against "
    return told(study, DIGITAL, text + "the clean twin, corrupted images only.", heads, rows)


def each(study: Study) -> str:
    """The same in each source, of artefact variance and entropy."""
    rows = []
    for model in study.models:
        for figure in (TOTAL, "entropy"):
            found = [study.rows.get((model, source, figure, "spearman_dice")) for source in study.sources]
            if any(found):
                rows.append([model, WORDS[figure], *(rank(row) for row in found)])
    text = "Spearman's rho with Dice among the images of one source [95 % interval over anatomies]."
    return told(study, DIGITAL, text, ["model", "figure", *study.sources], rows)


def dice(study: Study) -> str:
    """Mean Dice of clean images and of every source."""
    return told(
        study,
        DIGITAL,
        "Mean Dice; all: of all images together.",
        ["model", *study.kinds, ALL_KINDS],
        _dice(study, DIGITAL),
    )


def _dice(study: Study, group: str) -> list[list[str]]:
    rows = []
    for model in study.models:
        for name, figure in ((model, "dice"), (f"{model}, ensemble", "ensemble_dice")):
            found = [study.rows.get((model + group, kind, figure, "mean")) for kind in study.kinds]
            known = [row for row in found if row is not None]
            if known:
                # the table of results has the mean of each kind only
                mean = fsum(row.n * row.value for row in known) / sum(row.n for row in known)
                values = [nan if row is None else row.value for row in found]
                rows.append([name, *(number(value, 3) for value in (*values, mean))])
    return rows


def leakage(study: Study) -> str:
    """Which head answers to which artefact."""
    rows = []
    for model in study.models:
        heads = dict.fromkeys(
            figure
            for who, _, figure, metric in study.rows
            if who == model and metric == "leakage" and figure.startswith("variance_")
        )
        for head in heads:
            name = head.removeprefix("variance_")
            cells = [model, name]
            for source in study.sources:
                text = number(study.of(model, source, head, "leakage"), 1)
                leads = source == name and study.of(model, source, head, "diagonal_leads") == 1
                cells.append(f"**{text}**" if leads else text)
            rows.append([*cells, number(study.of(model, name, head, "auc"))])
    text = (
        "Rise of a head's mean variance over that on the clean twin [SDs between clean images]; bold: a head answers "
    )
    text += "to its own artefact most. AUC: the head's mean variance, its artefact against clean images."
    return told(study, DIGITAL, text, ["model", "head", *study.sources, "AUC"], rows)


def volume(study: Study) -> str:
    """How often intervals hold the true volume."""
    text = "True volumes within their interval [%] / mean width of the interval [% of the true volume]."
    return told(study, DIGITAL, text, ["model", "interval", *study.kinds, ALL_KINDS], _volume(study, DIGITAL))


def _volume(study: Study, group: str) -> list[list[str]]:
    rows = []
    for model in study.models:
        for form in ("paper", "calibrated"):
            held, width = (
                [study.of(model + group, kind, "volume", f"{metric}_{form}") for kind in (*study.kinds, ALL_KINDS)]
                for metric in ("coverage", "width")
            )
            if any(isfinite(value) for value in held):
                cells = [
                    f"{number(a, 1)} / {number(b)}" if isfinite(a) else "" for a, b in zip(held, width, strict=True)
                ]
                rows.append([model, form, *cells])
    return rows


def measured(study: Study) -> str:
    """Dice and volumes of measured images."""
    rows = [[name, "mean Dice", *cells] for name, *cells in _dice(study, MEASURED)]
    rows += [[model, f"interval, {form}", *cells] for model, form, *cells in _volume(study, MEASURED)]
    text = "Intervals: true volumes within [%] / mean width [% of the true volume]."
    return told(study, MEASURED, text, ["model", "figure", *study.kinds, ALL_KINDS], rows)


TABLES: dict[str, Callable[[Study], str]] = {
    "ranks": ranks,
    "each": each,
    "dice": dice,
    "leakage": leakage,
    "volume": volume,
    "measured": measured,
}


def main() -> None:
    command(__doc__, PAGE, TABLES, lambda studies, name: read(studies / name))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"results: {error}")
