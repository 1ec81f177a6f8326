"""Official files brought to a data root: found, downloaded from mirrors in turn, checked, put in place whole.

A file appears under its final name only when its SHA-256 is right: it is written to a temporary folder beside
it, and renamed. A file that was there before is never changed or deleted.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from anp_vs.data.archive import extract
from anp_vs.data.sources import File, Source
from anp_vs.errors import DataError, InputError

_TIMEOUT = 30.0  # seconds without an answer or a byte
_CHUNK = 1 << 16
_PARTIAL = ".anp-vs-partial-"


def locate(source: Source, root: Path | None) -> dict[str, Path]:
    """The path of every file of a data set, downloading those that are missing.

    Args:
        source: The data set.
        root: Folder that holds `source.folder`, or that is that folder itself. None: the user's cache folder.

    Returns:
        File name -> path. The files are there; their digests are `read`'s business.

    Raises:
        DataError: If there is no folder `root`, or a file is missing and cannot be had.
    """
    given = root is not None
    if root is None:
        import pooch  # imports an HTTP client: only where it is used

        root = Path(pooch.os_cache("anp-vs"))
    try:
        if given and not root.exists():  # a slip of the keyboard would download everything into a new place
            raise DataError(
                f"the data root {root} does not exist. Give the folder that holds {source.folder}, make this one to have the "
                f"files downloaded into it, or leave --data-root out: they go into your cache folder then."
            )
        if root.exists() and not root.is_dir():
            raise DataError(f"the data root {root} is a file; give the folder that holds {source.folder}.")
        direct = not (root / source.folder).is_dir() and any((root / file.name).exists() for file in source.files)
        folder = root if direct else root / source.folder
        if _missing(source, folder):
            _fetch(source, root, folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the data root {root} cannot be used ({error}); give a folder that you may read and write, with "
            f"room for the files of {source.folder}, by --data-root."
        ) from error
    return {file.name: folder / file.name for file in source.files}


def user_path(path: str | Path) -> Path:
    """A path as the user wrote it, with a leading ~ or ~name replaced by that home folder.

    Raises:
        InputError: If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path} names a home folder that is not known; write the path out.") from error


def read(path: Path, file: File) -> bytearray:
    """The bytes of an official file, checked.

    Raises:
        DataError: If the file cannot be read, or its size or SHA-256 is not the official one.
    """
    try:
        with path.open("rb") as stream:
            # One byte more than expected tells a longer file without reading it all.
            data = bytearray(file.size + 1)
            size = stream.readinto(data)
            beyond = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions and its disk.") from error
    if size != file.size:
        raise DataError(
            f"{path} has {max(size, beyond)} bytes where the official file has {file.size}; delete it so "
            "that it is downloaded again, or replace it by the official file."
        )
    del data[size:]
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{path} has the SHA-256 {digest} where {file.sha256} is expected: it is damaged or not the "
            "official file; delete it so that it is downloaded again, or replace it by the official file."
        )
    return data


def _missing(source: Source, folder: Path) -> list[File]:
    return [file for file in source.files if not (folder / file.name).exists()]


def _fetch(source: Source, root: Path, folder: Path) -> None:
    """Download what is missing, or wait for another process that is doing so."""
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder) as alone:
        if alone:
            for left in folder.glob(f"{_PARTIAL}*"):  # by a process that was killed: nobody else is here
                shutil.rmtree(left, ignore_errors=True)
        missing = _missing(source, folder)
        if not missing:
            return
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=folder) as temporary:
            partial = Path(temporary)
            if source.archive is None:
                for file in missing:
                    _download(file, [address + file.name for address in source.addresses], partial, folder)
            else:
                archive = root / source.archive.name  # one that the user put there is as good as a download
                if archive.exists():
                    _check(archive, source.archive)
                else:
                    archive = _download(source.archive, list(source.addresses), partial, folder)
                members = {f"{source.folder}/{file.name}": file.size for file in missing}
                # The archives hold little beside the files read: names of classes and a page.
                limit = sum(file.size for file in source.files) + (1 << 20)
                extract(archive, members, partial, limit)
            for file in missing:
                _check(partial / file.name, file)
                (partial / file.name).replace(folder / file.name)


def _download(file: File, addresses: list[str], into: Path, folder: Path) -> Path:
    """One file, from the first address that gives the right bytes."""
    from pooch import HTTPDownloader

    target = into / file.name
    failures = []
    for address in addresses:
        try:
            with _Bar(file) as bar:
                download = HTTPDownloader(
                    progressbar=bar,
                    chunk_size=_CHUNK,
                    timeout=_TIMEOUT,
                    headers={"Accept-Encoding": "identity"},  # the file as it is, not unpacked on the way
                )
                download(address, str(target), None)
            _check(target, file)
        except (OSError, ValueError, DataError) as error:  # requests' errors are OSErrors or ValueErrors
            failures.append(f"{address} ({_short(error)})")
        else:
            return target
    raise DataError(
        f"{file.name} is not in {folder} and could not be downloaded; tried {', then '.join(failures)}. "
        "Check the network, or fetch the file elsewhere and put it there; another folder is named by --data-root."
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _check(path: Path, file: File) -> None:
    """Raise DataError unless the file has the expected size and digest; does not hold it in memory."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes and the SHA-256 {digest} where {file.size} bytes and "
            f"{file.sha256} are expected; delete it so that it is downloaded again."
        )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder; yields False where the system or its disk knows no locks.

    Without the lock two processes download twice, and both put the same bytes in place: wasteful, not wrong.
    The system drops the lock of a process that dies.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with (folder / ".anp-vs-lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone


class _Bar:
    """What pooch wants of a progress bar; also the place where a download that is too long is stopped."""

    def __init__(self, file: File) -> None:
        self.total = 0
        self._file = file
        self._done = 0
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress("{task.description}", *columns, disable=not sys.stdout.isatty())
        self._task = self._progress.add_task(file.name, total=file.size)

    def __enter__(self) -> Self:
        if self._progress.disable:
            print(f"downloading {self._file.name} ({self._file.size / 1e6:.1f} MB)", flush=True)  # noqa: T201
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, count: int) -> None:
        self._done += count
        # pooch counts whole chunks, the last one included.
        if self._done > self._file.size + _CHUNK:
            raise ValueError(f"sent more than the {self._file.size} bytes of {self._file.name}")
        self._progress.update(self._task, completed=self._done)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        """Nothing to do: `__exit__` ends the bar on every path."""
