"""Artefacts in data sets: pure functions of (seed, epoch, index), whatever the workers, the order and the library."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
import torchio
from torch.utils.data import DataLoader

from qsim.errors import InputError
from qsim.kspace import RFSpike, magnitude
from qsim.kspace.artefacts.spike import Spike
from tests.qsim.kspace.oracle import random_images
from trainers.augment import CorruptedDataset, Corruption
from trainers.torchio_transform import CorruptTransform

SPIKES = (RFSpike(amplitude=(0.1, 2), probability=0.7), RFSpike(amplitude=(0, 1), spikes=(0, 3), per_image=True))


def images_of(index: int, shape=(2, 9, 8)) -> torch.Tensor:
    return torch.from_numpy(random_images(shape, seed=index)).to(torch.complex64)


class Slices:
    """Ten small series, in the form that is asked for."""

    def __init__(self, form: str = "dict", real: bool = False) -> None:
        self.form, self.real = form, real

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int):
        images = images_of(index)
        images = images.abs() if self.real else images
        forms = {"dict": {"name": f"s{index}", "image": images}, "tuple": (index, images), "list": [images, index]}
        return images if self.form == "tensor" else forms[self.form]


def plane_wave(shape: tuple[int, ...], spike: Spike, height: float) -> np.ndarray:
    turns = sum(
        k * (np.arange(n) - n // 2).reshape([-1 if a == b else 1 for b in range(len(shape))]) / n
        for a, (k, n) in enumerate(zip(spike.k, shape, strict=True))
    )
    return height * np.exp(1j * spike.phase + 2j * np.pi * turns)


def test_a_draw_belongs_to_seed_epoch_and_index():
    corruption, images = Corruption(SPIKES, seed=3), images_of(1)
    before = images.clone()
    first = corruption(images, 5)
    assert torch.equal(first.images, Corruption(list(SPIKES), seed=3)(images, 5).images)
    assert first.drawn == corruption.draw((2, 9, 8), 5)
    others = [corruption(images, 6), Corruption(SPIKES, seed=4)(images, 5), Corruption(SPIKES, 3, epoch=1)(images, 5)]
    others.append(corruption(images, 5, part="second"))
    for other in others:
        assert other.drawn != first.drawn
    assert torch.equal(images, before)
    assert first.images.is_complex()


def test_what_comes_out_is_the_plane_wave_of_the_draw():
    corruption = Corruption([RFSpike(amplitude=(1, 3))], seed=1)
    images = torch.from_numpy(random_images((1, 7, 6)))
    result = corruption(images, 2)
    (spike,) = result.drawn[0].spikes
    added = plane_wave((7, 6), spike, spike.amplitude * result.facts[0]["kspace_maximum"] / 42**0.5)
    np.testing.assert_allclose((result.images - images)[0].numpy(), added, atol=1e-12)


@pytest.mark.parametrize(("form", "key"), [("dict", "image"), ("tuple", 1), ("list", -2), ("tensor", None)])
def test_items_of_every_form_keep_what_is_not_an_image(form, key):
    dataset = CorruptedDataset(Slices(form), SPIKES, seed=3, key=key, output="complex")
    expected = Corruption(SPIKES, seed=3)(images_of(4), 4)
    item = dataset[4]
    if form == "dict":
        assert list(item) == ["name", "image", "severity"]
        assert item["name"] == "s4"
        images, severity = item["image"], item["severity"]
    elif form == "tensor":
        images, severity = item
    else:
        assert type(item).__name__ == form
        assert item[0 if form == "tuple" else 1] == 4
        images, severity = item[1 if form == "tuple" else 0], item[2]
    assert torch.equal(images, expected.images)
    assert severity.tolist() == pytest.approx(expected.severity)
    assert len(dataset) == 10
    again = dataset[-6]
    assert torch.equal(again[{"dict": "image", "tuple": 1}.get(form, 0)], images)


def test_magnitudes_are_taken_as_complex_only_when_it_is_said(unchecked):
    real = Slices("tensor", real=True)
    with pytest.raises(InputError, match=r"item 3: images are torch.float32, not complex; say phase='zero'"):
        CorruptedDataset(real, SPIKES, seed=1)[3]
    images, _ = CorruptedDataset(real, SPIKES, seed=1, phase="zero")[3]
    expected = Corruption(SPIKES, seed=1)(real[3].to(torch.complex64), 3).images
    assert torch.equal(images, magnitude(expected))
    with pytest.raises(InputError, match="negative values are no magnitudes"):
        CorruptedDataset([-real[3]], SPIKES, seed=1, phase="zero")[0]
    whole = torch.arange(72, dtype=torch.int16).reshape(1, 8, 9)
    assert CorruptedDataset([whole], SPIKES, seed=1, phase="zero")[0][0].dtype == torch.float32
    assert CorruptedDataset([whole.double()], SPIKES, seed=1, phase="zero")[0][0].dtype == torch.float64


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("dict", {"key": "picture"}, "key: no images under 'picture', the item is a dict of name, image"),
        ("dict", {"key": None}, "key: the item is a dict, not a tensor"),
        ("dict", {"key": "name"}, "key: 'name' is a str, not a tensor"),
        ("dict", {"key": "image", "severity": "name"}, "severity: the item holds 'name' already"),
        ("tuple", {"key": 2}, "key: no place 2, the item is a tuple of 2"),
        ("tensor", {"key": "image"}, "key: no images under 'image', the item is a Tensor"),
    ],
)
def test_an_item_without_images_is_refused(form, options, message):
    with pytest.raises(InputError, match=f"item 0: {message}"):
        CorruptedDataset(Slices(form), SPIKES, seed=1, **options)[0]


def test_wrong_arguments_are_refused_when_the_data_set_is_made(unchecked):
    for change, message in [
        ({"seed": -1}, "seed must be at least 0"),
        ({"epoch": -1}, "epoch must be at least 0"),
        ({"phase": "none"}, "phase must be given or zero"),
        ({"output": "real"}, "output must be magnitude or complex"),
    ]:
        with pytest.raises(ValueError, match=message):
            CorruptedDataset(Slices("tensor"), SPIKES, **{"seed": 1, **change})
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        CorruptedDataset(Slices("tensor"), SPIKES, seed=1).set_epoch(-1)
    with pytest.raises(ValueError, match="index must be at least 0"):
        Corruption(SPIKES, seed=1).draw((1, 8, 8), -1)


@pytest.fixture(scope="module")
def workers():
    """Processes that start quickly: torch is imported once, in the server they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "qsim.kspace"])
    return context


