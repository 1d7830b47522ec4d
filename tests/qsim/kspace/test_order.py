"""Order of k-space: schedules by hand, the transform line by line in numpy, published widths of the point spread."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.kspace.order import Acquisition, Subspace, echo_of_centre, echo_of_line, encode_exact, encode_exact_affine


def table(rows=None, **keys):
    acquisition = Acquisition(**keys)
    return echo_of_line(acquisition, acquisition.lines if rows is None else rows).tolist()


def by_line(signal, echoes):
    """The image of (e, *lead, y, x): one sum per line and voxel, centred transform, numpy."""
    n = len(echoes)
    k, y = np.arange(n) - n // 2, np.arange(n)
    image = np.zeros(signal.shape[1:], complex)
    for line in range(n):
        wave = np.exp(-2j * np.pi * k[line] * y / n)
        spectrum = np.einsum("...yx,y->...x", signal[echoes[line]], wave)
        image += np.einsum("...x,y->...yx", spectrum, wave.conj()) / n
    return image


# --- which echo measures which line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "echoes"),
    [
        ({"lines": 8, "shots": 2, "order": "linear"}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"lines": 8, "shots": 2, "order": "segmented"}, [0, 1, 2, 3, 0, 1, 2, 3]),
        # distances 4 3 2 1 0 1 2 3; ranks 7 5 3 1 0 2 4 6: the negative side leads
        ({"lines": 8, "shots": 1, "order": "centric"}, [7, 5, 3, 1, 0, 2, 4, 6]),
        ({"lines": 8, "shots": 2, "order": "centric"}, [3, 2, 1, 0, 0, 1, 2, 3]),
        ({"lines": 7, "shots": 1, "order": "centric"}, [5, 3, 1, 0, 2, 4, 6]),
        ({"lines": 9, "shots": 3, "order": "linear"}, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ({"lines": 6, "shots": 6, "order": "segmented"}, [0] * 6),
    ],
)
def test_the_schedule(keys, echoes):
    assert table(**keys) == echoes
    assert echo_of_centre(Acquisition(**keys)) == echoes[keys["lines"] // 2]


@given(n_echoes=st.integers(1, 9), shots=st.integers(1, 5), order=st.sampled_from(["linear", "centric", "segmented"]))
def test_each_echo_measures_as_many_lines_as_there_are_shots(n_echoes, shots, order):
    echoes = table(lines=n_echoes * shots, shots=shots, order=order)
    assert np.bincount(echoes, minlength=n_echoes).tolist() == [shots] * n_echoes


@given(lines=st.integers(1, 40), rows=st.integers(1, 60), order=st.sampled_from(["linear", "centric", "segmented"]))
def test_a_patch_takes_the_nearest_line_in_spatial_frequency(lines, rows, order):
    own = table(lines=lines, order=order)
    for k, echo in enumerate(table(rows=rows, lines=lines, order=order)):
        # in whole numbers: |k / rows - K / lines| x rows x lines
        distance = [abs((k - rows // 2) * lines - (j - lines // 2) * rows) for j in range(lines)]
        nearest = [j for j in range(lines) if distance[j] == min(distance)]
        # of two the one towards DC
        assert echo == own[min(nearest, key=lambda j: abs(j - lines // 2))]


def test_the_centre_of_a_patch_is_the_centre_of_the_schedule():
    acquisition = Acquisition(lines=64, shots=4, order="linear")
    for rows in (5, 16, 40, 64, 100):
        assert echo_of_line(acquisition, rows)[rows // 2] == echo_of_centre(acquisition)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lines": 0}, "lines must be at least 1, got 0"),
        ({"lines": 4, "shots": 0}, "shots must be at least 1, got 0"),
        ({"lines": 10, "shots": 4}, r"lines must be a multiple of shots \(4\), got 10"),
        ({"lines": 8, "order": "spiral"}, "order"),
        ({"lines": 8, "encoding": "fast"}, "encoding"),
        ({"lines": 8, "rank": 0}, "rank must be at least 1, got 0"),
        ({"lines": 8, "shots": 4, "encoding": "subspace"}, "rank must not exceed the 2 echoes of a train, got 4"),
    ],
)
def test_refusals(keys, message):
    # an unknown word may be refused by beartype before the class does
    with pytest.raises(Exception, match=message):
        Acquisition(**keys)


def test_a_rank_that_is_not_used_is_not_judged():
    assert Acquisition(lines=2).rank == 4


def test_an_image_has_rows():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        echo_of_line(Acquisition(lines=4), 0)


# --- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 12, 64])
def test_equal_echoes_give_the_image_back(rows):
    rng = np.random.default_rng(1)
    image = torch.tensor(rng.normal(size=(3, rows, 5)))
    echoes = torch.tensor(rng.integers(0, 4, rows))
    got = encode_exact(image.expand(4, -1, -1, -1), echoes)
    # rounding of two transforms of at most 64 rows
    torch.testing.assert_close(got, image.to(torch.complex128), atol=1e-14, rtol=0)


@settings(deadline=None)
@given(
    rows=st.integers(1, 23), lead=st.sampled_from([(), (2,), (2, 3)]), is_complex=st.booleans(), seed=st.integers(0, 99)
)
def test_every_line_is_transformed_from_its_own_echo(rows, lead, is_complex, seed):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(5, *lead, rows, 4))
    if is_complex:
        signal = signal + 1j * rng.normal(size=signal.shape)
    echoes = rng.integers(0, 5, rows)
    got = encode_exact(torch.tensor(signal), torch.tensor(echoes)).numpy()
    np.testing.assert_allclose(got, by_line(signal, echoes), atol=1e-13, rtol=0)


@pytest.mark.parametrize(("gain_is_complex", "mz_is_complex"), [(False, False), (True, False), (True, True)])
def test_the_affine_form_is_the_signal_written_out(gain_is_complex, mz_is_complex):
    rng = np.random.default_rng(2)
    gain, offset, mz = (rng.normal(size=(n, 2, 9, 6)) for n in (5, 5, 3))
    gain = gain * (1 + 0.3j) if gain_is_complex else gain
    offset = offset * (0.2 - 1j) if gain_is_complex else offset
    mz = mz * (0.7 + 0.1j) if mz_is_complex else mz
    echoes = np.array([3, 1, 4, 1, 0, 2, 2, 0, 4])
    got = encode_exact_affine(*(torch.tensor(x) for x in (gain, offset, mz, echoes))).numpy()
    want = by_line(offset[:, None] + gain[:, None] * mz, echoes)
    np.testing.assert_allclose(got, want, atol=1e-13, rtol=0)


def test_parts_of_any_size_give_the_same_image(monkeypatch):
    rng = np.random.default_rng(3)
    signal, echoes = torch.tensor(rng.normal(size=(6, 12, 7))), torch.tensor(rng.integers(0, 6, 12))
    whole = encode_exact(signal, echoes)
    monkeypatch.setattr("qsim.kspace.order._BLOCK", 84)
    torch.testing.assert_close(encode_exact(signal, echoes), whole, atol=1e-15, rtol=0)


def test_float32_follows_float64():
    rng = np.random.default_rng(4)
    signal, echoes = torch.tensor(rng.normal(size=(8, 64, 9))), torch.tensor(rng.integers(0, 8, 64))
    double, single = encode_exact(signal, echoes), encode_exact(signal.float(), echoes)
    assert single.dtype == torch.complex64
    # sqrt(64) roundings of 6e-8 on values of order 1
    torch.testing.assert_close(single.to(torch.complex128), double, atol=2e-6, rtol=0)


def test_gradients_of_the_image():
    rng = np.random.default_rng(5)
    signal = torch.tensor(rng.normal(size=(3, 6, 2)), requires_grad=True)
    echoes = torch.tensor([2, 0, 1, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda s: encode_exact(s, echoes), (signal,))


# --- the bits of an image -------------------------------------------------------------------------------------------

# odd, even, prime; rows and columns
SHAPES = [(17, 19), (31, 33), (41, 41), (63, 63), (95, 95), (40, 41), (16, 16), (5, 1), (64, 48)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_complex", [False, True])
def test_an_image_has_the_same_bits_alone_in_any_batch_and_anywhere_in_memory(shape, is_complex):
    rng = np.random.default_rng(11)
    dtype = torch.complex64 if is_complex else torch.float32
    signal, gain, offset = (torch.tensor(rng.normal(size=(7, n, 5, *shape)), dtype=dtype) for n in (3, 1, 1))
    gain, offset, mz = gain[:, 0], offset[:, 0], torch.tensor(rng.normal(size=(3, 5, *shape)), dtype=torch.float32)
    echoes = echo_of_line(Acquisition(lines=14, shots=2, order="centric"), shape[0])
    space = Subspace.of(torch.tensor(rng.normal(size=(7, 20))).to(torch.complex128 if is_complex else torch.float64), 3)
    parts = space.coefficients(signal)
    scale, shift = space.coefficients(gain), space.coefficients(offset)
    whole = (
        encode_exact(signal, echoes),
        encode_exact_affine(gain, offset, mz, echoes),
        space.encode(parts, echoes),
        space.encode_affine(scale, shift, mz, echoes),
    )
    for low, high in ((0, 1), (1, 2), (2, 5), (4, 5)):
        at = slice(low, high)
        few = (
            encode_exact(signal[:, :, at], echoes),
            encode_exact_affine(gain[:, at], offset[:, at].clone(), mz[:, at], echoes),
            space.encode(space.coefficients(signal[:, :, at].clone()), echoes),
            space.encode_affine(scale[:, at].clone(), shift[:, at], mz[:, at].clone(), echoes),
        )
        assert all(torch.equal(one, all_[:, at]) for one, all_ in zip(few, whole, strict=True))
    alone = (
        encode_exact(signal[:, 2, 3].clone(), echoes),
        encode_exact_affine(gain[:, 3].clone(), offset[:, 3], mz[2:, 3], echoes)[0],
        space.encode(space.coefficients(signal[:, 2, 3]), echoes),
        space.encode_affine(scale[:, 3], shift[:, 3].clone(), mz[2:, 3], echoes)[0],
    )
    assert all(torch.equal(one, all_[2, 3]) for one, all_ in zip(alone, whole, strict=True))


@pytest.mark.parametrize("is_complex", [False, True])
def test_the_coefficients_of_a_voxel_have_the_same_bits_beside_any_others(is_complex):
    rng = np.random.default_rng(12)
    signal = torch.tensor(rng.normal(size=(16, 403)), dtype=torch.float32)
    basis = rng.normal(size=(16, 60)) + (1j * rng.normal(size=(16, 60)) if is_complex else 0)
    space = Subspace.of(torch.tensor(basis), 4)
    signal = torch.complex(signal, signal.flip(1)) if is_complex else signal
    whole = space.coefficients(signal)
    wide = signal.to(torch.complex128 if is_complex else torch.float64).numpy()
    # c = basis^H S; 16 roundings of 6e-8 on values of order 1
    np.testing.assert_allclose(whole.numpy(), space.basis.numpy().conj().T @ wide, atol=5e-6, rtol=0)
    for low in range(30):
        for size in (1, 2, 3, 7, 17, 63, 117):
            part = space.coefficients(signal[:, low : low + size].clone())
            assert torch.equal(part, whole[:, low : low + size])


def test_what_a_subspace_leaves_out_of_a_train():
    space = Subspace.of(torch.eye(4, dtype=torch.float64)[:, :2].clone(), 2)
    signal = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert space.left_out(signal).tolist() == pytest.approx([0.8, 0.0, 0.0], abs=1e-15)


# --- oracle H: width of the point spread ----------------------------------------------------------------------------


def width(weights, fine=64):
    """Full width at half maximum of the magnitude of the point spread [pixels].

    As the oracle was printed: 64-fold zero filling, straight lines between its points. The continuous point spread has
    1.20682, 2.86924, 3.25259, 1.54955 and 1.90254, which straight lines exceed by up to 1.5e-4.
    """
    n = len(weights)
    spectrum = np.zeros(fine * n, complex)
    spectrum[np.arange(n) - n // 2] = weights
    spread = np.abs(np.fft.fftshift(np.fft.ifft(spectrum)))
    top = int(np.argmax(spread))
    sides = []
    for step in (1, -1):
        i = top
        while spread[i] > spread[top] / 2:
            i += step
        last = spread[i - step]
        sides.append(abs(i - step - top) + (last - spread[top] / 2) / (last - spread[i]))
    return sum(sides) / fine


@pytest.mark.parametrize(
    ("t2", "order", "pixels"),
    [
        (math.inf, "linear", 1.2068),
        (0.05, "linear", 2.8693),
        (0.05, "centric", 3.2526),
        (0.1, "linear", 1.5497),
        (0.1, "centric", 1.9026),
    ],
)
def test_the_width_of_the_point_spread_of_a_turbo_spin_echo(t2, order, pixels):
    # oracle H: 64 lines, echo spacing 4 ms, echo n of weight exp(-n ESP / T2)
    echoes = torch.arange(64.0, dtype=torch.float64)
    signal = torch.exp(-(echoes + 1) * 0.004 / t2)[:, None, None] * torch.eye(64, dtype=torch.float64)[:, 32:33]
    image = encode_exact(signal, echo_of_line(Acquisition(lines=64, order=order), 64))[:, 0].numpy()
    # the spectrum of the image of a point is the weight of each line
    weights = np.abs(np.fft.fftshift(np.fft.fft(image)))
    np.testing.assert_allclose(width(weights), pixels, atol=5e-5)


# --- through a temporal subspace ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("rows", [7, 12])
def test_a_full_subspace_is_exact(rows, is_complex):
    rng = np.random.default_rng(6)
    signal = rng.normal(size=(4, 2, rows, 5))
    if is_complex:
        signal = signal + 1j * rng.normal(size=signal.shape)
    echoes = rng.integers(0, 4, rows)
    space = Subspace.of(torch.tensor(signal.reshape(4, -1)), 4)
    got = space.encode(space.coefficients(torch.tensor(signal)), torch.tensor(echoes)).numpy()
    np.testing.assert_allclose(got, by_line(signal, echoes), atol=1e-13, rtol=0)


def test_a_subspace_keeps_the_signals_it_was_made_for_and_says_what_it_loses():
    rng = np.random.default_rng(7)
    shapes = rng.normal(size=(9, 3))
    trains = torch.tensor(shapes @ rng.normal(size=(3, 50)))
    space = Subspace.of(trains, 3)
    torch.testing.assert_close(space.basis.mT @ space.basis, torch.eye(3, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(space.signal(space.coefficients(trains)), trains, atol=1e-13, rtol=0)
    assert space.loss < 1e-14
    two = Subspace.of(trains, 2)
    left_out = trains - two.signal(two.coefficients(trains))
    assert two.loss == pytest.approx(float(left_out.norm() / trains.norm()), rel=1e-12)


def test_the_affine_form_of_a_subspace():
    rng = np.random.default_rng(8)
    gain, offset, mz = (torch.tensor(rng.normal(size=(n, 2, 6, 5))) for n in (3, 3, 4))
    echoes = torch.tensor([0, 4, 2, 3, 3, 1])
    space = Subspace.of(torch.tensor(rng.normal(size=(5, 20))), 3)
    got = space.encode_affine(gain, offset, mz, echoes)
    want = by_line(space.signal(offset[:, None] + gain[:, None] * mz).numpy(), echoes.numpy())
    np.testing.assert_allclose(got.numpy(), want, atol=1e-13, rtol=0)


def test_a_stack_of_images_is_encoded():
    rng = np.random.default_rng(9)
    space = Subspace.of(torch.tensor(rng.normal(size=(5, 20))), 3)
    parts, echoes = torch.tensor(rng.normal(size=(3, 2, 2, 6, 5))), torch.tensor([0, 4, 2, 3, 3, 1])
    want = by_line(space.signal(parts).numpy(), echoes.numpy())
    np.testing.assert_allclose(space.encode(parts, echoes).numpy(), want, atol=1e-13, rtol=0)


def test_gradients_through_a_subspace():
    rng = np.random.default_rng(10)
    space = Subspace.of(torch.tensor(rng.normal(size=(4, 20))), 2)
    parts = torch.tensor(rng.normal(size=(2, 5, 2)), requires_grad=True)
    echoes = torch.tensor([3, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda c: space.encode(c, echoes), (parts,))


def test_a_rank_beyond_the_trains_is_refused():
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 3\] for these trains, got 4"):
        Subspace.of(torch.rand(3, 9), 4)
