"""The fit with one B: against the bound, against an independent profile, and its edges."""

import numpy as np
import pytest
import torch

from qsim.errors import InputError
from qsim.estimators import Status, build_estimator
from qsim.estimators.intervals import log_wald
from qsim.estimators.pooling.one_b import _weighed
from qsim.estimators.pooling.pieces import peaks, pieces
from qsim.estimators.pooling.profile import Profile
from qsim.information import crb
from qsim.signals import InversionRecovery, InversionRecovery2P, T2Prep
from tests.published import TABLE_1, TI_31
from tests.qsim.brain_like import brain_like, noisy_images

IR = InversionRecovery(ti=TI_31)


def mixed_tissues(n, b, seed=0):
    """Equal parts of grey and white matter and CSF, A and T1 within 5 % of the Table 1 means."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.tensor([TABLE_1[name][:2] for name in ("gm", "wm", "csf")], dtype=torch.float64)
    rows = table[torch.arange(n) % 3].T * (1 + 0.05 * torch.randn(2, n, generator=generator, dtype=torch.float64))
    return torch.stack((rows[0], torch.full((n,), b, dtype=torch.float64), rows[1])), generator


def noisy(model, kappa, sigma, generator):
    clean = model(kappa)
    return clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("b", [1.2, 1.5, 1.95])
def test_noise_free_round_trip(b, signed):
    model = InversionRecovery(ti=TI_31, signed=signed)
    kappa, _ = mixed_tissues(300, b)
    found = build_estimator("shared-b", model)(model(kappa))
    # float32 sums: B to about 1e-3, and 2.5 times that in A and T1 of CSF, which lies along the valley
    torch.testing.assert_close(found.kappa, kappa, rtol=5e-3, atol=0)
    assert bool((found.kappa[1] == found.kappa[1, 0]).all())
    assert bool((found.status == Status.OK).all())


@pytest.mark.parametrize(("b", "snr"), [(1.5, 100), (1.8, 30), (1.95, 30), (1.95, 100)])
def test_efficient_and_unbiased_per_tissue(b, snr):
    """RMSE / bound in [0.95, 1.1] and |bias| under 0.2 bound, where the bound's CV is under 12 %."""
    sigma, n, repeats = 0.65 / snr, 3000, 6
    kappa, generator = mixed_tissues(n, b, seed=snr)
    bound = crb(IR, kappa, sigma, shared=("B",))
    estimate = build_estimator("shared-b", IR)
    error = torch.stack([estimate(noisy(IR, kappa, sigma, generator)).kappa - kappa for _ in range(repeats)])
    relative = error[:, 2] / bound.sd[2]
    for tissue in range(3):
        voxels = relative[:, tissue::3]
        assert float(bound.cv[2, tissue::3].max()) < 12
        assert 0.95 < float(voxels.square().mean().sqrt()) < 1.1
        # B, the common part of the error, is drawn only `repeats` times: its own SD is part of every voxel's bound
        assert abs(float(voxels.mean())) < 0.2
    scaled = error[:, 1, 0] / bound.sd[1, 0]
    # six draws of one standard normal: SD of the mean .41
    assert abs(float(scaled.mean())) < 1.3


@pytest.mark.parametrize("snr", [10, 30])
def test_b_maximises_the_profile_likelihood(snr):
    """Against brute force: for each B the best atom of a fine dictionary in float64, per voxel."""
    kappa, generator = mixed_tissues(90, 1.8, seed=1)
    sigma = 0.65 / snr
    images = noisy(IR, kappa, sigma, generator)
    found = build_estimator("shared-b", IR)(images)
    ti = torch.tensor(TI_31, dtype=torch.float64)
    decay = torch.exp(-ti / torch.logspace(-2, np.log10(6), 4000, dtype=torch.float64)[:, None])

    def profile(b):
        atoms = (1 - b * decay).abs()
        atoms = atoms / atoms.norm(dim=1, keepdim=True)
        return float((images.square().sum(0) - (atoms @ images).clamp_min(0).square().amax(0)).sum() / (2 * sigma**2))

    b_found = float(found.kappa[1, 0])
    grid = np.linspace(b_found - 0.3, b_found + 0.3, 61)
    lowest = min(profile(b) for b in grid)
    # a log-likelihood .02 below the best is a fifth of a standard error of B away
    assert profile(b_found) < lowest + 0.02


