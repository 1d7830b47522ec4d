"""T1 from several flip angles with a known transmit field, against scipy, dense grids and the bound."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from qsim.errors import InputError
from qsim.estimators import Status
from qsim.estimators.least_squares import LeastSquares
from qsim.information import crb
from qsim.signals import VariableFlipAngle

TWO = VariableFlipAngle(flip_angles=(0.0524, 0.2618), tr=0.008)
FOUR = VariableFlipAngle(flip_angles=(0.2618, 0.0349, 0.0873, 0.1745), tr=0.015)


def signal(alpha, a, t1, tr):
    e = np.exp(-tr / t1)
    return a * np.sin(alpha) * (1 - e) / (1 - e * np.cos(alpha))


def random_maps(n, seed):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.uniform(0.4, 1.2, n), rng.uniform(0.4, 3.0, n), rng.uniform(0.75, 1.2, n)]))


@pytest.mark.parametrize("model", [TWO, FOUR], ids=["two", "four"])
def test_round_trip_with_a_measured_field(model):
    truth = random_maps(40, 1)
    fit = LeastSquares(model)(model(truth).reshape(-1, 5, 8), known={"REL_B1": truth[2].reshape(5, 8)})
    torch.testing.assert_close(fit.kappa.flatten(1), truth, rtol=1e-7, atol=0)
    assert bool((fit.status == Status.OK).all())


def test_two_angles_are_the_slope_of_a_line():
    """S / sin x = E S / tan x + A (1 - E): T1 from the slope through two points (Fram 1987)."""
    truth = random_maps(20, 2)
    truth[2] = 1.0
    series = TWO(truth) * (1 + 0.02 * torch.tensor(np.random.default_rng(2).standard_normal((2, 20))))
    angle = torch.tensor(TWO.flip_angles, dtype=torch.float64)[:, None]
    over, along = series / torch.sin(angle), series / torch.tan(angle)
    slope = (over[1] - over[0]) / (along[1] - along[0])
    expected = -TWO.tr / torch.log(slope)
    fit = LeastSquares(TWO)(series, known={"REL_B1": 1.0})
    torch.testing.assert_close(fit.kappa[1], expected, rtol=1e-6, atol=0)
    assert bool((fit.kappa[2] == 1).all())


def test_wrong_field_is_a_wrong_t1():
    """At small angles T1 goes with the square of the field: what a fit without the map gets wrong."""
    truth = torch.tensor([[0.8], [1.0], [0.9]], dtype=torch.float64)
    fit = LeastSquares(FOUR)(FOUR(truth), known={"REL_B1": 1.0})
    assert float(fit.kappa[1]) == pytest.approx(0.9**2, rel=0.02)


@pytest.mark.parametrize("sigma", [0.0005, 0.005])
def test_global_minimum(sigma):
    truth = random_maps(200, 3)
    images = FOUR(truth).numpy() + sigma * np.random.default_rng(3).standard_normal((4, 200))
    fit = LeastSquares(FOUR)(torch.tensor(images), known={"REL_B1": truth[2]})
    found = ((FOUR(fit.kappa).numpy() - images) ** 2).sum(0)
    t1 = np.geomspace(0.01, 6.0, 20_001)
    for v in range(200):
        angle = np.array(FOUR.flip_angles)[:, None] * float(truth[2, v])
        atoms = signal(angle, 1.0, t1, FOUR.tr)
        lowest = images[:, v] @ images[:, v] - (np.maximum(atoms.T @ images[:, v], 0) ** 2 / (atoms**2).sum(0)).max()
        assert found[v] <= lowest * (1 + 1e-6)
    assert bool((fit.status != Status.NOT_CONVERGED).all())


def test_against_curve_fit_and_the_bound():
    kappa = torch.tensor([0.8, 1.2, 0.9], dtype=torch.float64)
    sigma, n = 0.0002, 4000
    generator = torch.Generator().manual_seed(0)
    clean = FOUR(kappa[:, None].expand(-1, n))
    images = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    fit = LeastSquares(FOUR, covariance=True)(images, sigma=sigma, known={"REL_B1": 0.9})
    bound = crb(FOUR, kappa, sigma, known=("REL_B1",)).sd
    # SD of an SD of 4000 draws: 1.1 %
    np.testing.assert_allclose((fit.kappa - kappa[:, None]).std(1)[:2], bound[:2], rtol=0.04)
    np.testing.assert_allclose(fit.variances["noise"].sqrt().median(1).values, bound, rtol=0.02, atol=0)
    angle = 0.9 * np.array(FOUR.flip_angles)
    for v in range(4):
        theirs, covariance = curve_fit(
            lambda x, a, t1: signal(x, a, t1, FOUR.tr),
            angle,
            images[:, v].numpy(),
            p0=(0.8, 1.2),
            sigma=np.full(4, sigma),
            absolute_sigma=True,
        )
        np.testing.assert_allclose(fit.kappa[:2, v], theirs, rtol=1e-5)
        np.testing.assert_allclose(fit.covariance[:2, :2, v], covariance, rtol=1e-3)


def test_field_must_be_known_and_angles_must_differ():
    with pytest.raises(InputError, match=r"^known.REL_B1: spoiled_gradient_echo cannot tell REL_B1 from T1; give a"):
        LeastSquares(TWO)(torch.ones(2, 4))
    with pytest.raises(InputError, match=r"cannot tell A and T1 .* from 1 different flip angles; give at least 2"):
        LeastSquares(VariableFlipAngle(flip_angles=(0.1, 0.1), tr=0.01))


def test_voxels_outside_what_can_be_are_marked():
    truth = random_maps(5, 4)
    images = FOUR(truth)
    images[:, 1] = 0
    images[:, 2] = -images[:, 2]
    field = truth[2].clone()
    field[3], field[4] = 0.0, 13.0
    fit = LeastSquares(FOUR, covariance=True)(images, sigma=0.01, known={"REL_B1": field})
    no = Status.NOT_COMPUTED
    assert fit.status.tolist() == [Status.OK, no, Status.AT_BOUND, no, no]
    assert fit.kappa[:, 3].isnan().all()
    assert float(fit.kappa[0, 2]) == 0.0
    with pytest.raises(InputError, match=r"known.REL_B1: has shape \(4,\)"):
        LeastSquares(FOUR)(images, known={"REL_B1": field[:4]})
