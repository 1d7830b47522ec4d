"""Levenberg-Marquardt of any model: against the closed-form fits, scipy, and what a series cannot determine."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from qsim.errors import InputError
from qsim.estimators import Status
from qsim.estimators.descent.levenberg_marquardt import minimise
from qsim.estimators.descent.voxel_problem import ChiLikelihood, Coordinates, Problem, gradient
from qsim.estimators.general_fit import GeneralFit
from qsim.kspace.order import Acquisition
from qsim.parameters import T1RHO, T2, C
from qsim.signals import (
    MOLLI,
    Bloch,
    InversionRecovery,
    MultiEchoSpinEcho,
    OffsetDecay,
    SpinLock,
    SpinLockPreparation,
    SpoiledGradientEcho,
)
from qsim.signals.readout import Ideal

# few echoes: the checks of shapes in every call of the phase graph are what takes the time here
TRAIN = MultiEchoSpinEcho(te=(0.02, 0.04, 0.06, 0.08, 0.1), t1=1.0)
LOCK = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
RANGES = {"A": (0.5, 1.0), "B": (1.7, 2.0), "T1": (0.4, 2.0), "T2": (0.03, 0.2), "T1RHO": (0.03, 0.1), "C": (-0.1, 0.3)}
RANGES |= {"REL_B1": (0.7, 0.97), "DELTA_B0": (-20.0, 20.0)}


def maps(model, n, seed):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(model.parameters), n, generator=generator, dtype=torch.float64)
    ends = torch.tensor([RANGES[p.name] for p in model.parameters], dtype=torch.float64)
    return torch.lerp(ends[:, :1], ends[:, 1:], uniform)


def noisy(model, kappa, sigma, seed):
    signal = model(kappa)
    generator = torch.Generator().manual_seed(seed)
    return signal + sigma * torch.randn(signal.shape, generator=generator, dtype=torch.float64)


def test_multi_echo_train_with_a_free_transmit_field():
    """Extended phase graph: A, T2 and REL_B1 below 1, from 5 echoes without noise."""
    truth = maps(TRAIN, 12, 0).reshape(3, 3, 4)
    found = GeneralFit(TRAIN, bounds={"REL_B1": (0.2, 1.0)}, starts=1)(TRAIN(truth))
    torch.testing.assert_close(found.kappa, truth, rtol=1e-7, atol=0)
    assert bool((found.status == Status.OK).all())


def test_known_field_against_scipy():
    """A measured REL_B1: the sum of squares that scipy's trust region reaches from the truth, to its tolerance."""
    truth = maps(TRAIN, 6, 1)
    images = noisy(TRAIN, truth, 0.02, 1)
    found = GeneralFit(TRAIN)(images, known={"REL_B1": truth[2]})
    torch.testing.assert_close(found.kappa[2], truth[2], rtol=0, atol=0)
    for v in range(6):

        def residual(x, v=v):
            kappa = torch.tensor([x[0], math.exp(x[1]), float(truth[2, v])], dtype=torch.float64)[:, None]
            return (TRAIN(kappa)[:, 0] - images[:, v]).numpy()

        start = [float(truth[0, v]), math.log(float(truth[1, v]))]
        theirs = least_squares(residual, start, xtol=1e-12, ftol=1e-12, gtol=1e-12)
        ours = residual([float(found.kappa[0, v]), math.log(float(found.kappa[1, v]))])
        assert (ours**2).sum() <= 2 * theirs.cost * (1 + 1e-9)
        np.testing.assert_allclose(found.kappa[:2, v], [theirs.x[0], math.exp(theirs.x[1])], rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        LOCK,
        InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0), signed=True),
        OffsetDecay(te=(0.0, 0.02, 0.04, 0.08, 0.16)),
    ],
    ids=lambda m: m.kind,
)
def test_global_minimum_of_smooth_models(model):
    """No point of a dense grid of the nonlinear row, with the amplitudes by linear algebra, lies lower."""
    truth = maps(model, 60, 2)
    images = noisy(model, truth, 0.03, 2)
    found = GeneralFit(model)(images)
    ours = (model(found.kappa) - images).square().sum(0)
    row = next(i for i, p in enumerate(model.parameters) if p.name.startswith("T"))
    times = np.geomspace(model.parameters[row].lower, model.parameters[row].upper, 4000)
    lowest = np.full(60, np.inf)
    for t in times:
        e = np.exp(-np.array(model.times) / t)
        basis = e[:, None] if model is LOCK else np.stack((np.ones_like(e), e), 1)
        left = np.linalg.lstsq(basis, images.numpy(), rcond=None)[1]
        lowest = np.minimum(lowest, left if len(left) else np.inf)
    inside = (found.status == Status.OK).numpy()
    assert inside.mean() > 0.85
    # a grid of 4000 times is 1e-6 of the sum of squares above the minimum at most
    assert (ours.numpy()[inside] <= lowest[inside] * (1 + 1e-6)).all()


