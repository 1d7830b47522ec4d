"""Tissues of the liver and heart cohorts: what is printed comes out of the draws, and the configs use it as it is."""

from dataclasses import fields, replace
from math import exp
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats

from generators.config import GeneratorConfig
from generators.reading import read_yaml
from generators.sample import draws, make_samples, make_truth
from qsim.distributions import Constant, Uniform
from qsim.organ_tissues import Huang2022, Jacobs2025
from qsim.parameters import RELAXATION_TIMES
from qsim.tissues import Stanisz2005

CONFIGS = Path(__file__).parents[2] / "configs"
ABDOMEN = (
    *("liver", "fibrotic_liver", "lesion", "liver_fat", "liver_vessel", "bile", "stomach", "stomach_fluid"),
    *("spleen", "kidney", "muscle", "fat", "marrow", "csf", "aorta"),
)
CHEST = (
    *("myocardium", "scar", "lv_blood", "rv_myocardium", "rv_blood", "lung", "liver", "fat", "muscle", "marrow"),
    "aorta",
)
# SD of a normal that is cut at +-2 SD, in its SD
CUT_SD = float(stats.truncnorm(-2, 2).std())


def moments(distribution):
    """Mean and SD by the midpoint rule on the inverse distribution function; good to 1e-5 SD."""
    x = distribution.ppf((np.arange(20_000) + 0.5) / 20_000)
    return float(x.mean()), float(x.std())


# tissue, row, mean and SD [ms] as printed: PMC5639155 (liver, fibrosis); abstract of doi:10.1148/radiol.2303021331
# (spleen, kidney cortex, L4, subcutaneous fat at 3 T); doi:10.1002/mrm.20605 Table 1 at 3 T (liver, muscle, blood)
ABDOMEN_PRINTED = [
    ("liver", "T1RHO", 44.9, 2.8),
    ("fibrotic_liver", "T1RHO", 52.6, 6.8),
    ("liver", "T1", 812, 64),
    ("liver", "T2", 42, 3),
    ("muscle", "T1", 1412, 13),
    ("aorta", "T2", 275, 50),
    ("liver_vessel", "T1", 1932, 85),
    ("spleen", "T1", 1328, 31),
    ("spleen", "T2", 61, 9),
    ("kidney", "T1", 1142, 154),
    ("kidney", "T2", 76, 7),
    ("marrow", "T1", 586, 73),
    ("marrow", "T2", 49, 4),
    ("fat", "T1", 382, 13),
    ("liver_fat", "T2", 68, 4),
    ("csf", "T1", 3500, 300),
    ("csf", "T2", 2000, 300),
]
CHEST_PRINTED = [
    (1.5, "myocardium", "T1", 1030, 34),
    (1.5, "lv_blood", "T1", 1441, 120),
    (1.5, "liver", "T2", 46, 6),
    (3.0, "myocardium", "T1", 1471, 31),
    (3.0, "rv_myocardium", "T2", 47, 11),
    (3.0, "myocardium", "T1RHO", 45.4, 2.6),
    (3.0, "liver", "T1RHO", 44.9, 2.8),
    (3.0, "fat", "T1", 382, 13),
    (3.0, "marrow", "T1", 586, 73),
]


@pytest.mark.parametrize(("tissue", "row", "mean", "sd"), ABDOMEN_PRINTED)
def test_printed_values_of_the_abdomen(tissue, row, mean, sd):
    table = Huang2022().table()
    assert moments(table[tissue].values[row]) == pytest.approx((mean / 1e3, CUT_SD * sd / 1e3), rel=1e-3)
    assert "2 SD" in table.truncation


@pytest.mark.parametrize(("tesla", "tissue", "row", "mean", "sd"), CHEST_PRINTED)
def test_printed_values_of_the_chest(tesla, tissue, row, mean, sd):
    values = Jacobs2025(field_strength=tesla).table()[tissue].values
    assert moments(values[row]) == pytest.approx((mean / 1e3, CUT_SD * sd / 1e3), rel=1e-3)


