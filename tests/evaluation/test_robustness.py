"""Evaluation against closed forms on linear classifiers, and what it refuses."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anp_vs.data import Split
from anp_vs.errors import InputError
from anp_vs.evaluation import cost, published_cost
from anp_vs.evaluation.robustness import COLUMNS, Evaluation, evaluate
from anp_vs.evaluation.vulnerability import vulnerability
from anp_vs.networks import build
from anp_vs.networks.bayesian import make_bayesian
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates

EPS = 0.05


class Linear(nn.Module):
    """Two classes on 1 x 3 x 3 images; its worst perturbation is eps times the signs of the weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.dense = nn.Linear(9, 2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.dense.weight.normal_(generator=generator)
            self.dense.bias.copy_(-0.5 * self.dense.weight.sum(1))  # balanced around grey

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(images.flatten(1))  # type: ignore[no-any-return]

    def weight(self) -> Tensor:
        return (self.dense.weight[1] - self.dense.weight[0]).detach()

    def margins(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self(images).detach()
        return (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)


@pytest.fixture
def linear() -> Linear:
    return Linear()


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """203 images away from 0 and 1, one in ten with a wrong label."""
    generator = torch.Generator().manual_seed(1)
    images = 0.2 + 0.6 * torch.rand(203, 1, 3, 3, generator=generator)
    labels = Linear()(images).argmax(1)
    labels[::10] = 1 - labels[::10]
    return images, labels


def run(network: nn.Module, pair: Any, **options: Any) -> Evaluation:
    return evaluate(
        network,
        pair,
        **{"eps": EPS, "step": 0.02, "steps": 6, "restarts": 2, "masking": None, "progress": False} | options,
    )


def percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def test_every_accuracy_of_a_linear_network_in_closed_form(linear: Linear, pair: tuple[Tensor, Tensor]) -> None:
    other = Linear(5)
    row = run(linear, pair, source=other, autoattack=20)
    margins = linear.margins(*pair)
    loss = EPS * linear.weight().abs().sum()
    assert row["clean_accuracy"] == pytest.approx(percent(margins > 0))
    assert row["white_box_accuracy"] == pytest.approx(percent(margins > loss))
    assert row["white_box_accuracy_strongest"] == pytest.approx(percent(margins > loss))
    # The source's signs, seen by the target.
    moved = EPS * (linear.weight() * other.weight().sign()).sum()
    assert row["black_box_accuracy"] == pytest.approx(percent(margins > moved))
    assert row["autoattack_accuracy"] == pytest.approx(percent((margins > loss)[:20]))
    assert row["autoattack_images"] == 20
    assert 0 < row["white_box_accuracy"] < row["black_box_accuracy"] < 100
    assert row.correct["clean"].tolist() == (margins > 0).tolist()
    assert row.broken_by[0] == "clean"
    assert [cause is None for cause in row.broken_by] == row.correct["autoattack"].tolist()


def test_the_row_has_the_published_columns_and_is_json(linear: Linear, pair: tuple[Tensor, Tensor]) -> None:
    row = run(linear, pair, limit=20)
    assert set(COLUMNS) <= set(row)
    again = json.loads(json.dumps(row))
    assert again == row
    none = {name for name in COLUMNS if row[name] is None}
    assert none == {
        "black_box_accuracy", "white_box_vulnerability", "black_box_vulnerability", "memory_percent",
        "flops_reduction", "sparsity_percent", "memory_percent_repeat_dense", "autoattack_accuracy",
        "autoattack_images", "autoattack_after", "diagnosis",
    }  # fmt: skip
    said = {"images": 20, "norm": "inf", "eps": EPS, "step": 0.02, "steps": 6, "restarts": 2, "seed": 0}
    said |= {"protocol": "pixel-space", "random": False, "draws": 1, "parameters": 20, "macs": 18}
    assert {name: row[name] for name in said} == said
    assert not [name for name in row if name.endswith("_spread")]


def test_eps_zero_is_the_clean_accuracy_exactly(pair: tuple[Tensor, Tensor]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
    row = run(network, pair, eps=0.0, source=Linear(5), autoattack=203)
    accuracies = {row[name] for name in row if "_accuracy" in name}
    assert accuracies == {row["clean_accuracy"]}
    assert row["white_box_vulnerability"] == row["black_box_vulnerability"] == 0.0


def test_eps_one_reaches_the_corner_of_the_box(linear: Linear, pair: tuple[Tensor, Tensor]) -> None:
    row = run(linear, pair, eps=1.0, step=0.5, steps=8)
    images, labels = pair
    corner = ((1 - 2 * labels)[:, None] * linear.weight() > 0).float().view_as(images)
    assert row["white_box_accuracy_strongest"] == percent(linear.margins(corner, labels) > 0) == 0.0


def test_figures_do_not_depend_on_the_batch_size_or_the_order_of_work(pair: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 2))
    rows = [run(network, pair, batch_size=size, source=Linear(5), seed=4, steps=2) for size in (203, 90, 41)]
    for row in rows[1:]:
        for name, value in rows[0].items():
            assert row[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
    assert rows[0]["white_box_accuracy_strongest"] <= rows[0]["white_box_accuracy"]


def test_the_network_is_left_as_it_was_and_any_precision_is_judged_in_float32(
    pair: tuple[Tensor, Tensor],
) -> None:
    network = Linear().double().train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    row = run(network, pair)
    assert torch.equal(torch.get_rng_state(), state)
    assert row == run(Linear(), pair)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def gated_lenet() -> nn.Module:
    torch.manual_seed(0)
    network = insert_gates(build("lenet5-caffe")).eval()
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc.fill_(3.0)
            gate.a_uc[gate.units // 2 :] = -9.0
    return network


def test_a_compact_network_is_judged_with_its_gated_ones_features_and_gates() -> None:
    gated = gated_lenet()
    small = compact(gated)
    split = Split(torch.randint(0, 256, (12, 1, 28, 28), dtype=torch.uint8), torch.arange(12) % 10)
    row = run(small, split, gated=gated, source=build("lenet5-caffe"), steps=2, restarts=1)
    alone = run(gated, split, source=build("lenet5-caffe"), steps=2, restarts=1, progress=True)
    assert row["white_box_vulnerability"] == pytest.approx(alone["white_box_vulnerability"], rel=1e-3)
    assert row["clean_accuracy"] == alone["clean_accuracy"]
    published, slip = published_cost(gated), published_cost(gated, repeat_dense=True)
    assert published is not None
    assert slip is not None
    assert row["sparsity_percent"] == published.sparsity_percent == 50.0
    assert (row["memory_percent"], row["flops_reduction"]) == (
        published.memory_percent,
        published.flops_reduction,
    )
    assert row["memory_percent_repeat_dense"] == slip.memory_percent
    measured = cost(small, latency=False)
    assert (row["parameters"], row["macs"]) == (measured.parameters, measured.macs)
    assert alone["parameters"] > row["parameters"]
    with pytest.raises(InputError, match="same run"):
        run(small, split, gated=insert_gates(build("lenet5-caffe")))


def test_the_vulnerability_is_that_of_the_attacked_images() -> None:
    network = gated_lenet()
    images = torch.rand(5, 1, 28, 28)
    # At eps 1 and one long step every pixel with a gradient ends at 0 or 1, so the images can be found again.
    row = run(network, (images, torch.arange(5)), eps=0.1, step=1.0, steps=1, restarts=1)
    x = images.clone().requires_grad_()
    nn.functional.cross_entropy(network(x), torch.arange(5), reduction="sum").backward()  # type: ignore[no-untyped-call]
    attacked = (images + 0.1 * x.grad.sign()).clamp(0, 1)  # type: ignore[union-attr]
    expected = vulnerability(network, images, attacked).value
    assert row["white_box_vulnerability"] == pytest.approx(expected, rel=0.05)


class Noisy(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0.5 * torch.randn(len(images), 2)


def test_a_random_network_needs_draws_and_gets_a_spread(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="draws"):
        run(Noisy(), pair)
    network, state = Noisy(), torch.get_rng_state()
    row = run(network, pair, draws=8, limit=60, steps=3, restarts=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (row["random"], row["draws"]) == (True, 8)
    spreads = {name for name in row if name.endswith("_spread")}
    assert spreads == {f"{name}_spread" for name in row if "_accuracy" in name and row[name] is not None} - {
        f"{name}_spread" for name in spreads
    }
    sure = run(Linear(), pair, limit=60, draws=8)
    assert (sure["random"], sure["draws"]) == (False, 1)
    # Averaging 8 draws of noise 0.5 leaves 0.18 on each logit: few images are that near to the boundary.
    assert row["clean_accuracy"] == pytest.approx(sure["clean_accuracy"], abs=15)
    assert row == run(Noisy(), pair, draws=8, limit=60, steps=3, restarts=1)


class Wrong(Linear):
    """What it returns is not usable logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        made: dict[str, Tensor] = {
            "probabilities": logits.softmax(1),
            "nan": logits / 0 * 0,
            "one column": logits[:, :1],
            "per pixel": logits[:, :, None],
        }
        return made[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("probabilities", "probabilities"),
        ("nan", "not finite"),
        ("one column", "logits"),
        ("per pixel", "logits"),
    ],
)
def test_unusable_outputs_are_refused(kind: str, message: str, pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match=message):
        run(Wrong(kind), pair)
    with pytest.raises(InputError, match=message):
        run(Linear(), pair, source=Wrong(kind))


class Particular(Linear):
    """Says by itself which images it wants."""

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("wants 32 pixels")


def test_a_network_that_asserts_its_image_size_is_told_as_a_refusal(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match=r"Particular does not accept .*wants 32 pixels"):
        run(Particular(), pair)


def test_nan_in_a_later_batch_is_refused(pair: tuple[Tensor, Tensor]) -> None:
    class Late(Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits + torch.where(images.flatten(1)[:, :1] == 0.125, torch.nan, 0.0)

    images, labels = pair[0].clone(), pair[1]
    images[150, 0, 0, 0] = 0.125
    with pytest.raises(InputError, match="not finite"):
        run(Late(), (images, labels), batch_size=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit"),
        ({"restarts": 0}, "restarts"),
        ({"batch_size": 0}, "batch_size"),
        ({"eps": -0.1}, "eps"),
        ({"step": 0.0}, "step"),
        ({"steps": 0}, "steps"),
        ({"norm": "3"}, "norm"),
        ({"draws": 0}, "draws"),
        ({"autoattack": 0}, "autoattack"),
        ({"masking": 0}, "masking"),
        ({"protocol": "tables"}, "protocol"),
        ({"protocol": "released-code", "autoattack": 5}, "AutoAttack"),
        ({"classes": 10}, "classes"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match=message):
        run(Linear(), pair, **options)


def test_bad_images_and_labels_are_refused(linear: Linear, pair: tuple[Tensor, Tensor]) -> None:
    images, labels = pair
    for bad, message in [
        ((images * 255, labels), r"\[0, 1\]"),
        (((images - 0.5) / 0.2, labels), r"\[0, 1\]"),
        ((images.half(), labels), "float"),
        ((images, labels + 1), "outputs"),
        ((images, labels - 1), "labels"),
        ((images, labels.float()), "labels"),
        ((images[:0], labels[:0]), "empty"),
        ((images[:, :, :2], labels), "shape"),
    ]:
        with pytest.raises(InputError, match=message):
            run(linear, bad)


def test_the_released_codes_protocol_is_labelled_and_attacks_what_it_standardises() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    images, labels = torch.rand(40, 3, 4, 4), torch.arange(40) % 2
    row = run(network, (images, labels), protocol="released-code", eps=0.03, step=0.007, steps=40)
    assert row["protocol"] == "released-code"
    flat = images.flatten(1).double()
    shown = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)).float()
    weight = (network[1].weight[1] - network[1].weight[0]).detach() * (2 * labels - 1)[:, None]  # type: ignore[operator, index]
    attacked = (shown - 0.03 * weight.sign()).clamp(0, 1)
    with torch.no_grad():
        assert row["clean_accuracy"] == percent(network[1](shown).argmax(1) == labels)
        assert row["white_box_accuracy"] == percent(network[1](attacked).argmax(1) == labels)


def test_a_bayesian_network_is_seen_to_be_random_and_priced_as_published() -> None:
    network = make_bayesian(build("lenet5-caffe"), 1.0, -3.0)
    pair = (torch.rand(6, 1, 28, 28), torch.arange(6))
    with pytest.raises(InputError, match="draws"):
        run(network, pair)
    row = run(network, pair, draws=2, steps=1, restarts=1)
    assert (row["random"], row["memory_percent"], row["flops_reduction"]) == (True, 200.0, 0.5)
    assert row["parameters"] == 2 * 431_080
    # Both passes draw the same weights, so a perturbation of nothing moves nothing.
    assert run(network, pair, draws=2, steps=1, restarts=1, eps=0.0)["white_box_vulnerability"] == 0.0
    assert row["white_box_vulnerability"] > 0


def test_float32_is_not_shortened_while_a_network_is_judged(
    linear: Linear, pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a convolution would keep 10 bits of it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = set()
    real = linear.forward

    def forward(images: Tensor) -> Tensor:
        seen.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return real(images)

    linear.forward = forward  # type: ignore[method-assign]
    run(linear, pair, masking=10)
    assert seen == {(False, False)}
    assert torch.backends.cudnn.allow_tf32
