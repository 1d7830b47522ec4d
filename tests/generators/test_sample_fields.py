"""Fields in the generator: their place in the list, hidden rows, pairing, batches, and readouts that mix voxels."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from generators import sample as sample_module
from generators.config import GeneratorConfig
from generators.fitting import completed
from generators.sample import Samples, draws, make_sample, make_samples, make_truth
from phantoms.fields.pulse_table import simulate
from qsim.errors import InputError
from qsim.signals.base import SpatialModel
from qsim.signals.pulses import hs1
from tests.generators.test_sample import DISCS, config, plain_table

HS1 = {"duration": 0.01024, "max_b1": 800.0, "beta": 672.0, "mu": 5.0}
PULSE = {"kind": "pulse_inversion", "pulse": {"pulse": "HS1", **HS1}}
FIELDS = [{"kind": "b0"}, {"kind": "b1", "sd": {"kind": "constant", "value": 0.05}}, PULSE]


def refusal(**changes):
    with pytest.raises(ValidationError) as caught:
        config(**changes)
    return caught.value.errors()[0]["msg"].removeprefix("Value error, ")


def fixed_table(t2_wm=0.08, t2_gm=0.1, **more):
    """Two tissues with T2, that do not vary inside."""
    table = plain_table(**more)
    for tissue, t2 in zip(table["tissues"], (t2_wm, t2_gm), strict=True):
        tissue["values"]["T2"] = {"kind": "constant", "value": t2}
    return table


def test_a_sample_with_fields_does_not_depend_on_its_batch():
    c = config(fields=[*FIELDS[:2], {"kind": "shim_box"}, {"kind": "chemical_shift", "tissues": ["gm"]}, FIELDS[2]])
    together = make_samples(c, [5, 2, 9, 0])
    for row, index in enumerate([5, 2, 9, 0]):
        alone = make_sample(c, index)
        for name in Samples.__slots__:
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = make_samples(c, [5, 2, 9, 0])
    finally:
        torch.set_num_threads(before)
    for name in Samples.__slots__:
        assert torch.equal(getattr(together, name), getattr(threaded, name)), name


def test_an_ablation_is_paired():
    """With the pulse and with the paper's half-normal: the same anatomy, A, T1 and sigma; another B."""
    plain, pulse = make_samples(config(), [1, 4]), make_samples(config(fields=FIELDS), [1, 4])
    for name in ("labels", "purity", "sigma", "subject", "origin"):
        assert torch.equal(getattr(plain, name), getattr(pulse, name)), name
    for row in (0, 2):
        assert torch.equal(plain.kappa[:, row], pulse.kappa[:, row])
    assert not torch.equal(plain.kappa[:, 1], pulse.kappa[:, 1])
    assert pulse.kappa.shape == plain.kappa.shape
    # another field between leaves the draws of those before it alone; the table of the pulse spans more then
    shifted = make_samples(config(fields=[*FIELDS[:2], {"kind": "chemical_shift", "tissues": ["gm"]}, FIELDS[2]]), [1])
    wm = shifted.labels[0] == 1
    torch.testing.assert_close(shifted.kappa[0, 1][wm], pulse.kappa[0, 1][wm], atol=1e-4, rtol=0.0)


def test_b_is_what_the_pulse_leaves():
    """Every voxel of a truth, both tissues of mixed voxels, against the step-by-step simulation and the formula."""
    low = 0.9
    fields = [
        {"kind": "b0", "mean": {"kind": "constant", "value": 40.0}, "sd": {"kind": "constant", "value": 0.0}},
        {"kind": "b1", "mean": {"kind": "constant", "value": low}, "sd": {"kind": "constant", "value": 0.0}},
        {"kind": "chemical_shift", "tissues": ["gm"]},
        PULSE,
    ]
    c = config(tissues=fixed_table(), fields=fields)
    truth, drawn = make_truth(c, 3), draws(c, 3)
    expected = torch.zeros(4, 24, 20)
    ti = torch.tensor(c.signal_model.times)[:, None, None]
    from qsim.distributions import Streams

    share = torch.from_numpy(c.phantom_spec.load("train", 2).crop((24, 20), Streams(11, 3).rng("anatomy")).fractions)
    for t, (tissue, t2, shift) in enumerate((("wm", 0.08, 0.0), ("gm", 0.1, -434.29))):
        of = drawn["tissues"][tissue]
        assert of["T2"] == pytest.approx(t2)
        assert "B" not in of
        rates = (torch.tensor([1 / of["T1"]]).double(), torch.tensor([1 / t2]).double())
        mz = simulate(hs1(**HS1), *rates, torch.tensor([low]).double(), torch.tensor([40 + shift]).double())
        b = 1 - float(mz)
        here = truth.labels == t + 1
        np.testing.assert_allclose(truth.kappa[1][here], b, atol=1e-4)
        expected += share[t] * (of["A"] * (1 - b * torch.exp(-ti / of["T1"])))
    torch.testing.assert_close(truth.signal, expected, atol=2e-4, rtol=0.0)
    assert [entry["kind"] for entry in drawn["fields"]] == ["b0", "b1", "chemical_shift", "pulse_inversion"]
    assert drawn["fields"][0] == {"kind": "b0", "mean": 40.0, "sd": 0.0}


