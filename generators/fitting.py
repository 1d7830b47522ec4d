"""Whether the parts of a config fit each other: model, tissue table and fields."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, pi

from phantoms import MNI, BrainWeb, Deformed, FuzzyBrain, Geometry, Heart, Liver, SystemPhantom, WithStructures
from phantoms.base import PhantomSpec
from phantoms.fields import WITHOUT_FIELDS, Field, Ranges, ShimBox
from qsim.distributions import AnyDistribution, Constant
from qsim.errors import InputError
from qsim.parameters import PARAMETERS, REL_B1
from qsim.reach import tissue_range, union, unphysical_t2
from qsim.signals import (
    BiExponential,
    LookLocker,
    LookLockerTrain,
    MultiEchoSpinEcho,
    ShapedProfile,
    VariableFlipAngle,
)
from qsim.signals.base import SignalModel
from qsim.signals.readout import subspace
from qsim.signals.train import Readout
from qsim.tissues import LARGEST_B0, Tissue, TissueTable

# a transmit field beyond this is no relative one
_LARGEST_B1 = 1e5
# what stands in a row until a field replaces it
_PERFECT_INVERSION = 2.0


def needed_rows(rows: Sequence[str], fields: Sequence[Field]) -> frozenset[str]:
    """Rows whose values the tissues have to bring: those of the model and of the fields, save what a field replaces."""
    needed = set(rows)
    for field in reversed(fields):
        if field.replaces:
            needed -= set(field.changes)
        needed |= set(field.uses)
    return frozenset(needed)


def hidden_rows(rows: Sequence[str], fields: Sequence[Field]) -> tuple[str, ...]:
    """Rows that only fields need, in the order of `PARAMETERS`."""
    wanted = {row for field in fields for row in (*field.changes, *field.uses)}
    return tuple(row for row in PARAMETERS if row in wanted and row not in rows)


def replaced_rows(fields: Sequence[Field]) -> frozenset[str]:
    """Rows whose value in the tissue table counts for nothing."""
    return frozenset(row for field in fields if field.replaces for row in field.changes)


def missing_rows(table: TissueTable, tissue: Tissue, needed: frozenset[str]) -> list[str]:
    """Rows that a tissue lacks."""
    there = {*tissue.values, *table.per_sample, *WITHOUT_FIELDS}
    return [row for row in PARAMETERS if row in needed and row not in there]


def completed(table: TissueTable, rows: Sequence[str], fields: Sequence[Field]) -> TissueTable:
    """The table with what is there without fields, where needed: DELTA_B0 0, REL_B1 1; B 2 if a field replaces it."""
    replaced = replaced_rows(fields)
    start = {**WITHOUT_FIELDS, **({"B": _PERFECT_INVERSION} if "B" in replaced else {})}
    # what a field replaces is no longer one value per sample
    per_sample = {row: each for row, each in table.per_sample.items() if row not in replaced}
    wanted = [row for row in (*rows, *hidden_rows(rows, fields)) if row in start and row not in per_sample]
    if not wanted:
        return table

    def values(tissue: Tissue) -> Mapping[str, AnyDistribution]:
        return {**{row: Constant(value=start[row]) for row in wanted}, **tissue.values}

    tissues = tuple(replace(tissue, values=values(tissue)) for tissue in table.tissues)
    return replace(table, tissues=tissues, per_sample=per_sample)


def check_tissues(rows: Sequence[str], fields: Sequence[Field], table: TissueTable) -> None:
    """Refuse a table none of whose tissues has what the model and the fields need, or whose T2 can exceed 2 T1.

    A tissue that lacks a row is refused when the phantom holds it (`generators.scene`): tables may hold more tissues
    than anyone has measured in every way.

    Raises: ValueError.
    """
    needed = needed_rows(rows, fields)
    lacking = [missing_rows(table, tissue, needed) for tissue in table.tissues]
    if all(lacking):
        missing = ", ".join(lacking[0])
        by = "which the model needs" if not set(lacking[0]) - set(rows) else "which the model or a field needs"
        raise ValueError(f"tissues: {table.tissues[0].name} has no {missing}, {by}")
    if {"T1", "T2"} <= needed:
        for tissue, missing_here in zip(table.tissues, lacking, strict=True):
            complaint = None if missing_here else unphysical_t2(table, tissue)
            if complaint is not None:
                raise ValueError(f"tissues: {complaint}")


def check_fields(rows: Sequence[str], fields: Sequence[Field], table: TissueTable) -> None:
    """Refuse fields that change what nobody uses, or do not fit the tissue table.

    Raises: ValueError naming the number of the field in the list.
    """
    needed = set(rows)
    replaced_by: dict[str, int] = {}
    for i, field in reversed(list(enumerate(fields))):
        for row in field.changes:
            if row in needed:
                continue
            if row in replaced_by:
                raise ValueError(
                    f"fields[{i}]: {field.kind} changes {row}, which fields[{replaced_by[row]}] then replaces; "
                    "put it after that one, or leave it out"
                )
            raise ValueError(
                f"fields[{i}]: {field.kind} changes {row}, which the model does not have ({', '.join(rows)}) and no "
                "later field uses; leave it out, put it before the field that uses it, or choose another model"
            )
        if field.replaces:
            needed -= set(field.changes)
            replaced_by |= dict.fromkeys(field.changes, i)
        needed |= set(field.uses)
        strength = getattr(field, "field_strength", None)
        if strength is not None and strength != table.field_strength:
            raise ValueError(
                f"fields[{i}].field_strength: {strength:g} T, but the tissue table is of {table.field_strength:g} T"
            )
        unknown = [name for name in getattr(field, "tissues", ()) if name not in table.names]
        if unknown:
            raise ValueError(
                f"fields[{i}].tissues: the tissue table has no {', '.join(unknown)}; it has {', '.join(table.names)}"
            )


def check_places(fields: Sequence[Field], phantom: PhantomSpec, patch: Sequence[int], slice_axis: int) -> None:
    """Refuse a shim box along an axis that the patch does not have, where the phantom is one of this package.

    Raises: ValueError naming the number of the field in the list.
    """
    if isinstance(phantom, WithStructures | Deformed):
        # they have the anatomy's own axes
        phantom = phantom.phantom
    if isinstance(phantom, Geometry):
        volume = len(phantom.size)
    elif isinstance(phantom, MNI | BrainWeb | FuzzyBrain | SystemPhantom | Heart | Liver):
        volume = 3
    else:
        return
    flat = slice_axis if len(patch) < volume else None
    inside = [axis for axis in range(volume) if axis != flat]
    for i, field in enumerate(fields):
        if isinstance(field, ShimBox) and field.axis is not None and field.axis not in inside:
            raise ValueError(
                f"fields[{i}].axis must lie in the patch (axis {', '.join(map(str, inside))} of the volume), "
                f"got {field.axis}"
            )


def check_model(model: SignalModel, fields: Sequence[Field], table: TissueTable) -> None:
    """Refuse a model that cannot give a signal, or has no meaning, at the tissues and fields that it will meet.

    Raises: ValueError naming the field of the model.
    """
    rows = [parameter.name for parameter in model.parameters]
    ranges = ranges_after(rows, fields, table)
    _check_profile(model, ranges)
    _check_closed_form(model, rows, fields, table, ranges)
    readout = getattr(model, "readout", None)
    if isinstance(readout, Readout) and readout.acquisition.encoding == "subspace":
        try:
            subspace(readout)
        except InputError as error:
            raise ValueError(f"model.readout.{error}") from None
    if isinstance(model, MultiEchoSpinEcho):
        _check_assumed_t1(model, complete_tissues(rows, fields, completed(table, rows, fields)), table)
    if isinstance(model, LookLockerTrain):
        highest = ranges["REL_B1"][1]
        # at 90 degrees nothing is left for the next pulse, and beyond the closed form has no rate
        if not model.flip_angle * highest < pi / 2:
            raise ValueError(
                f"model.flip_angle: {model.flip_angle:g} rad is more than pi / 2 where REL_B1 is {highest:.3g}, which "
                "the tissues and fields can reach; lower it, or narrow REL_B1"
            )


def _check_profile(model: SignalModel, ranges: Ranges) -> None:
    for holder, path in ((model, "model"), (getattr(model, "readout", None), "model.readout")):
        if isinstance(getattr(holder, "slice_profile", None), ShapedProfile) and ranges["REL_B1"][1] > REL_B1.upper:
            raise ValueError(
                f"{path}.slice_profile: a shaped one takes REL_B1 up to {REL_B1.upper:g}, and the tissues and fields "
                f"can reach {ranges['REL_B1'][1]:.3g}; lower the mean or sd of the field, or use kind: sampled"
            )


def _check_closed_form(
    model: SignalModel, rows: Sequence[str], fields: Sequence[Field], table: TissueTable, ranges: Ranges
) -> None:
    """Refuse two decays that can change places, fractions that are none, a Look-Locker recovery without T1*, and flip
    angles beyond pi.
    """
    if isinstance(model, BiExponential):
        _, _, short, long = (parameter.name for parameter in model.parameters)
        low, high = ranges["FRACTION"]
        if low < 0 or high > 1:
            raise ValueError(
                f"tissues: FRACTION reaches {low:.3g} to {high:.3g} and must stay within 0 and 1; truncate it"
            )
        whole = completed(table, rows, fields)
        for tissue in complete_tissues(rows, fields, whole):
            above, below = tissue_range(whole, tissue, short)[1], tissue_range(whole, tissue, long)[0]
            if above >= below:
                raise ValueError(
                    f"tissues: {tissue.name}: {short} can reach {above:.3g} s and {long} can fall to {below:.3g} s, "
                    f"but {short} is the shorter one in every voxel (quantiles of one in a million, variation within "
                    "the tissue included); truncate one of them"
                )
    if isinstance(model, LookLocker) and ranges["B"][0] <= 1:
        raise ValueError(
            f"tissues: B can fall to {ranges['B'][0]:.3g}, and look_locker needs B above 1 (T1* = T1 / (B - 1)); "
            "truncate it"
        )
    if isinstance(model, VariableFlipAngle) and max(model.flip_angles) * ranges["REL_B1"][1] > pi:
        raise ValueError(
            f"model.flip_angles: {max(model.flip_angles):g} rad is more than pi where REL_B1 is "
            f"{ranges['REL_B1'][1]:.3g}, which the tissues and fields can reach; lower it, or narrow REL_B1"
        )


def _check_assumed_t1(model: MultiEchoSpinEcho, tissues: Sequence[Tissue], table: TissueTable) -> None:
    """Refuse one T1 for all tissues below half the T2 of any."""
    longest, name = max((tissue_range(table, tissue, "T2")[1], tissue.name) for tissue in tissues)
    if longest > 2 * model.t1:
        raise ValueError(
            f"model.t1: {model.t1:g} s is less than half the T2 that {name} can reach, {longest:.3g} s (quantile of "
            "one in a million, variation within the tissue included), and no tissue has T2 above 2 T1; "
            f"give at least {ceil(50 * longest) / 100:g}"
        )


def complete_tissues(rows: Sequence[str], fields: Sequence[Field], table: TissueTable) -> list[Tissue]:
    """Tissues of a completed table that have every row that is needed: those that a phantom may hold."""
    needed = needed_rows(rows, fields)
    return [tissue for tissue in table.tissues if not missing_rows(table, tissue, needed)]


def ranges_after(rows: Sequence[str], fields: Sequence[Field], table: TissueTable) -> Ranges:
    """Where the rows lie after all fields, save one voxel in a million, in whatever tissues the phantom may hold.

    Raises: ValueError naming the number of the field whose rows cannot be.
    """
    whole = completed(table, rows, fields)
    return _ranges(rows, fields, whole, complete_tissues(rows, fields, whole))[-1]


def field_ranges(
    rows: Sequence[str], fields: Sequence[Field], table: TissueTable, tissues: Sequence[Tissue]
) -> tuple[Ranges, ...]:
    """Where the rows lie, save one voxel in a million, when each field begins.

    Args:
        rows: of the model.
        fields: in their order.
        table: completed.
        tissues: of it, those that count.
    Raises: ValueError naming the number of the field whose rows cannot be.
    """
    return _ranges(rows, fields, table, tissues)[:-1]


def _ranges(
    rows: Sequence[str], fields: Sequence[Field], table: TissueTable, tissues: Sequence[Tissue]
) -> tuple[Ranges, ...]:
    """Where the rows lie before the first field and after each."""
    names = (*rows, *hidden_rows(rows, fields))
    ranges: Ranges = {row: union([tissue_range(table, tissue, row) for tissue in tissues]) for row in names}
    found = [ranges]
    for i, field in enumerate(fields):
        try:
            ranges = field.ranges(ranges)
            _check_ranges(field, ranges)
        except ValueError as error:
            raise ValueError(of_field(i, field, str(error))) from None
        found.append(ranges)
    return tuple(found)


def _check_ranges(field: Field, ranges: Ranges) -> None:
    """Refuse what no magnet and no transmit coil makes."""
    if "DELTA_B0" in field.changes:
        low, high = ranges["DELTA_B0"]
        # a comparison that NaN fails
        if not max(-low, high) <= LARGEST_B0:
            raise ValueError(
                f"{field.kind}: DELTA_B0 reaches {low:.3g} to {high:.3g} Hz, and no magnet is off by more than "
                f"{LARGEST_B0:.0f} Hz; lower what the field adds, or truncate its distribution"
            )
    if "REL_B1" in field.changes:
        low, high = ranges["REL_B1"]
        if not 0 < low <= high <= _LARGEST_B1:
            raise ValueError(
                f"{field.kind}: REL_B1 reaches {low:.3g} to {high:.3g} and must stay above 0 and below "
                f"{_LARGEST_B1:g}; it is relative to the nominal field: 1, not 100 %"
            )


def of_field(number: int, field: Field, complaint: str) -> str:
    """A complaint of a field, with its place in the config: `fields[0].axis must ...` or `fields[0]: ...`."""
    first = complaint.split(maxsplit=1)[0].rstrip(":")
    joint = "." if first.isidentifier() and hasattr(field, first) else ": "
    return f"fields[{number}]{joint}{complaint}"
