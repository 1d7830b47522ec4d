"""The registry, the contract that every estimator keeps, and the opponents that paint means."""

import sys

import jaxtyping
import pytest
import torch

from qsim.errors import InputError
from qsim.estimators import (
    ESTIMATORS,
    Estimate,
    Estimator,
    Status,
    TissuePrior,
    build_estimator,
    build_foreign,
    method_options,
)
from qsim.estimators.reference import population_constant, tissue_prior_mean, true_tissue_mean
from qsim.signals import InversionRecovery, SpinLock
from tests.published import TI_31

IR = InversionRecovery(ti=TI_31)
# every list of a contract test is in another order than the times
DECAY = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05, 0.08))
RELAXED = {
    "two-point": DECAY,
    "log-linear": DECAY,
    "least-squares": IR,
    "rician": DECAY,
    "map": IR,
    "shared-b": IR,
    "smooth-b": IR,
    "empirical-bayes": IR,
    "dictionary": DECAY,
}
# sigma of the images, which hold no noise: small, so that no prior weighs
SIGMA = 2e-4
# relative error of noise-free maps: float32 images, and of empirical-bayes a grid of T
CLOSE = 5e-3


def truth_of(model):
    """Maps (q, 3, 4) whose T1 or T1rho differs in every voxel; B is one number, as the pooling methods take it."""
    a = torch.linspace(0.6, 1, 12)
    rows = (a, torch.tensor(1.9), torch.linspace(0.6, 3, 12)) if model is IR else (a, torch.linspace(0.02, 0.06, 12))
    return torch.stack(torch.broadcast_tensors(*rows)).reshape(-1, 3, 4)


def built(name, model=None, **options):
    model = model or RELAXED[name]
    prior = None
    if ESTIMATORS[name].takes_prior:
        truth = truth_of(RELAXED[name]).flatten(1)
        # wide: a factor of e either way
        prior = TissuePrior(model.parameters, torch.ones(1), truth.median(1).values[None], torch.ones(1, len(truth)))
    return build_estimator(name, model, options, prior)


@pytest.fixture
def series(request):
    name = request.node.callspec.params["name"]
    truth = truth_of(RELAXED[name])
    return truth, RELAXED[name](truth)


