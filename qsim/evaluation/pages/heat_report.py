"""One self-contained page about a study over grids: text, tables and figures in sections, methods, provenance."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

Words = str | Markup


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `soft` as captions are."""

    text: Words
    soft: bool = False
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading within a section."""

    text: Words
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True, slots=True)
class Points:
    """A list of sentences."""

    points: Sequence[Words]
    kind: Literal["points"] = "points"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, as a data URI."""

    source: str
    alt: str
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        heads: of its columns.
        rows: cells as printed.
        names: how many of the first columns hold names.
        groups: a line above the heads: (text, columns it spans).
        best: (row, column) of the cells to be marked.
    """

    heads: Sequence[Words]
    rows: Sequence[Sequence[Words]]
    names: int = 1
    groups: Sequence[tuple[Words, int]] = ()
    best: Collection[tuple[int, int]] = ()
    kind: Literal["table"] = "table"


Block = Text | Heading | Points | Picture | Grid


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; a folded one opens on a click."""

    title: Words
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page is made from.

    Attributes:
        title: of the page.
        meta: what was run, in one line.
        lead: what came out, in a sentence or two.
        sections: tables and figures.
        methods: (name, text): equations, assumptions, sources.
        versions: of the packages, by name.
        files: what lies beside the page.
        config: its text.
        digest: of all that decides the numbers.
        warnings: what limits the study.
    """

    title: str
    meta: str
    lead: Sequence[Words]
    sections: Sequence[Section]
    methods: Sequence[tuple[str, Words]]
    versions: Mapping[str, str]
    files: str
    config: str
    digest: str
    warnings: Sequence[Words] = ()


def render(page: Page) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("qsim.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("heat_report.html").render(page=page)


def write_page(path: Path, page: Page) -> None:
    """Write the page whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(render(page))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
