"""The idx format of MNIST: a big-endian header (magic number, one size a dimension), then bytes, all in gzip.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
"""

import math
import struct

import numpy as np
import torch
from torch import Tensor

from anp_vs.data.archive import gunzip
from anp_vs.errors import DataError

_UNSIGNED_BYTE = 8
_REMEDY = "delete it so that it is downloaded again, or give the official file."


def parse(data: bytes, shape: tuple[int, ...], name: str) -> Tensor:
    """Read a gzip-compressed idx file of unsigned bytes.

    Args:
        data: The whole file.
        shape: The sizes it must have, e.g. (60000, 28, 28) for images or (60000,) for labels.
        name: The file's name, for messages.

    Returns:
        uint8 of that shape.

    Raises:
        DataError: If the file is damaged, of another type or shape, or shorter or longer than its header
            says.
    """
    length = 4 + 4 * len(shape)
    size = math.prod(shape)
    plain = gunzip(data, length + size, name)
    if len(plain) < length:
        raise DataError(f"{name} holds {len(plain)} bytes, less than the {length} of its header; {_REMEDY}")
    zero, kind, dimensions = struct.unpack(">HBB", plain[:4])
    if zero != 0 or kind != _UNSIGNED_BYTE:
        raise DataError(f"{name} starts with {plain[:4].hex()}, not with the mark of idx bytes 0000 08; {_REMEDY}")
    if dimensions != len(shape):
        raise DataError(f"{name} has {dimensions} dimensions where {len(shape)} are expected; {_REMEDY}")
    found = struct.unpack(f">{dimensions}I", plain[4:length])
    if found != shape:
        raise DataError(f"{name} has the shape {found} where {shape} is expected; {_REMEDY}")
    if len(plain) != length + size:
        raise DataError(f"{name} holds {len(plain) - length} values where its header says {size}; {_REMEDY}")
    # bytearray: torch wants memory that may be written to. NumPy: torch reads no empty buffer.
    return torch.from_numpy(np.frombuffer(bytearray(plain), np.uint8)[length:]).view(shape)


def labels(values: Tensor, classes: int, name: str) -> Tensor:
    """Labels as class numbers.

    Args:
        values: uint8, N, as read.
        classes: Number of classes.
        name: The file's name, for messages.

    Returns:
        int64, N.

    Raises:
        DataError: If a label is outside 0..classes - 1.
    """
    wrong = (values >= classes).nonzero()
    if len(wrong):
        record = int(wrong[0])
        raise DataError(
            f"{name} has the label {int(values[record])} in record {record}, outside 0..{classes - 1}; {_REMEDY}"
        )
    return values.long()
