"""The shipped network of image quality: on brains no training saw, one of them measured, and by name at the shell."""

import json
from io import StringIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr

from generators.reading import read_config
from qsim.distributions import Streams
from qsim.kspace import magnitude
from trainers import cli
from trainers.checkpoint import load_tensors
from trainers.infer import find_network
from trainers.quality.blocks import make_stores, read_blocks
from trainers.quality.config import BlockData
from trainers.quality.loading import config_of, load_segmenter
from trainers.quality.scaling import intensity_scale
from trainers.quality.views import spoiled
from trainers.studies.quality_answers import judged
from trainers.studies.quality_config import QualityConfig
from trainers.studies.quality_images import CleanImage

NAME = "gm-quality"
STUDY = Path(__file__).parents[2] / "configs/shaw2021/study_quality_small.yaml"
SOURCES = ("noise", "spike", "blur", "wrap", "motion")
BLOCKS = 4


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """Blocks of 64^3 of the slab of the bundled brain that is test, in anatomies of no training, at TI 0.65 s."""
    (data,) = read_config(STUDY, QualityConfig).data
    given = data.model_dump(mode="json", exclude_unset=True)
    given["generate"] |= {"seed": 77, "samples": BLOCKS}
    given["generate"]["phantom"] |= {"seed": 77, "subjects": BLOCKS}
    folder = tmp_path_factory.mktemp("brains")
    paths = make_stores([BlockData.model_validate(given)], folder, "data", 1, Console(file=StringIO()))
    return read_blocks(paths, ("gm",), "data")


@pytest.fixture(scope="module")
def figures(brains):
    """Of every block (row), clean and with one artefact of each source (column), drawn as in the training."""
    file, segmenter = find_network(NAME), load_segmenter(NAME)
    sources = config_of(load_tensors(file)[1], file).sources
    assert tuple(each.name for each in sources) == SOURCES
    found = []
    for i in range(BLOCKS):
        values = brains.images[i] / intensity_scale(brains.images[i])
        target = brains.mask(i, ("gm",)).numpy()
        clean = CleanImage(values, target, None, brains.spacing_mm, float(np.prod(brains.spacing_mm)))
        for k in range(1 + len(SOURCES)):
            present = tuple(k == 1 + number for number in range(len(SOURCES)))
            image, _ = spoiled(values.to(torch.complex64)[None], sources, present, Streams(7, i), brains.spacing_mm)
            found.append(judged([segmenter], magnitude(image)[0], clean, 0, Streams(7, i))[0])
    return {name: np.array([each[name] for each in found]).reshape(BLOCKS, -1) for name in found[0]}


def test_it_segments_clean_and_corrupted_brains(figures):
    """Noise is drawn down to -10 dB, where nothing is left to be seen."""
    clean, noise, *others = figures["dice"].mean(0)
    assert clean > 0.9
    assert min(others) > 0.65
    assert 0.3 < noise < min(others)


def test_its_artefact_variance_follows_what_the_image_is_worth(figures):
    """A figure that knows nothing is below -.4 in one of 40 draws of 24 images."""
    assert spearmanr(figures["variance_artefacts"].ravel(), figures["dice"].ravel()).statistic < -0.75


@pytest.mark.parametrize("name", SOURCES)
def test_a_head_answers_to_its_own_artefact(figures, name):
    """Most of all artefacts, but for motion, which looks like wrap."""
    clean, *spoilt = figures[f"variance_{name}"].mean(0)
    own = spoilt[SOURCES.index(name)]
    assert own > 3 * clean
    assert own == max(spoilt) or name == "motion"


def test_the_error_bars_of_its_volumes_hold(figures):
    """95 % intervals of 24 images: fewer than 18 would be met once in 10,000 times."""
    held = (figures["volume_low"] <= figures["volume_true"]) & (figures["volume_true"] <= figures["volume_high"])
    assert held.sum() >= 18
    width = (figures["volume_high"] - figures["volume_low"]) / figures["volume_true"]
    assert np.median(width[:, 0]) < 0.5


def segment(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["qsim", "segment", *words, "--model", NAME])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)


def test_the_command_takes_it_by_name(brains, tmp_path, monkeypatch, unchecked):
    """Brightness does not matter, and a source can be asked for by itself."""
    file = tmp_path / "head_T1w.nii.gz"
    nibabel.save(nibabel.Nifti1Image(2500 * brains.images[0].numpy(), np.eye(4)), file)
    segment(monkeypatch, str(file), "--out", str(tmp_path / "out"), "--source", "noise")
    (labels,) = (tmp_path / "out").rglob("*_desc-gm_dseg.nii.gz")
    found, truth = np.asarray(nibabel.load(labels).dataobj) == 1, brains.mask(0, ("gm",)).numpy()
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    (variance,) = (tmp_path / "out").rglob("*_variance.nii.gz")
    assert "desc-noise" in variance.name


def test_a_measured_brain(data_folder, tmp_path, monkeypatch, unchecked):
    """A block of 96^3 of a brain with FreeSurfer's labels; the error bar, of simulated brains, holds."""
    folder = data_folder / "brain_t1w_aseg_voxelmorph"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {data_folder}")
    files = []
    for name in ("t1w_uint8", "aseg_labels"):
        values = np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj)[32:128, 48:144, 64:160]
        files.append(str(tmp_path / f"{name}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), files[-1])
    out = tmp_path / "out"
    segment(monkeypatch, files[0], "--out", str(out), "--labels", files[1], "--scheme", "freesurfer")
    (record,) = out.rglob("*_quality.json")
    said = json.loads(record.read_text(encoding="utf-8"))["volumes"]["gm"]
    assert said["dice"] > 0.8
    assert said["low_ml"] < said["true_ml"] < said["high_ml"]


def test_it_is_packaged_with_its_card():
    file = find_network(NAME)
    assert file.stat().st_size < 4_000_000
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"## {part}" in card for part in ("Data", "Training", "Results", "Limits"))
    assert "Not measured yet" not in card
    assert "Simulated data only.\n" not in card