def collected(batches, key="image") -> list[torch.Tensor]:
    return [batch[key] for batch in batches]


def test_workers_order_and_epochs_change_nothing_else(workers):
    """Ten items by none, one and two workers, backwards, and over two epochs with workers that live on."""
    dataset = CorruptedDataset(Slices(), SPIKES, seed=3, key="image")
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(collected(DataLoader(dataset, batch_size=3)))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    for n in (1, 2):
        loader = DataLoader(
            dataset, batch_size=3, num_workers=n, multiprocessing_context=workers, persistent_workers=True
        )
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            assert all(torch.equal(*pair) for pair in zip(collected(loader), epochs[epoch], strict=True))
    dataset.set_epoch(0)
    backwards = collected(DataLoader(dataset, batch_size=1, sampler=range(9, -1, -1)))
    assert torch.equal(torch.cat(backwards).flip(0), torch.cat(epochs[0]))


def test_a_data_set_survives_pickling():
    dataset = CorruptedDataset(Slices(), SPIKES, seed=3, key="image", epoch=2)
    there = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(there[7]["image"], dataset[7]["image"])
    there.set_epoch(3)
    assert not torch.equal(there[7]["image"], dataset[7]["image"])


def volume(index: int, shape=(2, 6, 7, 9)) -> torch.Tensor:
    """(C, X, Y, Z), magnitudes."""
    return torch.from_numpy(np.abs(random_images(shape, seed=index))).float()


def as_series(data: torch.Tensor) -> torch.Tensor:
    """(C, X, Y, Z) to (n, z, y, x), complex."""
    return data.permute(0, 3, 2, 1).to(torch.complex64).contiguous()


def subject_of(index: int, **more) -> torchio.Subject:
    image = torchio.ScalarImage(tensor=volume(index))
    labels = torchio.LabelMap(tensor=torch.ones(1, 6, 7, 9))
    return torchio.Subject(t1=image, labels=labels, id=f"sub-{index}", **more)


def test_torchio_axes_x_y_z_are_the_last_three_backwards():
    transform = CorruptTransform(SPIKES, seed=3, key=8, phase="zero", output="complex")
    subject = subject_of(1)
    there = transform(subject)
    series = as_series(volume(1))
    expected = Corruption(SPIKES, seed=3)(series, 8)
    assert torch.equal(there["t1"].data, expected.images.permute(0, 3, 2, 1))
    assert there["severity"].tolist() == pytest.approx(expected.severity)
    assert torch.equal(there["labels"].data, subject["labels"].data)
    assert torch.equal(subject["t1"].data, volume(1)), "the subject that was given was changed"
    # one spike along x alone: stripes along the first axis of TorchIO
    (drawn,) = Corruption([RFSpike()], seed=3).draw((2, 9, 7, 6), 8)
    flat = torchio.ScalarImage(tensor=torch.ones(1, 6, 7, 9))
    changed = CorruptTransform([RFSpike()], 3, key=8, phase="zero", output="complex")(flat).data - 1
    kx = drawn.spikes[0].k[-1]
    turn = torch.exp(torch.tensor(2j * np.pi * kx / 6)).to(torch.complex64)
    torch.testing.assert_close(changed[:, 1:] / changed[:, :-1], turn.expand(1, 5, 7, 9), atol=1e-4, rtol=0)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_torchio_slices_are_two_dimensional(axis):
    shape = [2, 6, 7, 9]
    shape[axis] = 1
    data = volume(2, tuple(shape))
    transform = CorruptTransform(SPIKES, seed=3, key=0, phase="zero", output="complex")
    there = transform(data)
    flat = as_series(data).squeeze(4 - axis)
    expected = Corruption(SPIKES, seed=3)(flat, 0).images
    assert torch.equal(there.permute(0, 3, 2, 1).squeeze(4 - axis), expected)
    # unless an artefact wants three axes
    deep = CorruptTransform([RFSpike(ndim=3)], seed=3, key=0, phase="zero")(data)
    assert deep.shape == data.shape
    assert deep.dtype == torch.float32