@pytest.mark.parametrize(("hertz", "mean"), [(300.0, 43.4), (400.0, 45.4), (500.0, 46.5)])
def test_t1rho_of_myocardium_goes_with_the_spin_lock_frequency(hertz, mean):
    values = Jacobs2025(field_strength=3.0, spin_lock=hertz).table()["myocardium"].values
    assert moments(values["T1RHO"])[0] == pytest.approx(mean / 1e3)
    assert values["T1RHO"] == Stanisz2005(spin_lock=hertz).table()["myocardium"].values["T1RHO"]


@pytest.mark.parametrize(
    "table",
    [
        Huang2022().table(),
        Huang2022(suppressed=False).table(),
        Jacobs2025(field_strength=1.5).table(),
        Jacobs2025(field_strength=3.0).table(),
    ],
    ids=lambda table: table.name,
)
def test_every_tissue_can_exist_and_says_what_has_no_source(table):
    for tissue in table.tissues:
        times = {row: moments(d)[0] for row, d in tissue.values.items() if row in RELAXATION_TIMES}
        assert all(tissue.values[row].support[0] > 0 for row in tissue.values)
        # T2 <= T1rho <= T1; of myocardium the two come from different bodies, 47 +- 11 and 45.4 +- 2.6 ms
        shortest = times["T2"] if "myocardium" not in tissue.name else 0.0
        assert shortest <= times.get("T1RHO", times["T1"]) <= times["T1"]
        assert tissue.source.count("to be sourced") >= 1
        assert 0 < moments(tissue.values["A"])[0] <= 1


def test_the_tables_hold_the_tissues_of_the_cohorts():
    assert set(Huang2022().table().names) == set(ABDOMEN)
    assert set(Jacobs2025().table().names) == set(CHEST)
    heart = pytest.importorskip("phantoms.heart.spec")
    assert set(heart.TISSUES) <= set(CHEST)
    liver = pytest.importorskip("phantoms.liver.spec")
    assert set(liver.TISSUES) <= set(ABDOMEN)


def test_disease_and_fluids_lie_above_healthy_parenchyma():
    values = {tissue.name: tissue.values for tissue in Huang2022().table().tissues}
    t1rho = {name: moments(of["T1RHO"])[0] for name, of in values.items()}
    assert t1rho["liver"] < t1rho["fibrotic_liver"] < t1rho["lesion"]
    # more than four times the longest spin-lock time of 50 ms: the fluids hardly decay
    assert min(t1rho[name] for name in ("csf", "bile", "stomach_fluid", "aorta", "liver_vessel")) > 0.2
    heart = Jacobs2025(field_strength=3.0).table()
    for row in ("T1", "T2", "T1RHO"):
        assert moments(heart["scar"].values[row])[0] > moments(heart["myocardium"].values[row])[0]
    assert moments(heart["lung"].values["A"])[0] < 0.3


def test_suppression_leaves_the_stated_residual():
    full, left = Huang2022(suppressed=False).table(), Huang2022(residual=(0.1, 0.3)).table()
    for name in ("liver_vessel", "aorta", "fat", "liver_fat"):
        a = moments(full[name].values["A"])[0]
        assert left[name].values["A"].support == pytest.approx((0.1 * a, 0.3 * a))
        assert isinstance(left[name].values["A"], Uniform)
    # the fat of marrow, 40 % of it
    a = moments(full["marrow"].values["A"])[0]
    assert left["marrow"].values["A"].support == pytest.approx(((0.6 + 0.04) * a, (0.6 + 0.12) * a))
    suppressed = {"liver_vessel", "aorta", "fat", "liver_fat", "marrow"}
    for name in set(ABDOMEN) - suppressed:
        assert left[name].values == full[name].values
    for name in suppressed:
        assert {**left[name].values, "A": None} == {**full[name].values, "A": None}
    assert "10 to 30 %" in left.name
    assert "nothing suppressed" in full.name


# 1 - exp(-TR / T1) by hand, TR 2 s: T1 3.5 s, 1.142 s, .812 s
@pytest.mark.parametrize(("tissue", "recovered"), [("csf", 0.435282), ("kidney", 0.826455), ("liver", 0.914826)])
def test_recovery_within_tr_is_folded_into_a(tissue, recovered):
    plain, folded = Huang2022().table(), Huang2022(tr=2.0).table()
    ratio = moments(folded[tissue].values["A"])[0] / moments(plain[tissue].values["A"])[0]
    assert ratio == pytest.approx(recovered, abs=2e-6)
    assert "T1" not in folded[tissue].values
    assert folded[tissue].values["T1RHO"] == plain[tissue].values["T1RHO"]
    assert "TR 2 s" in folded.name


