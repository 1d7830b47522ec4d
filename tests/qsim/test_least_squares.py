"""The voxel-wise fit against a dense grid, scipy, and the Cramér-Rao bound."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from qsim.errors import InputError
from qsim.estimators import Status
from qsim.estimators.least_squares import LeastSquares
from qsim.information import crb
from qsim.signals import (
    BiExponential,
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    OffsetDecay,
    SaturationRecovery,
    SpinEcho,
    SpinLock,
    T2Prep,
    VariableFlipAngle,
)
from tests.oracles import (
    curve_fit_recovery,
    dense_grid_decay,
    dense_grid_offset_decay,
    dense_grid_recovery,
    dense_t1_objective,
    recovery_objective,
)
from tests.published import TABLE_1, TE_PREP, TI_31

IR = InversionRecovery(ti=TI_31)
MODELS = (
    IR,
    InversionRecovery(ti=TI_31, signed=True),
    InversionRecovery2P(ti=TI_31),
    InversionRecovery2P(ti=TI_31, signed=True),
    T2Prep(te_prep=TE_PREP),
    SpinLock(tsl=(0.001, 0.01, 0.03, 0.05)),
    SpinEcho(te=(0.16, 0.01, 0.08)),
    OffsetDecay(te=TE_PREP),
    OffsetDecay(tsl=(0.0, 0.01, 0.03, 0.05)),
)
TSL = np.array([0.0, 0.01, 0.03, 0.05])
RANGES = {"A": (0.2, 1.3), "B": (1.5, 2.0), "T1": (0.4, 4.0), "T2": (0.03, 0.2), "T1RHO": (0.02, 0.1), "C": (-0.1, 0.3)}


def random_maps(model, shape, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.uniform(*RANGES[p.name], shape) for p in model.parameters]))


def noisy_tissues(snr, n, seed, ti=TI_31, signed=False):
    """Table 1 means with their spread cut at 2 SD, B 1.5 to 2, Gaussian noise after the modulus."""
    rng = np.random.default_rng(seed)
    series = []
    for name, sd in (("gm", 0.3), ("wm", 0.25), ("csf", 0.3)):
        a, t1, _ = TABLE_1[name]
        a = a + 0.3 * np.clip(rng.standard_normal(n), -2, 2)
        t1 = t1 + sd * np.clip(rng.standard_normal(n), -2, 2)
        signal = a * (1 - rng.uniform(1.5, 2, n) * np.exp(-np.array(ti)[:, None] / t1))
        signal = signal if signed else np.abs(signal)
        series.append(signal + 0.65 / snr * rng.standard_normal((len(ti), n)))
    return np.concatenate(series, 1)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{m.kind}-{getattr(m, 'signed', '')}-{m.parameters[1].name}")
def test_noise_free_round_trip(model):
    truth = random_maps(model, (3, 5))
    found = LeastSquares(model)(model(truth))
    # T1 of 4 s from times up to 0.94 s: the objective is flat there to about 1e-14 of the sum of squares
    torch.testing.assert_close(found.kappa, truth, rtol=1e-6, atol=0)
    assert bool((found.status == Status.OK).all())


def test_noise_free_round_trip_float32():
    truth = random_maps(MODELS[4], (4,)).float()
    found = LeastSquares(MODELS[4])(MODELS[4](truth))
    assert found.kappa.dtype == torch.float32
    torch.testing.assert_close(found.kappa, truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("snr", [10, 30, 100])
def test_global_minimum_of_the_magnitude_fit(snr):
    """Not one voxel of 36 may lie more than 1e-6 above the global minimum that a dense grid and a simplex find."""
    images = noisy_tissues(snr, 12, seed=snr)
    fit = LeastSquares(IR)(torch.tensor(images))
    for v in range(images.shape[1]):
        lowest, _ = dense_grid_recovery(np.array(TI_31), images[:, v])
        found = recovery_objective(fit.kappa[:, v].numpy(), np.array(TI_31), images[:, v])
        assert found <= lowest * (1 + 1e-6)


def test_global_minimum_with_few_unsorted_times():
    ti = (1.2, 0.05, 0.3, 2.5, 0.6)
    images = noisy_tissues(10, 8, seed=5, ti=ti)
    fit = LeastSquares(InversionRecovery(ti=ti))(torch.tensor(images))
    for v in range(images.shape[1]):
        lowest, _ = dense_grid_recovery(np.array(ti), images[:, v])
        # an exact fit of three parameters to five images may leave nearly nothing: absolute part
        assert recovery_objective(fit.kappa[:, v].numpy(), np.array(ti), images[:, v]) <= lowest * (1 + 1e-6) + 1e-10


def test_global_minimum_of_the_signed_fit():
    images = noisy_tissues(10, 6, seed=6, signed=True)
    fit = LeastSquares(InversionRecovery(ti=TI_31, signed=True))(torch.tensor(images))
    for v in range(images.shape[1]):
        lowest, _ = dense_grid_recovery(np.array(TI_31), images[:, v], signed=True)
        found = recovery_objective(fit.kappa[:, v].numpy(), np.array(TI_31), images[:, v], signed=True)
        assert found <= lowest * (1 + 1e-6)


@pytest.mark.parametrize("b", [1.3, 1.9])
def test_global_minimum_with_known_b(b):
    images = noisy_tissues(10, 6, seed=7)
    series = torch.tensor(images)
    number = LeastSquares(IR)(series, known={"B": b})
    field = LeastSquares(IR)(series, known={"B": torch.linspace(b, b + 1e-9, series.shape[1], dtype=torch.float64)})
    # the map takes the other path; its B differs by 1e-9
    torch.testing.assert_close(field.kappa, number.kappa, rtol=1e-4, atol=1e-6)
    assert bool((number.kappa[1] == b).all())
    for v in range(images.shape[1]):
        lowest, _ = dense_grid_recovery(np.array(TI_31), images[:, v], b_bounds=(b, b), n_b=1, n_t=3000, starts=8)
        found = recovery_objective(number.kappa[:, v].numpy(), np.array(TI_31), images[:, v])
        assert found <= lowest * (1 + 1e-6)


@pytest.mark.parametrize("b", [1.5, 2.0])
def test_known_b_rarely_misses_the_global_minimum(b):
    """The objective has a kink wherever the signal is zero at a time, often with a maximum on either side of it."""
    images = noisy_tissues(30, 200, seed=8)
    kappa = LeastSquares(IR)(torch.tensor(images), known={"B": b}).kappa.numpy()
    lowest = dense_t1_objective(np.array(TI_31), images, b)
    found = np.array([recovery_objective(kappa[:, v], np.array(TI_31), images[:, v]) for v in range(images.shape[1])])
    assert np.mean(found > lowest * (1 + 1e-6)) < 0.01


@pytest.mark.parametrize(
    "model", [T2Prep(te_prep=TE_PREP), SpinLock(tsl=(0.001, 0.01, 0.03, 0.05))], ids=lambda m: m.kind
)
def test_global_minimum_of_a_decay(model):
    rng = np.random.default_rng(8)
    images = model(random_maps(model, (15,))).numpy() + 0.1 * rng.standard_normal((model.n_images, 15))
    fit = LeastSquares(model)(torch.tensor(images))
    for v in range(15):
        lowest, _ = dense_grid_decay(np.array(model.times), images[:, v])
        a, t = fit.kappa[:, v].numpy()
        found = np.sum((a * np.exp(-np.array(model.times) / t) - images[:, v]) ** 2)
        assert found <= lowest * (1 + 1e-6)


@pytest.mark.parametrize("sigma", [0.003, 0.1])
def test_global_minimum_of_a_decay_on_a_constant(sigma):
    """Against a dense grid in T with A >= 0 and C by scipy's bounded linear least squares, then Brent steps."""
    rng = np.random.default_rng(11)
    model = OffsetDecay(tsl=tuple(TSL.tolist()))
    images = model(random_maps(model, (12,))).numpy() + sigma * rng.standard_normal((4, 12))
    fit = LeastSquares(model)(torch.tensor(images))
    assert bool((fit.status != Status.NOT_CONVERGED).all())
    for v in range(12):
        lowest = dense_grid_offset_decay(TSL, images[:, v])
        a, t, c = fit.kappa[:, v].numpy()
        assert a >= 0
        assert np.sum((a * np.exp(-TSL / t) + c - images[:, v]) ** 2) <= lowest * (1 + 1e-6) + 1e-14


