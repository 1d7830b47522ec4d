"""Bounds against published numbers, gradients against finite differences and against each other."""

import time

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from qsim.information import (
    crb,
    crb_of_equal_voxels,
    fisher_information,
    information_factor,
    invert_information,
    jacobian,
    likelihood_gradient,
    negative_log_likelihood,
)
from qsim.signals import InversionRecovery, InversionRecovery2P, SpinLock, T2Prep
from tests.published import (
    CV_T1_FREE_KNOWN,
    CV_T1_GM_KNOWN,
    CV_T1_GM_SHARED,
    CV_T2_WM,
    TABLE_1,
    TE_PREP,
    TI_31,
)

IR = InversionRecovery(ti=TI_31)
MODELS = (
    IR,
    InversionRecovery(ti=TI_31, signed=True),
    InversionRecovery2P(ti=TI_31),
    T2Prep(te_prep=TE_PREP),
    SpinLock(tsl=(0.001, 0.01, 0.03, 0.05)),
)


class Plain:
    """A model without a closed-form Jacobian."""

    def __init__(self, model):
        self.model = model
        self.parameters, self.n_images = model.parameters, model.n_images

    def __call__(self, kappa):
        return self.model(kappa)


def tissue(name, b=1.9):
    a, t1, _ = TABLE_1[name]
    return torch.tensor([a, b, t1], dtype=torch.float64)


def random_maps(model, shape, seed=0):
    rng = np.random.default_rng(seed)
    rows = {"A": (0.4, 1.2), "B": (1.5, 2.0), "T1": (0.5, 4.0), "T2": (0.02, 0.3), "T1RHO": (0.02, 0.2)}
    return torch.tensor(np.stack([rng.uniform(*rows[p.name], shape) for p in model.parameters]))


@pytest.mark.parametrize("name", ["gm", "wm", "csf"])
def test_t1_bound_of_the_paper(name):
    free, known = CV_T1_FREE_KNOWN[name]
    # printed with two digits
    assert float(crb(IR, tissue(name), 0.065).cv[2]) == pytest.approx(free, rel=0.01)
    assert float(crb(IR, tissue(name), 0.065, known=("B",)).cv[2]) == pytest.approx(known, rel=0.02)


def test_shared_b_bound():
    for n, cv in CV_T1_GM_SHARED.items():
        bound = crb(IR, tissue("gm"), 0.0255, shared=("B",), n_voxels=n)
        # printed with three digits; the source's voxels may have varied
        assert float(bound.cv[2]) == pytest.approx(cv, rel=0.01)
    assert float(crb(IR, tissue("gm"), 0.0255, known=("B",)).cv[2]) == pytest.approx(CV_T1_GM_KNOWN, rel=0.01)


def test_t2_bound():
    for sigma, cv in CV_T2_WM.items():
        kappa = torch.tensor([0.65, 0.08], dtype=torch.float64)
        assert float(crb(T2Prep(te_prep=TE_PREP), kappa, sigma).cv[1]) == pytest.approx(cv, rel=0.015)


def test_shared_bound_is_the_inverse_of_the_whole_matrix():
    """The Schur complement against the full Fisher matrix of all voxels, inverted by numpy."""
    kappa = torch.stack([tissue("gm"), tissue("wm"), tissue("csf")], 1)
    rows = IR.jacobian(kappa).numpy()
    n_voxels = 3
    design = np.zeros((n_voxels * IR.n_images, 2 * n_voxels + 1))
    for v in range(n_voxels):
        block = slice(v * IR.n_images, (v + 1) * IR.n_images)
        design[block, 2 * v], design[block, 2 * v + 1], design[block, -1] = rows[0, :, v], rows[2, :, v], rows[1, :, v]
    sd = 0.02 * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    bound = crb(IR, kappa, 0.02, shared=("B",)).sd
    np.testing.assert_allclose(bound[0], sd[0:-1:2], rtol=1e-8)
    np.testing.assert_allclose(bound[2], sd[1:-1:2], rtol=1e-8)
    np.testing.assert_allclose(bound[1], sd[-1], rtol=1e-8)
    copies = crb(IR, kappa, 0.02, shared=("B",), n_voxels=7).sd
    np.testing.assert_allclose(copies, crb(IR, kappa.repeat(1, 7), 0.02, shared=("B",)).sd[:, :3], rtol=1e-10)


def test_order_of_the_three_bounds():
    free, shared, known = (
        crb(IR, tissue("wm"), 0.03, **options).sd
        for options in ({}, {"shared": ("B",), "n_voxels": 50}, {"known": ("B",)})
    )
    assert bool((free >= shared).all())
    assert bool((shared >= known).all())
    assert float(known[1]) == 0.0
    # one voxel that shares B with nobody is free
    torch.testing.assert_close(crb(IR, tissue("wm"), 0.03, shared=("B",)).sd, free)


