"""Checkpoints under everything a disk can do: cut short, flipped, full, read-only, written by a stranger."""

import errno
import hashlib
import io
import os
import resource
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anp_vs.errors import RunError
from anp_vs.training import checkpoint
from anp_vs.training.checkpoint import (
    MAGIC,
    previous_of,
    read,
    read_latest,
    save,
    temporary_for,
    write_atomically,
)

OLD = {"step": 1}
NEW = {"step": 2}


def saved(path: Path, *states: dict[str, Any]) -> Path:
    for state in states:
        save(path, state)
    return path


def as_file(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).digest() + payload


def rewrite(path: Path, content: bytes) -> None:
    """As a new file: some file systems flush to the disk when an old one is overwritten, and that takes long."""
    path.unlink()
    path.write_bytes(content)


def step_of(path: Path) -> Any:
    state, _ = read_latest(path)
    return None if state is None else state["step"]


def test_what_is_saved_is_read_back_and_the_one_before_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", OLD, NEW | {"tensor": torch.arange(4)})
    assert torch.equal(read(path)["tensor"], torch.arange(4))
    assert read(previous_of(path))["step"] == 1
    assert {file.name for file in tmp_path.iterdir()} == {"c.pt", "c.pt.previous"}


def test_nothing_saved_is_no_checkpoint_and_no_problem(tmp_path: Path) -> None:
    assert read_latest(tmp_path / "c.pt") == (None, "")


def test_a_file_cut_short_at_any_byte_is_refused_and_the_previous_one_used(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", OLD, NEW)
    whole = path.read_bytes()
    for length in range(len(whole)):
        rewrite(path, whole[:length])
        with pytest.raises(RunError, match="damaged"):
            read(path)
        if length % 50 == 0:
            state, said = read_latest(path)
            assert state is not None
            assert state["step"] == 1
            assert str(path) in said


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", OLD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        rewrite(path, whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(RunError, match="damaged"):
            read(path)


def test_a_damaged_file_does_not_push_the_good_one_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", OLD, NEW)
    path.write_bytes(path.read_bytes()[:-1])
    save(path, NEW | {"step": 3})
    assert read(previous_of(path))["step"] == 1
    assert read(path)["step"] == 3


def test_no_good_file_at_all_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", OLD, NEW)
    for file in (path, previous_of(path)):
        file.write_bytes(b"")
    with pytest.raises(RunError, match=r"c\.pt is damaged.*c\.pt\.previous is damaged.*[Mm]ove the run directory"):
        read_latest(path)


class Dying:
    """A file that takes so many bytes and then fails, or takes the process with it."""

    def __init__(self, file: Any, room: int, error: type[BaseException]) -> None:
        self.file, self.room, self.error = file, room, error

    def write(self, content: bytes) -> int:
        self.file.write(content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device") if self.error is OSError else self.error
        return len(content)

    def __enter__(self) -> "Dying":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the program's runs."""


@pytest.mark.parametrize("error", [OSError, KilledError])
def test_a_save_that_ends_at_any_byte_leaves_the_last_one_good(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "c.pt", OLD, NEW)
    size = path.stat().st_size
    real = Path.open
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of times, and not what is tried here
    room = 0

    def opened(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = real(self, mode, *rest, **options)
        return Dying(file, room, error) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", opened)
    for room in range(0, size, 1 if error is OSError else 7):  # noqa: B007 - what `opened` gives out reads it
        with pytest.raises(RunError if error is OSError else KilledError) as caught:
            save(path, {"step": 3})
        assert error is KilledError or "Nothing that was there before has changed" in str(caught.value)
        assert step_of(path) == 2
        assert temporary_for(path).exists() is (error is KilledError)
    monkeypatch.undo()
    save(path, {"step": 4})
    assert step_of(path) == 4


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_system_call_that_fails_leaves_the_last_one_good(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "c.pt", OLD, NEW)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, failing)
    if call == "link":  # a file system without links: the copy does as well
        save(path, {"step": 3})
        assert read(previous_of(path))["step"] == 2
    else:
        with pytest.raises(RunError, match="Input/output error"):
            save(path, {"step": 3})
        assert step_of(path) == 2


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 300 kB; where none can be mounted, the same limit on the size of a file."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_and_the_last_one_stays(full_disk: Path) -> None:
    path = saved(full_disk / "c.pt", OLD, NEW)
    with pytest.raises(RunError, match=r"No space left|File too large"):
        save(path, {"step": 3, "tensor": torch.zeros(100_000)})
    assert step_of(path) == 2
    save(path, {"step": 4})
    assert step_of(path) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", OLD)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            save(path, NEW)
        assert step_of(path) == 1
    finally:
        tmp_path.chmod(0o755)


def test_a_path_below_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Not a directory"):
        write_atomically(tmp_path / "file" / "c.pt", b"")


# -- files from strangers, with a checksum that fits -----------------------------------------------------------


class Evil:
    """Makes a file when it is read back by a reader that runs what it reads."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def stored(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path, proof = tmp_path / "c.pt", tmp_path / "proof"
    path.write_bytes(as_file(stored({"step": Evil(proof)})))
    with pytest.raises(RunError, match="does not hold a checkpoint"):
        read(path)
    assert not proof.exists()


def test_a_compressed_checkpoint_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    path, packed = tmp_path / "c.pt", io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(stored({"tensor": torch.zeros(250_000)}))) as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    path.write_bytes(as_file(packed.getvalue()))
    with pytest.raises(RunError, match="compressed"):
        read(path)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ([1, 2], "list"),
        ({"tensor": torch.zeros(1).expand(10**12)}, "claims more elements"),
        ({"tensor": torch.eye(2).to_sparse()}, "not dense"),
        ({"tensor": torch.zeros(2, device="meta")}, "not dense|claims more"),
        ({"number": 1j}, "complex|checkpoint"),
        ({"deep": [torch.float32]}, "dtype|checkpoint"),
    ],
    ids=str,
)
def test_what_no_checkpoint_holds_is_refused(state: Any, word: str, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(as_file(stored(state)))
    with pytest.raises(RunError, match=word):
        read(path)


@pytest.mark.parametrize("payload", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x02.", b"\0" * 200])
def test_what_is_no_archive_of_torch_is_refused(payload: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(as_file(payload))
    with pytest.raises(RunError, match="does not hold a checkpoint"):
        read(path)


def test_optimiser_state_is_plain_enough(tmp_path: Path) -> None:
    weight: Tensor = torch.nn.Parameter(torch.ones(3))
    for kind in (torch.optim.Adam, torch.optim.SGD):
        optimiser = kind([weight], lr=0.1)
        weight.grad = torch.ones(3)
        optimiser.step()
        save(tmp_path / "c.pt", optimiser.state_dict())
        assert read(tmp_path / "c.pt")["param_groups"][0]["lr"] == 0.1
    assert checkpoint.read_latest(tmp_path / "c.pt")[1] == ""
