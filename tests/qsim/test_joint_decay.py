"""A spin-lock and a T2 preparation in one series: signal, refusals, and every method that fits decays."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from qsim.errors import InputError
from qsim.estimators import Status, build_estimator
from qsim.estimators.projection.closed_fits import search
from qsim.information import crb
from qsim.signals import ClosedForm, SpinLock, SpinLockT2Prep, T2Prep

TSL = (0.0, 0.01, 0.03, 0.05, 0.0, 0.0, 0.0)
TE = (0.0, 0.0, 0.0, 0.0, 0.0182, 0.0346, 0.051)
MODEL = SpinLockT2Prep(tsl=TSL, te_prep=TE)
METHODS = ("two-point", "log-linear", "least-squares", "rician")


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def liver(count, seed=0):
    """A around 1, T1rho 25 to 80 ms, T2 18 to 60 ms."""
    rng = np.random.default_rng(seed)
    ranges = ((0.5, 1.5), (0.025, 0.08), (0.018, 0.06))
    return torch.tensor(np.stack([rng.uniform(low, high, count) for low, high in ranges]))


class TestSignal:
    def test_by_hand(self):
        """A without either, A / e at TSL = T1rho, A / e at TE = T2, A / e^2 at both."""
        model = SpinLockT2Prep(tsl=(0.0, 0.04, 0.0, 0.04), te_prep=(0.0, 0.0, 0.03, 0.03))
        signal = model(double(0.7, 0.04, 0.03))
        np.testing.assert_allclose(signal, [0.7, 0.7 / math.e, 0.7 / math.e, 0.7 / math.e**2], rtol=1e-14)
        assert [p.name for p in model.parameters] == ["A", "T1RHO", "T2"]
        assert model.times == (0.0, 0.04, 0.03, 0.07)

    def test_each_contrast_is_the_model_of_its_own(self):
        kappa = liver(5)
        signal = MODEL(kappa)
        torch.testing.assert_close(signal[:4], SpinLock(tsl=TSL[:4])(kappa[[0, 1]]))
        torch.testing.assert_close(signal[[0, 4, 5, 6]], T2Prep(te_prep=(0.0, *TE[4:]))(kappa[[0, 2]]))

    def test_jacobian_against_central_differences(self):
        model = SpinLockT2Prep(tsl=(0.01, 0.05, 0.02, 0.0), te_prep=(0.02, 0.0, 0.05, 0.08))
        kappa = liver(7)
        found = model.jacobian(kappa)
        for row in range(3):
            h = torch.zeros_like(kappa)
            h[row] = 1e-5 * kappa[row]
            numeric = (model(kappa + h) - model(kappa - h)) / (2 * h[row])
            torch.testing.assert_close(found[row], numeric, rtol=1e-8, atol=1e-10)

    def test_bound_free_and_known(self):
        """The inverse of J'J / sigma^2 for each set of free rows; a known T2 leaves that of the other two."""
        kappa, sigma = double(0.8, 0.045, 0.03), 0.02
        slopes = MODEL.jacobian(kappa[:, None])[..., 0].numpy()
        for known in ((), ("T2",), ("T1RHO", "T2")):
            free = [i for i, p in enumerate(MODEL.parameters) if p.name not in known]
            wanted = sigma * np.sqrt(np.linalg.inv(slopes[free] @ slopes[free].T).diagonal())
            found = crb(MODEL, kappa[:, None], sigma, known=list(known)).sd[free, 0]
            np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("tsl", "te_prep", "said"),
    [
        ((0.0, 0.01, 0.05), (0.0, 0.02), "^tsl and te_prep: hold 3 and 2 times; give one of each"),
        ((0.0, 0.01, 0.03, 0.05), (0.0,) * 4, "^tsl and te_prep: .*rank 2, wanted 3.*; give at least three images"),
        ((0.0, 0.01, 0.02), (0.0, 0.02, 0.04), "^tsl and te_prep: .*rank 2"),
        ((0.0, 0.01, 0.02), (0.02, 0.01, 0.0), "^tsl and te_prep: .*rank 2"),
        ((0.0, 0.01), (0.01, 0.0), "^tsl and te_prep: .*rank 2"),
        ((0.01, 0.01, 0.01), (0.02, 0.02, 0.02), "^tsl and te_prep: .*rank 1"),
        ((0.0, 10.0, 0.0), (0.0, 0.0, 0.05), "^tsl must be in seconds, got 10; divide by 1000"),
        ((0.0, 0.01, 0.0), (0.0, 0.0, 50.0), "^te_prep must be in seconds, got 50; divide by 1000"),
        ((0.0, -0.01, 0.0), (0.0, 0.0, 0.05), "^tsl must not be negative"),
        ((0.0, 0.01, 0.0), (0.0, 0.0, math.nan), "^te_prep must hold finite"),
        ((), (), "^tsl is empty"),
    ],
)
def test_times_that_cannot_be(tsl, te_prep, said):
    with pytest.raises(ValueError, match=said):
        SpinLockT2Prep(tsl=tsl, te_prep=te_prep)


