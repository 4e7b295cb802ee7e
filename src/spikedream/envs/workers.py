"""Environments in processes of their own, so that several processors step them at once: each of as many workers as there are
processors plays part of them."""

import pickle
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spikedream.envs.interpreters import answer, ask, processors, serve, start, stop
from spikedream.envs.player import Players, Step, same_spec
from spikedream.envs.real_time import Pace, Timing, together
from spikedream.envs.registration import copied, register
from spikedream.envs.spaces import BrokenEnvironment


class Workers:
    """A group in several processes.

    Args:
        env_id, kwargs, max_episode_steps, action_repeat, count, pace: as in `Players`.

    Raises:
        BrokenEnvironment: as in `Players`, or where a worker dies; none is left behind then.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any],
        max_episode_steps: int | None,
        action_repeat: int,
        count: int,
        pace: Pace | None = None,
    ):
        self._id = env_id
        self._parts = np.array_split(np.arange(count), min(count, processors()))
        counts = (len(part) for part in self._parts)
        spec, *arguments = copied(env_id, *((env_id, dict(kwargs), max_episode_steps, action_repeat, n, pace) for n in counts))
        self._processes = [start(__name__) for _ in self._parts]
        self._stop = weakref.finalize(self, stop, self._processes)
        self.spec = same_spec(env_id, self._ask("make", [(spec, given) for given in arguments]))

    def reset(self, seeds: Mapping[int, int]) -> dict[int, np.ndarray]:
        return self._gather("reset", seeds)

    def step(self, actions: np.ndarray) -> Step:
        answers = self._ask("step", [(actions[part],) for part in self._parts])
        return Step(*(np.concatenate(field) for field in zip(*answers, strict=True)))

    def replay(self, episodes: Mapping[int, tuple[int, np.ndarray]]) -> dict[int, np.ndarray | None]:
        return self._gather("replay", episodes)

    def take_timing(self) -> Timing:
        return together(self._ask("take_timing", [()] * len(self._parts)))

    def close(self) -> None:
        self._stop()

    def _gather(self, what: str, of: Mapping[int, Any]) -> dict[int, Any]:
        """The answers for some environments; a worker numbers its own from 0."""
        requests = [({j: of[i] for j, i in enumerate(part.tolist()) if i in of},) for part in self._parts]
        answers = self._ask(what, requests)
        return {int(part[j]): x for part, answer in zip(self._parts, answers, strict=True) for j, x in answer.items()}

    def _ask(self, what: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Every worker's answer, all working at once."""
        if not self._stop.alive:
            raise BrokenEnvironment(f"{self._id}: the worker processes have been closed")
        try:
            for process, part, given in zip(self._processes, self._parts, arguments, strict=True):
                ask(process, self._whose(part), what, given)
            return [answer(process, self._whose(part)) for process, part in zip(self._processes, self._parts, strict=True)]
        except BaseException:  # Ctrl-C too: what is half asked would be answered to the next question
            self.close()
            raise

    def _whose(self, part: np.ndarray) -> str:
        which = f"environment {part[0]}" if len(part) == 1 else f"environments {part[0]} to {part[-1]}"
        return f"{self._id}: the worker process of {which}"


# ---- in the worker


def main() -> None:
    serve(_make)


def _make(spec: bytes, arguments: bytes) -> Players:
    env_id, *rest = pickle.loads(arguments)
    register(env_id, spec)
    return Players(env_id, *rest)
