"""How a command ends: its errors as plain sentences, and the exit status that goes with them."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from rich.console import Console

from anp_vs.errors import AnpVsError, Stopped

LINE_SECONDS = 120.0
"""How often something long says how far it is where there is no terminal for a bar, as in a log file."""


class OutputConsole(Console):
    """A console on standard output: no colours by guess, no emoji from words between colons."""

    def __init__(self, *, width: int | None = None, soft_wrap: bool = False) -> None:
        super().__init__(highlight=False, emoji=False, width=width, soft_wrap=soft_wrap)

    def on_broken_pipe(self) -> None:
        """Let `exit_status` see that nobody reads on; rich would end the program with status 1."""
        raise  # called while the BrokenPipeError is handled


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: no colours by guess, no emoji from words between colons, no wrapping."""
    if not stderr:
        return OutputConsole(soft_wrap=True)
    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def exit_status(command: Callable[[], int]) -> int:
    """Run a command; its own status, 2 for a user's mistake, 130 when stopped by a signal, 141 when nobody reads on."""
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `anp-vs recipes | head`
        if not _nobody_reads():
            raise  # another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails too
        return 141
    except AnpVsError as error:
        plain_console(stderr=True).print(f"anp-vs: {error}", markup=False)
        return 130 if isinstance(error, Stopped) else 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is slow to import for a word of help
            raise
        plain_console(stderr=True).print(
            f"anp-vs: the GPU's memory is full ({str(error).splitlines()[0]}). Lower the batch size (a recipe's batch_size), "
            f"free the GPU, or compute with --device cpu. What was saved is intact.", markup=False,
        )  # fmt: skip
        return 2
    except KeyboardInterrupt:  # in training it ends the run in order; here there is nothing to save
        plain_console(stderr=True).print("anp-vs: interrupted.")
        return 130


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
