"""Maps as a BIDS derivatives folder: names, description, sources, and a folder that appears as a whole.

    DIR/dataset_description.json, README, .bidsignore
    DIR/sub-01/anat/sub-01_T1map.nii.gz, .json, .png (the quick look), sub-01_desc-std_T1map.nii.gz, ...

A folder appears with all that belongs into it or not at all: what is
unfinished lies in `DIR.partial-...`, and is removed if anything fails.

Source: BIDS 1.11, https://bids-specification.readthedocs.io (derivatives; quantitative MRI).
"""

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import numpy as np

from phantoms.files.map_files import MapFile, Place
from qsim import __version__
from qsim.errors import InputError

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

BIDS_VERSION = "1.11.1"
# entities that a map keeps of the name of its series, in their order; the others (inv, echo, flip, part) count images
_KEPT = ("acq", "ce", "rec", "dir", "run", "chunk", "space", "label")
_ENTITY = re.compile(r"^([a-z]+)-([a-zA-Z0-9]+)$", re.MULTILINE)
# what BIDS has no name for
OWN_SUFFIXES = {
    "B": "Bmap",
    "FRACTION": "fractionmap",
    "T2_SHORT": "T2shortmap",
    "T1RHO_SHORT": "T1rhoshort",
    "T2RHO": "T2rho",
    "C": "offsetmap",
    "DELTA_B0": "B0map",
}
_IGNORED = (
    "*.png",
    "*_desc-motion_*",
    *(f"*_{suffix}.*" for suffix in OWN_SUFFIXES.values()),
    *(f"*_{suffix}.*" for suffix in ("variance", "quality")),
)
_README = f"""Maps (qsim map) and segmentations (qsim segment) made by qsim {__version__}.

Times are in seconds. What became of each voxel is in desc-status (legend in its JSON file), standard deviations are in
desc-std, motions of a registered series in desc-motion, and NaN marks voxels without an estimate. Each JSON file says
how the maps were made, and with what noise.
desc-<class>_dseg is a segmentation, desc-<class>_probseg its probability, desc-<source>_variance the variance of the
network's logits by the task and by each artefact; _quality.json holds the volume with its error bar, mean
variances, and which artefact is to blame. Of a ventricle desc-entropy_quality is the entropy of its probability [nats],
desc-mutual_quality what several networks do not agree on [nats], and _quality.json has areas by slice.
Suffixes that BIDS does not know are listed in .bidsignore; Bmap is the depth of a recovery, B in A (1 - B exp(-t / T)).
"""
_DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True, slots=True)
class MapName:
    """What the maps of a series are called.

    Attributes:
        subject, session: labels, letters and digits; session empty: none.
        entities: those between session and suffix, in the order of BIDS.
    """

    subject: str
    session: str = ""
    entities: tuple[tuple[str, str], ...] = ()

    def stem(self, suffix: str, description: str = "") -> str:
        """`sub-01_ses-2_run-1_desc-std_T1map`."""
        pairs = [("sub", self.subject), *([("ses", self.session)] if self.session else []), *self.entities]
        pairs += [("desc", description)] if description else []
        return "_".join([*(f"{key}-{label}" for key, label in pairs), suffix])

    def folder(self, kind: str) -> Path:
        """`sub-01/ses-2/anat`."""
        return Path(f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else []), kind)


