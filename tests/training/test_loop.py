"""The loop: stopped and resumed bit for bit, gradients where they belong, units taken out with all their state."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs.data.lazy import LazySplit
from anp_vs.errors import RunError
from anp_vs.methods import METHODS
from anp_vs.networks import NETWORKS
from anp_vs.pruning.gate import gate_parameters, gates, weight_parameters
from anp_vs.training import checkpoint
from anp_vs.training.loop import Trainer
from training.tiny import ALL_METHODS, STEPS, TinyConvolution, digits, equal, prune_some, recipe, trainer

GATED = [name for name in ALL_METHODS if METHODS[name].gated]


def finish(training: Trainer, until: int = STEPS) -> Trainer:
    while training.step < until:
        prune_some(training)
        training.advance()
    return training


def through_a_file(training: Trainer, path: Path) -> Trainer:
    """A new trainer that goes on from what the old one saved."""
    checkpoint.save(path, training.state())
    resumed = Trainer(training.recipe, digits(), Fabric(accelerator="cpu", devices=1))
    resumed.load_state(checkpoint.read(path))
    return resumed


class Frozen(TinyConvolution):
    """Its second convolution and the pattern added to every image are not trained."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.pattern = nn.Parameter(torch.rand(1, 28, 28), requires_grad=False)
        self.conv2.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + self.pattern)