@pytest.fixture
def unchecked():
    """The shape check of the test run, which refuses wrong types before the method sees them, is off."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_every_method_has_a_contract_test():
    assert set(RELAXED) == set(ESTIMATORS)


@pytest.mark.parametrize("name", list(ESTIMATORS))
class TestContract:
    def test_shape_and_rows(self, name, series):
        truth, images = series
        estimator = built(name)
        assert isinstance(estimator, Estimator)
        assert estimator.name == name
        found = estimator(images, SIGMA)
        assert [p.name for p in estimator.parameters] == [p.name for p in RELAXED[name].parameters]
        assert found.kappa.shape == truth.shape
        assert found.kappa.dtype == images.dtype
        assert found.status.shape == truth.shape[1:]
        torch.testing.assert_close(found.kappa, truth, rtol=CLOSE, atol=0)

    def test_double_precision(self, name, series):
        truth, _ = series
        images = RELAXED[name](truth.double())
        found = built(name)(images, SIGMA)
        assert found.kappa.dtype == torch.float64
        torch.testing.assert_close(found.kappa, truth.double(), rtol=CLOSE, atol=0)

    def test_inputs_stay_as_they_are(self, name, series):
        _, images = series
        before = images.clone()
        built(name)(images, SIGMA)
        torch.testing.assert_close(images, before, rtol=0, atol=0)

    def test_voxels_that_cannot_be_estimated(self, name, series):
        truth, images = series
        images = images.clone()
        images[:, 0, 0], images[3, 1, 1], images[4, 2, 2] = 0, torch.nan, torch.inf
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[2, 3] = False
        found = built(name)(images, SIGMA, mask=mask)
        left = mask.clone()
        left[0, 0] = left[1, 1] = left[2, 2] = False
        assert bool(((found.status == Status.NOT_COMPUTED) == ~left).all())
        assert bool((torch.isnan(found.kappa) == ~left).all())
        torch.testing.assert_close(found.kappa[:, left], truth[:, left], rtol=CLOSE, atol=0)

    def test_negative_images(self, name, series):
        """Gaussian noise makes them; methods that need a logarithm or a magnitude leave the voxel out."""
        _, images = series
        images = images.clone()
        images[-1, 1, 2] = -1e-4
        found = built(name)(images, SIGMA)
        out = found.status[1, 2] == Status.NOT_COMPUTED
        assert bool(out) == (name in ("two-point", "log-linear", "rician"))
        assert bool(torch.isnan(found.kappa[:, 1, 2]).all()) == bool(out)

    def test_no_voxel(self, name, series):
        _, images = series
        found = built(name)(images, SIGMA, mask=torch.zeros(3, 4, dtype=torch.bool))
        assert bool((found.status == Status.NOT_COMPUTED).all())
        assert bool(torch.isnan(found.kappa).all())

    @pytest.mark.parametrize("space", [(0,), (2, 0)], ids=str)
    def test_space_of_no_length(self, name, space):
        model = RELAXED[name]
        images = torch.zeros(model.n_images, *space)
        options = {"covariance": True} if "covariance" in method_options(name) else {}
        for sigma in (SIGMA, None):
            found = built(name, **options)(images, sigma)
            assert found.kappa.shape == (len(model.parameters), *space)
            assert found.status.shape == space
            for variances in found.variances.values():
                assert variances.shape == found.kappa.shape

    def test_no_voxel_and_no_sigma(self, name, series):
        """Not the refusal that the series leaves no residual: there is nothing to estimate the noise for."""
        _, images = series
        options = {"covariance": True} if "covariance" in method_options(name) else {}
        found = built(name, **options)(images, mask=torch.zeros(3, 4, dtype=torch.bool))
        assert found.kappa.shape == (len(RELAXED[name].parameters), 3, 4)
        assert bool(torch.isnan(found.kappa).all())
        assert bool((found.status == Status.NOT_COMPUTED).all())
        if name in ("two-point", "log-linear", "least-squares", "rician", "map"):
            assert bool(torch.isnan(found.variances["noise"]).all())
            assert found.covariance.shape == (len(found.kappa), len(found.kappa), 3, 4)

    def test_a_series_without_space(self, name, series):
        truth, images = series
        found = built(name)(images[:, 1, 2], SIGMA)
        assert found.status.shape == ()
        torch.testing.assert_close(found.kappa, truth[:, 1, 2], rtol=CLOSE, atol=0)

    def test_values_that_are_not_real(self, name, series, unchecked):
        _, images = series
        method = built(name)
        with pytest.raises(InputError, match=r"^images: must be real .*, got torch\.int16; convert with \.float\(\)$"):
            method((1000 * images).to(torch.int16), SIGMA)
        with pytest.raises(InputError, match=r"^images: must be real .*, got torch\.complex64; give their modulus"):
            method(images.to(torch.complex64), SIGMA)
        with pytest.raises(InputError, match=r"^mask: must be boolean, got torch\.uint8$"):
            method(images, SIGMA, mask=torch.ones(3, 4, dtype=torch.uint8))
        with pytest.raises(InputError, match=r"^sigma: must be a number or a map of real numbers, got 'low'"):
            method(images, "low")

    def test_wrong_series_and_mask(self, name, series):
        _, images = series
        n = len(images)
        with pytest.raises(InputError, match=f"{n - 1} images, the model has {n} times"):
            built(name)(images[1:], SIGMA)
        # the shape check of the test run comes first
        with pytest.raises((InputError, TypeError), match="mask"):
            built(name)(images, SIGMA, mask=torch.ones(4, 3, dtype=torch.bool))

    @pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), torch.zeros(3, 4)], ids=str)
    def test_a_sigma_that_cannot_be(self, name, series, sigma):
        _, images = series
        with pytest.raises(InputError, match="sigma: "):
            built(name)(images, sigma)
        with pytest.raises(InputError, match="sigma: has shape"):
            built(name)(images, torch.ones(4, 3))

    def test_too_few_images(self, name):
        if name == "map":
            pytest.skip("a prior tells what images do not")
        model = RELAXED[name]
        if model is IR:
            short, images = InversionRecovery(ti=(0.2, 0.9)), torch.ones(2, 3, 4)
        else:
            short, images = SpinLock(tsl=(0.02,)), torch.ones(1, 3, 4)
        with pytest.raises(InputError, match=r"estimators: |images|different times"):
            built(name, short)(images, SIGMA)

    def test_unsorted_times(self, name, series):
        _, images = series
        model, n = RELAXED[name], len(images)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        times = tuple(model.times[i] for i in order.tolist())
        shuffled = InversionRecovery(ti=times) if model is IR else SpinLock(tsl=times)
        sorted_, other = built(name)(images, SIGMA), built(name, shuffled)(images[order], SIGMA)
        # sums in another order, in float32
        torch.testing.assert_close(other.kappa, sorted_.kappa, rtol=2e-3, atol=0)

    def test_scale_of_the_images(self, name, series):
        """A scanner's arbitrary units scale A and sigma, and nothing else."""
        if name == "map":
            pytest.skip("the prior of A is in the units of the images")
        truth, images = series
        found = built(name)(images * 1000, SIGMA * 1000)
        torch.testing.assert_close(found.kappa[0], 1000 * truth[0], rtol=CLOSE, atol=0)
        torch.testing.assert_close(found.kappa[1:], truth[1:], rtol=CLOSE, atol=0)

    def test_variances_follow_a_map_of_sigma(self, name, series):
        """Twice the noise on the right half: twice the SD there."""
        truth, images = series
        if "covariance" not in method_options(name):
            found = built(name)(images, SIGMA)
            assert "noise" in found.variances
            return
        sigma = torch.full((3, 4), SIGMA)
        sigma[:, 2:] *= 2
        estimator = built(name, covariance=True)
        one, other = estimator(images, SIGMA), estimator(images, sigma)
        sd, wide = (found.variances["noise"].sqrt() for found in (one, other))
        assert bool((sd[-1] > 0).all())
        if getattr(estimator, "pools", ()):
            # the common B is told by all voxels together: less than twice on the right, more than once on the left
            assert bool(((wide > 1.08 * sd) & (wide < 2.1 * sd))[-1, :, 2:].all())
            assert bool(((wide > sd) & (wide < 1.9 * sd))[-1, :, :2].all())
        else:
            torch.testing.assert_close(wide[-1][:, 2:], 2 * sd[-1][:, 2:], rtol=0.02, atol=0)
            torch.testing.assert_close(wide[-1][:, :2], sd[-1][:, :2], rtol=0.02, atol=0)
        q = len(truth)
        assert one.covariance.shape == (q, q, 3, 4)
        diagonal = torch.einsum("iiyx->iyx", one.covariance)
        torch.testing.assert_close(diagonal, one.variances["noise"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["least-squares", "rician", "shared-b"])
def test_known_values_out_of_range(name):
    images = IR(truth_of(IR).double())
    method = build_estimator(name, IR)
    for b in (5.0, -1.0, 3.001):
        with pytest.raises(InputError, match=r"^known\.B: must lie from 0 to 3 in every voxel"):
            method(images, SIGMA, known={"B": b})
    # the ends belong to the range
    method(images, SIGMA, known={"B": 3.0})
    if name == "shared-b":
        return
    # a voxel outside the mask may hold anything
    depth = torch.full((3, 4), 1.9)
    depth[1, 1] = 7.0
    mask = depth < 3
    found = method(images, SIGMA, mask, {"B": depth})
    assert bool((found.status[mask] == Status.OK).all())
    with pytest.raises(InputError, match=r"^known\.B: must lie from 0 to 3"):
        method(images, SIGMA, known={"B": depth})


@pytest.mark.parametrize("value", [None, "1.9", 1.9 + 0j, torch.tensor(1.9 + 0j)], ids=str)
@pytest.mark.parametrize("name", ["least-squares", "rician", "shared-b"])
def test_known_values_that_are_no_numbers(name, value, unchecked):
    with pytest.raises(InputError, match=r"^known\.B: must be a number or a map of real numbers, got "):
        build_estimator(name, IR)(IR(truth_of(IR)), SIGMA, known={"B": value})


@pytest.mark.parametrize("covariance", [False, True])
def test_no_recovery_at_a_known_b_of_0(covariance):
    truth = truth_of(IR)
    depth = torch.full((3, 4), 1.9)
    depth[0, 2] = 0.0
    found = build_estimator("least-squares", IR, {"covariance": covariance})(IR(truth), SIGMA, known={"B": depth})
    wanted = torch.full((3, 4), int(Status.OK), dtype=torch.uint8)
    wanted[0, 2] = int(Status.NOT_COMPUTED)
    assert bool((found.status == wanted).all())
    assert bool(torch.isnan(found.kappa[:, 0, 2]).all())
    torch.testing.assert_close(found.kappa[:, depth > 0], truth[:, depth > 0], rtol=CLOSE, atol=0)
    none = build_estimator("least-squares", IR)(IR(truth), SIGMA, known={"B": 0.0})
    assert bool((none.status == Status.NOT_COMPUTED).all())


def test_refusals_name_the_method_once():
    with pytest.raises(InputError, match=r"^estimators: two-point needs a mono-exponential decay"):
        build_estimator("two-point", IR)


def test_unknown_method_is_refused_with_the_known_names():
    with pytest.raises(InputError, match=f"estimators: unknown method 'mle'; known are {', '.join(ESTIMATORS)}"):
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
    with pytest.raises(InputError, match=f"known are {', '.join(ESTIMATORS)}, mine"):
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


class Plain:
    """A user's estimator that returns whatever the test says."""

    name, parameters, pools = "plain", IR.parameters, ()

    def __init__(self, answer=None, **attributes):
        self.answer = answer
        vars(self).update(attributes)

    def __call__(self, images, sigma=None, mask=None, known=None):
        images.zero_()
        if mask is not None:
            mask.zero_()
        return self.answer(torch.ones(3, *images.shape[1:]))


def status(kappa, value=0):
    return torch.full(kappa.shape[1:], value, dtype=torch.uint8)


def crash(kappa):
    return 1 / 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (crash, "mod:build raised ZeroDivisionError: division by zero"),
        (lambda kappa: sys.exit(0), "mod:build calls sys.exit"),
        (lambda kappa: None, r"plain \(mod:build\) returned NoneType, wanted qsim"),
        (lambda kappa: estimate(kappa[:1]), r"returned kappa of shape \(1, 3, 4\), wanted \(3, 3, 4\)"),
        (lambda kappa: estimate(kappa.int()), "returned kappa as torch.int32, wanted a tensor of real"),
        (lambda kappa: estimate(kappa, status(kappa, 9)), "returned a status beyond 0 to 3"),
        (lambda kappa: estimate(kappa, variances={"noise": -kappa}), "returned negative variances"),
        (
            lambda kappa: estimate(kappa, covariance=kappa),
            r"returned covariance of shape \(3, 3, 4\), wanted \(3, 3, 3, 4\)",
        ),
    ],
)
def test_what_a_users_method_returns_is_checked(answer, message):
    built_ = build_foreign("plain", "mod:build", lambda model: Plain(answer), IR, {})
    with pytest.raises(InputError, match=message):
        built_(torch.rand(31, 3, 4), 0.1)


