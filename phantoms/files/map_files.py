"""NIfTI files of maps, written slice by slice.

A NIfTI file holds x fastest and z slowest, so the slices of a volume follow each other in it,

    348 bytes of header, 4 empty, slice 0 (y, x), slice 1, ...

and a map never has to be in memory as a whole.

Source: NIfTI-1, https://nifti.nimh.nih.gov/nifti-1
"""

import gzip
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

# bytes of a NIfTI-1 header
_HEADER = 348
# of gzip: noisy maps hardly get smaller with more
_LEVEL = 1


def _nibabel() -> Any:
    """Imported when used, so that the command line stays light; it has no types."""
    import nibabel

    return nibabel


@dataclass(frozen=True, slots=True)
class Place:
    """Geometry that the maps of a series have.

    Attributes:
        space: z, y, x.
        affine: voxel (x, y, z) to world [mm].
        spacing_mm: of z, y, x [mm].
        source: NIfTI-1 header of the series, kept where it describes the same grid; empty: none.
    """

    space: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    spacing_mm: tuple[float, ...]
    source: bytes = b""

    def header(self, dtype: type[np.generic]) -> Any:
        """NIfTI header of one volume: that of the source with its codes and texts, else one made of the affine."""
        shape = self.space[::-1]
        header = self._kept()
        if header is None:
            header = _nibabel().Nifti1Header()
            header.set_data_shape(shape)
            header.set_zooms(self.spacing_mm[::-1])
            header.set_sform(self.affine, code="scanner")
        header.set_data_shape(shape)
        header.set_data_dtype(dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        # one volume has no time axis; what is not told is in mm in this project
        header.set_xyzt_units("mm")
        header["magic"] = b"n+1"
        header.set_data_offset(_HEADER + 4)
        return header

    def _kept(self) -> Any:
        """The header of the source if it is NIfTI-1, in mm, and of this grid."""
        if len(self.source) != _HEADER:
            return None
        kept = _nibabel().Nifti1Header(self.source)
        if kept.endianness != "<":
            kept = kept.as_byteswapped("<")
        if kept.get_xyzt_units()[0] not in ("mm", "unknown"):
            return None
        if tuple((*kept.get_data_shape(), 1, 1)[:3]) != self.space[::-1]:
            return None
        if kept["sform_code"] == 0 and kept["qform_code"] == 0:
            # readers would make up an affine of their own
            kept.set_sform(self.affine, code="scanner")
        return kept if np.allclose(kept.get_best_affine(), self.affine, rtol=1e-5, atol=1e-4) else None


class MapFile:
    """A map of which slice after slice is appended."""

    def __init__(self, file: Path, place: Place, dtype: type[np.generic], stack: ExitStack) -> None:
        self.file, self._place, self._dtype = file, place, np.dtype(dtype).newbyteorder("<")
        self._written = 0
        raw = stack.enter_context(file.open("wb"))
        # no name and no time in the file: the same maps give the same bytes
        self._out = stack.enter_context(
            closing(gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=raw, mtime=0))
        )
        self._out.write(place.header(dtype).binaryblock + b"\0\0\0\0")

    def append(self, slices: Shaped[np.ndarray, "slab y x"]) -> None:
        """Add slices, which come in order."""
        if slices.shape[1:] != self._place.space[1:]:
            raise ValueError(f"slices of shape {slices.shape[1:]} do not fit {self._place.space}")
        self._written += len(slices)
        self._out.write(np.ascontiguousarray(slices, dtype=self._dtype).tobytes())

    @property
    def whole(self) -> bool:
        """Whether every slice is there."""
        return self._written == self._place.space[0]


def read_map(file: Path) -> Shaped[np.ndarray, "z y x"]:
    """The values of a map that was written here."""
    return np.asanyarray(_nibabel().load(file).dataobj).transpose(2, 1, 0)
