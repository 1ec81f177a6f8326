"""One run, one directory: its recipe, its metrics, its checkpoints, its networks; one process at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from anp_vs import recipes
from anp_vs.errors import InputError, RunError
from anp_vs.provenance import proposed
from anp_vs.recipes import Recipe
from anp_vs.storage import read_text, write_atomically
from anp_vs.training import checkpoint

ROOT = Path("runs")
LARGEST_METRICS = 1_000_000_000
"""Bytes of the largest metrics file that is read; 200 epochs leave five million."""


_HELD: set[Path] = set()
"""Directories that this process has locked."""


class RunDirectory:
    """The files of one run. Use as a context manager to hold its lock.

    Args:
        path: the directory; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.checkpoint = path / "checkpoint.state"
        self.good = path / "good.state"
        self.metrics = path / "metrics.jsonl"
        self.network = path / "network.safetensors"
        self.compact = path / "compact.safetensors"
        self.evaluation = path / "evaluation.json"
        self._lock: int | None = None
        self._made: list[Path] = []

    @staticmethod
    def default(recipe: Recipe, root: Path = ROOT) -> Path:
        """Where a recipe's run lives unless told otherwise."""
        return root / recipe.name / f"seed{recipe.seed}"

    def __enter__(self) -> RunDirectory:
        try:
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(
                f"The run directory {self.path} cannot be written to: {error.strerror}. Choose another with --out."
            ) from error
        try:  # the system drops the lock with the process, so a dead process leaves none behind
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock).st_nlink:  # its last holder has just removed it
                raise BlockingIOError(errno.EWOULDBLOCK, "removed")
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(
                    f"The run directory {self.path} cannot be locked: {error.strerror}. Choose one on a file system "
                    f"with locks, with --out."
                ) from error
            if self.path.resolve() in _HELD:
                raise RunError(
                    f"The run directory {self.path} is in use by this very process: a network that its training needs "
                    f"would be trained there too. Choose another directory with --out."
                ) from error
            raise RunError(
                f"The run directory {self.path} is in use by another process. Wait for it, stop it, or choose another "
                f"directory with --out."
            ) from error
        _HELD.add(self.path.resolve())
        self._sweep()
        return self

    def _sweep(self) -> None:
        """Remove what processes that were killed while they saved have left behind."""
        saved = (
            self.checkpoint,
            checkpoint.previous_of(self.checkpoint),
            self.good,
            checkpoint.previous_of(self.good),
            self.recipe_file,
            self.network,
            self.compact,
        )
        names = {name for path in saved for name in (path.name, path.with_suffix(".json").name)}
        for leftover in self.path.glob(".*.tmp"):
            if leftover.name[1:].rsplit(".", 2)[0] in names:
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            _HELD.discard(self.path.resolve())
            with contextlib.suppress(OSError):
                self._leave_nothing_empty()
            os.close(self._lock)
            self._lock = None

    def _leave_nothing_empty(self) -> None:
        """Remove the lock and the folders that were made for it, when nothing was ever written beside it."""
        if [entry.name for entry in self.path.iterdir()] == ["lock"]:
            (self.path / "lock").unlink()
            for folder in self._made:
                folder.rmdir()

    def claim(self, recipe: Recipe) -> None:
        """Save the recipe, unless the directory belongs to it already.

        Raises:
            RunError: the directory holds a run of another recipe, or cannot be written.
        """
        self.check(recipe)
        if not self.recipe_file.exists() or self.read_recipe() != recipe:
            write_atomically(self.recipe_file, recipes.dump(recipe).encode())

    def differences(self, recipe: Recipe, also_free: Sequence[str] = ()) -> list[str]:
        """Where a recipe is not the one in this directory, in words; nothing for fields that may change during a run."""
        held = self.read_recipe()
        # Where the data lie may change: their content is checked against its checksum. So may the words on where the
        # values come from, what is done about trouble, when there is some, and whether the attack is compiled, which
        # another machine may be unable to. What was asked to be chosen has been chosen there.
        changed = ("data_root", "source", "on_trouble", "compilation", *also_free)
        free: dict[str, Any] = {name: getattr(held, name) for name in changed}
        free |= {name: getattr(held, name) for name in recipes.MEASURED if getattr(recipe, name) == "auto"}
        if held.generated and recipe.generated:
            free["generated"] = held.generated  # their content is checked too
        mine, theirs = _flat(recipes.to_dict(dataclasses.replace(recipe, **free))), _flat(recipes.to_dict(held))
        return [
            f"{name} ({theirs.get(name)!r} there, {mine.get(name)!r} asked)"
            for name in dict.fromkeys([*mine, *theirs])
            if theirs.get(name) != mine.get(name)
        ]

    def check(self, recipe: Recipe) -> None:
        """See that the directory belongs to this recipe, or to none yet.

        Raises:
            RunError: the directory holds a run of another recipe.
        """
        different = self.differences(recipe) if self.recipe_file.exists() else []
        if not different:
            return
        raise RunError(
            f"The run directory {self.path} belongs to another recipe: {'; '.join(different)}. Choose another directory "
            f"with --out, or train the recipe it holds: {proposed(f'train {self.path}')}."
        )

    def read_recipe(self) -> Recipe:
        """The recipe the directory belongs to.

        Raises:
            RunError: there is none.
        """
        if not self.recipe_file.exists():
            raise RunError(
                f"{self.path} is not a run directory: it has no recipe.yaml. Train one: anp-vs train RECIPE."
            )
        try:
            return recipes.load(self.recipe_file)
        except InputError as error:
            raise RunError(str(error)) from error

    @property
    def finished(self) -> bool:
        """Whether training has ended and the network is saved."""
        return self.network.exists() and self.network.with_suffix(".json").exists()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": held for inner, held in value.items()}
        else:
            flat[name] = value
    return flat


