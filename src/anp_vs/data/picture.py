"""One picture file -> one image of the size that a network takes. Pictures are untrusted input."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from anp_vs.data.split import is_whole
from anp_vs.errors import DataError, InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_PIXELS = 178_956_970  # Pillow itself refuses more


@dataclass(frozen=True)
class PictureOptions:
    """How pictures become images.

    Attributes:
        size: Side of the square images, in pixels, 1..4096, cropped about the centre.
        resize: What the shorter side of a picture is resized to before the crop, size..4096, such as 256 for
            a size of 224; None: the size, so that only the longer side is cropped.
        colour: "rgb" for 3 channels, "grey" for 1.
        damaged: What to do with pictures that cannot be decoded or are too large: "refuse" the data set,
            naming them, or "skip" them with a warning that names them.
        largest: The most pixels (width x height) a picture may have, 1..178,956,970: a small file
            can hold a gigantic picture.
        workers: Threads that decode, 1..256 (Pillow decodes without Python's lock).

    Raises:
        InputError: If a value is outside its range.
    """

    size: int = 32
    resize: int | None = None
    colour: Literal["rgb", "grey"] = "rgb"
    damaged: Literal["refuse", "skip"] = "refuse"
    largest: int = 1 << 26
    workers: int = 4

    def __post_init__(self) -> None:
        for name, low, high in (("size", 1, 4096), ("largest", 1, _MOST_PIXELS), ("workers", 1, 256)):
            value = getattr(self, name)
            if not is_whole(value) or not low <= value <= high:
                raise InputError(f"{name} is {value!r}; give a whole number from {low} to {high}.")
        if self.resize is not None and (not is_whole(self.resize) or not self.size <= self.resize <= 4096):
            raise InputError(
                f"resize is {self.resize!r}; give a whole number from size ({self.size}) to 4096, or None."
            )
        for name, choices in (("colour", ("rgb", "grey")), ("damaged", ("refuse", "skip"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return (3 if self.colour == "rgb" else 1, self.size, self.size)


def decode(source: object, name: str, options: PictureOptions) -> Tensor:
    """Decode one picture.

    A centred square is resized to `size` x `size` with an antialiased bilinear filter: the largest one, which is
    to resize the shorter side and crop the longer, or with `resize` one smaller by size / resize. EXIF orientation is applied; transparency is dropped; of an
    animation the first frame is taken.

    Args:
        source: A path or the bytes of a PNG, JPEG or WebP file, a Pillow image, or a NumPy array of uint8,
            H x W or H x W x 3.
        name: What messages call it.
        options: Size, colour and limits.

    Returns:
        uint8, C x size x size.

    Raises:
        DataError: If it cannot be decoded or has more pixels than `options.largest`.
    """
    try:
        with contextlib.ExitStack() as files:
            picture = source if isinstance(source, Image.Image) else files.enter_context(_opened(source))
            width, height = picture.size  # known from the header, before anything is decoded
            if width * height > options.largest:
                raise DataError(
                    f"{name} has {width} x {height} pixels, more than the {options.largest} allowed; make it "
                    "smaller, or raise `largest` if you trust it."
                )
            # The caller's own picture is not to be changed by what follows.
            return _square(picture.copy() if picture is source else picture, options)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is a decompression bomb ({error}); remove it, or make it smaller.") from error
    # Decoders of untrusted bytes raise nearly anything: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{name} cannot be decoded ({reason}); replace it by a sound PNG, JPEG or WebP picture, or remove it."
        ) from error


def _opened(source: object) -> Image.Image:
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=_FORMATS)
    if isinstance(source, np.ndarray) and source.dtype == np.uint8:
        return Image.fromarray(source)
    if isinstance(source, Path):
        return Image.open(source, formats=_FORMATS)
    raise TypeError(f"a {type(source).__name__} is no picture")


def _square(picture: Image.Image, options: PictureOptions) -> Tensor:
    mode = "RGB" if options.colour == "rgb" else "L"
    side = max(1.0, min(picture.size) * options.size / (options.resize or options.size))
    # A JPEG can be decoded at a half, quarter or eighth of its size, which is faster; keep twice the size.
    picture.draft(mode, (int(2 * options.size * picture.width / side), int(2 * options.size * picture.height / side)))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip to 255
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    picture = picture.convert(mode)
    side = min(picture.size) * options.size / (options.resize or options.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    wanted = (options.size, options.size)
    square = np.array(picture.resize(wanted, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
    return torch.from_numpy(square).view(*wanted, -1).permute(2, 0, 1).contiguous()