def name_of(series: str, subject: str = "", session: str = "") -> MapName:
    """The name of the maps of a series: its own BIDS entities, or its name without signs as the subject.

    Args:
        series: name of the series, or of its file without the ending.
        subject, session: instead of those in the name.
    Raises: InputError of a label that is not made of letters and digits.
    """
    for option, label in (("--subject", subject), ("--session", session)):
        if label and not re.fullmatch("[a-zA-Z0-9]+", label):
            raise InputError(f"{option}: got {label!r}, wanted a label of BIDS: letters and digits only")
    found: dict[str, str] = dict(_ENTITY.findall("\n".join(series.split("_"))))
    plain = unicodedata.normalize("NFKD", series).encode("ascii", "ignore").decode()
    label = subject or found.get("sub") or re.sub("[^a-zA-Z0-9]", "", plain) or "01"
    entities = tuple((key, found[key]) for key in _KEPT if key in found)
    return MapName(label, session or found.get("ses", ""), entities)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a series comes from, in the words of BIDS.

    Attributes:
        root: its BIDS data set, or the folder of its files.
        files: of the series.
    """

    root: Path
    files: tuple[Path, ...]

    @classmethod
    def of(cls, files: Sequence[Path]) -> "Sources":
        whole = [file.resolve() for file in files]
        root = Path(os.path.commonpath([file.parent for file in whole])) if whole else Path.cwd()
        for parent in (root, *root.parents):
            if (parent / _DESCRIPTION).is_file():
                root = parent
                break
        return cls(root, tuple(whole))

    def uris(self, link: str = "raw") -> list[str]:
        """`bids:raw:sub-01/anat/...` of each file."""
        return [f"bids:{link}:{quote(file.relative_to(self.root).as_posix())}" for file in self.files]


@dataclass(slots=True)
class Derivatives:
    """A folder in the making.

    Attributes:
        out: where it will stand.
        folder: where it stands until then.
        link: name of the source's data set in BIDS URIs.
        files: written so far, relative to the folder.
    """

    out: Path
    folder: Path
    link: str
    stack: ExitStack
    files: list[Path] = field(default_factory=list)

    def path(self, relative: Path) -> Path:
        """Where to write a file, its folder made."""
        file = self.folder / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        self.files.append(relative)
        return file

    def map_file(self, relative: Path, place: Place, dtype: type[np.generic] = np.float32) -> MapFile:
        """A map to append slices to."""
        return MapFile(self.path(relative), place, dtype, self.stack)

    def sidecar(self, relative: Path, content: Mapping[str, Json]) -> None:
        """Write a JSON file."""
        self.path(relative).write_text(_json(content), encoding="utf-8")

    def close_maps(self) -> None:
        """End the files of all maps, so that they can be read."""
        self.stack.close()


@contextmanager
def derivatives(
    out: Path, planned: Sequence[Path], sources: Sources, *, overwrite: bool = False
) -> Iterator[Derivatives]:
    """A derivatives folder that appears when all is written: a new one, or more files in one that qsim has made.

    Args:
        out: the folder.
        planned: files that will be written, relative to it.
        sources: of the maps.
        overwrite: replace files of the same name, with all that belongs to them (desc-std, desc-status).
    Raises: InputError, naming --out, if it holds something else, or some of the files, or cannot be written.
    """
    description = check_out(out, planned, sources, overwrite=overwrite)
    # a name of its own: several runs may write to one folder
    partial = out.with_name(f"{out.name}.partial-{token_hex(4)}")
    link = _link(description, sources, out)
    above = [parent for parent in partial.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        with ExitStack() as stack:
            made = Derivatives(out, partial, link, stack)
            yield made
        # another run may have made it, or added to it
        description = _described(out) or description
        links = {**description.get("DatasetLinks", {}), link: _relative(sources.root, out)}
        whole = {
            "Name": f"Maps by qsim of {sources.root.name}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "qsim", "Version": __version__}],
            **description,
            "SourceDatasets": [{"URL": each} for each in links.values()],
            "DatasetLinks": links,
        }
        (partial / _DESCRIPTION).write_text(_json(whole), encoding="utf-8")
        (partial / ".bidsignore").write_text("\n".join(_IGNORED) + "\n", encoding="utf-8")
        if not (out / "README").exists():
            (partial / "README").write_text(_README, encoding="utf-8")
        _put(partial, out, planned)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in above:
            # made for nothing if it is still empty
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def check_out(out: Path, planned: Sequence[Path], sources: Sources, *, overwrite: bool) -> dict[str, Any]:
    """Refuse a folder that cannot be written to, before anything is computed.

    Returns: its description; empty: there is none yet.
    Raises: InputError.
    """
    for parent in (out, *out.resolve().parents):
        if not parent.exists():
            continue
        if not parent.is_dir():
            raise InputError(f"--out: {parent} is a file, wanted a folder")
        if not os.access(parent, os.W_OK):
            raise InputError(f"--out: {parent} is read-only")
        break
    if not out.exists():
        return {}
    if not os.access(out.resolve().parent, os.W_OK):
        raise InputError(f"--out: {out.resolve().parent} is read-only; the maps are first written beside {out.name}")
    if out.resolve() == sources.root:
        raise InputError(f"--out: {out} holds the series itself; name another folder, such as {out / 'derivatives'}")
    found = _described(out)
    if not found:
        if any(out.iterdir()):
            raise InputError(f"--out: {out} exists and holds other things; name a new folder or remove it")
        return {}
    by = found.get("GeneratedBy")
    if not isinstance(by, list) or not any(isinstance(each, dict) and each.get("Name") == "qsim" for each in by):
        raise InputError(f"--out: {out} is a data set that qsim has not made; name a new folder")
    there = [name for name in planned if (out / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"--out: {out / there[0]} exists already; name another folder, or add --overwrite to replace it"
        )
    return found


def _described(out: Path) -> dict[str, Any]:
    """The description of a data set; empty: there is none that can be read."""
    try:
        found = json.loads((out / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _link(description: Mapping[str, Any], sources: Sources, out: Path) -> str:
    """Name of the source's data set: raw, or where that is another one raw2, ..."""
    links = description.get("DatasetLinks", {})
    number = 1
    while True:
        link = "raw" if number == 1 else f"raw{number}"
        if links.get(link, _relative(sources.root, out)) == _relative(sources.root, out):
            return link
        number += 1


def _relative(root: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(root, out.resolve())).as_posix())


def _put(partial: Path, out: Path, planned: Sequence[Path]) -> None:
    """Move the whole folder, or where there is one its files; what belonged to a replaced map goes."""
    if not out.exists() or not any(out.iterdir()):
        try:
            partial.replace(out)
        except OSError:
            # made by another run in this moment; what else is wrong shows below
            if not out.is_dir():
                raise
        else:
            return
    for file in planned:
        prefix, _, suffix = file.name.partition(".")[0].rpartition("_")
        for old in (out / file.parent).glob(f"{prefix}_desc-*_{suffix}.*"):
            old.unlink()
    for file in sorted(partial.rglob("*")):
        target = out / file.relative_to(partial)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        else:
            file.replace(target)


def _json(content: Mapping[str, Json]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
