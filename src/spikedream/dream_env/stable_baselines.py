"""A fitted world model as a Stable-Baselines3 `VecEnv`. Only for those who have Stable-Baselines3: it is imported here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv  # pyright: ignore[reportMissingImports] - an extra

from spikedream.dream_env.vector import DreamVecEnv


class StableBaselinesDreams(VecEnv):
    """The dreams of a `DreamVecEnv` that begins anew in the same step. A dream that is truncated has `TimeLimit.truncated` in its
    info, so that an agent's values go on behind it; `terminal_observation` is where an ended one led."""

    def __init__(self, dreams: DreamVecEnv):
        self.gymnasium, self._actions = dreams, None
        super().__init__(dreams.num_envs, dreams.single_observation_space, dreams.single_action_space)

    def reset(self) -> np.ndarray:
        given = [seed for seed in self._seeds if seed is not None]
        self._reset_seeds()
        self._reset_options()
        obs, _ = self.gymnasium.reset(seed=given[0] if given else None)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, reward, terminated, truncated, told = self.gymnasium.step(self._actions)
        doubts, imagined = told["uncertainty"].tolist(), told["imagined"].tolist()
        infos: list[dict[str, Any]] = [{"uncertainty": d, "imagined": i} for d, i in zip(doubts, imagined, strict=True)]
        over = terminated | truncated
        for i in np.flatnonzero(over):
            infos[i] |= {"terminal_observation": told["final_obs"][i], "TimeLimit.truncated": bool(truncated[i])}
        return obs, reward, over, infos

    def close(self) -> None:
        self.gymnasium.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.gymnasium, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"dreams have no attribute of their own: {attr_name} cannot be set")

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **settings: Any) -> list[Any]:
        raise AttributeError(f"dreams have no method of their own: no {method_name}")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
