"""Between an environment's own spaces and what a learner sees: flat observations, and one choice or a vector in [-1, 1] to act."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim, flatten

from spikedream.spec import Spec

LARGEST_GRID = 128  # entries of an observed Box of several dimensions; what has more is an image
MOST_CHOICES = 512  # combinations of a MultiDiscrete action


class BrokenEnvironment(Exception):
    """The environment cannot be used, or failed while it was used; the message says why and what would be right."""


@dataclass(frozen=True)
class Translation:
    """Between an environment's own spaces and flat ones.

    Attributes:
        spec: sizes of the flat ones.
        observation: an observation of its own, to numbers of shape (obs_size,) if it is as its space says.
        action: a choice, () int, or (action_size,) floats within the bounds, to an action of its own.
        plain: whether both leave everything as it is.
    """

    spec: Spec
    observation: Callable[[Any], Any]
    action: Callable[[Any], Any]
    plain: bool


class FlatSpaces(gymnasium.Wrapper):
    """An environment behind its `Translation`: observes a flat Box, takes a Discrete that counts from 0 or a flat Box."""

    def __init__(self, env: gymnasium.Env, translation: Translation):
        super().__init__(env)
        self._translation, spec = translation, translation.spec
        self.observation_space = Box(-np.inf, np.inf, (spec.obs_size,), np.float32)
        self.action_space = (
            Discrete(spec.action_size)
            if spec.discrete
            else Box(np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32), dtype=np.float32)
        )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return np.asarray(self._translation.observation(obs), np.float32), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(self._translation.action(action))
        return np.asarray(self._translation.observation(obs), np.float32), reward, terminated, truncated, info


def translate(env_id: str, observed: gymnasium.Space, taken: gymnasium.Space) -> Translation:
    """For an environment with these spaces; raises `BrokenEnvironment` where they have no flat form of a reasonable size."""
    size, observation = _observation(env_id, observed)
    kind = next((kind for space, kind in _ACTIONS.items() if isinstance(taken, space)), None)
    if kind is None:
        raise BrokenEnvironment(
            f"{env_id} takes actions {told(taken)}; supported are Discrete, MultiDiscrete, MultiBinary and bounded Box actions"
        )
    spec, action = kind(env_id, size, taken)
    return Translation(spec, observation or _same, action or _same, observation is None and action is None)


def told(space: gymnasium.Space) -> str:
    """On one line."""
    return " ".join(str(space).split())


def _same(value: Any) -> Any:
    return value


# ---- observations


def _observation(env_id: str, space: gymnasium.Space) -> tuple[int, Callable[[Any], Any] | None]:
    """Numbers in a flat observation, and how it is made; None where it already is flat."""
    for leaf in _leaves(space):
        image = isinstance(leaf, Box) and len(leaf.shape) > 1 and math.prod(leaf.shape) > LARGEST_GRID
        if image or not isinstance(leaf, Box | Discrete | MultiBinary | MultiDiscrete):
            what = f"{told(leaf)}, an image" if image else told(leaf)
            raise BrokenEnvironment(
                f"{env_id} observes {what}; supported are flat Box observations, others of up to {LARGEST_GRID} entries, Discrete,"
                " MultiBinary, MultiDiscrete, and Dict and Tuple of them: a wrapper can reduce what is observed to such numbers"
            )
    if isinstance(space, Box) and len(space.shape) == 1:
        return space.shape[0], None
    size = flatdim(space)
    if not size:
        raise BrokenEnvironment(f"{env_id} observes {told(space)}, which holds no number")
    if isinstance(space, Box | MultiBinary):
        shape = space.shape

        def unrolled(obs: Any) -> np.ndarray:
            obs = np.asarray(obs)
            return obs.reshape(-1) if obs.shape == shape else obs  # which is refused as it is

        return size, unrolled

    def flattened(obs: Any) -> Any:
        try:
            return flatten(space, obs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            wrong = " ".join(repr(obs).split())
            raise BrokenEnvironment(f"{env_id} has no such observation: {wrong}; its space is {told(space)}") from error

    return size, flattened


def _leaves(space: gymnasium.Space) -> Iterator[gymnasium.Space]:
    if isinstance(space, Dict | Tuple):
        for part in space.spaces.values() if isinstance(space, Dict) else space.spaces:
            yield from _leaves(part)
    else:
        yield space


# ---- actions


def _discrete(env_id: str, obs_size: int, space: Discrete) -> tuple[Spec, Callable[[Any], Any] | None]:
    start = space.start
    return Spec(obs_size, int(space.n), discrete=True), (lambda choice: start + choice) if start else None


def _several(env_id: str, obs_size: int, space: MultiDiscrete | MultiBinary) -> tuple[Spec, Callable[[Any], Any]]:
    """Every combination is one choice."""
    many = isinstance(space, MultiDiscrete)
    sizes = [int(n) for n in space.nvec.reshape(-1)] if many else [2] * math.prod(space.shape)
    combinations = math.prod(sizes)
    if combinations > MOST_CHOICES:
        raise BrokenEnvironment(
            f"{env_id} takes actions {told(space)}: {combinations} combinations, and supported are up to {MOST_CHOICES}, of which"
            " each is one choice; a wrapper can offer fewer"
        )
    table = np.stack(np.unravel_index(np.arange(combinations), sizes), axis=1).reshape(combinations, *space.shape)
    table = (table + space.start if many else table).astype(space.dtype)
    return Spec(obs_size, combinations, discrete=True), lambda choice: table[choice].copy()


def _box(env_id: str, obs_size: int, space: Box) -> tuple[Spec, Callable[[Any], Any] | None]:
    if not np.all(np.isfinite(space.low)) or not np.all(np.isfinite(space.high)):
        raise BrokenEnvironment(f"{env_id} has unbounded actions {told(space)}; supported are bounded Box actions")
    low, high = (tuple(float(x) for x in bound.reshape(-1)) for bound in (space.low, space.high))
    spec, shape = Spec(obs_size, len(low), discrete=False, action_low=low, action_high=high), space.shape
    return spec, None if len(shape) == 1 else lambda action: np.reshape(action, shape)


_ACTIONS: dict[type[gymnasium.Space], Callable[..., tuple[Spec, Callable[[Any], Any] | None]]] = {
    Discrete: _discrete,
    MultiDiscrete: _several,
    MultiBinary: _several,
    Box: _box,
}


def decode_actions(spec: Spec, actions: np.ndarray) -> np.ndarray:
    """Encoded actions (batch, action_size) to those of the flat spaces: (batch,) integers or (batch, action_size) floats."""
    if spec.discrete:
        return actions.argmax(axis=1)
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    return np.minimum(np.maximum(low + (actions + 1) / 2 * (high - low), low), high)  # np.clip takes three times as long


def idle_action(space: gymnasium.Space) -> Any:
    """To do nothing, in an environment's own space, as far as that says what nothing is: 0, or the nearest that there is."""
    if isinstance(space, Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    return space.start if isinstance(space, Discrete | MultiDiscrete) else np.zeros(space.shape or (), np.int8)


def random_action(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Uniform over the action space, encoded: (action_size,)."""
    if spec.discrete:
        return np.eye(spec.action_size, dtype=np.float32)[rng.integers(spec.action_size)]
    return rng.uniform(-1, 1, spec.action_size).astype(np.float32)


def random_log_prob(spec: Spec) -> float:
    """Log-density of every `random_action`."""
    return -spec.action_size * math.log(2) if not spec.discrete else -math.log(spec.action_size)
