"""Networks on disk: whole or not at all, nothing pickled, refused when damaged."""

import json
import struct

import pytest
import torch

from qsim.errors import InputError
from qsim.signals import InversionRecovery
from trainers import checkpoint
from trainers.checkpoint import claim, load_tensors, restore_optimiser, restore_weights, save_tensors, training_tensors
from trainers.config import TrainConfig
from trainers.networks import RIMNetwork

MODEL = InversionRecovery(ti=(0.2, 0.5, 0.9))


def network(features=4, seed=0):
    net = RIMNetwork(features=features, steps=2).build(MODEL, MODEL.parameters, torch.Generator().manual_seed(seed))
    return net.to(memory_format=torch.channels_last)


def trained(net):
    """The network and its optimiser after three updates."""
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3):
        update(net, optimiser)
    return optimiser


def update(net, optimiser):
    images = MODEL(torch.full((3, 1, 5, 6), 1.1)).movedim(0, 1)
    loss = net(images, torch.full((1, 1, 1), 0.1)).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def test_a_restored_training_goes_on_to_the_bit(tmp_path):
    net = network()
    optimiser = trained(net)
    path = tmp_path / "state.safetensors"
    save_tensors(path, training_tensors(net, optimiser), {"iteration": 3})
    tensors, header = load_tensors(path)
    assert header["iteration"] == 3
    other = network(seed=9)
    again = torch.optim.Adam(other.parameters(), lr=0.01)
    restore_weights(other, tensors, path)
    restore_optimiser(other, again, tensors)
    for _ in range(4):
        update(net, optimiser)
        update(other, again)
    one, two = training_tensors(net, optimiser), training_tensors(other, again)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"net/a": torch.ones(3)}, {})
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(InputError, match=r"state.safetensors: cannot be written \(No space left"):
        save_tensors(path, {"net/a": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text", "empty", "newer", "missing"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"net/a": torch.ones(30)}, {})
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[:-10])
    elif damage == "foreign":
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    elif damage == "text":
        path.write_text("weights: none")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "newer":
        save_tensors(path, {"net/a": torch.ones(30)}, {"version": 99})
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_tensors(path)


def test_weights_of_another_network_are_refused(tmp_path):
    net = network(features=5)
    with pytest.raises(InputError, match="do not fit"):
        restore_weights(network(features=4), {f"net/{k}": t for k, t in net.state_dict().items()}, tmp_path / "x")


def test_a_pickle_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"net/a": torch.ones(2)}, path)
    with pytest.raises(InputError, match="not a safetensors file"):
        load_tensors(path)


def mixture(scene=0):
    """A config whose task has keys that it did not always have."""
    return TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"store": "patches"},
            "task": {"kind": "local_mixture", "scene": scene},
            "network": {"kind": "local_mixture", "features": 4},
            "iterations": 5,
            "batch": 2,
            "lr": 0.01,
        }
    )


def test_a_run_from_before_a_key_existed_is_resumed(tmp_path):
    """Its stored config says nothing of the key, which is what its default says."""
    stored = tmp_path / "run" / "config.json"
    claim(tmp_path / "run", mixture(), resume=False)
    older = json.loads(stored.read_text())
    del older["task"]["scene"], older["task"]["recolour"], older["clip"]
    stored.write_text(json.dumps(older))
    claim(tmp_path / "run", mixture(), resume=True)
    # what was stored is left as it was written
    assert json.loads(stored.read_text()) == older
    with pytest.raises(InputError, match=r"was started with another config \(task differ\)"):
        claim(tmp_path / "run", mixture(scene=50), resume=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "Invalid JSON"), ('{"seed": 1}', "data: Field required"), ('{"optimiser": "sgd"}', "Field required")],
)
def test_a_stored_config_of_another_kind_is_refused(tmp_path, text, said):
    claim(tmp_path / "run", mixture(), resume=False)
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(
        InputError, match=rf"config\.json: does not fit this version of qsim \(.*{said}.*choose another"
    ):
        claim(tmp_path / "run", mixture(), resume=True)
