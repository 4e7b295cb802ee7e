"""What the parts of spikedream say to each other: data records, and the protocol of each kind of part.

Every part is a frozen dataclass of hyper-parameters with pure methods; its learned state is a pytree that the methods take and
return. Shapes are given for ONE sample: whoever has a batch maps with `jax.vmap`. Inside spikedream observations and rewards are
normalised and an action is always a float vector, one-hot for discrete spaces and in [-1, 1] for continuous ones; the conversion
to and from the environment's own units happens in `spikedream.ops.normalizer` and `spikedream.envs.host` only.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

PyTree = Any
Metrics = dict[str, Array]


def check_bounds(part: object, **bounds: tuple[float | None, float | None]) -> None:
    """Raises ValueError unless each named field of `part` lies between its bounds, both included; None means unbounded. A field
    that holds several numbers is checked number by number, and must hold at least one."""
    for name, (low, high) in bounds.items():
        value = getattr(part, name)
        numbers = value if isinstance(value, tuple) else (value,)
        right = bool(numbers) and all((low is None or x >= low) and (high is None or x <= high) for x in numbers)
        if not right:
            wanted = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"from {low:g} to {high:g}"
            raise ValueError(f"{name} is {list(value) if isinstance(value, tuple) else value}; it must be {wanted}")


@dataclass(frozen=True)
class Spec:
    """Sizes of an environment's spaces.

    Attributes:
        obs_size: entries of the flat observation.
        action_size: number of choices (discrete) or of dimensions (continuous).
        discrete: whether the action is one of `action_size` choices.
        action_low: lower bound of each continuous action dimension, in the environment's units; empty when discrete.
        action_high: upper bound, likewise.
    """

    obs_size: int
    action_size: int
    discrete: bool
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()


class Transition(NamedTuple):
    """One environment step. `terminated`: the task ended (no value follows); `truncated`: only the recording did."""

    obs: Array  # (obs_size,)
    action: Array  # (action_size,)
    reward: Array  # ()
    next_obs: Array  # (obs_size,)
    terminated: Array  # () float, 0 or 1
    truncated: Array  # () float, 0 or 1


class Prediction(NamedTuple):
    """What a world model says follows an action."""

    obs: Array  # (obs_size,) the next observation
    reward: Array  # ()
    terminated: Array  # () probability that the task ends with this step
    uncertainty: Array  # () disagreement between ensemble members, in units of the typical state change; 0 for the truth
    spikes: tuple[Array, ...]  # per layer (..., ticks, neurons); empty for conventional networks


class Decision(NamedTuple):
    """What a policy says about one observation."""

    action: Array  # (action_size,)
    carry: PyTree  # the policy's memory for the next step
    log_prob: Array  # () log-density of `action`; 0 for a deterministic policy
    spikes: tuple[Array, ...]  # per layer (ticks, neurons); empty for conventional networks


def firing_rate(spikes: tuple[Array, ...]) -> Array:
    """Mean over layers of the spikes per neuron and tick, (); 0 for conventional networks."""
    return jnp.stack([layer.mean() for layer in spikes]).mean() if spikes else jnp.zeros(())


class Experience(Protocol):
    """Replayed real experience, seen through the normaliser."""

    def sample(self, key: Array, shape: tuple[int, ...]) -> Transition: ...
    def gather(self, index: Array) -> Transition: ...
    @property
    def size(self) -> Array: ...
    @property
    def capacity(self) -> int: ...
    @property
    def normalizer(self) -> Any: ...


class WorldModel(Protocol):
    """Predicts what the environment does; `spikedream.world_models` holds the implementations."""

    def init(self, spec: Spec, key: Array) -> PyTree: ...
    def start(self, state: PyTree, obs: Array, key: Array) -> PyTree:
        """The carry from which `step` imagines onward of `obs`, shape (obs_size,)."""
        ...

    def step(self, state: PyTree, carry: PyTree, action: Array, key: Array) -> tuple[PyTree, Prediction]: ...
    def update(self, state: PyTree, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """Fit to all experience: one whole phase, traceable under `jit`."""
        ...


@dataclass(frozen=True)
class World:
    """A world model together with its learned state: all that an agent needs in order to dream."""

    model: WorldModel
    state: PyTree

    def start(self, obs: Array, key: Array) -> PyTree:
        return self.model.start(self.state, obs, key)

    def step(self, carry: PyTree, action: Array, key: Array) -> tuple[PyTree, Prediction]:
        return self.model.step(self.state, carry, action, key)


class Agent(Protocol):
    """Chooses actions and improves inside the world; `spikedream.agents` holds the implementations."""

    def init(self, spec: Spec, key: Array) -> PyTree: ...
    def start(self, state: PyTree) -> PyTree:
        """The policy's memory at the start of an episode."""
        ...

    def act(self, state: PyTree, world: World, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Decision: ...
    def update(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """One dream and what is learned from it; `metrics["imagined_steps"]` counts its steps."""
        ...
