"""Pages of results, whose tables stand between marks: what the scripts that fill them share."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qsim.errors import InputError
from qsim.evaluation.table import ALL, Row, read_csv

MARK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Study = TypeVar("Study")
# of a study that was run in both sizes the full one is shown
_SIZES = ("full", "small")


def fill(page: str, table_of: Callable[[str, str], str | None]) -> tuple[str, list[tuple[str, str, bool]]]:
    """The page with its tables, and of each mark its study, its kind and whether there was a table.

    Args:
        page: what stands between `<!-- table: STUDY KIND -->` and `<!-- end -->` is replaced.
        table_of: the table of a study and kind; None leaves the page as it is there.
    """
    found: list[tuple[str, str, bool]] = []

    def one(match: re.Match[str]) -> str:
        head, name, kind, end = match.groups()
        text = table_of(name, kind)
        found.append((name, kind, text is not None))
        return match.group(0) if text is None else f"{head}{text}\n{end}"

    return MARK.sub(one, page), found


def folders(studies: Path, name: str) -> Iterator[Path]:
    """Where a study may lie: the full one first, then the small one, then the one that has no sizes."""
    yield from (studies / f"{name}_{size}" for size in _SIZES)
    yield studies / name


def finished(folder: Path) -> tuple[tuple[Row, ...], dict[str, Any]] | None:
    """Rows of all draws together, and the provenance; None: there is no finished study."""
    about, results = folder / "provenance.json", folder / "results.csv"
    if not about.is_file() or not results.is_file():
        return None
    provenance: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
    if provenance.get("complete") is False:
        return None
    return tuple(row for row in read_csv(results) if row.draw == ALL), provenance


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def command(
    text: str | None,
    page: Path,
    tables: Mapping[str, Callable[[Study], str]],
    read: Callable[[Path, str], Study | None],
) -> None:
    """The command line of a script that fills a page: STUDIES [--page PAGE] [--out PAGE].

    Args:
        text: of its help.
        page: that is filled if none is named.
        tables: by kind, what makes it of a study.
        read: the study of a name below a folder; None: it is missing or unfinished, and said to be.
    Raises: InputError if there is no folder of studies, or the page asks for a table that there is not.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path)
    parser.add_argument("--page", type=Path, default=page)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.studies.is_dir():
        raise InputError(f"{given.studies}: is no folder; name the one that holds the studies")

    def made(name: str, kind: str) -> str | None:
        if kind not in tables:
            raise InputError(f"{given.page}: there is no table {kind!r}, wanted one of {', '.join(tables)}")
        study = read(given.studies, name)
        return None if study is None else tables[kind](study)

    filled, found = fill(given.page.read_text(encoding="utf-8"), made)
    for name in dict.fromkeys(name for name, _, there in found if not there):
        print(f"{name}: missing or unfinished, left as it is", file=sys.stderr)
    (given.out or given.page).write_text(filled, encoding="utf-8")
