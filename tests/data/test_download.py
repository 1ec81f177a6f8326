"""Finding, downloading and checking official files, against a web server on this machine."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anp_vs.data.download import locate, read, user_path
from anp_vs.data.sources import File, Source
from anp_vs.errors import DataError, InputError

CONTENT = {"one.bin": b"first file " * 900, "two.bin": b"second"}


def describe(name: str, data: bytes) -> File:
    return File(name, len(data), hashlib.sha256(data).hexdigest())


FILES = tuple(describe(name, data) for name, data in CONTENT.items())


class Site:
    """A web server: paths and what they give, and how often each was asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.delay = 0.0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked[self.path] += 1
                time.sleep(site.delay)
                page = site.pages.get(self.path)
                self.send_response(404 if page is None else 200)
                self.send_header("Content-Length", str(len(page or b"")))
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,))
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def single(*addresses: str) -> Source:
    return Source("set", FILES, addresses)


def pack(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"set/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def packed(archive: bytes, *addresses: str) -> Source:
    return Source("set", FILES, addresses, describe("set.tar.gz", archive))


def contents(paths: dict[str, Path]) -> dict[str, bytes]:
    return {file.name: bytes(read(paths[file.name], file)) for file in FILES}


def leftovers(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*")} - {"set", "one.bin", "two.bin", ".anp-vs-lock"}


def test_mirrors_are_tried_in_turn_for_each_file(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pages = {
        "/bad/one.bin": b"not the file",
        "/long/one.bin": CONTENT["one.bin"] + bytes(1 << 20),
        "/good/one.bin": CONTENT["one.bin"],
        "/good/two.bin": CONTENT["two.bin"],
    }
    addresses = [f"{site.address}/{name}/" for name in ("none", "bad", "long", "good")]
    paths = locate(single(*addresses), tmp_path)
    assert contents(paths) == CONTENT
    assert paths["one.bin"] == tmp_path / "set" / "one.bin"
    assert site.asked["/long/one.bin"] == 1
    assert not leftovers(tmp_path)
    assert "downloading two.bin" in capsys.readouterr().out
    asked = sum(site.asked.values())
    assert contents(locate(single(*addresses), tmp_path)) == CONTENT
    assert sum(site.asked.values()) == asked


def test_an_archive_gives_all_its_files(site: Site, tmp_path: Path) -> None:
    site.pages["/set.tar.gz"] = archive = pack({"readme.html": b"x", **CONTENT})
    source = packed(archive, f"{site.address}/none.tar.gz", f"{site.address}/set.tar.gz")
    assert contents(locate(source, tmp_path)) == CONTENT
    assert not leftovers(tmp_path)


def test_an_archive_in_the_data_root_is_as_good_as_a_download(tmp_path: Path) -> None:
    archive = pack(CONTENT)
    (tmp_path / "set.tar.gz").write_bytes(archive)
    assert contents(locate(packed(archive), tmp_path)) == CONTENT
    assert (tmp_path / "set.tar.gz").read_bytes() == archive


def test_an_archive_whose_files_are_wrong_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.pages["/set.tar.gz"] = archive = pack({**CONTENT, "one.bin": b"FIRST FILE " * 900})
    with pytest.raises(DataError, match=r"one\.bin"):
        locate(packed(archive, f"{site.address}/set.tar.gz"), tmp_path)
    assert not list((tmp_path / "set").glob("*.bin"))
    assert not leftovers(tmp_path)


def test_only_missing_files_are_downloaded(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "one.bin").write_bytes(b"the user's own")
    site.pages["/two.bin"] = CONTENT["two.bin"]
    paths = locate(single(f"{site.address}/"), tmp_path)
    assert paths["one.bin"].read_bytes() == b"the user's own"
    assert paths["two.bin"].read_bytes() == CONTENT["two.bin"]
    assert not site.asked["/one.bin"]


def test_the_folder_of_the_files_is_a_root_too(tmp_path: Path) -> None:
    for name, data in CONTENT.items():
        (tmp_path / name).write_bytes(data)
    assert contents(locate(single(), tmp_path)) == CONTENT
    assert not (tmp_path / "set").exists()


def test_no_root_is_the_cache_folder(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    site.pages = {f"/{name}": data for name, data in CONTENT.items()}
    assert locate(single(f"{site.address}/"), None)["one.bin"] == tmp_path / "anp-vs" / "set" / "one.bin"


def test_without_a_network_the_error_says_what_to_do(site: Site, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    addresses = (f"http://127.0.0.1:{port}/", f"{site.address}/")
    with pytest.raises(DataError) as error:
        locate(single(*addresses), tmp_path)
    message = str(error.value)
    assert all(f"{address}one.bin" in message for address in addresses)
    assert "--data-root" in message
    assert "\n" not in message
    assert not leftovers(tmp_path)


def test_processes_that_start_at_once_download_once(site: Site, tmp_path: Path) -> None:
    # Threads stand in for processes: each opens the lock for itself, and such locks exclude each other.
    site.pages = {f"/{name}": data for name, data in CONTENT.items()}
    site.delay = 0.1
    source = single(f"{site.address}/")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: contents(locate(source, tmp_path)), range(4)))
    assert found == [CONTENT] * 4
    assert site.asked == {"/one.bin": 1, "/two.bin": 1}


def test_what_a_killed_download_left_is_cleared_away(site: Site, tmp_path: Path) -> None:
    left = tmp_path / "set" / ".anp-vs-partial-abc"
    left.mkdir(parents=True)
    (left / "one.bin").write_bytes(b"half a fi")
    site.pages = {f"/{name}": data for name, data in CONTENT.items()}
    assert contents(locate(single(f"{site.address}/"), tmp_path)) == CONTENT
    assert not leftovers(tmp_path)


def test_a_root_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for root in (file, file / "below", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        with pytest.raises(DataError, match="the data root"):
            locate(single(), root)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_root_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="may read and write"):
        locate(single(), tmp_path)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (CONTENT["one.bin"][:-1], "9899 bytes where the official file has 9900"),
        (CONTENT["one.bin"] + bytes(500), "10400 bytes where the official file has 9900"),
        (b"F" + CONTENT["one.bin"][1:], FILES[0].sha256),
        (gzip.compress(CONTENT["one.bin"], mtime=0), "where the official file has 9900"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, data: bytes, named: str) -> None:
    path = tmp_path / "one.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=named) as error:
        read(path, FILES[0])
    assert str(path) in str(error.value)
    assert "delete it so that it is downloaded again" in str(error.value)
    assert path.read_bytes() == data


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="cannot be read"):
            read(path, FILES[0])


def test_home_folders_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    with pytest.raises(InputError, match="write the path out"):
        user_path("~no-such-user-anywhere/x")
