"""What sabidussi2021 reports of its in-vivo scans, beside the figures of a `test_retest` study, and why they differ."""

from collections.abc import Sequence
from math import isfinite, nan

from markupsafe import Markup

from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Block, Grid, Points, Text, Words
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.test_retest_table import EVERYWHERE, Found

# section 6.3: average CV over all pixels of the noisy T1 scans [%]; mean T2 difference to the MLE, brain with CSF [ms]
CV = {"RIM": 6.4, "ResNet": 11.06, "MLE": 17.1}
T2_DIFFERENCE = {"RIM": 2.36, "ResNet": 32.2}
_MLE = "MLE"


def beside_the_paper(
    found: Found,
    snrs: Sequence[float],
    methods: Sequence[str],
    networks: Sequence[str],
    reference: str,
    parameter: str,
    *,
    twin: bool,
) -> list[Block]:
    """The paper's figures, ours, and a sentence for each difference.

    Args:
        snrs: of the study; NaN of scans.
        networks: those of the methods that are networks; they stand for the paper's by their names.
        reference: stands for the paper's MLE.
    """
    role = roles(methods, networks, reference)
    heads: list[Words] = ["method", "stands for", "paper"]
    heads += [f"SNR {snr:g}" if isfinite(snr) else "these scans" for snr in snrs] * 2
    heads.insert(3 + len(snrs), "paper")
    lines: list[list[Words]] = []
    for name in methods:
        ours = [found.value(name, EVERYWHERE, snr, "cv_mean") for snr in snrs]
        differences = [1e3 * found.value(name, EVERYWHERE, snr, "reference_difference") for snr in snrs]
        paper_cv = CV.get(role[name], nan) if parameter == "T1" else nan
        paper_difference = T2_DIFFERENCE.get(role[name], nan) if parameter == "T2" else nan
        lines.append(
            [
                name,
                role[name] or "–",
                _said(paper_cv),
                *(number(v) for v in ours),
                _said(paper_difference),
                *(number(v) for v in differences),
            ]
        )
    groups = [("", 2), ("mean CV over all voxels [%]", 1 + len(snrs))]
    groups.append((f"mean difference to {reference} [ms]", 1 + len(snrs)))
    told = (
        "The paper: T1 of one slice 1.5 mm thick, 25 inversion times, two volunteers, two scans each; T2 of 10 slices, "
        "six preparation times. It gives averages over all pixels, no figure per tissue, no interval, no SNR."
    )
    sentences = _cv_sentences(found, snrs, methods, role, twin=twin) if parameter == "T1" else []
    sentences += _t2_sentences(found, snrs, role, twin=twin) if parameter == "T2" else []
    if parameter not in ("T1", "T2"):
        sentences = [f"The paper maps T1 and T2; it has no figure of {plain(parameter)}."]
    missing = [who for who in ("RIM", "ResNet") if who not in role.values()]
    if missing:
        sentences.append(
            f"{' and '.join(missing)}: no network of this study stands for it, so there is no figure of ours."
        )
    sentences.append(
        "Sharpness: the paper finds no significant difference between methods over 20 profiles drawn by hand. A test "
        "that finds none has not shown equality: only an interval says how large a difference may have been missed."
    )
    return [Text(told, soft=True), Grid(heads, lines, groups=groups, names=2), Points(sentences)]


def roles(methods: Sequence[str], networks: Sequence[str], reference: str) -> dict[str, str]:
    """Which method of the paper each method stands for: a network by its name, the reference for the MLE."""
    found = {}
    for name in methods:
        own = next((who for who in ("RIM", "ResNet") if who.lower() in name.lower()), "")
        found[name] = own if name in networks else _MLE if name == reference else ""
    return found


def _cv_sentences(
    found: Found, snrs: Sequence[float], methods: Sequence[str], role: dict[str, str], *, twin: bool
) -> list[Words]:
    sentences: list[Words] = []
    for name in methods:
        who = role[name]
        if who not in CV:
            continue
        values = [found.value(name, EVERYWHERE, snr, "cv_mean") for snr in snrs]
        said = ", ".join(
            f"{number(v)} % at SNR {snr:g}" if isfinite(snr) else f"{number(v)} %"
            for v, snr in zip(values, snrs, strict=True)
        )
        text = Markup("<b>{}</b> ({}): {} % in the paper, here {}. ").format(name, who, f"{CV[who]:g}", said)
        why = {
            "MLE": "The CV follows the noise, and the paper does not tell its SNR; its fit is unbounded, with a "
            "smoothed B, and “a high number of outliers” raises the average, where ours is bounded.",
            "RIM": "A prior holds the estimate where the noise does not, so it falls less with the SNR than a fit's; "
            "ours is another training, and shares of CSF, whose T1 is the hardest, differ.",
            "ResNet": "Its CV says nothing of its bias, which the paper finds large in the phantom (31 %); another "
            "training, other noise.",
        }[who]
        sentences.append(text + why)
    there = {who: name for name, who in role.items() if who in CV}
    for snr in snrs:
        own = {who: found.value(name, EVERYWHERE, snr, "cv_mean") for who, name in there.items()}
        if len(own) < 2:
            continue
        order = " < ".join(sorted(own, key=lambda who: own[who]))
        wanted = " < ".join(who for who in CV if who in own)
        at = f"At SNR {snr:g}: " if isfinite(snr) else ""
        sentences.append(
            f"{at}the order of the paper ({wanted}) {'is found here' if order == wanted else f'is not: {order}'}."
        )
    if twin:
        sentences.append(
            "The twin does not move, drift or pulsate: at the same noise real scans repeat less well than this."
        )
    return sentences


def _t2_sentences(found: Found, snrs: Sequence[float], role: dict[str, str], *, twin: bool) -> list[Words]:
    sentences: list[Words] = []
    for name, who in role.items():
        if who not in T2_DIFFERENCE:
            continue
        values = [1e3 * found.value(name, EVERYWHERE, snr, "reference_difference") for snr in snrs]
        sentences.append(
            Markup("<b>{}</b> ({}): mean difference to the fit {} ms in the paper, here {} ms. ").format(
                name, who, f"{T2_DIFFERENCE[who]:g}", ", ".join(number(v) for v in values)
            )
            + "The mean hangs on CSF, whose T2 the paper's networks put near 2 s wherever it is above 750 ms."
        )
    if twin:
        sentences.append(
            "Here the truth is known as well: bias and RMSE in the table above say which of the two is off."
        )
    return sentences


def _said(value: float) -> str:
    """A figure of the paper as the paper gives it."""
    return f"{value:g}" if isfinite(value) else "–"
