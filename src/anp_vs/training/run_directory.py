"""One run, one directory: its recipe, its metrics, its checkpoints, its networks; one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from anp_vs import recipes
from anp_vs.errors import InputError, RunError
from anp_vs.recipes import Recipe
from anp_vs.training import checkpoint

ROOT = Path("runs")


class RunDirectory:
    """The files of one run. Use as a context manager to hold its lock.

    Args:
        path: the directory; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.checkpoint = path / "checkpoint.pt"
        self.metrics = path / "metrics.jsonl"
        self.network = path / "network.safetensors"
        self.compact = path / "compact.safetensors"
        self.evaluation = path / "evaluation.json"
        self._lock: int | None = None

    @staticmethod
    def default(recipe: Recipe, root: Path = ROOT) -> Path:
        """Where a recipe's run lives unless told otherwise."""
        return root / recipe.name / f"seed{recipe.seed}"

    def __enter__(self) -> RunDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(
                f"The run directory {self.path} cannot be written to: {error.strerror}. Choose another with --out."
            ) from error
        try:  # the system drops the lock with the process, so a dead process leaves none behind
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            raise RunError(
                f"The run directory {self.path} is in use by another process. Wait for it, stop it, or choose another "
                f"directory with --out."
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self, recipe: Recipe) -> None:
        """Save the recipe, or check that the directory belongs to it already.

        Raises:
            RunError: the directory holds a run of another recipe.
        """
        if not self.recipe_file.exists():
            checkpoint.write_atomically(self.recipe_file, recipes.dump(recipe).encode())
            return
        held = self.read_recipe()
        if held == recipe:
            return
        mine, theirs = recipes.to_dict(recipe), recipes.to_dict(held)
        different = [f"{k} ({theirs.get(k)!r} there, {v!r} asked)" for k, v in mine.items() if theirs.get(k) != v]
        raise RunError(
            f"The run directory {self.path} belongs to another recipe: {'; '.join(different)}. Choose another directory "
            f"with --out, or train the recipe it holds: anp-vs train {self.path}."
        )

    def read_recipe(self) -> Recipe:
        """The recipe the directory belongs to.

        Raises:
            RunError: there is none.
        """
        if not self.recipe_file.exists():
            raise RunError(f"{self.path} is not a run directory: it has no recipe.yaml. Train one: anp-vs train RECIPE.")
        try:
            return recipes.load(self.recipe_file)
        except InputError as error:
            raise RunError(str(error)) from error

    @property
    def finished(self) -> bool:
        """Whether training has ended and the network is saved."""
        return self.network.exists() and self.network.with_suffix(".json").exists()


class MetricsLog:
    """Appends JSON Lines; a resumed run first drops what was written after its checkpoint.

    Args:
        path: the file.
        position: bytes of it that belong to the checkpoint; the rest is cut off.
    """

    def __init__(self, path: Path, position: int) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        if self._file.tell() < position:
            raise RunError(f"{path} is shorter than its checkpoint says ({position} bytes): it was changed by hand.")
        self._file.truncate(position)

    def write(self, **values: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written, all of them on the disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All whole lines of a metrics file; a last line cut short is left out."""
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]
