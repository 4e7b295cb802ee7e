"""Environments that misbehave, or that are not what spikedream supports; ids as `environments:Name-v0`."""

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple


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


class Structured(Walk):
    """As `Walk`, observed in parts that are not flat; a step's reward tells which action, an array, arrived."""

    def __init__(self, action: gymnasium.Space | None = None):
        super().__init__()
        grid, flags = Box(-np.inf, np.inf, (2, 2), np.float64), Tuple((MultiBinary(2), MultiDiscrete([2, 3])))
        self.observation_space = Dict({"grid": grid, "kind": Discrete(3, start=5), "flags": flags})
        self.action_space = action or MultiDiscrete([2, 3], start=[0, 4])

    def _obs(self) -> Any:
        grid = np.array([[self.x, 2.0], [3.0, 4.0]])
        return {"kind": 6 + (self.x > 0), "flags": (np.array([0, 1], np.int8), np.array([1, 2])), "grid": grid}  # in another order

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        obs, _, terminated, truncated, info = super().step(np.sum(action) % 2)
        return obs, float(np.dot([100, 10, 1][-np.size(action) :], np.ravel(action))), terminated, truncated, info


class SelfTruncating(Walk):
    """Ends itself after `length` steps, or never where that is 0; each is worth as much as its number, 1, 2, 3 ..."""

    def __init__(self, length: int = 7, terminates: bool = False):
        super().__init__()
        self.length, self.terminates, self.here = length, terminates, 0

    def reset(self, **kwargs: Any):
        self.here = 0
        return super().reset(**kwargs)

    def step(self, action: Any):
        self.here += 1
        self.x += 0.01 if action else -0.01
        over = self.here == self.length
        return self._obs(), float(self.here), over and self.terminates, over and not self.terminates, {}


class Fickle(Walk):
    """Observes two numbers in the environment that first claims the file, three in all others, in whatever process."""

    def __init__(self, claim: str):
        super().__init__()
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self.observation_space = Box(-np.inf, np.inf, (3,), np.float32)


class Exits(Walk):
    """Ends its whole process in the third step."""

    def step(self, action: Any):
        if self.steps == 2:
            os._exit(3)
        return super().step(action)


class Deaf(Walk):
    """Wanders by itself, whatever it is told."""

    def step(self, action: Any):
        return super().step(self.np_random.integers(2))


class Tide(Walk):
    """Comes and goes in 200 steps, whatever it is told."""

    def _obs(self) -> np.ndarray:
        phase = 2 * np.pi * self.steps / 200
        return np.array([np.sin(phase), np.cos(phase)], np.float32) + 0.002 * self.np_random.normal(size=2).astype(np.float32)

    def step(self, action: Any):
        self.steps += 1
        obs = self._obs()
        return obs, float(obs[0]), False, self.steps % 150 == 0, {}


class Waits(Walk):
    """Each step takes `seconds`, the one after `hangs_after` of them `hangs` seconds; the fifth takes an hour in the first
    environment that claims the file `once`, if one is named."""

    def __init__(self, seconds: float = 0.0, once: str = "", hangs_after: int | None = None, hangs: float = 3600.0):
        super().__init__()
        self.seconds, self.once, self.hangs_after, self.hangs = seconds, once, hangs_after, hangs

    def step(self, action: Any):
        time.sleep(self.hangs if self.steps == self.hangs_after else self.seconds)
        if self.once and self.steps == 5:
            try:
                os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
                time.sleep(3600)
            except FileExistsError:
                pass
        return super().step(action)


def _register(name: str, entry_point: Any, **kwargs: Any) -> None:
    gymnasium.register(f"{name}-v0", entry_point, max_episode_steps=kwargs.pop("limit", 50), kwargs=kwargs)


_register("Walk", Walk)
_register("Raises", Walk, trouble="raises")
_register("NanObservation", Walk, trouble="nan observation")
_register("NanReward", Walk, trouble="nan reward")
_register("WrongShape", Walk, trouble="wrong shape")
_register("Unseeded", Walk, noise=True)
_register("Images", WithSpaces, observation=Box(0, 255, (8, 8, 3), np.uint8))
_register("TextObservation", WithSpaces, observation=Dict({"x": Text(5)}))
_register("TooManyActions", WithSpaces, action=MultiDiscrete([30, 30]))
_register("DictActions", WithSpaces, action=Dict({"x": Discrete(2)}))
_register("Structured", Structured)
_register("NotAsSaid", WithSpaces, observation=Dict({"x": Discrete(2)}))
_register("SelfTruncating", SelfTruncating, limit=None)
_register("Fickle", Fickle)
_register("Exits", Exits)
_register("Deaf", Deaf)
_register("Tide", Tide)
_register("Waits", Waits)
_register("Unbounded", WithSpaces, action=Box(-np.inf, np.inf, (1,), np.float32))