def test_three_images_are_enough():
    """Rank 3 without an image that has neither preparation."""
    assert SpinLockT2Prep(tsl=(0.01, 0.02, 0.01), te_prep=(0.02, 0.02, 0.05)).n_images == 3
    assert SpinLockT2Prep in ClosedForm.__args__


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_free_images_give_the_truth(method, dtype):
    truth = liver(200)
    found = build_estimator(method, MODEL)(MODEL(truth).to(dtype), sigma=1e-3 if method == "rician" else None)
    assert found.kappa.dtype == dtype
    assert (found.status == Status.OK).all()
    # rician: sigma of 1e-3 moves the estimate by about its square
    rtol = 1e-4 if method == "rician" else 2e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found.kappa.double(), truth, rtol=rtol, atol=0)


class TestTwoPoint:
    def test_by_hand(self):
        """From the first image and the last of each contrast, wherever they stand; others are not looked at."""
        model = SpinLockT2Prep(tsl=(0.05, 0.0, 0.0, 0.02, 0.0), te_prep=(0.0, 0.051, 0.0, 0.0, 0.03))
        images = double(3.0, 2.0, 8.0, 99.0, 99.0)
        found = build_estimator("two-point", model)(images[:, None]).kappa[:, 0]
        np.testing.assert_allclose(found, [8.0, 0.05 / math.log(8 / 3), 0.051 / math.log(4)], rtol=1e-13)

    def test_no_decay_is_the_longest_time(self):
        """S_2 > S_1: T1rho 4 s; the log-ratio still gives T2."""
        found = build_estimator("two-point", MODEL)(double(5.0, 5.0, 5.0, 6.0, 4.0, 3.0, 2.0)[:, None])
        assert found.status[0] == Status.AT_BOUND
        np.testing.assert_allclose(found.kappa[1:, 0], [4.0, 0.051 / math.log(2.5)], rtol=1e-12)
        # amplitude of (5, 6, 2) on (1, exp(-.05 / 4), .4)
        e = np.array([1.0, math.exp(-0.05 / 4), 0.4])
        np.testing.assert_allclose(found.kappa[0, 0], e @ [5, 6, 2] / (e @ e), rtol=1e-12)

    def test_no_logarithm_no_value(self):
        images = torch.ones(7, 3, dtype=torch.float64) * double(1.0, 0.9, 0.8, 0.7, 0.9, 0.7, 0.5)[:, None]
        images[3, 1] = -0.1
        images[1, 2] = -0.1
        assert build_estimator("two-point", MODEL)(images).status.tolist() == [0, 3, 0]
        assert build_estimator("log-linear", MODEL)(images).status.tolist() == [0, 3, 3]

    def test_refusals(self):
        with pytest.raises(InputError, match="two-point: first, last: spin_lock_t2_prep takes the common image"):
            build_estimator("two-point", MODEL, {"first": 1})
        mixed = SpinLockT2Prep(tsl=(0.0, 0.02, 0.05), te_prep=(0.0, 0.05, 0.02))
        with pytest.raises(
            InputError, match="one with a longer tsl alone and one with a longer te_prep alone; use log"
        ):
            build_estimator("two-point", mixed)
        with pytest.raises(InputError, match=r"known\.T2"):
            build_estimator("two-point", MODEL)(torch.ones(7, 2), known={"T2": 0.03})

    def test_covariance_is_the_bound_of_three_images(self):
        model = SpinLockT2Prep(tsl=(0.01, 0.05, 0.01), te_prep=(0.005, 0.005, 0.051))
        truth = liver(3)
        found = build_estimator("two-point", model, {"covariance": True})(model(truth), sigma=0.02)
        torch.testing.assert_close(found.variances["noise"].sqrt(), crb(model, truth, 0.02).sd, rtol=1e-8, atol=0)


