"""Options of networks: in the entries of a study, and in `qsim map`."""

import csv
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import trainers
from phantoms.files.map_files import read_map
from phantoms.series.base import Series
from qsim.errors import InputError
from qsim.signals import InversionRecovery, T2Prep
from tests.conftest import DISCS
from trainers.mapping.inputs import MapJob
from trainers.mapping.series import map_series
from trainers.studies.block_runner import Command
from trainers.studies.methods import ModelEntry, check_entries, check_shapes, choose
from trainers.studies.network_options import network_options
from trainers.studies.registry import STUDIES

TI = (0.1, 0.3, 0.6, 1.0, 1.6, 2.5, 4.0)
MODEL = InversionRecovery(ti=TI)
SHAPE = (3, 20, 18)
OPTIONS = {"contrast": 2.0, "noise": "rician"}
TWICE = [{"model": "rim-t1"}, {"model": "rim-t1", "options": OPTIONS}, "shared-b"]
NAMES = ["rim-t1", "rim-t1, contrast 2, noise rician", "shared-b"]
BRAIN = {
    "seed": 77,
    "split": "test",
    "phantom": DISCS,
    "tissues": {"kind": "sabidussi2021"},
    "partial_volume": False,
    "model": {"kind": "inversion_recovery", "ti": list(TI)},
    "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.1}},
}
TUBES = BRAIN | {
    "phantom": {"kind": "system_phantom", "array": "t1", "matrix": [56, 56], "voxel_mm": [3.0, 3.0]},
    "tissues": {"kind": "system_phantom", "serial": 41, "field_strength": 3.0},
}
NOISE = {"seed": 1, "kind": "noise", "data": BRAIN, "snr": [8], "draws": 1, "repeats": 2, "crop": [30, 26]}
SPHERES = {
    "seed": 1,
    "kind": "phantom",
    "data": {"twin": TUBES, "share": 0.9},
    "snr": [60],
    "repeats": 2,
    "covered": {"T1": [0.2, 2.5]},
}


def study(config: dict[str, Any], out):
    kind = STUDIES[config["kind"]]
    return kind.run(kind.config.model_validate(config), out, Command())


# --- entries of a study ---


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"options": {"weight": 3}}, ".options.weight: is no option of a network, wanted contrast or noise"),
        ({"options": {"contrast": 0.5}}, ".options.contrast: wanted a number of at least 1, got 0.5"),
        ({"options": {"contrast": "much"}}, ".options.contrast: wanted a number of at least 1, got 'much'"),
        ({"options": {"contrast": True}}, ".options.contrast: wanted a number of at least 1, got True"),
        ({"options": {"contrast": float("inf")}}, ".options.contrast: wanted a number of at least 1, got inf"),
        ({"options": {"noise": "poisson"}}, ".options.noise: wanted gaussian or rician, got 'poisson'"),
        ({"options": {"noise": 1}}, ".options.noise: wanted gaussian or rician, got 1"),
        ({"options": {"contrast": [2]}}, ".options.contrast: wanted a number, true, false or a word, got [2]"),
        ({"options": 3}, ".options: wanted a mapping of options, got 3"),
        ({"known": ["B"]}, "{model: run, options: {...}}, or {method: name"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_its_place(entry, said):
    with pytest.raises(ValueError, match=r"^estimators\[1\]") as refused:
        check_shapes(["shared-b", {"model": "rim-t1"} | entry])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValidationError) as whole:
        STUDIES["noise"].config.model_validate(NOISE | {"estimators": ["shared-b", {"model": "rim-t1"} | entry]})
    assert len(whole.value.errors()) == 1


def test_the_same_network_with_two_options_is_two_methods():
    entries = check_shapes(TWICE)
    check_entries(entries, MODEL)
    chosen = choose(entries, (), MODEL)
    assert [each.name for each in chosen] == NAMES
    assert chosen[0].weights == chosen[1].weights
    assert chosen[1].estimator.estimator.contrast == 2.0  # type: ignore[attr-defined]
    own = ModelEntry(model="rim-t1", name="mine", options={"contrast": 3})
    assert choose([own], (), MODEL)[0].name == "mine"
    # whole numbers and others are one number
    same = [ModelEntry(model="rim-t1", options={"contrast": 2}), ModelEntry(model="rim-t1", options={"contrast": 2.0})]
    with pytest.raises(ValueError, match=r"^estimators\[1\]: .*'contrast': 2.* is given twice"):
        check_entries(same, MODEL)
    # another spelling of the same list
    with pytest.raises(InputError, match=r"^estimators: two are called rim-t1, contrast 2;"):
        choose([same[0], ModelEntry(model="rim-t1", name="rim-t1, contrast 2")], (), MODEL)