def test_sampled_search_finds_the_maximum_of_all_voxels():
    """With many voxels B is searched on some of them first; the result is the maximum over all."""
    kappa, generator = mixed_tissues(30000, 1.85, seed=2)
    images = noisy(IR, kappa, 0.0255, generator).float()
    found = build_estimator("shared-b", IR)(images)
    bound = crb(IR, kappa, 0.0255, shared=("B",))
    assert abs(float(found.kappa[1, 0]) - 1.85) < 4 * float(bound.sd[1, 0])


def dense_t1(images, b):
    """T1 of each voxel at a known B: the best of 40 000 values, in float64 [s]."""
    t1 = torch.logspace(-0.5, np.log10(6), 40_000, dtype=torch.float64)
    atoms = (1 - b * torch.exp(-torch.tensor(TI_31, dtype=torch.float64) / t1[:, None])).abs()
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    return t1[(atoms @ images).argmax(0)]


@pytest.mark.parametrize("snr", [30, 100])
def test_known_b_finds_the_global_maximum_of_every_voxel(snr):
    """Also where it lies on a kink, or on the far side of one."""
    kappa, generator = mixed_tissues(300, 1.9, seed=3)
    images = noisy(IR, kappa, 0.65 / snr, generator)
    found = build_estimator("shared-b", IR)(images, known={"B": 1.9})
    oracle = dense_t1(images, 1.9)
    # neighbours in the grid differ by 7e-5; near a tie of two maxima float32 may take the other
    assert float(((found.kappa[2] / oracle - 1).abs() > 1e-3).double().mean()) < 0.01


def test_slope_of_the_profile_is_right_on_average():
    """Errors that voxels share move B however many there are: the slope against float64, at the best T1 of each voxel.

    Where T1 is at its maximum the profile in B has the slope of phi at fixed T1, 2 A S.d_B - A^2 (d.d)_B; on a kink
    the finite difference along it.
    """
    n, snr, b = 1500, 100, 1.8
    kappa, generator = mixed_tissues(n, b, seed=6)
    images = noisy(IR, kappa, 0.65 / snr, generator).float().double()
    profile = Profile(TI_31, False, images)
    point = profile.at(b)
    assert bool(point.ended.all())
    ti = torch.tensor(TI_31, dtype=torch.float64)[:, None]

    def phi(depth, t1):
        d = (1 - depth * torch.exp(-ti / t1)).abs()
        return (images * d).sum(0).square() / (d * d).sum(0)

    def best(depth):
        """Golden section between the neighbours of the best of a fine grid."""
        grid = dense_t1(images, depth)
        low, high, ratio = grid * (1 - 1e-4), grid * (1 + 1e-4), (5**0.5 - 1) / 2
        for _ in range(30):
            first, second = high - ratio * (high - low), low + ratio * (high - low)
            rises = phi(depth, second) > phi(depth, first)
            low, high = torch.where(rises, first, low), torch.where(rises, high, second)
        return phi(depth, (low + high) / 2).sum()

    step = 2e-4
    slope = float(best(b + step) - best(b - step)) / (2 * step)
    # standard error of B from these voxels; with 100 times as many a tenth of it would be 1
    error = (2 * (0.65 / snr) ** 2 / -point.curvature) ** 0.5
    assert abs(point.slope - slope) / -point.curvature < 0.1 * error


def test_mask_zeros_and_nan():
    kappa, _ = mixed_tissues(64, 1.9, seed=4)
    images = IR(kappa).reshape(31, 8, 8).float()
    images[:, 0, 0], images[5, 1, 1] = 0, torch.nan
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[7] = False
    images[:, 7] = 5.0
    found = build_estimator("shared-b", IR)(images, mask=mask)
    computed = mask.clone()
    computed[0, 0] = computed[1, 1] = False
    assert bool(((found.status == Status.NOT_COMPUTED) == ~computed).all())
    assert bool((torch.isnan(found.kappa).all(0) == ~computed).all())
    # what lies outside has no say in B
    assert float(found.kappa[1, 2, 2]) == pytest.approx(1.9, abs=2e-3)
    nothing = build_estimator("shared-b", IR)(images, mask=torch.zeros_like(mask))
    assert bool((nothing.status == Status.NOT_COMPUTED).all())


