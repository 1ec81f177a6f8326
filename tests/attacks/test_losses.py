"""Attack losses against SciPy, loops, and the invariances that define them."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from anp_vs.attacks import losses
from anp_vs.errors import InputError

LOGITS = torch.tensor(
    [[3.0, 1.0, -2.0, 0.5, 2.0], [0.0, 0.1, 0.2, 0.3, 5.0], [-1.0, -4.0, -2.0, -3.0, -2.5]],
    dtype=torch.float64,
)
LABELS = torch.tensor([0, 3, 1])


def test_ce_and_kl_are_scipys() -> None:
    z = LOGITS.numpy()
    assert np.allclose(losses.ce(LOGITS, LABELS).numpy(), -log_softmax(z, axis=1)[range(3), LABELS.numpy()])
    clean = softmax(z[::-1].copy(), axis=1)
    expected = rel_entr(clean, softmax(z, axis=1)).sum(axis=1)
    assert np.allclose(losses.kl(torch.tensor(clean))(LOGITS, LABELS).numpy(), expected)
    assert np.allclose(losses.kl(LOGITS.softmax(dim=1))(LOGITS, LABELS).numpy(), 0.0)


def test_margin_and_dlr_by_hand() -> None:
    assert torch.allclose(losses.margin(LOGITS, LABELS), torch.tensor([-1.0, 4.7, 3.0], dtype=torch.float64))
    expected = torch.tensor([-1.0 / 2.0, 4.7 / 4.8, 3.0 / 1.5], dtype=torch.float64)
    assert torch.allclose(losses.dlr(LOGITS, LABELS), expected)
    targets = torch.tensor([3, 4, 0])
    expected = torch.tensor([-2.5 / (3.0 - 0.75), 4.7 / (5.0 - 0.15), 3.0 / (-1.0 + 2.75)], dtype=torch.float64)
    assert torch.allclose(losses.targeted_dlr(targets)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_dlr_is_defined_for_few_classes_and_keeps_a_gradient(classes: int) -> None:
    logits = LOGITS[:, :classes].clone().requires_grad_()
    labels, targets = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])
    for loss, ratio_from in ((losses.dlr, 3), (losses.targeted_dlr(targets), 4)):
        values = loss(logits, labels)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert bool(torch.isfinite(values).all())
        assert bool((gradient.abs().sum(dim=1) > 0).all())
        # Invariant to a shift of all logits and, where it is a ratio, to their scale.
        assert torch.allclose(loss(logits + 7.0, labels), values)
        if classes >= ratio_from:
            assert torch.allclose(loss(logits * 7.0, labels), values)


def test_an_unknown_name_is_refused() -> None:
    assert losses.by_name(losses.ce) is losses.by_name("ce")
    with pytest.raises(InputError, match="hinge"):
        losses.by_name("hinge")
