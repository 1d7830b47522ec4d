"""`qsim corrupt`: an image or k-space out of a file, artefacts drawn and applied, and all that was done beside it.

    file -> complex images -> draw -> apply -> file of the same format, JSON of what was drawn, picture

A draw is a function of the config, the seed and the shape of the images; the result one of the draw and the images.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from generators.before_after import picture
from generators.corrupt_config import CorruptConfig, Job
from generators.too_strong import computed, require_finite
from generators.unmeasured import effective, merged, noise_notes
from phantoms.files.images import Scan, ScanFile
from phantoms.files.raw import open_scan, suffix_of
from qsim import __version__
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace import Corrupted, Stage, apply_chain, as_records, draw_chain, to_image, to_kspace, with_spacing
from qsim.kspace.artefacts.base import Artefact, Drawn

Progress = Callable[[int, int], None]
Record = dict[str, Any]
_STEPS = 5


def corrupt_file(job: Job, config: CorruptConfig, progress: Progress | None = None) -> Record:
    """Corrupt the image of a file, and write the result, what was drawn, and a picture: all of them or none.

    Args:
        progress: called with steps done and steps in all.
    Returns: what is written as JSON.
    Raises: InputError naming the file, option or field at fault.
    """
    tell = progress or _silent
    source = open_scan(
        job.image, kspace=job.kspace, axes=job.axes, phase=job.phase, signed=job.magnitude is False and not job.phase
    )
    _check_files(job, source)
    tell(0, _STEPS)
    threads = torch.get_num_threads()
    # sums over several threads differ in their last bits with the number of threads
    torch.set_num_threads(1)
    try:
        scan = source.read()
        _check_form(job, scan)
        with _naming(job.config):
            artefacts = fitted(config.artefact_list, scan, job.slices)
            tell(1, _STEPS)
            result = _corrupted(scan, artefacts, job)
        tell(2, _STEPS)
        values, dtype, scaled = _output(result.values, scan, job)
        record = {
            **_told(job, source, scan, config, artefacts, result),
            **({} if scaled is None else {"scale": scaled}),
            "change": _change(result.before, result.after),
        }
        with _together(job.files, job.stale_picture) as partial:
            source.write(values, partial[job.out])
            tell(3, _STEPS)
            record["output"] = {
                "file": job.out.name,
                "sha256": _sha256(partial[job.out]),
                "holds": scan.domain if scan.domain == "kspace" else _form(job, scan),
                "dtype": dtype,
            }
            partial[job.json_file].write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            tell(4, _STEPS)
            if job.picture_file is not None:
                _draw(partial[job.picture_file], result, scan, artefacts, job)
    finally:
        torch.set_num_threads(threads)
    tell(_STEPS, _STEPS)
    return record


def _silent(done: int, total: int) -> None:
    del done, total


@dataclass(frozen=True, slots=True)
class _Result:
    """Images before and after, the values of the file's own domain, all that was drawn, the chain's report, notes.

    The chain holds what had an effect: of the draws, what falls on measured samples.
    """

    before: Complex[Tensor, "n c *space"]
    after: Complex[Tensor, "n c *space"]
    values: Complex[Tensor, "n c *space"]
    drawn: tuple[Drawn | None, ...]
    chain: Corrupted
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@contextmanager
def _naming(config: str) -> Iterator[None]:
    """The config's name before the path of a field that does not fit the image."""
    try:
        yield
    except InputError as error:
        named = config and str(error).startswith(("artefacts[", "artefacts:"))
        raise InputError(f"{config}: {error}" if named else str(error)) from None


def _check_files(job: Job, source: ScanFile) -> None:
    """Refuse outputs that cannot be, before anything is read."""
    path = source.path
    wanted, given = suffix_of(path), suffix_of(job.out)
    alike = {".nii.gz": ".nii", ".hdf5": ".h5"}
    if alike.get(given, given) != alike.get(wanted, wanted):
        raise InputError(f"--out: {job.out} must end in {wanted}, as {path.name} does: the format stays")
    drawn = job.picture_file
    if drawn is not None and drawn.suffix.lower() != ".png":
        raise InputError(f"--picture: {drawn} must end in .png")
    sources = {path.resolve(), *([job.phase.resolve()] if job.phase else [])}
    for file, option in zip(job.files, ("--out", "--out", "--picture"), strict=False):
        if not file.parent.is_dir():
            raise InputError(f"{option}: folder {file.parent} does not exist")
        if file.resolve() in sources:
            raise InputError(f"{option}: {file} is the input itself; name another file")
        if file.is_dir():
            raise InputError(f"{option}: {file} is a folder")
        if file.exists() and not job.overwrite:
            raise InputError(f"{option}: {file} exists already; add --overwrite to replace it")
    if job.stale_picture is not None and not job.overwrite:
        raise InputError(f"--out: {job.stale_picture} is of an earlier run; add --overwrite to remove it")
    if len(set(job.files)) < len(job.files):
        raise InputError(f"--picture: {drawn} is an output already; name another file")
    if job.scale not in (None, "01"):
        raise InputError(f"--scale: got {job.scale}, wanted 01")


