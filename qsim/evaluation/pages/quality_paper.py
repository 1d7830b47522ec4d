"""Rank correlations of a `quality` study beside those of Tables 1 and 2 of shaw2021."""

from collections.abc import Mapping

from markupsafe import Markup

from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Text, Words
from qsim.evaluation.pages.quality_ranks import Held, p_value
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.quality_results import ALL_KINDS, TOTAL, QualityResults

# shaw2021: (rho, p) with Dice of simulated images (Table 1), and with scores 1 to 4 of measured ones (Table 2)
PAPER: Mapping[str, tuple[tuple[float, str], tuple[float, str]]] = {
    TOTAL: ((-0.850, "1.395e−24"), (-0.745, "9.101e−12")),
    "snr": ((0.326, "0.002"), (-0.045, "0.730")),
    "cnr": ((0.200, "0.068"), (0.361, "0.005")),
}


def beside_paper(results: QualityResults, held: Held, group: str) -> list[Block]:
    """The figures that the paper has, its numbers first, and what to mind in comparing them."""
    lines: list[list[Words]] = []
    rows: list[tuple[str, str, str]] = [(TOTAL, TOTAL, "mean artefact variance (Eq. 9)")]
    for whose in ("predicted", "true"):
        rows.append(("snr", f"snr_{whose}", f"SNR (Eq. 10), {whose} labels"))
        rows += [
            ("cnr", f"cnr_{form}_{whose}", f"CNR (Eq. 11, {form}), {whose} labels") for form in ("pooled", "difference")
        ]
    for key, figure, words in rows:
        table = PAPER[key]
        cells: list[Words] = [words, *(Markup("{:.3f}<small>p {}</small>").format(r, p) for r, p in table)]
        cells = [cell.replace("-", "−") if isinstance(cell, Markup) else cell for cell in cells]
        known = False
        for model in results.models:
            one = held.get((model, group, figure, "dice", ALL_KINDS))
            known |= one is not None
            cells.append(
                "–"
                if one is None
                else Markup("{}<small>p {} · n {}</small>").format(number(one.rho), p_value(one.p), one.n)
            )
        if known:
            lines.append(cells)
    return [
        Heading("Spearman's ρ as in Tables 1 and 2 of shaw2021"),
        Text(
            "The paper: Dice of simulated images of 28 ADNI subjects (Table 1), and blind scores 1 to 4 of 40 rejected "
            "scans (Table 2). Its text says 28 × 5 artefact images and the clean ones, n = 168, and 40; its ρ and p "
            "together imply n = 85 and 60. Its Eq. 10 is mean over SD of grey matter, which contrast and shading in "
            "the tissue enter; its two forms of Eq. 11 are not equal, so both are given. It does not say whose labels "
            "gave SNR and CNR. Other data, another contrast and other severities here: the order of the figures can be "
            "compared, not the third digit.",
            soft=True,
        ),
        Grid(["figure", "shaw2021, Table 1", "shaw2021, Table 2", *results.models], lines),
    ]
