from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from anp_vs.errors import InputError
from anp_vs.methods import AT, PretrainedAT
from anp_vs.methods.pretrained_at import head_of, transfer_weights
from anp_vs.networks import LeNet
from anp_vs.networks import build as build_network
from anp_vs.pruning.insertion import insert_gates


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_all_but_the_last_layer_is_transferred(name: str) -> None:
    source, target = build_network(name, 7), build_network(name, 10)
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    assert transfer_weights(target, source.state_dict()) == ["fc2.weight", "fc2.bias"]
    for key, value in target.state_dict().items():
        assert torch.equal(value, (fresh if key.startswith("fc2.") else source.state_dict())[key])


def test_the_last_layer_is_new_even_where_it_would_fit() -> None:
    source, target = build_network("lenet5-caffe"), build_network("lenet5-caffe")
    fresh = target.fc2.weight.detach().clone()
    assert transfer_weights(target, source.state_dict()) == ["fc2.weight", "fc2.bias"]
    assert torch.equal(target.fc2.weight, fresh)


def test_the_source_is_not_shared_and_what_does_not_fit_is_named() -> None:
    source, target = LeNet(10, channels=1), LeNet(10, channels=3)
    reinitialised = transfer_weights(target, source.state_dict())
    assert set(reinitialised) == {"normalize.mean", "normalize.std", "conv1.weight", "fc2.weight", "fc2.bias"}
    assert torch.equal(target.conv2.weight, source.conv2.weight)
    with torch.no_grad():
        target.conv2.weight.zero_()
    assert source.conv2.weight.abs().max() > 0


def test_a_network_with_gates_is_refused() -> None:
    gated = insert_gates(build_network("lenet5-caffe")).state_dict()
    with pytest.raises(InputError, match="has gates"):
        transfer_weights(build_network("lenet5-caffe"), gated)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="same architecture"):
        transfer_weights(build_network("lenet5-caffe"), build_network("vgg16").state_dict())


def test_a_network_may_declare_its_last_layer() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    assert head_of(network) == "1"
    network.head = "0"
    assert head_of(network) == "0"
    with pytest.raises(InputError, match="head"):
        head_of(nn.ReLU())


def test_fine_tuning_beats_a_fresh_start_of_the_same_length(
    digits: tuple, train: Callable, build: Callable, accuracy: Callable
) -> None:
    """Pre-trained on other images under other class names, then forty steps on sixty images."""
    data, test = digits
    renamed = replace(data, labels=(3 * data.labels + 1) % 10)
    torch.manual_seed(0)
    source = train(AT(), build(), renamed.part(0, 1000), 200)
    robust = {}
    for kind in ("fresh", "pretrained"):
        torch.manual_seed(1)
        network = build()
        if kind == "pretrained":
            transfer_weights(network, source.state_dict())
        robust[kind] = accuracy(train(PretrainedAT(), network, data.part(1000, 1060), 40, lr=2e-3), test, 0.15)
    assert robust["pretrained"] > robust["fresh"] + 6, robust
