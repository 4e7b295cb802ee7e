"""The cart-pole of the Institute of Neuroinformatics, Zürich, as Gymnasium environments: `INICartPole-v0`, which balances, and
`INICartPoleSwingUp-v0`. The physics are those of `spikedream.dynamics.ini_cartpole`."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from spikedream.dynamics.ini_cartpole import (
    BALANCING_STARTS,
    SENSOR_NOISE,
    SWING_UP_STARTS,
    CartPole,
    Motion,
    balanced,
    check_physics,
    observed,
    swing_up_reward,
    wrapped,
)  # fmt: skip

SUCCESS = 5.0  # s before the end of an episode during which the pole must stand
RANDOM_PHYSICS = {"length": (0.2, 0.5), "pole_mass": (0.015, 0.15)}  # the source's ranges


class INICartPoleEnv(gymnasium.Env):
    """Observes (position m, cos, sin, velocity m/s, angular velocity rad/s); takes the motor's drive in [-1, 1]. A step is 20 ms.

    Balancing pays 1 a step and ends where the pole leans by 12 degrees or the cart reaches an end of the track. The swing-up starts
    anywhere, pays `swing_up_reward`, and never ends by itself: the cart bounces off the ends. `info` holds `angle` (rad), `bounced`
    (off an end in this step) and `is_success`: whether the pole has stood, and the cart not bounced, throughout the last 5 s.

    Args:
        swing_up: or balance.
        physics: fields of `CartPole` in place of the published values; a pair of numbers is drawn from uniformly in each episode.
        random_physics: draw the pole's length and mass from the source's ranges.
        noise: of the sensors, in multiples of the source's standard deviations, which are 0.5 mm, 5 mm/s and 0.075 rad/s.
        render_mode: "human", "rgb_array" or None.

    Raises:
        ValueError: a field of `physics` is unknown, its value out of bounds, or a range no range; `noise` is negative.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 50}

    def __init__(
        self,
        swing_up: bool = False,
        physics: Mapping[str, Any] | None = None,
        random_physics: bool = False,
        noise: float = 0.0,
        render_mode: str | None = None,
    ):
        check_physics(physics or {})
        self._ranges: dict[str, Any] = (RANDOM_PHYSICS if random_physics else {}) | dict(physics or {})
        if noise < 0:
            raise ValueError(f"noise is {noise}; it must be at least 0")
        self.swing_up, self.noise, self.render_mode = swing_up, noise, render_mode
        self.cartpole, self.motion, self.drive = CartPole(), Motion(0.0, 0.0, 0.0, 0.0), 0.0
        self._stood = 0  # ticks in a row
        self._canvas = None
        self.observation_space = Box(-np.inf, np.inf, (5,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """`options={"motion": (angle, angular velocity, position, velocity)}` starts there."""
        super().reset(seed=seed)
        draw: Any = self.np_random.uniform
        chosen: dict[str, Any] = {name: float(draw(*x)) if isinstance(x, list | tuple) else x for name, x in self._ranges.items()}
        self.cartpole = CartPole(**chosen)
        half = self.cartpole.half_track
        widths = np.multiply(SWING_UP_STARTS, (1, 1, half, half)) if self.swing_up else np.full(4, BALANCING_STARTS)
        start = (float(x) for x in draw(-widths, widths))
        self.motion = Motion(*(start if options is None else (float(x) for x in options["motion"])))
        self.motion = self.motion._replace(angle=wrapped(self.motion.angle))
        self.drive, self._stood = 0.0, 0
        self._show()
        return self._observation(), self._info(False)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.drive = min(max(float(np.asarray(action).reshape(())), -1.0), 1.0)
        self.motion, bounced = self.cartpole.step(math, self.motion, self.drive)
        upright = bool(balanced(self.cartpole, self.motion))
        self._stood = self._stood + 1 if upright and not bounced else 0
        reward = swing_up_reward(self.cartpole, math, self.motion, self.drive) if self.swing_up else 1.0
        self._show()
        fallen = not self.swing_up and (bool(bounced) or not upright)
        return self._observation(), reward, fallen, False, self._info(bool(bounced))

    def _observation(self) -> np.ndarray:
        motion = self.motion
        if self.noise:
            drawn = self.np_random.normal(size=4).tolist()
            motion = Motion(*(x + self.noise * s * n for x, s, n in zip(motion, SENSOR_NOISE, drawn, strict=True)))
        return np.array(observed(math, motion), np.float32)

    def _info(self, bounced: bool) -> dict[str, Any]:
        stood = self._stood >= round(SUCCESS / self.cartpole.tick)
        return {"angle": self.motion.angle, "bounced": bounced, "is_success": stood}

    # ---- drawing

    def render(self) -> np.ndarray | None:
        return self._drawn().pixels() if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self.render_mode == "human":
            self._drawn().show(self.metadata["render_fps"])

    def _drawn(self) -> Any:
        from spikedream.envs.cartpole_canvas import Canvas  # pygame takes a while to import, and most never draw

        if self._canvas is None:
            self._canvas = Canvas(window=self.render_mode == "human")
        self._canvas.draw(self.cartpole, self.motion, self.drive)
        return self._canvas

    def close(self) -> None:
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None


def register() -> None:
    """Make the ids above known to Gymnasium; importing spikedream does it."""
    for name, swing_up, steps, threshold in (("INICartPole-v0", False, 500, 475.0), ("INICartPoleSwingUp-v0", True, 1000, None)):
        if name not in gymnasium.registry:
            kwargs = {"swing_up": swing_up}
            entry = f"{__name__}:{INICartPoleEnv.__name__}"
            gymnasium.register(name, entry, max_episode_steps=steps, reward_threshold=threshold, kwargs=kwargs)
