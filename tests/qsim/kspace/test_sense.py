"""Folding against the transform of the lines that are kept; unfolding, g and sigma against inverses and replicas."""

import sys
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import rice

from qsim.estimators import build_estimator
from qsim.kspace.coils import (
    Acceleration,
    CoilArray,
    NeighbourCoilNoise,
    Receiver,
    Unfolding,
    coil_noise,
    matched,
    receive,
    sense,
    undersample,
    unfolding,
)
from qsim.signals import SpinLock
from tests.qsim.kspace.oracle import dft, inverse_dft, random_images

CASES = [
    ((8, 9), (2,), (-2,)),
    ((9, 8), (3,), (-2,)),
    ((10, 6), (5,), (-2,)),
    ((7, 12), (4,), (-1,)),
    ((6, 10, 3), (3, 2), (-3, -2)),
    ((4, 9, 5), (3, 2), (-2, -3)),
    ((5, 6), (1,), (-2,)),
    ((2, 6), (2,), (-2,)),
]


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def psi_of(coils):
    return NeighbourCoilNoise(rho=0.4).covariance(CoilArray(coils=coils).loops())


@pytest.mark.parametrize(("space", "factors", "axes"), CASES)
def test_folding_is_the_transform_of_the_lines_that_are_kept(space, factors, axes):
    images = random_images((2, 3, *space))
    kspace = dft(images, axes)
    for factor, axis in zip(factors, axes, strict=True):
        n = images.shape[axis]
        lines = np.flatnonzero((np.arange(n) - n // 2) % factor == 0)
        kspace = np.take(kspace, lines, axis)
    folded = undersample(torch.from_numpy(images), Acceleration(factors=factors, axes=axes))
    np.testing.assert_allclose(folded, inverse_dft(kspace, axes), atol=1e-12)


@pytest.mark.parametrize(("space", "factors", "axes"), CASES)
def test_unfolding_inverts_folding(space, factors, axes):
    acceleration = Acceleration(factors=factors, axes=axes)
    # three rows in 3D: two cannot tell three slices apart near the middle
    array = CoilArray(coils=24, rows=len(space) * 2 - 3, first_angle=0.2)
    sensitivities = array.sensitivities(space, dtype=torch.complex128)
    images = torch.from_numpy(random_images((2, *space)))
    for psi in (None, psi_of(24)):
        result = sense(undersample(images[:, None] * sensitivities, acceleration), sensitivities, acceleration, psi)
        # rounding grows with the square of g
        assert float((result.images - images).abs().max()) < 1e-12 * max(1.0, float(result.g.max()) ** 2)
        assert float(result.g.min()) > 1 - 1e-9
        assert result.images.shape == images.shape


def test_g_and_sigma_are_those_of_the_written_out_inverse():
    space, acceleration, psi = (8, 6), Acceleration(factors=(4,)), psi_of(6)
    sensitivities = CoilArray(coils=6).sensitivities(space, dtype=torch.complex128)
    result = unfolding(sensitivities, acceleration, psi)
    s, inverse = sensitivities.numpy(), np.linalg.inv(psi.numpy())
    for y in range(8):
        # 2 voxels of the folded image: those that differ by a multiple of 2 fold onto each other
        rows = [(y + 2 * j) % 8 for j in range(4)]
        for x in range(6):
            columns = s[:, rows, x]
            normal = columns.conj().T @ inverse @ columns
            share = np.linalg.inv(normal)[0, 0].real
            assert float(result.g[y, x]) == pytest.approx(sqrt(share * normal[0, 0].real), rel=1e-10)
            assert float(result.noise[y, x]) == pytest.approx(2 * sqrt(share), rel=1e-10)


def test_unfolding_in_pieces_is_unfolding_at_once(monkeypatch):
    sensitivities, acceleration = CoilArray(coils=6).sensitivities((8, 7)), Acceleration(factors=(2,))
    whole = unfolding(sensitivities, acceleration, psi_of(6))
    monkeypatch.setattr(sys.modules[Unfolding.__module__], "_VOXELS", 5)
    parts = unfolding(sensitivities, acceleration, psi_of(6))
    torch.testing.assert_close(parts.weights, whole.weights)
    torch.testing.assert_close(parts.g, whole.g)


def test_without_acceleration_it_is_the_matched_filter():
    sensitivities = CoilArray(coils=5).sensitivities((6, 7), dtype=torch.complex128)
    images = torch.from_numpy(random_images((3, 5, 6, 7)))
    result = sense(images, sensitivities, Acceleration(factors=(1,)), psi_of(5))
    torch.testing.assert_close(result.images, matched(images, sensitivities, psi_of(5)), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.g, torch.ones(6, 7, dtype=torch.float64), atol=1e-12, rtol=0)


def test_orthogonal_coils_pay_only_the_square_root_of_r():
    """Two coils, each seeing one half: nothing to unfold, g = 1, SD = sqrt(2) sigma."""
    sensitivities = torch.zeros(2, 8, 3, dtype=torch.complex64)
    sensitivities[0, :4], sensitivities[1, 4:] = 1, 1j
    result = unfolding(sensitivities, Acceleration(factors=(2,)))
    torch.testing.assert_close(result.g, torch.ones(8, 3))
    torch.testing.assert_close(result.noise, torch.full((8, 3), sqrt(2)))


@pytest.mark.parametrize(
    ("space", "factors", "axes"), [((12, 5), (3,), (-2,)), ((12, 5), (4,), (-2,)), ((4, 6, 3), (2, 3), (-3, -2))]
)
def test_sigma_map_is_the_sd_of_replicas(space, factors, axes):
    acceleration, sigma, count = Acceleration(factors=factors, axes=axes), 0.3, 4000
    sensitivities = CoilArray(coils=8, rows=2).sensitivities(space, dtype=torch.complex128)
    receiver = Receiver.of(sensitivities, psi_of(8), "sense", acceleration)
    truth = torch.from_numpy(random_images((1, *space)))
    received = receiver(truth.expand(count, *space), sigma, generator())
    z = ((received.images - truth) / received.sigma).flatten(1).numpy()
    voxels = z.shape[1]
    for channel in (z.real, z.imag):
        ratio = channel.std(0)
        # a voxel: 4.5 standard errors; all together: 3, though voxels that fold onto each other share noise
        assert np.abs(ratio - 1).max() < 4.5 / sqrt(2 * count)
        assert abs(np.mean(ratio) - 1) < 3 * sqrt(acceleration.total) / sqrt(2 * count * voxels)
        assert np.abs(channel.mean(0)).max() < 4.5 / sqrt(count)
    assert float(received.g.max()) > 1.05
    # real and imaginary channel are uncorrelated, so that the magnitude is Rician
    assert np.abs((z.real * z.imag).mean(0)).max() < 4.5 / sqrt(count)
    mean, variance = rice.stats((truth.abs() / received.sigma).flatten().numpy())
    size = (received.images.abs() / received.sigma).flatten(1).numpy()
    assert np.all(np.abs(size.mean(0) - mean) < 4.5 * np.sqrt(variance / count))
    # the SD of a Rayleigh magnitude is known a tenth worse than that of a normal number
    assert np.all(np.abs(size.std(0) / np.sqrt(variance) - 1) < 1.1 * 4.5 / sqrt(2 * count))


def test_noise_in_kspace_is_the_noise_of_the_folded_image():
    """Noise of sigma on every line, then lines left out, is noise of sigma in the folded image."""
    noise = coil_noise((1, 1, 400, 300), None, 0.7, generator())
    folded = undersample(noise, Acceleration(factors=(4,)))
    assert float(folded.real.std()) == pytest.approx(0.7, rel=3 / sqrt(2 * folded.numel()))


@pytest.mark.parametrize(("method", "options"), [("least-squares", {}), ("rician", {"coils": 1})])
def test_fits_take_the_sigma_map_and_predict_their_own_sd(method, options):
    model = SpinLock(tsl=(0.0, 0.01, 0.03, 0.06, 0.1))
    space, count, sigma = (9, 3), 1200, 0.004
    acceleration = Acceleration(factors=(3,))
    sensitivities = CoilArray(coils=6).sensitivities(space)
    kappa = torch.stack((torch.full(space, 1.0), torch.full(space, 0.05)))
    # replicas along an axis of their own: one call of the fit
    receiver = Receiver.of(sensitivities, psi_of(6), "sense", acceleration)
    series = model(kappa)
    phase = torch.exp(0.5j * torch.arange(27.0).reshape(9, 3))
    images = (series * phase).to(torch.complex64).repeat(count, 1, 1)
    received = receiver(images, sigma, generator(4))
    assert float(received.sigma.max()) > 1.3 * float(received.sigma.min())
    replicas = received.images.abs().reshape(count, 5, *space).transpose(0, 1).contiguous()
    fit = build_estimator(method, model, {"covariance": True, **options})
    estimate = fit(replicas, sigma=received.sigma.expand(count, *space))
    assert int((estimate.status != 0).sum()) == 0
    found = estimate.kappa[1].double()
    predicted = estimate.variances["noise"][1].double().mean(0).sqrt()
    ratio = (found.std(0) / predicted).numpy()
    # 27 voxels; SD of an SD 1 / sqrt(2 count), and 1 % for the curvature of the fit at this noise
    assert np.abs(ratio - 1).max() < 3.5 / sqrt(2 * count) + 0.01
    assert abs(ratio.mean() - 1) < 3 * sqrt(3) / sqrt(2 * count * 27) + 0.01
    # a single sigma would be wrong somewhere by the spread of the map
    wrong = ratio * (predicted / predicted.mean()).numpy()
    assert np.abs(wrong - 1).max() > 0.2


def test_a_mask_helps_what_folds_onto_nothing():
    space, acceleration = (12, 6), Acceleration(factors=(3,))
    sensitivities = CoilArray(coils=6).sensitivities(space, dtype=torch.complex128)
    mask = torch.zeros(space, dtype=torch.bool)
    mask[4:8] = True
    images = torch.from_numpy(random_images((2, *space))) * mask
    folded = undersample(images[:, None] * sensitivities, acceleration)
    result = sense(folded, sensitivities, acceleration, mask=mask)
    torch.testing.assert_close(result.images, images, atol=1e-12, rtol=0)
    torch.testing.assert_close(result.g, mask.double(), atol=1e-12, rtol=0)
    assert float(result.noise[~mask].abs().max()) == 0
    assert float(unfolding(sensitivities, acceleration).g[mask].mean()) > 1.02


def test_regularisation_shrinks_noise_and_signal_as_its_weights_do():
    space, acceleration, level = (8, 3), Acceleration(factors=(4,)), 0.05
    sensitivities = CoilArray(coils=4).sensitivities(space, dtype=torch.complex128)
    psi = psi_of(4)
    result = unfolding(sensitivities, acceleration, psi, regularisation=level)
    plain = unfolding(sensitivities, acceleration, psi)
    assert bool((result.noise < plain.noise).all())
    s, inverse = sensitivities.numpy(), np.linalg.inv(psi.numpy())
    for y in range(8):
        columns = s[:, [(y + 2 * j) % 8 for j in range(4)], 1]
        normal = columns.conj().T @ inverse @ columns
        solve = np.linalg.inv(normal + level * np.eye(4))
        # covariance of the solution: solve normal solve, times R
        assert float(result.noise[y, 1]) == pytest.approx(2 * sqrt((solve @ normal @ solve)[0, 0].real), rel=1e-10)
    dark = sensitivities.clone()
    dark[:, 2, 1] = 0
    assert float(unfolding(dark, acceleration, psi, regularisation=level).noise[2, 1]) == 0


def test_single_precision_is_double_precision_rounded():
    acceleration = Acceleration(factors=(3,))
    sensitivities = CoilArray(coils=8).sensitivities((12, 10), dtype=torch.complex128)
    images = torch.from_numpy(random_images((2, 8, 4, 10)))
    double = sense(images, sensitivities, acceleration).images
    single = sense(images.to(torch.complex64), sensitivities.to(torch.complex64), acceleration)
    assert single.images.dtype == torch.complex64
    assert single.g.dtype == torch.float32
    assert float((single.images - double).abs().max()) < 1e-5 * float(double.abs().max())


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e20, 1e30])
def test_unfolding_does_not_depend_on_units(scale):
    acceleration, sensitivities = Acceleration(factors=(2,)), CoilArray(coils=6).sensitivities((8, 7))
    plain = unfolding(sensitivities, acceleration, psi_of(6))
    ours = unfolding(sensitivities * scale, acceleration, psi_of(6))
    torch.testing.assert_close(ours.g, plain.g, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.noise * scale, plain.noise, rtol=1e-5, atol=0)
    folded = torch.from_numpy(random_images((2, 6, 4, 7))).to(torch.complex64)
    # images of the coils in the same units: the object is the same
    torch.testing.assert_close(ours(folded * scale), plain(folded), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": (0,)}, "factors must be at least 1"),
        ({"factors": ()}, "factors must be one for each"),
        ({"factors": (2, 2)}, "factors must be one for each"),
        ({"factors": (2,), "axes": (0,)}, r"axes must be -1 \(x\), -2 \(y\) or -3"),
        ({"factors": (2, 2), "axes": (-2, -2)}, "axes: .* names an axis twice"),
    ],
)
def test_impossible_accelerations_are_refused(fields, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        Acceleration(**fields)


def test_accelerations_that_do_not_fit_are_refused(unchecked):
    sensitivities = CoilArray(coils=4).sensitivities((10, 6))
    images = torch.ones(1, 4, 10, 6, dtype=torch.complex64)
    three = r"^factors: 3 does not divide the 10 voxels of axis -2; crop or pad it to 9 or 12"
    with pytest.raises(ValueError, match=three):
        undersample(images, Acceleration(factors=(3,)))
    with pytest.raises(ValueError, match=three):
        unfolding(sensitivities, Acceleration(factors=(3,)))
    with pytest.raises(ValueError, match=r"^factors: 7 does not divide the 6 voxels of axis -1; pad it to 7"):
        undersample(images, Acceleration(factors=(7,), axes=(-1,)))
    with pytest.raises(ValueError, match=r"^axes: axis -3 does not exist in space of 2 axes"):
        undersample(images, Acceleration(factors=(2,), axes=(-3,)))
    with pytest.raises(ValueError, match=r"^factors: 5 voxels fold onto each other, which 4 coils cannot tell apart"):
        unfolding(sensitivities, Acceleration(factors=(5,)))
    with pytest.raises(ValueError, match=r"^acceleration: sense needs one"):
        receive(torch.ones(1, 10, 6, dtype=torch.complex64), sensitivities, 0.1, generator(), combination="sense")
    with pytest.raises(ValueError, match=r"^acceleration: matched cannot unfold"):
        Receiver.of(sensitivities, None, "matched", Acceleration(factors=(2,)))
    with pytest.raises(ValueError, match=r"^folded images of 4 coils and .* do not fit weights"):
        sense(images, sensitivities, Acceleration(factors=(2,)))
    with pytest.raises(ValueError, match=r"^images must be complex"):
        undersample(images.real, Acceleration(factors=(2,)))
    with pytest.raises(ValueError, match=r"^regularisation must be finite"):
        unfolding(sensitivities, Acceleration(factors=(2,)), regularisation=-1.0)


def test_voxels_that_cannot_be_told_apart_are_refused_with_the_remedy():
    acceleration = Acceleration(factors=(2,))
    same = torch.ones(3, 8, 4, dtype=torch.complex64) * torch.tensor([1, 1j, 0.3])[:, None, None]
    with pytest.raises(ValueError, match=r"^sensitivities: in 16 of 16 places .* choose a smaller factor"):
        unfolding(same, acceleration)
    blind = CoilArray(coils=3).sensitivities((8, 4))
    blind[:, 5, 1] = 0
    with pytest.raises(ValueError, match=r"^sensitivities: some voxels are seen by no coil; leave them out by a mask"):
        unfolding(blind, acceleration)
    seen = torch.ones(8, 4, dtype=torch.bool)
    seen[5, 1] = False
    assert float(unfolding(blind, acceleration, mask=seen).noise[5, 1]) == 0
