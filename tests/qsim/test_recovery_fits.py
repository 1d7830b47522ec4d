"""Fits of recoveries with a finite TR, after a saturation and under a Look-Locker readout, against dense grids."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit, minimize

from qsim.errors import InputError
from qsim.estimators import Status
from qsim.estimators.least_squares import LeastSquares
from qsim.information import crb
from qsim.signals import (
    BiExponential,
    InversionRecovery,
    LookLocker,
    LookLockerTrain,
    OffsetDecay,
    SaturationRecovery,
    SpinEcho,
    VariableFlipAngle,
)
from tests.oracles import dense_grid_recovery, dense_t1_objective
from tests.published import TI_31

FEW = (0.05, 0.2, 0.5, 0.9, 1.4)


def finite_atom(b, t1, ti, tr):
    return 1 - b * np.exp(-ti / t1) + (b - 1) * np.exp(-tr / t1)


def reduced(b, t1, ti, tr, s, signed):
    """Sum of squares with the best A >= 0."""
    atom = finite_atom(b, t1, ti, tr)
    atom = atom if signed else np.abs(atom)
    q = atom @ atom
    return float(s @ s - max(atom @ s, 0) ** 2 / q) if q > 0 else float(s @ s)


def dense_finite_tr(ti, tr, s, signed, b_bounds=(0.0, 3.0), n_b=241, n_t=300):
    """Global minimum over A >= 0, B, T1: a dense grid, its eight best local minima polished by a simplex."""
    b = np.linspace(*b_bounds, n_b)
    u = np.linspace(*np.log((0.01, 6.0)), n_t)
    atoms = finite_atom(b[:, None, None], np.exp(u)[:, None], ti, tr)
    atoms = atoms if signed else np.abs(atoms)
    cost = s @ s - np.maximum(atoms @ s, 0) ** 2 / np.maximum((atoms**2).sum(-1), 1e-300)
    padded = np.pad(cost, 1, constant_values=np.inf)
    local = np.ones_like(cost, dtype=bool)
    for i in range(3):
        for j in range(3):
            local &= cost <= padded[i : i + n_b, j : j + n_t]
    rows, columns = np.nonzero(local)
    order = np.argsort(cost[rows, columns])[:8]
    best = cost.min()
    for i, j in zip(rows[order], columns[order], strict=True):
        x = np.array([b[i], u[j]])
        for _ in range(3):
            found = minimize(
                lambda p: reduced(p[0], np.exp(p[1]), ti, tr, s, signed),
                x,
                method="Nelder-Mead",
                bounds=[b_bounds, (u[0], u[-1])],
                options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 1500},
            )
            x = found.x
        best = min(best, found.fun)
    return best


def noisy(model, snr, n, seed):
    rng = np.random.default_rng(seed)
    kappa = np.stack([rng.uniform(0.4, 1.2, n), rng.uniform(1.5, 2.0, n), np.exp(rng.uniform(-1.2, 1.2, n))])
    clean = model(torch.tensor(kappa)).numpy()
    return clean + 0.65 / snr * rng.standard_normal(clean.shape)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("ti", "tr", "snr"), [(TI_31, 1.5, 20), (FEW, 1.6, 8)])
def test_global_minimum_with_finite_tr(ti, tr, snr, signed):
    model = InversionRecovery(ti=ti, tr=tr, signed=signed)
    images = noisy(model, snr, 10, seed=3)
    fit = LeastSquares(model)(torch.tensor(images))
    found = (model(fit.kappa).numpy() - images) ** 2
    for v in range(images.shape[1]):
        lowest = dense_finite_tr(np.array(ti), tr, images[:, v], signed)
        assert found[:, v].sum() <= lowest * (1 + 1e-6) + 1e-10


@pytest.mark.parametrize("signed", [False, True])
def test_global_minimum_with_finite_tr_and_known_b(signed):
    model = InversionRecovery(ti=FEW, tr=1.6, signed=signed)
    images = noisy(model, 10, 300, seed=4)
    u = np.linspace(*np.log((0.01, 6.0)), 40_001)
    atoms = finite_atom(1.8, np.exp(u)[:, None], np.array(FEW), 1.6)
    atoms = atoms if signed else np.abs(atoms)
    lowest = (images**2).sum(0) - (np.maximum(atoms @ images, 0) ** 2 / (atoms**2).sum(1)[:, None]).max(0)
    number = LeastSquares(model)(torch.tensor(images), known={"B": 1.8})
    field = torch.linspace(1.8, 1.8 + 1e-9, 300, dtype=torch.float64)
    for fit in (number, LeastSquares(model)(torch.tensor(images), known={"B": field})):
        found = ((model(fit.kappa).numpy() - images) ** 2).sum(0)
        assert np.mean(found > lowest * (1 + 1e-6) + 1e-12) < 0.01


def test_finite_tr_returns_what_went_in_and_forgetting_it_does_not():
    truth = torch.tensor([[0.6, 0.7, 0.9], [1.9, 1.7, 2.0], [0.8, 1.4, 3.5]], dtype=torch.float64)
    model = InversionRecovery(ti=FEW, tr=2.0)
    fit = LeastSquares(model)(model(truth))
    torch.testing.assert_close(fit.kappa, truth, rtol=1e-6, atol=0)
    assert fit.status.tolist() == [Status.OK] * 3
    # the same plane: T1 is right without TR too, but A and B are those of the shortened recovery
    plain = LeastSquares(InversionRecovery(ti=FEW))(model(truth)).kappa
    rest = torch.exp(-2.0 / truth[2])
    torch.testing.assert_close(plain[2], truth[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(plain[0], truth[0] * (1 + (truth[1] - 1) * rest), rtol=1e-6, atol=0)


def test_long_tr_is_the_plain_fit():
    images = torch.tensor(noisy(InversionRecovery(ti=FEW), 15, 200, seed=5))
    plain = LeastSquares(InversionRecovery(ti=FEW))(images)
    long = LeastSquares(InversionRecovery(ti=FEW, tr=60.0))(images)
    # T1 up to 6 s: exp(-10); a fit on a bound of T1 feels it most
    short = plain.kappa[2] < 3
    torch.testing.assert_close(long.kappa[:, short], plain.kappa[:, short], rtol=1e-5, atol=1e-6)
    assert int(short.sum()) > 120


def test_efficient_with_finite_tr():
    model = InversionRecovery(ti=FEW, tr=1.6)
    kappa = torch.tensor([0.65, 1.9, 0.78], dtype=torch.float64)
    sigma, n = 0.002, 4000
    generator = torch.Generator().manual_seed(0)
    clean = model(kappa[:, None].expand(-1, n))
    images = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    fit = LeastSquares(model, covariance=True)(images, sigma=sigma)
    bound = crb(model, kappa, sigma).sd
    # SD of an SD of 4000 draws: 1.1 %
    np.testing.assert_allclose((fit.kappa - kappa[:, None]).std(1), bound, rtol=0.04)
    np.testing.assert_allclose(fit.variances["noise"].sqrt().median(1).values, bound, rtol=0.03)


def test_saturation_recovery_is_the_same_problem_with_its_own_times():
    ts = (0.1, 0.3, 0.8, 1.5, 3.0)
    model = SaturationRecovery(ts=ts)
    rng = np.random.default_rng(6)
    kappa = np.stack([rng.uniform(0.4, 1.2, 8), rng.uniform(0.85, 1.1, 8), rng.uniform(0.3, 2.0, 8)])
    clean = model(torch.tensor(kappa))
    # a fit of five images without noise: the objective vanishes
    torch.testing.assert_close(LeastSquares(model)(clean).kappa, torch.tensor(kappa), rtol=1e-6, atol=0)
    images = clean.numpy() + 0.03 * rng.standard_normal(clean.shape)
    fit = LeastSquares(model)(torch.tensor(images))
    found = ((model(fit.kappa).numpy() - images) ** 2).sum(0)
    for v in range(8):
        lowest, _ = dense_grid_recovery(np.array(ts), images[:, v])
        assert found[v] <= lowest * (1 + 1e-6) + 1e-10


def test_saturation_recovery_with_known_b():
    ts = (0.1, 0.3, 0.8, 1.5, 3.0)
    model = SaturationRecovery(ts=ts)
    rng = np.random.default_rng(7)
    kappa = np.stack([rng.uniform(0.4, 1.2, 40), np.ones(40), rng.uniform(0.3, 2.0, 40)])
    images = model(torch.tensor(kappa)).numpy() + 0.05 * rng.standard_normal((5, 40))
    fit = LeastSquares(model)(torch.tensor(images), known={"B": 1.0})
    found = ((model(fit.kappa).numpy() - images) ** 2).sum(0)
    assert np.all(found <= dense_t1_objective(np.array(ts), images, 1.0) * (1 + 1e-6))
    assert bool((fit.kappa[1] == 1).all())


def test_two_saturation_times_are_enough_with_known_b_only():
    model = SaturationRecovery(ts=(0.3, 3.0))
    with pytest.raises(InputError, match=r"cannot tell A, B and T1 .* 2 different times; give at least 3, or known B"):
        LeastSquares(model)(torch.ones(2, 4))
    truth = torch.tensor([[0.7], [1.0], [0.9]], dtype=torch.float64)
    torch.testing.assert_close(LeastSquares(model)(model(truth), known={"B": 1.0}).kappa, truth)


def test_look_locker_of_oracle_g():
    """T1* 358.519 ms, M0* .300228: the fit of the exact series gives 1194.2 ms, of the played train as well."""
    steady, apparent = 0.300228, 0.358519
    times = np.arange(1, 21) * 0.1
    exact = torch.tensor(steady - (1 + steady) * np.exp(-times / apparent))
    for signed in (True, False):
        model = LookLocker(ti=tuple(times.tolist()), signed=signed)
        fit = LeastSquares(model)((exact if signed else exact.abs())[:, None])
        assert 1e3 * float(fit.kappa[2]) == pytest.approx(1194.2, abs=0.1)
        assert fit.status.tolist() == [Status.OK]
    train = LookLockerTrain(
        ti=tuple(times.tolist()), flip_angle=float(np.deg2rad(8)), tr=0.005, recovery=None, signed=True
    )
    rows = {"A": 1.0, "T1": 1.2, "T2": 0.08, "DELTA_B0": 0.0, "REL_B1": 1.0}
    series = train(torch.tensor([rows[p.name] for p in train.parameters], dtype=torch.float64)[:, None])
    fit = LeastSquares(LookLocker(ti=train.ti, signed=True))(series)
    assert 1e3 * float(fit.kappa[2]) == pytest.approx(1194.2, abs=0.1)


def test_look_locker_against_curve_fit_and_the_bound():
    ti = (0.1, 0.18, 0.26, 1.0, 1.08, 1.16, 1.9, 2.7, 3.5, 4.3, 5.1)
    model = LookLocker(ti=ti, signed=True)
    kappa = torch.tensor([0.6, 1.95, 1.3], dtype=torch.float64)
    sigma, n = 0.004, 3000
    generator = torch.Generator().manual_seed(1)
    clean = model(kappa[:, None].expand(-1, n))
    images = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    fit = LeastSquares(model, covariance=True)(images, sigma=sigma)
    bound = crb(model, kappa, sigma).sd
    # SD of an SD of 3000 draws: 1.3 %
    np.testing.assert_allclose((fit.kappa - kappa[:, None]).std(1), bound, rtol=0.05)
    np.testing.assert_allclose(fit.variances["noise"].sqrt().median(1).values, bound, rtol=0.03)
    for v in range(5):
        theirs, covariance = curve_fit(
            lambda t, a, b, t1: a * (1 - b * np.exp(-t * (b - 1) / t1)),
            np.array(ti),
            images[:, v].numpy(),
            p0=kappa.numpy(),
            sigma=np.full(len(ti), sigma),
            absolute_sigma=True,
        )
        np.testing.assert_allclose(fit.kappa[:, v], theirs, rtol=1e-5)
        # theirs by differences
        np.testing.assert_allclose(fit.covariance[:, :, v], covariance, rtol=1e-3)


def test_look_locker_without_a_t1_is_not_computed():
    """B at or below 1 leaves no T1* (B - 1); beyond the range of T1 the voxel is at bound."""
    times = torch.linspace(0.1, 3.0, 12, dtype=torch.float64)
    shallow = 1 - 0.8 * torch.exp(-times / 0.7)
    falling = 1 + 0.3 * torch.exp(-times / 0.7)
    fast = 1 - 1.005 * torch.exp(-times / 0.7)
    series = torch.stack((shallow, falling, fast), 1)
    estimate = LeastSquares(LookLocker(ti=tuple(times.tolist()), signed=True), covariance=True)
    fit = estimate(series, sigma=0.01)
    assert fit.status.tolist() == [Status.NOT_COMPUTED, Status.NOT_COMPUTED, Status.AT_BOUND]
    assert bool(fit.kappa[:, :2].isnan().all())
    # T1 of 3.5 ms is below its bound, kept and marked
    assert float(fit.kappa[2, 2]) == pytest.approx(0.0035, rel=1e-5)
    assert bool(fit.covariance[..., :2].isnan().all())
    known = LeastSquares(estimate.model)(series[:, 2:], known={"B": 1.005})
    torch.testing.assert_close(known.kappa[2], fit.kappa[2, 2:], rtol=1e-5, atol=0)
    assert LeastSquares(estimate.model)(series, known={"B": 0.9}).status.tolist() == [Status.NOT_COMPUTED] * 3


def test_sigma_as_a_map_and_from_the_residuals():
    model = InversionRecovery(ti=FEW, tr=1.6)
    kappa = torch.tensor([0.65, 1.9, 0.78], dtype=torch.float64)[:, None, None].expand(-1, 20, 30)
    generator = torch.Generator().manual_seed(2)
    sigma = torch.linspace(0.002, 0.004, 30, dtype=torch.float64).expand(20, 30)
    noise = torch.randn(5, 20, 30, generator=generator, dtype=torch.float64)
    estimate = LeastSquares(model, covariance=True)
    fit = estimate(model(kappa) + sigma * noise, sigma=sigma)
    one = estimate(model(kappa) + sigma * noise, sigma=0.002)
    ratio = (fit.variances["noise"] / one.variances["noise"]).mean((0, 1))
    torch.testing.assert_close(ratio, (sigma[0] / 0.002) ** 2, rtol=1e-9, atol=0)
    assert fit.noise_level.source == "given"
    own = estimate(model(kappa) + 0.003 * noise)
    assert own.noise_level.source == "residual"
    # two degrees of freedom in 600 voxels: the median of chi-square has an SD of about 5 %, sigma half of it
    assert float(own.noise_level.sigma) == pytest.approx(0.003, rel=0.1)
    with pytest.raises(InputError, match=r"^sigma: must be positive"):
        estimate(model(kappa), sigma=0.0)
    with pytest.raises(InputError, match=r"^sigma: 3 images leave no residual"):
        LeastSquares(InversionRecovery(ti=FEW[:3]), covariance=True)(torch.rand(3, 4) + 0.1)


@pytest.mark.parametrize("model", [InversionRecovery(ti=FEW, tr=2.0), SaturationRecovery(ts=FEW), LookLocker(ti=FEW)])
def test_nothing_to_fit(model):
    images = torch.zeros(5, 2, 3)
    images[0, 0, 0] = torch.nan
    fit = LeastSquares(model, covariance=True)(images)
    assert bool((fit.status == Status.NOT_COMPUTED).all())
    assert bool(fit.kappa.isnan().all())
    assert fit.covariance.shape == (3, 3, 2, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("model", "known"),
    [
        (InversionRecovery(ti=FEW), {}),
        (InversionRecovery(ti=FEW, tr=1.6), {}),
        (InversionRecovery(ti=FEW, tr=1.6, signed=True), {}),
        (InversionRecovery(ti=FEW), {"B": 1.9}),
        (LookLocker(ti=FEW), {}),
        (OffsetDecay(te=FEW), {}),
        (SpinEcho(te=FEW), {}),
        (BiExponential(te=FEW), {}),
        (VariableFlipAngle(flip_angles=(0.05, 0.1, 0.3), tr=0.01), {"REL_B1": 0.9}),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_cuda_finds_what_the_cpu_finds(model, known):
    generator = torch.Generator().manual_seed(0)
    rows = {"A": 0.8, "B": 1.9, "T1": 0.8, "T2": 0.9, "C": 0.1, "FRACTION": 0.4, "T2_SHORT": 0.1, "REL_B1": 0.9}
    kappa = torch.tensor([rows[p.name] for p in model.parameters], dtype=torch.float64)[:, None].expand(-1, 300)
    images = model(kappa)
    images = images + 1e-3 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    estimate = LeastSquares(model, covariance=True)
    there = estimate(images.cuda(), sigma=1e-3, known=known)
    here = estimate(images, sigma=1e-3, known=known)
    assert there.kappa.device.type == "cuda"
    error = ((model(there.kappa.cpu()) - images) ** 2).sum(0)
    torch.testing.assert_close(error, ((model(here.kappa) - images) ** 2).sum(0), rtol=1e-6, atol=1e-14)
    assert float((there.status.cpu() == here.status).double().mean()) > 0.99


def test_other_models_are_handed_over():
    """A Look-Locker train with its T2 and fields known: found from the exact series."""
    ti = (0.1, 0.4, 0.9, 1.6, 2.5)
    model = LookLockerTrain(ti=ti, flip_angle=0.1, tr=0.01, recovery=None)
    rows = {"A": 0.7, "T1": 1.1, "T2": 0.08, "DELTA_B0": 0.0, "REL_B1": 1.0}
    kappa = torch.tensor([rows[p.name] for p in model.parameters], dtype=torch.float64)[:, None]
    known = {name: rows[name] for name in ("T2", "DELTA_B0", "REL_B1") if name in [p.name for p in model.parameters]}
    fit = LeastSquares(model)(model(kappa), known=known)
    torch.testing.assert_close(fit.kappa, kappa, rtol=1e-5, atol=0)
