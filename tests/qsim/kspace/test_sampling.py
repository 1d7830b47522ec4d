"""Which samples of k-space are kept: low-pass, Gibbs, wrap and partial Fourier, against sums written out."""

from math import cos, pi, sqrt

import numpy as np
import pytest
import torch
from scipy.special import sici

from qsim.distributions import Uniform
from qsim.kspace import Gibbs, LowPass, PartialFourier, Wraparound, corrupt
from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts import gibbs
from qsim.kspace.artefacts.partial_fourier import PartialFourierDrawn
from qsim.kspace.artefacts.wraparound import WraparoundDrawn
from qsim.kspace.chain import apply_chain
from tests.qsim.kspace.oracle import dft, inverse_dft, random_images

# identities in complex128, values of order 1 to 10
EXACT = 1e-12
SHAPES = [(2, 16, 15), (1, 11, 12), (2, 6, 9, 8), (1, 1, 10, 7)]
ENDS = [LowPass(factor=3), Gibbs(kept=0.6), Gibbs(kept=0.6, support="ellipse"), Wraparound(), PartialFourier()]


def applied(artefact, images, seed=1):
    """Images after a draw, and the draw."""
    drawn = artefact.draw(images.shape, np.random.default_rng(seed))
    return artefact.apply(torch.from_numpy(images), drawn).numpy(), drawn


def numbers(n):
    return np.arange(n) - n // 2


def along(vector, axis, ndim):
    return vector.reshape([-1 if a == axis % ndim else 1 for a in range(ndim)])


def point(shape, at):
    """One voxel: its energy is even over k-space."""
    images = np.zeros(shape, dtype=complex)
    images[(0, *at)] = 2 - 1j
    return images


@pytest.mark.parametrize("artefact", ENDS, ids=lambda a: a.kind)
@pytest.mark.parametrize("shape", [(1, 16, 15), (1, 7, 10, 9)])
def test_severity_is_the_share_of_energy_that_a_point_loses(artefact, shape):
    images = point(shape, (3, 5, 2)[: len(shape) - 1])
    there, drawn = applied(artefact, images)
    kept = np.sum(np.abs(there) ** 2) / np.sum(np.abs(images) ** 2)
    assert 0 < drawn.severity < 1
    assert drawn.severity == pytest.approx(1 - kept, abs=EXACT)


@pytest.mark.parametrize("artefact", ENDS[:3], ids=lambda a: a.kind)
@pytest.mark.parametrize("shape", SHAPES)
def test_symmetric_supports_keep_real_objects_real(artefact, shape):
    there, _ = applied(artefact, random_images(shape).real.astype(complex))
    assert np.abs(there.imag).max() < EXACT


# ------------------------------------------------------------------------------------------------- low-pass


@pytest.mark.parametrize("shape", SHAPES)
def test_a_low_pass_is_a_centred_box_on_each_axis_and_keeps_the_energy_inside(shape):
    images, ndim = random_images(shape), len(shape)
    for axes, factor in [((-1,), 2.3), ((-2,), 3.7), ((-1, -2), 1.6)]:
        there, drawn = applied(LowPass(factor=factor, axes=axes), images)
        boxed = dft(images, axes)
        for axis in axes:
            n = shape[axis]
            boxed = boxed * along(np.abs(numbers(n)) <= n / (2 * factor), axis, ndim)
        np.testing.assert_allclose(there, inverse_dft(boxed, axes), atol=EXACT)
        # Parseval
        assert np.sum(np.abs(there) ** 2) == pytest.approx(np.sum(np.abs(boxed) ** 2), rel=EXACT)
        assert drawn.axes == tuple(sorted(a % ndim - 1 for a in axes))


