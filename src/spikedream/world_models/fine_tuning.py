"""How a fit goes on from the last weights once new experience has come: on which of it, judged by which, and how fast.

After the trainer of a world model that refits in parallel with its data generator: validation on the newest experience, replay of
the newest, the oldest or a random part, and a learning rate that falls on a plateau.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import reduce_on_plateau

from spikedream.ops.fitting import BETTER
from spikedream.types import Experience, check_bounds


@dataclass(frozen=True)
class Plateau:
    """A learning rate that falls by a factor where the held-out loss no longer does, in place of a cosine; each fit begins anew."""

    patience: int = 5  # checks without improvement before it falls
    factor: float = 0.3

    def __post_init__(self) -> None:
        check_bounds(self, patience=(1, None), factor=(1e-3, 0.999))


@dataclass(frozen=True)
class FineTuning:
    """Which experience a fit learns from, which judges it, and its learning rate. As it is, a fit learns from all."""

    holdout_newest: float = (
        0.0  # share of the steps, the newest, by which a fit is judged; once newer ones have come they are learned from
    )
    share: float = 1.0  # of the others, that a fit learns from
    of: Literal["newest", "oldest", "random"] = "newest"  # which these are; a random share is another one in each fit
    plateau: Plateau | None = None  # in place of the cosine along which the learning rate falls

    def __post_init__(self) -> None:
        check_bounds(self, holdout_newest=(0, 0.9), share=(0.01, 1))

    def newest(self, experience: Experience, index: Array, length: int = 1) -> Array:
        """Which of the positions `index`, any shape, are held out as the newest, bool; for sequences that end there, of `length`
        steps, which are so from beginning to end."""
        return experience.age(index) + length - 1 < self._number(experience)

    def _number(self, experience: Experience) -> Array:
        """Rows that are held out, ()."""
        return jnp.ceil(self.holdout_newest * (experience.size // experience.environments))

    def chosen(self, experience: Experience, index: Array, key: Array) -> Array:
        """Which of the positions `index`, any shape, a fit whose key this is may learn from, bool, if they are not held out."""
        if self.of == "random":
            chance = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(index.reshape(-1))
            return (chance < self.share).reshape(index.shape)
        rows, held, age = experience.size // experience.environments, self._number(experience), experience.age(index)
        number = jnp.ceil(self.share * (rows - held))
        return age < held + number if self.of == "newest" else age >= rows - number

    def unfit(self, holdout: float, held: bool) -> float:
        """Share of all positions that do not serve, where `holdout` of them are held out by chance: as one to be judged by, where
        `held`, or else to learn from."""
        if self.holdout_newest == 0 and self.share == 1:
            return 1 - holdout if held else holdout
        others = (1 - holdout) * (1 - self.holdout_newest)
        return others if held else 1 - others * self.share

    def falls(self) -> optax.GradientTransformationExtraArgs | None:
        """How the learning rate falls on a plateau. An improvement is what early stopping takes for one, also where losses are
        negative."""
        if self.plateau is None:
            return None
        return reduce_on_plateau(self.plateau.factor, self.plateau.patience, rtol=0.0, atol=BETTER)
