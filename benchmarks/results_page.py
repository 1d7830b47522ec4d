"""Pages of results, whose tables stand between marks: what the scripts that fill them share."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qsim.evaluation.table import ALL, Row, read_csv

MARK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
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
