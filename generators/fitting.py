"""Whether the parts of a config fit each other: model, tissue table and fields."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from phantoms.fields import WITHOUT_FIELDS, Field, Ranges
from qsim.distributions import AnyDistribution, Constant
from qsim.parameters import PARAMETERS
from qsim.reach import Range, tissue_range, union, unphysical_t2
from qsim.tissues import Tissue, TissueTable

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
    if fields:
        whole = completed(table, rows, fields)
        complete = [t for t in whole.tissues if not missing_rows(whole, t, needed_rows(rows, fields))]
        field_ranges(rows, fields, whole, complete)


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
    names = (*rows, *hidden_rows(rows, fields))
    ranges: dict[str, Range] = {row: union([tissue_range(table, tissue, row) for tissue in tissues]) for row in names}
    before = []
    for i, field in enumerate(fields):
        before.append(ranges)
        try:
            ranges = field.ranges(ranges)
        except ValueError as error:
            raise ValueError(f"fields[{i}]: {error}") from None
    return tuple(before)