@pytest.mark.parametrize("option", [{"contrast": 2.0}, {"noise": "rician"}])
def test_a_network_without_them_is_refused_before_the_study_begins(tmp_path, tiny_rim, option, monkeypatch):
    monkeypatch.setattr("trainers.studies.block_runner.finish", None)
    entry = {"model": str(tiny_rim), "options": option}
    wrong = rf"^estimators\[1\]\.options\.{next(iter(option))}: a rim has "
    with pytest.raises(InputError, match=wrong):
        study(NOISE | {"estimators": ["shared-b", entry]}, tmp_path / "noise")
    with pytest.raises(InputError, match=wrong):
        study(SPHERES | {"estimators": ["shared-b", entry]}, tmp_path / "phantom")
    protocols = {"kind": "generalisation", "protocols": {"a": list(TI), "b": list(TI[:5])}}
    with pytest.raises(InputError, match=wrong):
        study(NOISE | protocols | {"estimators": ["shared-b", entry]}, tmp_path / "generalisation")
    assert not list(tmp_path.iterdir())


def rows(out):
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_noise_study(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.studies.evaluate.write_report", lambda *_, **__: None)
    study(NOISE | {"estimators": TWICE}, tmp_path / "o")
    found = {
        row["estimator"]: float(row["value"])
        for row in rows(tmp_path / "o")
        if (row["metric"], row["parameter"], row["tissue"], row["draw"]) == ("rmse_median", "T1", "pure", "all")
    }
    assert set(NAMES) < set(found)
    # neighbours help at SNR 8, whatever the options
    assert found[NAMES[0]] < 0.95 * found["shared-b"]
    assert found[NAMES[1]] < 0.95 * found["shared-b"]
    assert found[NAMES[0]] != found[NAMES[1]]
    entries = json.loads((tmp_path / "o/provenance.json").read_text())["config"]["estimators"]
    assert entries[1] == {"model": "rim-t1", "name": None, "options": OPTIONS}


def test_phantom_study(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.studies.phantom.sections", lambda *_: [])
    study(SPHERES | {"estimators": TWICE}, tmp_path / "o")
    bias = {
        row["estimator"]: float(row["value"])
        for row in rows(tmp_path / "o")
        if (row["metric"], row["tissue"], row["draw"]) == ("bias", "covered", "all")
    }
    assert set(NAMES) == set(bias)
    # SNR 60 and hundreds of voxels: nothing is left but a percent [%]
    assert all(abs(bias[name]) < 1.5 for name in NAMES)


def test_a_network_that_takes_only_its_own_times_is_named_as_in_the_tables(tmp_path, monkeypatch, tiny_rim):
    """What it does not take is under the name that its figures have elsewhere."""
    import trainers.infer

    load = trainers.infer.load_estimator

    def own_times(run, model=None, *args, **options):
        if run == str(tiny_rim) and model is not None and model.ti != TI:
            raise InputError("only its own times")
        return load(run, model, *args, **options)

    monkeypatch.setattr(trainers.infer, "load_estimator", own_times)
    monkeypatch.setattr("trainers.studies.generalisation.sections", lambda found: seen.append(found) or [])
    seen: list[Any] = []
    study(
        NOISE
        | {"kind": "generalisation", "protocols": {"long": list(TI), "short": list(TI[:5])}}
        | {"estimators": ["shared-b", {"model": str(tiny_rim)}]}
        | {"allow_training_anatomy": True},
        tmp_path / "o",
    )
    assert list(seen[0].refused) == [("rim", "short")]


# --- qsim map ---


def series(air: float = 0.0, sigma: float = 25.0) -> tuple[Series, Any, Any]:
    """Three slices of a scanner that counts to 700, each with its B: magnitudes; T1 [s] and where there is tissue."""
    _, y, x = np.indices(SHAPE)
    inside = (y - 10) ** 2 + (x - 9) ** 2 < 64
    # a lesion of one voxel's width, which neighbours would take for noise
    t1 = np.where(x < 9, 0.8, 1.2) + 0.7 * ((x == 13) & (y % 4 == 0))
    depth = np.array([1.85, 1.9, 1.95])[:, None, None]
    rng = np.random.default_rng(3)
    images = []
    for ti in TI:
        clean = np.where(inside, 700 * (1 - depth * np.exp(-ti / t1)), 0)
        noise = sigma * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))
        images.append((np.abs(clean + noise) * np.where(inside, 1, air)).astype(np.float32))
    return Series("sub-01_IRT1", (), tuple(images), "InversionTime", TI), t1, inside


def written(out, record):
    return {each.parameter: np.asarray(read_map(out / each.file)) for each in record.maps}