def test_decay_on_a_constant_against_curve_fit():
    """scipy's Levenberg-Marquardt from the truth, many images and little noise: one minimum, found by both."""
    times = np.linspace(0.0, 0.2, 15)
    model = OffsetDecay(te=tuple(times.tolist()))
    truth = random_maps(model, (5,), seed=3)
    images = model(truth).numpy() + 1e-3 * np.random.default_rng(3).standard_normal((15, 5))
    fit = LeastSquares(model)(torch.tensor(images))
    for v in range(5):
        theirs, _ = curve_fit(lambda t, a, t2, c: a * np.exp(-t / t2) + c, times, images[:, v], p0=truth[:, v].numpy())
        # both stop where the objective is flat to 1e-8 of itself
        np.testing.assert_allclose(fit.kappa[:, v], theirs, rtol=1e-5, atol=1e-6)


def test_decay_on_a_constant_reports_its_bounds_and_refuses_two_times():
    model = OffsetDecay(te=TE_PREP)
    times = torch.tensor(TE_PREP, dtype=torch.float64)
    series = torch.stack((1 - times, 1 + times, torch.full_like(times, 0.7), torch.exp(-times / 0.0005)), 1)
    fit = LeastSquares(model)(series)
    # a straight line (T at its upper end); growing and flat (A = 0); over before the first image (T at its lower end)
    assert fit.status.tolist() == [Status.AT_BOUND] * 4
    assert float(fit.kappa[1, 0]) == pytest.approx(4.0)
    assert fit.kappa[0, 1:3].tolist() == [0.0, 0.0]
    torch.testing.assert_close(fit.kappa[2, 1:3], series[:, 1:3].mean(0))
    assert float(fit.kappa[1, 3]) == pytest.approx(0.001)
    with pytest.raises(InputError, match=r"cannot tell A, T2 and C .* from 2 different times; give at least 3"):
        LeastSquares(OffsetDecay(te=(0.01, 0.05, 0.05)))


