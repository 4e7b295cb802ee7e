"""What a run measures while it learns: `metrics.jsonl` (the record), TensorBoard events, and whoever else listens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter

# TensorBoard's tab of a metric, by the first word of its name; a name with a slash brings its own tab.
TABS = {
    "turn": "run", "real": "run", "updates": "run", "wall": "run", "eval": "evaluation", "decision": "evaluation",
    "train": "training", "model": "world_model", "confidence": "world_model", "dream": "imagination", "imagined": "imagination",
    "rollouts": "imagination", "rollout": "imagination", "beta": "curiosity", "bonus": "curiosity", "extrinsic": "curiosity",
}  # fmt: skip


def tag(name: str) -> str:
    """What TensorBoard calls the metric `name`."""
    return name if "/" in name else f"{TABS.get(name.split('_')[0], 'agent')}/{name}"


class Listener(Protocol):
    """Is told how a run goes; the terminal display is one."""

    def phase(self, name: str, done: int, total: int) -> None:
        """`done` of `total` units of the phase (steps, updates, episodes) are through."""
        ...

    def record(self, row: Mapping[str, Any]) -> None:
        """One turn is through; `row` as in `metrics.jsonl`."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know."""
        ...


class Recorder:
    """Appends one row a turn to `metrics.jsonl` and to TensorBoard.

    Args:
        directory: of the run.
        keep: bytes of an existing `metrics.jsonl` that are part of this run; the rest belongs to turns that are done again.
    """

    def __init__(self, directory: Path, keep: int = 0):
        self._path = directory / "metrics.jsonl"
        self._path.touch()
        with self._path.open("r+b") as file:
            file.truncate(keep)
        last = self.rows(directory)[-1:] if keep else []
        purge = last[0]["real_steps"] + 1 if last else None
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=purge)

    @staticmethod
    def rows(directory: Path) -> list[dict[str, Any]]:
        """All rows of a run."""
        return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]

    def write(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                self._events.add_scalar(tag(name), value, row["real_steps"])
        self._events.flush()

    def size(self) -> int:
        """Bytes of `metrics.jsonl` so far."""
        return self._path.stat().st_size

    def close(self) -> None:
        self._events.close()
