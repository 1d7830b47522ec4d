"""Spikes, zippers, noise and the bias field, against written-out sums, closed forms and scipy."""

from itertools import combinations
from math import pi, prod, sqrt

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre, gammaln, hyp1f1
from scipy.stats import kstest

from qsim.distributions import Normal, Truncated
from qsim.kspace import BiasField, KSpaceNoise, RFSpike, Zipper, apply_chain, magnitude
from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.bias_field import BiasFieldDrawn, field_of
from qsim.kspace.artefacts.k_space_noise import KSpaceNoiseDrawn
from qsim.kspace.artefacts.spike import RFSpikeDrawn, Spike
from qsim.kspace.artefacts.zipper import Strip, ZipperDrawn
from tests.qsim.kspace.oracle import dft, random_images

EXACT = 1e-12


def added(artefact, images, drawn):
    """What was added, as numpy."""
    return (artefact.apply(torch.from_numpy(images), drawn) - torch.from_numpy(images)).numpy()


def kspace_maximum(images, axes):
    return np.abs(dft(images, axes)).max()


def in_every_domain(artefact, images, drawn):
    """The images after an artefact, each time handed over with other axes in k-space."""
    acquired = Acquired.of(torch.from_numpy(images), None)
    axes = range(len(acquired.space))
    for n in range(len(axes) + 1):
        for chosen in combinations(axes, n):
            yield artefact.act(acquired.brought(kspace=chosen), drawn).images().numpy()


# ---------------------------------------------------------------------------------------------------- spikes


