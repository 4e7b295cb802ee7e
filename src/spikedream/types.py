"""What the parts of spikedream say to each other: data records, and the protocol of each kind of part.

Every part is a frozen dataclass of hyper-parameters with pure methods; its learned state is a pytree that the methods take and
return. Shapes are given for ONE sample: whoever has a batch maps with `jax.vmap`. Inside spikedream observations and rewards are
normalised and an action is always a float vector, one-hot for discrete spaces and in [-1, 1] for continuous ones; the conversion
to and from the environment's own units happens in `spikedream.replay.normalizer` and `spikedream.envs.host` only.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
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
    log_prob: Array  # () log-density of `action` under the policy that chose it


class Sequence(NamedTuple):
    """Consecutive steps, oldest first. Where `first`, an episode begins or the steps before are not known."""

    steps: Transition  # each field (length, ...)
    first: Array  # (length,) float, 0 or 1
    valid: Array  # (length,) float, 0 where there is no such step


class Prediction(NamedTuple):
    """What a world model says follows an action."""

    obs: Array  # (obs_size,) the next observation
    reward: Array  # ()
    terminated: Array  # () probability that the task ends with this step
    uncertainty: Array  # () epistemic: disagreement between ensemble members, in units of the typical state change
    noise: Array  # () aleatoric: predicted standard deviation in the same units; 0 where the model predicts none
    spikes: tuple[Array, ...]  # per layer (..., ticks, neurons); empty for conventional networks
    bonus: Array | float = 0.0  # () weighted intrinsic reward, which `World.step` adds


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
    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions of stored transitions, by priority."""
        ...

    def gather(self, index: Array) -> Transition: ...
    def sequence(self, end: Array, length: int) -> Sequence:
        """The `length` steps up to and including the one at position `end`, () int32."""
        ...

    def priorities(self) -> Array:
        """(capacity,) how often each position is drawn, relative to the others; 0 where nothing is stored."""
        ...

    def importance(self, index: Array) -> Array:
        """How much a transition counts that was drawn by its priority; shape of `index`, in (0, 1]."""
        ...

    @property
    def size(self) -> Array: ...
    @property
    def count(self) -> Array: ...
    @property
    def capacity(self) -> int: ...
    @property
    def normalizer(self) -> Any: ...


