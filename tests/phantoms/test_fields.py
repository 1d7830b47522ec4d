"""Fields against the Gaussian kernel, CODATA, published pulses, and direct simulation; and what they refuse."""

from math import exp, sqrt

import numpy as np
import pytest
import torch

from phantoms.fields import ChemicalShift, Place, PulseInversion, Rows, ShimBox, SmoothB0, SmoothB1
from phantoms.fields import SmoothInversionEfficiency as SmoothEfficiency
from phantoms.fields.pulse_table import Box, pulse_table, simulate
from phantoms.fields.smooth import DEFAULT_B0, DEFAULT_B1, Waves
from phantoms.maps import mixture
from qsim.distributions import Constant, HalfNormal, Normal, Uniform
from qsim.errors import InputError
from qsim.signals import InversionPulse
from qsim.signals.pulses import hs1


def place(origin=(0, 0), patch=(6, 8), spacing=(2.0, 1.5), extent=(40, 60), slice_axis=None, block=None):
    return Place(
        origin=origin,
        block=block or patch,
        spacing_mm=spacing,
        extent=extent,
        slice_axis=slice_axis,
        patch=patch,
    )


def rows_of(samples, patch, tissues=("wm", "fat"), **values):
    """Two tissues in every voxel, 70 and 30 %, rows the same in both."""
    fractions = torch.empty(samples, 2, *patch)
    fractions[:, 0], fractions[:, 1] = 0.7, 0.3
    voxels = mixture(fractions, True)
    return Rows(
        maps={row: torch.full((samples, *patch), value) for row, value in values.items()},
        minor={row: torch.full((len(voxels.minor.share),), value) for row, value in values.items()},
        mixture=voxels,
        tissues=tissues,
    )


def rng(seed):
    return np.random.Generator(np.random.Philox(seed))


def applied(field, places, ranges=None, seeds=None, **values):
    rows = rows_of(len(places), places[0].patch, **values)
    field.apply(rows, places, [rng(s) for s in (seeds or range(len(places)))], ranges or {})
    return rows


# --- smooth random fields -----------------------------------------------------------------------------------------


def test_waves_have_the_covariance_of_the_gaussian_kernel():
    """E[g(r) g(r')] = exp(-d^2 / 2 l^2), within 4 Monte Carlo errors, along both axes and the diagonal."""
    n, length = 4000, 12.0
    where = place(patch=(7, 9), spacing=(3.0, 2.0))
    fields = np.stack([Waves.draw(rng(i), 2, length).at(where) for i in range(n)])
    assert abs(fields.mean()) < 4 / sqrt(n)  # each field is nearly one number: l is as long as the patch
    for at, other in [((0, 0), (0, 0)), ((0, 0), (0, 8)), ((0, 0), (6, 0)), ((1, 2), (5, 7)), ((3, 3), (3, 4))]:
        product = fields[:, *at] * fields[:, *other]
        distance = np.hypot(*((np.array(at) - other) * (3.0, 2.0)))
        expected = exp(-(distance**2) / (2 * length**2))
        assert product.mean() == pytest.approx(expected, abs=4 * product.std() / sqrt(n)), (at, other)


def test_waves_are_the_sum_of_their_cosines():
    """One cosine per wave and voxel; the factors are rounded to 2^-21, 128 of them at random: error of order 1e-6."""
    waves = Waves.draw(rng(1), 3, 20.0)
    for axis, patch in ((2, (5, 7)), (0, (5, 7)), (None, (5, 7, 4))):
        block = patch if axis is None else (*patch[:axis], 1, *patch[axis:])
        where = Place(
            origin=(3, 4, 5), block=block, spacing_mm=(1.0, 2.0, 3.0), extent=None, slice_axis=axis, patch=patch
        )
        r = np.stack(np.meshgrid(*(where.positions(a) for a in range(3)), indexing="ij"), axis=-1)
        expected = np.cos(r @ waves.frequency.T + waves.phase).sum(-1) * sqrt(2 / 64)
        np.testing.assert_allclose(waves.at(where), expected.reshape(patch), atol=1e-5, rtol=0)