def test_decay_on_a_constant_does_not_depend_on_the_batch():
    rng = np.random.default_rng(4)
    model = OffsetDecay(te=TE_PREP)
    images = torch.tensor(model(random_maps(model, (40,))).numpy() + 0.05 * rng.standard_normal((6, 40)))
    together = LeastSquares(model)(images).kappa
    apart = torch.cat([LeastSquares(model)(images[:, v : v + 1]).kappa for v in range(40)], 1)
    # sums over images of one voxel may be vectorised otherwise
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-9)


def test_agrees_with_curve_fit_where_that_converges():
    images = noisy_tissues(100, 8, seed=9)
    fit = LeastSquares(IR)(torch.tensor(images))
    ti, agreed = np.array(TI_31), 0
    for v in range(images.shape[1]):
        theirs = curve_fit_recovery(ti, images[:, v])
        if theirs is None:
            continue
        ours = fit.kappa[:, v].numpy()
        above = recovery_objective(theirs, ti, images[:, v]) / recovery_objective(ours, ti, images[:, v]) - 1
        if fit.status[v] == Status.OK:
            assert above > -1e-6
            if above < 1e-9:
                np.testing.assert_allclose(ours, theirs, rtol=1e-3)
                agreed += 1
    assert agreed >= 12


@pytest.mark.parametrize("model", [IR, T2Prep(te_prep=TE_PREP), OffsetDecay(te=TE_PREP)], ids=lambda m: m.kind)
def test_unbiased_and_efficient(model):
    """Bias and SD of 4000 fits against the Cramér-Rao bound, at a noise that the bound is valid for (CV under 3 %)."""
    truth = {"A": 0.65, "B": 1.9, "T1": 0.78, "T2": 0.08, "C": 0.1}
    kappa = torch.tensor([truth[p.name] for p in model.parameters], dtype=torch.float64)
    sigma, n = 0.0015, 4000
    generator = torch.Generator().manual_seed(0)
    clean = model(kappa[:, None].expand(-1, n))
    images = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    error = LeastSquares(model)(images).kappa - kappa[:, None]
    bound = crb(model, kappa, sigma).sd
    # SD of an SD of 4000 draws: 1.1 %; of a mean: 1.6 % of the bound
    np.testing.assert_allclose(error.std(1), bound, rtol=0.04)
    assert bool((error.mean(1).abs() < 0.06 * bound).all())


def test_covariance_is_the_bound_at_the_estimate():
    kappa = torch.tensor([0.65, 1.9, 0.78], dtype=torch.float64)[:, None].expand(-1, 200)
    generator = torch.Generator().manual_seed(1)
    images = IR(kappa) + 0.002 * torch.randn(31, 200, generator=generator, dtype=torch.float64)
    fit = LeastSquares(IR, covariance=True)
    given, own = fit(images, sigma=0.002), fit(images)
    expected = crb(IR, given.kappa[:, 0], 0.002).sd
    np.testing.assert_allclose(given.variances["noise"][:, 0].sqrt(), expected, rtol=1e-8)
    np.testing.assert_allclose(torch.einsum("iiv->iv", given.covariance), given.variances["noise"])
    # residual variance over N - 3 degrees of freedom is unbiased: its mean over 200 voxels has an SD of 1.9 %
    ratio = (own.variances["noise"] / given.variances["noise"]).mean()
    assert float(ratio) == pytest.approx(1.0, abs=0.06)
    known = fit(images, sigma=0.002, known={"B": 1.9})
    assert bool((known.variances["noise"][1] == 0).all())
    np.testing.assert_allclose(
        known.variances["noise"][2, 0].sqrt(), crb(IR, known.kappa[:, 0], 0.002, known=("B",)).sd[2], rtol=1e-8
    )