def test_a_bloch_model_is_not_saturated_twice():
    with pytest.raises(ValueError, match="tissues: liver has no T1"):
        GeneratorConfig(**on_discs({"kind": "huang2022", "tr": 2.0}, ("liver",)))


@pytest.mark.parametrize(
    "model", [{"kind": "spin_lock", "tsl": [0.0, 0.05]}, {"kind": "t2_prep", "te_prep": [0.0, 0.05]}]
)
def test_closed_forms_take_the_folded_table(model):
    mapping = on_discs({"kind": "huang2022", "tr": 2.0, "within": 0.0}, ("kidney",)) | {"model": model, "targets": []}
    truth = make_truth(GeneratorConfig(**mapping), 0)
    a, t = truth.kappa[:, 4, 4].tolist()
    assert truth.signal[:, 4, 4].tolist() == pytest.approx([a, a * exp(-0.05 / t)], rel=1e-5)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (Huang2022, {"residual": (0.2, 0.05)}, "residual must rise from above 0 to at most 1, got 0.2 to 0.05"),
        (Huang2022, {"residual": (0.0, 0.05)}, "residual must rise from above 0"),
        (Huang2022, {"residual": (0.5, 1.5)}, "residual must rise from above 0 to at most 1, got 0.5 to 1.5"),
        (Huang2022, {"tr": 0.0}, "tr must be above 0 s, got 0"),
        (Huang2022, {"tr": float("nan")}, "tr must be above 0 s, got nan"),
        (Huang2022, {"tr": 2000.0}, "tr is in seconds, got 2000; divide by 1000"),
        (Huang2022, {"within": -0.01}, "within must lie between 0 and 0.2, got -0.01"),
        (Huang2022, {"within": 4.0}, "within must lie between 0 and 0.2, got 4"),
        (Huang2022, {"fsl": 0.0}, "fsl must be a spin-lock frequency above 0 Hz, got 0"),
        (Jacobs2025, {"field_strength": 7.0}, "field_strength must be 1.5 or 3.0 T, got 7"),
        (Jacobs2025, {"spin_lock": 250.0}, "spin_lock must be 300, 400 or 500 Hz, got 250"),
        (Jacobs2025, {"within": 0.5}, "within must lie between 0 and 0.2, got 0.5"),
        (Jacobs2025, {"b_scale": -1.0}, "scale must be positive"),
    ],
)
def test_values_that_cannot_be_are_refused(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        source(**arguments)


def test_a_spin_lock_at_1_5_tesla_is_refused():
    mapping = on_discs({"kind": "jacobs2025", "field_strength": 1.5}, ("myocardium",))
    with pytest.raises(ValueError, match="tissues: myocardium has no T1RHO"):
        GeneratorConfig(**mapping)


def test_t2_and_t1rho_go_together_in_liver():
    for name in ("liver", "fibrotic_liver"):
        (pair,) = Huang2022().table()[name].correlations
        assert (set(pair.rows), pair.rho > 0.5) == ({"T2", "T1RHO"}, True)
    # what is folded for closed forms keeps it
    assert Huang2022(tr=2.0).table()["liver"].correlations
    assert not Jacobs2025(field_strength=1.5).table()["myocardium"].correlations
    assert Huang2022(within=0.0).table().within == {}
    assert isinstance(Stanisz2005().table()["liver"].values["A"], Constant)


# --- the configs ------------------------------------------------------------------------------------------------------


def on_discs(tissues, names, config="huang2022/generate_t1rho_small"):
    """The config on stripes of whole rows of the tissues, without fields, motion and slices."""
    mapping = read_yaml(CONFIGS / f"{config}.yaml")
    for key in ("motion", "sampling", "fields", "split"):
        mapping.pop(key, None)
    shapes = [{"shape": "rectangle", "tissue": names[0], "extent_mm": [8.0, 8.0]}]
    shapes += [
        {"shape": "rectangle", "tissue": name, "centre_mm": [0.0, 2.0], "extent_mm": [8.0, 4.0]} for name in names[1:]
    ]
    geometry = {"kind": "geometry", "size": [8, 8], "spacing_mm": [1.0, 1.0], "shapes": shapes, "jitter_mm": 0.001}
    return mapping | {"phantom": geometry, "patch": [8, 8], "tissues": tissues, "partial_volume": False}


def apparent(signal, times):
    """Decay time of a two-parameter fit to the logarithm [s]."""
    slope = np.polyfit(times, np.log(signal), 1)[0]
    return -1 / slope


@pytest.mark.parametrize("size", ["t1rho_small", "pair_t1rho"])
def test_liver_decays_with_the_t1rho_that_was_drawn(size):
    """Images are A gain exp(-TSL / T1rho) (1 - E(TSL) ...): recovery is shorter by TSL, under 1 % of the signal."""
    config = GeneratorConfig(**on_discs({"kind": "huang2022", "within": 0.0}, ("liver",), f"huang2022/generate_{size}"))
    truth = make_truth(config, 0)
    rows = [parameter.name for parameter in config.signal_model.parameters]
    t1, t1rho = (float(truth.kappa[rows.index(name), 4, 4]) for name in ("T1", "T1RHO"))
    drawn = draws(config, 0)["tissues"]["liver"]
    assert (t1, t1rho) == pytest.approx((drawn["T1"], drawn["T1RHO"]))
    tsl = np.array([0.0, 0.01, 0.03, 0.05])
    signal = truth.signal[:, 4, 4].double().numpy()
    factor = signal / signal[0] / np.exp(-tsl / t1rho)
    # the train of 48 echoes at 4.5 ms leaves 2 s - 218 ms - TSL for recovery, from saturation
    rest = np.exp(-(2.0 - 48.5 * 0.0045 - tsl) / t1)
    assert np.all(factor <= 1 + 1e-6)
    assert np.all(factor >= (1 - rest) / (1 - rest[0]) - 1e-6)
    assert apparent(signal, tsl) == pytest.approx(t1rho, rel=0.01)


def test_fibrosis_lies_above_healthy_liver_in_the_images():
    noise = {"kind": "gaussian", "sigma": {"kind": "constant", "value": 1e-6}}
    config = GeneratorConfig(**on_discs({"kind": "huang2022"}, ("liver", "fibrotic_liver")) | {"noise": noise})
    images = make_samples(config, range(40)).images.double()
    times = {}
    for name, columns in (("healthy", slice(0, 4)), ("fibrotic", slice(4, 8))):
        means = images[..., columns].mean((2, 3)).numpy()
        times[name] = np.array([apparent(series, (0.0, 0.01, 0.03, 0.05)) for series in means])
    # 3 standard errors of 40 draws around the printed means
    assert times["healthy"].mean() == pytest.approx(0.0449, abs=3 * 0.0028 / 40**0.5)
    assert times["fibrotic"].mean() == pytest.approx(0.0526, abs=3 * 0.0068 / 40**0.5)
    assert times["fibrotic"].mean() > times["healthy"].mean() + 0.003


@pytest.mark.parametrize("size", ["pair_t2_small"])
def test_liver_decays_with_the_t2_that_was_drawn(size):
    config = GeneratorConfig(**on_discs({"kind": "huang2022", "within": 0.0}, ("liver",), f"huang2022/generate_{size}"))
    signal = make_truth(config, 0).signal[:, 4, 4].double().numpy()
    assert config.signal_model.times == (0.0, 0.0182, 0.0346, 0.051)
    t2 = draws(config, 0)["tissues"]["liver"]["T2"]
    assert apparent(signal, np.array(config.signal_model.times)) == pytest.approx(t2, rel=0.01)


def test_the_pair_of_huang2023_shares_all_but_the_preparation():
    for size in ("", "_small"):
        t1rho, t2 = (read_yaml(CONFIGS / "huang2022" / f"generate_pair_{name}{size}.yaml") for name in ("t1rho", "t2"))
        locked, refocused = t1rho["model"].pop("preparation"), t2["model"].pop("preparation")
        assert (t1rho.pop("targets"), t2.pop("targets")) == (["A", "T1RHO"], ["A", "T2"])
        assert t1rho == t2
        assert (t1rho["samples"], t1rho["phantom"]["subjects"], t1rho["phantom"]["slices"]) == (153, 51, 3)
        assert (locked["tsl"], refocused["te"]) == ([0.0, 0.01, 0.03, 0.05], [0.0, 0.0182, 0.0346, 0.051])


def test_suppressed_regions_are_the_noisy_ones():
    config = GeneratorConfig(**on_discs({"kind": "huang2022"}, ("liver", "fat")))
    signal = make_truth(config, 0).signal[0]
    assert 0 < float(signal[:, 4:].mean()) < 0.3 * float(signal[:, :4].mean())


@pytest.mark.parametrize("name", ["clinical_t1", "preclinical_t1rho"])
def test_frozen_numbers_of_a_heart_domain_are_those_of_its_function(name):
    spec = pytest.importorskip("phantoms.heart.spec")
    expected = getattr(spec, name)()
    for size, scale in (("", 1), ("_small", 2)):
        frozen = read_yaml(CONFIGS / "jacobs2025" / f"generate_{name}{size}.yaml")["phantom"]
        heart = TypeAdapter(spec.Heart).validate_python(frozen)
        # all 66 are made: folds are cut when training
        assert heart.test_subjects == (0 if name == "clinical_t1" else 15)
        assert np.multiply(heart.matrix, heart.voxel_mm) == pytest.approx(
            np.multiply(expected.matrix, expected.voxel_mm)
        )
        assert heart.voxel_mm == pytest.approx(np.multiply(expected.voxel_mm, scale))
        size_of = {"test_subjects": expected.test_subjects, "matrix": expected.matrix, "voxel_mm": expected.voxel_mm}
        assert replace(heart, **size_of) == expected
        # nothing is left to a default that could change
        assert set(frozen) == {field.name for field in fields(spec.Heart)} - {"labels"}


def test_eight_contrasts_of_66_humans_and_15_others():
    clinical = read_yaml(CONFIGS / "jacobs2025" / "generate_clinical_t1.yaml")
    other = read_yaml(CONFIGS / "jacobs2025" / "generate_preclinical_t1rho.yaml")
    assert (clinical["samples"], sum(clinical["model"]["scheme"]), clinical["phantom"]["slices"]) == (66, 8, 1)
    assert (other["samples"], other["split"], other["phantom"]["test_subjects"]) == (15, "test", 15)
    assert min(other["model"]["preparation"]["tsl"]) > 0


@pytest.mark.parametrize("b1", [0.8, 0.9])
def test_bands_of_the_plain_lock(b1):
    """A pulse of 90 degrees x B1 leaves its cosine upright; the lock turns that by f_SL B1 TSL cycles and keeps it.

    Mz = sin^2 exp(-TSL / T1rho) + cos^2 cos(w TSL) exp(-TSL (1 / T1 + 1 / T2) / 2),   w = 2 pi f_SL B1,

    up to recovery during a turn, 1 / (T1 w), and the two rates across the lock, cos^2 (1 / T2 - 1 / T1) / 2 w.
    """
    config = "jacobs2025/generate_preclinical_t1rho"
    preparation = read_yaml(CONFIGS / f"{config}.yaml")["model"]["preparation"]
    assert (preparation["cluster"], preparation["fsl"]) == ("SSL", 400.0)
    field = {"kind": "b1", "mean": {"kind": "constant", "value": b1}, "sd": {"kind": "constant", "value": 0.0}}
    tissues = {"kind": "jacobs2025", "field_strength": 3.0, "within": 0.0}
    mapping = on_discs(tissues, ("myocardium",), config)
    mapping |= {"model": {"kind": "bloch", "preparation": preparation}, "fields": [field]}
    truth = make_truth(GeneratorConfig(**mapping), 0)
    a, t1, t2, t1rho = truth.kappa[:4, 4, 4].tolist()
    t, tip = np.array(preparation["tsl"]), np.pi / 2 * b1
    w = 2 * np.pi * 400 * b1
    turned = np.cos(w * t) * np.exp(-t * (1 / t1 + 1 / t2) / 2)
    expected = np.sin(tip) ** 2 * np.exp(-t / t1rho) + np.cos(tip) ** 2 * turned
    left_out = (1 / t1 + np.cos(tip) ** 2 * (1 / t2 - 1 / t1) / 2) / w
    assert truth.signal[:, 4, 4].numpy() / a == pytest.approx(np.abs(expected), abs=left_out)
