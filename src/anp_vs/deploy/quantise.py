"""Post-training quantisation of an exported network to eight bits, by onnxruntime's own quantiser.

Weights are int8, one scale an output channel; activations uint8, their ranges taken from calibration images.
Rounding has no useful gradient: attack the float network and give its images to the quantised one, and do not
read the accuracy as robustness by itself.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anp_vs import serialization
from anp_vs.data import Split, to_float
from anp_vs.deploy.export import require
from anp_vs.errors import InputError, RunError
from anp_vs.storage import write_atomically

FEWEST = 16
_BATCH = 32


def quantise(path: str | Path, images: Tensor, out: str | Path | None = None) -> Path:
    """Make an int8 ONNX file from a float one.

    Args:
        path: of the float ONNX file, as `export` writes it.
        images: training images to calibrate with, float N x C x H x W in [0, 1], N at least 16; some hundred do.
        out: of the quantised file; `<path>-int8.onnx` by default.

    Returns:
        The path of the quantised file, with the same input and output; the card is copied, if there is one.

    Raises:
        InputError: too few images, not in [0, 1], or onnxruntime is not installed.
        RunError: the file is no ONNX network that onnxruntime can quantise.
    """
    require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = Path(path)
    out = path.with_name(f"{path.stem}-int8.onnx") if out is None else Path(out)
    if images.dim() != 4 or len(images) < FEWEST or not images.is_floating_point():
        raise InputError(
            f"Calibration images are {images.dtype} of shape {tuple(images.shape)}; give at least {FEWEST} training "
            f"images as floats N x C x H x W."
        )
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise InputError(f"Calibration images span [{low:.3g}, {high:.3g}]; they must lie in [0, 1].")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises on the root logger what is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, out, _Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
            )  # fmt: skip
    except Exception as error:  # the quantiser raises what its parts raise
        reason = " ".join(str(error).split())[:500]
        raise RunError(f"{path} could not be quantised: {reason}. Export the network anew with format onnx.") from error
    finally:
        logging.getLogger().setLevel(level)
    if path.with_suffix(".json").is_file():
        card = {**serialization.read_card(path), "quantised": "int8"}
        write_atomically(out.with_suffix(".json"), json.dumps(card, indent=2).encode())
    return out


class _Reader:
    """Calibration images in the form onnxruntime asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(
            {"images": b.float().numpy()} for b in torch.split(images, _BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None after the last."""
        return next(self._batches, None)


def calibration_images(split: Split, count: int = 256) -> Tensor:
    """Some images of a split, evenly spread, as floats in [0, 1]."""
    chosen = torch.linspace(0, len(split) - 1, min(count, len(split))).long()
    return to_float(split.batch(chosen))