def test_solutions_on_a_bound_are_reported():
    # a rising line with no curvature: T1 runs to its upper bound
    rising = torch.linspace(0.1, 0.9, 31, dtype=torch.float64)[:, None]
    fit = LeastSquares(IR)(rising)
    assert int(fit.status[0]) == Status.AT_BOUND
    assert float(fit.kappa[2, 0]) == pytest.approx(6.0)
    # a constant: no inversion at all
    flat = LeastSquares(IR)(torch.full((31, 1), 0.5, dtype=torch.float64))
    assert int(flat.status[0]) == Status.AT_BOUND
    # a decay that grows
    growing = LeastSquares(T2Prep(te_prep=TE_PREP))(torch.tensor(TE_PREP)[:, None] + 1)
    assert int(growing.status[0]) == Status.AT_BOUND
    assert float(growing.kappa[1, 0]) == pytest.approx(4.0)


def test_refuses_what_it_cannot_use():
    images = torch.ones(31, 4)
    with pytest.raises(InputError, match=r"known.REL_B1"):
        LeastSquares(IR)(images, known={"REL_B1": torch.ones(4)})
    with pytest.raises(InputError, match=r"known.B"):
        LeastSquares(InversionRecovery2P(ti=TI_31))(images, known={"B": 1.9})
    with pytest.raises(InputError, match=r"known.B: has shape \(5,\)"):
        LeastSquares(IR)(images, known={"B": torch.ones(5)})
    with pytest.raises(InputError, match="30 images, the model has 31 times"):
        LeastSquares(IR)(images[:30])


RECOVERED = (0.1, 0.4, 0.8, 1.2, 2.0, 3.0, 4.5)
ANY_UNIT = (
    (InversionRecovery(ti=RECOVERED), {}),
    (InversionRecovery(ti=RECOVERED, signed=True), {}),
    (InversionRecovery(ti=RECOVERED, tr=6.0), {}),
    (InversionRecovery(ti=RECOVERED), {"B": 1.8}),
    (InversionRecovery2P(ti=RECOVERED), {}),
    (SaturationRecovery(ts=RECOVERED), {}),
    (LookLocker(ti=RECOVERED), {}),
    (T2Prep(te_prep=TE_PREP), {}),
    (OffsetDecay(te=TE_PREP), {}),
    (VariableFlipAngle(flip_angles=(0.05, 0.1, 0.2, 0.4), tr=0.01), {"REL_B1": 1.0}),
    (BiExponential(te=tuple(0.005 * 1.5**k for k in range(10))), {}),
)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize(("model", "known"), ANY_UNIT, ids=lambda x: getattr(x, "kind", None))
def test_the_unit_of_the_images_drops_out(model, known, single):
    """Noisy series, so that valleys compete; in any unit, and bright and dark voxels side by side."""
    ends = {**RANGES, "FRACTION": (0.3, 0.7), "T2_SHORT": (0.01, 0.03), "REL_B1": (1.0, 1.0)}
    rng = np.random.default_rng(20)
    n = 16 if isinstance(model, BiExponential) else 120
    truth = np.stack([rng.uniform(*ends[p.name], n) for p in model.parameters])
    clean = model(torch.tensor(truth))
    images = clean + 0.05 * clean.amax(0) * torch.tensor(rng.standard_normal(clean.shape))
    images = images.float() if single else images
    fit = LeastSquares(model)
    found = fit(images, known=known)
    linear = [p.name in ("A", "C") for p in model.parameters]
    computed = found.status != Status.NOT_COMPUTED
    assert float(computed.double().mean()) > 0.9

    def check(factor):
        scaled = fit(images * factor, known=known)
        assert torch.equal(scaled.status, found.status)
        for row, (mine, theirs) in enumerate(zip(scaled.kappa, found.kappa, strict=True)):
            expected = theirs * factor if linear[row] else theirs
            if bits:
                assert torch.equal(mine[computed], expected[computed])
            else:
                # the product with a number that is no power of two rounds the images
                rtol = 1e-2 if single else 1e-6
                off = (mine - expected).abs() > rtol * expected.abs() + 1e-9 * (factor if linear[row] else 1.0)
                assert int((off & computed).sum()) <= (2 if single else 0)

    bits = True
    mixed = torch.tensor([2.0**-20, 1.0, 2.0**20, 2.0**-10], dtype=images.dtype).repeat(n // 4)
    for factor in (2.0**-20, 2.0**20, mixed) if single else (2.0**-40, 2.0**-20, mixed):
        check(factor)
    bits = False
    for factor in (1e-6, 1e-3, 1e3, 1e6) if single else (1e-12, 1e-6, 1e-3, 1e3, 1e6):
        check(factor)
