"""Artefacts in a data set: against physics written out from what was drawn, and paired with the set without them."""

import json
from math import prod

import numpy as np
import pytest
import torch
import xarray

from generators import PatchStore
from generators.build import build
from generators.config import GeneratorConfig
from generators.preview import summarise, write_page
from generators.sample import Samples, draws, make_sample, make_samples, make_truth
from qsim.errors import InputError
from qsim.kspace import LowPass
from tests.generators.test_sample import config

SPIKE = {"kind": "rf_spike", "amplitude": [0.2, 1.0]}
RICIAN = {"kind": "rician", "sigma": {"kind": "constant", "value": 0.02}}
QUIET = {"kind": "rician", "sigma": {"kind": "constant", "value": 1e-9}}


def wave(space, spike, signal):
    """Amplitude over the k-space maximum, by sums: the signal's largest |K|, then one plane wave."""
    k = np.abs(np.fft.fftn(signal, axes=(-2, -1), norm="ortho")).max()
    phase = sum(
        k0 * (np.arange(n) - n // 2).reshape([-1 if a == b else 1 for b in range(len(space))]) / n
        for a, (k0, n) in enumerate(zip(spike["k"], space, strict=True))
    )
    height = spike["amplitude"] * k / np.sqrt(prod(space)) * np.exp(1j * spike["phase"])
    return height * np.exp(2j * np.pi * phase)


def test_an_image_is_the_modulus_of_signal_and_spike():
    c = config(artefacts=[SPIKE], noise=QUIET)
    signal = make_truth(config(noise=QUIET), 3).signal.double().numpy()
    (record,) = draws(c, 3)["artefacts"]
    expected = np.abs(signal + wave(c.patch, record["spikes"][0], signal))
    np.testing.assert_allclose(make_sample(c, 3).images[0].numpy(), expected, atol=2e-6)
    # and not the real part, which a spike makes negative
    assert np.abs(expected - np.abs(signal)).max() > 0.1
    np.testing.assert_allclose(make_truth(c, 3).signal.numpy(), expected, atol=2e-6)


def test_a_signed_image_keeps_its_sign():
    signed = {"model": {"kind": "inversion_recovery", "ti": [0.15, 0.4], "signed": True}}
    quiet = {"kind": "signed", "sigma": {"kind": "constant", "value": 1e-9}}
    c = config(artefacts=[SPIKE], noise=quiet, **signed)
    signal = make_truth(config(noise=quiet, **signed), 1).signal.double().numpy()
    (record,) = draws(c, 1)["artefacts"]
    expected = np.real(signal + wave(c.patch, record["spikes"][0], signal))
    np.testing.assert_allclose(make_sample(c, 1).images[0].numpy(), expected, atol=2e-6)


def test_an_artefact_leaves_everything_else_as_it_was():
    with_spike, without = make_samples(config(artefacts=[SPIKE]), range(4)), make_samples(config(), range(4))
    for name in ("kappa", "labels", "purity", "sigma", "subject", "origin"):
        assert torch.equal(getattr(with_spike, name), getattr(without, name)), name
    for i in range(4):
        # gaussian noise is added after the modulus, the same in both
        noise = without.images[i] - make_truth(config(), i).signal.abs()
        again = with_spike.images[i] - make_truth(config(artefacts=[SPIKE]), i).signal
        torch.testing.assert_close(again, noise, atol=2e-6, rtol=0)


def test_a_second_artefact_leaves_the_draws_of_the_first():
    one = draws(config(artefacts=[SPIKE]), 5)["artefacts"]
    two = draws(config(artefacts=[SPIKE, {"kind": "rf_spike", "spikes": 2}]), 5)["artefacts"]
    assert two[0] == one[0]
    assert two[1] != two[0]
    earlier = draws(config(artefacts=[{"kind": "bias_field", "strength": 0.3}, SPIKE]), 5)["artefacts"]
    assert earlier[1] == one[0]


def test_a_sample_does_not_depend_on_its_batch_and_its_severity_is_that_of_its_draw():
    chain = [{**SPIKE, "probability": 0.5}, {"kind": "low_pass", "factor": [2, 3]}]
    c = config(artefacts=chain, noise=RICIAN)
    together = make_samples(c, range(30))
    for index in (0, 7, 29):
        alone = make_sample(c, index)
        for name in Samples.__slots__:
            assert torch.equal(getattr(together, name)[index], getattr(alone, name)[0]), name
    records = [draws(c, index)["artefacts"] for index in range(30)]
    severity = np.array([[artefact.get("severity", 0.0) for artefact in record] for record in records])
    np.testing.assert_allclose(together.severity.numpy(), severity, rtol=1e-6)
    happened = [record[0]["applied"] for record in records]
    # 30 draws at one half: 6 to 24 but for one in a thousand
    assert 6 <= sum(happened) <= 24
    assert [s > 0 for s in severity[:, 0]] == happened
    assert (severity[:, 1] > 0).all()


def test_noise_goes_through_what_throws_samples_away():
    """E m^2 = nu^2 + 2 sigma^2 of the samples that were kept, their share of the noise's energy (Parseval)."""
    low = {"kind": "low_pass", "factor": 4, "axes": [-1]}
    loud = {"kind": "rician", "sigma": {"kind": "constant", "value": 0.1}}
    c, quiet = config(artefacts=[low], noise=loud), config(artefacts=[low], noise=QUIET)
    images, clean = (make_samples(each, range(100)).images.double() for each in (c, quiet))
    kept = (2 * int(c.patch[-1] / 8) + 1) / c.patch[-1]
    expected = 2 * 0.1**2 * kept
    excess = images.square() - clean.square()
    # variance of m^2: 4 s^2 nu^2 + 4 s^4 with s^2 = sigma^2 kept; correlated along x, so the kept samples count
    variance = 4 * 0.1**2 * kept * clean.square() + 4 * (0.1**2 * kept) ** 2
    error = np.sqrt(variance.mean().item() / (excess.numel() * kept))
    assert error < 0.05 * expected
    assert excess.mean().item() == pytest.approx(expected, abs=4 * error)


def test_coils_of_a_root_of_sum_of_squares_lose_samples_one_by_one():
    low = {"kind": "low_pass", "factor": 2, "axes": [-2]}
    noise = {"kind": "noncentral_chi", "sigma": {"kind": "constant", "value": 0.02}, "coils": 4}
    c = config(artefacts=[low], noise=noise)
    quiet = config(artefacts=[low], noise=QUIET)
    images = torch.stack([make_sample(c, i).images[0] for i in range(20)])
    clean = torch.stack([make_sample(quiet, i).images[0] for i in range(20)])
    kept = (2 * int(c.patch[0] / 4) + 1) / c.patch[0]
    # E m^2 = nu^2 + 2 L sigma^2, everywhere
    excess = (images.double().square() - clean.double().square()).mean().item()
    assert excess == pytest.approx(2 * 4 * 0.02**2 * kept, rel=0.05)


def test_a_store_holds_the_severities(tmp_path):
    c = config(artefacts=[{**SPIKE, "probability": 0.5}, {"kind": "low_pass", "factor": 2}], samples=12)
    build(c, tmp_path / "s.zarr", shard=8, chunk=4)
    store = PatchStore(tmp_path / "s.zarr")
    made = make_samples(c, range(12))
    assert torch.equal(store.read(0, 12).severity, made.severity)
    assert torch.equal(store.take([11, 2]).severity, made.severity[[11, 2]])
    assert [row.kind for row in store.attributes.artefacts] == ["rf_spike", "low_pass"]
    assert "k-space maxima" in store.attributes.artefacts[0].severity
    opened = xarray.open_zarr(tmp_path / "s.zarr", consolidated=False)
    assert opened["severity"].dims == ("sample", "artefact")
    summary = summarise(store)
    assert [row.share for row in summary.artefacts] == [float((made.severity[:, 0] > 0).double().mean()), 1.0]
    write_page(store, summary, tmp_path / "page.html")
    assert "samples that have it" in (tmp_path / "page.html").read_text()
    assert json.loads(json.dumps(draws(c, 0)))["artefacts"][1]["kind"] == "low_pass"


def test_a_store_without_artefacts_has_no_severity(tmp_path):
    build(config(samples=3), tmp_path / "s.zarr", shard=4, chunk=4)
    assert not (tmp_path / "s.zarr" / "severity").exists()
    assert PatchStore(tmp_path / "s.zarr").read(0, 3).severity.shape == (3, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artefacts": [{"kind": "low_pass"}, SPIKE]}, r"artefacts\[1\]: rf_spike .* cannot follow low_pass"),
        ({"artefacts": [{**SPIKE, "amplitude": -1}]}, "amplitude must be at least 0, got -1"),
        ({"artefacts": [{**SPIKE, "amplitude": [3, 1]}]}, "amplitude must go from low to high"),
        ({"artefacts": [{**SPIKE, "probability": 1.5}]}, r"probability must lie in \[0, 1\]"),
        # the images of a series are no third axis of space
        ({"artefacts": [{**SPIKE, "ndim": 3}]}, r"artefacts\[0\].ndim: 3, but a patch has 2 axes"),
        ({"artefacts": [{"kind": "low_pass", "axes": [-3]}]}, "axis -3 does not exist"),
        ({"artefacts": [SPIKE], "store": "maps", "partial_volume": False}, "artefacts: store: maps keeps no images"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("artefact", "message"),
    [
        ({**SPIKE, "amplitude": True}, "amplitude must be a finite number or a pair of them, got True"),
        ({**SPIKE, "amplitude": "2"}, "amplitude must be a finite number or a pair of them, got '2'"),
        ({**SPIKE, "amplitude": [True, 2]}, r"amplitude\[0\] must be a finite number.*, got True"),
        ({**SPIKE, "amplitude": {"kind": "uniform", "low": "1", "high": 2}}, "amplitude.low must be a finite number"),
        ({**SPIKE, "spikes": True}, "spikes must be a whole number or a pair of them, got True"),
        ({**SPIKE, "per_image": 1.0}, "per_image must be true or false, got 1.0"),
        ({**SPIKE, "probability": True}, "probability must be a finite number, got True"),
        ({"kind": "k_space_noise", "sigma": "1e-3"}, r"sigma must be .*, got '1e-3' \(YAML .* write 1.0e-3\)"),
        (
            {"kind": "distortion", "delta_b0": 9, "bandwidth": 9, "te": 0.01, "phase": "no"},
            "phase must be true or false",
        ),
    ],
)
def test_truths_and_texts_are_no_numbers(artefact, message):
    with pytest.raises(ValueError, match=rf"artefacts\[1\]\.{message}"):
        config(artefacts=[{"kind": "bias_field", "strength": 0.1}, artefact])


def test_a_whole_number_and_its_float_are_one_config():
    whole, real = (config(artefacts=[{**SPIKE, "amplitude": number}]) for number in (2, 2.0))
    assert whole.digest == real.digest
    assert config(artefacts=[{**SPIKE, "amplitude": 3}]).digest != real.digest


def test_a_study_refuses_noise_that_its_bound_does_not_know():
    c = config(artefacts=[{"kind": "k_space_noise", "sigma": 0.01}])
    assert isinstance(c, GeneratorConfig)
    with pytest.raises(InputError, match=r"artefacts\[0\]: k_space_noise does not go with a study"):
        make_truth(c, 0)


def test_the_draw_of_a_low_pass_is_that_of_the_class():
    c = config(artefacts=[{"kind": "low_pass", "factor": 3, "axes": [-1]}])
    assert c.artefact_list == (LowPass(factor=3.0, axes=(-1,)),)
