"""Whether negative values are inverted magnetisation or noise: shares of energy that are known in closed form."""

from pathlib import Path

import numpy as np
import pytest

from phantoms.series import Series, model_and_notes, model_for
from phantoms.series.sign import find_sign, negative_energy
from qsim.errors import InputError
from qsim.signals import InversionRecovery, SpinEcho

TI = (0.1, 0.5, 1.5)


def with_share(energy, space=(2, 3, 5), **changes):
    """Every voxel is (1, r, -r') with that share of negative energy."""
    r = np.sqrt(energy / (1 - energy) * (1 + 0.25))
    volumes = tuple(np.full(space, value, dtype=np.float64) for value in (1.0, 0.5, -r))
    return Series("x", (), volumes, "InversionTime", TI, **changes)


@pytest.mark.parametrize("energy", [0.02, 0.3, 0.7])
def test_the_share_is_that_of_the_closed_form(energy):
    """Single precision, and the same in slabs: 400 x 400 voxels are more than one."""
    assert negative_energy(with_share(energy)) == pytest.approx(energy, rel=1e-6)
    assert negative_energy(with_share(energy, (3, 400, 400))) == pytest.approx(energy, rel=1e-6)


def test_air_dark_voxels_and_what_is_not_finite_do_not_count():
    series = with_share(0.2, (1, 20, 20))
    volumes = [volume.copy() for volume in series.volumes]
    for volume in volumes:
        # up to 0.29 of the brightest, all negative
        volume[0, :10] = -0.29
    volumes[1][0, 15, 3] = np.nan
    volumes[1][0, 15, 4] = np.inf
    found = negative_energy(Series("x", (), tuple(volumes), "InversionTime", TI))
    # 200 bright voxels, of which two lack the 0.25 of their second image
    whole = 1.25 / 0.8
    assert found == pytest.approx(200 * 0.2 * whole / (200 * whole - 2 * 0.25), rel=1e-6)
    nothing = Series("x", (), (np.full((1, 2, 2), np.nan),) * 3, "InversionTime", TI)
    assert negative_energy(nothing) == 0


def test_three_answers():
    for energy, signed in ((0.049, False), (0.301, True), (0.6, True)):
        found, (note,) = find_sign((with_share(energy),))
        assert found is signed
        assert f"{100 * energy:.2g} %" in note
        assert ("taken for noise around magnitudes (--signed yes keeps" in note) is not signed
        assert model_for(with_share(energy)) == InversionRecovery(ti=TI, signed=signed)
    for energy in (0.051, 0.299):
        with pytest.raises(InputError, match=r"^--signed: missing; negative values hold .* --signed yes if"):
            model_for(with_share(energy))
        for signed in (True, False):
            assert model_for(with_share(energy), signed=signed) == InversionRecovery(ti=TI, signed=signed)
    # of repeats that with the largest share counts
    assert find_sign((with_share(0.01), with_share(0.5)))[0]
    none = Series("x", (), (np.ones((1, 1, 1)),) * 3, "InversionTime", TI)
    assert find_sign((none,)) == (False, ())


def test_noise_at_snr_5_stays_a_magnitude_and_an_inverted_tissue_does_not():
    """Where the limits come from: voxels of T1 0.3 to 1.5 s, early and late times."""
    rng, times = np.random.default_rng(3), np.array([0.05, 0.3, 0.8, 2.0])
    t1 = np.linspace(0.3, 1.5, 400).reshape(1, 20, 20)
    signal = 1 - 2 * np.exp(-times[:, None, None, None] / t1)
    noise = rng.normal(0, 0.2, signal.shape)
    for images, signed in ((np.abs(signal) + noise, False), (signal + noise, True)):
        series = Series("x", (), tuple(images), "InversionTime", tuple(times))
        assert series.signed
        assert model_for(series).signed is signed


def test_names_of_real_parts_decide():
    files = tuple(Path(f"sub-01_inv-{n}_part-real_IRT1.nii") for n in (1, 2, 3))
    series = with_share(0.1)
    named = Series("x", files, series.volumes, "InversionTime", TI)
    model, (note,) = model_and_notes((named,))
    assert model.signed
    assert "part-real" in note
    assert not model_for(named, signed=False).signed


def test_decays_have_no_sign():
    series = with_share(0.15)
    decay = Series("x", (), series.volumes, "EchoTime", TI)
    model, (note,) = model_and_notes((decay,))
    assert model == SpinEcho(te=TI)
    assert note.startswith("SpinEcho is never negative")
    assert model_and_notes((decay,), signed=False)[0] == model
    with pytest.raises(InputError, match=r"^--signed: does not go with SpinEcho"):
        model_for(decay, signed=True)
    kept = Series("x", (), tuple(np.abs(v) for v in series.volumes), "EchoTime", TI)
    assert model_and_notes((kept,))[1] == ()
