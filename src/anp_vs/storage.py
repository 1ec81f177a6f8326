"""Files that are whole or not there, and a format of tensors and plain values that cannot hold code.

A file of this format is a mark, the SHA-256 of all that follows, the length of a JSON text, the text, and safetensors:
the text holds the values, and where a tensor stands, its name among the safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from anp_vs.errors import RunError

FAMILY = b"anp-vs state "
MAGIC = FAMILY + b"2\n"
DIGEST_BYTES = 32
LENGTH_BYTES = 8


def temporary_for(path: Path) -> Path:
    """Where this process builds a file before it takes its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    Raises:
        RunError: the disk is full, read-only, or otherwise refuses; the old file is untouched.
    """
    temporary = temporary_for(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"{path} could not be written ({error.strerror or error}). Nothing that was there before has changed; "
            f"free space or choose a folder that can be written to, then run the same command again."
        ) from error
    sync_folder(path.parent)


def read_text(path: Path, most: int) -> str:
    """The text of a file that is small if it is what it says.

    Raises:
        ValueError: it is larger than `most` bytes, of which no more are read, or not UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content.decode("utf-8")


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the file system can promise that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def pack(state: dict[str, Any]) -> bytes:
    """The bytes of a file that holds tensors, numbers, strings, None, and lists, tuples and dicts of them.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(state, tensors)).encode()
    payload = b"".join((len(text).to_bytes(LENGTH_BYTES, "little"), text, save_tensors(tensors)))
    return b"".join((MAGIC, hashlib.sha256(payload).digest(), payload))


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value for JSON; its tensors go to `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # Dimensions in the order of memory, so that a tensor comes back with the layout it had (channels last).
        order = list(value.dim_order())
        tensors[name] = value.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "order": order}
    if isinstance(value, dict):  # as pairs: JSON knows only strings as keys
        return {"dict": [[_plain(k, tensors), _plain(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(held, tensors) for held in value]}
    if isinstance(value, list):
        return [_plain(held, tensors) for held in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} is neither a tensor nor a plain value")


def check_whole(content: bytes, path: Path) -> memoryview:
    """What follows the checksum of a file, if it belongs to it.

    Raises:
        RunError: the file is cut short, changed, of another version, or of another kind.
    """
    start = len(MAGIC) + DIGEST_BYTES
    payload = memoryview(content)[start:]
    if content.startswith(FAMILY) and len(content) > start and not content.startswith(MAGIC):
        raise RunError(f"{path} is damaged, or was written by another version of anp-vs.")
    if not content.startswith(MAGIC) or hashlib.sha256(payload).digest() != content[len(MAGIC) : start]:
        raise RunError(f"{path} is damaged: its content does not match its checksum.")
    return payload


def unpack(content: bytes, path: Path) -> dict[str, Any]:
    """What `pack` was given. Nothing in the content can run code, and it takes no more than a multiple of its size.

    Args:
        content: of a file.
        path: of that file, for messages.

    Raises:
        RunError: it is cut short, changed, or something else.
    """
    payload = check_whole(content, path)
    try:
        start = LENGTH_BYTES + int.from_bytes(payload[:LENGTH_BYTES], "little")
        if start > len(payload):
            raise ValueError("its text is longer than the file")
        text = json.loads(str(payload[LENGTH_BYTES:start], "utf-8"))
        state = _whole(text, load_tensors(bytes(payload[start:])))
        if not isinstance(state, dict):
            raise TypeError(f"there is a {type(state).__name__} in it")
    except Exception as error:  # whatever a file made by a stranger sets off in the readers
        reason = str(error).split("\n")[0][:200]
        raise RunError(f"{path} does not hold what anp-vs saves ({type(error).__name__}: {reason}).") from error
    return state


def _whole(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_plain`; takes each tensor out of `tensors`, so that no file can multiply one."""
    match value:
        case {"tensor": str(name), "order": list(order)}:
            stored = tensors.pop(name)
            # The clone keeps the layout, and has memory of its own with the alignment that torch gives.
            return stored.permute(torch.tensor(order, dtype=torch.int64).argsort().tolist()).clone()
        case {"dict": list(pairs)}:
            return {_whole(key, tensors): _whole(held, tensors) for key, held in pairs}
        case {"tuple": list(held)}:
            return tuple(_whole(one, tensors) for one in held)
        case list():
            return [_whole(held, tensors) for held in value]
        case dict():
            raise ValueError("a mapping in it is not one of ours")
    return value
