"""The commands generate, inspect, verify, bound, corrupt. Heavy imports stay inside, so that `qsim --help` is quick."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qsim.errors import InputError

if TYPE_CHECKING:
    from generators.preview import Summary
    from generators.store import PatchStore

Progress = Callable[[int, int], None]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Patch store made by qsim generate.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, in SI units, instead of a table.")]


def generate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Generator config (YAML).")],
    out: Annotated[Path, typer.Option(metavar="STORE.zarr", help="Where the patch store goes.")],
    samples: Annotated[int | None, typer.Option(help="Samples to make, instead of the config's number.")] = None,
    workers: Annotated[int | None, typer.Option(help="Shards made at a time; all cores if not given.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Dask scheduler (tcp://host:port), or `threads` or `processes` here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a patch store that is there.")] = False,
) -> None:
    """Make a patch store from a config; goes on with an unfinished store of the same config, or grows one."""
    from generators.build import build
    from generators.config import GeneratorConfig
    from generators.reading import read_config

    if workers is not None and scheduler is not None and "://" in scheduler:
        raise InputError("--workers: does not go with the address of a scheduler, whose workers are started apart")
    chosen = read_config(config, GeneratorConfig)
    if samples is not None:
        if samples < 1:
            raise InputError(f"--samples: must be at least 1, got {samples}")
        chosen = chosen.model_copy(update={"samples": samples})
    with stopped("stopped; the same command goes on"), bar("generate", "samples") as progress:
        built = build(
            chosen,
            out,
            workers=len(os.sched_getaffinity(0)) if workers is None else workers,
            scheduler=scheduler or "threads",
            overwrite=overwrite,
            progress=progress,
        )
    if built.made == 0:
        typer.echo(f"{out}: {built.samples} samples, all there already")
        return
    rate = rate_text(built.made / built.seconds)
    typer.echo(f"{out}: {built.samples} samples, {built.made} made in {built.seconds:.1f} s ({rate})")


def rate_text(rate: float) -> str:
    """How fast: per minute where a second is too short to count in [1/s]."""
    if rate >= 2:
        return f"{rate:.0f} per second"
    return f"{60 * rate:.0f} per minute" if 60 * rate >= 2 else f"{3600 * rate:.2g} per hour"


@contextmanager
def stopped(message: str) -> Iterator[None]:
    """Say what stands after Ctrl-C, which ends a command as before (130)."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"qsim: {message}", err=True)
        raise


