"""What a network says about images, its input gradient, and whether its answer can be used."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anp_vs.attacks.losses import Loss
from anp_vs.errors import InputError

Network = Callable[[Tensor], Tensor]


def predict(network: Network, images: Tensor, draws: int = 1) -> Tensor:
    """Logits (N x K), never half precision; for several `draws` the averaged probabilities' logarithm. No gradient."""
    with torch.no_grad():
        return averaged(lambda shown: _widened(network(shown)), draws)(images)


def _widened(logits: Tensor) -> Tensor:
    """Logits of half precision in float32, the precision of all that an attack keeps beside them."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def averaged(network: Network, draws: int) -> Network:
    """`network` itself for one draw; else the logarithm of its probabilities' mean over `draws`."""
    if draws == 1:
        return network
    return lambda images: _mean_of([network(images) for _ in range(draws)])


def _mean_of(passes: list[Tensor]) -> Tensor:
    return torch.stack([logits.log_softmax(dim=1) for logits in passes]).logsumexp(dim=0).sub(_log(len(passes)))


def _log(count: int) -> Tensor:
    return torch.tensor(float(count)).log()


def input_gradient(network: Network, images: Tensor, labels: Tensor, loss_fn: Loss, draws: int = 1) -> Tensor:
    """Gradient of the loss with respect to `images` alone, summed over images and `draws`."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        total = gradient_of(loss_fn(network(images), labels).sum(), images)
        for _ in range(draws - 1):
            total = total + gradient_of(loss_fn(network(images), labels).sum(), images)
    return total


def gradient_of(value: Tensor, images: Tensor) -> Tensor:
    """Gradient of the scalar `value`; zero where the network cuts it off (a threshold, say, or a decoder).

    Args:
        value: a scalar computed from `images`.
        images: with gradients required.
    """
    if not value.requires_grad:
        return torch.zeros_like(images)
    found: Sequence[Tensor | None] = torch.autograd.grad(value, images, allow_unused=True)
    return torch.zeros_like(images) if found[0] is None else found[0]


def value_and_gradient(
    network: Network, images: Tensor, labels: Tensor, loss_fn: Loss, draws: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (N), input gradient (N x C x H x W) and logits (N x K), means over `draws`."""
    values, gradients, passes = [], [], []
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        for _ in range(draws):
            logits = network(images)
            value = loss_fn(logits, labels)
            gradients.append(gradient_of(value.sum(), images))
            values.append(value.detach())
            passes.append(logits.detach())
    if draws == 1:
        return values[0], gradients[0], passes[0]
    return torch.stack(values).mean(dim=0), torch.stack(gradients).mean(dim=0), _mean_of(passes)


def checked(network: Network, labels: Tensor) -> Network:
    """`network` with logits never in half precision, whose first answer is checked against `labels` (N).

    Raises:
        InputError: when called: the network does not accept the images, or see `check_logits`.
    """
    done = False

    def call(images: Tensor) -> Tensor:
        nonlocal done
        if done:
            return _widened(network(images))
        try:
            logits = network(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a network may do anything with images it is not made for
            shape = getattr(network, "input_shape", None)
            made_for = f"; it is made for {tuple(shape)}" if shape else ""
            raise InputError(
                f"the network does not accept {images.dtype} images of shape {tuple(images.shape)}{made_for} ({error}). "
                "Pass images of the size, precision and device that it is made for."
            ) from error
        check_logits(logits, labels)
        done = True
        return _widened(logits)

    return call


def check_logits(logits: object, labels: Tensor) -> None:
    """Refuse (InputError) what is not N x K finite logits, K >= 2, with a column for every label."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the network returned {what} for {len(labels)} images; an attack needs logits of shape "
            f"({len(labels)}, classes) with at least two classes. Return the logits alone, one row an image."
        )
    if int(labels.max()) >= logits.shape[1]:
        raise InputError(
            f"the labels reach {int(labels.max())} but the network has {logits.shape[1]} outputs; they "
            f"must lie in [0, {logits.shape[1] - 1}]. Check that the network was made for these classes."
        )
    values = logits.detach().float()
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "the network returned logits that are not finite (NaN or infinity), so no attack can be judged. "
            "Check its weights, or run it in float32."
        )
    total = values.sum(dim=1)
    if bool((values >= 0).all()) and torch.allclose(total, torch.ones_like(total), rtol=0.0, atol=1e-4):
        raise InputError(
            "every row the network returned is non-negative and sums to 1: these are probabilities, behind "
            "which gradients vanish; an attack needs logits. Return the values before the softmax."
        )


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """The wrong classes of each image from the most likely on: `count` tensors (N), at most K - 1 of them."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    count = min(count, logits.shape[1] - 1)
    return list(others.topk(count, dim=1).indices.unbind(dim=1))
