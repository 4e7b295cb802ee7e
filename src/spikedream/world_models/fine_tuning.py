"""How a fit goes on from the last weights once new experience has come: on which of it, judged by which, and how fast.

After the trainer of a world model that refits in parallel with its data generator: validation on the newest experience, replay of
the newest, the oldest or a random part, and a learning rate that falls on a plateau.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import reduce_on_plateau

from spikedream.bounds import check_bounds
from spikedream.ops.fitting import BETTER
from spikedream.types import Experience


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
            # The fit folds the numbers of its steps into this key, from 0 up; those of positions go from the largest down.
            chance = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, ~i)))(index.reshape(-1))
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


@dataclass(frozen=True)
class Split:
    """Of the experience, into what a fit learns from and what it is judged by."""

    holdout: float  # share of all positions that is held out by chance, for the whole run
    fine_tuning: FineTuning

    @property
    def holds_out(self) -> bool:
        """Whether a fit is judged by steps that it does not learn from."""
        return self.holdout > 0 or self.fine_tuning.holdout_newest > 0

    def held(self, key: Array, experience: Experience, index: Array, length: int = 1) -> Array:
        """Which of the positions `index`, any shape, are held out, bool: each with the probability `holdout`, for the whole run,
        and the newest; `length` as for `FineTuning.newest`."""
        chance = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(index.reshape(-1))
        held = (chance < self.holdout).reshape(index.shape)
        return held | self.fine_tuning.newest(experience, index, length) if self.fine_tuning.holdout_newest > 0 else held

    def draw(self, hold_key: Array, experience: Experience, key: Array, shape: tuple[int, ...], fit_key: Array) -> Array:
        """Positions to learn from in the fit of this key, by priority."""
        if not self.holds_out and self.fine_tuning.share == 1:
            return experience.draw(key, shape)
        index = experience.draw(key, (self._tries(held=False), *shape))
        right = jnp.equal(self.held(hold_key, experience, index), False)
        if self.fine_tuning.share < 1:
            right &= self.fine_tuning.chosen(experience, index, fit_key)
        return _first(index, right)

    def draw_held(self, hold_key: Array, experience: Experience, key: Array, shape: tuple[int, ...], length: int = 1) -> Array:
        """Positions that are held out, equally often; `length` as in `held`."""
        index = experience.draw_evenly(key, (self._tries(held=True), *shape))
        return _first(index, jnp.equal(self.held(hold_key, experience, index, length), True))

    def _tries(self, held: bool) -> int:
        """After so many draws none serves once in ten million times."""
        return math.ceil(math.log(1e-7) / math.log(self.fine_tuning.unfit(self.holdout, held)))

    def judges(self, key: Array, experience: Experience, index: Array, counts: Array) -> Array:
        """(rows,) 1 for the transitions at `index`, (rows,), by which the model is judged: those held out, or all that count where
        none is."""
        held = self.held(key, experience, index).astype(jnp.float32)
        return jnp.where((held * counts).sum() > 0, held, 1.0)


def _first(index: Array, right: Array) -> Array:
    """Of the tries `index` (tries, ...) the first right one; where so few steps are stored that none is, any serves."""
    return jnp.take_along_axis(index, jnp.argmax(right, axis=0)[None], axis=0)[0]