class WorldModel(Protocol):
    """Predicts what the environment does; `spikedream.world_models` holds the implementations.

    Its memory of a trajectory is a named tuple with the field `obs`, the present observation, (obs_size,), and, if it has several
    members, `member`, () int32, whose predictions the trajectory follows.
    """

    @property
    def members(self) -> int:
        """How many models it holds that may disagree."""
        ...

    @property
    def recurrent(self) -> bool:
        """Whether its memory holds more of the past than `start` can tell from one observation."""
        ...

    def feature_size(self, spec: Spec) -> int: ...
    def init(self, spec: Spec, key: Array) -> PyTree: ...
    def start(self, state: PyTree, obs: Array, key: Array) -> Any:
        """The memory from which `step` imagines onward of `obs`, shape (obs_size,)."""
        ...

    def step(self, state: PyTree, memory: Any, action: Array, key: Array) -> tuple[Any, Prediction]: ...
    def feature(self, state: PyTree, memory: Any) -> Array:
        """What an agent sees of the memory, (feature_size,): the observation, and for recurrent models what is remembered."""
        ...

    def observe(self, state: PyTree, memory: Any, action: Array, obs: Array, key: Array) -> Any:
        """The memory after `action`, now that the real `obs` has been seen."""
        ...

    def member(self, state: PyTree, memory: Any, index: Array) -> "tuple[WorldModel, PyTree, Any]":
        """The model that consists of one member alone, () int32, its state and its memory."""
        ...

    def update(self, state: PyTree, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """Fit to all experience: one whole phase, traceable under `jit`."""
        ...

    def errors(self, state: PyTree, experience: Experience, key: Array) -> Array:
        """(capacity,) squared and scaled one-step prediction error on each stored transition; elsewhere anything."""
        ...

    def confidence(self, state: PyTree) -> Array:
        """() exp(-loss) on real transitions held out from fitting, or on all where none are; 0 before the first fit."""
        ...


class Bonus(Protocol):
    """Intrinsic reward for curiosity; `spikedream.bonuses` holds the implementations."""

    @property
    def largest(self) -> float:
        """No weighted reward is larger, in the environment's units."""
        ...

    def init(self, spec: Spec, world: "World", key: Array) -> PyTree: ...
    def reward(self, state: PyTree, obs: Array, action: Array, following: Array, uncertainty: Array) -> Array:
        """() weighted intrinsic reward of a step, in units of the normalised reward; `following`: the next observation,
        `uncertainty`: the world model's disagreement about it."""
        ...

    def update(self, state: PyTree, world: "World", experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """Fit to all experience after the world model has been fitted: one whole phase."""
        ...


class Belief(NamedTuple):
    """What is known while an episode runs: the world model's memory when it last acted."""

    memory: Any
    action: Array  # (action_size,) taken then
    begun: Array  # () float, 0 before the first observation


@dataclass(frozen=True)
class World:
    """A world model, its learned state and an optional bonus: all that an agent needs in order to dream."""

    model: WorldModel
    state: PyTree
    bonus: Bonus | None = None
    bonus_state: PyTree = ()

    def start(self, obs: Array, key: Array) -> Any:
        return self.model.start(self.state, obs, key)

    def step(self, memory: Any, action: Array, key: Array) -> tuple[Any, Prediction]:
        following, prediction = self.model.step(self.state, memory, action, key)
        if self.bonus is not None:
            reward = self.bonus.reward(self.bonus_state, memory.obs, action, prediction.obs, prediction.uncertainty)
            prediction = prediction._replace(bonus=reward)
        return following, prediction

    def feature(self, memory: Any) -> Array:
        return self.model.feature(self.state, memory)

    def member(self, memory: Any, index: Array, alone: bool) -> "tuple[World, Any]":
        """The world, and the memory in it, of a trajectory that goes as one member says: that member's `alone`, where nobody
        disagrees, or that of all."""
        if not alone:
            return self, memory._replace(member=index)
        model, state, memory = self.model.member(self.state, memory, index)
        return World(model, state, self.bonus, self.bonus_state), memory

    def intrinsic(self, step: Transition, key: Array) -> Array:
        """() weighted intrinsic reward of a real step."""
        if self.bonus is None:
            return jnp.zeros(())
        uncertainty = self.model.step(self.state, self.start(step.obs, key), step.action, key)[1].uncertainty
        return self.bonus.reward(self.bonus_state, step.obs, step.action, step.next_obs, uncertainty)

    @property
    def largest_bonus(self) -> float:
        return 0.0 if self.bonus is None else self.bonus.largest

    # ---- following a real episode

    def blank(self, spec: Spec) -> Belief:
        """Before an episode's first observation."""
        memory = self.start(jnp.zeros(spec.obs_size), jax.random.key(0))
        return Belief(memory, jnp.zeros(spec.action_size), jnp.zeros(()))

    def follow(self, belief: Belief, obs: Array, key: Array) -> Any:
        """The memory once `obs` has been seen after the belief's action."""
        start = self.start(obs, key)
        if not self.model.recurrent:
            return start
        following = self.model.observe(self.state, belief.memory, belief.action, obs, key)
        return jax.tree.map(lambda new, old: jnp.where(belief.begun > 0, new, old), following, start)

    def remember(self, sequence: Sequence, key: Array) -> Any:
        """The memory at each step of real experience, before its action; leaves (length, ...)."""

        def step(belief: Belief, now: tuple[Transition, Array, Array]) -> tuple[Belief, Any]:
            real, first, key = now
            memory = self.follow(belief._replace(begun=1 - first), real.obs, key)
            return Belief(memory, real.action, jnp.ones(())), memory

        steps = sequence.steps
        start = self.start(steps.obs[0], key)
        belief = Belief(start, steps.action[0], jnp.zeros(()))
        keys = jax.random.split(key, sequence.first.shape[0])
        return jax.lax.scan(step, belief, (steps, sequence.first, keys))[1]


class Agent(Protocol):
    """Chooses actions and improves inside the world; `spikedream.agents` holds the implementations.

    Its `spec` is that of the environment; what it sees of a state is `world.feature`, (world.model.feature_size(spec),).
    """

    @property
    def uses_world(self) -> bool:
        """Whether it ever asks the world model anything; where not, none is fitted."""
        ...

    @property
    def on_policy_steps(self) -> int | None:
        """How many newest steps, all by the policy that it improves, an update learns from; None where any experience will do."""
        ...

    def init(self, spec: Spec, world: World, key: Array) -> PyTree: ...
    def start(self, state: PyTree, world: World) -> PyTree:
        """The policy's memory at the start of an episode."""
        ...

    def act(self, state: PyTree, world: World, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Decision: ...
    def update(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """One dream and what is learned from it; `metrics["imagined_steps"]` counts its steps."""
        ...

    def errors(self, state: PyTree, world: World, experience: Experience, key: Array) -> Array:
        """(capacity,) squared temporal-difference error on each stored transition."""
        ...
