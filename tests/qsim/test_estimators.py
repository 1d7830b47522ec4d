"""The registry, the contract that every estimator keeps, and the opponents that paint means."""

import pytest
import torch

from qsim.errors import InputError
from qsim.estimators import ESTIMATORS, Estimator, Status, build_estimator
from qsim.estimators.reference import population_constant, tissue_prior_mean, true_tissue_mean
from qsim.signals import InversionRecovery
from tests.published import TI_31

IR = InversionRecovery(ti=TI_31)


@pytest.fixture
def series():
    truth = torch.stack(
        torch.broadcast_tensors(torch.linspace(0.6, 1, 12), torch.tensor(1.9), torch.linspace(0.6, 3, 12))
    )
    return truth.reshape(3, 3, 4), IR(truth.reshape(3, 3, 4))


@pytest.mark.parametrize("name", list(ESTIMATORS))
class TestContract:
    def test_shape_and_rows(self, name, series):
        truth, images = series
        estimator = build_estimator(name, IR)
        assert isinstance(estimator, Estimator)
        assert estimator.name == name
        found = estimator(images)
        assert [p.name for p in estimator.parameters] == ["A", "B", "T1"]
        assert found.kappa.shape == truth.shape
        assert found.status.shape == truth.shape[1:]
        # the images are float32
        torch.testing.assert_close(found.kappa, truth, rtol=5e-3, atol=0)

    def test_inputs_stay_as_they_are(self, name, series):
        _, images = series
        before = images.clone()
        build_estimator(name, IR)(images)
        torch.testing.assert_close(images, before, rtol=0, atol=0)

    def test_voxels_that_cannot_be_estimated(self, name, series):
        truth, images = series
        images = images.clone()
        images[:, 0, 0], images[3, 1, 1], images[4, 2, 2] = 0, torch.nan, torch.inf
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[2, 3] = False
        found = build_estimator(name, IR)(images, mask=mask)
        left = mask.clone()
        left[0, 0] = left[1, 1] = left[2, 2] = False
        assert bool(((found.status == Status.NOT_COMPUTED) == ~left).all())
        assert bool((torch.isnan(found.kappa) == ~left).all())
        torch.testing.assert_close(found.kappa[:, left], truth[:, left], rtol=5e-3, atol=0)

    def test_wrong_series_and_mask(self, name, series):
        _, images = series
        with pytest.raises(InputError, match="30 images, the model has 31 times"):
            build_estimator(name, IR)(images[1:])
        # the shape check of the test run comes first
        with pytest.raises((InputError, TypeError), match="mask"):
            build_estimator(name, IR)(images, mask=torch.ones(4, 3, dtype=torch.bool))

    def test_unsorted_times(self, name, series):
        _, images = series
        order = torch.randperm(31, generator=torch.Generator().manual_seed(0))
        shuffled = InversionRecovery(ti=tuple(TI_31[i] for i in order.tolist()))
        sorted_, other = build_estimator(name, IR)(images), build_estimator(name, shuffled)(images[order])
        # sums in another order, in float32
        torch.testing.assert_close(other.kappa, sorted_.kappa, rtol=2e-3, atol=0)

    def test_scale_of_the_images(self, name, series):
        """A scanner's arbitrary units scale A and nothing else."""
        truth, images = series
        found = build_estimator(name, IR)(images * 1000)
        torch.testing.assert_close(found.kappa[0], 1000 * truth[0], rtol=5e-3, atol=0)
        torch.testing.assert_close(found.kappa[1:], truth[1:], rtol=5e-3, atol=0)


def test_unknown_method_is_refused_with_the_known_names():
    with pytest.raises(InputError, match="estimators: unknown method 'mle'; known are least-squares, shared-b"):
        build_estimator("mle", IR)


class EntryPoint:
    name, value = "mine", "my_package:build"

    def load(self):
        return lambda model: build_estimator("least-squares", model)


def test_methods_of_users_are_found(monkeypatch):
    monkeypatch.setattr(
        "qsim.estimators.entry_points", lambda group: [EntryPoint()] if group == "qsim.estimators" else []
    )
    assert build_estimator("mine", IR).name == "least-squares"
    with pytest.raises(InputError, match="known are least-squares, shared-b, mine"):
        build_estimator("yours", IR)
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda model: "no estimator")
    with pytest.raises(InputError, match="does not build an Estimator"):
        build_estimator("mine", IR)


LABELS = torch.tensor([[0, 1, 1], [2, 2, 1]], dtype=torch.uint8)
PRIOR = torch.tensor([[0.8, 1.4], [0.6, 0.8]])


def test_population_constant():
    found = population_constant(PRIOR, torch.tensor([3.0, 1.0]), LABELS)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0.75, 0.75], [0.75, 0.75, 0.75]]))
    torch.testing.assert_close(found[1, 1], torch.full((3,), 1.25))


def test_tissue_prior_mean():
    found = tissue_prior_mean(PRIOR, LABELS)
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 1.4, 1.4], [0.8, 0.8, 1.4]]))
    with pytest.raises(ValueError, match="labels reach 2, but there are 1 tissues"):
        tissue_prior_mean(PRIOR[:1], LABELS)


def test_true_tissue_mean():
    truth = torch.tensor([[[9.0, 1.0, 2.0], [5.0, 7.0, 3.0]]])
    found = true_tissue_mean(truth, LABELS)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2.0, 2.0], [6.0, 6.0, 2.0]]]))
