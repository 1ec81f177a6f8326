"""The measured cost against counts made by hand."""

import pytest
import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.evaluation.cost import Cost, cost, macs, peak_activation_bytes
from anp_vs.networks import build
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates

IMAGE = torch.zeros(1, 1, 28, 28)


def test_lenet_by_hand() -> None:
    network = build("lenet5-caffe")
    measured = cost(network, latency=False)
    assert measured.parameters == 431_080
    assert measured.weight_bytes == 4 * (431_080 + 2)  # + mean and deviation of the normalisation
    assert measured.macs == 25 * 20 * 24**2 + 500 * 50 * 8**2 + 800 * 500 + 500 * 10
    # The worst moment is the first ReLU: its input and its output, 20 maps of 24 x 24, are both there.
    assert measured.peak_activation_bytes == 4 * 2 * 20 * 24**2
    assert (measured.latency_1, measured.latency_128, measured.ratios) == (None, None, None)
    assert network.training


def test_vgg16_has_the_published_parameters_and_macs() -> None:
    measured = cost(build("vgg16"), latency=False)
    assert measured.parameters == 14_991_946
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    by_hand = sum(9 * a * b * s * s for a, b, s in zip(widths, widths[1:], sides, strict=False))
    assert measured.macs == by_hand + 512 * 512 + 512 * 10
    assert measured.peak_activation_bytes == 4 * 2 * 64 * 32**2


class Residual(nn.Module):
    """x -> relu(x W) + x, so that the input lives until the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.dense = nn.Linear(784, 784)
        self.relu = nn.ReLU()
        self.last = nn.Linear(784, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.flatten(images)
        return self.last(self.relu(self.dense(x)) + x)  # type: ignore[no-any-return]


def test_a_skipped_connection_stays_alive_and_views_are_free() -> None:
    # During ReLU and during the addition: the skipped input, what was computed, and what is being computed.
    assert peak_activation_bytes(Residual(), IMAGE) == 4 * 3 * 784
    in_place = Residual()
    in_place.relu.inplace = True
    assert peak_activation_bytes(in_place, IMAGE) == 4 * 3 * 784  # at the addition still three
    chain = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(784, 10), nn.ReLU(inplace=True))
    assert peak_activation_bytes(chain, IMAGE) == 4 * (784 + 10)


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)[:, :2]
        return flat if flat.sum() > 0 else -flat


def test_a_network_that_branches_on_values_has_no_traced_peak_but_a_cost() -> None:
    measured = cost(Branching(), example=IMAGE, latency=False)
    assert measured.peak_activation_bytes is None
    assert (measured.parameters, measured.macs) == (0, 0)


def test_the_compact_network_is_cheaper_by_the_ratio_of_its_layers() -> None:
    gated = insert_gates(build("lenet5-caffe")).eval()
    for path, kept in {"gate1": 10, "gate2": 25, "gate3": 400, "gate4": 250}.items():
        with torch.no_grad():
            gates(gated)[path].a_uc[kept:] = -9.0
    small = compact(gated)
    measured = cost(small, latency=False, against=build("lenet5-caffe"))
    assert measured.ratios is not None
    by_hand = 25 * 10 * 24**2 + 250 * 25 * 8**2 + 400 * 250 + 250 * 10
    assert measured.macs == by_hand == macs(small, IMAGE)
    assert measured.ratios["macs"] == pytest.approx(2_293_000 / by_hand)
    assert measured.ratios["peak_activation_bytes"] == pytest.approx(2.0)
    assert set(measured.ratios) == {"parameters", "weight_bytes", "macs", "peak_activation_bytes"}


def test_latency_is_the_median_of_many_runs_and_turns_are_taken() -> None:
    turns = []

    class Noted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, images: Tensor) -> Tensor:
            turns.append((self.name, len(images)))
            return images.flatten(1)

    small, large = Noted("small"), Noted("large")
    measured = cost(small, example=IMAGE, against=large)
    assert isinstance(measured, Cost)
    assert min(measured.runs_1, measured.runs_128) >= 15
    assert measured.as_dict()["latency_1"] > 0
    assert measured.latency_128 is not None
    timed = [name for name, size in turns if size == 128][6:]  # after three warm-ups of each
    assert timed == ["small", "large"] * measured.runs_128


def test_a_network_that_does_not_say_its_images_needs_an_example() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(InputError, match="input_shape"):
        cost(network, latency=False)
    with pytest.raises(InputError, match="does not accept"):
        cost(network, example=torch.zeros(1, 3, 32, 32), latency=False)
    assert cost(network, example=IMAGE, latency=False).macs == 7840


def test_attention_is_counted_though_it_is_fused() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 10)

        def forward(self, images: Tensor) -> Tensor:
            tokens = images.reshape(len(images), 49, 16)
            mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            logits: Tensor = self.last(mixed.mean(1))
            return logits

    projections, products = 4 * 49 * 16 * 16, 2 * 49 * 49 * 16
    assert macs(Attention().eval(), IMAGE) == projections + products + 16 * 10
