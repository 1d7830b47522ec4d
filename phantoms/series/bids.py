"""Groups of BIDS files: one image each, told apart by one entity, their sidecars inherited from the folders above.

    sub-01_inv-1_IRT1.nii.gz, sub-01_inv-2_IRT1.nii.gz, ...      sub-01_acq-tsl10_T1rhow.nii.gz (not in BIDS)

A JSON file applies to an image below it if the suffix is the same and it names no entity that the image has not; the
nearer one wins (BIDS 1.11, the inheritance principle). `acq-tsl<ms>_T1rhow` and `acq-te<ms>_T2prepw` are this project's
own names of series that BIDS does not know; their times come from the sidecar like all others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from phantoms.files.images import NIFTI
from phantoms.series.sidecars import JOINT, SUFFIXES, Json, read_json
from qsim.errors import InputError

# suffix -> entity that tells the images apart, and how its value reads
_ENTITIES = {
    "IRT1": ("inv", re.compile(r"(\d+)$")),
    "MESE": ("echo", re.compile(r"(\d+)$")),
    "MEGRE": ("echo", re.compile(r"(\d+)$")),
    "VFA": ("flip", re.compile(r"(\d+)$")),
    "T1rhow": ("acq", re.compile(r"tsl(\d+(?:p\d+)?)(?:ms)?$")),
    "T2prepw": ("acq", re.compile(r"te(\d+(?:p\d+)?)(?:ms)?$")),
}
_DATATYPES = {"anat", "fmap", "func", "dwi", "perf"}


@dataclass(frozen=True, slots=True)
class Name:
    """A file name in entities: `sub-01_inv-2_IRT1.nii.gz`.

    Attributes:
        entities: by key, in the file's order.
        suffix: the last part.
    """

    entities: Mapping[str, str]
    suffix: str

    @property
    def common(self) -> tuple[tuple[str, str], ...]:
        """Entities that all images of the group have; what the number of the image stands in is kept without it."""
        key, pattern = _ENTITIES[self.suffix]
        kept = dict(self.entities)
        rest = pattern.sub("", kept.pop(key, ""))
        if rest:
            kept[key] = rest
        return tuple(sorted(kept.items()))

    @property
    def order(self) -> float | None:
        """Number of the image in its group; None: the name has none."""
        key, pattern = _ENTITIES[self.suffix]
        found = pattern.search(self.entities.get(key, ""))
        return None if found is None else float(found.group(1).replace("p", "."))

    def title(self) -> str:
        """Name of the group, for the files of its maps: without number, part and suffix."""
        kept = dict(self.common)
        return "_".join(f"{key}-{kept[key]}" for key in self.entities if key in kept and key != "part")


def stem_of(path: Path) -> str:
    """File name without the ending of NIfTI or JSON."""
    name = path.name
    for ending in (".nii.gz", ".nii", ".json"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return path.stem


def name_of(path: Path) -> Name | None:
    """The entities of a file name; None if it is not made of them."""
    *pairs, suffix = stem_of(path).split("_")
    entities = {}
    for pair in pairs:
        key, dash, value = pair.partition("-")
        if not (dash and key and value) or key in entities:
            return None
        entities[key] = value
    return Name(entities, suffix) if suffix and "-" not in suffix else None


def member_of(path: Path) -> Name | None:
    """The name of an image that belongs to a group; None for any other."""
    name = name_of(path)
    return name if name is not None and name.suffix in _ENTITIES and name.order is not None else None


def images_in(folder: Path) -> list[Path]:
    """NIfTI files of a folder, by name."""
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name.lower().endswith(NIFTI))


def group_of(path: Path) -> list[Path]:
    """All files of the group of one file, by their number."""
    name = member_of(path)
    assert name is not None
    same = []
    for file in images_in(path.parent):
        other = member_of(file)
        if other is not None and (other.suffix, other.common) == (name.suffix, name.common):
            same.append(file)
    return in_order(same)


def groups(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The groups among files, by what their names have in common; real and magnitude parts are groups of their own."""
    found: dict[str, list[Path]] = {}
    for file in files:
        name = member_of(file)
        if name is not None:
            common = "_".join(f"{key}-{value}" for key, value in name.common)
            found.setdefault(f"{file.parent}/{common}_{name.suffix}", []).append(file)
    return {title: in_order(members) for title, members in found.items()}


def in_order(files: Sequence[Path]) -> list[Path]:
    """Files of one group by their number.

    Raises: InputError naming two files of the same number.
    """
    ordered = sorted(files, key=lambda file: (_order(file), file.name))
    for one, other in pairwise(ordered):
        if _order(one) == _order(other):
            raise InputError(f"{other}: is the same image of the series as {one.name}; keep one of them")
    return ordered


def _order(file: Path) -> float:
    name = member_of(file)
    order = None if name is None else name.order
    return 0.0 if order is None else order


