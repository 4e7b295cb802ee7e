"""Environments that misbehave, or that are not what spikedream supports; ids as `environments:Name-v0`."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Walk(gymnasium.Env):
    """A point on a line: two numbers observed, two actions, ends beyond +-1. `trouble` names what goes wrong after 30 steps."""

    def __init__(self, trouble: str = "", noise: bool = False):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space: gymnasium.Space = Discrete(2)
        self.trouble, self.noise, self.steps = trouble, noise, 0
        self.x = 0.0

    def _obs(self) -> np.ndarray:
        jitter = np.random.default_rng().normal() if self.noise else 0.0  # not from the seeded generator
        return np.array([self.x, 0.1 * jitter], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.1, 0.1))
        return self._obs(), {}

    def step(self, action: Any):
        self.steps += 1
        self.x += 0.2 if action else -0.2
        obs, reward = self._obs(), 1.0
        if self.steps > 30:
            if self.trouble == "raises":
                raise RuntimeError("the motor is on fire")
            if self.trouble == "nan observation":
                obs = np.full(2, np.nan, np.float32)
            if self.trouble == "nan reward":
                reward = float("nan")
            if self.trouble == "wrong shape":
                obs = np.zeros(3, np.float32)
        return obs, reward, abs(self.x) > 1, False, {}


class WithSpaces(Walk):
    def __init__(self, observation: gymnasium.Space | None = None, action: gymnasium.Space | None = None):
        super().__init__()
        self.observation_space = observation or self.observation_space
        self.action_space = action or self.action_space


def _register(name: str, entry_point: Any, **kwargs: Any) -> None:
    gymnasium.register(f"{name}-v0", entry_point, max_episode_steps=kwargs.pop("limit", 50), kwargs=kwargs)


_register("Walk", Walk)
_register("Raises", Walk, trouble="raises")
_register("NanObservation", Walk, trouble="nan observation")
_register("NanReward", Walk, trouble="nan reward")
_register("WrongShape", Walk, trouble="wrong shape")
_register("Unseeded", Walk, noise=True)
_register("Endless", Walk, limit=None)
_register("Images", WithSpaces, observation=Box(0, 255, (8, 8, 3), np.uint8))
_register("DictObservation", WithSpaces, observation=Dict({"x": Discrete(2)}))
_register("ManyActions", WithSpaces, action=MultiDiscrete([2, 2]))
_register("Unbounded", WithSpaces, action=Box(-np.inf, np.inf, (1,), np.float32))
