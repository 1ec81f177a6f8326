"""Networks in the formats that deployments want. What leaves is the compact network, with its card."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anp_vs import serialization
from anp_vs.errors import InputError, RunError
from anp_vs.networks.bayesian import is_random
from anp_vs.networks.copying import copied
from anp_vs.pruning.compact import compact
from anp_vs.pruning.graph import example_for
from anp_vs.storage import write_atomically

Format = Literal["safetensors", "torch-export", "onnx"]
SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4
"""Largest difference of logits that an export may show, as a share of the largest logit (at least 1)."""


def export(network: nn.Module, path: str | Path, format: Format, example: Tensor | None = None) -> Path:  # noqa: A002
    """Write a network so that it runs elsewhere, for batches of any size.

    A gated network is made compact first. The card (class names, threat model, recipe, ...) goes along: beside
    the file as JSON, and inside it as the extra file `card.json` (torch-export) or the metadata entry `card`
    (onnx). An exported file is read back, run, and compared before this returns.

    Args:
        network: a classifier; not changed.
        path: of the file; the format's ending is added if it is missing.
        format: `safetensors` (for `anp_vs.load`), `torch-export` (`torch.export.load`, without this package), or
            `onnx` (needs the extra `anp-vs[export]`).
        example: images N x C x H x W in [0, 1], N at least 2; by default made from `network.input_shape`.

    Returns:
        The path of the file: input `images`, float32 in [0, 1]; output `logits`.

    Raises:
        InputError: the format is unknown, what it needs is not installed, or the network cannot be exported.
        RunError: the file cannot be written, or does not compute the network's logits.
    """
    if format not in get_args(Format):
        raise InputError(f"format is {format!r}; choose one of {', '.join(get_args(Format))}.")
    if format != "safetensors" and is_random(network):
        raise InputError(
            f"{type(network).__name__} draws new weights in every pass; an export would be a single draw. Export it as "
            f"safetensors, which keeps their distribution."
        )
    path = Path(path)
    path = path if path.suffix == SUFFIXES[format] else path.with_name(path.name + SUFFIXES[format])
    example = (example_for(network) if example is None else example).float().cpu()
    small = compact(copied(network).float().cpu(), example).requires_grad_(False)
    if format == "safetensors":
        return serialization.save(small, path)
    card = serialization.card_for(small)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            _quiet(),
            TemporaryDirectory(prefix=".export-", dir=path.parent) as folder,
        ):  # an earlier export stays till then
            made = Path(folder) / path.name
            run = (_torch_export if format == "torch-export" else _onnx)(small, made, example, card)
            difference = _difference(small, run, example)
            if not difference <= TOLERANCE:
                raise RunError(
                    f"The exported {path.name} computed other logits than the network (relative difference "
                    f"{difference:.1e}) and was not kept. Export another format, or another version of PyTorch may help."
                )
            made.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from error
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=2).encode())
    return path


def _difference(network: nn.Module, run: Callable[[Tensor], Tensor], example: Tensor) -> float:
    """The largest relative difference of logits on random images, in batches of 1 and of 3."""
    draws = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in (1, 3):
        images = torch.rand(count, *example.shape[1:], generator=draws)
        wanted = network(images)
        worst = (run(images) - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        largest = max(largest, float(worst.nan_to_num(torch.inf)))
    return largest


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # a forward pass may do anything when it is given symbols
        reason = " ".join(str(error).split())[:500]
        raise InputError(
            f"{type(network).__name__} cannot be exported: {reason}. Its forward pass must not branch on values, nor "
            f"fix the number of images (write x.flatten(1), not x.view(64, -1))."
        ) from error


def _torch_export(network: nn.Module, path: Path, example: Tensor, card: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    torch.export.save(_program(network, example), path, extra_files={"card.json": json.dumps(card)})
    return torch.export.load(path).module()


def _onnx(network: nn.Module, path: Path, example: Tensor, card: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    require("onnx", "onnxscript", "onnxruntime")
    program = torch.onnx.export(
        _program(network, example), (), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    program.model.metadata_props["card"] = json.dumps(card)
    program.save(path, external_data=False)
    return onnx_logits(path)


def onnx_logits(path: Path) -> Callable[[Tensor], Tensor]:
    """What an ONNX file computes, by onnxruntime on the CPU: float32 images to logits."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters say of themselves: libraries they could serve, changes to come."""
    talker = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        talker.setLevel(level)


def require(*modules: str) -> None:
    """Refuse, with the remedy, if an optional library is missing.

    Raises:
        InputError: one of them is not installed.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed; it comes with: pip install 'anp-vs[export]'.")
