"""The clocks of a run: when a verb is due, and how long the run waited for compilation."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import jax.monitoring


def due(every: int | None, last: int | None, now: int) -> bool:
    """Whether a multiple of `every` has been reached since `last`; always where one of them is None. All in real steps."""
    return every is None or last is None or now // every > last // every


class CompileClock:
    """Seconds that the main thread spent waiting for compilation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._main = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/") and threading.get_ident() == self._main:
            self.seconds += duration_secs

    def wait(self, compiled: Future) -> Callable[..., Any]:
        start = time.perf_counter()
        function = compiled.result()
        self.seconds += time.perf_counter() - start
        return function

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
