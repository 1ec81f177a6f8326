"""Where gates go in any network, what they share, and what is refused."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError
from anp_vs.networks import build
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import Gate, gates, shared_mask
from anp_vs.pruning.groups import Residual
from anp_vs.pruning.insertion import explain, insert_gates
from anp_vs.pruning.reader import GatedLayer, GateReader
from pruning import zoo
from pruning.patterns import (
    MOST_DEAD,
    assert_same_function,
    images_for,
    kill,
    parameters,
    perturb,
)
from pruning.zoo import NAMES, gated

# -- the modes of its modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["keep", "share"])  # a built-in network is traced for `share` only
def test_a_frozen_normalisation_stays_frozen_and_gates_take_the_networks_mode(residual: Residual) -> None:
    for training in (True, False):
        network = build("vgg16").train(training)
        norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
        norm.train(not training)
        insert_gates(network, residual=residual)
        assert norm.training is not training
        assert {module.training for module in network.modules() if module is not norm} == {training}


# -- where gates are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_inserting_changes_nothing_but_what_the_gates_multiply(name: str) -> None:
    plain = perturb(zoo.build(name)).train()
    network = insert_gates(copy.deepcopy(plain), residual="share")
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc.fill_(1e12)  # E[pi] = 1
    assert_same_function(plain, network, images_for(plain))
    added = sum(p.numel() for g in gates(network).values() for p in g.parameters())
    assert parameters(network) == parameters(plain) + added


def test_streams_are_kept_or_shared() -> None:
    kept, shared = gated("resnet18", "keep"), gated("resnet18", "share")
    # Eight blocks, one inner axis each; shared, four streams more.
    assert len(gates(kept)) == 8
    assert len(gates(shared)) == 12
    assert not any(isinstance(m, GateReader) for m in kept.modules())
    readers = [m for m in shared.modules() if isinstance(m, GateReader)]
    # A stream is read by the first convolution of each block and, between stages, by the shortcut, or by the
    # last dense layer: 4 + 3 + 3 + 2 reading layers for four gates.
    assert len(readers) == 12 - 4
    kill(kept, MOST_DEAD)
    assert compact(kept).get_parameter("conv1.weight").shape[0] == 4
    kill(shared, (0, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}))
    assert parameters(compact(shared)) < 600


def test_all_readers_of_a_gate_apply_one_sample() -> None:
    """Two layers that read the same features: with weights of one, they give the same random answer."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.left, self.right = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 1, bias=False)
            self.head = nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            result: Tensor = self.head((self.left(x) - self.right(x)).mean((2, 3)))
            return result

    network = Fork()
    network.right.weight = nn.Parameter(network.left.weight.detach().clone())
    insert_gates(network, torch.rand(2, 3, 8, 8)).train()
    assert [type(m).__name__ for m in network.modules() if isinstance(m, Gate | GateReader)] == ["Gate", "GateReader"]
    images = torch.rand(64, 3, 8, 8)
    assert float(network(images).detach().abs().max()) < 1e-6
    gate = next(iter(gates(network).values()))
    assert gate.units == 6
    # Copies in the middle of training do not carry the sample along, and read their own gate.
    copied = copy.deepcopy(network)
    reader = next(m for m in copied.modules() if isinstance(m, GateReader))
    assert reader.gate is next(iter(gates(copied).values())) is not gate
    with shared_mask(network):  # the readers' too: twice the same images, twice the same features
        half = network.left(network.stem(images[:2].repeat(2, 1, 1, 1)))
        assert torch.equal(*network.right(network.stem(images[:2].repeat(2, 1, 1, 1))).chunk(2))
        assert torch.equal(*half.chunk(2))
    gate.fixed = True
    torch.manual_seed(0)
    assert torch.equal(network(images), network(images))


