"""Tells whoever watches a run what a decision takes as it learns."""

from collections.abc import Callable, Mapping
from typing import Any

from spikedream.algorithm import Algorithm, TrainState
from spikedream.export.energy import of_newest
from spikedream.runs.metrics import Listener


class EnergyTold:
    """A listener that hands everything on, each evaluation with `decision_picojoules`: null where that is not known. Counting takes
    milliseconds; what it compiles, the end of the run needs too.

    Args:
        listener: is told.
        algorithm: of the run.
        state: gives the run's state.
    """

    def __init__(self, listener: Listener, algorithm: Algorithm, state: Callable[[], TrainState]):
        self._listener, self._algorithm, self._state = listener, algorithm, state
        self.phase, self.parts, self.progress, self.note = listener.phase, listener.parts, listener.progress, listener.note

    def record(self, row: Mapping[str, Any]) -> None:
        self._listener.record({**row, "decision_picojoules": of_newest(self._algorithm, self._state())})