class TestLogLinear:
    def test_one_pass_is_lstsq_of_the_logarithms(self):
        images = MODEL(liver(40)) * (1 + 0.05 * normal(7, 40))
        found = build_estimator("log-linear", MODEL, {"weighted": False})(images).kappa
        design = np.stack((np.ones(7), -np.array(TSL), -np.array(TE)), 1)
        wanted = np.linalg.lstsq(design, np.log(images.numpy()), rcond=None)[0]
        np.testing.assert_allclose(found, [np.exp(wanted[0]), 1 / wanted[1], 1 / wanted[2]], rtol=1e-9)

    def test_times_out_of_range_are_the_constrained_minimum(self):
        """Images that rise with TSL: the minimum over the box of rates, by scipy."""
        rise = double(0.0, 0.05, 0.15, 0.3, -0.4, -0.8, -1.1)
        images = torch.exp(rise[:, None] + 0.1 * normal(7, 30, seed=4))
        found = build_estimator("log-linear", MODEL, {"weighted": False})(images)
        assert (found.status == Status.AT_BOUND).all()
        for voxel in range(30):
            series = images[:, voxel].log().numpy()

            def residual(x, series=series):
                return x[0] - x[1] * np.array(TSL) - x[2] * np.array(TE) - series

            box = ([-np.inf, 0.25, 0.25], [np.inf, 1000, 1000])
            best = least_squares(residual, (0.0, 10.0, 10.0), bounds=box, x_scale=(1, 10, 10), xtol=1e-12, ftol=1e-14)
            own = (float(found.kappa[0, voxel].log()), *(1 / found.kappa[1:, voxel]).tolist())
            assert np.square(residual(own)).sum() <= 2 * best.cost * (1 + 1e-9)

    def test_covariance_is_the_bound(self):
        truth = liver(3)
        found = build_estimator("log-linear", MODEL, {"covariance": True})(MODEL(truth), sigma=0.02)
        torch.testing.assert_close(found.variances["noise"].sqrt(), crb(MODEL, truth, 0.02).sd, rtol=1e-8, atol=0)

    @pytest.mark.parametrize("weighted", [True, False])
    def test_covariance_against_the_scatter_of_repeats(self, weighted):
        """20,000 repeats at SNR 130: variances known to 1 %, the rest is the curvature of the logarithm."""
        truth = double(0.65, 0.045, 0.035)[:, None].expand(3, 20_000)
        images = MODEL(truth) + 0.005 * normal(7, 20_000, seed=2)
        method = build_estimator("log-linear", MODEL, {"covariance": True, "weighted": weighted})
        found = method(images, sigma=0.005)
        scatter = np.cov(found.kappa)
        size = np.sqrt(np.outer(scatter.diagonal(), scatter.diagonal()))
        np.testing.assert_allclose(found.covariance.mean(-1).numpy() / size, scatter / size, atol=0.04)
        own = method(images)
        assert own.noise_level.source == "residual"
        assert abs(float(own.noise_level.sigma) / 0.005 - 1) < 0.03


