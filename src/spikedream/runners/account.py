"""What a run has done so far, and the files that tell it: both runners keep such an account."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikedream.config import Config, to_data
from spikedream.envs.make import reward_threshold
from spikedream.replay.ring import Replay
from spikedream.runners.stop import Diverged
from spikedream.runs import checkpoint, outcome
from spikedream.runs.checkpoint import CheckpointError, Extent
from spikedream.runs.doubts import doubts_of_learning
from spikedream.runs.evaluate import Evaluated
from spikedream.runs.metrics import Listener, Recorder, fetched
from spikedream.runs.replay_log import ReplayLog
from spikedream.snn.product import Precision
from spikedream.world import HostLearner

LEARNER = "learner."  # names in a checkpoint of what a learner outside holds


@dataclass
class Progress:
    """Counters of a run, and where it stands inside the current turn; saved with every checkpoint."""

    real_steps: int = 0  # the environments' own
    imagined_steps: int = 0
    imagined_before: int = 0  # the state's own counter when it was last read, which begins anew at 2^32
    updates: int = 0
    turn: int = 0
    evaluations: int = 0
    collected: int = 0  # steps of this turn
    fitted: bool = False  # in this turn, or not due
    blocks: int = 0  # of agent updates in this turn
    share: float = 1.0  # of this turn's steps, that the budget allows
    precision: Precision = "float32"  # in which products are made where the configuration says "fastest"
    inherited_steps: int = 0  # real steps of the run that this one started from
    first_turn: int = 0  # real steps of the first turn
    later_blocks: int = 0  # of agent updates in all turns after it
    done: dict[str, int] = field(default_factory=dict)  # clock to the real steps at which it last struck
    finished: bool = False
    solved_at: int | None = None  # real steps
    fresh: tuple[float, float] | None = None  # mean and deviation of returns on fresh episodes of the policy that solved it
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    metrics_bytes: int = 0
    measured: dict[str, Any] = field(default_factory=dict)  # since the last row
    row: dict[str, Any] = field(default_factory=dict)  # the last of `metrics.jsonl`
    best: float | None = None  # mean return of the best evaluation, where what acted in it is kept


class Account:
    """Of one run.

    Args:
        config: of the run.
        directory: of the run.
        listener: told of every row.
    """

    def __init__(self, config: Config, directory: Path, listener: Listener):
        self.config, self.directory, self.listener = config, directory, listener
        self.progress = Progress()
        self.threshold = config.threshold if config.threshold is not None else reward_threshold(config.env)
        self.log = ReplayLog(directory / "checkpoints")
        self.metrics: dict[str, Any] = {}  # of the verbs since the last row; still on the device
        self._started = time.perf_counter()
        self._recorder: Recorder | None = None
        self._doubted = False  # whether doubts of what is learned were told

    def open(self) -> None:
        """Begin to write rows, or go on after those that a checkpoint knows of."""
        keep = self.progress.metrics_bytes
        self._recorder = Recorder(self.directory, keep, self.config.logging.wandb, to_data(self.config))

    # ---- what is measured

    def write_row(self, result: Evaluated, returns: list[float], more: Mapping[str, Any] | None = None) -> None:
        """`returns` are those of the episodes that collecting has ended since the last row; `more` is what else is told."""
        progress = self.progress
        progress.wall_seconds = self.elapsed()
        progress.row = progress.measured | {
            "turn": progress.turn,
            "real_steps": progress.real_steps,
            "imagined_steps": progress.imagined_steps,
            "updates": progress.updates,
            "eval_return_mean": result.mean(),
            "eval_return_std": result.std(),
            "eval_length_mean": float(result.lengths.mean()),
            "firing_rate/actor_greedy": result.firing_rate,
            "decision_ms": result.decision_ms,
            "train_episodes": len(returns),
            "wall_seconds": round(progress.wall_seconds, 3),
            **({"train_return_mean": float(np.mean(returns))} if returns else {}),
            **(more or {}),
        }
        assert self._recorder is not None
        self._recorder.write(progress.row)
        self.listener.record(progress.row)
        if not self._doubted:
            found = doubts_of_learning(progress.row)
            self._doubted = bool(found)
            for doubt in found:
                self.listener.note(doubt.text)
        progress.metrics_bytes = self._recorder.size()
        progress.measured = {}

    def settle(self, imagined: Any, updates: Any) -> None:
        """Fetch what the verbs have measured from the device, and the state's own counters. That waits for them, so it is not done
        in every turn."""
        progress = self.progress
        row = fetched(self.metrics)
        wrong = [name for name, value in row.items() if value is not None and not math.isfinite(value)]
        if wrong:
            raise self.diverged(wrong)
        self.metrics = {}
        progress.measured |= row
        progress.imagined_steps += (int(imagined) - progress.imagined_before) % 2**32
        progress.imagined_before, progress.updates = int(imagined), int(updates)

    def diverged(self, names: list[str]) -> Diverged:
        return Diverged(
            f"{', '.join(names)} became NaN or infinite in turn {self.progress.turn};"
            f" the last good checkpoint is in {self.directory / 'checkpoints'}. A lower learning rate often helps"
        )

    def elapsed(self) -> float:
        """Of all sessions of this run together."""
        now = time.perf_counter()
        elapsed = self.progress.wall_seconds + now - self._started
        self._started = now
        return elapsed

    # ---- saving

    def save(
        self,
        arrays: dict[str, np.ndarray],
        replay: Replay,
        positions: dict[str, np.ndarray],
        where: dict[str, Any],
        compiling: float,
    ) -> None:
        """A checkpoint.

        Args:
            arrays: the training state without what was experienced, by its tree paths.
            replay: what was experienced.
            positions, where: of those who collect, as arrays and as plain data.
            compiling: seconds that the run has waited for compilation since it was last saved.

        Raises:
            Diverged: something is no longer a number; the checkpoint before is untouched.
            CheckpointError: it cannot be written; the one before it is untouched.
        """
        progress = self.progress
        learned = ("state.world", "state.agent", "state.bonus", "state.carry")
        wrong = [name for name, array in arrays.items() if name.startswith(learned) and not _finite(array)]
        if wrong:
            raise self.diverged(wrong[:3])
        progress.wall_seconds = self.elapsed()
        progress.compile_seconds += compiling
        progress.done["checkpoint"] = progress.real_steps
        extent = self.log.save(replay)
        counters = asdict(progress) | {"collector": where, "replay": extent._asdict()}
        checkpoint.save(self.directory / "checkpoints", progress.real_steps, arrays | positions, counters, extent.file)

    def keep_best(self, result: Evaluated, arrays: Callable[[], dict[str, np.ndarray]]) -> None:
        """Where the configuration says so and no evaluation was better, what acted in it, in `best/` of the run: the training state
        without what was experienced. Raises CheckpointError where it cannot be written."""
        progress = self.progress
        if self.config.checkpoint.best and (progress.best is None or result.mean() > progress.best):
            progress.best = result.mean()
            checkpoint.save(self.directory / "best", progress.real_steps, arrays(), asdict(progress))

    def restore(self, counters: dict[str, Any]) -> tuple[Any, Extent]:
        """Take over the counters of a checkpoint; what it says of those who collect, and which part of the log is its own."""
        where, extent = counters.pop("collector", None), counters.pop("replay", None)
        try:
            self.progress = Progress(**counters)
            return where, Extent(**extent)
        except TypeError as error:
            raise CheckpointError(f"the checkpoint in {self.directory} is of another version of spikedream ({error})") from error

    def write_result(self, fresh: tuple[float, float], last: tuple[float, float] | None = None) -> None:
        """`result.json`: the outcome for people and programs; `fresh` as in `Progress`, of the last policy where none solved it;
        `last` of that in any case, where it is known."""
        progress = self.progress
        outcome.write_result(
            self.directory, self.config, progress.row, fresh, threshold=self.threshold,
            solved_at=progress.solved_at, wall_seconds=progress.wall_seconds, compile_seconds=progress.compile_seconds,
            inherited_steps=progress.inherited_steps, last=last,
        )  # fmt: skip

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()


def held_outside(learner: HostLearner | None) -> dict[str, np.ndarray]:
    """All that a learner outside holds, where there is one, by its names in a checkpoint."""
    return {} if learner is None else {f"{LEARNER}{name}": array for name, array in learner.save().items()}


def restore_outside(learner: HostLearner | None, arrays: Mapping[str, np.ndarray]) -> None:
    """The inverse: it goes on from there."""
    if learner is not None:
        learner.restore({k.removeprefix(LEARNER): x for k, x in arrays.items() if k.startswith(LEARNER)})


def _finite(array: np.ndarray) -> bool:
    return array.dtype != np.float32 or bool(np.isfinite(array).all())