def test_unidentifiable_is_infinite():
    two = InversionRecovery(ti=(0.1, 0.5))
    bound = crb(two, tissue("wm"), 0.01)
    assert not bool(bound.identifiable.any())
    assert bool(crb(two, tissue("wm"), 0.01, known=("B",)).identifiable.all())
    # without signal only A is known
    dark = crb(IR, torch.tensor([0.0, 1.9, 1.0], dtype=torch.float64), 0.01)
    assert dark.identifiable.tolist() == [True, False, False]
    # a shared B is carried by the voxels that can tell it
    mixed = torch.tensor([[0.8, 0.0], [1.9, 1.9], [1.0, 1.0]], dtype=torch.float64)
    assert crb(IR, mixed, 0.01, shared=("B",)).identifiable.tolist() == [[True, True], [True, True], [True, False]]


def test_two_images_tell_nothing_of_a_shared_parameter():
    """A and T1 of each voxel use up its two images: B has no bound however many voxels share it, known B leaves one."""
    model = InversionRecovery(ti=(0.2, 0.8))
    kappa = torch.rand(3, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5
    kappa[1] = 1.9
    bound = crb(model, kappa, 0.05, shared=("B",))
    assert torch.isinf(bound.sd).all()
    assert torch.isfinite(crb(model, kappa, 0.05, known=("B",)).sd).all()


def test_bound_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"known: the model has no parameter 'T2'"):
        crb(IR, tissue("wm"), 0.01, known=("T2",))
    with pytest.raises(ValueError, match="cannot be shared and known"):
        crb(IR, tissue("wm"), 0.01, known=("B",), shared=("B",))


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.kind)
def test_jacobian_by_autograd_and_by_formula(model):
    kappa = random_maps(model, (3, 4))
    torch.testing.assert_close(jacobian(Plain(model), kappa), jacobian(model, kappa), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_sigma2", [True, False])
@pytest.mark.parametrize("per_n", [True, False])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.kind)
def test_gradient_is_that_of_the_likelihood(model, per_sigma2, per_n):
    kappa = random_maps(model, (2, 3, 5))
    rng = np.random.default_rng(1)
    images = model(kappa) + 0.05 * torch.tensor(rng.standard_normal((model.n_images, 2, 3, 5)))
    sigma = torch.tensor([0.01, 0.2], dtype=torch.float64)[:, None, None]
    options = {"per_sigma2": per_sigma2, "per_n": per_n}
    found = likelihood_gradient(model, kappa, images, sigma, **options)
    for row in range(len(model.parameters)):
        h = torch.zeros_like(kappa)
        h[row] = 1e-6
        up, down = (negative_log_likelihood(model, kappa + s * h, images, sigma, **options) for s in (1, -1))
        numeric = (up - down) / 2e-6
        # central differences of step 1e-6; kinks of the modulus are missed by these generic points
        torch.testing.assert_close(found[row], numeric, rtol=1e-5, atol=1e-5 * float(numeric.abs().max()))


def test_fast_gradient_equals_the_recorded_one_and_can_be_differentiated():
    kappa = random_maps(IR, (4, 6))
    images = IR(kappa) + 0.02
    fast = likelihood_gradient(IR, kappa, images, 0.1)
    recorded = kappa.clone().requires_grad_()
    slow = likelihood_gradient(IR, recorded, images, 0.1)
    torch.testing.assert_close(fast, slow.detach(), rtol=1e-10, atol=1e-10)
    (second,) = torch.autograd.grad(slow.sum(), recorded)
    assert bool((second != 0).any())
    with torch.inference_mode():
        torch.testing.assert_close(likelihood_gradient(IR, kappa, images, 0.1), fast)
    # float32 as networks use it: seven digits, less the cancellation of the residual
    single = likelihood_gradient(IR, kappa.float(), images.float(), 0.1)
    torch.testing.assert_close(single.double(), fast, rtol=1e-4, atol=1e-4 * float(fast.abs().max()))


def test_gradient_needs_sigma():
    kappa = random_maps(IR, (2,))
    with pytest.raises(ValueError, match="sigma is needed"):
        likelihood_gradient(IR, kappa, IR(kappa))


def test_fisher_of_a_known_variance():
    """One image of A alone: information 1 / sigma^2."""
    model = T2Prep(te_prep=(0.0,))
    information = fisher_information(model, torch.tensor([0.7, 0.05]), 0.2)
    np.testing.assert_allclose(information, [[25.0, 0.0], [0.0, 0.0]])


