"""The true environment behind the world-model contract, so that an agent can be debugged against the truth.

Gymnasium's own JAX environments (`gymnasium.envs.phys2d`) hold the dynamics of two; those of the INI cart-pole are
`dynamics.ini_cartpole`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Real
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.dynamics.ini_cartpole import CartPole, Motion, balanced, check_physics, observed, seen, swing_up_reward
from spikedream.replay.normalizer import Normalizer, identity
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, Prediction


class Dynamics(NamedTuple):
    functional: Any  # Gymnasium's `FuncEnv`, or `INICartPole`
    params: Any
    size: int  # of the raw observation
    state: Callable[[Array], Any]  # raw observation to the environment's own state
    action: Callable[[Array], Array]  # encoded action to the environment's own


@dataclass(frozen=True)
class INICartPole:
    """As Gymnasium's functional environments; its state is a `Motion`, and whether the cart has just bounced off an end."""

    cartpole: CartPole
    swing_up: bool

    def transition(self, state: tuple[Motion, Any], action: Array, key: Array, params: None) -> tuple[Motion, Any]:
        return self.cartpole.step(jnp, state[0], action[0])

    def observation(self, state: tuple[Motion, Any], key: Array) -> Array:
        return jnp.stack(observed(jnp, state[0]))

    def reward(self, before: Any, action: Array, after: tuple[Motion, Any], key: Array) -> Array:
        return swing_up_reward(self.cartpole, jnp, after[0], action[0]) if self.swing_up else jnp.ones(())

    def terminal(self, state: tuple[Motion, Any], key: Array) -> Array:
        return jnp.zeros(()) if self.swing_up else state[1] | ~balanced(self.cartpole, state[0])


# Of Gymnasium's environments, the keyword arguments that are parameters of the dynamics, by the same name.
PARAMETERS = {"CartPole": ("sutton_barto_reward",), "Pendulum": ("g",)}


@cache
def load_dynamics(name: str, physics: tuple[tuple[str, Any], ...] = ()) -> Dynamics:
    """With parameters in place of the defaults. Raises ImportError with what to install: Gymnasium's need flax."""
    if name.startswith("INI"):
        functional = INICartPole(CartPole(**dict(physics)), name == "INICartPoleSwingUp")
        return Dynamics(functional, None, 5, lambda obs: (seen(jnp, obs), False), lambda action: action)
    try:
        from gymnasium.envs.phys2d.cartpole import CartPoleFunctional, CartPoleParams
        from gymnasium.envs.phys2d.pendulum import PendulumFunctional, PendulumParams
    except ImportError as error:
        raise ImportError(
            f"TrueEnvironment needs Gymnasium's JAX environments: pip install 'spikedream[truth]' ({error})"
        ) from error
    if name == "CartPole":
        # Its default pole moment is mass + length; that of CartPole-v1, and of the physics, is mass x length.
        return Dynamics(
            CartPoleFunctional(), CartPoleParams(**{"polemass_length": 0.05, **dict(physics)}), 4, lambda obs: obs, jnp.argmax
        )
    return Dynamics(
        PendulumFunctional(),
        PendulumParams(**dict(physics)),
        3,
        lambda obs: jnp.stack([jnp.arctan2(obs[1], obs[0]), obs[2]]),
        lambda action: 2.0 * action,  # a torque of up to 2 N m
    )


def _drawn(what: str) -> str:
    return f"{what}, so that each episode has another physics, but TrueEnvironment dreams in one: give each a single value"


class TrueState(eqx.Module):
    normalizer: Normalizer


class TrueMemory(NamedTuple):
    obs: Array  # (obs_size,)