def test_the_factor_that_comes_out_is_noted():
    images = torch.from_numpy(random_images((1, 16, 21)))
    result = corrupt(images, [LowPass(factor=2, axes=(-2, -1))], np.random.default_rng(1))
    # |k| <= 4 of 16 are 9 lines; |k| <= 5.25 of 21 are 11
    assert result.facts[0]["factors"] == [16 / 9, 21 / 11]
    # a width that is a whole number but for rounding keeps its lines: 20 x 1.25 / 2.5 = 10
    assert LowPass(factor=10 / 7, axes=(-1,)).draw((1, 4, 20), np.random.default_rng(1)).half_widths == (7,)


def test_a_stripe_survives_or_vanishes_and_is_never_folded():
    x = np.arange(48)
    for k, height in [(5, 1.0), (9, 0.0), (-11, 0.0)]:
        stripe = np.exp(2j * pi * k * x / 48)[None, None] * np.ones((1, 3, 1))
        there, _ = applied(LowPass(factor=3, axes=(-1,)), stripe)
        np.testing.assert_allclose(there, height * stripe, atol=EXACT)


def test_hamming_is_the_published_window():
    stripes = {k: np.exp(2j * pi * k * np.arange(40) / 40)[None, None] for k in (0, 3, -5, 6)}
    for k, stripe in stripes.items():
        there, _ = applied(LowPass(factor=4, axes=(-1,), window="hamming"), stripe)
        # half width 5: 0.54 + 0.46 cos(pi k / 6)
        height = 0.54 + 0.46 * cos(pi * k / 6) if abs(k) <= 5 else 0
        np.testing.assert_allclose(there, height * stripe, atol=EXACT)


def test_axes_and_factors_are_drawn():
    rng = np.random.default_rng(3)
    draws = [LowPass().draw((1, 64, 64, 64), rng) for _ in range(700)]
    counts = [sum(d.axes == axes for d in draws) for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))]
    assert sum(counts) == 700
    # seven sets, each as likely: 100 +- 9.3; 4 standard errors
    assert max(abs(count - 100) for count in counts) < 37
    widths = [half for d in draws for half in d.half_widths]
    # 64 / (2 x 2 ... 12)
    assert (min(widths), max(widths)) == (2, 15)
    assert len({d.half_widths for d in draws if len(d.axes) == 3}) > 50, "every axis has a factor of its own"
    for count, lengths in [(2, {2}), ((1, 2), {1, 2}), (3, {3})]:
        assert {len(LowPass(n_axes=count).draw((1, 9, 9, 9), rng).axes) for _ in range(30)} == lengths


# ---------------------------------------------------------------------------------------------------- Gibbs


@pytest.mark.parametrize("edge", [1024, 1300])
def test_an_ideal_edge_overshoots_by_the_wilbraham_gibbs_constant(edge):
    images = np.zeros((1, 3, 4096), dtype=complex)
    images[..., 400 : 400 + edge] = 1
    there, _ = applied(Gibbs(kept=1 / 16), images)
    overshoot = float(there.real.max() - 1)
    wilbraham = sici(pi)[0] / pi - 0.5
    assert wilbraham == pytest.approx(0.08949, abs=1e-5)
    # edges far apart and ripples of 32 voxels: what is left of the other edge and of the grid is below .002
    assert overshoot == pytest.approx(wilbraham, abs=2e-3)
    assert float(there.real.min()) == pytest.approx(-wilbraham, abs=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("support", ["box", "ellipse"])
def test_keeping_all_is_the_identity_in_two_and_three_dimensions(shape, support):
    images = random_images(shape)
    there, drawn = applied(Gibbs(kept=1, support=support), images)
    assert drawn.severity == 0
    assert np.array_equal(there, images)
    # corners are the last to be reached
    assert Gibbs(kept=0.8, support=support).draw((1, 12, 12, 12), np.random.default_rng(1)).severity > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [0.31, 0.55, 0.83])
