"""Cart-pole and pendulum whose velocities cannot be observed: partially observed tasks that need a memory.

Registered with Gymnasium as `CartPoleHiddenVelocity-v0` and `PendulumHiddenVelocity-v0`.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class HiddenVelocity(gymnasium.ObservationWrapper):
    """Leaves entries out of a flat observation.

    Args:
        env: with flat Box observations.
        hidden: indices of the entries that are left out.

    Raises:
        ValueError: where nothing would be left, or an index does not exist.
    """

    def __init__(self, env: gymnasium.Env, hidden: tuple[int, ...]):
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box) and len(space.shape) == 1, "only flat Box observations have entries to hide"
        wrong = [i for i in hidden if not 0 <= i < space.shape[0]]
        if wrong or len(set(hidden)) >= space.shape[0]:
            raise ValueError(f"cannot hide the entries {list(hidden)} of an observation of {space.shape[0]} numbers")
        self._shown = np.array([i for i in range(space.shape[0]) if i not in hidden])
        self.observation_space = Box(space.low[self._shown], space.high[self._shown], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self._shown]


def make(base: str, hidden: tuple[int, ...], **kwargs: Any) -> gymnasium.Env:
    """`base` without the entries `hidden`; its time limit is that of the registered environment."""
    return HiddenVelocity(gymnasium.make(base, max_episode_steps=-1, disable_env_checker=True, **kwargs), hidden)


def register() -> None:
    """Make the ids above known to Gymnasium; importing spikedream does it."""
    entry, cartpole, pendulum = f"{__name__}:make", {"base": "CartPole-v1"}, {"base": "Pendulum-v1"}
    for name, base, hidden, steps, threshold in (
        ("CartPoleHiddenVelocity-v0", cartpole, (1, 3), 500, 475.0),
        ("PendulumHiddenVelocity-v0", pendulum, (2,), 200, None),
    ):
        if name not in gymnasium.registry:
            gymnasium.register(name, entry, max_episode_steps=steps, reward_threshold=threshold, kwargs=base | {"hidden": hidden})
