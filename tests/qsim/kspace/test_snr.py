"""SNR and sigma: one number in several words, and noise that has it."""

from math import sqrt

import numpy as np
import pytest
import torch

from qsim.kspace import snr
from qsim.kspace.noise import REFERENCE_SIGNAL, sigma_of
from tests.qsim.kspace.oracle import dft, random_images


def test_decibels_of_powers_and_of_amplitudes():
    assert snr.to_decibels(1000.0) == pytest.approx(30, rel=1e-15)
    assert snr.amplitude_to_decibels(1000.0) == pytest.approx(60, rel=1e-15)
    # doubling: 3.0103 dB of power, 6.0206 dB of amplitude
    assert snr.to_decibels(2.0) == pytest.approx(3.0103, abs=1e-4)
    assert snr.amplitude_to_decibels(2.0) == pytest.approx(6.0206, abs=1e-4)
    for decibels in (-10.0, 0.0, 13.7):
        assert snr.to_decibels(snr.from_decibels(decibels)) == pytest.approx(decibels, abs=1e-12)
        assert snr.amplitude_to_decibels(snr.amplitude_from_decibels(decibels)) == pytest.approx(decibels, abs=1e-12)
        assert snr.from_decibels(decibels) == pytest.approx(snr.amplitude_from_decibels(decibels) ** 2, rel=1e-14)


def test_the_linear_snr_of_the_project_in_decibels():
    # SNR 100, 10 and 3 of docs/conventions.md are 40, 20 and 9.54 dB
    for linear, decibels in [(100.0, 40.0), (10.0, 20.0), (3.0, 9.5424)]:
        assert snr.amplitude_snr_db(REFERENCE_SIGNAL, sigma_of(linear)) == pytest.approx(decibels, abs=1e-4)
        assert snr.sigma_of_amplitude_snr_db(0.65, decibels) == pytest.approx(0.65 / linear, rel=1e-5)


def test_the_power_of_one_constant_image_is_3_db_under_its_amplitude():
    images = torch.full((2, 5, 7), 0.65 * (0.6 + 0.8j), dtype=torch.complex128)
    difference = snr.amplitude_snr_db(0.65, 0.1) - snr.power_snr_db(images, 0.1)
    assert difference == pytest.approx(10 * np.log10(2), abs=1e-12)


def test_empty_background_lowers_the_power_snr():
    images = torch.from_numpy(random_images((1, 8, 8)))
    wider = torch.nn.functional.pad(images, (4, 4))
    assert snr.power_snr_db(images, 0.3) - snr.power_snr_db(wider, 0.3) == pytest.approx(10 * np.log10(2), abs=1e-12)


def test_power_is_the_mean_square_in_the_image_and_in_k_space():
    images = random_images((3, 7, 6))
    power = np.mean(images.real**2 + images.imag**2)
    assert snr.mean_power(torch.from_numpy(images)) == pytest.approx(power, rel=1e-12)
    assert snr.mean_power(torch.from_numpy(images).conj()) == pytest.approx(power, rel=1e-12)
    assert snr.mean_power(torch.from_numpy(dft(images, (-2, -1)))) == pytest.approx(power, rel=1e-12)
    # squares that single precision cannot hold
    assert snr.mean_power(torch.full((4, 4), 1e25, dtype=torch.complex64)) == pytest.approx(1e50, rel=1e-6)
    assert snr.mean_power(torch.full((4, 4), 1e-30, dtype=torch.complex64)) == pytest.approx(1e-60, rel=1e-6)


@pytest.mark.parametrize("decibels", [-10.0, 3.3, 20.0])
def test_noise_of_that_sigma_has_that_snr(decibels):
    images = torch.from_numpy(random_images((2, 9, 8)))
    sigma = snr.sigma_of_power_snr_db(images, decibels)
    assert snr.power_snr_db(images, sigma) == pytest.approx(decibels, abs=1e-12)
    rng = np.random.default_rng(3)
    n = 200_000
    noise = sigma * (rng.normal(size=n) + 1j * rng.normal(size=n))
    ratio = np.mean(np.abs(images.numpy()) ** 2) / np.mean(np.abs(noise) ** 2)
    # the power of n complex normals has a relative standard error of 1 / sqrt(n)
    assert ratio == pytest.approx(10 ** (decibels / 10), rel=3 / sqrt(n))


def test_what_has_no_snr_is_refused(unchecked):
    nothing = torch.zeros(2, 4, 4, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"^snr_db: images that are 0 everywhere have no SNR; give sigma"):
        snr.sigma_of_power_snr_db(nothing, 10.0)
    with pytest.raises(ValueError, match=r"^power_ratio must be positive"):
        snr.power_snr_db(nothing, 0.1)
    with pytest.raises(ValueError, match=r"^sigma must be positive and finite, got 0"):
        snr.power_snr_db(nothing + 1, 0.0)
    with pytest.raises(ValueError, match=r"^signal must be positive"):
        snr.sigma_of_amplitude_snr_db(-1.0, 10.0)
    with pytest.raises(ValueError, match=r"^ratio must be positive and finite, got inf"):
        snr.amplitude_to_decibels(float("inf"))
    with pytest.raises(ValueError, match="must be complex"):
        snr.mean_power(torch.ones(4, 4))


@pytest.mark.parametrize("decibels", [1e5, -1e5, float("inf"), float("nan")])
def test_decibels_that_no_number_holds_are_refused(decibels):
    for change in (snr.from_decibels, snr.amplitude_from_decibels):
        with pytest.raises(ValueError, match=r"^decibels must lie in \[-3000, 3000\] dB"):
            change(decibels)
    with pytest.raises(ValueError, match=r"^snr_db must lie in \[-200, 200\] dB"):
        snr.sigma_of_amplitude_snr_db(1.0, decibels)
    with pytest.raises(ValueError, match=r"^snr_db must lie in \[-200, 200\] dB"):
        snr.sigma_of_power_snr_db(torch.ones(1, 4, 4, dtype=torch.complex64), decibels)