def score_variance(log_density, signal, low, high):
    """Fisher information of a density at a signal: integral of the squared slope of its logarithm."""
    h = 1e-5 * max(signal, 1.0)

    def integrand(m):
        slope = (log_density(m, signal + h) - log_density(m, signal - h)) / (2 * h)
        return slope**2 * np.exp(log_density(m, signal))

    return integrate.quad(integrand, low, high, epsabs=1e-12, epsrel=1e-10, limit=200)[0]


@pytest.mark.parametrize("signal", [0.05, 0.4, 1.0, 2.0, 3.5, 8.0, 30.0])
def test_rician_share_of_the_information(signal):
    expected = score_variance(lambda m, nu: stats.rice.logpdf(m, nu), signal, max(0.0, signal - 10), signal + 12)
    # the difference quotient loses some digits; the table itself claims 2e-8
    assert float(information_factor(torch.tensor(signal).double(), 1)) == pytest.approx(expected, abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("coils", [2, 8, 32])
@pytest.mark.parametrize("signal", [0.3, 2.0, 6.0, 20.0])
def test_non_central_chi_share_of_the_information(coils, signal):
    def log_density(m, nu):
        return stats.ncx2.logpdf(m**2, 2 * coils, nu**2) + np.log(2 * m)

    centre = np.sqrt(signal**2 + 2 * coils)
    expected = score_variance(log_density, signal, max(1e-6, centre - 10), centre + 10)
    found = information_factor(torch.tensor(signal).double(), coils)
    assert float(found) == pytest.approx(expected, abs=1e-6, rel=1e-4)


@pytest.mark.parametrize("coils", [1, 4, 64, 128])
def test_limits_of_the_share(coils):
    ratio = torch.cat([torch.zeros(1), torch.logspace(-4, 5, 20001)]).double()
    share = information_factor(ratio, coils)
    assert float(share[0]) == 0
    assert bool((share.diff() >= 0).all())
    assert float(share.max()) <= 1
    # x^2 / L where it is dark, 1 - (L - 1/2) / x^2 where it is bright, both to the next order
    x = torch.tensor([1e-3, 300.0 * coils**0.5]).double()
    expected = [1e-6 / coils, 1 - (coils - 0.5) / float(x[1]) ** 2]
    np.testing.assert_allclose(information_factor(x, coils), expected, rtol=1e-5, atol=1e-12)
    assert information_factor(torch.tensor([torch.inf]).double(), coils).tolist() == [1.0]
    assert information_factor(torch.ones(2, 3), coils).dtype == torch.float32


@pytest.mark.parametrize("coils", [-1, 129])
def test_share_refuses_impossible_coils(coils):
    with pytest.raises(ValueError, match="coils must be 1"):
        information_factor(torch.ones(1), coils)


def test_rician_information_of_a_dark_and_a_bright_image():
    model = T2Prep(te_prep=(0.0,))
    dark = fisher_information(model, torch.tensor([0.0, 0.05]), 0.2, coils=1)
    assert float(dark[0, 0]) == 0
    # two coils: signal over sigma is 3.5
    bright = fisher_information(model, torch.tensor([0.7, 0.05]), 0.2, coils=2)
    assert float(bright[0, 0]) == pytest.approx(25 * float(information_factor(torch.tensor(3.5).double(), 2)))


def test_rician_bound_against_a_numeric_likelihood():
    """Fisher matrix of two images from scipy's density alone, integrated image by image, inverted by numpy."""
    model, sigma, a, t2 = T2Prep(te_prep=(0.01, 0.09)), 0.3, 0.9, 0.07
    matrix = np.zeros((2, 2))
    for te in model.te_prep:
        e = np.exp(-te / t2)
        slopes = np.array([e, a * te / t2**2 * e])
        own = score_variance(lambda m, nu: stats.rice.logpdf(m, nu / sigma, scale=sigma), a * e, 0.0, a * e + 4)
        matrix += own * np.outer(slopes, slopes)
    expected = np.sqrt(np.diag(np.linalg.inv(matrix)))
    kappa = torch.tensor([a, t2]).double()
    # six digits of the difference quotient
    np.testing.assert_allclose(crb(model, kappa, sigma, coils=1).sd, expected, rtol=1e-5)
    assert bool((crb(model, kappa, sigma, coils=1).sd > crb(model, kappa, sigma).sd).all())
    # at SNR 1000 the modulus no longer matters
    np.testing.assert_allclose(crb(model, kappa, 5e-4, coils=1).sd, crb(model, kappa, 5e-4).sd, rtol=1e-5)


def test_inverse_by_formula_is_that_by_eigenvalues():
    """A fourth parameter with information of its own sends the same matrices down the other way."""
    rng = np.random.default_rng(5)
    for q in (1, 2, 3):
        slopes = rng.standard_normal((400, 5, q)) * 10.0 ** rng.uniform(-3, 3, (400, 1, q))
        if q > 1:
            # nearly and wholly collinear rows, and rows without information
            slopes[::4, :, -1] = slopes[::4, :, 0] + 10.0 ** rng.uniform(-9, 0, (100, 1)) * slopes[::4, :, -1]
            slopes[1::8, :, -1] = 3 * slopes[1::8, :, 0]
        slopes[2::8, :, 0] = 0
        information = torch.tensor(np.einsum("vni,vnj->ijv", slopes, slopes))
        information[0, 0, 5] = torch.nan
        larger = torch.zeros(4, 4, 400, dtype=torch.float64)
        larger[:q, :q] = information
        for extra in range(q, 4):
            larger[extra, extra] = 1.0
        found, expected = invert_information(information), invert_information(larger)[:q, :q]
        if q == 1:
            # NaN spoils the whole voxel of either matrix
            assert bool(torch.isinf(found[0, 0, 5]))
        assert torch.equal(torch.isinf(found), torch.isinf(expected))
        finite = torch.isfinite(expected)
        scale = expected.diagonal().sqrt().T
        # either way loses the digits that the condition of the scaled matrix takes: at most 1e8 by formula
        error = (found - expected).abs() / (scale[:, None] * scale[None])
        assert float(error[finite].max()) < 1e-7


def test_information_in_blocks_and_of_no_voxels():
    kappa = random_maps(IR, (50, 90))
    rows = IR.jacobian(kappa)
    sigma = torch.linspace(0.01, 0.2, 90, dtype=torch.float64)
    whole = torch.einsum("in...,jn...->ij...", rows, rows) / sigma**2
    torch.testing.assert_close(fisher_information(IR, kappa, sigma), whole, rtol=1e-12, atol=0)
    # sigma may have more axes than the maps
    one = fisher_information(IR, kappa[:, 3], sigma[:, None, None].expand(90, 2, 1))
    assert one.shape == (3, 3, 90, 2, 90)
    torch.testing.assert_close(one[..., 4, 0, :], fisher_information(IR, kappa[:, 3], float(sigma[4])))
    none = fisher_information(IR, kappa[:, :0], 0.1, coils=1)
    assert invert_information(none).shape == (3, 3, 0, 90)
    assert crb(IR, kappa[:, :0], 0.1, shared=("B",)).sd.shape == (3, 0, 90)


@pytest.mark.parametrize("coils", [0, 1])
def test_equal_voxels_are_a_shared_set_each(coils):
    kappa = random_maps(IR, (6,))
    bound = crb_of_equal_voxels(IR, kappa, 0.05, shared=("B",), n_voxels=40, coils=coils)
    for v in range(6):
        one = crb(IR, kappa[:, v], 0.05, shared=("B",), n_voxels=40, coils=coils)
        torch.testing.assert_close(bound.sd[:, v], one.sd, rtol=1e-8, atol=0)
    two = InversionRecovery(ti=(0.2, 0.8))
    options = {"shared": ("B",), "n_voxels": 9}
    assert bool(torch.isinf(crb_of_equal_voxels(two, kappa, 0.05, **options).sd).all())
    with pytest.raises(ValueError, match="shared: the model has no parameter 'T2'"):
        crb_of_equal_voxels(IR, kappa, 0.05, shared=("T2",), n_voxels=2)


def test_covariances_are_cheap():
    """65,000 voxels of 31 images: about 0.03 s; the limit leaves room for a busy machine."""
    kappa = random_maps(IR, (65000,))
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        invert_information(fisher_information(IR, kappa, 0.02))
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_bounds_on_cuda():
    kappa = random_maps(IR, (500,))
    for coils in (0, 1):
        there = crb(IR, kappa.cuda(), 0.03, shared=("B",), coils=coils).sd
        torch.testing.assert_close(there.cpu(), crb(IR, kappa, 0.03, shared=("B",), coils=coils).sd, rtol=1e-7, atol=0)


@pytest.mark.parametrize("sigma", [0.0, -0.01, float("nan"), float("inf")])
def test_a_bound_needs_a_sigma(sigma):
    with pytest.raises(ValueError, match="sigma: must be positive and finite"):
        crb(InversionRecovery(ti=(0.1, 0.5, 2.0)), torch.tensor([1.0, 1.9, 1.0]), sigma)


def test_names_are_a_list():
    with pytest.raises((ValueError, TypeError)):
        crb(InversionRecovery(ti=(0.1, 0.5, 2.0)), torch.tensor([1.0, 1.9, 1.0]), 0.1, known="B")
