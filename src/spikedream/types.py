"""What the parts of spikedream say to each other: data records, and the protocol of each kind of part.

Every part is a frozen dataclass of hyper-parameters with pure methods; its learned state is a pytree that the methods take and
return. Shapes are given for ONE sample: whoever has a batch maps with `jax.vmap`. Inside spikedream observations and rewards are
normalised and an action is always a float vector, one-hot for discrete spaces and in [-1, 1] for continuous ones; the conversion
to and from the environment's own units happens in `spikedream.replay.normalizer` and `spikedream.envs.spaces` only.
"""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from spikedream.spec import Spec

PyTree = Any
Metrics = dict[str, Any]  # an Array, (), each, or a `Masked`


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

    def moved(self, by: Array) -> "Sequence":
        """With `by`, (obs_size,), added to all that was observed."""
        return self._replace(steps=self.steps._replace(obs=self.steps.obs + by[None], next_obs=self.steps.next_obs + by[None]))


class Judged(NamedTuple):
    """How wrong an agent found itself on transitions that it has just learned from."""

    index: Array  # (rows,) int32 their positions
    error: Array  # (rows,) magnitude of the temporal-difference error, in units of the agent's values
    counts: Array  # (rows,) float, 0 where something else was learned in its place


class Masked(NamedTuple):
    """A metric of which there may be nothing to measure, which is told as unknown then."""

    value: Array  # ()
    counts: Array  # () float, 0 where nothing was measured


class Prediction(NamedTuple):
    """What a world model says follows an action."""

    obs: Array  # (obs_size,) the next observation
    reward: Array  # ()
    terminated: Array  # () probability that the task ends with this step
    disagreement: Array  # () epistemic: of the ensemble's members, in units of the typical state change
    outside: Array  # () weighted distance from the range of all experience, in standard deviations; 0 inside it
    noise: Array  # () aleatoric: predicted standard deviation in units of the typical change; 0 where the model predicts none
    spikes: tuple[Array, ...]  # per layer (..., ticks, neurons); empty for conventional networks
    bonus: Array | float = 0.0  # () weighted intrinsic reward, which `World.step` adds
    rates: tuple[Array, ...] = ()  # () each, of the layers of `spikes`: where they are told dreams ask for no trains

    @property
    def uncertainty(self) -> Array:
        """() how little the model may be trusted: the members' disagreement, and the distance from everything seen."""
        return self.disagreement + self.outside


class Decision(NamedTuple):
    """What a policy says about one observation."""

    action: Array  # (action_size,)
    carry: PyTree  # the policy's memory for the next step
    log_prob: Array  # () log-density of `action`; 0 for a deterministic policy
    spikes: tuple[Array, ...]  # per layer (ticks, neurons); empty for conventional networks


def firing_rates(spikes: tuple[Array, ...]) -> tuple[Array, ...]:
    """Of each layer the spikes per neuron and tick, ()."""
    return tuple(layer.mean() for layer in spikes)


def firing_rate(spikes: tuple[Array, ...]) -> Array:
    """Mean over layers of the spikes per neuron and tick, (); 0 for conventional networks."""
    return jnp.stack(firing_rates(spikes)).mean() if spikes else jnp.zeros(())


class Experience(Protocol):
    """Replayed real experience, seen through the normaliser. A position is an index into all that can be held, () int32."""

    def sample(self, key: Array, shape: tuple[int, ...]) -> Transition: ...
    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions of stored transitions, by priority."""
        ...

    def draw_evenly(self, key: Array, shape: tuple[int, ...]) -> Array:
        """The same, all equally often."""
        ...

    def raw(self, index: Array) -> Transition:
        """In the environment's units."""
        ...

    def beginnings(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions of stored transitions with which episodes begin, equally often; of any where none is known to."""
        ...

    def gather(self, index: Array) -> Transition: ...
    def normalised(self, raw: Transition) -> Transition:
        """What was `raw`, in the scales in use."""
        ...

    def sequence(self, end: Array, length: int) -> Sequence:
        """The `length` steps of one environment up to and including the one at position `end`, () int32."""
        ...

    def onward(self, start: Array, length: int) -> Sequence:
        """The steps of one environment from the one at position `start`, () int32, on to the end of its episode, at most `length`;
        valid is 0 from there on."""
        ...

    def newest(self) -> Array:
        """(environments,) position of each environment's newest step."""
        ...

    def survey(self, key: Array, most: int | None = None) -> tuple[Array, Array]:
        """Positions on which to measure something, and which of them count, (rows,) each: all where no more than `most` can be
        held, else `most` drawn equally often; by default as many as the experience's size suggests."""
        ...

    def age(self, index: Array) -> Array:
        """How many rows have been added since those at `index`, any shape, int32: 0 for the newest."""
        ...

    def importance(self, index: Array) -> Array:
        """How much transitions count that were drawn together by their priority; shape of `index`, in (0, 1]."""
        ...

    @property
    def size(self) -> Array: ...
    @property
    def count(self) -> Array: ...
    @property
    def capacity(self) -> int: ...
    @property
    def environments(self) -> int: ...
    @property
    def normalizer(self) -> Any: ...
    @property
    def moments(self) -> Any: ...
    @property
    def episodes(self) -> Any: ...


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

    @property
    def warm_up(self) -> int:
        """Real steps from which its memory is recalled; 1 where one observation tells all."""
        ...

    @property
    def holdout_newest(self) -> float:
        """Share of the steps, the newest, that it is not fitted to: whole stretches that it has never seen."""
        ...

    @property
    def updates(self) -> int:
        """Gradient steps of a fit, unless it is told otherwise; at least 1."""
        ...

    def feature_size(self, spec: Spec) -> int: ...
    def init(self, spec: Spec, key: Array) -> PyTree: ...
    def start(self, state: PyTree, obs: Array, key: Array) -> Any:
        """The memory from which `step` imagines onward of `obs`, shape (obs_size,). Where it is not recurrent, that takes no
        `state`."""
        ...

    def step(self, state: PyTree, memory: Any, action: Array, key: Array) -> tuple[Any, Prediction]: ...
    def feature(self, state: PyTree, memory: Any) -> Array:
        """What an agent sees of the memory, (feature_size,): the observation, and for recurrent models what is remembered. Where it
        is not recurrent, that takes no `state`."""
        ...

    def observe(self, state: PyTree, memory: Any, action: Array, obs: Array, key: Array) -> Any:
        """The memory after `action`, now that the real `obs` has been seen."""
        ...

    def member(self, state: PyTree, memory: Any, index: Array) -> "tuple[WorldModel, PyTree, Any]":
        """The model that consists of one member alone, () int32, its state and its memory."""
        ...

    def update(self, state: PyTree, experience: Experience, key: Array, updates: Array | int) -> tuple[PyTree, Metrics]:
        """Fit to all experience in about `updates`, (), gradient steps: one whole phase, traceable under `jit`."""
        ...

    def errors(self, state: PyTree, experience: Experience, index: Array, key: Array) -> Array:
        """(rows,) squared and scaled one-step prediction error on the transitions at `index`, (rows,)."""
        ...

    def confidence(self, state: PyTree) -> Array:
        """() exp(-squared error) on real transitions held out from fitting, or on all where none are; 0 before the first fit."""
        ...