@pytest.mark.parametrize("model", [T2Prep(te_prep=(0.01, 0.1)), InversionRecovery2P(ti=TI_31)], ids=lambda m: m.kind)
def test_needs_a_model_with_b(model):
    with pytest.raises(InputError, match="shared-b needs a model with B"):
        build_estimator("shared-b", model)


def test_refuses_a_map_of_b():
    with pytest.raises(InputError, match=r"known.B: shared-b takes one number"):
        build_estimator("shared-b", IR)(torch.ones(31, 3), known={"B": torch.tensor([1.8, 1.9, 2.0])})


@pytest.mark.parametrize(("b", "sigma"), [(0.6, 0.02), (1.0, 0.1), (1.8, 0.15), (2.6, 0.05)])
def test_pieces_find_the_best_t1_of_every_voxel(b, sigma):
    """Against 40 000 atoms in float64: what is explained, not T1, which has ties."""
    kappa, _ = brain_like(4, 400, b=b)
    images = noisy_images(kappa, sigma, 5)
    found = peaks(pieces(TI_31, False, b, images.device), images)
    t1 = torch.logspace(-2, np.log10(6), 40_000, dtype=torch.float64)
    atoms = (1 - b * torch.exp(-torch.tensor(TI_31, dtype=torch.float64) / t1[:, None])).abs()
    best = ((atoms / atoms.norm(dim=1, keepdim=True)) @ images.double()).clamp_min(0).square().amax(0)
    # float32: 24 bits of the product of 31 images with an atom, squared
    rounding = 3e-6 * best
    short = best - found.explained
    # a log-likelihood .01 below the best is .14 SD of T1 away
    assert float((short > rounding + 0.02 * sigma**2).double().mean()) < 0.01
    assert bool((short > -rounding - 0.002 * sigma**2).all())
    assert bool(found.ended.all())


@pytest.mark.parametrize(("sigma", "better"), [(0.149, "histogram"), (0.0065, "profile")])
def test_auto_is_the_better_of_both(sigma, better):
    """RMS error of B over five draws: the histogram where the noise is high, the profile where it is low."""
    error = {"profile": 0.0, "histogram": 0.0}
    for draw in range(5):
        kappa, _ = brain_like(draw, 3000)
        images = noisy_images(kappa, sigma, 100 + draw)
        found = {
            name: float(build_estimator("shared-b", IR, {"pooling": name})(images, sigma=sigma).kappa[1, 0])
            for name in error
        }
        for name in error:
            error[name] += (found[name] - float(kappa[1, 0])) ** 2
    assert float(build_estimator("shared-b", IR)(images, sigma=sigma).kappa[1, 0]) == found[better]
    assert error[better] == min(error.values())


@pytest.mark.parametrize("sigma", [0.149, 0.0217])
def test_scale_of_the_images_does_not_matter(sigma):
    kappa, _ = brain_like(3, 3000)
    images = noisy_images(kappa, sigma, 1)
    estimate = build_estimator("shared-b", IR)
    found = estimate(images, sigma=sigma).kappa
    for factor in (1000.0, 1 / 1024):
        scaled = estimate(images * factor, sigma=sigma * factor).kappa
        # float32 sums round otherwise; the standard error of B is .004 and more here
        assert float(scaled[1, 0]) == pytest.approx(float(found[1, 0]), abs=2e-4)
        # a voxel near a tie of two maxima may take the other
        moved = (scaled[0] / factor / found[0] - 1).abs() > 5e-3
        assert float(moved.double().mean()) < 3e-3


def test_sigma_is_estimated_and_named():
    kappa, _ = brain_like(3, 3000)
    found = build_estimator("shared-b", IR)(noisy_images(kappa, 0.065, 1))
    assert found.noise_level is not None
    # 3000 voxels of 29 degrees of freedom: SD .24 %; the modulus takes up a little more at the kinks
    assert float(found.noise_level.sigma) == pytest.approx(0.065, rel=0.015)
    assert found.noise_level.source == "residual"


