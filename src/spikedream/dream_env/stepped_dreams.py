"""Dreams that somebody outside steps, all of them in one compiled call: what a world model is as an environment."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.spec import Spec
from spikedream.types import Experience, Prediction
from spikedream.world import World

Autoreset = Literal["SameStep", "NextStep"]  # as Gymnasium names them


class Standing(NamedTuple):
    """Where dreams stand; leaves (dreams, ...)."""

    memory: Any  # the world's
    taken: Array  # (dreams,) int32, steps since a dream began
    doubt: Array  # (dreams,) sum of their uncertainty
    over: Array  # (dreams,) bool, the next step begins another in its place; never with "SameStep"
    key: Array  # () for the next step


class DreamStep(NamedTuple):
    """What a step gave, in the environment's own units; leaves (dreams, ...)."""

    seen: Array  # (dreams, feature_size) afterwards; where a dream begins, at its start
    last: Array  # (dreams, feature_size) where the step led
    reward: Array
    terminated: Array  # bool
    truncated: Array  # bool
    uncertainty: Array  # of this step's prediction
    imagined: Array  # bool, False where `seen` is a replayed real observation


@dataclass(frozen=True)
class SteppedDreams:
    """How dreams begin and end: at replayed real steps; terminated where the world model says that the task ends with a probability
    above one half, truncated after `horizon` steps or once they are no longer to be trusted."""

    horizon: int = 16  # steps of a dream that nothing ends before
    uncertainty_limit: float | None = None  # on the sum over a dream's steps: errors add up along it
    uncertainty_penalty: float = 0.0  # normalised reward lost per unit of uncertainty (Yu et al. 2020, MOPO)
    start_noise: float = (
        0.0  # standard deviation, in those of the observations, of what is added to a replayed start, and to its past
    )

    def __post_init__(self) -> None:
        check_bounds(self, horizon=(1, None), uncertainty_penalty=(0, None), start_noise=(0, None))
        if self.uncertainty_limit is not None:
            check_bounds(self, uncertainty_limit=(0, None))

    def begin(self, world: World, experience: Experience, dreams: int, key: Array) -> tuple[Standing, Array]:
        """So many dreams, and what is seen at their starts, (dreams, feature_size)."""
        start_key, key = jax.random.split(key)
        memory = self._starts(world, experience, dreams, start_key)
        nothing = jnp.zeros(dreams)
        standing = Standing(memory, nothing.astype(jnp.int32), nothing, nothing > 0, key)
        return standing, _seen(world, memory)

    def step(
        self, world: World, experience: Experience, standing: Standing, action: Array, autoreset: Autoreset
    ) -> tuple[Standing, DreamStep]:
        """One step of each dream, whose encoded actions are (dreams, action_size). One that ends makes way for another: in the same
        step, or in the next, of which the action is ignored and the reward 0."""
        step_key, start_key, key = jax.random.split(standing.key, 3)
        dreams = standing.taken.shape[0]
        memory, prediction = jax.vmap(world.step)(standing.memory, action, jax.random.split(step_key, dreams))
        taken, doubt = standing.taken + 1, standing.doubt + prediction.uncertainty
        ended = prediction.terminated > 0.5
        cut = taken >= self.horizon
        if self.uncertainty_limit is not None:
            cut |= doubt > self.uncertainty_limit
        goes_on = ~standing.over
        terminated, truncated = ended & goes_on, cut & ~ended & goes_on
        over = terminated | truncated
        fresh = over if autoreset == "SameStep" else standing.over
        last = _seen(world, memory)

        def renewed(memory: Any) -> Any:
            starts = self._starts(world, experience, dreams, start_key)
            return jax.tree.map(lambda new, old: jnp.where(fresh.reshape(-1, *(1,) * (new.ndim - 1)), new, old), starts, memory)

        # Where a world model remembers, a start is recalled step by step: that is not done for nothing.
        memory = jax.lax.cond(fresh.any(), renewed, lambda memory: memory, memory)
        after = Standing(
            memory=memory,
            taken=jnp.where(fresh, 0, taken),
            doubt=jnp.where(fresh, 0.0, doubt),
            over=over & ~fresh,
            key=key,
        )
        seen = _seen(world, memory)
        reward = jnp.where(goes_on, self._reward(world, prediction), 0.0)
        uncertainty = jnp.where(goes_on, prediction.uncertainty, 0.0)
        return after, DreamStep(seen, last, reward, terminated, truncated, uncertainty, ~fresh)

    def _starts(self, world: World, experience: Experience, dreams: int, key: Array) -> Any:
        """The world's memory at replayed steps, leaves (dreams, ...)."""
        draw_key, noise_key, start_key = jax.random.split(key, 3)
        index = experience.draw(draw_key, (dreams,))
        noise = self.start_noise * jax.random.normal(noise_key, experience.gather(index).obs.shape)
        return world.recall(experience, index, start_key, noise)

    def _reward(self, world: World, prediction: Prediction) -> Array:
        """(dreams,) in the environment's own units, within the range that has been seen, the bonus included."""
        reward = jnp.clip(prediction.reward, *world.normalizer.reward_range())
        reward = reward - self.uncertainty_penalty * prediction.uncertainty + prediction.bonus
        return reward * world.normalizer.reward_scale


DREAMS = SteppedDreams()


def encoded(spec: Spec, action: Array) -> Array:
    """(dreams, action_size), from choices (dreams,) or from (dreams, action_size) in the environment's own units."""
    if spec.discrete:
        return jax.nn.one_hot(action, spec.action_size)
    low, high = jnp.asarray(spec.action_low, jnp.float32), jnp.asarray(spec.action_high, jnp.float32)
    return jnp.clip((action - low[None]) / (high - low)[None] * 2 - 1, -1, 1)


def _seen(world: World, memory: Any) -> Array:
    """(dreams, feature_size): the observation in the environment's own units, and what the world model remembers as it is."""
    feature, size = jax.vmap(world.feature)(memory), memory.obs.shape[-1]
    return jnp.concatenate([world.normalizer.raw_obs(feature[:, :size]), feature[:, size:]], axis=1)
