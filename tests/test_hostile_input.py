"""Every reader that benchmarks/fuzz.py fuzzes, with changes to its sound inputs: our own error, or a value."""

import contextlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anp_vs.errors import AnpVsError
from anp_vs.networks import NETWORKS

SOURCE = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"
SLOW = {"image folder": 10, "command line": 10}


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fuzz = benchmark()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fuzz, "PLACE", tmp_path / "place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fuzz.run, "train", fuzz.run.train)  # put back afterwards
    monkeypatch.setattr(
        logging.getLogger(), "handlers", list(logging.getLogger().handlers)
    )  # the command line adds one
    monkeypatch.setitem(NETWORKS, "little", fuzz.Little)
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.READERS)
def test_changed_bytes_give_a_value_or_our_own_error_and_touch_nothing_else(name: str, place: Path) -> None:
    reader = fuzz.READERS[name]
    before = set(place.iterdir())

    @settings(max_examples=SLOW.get(name, 60), suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.sampled_from(reader.seeds),
        st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=3)), max_size=3),
        st.integers(0, 4000),
    )
    def tried(seed: bytes, changes: list[tuple[int, bytes]], length: int) -> None:
        data = bytearray(seed)
        for where, new in changes:
            data[where % (len(data) + 1) : where % (len(data) + 1) + len(new)] = new
        with contextlib.suppress(AnpVsError):
            reader.read(bytes(data[: max(length, 1)]))

    tried()
    assert set(place.iterdir()) <= before | {place / "cache"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.READERS)
def test_its_seeds_are_sound(name: str, place: Path) -> None:
    """Otherwise nothing behind the first check would be reached."""
    assert not all(refused(fuzz.READERS[name].read, seed) for seed in fuzz.READERS[name].seeds)


def refused(read: object, data: bytes) -> bool:
    try:
        read(data)  # type: ignore[operator]
    except AnpVsError:
        return True
    return False
