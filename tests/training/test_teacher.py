"""Distillation: what is minimised with a teacher, and how a run comes by one."""

import shutil
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs.errors import InputError, RunError
from anp_vs.methods import METHODS
from anp_vs.methods.method import logits_pair
from anp_vs.networks import build
from anp_vs.pruning.pixel_conv import PixelConv2d
from anp_vs.recipes import RECIPES, Recipe
from anp_vs.training import run
from anp_vs.training.loop import Trainer
from training.tiny import TinyConvolution, digits, equal, patched, recipe

FABRIC = Fabric(accelerator="cpu", devices=1)


def teacher(classes: int = 10) -> nn.Module:
    torch.manual_seed(9)
    return TinyConvolution(classes).eval()


def student(weight: float | None, name: str = "at", **changes: object) -> Trainer:
    asked = {"teacher": "given", "teacher_weight": weight} if weight is not None else {}
    return Trainer(recipe(name, **asked, **changes), digits(), FABRIC, None, teacher() if asked else None)


def interrupted(asked: Recipe, out: Path) -> None:
    """Train five steps and die."""
    advance = Trainer.advance

    def dying(training: Trainer) -> object:
        if training.step == 5:
            raise KeyboardInterrupt
        return advance(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            run.train(asked, out=out, quiet=True)


def test_the_gradient_is_that_of_the_mixture_of_cross_entropy_and_divergence() -> None:
    """Hinton et al.: (1 - d) CE(p, y) + d KL(t || p); written out here with logarithms and sums."""
    weight = 0.7
    training = student(weight, average=0.0, lr=0.1, optimiser="sgd", weight_decay=0.0, eps_warmup=0.0)
    labels = training.batch()[1]
    before = {name: value.clone() for name, value in training.network.named_parameters()}
    seen: list[Tensor] = []
    objective = type(training.method).objective

    def recording(self: object, network: nn.Module, clean: Tensor, adversarial: Tensor, *rest: object) -> object:
        seen.append(adversarial)
        dropout = torch.get_rng_state()
        both = torch.cat(logits_pair(network, clean, adversarial)).log_softmax(1)
        taught = teacher()(clean).softmax(1).repeat(2, 1)
        own = labels.repeat(2)
        terms = -(1 - weight) * both[torch.arange(len(own)), own]
        terms = terms + weight * (taught * (taught.log() - both)).sum(1)
        half = len(labels)
        total = (terms[:half].mean() + 2 * terms[half:].mean()) / 3
        expected.extend(torch.autograd.grad(total, list(network.parameters())))
        torch.set_rng_state(dropout)
        network.load_state_dict(state)  # the running statistics have moved
        return objective(self, network, clean, adversarial, *rest)  # type: ignore[arg-type]

    expected: list[Tensor] = []
    state = {name: value.clone() for name, value in training.network.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(training.method), "objective", recording)
        training.advance()
    assert len(seen) == 1
    for (name, parameter), gradient in zip(training.network.named_parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().sum() == 0 or not torch.equal(parameter, before[name])


def test_a_teacher_of_no_weight_changes_nothing() -> None:
    alone, taught = student(None), student(0.0)
    for _ in range(4):
        alone.advance()
        taught.advance()
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(taught.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_teacher_or_refuses_it(name: str) -> None:
    if name == "mart":
        with pytest.raises(InputError, match="MART needs labels"):
            student(1.0, name)
        return
    alone, taught = student(None, name), student(1.0, name)
    for training in (alone, taught):
        training.decided = True  # where there are gates, as after they are fixed
        training.advance()
    assert any(
        not torch.equal(a, b) for a, b in zip(alone.network.parameters(), taught.network.parameters(), strict=True)
    )


@pytest.mark.parametrize(("changes", "waits"), [({}, True), ({"decide_at": 1.0}, False)])
def test_gates_that_will_be_fixed_decide_without_the_teacher(changes: dict[str, float], waits: bool) -> None:
    alone, taught = student(None, "anp-vs", **changes), student(1.0, "anp-vs", **changes)
    steps = []
    for _ in range(taught.total_steps):
        alone.advance()
        taught.advance()
        same = all(
            torch.equal(a, b) for a, b in zip(alone.network.parameters(), taught.network.parameters(), strict=True)
        )
        steps.append((taught.decided, same))
    assert taught.decided == waits
    # The step that fixes the gates is the last that was taken without the teacher.
    first = next(step for step, (_, same) in enumerate(steps) if not same)
    assert first == (1 + next(step for step, (decided, _) in enumerate(steps) if decided) if waits else 0)


def test_a_teacher_that_does_not_fit_is_refused() -> None:
    def with_teacher(network: nn.Module | None) -> Trainer:
        return Trainer(recipe("at", teacher="given"), digits(), FABRIC, None, network)

    with pytest.raises(InputError, match="MART needs labels"):
        recipe("anp-vs", teacher="given", method={"name": "anp-vs", "adversarial_loss": "mart"})
    with pytest.raises(InputError, match=r"teacher_weight is 1.5; .* \[0, 1\]"):
        recipe("at", teacher_weight=1.5)
    with pytest.raises(InputError, match="knows 3 classes, the data have 10"):
        with_teacher(teacher(3))
    named = teacher()
    named.card = {"classes": [f"class {k}" for k in range(10)]}  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"knows 10 classes \('class 0.*the data have 10 \('0"):
        with_teacher(named)
    with pytest.raises(InputError, match="draws its weights anew"):
        with_teacher(student(None, "at-bnn").network)
    with pytest.raises(InputError, match=r"The teacher does not fit: VGG16 takes images of 3 x 32 x 32"):
        with_teacher(build("vgg16"))
    with pytest.raises(InputError, match="asks for the teacher given"):
        with_teacher(None)


def test_in_bfloat16_the_teacher_sees_float32_pixels() -> None:
    training = student(1.0, precision="bfloat16")
    assert training.teacher is not None
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for module in training.teacher.network.modules():
        if isinstance(module, nn.Conv2d | PixelConv2d):
            module.register_forward_hook(lambda _, given, out: seen.append((given[0].dtype, out.dtype)))
    training.advance()
    assert seen == [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]


def test_another_teacher_than_the_run_began_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with patched():
        run.train(recipe("standard"), out=Path("master"), quiet=True)
        interrupted(recipe("at", teacher="master"), tmp_path / "student")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)  # the path was relative to another folder
        Path("../master").rename(tmp_path / "kept")
        run.train(recipe("standard", seed=1), out=tmp_path / "master", quiet=True)
        with pytest.raises(RunError, match=r"is not the network that .*student began to learn from"):
            run.train(tmp_path / "student", quiet=True)
        shutil.rmtree(tmp_path / "master")
        (tmp_path / "kept").rename(tmp_path / "master")
        assert run.train(tmp_path / "student", quiet=True).metrics["clean_accuracy"] >= 0


def test_a_run_cannot_need_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny/at", recipe("at"))
    with patched(), pytest.raises(RunError, match="is in use by this very process"):
        run.train(recipe("at", teacher="tiny/at"), out=tmp_path / "tiny" / "at" / "seed0", quiet=True)


def test_a_run_with_a_teacher_stops_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    with patched():
        master = run.train(recipe("standard"), out=tmp_path / "master", quiet=True)
        asked = recipe("anp-vs", teacher=str(master.path))
        whole = run.train(asked, out=tmp_path / "whole", quiet=True)
        interrupted(asked, tmp_path / "halves")
        again = run.train(asked, out=tmp_path / "halves", quiet=True)
        alone = run.train(recipe("anp-vs"), out=tmp_path / "alone", quiet=True)
    equal(dict(whole.network.state_dict()), dict(again.network.state_dict()))
    assert any(
        not torch.equal(a, b) for a, b in zip(whole.network.parameters(), alone.network.parameters(), strict=True)
    )