def estimate(kappa, state=None, **more):
    """An Estimate without the checks of the test run."""
    found = object.__new__(Estimate)
    values = {"kappa": kappa, "status": status(kappa) if state is None else state, "variances": {}, "covariance": None}
    for name, value in {**values, "noise_level": None, **more}.items():
        object.__setattr__(found, name, value)
    return found


def test_a_users_method_cannot_change_what_the_next_one_sees():
    images, mask = torch.rand(31, 3, 4), torch.ones(3, 4, dtype=torch.bool)
    before = images.clone()
    build_foreign("plain", "mod:build", lambda model: Plain(estimate), IR, {})(images, 0.1, mask)
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    assert bool(mask.all())


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"parameters": IR.parameters[:1]}, "estimates A; wanted rows of the model .A, B, T1., a relaxation time"),
        ({"name": " "}, "has no name for the tables"),
        ({"pools": ("Q",)}, r"pools must be a tuple of rows of the model \(A, B, T1\), got \('Q',\)"),
        ({"pools": "B"}, "pools must be a tuple of rows"),
    ],
)
def test_what_a_users_method_says_of_itself_is_checked(attributes, message):
    with pytest.raises(InputError, match=message):
        build_foreign("plain", "mod:build", lambda model: Plain(estimate, **attributes), IR, {})
