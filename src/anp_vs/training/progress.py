"""What a person sees while a run trains: a bar with the time left, running accuracies, sparsity of each layer."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anp_vs.recipes import Recipe
from anp_vs.terminal import LINE_SECONDS
from anp_vs.training.loop import Trainer


class Display:
    """A live bar on a terminal; elsewhere a line an epoch, and every two minutes in one; nothing when quiet.

    Args:
        recipe: names the run.
        trainer: asked for its step and layer widths.
        quiet: show nothing.
    """

    def __init__(self, recipe: Recipe, trainer: Trainer, *, quiet: bool = False) -> None:
        self.recipe, self.trainer, self.quiet = recipe, trainer, quiet
        self.console = Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True, markup=False)
        self.live = self.console.is_terminal and not quiet
        self.values: dict[str, Any] = {}
        self.said = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[status]}"),
            console=self.console, disable=not self.live,
        )  # fmt: skip
        self.task = self.progress.add_task(
            f"{recipe.name} seed {recipe.seed}", total=trainer.total_steps, completed=trainer.step, status=""
        )

    def __enter__(self) -> Display:
        self.progress.start()
        if not self.quiet:
            resumed = f", resumed at step {self.trainer.step}" if self.trainer.step else ""
            self.say(f"{self.recipe.epochs} epochs of {self.trainer.steps_per_epoch} steps{resumed}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.said = time.monotonic()
        if not self.quiet:
            self.progress.console.print(f"{self.recipe.name}: {message}")

    def update(self, line: dict[str, Any]) -> None:
        """Move the bar; `line` holds what was just logged, if anything."""
        self.values |= line
        if line:
            self.progress.update(self.task, status=self._status())
        self.progress.update(self.task, completed=self.trainer.step)
        if line and self.trainer.step % self.trainer.steps_per_epoch == 0:
            widths = self.trainer.layer_widths()
            layers = f"  units {' '.join(widths.values())}" if widths else ""
            epoch = self.trainer.step // self.trainer.steps_per_epoch
            self.say(f"epoch {epoch:>3}/{self.recipe.epochs}  {self._status()}{layers}")
        elif line and not self.live and time.monotonic() - self.said > LINE_SECONDS:
            self.say(f"step {self.trainer.step}/{self.trainer.total_steps}  {self._status()}")

    def _status(self) -> str:
        names = {
            "clean_accuracy": "clean", "robust_accuracy": "robust", "train_robust_accuracy": "train robust",
            "train_accuracy": "train clean", "sparsity": "pruned",
        }  # fmt: skip
        return "  ".join(f"{label} {self.values[key]:.1f} %" for key, label in names.items() if key in self.values)
