"""Files that are whole or not there: atomic, checksummed, and readable without running code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anp_vs.errors import RunError

MAGIC = b"anp-vs checkpoint 1\n"
DIGEST_BYTES = 32


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


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the file system can promise that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name(path.name + ".previous")


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dicts; the good file it replaces stays as `<name>.previous`.

    Raises:
        RunError: the file cannot be written; the last good one is intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    content = b"".join((MAGIC, hashlib.sha256(payload).digest(), payload))
    # A damaged file must not push the good one before it out of its place.
    if path.exists() and _is_whole(path):
        previous = previous_of(path)
        # A link keeps the good file reachable under both names until the new one is in place.
        spare = temporary_for(previous)
        try:
            spare.unlink(missing_ok=True)
            spare.hardlink_to(path)
            spare.replace(previous)
        except OSError:  # a file system without links, or full: a copy is as good, if there is room
            write_atomically(previous, path.read_bytes())
    write_atomically(path, content)


def _is_whole(path: Path) -> bool:
    try:
        _payload(path)
    except RunError:
        return False
    return True


def _payload(path: Path) -> bytes:
    """What a checkpoint file holds behind its checksum.

    Raises:
        RunError: the file cannot be read, is cut short, or changed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    start = len(MAGIC) + DIGEST_BYTES
    payload = content[start:]
    if not content.startswith(MAGIC) or hashlib.sha256(payload).digest() != content[len(MAGIC) : start]:
        raise RunError(f"{path} is damaged: its content does not match its checksum.")
    return payload


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint file. Nothing in it can run code, and it takes no more memory than its size.

    Raises:
        RunError: the file is cut short, changed, or not a checkpoint.
    """
    payload = _payload(path)
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(payload):
                raise ValueError("compressed, which no checkpoint is")
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        _check_plain(state)
    except Exception as error:  # whatever a file made by a stranger sets off in the readers
        reason = str(error).split("\n")[0][:200]
        raise RunError(f"{path} does not hold a checkpoint ({type(error).__name__}: {reason}).") from error
    if not isinstance(state, dict):
        raise RunError(f"{path} does not hold a checkpoint: there is a {type(state).__name__} in it.")
    return state


def _check_plain(value: object) -> None:
    """Refuse (ValueError) what a checkpoint never holds: other objects, and tensors larger than their memory."""
    if isinstance(value, dict):
        for key, held in value.items():
            _check_plain(key)
            _check_plain(held)
    elif isinstance(value, list | tuple | set):
        for held in value:
            _check_plain(held)
    elif isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError("a tensor in it is not dense and in memory")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor in it claims more elements than the file has")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"there is a {type(value).__name__} in it")


def read_latest(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest good checkpoint, and a sentence on what was wrong with a newer one (or "").

    Raises:
        RunError: there are checkpoint files but none of them is good.
    """
    problems: list[str] = []
    for candidate in (path, previous_of(path)):
        if not candidate.exists():
            continue
        try:
            return read(candidate), " ".join(problems)
        except RunError as error:
            problems.append(str(error))
    if problems:
        raise RunError(
            f"{' '.join(problems)} No earlier checkpoint is left. Move the run directory away and train again."
        )
    return None, ""