def left(model, y, log_times):
    """What is left of |y|^2 at pairs of log times (2, k, v), A >= 0 in closed form."""
    tsl, te = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (model.tsl, model.te_prep))
    d = torch.exp(-tsl * torch.exp(-log_times[0]) - te * torch.exp(-log_times[1]))
    p = (y[:, None] * d).sum(0).clamp_min(0)
    return y.square().sum(0) - p * p / (d * d).sum(0).clamp_min(1e-300)


def dense(model, y):
    """The least sum of squares over a grid of 90 x 90 pairs of times from 1 ms to 4 s, its best 4 nodes refined."""
    ends = math.log(0.001), math.log(4.0)
    axis = torch.linspace(*ends, 90, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).T[:, :, None]
    found = left(model, y, grid)
    best = found.amin(0)
    offsets = torch.cartesian_prod(*[torch.linspace(-1, 1, 5, dtype=torch.float64)] * 2).T[:, :, None]
    for node in found.topk(4, dim=0, largest=False).indices:
        centre, step = grid[:, node, 0], float(axis[1] - axis[0])
        for _ in range(16):
            around = (centre[:, None] + step * offsets).clamp(*ends)
            lowest, at = left(model, y, around).min(0)
            centre, step = around.gather(1, at.expand(2, 1, -1))[:, 0], 0.7 * step
            best = torch.minimum(best, lowest)
    return best


class TestLeastSquares:
    @pytest.mark.parametrize(
        "model",
        [
            MODEL,
            SpinLockT2Prep(tsl=(0.0, 0.05, 0.0), te_prep=(0.0, 0.0, 0.051)),
            SpinLockT2Prep(tsl=(0.0, 0.01, 0.03, 0.05), te_prep=(0.0, 0.0182, 0.0346, 0.02)),
        ],
        ids=lambda m: str(m.n_images),
    )
    @pytest.mark.parametrize("snr", [0, 3, 50])
    def test_global_minimum(self, model, snr):
        """Never above a dense grid; SNR 0: images of noise alone, which have several hills."""
        rng = np.random.default_rng(snr)
        truth = torch.tensor(np.stack((np.ones(120), *np.exp(rng.uniform(-6, 0, (2, 120))))))
        noise = normal(model.n_images, 120, seed=snr)
        y = model(truth) + noise / snr if snr else noise
        energy = y.square().sum(0)
        found = search(model, y, {})
        assert ((found.objective - dense(model, y)) / energy).max() < 1e-8
        # what it says is what its rows leave
        np.testing.assert_allclose((model(found.kappa) - y).square().sum(0), found.objective, rtol=1e-6, atol=1e-9)
        assert found.converged.float().mean() > 0.98

    def test_against_scipy(self):
        truth = liver(25)
        images = MODEL(truth) + 0.05 * normal(7, 25)
        found = build_estimator("least-squares", MODEL)(images)
        for voxel in range(25):
            series = images[:, voxel].numpy()

            def residual(x, series=series):
                return x[0] * np.exp(-np.array(TSL) / x[1] - np.array(TE) / x[2]) - series

            box = ([0, 0.001, 0.001], [np.inf, 4, 4])
            best = least_squares(residual, truth[:, voxel], bounds=box, x_scale=(1, 0.05, 0.05), xtol=1e-14, ftol=1e-14)
            np.testing.assert_allclose(found.kappa[:, voxel], best.x, rtol=1e-5)

    def test_efficient_and_its_covariance_is_the_scatter(self):
        """4000 repeats at SNR 100: the bound to 4 SE of a variance (0.1)."""
        truth = double(1.0, 0.045, 0.035)[:, None].expand(3, 4000)
        images = MODEL(truth) + 0.01 * normal(7, 4000, seed=3)
        found = build_estimator("least-squares", MODEL, {"covariance": True})(images, sigma=0.01)
        bound = crb(MODEL, truth[:, :1], 0.01).sd[:, 0] ** 2
        np.testing.assert_allclose(found.kappa.var(1) / bound, 1, atol=0.1)
        np.testing.assert_allclose(found.variances["noise"].mean(1) / bound, 1, atol=0.05)
        assert (found.kappa.mean(1) - truth[:, 0]).abs().max() < 0.005

    def test_units_of_the_images_do_not_matter(self):
        images = (MODEL(liver(50)) + 0.1 * normal(7, 50)).float()
        one = build_estimator("least-squares", MODEL)(images)
        other = build_estimator("least-squares", MODEL)(images * 2.0**20)
        assert torch.equal(one.kappa[1:], other.kappa[1:])
        assert torch.equal(one.kappa[0] * 2.0**20, other.kappa[0])

    def test_voxels_without_a_fit(self):
        """Zero or not finite: not computed. Negative throughout: A is 0, its bound."""
        images = torch.ones(7, 3)
        images[:, 0], images[2, 1], images[:, 2] = 0.0, torch.nan, -1.0
        found = build_estimator("least-squares", MODEL)(images)
        assert found.status.tolist() == [3, 3, 1]
        assert torch.isnan(found.kappa[:, :2]).all()
        assert found.kappa[0, 2] == 0

    def test_nothing_to_fit(self):
        for images in (torch.zeros(7, 3), torch.zeros(7, 0), -torch.ones(7, 4)):
            found = build_estimator("least-squares", MODEL, {"covariance": True})(images, sigma=0.1)
            assert found.kappa.shape == (3, images.shape[1])
            assert (found.status != Status.OK).all()

    def test_refusals(self):
        with pytest.raises(InputError, match="images: the series holds 6 images, the model has 7"):
            build_estimator("least-squares", MODEL)(torch.ones(6, 2))
        with pytest.raises(InputError, match=r"known\.T2"):
            build_estimator("least-squares", MODEL)(torch.ones(7, 2), known={"T2": 0.03})

    def test_whole_numbers_are_refused(self, unchecked):
        with pytest.raises(InputError, match="must be real floating point"):
            build_estimator("least-squares", MODEL)(torch.ones(7, 2, dtype=torch.int64))