@pytest.mark.parametrize("method", ["at", "anp", "admm"])
def test_frozen_parameters_stay_while_units_leave_and_the_run_goes_on(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(NETWORKS, "frozen", Frozen)
    training = trainer(method, network="frozen", decide_at=1.0)
    before = copy.deepcopy(training.network.state_dict())
    resumed = through_a_file(finish(training, STEPS // 2), tmp_path / "state")
    equal(timeless(finish(training)), timeless(finish(resumed)))
    after = training.network.state_dict()
    assert torch.equal(after["pattern"], before["pattern"])
    assert torch.isin(after["conv2.weight"], before["conv2.weight"]).all()
    assert (after["conv2.weight"].numel() < before["conv2.weight"].numel()) == (method == "anp")
    assert not torch.isin(after["fc.weight"], before["fc.weight"]).all()


def timeless(training: Trainer) -> dict[str, Any]:
    return {name: value for name, value in training.state().items() if name != "seconds"}


LENET = {"network": "lenet5-caffe"}
RUNS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALL_METHODS),
    ("anp-vs", LENET),
    ("admm", LENET),
    ("anp-vs", {"network": "residual"}),
    ("anp", {"network": "traced", "optimiser": "sgd"}),
    ("anp-vs", {"method": {"adversarial_loss": "trades"}, "optimiser": "sgd", "schedule": "onecycle"}),
    ("bp", {"average": 0.0, "decide_at": 1.0}),
    ("at-bnn", {"average": 0.0, "optimiser": "sgd", "schedule": "multistep"}),
    ("admm", {"augment": True}),
    ("at", {"shift": 2, "awp": 0.01}),
    ("anp-vs", {"beta_gain": 10.0, "target_sparsity": 95.0}),
]


@pytest.mark.parametrize(("method", "changes"), RUNS, ids=lambda value: str(value))
def test_a_run_stopped_again_and_again_ends_as_the_uninterrupted_one(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = finish(trainer(method, **changes))
    parts = trainer(method, **changes)
    for stop in (2, 6, 10):
        parts = through_a_file(finish(parts, stop), tmp_path / "checkpoint.pt")
    equal(timeless(whole), timeless(finish(parts)))
    assert whole.take_means() == parts.take_means()
    assert whole.validate() == parts.validate()
    if whole.method.gated:  # otherwise nothing was shown
        left = {name: gate.units for name, gate in gates(whole.network).items()}
        assert all(left[name] < gate.original_units for name, gate in gates(whole.network).items())


@pytest.mark.parametrize("method", ["anp-vs", "at-bnn", "admm"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(method: str) -> None:
    first, second, other = (finish(trainer(method, seed=seed), 3) for seed in (5, 5, 6))
    equal(timeless(first), timeless(second))
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)


# -- who receives which gradient ------------------------------------------------------------------------------


def one_step(method: str, **hyper: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of weights and gates in one step from the same start, in which only the method's numbers differ."""
    training = trainer(method, method={"name": method, **hyper}, eps_warmup=0.0)
    training.advance()
    groups = weight_parameters(training.network), gate_parameters(training.network)
    weights, gates = ([parameter.grad for parameter in group if parameter.grad is not None] for group in groups)
    assert weights
    assert gates
    return weights, gates


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("method", "changed", "weights_see", "gates_see"),
    [
        ("anp-vs", {"lambda_": 5.0}, True, False),
        ("anp-vs", {"beta": 50.0}, False, True),
        ("anp-vs", {"adversarial_weight": 9.0}, True, False),
        ("anp-vs", {"gate_loss": "adversarial+vulnerability"}, False, True),
        ("anp", {"beta": 50.0}, False, True),
        ("bp", {"beta": 50.0}, False, True),
    ],
)
def test_a_term_reaches_only_its_own_group(
    method: str, changed: dict[str, Any], weights_see: bool, gates_see: bool
) -> None:
    before, after = one_step(method), one_step(method, **changed)
    assert same(before[0], after[0]) is not weights_see
    assert same(before[1], after[1]) is not gates_see


def test_no_gradient_of_one_group_is_left_over_in_the_other() -> None:
    training = finish(trainer("anp-vs", decide_at=1.0), 2)
    named = dict(training.network.named_parameters())
    again = copy.deepcopy(training.network)
    finish(training, 3)
    moved = {name for name, value in again.named_parameters() if value.shape == named[name].shape}
    assert moved  # the step was taken, and left no graph behind
    assert all(parameter.grad is not None and parameter.grad.grad_fn is None for parameter in named.values())


# -- invariants of a step -------------------------------------------------------------------------------------


def test_the_attack_stays_in_the_ball_and_leaves_the_network_alone() -> None:
    training = finish(trainer("anp-vs", eps_warmup=0.0), 1)
    before, mode = copy.deepcopy(training.network.state_dict()), training.network.training
    images, labels = training.batch()
    attacked = training.attack(images, labels)
    assert float((attacked - images).abs().max()) <= 0.1 + 1e-6
    assert float((attacked - images).abs().max()) > 0.09
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    equal(before, training.network.state_dict())
    assert training.network.training is mode
    assert all(parameter.requires_grad for parameter in training.network.parameters())


def test_every_image_is_seen_once_an_epoch_with_its_own_label() -> None:
    training = trainer("standard")
    pairs = {}
    orders = []
    data = digits().train
    for _ in range(2):
        seen = []
        for _ in range(training.steps_per_epoch):
            images, labels = training.batch()
            seen += [image.numpy().tobytes() for image in images]
            pairs |= dict(zip(seen[-len(labels) :], labels.tolist(), strict=True))
            training.step += 1
        assert len(set(seen)) == len(data)
        orders.append(seen)
    assert orders[0] != orders[1]
    truth = {
        (image.float() / 255).numpy().tobytes(): int(label)
        for image, label in zip(data.images, data.labels, strict=True)
    }
    assert pairs == truth


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("multistep", [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)]),
        ("onecycle", [max(1e-4, 5 * s / 12 if s / 12 < 0.2 else 1.25 * (1 - s / 12)) for s in range(STEPS)]),
    ],
)
def test_learning_rates_follow_their_schedule(schedule: str, shares: list[float]) -> None:
    training = trainer("standard", schedule=schedule, milestones=[0.5, 0.75], lr=0.01)
    for share in shares:
        training.advance()
        assert training.optimisers.weights.param_groups[0]["lr"] == pytest.approx(0.01 * share)


