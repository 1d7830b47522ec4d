"""The words and tables of `qsim bound`."""

import textwrap
from collections.abc import Sequence

from generators.bound import PRACTICAL, Protocol, Row
from generators.bound_design import Design
from qsim.kspace.noise import REFERENCE_SIGNAL
from qsim.signals import MOLLI, Bloch, LookLockerTrain

# widest line
_WIDTH = 120


def percent(cv: float | None) -> str:
    """A CV as tables print it: three digits, whole numbers from 100 on [%]."""
    if cv is None:
        return "inf"
    if cv >= 1e5:
        return ">99999"
    return f"{cv:.0f}" if cv >= 99.95 else f"{cv:#.3g}"


def table(of: Protocol, rows: Sequence[Row], n_voxels: int) -> str:
    """One line for each tissue, parameter and problem; one column for each SNR."""
    snrs = list(dict.fromkeys(row.snr for row in rows))
    together = " and ".join(of.shared)
    problems = [("cv_free", f"{together} free" if together else "free")]
    if together:
        problems += [("cv_shared", f"{n_voxels} voxels share {together}"), ("cv_known", f"{together} known")]
    lines: list[list[str]] = [
        ["tissue", "parameter", "SNR", *(f"{snr:g}" for snr in snrs)],
        ["", "", "sigma", *(f"{row.sigma:.4f}" for row in rows[: len(snrs)])],
    ]
    for start in range(0, len(rows), len(snrs)):
        group = rows[start : start + len(snrs)]
        parameter = group[0].parameter
        for i, (key, label) in enumerate(problems):
            if key == "cv_known" and parameter in of.shared:
                continue
            # the tissue stands where it begins
            new = start == 0 or rows[start - 1].tissue != group[0].tissue
            tissue = group[0].tissue if new and i == 0 else ""
            cells = [percent(getattr(row, key)) for row in group]
            lines.append([tissue, parameter if i == 0 else "", label, *cells])
    return aligned(lines, left=3)


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width, the first `left` of them flush left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = (
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in shown)


def heading(of: Protocol, source: str) -> str:
    """What the bounds are of."""
    model = of.model
    times = getattr(model, "times", None)
    # times that are all one are a TR
    span = "" if not times or min(times) == max(times) else f", times {1000 * min(times):g} to {1000 * max(times):g} ms"
    kind = getattr(model, "kind", type(model).__name__)
    lines = (
        f"{source}: {kind}, {model.n_images} images{span}, {of.noise} noise",
        f"Cramér-Rao bound: smallest CV [%] of an unbiased estimate, at the mean of each distribution; "
        f"SNR = {REFERENCE_SIGNAL:g} / sigma",
    )
    return "\n".join(_folded(lines))


def notes(of: Protocol) -> list[str]:
    """What was taken for granted."""
    found = []
    if of.known:
        found.append(f"Known in all of them: {', '.join(of.known)}.")
    if of.fields:
        found.append(f"Without what differs from voxel to voxel: {', '.join(dict.fromkeys(of.fields))}.")
    if isinstance(of.model, Bloch | LookLockerTrain | MOLLI):
        found.append("The images are A times what the readout sees of the magnetisation; sigma is that of the images.")
    return found


def verdicts(of: Protocol, rows: Sequence[Row]) -> list[str]:
    """One sentence for each parameter of each tissue that the protocol cannot identify, or practically not."""
    sentences = []
    if of.model.n_images < len(of.unknown):
        sentences.append(
            f"{of.model.n_images} images cannot tell {len(of.unknown)} unknowns of a voxel: {', '.join(of.unknown)}."
        )
    for tissue in of.tissues:
        for parameter in of.targets:
            group = [row for row in rows if (row.tissue, row.parameter) == (tissue, parameter)]
            bad = [row for row in group if not row.identifiable]
            if bad:
                sentences.append(_verdict(of, bad))
    return sentences


