"""Every shipped config is valid, and the pieces that name each other fit."""

from pathlib import Path

import pytest
import yaml

from generators.config import GeneratorConfig
from generators.corrupt_config import CorruptConfig
from generators.reading import read_config
from trainers.config import TrainConfig
from trainers.quality.config import DecoupledConfig
from trainers.segmentation.config import SegmentationConfig
from trainers.studies.evaluate import StudyConfig
from trainers.studies.registry import read_study

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
KINDS = {
    "generate": GeneratorConfig,
    "train": TrainConfig,
    "corrupt": CorruptConfig,
    "decoupled": DecoupledConfig,
    "segmentation": SegmentationConfig,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid(path):
    kind = "train" if path.parent.name == "networks" else path.stem.split("_")[0]
    if kind == "train":
        # trainings of mapping networks have no kind
        kind = yaml.safe_load(path.read_text(encoding="utf-8")).get("kind", kind)
    config = read_study(path)[1] if kind == "study" else read_config(path, KINDS[kind])
    if isinstance(config, DecoupledConfig):
        assert {each.generate.split for each in config.data.train} == {"train"}
        assert {each.generate.split for each in config.data.validation} == {"test"}
        seeds = [each.generate.seed for each in (*config.data.train, *config.data.validation)]
        assert len(set(seeds)) == len(seeds)
    assert path.stem in (path.parent / "README.md").read_text(encoding="utf-8")
    if isinstance(config, TrainConfig):
        if config.data.cohort is not None:
            return  # whole subjects, of which folds are cut
        # the store that it trains on is made by a config beside it, with the rows that it learns
        data = {"brain": "generate_t1_small", "t1_full": "generate_t1_full", "t2_full": "generate_t2_full"}
        if config.data.generate is not None:
            assert config.data.generate.split == "train"
            return
        made_by = read_config(path.parent / f"{data[Path(config.data.store).stem]}.yaml", GeneratorConfig)
        assert set(config.targets) <= {row.name for row in made_by.signal_model.parameters}
        assert made_by.split == "train"


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_study_of_sets_trains_what_the_configs_of_one_network_train(size):
    folder = ROOT / "configs" / "jacobs2025"
    study = read_study(folder / f"study_sets_{size}.yaml")[1]
    for chosen in study.sets:
        alone = read_config(folder / f"train_{chosen.name.lower()}_{size}.yaml", SegmentationConfig)
        together = study.train_config(chosen, alone.data.fold, 0)
        # a study looks at nothing before the end of a training
        apart = {"validate_every", "checkpoint_every"}
        assert together.model_dump(exclude=apart) == alone.model_dump(exclude=apart)
    (tested,) = study.tests
    assert tested.generate.split == "test"
    assert tested.generate.seed != study.data.train.generate.seed


def test_study_and_training_of_the_demo_share_protocol_but_no_seed_and_no_slice():
    folder = ROOT / "configs" / "sabidussi2021"
    training = read_config(folder / "generate_t1_small.yaml", GeneratorConfig)
    study = read_config(folder / "study_t1_small.yaml", StudyConfig)
    assert study.data.signal_model == training.signal_model
    assert study.data.seed != training.seed
    assert (training.split, study.data.split) == ("train", "test")
    assert study.data.phantom_spec == training.phantom_spec


def test_studies_of_the_paper_are_on_draws_of_no_training_and_name_networks_that_a_config_trains():
    folder = ROOT / "configs" / "sabidussi2021"
    trained = {f"runs/{path.stem}" for path in (folder / "networks").glob("*.yaml")}
    for path in folder.glob("study_*.yaml"):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        data = given["data"].get("twin", given["data"])
        if "scans" not in data:
            assert (data["seed"], data["split"]) == (2021, "test"), path.name
        if path.stem == "study_t1_small":
            continue  # networks of the demo
        runs = {entry["model"] for entry in given["estimators"] if "model" in entry}
        assert runs - {"rim-t1", "rim-t2", "resnet-t1"} <= trained, path.name
