"""Many seeds of one configuration in one program: the compiled verbs are mapped over them, each has environments of its own.

Each seed is a `Trainer` with a directory of its own and comes to the same numbers as alone, up to rounding. Remembering, fitting
and dreaming, where the time goes, are mapped; a seed that is through is carried along until the last one is. What was experienced,
which is most of a state, stays where it is, one array for all seeds; the rest is put together for a verb and taken apart after it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config
from spikedream.envs.interpreters import processors
from spikedream.processes import Sync
from spikedream.replay.ring import Replay
from spikedream.runners.stop import Interrupted, stopping
from spikedream.runners.sync import Trainer
from spikedream.runs import checkpoint
from spikedream.runs.collect import LARGEST_BLOCK
from spikedream.runs.metrics import Listener
from spikedream.types import Metrics, PyTree, Transition


class Together:
    """Runs that differ in their seeds alone.

    Args:
        configs: one for each seed.
        directories: where each leaves its files; those that hold a checkpoint go on from it.
        listeners: told how each goes.

    Raises:
        ValueError: the configurations differ in more than their seeds.
        BrokenEnvironment, CheckpointError: as their texts say.
    """

    def __init__(self, configs: Sequence[Config], directories: Sequence[Path], listeners: Sequence[Listener]):
        if not all(isinstance(config.runner, Sync) for config in configs):
            raise ValueError("seeds run together in one process; with runner Parallel each takes its own turn")
        apart = all(_plays_apart(config) for config in configs) and processors() > len(configs)
        self.trainers: list[Trainer] = []
        for config, directory, listener in zip(configs, directories, listeners, strict=True):
            resume = bool(checkpoint.heads(directory / "checkpoints"))
            shared = {"alone": False, "apart": apart, "seeds": len(configs)}
            self.trainers.append(Trainer(config, directory, listener, resume, **shared))
        self.algorithm = self.trainers[0].algorithm
        if any(trainer.algorithm != self.algorithm for trainer in self.trainers):
            raise ValueError("seeds that run together must have the same settings")
        if self.trainers[0].learner is not None:
            name = type(self.algorithm.agent).__name__
            raise ValueError(f"{name} improves outside compiled programs, each seed by itself: leave --together out")
        self._threads = ThreadPoolExecutor(len(self.trainers))
        self.data = _stack([trainer.state.replay.data for trainer in self.trainers])  # leaves (seeds, rows, environments, ...)
        for i, trainer in enumerate(self.trainers):
            trainer.held = partial(self._data_of, i)
            trainer.state = replace(trainer.state, replay=replace(trainer.state.replay, data=None))

    def _data_of(self, i: int) -> Transition:
        return jax.tree.map(lambda x: x[i], self.data)

    def train(self) -> None:
        """Go on until each is solved or out of budget.

        Raises:
            Interrupted: after SIGINT or SIGTERM; a checkpoint of each was written.
            Diverged, BrokenEnvironment: of one seed; those that were not through keep their newest good checkpoints.
        """
        for trainer in self.trainers:
            if not checkpoint.heads(trainer.directory / "checkpoints"):
                trainer.save()
        with stopping(self._ask_to_stop):
            try:
                while going := [trainer for trainer in self.trainers if not trainer.progress.finished]:
                    self._turn(going)
            except Interrupted:
                for trainer in self.trainers:
                    trainer.save()
                raise

    def _turn(self, going: list[Trainer]) -> None:
        self._each(Trainer.play, going)
        self._remember()
        self._fit(going)
        while self._dream(going):
            pass
        self._each(Trainer.evaluate, going)
        for trainer in going:
            trainer.turn_over()
            if trainer.progress.finished:
                trainer.write_result()

    def _each(self, verb: Callable[[Trainer], None], going: list[Trainer]) -> None:
        """In threads, of which one decides while the environments of another move."""
        for _ in self._threads.map(verb, going):
            pass

    def _remember(self) -> None:
        """What waits in the collectors."""
        most = min(LARGEST_BLOCK, self.data.reward.shape[1])
        while any(trainer.collector.pending for trainer in self.trainers):
            fetched = [t.collector.fetch(most) if t.collector.pending else None for t in self.trainers]
            largest = max((steps for steps, _ in filter(None, fetched)), key=lambda steps: len(steps.reward))
            numbers = np.array([number for _, number in (some or (None, 0) for some in fetched)], np.int32)
            filled = [_filled(some[0] if some else largest, len(largest.reward)) for some in fetched]
            steps = jax.tree.map(lambda *x: np.stack(x), *filled)
            replays = [trainer.state.replay for trainer in self.trainers]
            replays, self.data = _remember(self.algorithm, replays, self.data, steps, numbers)
            for trainer, replay in zip(self.trainers, replays, strict=True):
                trainer.state = replace(trainer.state, replay=replay)

    def _fit(self, going: list[Trainer]) -> None:
        due = [trainer.fit_due() if trainer in going else 0 for trainer in self.trainers]
        if any(due):
            states, metrics = _fit(self.algorithm, self._states(), self.data, np.asarray(due, np.int32))
            for trainer, updates, state, measured in zip(self.trainers, due, states, metrics, strict=True):
                trainer.state = state
                if updates:
                    trainer.after_fit(state, measured)

    def _dream(self, going: list[Trainer]) -> bool:
        """A block of agent updates for each that still has to make one; whether any had."""
        due = [trainer in going and trainer.blocks_due() > 0 for trainer in self.trainers]
        if any(due):
            states, metrics = _dream(self.algorithm, self._states(), self.data, np.asarray(due))
            for trainer, dreams, state, measured in zip(self.trainers, due, states, metrics, strict=True):
                trainer.state = state
                if dreams:
                    trainer.after_dream(state, measured)
        return any(due)

    def _states(self) -> list[TrainState]:
        return [trainer.state for trainer in self.trainers]

    def _ask_to_stop(self, signal_name: str) -> None:
        for trainer in self.trainers:
            trainer.ask_to_stop(signal_name)

    def close(self) -> None:
        self._threads.shutdown()
        for trainer in self.trainers:
            trainer.close()


def _plays_apart(config: Config) -> bool:
    """Whether its environments can be played in another process, by a policy that needs no more than a processor."""
    return config.realtime is None and config.action_repeat is not None and not config.agent.acts_in_world


def _filled(steps: Transition, rows: int) -> Transition:
    """With the last of the rows over and over; leaves (rows, ...)."""
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)]), steps)


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _apart(stacked: PyTree, number: int) -> list[PyTree]:
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(number)]


def _chosen(due: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` for the seeds that are `due`, (seeds,) bool, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(due.reshape(-1, *(1,) * (new.ndim - 1)), new, old), new, old)


def _mapped(
    verb: Callable, states: list[TrainState], data: Transition, due: Array, *arguments: Array
) -> tuple[list[TrainState], list[Metrics]]:
    """`verb`, which leaves `data` as they are, of each state where it is `due`, (seeds,) bool; the others stay as they are."""
    stacked = _stack(states)
    after, metrics = jax.vmap(verb)(replace(stacked, replay=replace(stacked.replay, data=data)), *arguments)
    after = _chosen(due, replace(after, replay=replace(after.replay, data=None)), stacked)
    return _apart(after, len(states)), _apart(metrics, len(states))


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _remember(
    algorithm: Algorithm, replays: list[Replay], data: Transition, steps: Transition, numbers: Array
) -> tuple[list[Replay], Transition]:
    """The first `numbers`, (seeds,), of the rows of `steps`, leaves (seeds, rows, environments, ...)."""
    stacked = _stack(replays)
    after = jax.vmap(algorithm.remember)(replace(stacked, data=data), steps, numbers)
    return _apart(_chosen(numbers > 0, replace(after, data=None), stacked), len(replays)), after.data


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _fit(
    algorithm: Algorithm, states: list[TrainState], data: Transition, updates: Array
) -> tuple[list[TrainState], list[Metrics]]:
    return _mapped(algorithm.fit, states, data, updates > 0, updates)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _dream(algorithm: Algorithm, states: list[TrainState], data: Transition, due: Array) -> tuple[list[TrainState], list[Metrics]]:
    return _mapped(algorithm.dream, states, data, due)
