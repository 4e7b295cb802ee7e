"""A run's environments, and acting in them, in a process of its own: runs that learn together play on several processors at once,
and do not wait for each other's interpreter."""

import os
import pickle
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, PolicyState
from spikedream.config import Config
from spikedream.envs.interpreters import answer, ask, serve, start, stop
from spikedream.envs.real_time import Timing
from spikedream.envs.registration import copied, register
from spikedream.runs.collect import Acting, Collector, Unfetched, environments_of
from spikedream.runs.evaluate import Evaluated, Evaluator
from spikedream.spec import Spec
from spikedream.types import PyTree, Transition

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # several of these processes work at once


class Played(NamedTuple):
    """An answer to `play`."""

    acting: list[np.ndarray]  # leaves of an `Acting`
    taken: int  # steps of their own that the environments took
    pending: list[Transition]
    ended: list[float]
    episodes: int  # that have ended, ever
    between_episodes: bool


class RolloutWorker(Unfetched):
    """Stands for a `Collector` and for an `Evaluator`, which come to the same numbers over there.

    Args:
        config: of the run.

    Attributes:
        spec: of its environments.
        episodes, between_episodes: as a collector's.

    Raises:
        BrokenEnvironment: as in both, or where the process dies; here too.
    """

    stride = 1024  # steps that are taken at once

    def __init__(self, config: Config):
        super().__init__()
        self._whose = f"{config.env}: the process that plays it"
        given = copied(config.env, config)
        self._process = start(__name__, {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}"})
        self._stop = weakref.finalize(self, stop, [self._process])
        self.episodes, self.between_episodes = 0, True
        self.spec: Spec = self._ask("make", *given)

    def explore(self, acting: Acting, policy: PolicyState, salt: int, steps: int = 1) -> tuple[Acting, int]:
        return self._play(acting, policy, salt, steps)

    def act(self, acting: Acting, policy: PolicyState, steps: int = 1) -> tuple[Acting, int]:
        return self._play(acting, policy, None, steps)

    def _play(self, acting: Acting, policy: PolicyState, salt: int | None, steps: int) -> tuple[Acting, int]:
        played: Played = self._ask("play", _sent((acting, policy)), salt, steps)
        self.pending += played.pending
        self.ended += played.ended
        self.episodes, self.between_episodes = played.episodes, played.between_episodes
        return _received(acting, played.acting), played.taken

    def __call__(self, algorithm: Algorithm, policy: PolicyState, key: Array, stream: int, *index: int) -> Evaluated:
        return self._ask("evaluate", _sent((policy, key)), stream, index)

    def take_timing(self) -> Timing:
        return self._ask("take_timing")

    def save(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self._ask("save", self.pending, self.ended)

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> np.ndarray:
        same, self.pending, self.ended, self.episodes, self.between_episodes = self._ask("restore", arrays, counters)
        return same

    def close(self) -> None:
        self._stop()

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            ask(self._process, self._whose, what, arguments)
            return answer(self._process, self._whose)
        except BaseException:  # Ctrl-C too: what is half asked would be answered to the next question
            self.close()
            raise


def _sent(tree: PyTree) -> list[np.ndarray]:
    """Its leaves; of random keys, their data."""
    keys = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(keys))]


def _received(template: PyTree, leaves: list[np.ndarray]) -> PyTree:
    """In the structure of `template`, of arrays or their shapes."""
    like, structure = jax.tree.flatten(template)
    wrapped = [jax.random.wrap_key_data(jnp.asarray(x)) if _is_key(y) else x for x, y in zip(leaves, like, strict=True)]
    return jax.tree.unflatten(structure, wrapped)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# ---- over there


def main() -> None:
    serve(_make)


def _make(spec: bytes, pickled: bytes) -> "Rollouts":
    config = pickle.loads(pickled)
    register(config.env, spec)
    return Rollouts(config)


class Rollouts:
    """What answers a `RolloutWorker`."""

    def __init__(self, config: Config):
        environments = environments_of(config)
        self.spec = environments.spec
        self.algorithm = config.algorithm(self.spec, "float32")  # in which every policy acts
        self.collector = Collector(config, self.algorithm, environments)
        self.evaluator = Evaluator(config, config.evaluation.episodes)
        self._policy, self._acting, self._key = jax.eval_shape(self._begin, jax.random.key(0))

    def _begin(self, key: Array) -> tuple[PolicyState, Acting, Array]:
        state = self.algorithm.init(key)
        return self.algorithm.policy(state), Acting(state.carry, state.keys.collect), key

    def play(self, arrays: list[np.ndarray], salt: int | None, steps: int) -> Played:
        acting, policy = _received((self._acting, self._policy), arrays)
        if salt is None:
            acting, taken = self.collector.act(acting, policy, steps)
        else:
            acting, taken = self.collector.explore(acting, policy, salt, steps)
        return Played(_sent(acting), taken, *self._unfetched())

    def _unfetched(self) -> tuple[list[Transition], list[float], int, bool]:
        """Handed over; and where it stands."""
        collector = self.collector
        handed = collector.pending, collector.ended, collector.episodes, collector.between_episodes
        collector.pending, collector.ended = [], []
        return handed

    def evaluate(self, arrays: list[np.ndarray], stream: int, index: tuple[int, ...]) -> Evaluated:
        policy, key = _received((self._policy, self._key), arrays)
        return self.evaluator(self.algorithm, policy, key, stream, *index)

    def take_timing(self) -> Timing:
        return self.collector.take_timing()

    def save(self, pending: list[Transition], ended: list[float]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.collector.pending, self.collector.ended = pending, ended
        saved = self.collector.save()
        self._unfetched()
        return saved

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> tuple[Any, ...]:
        same = self.collector.restore(arrays, counters)
        return same, *self._unfetched()

    def close(self) -> None:
        self.collector.close()
        self.evaluator.close()