@pytest.mark.parametrize(("space", "k"), [((16, 15), (3, -4)), ((9, 14), (-2, 5)), ((6, 9, 8), (1, -3, -2))])
def test_a_spike_is_one_sample_and_a_plane_wave(space, k):
    images = random_images((2, *space))
    axes = tuple(range(1, len(space) + 1))
    change = added(RFSpike(), images, RFSpikeDrawn(space, None, (Spike(None, k, 1.7, 0.8),)))
    height = 1.7 * kspace_maximum(images, axes)
    # one sample of k-space, k = 0 standing at N // 2
    expected = np.zeros_like(images)
    expected[(slice(None), *(q + n // 2 for q, n in zip(k, space, strict=True)))] = height * np.exp(0.8j)
    np.testing.assert_allclose(dft(change, axes), expected, atol=EXACT * height)
    # |A| / sqrt(N) high everywhere
    np.testing.assert_allclose(np.abs(change), height / sqrt(prod(space)), rtol=1e-11)
    # stripes of period N / |k|: a turn of 2 pi k / N from voxel to voxel
    for axis, (q, n) in enumerate(zip(k, space, strict=True), 1):
        turned = change * np.exp(2j * pi * q / n)
        np.testing.assert_allclose(np.roll(change, -1, axis), turned, atol=EXACT * height)


def test_a_period_that_divides_the_axis_comes_back():
    images = random_images((1, 12, 15))
    change = added(RFSpike(), images, RFSpikeDrawn((12, 15), None, (Spike(None, (4, -3), 2.0, 0.3),)))
    np.testing.assert_allclose(np.roll(change, 3, 1), change, atol=1e-12)
    np.testing.assert_allclose(np.roll(change, 5, 2), change, atol=1e-12)
    assert np.abs(np.roll(change, 1, 1) - change).max() > 0.1


def kinds_of_images():
    rng = np.random.default_rng(3)
    positive = rng.random((3, 7, 10)) * np.array([1, 3, 2])[:, None, None]
    wave = np.cos(2 * pi * 3 * np.arange(10) / 10)
    yield "positive", positive + 0j
    # its largest sample is far from the centre
    yield "signed", 0.1 * positive + wave + 0j
    yield "negative", -positive + 0j
    yield "imaginary", 1j * positive
    yield "complex", positive * np.exp(1j * rng.uniform(0, 6, positive.shape))


@pytest.mark.parametrize(("name", "images"), list(kinds_of_images()))
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_the_kspace_maximum_of_a_series(name, images, dtype):
    drawn = RFSpikeDrawn((7, 10), None, (Spike(None, (1, 2), 1.0, 0.0),))
    acquired = Acquired.of(torch.from_numpy(images).to(dtype), None)
    expected = kspace_maximum(images, (1, 2))
    tolerance = EXACT if dtype == torch.complex128 else 1e-6
    for chosen in [(), (0,), (0, 1)]:
        found = RFSpike().act(acquired.brought(kspace=chosen), drawn).facts["kspace_maximum"]
        assert found == pytest.approx(expected, rel=tolerance), name


@pytest.mark.parametrize("shape", [(2, 16, 15), (2, 6, 9, 8)])
@pytest.mark.parametrize("per_image", [True, False])
def test_a_spike_is_the_same_whatever_is_in_k_space(shape, per_image):
    images = random_images(shape)
    artefact = RFSpike(spikes=2, per_image=per_image)
    drawn = artefact.draw(shape, np.random.default_rng(8))
    first, *others = in_every_domain(artefact, images, drawn)
    assert len(others) == 2 ** (len(shape) - 1) - 1
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-12 * np.abs(first).max())


def test_several_spikes_add_up_and_stay_in_their_image():
    images = random_images((3, 8, 9))
    spikes = (Spike(0, (2, 3), 1.0, 0.1), Spike(0, (-1, 4), 2.0, 1.0), Spike(2, (3, -2), 0.5, 2.0))
    change = added(RFSpike(), images, RFSpikeDrawn((8, 9), 3, spikes))
    alone = [added(RFSpike(), images, RFSpikeDrawn((8, 9), 3, (spike,))) for spike in spikes]
    np.testing.assert_allclose(change, sum(alone), atol=1e-12)
    assert np.abs(change).max((1, 2)) == pytest.approx([np.abs(change[0]).max(), 0, np.abs(change[2]).max()], abs=1e-13)
    assert np.abs(change[2]).max() > 0.1
    # the same reference for every image: that of the series
    assert np.abs(change[2]).max() == pytest.approx(0.5 * kspace_maximum(images, (1, 2)) / sqrt(72), rel=1e-11)


def test_draws_of_spikes():
    shape = (3, 9, 12)
    each = RFSpike(spikes=(1, 3), per_image=True).draw(shape, np.random.default_rng(1))
    assert each.count == 3
    assert {spike.image for spike in each.spikes} == {0, 1, 2}
    drawn = [RFSpike(spikes=(0, 2)).draw(shape, np.random.default_rng(seed)) for seed in range(300)]
    assert {len(one.spikes) for one in drawn} == {0, 1, 2}
    assert all((one.severity == 0) == (len(one.spikes) == 0) for one in drawn)
    places = np.array([spike.k for one in drawn for spike in one.spikes])
    assert places.min(0).tolist() == [-4, -6]
    assert places.max(0).tolist() == [4, 5]
    heights = [spike.amplitude for one in drawn for spike in one.spikes]
    # shaw2021 section 5: uniform from 1 to 10
    assert kstest(heights, "uniform", (1, 9)).pvalue > 0.01
    two = RFSpikeDrawn((9, 12), None, (Spike(None, (1, 1), 3.0, 0.0), Spike(None, (2, 1), 4.0, 0.0)))
    assert two.severity == pytest.approx(5)
    with pytest.raises(ValueError, match="images: got 2, the draw is for 3"):
        RFSpike(per_image=True).apply(torch.ones(2, 9, 12, dtype=torch.complex64), each)


# --------------------------------------------------------------------------------------------------- zippers


@pytest.mark.parametrize(
    ("space", "axis", "first"), [((16, 15), 1, 4), ((9, 14), 0, 7), ((6, 9, 8), 2, 1), ((6, 9, 8), 0, 5)]
)
def test_a_zipper_has_equal_energy_in_every_sample_and_all_of_it_in_one_column(space, axis, first):
    images = random_images((2, *space))
    change = added(Zipper(amplitude=1), images, ZipperDrawn(space, None, (Strip(None, axis, first, 1, 0.4, 11),)))
    axes = tuple(range(1, len(space) + 1))
    height = 0.4 * np.abs(images).max()
    lines = np.moveaxis(dft(change, axes), axis + 1, -1)
    n = space[axis]
    np.testing.assert_allclose(np.abs(lines), height / sqrt(n), atol=EXACT)
    # along the frequency axis one frequency, that of the place
    np.testing.assert_allclose(lines[..., 1:] / lines[..., :-1], np.exp(-2j * pi * (first - n // 2) / n), atol=1e-11)
    # every line has a phase of its own
    phases = np.angle(lines[0, ..., n // 2]).ravel()
    assert len(np.unique(phases)) == prod(space) // n
    columns = np.moveaxis(change, axis + 1, -1)
    assert np.abs(np.delete(columns, first, -1)).max() == 0
    rms = np.sqrt(np.mean(np.abs(columns[0, ..., first]) ** 2))
    assert rms == pytest.approx(height, rel=EXACT)
    # every image of the series alike
    np.testing.assert_allclose(change[0], change[1], atol=1e-14)


def test_a_zipper_is_noise_like():
    space = (64, 5, 60)
    change = added(
        Zipper(amplitude=1), np.ones((1, *space), complex), ZipperDrawn(space, None, (Strip(None, 1, 3, 1, 1.0, 5),))
    )
    dots = change[0, :, 3]
    # a sum of many random phases: the magnitude of complex normals, mean |d|^2 = 1; neighbours are independent
    assert kstest(np.abs(dots).ravel() ** 2, "expon").pvalue > 0.01
    assert abs(np.mean(dots[1:] * dots[:-1].conj())) < 3 / sqrt(63 * 60)
    phases = np.angle(dft(dots, (0, 1))).ravel()
    assert kstest(phases, "uniform", (-pi, 2 * pi)).pvalue > 0.01


def test_columns_of_a_wide_zipper_differ_and_have_one_height():
    images = random_images((1, 12, 11))
    change = added(Zipper(amplitude=1), images, ZipperDrawn((12, 11), None, (Strip(None, 1, 6, 3, 0.5, 2),)))[0]
    assert np.abs(np.delete(change, [6, 7, 8], 1)).max() == 0
    rms = np.sqrt(np.mean(np.abs(change[:, 6:9]) ** 2, 0))
    np.testing.assert_allclose(rms, 0.5 * np.abs(images).max(), rtol=EXACT)
    assert np.abs(change[:, 6] - change[:, 7]).max() > 0.1


def test_severity_of_zippers_is_the_rms_of_what_is_added():
    images = random_images((2, 40, 41))
    strips = (Strip(0, 1, 3, 2, 0.5, 2), Strip(1, 0, 30, 1, 0.9, 3))
    drawn = ZipperDrawn((40, 41), 2, strips)
    change = added(Zipper(amplitude=1), images, drawn)
    assert drawn.severity == pytest.approx(np.sqrt(np.mean(np.abs(change) ** 2)) / np.abs(images).max(), rel=1e-11)
    assert np.abs(change[0, :, 10:]).max() == 0


def test_draws_of_zippers():
    shape = (2, 9, 12)
    drawn = [
        Zipper(amplitude=(0.1, 0.3), zippers=(0, 2), width=(1, 4)).draw(shape, np.random.default_rng(s))
        for s in range(400)
    ]
    strips = [strip for one in drawn for strip in one.strips]
    assert {len(one.strips) for one in drawn} == {0, 1, 2}
    assert {strip.axis for strip in strips} == {0, 1}
    assert {strip.width for strip in strips} == {1, 2, 3, 4}
    assert {strip.first for strip in strips if strip.axis == 0 and strip.width == 1} == set(range(9))
    assert all(strip.first + strip.width <= (9, 12)[strip.axis] for strip in strips)
    assert len({strip.seed for strip in strips}) == len(strips)
    for position, first in [(0, 0), (0.5, 5), (1, 9)]:
        (strip,) = Zipper(amplitude=1, axis=-1, width=3, position=position).draw(shape, np.random.default_rng(1)).strips
        assert (strip.axis, strip.first) == (1, first)
    each = Zipper(amplitude=1, per_image=True).draw(shape, np.random.default_rng(1))
    assert [strip.image for strip in each.strips] == [0, 1]
    with pytest.raises(ValueError, match="images: got 3, the draw is for 2"):
        Zipper(amplitude=1).apply(torch.ones(3, 9, 12, dtype=torch.complex64), each)
    with pytest.raises(ValueError, match=r"^width: 10 columns do not fit axis 0 of \(9, 12\) voxels"):
        Zipper(amplitude=1, axis=-2, width=10).draw(shape, np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"^axis: axis -3 does not exist"):
        Zipper(amplitude=1, axis=-3).draw(shape, np.random.default_rng(1))


@pytest.mark.parametrize("seed", range(12))
def test_a_width_that_can_be_too_large_is_refused_by_every_draw(seed):
    rng = np.random.default_rng(seed)
    with pytest.raises(ValueError, match=r"^width: 20 columns do not fit any axis of \(16, 16\) voxels"):
        Zipper(amplitude=1, width=(1, 20)).draw((1, 16, 16), rng)
    # an axis that is drawn is one that can hold it
    (strip,) = Zipper(amplitude=1, width=10).draw((1, 16, 8), rng).strips
    assert strip.axis == 0
    with pytest.raises(ValueError, match=r"^shape: \(1, 1\) is a single voxel"):
        BiasField(strength=(0, 0.3)).draw((4, 1, 1), rng)


# ----------------------------------------------------------------------------------------------------- noise


def test_noise_is_white_of_one_variance_and_another_in_every_image_and_coil():
    images = random_images((2, 3, 60, 70))
    noise = added(KSpaceNoise(sigma=0.3, ndim=2), images, KSpaceNoiseDrawn((60, 70), None, 0.3, 7))
    # parts: real and imaginary, of every image and coil
    parts = np.stack([noise.real, noise.imag]).reshape(12, -1)
    n = parts.shape[1]
    for part in parts:
        assert kstest(part / 0.3, "norm").pvalue > 1e-3
        # a sample variance has a relative standard error of sqrt(2 / n)
        assert part.var() == pytest.approx(0.09, rel=4 * sqrt(2 / n))
    # 66 pairs: 4 standard errors are passed by chance once in 240 runs, were the seed not fixed
    correlations = np.corrcoef(parts)[np.triu_indices(12, 1)]
    assert np.abs(correlations).max() < 4 / sqrt(n)
    # white: the same variance in k-space, near the centre as far out
    there = dft(noise, (-2, -1))
    assert there[..., 20:40, 20:50].real.var() == pytest.approx(0.09, rel=4 * sqrt(2 / 3600))
    assert there.imag.var() == pytest.approx(0.09, rel=4 * sqrt(2 / noise.size))


def test_noise_is_the_same_numbers_in_either_precision_and_wherever_the_images_are():
    images = torch.from_numpy(random_images((2, 6, 7)))
    artefact = KSpaceNoise(snr_db=3.0)
    drawn = artefact.draw((2, 6, 7), np.random.default_rng(1))
    acquired = Acquired.of(images, None)
    change = artefact.act(acquired, drawn).values - acquired.values
    for chosen in [(0,), (1,), (0, 1)]:
        noisy = artefact.act(acquired.brought(kspace=chosen), drawn)
        # one realisation, that of the image
        assert noisy.in_kspace == set()
        np.testing.assert_allclose((noisy.values - acquired.values).numpy(), change.numpy(), atol=1e-12)
    single = artefact.apply(images.to(torch.complex64), drawn)
    np.testing.assert_allclose(single.numpy(), (images + change.reshape(images.shape)).numpy(), atol=1e-5)


def test_the_limits_of_an_snr_leave_finite_images():
    images = torch.from_numpy(random_images((2, 6, 7))).to(torch.complex64)
    for snr_db in (-200, 200, Truncated(of=Normal(mean=0.0, sd=100.0), low=-200.0, high=200.0)):
        artefact = KSpaceNoise(snr_db=snr_db)
        there = artefact.apply(images, artefact.draw((2, 6, 7), np.random.default_rng(1)))
        assert float(there.abs().max()) < 1e12
    for artefact in (KSpaceNoise(sigma=1e38), KSpaceNoise(snr_db=-200)):
        drawn = artefact.draw((2, 6, 7), np.random.default_rng(1))
        with pytest.raises(ValueError, match=r"is more than torch\.complex64 can hold"):
            artefact.apply(images * 1e30, drawn)


def test_the_reference_of_an_snr_is_the_series_unless_it_is_named():
    images = torch.from_numpy(random_images((2, 6, 7)))
    drawn = KSpaceNoise(snr_db=3.0).draw((2, 6, 7), np.random.default_rng(1))
    series = KSpaceNoise(snr_db=3.0, reference="series").apply(images, drawn)
    assert torch.equal(KSpaceNoise(snr_db=3.0).apply(images, drawn), series)


@pytest.mark.parametrize("reference", ["series", "image"])
def test_snr_in_decibels_is_that_of_its_definition(reference):
    images = random_images((2, 2, 50, 40)) * np.array([1, 3])[:, None, None, None]
    artefact = KSpaceNoise(snr_db=7, reference=reference, ndim=2)
    drawn = artefact.draw(images.shape, np.random.default_rng(1))
    result = apply_chain(torch.from_numpy(images), [artefact], [drawn])
    noise = result.images.numpy() - images
    power = np.mean(np.abs(images) ** 2, (1, 2, 3))
    expected = np.sqrt((power.mean() if reference == "series" else power) / (2 * 10**0.7))
    np.testing.assert_allclose(result.facts[0]["sigma"], expected, rtol=EXACT)
    # the power of n complex normals has a relative standard error of 1 / sqrt(n)
    np.testing.assert_allclose(
        np.mean(np.abs(noise) ** 2, (1, 2, 3)), 2 * expected**2 * np.ones(2), rtol=3 / sqrt(4000)
    )
    assert result.severity == (pytest.approx(10 ** (-7 / 20), rel=EXACT),)


# oracle J: coils, signal over sigma, mean, SD
PUBLISHED = [
    (1, 0, 1.2533, 0.6551),
    (4, 0, 2.7416, 0.6953),
    (32, 0, 7.9688, 0.7057),
    (1, 3, 3.1726, 0.9668),
    (4, 3, 4.0295, 0.8734),
]


def chi_moments(coils, nu):
    """Mean and SD of the root of the sum of squares, sigma 1: equation of Constantinides 1997 with 1F1."""
    mean = (
        sqrt(pi / 2) * np.exp(gammaln(coils + 0.5) - gammaln(1.5) - gammaln(coils)) * hyp1f1(-0.5, coils, -(nu**2) / 2)
    )
    return mean, sqrt(nu**2 + 2 * coils - mean**2)


@pytest.mark.parametrize("nu", [0, 1, 3])
@pytest.mark.parametrize("coils", [1, 4, 8, 16, 32])
def test_moments_of_the_root_of_the_sum_of_squares(coils, nu):
    n, sigma = 100_000, 0.37
    # spread unevenly over the coils, each with a phase of its own: only the root of the sum of squares counts
    shares = np.random.default_rng(2).normal(size=(coils, 2)) @ np.array([1, 1j])
    shares *= nu * sigma / np.linalg.norm(shares)
    images = torch.from_numpy(
        np.broadcast_to(shares[None, :, None, None], (1, coils, 100, n // 100)).astype(np.complex64)
    )
    artefact = KSpaceNoise(sigma=sigma, ndim=2)
    noisy = artefact.apply(images, artefact.draw(images.shape, np.random.default_rng(coils)))
    m = torch.linalg.vector_norm(magnitude(noisy).double(), dim=1).numpy() / sigma
    mean, sd = chi_moments(coils, nu)
    for published in (row for row in PUBLISHED if row[:2] == (coils, nu)):
        assert (mean, sd) == pytest.approx(published[2:], abs=6e-5)
    error_of_sd = sqrt(max(np.mean((m - mean) ** 4) - sd**4, 0) / n) / (2 * sd)
    assert abs(m.mean() - mean) < 3 * sd / sqrt(n)
    assert abs(m.std() - sd) < 3 * error_of_sd


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KSpaceNoise(), r"^sigma: name either snr_db or sigma"),
        (lambda: KSpaceNoise(sigma=1, snr_db=1), r"^sigma: name either snr_db or sigma"),
        (lambda: KSpaceNoise(sigma=-1), r"^sigma must be at least 0"),
        (lambda: KSpaceNoise(snr_db=float("inf")), r"^snr_db must be a finite number"),
        (lambda: KSpaceNoise(snr_db=1, reference="voxel"), r"^reference must be series or image"),
        (lambda: KSpaceNoise(snr_db=1e4), r"^snr_db must lie in \[-200, 200\], got 10000"),
        (lambda: KSpaceNoise(snr_db=(-1e4, 0)), r"^snr_db must lie in \[-200, 200\]"),
        (lambda: KSpaceNoise(snr_db=Normal(mean=10.0, sd=1.0)), r"^snr_db must lie in \[-200, 200\].*truncate it"),
        (lambda: KSpaceNoise(sigma=1, reference="image"), r"^reference is that of snr_db; leave it out"),
        (lambda: RFSpike(amplitude=(1, 2, 3)), r"^amplitude must be a finite number or a pair of them"),
        (lambda: RFSpike(amplitude=None), r"^amplitude must be a finite number or a pair"),
        (lambda: RFSpike(amplitude=torch.ones(2)), r"^amplitude must be a finite number or a pair"),
        (lambda: Zipper(amplitude=-1), r"^amplitude must be at least 0"),
        (lambda: Zipper(amplitude=1, width=0), r"^width must be at least 1"),
        (lambda: Zipper(amplitude=1, position=(0, 1.5)), r"^position must lie in \[0, 1\]"),
        (lambda: Zipper(amplitude=1, zippers=-1), r"^zippers must be at least 0"),
        (lambda: BiasField(strength=-0.1), r"^strength must lie in \[0, 5\]"),
        (lambda: BiasField(strength=0.1, order=0), r"^order must lie between 1 and 10"),
        (lambda: RFSpike(spikes=(3, 1)), r"^spikes must go from low to high"),
    ],
)
def test_strengths_that_cannot_be_are_refused(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("artefact", "message"),
    [
        (RFSpike(), "amplitude: it counts in k-space maxima.* leave them out"),
        (Zipper(amplitude=1), "amplitude: it counts in the largest magnitude.* leave them out"),
        (
            KSpaceNoise(snr_db=1),
            "snr_db: images that are 0 everywhere have no SNR; give sigma, or leave empty images out",
        ),
    ],
)
def test_a_strength_relative_to_nothing_is_refused(artefact, message):
    images = torch.zeros(2, 5, 6, dtype=torch.complex64)
    with pytest.raises(ValueError, match=message):
        artefact.apply(images, artefact.draw((2, 5, 6), np.random.default_rng(1)))


# ------------------------------------------------------------------------------------------------ bias field


@pytest.mark.parametrize("shape", [(2, 16, 15), (3, 6, 1, 8), (2, 6, 9, 7)])
def test_the_bias_field_has_its_strength_and_geometric_mean_one(shape):
    artefact = BiasField(strength=0.35)
    drawn = artefact.draw(shape, np.random.default_rng(4))
    images = random_images(shape)
    factor = artefact.apply(torch.from_numpy(images), drawn).numpy() / images
    logarithm = np.log(factor.real)
    assert np.abs(factor.imag).max() < EXACT
    np.testing.assert_allclose(factor, np.broadcast_to(field_of(drawn), shape), rtol=EXACT)
    assert abs(logarithm.mean()) < EXACT
    assert np.ptp(logarithm) == pytest.approx(0.7, rel=1e-11)
    assert drawn.severity == 0.35


def test_the_bias_field_is_the_exponential_of_legendre_polynomials():
    coefficients = ((0.1, -0.2, 0.05), (-0.3, 0.04, 0.2))
    logarithm = np.log(field_of(BiasFieldDrawn((11, 8), 1.0, 0.0, coefficients, ((), ()))))
    # centres of the voxels, the edges of the field of view at -1 and 1
    v, u = (np.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (11, 8))
    f, g = (
        sum(c * eval_legendre(degree, place) for degree, c in enumerate(row, 1))
        for row, place in zip(coefficients, (v, u), strict=True)
    )
    expected = f[:, None] + g[None, :]
    np.testing.assert_allclose(logarithm, expected - expected.mean(), atol=1e-14)


def test_draws_of_the_bias_field():
    drawn = [BiasField(strength=(0.1, 0.3), order=2).draw((1, 9, 8), np.random.default_rng(s)) for s in range(100)]
    coefficients = np.array([one.coefficients for one in drawn])
    assert coefficients.shape == (100, 2, 2)
    # both signs, of every coefficient
    assert (np.mean(coefficients > 0, 0) > 0.3).all()
    assert (np.mean(coefficients < 0, 0) > 0.3).all()
    # brighter at either side
    assert 30 < sum(field_of(one)[0, 0] > 1 for one in drawn) < 95
    with pytest.raises(ValueError, match=r"^shape: \(1, 1\) is a single voxel"):
        BiasField(strength=0.2).draw((4, 1, 1), np.random.default_rng(1))
    assert BiasField(strength=0).draw((4, 1, 1), np.random.default_rng(1)).severity == 0


@pytest.mark.parametrize("artefact", [Zipper(amplitude=0.4), BiasField(strength=0.4)])
@pytest.mark.parametrize("shape", [(2, 10, 9), (2, 5, 6, 7)])
def test_zipper_and_bias_field_are_the_same_whatever_is_in_k_space(artefact, shape):
    images = random_images(shape)
    first, *others = in_every_domain(artefact, images, artefact.draw(shape, np.random.default_rng(8)))
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-12)


# ------------------------------------------------------------------------------------------------- magnitude


@pytest.mark.parametrize(
    ("dtype", "scales"), [(np.complex64, (1, 1e-15, 1e15, 1e-30, 1e30)), (np.complex128, (1, 1e200, 1e-200))]
)
def test_the_fast_magnitude_is_the_modulus(dtype, scales):
    rng = np.random.default_rng(5)
    for scale in scales:
        images = ((rng.normal(size=5000) + 1j * rng.normal(size=5000)) * scale).astype(dtype)
        images[:3] = 0, scale, -1j * scale
        expected = np.hypot(images.real.astype(np.longdouble), images.imag.astype(np.longdouble))
        eps = np.finfo(dtype).eps
        # three roundings: two squares and their sum, halved by the root, and the root
        for given in (torch.from_numpy(images), torch.from_numpy(images.conj()).conj()):
            np.testing.assert_allclose(magnitude(given).numpy().astype(np.longdouble), expected, rtol=2 * float(eps))


def test_what_underflows_is_less_than_a_rounding_of_the_largest_value():
    images = torch.tensor([1e-11, 1e-22, 3e-25, 1e-40], dtype=torch.complex64)
    off = magnitude(images).double() - images.abs().double()
    assert float(off.abs().max()) <= 1e-11 * torch.finfo(torch.float32).eps


def test_the_gradient_of_the_magnitude_is_finite_where_there_is_no_signal():
    images = torch.tensor([3 + 4j, 0j], requires_grad=True)
    (gradient,) = torch.autograd.grad(magnitude(images).sum(), images)
    np.testing.assert_allclose(gradient.numpy(), [0.6 + 0.8j, 0], atol=1e-7)


def test_a_receive_phase_leaves_the_magnitude_and_spans_what_was_asked():
    images = torch.from_numpy(random_images((2, 17, 12, 9)))
    artefact = BiasField(strength=0.0, phase=0.7, order=2)
    drawn = artefact.draw((2, 17, 12, 9), np.random.default_rng(3))
    there = artefact.apply(images, drawn)
    torch.testing.assert_close(there.abs(), images.abs(), rtol=1e-12, atol=0)
    phase = torch.angle(there / images)
    assert float(phase.max() - phase.min()) == pytest.approx(1.4, rel=1e-12)
    assert float(phase.mean()) == pytest.approx(0, abs=1e-12)
    assert drawn.severity == pytest.approx(0.7)
    # a size and a phase together, on all images alike
    both = BiasField(strength=0.4, phase=0.3)
    factor = both.apply(images, both.draw((2, 17, 12, 9), np.random.default_rng(4))) / images
    torch.testing.assert_close(factor[0], factor[1], rtol=1e-12, atol=0)
    logarithm = factor[0].abs().log()
    assert float(logarithm.max() - logarithm.min()) == pytest.approx(0.8, rel=1e-12)