def test_patches_of_one_field_agree_where_they_overlap():
    field = SmoothB0()
    whole = applied(field, [place(patch=(30, 40))], seeds=[7], DELTA_B0=0.0).maps["DELTA_B0"][0]
    part = applied(field, [place(origin=(11, 5), patch=(6, 8))], seeds=[7], DELTA_B0=0.0).maps["DELTA_B0"][0]
    assert torch.equal(whole[11:17, 5:13], part)
    # slices of a block too
    block = Place((2, 3, 4), (5, 6, 7), (1.0, 1.0, 2.0), None, 0, (5, 6, 7))
    slice_ = Place((4, 3, 4), (1, 6, 7), (1.0, 1.0, 2.0), None, 0, (6, 7))
    waves = Waves.draw(rng(3), 3, 15.0)
    np.testing.assert_array_equal(waves.at(block).astype(np.float32)[2], waves.at(slice_).astype(np.float32))


def test_b0_has_the_percentiles_of_the_liver():
    """Roberts 2021: 5th to 95th percentile -31.7 to 164.0 Hz at 3 T, -14.5 to 81.3 Hz at 1.5 T."""
    for strength, (low, high) in {3.0: (-31.7, 164.0), 1.5: (-14.5, 81.3)}.items():
        field = SmoothB0(field_strength=strength)
        maps = applied(field, [place(patch=(1, 1))] * 4000, DELTA_B0=0.0).maps["DELTA_B0"].numpy().ravel()
        # error of a 5 % quantile: sqrt(.05 .95 / 4000) / density(1.645) SD = .033 SD
        for share, expected in ((5, low), (95, high)):
            assert np.percentile(maps, share) == pytest.approx(expected, abs=4 * 0.034 * (high - low) / 3.29)


def test_b1_has_the_percentiles_of_the_liver_and_stays_positive():
    """Roberts 2021: 5th to 95th percentile 0.59 to 1.13 at 3 T, 0.83 to 1.11 at 1.5 T."""
    for strength, (low, high) in {3.0: (0.59, 1.13), 1.5: (0.83, 1.11)}.items():
        field = SmoothB1(field_strength=strength)
        maps = applied(field, [place(patch=(1, 1))] * 4000, REL_B1=1.0).maps["REL_B1"].numpy().ravel()
        for share, expected in ((5, low), (95, high)):
            assert np.percentile(maps, share) == pytest.approx(expected, rel=4 * 0.034 * np.log(high / low) / 3.29)
    wild = applied(SmoothB1(sd=Constant(value=2.0)), [place()] * 50, REL_B1=1.0).maps["REL_B1"]
    assert (wild > 0).all()


def test_fields_of_one_row_add_up_and_b1_multiplies():
    b0 = SmoothB0(mean=Constant(value=20.0), sd=Constant(value=0.0))
    b1 = SmoothB1(mean=Constant(value=0.9), sd=Constant(value=0.0))
    rows = rows_of(1, (3, 4), DELTA_B0=5.0, REL_B1=0.8)
    for field in (b0, b0, b1, b1):
        field.apply(rows, [place(patch=(3, 4))], [rng(1)], {})
    for of in (rows.maps, rows.minor):
        torch.testing.assert_close(of["DELTA_B0"], torch.full_like(of["DELTA_B0"], 45.0))
        torch.testing.assert_close(of["REL_B1"], torch.full_like(of["REL_B1"], 0.8 * 0.81))


def test_minor_tissues_get_the_field_of_their_voxel():
    rows = applied(SmoothB0(), [place(patch=(4, 5)), place(patch=(4, 5))], DELTA_B0=0.0)
    minor = rows.mixture.minor
    expected = rows.maps["DELTA_B0"].flatten(1)[minor.sample, minor.voxel]
    assert torch.equal(rows.minor["DELTA_B0"], expected)


def test_efficiency_moves_its_logit_and_keeps_its_bounds():
    shift = 0.7
    field = SmoothEfficiency(mean=Constant(value=shift), sd=Constant(value=0.0))
    for b in (1.3, 1.5, 1.95):
        eta = b - 1
        expected = 1 + 1 / (1 + (1 - eta) / eta * exp(-shift))
        assert applied(field, [place()], B=b).maps["B"].mean().item() == pytest.approx(expected, rel=1e-6)
    wild = SmoothEfficiency(mean=Normal(mean=0.0, sd=5.0), sd=Constant(value=5.0))
    for b in (1.0, 1.001, 1.9, 2.0):
        maps = applied(wild, [place()] * 40, B=b).maps["B"]
        assert ((maps >= 1) & (maps <= 2)).all()
        assert (maps.std() == 0) == (b in (1.0, 2.0))