@pytest.mark.parametrize(("pooling", "low", "high"), [("profile", 0.01, 0.3), ("histogram", 0.06, 1.0)])
def test_a_map_of_sigma_weighs_the_voxels(pooling, low, high):
    """Half of the voxels are nearly worthless: with the map B is better than with one sigma for all."""
    options, errors = {"pooling": pooling}, {"map": 0.0, "one": 0.0}
    for draw in range(3):
        kappa, _ = brain_like(draw, 1500, b=1.85)
        sigma = torch.where(torch.arange(1500) % 2 == 0, low, high).double()
        generator = torch.Generator().manual_seed(draw)
        images = IR(kappa) + sigma * torch.randn(31, 1500, generator=generator, dtype=torch.float64)
        estimate = build_estimator("shared-b", IR, options)
        errors["map"] += (float(estimate(images, sigma=sigma).kappa[1, 0]) - 1.85) ** 2
        errors["one"] += (float(estimate(images, sigma=float(sigma.square().mean().sqrt())).kappa[1, 0]) - 1.85) ** 2
    assert errors["map"] < 0.5 * errors["one"]


def test_a_map_of_one_value_is_that_value():
    kappa, _ = brain_like(1, 500)
    images = noisy_images(kappa, 0.02, 2)
    estimate = build_estimator("shared-b", IR, {"covariance": True})
    one, same = estimate(images, sigma=0.02), estimate(images, sigma=torch.full((500,), 0.02))
    # the series over sigma rounds otherwise in float32; the standard error of B is .011 here
    torch.testing.assert_close(one.kappa[1], same.kappa[1], rtol=0, atol=5e-4)
    torch.testing.assert_close(one.variances["noise"], same.variances["noise"], rtol=0.02, atol=0)


@pytest.mark.parametrize("sigma", [0.0217, 0.0065])
def test_variances_are_those_of_the_bound_and_of_the_errors(sigma):
    kappa, _ = brain_like(7, 3000, b=1.85)
    bound = crb(IR, kappa, sigma, shared=("B",))
    estimate = build_estimator("shared-b", IR, {"covariance": True})
    z = []
    for draw in range(6):
        found = estimate(noisy_images(kappa, sigma, draw), sigma=sigma)
        sd = found.variances["noise"].sqrt()
        # at the estimate instead of the truth; CV of T1 under 3 %
        assert float((sd[2] / bound.sd[2]).median()) == pytest.approx(1, abs=0.05)
        # the curvature of 3000 voxels
        assert float(sd[1, 0] / bound.sd[1, 0]) == pytest.approx(1, abs=0.1)
        z.append((found.kappa - kappa) / sd)
    inside = (torch.stack(z)[:, 2].abs() < 1.96).double().mean()
    # B, a part of every error, is drawn six times only
    assert 0.92 < float(inside) < 0.98
    assert found.covariance is not None
    torch.testing.assert_close(found.covariance[1, 1], found.variances["noise"][1])


def test_covariance_at_known_b_is_that_without_b():
    kappa, _ = brain_like(7, 200, b=1.85)
    images = noisy_images(kappa, 0.0217, 1)
    found = build_estimator("shared-b", IR, {"covariance": True})(images, sigma=0.0217, known={"B": 1.85})
    bound = crb(IR, kappa, 0.0217, known=("B",))
    assert bool((found.variances["noise"][1] == 0).all())
    assert float((found.variances["noise"][2].sqrt() / bound.sd[2]).median()) == pytest.approx(1, abs=0.05)


def test_refuses_finite_tr_and_unknown_pooling():
    with pytest.raises(InputError, match="shared-b needs full recovery"):
        build_estimator("shared-b", InversionRecovery(ti=TI_31, tr=3.0))
    with pytest.raises(InputError, match="pooling: wanted auto, profile, histogram, blocks, got 'mean'"):
        build_estimator("shared-b", IR, {"pooling": "mean"})
    with pytest.raises(InputError, match="sigma: must be positive"):
        build_estimator("shared-b", IR)(torch.ones(31, 3), sigma=0.0)
    two = build_estimator("shared-b", InversionRecovery(ti=(0.2, 0.9)))
    with pytest.raises(InputError, match="A, T1, B need 3 different times, got 2"):
        two(torch.ones(2, 3))
    assert bool((two(torch.ones(2, 3), known={"B": 1.9}).status != Status.NOT_COMPUTED).all())


