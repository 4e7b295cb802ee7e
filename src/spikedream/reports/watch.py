"""Following a run that is going on elsewhere, from what it writes into its directory."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.metrics import Listener

QUIET = 600.0  # seconds without anything new, after which it is said


def configuration_of(directory: Path) -> Config:
    """Of the run in `directory`. Raises CheckpointError where there is none, ConfigError where it is wrong."""
    if not directory.is_dir():
        raise CheckpointError(f"no run directory {directory}")
    file = directory / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{directory} is not a run directory: it has no config.yaml")
    return configuration.load(file)


def watch(
    directory: Path, listener: Listener, every: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any] | None:
    """Tell `listener` of every evaluation, those that were before first, until the run is through.

    Args:
        directory: of the run, under way or finished.
        listener: is told.
        every: seconds between two looks.
        sleep: waits so long.

    Returns:
        `result.json`; None where whoever watches has broken it off: the run itself goes on.

    Raises:
        CheckpointError, ConfigError: there is no run to follow.
    """
    config, rows, quiet = configuration_of(directory), Rows(directory / "metrics.jsonl"), 0.0
    listener.phase("watch", 0, 1)
    try:
        while True:
            result = directory / "result.json"
            over = result.is_file()  # asked first: what it wrote before is all there is
            new = list(rows.new())
            for row in new:
                listener.record(row)
            if new:
                listener.progress(new[-1]["real_steps"], config.budget)
            if over:
                return json.loads(result.read_text())
            before, quiet = quiet, 0.0 if new else quiet + every
            if before < QUIET <= quiet:
                listener.note(f"nothing new for {QUIET / 60:.0f} minutes; if it was stopped, spikedream resume {directory} goes on")
            sleep(every)
    except KeyboardInterrupt:
        return None


class Rows:
    """What is appended to a file of JSON lines, as it comes."""

    def __init__(self, path: Path):
        self._path, self._read = path, 0  # bytes

    def new(self) -> Iterator[dict[str, Any]]:
        """Whole lines since the last call. A run that was resumed has cut what it does again: then what follows is new, or all
        where nobody can tell."""
        if not self._path.is_file():
            return
        self._read = min(self._read, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(max(self._read - 1, 0))
            text = file.read()
            if self._read and text[:1] != b"\n":
                file.seek(0)
                text, self._read = file.read(), 0
            elif self._read:
                text = text[1:]
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)