def test_the_subject_decides_and_not_the_global_state():
    by_name = CorruptTransform(SPIKES, seed=3, key="id", phase="zero")
    by_bytes = CorruptTransform(SPIKES, seed=3, phase="zero")
    for transform in (by_name, by_bytes):
        torch.manual_seed(0)
        first = transform(subject_of(1))["t1"].data
        torch.manual_seed(1)
        assert torch.equal(transform(subject_of(1))["t1"].data, first)
        assert not torch.equal(transform(subject_of(2))["t1"].data, first)
        transform.set_epoch(1)
        assert not torch.equal(transform(subject_of(1))["t1"].data, first)
        assert transform.epoch == 1
    half = CorruptTransform(SPIKES[1:], seed=3, p=0.5, phase="zero")
    happened = [bool((half(subject_of(i))["severity"] > 0).any()) for i in range(12)]
    assert 0 < sum(happened) < 12
    assert happened == [len(half(subject_of(i)).applied_transforms) == 1 for i in range(12)]


def test_workers_change_nothing_in_torchio(workers):
    subjects = [subject_of(i) for i in range(4)]
    dataset = torchio.SubjectsDataset(subjects, transform=CorruptTransform(SPIKES, seed=3, phase="zero"))
    runs = [
        collected(torchio.SubjectsLoader(dataset, num_workers=n, multiprocessing_context=workers if n else None), "t1")
        for n in (0, 2)
    ]
    assert all(torch.equal(one["data"], two["data"]) for one, two in zip(*runs, strict=True))


def test_images_of_a_subject_are_one_series_or_drawn_one_by_one():
    def two() -> torchio.Subject:
        return torchio.Subject(
            a=torchio.ScalarImage(tensor=volume(1)), b=torchio.ScalarImage(tensor=volume(2, (1, 6, 7, 9))), id=4
        )

    options = {"seed": 3, "key": "id", "phase": "zero", "output": "complex"}
    together = CorruptTransform(SPIKES, **options)(two())
    series = as_series(torch.cat([volume(1), volume(2, (1, 6, 7, 9))]))
    expected = Corruption(SPIKES, seed=3)(series, 4)
    assert torch.equal(together["b"].data, expected.images[2:].permute(0, 3, 2, 1))
    assert together["severity"].shape == (2,)
    apart = CorruptTransform(SPIKES, together=False, **options)(two())
    assert apart["severity"].shape == (2, 2)
    assert not torch.equal(apart["severity"][0], apart["severity"][1])
    chosen = CorruptTransform(SPIKES, include=["a"], **options)(two())
    assert torch.equal(chosen["b"].data, volume(2, (1, 6, 7, 9)))
    assert not torch.equal(chosen["a"].data, volume(1).to(torch.complex64))
    left = CorruptTransform(SPIKES, exclude=["a", "b"], **options)(two())
    assert torch.equal(left["a"].data, volume(1))


def test_the_history_makes_the_same_subject_again():
    transform = CorruptTransform(SPIKES, seed=3, key="id", phase="zero", epoch=2, together=False, p=0.9)
    there = transform(subject_of(1))
    (again,) = there.get_applied_transforms()
    assert torch.equal(again(subject_of(1))["t1"].data, there["t1"].data)


@pytest.mark.parametrize(
    ("subject", "options", "message"),
    [
        ({}, {"key": "name"}, "key: the subject has no 'name', it has t1, labels, id"),
        ({"visit": 1.5}, {"key": "visit"}, "key: 'visit' must be a text or a number"),
        ({"severity": 1}, {}, "severity: the subject holds 'severity' already"),
        ({}, {"phase": "given"}, "images are torch.float32, not complex"),
        ({"t2": torchio.ScalarImage(tensor=volume(1, (1, 6, 7, 8)))}, {}, "together: images of one series need one"),
    ],
)
def test_a_subject_that_does_not_fit_is_refused(subject, options, message):
    with pytest.raises(ValueError, match=message):
        CorruptTransform(SPIKES, **{"seed": 3, "phase": "zero", **options})(subject_of(1, **subject))
    with pytest.raises(ValueError, match="p must"):
        CorruptTransform(SPIKES, seed=3, p=2.0)