def test_an_empty_mask_still_holds_the_covariance_that_was_asked_for():
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    for name in ("shared-b", "smooth-b", "empirical-bayes"):
        found = build_estimator(name, IR, {"covariance": True})(torch.ones(31, 4, 5), 0.1, nothing)
        assert found.variances["noise"].shape == (3, 4, 5)
        assert found.covariance is not None
        assert found.covariance.shape == (3, 3, 4, 5)
        assert bool(torch.isnan(found.variances["noise"]).all())
        assert bool(torch.isnan(found.covariance).all())
        assert bool(torch.isnan(log_wald(found, 2).lower).all())
        assert bool((found.status == Status.NOT_COMPUTED).all())


@pytest.mark.parametrize("name", ["shared-b", "smooth-b", "empirical-bayes"])
def test_voxels_without_signal_have_infinite_variances_not_nan(name):
    """Half of the voxels hold noise only; those whose best A is 0 say nothing about T1."""
    model = InversionRecovery(ti=(0.1, 0.4, 0.8, 1.2, 2.0, 3.0, 4.5))
    kappa = torch.tensor([1.0, 1.9, 1.1], dtype=torch.float64)[:, None].repeat(1, 600)
    kappa[0, ::2] = 0
    images = noisy(model, kappa, 0.02, torch.Generator().manual_seed(1))
    found = build_estimator(name, model, {"covariance": True})(images, sigma=0.02)
    variances = found.variances["noise"]
    assert bool((found.status != Status.NOT_COMPUTED).all())
    assert not bool(torch.isnan(variances).any())
    assert found.covariance is not None
    assert not bool(torch.isnan(found.covariance).any())
    none = found.kappa[0] == 0
    assert int(none.sum()) > 50
    # A itself is known as well as the noise lets it: it is not lost with T1
    assert bool(torch.isfinite(variances[:2]).all())
    if name != "empirical-bayes":
        # a posterior has a width everywhere
        assert bool((torch.isinf(variances[2]) == none).all())
    assert bool(torch.isfinite(variances[:, 1::2]).all())


