"""Gymnasium environments as the learner sees them: flat observations, encoded actions, every episode under a known seed."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from spikedream.types import Spec, Transition

# What an episode's seed is for; the streams of one run never meet.
LEARN, EVALUATE, CONFIRM, REPORT, EXPLORE = range(5)


class BrokenEnvironment(Exception):
    """The environment cannot be used, or failed while it was used; the message says why and what would be right."""


class Position(NamedTuple):
    """Where a run stands inside an episode; replaying it restores a deterministic environment."""

    episode: int  # index of the current episode, also the number of finished ones when `actions` is empty
    actions: list[np.ndarray]  # encoded actions since the reset, each (action_size,)
    obs: np.ndarray | None  # the observation that they led to; None between episodes


def episode_seed(run_seed: int, stream: int, *index: int) -> int:
    """A seed for `Env.reset`, independent between runs, streams and episodes."""
    return int(np.random.SeedSequence([run_seed, stream, len(index), *index]).generate_state(1)[0] >> 1)


def make_arguments(env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None) -> dict[str, Any]:
    """Arguments for `gymnasium.make` and `make_vec`; raises `BrokenEnvironment` where the id or its time limit is missing."""
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            __import__(module)
        registered = gymnasium.spec(name)
    except ImportError as error:
        raise BrokenEnvironment(f"cannot import the module of environment {env_id!r}: {error}") from error
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(env_id, list(gymnasium.registry), n=3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise BrokenEnvironment(f"no environment {env_id!r} is registered with Gymnasium{hint}") from error
    if max_episode_steps is None and registered.max_episode_steps is None:
        raise BrokenEnvironment(f"{env_id} has no time limit of its own: give one with --max-episode-steps")
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    return {"id": name, **limit, **kwargs}


def reward_threshold(env_id: str) -> float | None:
    """Gymnasium's threshold for the environment to count as solved, if it names one."""
    return gymnasium.spec(env_id.rpartition(":")[2]).reward_threshold


def read_spec(env_id: str, obs_space: gymnasium.Space, action_space: gymnasium.Space) -> Spec:
    """Raises `BrokenEnvironment` unless the spaces are a flat Box and a Discrete or flat bounded Box."""
    if not isinstance(obs_space, Box) or len(obs_space.shape) != 1:
        raise BrokenEnvironment(
            f"{env_id} observes {obs_space}; supported are flat Box observations"
            " (gymnasium.wrappers.FlattenObservation makes others flat)"
        )
    size = obs_space.shape[0]
    if isinstance(action_space, Discrete):
        if action_space.start != 0:
            raise BrokenEnvironment(f"{env_id} numbers its actions from {action_space.start}; supported is from 0")
        return Spec(size, int(action_space.n), discrete=True)
    if isinstance(action_space, Box) and len(action_space.shape) == 1:
        if not np.all(np.isfinite(action_space.low)) or not np.all(np.isfinite(action_space.high)):
            raise BrokenEnvironment(f"{env_id} has unbounded actions {action_space}; supported are bounded Box actions")
        low, high = (tuple(float(x) for x in bound) for bound in (action_space.low, action_space.high))
        return Spec(size, action_space.shape[0], discrete=False, action_low=low, action_high=high)
    raise BrokenEnvironment(f"{env_id} takes actions {action_space}; supported are Discrete and flat bounded Box actions")


def decode_actions(spec: Spec, actions: np.ndarray) -> np.ndarray:
    """Encoded actions (batch, action_size) to the environment's own: (batch,) integers or (batch, action_size) floats."""
    if spec.discrete:
        return actions.argmax(axis=1)
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    return np.clip(low + (actions + 1) / 2 * (high - low), low, high)


def random_action(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Uniform over the action space, encoded: (action_size,)."""
    if spec.discrete:
        return np.eye(spec.action_size, dtype=np.float32)[rng.integers(spec.action_size)]
    return rng.uniform(-1, 1, spec.action_size).astype(np.float32)


def random_log_prob(spec: Spec) -> float:
    """Log-density of every `random_action`."""
    return -spec.action_size * math.log(2) if not spec.discrete else -math.log(spec.action_size)


def check_observation(env_id: str, obs: Any, size: int) -> np.ndarray:
    obs = np.asarray(obs, np.float32)
    if obs.shape != (size,):
        raise BrokenEnvironment(f"{env_id} returned an observation of shape {obs.shape}; its space says ({size},)")
    if not np.isfinite(obs).all():
        raise BrokenEnvironment(f"{env_id} returned an observation that is not finite: {obs.tolist()}")
    return obs


class HostEnvironment:
    """One Gymnasium environment in the learning process.

    Args:
        env_id: a Gymnasium id, also as `module:Id-v0`.
        kwargs: passed to `gymnasium.make`.
        max_episode_steps: time limit in place of the registered one.
        seed: of the run; each episode's own seed follows from it.
    """

    def __init__(self, env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None, seed: int):
        self.env_id, self.seed = env_id, seed
        arguments = make_arguments(env_id, kwargs, max_episode_steps)
        try:
            self._env = gymnasium.make(**arguments, disable_env_checker=True)
        except (TypeError, ImportError, gymnasium.error.Error) as error:
            raise BrokenEnvironment(f"{env_id} cannot be made with {dict(kwargs)}: {error}") from error
        self.spec = read_spec(env_id, self._env.observation_space, self._env.action_space)
        self.position = Position(0, [], None)

    def _call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._env, what)(*args, **kwargs)
        except Exception as error:
            raise BrokenEnvironment(f"{self.env_id} raised {type(error).__name__} in {what}(): {error}") from error

    def reset(self) -> np.ndarray:
        """Start the episode that `position` names."""
        obs, _ = self._call("reset", seed=episode_seed(self.seed, LEARN, self.position.episode))
        obs = check_observation(self.env_id, obs, self.spec.obs_size)
        self.position = Position(self.position.episode, [], obs)
        return obs

    def step(self, action: np.ndarray, log_prob: float = 0.0) -> Transition:
        """Take one encoded action, (action_size,), that was chosen with this log-density. Afterwards `position.obs` is None if the
        episode has ended."""
        episode, actions, obs = self.position
        assert obs is not None, "step() before reset()"
        following, reward, terminated, truncated, _ = self._call("step", decode_actions(self.spec, action[None])[0])
        following = check_observation(self.env_id, following, self.spec.obs_size)
        reward = float(reward)
        if not math.isfinite(reward):
            raise BrokenEnvironment(f"{self.env_id} returned a reward that is not finite: {reward}")
        done = bool(terminated or truncated)
        if done:
            self.position = Position(episode + 1, [], None)
        else:
            actions.append(action)  # in place: a copy each step would make long episodes quadratic
            self.position = Position(episode, actions, following)
        fields: tuple[Any, ...] = (obs, action, reward, following, terminated, truncated, log_prob)
        return Transition(*(np.asarray(x, np.float32) for x in fields))  # pyright: ignore[reportArgumentType] - host arrays

    def restore(self, position: Position) -> bool:
        """Go back to `position` by replaying its actions. Where the environment is not deterministic, that leads elsewhere: then
        the next episode is begun instead and the answer is False."""
        self.position = Position(position.episode, [], None)
        if position.obs is None:
            return True
        self.reset()
        for action in position.actions:
            if self.position.obs is None:
                break
            self.step(action)
        if self.position.obs is not None and np.array_equal(self.position.obs, position.obs):
            return True
        self.position = Position(position.episode + 1, [], None)
        return False

    def close(self) -> None:
        self._env.close()
