"""Fast fits of decays against dense grids, scipy, closed forms and the Cramér-Rao bound."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from qsim.errors import InputError
from qsim.estimators import Status, build_estimator
from qsim.estimators.log_linear import LogLinear
from qsim.estimators.projection.decay_search import DecaySearch
from qsim.estimators.two_point import TwoPoint
from qsim.information import crb
from qsim.parameters import T1RHO, T2
from qsim.signals import GradientEcho, InversionRecovery, InversionRecovery2P, SpinEcho, SpinLock, T2Prep
from tests.published import TE_PREP

TSL = (0.0, 0.01, 0.03, 0.05)
EIGHT = tuple(0.01 * k for k in range(1, 9))
TIMES = [TSL, TE_PREP, EIGHT, (0.16, 0.01, 0.08)]


def series(times, n, snr, seed=0, spread=(0.01, 1.0)):
    """A 0.5 to 1.5 and T over two decades; SNR 0: noise alone."""
    rng = np.random.default_rng(seed)
    t = np.exp(rng.uniform(*np.log(spread), n))
    signal = rng.uniform(0.5, 1.5, n) * np.exp(-np.array(times)[:, None] / t)
    noise = rng.standard_normal(signal.shape)
    return torch.tensor(noise if snr == 0 else signal + 0.65 / snr * noise)


def lowest_objective(times, y, n=20_001):
    """Global minimum over A >= 0 and T in [1 ms, 4 s]: a dense grid of T, then golden sections about its best node."""
    later = np.array(times)[:, None] - min(times)
    nodes = np.linspace(*np.log(T2.lower * np.array([1, 4000])), n)

    def unit(u):
        atom = np.exp(-later * np.exp(-u))
        return atom / np.linalg.norm(atom, axis=0)

    def objective(u):
        atom = unit(u)
        return ((y - np.maximum((atom * y).sum(0), 0) * atom) ** 2).sum(0)

    best = np.concatenate([(unit(nodes).T @ part).argmax(0) for part in np.array_split(y, y.shape[1] // 500 + 1, 1)])
    low, high = nodes[np.maximum(best - 1, 0)], nodes[np.minimum(best + 1, n - 1)]
    golden = (5**0.5 - 1) / 2
    found = [objective(nodes[best])]
    for _ in range(30):
        a, b = high - golden * (high - low), low + golden * (high - low)
        left = objective(a) < objective(b)
        low, high = np.where(left, low, a), np.where(left, b, high)
    return np.minimum.reduce([*found, objective(low), objective(high)])


def excess(times, y, a, t):
    """How far the objective at (a, t) lies above the global minimum, as a part of it."""
    y, a, t = y.double().numpy(), a.double().numpy(), t.double().numpy()
    found = ((a * np.exp(-np.array(times)[:, None] / t) - y) ** 2).sum(0)
    lowest = lowest_objective(times, y)
    return (found - lowest) / lowest


@pytest.mark.parametrize("times", TIMES, ids=len)
@pytest.mark.parametrize("snr", [0, 3, 10, 100])
def test_global_minimum(times, snr):
    """Not one of 1,000 voxels, noise without signal included, lies 1e-6 above the minimum of a dense grid."""
    y = series(times, 1000, snr, seed=snr)
    a, t, objective, converged = DecaySearch(times, T2)(y)
    assert excess(times, y, a, t).max() < 1e-6
    assert bool(converged.all())
    direct = (a * torch.exp(-y.new_tensor(times)[:, None] / t) - y).square().sum(0)
    torch.testing.assert_close(objective, direct, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("times", TIMES, ids=len)
@pytest.mark.parametrize("snr", [0, 10, 100])
def test_float32_reaches_the_same_minimum(times, snr):
    y = series(times, 1000, snr, seed=1 + snr).float()
    single = DecaySearch(times, T2)(y)
    assert single[0].dtype == torch.float32
    # three images leave one residual, which may be as small as the rounding of the images
    assert (excess(times, y, single[0], single[1]) > 1e-6).mean() < (0.005 if len(times) > 3 else 0.02)
    double = DecaySearch(times, T2)(y.double())
    # against the standard error of T, whatever its size: only ties between two hills may differ
    far = (single[1].double() / double[1] - 1).abs() > 1e-3
    assert far.float().mean() < 0.005
    assert bool(single[3].all())


def test_long_t_in_float32_keeps_what_the_images_hold():
    """T 2 s, times up to 50 ms: the decay is 2.5 %, so the rounding of the images, 6e-8, is 6e-6 of T at the least."""
    t = torch.full((500,), 2.0, dtype=torch.float64)
    a = torch.linspace(0.5, 1.5, 500, dtype=torch.float64)
    y = SpinLock(tsl=TSL)(torch.stack((a, t))).float()
    found = DecaySearch(TSL, T1RHO)(y)[1].double()
    assert float((found / t - 1).abs().max()) < 1e-4


def test_times_short_and_far_apart():
    """T down to 2 ms with times of 0.5 s: the images but one are zero, and the objective is flat."""
    times = (0.0, 0.5, 1.0, 2.0)
    y = series(times, 2000, 100, seed=5, spread=(0.002, 2.0))
    a, t, _, _ = DecaySearch(times, T2)(y)
    assert excess(times, y, a, t).max() < 2e-6


def test_any_unit_and_no_voxels():
    search = DecaySearch(TE_PREP, T2)
    y = series(TE_PREP, 50, 30).float()
    a, t, _, _ = search(y)
    for power in (-60, 40):
        scaled = search(y * 2.0**power)
        assert torch.equal(scaled[1], t)
        assert torch.equal(scaled[0], a * 2.0**power)
    assert all(row.shape == (0,) for row in search(y[:, :0]))


def test_no_decay_at_all():
    a, t, objective, converged = DecaySearch(TSL, T1RHO)(-torch.ones(4, 3, dtype=torch.float64))
    assert a.tolist() == [0.0] * 3
    np.testing.assert_allclose(t, T1RHO.lower, rtol=1e-12)
    assert objective.tolist() == [4.0] * 3
    assert bool(converged.all())


def rmse_over_bound(method, model, truth, snr, n=20_000):
    generator = torch.Generator().manual_seed(7)
    kappa = torch.tensor(truth, dtype=torch.float64)[:, None].expand(2, n)
    sigma = 0.65 / snr
    images = model(kappa) + sigma * torch.randn(model.n_images, n, generator=generator, dtype=torch.float64)
    t = method(images.float())
    bound = crb(model, kappa[:, :1], sigma)
    return float((t.double() - truth[1]).square().mean().sqrt() / bound.sd[1, 0]), float(bound.cv[1, 0])


@pytest.mark.parametrize(("snr", "limit"), [(100, 1.05), (30, 1.05), (12, 1.25)])
def test_at_the_bound(snr, limit):
    """20,000 repeats: their RMSE is known to 0.5 %."""
    model = T2Prep(te_prep=TE_PREP)
    search = DecaySearch(TE_PREP, T2)
    ratio, cv = rmse_over_bound(lambda images: search(images)[1], model, (0.65, 0.08), snr)
    assert cv < (12 if limit == 1.05 else 25)
    assert 0.97 < ratio < limit


def test_log_linear_at_the_bound_where_the_signal_is_above_the_noise():
    """SNR 100, last image 13 sigma."""
    model = T2Prep(te_prep=TE_PREP)
    fit = LogLinear(model)
    assert 0.97 < rmse_over_bound(lambda images: fit(images).kappa[1], model, (0.65, 0.15), 100)[0] < 1.05


def test_same_as_curve_fit():
    y = series(EIGHT, 20, 50, seed=3, spread=(0.02, 0.1))
    a, t, _, _ = DecaySearch(EIGHT, T2)(y)
    for v in range(20):
        theirs, _ = curve_fit(lambda x, a, t: a * np.exp(-x / t), np.array(EIGHT), y[:, v].numpy(), p0=(1, 0.05))
        np.testing.assert_allclose((a[v], t[v]), theirs, rtol=1e-5)


DECAYS = [T2Prep(te_prep=TE_PREP), SpinLock(tsl=TSL), SpinEcho(te=(0.16, 0.01, 0.08)), GradientEcho(te=EIGHT)]


@pytest.mark.parametrize("model", DECAYS, ids=lambda m: m.kind)
@pytest.mark.parametrize("name", ["two-point", "log-linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_free(model, name, dtype):
    rng = np.random.default_rng(1)
    truth = torch.tensor(np.stack([rng.uniform(0.3, 2, (3, 4)), rng.uniform(0.02, 0.2, (3, 4))]), dtype=dtype)
    found = build_estimator(name, model)(model(truth))
    # float32: images of 6e-8, whose logarithms differ by 0.1 at the least
    torch.testing.assert_close(found.kappa, truth, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)
    assert bool((found.status == Status.OK).all())


def test_two_point_by_hand():
    """S = 1 at 10 ms and 1 / e at 60 ms: T = 50 ms, A = exp(0.2). The image between is not looked at."""
    model = SpinLock(tsl=(0.06, 0.03, 0.01))
    images = torch.tensor([[np.exp(-1.0)], [9.0], [1.0]], dtype=torch.float64)
    found = TwoPoint(model)(images)
    np.testing.assert_allclose(found.kappa[:, 0], (np.exp(0.2), 0.05), rtol=1e-12)
    images = torch.tensor([[5.0], [np.exp(-0.4)], [1.0]], dtype=torch.float64)
    chosen = TwoPoint(model, first=2, last=1)(images)
    np.testing.assert_allclose(chosen.kappa[:, 0], (np.exp(0.2), 0.05), rtol=1e-12)


@pytest.mark.parametrize("name", ["two-point", "log-linear"])
def test_limits_and_what_has_no_logarithm(name):
    model = SpinLock(tsl=(0.0, 0.05))
    nan = float("nan")
    images = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, nan, 1.0], [1.2, 0.999, 1e-30, -0.1, 0.0, 1.0, 0.0]])
    found = build_estimator(name, model)(images)
    bound, none = Status.AT_BOUND, Status.NOT_COMPUTED
    assert found.status.tolist() == [bound, bound, bound, none, none, none, none]
    upper, lower = found.kappa[1, :2].tolist(), float(found.kappa[1, 2])
    np.testing.assert_allclose((*upper, lower), (4.0, 4.0, 0.001), rtol=1e-6)
    assert bool(torch.isnan(found.kappa[:, 3:]).all())
    # A of the first: least squares at T = 4 s, or the line of the logarithms with that slope: about their mean of 1.1
    assert abs(float(found.kappa[0, 0]) / 1.1 - 1) < 0.02
    masked = build_estimator(name, model)(images, mask=torch.zeros(7, dtype=torch.bool))
    assert bool((masked.status == none).all())


@pytest.mark.parametrize("name", ["two-point", "log-linear"])
def test_refusals(name):
    model = SpinLock(tsl=TSL)
    images = torch.ones(4, 3)
    for wrong in (InversionRecovery(ti=(0.1, 0.5, 1.0)), InversionRecovery2P(ti=(0.1, 0.5))):
        with pytest.raises(InputError, match=f"estimators: {name} needs a mono-exponential decay"):
            build_estimator(name, wrong)
    with pytest.raises(InputError, match="two different times"):
        build_estimator(name, SpinLock(tsl=(0.01, 0.01)))
    with pytest.raises(InputError, match="4 times"):
        build_estimator(name, model)(images[:3])
    with pytest.raises(InputError, match=r"known\.B"):
        build_estimator(name, model)(images, known={"B": 2.0})
    with pytest.raises(InputError, match="sigma: must be positive"):
        build_estimator(name, model)(images, sigma=0.0)
    two = SpinLock(tsl=(0.0, 0.05))
    with pytest.raises(InputError, match="leave no residual"):
        build_estimator(name, two, {"covariance": True})(torch.tensor([[1.0], [0.5]]))


def test_two_point_refuses_images_that_are_not_there():
    with pytest.raises(InputError, match="first: got 4"):
        TwoPoint(SpinLock(tsl=TSL), first=4)
    with pytest.raises(InputError, match="two different times"):
        TwoPoint(SpinLock(tsl=TSL), first=2, last=2)


def test_two_point_covariance_is_the_bound_of_two_images():
    """Two images and two parameters: the delta method and the inverse Fisher matrix are the same."""
    model = SpinLock(tsl=(0.01, 0.05))
    truth = torch.tensor([[0.7, 1.3], [0.045, 0.1]], dtype=torch.float64)
    found = TwoPoint(model, covariance=True)(model(truth), sigma=0.02)
    torch.testing.assert_close(found.variances["noise"].sqrt(), crb(model, truth, 0.02).sd, rtol=1e-9, atol=0)


def test_log_linear_covariance_is_the_bound():
    """Weights S^2 are optimal to first order."""
    model = T2Prep(te_prep=TE_PREP)
    truth = torch.tensor([[0.7, 1.3], [0.045, 0.1]], dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.02], dtype=torch.float64)
    found = LogLinear(model, covariance=True)(model(truth), sigma=sigma)
    torch.testing.assert_close(found.variances["noise"].sqrt(), crb(model, truth, sigma).sd, rtol=1e-9, atol=0)
    assert found.noise_level.source == "given"


@pytest.mark.parametrize("method", [TwoPoint, LogLinear, lambda *a: LogLinear(*a, weighted=False)])
def test_covariance_against_the_scatter_of_repeats(method):
    """20,000 repeats at SNR 130: variances known to 1 %, the rest is the curvature of the logarithm."""
    model = SpinLock(tsl=TSL)
    truth = torch.tensor([0.65, 0.045], dtype=torch.float64)[:, None].expand(2, 20_000)
    noise = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images = model(truth) + 0.005 * noise
    found = method(model, True)(images, sigma=0.005)
    np.testing.assert_allclose(found.covariance.mean(-1), np.cov(found.kappa), rtol=0.04)
    # sigma of the residuals: its median is known to 1 %
    own = method(model, True)(images)
    assert own.noise_level.source == "residual"
    assert abs(float(own.noise_level.sigma) / 0.005 - 1) < 0.03


def test_weights_of_the_fitted_signal_take_away_most_of_the_bias():
    """T 30 ms, last image under the noise of SNR 20: an unweighted line is pulled far off."""
    model = T2Prep(te_prep=(0.0, 0.02, 0.04, 0.06))
    truth = torch.tensor([0.65, 0.03], dtype=torch.float64)[:, None].expand(2, 20_000)
    noise = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    images = model(truth) + 0.0325 * noise

    def rmse(weighted):
        found = LogLinear(model, weighted=weighted)(images)
        ok = found.status == Status.OK
        return float((found.kappa[1, ok] - 0.03).square().mean().sqrt())

    bound = float(crb(model, truth[:, :1], 0.0325).sd[1, 0])
    assert rmse(True) < 1.1 * bound
    assert rmse(False) > 1.3 * bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_cuda(dtype):
    y = series(TE_PREP, 20_000, 10).to(dtype)
    here, there = DecaySearch(TE_PREP, T2)(y), DecaySearch(TE_PREP, T2)(y.cuda())
    assert there[1].is_cuda
    far = (there[1].cpu() / here[1] - 1).abs() > (1e-3 if dtype == torch.float32 else 1e-6)
    # two hills of the same height may be taken the other way round
    assert far.float().mean() < 1e-3
    for name in ("two-point", "log-linear"):
        method = build_estimator(name, T2Prep(te_prep=TE_PREP), {"covariance": True})
        on_cpu, on_cuda = method(y, sigma=0.065), method(y.cuda(), sigma=0.065)
        assert torch.equal(on_cuda.status.cpu(), on_cpu.status)
        rtol = 1e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(on_cuda.kappa.cpu(), on_cpu.kappa, rtol=rtol, atol=0, equal_nan=True)
