"""`qsim segment` with networks of kind segmentation: the left ventricle in every slice of an image, and how sure it is.

    image (x, y, z, n) -> of each slice one contrast -> 0..1 in the square of the training -> networks
                       -> probability, entropy, mutual information back on the grid of the image -> derivatives

Maps come back linearly, and the mask is a probability of at least a half there. Figures of uncertainty are taken on the
square that the networks saw, areas and volumes on the grid of the image.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from generators.cli import Progress, bar, stopped
from phantoms.files.derivatives import Sources, check_out, derivatives, name_of
from qsim.errors import InputError

if TYPE_CHECKING:
    from trainers.segmentation.predict import Masker
    from trainers.segmentation.segment_figures import HeartRecord

KIND = "segmentation"
# key of the description in a network's file, see `trainers.checkpoint`
_FORMAT = "qsim-network"


@dataclass(frozen=True, slots=True)
class HeartWords:
    """The options of the command as they were typed.

    Attributes:
        ensemble: further networks.
        samples: passes of Monte Carlo dropout of each network; None: none.
        image: number of the contrast that is segmented; None: in each slice that of the highest SNR.
        labels: mask on the voxels of the image.
    """

    model: str
    ensemble: tuple[str, ...] = ()
    samples: int | None = None
    image: int | None = None
    labels: Path | None = None
    device: str = "auto"
    overwrite: bool = False

    @property
    def members(self) -> int:
        """Answers to each slice."""
        return (1 + len(self.ensemble)) * (self.samples or 1)


def is_segmentation(model: str, own: Mapping[str, bool], other: Mapping[str, bool]) -> bool:
    """Whether a network is of kind segmentation; one that cannot be read is left to those who load it.

    Args:
        own: options of that kind, and whether each was given.
        other: the same of kind decoupled.
    Raises: InputError of an option that belongs to the other kind.
    """
    kind = _kind(model)
    mine, theirs = (other, "decoupled") if kind == KIND else (own, KIND)
    given = [option for option, typed in mine.items() if typed]
    if given:
        if kind is None:
            from trainers.infer import find_network

            find_network(model)
        is_of = f"{model} is of kind: {kind}" if kind else f"{model} is none"
        raise InputError(f"{given[0]}: is for networks of kind: {theirs}, and {is_of}; leave it out")
    return kind == KIND


def _kind(model: str) -> str | None:
    """What the header of a network's file says, without its weights; None: nothing."""
    from safetensors import SafetensorError, safe_open

    from trainers.infer import find_network

    try:
        with safe_open(find_network(model), framework="np") as file:
            header = json.loads((file.metadata() or {}).get(_FORMAT, "{}"))
    except (InputError, SafetensorError, OSError, ValueError):
        return None
    return header.get("kind")


def run_hearts(image: Path, out: Path, words: HeartWords, *, as_json: bool) -> None:
    """Segment an image, and say what was found.

    Raises: InputError naming the option or file at fault.
    """
    from trainers.segmentation.segment_text import lines

    with stopped("stopped; nothing was written"), bar("segment", "slices") as progress:
        record = segment_hearts(image, out, words, progress)
    if as_json:
        typer.echo(json.dumps(record.as_json(), indent=1, allow_nan=False))
        return
    typer.echo("\n".join(lines(record)))


def segment_hearts(file: Path, out: Path, words: HeartWords, progress: Progress | None = None) -> "HeartRecord":
    """Segment an image, and write all of it or nothing.

    Args:
        progress: called with slices done and slices in all.
    Raises: InputError naming the option or file at fault.
    """
    from trainers.segmentation.segment_figures import HeartRecord, Model, answers, notes_of, slices_of, volume_of
    from trainers.segmentation.segment_files import Names, contrasts, read_series, write
    from trainers.segmentation.slices import read_mask

    began = time.perf_counter()
    if words.samples is not None and words.samples < 1:
        raise InputError(f"--samples: got {words.samples}, wanted 1 or more passes; or leave it out")
    series = read_series(file)
    truth = None
    if words.labels is not None:
        truth = read_mask(words.labels, "--labels", file.name, series.place.space, series.place.affine)
    chosen = contrasts(series, words.image)
    names = Names(name_of(file.name.removesuffix(".gz").removesuffix(".nii")), words.members > 1)
    sources = Sources.of((file,))
    check_out(out, names.planned, sources, overwrite=words.overwrite)
    masker = _masker(words)
    maps, scores = answers(masker, series, chosen, progress)
    record = HeartRecord(
        image=file.name,
        out=str(out),
        models=tuple(Model(*each) for each in zip(masker.names, masker.digests, strict=True)),
        members=words.members,
        samples=words.samples or 0,
        images=len(series.values),
        volume=volume_of(maps, series, truth),
        slices=slices_of(maps, series, chosen, scores, truth),
        notes=(*series.notes, *notes_of(file.name, maps, chosen, series.field_mm, masker.field_mm)),
    )
    with derivatives(out, (*names.planned, *names.belonging), sources, overwrite=words.overwrite) as made:
        write(made, names, series, maps, record, sources, truth)
        files = tuple(str(each) for each in made.files)
    return replace(record, files=files, seconds=time.perf_counter() - began)


def _masker(words: HeartWords) -> "Masker":
    """The networks.

    Raises: InputError naming the network or option at fault.
    """
    from trainers.segmentation.predict import load_masker

    runs = (words.model, *words.ensemble)
    try:
        masker = load_masker(runs, words.device, words.samples or 0)
    except InputError as error:
        raise InputError(f"--{error}" if str(error).startswith("samples: ") else str(error)) from None
    for number, digest in enumerate(masker.digests):
        first = masker.digests.index(digest)
        if first < number:
            raise InputError(f"--ensemble: {runs[number]} is the same network as {runs[first]}; name another one")
    return masker
