"""The ensemble: the worst case of each image, the same outcome however it was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks import AutoAttackResult, apgd, autoattack, square
from anp_vs.attacks.geometry import Norm
from anp_vs.errors import InputError, RunError
from attacks.small_networks import (
    NORMS,
    Noisy,
    accuracy,
    digits_network,
    distances,
    held_out,
    linear,
    lowest_margin,
    margin,
)

QUICK: dict[str, Any] = {"steps": 8, "queries": 40, "targets": 2, "batch_size": 16}


def same(one: AutoAttackResult, other: AutoAttackResult) -> bool:
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("adversarial", "robust", "margin"))
    return tensors and one.broken_by == other.broken_by and one.after == other.after


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_robust_exactly_where_no_optimum_breaks_it(norm: Norm) -> None:
    network, eps = linear(), {"inf": 0.05, "2": 0.05, "1": 0.5}[norm]
    images = 0.4 + 0.2 * torch.rand(60, 1, 6, 6) if norm == "2" else torch.rand(60, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    best = lowest_margin(network, images, labels, eps, norm)
    result = autoattack(network, images, labels, eps=eps, norm=norm, steps=30, queries=10)
    clear = best.abs() > 0.02 * (margin(network, images, labels) - best)
    assert torch.equal(result.robust[clear], (best > 0)[clear])
    assert 0 < int(result.robust.sum()) < 60
    assert bool((distances(images, result.adversarial, norm) <= eps).all())


@pytest.mark.parametrize("norm", NORMS)
def test_the_outcome_of_each_image_is_consistent(norm: Norm) -> None:
    network, (images, labels) = digits_network(robust=True), held_out(60)
    eps = {"inf": 0.12, "2": 0.6, "1": 3.0}[norm]
    labels = labels.clone()
    labels[7] = (labels[7] + 1) % 10  # at least one clean mistake
    calls: list[tuple[str, int, int, float]] = []
    result = autoattack(network, images, labels, eps=eps, norm=norm, progress=lambda *call: calls.append(call), **QUICK)
    logits = torch.cat([network(part) for part in result.adversarial.split(16)])
    assert torch.equal(result.robust, logits.argmax(dim=1) == labels)
    assert result.accuracy == pytest.approx(accuracy(network, result.adversarial, labels))
    assert torch.equal(result.margin > 0, result.robust)
    assert [finder is None for finder in result.broken_by] == result.robust.tolist()
    assert result.broken_by[7] == "clean"
    mistakes = torch.tensor([finder == "clean" for finder in result.broken_by])
    assert torch.equal(mistakes, network(images).argmax(dim=1) != labels)
    assert torch.equal(result.adversarial[mistakes], images[mistakes])
    assert bool((distances(images, result.adversarial, norm) <= eps).all())
    assert float(result.adversarial.min()) >= 0
    assert float(result.adversarial.max()) <= 1
    falling = [result.clean_accuracy, *result.after.values()]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == result.accuracy < result.clean_accuracy
    assert list(result.after) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for name in result.after:
        steps = [(done, total) for attack, done, total, _ in calls if attack == name]
        assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
    # Images that stand were brought nearer to the boundary than they were.
    stands = result.robust
    assert bool((result.margin[stands] < margin(network, images, labels)[stands]).all())


def test_it_is_at_most_as_kind_as_each_attack_alone() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(60)
    result = autoattack(network, images, labels, eps=0.12, steps=20, queries=100, targets=3, batch_size=60)
    alone = [
        apgd(network, images, labels, eps=0.12, steps=20),
        apgd(network, images, labels, eps=0.12, steps=20, targets=3),
        square(network, images, labels, eps=0.12, queries=100),
    ]
    assert result.accuracy <= min(accuracy(network, adversarial, labels) for adversarial in alone)
    looser = autoattack(network, images, labels, eps=0.2, steps=20, queries=100, targets=3, batch_size=60)
    assert looser.accuracy <= result.accuracy


def test_eps_zero_is_clean_accuracy_and_eps_one_leaves_nothing() -> None:
    network, (images, labels) = digits_network(robust=False), held_out(30)
    nothing = autoattack(network, images, labels, eps=0.0, **QUICK)
    assert nothing.accuracy == nothing.clean_accuracy == accuracy(network, images, labels)
    assert torch.equal(nothing.adversarial, images)
    assert autoattack(network, images, labels, eps=1.0, **QUICK).accuracy == 0.0


class StoppedError(Exception):
    """The evaluation is interrupted here."""


def test_stopped_after_any_batch_it_ends_like_an_uninterrupted_run(tmp_path: Path) -> None:
    network, (images, labels) = digits_network(robust=True), held_out(40)
    expected = autoattack(network, images, labels, eps=0.1, seed=3, **QUICK)
    path, stops = tmp_path / "state.pt", 0

    def stop_soon(*_: object) -> None:
        raise StoppedError

    while True:  # one batch a life
        try:
            resumed = autoattack(network, images, labels, eps=0.1, seed=3, resume=path, progress=stop_soon, **QUICK)
            break
        except StoppedError:
            stops += 1
    assert stops > len(expected.after)
    assert same(resumed, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert not same(autoattack(network, images, labels, eps=0.1, seed=4, **QUICK), expected)


def test_a_state_of_something_else_or_damaged_is_refused_and_kept(tmp_path: Path) -> None:
    network, (images, labels) = digits_network(robust=True), held_out(20)
    path = tmp_path / "state.pt"

    def run(module: nn.Module = network, images: Tensor = images, **changes: Any) -> AutoAttackResult:
        return autoattack(module, images, labels, **({"eps": 0.1, "resume": path} | QUICK | changes))

    first = run()
    whole = path.read_bytes()
    assert same(run(), first)
    for change in ({"eps": 0.2}, {"norm": "2"}, {"seed": 1}, {"steps": 9}, {"images": images * 0.99}):
        with pytest.raises(RunError, match="other images, labels or settings"):
            run(**change)
    with pytest.raises(RunError, match="another network"):
        run(digits_network(robust=False))
    assert path.read_bytes() == whole
    middle = whole.index(first.adversarial.numpy().tobytes()[:64])
    flipped = whole[: middle + 9] + bytes([whole[middle + 9] ^ 1]) + whole[middle + 10 :]
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole[:-1], flipped, b"\x80\x02."):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            run()
        assert path.read_bytes() == damaged
    with pytest.raises(RunError, match="could not be written"):
        run(resume=tmp_path / "missing" / "state.pt")


def test_batch_size_does_not_change_the_outcome() -> None:
    network = linear(4)
    images = torch.rand(30, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    outcomes = [
        autoattack(network, images, labels, eps=0.03, steps=20, queries=50, batch_size=size) for size in (7, 30)
    ]
    assert outcomes[0].broken_by == outcomes[1].broken_by
    assert torch.allclose(outcomes[0].margin, outcomes[1].margin, atol=1e-4)


def test_random_networks_are_refused_with_one_draw_and_reproducible_with_more() -> None:
    mean = linear()
    network = Noisy(mean, spread=0.5)
    images = torch.rand(30, 1, 6, 6)
    labels = mean(images).argmax(dim=1)
    with pytest.raises(InputError, match="draws=20"):
        autoattack(network, images, labels, eps=0.05, **QUICK)
    torch.manual_seed(1)
    first = autoattack(network, images, labels, eps=0.05, draws=10, **QUICK)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = autoattack(network, images, labels, eps=0.05, draws=10, **QUICK)
    assert same(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(first.after) == ["apgd-ce", "apgd-dlr"]
    assert first.accuracy < first.clean_accuracy
    everything = autoattack(network, images, labels, eps=0.05, draws=3, attacks=("fab-t", "square", "apgd-t"), **QUICK)
    assert list(everything.after) == ["fab-t", "square", "apgd-t"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"norm": "0"}, "norm"),
        ({"attacks": ("pgd",)}, "pgd"),
        ({"attacks": ()}, "at least one"),
        ({"attacks": ("square", "square")}, "twice"),
        ({"steps": 0}, "steps"),
        ({"queries": 0}, "queries"),
        ({"targets": 0}, "targets"),
        ({"restarts": 0}, "restarts"),
        ({"draws": 0}, "draws"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments_outside_their_range_are_refused(change: dict[str, Any], message: str) -> None:
    network, (images, labels) = digits_network(robust=False), held_out(4)
    with pytest.raises(InputError, match=message):
        autoattack(network, images, labels, **({"eps": 0.1} | change))


@pytest.mark.parametrize("cut", [lambda x: (x > 0.5).float(), lambda x: x.detach()], ids=["threshold", "detached"])
def test_a_network_that_cuts_gradients_off_is_left_to_the_search(cut: Callable[[Tensor], Tensor]) -> None:
    """Every gradient attack meets a gradient of zero; Square breaks what lies at the threshold."""

    class Cut(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            bright = cut(images).flatten(1).mean(dim=1)
            return torch.stack((bright - 0.5, 0.5 - bright), dim=1)

    images, labels = torch.full((4, 1, 4, 4), 0.51), torch.zeros(4, dtype=torch.int64)
    result = autoattack(Cut(), images, labels, eps=0.1, steps=3, queries=200)
    assert result.clean_accuracy == 1
    assert result.accuracy == 0
