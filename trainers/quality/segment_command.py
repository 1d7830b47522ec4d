"""`qsim segment`: labels, probabilities, variances by source, volume with error bar, and a picture of one image.

    image -> axes to RAS -> grid of the training -> windows -> back to the grid of the image -> folder of derivatives

What is said of the whole image (volume, error bar, mean variances) is taken on the grid that the network saw, as its
calibration is; maps are on the grid of the image. Probabilities and variances come back linearly, and the labels are
the most probable class there.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import typer

from generators.cli import bar, stopped
from phantoms.files.derivatives import Sources, check_out, derivatives, name_of
from trainers.quality.image import read_image, read_truth, resampling
from trainers.quality.segment_figures import Measured
from trainers.quality.segment_files import Maps, Names, write
from trainers.quality.segment_record import SegmentRecord
from trainers.quality.segment_text import lines
from trainers.quality.windows import Progress


@dataclass(frozen=True, slots=True)
class SegmentWords:
    """The options of the command as they were typed."""

    model: str
    source: tuple[str, ...] = ()
    labels: Path | None = None
    scheme: str = "freesurfer"
    resample: bool = True
    device: str = "auto"
    overwrite: bool = False


def run(image: Path, out: Path, words: SegmentWords, *, as_json: bool) -> None:
    """Segment an image, and say what was found.

    Raises: InputError naming the option or file at fault.
    """
    with stopped("stopped; nothing was written"), bar("segment", "windows") as progress:
        record = segment(image, out, words, progress)
    if as_json:
        typer.echo(json.dumps(record.as_json(), indent=1, allow_nan=False))
        return
    typer.echo("\n".join(lines(record)))


def segment(file: Path, out: Path, words: SegmentWords, progress: Progress | None = None) -> SegmentRecord:
    """Segment an image, and write all of it or nothing.

    Args:
        progress: called with windows done and windows in all.
    Raises: InputError naming the option or file at fault.
    """
    from trainers.quality.loading import load_segmenter

    began = time.perf_counter()
    image = read_image(file)
    segmenter = load_segmenter(words.model, words.device)
    shown = segmenter.check_sources(words.source, "--source")
    truth = read_truth(words.labels, words.scheme, image, segmenter.target) if words.labels else {}
    grid, resampled = resampling(image, segmenter.spacing_mm, allowed=words.resample)
    names = Names(name_of(file.name.removesuffix(".gz").removesuffix(".nii")), segmenter.target, shown)
    sources = Sources.of((file,))
    check_out(out, names.planned, sources, overwrite=words.overwrite)
    found = segmenter(torch.from_numpy(grid.there(image.values)), progress)
    maps = Maps.of(found, grid, segmenter.target, shown)
    measured = Measured(found, segmenter, grid.voxel_mm3 if grid.needed else image.voxel_mm3)
    volumes, notes = measured.volumes(maps.labels, image.voxel_mm3, truth)
    record = SegmentRecord(
        image=file.name,
        out=str(out),
        model=segmenter.name or words.model,
        digest=segmenter.digest,
        resampled=grid.needed,
        volumes=volumes,
        sources=measured.sources(),
        artefacts=measured.artefacts(),
        blame=measured.blame(),
        notes=(*image.notes, *resampled, *segmenter.notes, *notes),
    )
    with derivatives(out, (*names.planned, *names.belonging), sources, overwrite=words.overwrite) as made:
        write(made, names, image, maps, record, sources)
        files = tuple(str(each) for each in made.files)
    return replace(record, files=files, seconds=time.perf_counter() - began)
