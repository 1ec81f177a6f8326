"""All pictures of a data set decoded once before it is used: no run dies of a damaged one hours later."""

import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
from rich.progress import track

from anp_vs.data.picture import PictureOptions, decode
from anp_vs.errors import DataError

_NAMED = 5  # damaged pictures that a message names
_LARGEST_RECORD = 1 << 24  # bytes
_BLOCK = 256  # pictures in the queue: few enough that Ctrl-C is heeded at once


def damaged(
    count: int, source: Callable[[int], object], names: Sequence[str], options: PictureOptions
) -> dict[int, str]:
    """Number -> reason of every picture that cannot be used, in order."""

    def attempt(number: int) -> str | None:
        try:
            decode(source(number), names[number], options)
        except DataError as error:
            return str(error)
        return None

    found = {}
    blocks = range(0, count, _BLOCK)
    with ThreadPoolExecutor(options.workers) as pool:
        for start in track(blocks, f"checking {count} pictures", disable=not sys.stdout.isatty()):
            numbers = range(start, min(start + _BLOCK, count))
            results = zip(numbers, pool.map(attempt, numbers), strict=True)
            found.update({number: reason for number, reason in results if reason is not None})
    return found


def damaged_files(paths: Sequence[Path], options: PictureOptions) -> dict[int, str]:
    """`damaged` for files; the answer is kept in the cache folder until a file's size or time changes."""
    record = _record(paths, options)
    known = _recall(record, len(paths))
    if known is None:
        known = damaged(len(paths), paths.__getitem__, [str(path) for path in paths], options)
        _remember(record, known)
    return known


def refuse_or_warn(reasons: dict[int, str], total: int, options: PictureOptions) -> None:
    """Name the damaged pictures, in an error or a warning as asked.

    Raises:
        DataError: If there are any and `options.damaged` is "refuse".
    """
    if not reasons:
        return
    some = list(reasons.values())
    more = f" And {len(some) - _NAMED} more." if len(some) > _NAMED else ""
    message = f"{len(some)} of {total} pictures cannot be used. " + " ".join(map(_sentence, some[:_NAMED])) + more
    if options.damaged == "refuse":
        raise DataError(f'{message} To leave such pictures out, set damaged to "skip".')
    warnings.warn(f"{message} They are skipped.", stacklevel=2)


def _sentence(reason: str) -> str:
    return reason.rstrip(".") + "."


def _record(paths: Sequence[Path], options: PictureOptions) -> Path | None:
    """Where the answer for exactly these files is kept."""
    import pooch

    digest = hashlib.sha256(f"{PIL.__version__} {options.largest}".encode())
    try:
        for path in paths:
            state = path.stat()
            digest.update(f"\0{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}".encode(errors="replace"))
    except OSError:
        return None
    return Path(pooch.os_cache("anp-vs")) / "checked-pictures" / f"{digest.hexdigest()}.json"


def _recall(record: Path | None, count: int) -> dict[int, str] | None:
    """The kept answer, or None when there is none that makes sense."""
    try:
        if record is None or record.stat().st_size > _LARGEST_RECORD:
            return None
        pairs = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(pairs, list):
        return None
    known = {}
    for pair in pairs:
        match pair:
            case [int(number), str(reason)] if 0 <= number < count:
                known[number] = reason
            case _:
                return None
    return known


def _remember(record: Path | None, known: dict[int, str]) -> None:
    if record is None:
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=record.parent, delete=False, encoding="utf-8") as file:
            json.dump(list(known.items()), file)
        Path(file.name).replace(record)
    except OSError:
        pass  # only a later check's time is lost
