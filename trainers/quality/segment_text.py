"""What `qsim segment` found, in lines of text."""

from trainers.quality.segment_record import SegmentRecord, Volume


def title(record: SegmentRecord) -> str:
    """Of the picture."""
    volumes = "; ".join(_volume_text(*each) for each in record.volumes.items())
    return f"{record.image}: {volumes}\n{_blame_text(record)}"


def lines(record: SegmentRecord) -> list[str]:
    """What the command prints."""
    told = [f"{record.out}: {record.image} by {record.model}, {record.seconds:.1f} s"]
    for name, each in record.volumes.items():
        told.append(f"  {_volume_text(name, each)}")
        if each.true_ml is not None and each.dice is not None:
            error = each.ml - each.true_ml
            part = f" ({100 * error / each.true_ml:+.1f} %)" if each.true_ml else ""
            told.append(f"  truth {each.true_ml:.1f} ml: error {error:+.1f} ml{part}, Dice {each.dice:.3f}")
    width = max(len(source) for source in record.sources)
    for source, figures in record.sources.items():
        inside = "" if figures.mean_in_target is None else f", {figures.mean_in_target:.3g} in the target"
        above = "" if figures.above_clean_sd is None else f", {_above(figures.above_clean_sd)} clean images"
        told.append(f"  {source:{width}}  mean variance {figures.mean:.3g}{inside}{above}")
    return [*told, f"  {_blame_text(record)}", *(f"note: {note}" for note in record.notes)]


def _volume_text(name: str, found: Volume) -> str:
    text = f"{name} {found.ml:.1f} ml"
    if found.low_ml is not None and found.high_ml is not None and found.level is not None:
        text += f", {100 * found.level:.0f} % interval {found.low_ml:.1f} to {found.high_ml:.1f} ml"
    if found.paper_sd_ml is not None:
        text += f" (error bar of shaw2021: +- {found.paper_sd_ml:.2g} ml)"
    return text


def _blame_text(record: SegmentRecord) -> str:
    blame = record.blame
    if blame is None:
        return "blame: the model knows no artefact"
    if blame.source is None:
        return "blame: no artefact stands out of clean images"
    if blame.above_clean_sd is None:
        return (
            f"blame: {blame.source}, {100 * blame.share:.0f} % of the artefact variance; not compared with clean images"
        )
    return f"blame: {blame.source}, {_above(blame.above_clean_sd)} clean images"


def _above(sd: float) -> str:
    return f"{abs(sd):.1f} SD {'above' if sd >= 0 else 'below'}"
