"""What configs can name, collected from the registries of the four packages."""

from pydantic import BaseModel

from generators.config import GeneratorConfig
from phantoms import PHANTOMS
from qsim.estimators import ESTIMATORS
from qsim.signals import MODELS
from trainers.config import TrainConfig
from trainers.evaluate import StudyConfig
from trainers.networks import NETWORKS

_CONFIGS: dict[str, type[BaseModel]] = {"generate": GeneratorConfig, "train": TrainConfig, "study": StudyConfig}
_STUDIES = {"noise": "relative bias, CV and RMSE over noise realisations (sabidussi2021, section 5.1.1)"}


def config_class(name: str) -> type[BaseModel]:
    """Class of the config `generate`, `train` or `study`."""
    return _CONFIGS[name]


def registries() -> dict[str, dict[str, str]]:
    """For each registry: kind or name, and one line about it."""
    return {
        "models": {_kind(cls): _first_line(cls) for cls in MODELS},
        "phantoms": {_kind(cls): _first_line(cls) for cls in PHANTOMS},
        "artefacts": {},
        "estimators": {name: _first_line(builder) for name, builder in ESTIMATORS.items()},
        "networks": {_kind(cls): _first_line(cls) for cls in NETWORKS},
        "studies": _STUDIES,
    }


def _kind(cls: type) -> str:
    return str(cls.__dataclass_fields__["kind"].default)  # type: ignore[attr-defined]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]
