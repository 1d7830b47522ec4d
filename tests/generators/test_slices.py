"""Whole slices in order, and organs that move between the images of a series."""

import numpy as np
import pytest
import torch

from generators.config import GeneratorConfig
from generators.sample import Samples, draws, make_anatomy, make_sample, make_samples, make_truth
from phantoms.shapes.geometry import Ball, Geometry
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace import RFSpike
from tests.generators.test_sample import config, plain_table

# two balls in every one of four subjects, of which one is test; the first and last slices are empty
BALLS = {
    "kind": "geometry",
    "size": [30, 26, 14],
    "spacing_mm": [1.0, 1.5, 2.0],
    "shapes": [
        {"shape": "ball", "tissue": "wm", "radius_mm": 10.2},
        {"shape": "ball", "tissue": "gm", "centre_mm": [-2.7, 2.9, 0.0], "radius_mm": 5.0},
    ],
    "subjects": 4,
    "test_subjects": 1,
}


def sliced(**changes):
    return config(
        **{
            "phantom": BALLS,
            "patch": [30, 26],
            "tissues": plain_table(),
            "sampling": "slices",
            "samples": 20,
            **changes,
        }
    )


def held_slices():
    """Slices of every train subject with a voxel that is at least half tissue, from the anatomy itself."""
    spec = Geometry(
        size=(30, 26, 14),
        spacing_mm=(1.0, 1.5, 2.0),
        shapes=(
            Ball(tissue="wm", radius_mm=10.2),
            Ball(tissue="gm", centre_mm=(-2.7, 2.9, 0.0), radius_mm=5.0),
        ),
        subjects=4,
        test_subjects=1,
    )
    found = []
    for subject in range(3):
        fractions = spec.fractions(subject)
        found += [(subject, z, fractions[..., z]) for z in range(14) if (fractions[..., z].sum(0) >= 0.5).any()]
    return found


def test_slices_come_whole_and_in_order():
    c, wanted = sliced(), held_slices()
    assert len(wanted) < 3 * 14
    samples = make_samples(c, range(len(wanted)))
    assert samples.subject.tolist() == [subject for subject, _, _ in wanted]
    assert samples.origin.tolist() == [[0, 0, z] for _, z, _ in wanted]
    for i, (_, _, fractions) in enumerate(wanted):
        background = 1 - fractions.sum(0)
        pure = np.maximum(fractions.max(0), background) > 0.51
        labels = np.where(fractions.max(0) > background, 1 + fractions.argmax(0), 0)
        np.testing.assert_array_equal(samples.labels[i].numpy()[pure], labels[pure])


def test_a_subject_has_its_tissue_values_and_fields_in_all_slices():
    c = sliced(
        model={"kind": "bloch", "preparation": {"kind": "inversion", "ti": [0.2, 0.6]}, "readout": {"kind": "ideal"}},
        tissues=plain_table(
            tissues=[
                {
                    "name": name,
                    "source": "this test",
                    "values": {
                        "A": {"kind": "constant", "value": 1.0},
                        "T1": {"kind": "uniform", "low": 0.7, "high": 1.3},
                        "T2": {"kind": "constant", "value": 0.08},
                    },
                }
                for name in ("wm", "gm")
            ],
            per_sample={},
        ),
        fields=[{"kind": "b0"}],
    )
    of = [draws(c, i) for i in range(len(held_slices()))]
    by_subject: dict[int, list] = {}
    for each in of:
        by_subject.setdefault(each["subject"], []).append(each)
    assert sorted(by_subject) == [0, 1, 2]
    for records in by_subject.values():
        assert all(r["tissues"] == records[0]["tissues"] and r["fields"] == records[0]["fields"] for r in records)
        # noise is that of the image
        assert len({r["sigma"] for r in records}) == len(records)
    firsts = [records[0]["tissues"]["wm"]["T1"] for records in by_subject.values()]
    assert len(set(firsts)) == 3
    # the field is one function of space: between neighbouring slices it changes little against its spread
    first, second = (make_truth(c, i).kappa[3] for i in (4, 5))
    both = (first != 0) & (second != 0)
    assert float((first - second)[both].abs().mean()) < 0.3 * float(first[both].std() + first[both].mean().abs())


