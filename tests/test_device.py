"""Full float32, whichever of PyTorch's ways a user switched TF32 on or off by."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import backends

from anp_vs.device import full_float32

NEW = pytest.mark.skipif(not hasattr(backends.cuda.matmul, "fp32_precision"), reason="since PyTorch 2.9")


def kinds() -> list[Any]:
    """What has a precision of its own."""
    cudnn, cpu = backends.cudnn, backends.mkldnn
    new = hasattr(backends.cuda.matmul, "fp32_precision")
    return [cudnn.conv, cudnn.rnn, backends.cuda.matmul, cpu.conv, cpu.rnn, cpu.matmul] if new else []  # type: ignore[attr-defined]


def precisions() -> list[str]:
    return [kind.fp32_precision for kind in kinds()]


def old_flags() -> list[object]:
    """None for a flag that PyTorch refuses to read."""
    found: list[object] = []
    for read in (
        lambda: backends.cudnn.allow_tf32,
        lambda: backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    convolutions, products, own = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), precisions()
    yield
    if own:
        for_everything("none")
    backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    for kind, precision in zip(kinds(), own, strict=True):
        kind.fp32_precision = precision
    assert (precisions(), old_flags()) == (own, [convolutions, products != "highest", products])


def on_by_old_flags() -> None:
    backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = True


def off_by_old_flags() -> None:
    backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = False


def bfloat16_on_a_cpu() -> None:
    torch.set_float32_matmul_precision("medium")


def for_products() -> None:
    backends.cuda.matmul.fp32_precision = "tf32"


def for_one_kind_of_layer() -> None:
    backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def for_everything(precision: str = "tf32") -> None:
    backends.fp32_precision = precision  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "switch",
    [
        on_by_old_flags,
        off_by_old_flags,
        bfloat16_on_a_cpu,
        pytest.param(for_products, marks=NEW),
        pytest.param(for_one_kind_of_layer, marks=NEW),
        pytest.param(for_everything, marks=NEW),
    ],
)
def test_float32_is_full_inside_and_everything_as_it_was_afterwards(switch: Callable[[], None]) -> None:
    switch()
    before = precisions(), old_flags()
    with full_float32():
        assert precisions() == ["ieee"] * len(kinds())
        assert old_flags() == [False, False, "highest"]  # read by compilers, and by `torch.backends.cudnn.flags`
    assert (precisions(), old_flags()) == before
