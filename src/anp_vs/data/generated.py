"""Generated training images, as the field publishes them: an .npz file with the arrays `image` and `label`.

Source of the layout: Rebuffi et al. 2021 (arXiv 2103.01946) and Wang et al. 2023 (arXiv 2302.04638), who publish a
million and more images of generative models for CIFAR-10 and CIFAR-100. Nothing in the file is ever unpickled.
"""

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from anp_vs.data.split import Split
from anp_vs.errors import DataError

_MOST_INFLATED = 4 << 30  # bytes of a compressed array
_LONGEST_HEADER = 10_000
_CHUNK = 1 << 20
_LOCAL_HEADER = 30
_REMEDY = "give a file written by numpy.savez(FILE, image=..., label=...)"


def load_generated(path: str | Path, shape: tuple[int, int, int], classes: int) -> Split:
    """Read generated images.

    Arrays that are not compressed stay on disk and are mapped into memory, so that a file larger than memory can
    be trained on; it must not be changed meanwhile. Compressed ones are read, up to 4 GiB.

    Args:
        path: an .npz file with `image`, uint8 N x H x W x C, and `label`, whole numbers, N >= 1.
        shape: (C, H, W) that the images must have.
        classes: labels must lie in 0..classes - 1.

    Raises:
        DataError: the file is missing, damaged, holds Python objects, or does not hold such arrays.
    """
    path, (channels, height, width) = Path(path), shape
    wanted = f"uint8 of N x {height} x {width} x {channels}, N at least 1"

    def fits(size: tuple[int, ...], kind: np.dtype[Any]) -> bool:
        return kind == np.uint8 and size[1:] == (height, width, channels) and size[0] > 0

    try:
        with zipfile.ZipFile(path) as archive:
            images = _array(path, archive, "image", fits, wanted)
            count = len(images)
            labels = _array(
                path,
                archive,
                "label",
                lambda size, kind: kind.kind in "iu" and size == (count,),
                f"{count} whole numbers",
            )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {_REMEDY}.") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, NotImplementedError, OverflowError,
            RuntimeError) as error:  # fmt: skip
        raise DataError(f"{path} is not a sound .npz file ({type(error).__name__} {error}); {_REMEDY}.") from error
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"label in {path} goes from {labels.min()} to {labels.max()}; the data set has the classes 0 to {classes - 1}."
        )
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64)))


def _array(
    path: Path, archive: zipfile.ZipFile, name: str, fits: Callable[[tuple[int, ...], np.dtype[Any]], bool], wanted: str
) -> NDArray[Any]:
    """One array of the file, once its header says what is wanted: mapped where it lies as it is, else read."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        held = ", ".join(archive.namelist()[:5])[:200] or "nothing"
        raise DataError(f"{path} has no array {name!r} but {held}; {_REMEDY}.") from None
    with archive.open(entry) as file:
        shape, fortran, dtype = _header(file)
        start, size = file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise DataError(f"{name} in {path} holds Python objects, which would have to be unpickled; {_REMEDY}.")
        if not shape or not fits(shape, dtype):
            raise DataError(f"{name} in {path} is {dtype} of shape {shape}; the data set takes {wanted}.")
        if fortran or start + size != entry.file_size:
            raise DataError(
                f"{name} in {path} says {dtype} of shape {shape} and holds {entry.file_size - start} bytes"
                f"{', column by column' if fortran else ''}; {_REMEDY}."
            )
        if entry.compress_type == zipfile.ZIP_STORED:
            return np.memmap(path, dtype, "c", _begin(path, entry) + start, shape)
        if size > _MOST_INFLATED:
            raise DataError(f"{name} in {path} is {size / 2**30:.1f} GiB and compressed; {_REMEDY}, which is mapped.")
        array = np.empty(shape, dtype)
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            read = file.read(min(_CHUNK, len(rest)))
            if not read:
                raise EOFError(f"{name} ends {len(rest)} bytes too early")
            rest[: len(read)] = read
            rest = rest[len(read) :]
        file.read(1)  # to the end, where the checksum is compared
        return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array, from no more than `_LONGEST_HEADER` bytes whatever the file says."""
    start = file.read(_LONGEST_HEADER)
    stream = io.BytesIO(start)
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # of the tokenizer, the parser and NumPy's types: whatever a made-up header provokes
        raise ValueError(f"a header cannot be read: {type(error).__name__} {error}") from error
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {shape}")
    file.seek(stream.tell())
    return shape, fortran and len(shape) > 1, dtype


def _begin(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: its local header tells how long its own name and extra fields are."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return entry.header_offset + _LOCAL_HEADER + name + extra
