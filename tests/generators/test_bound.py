"""`qsim bound`: the figures of the statistics document, the words, the design, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from generators import cli
from generators.bound import protocol, read_protocol
from generators.bound_text import percent
from qsim.errors import InputError
from qsim.information import crb
from tests.published import CV_T1_FREE_KNOWN, CV_T1_GM_KNOWN, CV_T1_GM_SHARED, CV_T2_WM, TABLE_1, TE_PREP, TI_31

ROOT = Path(__file__).parents[2]
app = typer.Typer()
app.command()(cli.bound)


def constant(value):
    return {"kind": "constant", "value": value}


TABLE = {
    "kind": "table",
    "name": "Table 1, no spread",
    "field_strength": 3.0,
    "tissues": [
        {"name": name, "source": "Table 1", "values": {"A": constant(a), "T1": constant(t1), "T2": constant(t2)}}
        for name, (a, t1, t2) in TABLE_1.items()
    ],
    "per_sample": {"B": constant(1.9)},
}
CONFIG = {
    "seed": 1,
    "samples": 1,
    "patch": [8, 8],
    "phantom": {"kind": "mni"},
    "tissues": TABLE,
    "model": {"kind": "inversion_recovery", "ti": list(TI_31)},
    "noise": {"kind": "gaussian", "sigma": constant(0.02)},
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(CONFIG | changes))
        return file

    return write


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def rows(*arguments):
    return json.loads(run(*arguments, "--json"))


def one(found, tissue, parameter, snr):
    (row,) = [r for r in found if (r["tissue"], r["parameter"], r["snr"]) == (tissue, parameter, snr)]
    return row


def test_the_figures_of_the_statistics(write):
    found = rows(write(), "--snr", 10)
    assert list(found[0]) == [
        *("tissue", "parameter", "snr", "sigma", "cv_free", "cv_shared", "cv_known", "identifiable"),
    ]
    assert len(found) == 9
    for tissue, (free, known) in CV_T1_FREE_KNOWN.items():
        row = one(found, tissue, "T1", 10)
        assert row["sigma"] == pytest.approx(0.065)
        # printed with two digits
        assert row["cv_free"] == pytest.approx(free, rel=0.01)
        assert row["cv_known"] == pytest.approx(known, rel=0.02)
        assert row["identifiable"] == (free < 50)
    assert one(found, "gm", "B", 10)["cv_known"] == 0


def test_shared_by_so_many_voxels(write):
    snr = 0.65 / 0.0255
    for voxels, cv in CV_T1_GM_SHARED.items():
        row = rows(write(), "--snr", repr(snr), "--voxels", voxels, "--tissues", "gm")[2]
        assert (row["tissue"], row["parameter"]) == ("gm", "T1")
        assert row["cv_shared"] == pytest.approx(cv, rel=0.01)
        assert row["cv_known"] == pytest.approx(CV_T1_GM_KNOWN, rel=0.01)


def test_decays_share_nothing(write):
    file = write(model={"kind": "t2_prep", "te_prep": list(TE_PREP)})
    snrs = ",".join(repr(0.65 / sigma) for sigma in CV_T2_WM)
    found = [row for row in rows(file, "--snr", snrs) if (row["tissue"], row["parameter"]) == ("wm", "T2")]
    assert [row["cv_free"] for row in found] == [pytest.approx(cv, rel=0.015) for cv in CV_T2_WM.values()]
    assert all(row["cv_shared"] is None and row["cv_known"] is None for row in found)
    assert "voxels share" not in run(file)


def test_rician_noise_has_the_rician_bound(write):
    noise = {"kind": "rician", "sigma": constant(0.02)}
    file = write(model={"kind": "t2_prep", "te_prep": list(TE_PREP)}, noise=noise)
    assert protocol(read_protocol(file)).coils == 1
    found = one(rows(file, "--snr", 5), "wm", "T2", 5)
    kappa = torch.tensor([TABLE_1["wm"][0], TABLE_1["wm"][2]]).double()
    expected = crb(read_protocol(file).signal_model, kappa, 0.13, coils=1).cv[1]
    assert found["cv_free"] == pytest.approx(float(expected))
    assert found["cv_free"] > 49.5


def test_too_few_images_are_said_and_null(write):
    file = write(model={"kind": "inversion_recovery", "ti": [0.2, 0.8]})
    found = one(rows(file, "--snr", 30), "gm", "T1", 30)
    assert found["cv_free"] is None
    assert found["cv_shared"] is None
    assert found["cv_known"] < 10
    assert not found["identifiable"]
    said = run(file, "--snr", "30,100")
    assert "2 images cannot tell 3 unknowns of a voxel: A, B, T1." in said
    assert "T1 of gm: not identifiable with B free at any SNR (the bound is infinite): B must be known" in said
    # one image can tell nothing, whatever is known
    alone = run(write(model={"kind": "inversion_recovery", "ti": [0.2]}), "--snr", 30)
    assert "with B known too (inf %); more images, other times are needed" in " ".join(alone.split())


def test_the_table_and_its_words(write):
    said = run(write(), "--snr", "10,30")
    flat = " ".join(said.split())
    assert "SNR = 0.65 / sigma" in said
    assert "0.0650" in said
    assert "1000 voxels share B" in said
    assert (
        "T1 of csf: practically not identifiable with B free at SNR 30 and below (bound 115 % at SNR 30): B must be "
        "shared or known" in flat
    )
    assert "T1 of gm: practically not identifiable with B free at SNR 10 (bound 81.8 %)" in flat
    assert "T1 of wm: " not in flat
    assert max(map(len, said.splitlines())) <= 120


def test_every_line_fits_at_the_default_snrs(write):
    said = run(write(), "--design", 6, "--min", 0.05, "--max", 3, "--total", 5)
    assert max(map(len, said.splitlines())) <= 120
    assert "0.2167" in said


@pytest.mark.parametrize(
    ("cv", "text"), [(None, "inf"), (0.4711, "0.471"), (8.6, "8.60"), (99.96, "100"), (345.6, "346"), (2e5, ">99999")]
)
def test_numbers(cv, text):
    assert percent(cv) == text


def test_a_study_config_needs_neither_networks_nor_patch():
    """Figures at the means of its distributions: B = 2 - half-normal of scale .2 cut at 1 is 1.840 in the mean."""
    of = protocol(read_protocol(ROOT / "configs/sabidussi2021/study_t1_small.yaml"))
    assert of.tissues == ("csf", "gm", "wm")
    assert of.shared == ("B",)
    np.testing.assert_allclose(of.kappa[1], 2 - 0.2 * np.sqrt(2 / np.pi), rtol=1e-4)
    np.testing.assert_allclose(of.kappa[2], [TABLE_1[name][1] for name in of.tissues], rtol=1e-6)


def test_fields_and_other_rows_of_a_bloch_model_are_known():
    file = ROOT / "configs/bloch/generate_spin_lock_liver.yaml"
    of = protocol(read_protocol(file))
    assert of.known == ("T1", "T2", "DELTA_B0", "REL_B1")
    assert of.shared == ()
    # the chemical shift of fat belongs to the tissue
    assert of.kappa[of.names.index("DELTA_B0")].tolist() == [pytest.approx(-434, abs=1), 0.0, 0.0]
    found = rows(file, "--snr", 30)
    assert {row["parameter"] for row in found} == {"A", "T1RHO"}
    kappa = of.kappa[:, [of.tissues.index("liver")]]
    expected = crb(of.model, kappa, 0.65 / 30, known=of.known, coils=1).cv[3]
    assert one(found, "liver", "T1RHO", 30)["cv_free"] == pytest.approx(float(expected))
    said = run(file, "--snr", 30)
    assert "Known in all of them: T1, T2, DELTA_B0, REL_B1." in said
    assert "Without what differs from voxel to voxel: shim_box." in said


def test_a_depth_that_a_field_changes_is_not_shared(write):
    file = write(fields=[{"kind": "inversion_efficiency"}])
    assert protocol(read_protocol(file)).shared == ()


def test_a_design_and_its_gain(write):
    arguments = (write(), "--snr", 10, "--design", 8, "--min", 0.05, "--max", 3, "--total", 9, "--problem", "free")
    told, said = rows(*arguments), run(*arguments)
    assert "Proposed ti [ms]: " in said
    assert "per sqrt(image)" in said
    design = told["design"]
    assert len(told["bound"]) == 9
    times = design["times"]
    assert (len(times), design["what"], design["problem"]) == (8, "ti", "free")
    assert sum(times) <= 9 + 1e-9
    for gain in design["rows"]:
        a, t1, _ = TABLE_1[gain["tissue"]]
        kappa = torch.tensor([a, 1.9, t1]).double()
        model = read_protocol(write(model={"kind": "inversion_recovery", "ti": times})).signal_model
        assert gain["cv_proposed"] == pytest.approx(float(crb(model, kappa, 0.065).cv[2]))
        assert gain["cv_given"] == pytest.approx(CV_T1_FREE_KNOWN[gain["tissue"]][0], rel=0.01)
        assert gain["gain"] == pytest.approx(gain["cv_given"] / gain["cv_proposed"])
        assert gain["gain_per_sqrt_image"] == pytest.approx(gain["gain"] * np.sqrt(31 / 8))
        assert gain["gain_per_sqrt_time"] == pytest.approx(gain["gain"] * np.sqrt(sum(TI_31) / sum(times)))
    worst = max(gain["cv_proposed"] for gain in design["rows"])
    assert worst == pytest.approx(design["worst_cv"])
    # 8 images in half the time tell more than the 31 given
    assert worst < 0.2 * CV_T1_FREE_KNOWN["csf"][0]


def test_a_design_takes_what_is_shared_by_default(write):
    told = rows(write(), "--design", 4, "--min", 0.1, "--max", 3)["design"]
    assert (told["problem"], told["voxels"], told["snr"], told["total"]) == ("shared", 1000, 30, 12)
    # under Gaussian noise the times do not depend on the noise
    assert rows(write(), "--snr", 100, "--design", 4, "--min", 0.1, "--max", 3)["design"]["times"] == told["times"]


def test_a_design_of_a_preparation_with_its_readout():
    file = ROOT / "configs/bloch/generate_spin_lock_liver.yaml"
    arguments = ("--snr", 30, "--tissues", "liver", "--design", 4, "--min", 0, "--max", 0.1)
    design = rows(file, *arguments)["design"]
    assert design["what"] == "tsl"
    (gain,) = design["rows"]
    assert (gain["parameter"], gain["gain"] > 1) == ("T1RHO", True)
    assert gain["gain_per_sqrt_image"] == pytest.approx(gain["gain"])


LIMITS = ("--design", 4, "--min", 0.1, "--max", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--snr", "10,x"), r"--snr: got '10,x', wanted numbers above 0"),
        (("--snr", "0"), r"--snr: got '0'"),
        (("--snr", "nan"), r"--snr: got 'nan'"),
        (("--voxels", 0), r"--voxels: must be at least 1, got 0"),
        (("--tissues", "gm,liver"), r"--tissues: the table has no liver .*it has gm, wm, csf"),
        (("--min", 0.1), r"--min: goes with --design"),
        (("--problem", "free"), r"--problem: goes with --design"),
        (("--design", 4, "--min", 0.1), r"--max: missing; --design needs the limits of the times in seconds"),
        (("--design", 4, "--max", 1), r"--min: missing"),
        (("--design", 4, "--min", 1, "--max", 1), r"--min: 1 s is not below --max, 1 s"),
        (("--design", 4, "--min", -0.1, "--max", 1), r"--min: must be a time in seconds, 0 or more, got -0.1"),
        (("--design", 4, "--min", "nan", "--max", 1), r"--min: must be a time in seconds"),
        (
            ("--design", 2, "--min", 0.1, "--max", 3),
            r"--design: 2 images cannot tell A, T1 beside the shared B; take at",
        ),
        (("--design", 0, "--min", 0.1, "--max", 3), r"--design: 0 images cannot tell"),
        (
            ("--design", 2, *LIMITS[2:], "--problem", "free"),
            r"2 images cannot tell A, B, T1; take at least 3 or take --pr",
        ),
        (("--design", 1, *LIMITS[2:], "--problem", "known"), r"--design: 1 images cannot tell A, T1; take at least 2$"),
        (("--design", 500, *LIMITS[2:]), r"--design: at most 200 times, got 500"),
        ((*LIMITS, "--total", 0.3), r"--total: 0.3 s cannot hold 4 times of at least 0.1 s; raise it to 0.4 or more"),
        ((*LIMITS, "--total", 9000), r"--total: must be in seconds, got 9000; divide by 1000"),
        ((*LIMITS, "--problem", "own"), r"--problem: got 'own', wanted free, shared or known"),
        (("--design", 4, "--min", 0.1, "--max", 3000), r"--max: ti must be in seconds, got 3000; divide by 1000"),
        (("--design", 4, "--min", 100, "--max", 3000), r"--max: ti must be in seconds"),
    ],
)
def test_one_line_for_bad_options(write, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(write(), *arguments)
    assert "\n" not in str(caught.value)


def test_one_line_for_configs_that_cannot_be(write, tmp_path):
    decay = write(model={"kind": "t2_prep", "te_prep": list(TE_PREP)})
    with pytest.raises(InputError, match="--problem: shared, but this config draws nothing once per sample"):
        run(decay, *LIMITS, "--problem", "shared")
    with pytest.raises(InputError, match="targets: no relaxation time among A"):
        run(write(targets=["A"]), *LIMITS)
    for name in ("generate_cine_look_locker", "generate_molli", "generate_multi_echo"):
        with pytest.raises(InputError, match=r"^model: .* are not free"):
            run(ROOT / f"configs/bloch/{name}.yaml", *LIMITS)
    liver = ROOT / "configs/bloch/generate_spin_lock_liver.yaml"
    with pytest.raises(InputError, match="--max: tr of 3 s is shorter than preparation and readout"):
        run(liver, "--design", 4, "--min", 0, "--max", 4)
    with pytest.raises(InputError, match="data: missing; qsim bound reads a generator config"):
        run(ROOT / "configs/bloch/study_prep_robustness_small.yaml")
    with pytest.raises(InputError, match="data: this trains a network"):
        run(ROOT / "configs/sabidussi2021/train_rim_small.yaml")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"kind": "noise", "data": {**CONFIG, "patch": [8, 8], "seed": -1}}))
    with pytest.raises(InputError, match=r"study\.yaml: data\.seed: "):
        run(file)
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read"):
        run(tmp_path / "nowhere.yaml")
