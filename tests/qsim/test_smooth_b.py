"""Smooth B: against exact maps, scipy on the whole objective, direct inverses, and its limits."""

from math import inf

import numpy as np
import pytest
import scipy.optimize
import torch

from qsim.errors import InputError
from qsim.estimators import Status, build_estimator
from qsim.estimators.pooling.depth_marginal import DepthMarginal
from qsim.estimators.pooling.depth_profile import DepthProfile
from qsim.estimators.pooling.laplacian import Domain, Solver
from qsim.estimators.pooling.smooth_climb import Climb
from qsim.estimators.pooling.smooth_variance import depth_variance
from qsim.estimators.pooling.smoothing_weight import evident_weight
from qsim.estimators.smooth_b import SmoothB
from qsim.signals import InversionRecovery, T2Prep
from tests.published import TABLE_1, TI_31

IR = InversionRecovery(ti=TI_31)
SEVEN = (0.14, 0.25, 0.4, 0.6, 0.9, 1.4, 2.2)


def phantom(shape, spread=0.1, seed=0):
    """Regions of grey and white matter and CSF, B = 1.9 with a wave of `spread` from peak to peak."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    first, last = axes[0], axes[-1]
    label = (torch.sin(5 * last + 2 * first) + torch.sin(6 * first - 2 * last) > 0).long()
    label[first**2 + last**2 < 0.1] = 2
    table = torch.tensor([TABLE_1[name][:2] for name in ("gm", "wm", "csf")], dtype=torch.float64)
    a, t1 = table[label].movedim(-1, 0) * (1 + 0.05 * torch.randn(2, *shape, generator=generator, dtype=torch.float64))
    b = 1.9 * (1 + spread / 2 * torch.sin(2 * last + 0.5) * torch.cos(1.5 * first))
    return torch.stack((a, b, t1)), label


def noisy(model, kappa, sigma, seed=1):
    clean = model(kappa)
    generator = torch.Generator().manual_seed(seed)
    return clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def graph_laplacian(mask):
    """By its definition, voxel by voxel."""
    place = [tuple(p) for p in np.argwhere(mask)]
    number = {p: i for i, p in enumerate(place)}
    matrix = np.zeros((len(place), len(place)))
    for p, i in number.items():
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = (*p[:axis], p[axis] + step, *p[axis + 1 :])
                if other in number:
                    matrix[i, i] += 1
                    matrix[i, number[other]] -= 1
    return matrix


def ragged(shape, seed=0, share=0.75):
    return np.random.default_rng(seed).random(shape) < share


# --- the pieces


@pytest.mark.parametrize("shape", [(7,), (6, 9), (1, 5, 6), (4, 5, 3)])
def test_laplacian_is_that_of_the_neighbours_in_the_mask(shape):
    mask = ragged(shape)
    domain = Domain(mask)
    np.testing.assert_array_equal(domain.laplacian.toarray(), graph_laplacian(mask))
    # as many constants as pieces
    rank = np.linalg.matrix_rank(graph_laplacian(mask))
    assert domain.n_pieces == domain.size - rank


@pytest.mark.parametrize(("weight", "held"), [(1.0, 0.1), (1e4, 0.0), (1e9, 0.0)])
def test_solver_against_a_direct_one(weight, held):
    """Also with voxels held, and where the preconditioner was made for another curvature."""
    mask = ragged((30, 40), share=0.8)
    domain = Domain(mask)
    rng = np.random.default_rng(1)
    d, g = rng.choice([0.1, 1.0, 20.0], domain.size), rng.standard_normal(domain.size)
    free = rng.random(domain.size) >= held
    found, ended = Solver(domain, domain.aggregates(), weight, np.full(domain.size, 3.0)).solve(d, g, free, 1e-9, 500)
    matrix = (np.diag(d) + 2 * weight * graph_laplacian(mask) @ graph_laplacian(mask))[np.ix_(free, free)]
    wanted = np.linalg.solve(matrix, g[free])
    assert ended
    assert not found[~free].any()
    # a condition of 1e11 leaves five digits
    np.testing.assert_allclose(found[free], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("signed", [False, True])
def test_slopes_of_the_profile_are_differences_of_it(signed):
    """Phi by brute force: the best of 20 000 T1, refined; its slope and curvature in B by central differences."""
    model = InversionRecovery(ti=TI_31, signed=signed)
    kappa, _ = phantom((5, 8), 0.2)
    images = noisy(model, kappa, 0.03).flatten(1)
    b = kappa[1].flatten()
    profile = DepthProfile(TI_31, signed, images)
    found = profile.settle(b, profile.search(b))
    ti = torch.tensor(TI_31, dtype=torch.float64)[:, None]

    def phi(depth):
        low, high = torch.full_like(depth, np.log(0.2)), torch.full_like(depth, np.log(6))
        for _ in range(6):
            u = torch.lerp(low[:, None], high[:, None], torch.linspace(0, 1, 400, dtype=torch.float64))
            d = 1 - depth[:, None] * torch.exp(-ti[:, :, None] * torch.exp(-u))
            d = d if signed else d.abs()
            fit = torch.einsum("nv,nvg->vg", images, d).clamp_min(0).square() / d.square().sum(0)
            best = fit.argmax(1, keepdim=True)
            gap = (high - low)[:, None] / 399
            middle = u.gather(1, best)
            low, high = (middle - gap)[:, 0], (middle + gap)[:, 0]
        return fit.amax(1)

    step = 1e-3
    before, here, after = phi(b - step), phi(b), phi(b + step)
    torch.testing.assert_close(found.explained, here, rtol=1e-8, atol=0)
    # third derivatives of order 1 times step^2
    torch.testing.assert_close(found.slope, (after - before) / (2 * step), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.observed, (after - 2 * here + before) / step**2, rtol=0.02, atol=2e-3)


def test_slope_of_the_marginal_likelihood_is_its_difference():
    kappa, _ = phantom((20, 20))
    sigma = torch.tensor([0.15], dtype=torch.float64)
    images = noisy(IR, kappa, 0.15).flatten(1)
    domain = Domain(np.ones((20, 20), dtype=bool))
    marginal = DepthMarginal(DepthProfile(TI_31, False, images), sigma, domain.blocks(20))
    marginal.fit(1.9)
    b = kappa[1].flatten().numpy()
    step = 0.005
    there = [marginal.start(b + shift).value for shift in (-step, step)]
    # 32-bit sums, and the third derivative
    assert float(marginal.start(b).slope.sum()) == pytest.approx((there[1] - there[0]) / (2 * step), abs=0.5)


@pytest.mark.parametrize("weight", [3e2, 2e3, inf])
def test_weight_of_largest_evidence_is_that_of_the_prior(weight):
    """Maps drawn from the prior that the penalty stands for, seen through noise: the weight comes back."""
    n = 48
    domain = Domain(np.ones((n, n), dtype=bool))
    rng = np.random.default_rng(0)
    # eigenvectors of the Laplacian of a rectangle are cosines
    line = 2 - 2 * np.cos(np.pi * np.arange(n) / n)
    penalty = (line[:, None] + line[None]) ** 2
    sd = np.zeros((n, n))
    sd[penalty > 0] = 1 / np.sqrt(2 * weight * penalty[penalty > 0])
    d = rng.choice([1.0, 4.0], n * n)
    found = []
    for _ in range(6):
        b = scipy.fft.idctn(sd * rng.standard_normal((n, n)), norm="ortho").ravel() + 1.9
        z = b + rng.standard_normal(n * n) / np.sqrt(d)
        at = np.full(n * n, 1.9)
        found.append(evident_weight(domain.blocks(600), at, d * (z - at), d, 1))
    if np.isinf(weight):
        # by chance a map may be preferred
        assert sum(np.isinf(found)) >= 5
    else:
        # SD of the logarithm: about sqrt(2 / modes that the data tell), ten or more here, less by averaging
        assert abs(np.log10(np.median(found) / weight)) < 0.5


@pytest.mark.parametrize("weight", [1e-3, 20.0, 1e5])
def test_variance_is_the_diagonal_of_the_inverse(weight):
    mask = ragged((36, 36), share=0.9)
    domain = Domain(mask)
    d = np.random.default_rng(2).choice([1.0, 5.0], domain.size)
    found = depth_variance(Climb(domain, domain.blocks(150), 1e-4, 10), weight, d)
    laplacian = graph_laplacian(mask)
    wanted = np.linalg.inv(np.diag(d) + 2 * weight * laplacian @ laplacian).diagonal()
    ratio = found / wanted
    # an approximation within the blocks: right on average, and within a factor almost everywhere
    assert abs(np.median(ratio) - 1) < 0.12
    assert np.quantile(ratio, 0.05) > 0.6
    assert np.quantile(ratio, 0.95) < 1.7


# --- the estimator


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(40, 40), (1, 30, 30), (6, 16, 16)])
def test_noise_free_maps_come_back(shape, signed):
    model = InversionRecovery(ti=TI_31, signed=signed)
    kappa, _ = phantom(shape, 0.1)
    # sigma says how much the penalty may weigh: 1e-7 leaves nothing to it
    found = build_estimator("smooth-b", model)(model(kappa), sigma=1e-7)
    torch.testing.assert_close(found.kappa, kappa, rtol=1e-4, atol=0)
    assert bool((found.status == Status.OK).all())
    fixed = SmoothB(model, weight=500.0)(model(kappa).float(), sigma=1e-4)
    # float32 images: 6e-8 of the signal, times a condition of some thousand
    torch.testing.assert_close(fixed.kappa.double(), kappa, rtol=3e-3, atol=0)


@pytest.mark.parametrize("signed", [False, True])
def test_objective_against_scipy_with_everything_free(signed):
    """L-BFGS-B over A, B and T1 of all voxels, started at the truth and at the estimate: nowhere lower."""
    model = InversionRecovery(ti=SEVEN, signed=signed)
    kappa, _ = phantom((6, 7), 0.1)
    mask = torch.from_numpy(ragged((6, 7), share=0.85))
    sigma, weight = 0.01, 500.0
    images = noisy(model, kappa, sigma)
    found = SmoothB(model, weight=weight, pooling="profile", iterations=60)(images, sigma, mask)
    laplacian = torch.from_numpy(graph_laplacian(mask.numpy()))
    y = images[:, mask]

    def objective(x):
        rows = torch.tensor(x.reshape(3, -1), requires_grad=True)
        a, b, t1 = rows
        signal = a * (1 - b * torch.exp(-torch.tensor(SEVEN, dtype=torch.float64)[:, None] / t1))
        signal = signal if signed else signal.abs()
        value = (signal - y).square().sum() / (2 * sigma**2) + weight * (laplacian @ b).square().sum()
        value.backward()
        return float(value.detach()), rows.grad.numpy().ravel()

    n = y.shape[1]
    bounds = [(0, None)] * n + [(0, 3)] * n + [(0.01, 6)] * n
    ours = found.kappa[:, mask].numpy().ravel()
    reached = objective(ours)[0]
    for start in (kappa[:, mask].numpy().ravel(), ours):
        other = scipy.optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 20000, "maxfun": 40000}
        )
        # the climb ends where a step would gain 1e-4
        assert reached <= other.fun + 1e-3


def test_infinite_weight_is_the_shared_b():
    kappa, _ = phantom((40, 40), 0.0)
    images = noisy(IR, kappa, 0.01)
    shared = build_estimator("shared-b", IR)(images, 0.01).kappa[1, 0, 0]
    for weight in (inf, 1e12):
        found = SmoothB(IR, weight=weight)(images, 0.01).kappa[1]
        assert float(found.max() - found.min()) < 1e-6
        # that B's own standard error is .004; shared-b ends within a tenth of it
        assert abs(float(found[0, 0] - shared)) < 5e-4


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_scale_does_not_matter(factor):
    kappa, _ = phantom((24, 24))
    images = noisy(IR, kappa, 0.02)
    for weight in (0.0, 500.0):
        fit = SmoothB(IR, weight=weight)
        one, other = fit(images, 0.02), fit(images * factor, 0.02 * factor)
        rows = torch.tensor([factor, 1, 1], dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(one.kappa * rows, other.kappa, rtol=1e-4, atol=0)


def test_no_worse_than_shared_b_and_twice_as_good_where_b_varies():
    for snr in (30, 100):
        for spread, most in ((0.0, 1.02), (0.1, 0.5)):
            kappa, label = phantom((72, 72), spread)
            images = noisy(IR, kappa, 0.65 / snr).float()
            shared, smooth = (
                build_estimator(name, IR)(images, 0.65 / snr).kappa[2] / kappa[2] - 1
                for name in ("shared-b", "smooth-b")
            )
            tissue = label < 2
            assert float(smooth[tissue].square().mean()) ** 0.5 < most * float(shared[tissue].square().mean()) ** 0.5


def test_high_noise_marginalises_t1():
    """At SNR 4 the histogram keeps B near the truth, where the error of T1 is that of a known B."""
    kappa, label = phantom((64, 64), 0.1)
    sigma = 0.65 / 4
    images = noisy(IR, kappa, sigma).float()
    found = SmoothB(IR)(images, sigma)
    assert float((found.kappa[1] - kappa[1]).square().mean().sqrt()) < 0.06
    known = build_estimator("least-squares", IR)(images, known={"B": kappa[1]})
    error = [(fit.kappa[2] / kappa[2] - 1)[label == 0].square().mean().sqrt() for fit in (found, known)]
    assert float(error[0]) < 1.1 * float(error[1])


def test_pieces_do_not_see_each_other():
    kappa, _ = phantom((20, 41), 0.0)
    kappa[1, :, :20], kappa[1, :, 21:] = 1.6, 1.95
    mask = torch.ones(20, 41, dtype=torch.bool)
    mask[:, 20] = False
    images = noisy(IR, kappa, 0.005)
    both = SmoothB(IR, weight=inf)(images, 0.005, mask)
    for side, b in ((slice(0, 20), 1.6), (slice(21, 41), 1.95)):
        # standard error of B from 400 voxels: about .004
        assert abs(float(both.kappa[1, 0, side][0]) - b) < 0.02
        alone = SmoothB(IR, weight=inf)(images[:, :, side], 0.005)
        torch.testing.assert_close(both.kappa[:, :, side], alone.kappa, rtol=1e-4, atol=0)
    assert bool((both.status[:, 20] == Status.NOT_COMPUTED).all())


def test_mask_zeros_and_nan():
    kappa, _ = phantom((16, 16))
    images = IR(kappa).float()
    images[:, 0, 0], images[5, 1, 1], images[:, 15] = 0, torch.nan, 5.0
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[15] = False
    found = SmoothB(IR, covariance=True)(images, 1e-4, mask)
    computed = mask.clone()
    computed[0, 0] = computed[1, 1] = False
    assert bool(((found.status == Status.NOT_COMPUTED) == ~computed).all())
    assert bool((torch.isnan(found.kappa).all(0) == ~computed).all())
    assert bool((torch.isnan(found.variances["noise"]).all(0) == ~computed).all())
    torch.testing.assert_close(found.kappa[1, 5, 5].double(), kappa[1, 5, 5], rtol=2e-3, atol=0)
    nothing = SmoothB(IR)(images, 1e-4, torch.zeros_like(mask))
    assert bool((nothing.status == Status.NOT_COMPUTED).all())
    single = SmoothB(IR)(images[:, 5, 5:6], 1e-4)
    assert single.kappa.shape == (3, 1)


def test_sigma_is_estimated_and_may_be_a_map():
    kappa, _ = phantom((32, 32))
    images = noisy(IR, kappa, 0.02)
    found = SmoothB(IR)(images)
    assert found.noise_level is not None
    assert found.noise_level.source == "residual"
    # 1024 medians of chi-square with 28 degrees: 1 %
    assert float(found.noise_level.sigma) == pytest.approx(0.02, rel=0.05)
    given = SmoothB(IR, weight=1e4)(images, 0.02)
    mapped = SmoothB(IR, weight=1e4)(images, torch.full((32, 32), 0.02))
    torch.testing.assert_close(given.kappa, mapped.kappa, rtol=1e-4, atol=0)


def test_variances_are_those_of_the_errors():
    """Over draws of noise and a field: RMS error over predicted standard deviation, per row."""
    ratios = []
    for seed in range(3):
        kappa, _ = phantom((48, 48), 0.1, seed)
        found = SmoothB(IR, covariance=True)(noisy(IR, kappa, 0.02, seed), 0.02)
        assert found.covariance is not None
        torch.testing.assert_close(found.covariance[2, 2], found.variances["noise"][2])
        ratios.append(((found.kappa - kappa).square() / found.variances["noise"]).mean((1, 2)))
    a, b, t1 = torch.stack(ratios).mean(0).sqrt().tolist()
    # this field is smoother than what the prior draws, so that errors are below the prediction: on the safe side
    assert 0.8 < a < 1.1
    assert 0.8 < t1 < 1.1
    # errors of B are alike over many voxels: few independent ones
    assert 0.4 < b < 1.3


def test_b_at_its_bound_is_reported():
    kappa, _ = phantom((12, 12), 0.0)
    kappa[1] = 3.4
    found = SmoothB(IR, weight=1e6)(IR(kappa), 0.01)
    assert float(found.kappa[1].max()) == 3.0
    assert float((found.status == Status.AT_BOUND).double().mean()) > 0.9


def test_refusals():
    with pytest.raises(InputError, match="smooth-b needs a model with B"):
        build_estimator("smooth-b", T2Prep(te_prep=(0.01, 0.1)))
    with pytest.raises(InputError, match="weight must not be negative"):
        SmoothB(IR, weight=-1.0)
    with pytest.raises(InputError, match="iterations must be at least 1"):
        SmoothB(IR, iterations=0)
    with pytest.raises(InputError, match="pooling must be one of"):
        SmoothB(IR, pooling="mean")
    with pytest.raises(InputError, match=r"known.B: this method cannot use"):
        SmoothB(IR)(torch.ones(31, 3, 3), 0.1, known={"B": 2.0})
    assert build_estimator("smooth-b", IR, {"weight": 500.0, "covariance": True}).name == "smooth-b"
    assert SmoothB.pools == ("B",)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("snr", [4, 30])
def test_same_on_cuda(snr):
    kappa, _ = phantom((48, 48))
    images = noisy(IR, kappa, 0.65 / snr).float()
    here = SmoothB(IR, covariance=True)(images, 0.65 / snr)
    there = SmoothB(IR, covariance=True)(images.cuda(), 0.65 / snr)
    assert there.kappa.is_cuda
    assert there.status.is_cuda
    assert float((here.kappa[1] - there.kappa[1].cpu()).abs().max()) < 5e-3


def test_voxels_that_settled_stay_where_the_climb_goes_on(data_folder):
    """Where the climb is cut short the status tells who has settled; CSF at the bound of T1 does not hold it up."""
    import nibabel

    file = data_folder / "brain_ir_se_basel" / "ir_tse_real.nii.gz"
    stored = np.asarray(nibabel.load(file).dataobj, dtype=np.float32)[70:110, 70:110, 0]
    images = torch.from_numpy(np.moveaxis(stored, -1, 0).copy())
    mask = images.abs().amax(0) > 0.2 * images.abs().amax()
    model = InversionRecovery(ti=(0.05, 0.1, 0.2, 0.5, 2.0, 4.0), signed=True)
    early, late = (SmoothB(model, weight=5.0, iterations=n)(images, sigma=16.4, mask=mask) for n in (3, 40))
    settled, still = (mask & (early.status == status) for status in (Status.OK, Status.NOT_CONVERGED))
    assert settled.sum() > 100
    assert still.sum() > 10
    moved = (early.kappa[1] - late.kappa[1]).abs()
    assert float(moved[settled].quantile(0.99)) < 0.01
    assert float(moved[settled].median()) < 0.1 * float(moved[still].median())
    assert not bool((late.status == Status.NOT_CONVERGED).any())
