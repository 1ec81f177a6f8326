"""Bounded readers of compressed files: what is read never decides how much memory or disk is used, or where.

A gzip stream or a tar header is untrusted input. Decompression stops at a limit known beforehand, and a tar
member is written only under the name and with the size that the caller expects, so a path inside the archive
never reaches the file system. The tar reader is our own because the standard library's follows links, sparse
maps and extended headers that the archives of data sets do not have.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from anp_vs.errors import DataError

_CHUNK = 1 << 16
_BLOCK = 512
_MOST_MEMBERS = 1000


def gunzip(data: bytes, limit: int, name: str) -> bytes:
    """Decompress one gzip stream.

    Args:
        data: The whole file.
        limit: The most bytes that may come out.
        name: The file's name, for messages.

    Raises:
        DataError: If the stream is damaged, cut short, followed by other bytes, or longer than `limit`.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise DataError(f"{name} is not a sound gzip file ({error}); {_REMEDY}") from error
    if len(plain) > limit:
        raise DataError(f"{name} holds more than the {limit} bytes it may hold when decompressed; {_REMEDY}")
    if not stream.eof:
        raise DataError(f"{name} is a gzip file cut short after {len(data)} bytes; {_REMEDY}")
    if stream.unused_data:
        raise DataError(f"{name} has {len(stream.unused_data)} bytes after the end of its gzip stream; {_REMEDY}")
    return plain


def extract(archive: Path, members: dict[str, int], into: Path, limit: int) -> None:
    """Write the expected members of a .tar.gz file, and nothing else.

    Args:
        archive: The file.
        members: Name inside the archive -> exact size in bytes. Names that share their last part are not
            allowed.
        into: An existing folder; a member goes to `into / <last part of its name>`.
        limit: The most bytes the whole archive may decompress to.

    Raises:
        DataError: If the archive is damaged, too large, or lacks a member of exactly that size.
    """
    missing = dict(members)
    with archive.open("rb") as file:
        stream = _Stream(file, limit, archive.name)
        for _ in range(_MOST_MEMBERS):
            if not missing:
                return
            header = stream.read(_BLOCK)
            if header.count(0) == _BLOCK:
                break
            name, size, regular = _header(header, archive.name)
            expected = missing.get(name) if regular else None
            if expected is None:
                for _ in stream.chunks(size):
                    pass
            elif size != expected:
                raise DataError(f"{name} in {archive.name} has {size} bytes where {expected} are expected; {_REMEDY}")
            else:
                with (into / name.rsplit("/", 1)[-1]).open("xb") as out:
                    for chunk in stream.chunks(size):
                        out.write(chunk)
                del missing[name]
            stream.read(-size % _BLOCK)
    if missing:
        raise DataError(f"{archive.name} does not contain {', '.join(sorted(missing))}; {_REMEDY}")


_REMEDY = "delete it so that it is downloaded again, or copy it once more from its source."


def _header(block: bytes, name: str) -> tuple[str, int, bool]:
    """Name, size in bytes, and whether a tar header is that of a regular file (POSIX.1-1988, ustar)."""
    try:
        recorded = int(block[148:156].strip(b"\0 "), 8)
        size = int(block[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise DataError(f"{name} is not a sound tar archive (a header holds no number); {_REMEDY}") from error
    # The checksum field itself counts as eight spaces.
    if recorded != sum(block[:148]) + 8 * 32 + sum(block[156:]) or size < 0:
        raise DataError(f"{name} is not a sound tar archive (a header's checksum is wrong); {_REMEDY}")
    member = block[:100].split(b"\0", 1)[0].decode("latin-1")
    kind = block[156:157]
    return member.removeprefix("./"), size, kind in (b"0", b"\0", b"7")


class _Stream:
    """Sequential reads from a gzip file that stop at a limit."""

    def __init__(self, file: BinaryIO, limit: int, name: str) -> None:
        self._file = file
        self._left = limit
        self._limit = limit
        self._name = name
        self._gzip = zlib.decompressobj(wbits=31)

    def chunks(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces."""
        while size:
            piece = self._some(min(size, _CHUNK))
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        """The next `size` bytes, at most a block or so: they are held in memory."""
        return b"".join(self.chunks(size))

    def _some(self, most: int) -> bytes:
        """Between 1 and `most` bytes."""
        if self._left <= 0:
            raise DataError(f"{self._name} decompresses to more than {self._limit} bytes; {_REMEDY}")
        while True:
            compressed = self._gzip.unconsumed_tail or self._file.read(_CHUNK)
            if self._gzip.eof or not compressed:
                raise DataError(f"{self._name} is cut short; {_REMEDY}")
            try:
                piece = self._gzip.decompress(compressed, min(most, self._left))
            except zlib.error as error:
                raise DataError(f"{self._name} is not a sound gzip file ({error}); {_REMEDY}") from error
            if piece:
                self._left -= len(piece)
                return piece
