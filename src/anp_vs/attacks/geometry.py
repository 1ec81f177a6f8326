"""The threat model: which images an attack may return, and how it moves among them.

An adversarial image x~ of x obeys |x~ - x|_p <= eps for p in {inf, 2, 1}, and lies in [0, 1] (pixel space).
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from anp_vs.attacks.noise import Source, normal, uniform
from anp_vs.errors import InputError

Norm = Literal["inf", "2", "1"]

_SHARE_OF_COORDINATES = 0.01  # of an image, moved by one 1-norm step (Tramer & Boneh 2019, arXiv 1904.13000)
_MARGIN = 1e-6  # relative room left in the 2- and 1-ball, so that a norm summed in float32 is within eps too


def check_images(images: object, labels: object | None = None, classes: int | None = None) -> None:
    """Refuse what is not a batch of images in pixel space with its labels.

    Args:
        images: float32 or float64, N x C x H x W, finite, in [0, 1].
        labels: int64, N, each in [0, classes).
        classes: number of classes; not checked when None.

    Raises:
        InputError: naming the value, what is accepted, and the remedy.
    """
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"images are {kind}; an attack needs a float32 or float64 tensor in [0, 1]. "
            "Divide uint8 images by 255; run half precision inside the network, not on the images."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"images have shape {tuple(images.shape)}; an attack needs N x C x H x W, N >= 1. "
            "Add the missing axis, or select a subset that is not empty."
        )
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low >= 0.0 and high <= 1.0):  # also catches NaN, which aminmax propagates
        raise InputError(
            f"image values span [{low:g}, {high:g}]; an attack needs finite values in [0, 1]. "
            "Make the normalisation a layer of the network and pass pixels divided by their maximum."
        )
    if labels is not None:
        _check_labels(images, labels, classes)


def _check_labels(images: Tensor, labels: object, classes: int | None) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        what = f"{labels.dtype}, {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            f"labels are {what}; {len(images)} images need int64 labels of shape ({len(images)},). "
            "Pass class indices, not one-hot vectors, one for each image."
        )
    if labels.device != images.device:
        raise InputError(
            f"labels are on {labels.device} and images on {images.device}; both must be on one device. "
            "Move one of them with .to(device)."
        )
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or (classes is not None and high >= classes):
        upper = "" if classes is None else f"{classes - 1}"
        raise InputError(
            f"labels span [{low}, {high}]; they must lie in [0, {upper or 'classes - 1'}]. "
            "Check that the network was made for these classes."
        )


def check_budget(eps: float, norm: str, step: float | None = None, steps: int | None = None) -> None:
    """Refuse (InputError) a bad `eps`, an unknown `norm`, `step` <= 0, `steps` no int >= 1, and inference mode."""
    if norm not in get_args(Norm):
        raise InputError(f"norm is {norm!r}; it must be one of 'inf', '2', '1'. Write it as a string.")
    if not 0.0 <= eps < float("inf"):
        raise InputError(f"eps is {eps}; it must be finite and >= 0, in units of [0, 1] pixels, such as 8/255.")
    if norm == "inf" and eps > 1:
        raise InputError(
            f"eps is {eps}; in the inf norm it must lie in [0, 1], in units of [0, 1] pixels (8/255 = 0.0314)."
        )
    if step is not None and not 0.0 < step < float("inf"):
        raise InputError(f"step is {step}; it must be finite and > 0, in units of [0, 1] pixels. Try eps/4.")
    if steps is not None and not isinstance(steps, int):
        raise InputError(f"steps is {steps!r}; it must be a whole number of at least 1, such as 40.")
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1. Evaluate without an attack for clean accuracy.")
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() rules out the gradients that attacks need. Use torch.no_grad().")


def box(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lowest and highest image of the inf-norm threat model, exact: no value in between is further than eps.

    images + eps, rounded to the images' precision, can lie an ulp outside the ball; such bounds move one ulp
    in.

    Args:
        images: N x C x H x W in [0, 1].
        eps: radius in pixel units.

    Returns:
        lower, upper: shaped like `images`; their real and rounded differences to `images` are <= eps.
    """
    radius = torch.tensor(eps, dtype=images.dtype)
    if radius.item() > eps:  # a float32 eps above the asked one would let a float32 difference pass it
        radius = torch.nextafter(radius, torch.zeros_like(radius))
    radius = radius.to(images.device)
    bounds = []
    for sign in (-1.0, 1.0):
        bound = (images + sign * radius).clamp_(0.0, 1.0)
        outside = ((_wide(bound) - _wide(images)).abs_() > _wide(radius)).to(images.device)
        bounds.append(torch.where(outside, torch.nextafter(bound, images), bound))
    return bounds[0], bounds[1]