def test_bloch_models_with_known_fields():
    acquisition = Acquisition(lines=40, shots=1, order="linear")
    readout = SpoiledGradientEcho(flip_angle=0.1, tr=0.004, acquisition=acquisition)
    model = MOLLI(ti_first=(0.12, 0.2), rr=0.9, readout=readout)
    truth = maps(model, 8, 3)
    known = {"DELTA_B0": truth[3], "REL_B1": truth[4], "T2": truth[2]}
    found = GeneralFit(model)(model(truth), known=known)
    torch.testing.assert_close(found.kappa, truth, rtol=1e-8, atol=0)
    with pytest.raises(InputError, match=r"^known\.DELTA_B0: this series cannot determine DELTA_B0, REL_B1, T2"):
        GeneralFit(model)(model(truth))


def test_what_a_spin_lock_series_cannot_determine():
    model = Bloch(
        preparation=SpinLockPreparation(cluster="BSL", tsl=(0.001, 0.01, 0.03, 0.05), fsl=500.0), readout=Ideal()
    )
    names = [p.name for p in model.parameters]
    truth = maps(model, 6, 4)
    known = {n: truth[i] for i, n in enumerate(names) if n not in ("A", "T1RHO")}
    found = GeneralFit(model)(model(truth), known=known)
    torch.testing.assert_close(found.kappa, truth, rtol=1e-7, atol=0)
    # three images, three rows and more: said at once
    with pytest.raises(InputError, match=r"^images: 4 images cannot determine 6 rows|^known\.DELTA_B0"):
        GeneralFit(model)(model(truth))


def test_bounds_are_reached_exactly_and_reported():
    short = LOCK(torch.tensor([[1.0], [1e-4]]).double())
    found = GeneralFit(LOCK)(short)
    assert float(found.kappa[1]) == T1RHO.lower
    assert int(found.status) == Status.AT_BOUND
    rising = LOCK(torch.tensor([[1.0], [-0.2]]).double())
    found = GeneralFit(LOCK)(rising)
    assert float(found.kappa[1]) == T1RHO.upper
    assert int(found.status) == Status.AT_BOUND
    # a known value on a bound is no estimate at its bound
    found = GeneralFit(LOCK)(rising, known={"T1RHO": T1RHO.upper})
    assert int(found.status) == Status.OK


def test_a_model_of_the_user():
    """No A, no derivatives in closed form, not linear in any row."""

    class Saturating:
        parameters = (T2, C)
        n_images = 5

        def __call__(self, kappa):
            t, c = kappa
            x = torch.linspace(0.01, 0.2, 5, dtype=kappa.dtype).reshape(-1, *(1,) * t.ndim)
            return torch.tanh(c) * torch.exp(-x / t) + c**3

    truth = torch.tensor([[0.05, 0.1], [0.6, 1.1]]).double()
    found = GeneralFit(Saturating())(Saturating()(truth))
    torch.testing.assert_close(found.kappa, truth, rtol=1e-6, atol=0)