def test_options_reach_the_network_and_the_sidecar(tmp_path):
    """As loading it with these options gives, slice by slice; and close to the truth."""
    given, t1, inside = series()
    job = MapJob(out=tmp_path / "o", network="rim-t1", options=OPTIONS, sigma=25.0, std=True, device="cpu")
    record = map_series(given, MODEL, job)
    found = written(tmp_path / "o", record)
    network = trainers.load("rim-t1", MODEL, contrast=2.0, noise="rician")
    plain = trainers.load("rim-t1", MODEL)
    sd = np.asarray(read_map(tmp_path / "o/sub-01/anat/sub-01_desc-std_T1map.nii.gz"))
    for z in range(SHAPE[0]):
        images = torch.from_numpy(given.slab(z, z + 1))[:, 0]
        wanted = network(images, 25.0)
        np.testing.assert_allclose(found["T1"][z], wanted.kappa[2], rtol=1e-5)
        np.testing.assert_allclose(sd[z], wanted.variances["noise"][2].sqrt(), rtol=1e-4)
        assert not np.allclose(found["T1"][z], plain(images, 25.0).kappa[2], rtol=1e-3, equal_nan=True)
    # SNR 28
    assert np.median(np.abs(found["T1"] / t1 - 1)[inside]) < 0.03
    said = json.loads((tmp_path / "o/sub-01/anat/sub-01_T1map.json").read_text())
    assert said["MethodOptions"] == OPTIONS
    assert (said["Method"], said["Sigma"]) == ("rim-t1", 25.0)
    assert said["EstimationAlgorithm"] == "rim-t1: a network trained with qsim (local_mixture)"


def test_b_is_that_of_each_slice_and_may_be_given(tmp_path):
    given, t1, inside = series(sigma=4.0)
    record = map_series(given, MODEL, MapJob(out=tmp_path / "o", network="rim-t1", device="cpu"))
    found = written(tmp_path / "o", record)
    middle = [np.nanmedian(found["B"][z]) for z in range(3)]
    np.testing.assert_allclose(middle, (1.85, 1.9, 1.95), atol=0.01)
    assert any(
        note.startswith("B is common to the voxels of a slice, and found for each slice") for note in record.notes
    )
    # nothing outside of the object but zeros
    assert not any(note.startswith("warning") for note in record.notes)
    # sigma from residuals; there is no air
    assert record.sigma == pytest.approx(4.0, rel=0.1)
    job = MapJob(out=tmp_path / "k", network="rim-t1", device="cpu", known={"B": 1.9}, slices=(1, 2), sigma=4.0)
    record = map_series(given, MODEL, job)
    assert "B" not in written(tmp_path / "k", record)
    assert not any("is common to the voxels" in note for note in record.notes)
    t1_map = written(tmp_path / "k", record)["T1"]
    assert np.median(np.abs(t1_map / t1 - 1)[1][inside[1]]) < 0.01


@pytest.mark.parametrize(
    ("method", "sigma"),
    [({"network": "rim-t1"}, 25.0), ({"method": "shared-b"}, 25.0), ({"method": "shared-b"}, 120.0)],
)
def test_air_that_counts_is_warned_of(tmp_path, method, sigma):
    """Also at SNR 6, where it is not much darker than the object."""
    given, _, inside = series(air=1.0, sigma=sigma)
    job = {**method, "slices": (1, 2), "device": "cpu", "sigma": sigma}
    record = map_series(given, MODEL, MapJob(out=tmp_path / "o", **job))
    air = SHAPE[1] * SHAPE[2] - int(inside[1].sum())
    warned = [note for note in record.notes if note.startswith("warning: B is found from every voxel")]
    # the edge of the object is found to a few voxels
    assert len(warned) == 1
    assert int(warned[0].split("voxel, ")[1].split(" ")[0]) == pytest.approx(air, abs=0.05 * air)
    masked = map_series(given, MODEL, MapJob(out=tmp_path / "m", mask="auto", **job))
    assert not any(note.startswith("warning: B") for note in masked.notes)


def preparations(background=0.0) -> tuple[Series, T2Prep]:
    """A decay of 40 to 80 ms in a disc of 44 % of two slices, with signed noise."""
    te = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    _, y, x = np.indices(SHAPE)
    inside = (y - 10) ** 2 + (x - 9) ** 2 < 51
    rng = np.random.default_rng(4)
    clean = [np.where(inside, 500 * np.exp(-t / np.where(x < 9, 0.04, 0.08)), 0) for t in te]
    noise = [np.where(inside, 1, background) * 10 * rng.normal(size=SHAPE) for _ in te]
    images = tuple((s + n).astype(np.float32) for s, n in zip(clean, noise, strict=True))
    return Series("sub-01_T2", (), images, "T2PrepTime", te), T2Prep(te_prep=te)