def projector(images: Tensor, eps: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Function to the nearest allowed image: inside the eps-ball around `images` and inside [0, 1].

    inf and 1: the Euclidean projection onto ball and box together. 2: onto the ball, then onto the box, which
    stays in the ball because the centre lies in the box. For 2 and 1 the radius is taken a few 1e-6 smaller,
    so that float32 rounding does not leave the ball.

    Args:
        images: the centres, N x C x H x W in [0, 1].
        eps: radius in pixel units.
        norm: of the ball.

    Returns:
        A function of images of that shape to new images of that shape.
    """
    if norm == "inf":
        lower, upper = box(images, eps)
        return lambda candidate: torch.clamp(candidate, lower, upper)
    radius = eps * (1 - 2 * _MARGIN)

    def onto_2_ball(candidate: Tensor) -> Tensor:
        delta = candidate - images
        scale = radius / delta.flatten(1).norm(dim=1).clamp_(min=torch.finfo(delta.dtype).tiny)
        return delta.mul_(per_image(scale.clamp_(max=1.0), delta)).add_(images).clamp_(0.0, 1.0)

    def onto_1_ball(candidate: Tensor) -> Tensor:
        return (images + project_l1_box(images, candidate - images, radius)).clamp_(0.0, 1.0)

    return onto_2_ball if norm == "2" else onto_1_ball


def project(images: Tensor, candidate: Tensor, eps: float, norm: Norm) -> Tensor:
    """`candidate` moved to the nearest allowed image, see `projector`."""
    return projector(images, eps, norm)(candidate)


def project_l1_box(images: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Euclidean projection of `delta` onto {d: |d|_1 <= eps, 0 <= images + d <= 1}.

    After Croce & Hein 2021 (arXiv 2103.01208). The minimiser is d_i = sign(v_i) min(max(|v_i| - t, 0), c_i),
    c_i the room to the box on v_i's side, with the smallest t >= 0 that meets the ball. sum |d| is piecewise
    linear in t with kinks at |v_i| - c_i and |v_i|; sorting the kinks finds t exactly.

    Args:
        images: N x ... in [0, 1].
        delta: perturbations of that shape.
        eps: radius in pixel units.

    Returns:
        The projected perturbations.
    """
    size = delta.abs().flatten(1)
    room = torch.where(delta > 0, 1.0 - images, images).flatten(1)
    kinks = torch.cat((size, (size - room).clamp_(min=0.0)), dim=1)
    # As t falls from infinity, the sum's slope grows by one at |v_i| and falls by one at max(|v_i| - c_i, 0).
    slopes = torch.cat((torch.ones_like(size), -torch.ones_like(size)), dim=1)
    kinks, order = kinks.sort(dim=1, descending=True)
    slope = slopes.gather(1, order).cumsum(1)
    gain = slope[:, :-1] * (kinks[:, :-1] - kinks[:, 1:])
    total = torch.cat((torch.zeros_like(kinks[:, :1]), gain.cumsum(1)), dim=1)
    # The last kink at which the sum is still within the ball, and the linear piece that starts there.
    last = ((total <= eps).sum(1, keepdim=True) - 1).clamp_(min=0)
    piece = slope.gather(1, last).clamp_(min=1.0)
    threshold = kinks.gather(1, last) - (eps - total.gather(1, last)) / piece
    inside = torch.minimum(size, room).sum(1, keepdim=True) <= eps
    threshold = torch.where(inside, torch.zeros_like(threshold), threshold.clamp_(min=0.0))
    kept = torch.minimum((size - threshold).clamp_(min=0.0), room)
    return delta.sign() * kept.view_as(delta)


def confine(images: Tensor, candidate: Tensor, eps: float, norm: Norm) -> Tensor:
    """`candidate` made to obey the threat model exactly, whatever rounding its attack did.

    inf: clamped to `box`. 2 and 1: a perturbation that is too long is shortened in double precision and each
    pixel rounded towards `images`, so the norm of the real difference is at most eps.

    Args:
        images: the centres, N x C x H x W in [0, 1].
        candidate: images of that shape, up to rounding in the ball.
        eps: radius in pixel units.
        norm: of the ball.

    Returns:
        Images whose real difference to `images` has a norm of at most eps, in [0, 1].
    """
    if norm == "inf":
        return torch.clamp(candidate, *box(images, eps))
    inner, delta = _wide(images), _wide(candidate).clamp_(0.0, 1.0)
    delta -= inner
    length = delta.flatten(1).norm(p=float(norm), dim=1)
    scale = torch.where(length > eps * (1 - _MARGIN), eps * (1 - _MARGIN) / length, torch.ones_like(length))
    target = inner + delta * per_image(scale, delta)
    result = target.to(images)
    too_far = (_wide(result) - inner).abs() > (target - inner).abs()
    return torch.where(too_far.to(images.device), torch.nextafter(result, images), result)


def step(current: Tensor, gradient: Tensor, size: float | Tensor, norm: Norm) -> Tensor:
    """One step of steepest ascent from `current`, of length `size` in `norm`; not projected.

    inf: sign of the gradient. 2: the normalised gradient. 1: the pixels with the largest gradient, 1 % of
    them (at least one) in equal parts, others in the place of those that have no room in [0, 1]. An image
    with a zero gradient stays where it is.

    Args:
        current: N x C x H x W in [0, 1].
        gradient: of the loss at `current`.
        size: length of the step in pixel units; one number, or one for each image (N).
        norm: in which it is measured.

    Returns:
        The moved images.
    """
    sizes = size if isinstance(size, Tensor) else torch.full_like(gradient[:, 0, 0, 0], size)
    if norm == "1":
        count = max(1, round(_SHARE_OF_COORDINATES * gradient[0].numel()))
        return sparse_step(current, gradient, sizes, torch.full_like(sizes, float(count)))
    direction = gradient.sign() if norm == "inf" else normalised(gradient)
    return current + direction * per_image(sizes, direction)


def normalised(gradient: Tensor) -> Tensor:
    """Each image's gradient divided by its 2-norm, also where its squares underflow; zero stays zero."""
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / per_image(gradient.abs().flatten(1).amax(dim=1).clamp_(min=tiny), gradient)
    return scaled / per_image(scaled.flatten(1).norm(dim=1).clamp_(min=tiny), gradient)


def sparse_step(current: Tensor, gradient: Tensor, sizes: Tensor, counts: Tensor) -> Tensor:
    """A step of 1-norm `sizes` (N) along the largest gradients, none of them by more than size / count (N).

    What a pixel cannot take because of [0, 1] goes to the next largest.
    """
    slope = gradient.abs().flatten(1)
    room = torch.where(gradient > 0, 1.0 - current, current).flatten(1) * (slope > 0)
    order = slope.argsort(dim=1, descending=True)
    most = torch.minimum(room, (sizes / counts.clamp(min=1.0))[:, None]).gather(1, order)
    before = most.cumsum(dim=1) - most
    moved = torch.minimum(most, (sizes[:, None] - before).clamp_(min=0.0))
    return current + torch.zeros_like(slope).scatter_(1, order, moved).view_as(gradient) * gradient.sign()


def random_start(
    images: Tensor, eps: float, norm: Norm, generator: Source = None, *, by_volume: bool = False
) -> Tensor:
    """A random image of the threat model, projected onto [0, 1]; inf: uniform in the ball.

    2 and 1: a uniform direction and a uniform length. Nearly all of a ball's volume lies at its surface, and ascent
    from there is weaker: in the 2-norm by 0.2 (APGD) to 0.5 points (PGD) of a small robust CNN's accuracy.

    Args:
        images: the centres, N x C x H x W in [0, 1].
        eps: radius in pixel units.
        norm: of the ball.
        generator: source of randomness, on any device; the global one when None.
        by_volume: uniform in the ball in the 2- and 1-norm too.

    Returns:
        Images shaped like `images`.
    """
    if norm == "inf":
        return project(images, images + (2.0 * uniform(images.shape, generator, images) - 1.0) * eps, eps, norm)
    if norm == "2":
        noise = normal(images.shape, generator, images)
    else:  # independent Laplace values, normalised, are uniform on the 1-sphere
        noise = uniform(images.shape, generator, images).sub_(0.5)
        noise = -noise.sign() * torch.log1p(-2.0 * noise.abs().clamp_(max=0.4999999))
    radius = uniform((len(images), 1), generator, images).squeeze(1)
    radius.pow_(1.0 / images[0].numel() if by_volume else 1.0).mul_(eps).div_(
        noise.flatten(1).norm(p=float(norm), dim=1)
    )
    return project(images, images + noise.mul_(per_image(radius, noise)), eps, norm)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """`values` (N) shaped to multiply `like` (N x ...)."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _wide(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()  # Apple's GPUs have no float64