@pytest.mark.parametrize("pooling", ["auto", "profile", "histogram"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_series_that_says_nothing_about_b_is_not_ok(pooling, seed):
    """Times of 6 s and more, T1 1.1 s: the bound of B at the truth is 6.8, twice its range."""
    model = InversionRecovery(ti=(6.0, 7.0, 8.0, 9.0))
    kappa = torch.tensor([1.0, 1.9, 1.1], dtype=torch.float64)[:, None].repeat(1, 300)
    images = noisy(model, kappa, 0.02, torch.Generator().manual_seed(seed))
    options = {"pooling": pooling, "covariance": True}
    found = build_estimator("shared-b", model, options)(images, sigma=0.02)
    assert not bool((found.status == Status.OK).any())
    sd = float(found.variances["noise"][1, 0].sqrt())
    assert abs(float(found.kappa[1, 0]) - 1.9) < 3 * sd
    # all that is known is the range of B: SD 3 / sqrt(12)
    assert sd > 0.75
    assert not bool((build_estimator("empirical-bayes", model)(images, sigma=0.02).status == Status.OK).any())
    # with a known B there is nothing amiss
    known = build_estimator("shared-b", model, options)(images, sigma=0.02, known={"B": 1.9})
    assert bool((known.status == Status.OK).any())


def test_variance_of_b_is_at_least_the_bound():
    """The histogram's own curvature at little noise is that of its grid: SD .0014 where the bound is .0019."""
    model = InversionRecovery(ti=(0.1, 0.4, 0.8, 1.2, 2.0, 3.0, 4.5))
    kappa = torch.tensor([1.0, 1.9, 1.1], dtype=torch.float64)[:, None].repeat(1, 300)
    least = float(crb(model, kappa, 0.02, shared=("B",)).sd[1, 0])
    for seed in range(3):
        images = noisy(model, kappa, 0.02, torch.Generator().manual_seed(seed))
        found = build_estimator("shared-b", model, {"pooling": "histogram", "covariance": True})(images, sigma=0.02)
        # at the estimate, a few per cent from the truth's
        assert float(found.variances["noise"][1, 0].sqrt()) > 0.95 * least
        assert bool((found.status == Status.OK).all())


# T1 of the T1 array of the system phantom at 3 T, rounded [s]: many below what tissue has (doi:10.1002/mrm.28779)
SPHERES = (1.99, 1.45, 0.98, 0.71, 0.50, 0.35, 0.247, 0.175, 0.126, 0.089, 0.063, 0.045, 0.031, 0.022)
TI_23 = tuple(0.172 + i * (0.893 - 0.172) / 22 for i in range(23))
# T1 and how many voxels
CASES = {
    "spheres": dict.fromkeys(SPHERES, 150),
    "spheres in water": dict.fromkeys(SPHERES, 50) | {3.33: 5600},
    "one tissue": {0.8: 3000},
    "two tissues": {0.8: 1500, 1.4: 1500},
}


@pytest.mark.parametrize("b", [1.8, 2.0])
@pytest.mark.parametrize("name", list(CASES))
def test_auto_finds_b_of_objects_of_sharp_t1(name, b):
    """At SNR 10, 30, 100 and without noise: within 4 standard errors and 1 %; without noise to 1e-3.

    One T1 in all voxels is what a histogram holds worst, and T1 from 20 ms on is what tissue does not have.
    """
    model = InversionRecovery(ti=TI_23)
    t1 = torch.cat([torch.full((n,), value, dtype=torch.float64) for value, n in CASES[name].items()])
    kappa = torch.stack((torch.ones_like(t1), torch.full_like(t1, b), t1))
    estimate = build_estimator("shared-b", model, {"covariance": True})
    assert float(build_estimator("shared-b", model)(model(kappa)).kappa[1, 0]) == pytest.approx(b, abs=1e-3)
    for snr in (10, 30, 100):
        sigma = 0.65 / snr
        found = estimate(noisy(model, kappa, sigma, torch.Generator().manual_seed(snr)), sigma=sigma)
        error = abs(float(found.kappa[1, 0]) - b)
        assert error < 4 * float(found.variances["noise"][1, 0].sqrt()) + 0.01 * b


def test_mean_of_two_poolings():
    """Arithmetic: errors of correlation 1/2; what they differ by beyond their errors is the first one's."""
    # d^2 = .01 is less than .02 + .02 - .02: (.02 + .02) / 4 + 2 .01 / 4
    assert _weighed((1.8, 0.02), (1.9, 0.02)) == pytest.approx((1.85, 0.015))
    # c = .25, d^2 - (1.25 - .5) = .25, u = .5, w = 1/3: 4/9 .5 + 4/9 .25 + 1/9
    assert _weighed((1.0, 0.25), (2.0, 1.0)) == pytest.approx((1 + 1 / 3, 4 / 9))
    # far apart: the first has no say
    assert _weighed((1.0, 1e-4), (2.0, 1e-4)) == pytest.approx((2.0, 1e-4), rel=3e-4)
    assert _weighed((1.8, np.inf), (1.9, 0.02)) == (1.9, 0.02)
    assert _weighed((1.8, 0.01), (1.9, np.inf)) == (1.8, 0.01)
    assert _weighed((1.0, np.inf), (2.0, np.inf))[1] == np.inf


@pytest.mark.parametrize(("part", "taken"), [(0.15, "histogram"), (0.04, "profile")])
def test_a_tenth_of_kinks_is_enough_for_the_histogram(part, taken):
    """T1 of 4 s, which crosses zero after the last time, but for a part of the voxels."""
    kappa, _ = brain_like(3, 2000, b=1.9)
    kappa[0] = 1
    kappa[2] = torch.where(torch.arange(2000) < part * 2000, kappa[2].clamp_max(1.3), 4.0)
    images = noisy_images(kappa, 0.06, 1)
    found = {
        name: float(build_estimator("shared-b", IR, {"pooling": name})(images, sigma=0.06).kappa[1, 0])
        for name in ("auto", "histogram", "profile")
    }
    assert found["histogram"] != found["profile"]
    assert found["auto"] == found[taken]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("sigma", [0.149, 0.0217])
def test_same_on_cuda(sigma):
    kappa, _ = brain_like(3, 20000)
    images = noisy_images(kappa, sigma, 1)
    estimate = build_estimator("shared-b", IR, {"covariance": True})
    here, there = estimate(images, sigma=sigma), estimate(images.cuda(), sigma=sigma)
    assert there.kappa.device.type == "cuda"
    # sums in another order; the standard error of B is .001 and more here
    assert float(there.kappa[1, 0]) == pytest.approx(float(here.kappa[1, 0]), abs=5e-4)
    close = (there.kappa[2].cpu() / here.kappa[2] - 1).abs() < 5e-3
    assert float(close.double().mean()) > 0.98
