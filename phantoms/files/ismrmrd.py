"""ISMRMRD in and out: lines of k-space, sorted by their counters into a grid.

Source: Inati et al. 2017, doi:10.1002/mrm.26089. A line is a head (counters, flags) and its
samples, channel by channel.

    row = kspace_encode_step_1 - centre + ny // 2,    sample i lies at kx = i - center_sample

The centre comes from the encoding limits of the header; without them rows count from 0. Slices, contrasts, phases,
repetitions, sets and averages are images of their own. Cartesian lines only; no line is combined or interpolated.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Complex, Int, Shaped

from phantoms.files.images import Layout, Scan, check_finite, layout_of, reading
from qsim.errors import InputError

# counters that tell images apart, the slowest first
_IMAGE = ("repetition", "set", "phase", "contrast", "slice", "average")
# bits of the flags, counted from 1, of lines that are no image: noise, calibration, navigators, phase correction,
# feedback, dummies, coil correction
_OTHER = (19, 20, 23, 24, 26, 27, 28, 29)
_REVERSED = 22
_COMPRESSED = (53, 54, 55, 56)
# a header is a few kB; a larger one is not read
_LARGEST_HEADER = 10_000_000


def hdf5_file(path: Path, mode: str = "r") -> Any:
    """An open HDF5 file; h5py is imported only here."""
    import h5py

    return h5py.File(path, mode)  # type: ignore[attr-defined, no-untyped-call]


def ismrmrd_groups(path: Path) -> list[str]:
    """Names of the groups of an HDF5 file that hold ISMRMRD lines and their header."""
    with hdf5_file(path) as file:
        groups = {name: thing for name, thing in file.items() if hasattr(thing, "keys")}
        return [
            name
            for name, group in groups.items()
            if "xml" in group and "data" in group and "head" in (group["data"].dtype.names or ())
        ]


@dataclass(frozen=True, slots=True)
class _Header:
    """What the XML header says: matrix and centre along x, y, z, and voxels [mm]."""

    matrix: tuple[int, int, int]
    centre: tuple[int | None, int | None]
    spacing_mm: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of an image: their rows in the file, and where they belong on the grid."""

    rows: Int[np.ndarray, " lines"]
    image: Int[np.ndarray, " lines"]
    z: Int[np.ndarray, " lines"]
    y: Int[np.ndarray, " lines"]
    # first column of the grid, first and last sample of the line that are kept
    column: int
    first: int
    last: int
    channels: int
    samples: int


