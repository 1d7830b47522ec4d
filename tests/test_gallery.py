"""The gallery: every artefact has its picture, the page shows all of them, and their severities rise."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from examples import phantom_gallery
from examples.artefact_gallery import COLUMNS, PICTURES, brain, main
from generators.corrupt_config import CorruptConfig
from qsim.kspace import ARTEFACTS, magnitude

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "docs" / "gallery"


def test_every_artefact_has_a_picture_and_the_page_shows_all():
    kinds = {cls.__dataclass_fields__["kind"].default for cls in ARTEFACTS}
    shown = {artefact.kind for picture in PICTURES for _, artefact in picture.strengths}
    assert shown == kinds
    page = (ROOT / "docs" / "artefacts.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(gallery/(\w+)\.png\)", page))
    files = {path.stem for path in GALLERY.glob("*.png") if not path.stem.startswith("phantom_")}
    assert linked == files == {picture.name for picture in PICTURES}


def test_the_page_runs(capsys):
    page = (ROOT / "docs" / "artefacts.md").read_text(encoding="utf-8")
    names = {"your_dataset": [torch.ones(1, 16, 15)]}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    assert capsys.readouterr().out.startswith("(")
    assert names["shown"].shape == (3, 64, 60)
    assert names["dataset"].key == "image"
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(CorruptConfig.model_validate(yaml.safe_load(config)).artefacts) == 4


def test_pictures_are_small():
    sizes = [path.stat().st_size for path in GALLERY.glob("*.png")]
    assert max(sizes) < 150e3
    assert sum(sizes) < 2e6
    for path in GALLERY.glob("*.png"):
        with Image.open(path) as image:
            assert image.width <= 1100


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_severity_rises_from_column_to_column(picture):
    shape = tuple(brain()[1 if picture.volume else 0].shape)
    drawn = [artefact.draw(shape, np.random.default_rng(picture.seed)) for _, artefact in picture.strengths]
    severities = [each.severity for each in drawn]
    assert 0 < severities[0] < severities[1] < severities[2]
    assert len(severities) == len(COLUMNS) - 1


def test_the_slice_is_a_brain_with_a_smooth_phase():
    flat, volume = brain()
    assert flat.shape == (1, 216, 192)
    assert volume.shape == (1, 76, 108, 96)
    inside = magnitude(flat) > 0.3
    # white matter .65 (1 - 1.95 exp(-1.8 / .78)) and grey matter .85 (1 - 1.95 exp(-1.8 / 1.4)) are the two peaks
    for level in (0.524, 0.392):
        assert float(((magnitude(flat)[inside] - level).abs() < 0.01).double().mean()) > 0.15
    turned = flat[0, :, 1:] * flat[0, :, :-1].conj()
    assert float(turned[inside[0, :, 1:] & inside[0, :, :-1]].angle().abs().max()) < 0.1


def test_the_script_paints(tmp_path, capsys):
    main(["--out", str(tmp_path), "--only", "rf_spike"])
    assert capsys.readouterr().out.startswith("rf_spike.png: ")
    with Image.open(tmp_path / "rf_spike.png") as fresh, Image.open(GALLERY / "rf_spike.png") as kept:
        assert fresh.size == kept.size
        # fonts may differ: the images below the titles may not
        tiles = [np.asarray(each.convert("RGB"))[40:] for each in (fresh, kept)]
    assert np.mean(tiles[0] != tiles[1]) < 0.01


def test_every_drawn_anatomy_has_a_picture_on_its_page(tmp_path, capsys):
    files = {path.stem for path in GALLERY.glob("phantom_*.png")}
    assert files == set(phantom_gallery.NAMES)
    for name in files:
        page = (ROOT / "docs" / "phantoms" / f"{name.removeprefix('phantom_')}.md").read_text(encoding="utf-8")
        assert f"(../gallery/{name}.png)" in page
    phantom_gallery.main(["--out", str(tmp_path), "--only", "phantom_heart"])
    assert capsys.readouterr().out.startswith("phantom_heart.png: ")
    with Image.open(tmp_path / "phantom_heart.png") as fresh, Image.open(GALLERY / "phantom_heart.png") as kept:
        assert fresh.size == kept.size
        grey = [np.asarray(each.convert("L"))[20:200].astype(float) for each in (fresh, kept)]
    # anatomy and noise are drawn from seeds; scaling to pixels may differ
    assert np.abs(grey[0] - grey[1]).mean() < 3
