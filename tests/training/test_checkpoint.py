"""Checkpoints under everything a disk can do: cut short, flipped, full, read-only, written by a stranger."""

import errno
import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from torch import Tensor

from anp_vs.errors import RunError
from anp_vs.storage import LENGTH_BYTES, MAGIC, pack, read_text, temporary_for, unpack, write_atomically
from anp_vs.training.checkpoint import previous_of, read, read_latest, save
from training.tiny import equal

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
    path = saved(tmp_path / "c.state", OLD, NEW | {"tensor": torch.arange(4)})
    assert torch.equal(read(path)["tensor"], torch.arange(4))
    assert read(previous_of(path))["step"] == 1
    assert {file.name for file in tmp_path.iterdir()} == {"c.state", "c.state.previous"}


def test_nothing_saved_is_no_checkpoint_and_no_problem(tmp_path: Path) -> None:
    assert read_latest(tmp_path / "c.state") == (None, "")


def test_a_file_cut_short_at_any_byte_is_refused_and_the_previous_one_used(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.state", OLD, NEW)
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
    path = saved(tmp_path / "c.state", OLD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        rewrite(path, whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(RunError, match="damaged"):
            read(path)


def test_a_damaged_file_does_not_push_the_good_one_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.state", OLD, NEW)
    path.write_bytes(path.read_bytes()[:-1])
    save(path, NEW | {"step": 3})
    assert read(previous_of(path))["step"] == 1
    assert read(path)["step"] == 3


def test_no_good_file_at_all_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.state", OLD, NEW)
    for file in (path, previous_of(path)):
        file.write_bytes(b"")
    with pytest.raises(
        RunError, match=r"c\.state is damaged.*c\.state\.previous is damaged.*[Mm]ove the run directory"
    ):
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
    path = saved(tmp_path / "c.state", OLD, NEW)
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
    path = saved(tmp_path / "c.state", OLD, NEW)

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
    path = saved(full_disk / "c.state", OLD, NEW)
    with pytest.raises(RunError, match=r"No space left|File too large"):
        save(path, {"step": 3, "tensor": torch.zeros(100_000)})
    assert step_of(path) == 2
    save(path, {"step": 4})
    assert step_of(path) == 4


def test_a_folder_that_cannot_be_written_is_said(full_disk: Path) -> None:
    path = saved(full_disk / "c.state", OLD)
    mounted = full_disk.is_mount()
    if not mounted and os.geteuid() == 0:
        pytest.skip("root may write everywhere, and nothing can be mounted read-only here")
    subprocess.run(["mount", "-o", "remount,ro", full_disk] if mounted else ["chmod", "555", full_disk], check=True)
    try:
        with pytest.raises(RunError, match=r"Read-only file system|Permission denied"):
            save(path, NEW)
        assert step_of(path) == 1
    finally:
        subprocess.run(["mount", "-o", "remount,rw", full_disk] if mounted else ["chmod", "755", full_disk], check=True)


def test_a_path_below_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Not a directory"):
        write_atomically(tmp_path / "file" / "c.state", b"")


# -- files from strangers, with a checksum that fits -----------------------------------------------------------


def as_payload(value: object, tensors: dict[str, Tensor] | None = None) -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + save_tensors(tensors or {})


LIES = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
A = {"a": torch.zeros(2, 3)}
NAMED = {"tensor": "a", "order": [0, 1]}


def mapping(value: object) -> dict[str, Any]:
    return {"dict": [["key", value]]}


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"", "longer than the file"),
        (b"PK\x05\x06" + bytes(18), "longer than the file"),
        (b"\x80\x02.", "longer than the file"),
        (b"\0" * 200, "JSONDecodeError"),
        ((1 << 62).to_bytes(LENGTH_BYTES, "little"), "longer than the file"),
        (as_payload([1, 2]), "list"),
        (as_payload(3), "int"),
        (as_payload({"step": 1}), "not one of ours"),
        (as_payload({"dict": [[mapping(1), 1]]}), "unhashable"),
        (as_payload({"dict": [[1, 2, 3]]}), "too many values"),
        (as_payload(mapping({"tensor": "a", "order": [0, 1]})), "KeyError"),
        (as_payload({"dict": [["x", NAMED], ["y", NAMED]]}, A), "KeyError"),
        (as_payload(mapping({"tensor": "a", "order": [0, 0, 1]}), A), "dim"),
        (as_payload(mapping({"tensor": "a", "order": ["0", "1"]}), A), "TypeError|ValueError"),
        (as_payload(mapping({"tensor": ["a"], "order": [0, 1]}), A), "not one of ours"),
        (as_payload(mapping(1))[:-1], "SafetensorError"),
        (as_payload(mapping(1)) + b"more", "SafetensorError"),
        (as_payload(mapping(1))[:-10] + len(LIES).to_bytes(8, "little") + LIES + bytes(4), "SafetensorError"),
        (len(b"[" * 10**5).to_bytes(LENGTH_BYTES, "little") + b"[" * 10**5, "RecursionError"),
    ],
)
def test_what_no_checkpoint_holds_is_refused(payload: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "c.state"
    path.write_bytes(as_file(payload))
    with pytest.raises(RunError, match=f"does not hold what anp-vs saves .*({word})"):
        read(path)


def test_a_file_of_another_version_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "c.state"
    path.write_bytes(b"anp-vs state 9\n" + bytes(100))
    with pytest.raises(RunError, match="another version"):
        read(path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(
    PLAIN,
    lambda held: (
        st.lists(held) | st.tuples(held, held) | st.dictionaries(st.text() | st.integers() | st.tuples(PLAIN), held)
    ),
)


def plain_json(value: object) -> object:
    """Of a Python value one that JSON can write: its keys become text."""
    return json.loads(json.dumps(value, default=str, skipkeys=True))


@given(st.dictionaries(st.text(), STATES))
def test_plain_values_come_back_as_they_were(state: dict[str, Any]) -> None:
    assert unpack(pack(state), Path("c.state")) == state


@given(
    st.binary() | st.builds(as_file, st.binary()) | st.builds(as_file, st.builds(as_payload, STATES.map(plain_json)))
)
def test_any_bytes_give_a_state_or_our_own_error(content: bytes) -> None:
    try:
        assert isinstance(unpack(content, Path("c.state")), dict)
    except RunError as error:
        assert "c.state" in str(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 5, 5), (2, 3, 4, 5)])
