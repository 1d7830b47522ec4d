"""Tables of docs/results/jacobs2025.md from the studies of configs/jacobs2025.

    python benchmarks/results_jacobs2025.py STUDIES [--page PAGE] [--out PAGE]

STUDIES holds a folder for each finished study, named as its config without `study_` (sets_small, sets_full). What
stands between `<!-- table: STUDY KIND -->` and `<!-- end -->` is replaced by the table; where the study is missing or
unfinished the page is left as it is there, and a line says so.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

# the project, and the modules beside this one wherever it is run from
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from results_page import command, finished, table

from qsim.errors import InputError
from qsim.evaluation.studies.segmentation_results import SCORES, TEST, TRAIN
from qsim.evaluation.table import Row

PAGE = Path(__file__).parents[1] / "docs" / "results" / "jacobs2025.md"
STUDY = "segmentation"
NONE = "-"
# table 1 of jacobs2025: train, test, T1rho
PAPER = {
    "A": ("0.96 ± .002", "0.80 ± .041", "0.56 ± .042"),
    "B": ("0.90 ± .011", "0.83 ± .021", "0.64 ± .049"),
}


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        rows: by (set or pair of sets, split, figure, metric).
        sets, domains: in the order of the table of results.
    """

    rows: Mapping[tuple[str, str, str, str], Row]
    sets: Sequence[str]
    domains: Sequence[str]

    def row(self, who: str, split: str, metric: str, figure: str = "dice") -> Row | None:
        """A line of the table of results; None: there is none, or it holds no number."""
        found = self.rows.get((who, split, figure, metric))
        return found if found is not None and isfinite(found.value) else None

    @property
    def pairs(self) -> list[str]:
        """Names of the differences between two sets."""
        return list(dict.fromkeys(who for who, _, _, metric in self.rows if metric == "difference"))


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
            f"{folder}: is a study of {', '.join(other)}, not of {STUDY}; give the folders of configs/jacobs2025"
        )
    by_name = {(row.estimator, row.tissue, row.parameter, row.metric): row for row in rows}
    means = [row for row in rows if row.metric == "mean" and row.parameter == "dice"]
    return Study(
        by_name,
        list(dict.fromkeys(row.estimator for row in means)),
        [name for name in dict.fromkeys(row.tissue for row in means) if name not in (TRAIN, TEST)],
    )


def dice(study: Study) -> str:
    """Table C6: mean over the runs and SD over folds, the paper's beside it."""
    lines = []
    for name in study.sets:
        cells = [_with_sd(study, name, split) for split in (TRAIN, TEST, *study.domains)]
        lines.append([name, *cells, *PAPER.get(name, (NONE,) * 3)])
    heads = ["set", "train", "test", *study.domains, "paper: train", "test", "T1rho"]
    return table(heads, lines)


def _with_sd(study: Study, name: str, split: str) -> str:
    mean, sd = study.row(name, split, "mean"), study.row(name, split, "sd_folds")
    if mean is None:
        return NONE
    return f"{mean.value:.3f}" if sd is None else f"{mean.value:.3f} ± {sd.value:.3f}"


def gaps(study: Study) -> str:
    """What is lost from the images left out to a domain, and what part of the first set's loss the others win back."""
    lines = []
    for domain in study.domains:
        for name in study.sets:
            gap, closed = study.row(name, domain, "gap"), study.row(name, domain, "closure")
            lines.append([domain, name, _interval(gap), _interval(closed, 100, "%.0f") if closed else NONE])
    return table(["domain", "set", "lost from test to the domain", "of the first set's loss won back, %"], lines)


def differences(study: Study) -> str:
    """Paired differences between sets on every domain."""
    lines = []
    for domain in study.domains:
        for pair in study.pairs:
            found, favour = study.row(pair, domain, "difference"), study.row(pair, domain, "difference_favour")
            share = NONE if favour is None else f"{favour.value * favour.n:.0f} of {favour.n}"
            cells = [_interval(found), _interval(study.row(pair, domain, "difference_t_runs")), share]
            lines.append([domain, pair, *cells])
    return table(["domain", "sets", "runs and images drawn anew", "t over runs", "runs in favour"], lines)


def ranks(study: Study) -> str:
    """Spearman's rho of each uncertainty with the Dice of the ensemble."""
    lines = [
        [split, name, *(_interval(study.row(name, split, "spearman_dice", score), 1, "%.2f") for score in SCORES)]
        for split in (TEST, *study.domains)
        for name in study.sets
    ]
    return table(["images", "set", *(score.replace("_", " ") for score in SCORES)], lines)


def _interval(row: Row | None, scale: float = 1.0, form: str = "%.3f") -> str:
    if row is None or not isfinite(row.value):
        return NONE
    text = form % (scale * row.value)
    return f"{text} ({form % (scale * row.low)} to {form % (scale * row.high)})" if isfinite(row.low) else text


TABLES: dict[str, Callable[[Study], str]] = {
    "dice": dice,
    "gaps": gaps,
    "differences": differences,
    "ranks": ranks,
}


def main() -> None:
    command(__doc__, PAGE, TABLES, lambda studies, name: read(studies / name))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"results: {error}")
