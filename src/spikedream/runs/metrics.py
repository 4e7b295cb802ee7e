"""What a run measures while it learns: `metrics.jsonl` (the record), TensorBoard events, W&B where it is asked for, and whoever
else listens."""

import importlib.util
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from tensorboardX import SummaryWriter

from spikedream.types import Masked, Metrics

# TensorBoard's tab of a metric, by the first word of its name; a name with a slash brings its own tab.
TABS = {
    "turn": "run", "real": "run", "updates": "run", "wall": "run", "eval": "evaluation", "decision": "evaluation",
    "train": "training", "model": "world_model", "confidence": "world_model", "dream": "imagination", "imagined": "imagination",
    "rollouts": "imagination", "rollout": "imagination", "beta": "curiosity", "bonus": "curiosity", "extrinsic": "curiosity",
}  # fmt: skip


def tag(name: str) -> str:
    """What TensorBoard calls the metric `name`."""
    return name if "/" in name else f"{TABS.get(name.split('_')[0], 'agent')}/{name}"


def fetched(metrics: Metrics | Mapping[str, float | None]) -> dict[str, float | None]:
    """From the device; None where nothing was measured."""
    return {name: _known(value) for name, value in jax.device_get(dict(metrics)).items()}


def _known(value: Any) -> float | None:
    if isinstance(value, Masked):
        return float(value.value) if value.counts else None
    return None if value is None else float(value)


class Listener(Protocol):
    """Is told how a run goes; the terminal display is one."""

    def phase(self, name: str, done: int, total: int) -> None:
        """`done` of `total` units of the phase (steps, updates, episodes) are through."""
        ...

    def parts(self, doing: Mapping[str, str]) -> None:
        """What each part of a run in several processes does, by its verb."""
        ...

    def progress(self, real_steps: int, budget: int) -> None:
        """A turn is through, after so many of the `budget`'s real steps."""
        ...

    def record(self, row: Mapping[str, Any]) -> None:
        """An evaluation is through; `row` as in `metrics.jsonl`."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know."""
        ...


class Sink(Protocol):
    """Where rows go beside `metrics.jsonl`."""

    def write(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Events in `tensorboard/` of the run.

    Args:
        directory: of the run.
        purge: real steps from which on earlier events are superseded; None where there are none.
    """

    def __init__(self, directory: Path, purge: int | None):
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=purge)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._events.add_scalar(name, value, row["real_steps"])
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of W&B, its files in `wandb/` of the run; one that is resumed goes on under the same id, which `wandb/id` holds.

    It uploads where WANDB_API_KEY is set. Without, it stays on this machine until `wandb sync RUN/wandb/offline-run-*`; WANDB_MODE
    decides otherwise, as W&B documents it.

    Args:
        directory: of the run.
        project: of W&B.
        settings: shown as the run's configuration.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, directory: Path, project: str, settings: Mapping[str, Any]):
        check_wandb()
        import wandb  # pyright: ignore[reportMissingImports] - an extra

        home = directory / "wandb"
        home.mkdir(exist_ok=True)  # W&B writes there if it is there, and elsewhere if not
        file = home / "id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:12])
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project=project,
            name=f"{settings.get('preset', 'run')}-s{settings.get('seed', 0)}",
            id=file.read_text(),
            resume=None if mode == "offline" else "allow",  # offline there is nothing to ask; `wandb sync` joins what has one id
            mode=mode,  # pyright: ignore[reportArgumentType] - checked by W&B
            dir=str(directory),
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log(_numbers(row), step=row["real_steps"])

    def close(self) -> None:
        self._run.finish()


def check_wandb() -> None:
    """Raises ImportError, with what to do, where W&B is not installed. To be called before a run begins."""
    if importlib.util.find_spec("wandb") is None:
        raise ImportError("W&B is not installed: pip install 'spikedream[wandb]', or leave logging.wandb out")


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn, by its tag."""
    return {tag(name): value for name, value in row.items() if isinstance(value, int | float)}


class Recorder:
    """Appends a row at each evaluation to `metrics.jsonl`, to TensorBoard, and to W&B where a project is named.

    Args:
        directory: of the run.
        keep: bytes of an existing `metrics.jsonl` that are part of this run; the rest belongs to steps that are done again.
        wandb: a project of W&B, or None.
        settings: the run's configuration as plain data, for W&B.

    Raises:
        ImportError: W&B is asked for and not installed.
    """

    def __init__(
        self, directory: Path, keep: int = 0, wandb: str | None = None, settings: Mapping[str, Any] | None = None
    ):  # fmt: skip
        self._path = directory / "metrics.jsonl"
        self._path.touch()
        with self._path.open("r+b") as file:
            file.truncate(keep)
        last = self.rows(directory)[-1:] if keep else []
        self._sinks: list[Sink] = [TensorBoard(directory, last[0]["real_steps"] + 1 if last else None)]
        if wandb is not None:
            self._sinks.append(WeightsAndBiases(directory, wandb, settings or {}))

    @staticmethod
    def rows(directory: Path) -> list[dict[str, Any]]:
        """All rows of a run."""
        return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]

    def write(self, row: Mapping[str, Any]) -> None:
        """`row` has at least `real_steps`, those of the run so far; two rows may have the same."""
        before = self.size()
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError:  # half a row, on a full disk, would make those after it unreadable
            os.truncate(self._path, before)
            raise
        for sink in self._sinks:
            sink.write(row)

    def size(self) -> int:
        """Bytes of `metrics.jsonl` so far."""
        return self._path.stat().st_size

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
