"""Loading trained networks: one line, from a run's folder, a file, or the name of a shipped network."""

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from generators.config import GeneratorConfig
from qsim.errors import InputError
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel
from qsim.signals.decays import MonoExponential
from trainers.checkpoint import MODEL, STATE, load_tensors, restore_weights
from trainers.config import TrainConfig
from trainers.mixture_estimator import MixtureEstimator
from trainers.network_estimator import NetworkEstimator
from trainers.networks import LocalMixtureNetwork, MixtureNetwork
from trainers.tasks import supervised

_SHIPPED = Path(__file__).parent / "shipped"


def find_network(run: str | Path) -> Path:
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
    shipped = {file.stem: file for file in sorted(_SHIPPED.glob("*.safetensors"))}
    if str(run) in shipped:
        return shipped[str(run)]
    names = ", ".join(shipped) or "none"
    raise InputError(f"{path}: neither a run of qsim train nor a shipped network (those are: {names})")


def load_estimator(
    run: str | Path,
    model: SignalModel | None = None,
    device: str = "cpu",
    *,
    images_unit: float = 1.0,
    contrast: float | None = None,
    noise: Literal["gaussian", "rician"] | None = None,
) -> NetworkEstimator:
    """A trained network, ready to map.

    Args:
        run: folder of a run, a .safetensors file, or the name of a shipped network.
        model: signal model of the series to be mapped; None: that of the training. A RIM takes any times of the same
            model (a plain RIM: signed if it was trained so), a ResNet only those it was trained on.
        device: torch device.
        images_unit: signal that the network shall see as 1, see `NetworkEstimator`.
        contrast: of a mixture network, see its config; None: as its config has it.
        noise: of a mixture network: what its likelihood assumes; None: as the data of its training.
    Raises: InputError if the file is damaged or the model does not fit it.
    """
    path = find_network(run)
    tensors, header = load_tensors(path)
    try:
        config = TrainConfig.model_validate(header["config"])
        generator = GeneratorConfig.model_validate(header["generator"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: its config does not fit this version of qsim ({first['msg']})") from None
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
    task = supervised(config.mapping_task, network, model, targets, generator.noise.kind)
    net = network.build(model, task.parameters, torch.Generator().manual_seed(0))
    restore_weights(net, tensors, path)
    place = torch.device(device)
    net.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.eval()
    net.requires_grad_(False)
    predictor = task.predictor(net)
    for name, option in (("contrast", contrast), ("noise", noise)):
        if option is not None and not isinstance(predictor, MixtureEstimator):
            has = "a local_mixture has" if name == "contrast" else "local_mixture and residual_mixture have"
            raise InputError(f"{name}: a {network.kind} has no such option, {has}")
    if noise is not None:
        if noise not in ("gaussian", "rician"):
            raise InputError(f"noise: wanted gaussian or rician, got {noise!r}")
        if noise == "rician" and isinstance(model, InversionRecovery) and model.signed:
            raise InputError("noise: Rician noise is that of magnitudes, and this model keeps its sign; take gaussian")
        assert isinstance(predictor, MixtureEstimator)
        predictor = replace(predictor, rician=noise == "rician")
    if contrast is not None:
        assert isinstance(predictor, MixtureEstimator)
        if not isinstance(network, LocalMixtureNetwork):
            raise InputError(f"contrast: a {network.kind} has none, a local_mixture has")
        if not (isinstance(contrast, int | float) and isfinite(contrast) and contrast >= 1):
            raise InputError(f"contrast: must be at least 1, got {contrast}")
        predictor = replace(predictor, contrast=contrast)
    low, high = header["images_scale"]
    return replace(
        predictor,
        device=place,
        bf16=header["precision"] == "bf16",
        # a mixture network sees nothing that has a unit
        scale=None if isinstance(predictor, MixtureEstimator) else (low, high),
        images_unit=images_unit,
        trained_on=generator,
    )


def _without_times(model: SignalModel, loose: tuple[str, ...]) -> dict[str, Any]:
    """Kind and switches of a model, but for `loose`: what decides how its images look, whatever the times."""
    plain: dict[str, Any] = TypeAdapter(type(model)).dump_python(model)
    return {name: setting for name, setting in plain.items() if isinstance(setting, bool | str) and name not in loose}


def _protocol(model: SignalModel) -> str:
    """A model with its times, in one line."""
    plain: dict[str, Any] = TypeAdapter(type(model)).dump_python(model)
    text = json.dumps(plain, default=list)
    return text if len(text) <= 160 else text[:157] + "..."
