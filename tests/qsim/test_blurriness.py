"""Structures in an anatomy of one tissue, with estimators whose answer is known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from qsim.distributions import Constant
from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.evaluation.studies.blurriness import Structure, bounds, p_value, place, run, with_structures
from qsim.evaluation.study import Case, Design
from qsim.information import crb
from qsim.kspace.noise import GaussianNoise
from qsim.parameters import T1
from qsim.signals import InversionRecovery

MODEL = InversionRecovery(ti=(0.1, 0.3, 0.7, 1.5, 3.0))
STRUCTURES = (
    Structure(name="point", tissue="gm", extent=(1, 1), value=0.4),
    Structure(name="line", tissue="gm", extent=(6, 1), value=2.0),
)
BACKGROUND = 1.3


def make_case(draw=0, size=40, t1=BACKGROUND):
    labels = torch.ones(size, size, dtype=torch.uint8)
    kappa = torch.stack([torch.full((size, size), x) for x in (0.8, 1.9, t1)])
    return Case(draw, MODEL.coherent(kappa), kappa, labels, torch.ones(size, size), ("gm",))


def design(repeats=4):
    return Design(MODEL, GaussianNoise(sigma=Constant(value=0.1)), seed=3, repeats=repeats, shared=("B",))


@dataclass
class Blurs:
    """The true T1 of one of the scenarios, after a box of `width` voxels; scenarios come in their order."""

    pair: tuple
    width: int
    repeats: int
    name: str = "blurs"
    parameters: tuple = (T1,)
    calls: int = 0

    def __call__(self, images, sigma=None, mask=None, known=None):
        case = self.pair[self.calls // self.repeats]
        self.calls += 1
        t1 = uniform_filter(case.kappa[2].double().numpy(), self.width)
        return Estimate(torch.from_numpy(t1)[None].float(), torch.zeros(t1.shape, dtype=torch.uint8))


def test_places_are_pure_apart_and_new_in_each_draw():
    case = make_case()
    placed = place(case, STRUCTURES, seed=1)
    assert [int(each.inside.sum()) for each in placed] == [1, 6]
    # a ring of one voxel: 3 x 3 - 1 and 8 x 3 - 6
    assert [int(each.ring.sum()) for each in placed] == [8, 18]
    everything = sum((each.inside | each.ring).astype(int) for each in placed)
    assert everything.max() == 1
    rows = [np.argwhere(each.inside | each.ring) for each in placed]
    nearest = min(np.abs(a - b).max() for a in rows[0] for b in rows[1])
    assert nearest > 4
    again, other = place(case, STRUCTURES, seed=1), place(make_case(draw=1), STRUCTURES, seed=1)
    assert all((a.inside == b.inside).all() for a, b in zip(placed, again, strict=True))
    assert any((a.inside != b.inside).any() for a, b in zip(placed, other, strict=True))
    # mixed voxels and other tissues leave no room
    mixed = replace(case, purity=torch.full((40, 40), 0.95))
    with pytest.raises(InputError, match=r"structures\[0\]: draw 0 has no 3 x 3 voxels of pure gm left for point"):
        place(mixed, STRUCTURES, seed=1)
    with pytest.raises(InputError, match=r"structures\[0\]\.tissue: the anatomy has no wm; it has gm"):
        place(case, (replace(STRUCTURES[0], tissue="wm"),), seed=1)
    with pytest.raises(InputError, match=r"structures\[0\]\.extent: has 3 axes, the images 2"):
        place(case, (replace(STRUCTURES[0], extent=(1, 1, 1)),), seed=1)
    with pytest.raises(InputError, match=r"no 3 x 43 voxels"):
        place(case, (replace(STRUCTURES[0], extent=(1, 41)),), seed=1)


def test_only_the_structures_change():
    case = make_case()
    placed = place(case, STRUCTURES, seed=1)
    changed = with_structures(case, MODEL, "T1", placed)
    inside = np.logical_or(*(each.inside for each in placed))
    differs = (changed.kappa != case.kappa).any(0).numpy()
    assert (differs == inside).all()
    assert ((changed.signal != case.signal).any(0).numpy() == inside).all()
    # A (1 - B exp(-TI / T1)) by hand
    expected = [0.8 * (1 - 1.9 * np.exp(-ti / 0.4)) for ti in MODEL.ti]
    np.testing.assert_allclose(changed.signal[:, placed[0].inside][:, 0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("width", [1, 3])
def test_contrast_and_bias_of_a_known_blur(width):
    case = make_case()
    placed = place(case, STRUCTURES, seed=1)
    pair = case, with_structures(case, MODEL, "T1", placed)
    found = run(pair, placed, "T1", [Blurs(pair, width, 4)], design(), 10.0)["blurs"]
    blurred = uniform_filter(pair[1].kappa[2].double().numpy(), width)
    for k, each in enumerate(placed):
        true = each.structure.value
        inner, outer = blurred[each.inside].mean(), blurred[each.ring].mean()
        np.testing.assert_allclose(found.recovery[k], (inner - outer) / (true - BACKGROUND), atol=1e-5)
        np.testing.assert_allclose(found.error[1, k, 0], 100 * (inner / true - 1), atol=1e-3)
        np.testing.assert_allclose(found.error[1, k, 1], 100 * (outer / BACKGROUND - 1), atol=1e-3)
        np.testing.assert_allclose(found.error[0, k], 0, atol=1e-3)
    # by hand: a point in a box of nine keeps a ninth of its contrast, and so do its neighbours; nothing is left of it
    assert found.recovery[0] == pytest.approx(1.0 if width == 1 else 0.0, abs=1e-5)
    if width == 3:
        assert found.error[1, 0, 0] == pytest.approx(100 * ((8 * 1.3 + 0.4) / 9 / 0.4 - 1), abs=1e-3)


def test_bounds_are_those_of_the_voxels():
    case = make_case()
    placed = place(case, STRUCTURES, seed=1)
    pair = case, with_structures(case, MODEL, "T1", placed)
    found = bounds(pair, placed, "T1", design(), 10.0)
    assert set(found) == {"free", "shared", "known"}
    point = torch.tensor([[0.8], [1.9], [0.4]])
    assert found["free"][1, 0, 0] == pytest.approx(float(crb(MODEL, point, 0.065).cv[2, 0]), rel=1e-6)
    assert found["known"][1, 0, 0] == pytest.approx(float(crb(MODEL, point, 0.065, known=("B",)).cv[2, 0]), rel=1e-6)
    assert (found["known"] < found["free"]).all()


def test_the_test_finds_what_is_there_and_five_per_cent_of_what_is_not():
    rng = np.random.default_rng(0)
    null = [p_value(*rng.normal(size=(2, 50))) < 0.05 for _ in range(600)]
    # binomial: SD of the rate is sqrt(.05 x .95 / 600) = .9 %
    assert np.mean(null) == pytest.approx(0.05, abs=0.03)
    shifted = [p_value(rng.normal(size=50), rng.normal(size=50) + 0.8) < 0.05 for _ in range(300)]
    # power of a t-test with n = 50 at an effect of .8 SD: 97.7 % (Cohen 1988, table 2.3)
    assert np.mean(shifted) == pytest.approx(0.977, abs=0.03)
    assert np.isnan(p_value(np.full(10, 3.0), np.full(10, 5.0)))
