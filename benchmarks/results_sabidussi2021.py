"""Tables of docs/results/sabidussi2021.md from the studies of configs/sabidussi2021.

    python benchmarks/results_sabidussi2021.py STUDIES [--page PAGE] [--out PAGE]

STUDIES holds a folder for each finished study, named as its config without `study_` (noise_t1_small, ...), and for
measured series `maps_NAME/METHOD`, the maps that `qsim map` wrote. Of a study that was run in both sizes the full one
is shown. What stands between `<!-- table: STUDY KIND -->` and `<!-- end -->` is replaced by the table; where the study
is missing or unfinished the page is left as it is there, and a line says so.
"""

import argparse
import re
import sys
from pathlib import Path

# the project, and the modules beside this one wherever it is run from
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from results_page import fill, folders
from sabidussi2021_study import Study, read_study
from sabidussi2021_tables import KINDS, REFERENCE, agreement

from qsim.errors import InputError
from qsim.parameters import RELAXATION_TIMES

PAGE = Path(__file__).parents[1] / "docs" / "results" / "sabidussi2021.md"


def filled(page: str, studies: Path) -> tuple[str, list[str]]:
    """The page with its tables, and what was done for each.

    Raises: InputError if the page asks for a kind of table that there is not.
    """
    text, found = fill(page, lambda name, kind: _table_of(studies, name, kind))
    return text, [
        f"{name} {kind}: " + ("filled" if there else f"{_missing(studies / name)}, left as it is")
        for name, kind, there in found
    ]


def _missing(folder: Path) -> str:
    """Why there is no table."""
    maps = folder.is_dir() and any(folder.rglob("*_T[12]map.nii.gz"))
    return f"maps, but none of {REFERENCE} to compare them with" if maps else "not run"


def _table_of(studies: Path, name: str, kind: str) -> str | None:
    if kind == "agreement":
        return agreement(studies / name)
    if kind not in KINDS:
        raise InputError(f"{kind}: no such kind of table, wanted {', '.join((*KINDS, 'agreement'))}")
    study = next((found for each in folders(studies, name) if (found := read_study(each)) is not None), None)
    if study is None:
        return None
    wanted, made = KINDS[kind]
    _check(study, studies / study.name, wanted)
    return f"{study.size} {made(study)}"


def _check(study: Study, folder: Path, wanted: str) -> None:
    """Raises: InputError if the study is of another kind, or of another relaxation time than its name says."""
    found = study.config.get("kind")
    if found != wanted:
        raise InputError(f"{folder}: holds a study of kind {found}, wanted {wanted}; give each study its own folder")
    times = re.findall(r"_(t[12])(?=_|$)", study.name)
    rows = {row.parameter for row in study.rows}
    if times and times[0].upper() not in rows:
        held = ", ".join(sorted(rows & set(RELAXATION_TIMES))) or "no relaxation time"
        raise InputError(
            f"{folder}: holds figures of {held}, wanted {times[0].upper()}; give each study its own folder"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the tables of docs/results/sabidussi2021.md.")
    parser.add_argument("studies", type=Path, help="folder of the studies that were run")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the marks")
    parser.add_argument("--out", type=Path, help="where the page is written; over itself if not given")
    given = parser.parse_args()
    if not given.studies.is_dir():
        raise SystemExit(f"{given.studies}: no such folder; run the studies first (configs/sabidussi2021/README.md)")
    try:
        text, said = filled(given.page.read_text(encoding="utf-8"), given.studies)
    except InputError as error:
        raise SystemExit(str(error)) from None
    (given.out or given.page).write_text(text, encoding="utf-8")
    print("\n".join(said))


if __name__ == "__main__":
    main()
