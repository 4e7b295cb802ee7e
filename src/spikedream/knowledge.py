"""What a user knows of an environment, so that no model has to learn it: its reward and its endings, as functions in JAX."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.spec import Spec
from spikedream.types import Transition

# (observation (obs_size,), action, next observation) -> (), all in the environment's own units
Told = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Knowledge:
    """Functions, written as `module:function`, of one step: the observation (obs_size,), the action as the environment takes it, a
    whole number or (action_size,), and the next observation. They hold in every dream in the world model and for every real step
    that is learned from: a reward in place of the environment's own makes another task of it. The own model of `Dyna` learns a told
    reward from such steps, and is not for a told termination."""

    reward: str | None = None  # -> () the step's reward
    termination: str | None = None  # -> () bool, whether the task ends with the step

    def __bool__(self) -> bool:
        return self.reward is not None or self.termination is not None

    def check(self) -> None:
        """Raises ValueError where a function cannot be found."""
        for name in (self.reward, self.termination):
            if name is not None:
                find(name)

    def outcome(
        self, spec: Spec, obs: Array, action: Array, following: Array, reward: Array, terminated: Array
    ) -> tuple[Array, Array]:
        """() reward and () ending of a step, in the environment's units, where they are known, or else those given. `action` is
        encoded, (action_size,)."""
        step = (obs, decode_action(spec, action), following)
        if self.reward is not None:
            reward = jnp.asarray(find(self.reward)(*step), jnp.float32).reshape(())
        if self.termination is not None:
            terminated = jnp.asarray(find(self.termination)(*step), jnp.float32).reshape(())
        return reward, terminated

    def retold(self, spec: Spec, steps: Transition) -> Transition:
        """Real steps as they are known to be, fields (rows, environments, ...)."""
        if not self:
            return steps

        def one(step: Transition) -> Transition:
            reward, terminated = self.outcome(spec, step.obs, step.action, step.next_obs, step.reward, step.terminated)
            return step._replace(reward=reward, terminated=terminated)

        return jax.vmap(jax.vmap(one))(steps)


@functools.cache
def find(name: str) -> Told:
    """The function `module:function`; raises ValueError where there is none."""
    module, given, function = name.partition(":")
    if not given:
        raise ValueError(f"knowledge names {name!r}; functions are written as module:function")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ValueError(f"knowledge names {name!r}, but {module} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"knowledge names {name!r}, but {module} has no {function}") from error


def decode_action(spec: Spec, action: Array) -> Array:
    """An encoded action, (action_size,), as the environment takes it: () int32, or (action_size,)."""
    if spec.discrete:
        return jnp.argmax(action)
    low, high = jnp.asarray(spec.action_low), jnp.asarray(spec.action_high)
    return jnp.clip(low + (action + 1) / 2 * (high - low), low, high)