def _verdict(of: Protocol, bad: Sequence[Row]) -> str:
    top = max(bad, key=lambda row: row.snr)
    together = " and ".join(of.shared)
    free = f" with {together} free" if together else ""
    if top.cv_free is None:
        where, how, size = " at any SNR", "not identifiable", "the bound is infinite"
    else:
        where = f" at SNR {top.snr:g}" + (" and below" if len(bad) > 1 else "")
        how, size = "practically not identifiable", f"bound {percent(top.cv_free)} %"
        if len(bad) > 1:
            size += f" at SNR {top.snr:g}"
    return f"{top.parameter} of {top.tissue}: {how}{free}{where} ({size}): {_remedy(of, top)}"


def _remedy(of: Protocol, top: Row) -> str:
    """What would make it identifiable at the highest SNR at which it is not."""

    def good(cv: float | None) -> bool:
        return cv is not None and cv <= PRACTICAL

    other = "more images, other times" + (" or a higher SNR" if top.cv_free is not None else "") + " are needed"
    together = " and ".join(of.shared)
    if not together:
        return other
    if top.parameter in of.shared:
        return f"shared, it has {percent(top.cv_shared)} %" if good(top.cv_shared) else other
    at = "" if top.cv_free is None else f" (then {percent(top.cv_shared)} or {percent(top.cv_known)} %)"
    if good(top.cv_shared):
        return f"{together} must be shared or known{at}"
    if good(top.cv_known):
        alone = "" if top.cv_free is None else f" (then {percent(top.cv_known)} %; shared {percent(top.cv_shared)} %)"
        return f"{together} must be known{alone}"
    return f"with {together} known too ({percent(top.cv_known)} %); {other}"


def design_text(of: Protocol, found: Design) -> str:
    """The proposed times, and what they gain."""
    given = found.times_given
    how = {
        "free": "every parameter free",
        "shared": f"{' and '.join(of.shared)} shared by {found.voxels} voxels",
        "known": f"{' and '.join(of.shared)} known",
    }[found.problem]
    names = ", ".join(dict.fromkeys(row.parameter for row in found.rows))
    lines = [
        f"Proposed {found.what} [ms]: {_counted(found.times)}",
        f"  for the smallest worst bound of {names} with {how}, at SNR {found.snr:g} (sigma {found.sigma:.4f}), times "
        f"{1000 * found.minimum:g} to {1000 * found.maximum:g} ms",
        f"  {len(found.times)} images, sum of the times {sum(found.times):.4g} s (limit {found.total:.4g} s); "
        f"the config: {len(given)} images, {sum(given):.4g} s",
        f"  worst bound {percent(found.worst_cv)} %; no {len(found.times)} times within the limits go below "
        f"{percent(found.least_cv)} %",
    ]
    header = ["tissue", "parameter", "given [%]", "proposed [%]", "gain"]
    keys = ["gain"]
    if len(given) != len(found.times):
        header.append("per sqrt(image)")
        keys.append("gain_per_sqrt_image")
    if abs(sum(given) - sum(found.times)) > 1e-9:
        header.append("per sqrt(sum of times)")
        keys.append("gain_per_sqrt_time")
    cells = [header]
    for row in found.rows:
        ratios = [getattr(row, key) for key in keys]
        cells.append(
            [row.tissue, row.parameter, percent(row.cv_given), percent(row.cv_proposed)]
            + ["-" if ratio is None else f"x {ratio:.2f}" for ratio in ratios]
        )
    return "\n".join([*_folded(lines), aligned(cells, left=2)])


def _counted(times: Sequence[float]) -> str:
    """Times in milliseconds, repeated ones as 3 x 20."""
    counts = {time: times.count(time) for time in times}
    return ", ".join(f"{n} x {1000 * time:g}" if n > 1 else f"{1000 * time:g}" for time, n in counts.items())


def _folded(lines: Sequence[str]) -> list[str]:
    """Long lines broken at spaces."""
    return [
        part for line in lines for part in textwrap.wrap(line, _WIDTH, subsequent_indent="    ", break_long_words=False)
    ]


def page(of: Protocol, rows: Sequence[Row], n_voxels: int, source: str, found: Design | None) -> str:
    """All that the command prints."""
    parts = [heading(of, source), table(of, rows, n_voxels)]
    said = [*notes(of), *verdicts(of, rows)]
    if said:
        parts.append("\n".join(_folded(said)))
    if found is not None:
        parts.append(design_text(of, found))
    return "\n\n".join(parts)