@dataclass(frozen=True, slots=True)
class IsmrmrdFile:
    """Cartesian k-space in an ISMRMRD file.

    Attributes:
        group: that holds lines and header.
    """

    path: Path
    group: str

    def layout(self) -> Layout:
        """(n, c, z, y, x)."""
        header, heads = self._contents()
        return self._layout(header, self._lines(header, heads))

    def _layout(self, header: _Header, lines: _Lines) -> Layout:
        nx, ny, nz = header.matrix
        return layout_of(str(self.path), (int(lines.image.max()) + 1, lines.channels, nz, ny, nx), "nczyx")

    def read(self) -> Scan:
        header, heads = self._contents()
        lines = self._lines(header, heads)
        layout = self._layout(header, lines)
        grid = np.zeros(layout.shape, np.complex64)
        measured = np.zeros((layout.shape[0], 1, *layout.shape[2:]), bool)
        columns = slice(lines.column, lines.column + lines.last - lines.first)

        def load() -> Shaped[np.ndarray, " rows"]:
            with hdf5_file(self.path) as file:
                return np.asarray(file[self.group]["data"][()]["data"])

        data = reading(str(self.path), load)
        for row, n, z, y in zip(lines.rows, lines.image, lines.z, lines.y, strict=True):
            if data[row].size != 2 * lines.channels * lines.samples:
                raise InputError(f"{self.path}: line {row} holds {data[row].size} numbers, its head says otherwise")
            if measured[n, 0, z, y].any():
                raise InputError(f"{self.path}: line {row} was measured before; only one line is expected in its place")
            grid[n, :, z, y, columns] = _complex(data[row], lines)[:, lines.first : lines.last]
            measured[n, 0, z, y, columns] = True
        check_finite(str(self.path), grid, "samples")
        assumed = [f"{len(heads) - len(lines.rows)} lines hold no image (noise, calibration): they stay as they are"]
        gaps = int(measured.size - measured.sum())
        if gaps:
            assumed.append(f"{gaps} of {measured.size} samples of k-space were not measured: they stay so")
        spacing = header.spacing_mm
        space = layout.space
        return Scan(
            layout.arranged(grid),
            "kspace",
            space,
            None if spacing is None else tuple(spacing["xyz".index(letter)] for letter in space),
            sampled=_gaps(layout, measured) if gaps else None,
            assumed=tuple(assumed[0 if len(heads) > len(lines.rows) else 1 :]),
        )

    def write(self, values: Complex[np.ndarray, "n c *space"], file: Path) -> None:
        """A copy of this file with other samples in the lines of the images; all else stays as it is."""
        header, heads = self._contents()
        lines = self._lines(header, heads)
        grid = self._layout(header, lines).restored(values)
        columns = slice(lines.column, lines.column + lines.last - lines.first)
        shutil.copyfile(self.path, file)
        with hdf5_file(file, "r+") as opened:
            stored = opened[self.group]["data"]
            contents = stored[()]
            for row, n, z, y in zip(lines.rows, lines.image, lines.z, lines.y, strict=True):
                line = _complex(contents["data"][row], lines).copy()
                line[:, lines.first : lines.last] = grid[n, :, z, y, columns]
                contents["data"][row] = line.view(np.float32).reshape(-1)
            stored[...] = contents

    def _contents(self) -> tuple[_Header, Shaped[np.ndarray, " rows"]]:
        """Header, and the heads of all lines."""

        def load() -> tuple[bytes, Shaped[np.ndarray, " rows"]]:
            with hdf5_file(self.path) as file:
                group = file[self.group]
                text = np.asarray(group["xml"][()]).reshape(-1)
                if not text.size or len(text[0]) > _LARGEST_HEADER:
                    raise InputError(f"{self.path}: holds no ISMRMRD header that can be read")
                return bytes(text[0]), group["data"].fields("head")[()]

        text, heads = reading(str(self.path), load)
        return self._header(text), heads

    def _header(self, text: bytes) -> _Header:
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise InputError(f"{self.path}: its XML header defines entities, which no ISMRMRD header does")
        try:
            root = ElementTree.fromstring(text)  # noqa: S314  without entities, refused above
        except ElementTree.ParseError as error:
            raise InputError(f"{self.path}: its XML header cannot be read ({error})") from None
        for node in root.iter():
            node.tag = node.tag.rpartition("}")[2]
        encodings = root.findall("encoding")
        if len(encodings) != 1:
            raise InputError(f"{self.path}: holds {len(encodings)} encodings, wanted one")
        trajectory = (encodings[0].findtext("trajectory") or "").strip()
        if trajectory.lower() != "cartesian":
            raise InputError(f"{self.path}: its trajectory is {trajectory or 'not named'}, only Cartesian can be read")
        return self._encoded(encodings[0])

    def _encoded(self, encoding: ElementTree.Element) -> _Header:
        def number(path: str) -> float | None:
            text = encoding.findtext(path)
            try:
                return None if text is None else float(text)
            except ValueError:
                raise InputError(f"{self.path}: {path} of its header is {text!r}, wanted a number") from None

        sizes = [number(f"encodedSpace/matrixSize/{axis}") for axis in "xyz"]
        if any(size is None or size < 1 for size in sizes):
            raise InputError(f"{self.path}: encodedSpace/matrixSize of its header is {sizes}, wanted at least 1 each")
        matrix = tuple(int(size) for size in sizes if size is not None)
        fov = [number(f"encodedSpace/fieldOfView_mm/{axis}") for axis in "xyz"]
        spacing = [length / size for length, size in zip(fov, matrix, strict=True) if length and 0 < length < np.inf]
        centres = [number(f"encodingLimits/kspace_encoding_step_{step}/center") for step in (1, 2)]
        return _Header(
            (matrix[0], matrix[1], matrix[2]),
            (None if centres[0] is None else int(centres[0]), None if centres[1] is None else int(centres[1])),
            (spacing[0], spacing[1], spacing[2]) if len(spacing) == 3 else None,
        )

    def _lines(self, header: _Header, heads: Shaped[np.ndarray, " rows"]) -> _Lines:
        """Where each line of an image belongs.

        Raises: InputError for lines that are not of one extent, outside of the matrix, reversed or compressed.
        """
        flags = heads["flags"]
        rows = np.flatnonzero(~_has(flags, _OTHER))
        if not len(rows):
            raise InputError(f"{self.path}: holds no line of an image")
        images = heads[rows]
        for bits, what in (((_REVERSED,), "read backwards (EPI)"), (_COMPRESSED, "compressed")):
            wrong = rows[_has(flags[rows], bits)]
            if len(wrong):
                raise InputError(f"{self.path}: line {wrong[0]} is {what}, which cannot be read")
        if (images["encoding_space_ref"] != 0).any():
            raise InputError(f"{self.path}: lines of a second encoding space cannot be read")
        if (images["trajectory_dimensions"] != 0).any() and self._curved(rows):
            raise InputError(f"{self.path}: its lines carry a trajectory of their own, only a plain grid can be read")
        one = {}
        for name in ("number_of_samples", "active_channels", "center_sample", "discard_pre", "discard_post"):
            found = np.unique(images[name])
            if len(found) > 1:
                raise InputError(f"{self.path}: {name} differs between lines ({found[0]} to {found[-1]}), wanted one")
            one[name] = int(found[0])
        counters = images["idx"]
        nx, ny, nz = header.matrix
        y = self._steps(counters["kspace_encode_step_1"], header.centre[0], ny, 1)
        z = self._steps(counters["kspace_encode_step_2"], header.centre[1], nz, 2)
        first, last = one["discard_pre"], one["number_of_samples"] - one["discard_post"]
        column = nx // 2 - one["center_sample"] + first
        if column < 0 or last <= first or column + last - first > nx:
            raise InputError(
                f"{self.path}: {one['number_of_samples']} samples about center_sample {one['center_sample']} "
                f"do not fit the {nx} samples of the encoded matrix"
            )
        told_apart = np.stack([counters[name] for name in _IMAGE], axis=1)
        image = np.unique(told_apart, axis=0, return_inverse=True)[1].reshape(-1)
        return _Lines(rows, image, z, y, column, first, last, one["active_channels"], one["number_of_samples"])

    def _steps(
        self, steps: Shaped[np.ndarray, " lines"], centre: int | None, size: int, number: int
    ) -> Int[np.ndarray, " lines"]:
        places = steps.astype(np.int64) + (0 if centre is None else size // 2 - centre)
        if places.min() < 0 or places.max() >= size:
            raise InputError(
                f"{self.path}: kspace_encode_step_{number} goes from {steps.min()} to {steps.max()}, "
                f"outside of the {size} lines of the encoded matrix"
            )
        return places

    def _curved(self, rows: Int[np.ndarray, " lines"]) -> bool:
        """Whether the trajectory stored with the lines leaves a straight line along x."""
        with hdf5_file(self.path) as file:
            stored = file[self.group]["data"][()]
        for row in rows:
            dims = int(stored["head"][row]["trajectory_dimensions"])
            places = stored["traj"][row].reshape(-1, max(dims, 1))
            steps = np.diff(places, axis=0)
            if not np.allclose(steps, steps[:1], rtol=1e-3, atol=1e-6) or not np.allclose(steps[:, 1:], 0, atol=1e-6):
                return True
        return False


def _has(flags: Shaped[np.ndarray, " lines"], bits: tuple[int, ...]) -> Bool[np.ndarray, " lines"]:
    """Whether any of these bits, counted from 1, is set."""
    mask = np.uint64(sum(1 << (bit - 1) for bit in bits))
    return (flags.astype(np.uint64) & mask) != 0


def _complex(data: Shaped[np.ndarray, " numbers"], lines: _Lines) -> Complex[np.ndarray, "c samples"]:
    """Samples of a line, channel by channel; stored as pairs of float32."""
    return np.ascontiguousarray(data, dtype=np.float32).view(np.complex64).reshape(lines.channels, lines.samples)


def _gaps(layout: Layout, measured: Bool[np.ndarray, "n 1 z y x"]) -> Bool[np.ndarray, "n 1 *space"]:
    shape = tuple(size for letter, size in zip("zyx", layout.shape[2:], strict=True) if letter in layout.space)
    return measured.reshape(layout.shape[0], 1, *shape)
