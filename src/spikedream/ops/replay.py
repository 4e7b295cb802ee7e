"""Real experience on the training device, written one step at a time and sampled inside compiled calls."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.ops.normalizer import Normalizer, identity, measure
from spikedream.types import Spec, Transition


class Replay(eqx.Module):
    """A ring of transitions in the environment's own units; once full, the oldest is overwritten.

    It is also the `Experience` that world models and agents see: `sample` and `gather` return normalised transitions.
    """

    data: Transition  # each field (capacity, ...)
    count: Array  # () int32, transitions ever added
    normalizer: Normalizer

    @property
    def capacity(self) -> int:
        return self.data.reward.shape[0]

    @property
    def size(self) -> Array:
        return jnp.minimum(self.count, self.capacity)

    def add(self, step: Transition) -> "Replay":
        at = self.count % self.capacity
        data = jax.tree.map(lambda ring, value: ring.at[at].set(value), self.data, step)
        return Replay(data, self.count + 1, self.normalizer)

    def normalise(self) -> "Replay":
        """Measure the normaliser anew on everything held."""
        valid = (jnp.arange(self.capacity) < self.size).astype(jnp.float32)
        return Replay(self.data, self.count, measure(self.data.obs, self.data.reward, valid))

    def gather(self, index: Array) -> Transition:
        """Normalised transitions at `index`, any shape; fields get that shape in front."""
        raw = jax.tree.map(lambda ring: ring[index], self.data)
        return raw._replace(
            obs=self.normalizer.obs(raw.obs),
            next_obs=self.normalizer.obs(raw.next_obs),
            reward=raw.reward / self.normalizer.reward_scale,
        )

    def sample(self, key: Array, shape: tuple[int, ...]) -> Transition:
        """Uniform with replacement."""
        return self.gather(jax.random.randint(key, shape, 0, jnp.maximum(self.size, 1)))


def empty(spec: Spec, capacity: int) -> Replay:
    scalar = jnp.zeros(capacity)
    obs, action = jnp.zeros((capacity, spec.obs_size)), jnp.zeros((capacity, spec.action_size))
    # Every field its own buffer: the phases donate the replay, and one buffer cannot be donated twice.
    data = Transition(obs, action, scalar, jnp.array(obs), jnp.array(scalar), jnp.array(scalar))
    return Replay(data, jnp.zeros((), jnp.int32), identity(spec.obs_size))