def test_box_and_ellipse_keep_the_samples_that_they_say(shape, kept):
    images, axes = random_images(shape), tuple(range(1, len(shape)))
    u = [along(2 * numbers(shape[a]) / shape[a], a, len(shape)) for a in axes]
    dimensions = sum(shape[a] > 1 for a in axes)
    inside = {
        "box": np.prod(np.broadcast_arrays(*[np.abs(each) <= kept for each in u]), axis=0).astype(bool),
        "ellipse": sum(each**2 for each in u) <= dimensions * kept**2,
    }
    for support, mask in inside.items():
        there, drawn = applied(Gibbs(kept=kept, support=support), images)
        np.testing.assert_allclose(there, inverse_dft(dft(images, axes) * mask, axes), atol=EXACT)
        assert drawn.samples == mask.sum()


@pytest.mark.parametrize("slab", [1, 100, 10**6])
@pytest.mark.parametrize("shape", [(2, 16, 15), (1, 7, 6, 9), (1, 1, 10, 7), (3, 5, 1)])
def test_slab_by_slab_is_the_whole_transform(monkeypatch, shape, slab):
    monkeypatch.setattr(gibbs, "_SLAB", slab)
    images = torch.from_numpy(random_images(shape))
    start = Acquired.of(images, None)
    for kept in (0.05, 0.4, 0.77, 0.95):
        artefact = Gibbs(kept=kept)
        drawn = artefact.draw(shape, np.random.default_rng(1))
        there = artefact.act(start.brought(kspace=range(len(start.space))), drawn).images()
        fast = gibbs.boxed(start.values, [int(kept * n / 2) for n in start.space])
        torch.testing.assert_close(fast.reshape(shape), there, rtol=0, atol=EXACT)
        torch.testing.assert_close(artefact.apply(images, drawn), there, rtol=0, atol=EXACT)


# ----------------------------------------------------------------------------------------------------- wrap