def test_every_region_has_defaults_with_a_source_or_says_that_it_has_none():
    for table in (DEFAULT_B0, DEFAULT_B1):
        assert {key[1] for key in table} == {1.5, 3.0}
        assert all("doi" in source or source == "to be sourced" for *_, source in table.values())


# --- shim box -----------------------------------------------------------------------------------------------------


def test_the_left_half_of_the_image_is_flat():
    field = ShimBox()
    whole = place(patch=(40, 60))
    rows = applied(field, [whole] * 5, DELTA_B0=3.0, REL_B1=0.9)
    b0, b1 = rows.maps["DELTA_B0"], rows.maps["REL_B1"]
    # voxels 0 to 29 of 60 lie in the left half, and so do their borders
    assert (b0[..., :30] == 3.0).all()
    assert (b1[..., :30] == np.float32(0.9)).all()
    assert (b0[..., 31:] != 3.0).any((1, 2)).all()
    # worse and worse: mean absolute offset over samples grows with the distance
    offset = applied(field, [whole] * 400, DELTA_B0=0.0, REL_B1=1.0)
    rms = offset.maps["DELTA_B0"].square().mean((0, 1)).sqrt()
    assert (rms[31:].diff() > 0).all()
    # w(d) = 1 - exp(-d^2 / 2 fall^2), d from the border of the box at 30 voxels of 1.5 mm
    d = (59.5 - 30) * 1.5
    assert field.weight(whole)[0, 59] == pytest.approx(1 - exp(-(d**2) / (2 * 80.0**2)), rel=1e-9)


def test_the_box_is_where_the_volume_says_not_the_patch():
    field = ShimBox(b0_sd=Constant(value=0.0), b0=Constant(value=100.0), rows=("DELTA_B0",))
    whole = field.weight(place(patch=(40, 60)))
    np.testing.assert_array_equal(field.weight(place(origin=(7, 25), patch=(5, 20))), whole[7:12, 25:45])
    high = ShimBox(side="high").weight(place(patch=(40, 60)))
    np.testing.assert_allclose(high, whole[:, ::-1], atol=1e-12)
    rows = ShimBox(axis=0).weight(place(patch=(40, 60)))
    assert (rows[:20] == 0).all()
    assert (rows[21:] > 0).all()