def inspect(
    store: StorePath,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write one page with pictures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is inside a patch store: counts, ranges per tissue and parameter, SNR, provenance."""
    from dataclasses import asdict

    from generators.preview import summarise, write_page
    from generators.store import PatchStore

    opened = PatchStore(store)
    with bar("inspect", "samples") as progress:
        summary = summarise(opened, progress)
    if as_json:
        attributes = opened.attributes.model_dump(mode="json")
        typer.echo(json.dumps({**asdict(summary), "attributes": attributes}, indent=1, allow_nan=False))
    else:
        _print_summary(summary, opened)
    if html is not None:
        write_page(opened, summary, html)
        if not as_json:
            typer.echo(f"page: {html}")


def verify(store: StorePath, as_json: AsJson = False) -> None:
    """Read every shard of a patch store and compare it with its recorded checksum; exit 1 if one is not whole."""
    from generators import store as stores

    with bar("verify", "shards") as progress:
        wrong = stores.verify(store, progress)
    if as_json:
        typer.echo(json.dumps({"path": str(store), "whole": not wrong, "wrong": wrong}, indent=1))
    elif wrong:
        typer.echo("\n".join(wrong))
    else:
        typer.echo(f"{store}: every shard is present and of its recorded checksum")
    if wrong:
        raise typer.Exit(1)


def bound(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Generator config, or a noise study (YAML).")],
    snr: Annotated[
        str, typer.Option(metavar="LIST", help="SNR = 0.65 / sigma, separated by commas.")
    ] = "3,5,10,30,60,100",
    voxels: Annotated[
        int, typer.Option(metavar="N", help="Voxels that share what is drawn once per sample (B).")
    ] = 1000,
    tissues: Annotated[str, typer.Option(metavar="LIST", help="Tissues; those of the phantom if not given.")] = "",
    design: Annotated[
        int | None, typer.Option(metavar="N", help="Propose N times that make the worst tissue's bound smallest.")
    ] = None,
    minimum: Annotated[float | None, typer.Option("--min", metavar="S", help="Shortest proposed time [s].")] = None,
    maximum: Annotated[float | None, typer.Option("--max", metavar="S", help="Longest proposed time [s].")] = None,
    total: Annotated[
        float | None, typer.Option(metavar="S", help="Largest sum of the proposed times [s]; no limit if not given.")
    ] = None,
    problem: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH", help="Bound that a design is for: free, shared or known; shared where it can be."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how well a protocol can tell each parameter of each tissue at best, and propose times that tell more."""
    from dataclasses import asdict

    from generators import bound as bounds
    from generators import bound_design as designs
    from generators.bound_text import page

    if voxels < 1:
        raise InputError(f"--voxels: must be at least 1, got {voxels}")
    snrs = bounds.read_snrs(snr)
    of = bounds.protocol(bounds.read_protocol(config), [name.strip() for name in tissues.split(",") if name.strip()])
    asked = designs.read_request(of, design, minimum, maximum, total, problem)
    rows = bounds.bound_rows(of, snrs, voxels)
    found = None if asked is None else designs.design(of, asked, snrs, voxels)
    if not as_json:
        typer.echo(page(of, rows, voxels, str(config), found))
        return
    listed = [asdict(row) for row in rows]
    told = listed if found is None else {"bound": listed, "design": asdict(found)}
    typer.echo(json.dumps(told, indent=1, allow_nan=False))


def corrupt(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="NIfTI, NumPy (.npy, .npz:ARRAY) or HDF5 (.h5:DATASET: fastMRI, ISMRMRD or any complex k-space).",
        ),
    ],
    config: Annotated[Path, typer.Option(metavar="ARTEFACTS.yaml", help="Which artefacts, and how strong.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Corrupted image, in the format of IMAGE.")],
    seed: Annotated[
        str | None, typer.Option(metavar="INTEGER", help="Of the draws; the config's if not given.")
    ] = None,
    kspace: Annotated[bool, typer.Option("--kspace", help="A NumPy file holds centred k-space.")] = False,
    slices: Annotated[
        bool, typer.Option("--slices", help="Slices were acquired one by one: artefacts act within each.")
    ] = False,
    magnitude: Annotated[
        bool, typer.Option("--magnitude", help="Write magnitudes; without this and --complex what IMAGE holds.")
    ] = False,
    as_complex: Annotated[bool, typer.Option("--complex", help="Write complex images.")] = False,
    scale: Annotated[str | None, typer.Option(metavar="01", help="Bring all magnitudes to 0..1.")] = None,
    phase: Annotated[
        Path | None, typer.Option(metavar="NIFTI", help="Phase of a NIfTI magnitude [rad, -pi to pi].")
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(metavar="LETTERS", help="Axes of an array: n images or slices, c coils, z y x; such as ncyx."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Before and after; beside FILE if not given.")
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Draw none.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put artefacts on an image, a series or k-space; beside it goes a JSON of all that was drawn, and a picture."""
    from generators.corrupt import corrupt_file
    from generators.corrupt_config import CorruptConfig, Job
    from generators.reading import read_config

    chosen = read_config(config, CorruptConfig)
    number = chosen.seed if seed is None else _whole("--seed", seed)
    if number is None:
        raise InputError(f"--seed: missing; give one, or `seed:` in {config}")
    if not 0 <= number < 2**63:
        raise InputError(f"--seed: must lie in [0, 2^63), got {number}")
    if no_picture and picture is not None:
        raise InputError("--no-picture: does not go with --picture")
    if magnitude and as_complex:
        raise InputError("--magnitude: does not go with --complex")
    job = Job(
        image=image,
        out=out,
        seed=number,
        config=str(config),
        kspace=kspace,
        slices=slices,
        magnitude=magnitude or (False if as_complex else None),
        scale=scale,
        phase=phase,
        axes=axes,
        picture=picture,
        with_picture=not no_picture,
        overwrite=overwrite,
    )
    with bar("corrupt", "steps") as progress:
        record = corrupt_file(job, chosen, progress)
    if as_json:
        typer.echo(json.dumps(record, indent=1, allow_nan=False))
        return
    told = ", ".join(
        f"{drawn['kind']} {severity:.3g}" if drawn["applied"] else f"{drawn['kind']} not drawn"
        for drawn, severity in zip(record["drawn"], record["severity"], strict=True)
    )
    change = "" if record["change"] is None else f"; magnitude changed by {100 * record['change']:.3g} % (RMS)"
    typer.echo(f"{out}: {record['output']['holds']}, {record['output']['dtype']}; severity {told}{change}")
    for line in (*record["assumed"], *record["notes"]):
        typer.echo(f"note: {line}")


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: got {text!r}, wanted a whole number") from None


def _print_summary(summary: "Summary", store: "PatchStore") -> None:
    from rich.console import Console
    from rich.table import Table

    from generators.preview import megabytes, shown
    from generators.preview_figures import snr_label

    attributes = store.attributes
    if summary.snr is not None:
        strength = f", {snr_label(store)} {summary.snr[0]:.3g} to {summary.snr[1]:.3g} ({attributes.snr})"
    elif summary.first_over_sigma is not None:
        strength = (
            f"; first image / sigma {summary.first_over_sigma:.3g} (median of its size over the tissue voxels of "
            f"{summary.looked_at} samples, noise included)"
        )
    else:
        strength = ""
    # names and units hold brackets, which are no markup
    console = Console(highlight=False, markup=False, emoji=False)
    times = [1000 * time for time in summary.times_s]
    console.print(
        f"{summary.path}: {summary.samples} samples of {' x '.join(map(str, summary.patch))} voxels, "
        f"{summary.images} images ({summary.dtype}), {min(times):g} to {max(times):g} ms\n"
        f"model {attributes.config['model']['kind']}, {attributes.split}\n"
        f"noise {attributes.noise}: sigma {summary.sigma[0]:.3g} to {summary.sigma[1]:.3g}{strength}\n"
        f"{megabytes(summary.bytes_on_disk)} on disk, {megabytes(summary.bytes_decoded)} in memory; "
        f"{100 * summary.mixed:.1f} % of the tissue voxels are mixed, "
        f"{100 * summary.background:.1f} % of all are background\n"
        f"table {attributes.table}; truncation: {attributes.truncation}\n"
        f"made {attributes.provenance.created} by qsim {attributes.versions.qsim}, torch {attributes.versions.torch}, "
        f"commit {attributes.provenance.commit or 'unknown'}; digest {attributes.digest[:12]}",
        soft_wrap=True,
    )
    table = Table("tissue", "voxels", "parameter")
    for name in ("lowest", "mean", "SD", "highest"):
        table.add_column(name, justify="right")
    for row in summary.rows:
        numbers = (shown(number, row.unit) for number in (row.low, row.mean, row.sd, row.high))
        table.add_row(row.tissue, f"{100 * row.share:.1f} %", row.parameter, *numbers)
    console.print(table)
    if not summary.artefacts:
        return
    table = Table("artefact", "samples", "median severity", "highest", "severity is")
    for artefact in summary.artefacts:
        numbers = (shown(number, "1") for number in (artefact.median, artefact.high))
        table.add_row(artefact.kind, f"{100 * artefact.share:.1f} %", *numbers, artefact.measures)
    console.print(table)


@contextmanager
def bar(what: str, unit: str) -> Iterator[Progress | None]:
    """A progress bar with rate and time left on a terminal; None elsewhere, where the last line says it all."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{unit}: {rate_text(task.speed)}" if task.speed else "")

    columns = (
        bars.TextColumn(what),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        Rate(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("left"),
    )
    with bars.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