def test_covariance_is_that_of_the_bound():
    truth = torch.tensor([[0.8], [0.05]]).double()
    images = noisy(LOCK, truth.expand(2, 2000), 0.01, 5)
    fit = GeneralFit(LOCK, covariance=True)
    given, residual = fit(images.float(), 0.01), fit(images)
    assert given.kappa.dtype == torch.float32
    deviation = (given.kappa - truth).div(given.variances["noise"].sqrt())
    # the SD of 2000 standard normals is 1 +- 0.016
    assert bool(((deviation.square().mean(1).sqrt() - 1).abs() < 0.05).all())
    assert float(residual.noise_level.sigma) == pytest.approx(0.01, rel=0.05)
    assert given.covariance.shape == (2, 2, 2000)


def test_gradient_is_that_of_the_objective():
    model = InversionRecovery(ti=(0.1, 0.5, 1.5), signed=True)
    problem = Problem(model, ChiLikelihood(2), Coordinates.of(model.parameters), (0, 1, 2))
    theta = torch.tensor([[0.8], [1.8], [-0.3]]).double()
    images, sigma = torch.tensor([[0.5], [0.3], [0.6]]).double(), torch.tensor([0.2]).double()
    _, slope, _ = gradient(problem, images, sigma, theta)
    for i in range(3):
        step = torch.zeros_like(theta)
        step[i] = 1e-6
        above, below = (gradient(problem, images, sigma, theta + s)[0] for s in (step, -step))
        assert float(slope[i]) == pytest.approx(float(above - below) / 2e-6, abs=1e-7)


def test_voxels_do_not_depend_on_their_company():
    truth = maps(LOCK, 3000, 6)
    images = noisy(LOCK, truth, 0.05, 6)
    together = GeneralFit(LOCK)(images)
    alone = GeneralFit(LOCK)(images[:, 1234:1236])
    torch.testing.assert_close(together.kappa[:, 1234:1236], alone.kappa, rtol=1e-8, atol=0)


def test_refusals_and_empty_masks():
    images = LOCK(torch.full((2, 3), 0.05).double())
    with pytest.raises(InputError, match=r"^known\.B: this method cannot use"):
        GeneralFit(LOCK)(images, known={"B": 2.0})
    with pytest.raises(InputError, match=r"^sigma: must be positive"):
        GeneralFit(LOCK, covariance=True)(images, 0.0)
    with pytest.raises(InputError, match=r"^images: 1 images cannot determine 2 rows"):
        GeneralFit(SpinLock(tsl=(0.01,)))(images[:1])
    with pytest.raises(InputError, match=r"^bounds\.T1: the model has no such row"):
        GeneralFit(LOCK, bounds={"T1": (0.1, 1.0)})
    acquisition = Acquisition(lines=8, shots=1, order="linear", encoding="exact")
    readout = SpoiledGradientEcho(flip_angle=0.1, tr=0.004, acquisition=acquisition)
    with pytest.raises(InputError, match=r"mixes voxels; set readout\.acquisition\.encoding: centre"):
        GeneralFit(Bloch(preparation=SpinLockPreparation(cluster="SSL", tsl=(0.01, 0.02), fsl=500.0), readout=readout))
    none = GeneralFit(LOCK, covariance=True)(images, mask=torch.zeros(3, dtype=torch.bool))
    assert bool((none.status == Status.NOT_COMPUTED).all())
    problem = Problem(LOCK, ChiLikelihood(), Coordinates.of(LOCK.parameters), (0, 1))
    assert minimise(problem, images[:, :0], torch.ones(1).double(), torch.ones(2, 0).double()).theta.shape == (2, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_on_cuda():
    truth = maps(TRAIN, 50, 7)
    images = noisy(TRAIN, truth, 0.01, 7)
    fit = GeneralFit(TRAIN, covariance=True)
    here = fit(images, 0.01, known={"REL_B1": truth[2]})
    there = fit(images.cuda(), 0.01, known={"REL_B1": truth[2].cuda()})
    torch.testing.assert_close(there.kappa.cpu(), here.kappa, rtol=1e-6, atol=1e-9)
