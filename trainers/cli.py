"""The console script `qsim`. Each package keeps its own commands; this file mounts them and reports mistakes.

Nothing heavy is imported here: `qsim --help` stays quick.
"""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from generators.cli import bound, corrupt, generate, inspect, verify
from phantoms.cli import phantom
from qsim import __version__
from qsim.errors import InputError

app = typer.Typer(
    name="qsim",
    help="Simulate quantitative MRI: data sets from a config, networks trained on them, studies against known truth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Device(StrEnum):
    """Where a network runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Registry(StrEnum):
    """What `qsim list` can list."""

    MODELS = "models"
    PHANTOMS = "phantoms"
    ARTEFACTS = "artefacts"
    ESTIMATORS = "estimators"
    NETWORKS = "networks"
    SHIPPED = "shipped"
    STUDIES = "studies"


class Schema(StrEnum):
    """Configs that `qsim schema` describes."""

    GENERATE = "generate"
    TRAIN = "train"
    DECOUPLED = "decoupled"
    SEGMENTATION = "segmentation"
    STUDY = "study"
    ARTEFACTS = "artefacts"


ConfigFile = Annotated[Path, typer.Argument(help="YAML file.", show_default=False)]


def train(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Folder of the run: weights, log, config.", show_default=False)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the same config.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto: CUDA if there is one.")] = Device.AUTO,
    workers: Annotated[
        int, typer.Option(min=1, help="Kind decoupled: networks side by side; segmentation: for its data only.")
    ] = 1,
) -> None:
    """Train a network, or a cascade of them, on a data set or on samples made on the fly."""
    from generators.reading import read_config, read_yaml

    kind = read_yaml(config).get("kind")
    if kind == "segmentation":
        from trainers.segmentation.config import SegmentationConfig
        from trainers.segmentation.training import train_segmentation

        read = read_config(config, SegmentationConfig)
        train_segmentation(read, out, resume=resume, device=device.value, workers=workers)
        return
    if kind == "decoupled":
        from trainers.quality.cascade import train_cascade
        from trainers.quality.config import DecoupledConfig

        train_cascade(read_config(config, DecoupledConfig), out, resume=resume, device=device.value, workers=workers)
        return
    from trainers.config import TrainConfig
    from trainers.fit import fit

    if workers > 1:
        raise InputError(
            "--workers: trains the networks of kind: decoupled side by side, and makes the data of kind: "
            "segmentation; this config is neither"
        )
    fit(read_config(config, TrainConfig), out, resume=resume, device=device.value)


def study(
    config: ConfigFile,
    out: Annotated[
        Path, typer.Option(help="Folder for results.csv, report.html, provenance.json.", show_default=False)
    ],
    workers: Annotated[int, typer.Option(min=1, help="Blocks at a time; the numbers do not depend on it.")] = 1,
    scheduler: Annotated[
        str, typer.Option(metavar="WHERE", help="threads or processes here, or a Dask scheduler (tcp://host:port).")
    ] = "threads",
    device: Annotated[Device, typer.Option(help="Where networks run; fits run on the CPU.")] = Device.CPU,
    estimator: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:OBJECT", help="A method of your own, build(model); may be given several times."),
    ] = None,
) -> None:
    """Run a study against known truth, by its kind: estimators under noise, preparations under B0 and B1, readouts."""
    from generators.cli import stopped
    from trainers.studies.block_runner import Command
    from trainers.studies.registry import read_study

    chosen, read = read_study(config)
    with stopped("stopped; the same command goes on"):
        chosen.run(read, out, Command(workers, scheduler, device.value, tuple(estimator or ())))


def map_(
    series: Annotated[
        Path,
        typer.Argument(
            metavar="SERIES", help="NIfTI with a JSON beside it, a BIDS folder, an array.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the maps (BIDS derivatives).", show_default=False)],
    method: Annotated[str, typer.Option(metavar="NAME", help="One of `qsim list estimators`.")] = "",
    model: Annotated[str, typer.Option(metavar="RUN", help="A trained network: its run, or a shipped name.")] = "",
    estimator: Annotated[str, typer.Option(metavar="MODULE:OBJECT", help="A method of your own, build(model).")] = "",
    signal: Annotated[str, typer.Option(metavar="KIND", help="Signal model; else by the key of the times.")] = "",
    times: Annotated[
        str, typer.Option(metavar="LIST", help="Instead of the sidecar's [s; flip angles: degrees].")
    ] = "",
    sigma: Annotated[str, typer.Option(metavar="S|FILE", help="Noise SD; estimated if not given.")] = "",
    mask: Annotated[str, typer.Option(metavar="FILE|auto", help="Voxels to map; all if not given.")] = "",
    b1: Annotated[
        str, typer.Option(metavar="FILE", help="Transmit field over the nominal; for flip angles 1 if none.")
    ] = "",
    known: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE|NUMBER", help="A row that is known, such as B=1.96.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the method.")] = None,
    tissues: Annotated[str, typer.Option(metavar="TABLE", help="For the method map: sabidussi2021.")] = "",
    std: Annotated[bool, typer.Option("--std", help="Also standard deviations.")] = False,
    slices: Annotated[str, typer.Option(metavar="A:B", help="Only these, from 0, without B.")] = "",
    magnitude: Annotated[bool, typer.Option("--magnitude", help="Of complex images take the modulus.")] = False,
    signed: Annotated[
        str, typer.Option(metavar="yes|no", help="Whether negative values are signal; else they tell it themselves.")
    ] = "",
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Array inside of MATLAB, HDF5, npz.")] = "",
    axes: Annotated[str, typer.Option(metavar="LETTERS", help="Of such an array: n c z y x in its order.")] = "",
    voxel_mm: Annotated[str, typer.Option(metavar="Z,Y,X", help="Voxel size of such an array [mm].")] = "",
    kspace: Annotated[bool, typer.Option("--kspace", help="Such an array is k-space.")] = False,
    register: Annotated[
        bool, typer.Option("--register", help="Rigidly register the images first; needs SimpleITK.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto: CUDA for networks if there is one.")] = Device.AUTO,
    subject: Annotated[str, typer.Option(metavar="LABEL", help="Instead of that of the series.")] = "",
    session: Annotated[str, typer.Option(metavar="LABEL", help="Instead of that of the series.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace maps of the same name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Map a measured series: T1, T2, T2* or T1rho as BIDS derivatives, with status and a picture."""
    from trainers.mapping.command import MapWords, run

    words = MapWords(
        method=method,
        model=model,
        estimator=estimator,
        signal=signal,
        times=times,
        sigma=sigma,
        mask=mask,
        b1=b1,
        known=tuple(known or ()),
        option=tuple(option or ()),
        tissues=tissues,
        std=std,
        slices=slices,
        magnitude=magnitude,
        signed=signed,
        dataset=dataset,
        axes=axes,
        voxel_mm=voxel_mm,
        register=register,
        kspace=kspace,
        device=device.value,
        subject=subject,
        session=session,
        overwrite=overwrite,
    )
    run(series, out, words, as_json=as_json)


def segment(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="NIfTI image; kind segmentation: also a series (x, y, z, n).", show_default=False
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="RUN", help="A trained network: its run, or a shipped name.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results (BIDS derivatives).", show_default=False)],
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Kind decoupled: only this variance map, task or an artefact; may be given several times.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="True labels on the same grid: Dice and volume error. Kind segmentation: a mask, above 0 the target.",
        ),
    ] = None,
    scheme: Annotated[
        str, typer.Option(metavar="NAME", help="Kind decoupled: what the numbers of the labels mean.")
    ] = "freesurfer",
    no_resample: Annotated[
        bool,
        typer.Option(
            "--no-resample", help="Kind decoupled: refuse an image of another spacing than the model learned."
        ),
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Kind segmentation: a further network; may be given several times."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Kind segmentation: passes of Monte Carlo dropout of each network."),
    ] = None,
    contrast: Annotated[
        int | None,
        typer.Option(
            "--image", metavar="K", help="Kind segmentation: image of a series, from 0; if not given the highest SNR."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto: CUDA if there is one.")] = Device.AUTO,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of the same name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Segment an image, and say how far that can be trusted, by the kind of the network.

    decoupled: volume with error bar, variance by artefact. segmentation: the left ventricle in every slice, entropy,
    and what the members of an ensemble do not agree on.
    """
    from trainers.segmentation.segment_command import HeartWords, is_segmentation, run_hearts

    of_hearts = {"--ensemble": bool(ensemble), "--samples": samples is not None, "--image": contrast is not None}
    of_quality = {"--source": bool(source), "--scheme": scheme != "freesurfer", "--no-resample": no_resample}
    if is_segmentation(model, of_hearts, of_quality):
        hearts = HeartWords(
            model=model,
            ensemble=tuple(ensemble or ()),
            samples=samples,
            image=contrast,
            labels=labels,
            device=device.value,
            overwrite=overwrite,
        )
        run_hearts(image, out, hearts, as_json=as_json)
        return
    from trainers.quality.segment_command import SegmentWords, run

    words = SegmentWords(
        model=model,
        source=tuple(source or ()),
        labels=labels,
        scheme=scheme,
        resample=not no_resample,
        device=device.value,
        overwrite=overwrite,
    )
    run(image, out, words, as_json=as_json)


def list_(
    what: Annotated[Registry | None, typer.Argument(help="One registry; all if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what a config can name."""
    from trainers.registry import registries

    tables = registries()
    chosen = {what.value: tables[what.value]} if what else tables
    if as_json:
        typer.echo(json.dumps(chosen, indent=2))
        return
    for name, rows in chosen.items():
        typer.echo(name)
        width = max((len(kind) for kind in rows), default=0)
        for kind, text in rows.items():
            typer.echo(f"  {kind:{width}}  {text}")
        if not rows:
            typer.echo("  none yet")


def schema(what: Annotated[Schema, typer.Argument(help="Which config.")] = Schema.GENERATE) -> None:
    """Print the JSON Schema of a config, for editors."""
    from trainers.registry import config_schema

    typer.echo(json.dumps(config_schema(what.value), indent=2))


_COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "inspect": inspect,
    "verify": verify,
    "bound": bound,
    "corrupt": corrupt,
    "train": train,
    "study": study,
    "map": map_,
    "segment": segment,
    "phantom": phantom,
    "list": list_,
    "schema": schema,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qsim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
) -> None:
    del version, debug  # --debug may stand anywhere: main() takes it out before typer reads the rest


def main() -> None:
    """Run a command: exit 0; 2 with one clear message for bad input; 1 for a mistake of the program itself."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, InputError | OSError):
            _say(_one_line(error))
            sys.exit(2)
        _say(f"{type(error).__name__}: {error}\nThis is a mistake in qsim; add --debug for the traceback.")
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    return str(error)


def _say(message: str) -> None:
    print(f"qsim: {message}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
