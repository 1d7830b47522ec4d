"""Loading trained networks: one line, from a run's folder, a file, or the name of a shipped network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from generators.config import GeneratorConfig
from qsim.errors import InputError
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel
from qsim.signals.decays import MonoExponential
from trainers.checkpoint import MODEL, STATE
from trainers.mixture_estimator import MixtureEstimator
from trainers.network_estimator import NetworkEstimator
from trainers.networks import LocalMixtureNetwork, MixtureNetwork
from trainers.relaxation.loading import TrainedRelaxation, Units, load_relaxation
from trainers.relaxation.task_config import SelfSupervisedTask
from trainers.stored import Stored, read_network
from trainers.tasks import supervised

SHIPPED = Path(__file__).parent / "shipped"
Run = str | Path


def shipped() -> dict[str, Path]:
    """Files of the shipped networks by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.safetensors"))}


def find_network(run: Run) -> Path:
    """File of a trained network: a run's folder, a file, or the name of a shipped network.

    Raises: InputError if there is none, or the run is unfinished.
    """
    path = Path(run)
    if path.is_file():
        return path
    if (path / MODEL).is_file():
        return path / MODEL
    if (path / STATE).is_file():
        raise InputError(f"{path}: the training is unfinished; go on with qsim train ... --resume")
    given = shipped()
    if str(run) in given:
        return given[str(run)]
    names = ", ".join(given) or "none"
    raise InputError(f"{path}: neither a run of qsim train nor a shipped network (those are: {names})")


def load_estimator(
    run: Run | Sequence[Run],
    model: SignalModel | None = None,
    device: str = "cpu",
    *,
    images_unit: float = 1.0,
    contrast: float | None = None,
    noise: Literal["gaussian", "rician"] | None = None,
    samples: int | None = None,
    units: Units | None = None,
    images: Sequence[int] | None = None,
) -> NetworkEstimator | TrainedRelaxation:
    """A trained network, ready to map.

    Args:
        run: folder of a run, a .safetensors file, or the name of a shipped network; several of them: an ensemble of
            self_supervised networks.
        model: signal model of the series to be mapped; None: that of the training. A RIM takes any times of the same
            model (a plain RIM: signed if it was trained so), a ResNet only those it was trained on; a self_supervised
            network: see `trainers.relaxation.loading`.
        device: torch device.
        images_unit: signal that the network shall see as 1, see `NetworkEstimator`.
        contrast: of a mixture network, see its config; None: as its config has it.
        noise: of a mixture network: what its likelihood assumes; None: as the data of its training.
        samples, units, images: of a self_supervised network, see `load_relaxation`.
    Raises: InputError if the file is damaged or the model does not fit it.
    """
    runs = (run,) if isinstance(run, str | Path) else tuple(run)
    if not runs:
        raise InputError("run: none was given; give a run, or the name of a shipped network")
    stored = [read_network(find_network(each)) for each in runs]
    first = stored[0]
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: wanted cpu or cuda, got {device!r}; take cpu") from None
    kind = first.config.mapping_network.kind
    of_posterior = {"contrast": contrast, "noise": noise}
    of_relaxation = {"samples": samples, "units": units, "images": images}
    if isinstance(first.config.mapping_task, SelfSupervisedTask):
        _check_none(of_posterior, f"a {kind} has no such option; it has {', '.join(of_relaxation)}")
        if images_unit != 1:
            raise InputError(f"images_unit: a {kind} divides each slice by its own brightness; leave it out")
        return load_relaxation(stored, model, place, samples, units, images)
    _check_none(of_relaxation, f"a {kind} has no such option, networks of task.kind self_supervised have")
    if len(stored) > 1:
        raise InputError(f"ensemble: a {kind} is mapped with alone, networks of task.kind self_supervised together")
    if isinstance(first.config.mapping_network, MixtureNetwork):
        return replace(_mixture(first, model, place, contrast, noise), images_unit=images_unit)
    _check_none({"contrast": contrast}, f"a {kind} has no such option, a local_mixture has")
    _check_none({"noise": noise}, f"a {kind} has no such option, local_mixture and residual_mixture have")
    found = _supervised(first, model, place)
    low, high = first.header["images_scale"]
    return replace(found, scale=(low, high), images_unit=images_unit)


