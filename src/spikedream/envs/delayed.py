"""Latency between an environment and who acts in it, simulated in whole steps."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.spaces import Tuple

from spikedream.envs.spaces import idle_action

SETTINGS = ("observation_delay", "action_delay", "pending_actions")  # among the keyword arguments of any environment


class Delayed(gymnasium.Wrapper):
    """Observations come, and actions take effect, some steps late. Rewards and ends are told at once, as of what happened.

    Until the first action arrives the environment is given `idle_action`, and the first observation is seen until the next arrives.

    Args:
        env: of any spaces.
        observation_delay: steps by which what is observed is old; at least 0.
        action_delay: steps after which an action takes effect; at least 0.
        pending_actions: observe a tuple: the environment's observation, and then the `observation_delay + action_delay` newest
            actions, oldest first, which it does not show yet. Together they make the task one without hidden states again
            (Katsikopoulos and Engelbrecht 2003).

    Raises:
        ValueError: a delay is negative or no whole number.
    """

    def __init__(self, env: gymnasium.Env, observation_delay: int = 0, action_delay: int = 0, pending_actions: bool = False):
        super().__init__(env)
        for name, value in (("observation_delay", observation_delay), ("action_delay", action_delay)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of steps, at least 0")
        self._pending, self._action_delay = pending_actions, action_delay
        self._seen: deque[Any] = deque(maxlen=observation_delay + 1)
        self._chosen: deque[Any] = deque(maxlen=observation_delay + action_delay)
        if pending_actions:
            self.observation_space = Tuple((env.observation_space, *[env.action_space] * (self._chosen.maxlen or 0)))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._seen.extend([obs] * (self._seen.maxlen or 0))
        self._chosen.extend([idle_action(self.env.action_space)] * (self._chosen.maxlen or 0))
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        takes_effect = self._chosen[-self._action_delay] if self._action_delay else action
        self._chosen.append(action)
        obs, reward, terminated, truncated, info = self.env.step(takes_effect)
        self._seen.append(obs)
        return self._observation(), reward, terminated, truncated, info

    def _observation(self) -> Any:
        return (self._seen[0], *self._chosen) if self._pending else self._seen[0]


def split(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of an environment: those of its own, and those of `Delayed`."""
    own = {name: value for name, value in kwargs.items() if name not in SETTINGS}
    return own, {name: value for name, value in kwargs.items() if name in SETTINGS}