def test_the_radius_warms_up_in_a_line_and_stays() -> None:
    training = trainer("at", eps_warmup=0.5)
    radii = []
    for training.step in range(STEPS):
        radii.append(training.eps())
    assert radii == pytest.approx([0.1 * min(1, step / 6) for step in range(STEPS)])


def test_the_average_is_the_recursion_by_hand() -> None:
    training = trainer("standard", average=0.5)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        training.advance()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in training.network.state_dict().items():
            first = step == 1 or not value.is_floating_point()
            expected[name] = value.clone() if first else decay * expected[name] + (1 - decay) * value
    for name, value in training.evaluation_network().state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", GATED)
def test_gates_that_have_decided_do_not_learn_any_more(method: str) -> None:
    training = finish(trainer(method), 10)
    assert training.decided
    before = [value.clone() for value in gate_parameters(training.network)]
    finish(training)
    assert same(before, gate_parameters(training.network))


# -- units that leave -----------------------------------------------------------------------------------------


def kill(training: Trainer) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    dead = {}
    with torch.no_grad():
        for name, gate in gates(training.network).items():
            dead[name] = torch.rand(gate.units, generator=draws) < 0.4
            gate.a_uc[dead[name]] = -12.0
    return dead


@pytest.mark.parametrize("network", ["lenet5-caffe", "tiny-convolution"])
def test_removal_leaves_the_function_of_the_evaluated_network(network: str) -> None:
    training = trainer("anp-vs", network=network, remove_after=0, decide_at=1.0, average=0.0)
    finish(training, 1)
    images = digits().test.images.float() / 255
    for _ in range(2):  # the second time the gates already read only some of their inputs
        dead = kill(training)
        before = training.evaluation_network().double()(images.double())
        assert training.remove(dead) > 0
        assert all(bool(gate.alive().all()) for gate in gates(training.network).values())
        torch.testing.assert_close(training.evaluation_network().double()(images.double()), before, rtol=0, atol=1e-9)
        training.advance()


def test_moments_and_averages_follow_the_units_that_stay() -> None:
    training = trainer("anp-vs", **LENET, remove_after=0, decide_at=1.0)
    finish(training, 1)
    dead = kill(training)
    names = [name for name, _ in training.network.named_parameters()]

    def held() -> dict[str, dict[str, torch.Tensor]]:
        by_tensor = training.optimisers.weights.state | (
            training.optimisers.gates.state if training.optimisers.gates else {}
        )
        return {name: dict(by_tensor[value]) for name, value in training.network.named_parameters()}

    full, average = copy.deepcopy(held()), copy.deepcopy(training.average)
    assert average is not None
    training.remove(dead)
    gate1, gate2, gate3, gate4 = (~dead[f"gate{i}"] for i in range(1, 5))
    # By hand: channel c of conv2 is the inputs 16 c .. 16 c + 15 of the dense layer.
    inputs = gate3 & gate2.repeat_interleave(16)
    everything = slice(None)
    places = {
        "conv1.weight": (gate1,), "conv1.bias": (gate1,), "conv2.weight": (gate2, gate1), "conv2.bias": (gate2,),
        "fc1.weight": (gate4, inputs), "fc1.bias": (gate4,), "fc2.weight": (everything, gate4), "fc2.bias": (everything,),
        **{f"gate{i}.{n}": (g,) for i, g in ((1, gate1), (2, gate2), (3, inputs), (4, gate4)) for n in ("a_uc", "b_uc")},
    }  # fmt: skip
    assert set(names) == set(places)
    for name, state in held().items():
        place = places[name]
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = full[name][moment][place[0]]
            expected = expected[:, place[1]] if len(place) > 1 else expected
            assert torch.equal(state[moment], expected), (name, moment)
        assert torch.equal(state["step"], full[name]["step"])
        expected = average[name][place[0]]
        assert training.average is not None
        assert torch.equal(training.average[name], expected[:, place[1]] if len(place) > 1 else expected), name


