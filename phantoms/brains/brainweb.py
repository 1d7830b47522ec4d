"""Label models on disk (BrainWeb, FreeSurfer and the like) as fuzzy tissue fractions."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped

from phantoms.base import TISSUE_ORDER, Slab, Split, VolumePhantom, slice_first
from phantoms.brains.blocks import Block, block_fractions, check_block, coarser, say_block
from phantoms.brains.closing import closed_brain
from phantoms.brains.label_files import Raw, Voxel, check_voxel, find_files, read_labels
from phantoms.brains.label_schemes import BACKGROUND, LABEL_SCHEMES, Scheme
from phantoms.brains.subjects import Parting, Subject, check_parting
from qsim.errors import InputError
from qsim.values import value

# those that `qsim phantom` offers
SCHEMES = {name: LABEL_SCHEMES[name] for name in ("discrete", "vessel-gm-wm")}
_FIELD = "phantom.path"
_Key = tuple[tuple[str, int], ...]


@value
class BrainWeb:
    """Integer label models in files, one subject each.

    Attributes:
        path: a file (NIfTI, MINC, MATLAB or raw numbers; FILE.mat:variable where it holds several arrays), a folder
            (every NIfTI and MINC file in it, by name), a pattern with * (by name), or a list of files.
        labels: what the numbers mean; 0 is background.
            `discrete`: BrainWeb's "normal brain": 1 csf, 2 gm, 3 wm, 4 fat, 5 muscle (with skin), 6 skin, 7 skull,
            8 glial matter, taken as gm, 9 connective tissue, taken as fat.
            `twelve`: BrainWeb's 20 brains: 1 csf, 2 gm, 3 wm, 4 fat, 5 muscle, 6 skin (with muscle), 7 skull, 8 vessel,
            9 connective tissue, taken as fat, 10 dura, taken as csf, 11 marrow. `twelve-raw-short`: the same times 16,
            as their raw short files have them. `twelve-komamri`: the same as KomaMRI numbers them, up to 255.
            `vessel-gm-wm`: 1 vessel, 2 gm, 3 wm, as kept of BrainWeb's 20 brains. CSF is not in these files; voxels
            of none of the classes become csf inside gm and wm closed by 6 mm (sulci, fissures) with its holes filled
            (ventricles). That is less than the true CSF: what lies outside the hull of the gyri is missing.
            `freesurfer`: numbers of aseg, as csf, gm, wm and vessel. `synthseg`: these and the tissues outside the
            brain of SynthSeg's training maps, as muscle (with fat), skin, skull, marrow and vessel.
            `totalseg-mr`, `totalseg-ct`: organs of TotalSegmentator, of MR and CT, as `Liver` names its tissues.
            A mapping {number: tissue, or background} for any other model.
        block: averages block^3 voxels into one; 2 turns 0.5 mm into 1 mm, with fractions in steps of 1/8. Three
            numbers, one per axis of the volume, for thick slices.
        voxel_mm: voxel size of MATLAB and raw files, which hold none, along each axis [mm].
        raw: layout of raw files.
        test_subjects: with several files, the last so many are the test split, the others train; 0, or all of them,
            where folders keep train and test apart.
        test_share, gap: with one file, it is split into slabs as `MNI` is: the share of the tissue's extent along the
            slice axis that the central test slab takes [1], and slices left out on either side; with a share of 0 or 1
            all of it is train or test. Otherwise a single slice is test only.
    Source: Cocosco et al. 1997; Collins et al. 1998, doi:10.1109/42.712135; Aubert-Broche et al. 2006,
        doi:10.1016/j.neuroimage.2006.03.052.
    """

    kind: Literal["brainweb"] = "brainweb"
    path: str | tuple[str, ...]
    labels: Scheme | Mapping[int, str] = "discrete"
    block: Block = 1
    voxel_mm: Voxel | None = None
    raw: Raw | None = None
    test_subjects: int = 1
    test_share: float = 0.2
    gap: int = 5

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; name a file, a folder or a list of files")
        if isinstance(self.labels, str):
            if self.labels not in LABEL_SCHEMES:
                known = ", ".join(LABEL_SCHEMES)
                raise ValueError(f"labels: no scheme {self.labels!r}; known are {known}, or a mapping")
        elif not any(tissue != BACKGROUND for tissue in self.labels.values()):
            raise ValueError("labels names no tissue; give a mapping such as {1: csf, 2: gm, 3: wm}")
        elif any(not 0 <= label < 2**16 for label in self.labels) or self.labels.get(0, BACKGROUND) != BACKGROUND:
            raise ValueError(f"labels must be numbers from 1 to 65535 (0 is background), got {sorted(self.labels)}")
        check_block(self.block)
        check_voxel(self.voxel_mm)
        check_parting(self.test_subjects, self.test_share, self.gap)

    @property
    def mapping(self) -> dict[int, str]:
        """Tissue of each label."""
        return dict(LABEL_SCHEMES[self.labels] if isinstance(self.labels, str) else self.labels)

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues: those of the brain tables in their order, then others as the mapping names them."""
        named = {tissue for tissue in self.mapping.values() if tissue != BACKGROUND}
        if self.labels == "vessel-gm-wm":
            named.add("csf")
        others = (tissue for tissue in self.mapping.values() if tissue in named and tissue not in TISSUE_ORDER)
        return (*(tissue for tissue in TISSUE_ORDER if tissue in named), *dict.fromkeys(others))

    def files(self) -> tuple[Path, ...]:
        """Every subject's file, train before test.

        Raises: InputError naming what does not exist.
        """
        return find_files((self.path,) if isinstance(self.path, str) else tuple(self.path), _FIELD)

    def files_of(self, split: Split) -> tuple[Path, ...]:
        """The files that a split opens; a single file is that of both.

        Raises: InputError naming what does not exist, or a split without subjects.
        """
        return self._parting().of_split(self.files(), split)

    def describe(self, slice_axis: int) -> str:
        """What this is and how train and test are kept apart, for reports."""
        return f"{self._what()}; {self._parting().describe(slice_axis)}"

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab of a single file, by split.

        Raises: InputError if there are several files: these are split by subject.
        """
        return self._parting().slabs(slice_axis)

    def load(self, split: Split, slice_axis: int) -> VolumePhantom:
        """Read one split; the files of the other one are not opened.

        Raises: InputError naming the file that is missing, unreadable or holds labels the scheme does not know.
        """
        return self._parting().load(split, slice_axis, self.tissues, self._what())

    def _what(self) -> str:
        scheme = self.labels if isinstance(self.labels, str) else "custom"
        what = f"label models ({scheme} labels), {say_block(self.block)}"
        if self.labels == "vessel-gm-wm":
            what += "; the files hold no CSF: it is made by closing gm and wm by 6 mm and filling its holes"
        return what

    def _parting(self) -> Parting:
        files = self.files()
        return Parting(
            field=_FIELD,
            names=[file.name for file in files],
            test_subjects=self.test_subjects,
            test_share=float(self.test_share),
            gap=self.gap,
            read=lambda i, slice_axis: self._read(files[i], slice_axis),
        )

    def _read(self, file: Path, slice_axis: int) -> Subject:
        mapping = tuple((tissue, label) for label, tissue in sorted(self.mapping.items()))
        inside = self.labels == "vessel-gm-wm"
        # a variable of a MATLAB file is no file of its own
        on_disk = file if file.is_file() else file.with_name(file.name.rpartition(":")[0])
        return _subject(
            file,
            on_disk.stat().st_mtime_ns,
            mapping,
            self.tissues,
            inside,
            self.block,
            self.voxel_mm,
            self.raw,
            slice_axis,
        )


# two: train and test of one file share it; folders are read once per split, and a phantom holds its own volumes
@lru_cache(maxsize=2)
def _subject(
    file: Path,
    _mtime: int,
    mapping: _Key,
    tissues: tuple[str, ...],
    csf_inside: bool,
    block: Block,
    voxel_mm: Voxel | None,
    raw: Raw | None,
    slice_axis: int,
) -> Subject:
    labels, spacing, affine = read_labels(file, raw, voxel_mm)
    numbers = {label: tissue for tissue, label in mapping}
    lookup = np.zeros(2**16 if labels.dtype == np.uint16 else 2**8, dtype=np.uint8)
    for label, tissue in numbers.items():
        if tissue != BACKGROUND and label < lookup.size:
            lookup[label] = 1 + tissues.index(tissue)
    unknown = sorted(set(_present(labels)) - set(numbers) - {0})
    if unknown:
        raise InputError(
            f"{_FIELD}: {file} holds the labels {', '.join(map(str, unknown[:8]))}"
            f"{' ...' if len(unknown) > 8 else ''}, which phantom.labels does not name (it names "
            f"{_say_numbers(numbers)}); choose another scheme or give a "
            "mapping, with `background` for what is to be left out"
        )
    index = lookup[labels]
    del labels
    if not index.any():
        raise InputError(f"{_FIELD}: {file} holds no tissue, only background")
    if csf_inside:
        # vessels do not count: sinuses and stray ones outside the brain would drag the hull with them
        solid = (index == 1 + tissues.index("gm")) | (index == 1 + tissues.index("wm"))
        index[closed_brain(solid, spacing) & (index == 0)] = 1 + tissues.index("csf")
    coarse_spacing, coarse_affine = coarser(spacing, affine, block)
    return Subject(
        volume=slice_first(block_fractions(index, len(tissues), block), slice_axis),
        spacing_mm=coarse_spacing,
        affine=coarse_affine,
    )


def _say_numbers(numbers: Mapping[int, str]) -> str:
    """The labels of a scheme, those of one tissue together."""
    by_tissue: dict[str, list[int]] = {}
    for label, tissue in numbers.items():
        by_tissue.setdefault(tissue, []).append(label)
    return ", ".join(f"{' '.join(map(str, labels))} {tissue}" for tissue, labels in by_tissue.items())


def _present(labels: Shaped[np.ndarray, "x y z"]) -> list[int]:
    """Labels that occur; counted plane by plane, since `bincount` widens its input to 64 bits."""
    present: Bool[np.ndarray, " l"] = np.zeros(2**16, dtype=bool)
    for plane in labels:
        counts = np.bincount(plane.ravel())
        present[: counts.size] |= counts > 0
    return [int(label) for label in np.flatnonzero(present)]