def _check_none(options: Mapping[str, object], said: str) -> None:
    """Raises: InputError of an option that is given."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name}: {said}")


def _mixture(
    stored: Stored,
    model: SignalModel | None,
    device: torch.device,
    contrast: float | None,
    noise: Literal["gaussian", "rician"] | None,
) -> MixtureEstimator:
    """A network of a posterior mixture; it sees nothing that has a unit."""
    found = _supervised(stored, model, device)
    assert isinstance(found, MixtureEstimator), "its task reads it as one"
    network = stored.config.mapping_network
    if noise is not None:
        if noise not in ("gaussian", "rician"):
            raise InputError(f"noise: wanted gaussian or rician, got {noise!r}")
        if noise == "rician" and isinstance(found.model, InversionRecovery) and found.model.signed:
            raise InputError("noise: Rician noise is that of magnitudes, and this model keeps its sign; take gaussian")
        found = replace(found, rician=noise == "rician")
    if contrast is not None:
        if not isinstance(network, LocalMixtureNetwork):
            raise InputError(f"contrast: a {network.kind} has none, a local_mixture has")
        if not (isinstance(contrast, int | float) and isfinite(contrast) and contrast >= 1):
            raise InputError(f"contrast: must be at least 1, got {contrast}")
        found = replace(found, contrast=contrast)
    return found


def _supervised(stored: Stored, model: SignalModel | None, device: torch.device) -> NetworkEstimator:
    """A network that learned from known maps.

    Raises: InputError if the model is not one that it takes.
    """
    config, header, path = stored.config, stored.header, stored.path
    generator: GeneratorConfig = stored.generator(header["generator"])
    trained = generator.signal_model
    model = trained if model is None else model
    network = config.mapping_network
    if not network.any_length and model != trained:
        raise InputError(
            f"{path}: a {network.kind} maps only the protocol it was trained on ({_protocol(trained)}), "
            f"not {_protocol(model)}; train one for it, or use a RIM"
        )
    # a mixture network sees no signal, only what the likelihood makes of it: every decay is one to it
    loose: tuple[str, ...] = ("signed",) if isinstance(network, MixtureNetwork) else ()
    if loose and isinstance(model, MonoExponential) and isinstance(trained, MonoExponential):
        loose = ("signed", "kind")
    if _without_times(model, loose) != _without_times(trained, loose):
        raise InputError(
            f"{path}: was trained on {_protocol(trained)}, not on {_protocol(model)}; take a network of that signal"
        )
    # another decay than that of the training has rows of other names
    targets = tuple(header["targets"]) if "kind" not in loose or type(model) is type(trained) else ()
    spec = config.mapping_task
    assert not isinstance(spec, SelfSupervisedTask), "those are loaded elsewhere"
    task = supervised(spec, network, model, targets, generator.noise.kind)
    net = stored.ready(network.build(model, task.parameters, torch.Generator().manual_seed(0)), device)
    return replace(task.predictor(net), device=device, bf16=header["precision"] == "bf16", trained_on=generator)


def _without_times(model: SignalModel, loose: tuple[str, ...]) -> dict[str, Any]:
    """Kind and switches of a model, but for `loose`: what decides how its images look, whatever the times."""
    plain: dict[str, Any] = TypeAdapter(type(model)).dump_python(model)
    return {name: setting for name, setting in plain.items() if isinstance(setting, bool | str) and name not in loose}


def _protocol(model: SignalModel) -> str:
    """A model with its times, in one line."""
    plain: dict[str, Any] = TypeAdapter(type(model)).dump_python(model)
    text = json.dumps(plain, default=list)
    return text if len(text) <= 160 else text[:157] + "..."
