"""What a measured series is, whatever file it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Weighted images of one object, their timings and their place in space.

    Attributes:
        name: of the files that maps of it are called after.
        files: that it was read from.
        volumes: one array for each image, as stored, real; a single slice has z of length 1.
        key: of the sidecar that holds the timings: InversionTime, EchoTime, SpinLockTime, T2PrepTime, SaturationTime,
            FlipAngle; empty if times were given and nothing says of what.
        times: of the images, in the order of the volumes [s; rad for FlipAngle].
        protocol: further numbers of the sidecar, by key: RepetitionTime [s], SpinLockFrequency [Hz],
            MagneticFieldStrength [T], FlipAngle [rad].
        suffix: of BIDS (IRT1, MESE, MEGRE, VFA, T1rhow, T2prepw), empty if unknown.
        affine: voxel index (x, y, z) to world [mm].
        spacing_mm: of z, y, x [mm].
        b1: measured transmit field over the nominal one, if there is a map [1].
        notes: what was taken for granted or converted, a sentence each.
        header: of the first NIfTI file, as bytes; empty if the series came from another format.
        te_prep: T2PrepTime of each image, where it differs between the images as well as SpinLockTime, which is the key
            then; else empty [s].
    """

    name: str
    files: tuple[Path, ...]
    volumes: tuple[Shaped[np.ndarray, "z y x"], ...]
    key: str
    times: tuple[float, ...]
    protocol: Mapping[str, float] = field(default_factory=dict)
    suffix: str = ""
    affine: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    b1: Float[np.ndarray, "z y x"] | None = None
    notes: tuple[str, ...] = ()
    header: bytes = b""
    te_prep: tuple[float, ...] = ()

    @property
    def space(self) -> tuple[int, ...]:
        """Extent along z, y, x [voxels]."""
        return tuple(self.volumes[0].shape)

    @property
    def signed(self) -> bool:
        """Whether some image has negative values."""
        return any(bool((volume < 0).any()) for volume in self.volumes)

    def slab(self, first: int, last: int) -> Float[np.ndarray, "n slab y x"]:
        """Some slices of every image, in single precision."""
        return np.stack([np.asarray(volume[first:last], dtype=np.float32) for volume in self.volumes])

    def image(self, values: Shaped[np.ndarray, "z y x"]) -> Any:
        """A NIfTI image of a map, in the place and with the header of the series.

        Its dtype is that of the values, without a slope; times, which a map does not have, are dropped.
        """
        import nibabel

        kind = nibabel.Nifti2Header if len(self.header) == 540 else nibabel.Nifti1Header
        header = kind(self.header) if self.header else kind()  # type: ignore[no-untyped-call]
        header.set_data_dtype(values.dtype)  # type: ignore[no-untyped-call]
        header.set_slope_inter(1, 0)  # type: ignore[no-untyped-call]
        if not self.header:
            header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
        holder = nibabel.Nifti2Image if len(self.header) == 540 else nibabel.Nifti1Image
        image = holder(values.T, self.affine, header)  # type: ignore[no-untyped-call]
        image.header["cal_min"] = image.header["cal_max"] = 0
        if not self.header:
            image.header.set_zooms(self.spacing_mm[::-1])  # type: ignore[no-untyped-call]
        return image