@pytest.mark.parametrize(("slice_axis", "x"), [(0, 2), (1, 2), (2, 1)])
def test_the_last_axis_of_a_slice_is_its_x(slice_axis, x):
    extent = (10, 12, 14)
    patch = tuple(n for a, n in enumerate(extent) if a != slice_axis)
    block = tuple(1 if a == slice_axis else n for a, n in enumerate(extent))
    weight = ShimBox().weight(Place((0, 0, 0), block, (2.0, 2.0, 2.0), extent, slice_axis, patch))
    assert weight.shape == patch
    assert (weight[:, : extent[x] // 2] == 0).all()
    assert (weight[:, extent[x] // 2 :] > 0).all()


def test_a_box_that_has_no_place_is_refused():
    with pytest.raises(InputError, match="this phantom does not tell the extent"):
        ShimBox().weight(place(extent=None))
    flat = Place((0, 0, 0), (1, 4, 4), (1.0, 1.0, 1.0), (9, 9, 9), 0, (4, 4))
    with pytest.raises(InputError, match=r"^axis must lie in the patch \(axis 1, 2 of the volume\), got 0"):
        ShimBox(axis=0).weight(flat)
    with pytest.raises(InputError, match="got 2"):
        ShimBox(axis=2).weight(place())


# --- chemical shift -----------------------------------------------------------------------------------------------


def test_fat_at_3_tesla():
    """42.577478518 MHz/T x 3 T x -3.4 ppm = -434.3 Hz, and half of it at 1.5 T; fat is the minor tissue here."""
    rows = applied(ChemicalShift(tissues=("fat",)), [place()], DELTA_B0=10.0)
    assert (rows.maps["DELTA_B0"] == 10.0).all()
    torch.testing.assert_close(rows.minor["DELTA_B0"], torch.full_like(rows.minor["DELTA_B0"], 10.0 - 434.29))
    assert ChemicalShift(field_strength=1.5).shift == pytest.approx(-217.1, abs=0.05)
    rows = applied(ChemicalShift(tissues=("wm",)), [place()], DELTA_B0=10.0)
    assert (rows.minor["DELTA_B0"] == 10.0).all()
    assert rows.maps["DELTA_B0"].mean().item() == pytest.approx(10.0 - 434.29, abs=0.01)
    with pytest.raises(InputError, match="the phantom holds no marrow; it has wm, fat"):
        applied(ChemicalShift(tissues=("marrow",)), [place()], DELTA_B0=0.0)


# --- inversion through a pulse ------------------------------------------------------------------------------------

# the pulse of the published figures
HS1 = {"duration": 0.01024, "max_b1": 800.0, "beta": 672.0, "mu": 5.0}
ADIABATIC = PulseInversion(pulse=InversionPulse(pulse="HS1", **HS1))
# ranges of T1, T2 [s], B1 [1], B0 [Hz]
WIDE = {"T1": (0.2, 4.0), "T2": (0.01, 3.0), "REL_B1": (0.4, 1.6), "DELTA_B0": (-550.0, 250.0)}
FLAT = {"T1": (0.2, 4.0), "T2": (0.01, 3.0), "REL_B1": (1.0, 1.0), "DELTA_B0": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("b1", "t1", "t2", "mz"),
    [
        (1.0, 1.2, 0.045, -0.9066),
        (0.7, 1.2, 0.045, -0.9286),
        (0.5, 1.2, 0.045, -0.9422),
        (1.0, 1.4, 0.05, -0.9151),
        (0.7, 1.4, 0.05, -0.9358),
        (0.5, 1.4, 0.05, -0.9480),
    ],
)
def test_published_inversions(b1, t1, t2, mz):
    """Independent matrix exponentials: HS1, 800 Hz, beta 672 1/s, mu 5, 10.24 ms, truncated, 2000 steps."""
    rows = applied(ADIABATIC, [place(patch=(2, 2))], ranges=WIDE, B=1.7, T1=t1, T2=t2, REL_B1=b1, DELTA_B0=0.0)
    # printed to 4 digits, table to 1e-4
    assert rows.maps["B"].numpy() == pytest.approx(1 - mz, abs=1.5e-4)
    assert rows.minor["B"].numpy() == pytest.approx(1 - mz, abs=1.5e-4)


def test_the_table_equals_the_simulation():
    """Over the whole box, 2000 random voxels: the promised 1e-4."""
    pulse = hs1(**HS1)
    for ranges in (WIDE, FLAT):
        box = Box((1 / 4.0, 5.0), (1 / 3.0, 100.0), ranges["REL_B1"], ranges["DELTA_B0"])
        table = pulse_table(pulse, box)
        draws = np.random.default_rng(5)
        r1, r2, b1, b0 = (torch.from_numpy(draws.uniform(low, high, 2000)) for low, high in box.sides)
        torch.testing.assert_close(
            table.mz(1 / r1, 1 / r2, b1, b0), simulate(pulse, r1, r2, b1, b0), atol=1e-4, rtol=0.0
        )


def test_voxels_outside_the_table_are_simulated_not_clamped():
    pulse = hs1(**HS1)
    table = pulse_table(pulse, Box((1 / 4.0, 5.0), (1 / 3.0, 100.0), (1.0, 1.0), (0.0, 0.0)))
    t1, t2 = torch.tensor([1.2, 1.2, 1.2]), torch.tensor([0.045, 0.045, 0.005])
    b1, b0 = torch.tensor([1.0, 0.5, 1.0]), torch.tensor([0.0, 30.0, 0.0])
    expected = simulate(pulse, *(x.double() for x in (1 / t1, 1 / t2, b1, b0)))
    torch.testing.assert_close(table.mz(t1, t2, b1, b0).double(), expected, atol=1e-4, rtol=0.0)


def test_a_hard_pulse_inverts_by_its_angle():
    """eta = -cos(pi b1) = .9511 (b1 .9), .8090 (b1 .8)."""
    field = PulseInversion(pulse=InversionPulse(pulse="hard"))
    assert field.uses == ("REL_B1",)
    for b1, eta in ((0.9, 0.9511), (0.8, 0.8090), (1.0, 1.0)):
        assert applied(field, [place()], B=0.0, REL_B1=b1).maps["B"].mean().item() == pytest.approx(1 + eta, abs=1e-4)


def test_a_table_without_end_is_refused():
    with pytest.raises(InputError, match=r"cannot span DELTA_B0 from -inf to 3; truncate"):
        pulse_table(hs1(**HS1), Box((1.0, 2.0), (1.0, 2.0), (1.0, 1.0), (-float("inf"), 3.0)))
    with pytest.raises(InputError, match=r"would simulate its pulse at \d+ points, more than 2000000; narrow"):
        pulse_table(hs1(**HS1), Box((1.0, 2.0), (1.0, 2.0), (0.1, 9.0), (-1e5, 1e5)))


# --- ranges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        SmoothB0(mean=Normal(mean=5.0, sd=10.0), sd=Uniform(low=5.0, high=30.0)),
        SmoothB1(mean=Uniform(low=0.7, high=1.1), sd=Constant(value=0.2)),
        SmoothEfficiency(),
        ShimBox(),
        ChemicalShift(tissues=("fat",)),
    ],
)
def test_a_field_stays_in_the_ranges_it_names(field):
    """Of 2000 independent voxels, at most a few in a million may lie outside."""
    before = {"DELTA_B0": (0.0, 0.0), "REL_B1": (1.0, 1.0), "B": (1.9, 1.9)}
    after = field.ranges(before)
    # so far from a shim box that it gives no help
    far = place(origin=(5, 590), patch=(1, 1), extent=(40, 600))
    rows = applied(field, [far] * 2000, DELTA_B0=0.0, REL_B1=1.0, B=1.9)
    for row in field.changes:
        low, high = after[row]
        values = torch.cat([rows.maps[row].ravel(), rows.minor[row]]).double()
        assert ((values >= low - 1e-5) & (values <= high + 1e-5)).all(), row
        # and the range is not absurdly wide: at most some 10 times what was seen
        assert high - low < 10 * (values.max() - values.min() + 1e-3)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothB0(field_strength=7.0), "field_strength must be 1.5 or 3.0 T, got 7"),
        (lambda: SmoothB0(sd=Normal(mean=1.0, sd=1.0)), "sd must not be negative, but its distribution reaches -inf"),
        (lambda: SmoothB0(length_mm=0.0), "length_mm must be above 0 mm, got 0"),
        (lambda: SmoothB1(mean=Uniform(low=-0.1, high=1.0)), "mean must stay above 0"),
        (lambda: SmoothEfficiency(length_mm=float("inf")), "length_mm must be above 0"),
        (lambda: SmoothEfficiency().ranges({"B": (0.9, 2.0)}), "B must lie between 1 and 2"),
        (lambda: ShimBox(share=1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: ShimBox(fall_mm=-1.0), "fall_mm must be above 0 mm"),
        (lambda: ShimBox(rows=()), "rows must name DELTA_B0, REL_B1 or both"),
        (lambda: ShimBox(rows=("REL_B1", "REL_B1")), "rows must name"),
        (lambda: ShimBox(b1=Constant(value=0.0)), "b1 must stay above 0"),
        (lambda: ShimBox(b0_sd=Constant(value=-1.0)), "b0_sd must not be negative"),
        (lambda: SmoothB1(sd=Constant(value=200.0)), "sd must be at most 2, but its distribution reaches 200"),
        (lambda: SmoothB1(sd=HalfNormal(scale=1e300)), "sd must be at most 2, but its distribution reaches 4.8"),
        (lambda: ShimBox(b1_sd=Constant(value=200.0)), "b1_sd must be at most 2, but its distribution reaches 200"),
        (
            lambda: SmoothEfficiency(sd=Constant(value=200.0)),
            "sd and mean shift the logit of the efficiency by up to 951",
        ),
        (lambda: ChemicalShift(tissues=()), "tissues is empty"),
        (lambda: ChemicalShift(tissues=("fat", "fat")), "tissues: a name occurs twice"),
        (lambda: ChemicalShift(ppm=-434.0), "ppm must lie between -100 and 100"),
        (lambda: ChemicalShift(field_strength=-3.0), "field_strength must be in tesla"),
    ],
)
def test_impossible_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()
