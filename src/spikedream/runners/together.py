"""Many seeds of one configuration in one program: the compiled verbs are mapped over them, each has environments of its own.

Each seed is a `Trainer` with a directory of its own and comes to the same numbers as alone, up to rounding. Fitting and
dreaming, where the time goes, are mapped; a seed that is through is carried along until the last one is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config
from spikedream.runners.stop import Interrupted, stopping
from spikedream.runners.sync import Trainer
from spikedream.runs import checkpoint
from spikedream.runs.metrics import Listener
from spikedream.types import Metrics, PyTree


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
        self.trainers: list[Trainer] = []
        for config, directory, listener in zip(configs, directories, listeners, strict=True):
            resume = bool(checkpoint.heads(directory / "checkpoints"))
            self.trainers.append(Trainer(config, directory, listener, resume, alone=False))
        self.algorithm = self.trainers[0].algorithm
        if any(trainer.algorithm != self.algorithm for trainer in self.trainers):
            raise ValueError("seeds that run together must have the same settings")

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
        for trainer in going:
            trainer.collect()
        self._fit(going)
        while self._dream(going):
            pass
        for trainer in going:
            trainer.evaluate()
            trainer.turn_over()
            if trainer.progress.finished:
                trainer.write_result()

    def _fit(self, going: list[Trainer]) -> None:
        due = [trainer.fit_due() if trainer in going else 0 for trainer in self.trainers]
        if any(due):
            states, metrics = _fit(self.algorithm, self._states(), np.asarray(due, np.int32))
            for trainer, updates, state, measured in zip(self.trainers, due, states, metrics, strict=True):
                trainer.state = state
                if updates:
                    trainer.after_fit(state, measured)

    def _dream(self, going: list[Trainer]) -> bool:
        """A block of agent updates for each that still has to make one; whether any had."""
        due = [trainer in going and trainer.blocks_due() > 0 for trainer in self.trainers]
        if any(due):
            states, metrics = _dream(self.algorithm, self._states(), np.asarray(due))
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
        for trainer in self.trainers:
            trainer.close()


def _mapped(verb: Callable, states: list[TrainState], due: Array, *arguments: Array) -> tuple[list[TrainState], list[Metrics]]:
    """`verb` of each state where it is `due`, (seeds,) bool; the others stay as they are."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    after, metrics = jax.vmap(verb)(stacked, *arguments)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(due.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    after = jax.tree.map(choose, after, stacked)
    return _apart(after, len(states)), _apart(metrics, len(states))


def _apart(stacked: PyTree, number: int) -> list[PyTree]:
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(number)]


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _fit(algorithm: Algorithm, states: list[TrainState], updates: Array) -> tuple[list[TrainState], list[Metrics]]:
    return _mapped(algorithm.fit, states, updates > 0, updates)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _dream(algorithm: Algorithm, states: list[TrainState], due: Array) -> tuple[list[TrainState], list[Metrics]]:
    return _mapped(algorithm.dream, states, due)
