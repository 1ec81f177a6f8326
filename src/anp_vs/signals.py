"""What happens on the signals that ask a process to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop_signals(handler: Callable[[], object]) -> Iterator[None]:
    """While open, SIGINT, SIGTERM and SIGUSR1 call `handler`; outside the main thread, which gets none, nothing changes."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        before = {number: signal.signal(number, lambda *_: handler()) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that such a signal sets while this is open, instead of ending the process in the middle of something."""
    asked = threading.Event()
    with on_stop_signals(asked.set):
        yield asked