def test_a_slice_does_not_depend_on_its_batch():
    c = sliced(motion={"kind": "organ_motion", "tissues": ["gm"], "sd_mm": 2.0, "fall_mm": 8.0})
    together = make_samples(c, [7, 3, 20])
    for row, index in enumerate((7, 3, 20)):
        alone = make_sample(c, index)
        for name in Samples.__slots__:
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name


def test_a_slice_that_is_not_there_is_refused():
    n = len(held_slices())
    with pytest.raises(InputError, match=rf"^samples: 200, but with .* the train split .* has {n} slices"):
        make_sample(sliced(samples=200), 0)
    with pytest.raises(InputError, match=rf"^samples: sample {n} was asked for.* has {n}; ask for at most"):
        make_sample(sliced(), n)
    with pytest.raises(InputError, match=r"^patch: sampling: slices cuts whole slices, 30 x 26 voxels in subject 0"):
        make_sample(sliced().model_copy(update={"patch": (20, 20)}), 0)
    with pytest.raises(ValueError, match="patch must hold two numbers with sampling: slices"):
        GeneratorConfig(**{**sliced().model_dump(), "patch": [30, 26, 2]})


def test_keys_at_their_default_leave_the_identity_of_a_data_set():
    c = config()
    assert GeneratorConfig(**{**c.model_dump(), "sampling": "patches", "motion": None}).digest == c.digest
    moving = {"kind": "organ_motion", "tissues": ["wm"], "sd_mm": 1.0}
    assert len({c.digest, config(motion=moving).digest, config(sampling="slices").digest}) == 3


DISC = {
    "kind": "geometry",
    "size": [80, 70],
    "spacing_mm": [1.0, 1.2],
    "subjects": 3,
    "shapes": [{"shape": "disc", "tissue": "gm", "radius_mm": 9.0}],
}


def moving(**changes):
    motion = {"kind": "organ_motion", "tissues": ["gm"], "sd_mm": 2.5, "fall_mm": 30.0, **changes}
    table = plain_table(within={})
    return config(phantom=DISC, patch=[80, 70], tissues=table, motion=motion)


def test_an_organ_lies_where_its_shift_says_in_every_image():
    c = moving()
    for index in range(4):
        record = draws(c, index)
        # the sample's own place: DISC is moved about between subjects, the patch is the whole slice
        truth = make_truth(c, index)
        y, x = torch.meshgrid(torch.arange(80.0), 1.2 * torch.arange(70.0), indexing="ij")
        middles = []
        for image in truth.signal:
            weight = image.abs()
            middles.append([float((weight * axis).sum() / weight.sum()) for axis in (y, x)])
        shifts = np.array(record["motion"]["shifts_mm"])
        assert shifts.shape == (4, 2)
        assert np.all(shifts[0] == 0)
        assert np.all(shifts[1:] != 0)
        np.testing.assert_allclose(np.array(middles) - middles[0], shifts, atol=0.03)
        # a disc that moves as one keeps its signal: the same tissue at every place
        area = [float((image.abs() > 0.5 * image.abs().max()).sum()) for image in truth.signal]
        np.testing.assert_allclose(area, area[0], rtol=0.03)
        share = make_anatomy(c, [Streams(c.seed, index)])
        # tissue neither shrinks nor grows: the sum of its shares
        for seen in share.moved:
            assert float(seen.voxels.purity.sum()) == pytest.approx(float(share.voxels.purity.sum()), rel=0.005)


def test_labels_and_maps_are_those_of_the_first_image():
    still, moved = moving(sd_mm=0.0), moving()
    assert torch.equal(make_truth(still, 3).kappa, make_truth(moved, 3).kappa)
    assert torch.equal(make_truth(still, 3).labels, make_truth(moved, 3).labels)
    assert torch.equal(make_truth(still, 3).signal[0], make_truth(moved, 3).signal[0])
    assert not torch.equal(make_truth(still, 3).signal[1], make_truth(moved, 3).signal[1])