def check_part(path: Path) -> None:
    """Refuse phases and imaginary parts.

    Raises: InputError naming the file.
    """
    name = name_of(path)
    part = None if name is None else name.entities.get("part")
    if part not in (None, "mag", "real"):
        raise InputError(f"{path}: part-{part} cannot be fitted; name the files of part-mag or part-real")


def gaps(files: Sequence[Path]) -> tuple[str, ...]:
    """A note about counted images that are missing."""
    name = member_of(files[0])
    if name is None or _ENTITIES[name.suffix][0] == "acq":
        return ()
    here = {int(_order(file)) for file in files}
    missing = sorted(set(range(1, max(here) + 1)) - here)
    if not missing:
        return ()
    listed = ", ".join(f"{_ENTITIES[name.suffix][0]}-{number}" for number in missing)
    return (f"{files[0].parent}: {name.suffix} has no {listed}: the series is read without",)


def inherited(path: Path) -> tuple[Json, list[Path]]:
    """What the sidecars of a file say together, and which they are, the nearest last.

    Raises: InputError naming a sidecar that cannot be read.
    """
    content: dict[str, object] = {}
    used: list[Path] = []
    own = path.with_name(f"{stem_of(path)}.json")
    name = name_of(path)
    for folder in _folders(path) if name is not None else []:
        fitting = []
        for file in sorted(folder.glob("*.json")):
            other = name_of(file)
            if file == own or other is None or name is None or other.suffix != name.suffix:
                continue
            if other.entities.items() <= name.entities.items():
                fitting.append((len(other.entities), file))
        used.extend(file for _, file in sorted(fitting))
    if own.is_file():
        used.append(own)
    for file in used:
        content |= read_json(file)
    return content, used


def _folders(path: Path) -> list[Path]:
    """Folders from the root of the data set to that of the file."""
    folder = path.absolute().parent
    found = [folder]
    while not (folder / "dataset_description.json").is_file():
        inside = folder.name in _DATATYPES or folder.name.startswith(("sub-", "ses-"))
        if not inside or folder.parent == folder:
            break
        folder = folder.parent
        found.append(folder)
    return found[::-1]


def transmit_field(path: Path) -> Path | None:
    """The TB1map in `fmap` beside the folder of a series, of the same subject and session.

    Raises: InputError naming the folder if there are several.
    """
    name = name_of(path)
    folder = path.absolute().parent.parent / "fmap"
    if name is None or path.absolute().parent.name != "anat" or not folder.is_dir():
        return None
    found = []
    for file in images_in(folder):
        other = name_of(file)
        if other is not None and other.suffix == "TB1map":
            same = all(other.entities.get(key) == name.entities.get(key) for key in ("sub", "ses"))
            found += [file] if same else []
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise InputError(f"{folder}: holds {len(found)} maps of the transmit field ({listed}); say which by --b1")
    return found[0] if found else None


def combined(files: Sequence[Path], *, needed: bool) -> tuple[Json, str]:
    """The sidecars of the files of a group as one: what differs becomes a list, in the order of the files.

    Args:
        needed: whether a file may not be without a sidecar.
    Returns: the content, and what messages call it.
    Raises: InputError naming the file that has no sidecar, or lacks a key that others have.
    """
    contents = []
    for file in files:
        content, used = inherited(file)
        if needed and not used:
            raise no_sidecar(file)
        contents.append(content)
    name = member_of(files[0])
    key = SUFFIXES.get(name.suffix, "") if name is not None else ""
    where = f"{files[0].parent}/{stem_of(files[0])}.json and its like"
    together: dict[str, object] = {}
    for wanted in dict.fromkeys(entry for content in contents for entry in content):
        values = [_alone(content.get(wanted)) for content in contents]
        if wanted == key:
            for file, value in zip(files, values, strict=True):
                if isinstance(value, list):
                    raise InputError(
                        f"{file.parent}/{stem_of(file)}.json: {key} is a list, wanted the one time of {file.name}"
                    )
                if value is None and needed:
                    raise InputError(f"{file.parent}/{stem_of(file)}.json: has no {key}, which other images have")
            together[wanted] = values
        elif wanted in JOINT and needed and None in values:
            file = files[values.index(None)]
            raise InputError(
                f"{file.parent}/{stem_of(file)}.json: has no {wanted}, which other images have; write 0 where an "
                "image is without that preparation"
            )
        elif all(value == values[0] for value in values):
            together[wanted] = values[0]
        elif all(value is not None and not isinstance(value, list) for value in values):
            together[wanted] = values
    return together, where


def _alone(value: object) -> object:
    """A list of one is its number."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def no_sidecar(file: Path) -> InputError:
    """What is said where times are nowhere."""
    return InputError(
        f"{file}: has no sidecar {stem_of(file)}.json; write one with InversionTime, EchoTime, SpinLockTime, "
        "T2PrepTime or SaturationTime [s] or FlipAngle [degrees], one number for each image, "
        "or give --times and --signal"
    )