def test_an_average_survives_units_leaving_in_any_order() -> None:
    """First inputs of the dense layer, whose gate then reads by index; then the channels they came from."""
    training = trainer("anp-vs", **LENET, remove_after=0, decide_at=1.0)
    finish(training, 1)
    for channels in ([], [0]):
        dead = {name: torch.zeros(gate.units, dtype=torch.bool) for name, gate in gates(training.network).items()}
        dead["gate3"][:8] = True
        dead["gate2"][channels] = True
        with torch.no_grad():
            for name, units in dead.items():
                gates(training.network)[name].a_uc[units] = -12.0
        training.remove(dead)
        training.advance()
        assert training.evaluation_network()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert training.network.gate3.index is None


class Mirrored(TinyConvolution):
    """Reads every image from right to left, by buffers whose names end as a gate's does."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.register_buffer("column_index", torch.arange(28).flip(0), persistent=False)
        self.register_buffer("row_index", torch.arange(28))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :, self.row_index][..., self.column_index])  # type: ignore[index]


def test_buffers_of_the_networks_own_stay_what_they_are_in_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "mirrored", Mirrored)
    training = trainer("anp", network="mirrored", decide_at=1.0)
    finish(training, 6)
    assert training.network.gate1.units < 6
    assert training.average is not None
    assert training.average.keys() == training.network.state_dict().keys()
    assert torch.equal(training.evaluation_network().column_index, torch.arange(28).flip(0))


def test_a_gate_that_would_close_its_layer_keeps_one_unit_and_is_named() -> None:
    training = trainer("anp-vs", **LENET, remove_after=0, decide_at=0.01)
    with torch.no_grad():
        gates(training.network)["gate2"].a_uc.fill_(-12.0)
    said = ""
    while not training.decided:
        said = training.advance() or ""
    assert "every unit of gate2 would be pruned, the strongest was kept" in said
    assert gates(training.network)["gate2"].units == 1


# -- numbers that go wrong ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    training = finish(trainer("at"), 1)
    with torch.no_grad():
        training.network.fc.bias[0] = math.inf
    before = copy.deepcopy(dict(training.network.named_parameters()))
    with pytest.raises(RunError, match="loss became nan at step 1 of 12"):
        training.advance()
    equal(before, dict(training.network.named_parameters()))


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(RunError, match="64 images, fewer than one batch of 65"):
        Trainer(recipe(batch_size=65), digits(), Fabric(accelerator="cpu", devices=1))


def test_pictures_are_decoded_while_the_step_before_computes() -> None:
    """On a split that decodes, a run is the one in memory bit for bit, and asks for no batch it has not announced."""
    memory = digits()
    images, labels = memory.train.images, memory.train.labels
    announced: list[list[int]] = []

    class Watched(LazySplit):
        def prepare(self, indices: Tensor) -> None:
            announced.append(indices.tolist())
            super().prepare(indices)

        def batch(self, indices: Tensor) -> Tensor:
            assert announced[-1:] in ([indices.tolist()], [])  # the first one comes unannounced
            return super().batch(indices)

        def to(self, device: torch.device | str) -> LazySplit:
            return self

    lazy = Watched(lambda n: images[n], torch.arange(len(images)), labels, memory.train.shape, workers=2)
    held = LazySplit(
        lambda n: memory.validation.images[n], torch.arange(32), memory.validation.labels, memory.train.shape, workers=2
    )
    dataset = dataclasses.replace(memory, train=lazy, validation=held)
    decoding = finish(Trainer(recipe("anp-vs"), dataset, Fabric(accelerator="cpu", devices=1)))
    plain = finish(trainer("anp-vs"))
    assert len(announced) == STEPS - 1
    assert decoding.validate() == plain.validate()
    equal(timeless(decoding), timeless(plain))
    decoding.close()


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0])
def test_a_recipe_scales_the_dropout_of_the_network_it_trains(factor: float) -> None:
    dropout = trainer("anp-vs", dropout=factor).network.get_submodule("dropout")
    assert dropout.probability == pytest.approx(0.3 * factor)
