"""The checkpoints of a run: the newest, and the good one before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anp_vs.errors import RunError
from anp_vs.storage import check_whole, pack, temporary_for, unpack, write_atomically


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name(path.name + ".previous")


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings, lists and dicts; the good file it replaces stays as `<name>.previous`.

    Raises:
        RunError: the file cannot be written; the last good one is intact.
    """
    content = pack(state)
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
        check_whole(_content(path), path)
    except RunError:
        return False
    return True


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        RunError: the file is cut short, changed, or not a checkpoint.
    """
    return unpack(_content(path), path)


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