def _form(job: Job, scan: Scan) -> str:
    """Whether images are written as magnitudes."""
    magnitude = scan.real if job.magnitude is None else job.magnitude
    return "magnitude" if magnitude else "complex"


def _check_form(job: Job, scan: Scan) -> None:
    if scan.domain == "kspace":
        for option, given in (("--magnitude", job.magnitude is not None), ("--scale", job.scale is not None)):
            if given:
                raise InputError(f"{option}: {job.image} is k-space and stays complex k-space")
    elif job.scale is not None and _form(job, scan) == "complex":
        raise InputError("--scale: only magnitudes are scaled; add --magnitude")


def fitted(artefacts: Sequence[Artefact[Any]], scan: Scan, slices: bool) -> tuple[Artefact[Any], ...]:
    """The artefacts with the axes and the voxel size of a scan, where they leave them open.

    Raises: InputError if one cannot be on it.
    """
    dims = len(scan.axes)
    if slices and dims == 2:
        raise InputError("--slices: these are slices already, leave it out")
    chosen = []
    for number, artefact in enumerate(artefacts):
        where = f"artefacts[{number}]"
        if artefact.ndim is not None and artefact.ndim > (2 if slices else dims):
            raise InputError(f"{where}.ndim: got {artefact.ndim}, but the image is made of slices")
        if scan.sampled is not None and artefact.stage <= Stage.FIELD:
            raise InputError(
                f"{where}: {artefact.kind} changes the object, which takes all of k-space; part of it was not measured"
            )
        ndim = artefact.ndim or (2 if slices else dims)
        try:
            placed = replace(artefact, ndim=ndim)  # type: ignore[type-var]
            chosen.append(placed if scan.spacing_mm is None else with_spacing(placed, scan.spacing_mm))
        except ValueError as error:
            raise InputError(f"{where}.{error}") from None
    return tuple(chosen)


def _corrupted(scan: Scan, artefacts: Sequence[Artefact[Any]], job: Job) -> _Result:
    values = torch.from_numpy(scan.values)
    axes = tuple(range(-len(scan.axes), 0))
    # measured samples are transformed in double precision, so that those that nothing touches can be told
    before = to_image(values.to(torch.complex128), axes) if scan.domain == "kspace" else values
    # slices of one volume count as images of a series; those of a series share its draws, as coils do
    alone = job.slices and before.shape[0] == 1
    given = before.movedim(2, 0)[:, 0] if alone else before
    drawn = computed(artefacts, lambda n: draw_chain(artefacts[:n], tuple(given.shape), Streams(job.seed, 0).rng))
    acting = drawn
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if scan.sampled is not None:
        reaching = effective(drawn, scan.sampled)
        acting, notes = reaching.drawn, reaching.notes
        assumed = noise_notes(artefacts, drawn, scan.sampled)
    chain = computed(artefacts, lambda n: apply_chain(given, artefacts[:n], acting[:n]))
    if not any(chain.severity):
        # nothing happened: the file's own values, without the rounding of two transforms
        return _Result(before, before, values, drawn, chain, assumed, notes)
    after = chain.images[:, None].movedim(0, 2) if alone else chain.images
    if scan.domain == "image":
        require_finite(after)
        return _Result(before, after, after, drawn, chain, assumed, notes)
    require_finite(after)
    written = merged(values, to_kspace(before, axes), to_kspace(after, axes), scan.sampled)
    require_finite(written)
    if torch.equal(written, values):
        notes = (*notes, "no sample of k-space has changed")
        return _Result(before, before, values, drawn, chain, assumed, notes)
    return _Result(before, to_image(written.to(before.dtype), axes), written, drawn, chain, assumed, notes)


