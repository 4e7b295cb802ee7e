"""The loop in one process: collect, fit, dream, evaluate, in turn, until the environment is solved or the budget is spent."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config
from spikedream.envs.host import (
    CONFIRM,
    EXPLORE,
    HostEnvironment,
    Position,
    episode_seed,
    random_action,
    random_log_prob,
    reward_threshold,
)
from spikedream.runs import checkpoint, outcome
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.evaluate import Evaluated, Evaluator
from spikedream.runs.metrics import Listener, Recorder
from spikedream.types import Metrics, PyTree


class Diverged(Exception):
    """A loss or a parameter is no longer a number; the last good checkpoint is still there."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; a checkpoint was written."""


@dataclass
class Progress:
    """Counters of a run, and where it stands inside the current turn; saved with every checkpoint."""

    real_steps: int = 0
    imagined_steps: int = 0
    updates: int = 0
    turn: int = 0
    collected: int = 0  # steps of this turn
    fitted: bool = False  # in this turn
    blocks: int = 0  # of agent updates in this turn
    finished: bool = False
    solved_at: int | None = None  # real steps
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    episode_return: float = 0.0  # of the training episode under way, so far
    train_returns: list[float] = field(default_factory=list)  # of those that have ended in this turn
    metrics_bytes: int = 0
    row: dict[str, Any] = field(default_factory=dict)  # what this turn has measured so far


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


