"""What every artefact keeps: one suite, run on each."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from qsim.kspace import (
    ARTEFACTS,
    Artefact,
    BiasField,
    Distortion,
    Ghosting,
    Gibbs,
    KSpaceNoise,
    LowPass,
    Motion,
    PartialFourier,
    RFSpike,
    Sudden,
    Wraparound,
    Zipper,
    corrupt,
)
from qsim.kspace.artefacts.base import as_json
from tests.qsim.kspace.oracle import random_images


@dataclass(frozen=True)
class Case:
    """An artefact at a strength that changes the images, and at none."""

    strong: Artefact[Any]
    nothing: Artefact[Any]


CASES = {
    "bias_field": Case(BiasField(strength=(0.1, 0.4)), BiasField(strength=0)),
    "distortion": Case(
        Distortion(delta_b0=(20, 60), bandwidth=20, te=0.01), Distortion(delta_b0=0, bandwidth=20, te=0.01)
    ),
    "ghosting": Case(Ghosting(phase=(0.1, 0.5), amplitude=0.2), Ghosting(phase=0)),
    "gibbs": Case(Gibbs(kept=(0.3, 0.7)), Gibbs(kept=1, support="ellipse")),
    "k_space_noise": Case(KSpaceNoise(snr_db=(-10, 20)), KSpaceNoise(sigma=0)),
    "low_pass": Case(LowPass(factor=(2, 4)), LowPass(factor=1)),
    "motion": Case(
        Motion(trajectory=Sudden(events=3, translation=(1, 2), rotation=0.05), line_time=0.01),
        Motion(trajectory=Sudden(events=3), line_time=0.01),
    ),
    "partial_fourier": Case(PartialFourier(fraction=(0.55, 0.8), reconstruction="pocs"), PartialFourier(fraction=1)),
    "rf_spike": Case(RFSpike(amplitude=(0.5, 2)), RFSpike(amplitude=0)),
    "wraparound": Case(Wraparound(strength=(0.3, 0.9)), Wraparound(strength=0)),
    "zipper": Case(Zipper(amplitude=(0.1, 0.5)), Zipper(amplitude=0)),
}
SHAPES = [(3, 16, 15), (2, 6, 9, 8)]


def images_of(shape, dtype=torch.complex128):
    return torch.from_numpy(random_images(shape)).to(dtype)


def test_every_artefact_is_here():
    assert sorted(CASES) == sorted(cls.__dataclass_fields__["kind"].default for cls in ARTEFACTS)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_strength_is_the_identity_and_has_no_severity(kind, shape):
    images, artefact = images_of(shape), CASES[kind].nothing
    drawn = artefact.draw(shape, np.random.default_rng(1))
    torch.testing.assert_close(artefact.apply(images, drawn), images, rtol=1e-12, atol=1e-12)
    assert drawn.severity == 0


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_draw_changes_the_images_and_keeps_their_form(kind, shape):
    images, artefact = images_of(shape), CASES[kind].strong
    before = images.clone()
    drawn = artefact.draw(shape, np.random.default_rng(1))
    there = artefact.apply(images, drawn)
    assert drawn.severity > 0
    assert there.shape == images.shape
    assert there.dtype == images.dtype
    assert float((there - images).abs().max()) > 1e-6
    assert torch.equal(images, before), "the images that were given were changed"


@pytest.mark.parametrize("kind", CASES)
def test_the_same_draw_gives_the_same_image_and_another_one_another(kind):
    shape = SHAPES[0]
    images, artefact = images_of(shape, torch.complex64), CASES[kind].strong
    first = artefact.draw(shape, np.random.default_rng(5))
    again = artefact.draw(shape, np.random.default_rng(5))
    other = artefact.draw(shape, np.random.default_rng(6))
    assert first == again
    assert first != other
    assert torch.equal(artefact.apply(images, first), artefact.apply(images, again))


@pytest.mark.parametrize("kind", CASES)
def test_a_draw_is_json(kind):
    drawn = CASES[kind].strong.draw(SHAPES[0], np.random.default_rng(2))
    record = json.loads(json.dumps(as_json(drawn), allow_nan=False))
    assert record["severity"] == drawn.severity


@pytest.mark.parametrize("kind", CASES)
def test_images_of_another_extent_are_refused(kind):
    drawn = CASES[kind].strong.draw(SHAPES[0], np.random.default_rng(2))
    with pytest.raises(ValueError, match="do not fit a draw for"):
        CASES[kind].strong.apply(images_of((3, 16, 14)), drawn)


@pytest.mark.parametrize("kind", CASES)
def test_real_images_are_refused(unchecked, kind):
    drawn = CASES[kind].strong.draw(SHAPES[0], np.random.default_rng(2))
    with pytest.raises(ValueError, match="must be complex"):
        CASES[kind].strong.apply(torch.ones(SHAPES[0]), drawn)


@pytest.mark.parametrize("kind", CASES)
def test_single_precision_follows_double(kind):
    shape = SHAPES[1]
    images, artefact = images_of(shape), CASES[kind].strong
    drawn = artefact.draw(shape, np.random.default_rng(3))
    double = artefact.apply(images, drawn)
    single = artefact.apply(images.to(torch.complex64), drawn)
    assert single.dtype == torch.complex64
    assert float((single - double).abs().max()) < 3e-5 * float(double.abs().max())


@pytest.mark.parametrize("kind", CASES)
def test_a_chain_of_one_is_the_artefact(kind):
    shape = SHAPES[0]
    images, artefact = images_of(shape), CASES[kind].strong
    result = corrupt(images, [artefact], np.random.default_rng(4))
    (drawn,) = result.drawn
    assert torch.equal(result.images, artefact.apply(images, drawn))
    assert result.severity == (drawn.severity,)