def test_hidden_t2_goes_with_t1_where_the_table_says_so():
    table = plain_table()
    for tissue in table["tissues"]:
        tissue["values"]["T2"] = {"kind": "uniform", "low": 0.05, "high": 0.1}
        tissue["correlations"] = [{"rows": ["T1", "T2"], "rho": 0.8}]
    c = config(tissues=table, fields=FIELDS)
    plain = config(tissues=plain_table())
    pairs = []
    for index in range(300):
        of = draws(c, index)["tissues"]["wm"]
        assert of["T1"] == draws(plain, index)["tissues"]["wm"]["T1"]
        pairs.append((of["T1"], of["T2"]))
    # Spearman's rho of a Gaussian copula: 6 / pi asin(rho / 2) = .786; error of order (1 - rho^2) / sqrt(n) = .02
    from scipy.stats import spearmanr

    assert spearmanr(*np.array(pairs).T).statistic == pytest.approx(0.786, abs=0.09)


def test_the_efficiency_field_bends_b_within_a_sample():
    c = config(tissues=plain_table(), fields=[{"kind": "inversion_efficiency", "length_mm": 10.0}])
    truth = make_truth(c, 2)
    inside = truth.labels > 0
    b = truth.kappa[1][inside]
    assert b.std() > 0.01
    assert ((b >= 1) & (b <= 2)).all()


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{"kind": "b0"}], r"fields\[0\]: b0 changes DELTA_B0, which the model does not have \(A, B, T1\)"),
        ([PULSE, {"kind": "b1"}], r"fields\[1\]: b1 changes REL_B1"),
        ([{"kind": "inversion_efficiency"}, *FIELDS], r"fields\[0\]: .* B, which fields\[3\] then replaces"),
        (
            [{"kind": "shim_box"}, {"kind": "pulse_inversion", "pulse": {"pulse": "hard"}}],
            r"fields\[0\]: shim_box changes DELTA_B0",
        ),
        ([{"kind": "b0", "field_strength": 1.5}, FIELDS[2]], r"fields\[0\].field_strength: 1.5 T, but .* of 3 T"),
        (
            [{"kind": "chemical_shift", "tissues": ["lard"]}, FIELDS[2]],
            r"fields\[0\].tissues: .* has no lard; it",
        ),
    ],
)
def test_fields_that_do_nothing_or_do_not_fit_are_refused(fields, message):
    import re

    assert re.match(message, refusal(fields=fields))


def test_tissues_that_no_pulse_can_be_simulated_for_are_refused():
    message = refusal(fields=FIELDS, tissues=plain_table())
    assert message == "tissues: wm has no T2, which the model or a field needs"
    message = refusal(fields=FIELDS, tissues=fixed_table(t2_gm=2.7))
    assert message.startswith("tissues: gm: T2 can reach 2.7 s where T1 can fall to 1.3 s")
    assert "truncate" in message
    # an inversion recovery that does not look at T2 need not care
    config(tissues=fixed_table(t2_gm=2.7))
    # the absolute variation of the authors' package lets T1 of skull fall to 20 ms
    authors = refusal(fields=FIELDS, tissues={"kind": "sabidussi2021", "within": "authors"})
    assert "T2 above 2 T1" in authors
    within = {"B": {"relative": 0.05}}
    reaching = refusal(fields=[{"kind": "inversion_efficiency"}], tissues=plain_table(within=within))
    assert reaching.startswith("fields[0]: B must lie between 1 and 2")


def test_a_tissue_that_lacks_a_row_is_refused_where_the_phantom_holds_it():
    table = fixed_table()
    del table["tissues"][1]["values"]["T2"]
    c = config(tissues=table, fields=FIELDS)
    with pytest.raises(InputError, match="tissues: the phantom holds gm, which has no T2 in the table 'plain'"):
        make_sample(c, 0)
    without = {**DISCS, "shapes": DISCS["shapes"][:1]}
    make_sample(config(tissues=table, fields=FIELDS, phantom=without), 0)


def test_the_config_says_what_a_table_holds_without_fields():
    c = config(fields=FIELDS)
    assert c.table["wm"].values["DELTA_B0"].value == 0.0
    assert c.table["wm"].values["REL_B1"].value == 1.0
    # what the table gives is the base
    table = fixed_table(per_sample={"DELTA_B0": {"kind": "constant", "value": 30.0}})
    for tissue in table["tissues"]:
        tissue["values"]["REL_B1"] = {"kind": "constant", "value": 0.8}
    c = config(tissues=table, fields=[FIELDS[2]])
    assert "DELTA_B0" not in c.table["wm"].values
    assert c.table["wm"].values["REL_B1"].value == 0.8
    of = draws(c, 0)["tissues"]["wm"]
    assert (of["DELTA_B0"], of["REL_B1"]) == (30.0, pytest.approx(0.8))
    assert completed(config().table, ["A", "B", "T1"], ()) == config().tissue_source.table()