def root_of(path: Path, recipe: Recipe) -> Path:
    """The folder under which runs of other recipes are found: where this run's is, if it has the default name."""
    default = RunDirectory.default(recipe, Path())
    depth, whole = len(default.parts), path.resolve()
    for spelled in (path, whole):  # a user may stand inside the runs, or inside this one
        if spelled.parts[-depth:] == default.parts:
            return Path(*spelled.parts[:-depth])
    return (path if path.name not in ("", "..") else whole).parent / "runs"


class MetricsLog:
    """Appends JSON Lines; a resumed run first drops what was written after its checkpoint.

    Args:
        path: the file.
        position: bytes of it that belong to the checkpoint; the rest is cut off.

    Raises:
        RunError: it cannot be written, or is shorter than that.
    """

    def __init__(self, path: Path, position: int) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._refused(error) from error
        if os.fstat(self._handle).st_size < position:
            self.close()
            raise RunError(
                f"{path} is shorter than its checkpoint says ({position} bytes): it was changed by hand. Bring it back, "
                f"or move the run directory away and train again."
            )
        os.ftruncate(self._handle, position)

    def write(self, **values: Any) -> None:
        """Append one line.

        Raises:
            RunError: the disk is full or refuses.
        """
        line = json.dumps(values).encode() + b"\n"
        try:
            written = os.write(self._handle, line)
        except OSError as error:
            raise self._refused(error) from error
        if written < len(line):
            raise self._refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} could not be written ({error.strerror or error}). The last checkpoint is intact; free space or "
            f"make the folder writable, then run the same command again."
        )

    def position(self) -> int:
        """Bytes written, all of them on the disk."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise self._refused(error) from error
        return os.fstat(self._handle).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All whole lines of a metrics file; a last line cut short is left out.

        Raises:
            RunError: the file cannot be read, or a line is not a JSON object.
        """
        if not path.exists():
            return []
        try:
            lines = [json.loads(line) for line in read_text(path, LARGEST_METRICS).split("\n")[:-1]]
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"The metrics {path} cannot be read: {error}. Bring back a copy, or move the file away."
            ) from error
        if not all(isinstance(line, dict) for line in lines):
            raise RunError(
                f"The metrics {path} hold a line that is not a JSON object. Bring back a copy, or move it away."
            )
        return lines


@contextlib.contextmanager
def tensorboard(path: Path, step: int) -> Iterator[Any]:
    """TensorBoard's log in a run's folder, from which a run that goes on at a step takes back what was written after it.

    Raises:
        RunError: it cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter  # slow to import, needed only while training

    try:
        board = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1)
        try:
            yield board
        finally:
            board.close()
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror or error}). The last checkpoint is intact; free space or make "
            f"the folder writable, then run the same command again."
        ) from error