@dataclass(frozen=True)
class TrueEnvironment:
    """Hyper-parameters: which environment. `update` only takes over the normaliser.

    Raises:
        ValueError: `physics` are no parameters of the dynamics, or not one value each.
    """

    dynamics: Literal["CartPole", "Pendulum", "INICartPole", "INICartPoleSwingUp"] = "CartPole"
    # Parameters in place of the defaults; where there are none, those with which the run makes its environment.
    physics: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.dynamics in PARAMETERS:
            wrong = [name for name in self.physics if name not in PARAMETERS[self.dynamics]]
            if wrong:
                raise ValueError(f"physics has no {wrong[0]!r}; of {self.dynamics}: {', '.join(PARAMETERS[self.dynamics])}")
            for name, value in self.physics.items():
                if not isinstance(value, Real) or not math.isfinite(value):
                    raise ValueError(f"physics.{name} is {value!r}; it must be a number")
            return
        check_physics(self.physics)
        drawn = [name for name, value in self.physics.items() if isinstance(value, list | tuple)]
        if drawn:
            raise ValueError(_drawn(f"physics.{drawn[0]} is {list(self.physics[drawn[0]])}"))

    def made_with(self, env_kwargs: Mapping[str, Any]) -> "TrueEnvironment":
        """The environment that is made with these. Raises ValueError where it is another one in each episode."""
        if self.physics:
            return self
        if self.dynamics in PARAMETERS:
            return replace(self, physics={name: env_kwargs[name] for name in PARAMETERS[self.dynamics] if name in env_kwargs})
        if env_kwargs.get("random_physics"):
            raise ValueError(_drawn("env_kwargs.random_physics is set"))
        physics = env_kwargs.get("physics") or {}
        check_physics(physics)
        return replace(self, physics=dict(physics))

    @property
    def _loaded(self) -> Dynamics:
        return load_dynamics(self.dynamics, tuple(sorted(self.physics.items())))

    def init(self, spec: Spec, key: Array) -> TrueState:
        """Raises ValueError where the run's environment has other observations than the dynamics."""
        size = self._loaded.size
        if spec.obs_size != size:
            raise ValueError(f"the true {self.dynamics} observes {size} numbers, the run's environment {spec.obs_size}")
        return TrueState(identity(spec.obs_size))

    members = updates = warm_up = 1
    recurrent = False
    holdout_newest = 1.0

    def feature_size(self, spec: Spec) -> int:
        return spec.obs_size

    def feature(self, state: TrueState, memory: TrueMemory) -> Array:
        return memory.obs

    def start(self, state: TrueState, obs: Array, key: Array) -> TrueMemory:
        return TrueMemory(obs)

    def observe(self, state: TrueState, memory: TrueMemory, action: Array, obs: Array, key: Array) -> TrueMemory:
        return TrueMemory(obs)

    def member(self, state: TrueState, memory: TrueMemory, index: Array) -> "tuple[TrueEnvironment, TrueState, TrueMemory]":
        return self, state, memory

    def confidence(self, state: TrueState) -> Array:
        return jnp.ones(())

    def errors(self, state: TrueState, experience: Experience, index: Array, key: Array) -> Array:
        return jnp.zeros(index.shape)

    def step(self, state: TrueState, memory: TrueMemory, action: Array, key: Array) -> tuple[TrueMemory, Prediction]:
        dynamics = self._loaded
        env, before = dynamics.functional, dynamics.state(state.normalizer.raw_obs(memory.obs))
        act = dynamics.action(action)
        after = env.transition(before, act, key, params=dynamics.params)
        obs = state.normalizer.obs(env.observation(after, key))
        reward = jnp.asarray(env.reward(before, act, after, key), jnp.float32).reshape(())
        return TrueMemory(obs), Prediction(
            obs=obs,
            reward=reward / state.normalizer.reward_scale,
            terminated=jnp.asarray(env.terminal(after, key), jnp.float32).reshape(()),
            disagreement=jnp.zeros(()),
            outside=jnp.zeros(()),
            noise=jnp.zeros(()),
            spikes=(),
        )

    def update(self, state: TrueState, experience: Experience, key: Array, updates: Array | int) -> tuple[TrueState, Metrics]:
        # Copied, so that replay and world do not share buffers that the phases donate.
        scales = replace(experience.normalizer, horizon=None, dread=None)
        return TrueState(jax.tree.map(jnp.array, scales)), {"model_loss": jnp.zeros(())}
