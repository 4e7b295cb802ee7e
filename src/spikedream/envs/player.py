"""Environments that are played by their flat actions, one after the other in one process."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from gymnasium.spaces import Box, Discrete

from spikedream.envs.make import endless, longest_episode, make_environment, translation_of
from spikedream.envs.real_time import KEEPS_TIME, Pace, RealTime, Timed, Timing, together
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.spec import Spec


class Step(NamedTuple):
    """What followed an action, in the environment's own units; of a group of environments each field has a leading axis."""

    obs: np.ndarray  # (obs_size,)
    reward: Any  # () summed over the repetitions
    terminated: Any  # () bool
    truncated: Any  # () bool
    taken: Any  # () int, the environment's own steps


class Group(Protocol):
    """Environments with the same flat spaces, numbered from 0. Every method may raise `BrokenEnvironment`."""

    @property
    def spec(self) -> Spec: ...
    def reset(self, seeds: Mapping[int, int]) -> dict[int, np.ndarray]:
        """The first observation of each environment that gets a seed."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """One flat action for each environment, (count,) integers or (count, action_size) floats."""
        ...

    def replay(self, episodes: Mapping[int, tuple[int, np.ndarray]]) -> dict[int, np.ndarray | None]:
        """Where a seed and the flat actions after the reset lead; None where the episode ends on the way, or with the last, and in
        real time, which cannot be had again."""
        ...

    def take_timing(self) -> Timing:
        """Of all environments, since the last call."""
        ...

    def close(self) -> None: ...


class Player:
    """One environment.

    Args:
        env_id, kwargs, max_episode_steps: as in `make_own`.
        action_repeat: own steps for which an action is held, or until the episode ends.
        pace: of the wall clock on which it advances, if it does not keep time itself; None: as fast as it goes.

    Attributes:
        observation_space, action_space: the flat ones.
        spec: their sizes.

    Raises:
        BrokenEnvironment: it cannot be made or used.
    """

    def __init__(
        self, env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None, action_repeat: int, pace: Pace | None = None
    ):
        env = make_environment(env_id, kwargs, max_episode_steps)
        self.observation_space, self.action_space = cast(Box, env.observation_space), cast(Box | Discrete, env.action_space)
        self._env, self._id, self._repeat = env, env_id, action_repeat
        self._timed: Timed | None = None
        if pace is not None and env.metadata.get(KEEPS_TIME):
            self._timed = cast(Timed, env.unwrapped)
        elif pace is not None:
            self._env = self._timed = RealTime(env, pace, action_repeat)
            self._repeat = 1
        self._longest, self._length = longest_episode(env_id, max_episode_steps), 0
        self.spec = translation_of(env_id, self._env).spec

    def _call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._env, what)(*args, **kwargs)
        except BrokenEnvironment:
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise BrokenEnvironment(f"{self._id} raised {type(error).__name__} in {what}(): {text}") from error

    def _checked(self, obs: Any) -> np.ndarray:
        obs = np.asarray(obs, np.float32)
        if obs.shape != (self.spec.obs_size,):
            raise BrokenEnvironment(
                f"{self._id} returned an observation of shape {obs.shape}; its space says ({self.spec.obs_size},)"
            )
        if not np.isfinite(obs).all():
            raise BrokenEnvironment(f"{self._id} returned an observation that is not finite: {obs.tolist()}")
        return obs

    def reset(self, seed: int) -> np.ndarray:
        self._length = 0
        return self._checked(self._call("reset", seed=seed)[0])

    def step(self, action: Any) -> Step:
        total, taken, ticks = 0.0, 0, 0
        while True:
            obs, reward, terminated, truncated, info = self._call("step", action)
            obs, reward = self._checked(obs), float(reward)
            if not math.isfinite(reward):
                raise BrokenEnvironment(f"{self._id} returned a reward that is not finite: {reward}")
            total, taken, ticks = total + reward, taken + 1, ticks + info.get("ticks", 1)
            if terminated or truncated or taken == self._repeat:
                break
        self._length += ticks
        if self._length >= self._longest and not (terminated or truncated):
            raise endless(self._id)
        return Step(obs, total, bool(terminated), bool(truncated), ticks)

    def take_timing(self) -> Timing:
        return Timing() if self._timed is None else self._timed.take_timing()

    def replay(self, seed: int, actions: np.ndarray) -> np.ndarray | None:
        if self._timed is not None:
            return None
        obs = self.reset(seed)
        for action in actions:
            obs, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return obs

    def close(self) -> None:
        self._env.close()


class Players:
    """A group in this process.

    Args:
        env_id, kwargs, max_episode_steps, action_repeat, pace: as in `Player`.
        count: how many.
        threads: step each in a thread of its own. The numbers are the same; it pays where a step waits for something else than
            this interpreter, such as a clock, a device or another process.

    Raises:
        BrokenEnvironment: they cannot be made or used, or differ in their spaces.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any],
        max_episode_steps: int | None,
        action_repeat: int,
        count: int,
        pace: Pace | None = None,
        threads: bool = False,
    ):
        self._players: list[Player] = []
        self._pool = ThreadPoolExecutor(count) if threads else None
        self._map = map if self._pool is None else self._pool.map
        try:
            for _ in range(count):
                self._players.append(Player(env_id, kwargs, max_episode_steps, action_repeat, pace))
            self.spec = same_spec(env_id, [player.spec for player in self._players])
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Mapping[int, int]) -> dict[int, np.ndarray]:
        return {i: self._players[i].reset(seed) for i, seed in seeds.items()}

    def step(self, actions: np.ndarray) -> Step:
        steps = list(self._map(Player.step, self._players, actions))
        return Step(*(np.array(field) for field in zip(*steps, strict=True)))

    def replay(self, episodes: Mapping[int, tuple[int, np.ndarray]]) -> dict[int, np.ndarray | None]:
        return {i: self._players[i].replay(*episode) for i, episode in episodes.items()}

    def take_timing(self) -> Timing:
        return together(player.take_timing() for player in self._players)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for player in self._players:
            player.close()


def same_spec(env_id: str, specs: Sequence[Spec]) -> Spec:
    """That of all; raises `BrokenEnvironment` where they differ."""
    for i, spec in enumerate(specs):
        if spec != specs[0]:
            raise BrokenEnvironment(
                f"{env_id} makes environments of different spaces, which cannot be played side by side: number {i} has {spec},"
                f" number 0 has {specs[0]}"
            )
    return specs[0]