class Trainer:
    """One run in its directory.

    Args:
        config: what to do.
        directory: where it leaves its files; made if absent.
        listener: told how it goes.
        resume: go on from the newest checkpoint in `directory`.

    Raises:
        BrokenEnvironment, CheckpointError: as their texts say.
    """

    def __init__(self, config: Config, directory: Path, listener: Listener, resume: bool = False):
        config.check()
        self.config, self.directory, self.listener = config, directory, listener
        self._started = time.perf_counter()
        self._stop = False
        self.clock = CompileClock()
        self.env = HostEnvironment(config.env, config.env_kwargs, config.max_episode_steps, config.seed)
        self.threshold = config.threshold if config.threshold is not None else reward_threshold(config.env)
        self.algorithm = config.algorithm(self.env.spec)
        self.progress = Progress()
        self.state: TrainState = self.algorithm.init(jax.random.key(config.seed))
        if not resume:  # before the compilations begin: a directory that cannot be made is told at once
            outcome.begin(config, directory)
        # The two long compilations go on in other threads while the first episodes are played.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.state)
        pool = ThreadPoolExecutor(2)
        self._dream = pool.submit(lambda: Algorithm.dream.lower(self.algorithm, shapes).compile())
        self._fit = pool.submit(lambda: Algorithm.fit.lower(self.algorithm, shapes).compile())
        pool.shutdown(wait=False)
        self.carry: PyTree = self.algorithm.start(self.state, 1)
        self.evaluator = Evaluator(config, config.evaluation.episodes)
        if resume:
            self._restore()
        self.recorder = Recorder(directory, self.progress.metrics_bytes)

    def train(self) -> None:
        """Go on until solved or out of budget.

        Raises:
            Interrupted: after SIGINT or SIGTERM; a checkpoint was written.
            Diverged, BrokenEnvironment: the newest good checkpoint is still there.
        """
        if not any((self.directory / "checkpoints").glob("*.json")):
            self.save()
        with self._signals():
            while not self.progress.finished:
                self.collect()
                self.fit()
                self.dream()
                self.evaluate()
                self.save()
        self.write_result()

    # ---- the four verbs

    def collect(self) -> None:
        """Whole random episodes in the first turn, then some steps with the agent's own noisy policy."""
        progress, collect = self.progress, self.config.collect
        if not progress.fitted:
            progress.row = {}  # an earlier turn's
        while self.progress.real_steps < self.config.budget:
            if progress.turn == 0 and collect.seed_episodes:
                done, total = self.env.position.episode, collect.seed_episodes
            else:
                done, total = progress.collected, collect.steps
            if done >= total:
                break
            self.listener.phase("collect", done, total)
            self._collect_step()
            self._heed_stop()

    def _collect_step(self) -> None:
        progress = self.progress
        if self.env.position.obs is None:
            self.env.reset()
            self.carry = self.algorithm.start(self.state, 1)
            progress.episode_return = 0.0
        if progress.turn == 0 and self.config.collect.seed_episodes:
            rng = np.random.default_rng(episode_seed(self.config.seed, EXPLORE, progress.real_steps))
            action, log_prob = random_action(self.env.spec, rng), random_log_prob(self.env.spec)
        else:
            assert self.env.position.obs is not None
            salt = np.uint32(progress.real_steps)
            act = self.algorithm.act(self.state, self.carry, self.env.position.obs[None], salt, False)
            self.carry, action, log_prob = act.carry, np.asarray(act.action[0]), float(act.log_prob[0])
        step = self.env.step(action, log_prob)
        self.state = self.algorithm.remember(self.state, step)
        progress.episode_return += float(step.reward)
        if self.env.position.obs is None:
            progress.train_returns.append(progress.episode_return)
        progress.real_steps += 1
        progress.collected += 1

    def fit(self) -> None:
        if self.progress.fitted:
            return
        self.listener.phase("fit", 0, 1)
        self.state, metrics = self.clock.wait(self._fit)(self.state)
        self._measure([metrics])
        self.progress.fitted = True
        self._heed_stop()

    def dream(self) -> None:
        progress, improve = self.progress, self.config.improve
        updates = improve.first if progress.turn == 0 else improve.then
        blocks = math.ceil(updates / improve.block)
        dream = self.clock.wait(self._dream)
        while progress.blocks < blocks:
            self.listener.phase("dream", progress.blocks, blocks)
            self.state, metrics = dream(self.state)
            self._measure([metrics])
            progress.imagined_steps += int(metrics["imagined_steps"])
            progress.updates += improve.block
            progress.blocks += 1
            self._heed_stop()

    def evaluate(self) -> None:
        """Greedy episodes; when they and all confirmations reach the threshold, the run is solved."""
        progress = self.progress
        self.listener.phase("evaluate", 0, 1)
        verdict = outcome.judge(self.threshold, self.config.evaluation.confirmations, self._play, progress.turn)
        if verdict.solved:
            progress.solved_at, progress.finished = progress.real_steps, True
        if progress.real_steps >= self.config.budget:
            progress.finished = True
        self._turn_over(verdict.evaluated)

    def _play(self, stream: int, *index: int) -> Evaluated:
        """As `runs.outcome` asks for it."""
        if stream == CONFIRM:
            self.listener.phase("confirm", index[-1], self.config.evaluation.confirmations)
        return self.evaluator(self.algorithm, self.state, stream, *index)

    def _turn_over(self, result: Evaluated) -> None:
        progress = self.progress
        progress.wall_seconds = self._elapsed()
        progress.row |= {
            "turn": progress.turn,
            "real_steps": progress.real_steps,
            "imagined_steps": progress.imagined_steps,
            "updates": progress.updates,
            "eval_return_mean": result.mean(),
            "eval_return_std": result.std(),
            "eval_length_mean": float(result.lengths.mean()),
            "firing_rate/actor_greedy": result.firing_rate,
            "decision_ms": result.decision_ms,
            "train_episodes": len(progress.train_returns),
            "wall_seconds": round(progress.wall_seconds, 3),
        }
        if progress.train_returns:
            progress.row["train_return_mean"] = float(np.mean(progress.train_returns))
        self.recorder.write(progress.row)
        self.listener.record(progress.row)
        progress.metrics_bytes = self.recorder.size()
        progress.turn += 1
        progress.collected, progress.fitted, progress.blocks, progress.train_returns = 0, False, 0, []

    def _measure(self, metrics: list[Metrics]) -> None:
        row = {name: float(value) for m in metrics for name, value in m.items() if name != "imagined_steps"}
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise self._diverged(wrong)
        self.progress.row |= row

    def _diverged(self, names: list[str]) -> Diverged:
        return Diverged(
            f"{', '.join(names)} became NaN or infinite in turn {self.progress.turn};"
            f" the last good checkpoint is in {self.directory / 'checkpoints'}. A lower learning rate often helps"
        )

    # ---- stopping and resuming

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run at the next safe point; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self.listener.note(f"{signal.Signals(number).name}: finishing this step, then saving a checkpoint")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed_stop(self) -> None:
        if self._stop:
            self.save()
            raise Interrupted(f"stopped at {self.progress.real_steps} real steps; go on with: spikedream resume {self.directory}")

    def _elapsed(self) -> float:
        """Of all sessions of this run together."""
        now = time.perf_counter()
        elapsed = self.progress.wall_seconds + now - self._started
        self._started = now
        return elapsed

    def save(self) -> None:
        """Everything that decides how the run goes on.

        Raises:
            CheckpointError: it cannot be written; the one before it is untouched.
        """
        self.progress.wall_seconds = self._elapsed()
        self.progress.compile_seconds += self.clock.seconds
        self.clock.seconds = 0.0
        position = self.env.position
        arrays = checkpoint.flatten(self.state, "state") | checkpoint.flatten(self.carry, "carry")
        wrong = [name for name, x in arrays.items() if x.dtype == np.float32 and not np.isfinite(x).all()]
        if wrong:
            raise self._diverged(wrong[:3])
        if position.obs is not None:
            arrays["position.obs"] = position.obs
            arrays["position.actions"] = np.asarray(position.actions, np.float32).reshape(-1, self.env.spec.action_size)
        counters = asdict(self.progress) | {"episode": position.episode}
        checkpoint.save(self.directory / "checkpoints", self.progress.real_steps, arrays, counters)

    def _restore(self) -> None:
        arrays, counters = checkpoint.load(self.directory / "checkpoints")
        self.state = checkpoint.unflatten(self.state, "state", arrays)
        self.carry = checkpoint.unflatten(self.carry, "carry", arrays)
        episode = counters.pop("episode")
        try:
            self.progress = Progress(**counters)
        except TypeError as error:
            raise CheckpointError(f"the checkpoint in {self.directory} is of another version of spikedream ({error})") from error
        obs = arrays.get("position.obs")
        actions = list(arrays["position.actions"]) if obs is not None else []
        if not self.env.restore(Position(episode, actions, obs)):
            self.listener.note(f"{self.config.env} is not deterministic: the episode under way is given up for a fresh one")
            self.state = replace(self.state, replay=self.state.replay.cut())

    # ---- the outcome

    def write_result(self) -> None:
        """`result.json`: the outcome for people and programs."""
        progress = self.progress
        outcome.write_result(
            self.directory, self.config, progress.row, self._play, threshold=self.threshold, solved_at=progress.solved_at,
            wall_seconds=progress.wall_seconds, compile_seconds=progress.compile_seconds,
        )  # fmt: skip

    def close(self) -> None:
        self.recorder.close()
        self.evaluator.close()
        self.env.close()
        self.clock.close()
