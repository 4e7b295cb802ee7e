"""Gymnasium environments as the learner sees them: flat observations, encoded actions, every episode under a known seed."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from spikedream.envs.player import Group, Players
from spikedream.envs.real_time import Pace, Timing
from spikedream.envs.spaces import decode_actions
from spikedream.envs.workers import Workers
from spikedream.spec import Spec
from spikedream.types import Transition

# What an episode's seed is for; the streams of one run never meet.
LEARN, EVALUATE, CONFIRM, REPORT, EXPLORE = range(5)


class Position(NamedTuple):
    """Where a run stands inside an episode; replaying it restores a deterministic environment."""

    episode: int  # index of the current episode; of a single environment also the number of finished ones
    actions: list[np.ndarray]  # encoded actions since the reset, each (action_size,)
    obs: np.ndarray | None  # the observation that they led to; None between episodes


def episode_seed(run_seed: int, stream: int, *index: int) -> int:
    """A seed for `Env.reset`, independent between runs, streams and episodes."""
    return int(np.random.SeedSequence([run_seed, stream, len(index), *index]).generate_state(1)[0] >> 1)


class HostEnvironments:
    """Environments of one id side by side, of which the i-th plays the episodes i, i + count, i + 2 count ...

    Args:
        env_id: a Gymnasium id, also as `module:Id-v0`.
        kwargs: passed to `gymnasium.make`.
        max_episode_steps: time limit in place of the registered one.
        seed: of the run; each episode's own seed follows from it.
        count: how many; at least 1.
        workers: play them in processes of their own, as many as there are processors. The numbers are the same; it pays where
            processors are idle and a step of all environments takes more than a millisecond or two.
        threads: step each in a thread of its own, see `Players`; not together with `workers`.
        action_repeat: own steps for which an action is held, or until the episode ends; its rewards are added up.
        pace: of the wall clock on which they advance, see `RealTime`; None: as fast as they are asked to.

    Attributes:
        spec: sizes of the flat spaces.
        positions: where each environment stands.
        obs: (count, obs_size) the present observations; anything where an environment is between episodes.

    Raises:
        BrokenEnvironment: here and in every method, where the environment cannot be used or fails. Workers are gone then.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any],
        max_episode_steps: int | None,
        seed: int,
        count: int = 1,
        workers: bool = False,
        action_repeat: int = 1,
        pace: Pace | None = None,
        threads: bool = False,
    ):
        if workers and threads:
            raise ValueError("environments are played in processes of their own or in threads, not both")
        if count < 1 or action_repeat < 1:
            raise ValueError(f"count and action_repeat are {count} and {action_repeat}; they must be at least 1")
        self.env_id, self.seed, self.count = env_id, seed, count
        group = Workers if workers else partial(Players, threads=threads)
        self._group: Group = group(env_id, kwargs, max_episode_steps, action_repeat, count, pace)
        self.spec: Spec = self._group.spec
        self.positions = [Position(i, [], None) for i in range(count)]
        self.obs = np.zeros((count, self.spec.obs_size), np.float32)

    def begin(self) -> np.ndarray:
        """Start the episode of every environment that is between two; (count,) bool says which."""
        fresh = np.array([position.obs is None for position in self.positions])
        if fresh.any():
            seeds = {i: self._seed(self.positions[i].episode) for i in np.flatnonzero(fresh).tolist()}
            self.obs = self.obs.copy()  # the old one belongs to the last transition
            for i, obs in self._group.reset(seeds).items():
                self.obs[i] = obs
                self.positions[i] = Position(self.positions[i].episode, [], self.obs[i])
        return fresh

    def _seed(self, episode: int) -> int:
        return episode_seed(self.seed, LEARN, episode)

    def step(self, actions: np.ndarray, log_prob: np.ndarray) -> tuple[Transition, int]:
        """Take an encoded action in every environment, none of which may be between episodes.

        Args:
            actions: (count, action_size).
            log_prob: (count,) log-density with which each was chosen.

        Returns:
            The transitions, leaves (count, ...) float32 in the environments' own units; and how many own steps were taken in all.
        """
        assert all(position.obs is not None for position in self.positions), "step() before begin()"
        before, actions = self.obs, np.array(actions, np.float32)  # a copy: the history must not change with the caller's array
        after = self._group.step(decode_actions(self.spec, actions))
        ended = after.terminated | after.truncated
        for i, (episode, history, _) in enumerate(self.positions):
            if ended[i]:
                self.positions[i] = Position(episode + self.count, [], None)
            else:
                history.append(actions[i])  # in place: a copy each step would make long episodes quadratic
                self.positions[i] = Position(episode, history, after.obs[i])
        self.obs = after.obs
        fields = (before, actions, after.reward, after.obs, after.terminated, after.truncated, log_prob)
        return Transition(*(cast(Any, np.asarray(x, np.float32)) for x in fields)), int(after.taken.sum())

    def restore(self, positions: Sequence[Position]) -> np.ndarray:
        """Go back to the `positions`, one for each environment, by replaying their actions. Where the environment is not
        deterministic, that leads elsewhere: then its next episode is begun instead, and the answer, (count,) bool, is False."""
        if len(positions) != self.count:
            raise ValueError(f"{len(positions)} positions cannot be those of {self.count} environments")
        under_way = {i: position for i, position in enumerate(positions) if position.obs is not None}
        reached = self._group.replay({i: (self._seed(p.episode), self._decoded(p.actions)) for i, p in under_way.items()})
        self.positions = [Position(position.episode, [], None) for position in positions]
        self.obs, same = np.zeros_like(self.obs), np.ones(self.count, bool)
        for i, (episode, actions, obs) in under_way.items():
            there = reached[i]
            same[i] = there is not None and np.array_equal(there, np.asarray(obs))
            if same[i]:
                self.obs[i] = there
                self.positions[i] = Position(episode, list(actions), self.obs[i])
            else:
                self.positions[i] = Position(episode + self.count, [], None)
        return same

    def take_timing(self) -> Timing:
        """How well real time was kept since the last call."""
        return self._group.take_timing()

    def _decoded(self, actions: Sequence[np.ndarray]) -> np.ndarray:
        return decode_actions(self.spec, np.asarray(actions, np.float32).reshape(-1, self.spec.action_size))

    def close(self) -> None:
        self._group.close()