def test_tensors_come_back_with_their_bits_and_their_layout(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 3).to(dtype)
    if len(shape) == 4:
        tensor = tensor.to(memory_format=torch.channels_last)
    if shape == (3,) and dtype.is_floating_point:
        tensor[0], tensor[1] = float("nan"), float("-inf")
    shared = {"one": tensor, "again": tensor, "part": tensor.reshape(-1)[:1]}
    back = unpack(pack(shared), Path("c.state"))
    for name, value in shared.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=0, equal_nan=True)
        assert back[name].dim_order() == value.dim_order()


@pytest.mark.parametrize("value", [1j, torch.float32, {1, 2}, b"bytes", object()])
def test_what_is_not_plain_is_not_saved(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="neither a tensor nor a plain value"):
        save(tmp_path / "c.state", {"value": value})
    assert not any(tmp_path.iterdir())


def test_an_optimiser_goes_on_from_its_saved_state(tmp_path: Path) -> None:
    weight: Tensor = torch.nn.Parameter(torch.ones(3))
    for kind in (torch.optim.Adam, torch.optim.SGD):
        optimiser = kind([weight], lr=0.1)
        weight.grad = torch.ones(3)
        optimiser.step()
        save(tmp_path / "c.state", optimiser.state_dict())
        again = kind([torch.nn.Parameter(torch.ones(3))], lr=0.5)
        again.load_state_dict(read(tmp_path / "c.state"))
        equal(again.state_dict(), optimiser.state_dict())


def test_a_small_file_that_is_huge_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: it takes no room, but reading it whole would take all memory
    with pytest.raises(ValueError, match="larger than 1,000 bytes"):
        read_text(path, 1000)
