"""Bounded readers of gzip and tar.gz files, against the standard library's writers and hostile files."""

import contextlib
import gzip
import io
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anp_vs.data.archive import extract, gunzip
from anp_vs.errors import DataError

MEMBERS = {"set/one.bin": 3000, "set/two.bin": 512}
CONTENT = {"set/one.bin": bytes(range(250)) * 12, "set/two.bin": b"\x07" * 512}
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def tar(*extra: tarfile.TarInfo, style: int = tarfile.GNU_FORMAT, order: tuple[str, ...] = tuple(CONTENT)) -> bytes:
    """A .tar.gz of the members, with other entries before them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=style, compresslevel=1) as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(b"x" * info.size) if info.isreg() else None)
        for name in order:
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT[name])
            archive.addfile(info, io.BytesIO(CONTENT[name]))
    return buffer.getvalue()


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def unpack(data: bytes, folder: Path, limit: int = 1 << 20) -> dict[str, bytes]:
    """What `extract` leaves behind, after a check that it left nothing elsewhere."""
    into = folder / "into"
    into.mkdir(exist_ok=True)
    for old in into.iterdir():
        old.unlink()
    file = folder / "a.tar.gz"
    file.write_bytes(data)
    try:
        extract(file, MEMBERS, into, limit)
    finally:
        assert {path.name for path in folder.iterdir()} == {"into", "a.tar.gz"}
        assert {path.name for path in into.iterdir()} <= {"one.bin", "two.bin"}
    return {path.name: path.read_bytes() for path in into.iterdir()}


@given(st.binary(max_size=2000))
def test_gunzip_undoes_gzip(plain: bytes) -> None:
    assert gunzip(gzip.compress(plain, mtime=0), len(plain), "f") == plain


@given(st.binary(min_size=1, max_size=200))
def test_gunzip_stops_at_the_limit(plain: bytes) -> None:
    with pytest.raises(DataError, match="more than"):
        gunzip(gzip.compress(plain, mtime=0), len(plain) - 1, "f")


def test_gunzip_holds_no_more_of_a_bomb_than_the_limit() -> None:
    bomb = zlib.compressobj(9, wbits=31)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    with pytest.raises(DataError, match="more than the 1000 bytes"):
        gunzip(data, 1000, "f")


def test_gunzip_refuses_every_cut_and_every_flipped_bit() -> None:
    plain = b"some labels " * 5
    data = gzip.compress(plain, mtime=0)
    for length in range(len(data)):
        with pytest.raises(DataError):
            gunzip(data[:length], 1000, "f")
    harmless = 0
    for position in range(10, len(data)):  # the first ten bytes hold a time and a system, which mean nothing
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                found = gunzip(bytes(damaged), 1000, "f")
            except DataError:
                continue
            assert found == plain
            harmless += 1
    assert harmless < 8  # bits that fill up the last byte of the compressed stream
    with pytest.raises(DataError, match="1 bytes after"):
        gunzip(data + b"\0", 1000, "f")


@given(st.binary(max_size=300))
def test_gunzip_raises_nothing_else(data: bytes) -> None:
    for attempt in (data, b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + data):
        with contextlib.suppress(DataError):
            gunzip(attempt, 500, "f")


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_extract_reads_what_tar_writes(tmp_path: Path, style: int) -> None:
    others = [entry("set", kind=tarfile.DIRTYPE), entry("set/readme.html", 700), entry("x" * 150, 10)]
    for order in (("set/one.bin", "set/two.bin"), ("set/two.bin", "set/one.bin")):
        found = unpack(
            tar(*(others if style != tarfile.USTAR_FORMAT else others[:2]), style=style, order=order),
            tmp_path,
        )
        assert found == {"one.bin": CONTENT["set/one.bin"], "two.bin": CONTENT["set/two.bin"]}


def test_extract_ignores_paths_and_links_out_of_the_folder(tmp_path: Path) -> None:
    hostile = [
        entry("../escaped", 5),
        entry("/tmp/escaped", 5),
        entry("set/../../one.bin", 3000),
        entry("set/one.bin", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        entry("set/two.bin", kind=tarfile.LNKTYPE, target="../a.tar.gz"),
        entry("set/two.bin", kind=tarfile.FIFOTYPE),
    ]
    assert unpack(tar(*hostile), tmp_path)["one.bin"] == CONTENT["set/one.bin"]


def test_extract_writes_through_no_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    into = tmp_path / "into"
    into.mkdir()
    (into / "one.bin").symlink_to(tmp_path / "victim")
    file = tmp_path / "a.tar.gz"
    file.write_bytes(tar())
    with pytest.raises(FileExistsError):
        extract(file, MEMBERS, into, 1 << 20)
    assert (tmp_path / "victim").read_text() == "untouched"


def test_extract_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not contain set/two"):
        unpack(tar(order=("set/one.bin",)), tmp_path)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        unpack(tar(), tmp_path, limit=1000)
    with pytest.raises(DataError, match="has 4 bytes where 3000"):
        unpack(tar(entry("set/one.bin", 4)), tmp_path)
    with pytest.raises(DataError, match="more than"):
        unpack(tar(entry("large", 1 << 22)), tmp_path)


def test_extract_gives_up_on_endless_headers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not contain"):
        unpack(tar(*[entry(f"f{number}") for number in range(1500)]), tmp_path)


def test_extract_of_a_cut_archive_is_refused_or_complete(tmp_path: Path) -> None:
    data = tar(order=("set/two.bin", "set/one.bin"))
    refused = 0
    for length in range(len(data)):
        try:
            found = unpack(data[:length], tmp_path)
        except DataError:
            refused += 1
        else:
            assert found == {"one.bin": CONTENT["set/one.bin"], "two.bin": CONTENT["set/two.bin"]}
    # Only what follows the last member may be missing: the end of the archive, 65 bytes here.
    assert refused > len(data) - 80


@SAME_FOLDER
@given(
    st.lists(st.tuples(st.integers(0, 5119), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 5120),
)
def test_extract_raises_nothing_else_for_damaged_headers(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    plain = bytearray(gzip.decompress(tar(entry("other", 100)))[:5120])
    for position, value in changes:
        plain[position] = value
    # Right checksums, so that the damage gets past them.
    for start in range(0, len(plain), 512):
        block = plain[start : start + 512]
        plain[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    for data in (plain, plain[:length]):
        with contextlib.suppress(DataError):
            unpack(gzip.compress(bytes(data), 1), tmp_path)


@SAME_FOLDER
@given(st.binary(max_size=600))
def test_extract_raises_nothing_else_for_any_bytes(tmp_path: Path, data: bytes) -> None:
    for attempt in (data, gzip.compress(data, mtime=0)):
        with pytest.raises(DataError):
            unpack(attempt, tmp_path)
