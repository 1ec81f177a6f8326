"""Pictures for the tests of the picture readers."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 20), "green": (10, 200, 40), "blue": (20, 40, 210)}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces a gigantic picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (20, 14)) -> Image.Image:
    return Image.new("RGB", size, colour)


def folder(path: Path, counts: dict[str, int], splits: tuple[str, ...] = ("train", "test")) -> Path:
    """PATH/split/class/file, the class being the colour; the three formats in turn."""
    for split in splits:
        for name, count in counts.items():
            (path / split / name).mkdir(parents=True)
            for number in range(count):
                suffix = ("png", "jpg", "webp")[number % 3]
                colour = np.array(COLOURS[name]) + number
                plain(tuple(colour.tolist())).save(path / split / name / f"{number}.{suffix}")
    return path
