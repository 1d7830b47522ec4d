"""Every shipped config is valid, and the pieces that name each other fit."""

from pathlib import Path

import pytest

from generators.config import GeneratorConfig
from generators.corrupt_config import CorruptConfig
from generators.reading import read_config
from trainers.config import TrainConfig
from trainers.studies.evaluate import StudyConfig
from trainers.studies.registry import read_study

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
KINDS = {"generate": GeneratorConfig, "train": TrainConfig, "corrupt": CorruptConfig}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid(path):
    kind = path.stem.split("_")[0]
    config = read_study(path)[1] if kind == "study" else read_config(path, KINDS[kind])
    assert path.stem in (path.parent / "README.md").read_text(encoding="utf-8")
    if isinstance(config, TrainConfig):
        # the store that it trains on is made by a config beside it, with the rows that it learns
        data = {"brain": "generate_t1_small", "t1_full": "generate_t1_full", "t2_full": "generate_t2_full"}
        if config.data.generate is not None:
            assert config.data.generate.split == "train"
            return
        made_by = read_config(path.parent / f"{data[Path(config.data.store).stem]}.yaml", GeneratorConfig)
        assert set(config.targets) <= {row.name for row in made_by.signal_model.parameters}
        assert made_by.split == "train"


def test_study_and_training_of_the_demo_share_protocol_but_no_seed_and_no_slice():
    folder = ROOT / "configs" / "sabidussi2021"
    training = read_config(folder / "generate_t1_small.yaml", GeneratorConfig)
    study = read_config(folder / "study_t1_small.yaml", StudyConfig)
    assert study.data.signal_model == training.signal_model
    assert study.data.seed != training.seed
    assert (training.split, study.data.split) == ("train", "test")
    assert study.data.phantom_spec == training.phantom_spec
