"""Following a run that is going on elsewhere, from what it writes into its directory."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.envs.spaces import BrokenEnvironment
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
    directory: Path,
    listener: Listener,
    every: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
    film: Callable[[int], object] | None = None,
    show: Callable[[Path], object] | None = None,
) -> dict[str, Any] | None:
    """Tell `listener` of every evaluation, those that were before first, and of the newest video, until the run is through.

    Args:
        directory: of the run, under way or finished.
        listener: is told.
        every: seconds between two looks.
        sleep: waits so long.
        film: makes a video of what the run has saved last, given the real steps of the newest evaluation.
        show: shows a video that is new.

    Returns:
        `result.json`; None where whoever watches has broken it off: the run itself goes on.

    Raises:
        CheckpointError, ConfigError: there is no run to follow.
    """
    config, rows, quiet = configuration_of(directory), Rows(directory / "metrics.jsonl"), 0.0
    shown: Path | None = None
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
                listener.parts(parts_of(new[-1]))
                if film is not None:
                    _try(film, new[-1]["real_steps"], listener)
            if (video := newest_video(directory)) not in (None, shown):
                shown = video
                listener.note(f"newest video: {video}")
                if show is not None and video is not None:
                    show(video)
            if over:
                return json.loads(result.read_text())
            before, quiet = quiet, 0.0 if new else quiet + every
            if before < QUIET <= quiet:
                listener.note(f"nothing new for {QUIET / 60:.0f} minutes; if it was stopped, spikedream resume {directory} goes on")
            sleep(every)
    except KeyboardInterrupt:
        return None


def parts_of(row: Mapping[str, Any]) -> dict[str, str]:
    """What the parts of a run in several processes have done until this row; empty where it is in one."""
    told = {name.removeprefix("parallel/"): value for name, value in row.items() if name.startswith("parallel/")}
    if not told:
        return {}
    return {
        "collect": f"{told['steps_a_second']:,.1f} steps/s · {told['waiting_steps']} steps wait ·"
        f" policies {told['policy_lag']:.1f} versions behind",
        "fit": f"model {told['model_version']} · {told['model_lag_steps']:,} steps behind",
        "dream": f"policy {told['policy_version']} · {row['updates']:,} updates",
        "faults": f"{told['restarts']} parts started anew · {told['refused']} handovers refused",
    }


def _try(film: Callable[[int], object], real_steps: int, listener: Listener) -> None:
    """What the run is just writing or has just dropped is there at the next evaluation."""
    try:
        film(real_steps)
    except (BrokenEnvironment, CheckpointError, OSError) as error:
        listener.note(f"not filmed at {real_steps} real steps: {error}")


def newest_video(directory: Path) -> Path | None:
    """Of the run in `directory`."""
    found = [path for path in directory.glob("videos/*.mp4") if not path.stem.endswith(".part")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


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
