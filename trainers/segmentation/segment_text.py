"""What `qsim segment` found with networks of kind segmentation, in lines of text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.segmentation.segment_figures import HeartRecord, SliceFigures

# slices that are told one by one
_TOLD = 12


def title(record: "HeartRecord") -> str:
    """Of the picture."""
    found = record.volume
    truth = "" if found.dice is None else f", Dice {found.dice:.3f}"
    return f"{record.image}: left ventricle {found.ml:.1f} ml{truth}"


def lines(record: "HeartRecord") -> list[str]:
    """What the command prints."""
    found, names = record.volume, ", ".join(each.name for each in record.models)
    by = names if record.members == 1 else f"{names} ({record.members} members)"
    filled = sum(each.labels_mm2 > 0 for each in record.slices)
    total = len(record.slices)
    told = [
        f"{record.out}: {record.image} by {by}, {record.seconds:.1f} s",
        f"  lv {found.ml:.1f} ml, mask {found.labels_ml:.1f} ml in {filled} of {total} slice{'s' if total > 1 else ''}",
    ]
    if found.true_ml is not None and found.dice is not None:
        error = found.ml - found.true_ml
        part = f" ({100 * error / found.true_ml:+.1f} %)" if found.true_ml else ""
        told.append(f"  truth {found.true_ml:.1f} ml: error {error:+.1f} ml{part}, Dice {found.dice:.3f}")
    segmented = [each for each in record.slices if each.image is not None]
    told += [f"  {slice_text(each, record.images)}" for each in segmented[:_TOLD]]
    if len(segmented) > _TOLD:
        told.append(f"  and {len(segmented) - _TOLD} more slices: see the file _quality.json")
    return [*told, *(f"note: {note}" for note in record.notes)]


def slice_text(of: "SliceFigures", images: int) -> str:
    """The figures of a slice in a line.

    Args:
        images: contrasts of the file; which one was segmented is told where there are several.
    """
    words = [f"slice {of.slice}: {of.area_mm2:.0f} mm2"]
    if images > 1:
        words.append(f"image {of.image}")
    if of.entropy_per_target is not None:
        words.append(f"entropy {of.entropy_per_target:.3g} nats a voxel of the target")
    if of.disagreement is not None:
        words.append(f"disagreement {of.disagreement:.3f}")
    if of.dice is not None:
        words.append(f"Dice {of.dice:.3f}")
    return ", ".join(words)
