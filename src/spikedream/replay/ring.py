"""Real experience on the training device, written one step at a time and sampled inside compiled calls."""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.replay.normalizer import Normalizer, identity, measure
from spikedream.types import Sequence, Spec, Transition, check_bounds


@dataclass(frozen=True)
class ReplayBuffer:
    """How experience is kept and drawn.

    With a priority, a transition of error d is drawn in proportion to (d + 0.01 max d)^alpha (Schaul et al. 2016, "Prioritized
    experience replay", eq. 1); what is learned from it counts (p_min / p)^beta (eq. 2, at its largest weight 1). Priorities are
    measured anew in each fit; steps that came later have the largest.
    """

    capacity: int = 10_000  # transitions kept; the oldest make way
    priority: Literal["uniform", "model_error", "td_error"] = "uniform"
    alpha: float = 0.6
    beta: float = 0.4

    def __post_init__(self) -> None:
        check_bounds(self, capacity=(1, None), alpha=(0, None), beta=(0, 1))

    def init(self, spec: Spec) -> "Replay":
        rows = self.capacity
        obs, action, scalar = (
            (lambda: jnp.zeros((rows, spec.obs_size))),
            jnp.zeros((rows, spec.action_size)),
            lambda: jnp.zeros(rows),
        )
        # Every field its own buffer: the phases donate the replay, and one buffer cannot be donated twice.
        data = Transition(obs(), action, scalar(), obs(), scalar(), scalar(), scalar())
        priority = None if self.priority == "uniform" else scalar()
        return Replay(data, jnp.zeros((), jnp.int32), identity(spec.obs_size), priority, self.alpha, self.beta)


class Replay(eqx.Module):
    """A ring of transitions in the environment's own units; once full, the oldest is overwritten.

    It is also the `Experience` that world models and agents see: what it returns is normalised.
    """

    data: Transition  # each field (capacity, ...)
    count: Array  # () int32, transitions ever added
    normalizer: Normalizer
    error: Array | None = None  # (capacity,) that priorities follow; None for uniform draws
    alpha: float = eqx.field(static=True, default=0.0)
    beta: float = eqx.field(static=True, default=0.0)

    @property
    def capacity(self) -> int:
        return self.data.reward.shape[0]

    @property
    def size(self) -> Array:
        return jnp.minimum(self.count, self.capacity)

    def add(self, step: Transition) -> "Replay":
        at = self.count % self.capacity
        data = jax.tree.map(lambda ring, value: ring.at[at].set(value), self.data, step)
        error = None if self.error is None else self.error.at[at].set(jnp.maximum(self.error.max(), 1e-6))
        return self._with(data=data, count=self.count + 1, error=error)

    def cut(self) -> "Replay":
        """Mark the newest step as the last of its episode, which is given up."""
        at = (self.count - 1) % self.capacity
        return self._with(data=self.data._replace(truncated=self.data.truncated.at[at].set(1.0)))

    def normalise(self, reward_floor: float = 0.0) -> "Replay":
        """Measure the normaliser anew on everything held."""
        return self._with(normalizer=measure(self.data.obs, self.data.reward, self._filled(), reward_floor))

    def prioritise(self, error: Array) -> "Replay":
        """Draw by `error` (capacity,) from now on; where nothing is stored, it may hold anything."""
        return self._with(error=jnp.where(self._filled() > 0, error, 0.0))

    def _with(self, **changes: object) -> "Replay":
        fields = {"data": self.data, "count": self.count, "normalizer": self.normalizer, "error": self.error}
        return Replay(**(fields | changes), alpha=self.alpha, beta=self.beta)  # pyright: ignore[reportArgumentType]

    def _filled(self) -> Array:
        return (jnp.arange(self.capacity) < self.size).astype(jnp.float32)

    # ---- drawing

    def priorities(self) -> Array:
        """(capacity,) how often each position is drawn, relative to the others; 0 where nothing is stored."""
        if self.error is None:
            return self._filled()
        floor = 0.01 * self.error.max() + 1e-9
        return self._filled() * (self.error + floor) ** self.alpha

    def importance(self, index: Array) -> Array:
        """How much a transition counts that was drawn by its priority; shape of `index`, in (0, 1]."""
        if self.error is None:
            return jnp.ones(index.shape)
        priority = self.priorities()
        smallest = jnp.where(priority > 0, priority, jnp.inf).min()
        return (smallest / jnp.maximum(priority[index], smallest)) ** self.beta

    def gather(self, index: Array) -> Transition:
        """Normalised transitions at `index`, any shape; fields get that shape in front."""
        raw = jax.tree.map(lambda ring: ring[index], self.data)
        return raw._replace(
            obs=self.normalizer.obs(raw.obs),
            next_obs=self.normalizer.obs(raw.next_obs),
            reward=raw.reward / self.normalizer.reward_scale,
        )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions, with replacement, by priority."""
        if self.error is None:
            return jax.random.randint(key, shape, 0, jnp.maximum(self.size, 1))
        cumulative = jnp.cumsum(self.priorities())
        target = jax.random.uniform(key, shape) * cumulative[-1]
        return jnp.minimum(jnp.searchsorted(cumulative, target, side="right"), jnp.maximum(self.size - 1, 0))

    def sample(self, key: Array, shape: tuple[int, ...]) -> Transition:
        return self.gather(self.draw(key, shape))

    def sequence(self, end: Array, length: int) -> Sequence:
        """The `length` steps up to and including the one at position `end`, () int32."""
        oldest = self.count - self.size
        age = (end - oldest) % self.capacity - length + 1 + jnp.arange(length)
        valid = (age >= 0) & (age < self.size)
        steps = self.gather((oldest + jnp.maximum(age, 0)) % self.capacity)
        ended = jnp.maximum(steps.terminated, steps.truncated) > 0
        known = jnp.concatenate([jnp.zeros(1, bool), valid[:-1] & ~ended[:-1]])
        return Sequence(steps, (~known).astype(jnp.float32), valid.astype(jnp.float32))
