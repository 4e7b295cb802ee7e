"""A fitted world model as a Gymnasium vector environment."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jax import Array

from spikedream.dream_env.stepped_dreams import DREAMS, Autoreset, DreamStep, Standing, SteppedDreams, encoded
from spikedream.spec import Spec
from spikedream.types import Experience
from spikedream.world import World


@partial(jax.jit, static_argnums=(0, 3))
def _begin(dreams: SteppedDreams, world: World, experience: Experience, count: int, key: Array) -> tuple[Standing, Array]:
    return dreams.begin(world, experience, count, key)


@partial(jax.jit, static_argnums=(0, 1, 6), donate_argnums=4)
def _step(
    dreams: SteppedDreams, spec: Spec, world: World, experience: Experience, standing: Standing, action: Array, autoreset: Autoreset
) -> tuple[Standing, DreamStep]:
    return dreams.step(world, experience, standing, encoded(spec, action), autoreset)


def check_stable_baselines3() -> None:
    """Raises ImportError, with what to do, where Stable-Baselines3 is not installed."""
    if find_spec("stable_baselines3") is None:
        raise ImportError("Stable-Baselines3 is not installed: pip install 'spikedream[sb3]'")


class DreamVecEnv(VectorEnv):
    """`num_envs` dreams, stepped in one compiled call, in the environment's own units and flat spaces.

    They begin at replayed real steps and end as `SteppedDreams` says. Where one ends another begins, by default in the same step
    (`AutoresetMode.SAME_STEP`: `infos["final_obs"]` holds where the ended ones led), or in the next (`NEXT_STEP`).

    `infos` has at every step `uncertainty`, (num_envs,), how little the step's prediction may be trusted, and `imagined`,
    (num_envs,) bool: False where the observation is a real one that was replayed, at the start of a dream.

    Args:
        spec: sizes of the flat spaces.
        world: the world model to dream in.
        experience: where dreams begin; at least one step at the first `reset`.
        count: of dreams.
        dreams: how they begin and end.
        seed: decides everything, together with the actions, until `reset` is given another.
        autoreset_mode: `SAME_STEP` or `NEXT_STEP`.
        remembered: observe what a recurrent world model remembers, too, behind the observation, as spikedream's agents do.

    Raises:
        ValueError: there is no such mode; and in `reset`, nothing has been experienced yet.
    """

    def __init__(
        self,
        spec: Spec,
        world: World,
        experience: Experience,
        count: int,
        dreams: SteppedDreams = DREAMS,
        seed: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        remembered: bool = False,
    ):
        if count < 1:
            raise ValueError(f"an environment of {count} dreams cannot be; at least 1")
        if autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError("dreams that end make way for others: autoreset_mode must be SAME_STEP or NEXT_STEP")
        self.num_envs, self.dreams, self._spec = count, dreams, spec
        self.metadata = {"autoreset_mode": autoreset_mode, "render_modes": []}
        self._autoreset: Autoreset = "SameStep" if autoreset_mode is AutoresetMode.SAME_STEP else "NextStep"
        self._observed = world.model.feature_size(spec) if remembered else spec.obs_size
        self.single_observation_space: gymnasium.Space = Box(-np.inf, np.inf, (self._observed,), np.float32)
        self.single_action_space: gymnasium.Space = (
            Discrete(spec.action_size)
            if spec.discrete
            else Box(np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32), dtype=np.float32)
        )
        self.observation_space = batch_space(self.single_observation_space, count)
        self.action_space = batch_space(self.single_action_space, count)
        self._shape = (count,) if spec.discrete else (count, spec.action_size)
        self._key, self._standing = jax.random.key(seed), None
        self.dream_in(world, experience)

    def dream_in(self, world: World, experience: Experience) -> None:
        """Another world model, or the same one after a fit; the dreams under way are given up."""
        self._world, self._experience, self._standing = world, experience, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """All dreams begin anew; `options` are ignored."""
        if not int(self._experience.size):
            raise ValueError("dreams begin at replayed real steps, and there are none yet")
        if seed is not None:
            self._key = jax.random.key(seed)
        self._key, key = jax.random.split(self._key)
        self._standing, seen = _begin(self.dreams, self._world, self._experience, self.num_envs, key)
        infos = {"uncertainty": np.zeros(self.num_envs, np.float32), "imagined": np.zeros(self.num_envs, bool)}
        return self._flat(seen), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._standing is None:
            raise ValueError("step() before reset()")
        actions = np.asarray(actions)
        if actions.shape != self._shape:
            raise ValueError(f"actions have the shape {actions.shape}; {self.num_envs} dreams need {self._shape}")
        arguments = (self.dreams, self._spec, self._world, self._experience, self._standing, actions, self._autoreset)
        self._standing, stepped = _step(*arguments)
        step = jax.tree.map(np.array, stepped)  # copies, which the caller may change
        infos: dict[str, Any] = {"uncertainty": step.uncertainty, "imagined": step.imagined}
        over = step.terminated | step.truncated
        if self._autoreset == "SameStep" and over.any():
            infos |= {"final_obs": self._flat(step.last), "_final_obs": over}
        return self._flat(step.seen), step.reward, step.terminated, step.truncated, infos

    def stable_baselines3(self) -> Any:
        """The same dreams as a `VecEnv` of Stable-Baselines3.

        Raises:
            ImportError: it is not installed.
            ValueError: dreams that end do not begin anew in the same step.
        """
        check_stable_baselines3()
        from spikedream.dream_env.stable_baselines import StableBaselinesDreams

        if self._autoreset != "SameStep":
            raise ValueError("Stable-Baselines3 needs dreams that begin anew in the same step: autoreset_mode SAME_STEP")
        return StableBaselinesDreams(self)

    def _flat(self, seen: Array | np.ndarray) -> np.ndarray:
        return np.array(seen)[:, : self._observed]
