"""How a run is asked to stop, and how it says that it did."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Diverged(Exception):
    """A loss or a parameter is no longer a number; the last good checkpoint is still there."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; a checkpoint was written."""


class ClusterError(Exception):
    """The processes of a run cannot be had, or one of them fails again and again; the message says which and why."""


@contextmanager
def stopping(ask: Callable[[str], None]) -> Iterator[None]:
    """SIGINT and SIGTERM `ask` the run, by the signal's name, to end at the next safe point; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