def test_tissue_far_from_the_organ_stays():
    shapes = [
        {"shape": "disc", "tissue": "gm", "centre_mm": [-25.0, 0.0], "radius_mm": 6.0},
        {"shape": "disc", "tissue": "wm", "centre_mm": [25.0, 0.0], "radius_mm": 8.0},
    ]
    phantom = {**DISC, "shapes": shapes, "subjects": 1}
    c = moving(fall_mm=7.0, sd_mm=1.5).model_dump() | {"phantom": phantom, "split": "test"}
    still = moving(sd_mm=0.0).model_dump() | {"phantom": phantom, "split": "test"}
    moved, unmoved = (make_truth(GeneratorConfig(**each), 0).signal for each in (c, still))
    far = slice(48, 80)
    # 25 mm away from its edge: exp(-25^2 / (2 x 7^2)) of 3.75 mm at most
    assert float((moved - unmoved)[:, far].abs().max()) < 0.01
    assert float((moved - unmoved)[1:, :40].abs().max()) > 0.1


def test_sd_of_the_shifts():
    c = moving()
    shifts = np.array([draws(c, i)["motion"]["shifts_mm"][1:] for i in range(300)])
    # a normal of SD 2.5 mm cut at 2.5 SD: SD of the cut one is .9546 of it; 1800 numbers
    assert shifts.std() == pytest.approx(2.5 * 0.9546, rel=4 / np.sqrt(2 * shifts.size))
    assert np.abs(shifts).max() <= 2.5 * 2.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tissues": []}, "tissues is empty"),
        ({"tissues": ["gm", "gm"]}, "tissues: a name occurs twice"),
        ({"sd_mm": -1.0}, "sd_mm must be at least 0"),
        ({"fall_mm": 0.0}, "fall_mm must be above 0"),
        ({"sd_mm": 10.0, "fall_mm": 20.0}, "fall_mm must be at least 26.3 mm"),
    ],
)
def test_motion_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        moving(**changes)


def test_motion_of_what_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"^motion.tissues: the phantom has no stomach; it has gm"):
        make_sample(moving(tissues=["stomach"]), 0)
    with pytest.raises(ValueError, match="motion: store: maps keeps no images"):
        GeneratorConfig(**{**moving().model_dump(), "store": "maps", "partial_volume": False})


def test_two_series_of_the_same_subjects_share_all_values():
    values = {
        "A": {"kind": "uniform", "low": 0.5, "high": 1.0},
        "T1": {"kind": "uniform", "low": 0.7, "high": 1.3},
        "T2": {"kind": "uniform", "low": 0.03, "high": 0.1},
    }
    table = plain_table(
        tissues=[{"name": name, "source": "this test", "values": values} for name in ("wm", "gm")],
        within={"A": {"relative": 0.05}, "T2": {"relative": 0.05}},
    )
    recovery = sliced(tissues=table)
    decay = sliced(tissues=table, model={"kind": "t2_prep", "te_prep": [0.0, 0.02, 0.05]})
    for index in (0, 12):
        first, second = (draws(c, index)["tissues"] for c in (recovery, decay))
        assert {tissue: first[tissue]["A"] for tissue in first} == {tissue: second[tissue]["A"] for tissue in second}
        # the voxels of their common row too, and the first image of a decay is A
        a = make_truth(recovery, index).kappa[0]
        assert torch.equal(a, make_truth(decay, index).kappa[0])
        assert a[a > 0].std() > 0.02
        # two measurements: one noise level, other noise, other artefacts
        spiked = [c.model_copy(update={"artefacts": (RFSpike(),)}) for c in (recovery, decay)]
        spikes = [draws(c, index)["artefacts"][0] for c in spiked]
        assert spikes[0] != spikes[1]
        one, other = (make_sample(c, index) for c in (recovery, decay))
        assert torch.equal(one.sigma, other.sigma)
        noise = [
            (s.images[0] - make_truth(c, index).signal.abs()[: s.images.shape[1]])
            for s, c in ((one, recovery), (other, decay))
        ]
        n = noise[1].shape[0]
        together = torch.corrcoef(torch.stack([noise[0][:n].flatten(), noise[1].flatten()]))[0, 1]
        assert abs(float(together)) < 4 / noise[1].numel() ** 0.5
