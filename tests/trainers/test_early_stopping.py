"""When a training ends by itself, and which weights it then gives out, also after an interruption."""

import json

import pytest
import torch

from qsim.errors import InputError
from tests.trainers.test_relaxation_task import circles, config, train
from trainers import fit as loop
from trainers.checkpoint import MODEL, load_tensors
from trainers.fit import learning_rate

# of the validations after iterations 2, 4, 6, ...: the best is that of iteration 6
SCORES = {2: 5.0, 4: 3.0, 6: 2.0, 8: 2.5, 10: 2.0, 12: 4.0, 14: 1.0, 16: 6.0}


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(loop._Run, "validate", lambda self, indices: {"score": SCORES[self.state.iteration]})


def cfg(**changes):
    return config(**{"iterations": 16, "validate_every": 2, "checkpoint_every": 5, "log_every": 1} | changes)


def weights(folder):
    tensors, header = load_tensors(folder / MODEL)
    return tensors, header["progress"]["iteration"]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("patience", "ends"), [(1, 8), (2, 10), (3, 12), (4, 16), (None, 16)])
def test_it_ends_after_so_many_validations_without_a_better_one(patience, ends, tmp_path, scripted):
    train(tmp_path / "run", cfg(patience=patience), circles())
    assert weights(tmp_path / "run")[1] == ends
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["iteration"] == ends
    assert lines[-1]["validation"] == {"score": SCORES[ends]}


def test_the_best_weights_are_those_that_the_validation_saw(tmp_path, scripted):
    train(tmp_path / "best", cfg(patience=2, keep="best"), circles())
    train(tmp_path / "six", cfg(iterations=6), circles())
    train(tmp_path / "ten", cfg(patience=2), circles())
    best, six, ten = (weights(tmp_path / name)[0] for name in ("best", "six", "ten"))
    assert same(best, six)
    assert not same(best, ten)


@pytest.mark.parametrize("stop_at", [7, 11])
def test_an_interrupted_training_gives_the_same_bytes(stop_at, tmp_path, scripted):
    """Stopped before and after the best validation that the last checkpoint knows of."""
    keys = cfg(patience=3, keep="best")
    train(tmp_path / "whole", keys, circles())

    class Stop(Exception):
        pass

    def stop(given, iteration):
        if iteration == stop_at:
            raise Stop
        return learning_rate(given, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", stop)
        with pytest.raises(Stop):
            train(tmp_path / "broken", keys, circles())
    train(tmp_path / "broken", keys, circles(), resume=True)
    whole, broken = (load_tensors(tmp_path / name / MODEL) for name in ("whole", "broken"))
    assert same(whole[0], broken[0])
    assert whole[1]["progress"]["iteration"] == broken[1]["progress"]["iteration"] == 12


def test_a_training_that_ended_stays_as_it_is(tmp_path, scripted):
    train(tmp_path / "run", cfg(patience=1), circles())
    before = (tmp_path / "run" / MODEL).read_bytes()
    train(tmp_path / "run", cfg(patience=1), circles(), resume=True)
    assert (tmp_path / "run" / MODEL).read_bytes() == before


@pytest.mark.parametrize("keys", [{"patience": 2}, {"keep": "best"}])
def test_without_anybody_to_validate_on(keys, tmp_path):
    data = {"cohort": {"store": "/somewhere/circles.zarr", "folds": 2, "validation": 0}}
    with pytest.raises(InputError, match=r"^validation: patience and keep: best need samples"):
        train(tmp_path / "run", cfg(data=data, **keys), circles())


def test_decay_of_the_weights_is_that_of_adam(tmp_path):
    """Two iterations of the gradients that are the same in both: the weights differ, and only then."""
    for name, decay in (("none", 0.0), ("some", 0.1)):
        train(tmp_path / name, cfg(iterations=2, weight_decay=decay), circles())
    assert not same(weights(tmp_path / "none")[0], weights(tmp_path / "some")[0])
