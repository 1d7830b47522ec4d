"""Giving a trained relaxation network away: the file and card of a shipped network, and the factors of calibration.

    from trainers.relaxation.shipping import ship
    ship("runs/t1rho", "t1rho-liver", Path("trainers/shipped"), made_by="configs/huang2022/train_t1rho_small.yaml",
         calibration={"T1RHO": 1.3}, results="...")

The file holds the weights and what the training said of itself, but no folder of the machine that it ran on. The card
beside it is filled from the same header; what was measured is for the author to say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsim.errors import InputError
from qsim.evaluation.calibration import Factor, SdCalibration, factor_json, factor_of
from trainers.checkpoint import save_tensors
from trainers.infer import find_network
from trainers.networks import RelaxationNetwork, UNetNetwork
from trainers.relaxation.contrasts import inputs
from trainers.relaxation.learned import check_calibration, learned_of, times_of
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.shipping import free_files, give, grouped, own_header, weights_of
from trainers.stored import Stored, read_network

_NAMES = {"T1RHO": "T1rho", "T2": "T2"}
_SERIES = {
    ("T1RHO",): "SpinLock(tsl=(0.0, {0:g}))",
    ("T2",): "T2Prep(te_prep=(0.0, {0:g}))",
    ("T1RHO", "T2"): "SpinLockT2Prep(tsl=(0.0, {0:g}, 0.0), te_prep=(0.0, 0.0, {1:g}))",
}


def calibrate(run: str | Path, factors: Mapping[str, Factor]) -> Path:
    """Write into a network's file by what its standard deviations are to be multiplied, in place of earlier factors.

    Args:
        factors: of each row, for the answer of `trainers.load` as it is without options.
    Returns: the file.

    Raises: InputError if the network has no such row, or a factor is not positive.
    """
    stored = _relaxation(run)
    save_tensors(stored.path, stored.tensors, {**stored.header, "calibration": _factors(stored, factors)})
    return stored.path


def ship(
    run: str | Path,
    name: str,
    folder: Path,
    *,
    made_by: str,
    calibration: Mapping[str, Factor] | None = None,
    results: str = "",
) -> tuple[Path, Path]:
    """Write `<name>.safetensors` and its card `<name>.md`.

    Args:
        run: folder or file of the trained network.
        name: that `trainers.load` and `qsim map --model` shall know.
        folder: `trainers/shipped` of this package; it must be there.
        made_by: config of the training, as its path in this project.
        calibration: factor of the standard deviation of each row; None: those of the run's file, if it has any.
        results: what was measured, as Markdown.
    Returns: both files.

    Raises: InputError if the run is no trained relaxation network, or files of that name are there.
    """
    files = free_files(name, Path(folder))
    stored = _relaxation(run)
    header = _without_places(stored)
    if calibration is not None:
        header["calibration"] = _factors(stored, calibration)
    weights = weights_of(stored.tensors)
    give(files, weights, header, _card(Stored(files[0], weights, header, stored.config), name, made_by, results))
    return files


def _relaxation(run: str | Path) -> Stored:
    stored = read_network(find_network(run))
    if not isinstance(stored.config.mapping_task, SelfSupervisedTask):
        raise InputError(f"{stored.path}: is a {stored.config.mapping_network.kind}; wanted task.kind self_supervised")
    return stored


def _factors(stored: Stored, factors: Mapping[str, Factor]) -> dict[str, Any]:
    for name, factor in factors.items():
        if not isinstance(factor, SdCalibration | int | float) or isinstance(factor, bool):
            raise InputError(f"{stored.path}: calibration.{name}: wanted a number or an SdCalibration, got {factor!r}")
    plain = {name: factor_json(factor) for name, factor in factors.items()}
    check_calibration(stored.path, plain, tuple(row.name for row in learned_of(stored).rows))
    return plain


def _without_places(stored: Stored) -> dict[str, Any]:
    """The header, with the names of files and folders but not where they lay."""

    def named(path: str | None) -> str | None:
        return None if path is None else Path(path).name

    header = own_header(stored.header)
    config, cohort = dict(header["config"]), dict(header["cohort"])
    for key in [key for key in ("store", "second_store") if key in cohort]:
        cohort[key] = named(cohort[key])
    if cohort.get("scans"):
        cohort["scans"] = [_without_names(i, scans) for i, scans in enumerate(cohort["scans"])]
    config["data"] = {**config["data"], "cohort": cohort}
    initial = config.get("initial")
    config["initial"] = Path(initial).name if initial and "/" in initial else initial
    return {**header, "config": config, "cohort": cohort}


def _without_names(number: int, scans: Mapping[str, Any]) -> dict[str, Any]:
    """A subject of a measured cohort, by its number: its label and its files are its own."""
    body = None if scans.get("body") is None else f"body-{number}"
    return {**scans, "id": str(number), "series": [f"series-{number}"], "roi": f"roi-{number}", "body": body}


def _said(factor: Factor) -> str:
    """A factor in words."""
    if not isinstance(factor, SdCalibration):
        return f"{factor:.3g}"
    pairs = [f"{of:.2g} at {1e3 * sd:.3g} ms" for sd, of in zip(factor.sd, factor.factor, strict=True)]
    return f"by the SD stated, {', '.join(pairs)}"


def _card(stored: Stored, name: str, made_by: str, results: str) -> str:
    header, config, learned = stored.header, stored.config, learned_of(stored)
    network, task = config.mapping_network, config.mapping_task
    assert isinstance(task, SelfSupervisedTask), "only such networks are shipped here"
    assert isinstance(network, RelaxationNetwork), "the config has checked that task and network fit"
    scaled = isinstance(network, UNetNetwork) and network.scale != "none"
    sources = [each for each, has in (("aleatoric", scaled), ("epistemic", network.dropout > 0)) if has]
    uncertain = f", with {' and '.join(sources)} uncertainty" if sources else ""
    rows = [_NAMES.get(row.name, row.name) for row in learned.rows]
    maps, images = " and ".join(rows), 1 + len(learned.joined)
    weights = sum(t.numel() for key, t in stored.tensors.items() if not key.endswith("num_batches_tracked"))
    middle = learned.shown[len(learned.shown) // 2]
    counts = ", ".join(f"{len(each)} subjects {key.replace('_', ' ')}" for key, each in header["subjects"].items())
    generator = header.get("generator") or header["cohort"].get("generate")
    source = "measured series" if generator is None else f"phantom `{generator['phantom']['kind']}`, simulated"
    times = learned.times_text
    any_time = "any time between them in that range, 20 % beyond" if learned.told else "these times only, to 1 %"
    factors = header.get("calibration", {})
    said = ", ".join(f"{_NAMES.get(row, row)} {_said(factor_of(factor))}" for row, factor in factors.items())
    calibrated = (
        f"Factors of the standard deviations: {said}." if said else "The standard deviations are not calibrated."
    )
    learned_from = {
        "constraint": "without maps, through the relaxation constraint",
        "fit": "from the least-squares maps of all images",
        "truth": "from the true maps of the simulation",
    }[task.supervision]
    example = _SERIES.get(learned.names, "model").format(*middle)
    choose = ",".join(str(i) for i in (task.inputs or inputs(times_of(stored)))[0])
    return f"""# {name}

{maps} from {images} images of one series, of any brightness{uncertain}; learned {learned_from}.
`{network.kind}` (docs/self_supervised.md), {grouped(weights)} weights.

```python
estimator = trainers.load("{name}", model={example})
estimate = estimator(images, mask=mask)  # kappa: {", ".join(rows)} [s]; variances: {", ".join(sources) or "none"}
```
`qsim map SERIES --model {name} --std --out maps` (of a longer series: `--option images={choose}`)

## Data
{source[0].upper() + source[1:]}: {counts}. Between the images: {times}; {any_time}.

## Training
`qsim train {made_by}`: {config.iterations} iterations of {config.batch} slices, {header["precision"]}. {calibrated}

## Results
{results.strip() or "Not measured yet."}

## Limits
- {maps} from {1e3 * network.shortest:g} to {1e3 * network.longest:g} ms (status 1 at these ends).
- One image that all contrasts share and one later of each; other series choose theirs.
- {"Simulated data only; not" if generator is not None else "Not"} for clinical use.
"""