def test_gradients_of_a_shared_gate_come_from_every_reader() -> None:
    network = gated("senet")
    reader = next(m for m in network.modules() if isinstance(m, GateReader))
    gate = reader.gate
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    gate.requires_grad_(True)
    images = images_for(network, 3)
    network.eval()

    def logits(a_uc: Tensor) -> Tensor:
        name = next(n for n, g in gates(network).items() if g is gate)
        result: Tensor = torch.func.functional_call(network, {f"{name}.a_uc": a_uc}, (images,))
        return result

    start = torch.linspace(-1, 2, gate.units, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(logits, (start,), eps=1e-5, atol=1e-6, rtol=1e-4)


def test_units_are_what_can_leave_together() -> None:
    units = {d.layer: (d.units, d.gate) for d in explain(zoo.build("resnext"), residual="share")}
    assert units["inner.3"] == (0, None)  # the grouped convolution follows its reader
    assert units["inner.6"] == (4, "inner.6")  # four groups of 8
    assert units["tail.3"] == (8, "tail.3")  # depthwise with two outputs a channel
    units = {d.layer: (d.units, d.gate) for d in explain(zoo.build("groupnorm"))}
    assert units["conv2"] == (8, "conv2")
    units = {d.layer: (d.units, d.gate) for d in explain(zoo.build("inception"))}
    assert units["fc1"] == (12, "fc1")  # channels of nine pixels, not 108 pixels
    assert units["two"] == (14, "one")
    gates_of = gates(gated("inception"))
    assert (gates_of["fc1.gate"].units, gates_of["fc1.gate"].block) == (12, 9)


def test_every_layer_left_whole_has_a_reason() -> None:
    reasons = {d.layer: d.reason for d in explain(zoo.build("convnext"))}
    assert "images" in reasons["stem.0"]
    assert "layer_norm" in reasons["down.1"]
    assert "norm (LayerNorm)" in reasons["stage1.0.pwconv1"]
    assert reasons["stage1.0.pwconv2"] == "gated"
    reasons = {d.layer: d.reason for d in explain(zoo.build("resnet18"))}
    assert "residual='keep'" in reasons["fc"]
    assert reasons["layer1.0.conv2"] == "gated"


class Tutorial(nn.Module):
    """Written as in tutorials: the number of flattened inputs is in the forward pass."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 3)
        self.pool, self.written = nn.MaxPool2d(2, 2), written
        self.fc = nn.Linear(8 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv2(self.pool(functional.relu(self.conv1(x))))))
        x = x.view(-1, 8 * 2 * 2) if self.written else x.view(x.size(0), 8 * x.size(2) * x.size(3) // 1)
        result: Tensor = self.fc(x)
        return result


@pytest.mark.parametrize("written", [True, False])
def test_a_number_of_channels_written_into_the_forward_pass_stays(written: bool) -> None:
    network = perturb(Tutorial(written)).double()
    example = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    reasons = {d.layer: d.reason for d in explain(network, example)}
    assert reasons["conv2"] == "gated"
    assert "left whole" in reasons["fc"]
    if written:
        assert "view(.., 32, ..)" in reasons["fc"]
        assert "flatten(1)" in reasons["fc"]
    insert_gates(network, example)
    kill(network, MOST_DEAD)
    assert_same_function(network, compact(network), example)


class AsksForSizes(nn.Module):
    """Loops over shapes and branches on sizes, and an optional argument, as networks in the field do."""

    def __init__(self, ask: str) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)
        self.ask = ask

    def forward(self, x: Tensor, features_only: bool = False) -> Tensor:
        x = functional.relu(self.two(functional.relu(self.one(x))))
        if self.ask == "starred":
            x = x.reshape(*x.shape[:2], -1).view(*x.shape)
        elif self.ask == "loop":
            area = 1
            for length in x.shape[2:]:
                area = area * length
            x = x.reshape(x.size(0), x.size(1), area).view(x.size(0), -1, x.size(2), x.size(3))
        elif self.ask == "side" and x.shape[-1] % 2 == 0:
            x = functional.avg_pool2d(x, 2)
        elif self.ask == "channels" and x.shape[1] == 6:  # true only as long as all six are there
            x = -x
        if features_only:
            return x
        result: Tensor = self.head(functional.relu(self.three(x)).mean((2, 3)))
        return result


@pytest.mark.parametrize("ask", ["starred", "loop", "side", "channels"])
def test_a_forward_pass_that_asks_for_sizes(ask: str) -> None:
    network = perturb(AsksForSizes(ask)).double()
    example = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    reasons = {d.layer: d.reason for d in explain(network, example)}
    assert reasons["two"] == reasons["head"] == "gated"
    assert ("whole" in reasons["three"]) == (ask == "channels")
    insert_gates(network, example)
    kill(network, MOST_DEAD)
    images = torch.rand(5, 3, 12, 12, dtype=torch.float64)
    assert_same_function(network, compact(network), images)


def test_batch_normalisation_over_many_gpus_is_batch_normalisation() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1)]
    network = perturb(nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 5))).double().eval()
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    insert_gates(network, images)
    kill(network, MOST_DEAD)
    small = compact(network, images)
    assert_same_function(network, small, images)
    assert small[1].num_features < 8


def test_what_keeps_channels_whole_is_named() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
    layers = [nn.Conv2d(3, 8, 3), conv, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    reasons = {d.layer: d.reason for d in explain(network, torch.rand(2, 3, 12, 12))}
    assert "remove_parametrizations" in reasons["3"]
    assert "normalises channels by one another" in reasons["5"]


class Odd(nn.Module):
    """A convolution between two others, whose output meets an operation."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)
        self.operation = operation
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(functional.relu(self.one(x)))
        if self.operation == "chunk":
            left, right = x.chunk(2, 1)
            x = torch.cat([right, left], 1)
        elif self.operation == "shuffle":
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        elif self.operation == "mean over channels":
            x = x - x.mean(1, keepdim=True)
        elif self.operation == "softmax":
            x = x.softmax(1)
        elif self.operation == "scale":
            x = x * self.scale
        elif self.operation == "count":
            x = x * x.shape[1] ** 0.5
        elif self.operation == "part":
            x = torch.cat([x[:, 4:], x[:, :4]], dim=1)
        elif self.operation == "square":  # channels, height and width are all 8 here
            x = x.transpose(1, 2).contiguous()
        elif self.operation == "weights":
            x = x * self.three.weight.mean()
        elif self.operation == "twice":
            x = self.three(functional.pad(x, (1, 1, 1, 1)))
        x = self.three(x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.mark.parametrize(
    "operation",
    ["chunk", "shuffle", "mean over channels", "softmax", "scale", "count", "part", "square", "weights", "twice"],
)
@pytest.mark.parametrize("seed", range(3))
def test_what_mixes_channels_in_between_is_never_broken(operation: str, seed: int) -> None:
    network = perturb(Odd(operation)).double()
    example = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    reasons = {d.layer: d.reason for d in explain(network, example)}
    # A concatenation is a group of its own: what reads it may drop channels that its parts must keep.
    assert ("whole" in reasons["three"]) == (operation not in ("chunk", "part"))
    assert reasons["two"] == "gated"
    insert_gates(network, example)
    assert network.input_shape == (3, 12, 12)
    kill(network, (seed, MOST_DEAD[1]))
    assert_same_function(network, compact(network), example)


def test_the_layers_attributes_stay_readable() -> None:
    network = gated("mobilenetv2")
    wrapper = next(m for m in network.modules() if isinstance(m, GatedLayer))
    assert wrapper.in_channels == wrapper.layer.in_channels
    with pytest.raises(AttributeError):
        _ = wrapper.nothing_of_this_name


# -- refused --------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return x if x.sum() > 0 else -x


class Restless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(functional.dropout(self.conv(x).mean((2, 3)), 0.5))
        return result


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching(), "Branching could not be traced.*module of its own"),
        (Restless(), "Restless gives other logits.*training=self.training"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), r"no layer that can be pruned.*1: .*images"),
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), "no parameters"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), "logits N x K"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), "does not accept an example"),
        (nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())), "is a DataParallel.*wrap the result"),
        (torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), backend="eager"), "is a OptimizedModule"),
    ],
)
def test_refused_with_the_reason(network: nn.Module, message: str) -> None:
    before = repr(network)
    with pytest.raises(InputError, match=message):
        insert_gates(network, torch.rand(2, 3, 8, 8))
    assert repr(network) == before
    assert network.training


def test_bad_arguments_are_refused() -> None:
    network = zoo.build("squeezenet")
    with pytest.raises(InputError, match=r"float images.*0, 1"):
        insert_gates(network, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="residual is 'split'"):
        insert_gates(network, residual="split")  # type: ignore[arg-type]
    del network.input_shape
    with pytest.raises(InputError, match="give `example`"):
        insert_gates(network)
    insert_gates(network, torch.rand(1, 3, 16, 16))
    with pytest.raises(InputError, match="gates already"):
        insert_gates(network, torch.rand(2, 3, 16, 16))