class TestRician:
    def test_no_floor(self):
        """SNR 8, T2 20 ms: least squares takes the floor of the late images for signal, the likelihood does not."""
        truth = double(1.0, 0.045, 0.02)[:, None].expand(3, 1500)
        real, imaginary = normal(2, 7, 1500, seed=5) / 8
        magnitudes = torch.sqrt((MODEL(truth) + real).square() + imaginary.square())
        found = build_estimator("rician", MODEL)(magnitudes, sigma=0.125).kappa[2].median() / 0.02
        plain = build_estimator("least-squares", MODEL)(magnitudes).kappa[2].median() / 0.02
        assert plain > 1.08
        assert abs(found - 1) < 0.04

    def test_at_high_snr_it_is_least_squares_with_known_rows_too(self):
        truth = liver(30)
        images = MODEL(truth) + 0.002 * normal(7, 30)
        free = build_estimator("rician", MODEL)(images, sigma=0.002).kappa
        torch.testing.assert_close(free, build_estimator("least-squares", MODEL)(images).kappa, rtol=1e-3, atol=0)
        told = build_estimator("rician", MODEL)(images, sigma=0.002, known={"T2": truth[2]}).kappa
        assert torch.equal(told[2], truth[2])
        spread = crb(MODEL, truth, 0.002, known=["T2"]).sd[1]
        assert ((told[1] - truth[1]) / spread).abs().max() < 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_cuda(method):
    images = (MODEL(liver(3000)) + 0.03 * normal(7, 3000)).abs()
    fit = build_estimator(method, MODEL, {"covariance": True})
    here, there = fit(images, sigma=0.03), fit(images.cuda(), sigma=0.03)
    assert there.kappa.is_cuda
    assert torch.equal(there.status.cpu(), here.status)
    torch.testing.assert_close(there.kappa.cpu(), here.kappa, rtol=1e-5, atol=0, equal_nan=True)
