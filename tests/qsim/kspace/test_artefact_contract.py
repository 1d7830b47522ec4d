"""What every artefact keeps: one suite, run on each."""

import json
from dataclasses import dataclass, fields, replace
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
    apply_chain,
    corrupt,
)
from qsim.kspace.artefacts.base import as_json
from qsim.kspace.artefacts.plain import field_kinds
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


@pytest.mark.parametrize("first", CASES)
@pytest.mark.parametrize("second", CASES)
def test_a_chain_of_two_is_the_one_after_the_other(first, second):
    chain = [CASES[first].strong, CASES[second].strong]
    if chain[0].stage > chain[1].stage:
        return
    shape = (2, 12, 9)
    images = images_of(shape)
    drawn = [artefact.draw(shape, np.random.default_rng(7 + number)) for number, artefact in enumerate(chain)]
    together = apply_chain(images, chain, drawn).images
    expected = chain[1].apply(chain[0].apply(images, drawn[0]), drawn[1])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", CASES)
def test_the_draw_of_another_artefact_is_refused(unchecked, kind):
    other = "low_pass" if kind != "low_pass" else "gibbs"
    artefact, images = CASES[kind].strong, images_of(SHAPES[0])
    drawn = CASES[other].strong.draw(SHAPES[0], np.random.default_rng(2))
    message = f"drawn: a {kind} applies its own {type(artefact).__name__}Drawn, got {type(drawn).__name__}"
    with pytest.raises(ValueError, match=f"^{message}"):
        artefact.apply(images, drawn)
    with pytest.raises(ValueError, match=rf"^artefacts\[0\]: {message}"):
        apply_chain(images, [artefact], [drawn])


@pytest.mark.parametrize("kind", CASES)
def test_images_that_require_grad_are_refused(kind):
    artefact, images = CASES[kind].strong, images_of(SHAPES[0]).requires_grad_()
    drawn = artefact.draw(SHAPES[0], np.random.default_rng(2))
    for make in (lambda: artefact.apply(images, drawn), lambda: corrupt(images, [artefact], np.random.default_rng(2))):
        with pytest.raises(ValueError, match=r"^images must not require grad.*call \.detach\(\)"):
            make()


@pytest.mark.parametrize("kind", CASES)
def test_a_conjugate_that_is_not_yet_made_is_as_good_as_one_that_is(kind):
    artefact, images = CASES[kind].strong, images_of(SHAPES[0])
    drawn = artefact.draw(SHAPES[0], np.random.default_rng(2))
    lazy = images.conj()
    assert lazy.is_conj()
    assert torch.equal(artefact.apply(lazy, drawn), artefact.apply(lazy.resolve_conj(), drawn))
    # the imaginary part of a conjugate is a negative that is not yet made
    turned = torch.complex(images.real, lazy.imag)
    assert torch.equal(artefact.apply(turned, drawn), artefact.apply(lazy.resolve_conj(), drawn))


# the artefacts whose fields are brought to plain numbers


@pytest.mark.parametrize("kind", CASES)
def test_what_is_no_number_is_none(unchecked, kind):
    """True is not 1, "2" is not 2, "no" is not false, 1.5 is no whole number."""
    artefact = CASES[kind].strong
    tried = 0
    for name, kinds in field_kinds(type(artefact)).items():
        wrong = []
        if kinds & {int, float}:
            wrong += [True, np.True_, (True, True), [1, [2]], {}]
        if kinds & {int, float} and str not in kinds:
            wrong += ["2"]
        if int in kinds and float not in kinds:
            wrong += [1.5, np.float64(2.5), (1.5, 2.5)]
        if bool in kinds:
            wrong += [1, "no"]
        for each in wrong:
            with pytest.raises(ValueError, match=f"^{name} must be (a finite number|a whole number|true or false)"):
                replace(artefact, **{name: each})
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("kind", CASES)
def test_numbers_of_numpy_and_lists_are_those_of_python(unchecked, kind):
    artefact = CASES[kind].strong
    turned = {}
    for field in fields(artefact):
        given = getattr(artefact, field.name)
        if isinstance(given, tuple):
            turned[field.name] = [np.float64(each) if isinstance(each, float) else np.int64(each) for each in given]
        elif isinstance(given, float) and given.is_integer():
            turned[field.name] = np.int64(given)
        elif isinstance(given, float):
            turned[field.name] = np.float64(given)
        elif isinstance(given, int) and not isinstance(given, bool):
            turned[field.name] = np.int16(given)
    again = replace(artefact, **turned)
    assert again == artefact
    assert repr(again) == repr(artefact)