@pytest.mark.parametrize(("n", "factor", "offset"), [(12, 2, 0), (12, 2, 1), (12, 3, 2), (15, 5, 3), (16, 4, 1)])
def test_every_rth_line_folds_the_image_into_r_copies(n, factor, offset):
    images = random_images((2, n, 7))
    there, drawn = applied(Wraparound(factor=factor, offset=offset, axis=-2), images)
    copies = sum(
        np.roll(images, j * n // factor, axis=1) * np.exp(2j * pi * j * offset / factor) for j in range(factor)
    )
    np.testing.assert_allclose(there, copies / factor, atol=EXACT)
    assert drawn.severity == pytest.approx(1 - 1 / factor)


@pytest.mark.parametrize(("n", "factor", "offset"), [(13, 2, 0), (16, 3, 2), (15, 4, 1), (11, 6, 5)])
def test_copies_stand_between_voxels_where_r_does_not_divide_n(n, factor, offset):
    images = random_images((1, 3, 4, n))
    there, _ = applied(Wraparound(factor=factor, offset=offset, axis=-1), images)
    expected = np.zeros_like(images)
    for j in range(factor):
        # m(x - j N / R) by the Fourier series of m
        moved = inverse_dft(dft(images, (-1,)) * np.exp(-2j * pi * numbers(n) * j / factor), (-1,))
        expected += moved * np.exp(2j * pi * j * offset / factor) / factor
    np.testing.assert_allclose(there, expected, atol=EXACT)


def test_a_partial_strength_fades_the_copies_in():
    images = random_images((1, 12, 10))
    wrapped, _ = applied(Wraparound(factor=3, offset=1, axis=-2), images)
    half, drawn = applied(Wraparound(factor=3, offset=1, axis=-2, strength=0.3), images)
    np.testing.assert_allclose(half, 0.7 * images + 0.3 * wrapped, atol=EXACT)
    assert drawn.severity == pytest.approx(0.3 * 2 / 3)


def test_random_lines_are_removed_outside_the_centre():
    rng = np.random.default_rng(2)
    artefact = Wraparound(pattern="random", omitted=0.4, centre=0.25, axis=-2)
    hits = np.zeros(32)
    for _ in range(500):
        drawn = artefact.draw((1, 32, 9), rng)
        assert len(drawn.removed) == 13
        hits[np.array(drawn.removed) + 16] += 1
    # 8 lines around k = 0
    assert hits[12:20].sum() == 0
    # 13 of 24 lines: 500 x .54 +- 11; 4.5 standard errors
    assert np.abs(np.delete(hits, range(12, 20)) - 500 * 13 / 24).max() < 50
    images = random_images((2, 32, 9))
    there = artefact.apply(torch.from_numpy(images), drawn).numpy()
    lines = dft(images, (1,))
    lines[:, np.array(drawn.removed) + 16] = 0
    np.testing.assert_allclose(there, inverse_dft(lines, (1,)), atol=EXACT)


def test_random_omission_leaves_copies_like_noise():
    """A point spreads evenly: the variance over voxels of the rest is that of lines drawn without replacement."""
    n, omitted = 400, 160
    there, _ = applied(Wraparound(pattern="random", omitted=omitted / n, axis=-1), point((1, 2, n), (1, 77)))
    there = np.abs(there[0, 1] / (2 - 1j)) ** 2
    assert there[77] == pytest.approx((1 - omitted / n) ** 2, abs=EXACT)
    rest = np.delete(there, 77)
    share = omitted / n
    # Parseval: sum over voxels of |psf|^2 is the share of lines that is kept
    assert rest.mean() == pytest.approx((1 - share) * share / (n - 1), rel=1e-9)
    # |psf|^2 of noise is exponential: the highest of 399 is about ln 399 = 6 means
    assert rest.max() < 12 * rest.mean()
    # regular omission puts it all in few copies instead
    regular, _ = applied(Wraparound(factor=2, axis=-1), point((1, 2, n), (1, 77)))
    assert np.count_nonzero(np.abs(regular[0, 1]) > 1e-9) == 2


def test_lines_around_the_middle_are_kept_of_a_regular_pattern_too():
    drawn = Wraparound(factor=3, offset=0, centre=0.3, axis=-1).draw((1, 4, 20), np.random.default_rng(1))
    assert drawn.removed == (-10, -8, -7, -5, -4, 4, 5, 7, 8)
    assert (drawn.factor, drawn.offset) == (3, 0)


def test_factor_offset_and_axis_are_drawn():
    rng = np.random.default_rng(1)
    draws = [Wraparound(factor=(2, 4)).draw((1, 3, 1, 9), rng) for _ in range(200)]
    assert {(d.factor, d.offset) for d in draws} == {(r, 0) for r in (2, 3, 4)}
    others = [Wraparound(factor=(3, 4), offset=(0, 2)).draw((1, 5, 9), rng) for _ in range(200)]
    assert {(d.factor, d.offset) for d in others} == {(r, o) for r in (3, 4) for o in range(3)}
    # an axis of one voxel, or shorter than the factor, cannot fold
    assert {(d.factor, d.axis) for d in draws} == {(2, 0), (2, 2), (3, 0), (3, 2), (4, 2)}


@pytest.mark.parametrize("seed", range(12))
def test_a_factor_that_can_be_too_large_is_refused_by_every_draw(seed):
    rng = np.random.default_rng(seed)
    for axis in (None, -2):
        with pytest.raises(ValueError, match=r"^factor: every 20th line cannot be kept of an axis of 12"):
            Wraparound(factor=(2, 20), axis=axis).draw((1, 12, 9), rng)


@pytest.mark.parametrize(("n", "omitted"), [(4, 0.9), (8, 0.95), (2, 0.99), (9, 0.999)])
def test_random_omission_keeps_the_mean_of_the_image(n, omitted):
    images = random_images((1, 3, n))
    for seed in range(20):
        there, drawn = applied(Wraparound(pattern="random", omitted=omitted, axis=-1), images, seed)
        assert 0 not in drawn.removed
        assert len(drawn.removed) == min(round(omitted * n), n - 1)
        np.testing.assert_allclose(there.mean(-1), images.mean(-1), atol=EXACT)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_a_low_pass_and_a_regular_wrap_leave_something(factor):
    images = torch.from_numpy(random_images((1, 10, 9)))
    chain = [LowPass(factor=9, axes=(-2, -1)), Wraparound(factor=factor)]
    for seed in range(10):
        there = corrupt(images, chain, np.random.default_rng(seed)).images
        # only k = 0 is left of the low-pass, and it stays
        torch.testing.assert_close(there, images.mean((1, 2), keepdim=True).expand_as(images), rtol=0, atol=EXACT)


def test_projections_are_ten_unless_they_are_named():
    images = random_images((1, 14, 9))
    first, _ = applied(PartialFourier(reconstruction="pocs"), images)
    named, _ = applied(PartialFourier(reconstruction="pocs", iterations=10), images)
    assert np.array_equal(first, named)


# ------------------------------------------------------------------------------------------- partial Fourier


def missing_lines(n, fraction, side):
    """Lines beyond the measured ones; N/2 of an even axis counts to the side that is measured."""
    top = (n - 1) // 2
    count = n - int(np.ceil(fraction * n - 1e-9))
    return [k if side == "positive" else -k for k in range(top - count + 1, top + 1)]


@pytest.mark.parametrize("n", [16, 15, 2, 3])
@pytest.mark.parametrize("side", ["negative", "positive"])
@pytest.mark.parametrize("fraction", [0.55, 0.625, 0.8])
def test_zero_filling_leaves_out_lines_at_one_end(n, side, fraction):
    images = random_images((2, n, 5))
    there, drawn = applied(PartialFourier(fraction=fraction, axis=-2, side=side), images)
    lines = dft(images, (1,))
    gone = missing_lines(n, fraction, side)
    lines[:, [k + n // 2 for k in gone]] = 0
    np.testing.assert_allclose(there, inverse_dft(lines, (1,)), atol=EXACT)
    assert sorted(drawn.lines) == sorted(gone)
    assert drawn.severity == len(gone) / n < 0.5


@pytest.mark.parametrize("shape", [(2, 16, 15), (1, 15, 16), (2, 6, 9, 8), (1, 1, 10, 7)])
@pytest.mark.parametrize("side", ["negative", "positive"])
@pytest.mark.parametrize("reconstruction", ["conjugate", "homodyne"])
def test_half_of_k_space_is_enough_for_a_real_object(shape, side, reconstruction):
    images = random_images(shape).real.astype(complex)
    for axis in (-1, -2):
        artefact = PartialFourier(fraction=0.52, axis=axis, side=side, reconstruction=reconstruction)
        there, drawn = applied(artefact, images)
        assert drawn.missing >= 2
        np.testing.assert_allclose(there, images, atol=EXACT)


def test_conjugates_are_filled_in_line_by_line():
    images = random_images((2, 5, 14))
    for side in ("negative", "positive"):
        artefact = PartialFourier(fraction=0.6, axis=-1, side=side, reconstruction="conjugate")
        there, _ = applied(artefact, images)
        lines = dft(images, (-1,))
        filled = lines.copy()
        for k in missing_lines(14, 0.6, side):
            filled[..., k + 7] = lines[..., -k + 7].conj()
        np.testing.assert_allclose(there, inverse_dft(filled, (-1,)), atol=EXACT)


@pytest.mark.parametrize("n", [14, 13])
@pytest.mark.parametrize("side", ["negative", "positive"])
def test_homodyne_is_weighted_lines_about_the_phase_of_the_middle(n, side):
    images = random_images((2, 4, n))
    there, _ = applied(PartialFourier(fraction=0.7, axis=-1, side=side, reconstruction="homodyne"), images)
    lines = dft(images, (-1,))
    # 14: 4 missing, 13: 3 missing, so h = 2 or 3
    gone, h = missing_lines(n, 0.7, side), {14: 2, 13: 3}[n]
    low, ramped = np.zeros_like(lines), np.zeros_like(lines)
    for k in numbers(n):
        i = k + n // 2
        if abs(k) <= h:
            low[..., i] = lines[..., i]
            # h = 2: 0, 0, 1/3; h = 3: 0, 0, 0, 1/2
            bent = {2: {2: 1 / 3}, 3: {3: 1 / 2}}[h].get(abs(k), 0)
            ramped[..., i] = lines[..., i] * (1 + bent * (-1 if (k > 0) == (side == "positive") else 1))
        elif 2 * k == -n:
            ramped[..., i] = lines[..., i]
        elif k not in gone:
            ramped[..., i] = 2 * lines[..., i]
    turned = np.exp(1j * np.angle(inverse_dft(low, (-1,))))
    expected = (inverse_dft(ramped, (-1,)) * turned.conj()).real * turned
    np.testing.assert_allclose(there, expected, atol=EXACT)


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("side", ["negative", "positive"])
def test_projections_halve_what_is_missing_of_a_real_object(iterations, side):
    """Re takes the mean of K(k) and K(-k)*: each turn halves the distance, 1 - 2^-n of a missing line is there."""
    images = random_images((1, 14, 9)).real * np.exp(0.7j)
    artefact = PartialFourier(fraction=0.6, axis=-2, side=side, reconstruction="pocs", iterations=iterations)
    there, _ = applied(artefact, images)
    lines = dft(images, (1,))
    lines[:, [k + 7 for k in missing_lines(14, 0.6, side)]] *= 1 - 2.0**-iterations
    np.testing.assert_allclose(there, inverse_dft(lines, (1,)), atol=EXACT)


def test_projections_leave_what_was_measured():
    images = random_images((1, 15, 8))
    there, drawn = applied(PartialFourier(fraction=0.6, axis=-2, reconstruction="pocs"), images)
    measured = np.delete(dft(images, (1,)), [k + 7 for k in drawn.lines], axis=1)
    np.testing.assert_allclose(np.delete(dft(there, (1,)), [k + 7 for k in drawn.lines], axis=1), measured, atol=EXACT)


def smooth_phase_object(n):
    """Discs with sharp edges under a phase of up to 1.5 rad that varies over the field of view."""
    u = numbers(n) / n
    y, x = u[:, None], u[None]
    density = 1.0 * ((y / 0.38) ** 2 + (x / 0.42) ** 2 < 1) + 0.5 * (((y - 0.1) / 0.1) ** 2 + (x / 0.15) ** 2 < 1)
    phase = 0.9 * np.cos(2 * pi * y + 0.3) + 0.6 * np.sin(2 * pi * x + 0.4)
    return (density * np.exp(1j * phase))[None]


@pytest.mark.parametrize("n", [64, 65])
def test_reconstructions_with_phase_come_far_closer_than_zero_filling(n):
    images = smooth_phase_object(n)
    error = {}
    for reconstruction in ("zero_filled", "conjugate", "homodyne", "pocs"):
        there, _ = applied(PartialFourier(fraction=0.625, axis=-2, reconstruction=reconstruction), images)
        error[reconstruction] = np.linalg.norm(there - images) / np.linalg.norm(images)
    # measured: .102, .109, .038, .028 (n = 64) and .097, .103, .033, .025 (n = 65)
    assert error["homodyne"] < 0.45 * error["zero_filled"]
    assert error["pocs"] < 0.33 * error["zero_filled"]
    # phase breaks the symmetry that it takes for granted
    assert error["conjugate"] > error["zero_filled"]
    assert error["pocs"] < 0.03


def test_fractions_are_rounded_up_to_whole_lines():
    rng = np.random.default_rng(1)
    for n, fraction, missing in [
        (10, 0.9, 1),
        (10, 0.7, 3),
        (20, 0.55, 9),
        (100, 0.71, 29),
        (10, 0.51, 4),
        (9, 0.51, 4),
    ]:
        assert PartialFourier(fraction=fraction, axis=-1).draw((1, 4, n), rng).missing == missing
    # never half, whatever the rounding
    assert PartialFourier(fraction=float(np.nextafter(0.5, 1)), axis=-1).draw((1, 4, 10), rng).missing == 4
    draws = [PartialFourier().draw((1, 8, 1, 8), rng) for _ in range(60)]
    assert {(d.side, d.axis) for d in draws} == {(s, a) for s in ("negative", "positive") for a in (0, 2)}


@pytest.mark.parametrize("reconstruction", ["zero_filled", "conjugate", "homodyne", "pocs"])
def test_nothing_missing_is_the_identity_with_phase_too(reconstruction):
    images = random_images((2, 9, 8))
    there, drawn = applied(PartialFourier(fraction=1, reconstruction=reconstruction), images)
    assert drawn.severity == 0
    assert np.array_equal(there, images)


# ---------------------------------------------------------------------------------------------------- chain


@pytest.fixture
def transforms(monkeypatch):
    """Axes of every transform that is made."""
    made = []
    for name in ("fftn", "ifftn"):
        whole = getattr(torch.fft, name)

        def counted(values, *, dim, norm, name=name, whole=whole):
            made.append((name, dim))
            return whole(values, dim=dim, norm=norm)

        monkeypatch.setattr(torch.fft, name, counted)
    return made


def test_neighbours_share_the_transforms_of_an_axis(transforms):
    images = torch.from_numpy(random_images((2, 6, 12, 9)))
    artefacts = [LowPass(factor=1.5, axes=(-2,)), Wraparound(factor=2, axis=-2), PartialFourier(axis=-2)]
    drawn = [a.draw(images.shape, np.random.default_rng(i)) for i, a in enumerate(artefacts)]
    together = apply_chain(images, artefacts, drawn).images
    assert transforms == [("fftn", (3,)), ("ifftn", (3,))]
    one_by_one = images
    for artefact, chosen in zip(artefacts, drawn, strict=True):
        one_by_one = artefact.apply(one_by_one, chosen)
    assert len(transforms) == 2 + 6
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=EXACT)


@pytest.mark.parametrize("reconstruction", ["zero_filled", "conjugate", "homodyne", "pocs"])
@pytest.mark.parametrize("shape", [(2, 10, 9), (1, 6, 7, 8)])
def test_a_chain_is_its_artefacts_one_by_one(shape, reconstruction):
    images = torch.from_numpy(random_images(shape))
    artefacts = [
        LowPass(factor=1.4),
        Gibbs(kept=0.8, support="ellipse"),
        PartialFourier(reconstruction=reconstruction),
        Wraparound(),
        Gibbs(kept=0.7),
    ]
    drawn = [a.draw(images.shape, np.random.default_rng(i)) for i, a in enumerate(artefacts)]
    one_by_one = images
    for artefact, chosen in zip(artefacts, drawn, strict=True):
        one_by_one = artefact.apply(one_by_one, chosen)
    torch.testing.assert_close(apply_chain(images, artefacts, drawn).images, one_by_one, rtol=0, atol=EXACT)


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowPass(factor=0.5), "factor must be at least 1"),
        (lambda: LowPass(factor=(4, 2)), "factor must go from low to high"),
        (lambda: LowPass(axes=()), "axes is empty"),
        (lambda: LowPass(axes=(-1.0,)), "axes must be a whole number, got -1.0"),
        (lambda: LowPass(axes=(-1,), n_axes=1), "n_axes is for axes that are drawn"),
        (lambda: LowPass(n_axes=0), r"n_axes must lie in \[1, 3\]"),
        (lambda: LowPass(probability=2), "probability must lie"),
        (lambda: LowPass(window="hann"), "window must be box or hamming"),
        (lambda: Gibbs(kept=0), r"kept must lie in \(0, 1\], got 0"),
        (lambda: Gibbs(kept=1.2), r"kept must lie in \[0, 1\]"),
        (lambda: Gibbs(support="sphere"), "support must be box or ellipse"),
        (lambda: Wraparound(pattern="spiral"), "pattern must be regular or random"),
        (lambda: Wraparound(factor=1), "factor must be at least 2"),
        (lambda: Wraparound(factor=(2, 4), offset=2), "offset must be at least 0 and below every factor"),
        (lambda: Wraparound(factor=4, offset=(1, 4)), "offset must be at least 0 and below every factor"),
        (lambda: Wraparound(factor=4, offset=(2, 1)), "offset must go from low to high"),
        (lambda: Wraparound(omitted=0.3), "omitted is for the random pattern"),
        (lambda: Wraparound(pattern="random", factor=2), "factor is for the regular pattern"),
        (lambda: Wraparound(pattern="random", offset=0), "offset is for the regular pattern"),
        (lambda: Wraparound(pattern="random", omitted=1), "omitted must stay below 1"),
        (lambda: Wraparound(pattern="random", omitted=0.6, centre=0.5), "omitted must stay below 1 and leave"),
        (lambda: Wraparound(strength=1.5), "strength must lie"),
        (lambda: Wraparound(centre=-0.1), "centre must lie"),
        (lambda: PartialFourier(fraction=0.5), r"fraction must lie in \(0.5, 1\]"),
        (lambda: PartialFourier(fraction=(0.6, 1.1)), "fraction must lie"),
        (lambda: PartialFourier(fraction=Uniform(low=0.4, high=0.9)), "fraction must lie"),
        (lambda: PartialFourier(side="left"), "side must be negative or positive"),
        (lambda: PartialFourier(reconstruction="cs"), "reconstruction must be zero_filled, conjugate"),
        (lambda: PartialFourier(iterations=99), "iterations are those of pocs; leave them out with zero_filled"),
        (lambda: PartialFourier(reconstruction="pocs", iterations=0), "iterations must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(unchecked, make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("artefact", "shape", "message"),
    [
        (LowPass(axes=(-3,)), (1, 8, 8), "axes: axis -3 does not exist"),
        (LowPass(axes=(-1, -1)), (1, 8, 8), "axes: .* names an axis twice"),
        (LowPass(n_axes=3), (1, 8, 8), "n_axes: up to 3 axes cannot be drawn from 2"),
        (Wraparound(axis=-3), (1, 8, 8), "axis: axis -3 does not exist"),
        (Wraparound(factor=5, axis=-1), (1, 8, 4), "factor: every 5th line cannot be kept of an axis of 4"),
        (Wraparound(factor=5), (1, 4, 4), "factor: every 5th line cannot be kept of an axis of 4"),
        (Wraparound(pattern="random"), (1, 1, 1), r"axis: none of \(1, 1\) voxels has 2 lines"),
        (PartialFourier(axis=-3), (1, 8, 8), "axis: axis -3 does not exist"),
        (PartialFourier(axis=0), (1, 8, 8), "axis: got 0; axes count from the end: -1 is x"),
        (PartialFourier(), (1, 1, 1), "axis: none of"),
        (Gibbs(), (1, 0, 8), "shape: .* has an empty axis"),
    ],
)
def test_images_that_cannot_be_are_refused(artefact, shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        artefact.draw(shape, np.random.default_rng(1))


def test_draws_name_what_was_drawn():
    assert WraparoundDrawn((8, 8), 0, (1, 3), 0.5).severity == 0.125
    assert PartialFourierDrawn((9, 8), 0, "positive", 3).lines == (2, 3, 4)
    assert PartialFourierDrawn((8, 8), 0, "negative", 2).lines == (-2, -3)
    assert sqrt(Gibbs(kept=0.5).draw((1, 8, 8), np.random.default_rng(1)).samples) == 5
