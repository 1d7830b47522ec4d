"""What configs can name, collected from the registries of the four packages."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from generators.config import GeneratorConfig
from generators.corrupt_config import CorruptConfig
from phantoms import PHANTOMS
from qsim.estimators import ESTIMATORS, installed, method_options
from qsim.kspace import ARTEFACTS
from qsim.signals import MODELS
from trainers.config import TrainConfig
from trainers.infer import shipped
from trainers.networks import NETWORKS
from trainers.quality.config import DecoupledConfig
from trainers.segmentation.config import SegmentationConfig
from trainers.studies.registry import STUDIES, study_schema

_CONFIGS: dict[str, type[BaseModel]] = {
    "generate": GeneratorConfig,
    "train": TrainConfig,
    "decoupled": DecoupledConfig,
    "segmentation": SegmentationConfig,
    "artefacts": CorruptConfig,
}


def config_schema(name: str) -> dict[str, Any]:
    """JSON Schema of a config: `generate`; `train`, `decoupled`, `segmentation` (for `train`); `artefacts`; `study`."""
    return study_schema() if name == "study" else _CONFIGS[name].model_json_schema()


def registries() -> dict[str, dict[str, str]]:
    """For each registry: kind or name, and one line about it."""
    return {
        "models": {_kind(cls): _first_line(cls) for cls in MODELS},
        "phantoms": {_kind(cls): _first_line(cls) for cls in PHANTOMS},
        "artefacts": {_kind(cls): _first_line(cls) for cls in ARTEFACTS},
        "estimators": {
            **{name: _with_options(name) for name in ESTIMATORS},
            **{name: f"installed: {where}" for name, where in installed().items()},
        },
        "networks": {_kind(cls): _first_line(cls) for cls in NETWORKS},
        "shipped": {name: _of_card(file) for name, file in shipped().items()},
        "studies": {kind: study.text for kind, study in STUDIES.items()},
    }


def _of_card(file: Path) -> str:
    """The sentence below the head of a shipped network's card."""
    lines = file.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")


def _kind(cls: type) -> str:
    return str(cls.__dataclass_fields__["kind"].default)  # type: ignore[attr-defined]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _with_options(name: str) -> str:
    options = ", ".join(method_options(name))
    return f"{ESTIMATORS[name].text} Options: {options}." if options else ESTIMATORS[name].text