def _output(
    values: Complex[Tensor, "n c *space"], scan: Scan, job: Job
) -> tuple[Inexact[np.ndarray, "n c *space"], str, Record | None]:
    """What is written, its dtype, and how it was scaled."""
    array: Inexact[np.ndarray, "n c *space"] = values.resolve_conj().numpy()
    if scan.domain == "kspace" or _form(job, scan) == "complex":
        return array, str(array.dtype), None
    with np.errstate(over="ignore"):
        array = np.abs(array)
    require_finite(torch.from_numpy(array))
    if job.scale is None:
        return array, str(array.dtype), None
    low, high = float(array.min()), float(array.max())
    if high == low:
        raise InputError(f"--scale: every voxel of what comes out is {low:g}, which has no range")
    return (array - array.dtype.type(low)) / array.dtype.type(high - low), str(array.dtype), {"low": low, "high": high}


def _combined(images: Complex[Tensor, "n c *space"]) -> Float[Tensor, "n *space"]:
    """Magnitude; of several coils the root of the sum of squares, which single precision may not hold."""
    return images.abs()[:, 0] if images.shape[1] == 1 else images.abs().double().square().sum(1).sqrt()


def _change(before: Complex[Tensor, "n c *space"], after: Complex[Tensor, "n c *space"]) -> float | None:
    """Relative RMS change of the magnitude of all images [1]; None if there was nothing before."""
    size = float(_combined(before).double().norm())
    change = float((_combined(after) - _combined(before)).double().norm())
    return change / size if size else None


def _told(
    job: Job,
    source: ScanFile,
    scan: Scan,
    config: CorruptConfig,
    artefacts: Sequence[Artefact[Any]],
    result: _Result,
) -> Record:
    layout, path = source.layout(), source.path
    used = config.model_copy(update={"artefacts": tuple(artefacts)}).model_dump(mode="json")["artefacts"]
    inside = job.image.removeprefix(str(path)).removeprefix(":")
    return {
        "input": {
            "file": path.name,
            **({"inside": inside} if inside else {}),
            "sha256": _sha256(path),
            **({} if job.phase is None else {"phase": job.phase.name, "phase_sha256": _sha256(job.phase)}),
            "holds": "kspace" if scan.domain == "kspace" else "magnitude" if scan.real else "complex",
            "shape": list(layout.shape),
            "axes": layout.letters,
            "space": scan.axes,
            "spacing_mm": None if scan.spacing_mm is None else list(scan.spacing_mm),
        },
        "seed": job.seed,
        "slices": job.slices,
        "artefacts": used,
        "drawn": [
            {**drawn, "severity": severity} if drawn["applied"] else drawn
            for drawn, severity in zip(as_records(artefacts, result.drawn), result.chain.severity, strict=True)
        ],
        "severity": list(result.chain.severity),
        "facts": [dict(facts) for facts in result.chain.facts],
        "assumed": [*scan.assumed, *result.assumed],
        "notes": list(result.notes),
        "versions": {"qsim": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }


def _draw(file: Path, result: _Result, scan: Scan, artefacts: Sequence[Artefact[Any]], job: Job) -> None:
    """The picture of the slice with most energy of the first image."""
    before, after = result.before[0], result.after[0]
    where = f"{Path(job.image).name}"
    if result.before.shape[0] > 1:
        where += f", image 1 of {result.before.shape[0]}"
    if len(scan.axes) == 3:
        energy = before.abs().square().sum(dim=(0, 2, 3))
        number = int(energy.argmax())
        before, after = before[:, number], after[:, number]
        where += f", slice {number + 1} of {len(energy)} along {scan.axes[0]}"
    spacing = scan.spacing_mm[-2:] if scan.spacing_mm is not None else (1.0, 1.0)
    happened = [
        f"{artefact.kind} {severity:.3g}" if drawn is not None else f"{artefact.kind} (not drawn)"
        for artefact, drawn, severity in zip(artefacts, result.chain.drawn, result.chain.severity, strict=True)
    ]
    picture(
        # squares may be larger than single precision holds
        before.to(torch.complex128).numpy(),
        after.to(torch.complex128).numpy(),
        title=f"{where}: severity of {', '.join(happened)}",
        axes=scan.axes[-2:],
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        file=file,
    )


@contextmanager
def _together(files: Sequence[Path], stale: Path | None) -> Iterator[dict[Path, Path]]:
    """Names to write to, renamed when all are written: no file is ever there in half, and no stale one beside them."""
    partial = {file: file.with_name(f".{os.getpid()}.partial.{file.name}") for file in files}
    try:
        yield partial
        for file, written in partial.items():
            written.replace(file)
        if stale is not None:
            stale.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{files[0]}: cannot be written ({error.strerror or error})") from None
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
