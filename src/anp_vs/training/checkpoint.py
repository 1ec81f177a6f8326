"""Files that are whole or not there: atomic, checksummed, and readable without running code."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from anp_vs.errors import RunError

MAGIC = b"anp-vs checkpoint 1\n"
DIGEST_BYTES = 32


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    Raises:
        RunError: the disk is full, read-only, or otherwise refuses; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path} could not be written ({error.strerror or error}). Nothing that was there before has changed; "
            f"free space or choose a folder that can be written to, then run the same command again."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dicts; the file it replaces stays as `<name>.previous`.

    Raises:
        RunError: the file cannot be written; the last good one is intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    content = MAGIC + hashlib.sha256(payload).digest() + payload
    previous = path.with_name(path.name + ".previous")
    if path.exists():
        # A link keeps the good file reachable under both names until the new one is in place.
        spare = path.with_name(f".{previous.name}.tmp")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
            os.replace(spare, previous)
        except OSError:  # a file system without links, or full: a copy is as good, if there is room
            write_atomically(previous, path.read_bytes())
    write_atomically(path, content)


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        RunError: the file is cut short, changed, or not a checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    start = len(MAGIC) + DIGEST_BYTES
    digest, payload = content[len(MAGIC) : start], content[start:]
    if not content.startswith(MAGIC) or hashlib.sha256(payload).digest() != digest:
        raise RunError(f"{path} is damaged: its content does not match its checksum.")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def read_latest(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest good checkpoint, and a sentence on what was wrong with a newer one (or "").

    Raises:
        RunError: there are checkpoint files but none of them is good.
    """
    problems: list[str] = []
    for candidate in (path, path.with_name(path.name + ".previous")):
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