def test_a_config_with_fields_reads_back_as_itself():
    c = config(fields=[*FIELDS[:2], {"kind": "shim_box", "axis": 1}, FIELDS[2]])
    assert GeneratorConfig.model_validate_json(c.canonical) == c
    assert c.digest != config().digest


# --- readouts that mix voxels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blurring:
    """A stand-in: two magnetisations, mixed along the phase axis by a matrix."""

    matrix: torch.Tensor
    mixes_voxels: bool = True
    n_images: int = 2

    @property
    def parameters(self):
        return config().signal_model.parameters

    @property
    def pointwise(self):
        return Blurring(torch.eye(len(self.matrix)))

    def magnetisation(self, kappa):
        a, b, t1 = kappa
        return torch.stack([a * torch.exp(-0.3 / t1), a * b])

    def image(self, magnetisation):
        return torch.einsum("yz,k...zx->k...yx", self.matrix, magnetisation)

    def coherent(self, kappa):
        return self.image(self.magnetisation(kappa))

    def __call__(self, kappa):
        return self.coherent(kappa).abs()


@pytest.mark.parametrize("crisp", [False, True])
def test_magnetisations_mix_before_a_readout_that_mixes_voxels(crisp):
    c = config(tissues=plain_table(), partial_volume=not crisp)
    matrix = torch.rand(24, 24, generator=torch.Generator().manual_seed(1))
    model = Blurring(matrix)
    assert isinstance(model, SpatialModel)
    from qsim.distributions import Streams

    anatomy = sample_module.make_anatomy(c, [Streams(11, i) for i in range(3)])
    got = sample_module.mixed_signal(model, anatomy, slice(1, 3))
    for b, index in enumerate((1, 2)):
        drawn = draws(c, index)["tissues"]
        share = c.phantom_spec.load("train", 2).crop((24, 20), Streams(11, index).rng("anatomy")).fractions
        if crisp:
            background = 1 - share.sum(0)
            held = share.max(0) >= background
            share = np.stack([(share.argmax(0) == t) & held & (share.max(0) > 0) for t in range(2)]).astype(np.float32)
        mixed = torch.zeros(2, 24, 20)
        for t, tissue in enumerate(("wm", "gm")):
            a, depth, t1 = (drawn[tissue][row] for row in ("A", "B", "T1"))
            mixed += torch.tensor([a * np.exp(-0.3 / t1), a * depth])[:, None, None] * torch.from_numpy(share[t])
        expected = torch.einsum("yz,kzx->kyx", matrix, mixed.float())
        torch.testing.assert_close(got[:, b], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoding", ["centre", "exact"])
def test_a_bloch_model_in_fields(encoding):
    """Its rows DELTA_B0 and REL_B1 are the fields; a batch of complex images is each of its samples."""
    acquisition = {"lines": 24, "shots": 1, "order": "centric", "encoding": encoding}
    model = {
        "kind": "bloch",
        "preparation": {"kind": "spin_lock", "cluster": "BSL", "fsl": 400.0, "tsl": [0.0, 0.02]},
        "readout": {"kind": "spoiled_gradient_echo", "flip_angle": 0.17, "tr": 0.005, "acquisition": acquisition},
    }
    table = fixed_table()
    for tissue in table["tissues"]:
        tissue["values"]["T1RHO"] = {"kind": "constant", "value": 0.05}
    rician = {"kind": "rician", "sigma": {"kind": "constant", "value": 1e-4}}
    fields = [{"kind": "b0"}, {"kind": "shim_box"}, {"kind": "chemical_shift", "tissues": ["gm"]}]
    c = config(model=model, tissues=table, fields=fields, noise=rician)
    together, alone = make_samples(c, [0, 1, 2]), make_sample(c, 1)
    for name in Samples.__slots__:
        assert torch.equal(getattr(together, name)[1], getattr(alone, name)[0]), name
    rows = [parameter.name for parameter in c.signal_model.parameters]
    b0 = alone.kappa[0, rows.index("DELTA_B0")]
    gm, wm = alone.labels[0] == 2, alone.labels[0] == 1
    assert b0[wm].mean() - b0[gm].mean() == pytest.approx(434.0, abs=100.0)
    truth = make_truth(c, 1)
    assert not truth.signal.is_complex()
    torch.testing.assert_close(truth.signal.abs(), alone.images[0], atol=6e-4, rtol=0.0)
    # without fields the rows stand at 0 and 1
    still = make_sample(config(model=model, tissues=table, noise=rician), 1)
    inside = still.labels[0] > 0
    assert (still.kappa[0, rows.index("DELTA_B0")][inside] == 0).all()
    assert (still.kappa[0, rows.index("REL_B1")][inside] == 1).all()
