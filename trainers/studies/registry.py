"""The kinds of study: what each config is called, its class, and what runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generators.config import RootConfig
from generators.reading import read_config, read_yaml
from qsim.errors import InputError
from trainers.studies.block_runner import Command
from trainers.studies.blurriness import BlurrinessConfig, run_blurriness
from trainers.studies.evaluate import StudyConfig, run_study
from trainers.studies.generalisation import GeneralisationConfig, run_generalisation
from trainers.studies.grid import GridConfig, run_grid
from trainers.studies.mismatch import MismatchConfig, run_mismatch
from trainers.studies.phantom import run_phantom
from trainers.studies.phantom_config import PhantomConfig
from trainers.studies.prep_robustness import PrepRobustnessConfig, run_prep_robustness
from trainers.studies.quality import run_quality
from trainers.studies.quality_config import QualityConfig
from trainers.studies.readout_bias import ReadoutBiasConfig, run_readout_bias
from trainers.studies.run_time import RunTimeConfig, run_run_time
from trainers.studies.segmentation import run_segmentation
from trainers.studies.segmentation_config import SegmentationStudyConfig
from trainers.studies.self_supervised import run_self_supervised
from trainers.studies.self_supervised_config import SelfSupervisedConfig
from trainers.studies.test_retest import run_test_retest
from trainers.studies.test_retest_config import RetestConfig
from trainers.studies.uncertainty import UncertaintyConfig, run_uncertainty


@dataclass(frozen=True, slots=True)
class Study:
    """A kind of study.

    Attributes:
        config: class of its config.
        run: (config, folder, command) -> path of the report.
        text: one line about it.
    """

    config: type[RootConfig]
    run: Callable[[Any, Path, Command], Path]
    text: str


STUDIES: dict[str, Study] = {
    "noise": Study(
        StudyConfig, run_study, "relative bias, CV and RMSE over noise realisations (sabidussi2021, section 5.1.1)"
    ),
    "blurriness": Study(
        BlurrinessConfig, run_blurriness, "small structures and their neighbours (sabidussi2021, section 5.1.2)"
    ),
    "generalisation": Study(
        GeneralisationConfig, run_generalisation, "every method on every protocol (sabidussi2021, section 5.4)"
    ),
    "phantom": Study(
        PhantomConfig, run_phantom, "regions of known value: bias and CV over repeats (sabidussi2021, section 5.2)"
    ),
    "prep_robustness": Study(
        PrepRobustnessConfig, run_prep_robustness, "apparent T1rho and T2 of preparations over B0 and B1"
    ),
    "readout_bias": Study(
        ReadoutBiasConfig, run_readout_bias, "two- against three-parameter fits behind each readout, with noise"
    ),
    "grid": Study(GridConfig, run_grid, "bias, CV and RMSE over a grid of T1, T2, T2* or T1rho, beside the bounds"),
    "mismatch": Study(MismatchConfig, run_mismatch, "simulated with one model, fitted with others"),
    "uncertainty": Study(
        UncertaintyConfig, run_uncertainty, "coverage, width and calibration of the uncertainty that methods state"
    ),
    "test_retest": Study(
        RetestConfig, run_test_retest, "repeats of a twin or of scans: CV, agreement, sharpness (sabidussi2021, 5.3)"
    ),
    "segmentation": Study(
        SegmentationStudyConfig,
        run_segmentation,
        "a left ventricle on images of another kind: Dice by set of augmentations (jacobs2025, table 1)",
    ),
    "self_supervised": Study(
        SelfSupervisedConfig,
        run_self_supervised,
        "networks that learn relaxation times without maps, by folds of a cohort (huang2022, huang2023)",
    ),
    "quality": Study(
        QualityConfig, run_quality, "what uncertainties of segmentations say of images with artefacts (shaw2021)"
    ),
    "run_time": Study(RunTimeConfig, run_run_time, "seconds of every method on one thread, on the same images"),
}


def read_study(path: Path) -> tuple[Study, RootConfig]:
    """Read the config of a study of any kind.

    Raises: InputError naming the file and the field at fault; of an unknown kind, which there are.
    """
    kind = read_yaml(path).get("kind")
    if kind is None:
        raise InputError(f"{path}: kind: missing, wanted one of {', '.join(map(repr, STUDIES))}")
    if not isinstance(kind, str) or kind not in STUDIES:
        raise InputError(f"{path}: kind: got {kind!r}, wanted one of {', '.join(map(repr, STUDIES))}")
    chosen = STUDIES[kind]
    return chosen, read_config(path, chosen.config)


def study_schema() -> dict[str, Any]:
    """JSON Schema of the config of every kind of study, told apart by `kind`."""
    kinds: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    keys: dict[str, dict[str, Any]] = {}
    for name, study in STUDIES.items():
        schema = study.config.model_json_schema(ref_template="#/$defs/{model}")
        for title, definition in schema.pop("$defs", {}).items():
            if shared.setdefault(title, definition) != definition:
                raise AssertionError(f"two definitions are called {title}")
        kinds[study.config.__name__] = schema
        for key in schema["properties"]:
            keys.setdefault(key, {"description": f"of {name}"})
            if key != "kind" and not keys[key]["description"].endswith(name):
                keys[key]["description"] += f", {name}"
    keys["kind"] = {"enum": list(STUDIES), "description": "which study"}
    return {
        "$defs": {**shared, **kinds},
        "title": "Study",
        "type": "object",
        # editors that do not follow oneOf still complete the names of the keys
        "properties": keys,
        "required": ["kind"],
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in kinds],
        "discriminator": {
            "propertyName": "kind",
            "mapping": {name: f"#/$defs/{study.config.__name__}" for name, study in STUDIES.items()},
        },
    }