def test_negative_values_under_rician_noise_are_said(tmp_path):
    """The last image of the slow decay is 500 exp(-.32/.08) = 9.2 at sigma 10: negative in 18 % of its voxels."""
    given, model = preparations()
    job = {"network": "rim-t2", "device": "cpu", "sigma": 10.0, "slices": (0, 1), "mask": "auto"}
    said = "rim-t2 assumes Rician noise and leaves voxels with negative values without a value; --option noise=gaussian"
    record = map_series(given, model, MapJob(out=tmp_path / "o", **job))
    assert sum(note.startswith(said) for note in record.notes) == 1
    lost = next(share for status, share in record.status.items() if status.startswith("not computed"))
    inside = np.isfinite(written(tmp_path / "o", record)["T2"][0])
    # the brighter half is the mask: 88 voxels, standard error 4 %
    assert lost == pytest.approx(0.18, abs=0.1)
    assert not (given.slab(0, 1)[:, 0] < 0).any(0)[inside].any()
    options = json.loads((tmp_path / "o/sub-01/anat/sub-01_T2map.json").read_text())["MethodOptions"]
    assert options == {"noise": "rician"}
    record = map_series(given, model, MapJob(out=tmp_path / "g", options={"noise": "gaussian"}, **job))
    assert not any("Rician" in note for note in record.notes)
    assert not any(status.startswith("not computed") and share > 0 for status, share in record.status.items())
    whole = replace(given, volumes=tuple(np.abs(volume) for volume in given.volumes))
    record = map_series(whole, model, MapJob(out=tmp_path / "m", **job))
    assert not any("Rician" in note for note in record.notes)


def test_air_in_the_histogram_of_a_decay_is_warned_of(tmp_path):
    given, model = preparations(background=1.0)
    given = replace(given, volumes=tuple(np.abs(volume) for volume in given.volumes))
    job = {"network": "rim-t2", "device": "cpu", "sigma": 10.0, "slices": (0, 1)}
    record = map_series(given, model, MapJob(out=tmp_path / "o", **job))
    said = "warning: the histogram that rim-t2 starts from counts every voxel, "
    warned = [note for note in record.notes if note.startswith(said)]
    assert len(warned) == 1
    assert int(warned[0].removeprefix(said).split(" ")[0]) == SHAPE[1] * SHAPE[2] - record.voxels
    assert "--mask auto" in warned[0]
    # the figures are of the object, and more than that was mapped
    assert record.region.endswith("what lies outside of it is mapped too")
    assert np.isfinite(written(tmp_path / "o", record)["T2"][0]).sum() > record.voxels
    masked = map_series(given, model, MapJob(out=tmp_path / "m", mask="auto", **job))
    assert not any("histogram" in note for note in masked.notes)


def test_what_a_network_does_not_do_is_said_at_once(tmp_path, tiny_rim):
    given, _, _ = series()
    (tmp_path / "b.nii.gz").write_bytes(b"")
    rim, out = {"network": str(tiny_rim)}, tmp_path / "o"
    for job, said in (
        (rim | {"std": True}, "--std: rim gives no standard deviations"),
        (rim | {"options": {"contrast": 2}}, "--option contrast: a rim has "),
        (rim | {"options": {"noise": "rician"}}, "--option noise: a rim has "),
        (rim | {"known": {"B": 1.9}}, "--known B: cannot be used by rim"),
        (
            {"options": {"coils": 4}},
            "--option coils: is no option of a network, wanted images_unit or contrast or noise",
        ),
        ({"options": {"contrast": 0}}, "--option contrast: wanted a number of at least 1, got 0"),
        ({"options": {"noise": "white"}}, "--option noise: wanted gaussian or rician, got 'white'"),
        ({"known": {"T1": 1.0}}, "--known T1: rim-t1 can be told B only"),
        ({"known": {"B": 9.0}}, "--known B: "),
        ({"network": "", "method": "shared-b", "known": {"B": 9.0}}, "--known B: must lie from "),
        ({"options": {"images_unit": 100}}, "--option images_unit: a mixture network sees nothing that has a unit"),
        ({"tissues": "sabidussi2021"}, "--tissues: a network is told nothing of tissues"),
    ):
        with pytest.raises(InputError) as refused:
            map_series(given, MODEL, MapJob(**({"out": out, "network": "rim-t1", "device": "cpu"} | job)))
        assert str(refused.value).startswith(said), str(refused.value)
        assert "\n" not in str(refused.value)
    assert not out.exists()


def test_options_are_none_where_none_is_given(unchecked):
    assert network_options({}, "").contrast is None
    with pytest.raises(InputError, match=r"^estimators\[0\]\.options\.noise: wanted"):
        network_options({"noise": True}, "estimators[0].options.")
    with pytest.raises(InputError, match="was trained on"):
        choose([ModelEntry(model="rim-t1", options={"contrast": 2})], (), T2Prep(te_prep=TI))
