"""Real experience on the training device: added in blocks, drawn inside compiled calls, at a cost that does not grow with it."""

from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.replay.normalizer import Moments, Normalizer, identity, no_moments
from spikedream.replay.sum_tree import SumTree, empty_tree
from spikedream.spec import Spec
from spikedream.types import Sequence, Transition

WHOLE, DRAWN = 10_000, 4_000  # transitions: a ring of no more than these is surveyed whole, a larger one by so many


@dataclass(frozen=True)
class ReplayBuffer:
    """How experience is kept and drawn.

    With a priority, a transition of error d is drawn in proportion to (d + 0.01 max d)^alpha (Schaul et al. 2016, "Prioritized
    experience replay", eq. 1); what is learned from it counts (p_min / p)^beta (eq. 2), p_min being the smallest among those that
    were drawn together. Errors are measured anew in each fit, where very many transitions can be held those of a random part of
    them; steps that came later have the largest. With "loss" the agent says of each transition that it learns from how large its
    temporal-difference error d is, which is then drawn in proportion to max(|d|, 1)^alpha; the agent's loss must be linear in
    larger errors, and nothing counts less (Fujimoto et al. 2020, "An equivalence between loss functions and non-uniform sampling
    in experience replay", LAP).

    Where every step's reward tells of its state, the transitions of large errors are no better ones to learn from; with
    `priority_while` "sparse" errors that are measured in a fit count only while rewards are sparse (see `replay.spread.sparse`).
    """

    capacity: int = 10_000  # transitions kept; the oldest make way
    priority: Literal["uniform", "model_error", "td_error", "loss"] = "uniform"
    alpha: float = 0.6
    beta: float = 0.4
    scale: Literal["largest", "spread"] = "largest"  # of rewards: the largest seen, or 4 root mean squares where that is less
    priority_while: Literal["always", "sparse"] = "always"

    def __post_init__(self) -> None:
        check_bounds(self, capacity=(1, None), alpha=(0, None), beta=(0, 1))

    @property
    def measured_in_fit(self) -> bool:
        """Whether errors are measured in each fit."""
        return self.priority in ("model_error", "td_error")

    def init(self, spec: Spec, environments: int = 1) -> "Replay":
        rows = -(-self.capacity // environments)

        def zeros(*size: int) -> Array:
            return jnp.zeros((rows, environments, *size))  # every field its own buffer: the phases donate them

        data = Transition(zeros(spec.obs_size), zeros(spec.action_size), zeros(), zeros(spec.obs_size), zeros(), zeros(), zeros())
        priority = (
            None if self.priority == "uniform" else Priority(empty_tree(rows * environments), jnp.full((), 1e-6, jnp.float32))
        )
        episodes = Episodes(jnp.zeros(environments), jnp.zeros(()), jnp.zeros((), jnp.int32))
        size, spread = spec.obs_size, self.scale == "spread"
        moments, by_loss = no_moments(size, spread), self.priority == "loss"
        return Replay(
            data, jnp.zeros((), jnp.int32), identity(size, spread), moments, episodes, priority, self.alpha, self.beta, by_loss
        )


class Episodes(eqx.Module):
    """Returns of real episodes, in the environment's units, kept as they come."""

    running: Array  # (environments,) of the episode under way
    ended: Array  # () sum over those that have ended since it was last asked
    number: Array  # () int32, of these

    def add(self, steps: Transition, valid: Array) -> "Episodes":
        """Fields of `steps` (rows, environments, ...), oldest first; `valid` (rows, environments)."""

        def one(state: Episodes, row: tuple[Array, Array, Array]) -> tuple[Episodes, None]:
            reward, over, counts = row
            running, over = state.running + reward * counts, over * counts
            number = state.number + over.sum().astype(jnp.int32)
            return Episodes(running * (1 - over), state.ended + (running * over).sum(), number), None

        over = jnp.maximum(steps.terminated, steps.truncated)
        return jax.lax.scan(one, self, (steps.reward, over, valid))[0]

    def mean(self) -> Array:
        """() of those that have ended; 0 where there are none."""
        return self.ended / jnp.maximum(self.number, 1)


def surveyed(capacity: int) -> int:
    """Transitions on which a fit is judged and priorities are measured: all that can be held, or a sample of a ring of many."""
    return capacity if capacity <= WHOLE else DRAWN


class Priority(eqx.Module):
    tree: SumTree  # over positions
    largest: Array  # () error measured so far


class Replay(eqx.Module):
    """A ring of transitions in the environment's own units, one row for each step of all environments; once full, the oldest rows
    are overwritten. A position counts along the environments first.

    It is also the `Experience` that world models and agents see: what it returns is normalised.
    """

    data: Transition  # each field (rows, environments, ...)
    added: Array  # () int32, rows ever added
    normalizer: Normalizer  # in use
    moments: Moments  # of all that was ever added, from which the next normaliser is made
    episodes: Episodes
    priority: Priority | None = None  # None for uniform draws
    alpha: float = eqx.field(static=True, default=0.0)
    beta: float = eqx.field(static=True, default=0.0)
    by_loss: bool = eqx.field(static=True, default=False)

    @property
    def rows(self) -> int:
        return self.data.reward.shape[0]

    @property
    def environments(self) -> int:
        return self.data.reward.shape[1]

    @property
    def capacity(self) -> int:
        return self.rows * self.environments

    @property
    def size(self) -> Array:
        return jnp.minimum(self.added, self.rows) * self.environments

    @property
    def count(self) -> Array:
        """Transitions ever added, () int32."""
        return self.added * self.environments

    # ---- changing

    def add(self, steps: Transition, number: Array | int) -> "Replay":
        """The first `number` () rows of `steps`, fields (rows, environments, ...), oldest first; no more than the ring has."""
        rows = steps.reward.shape[0]
        order = jnp.arange(rows)
        at = jnp.where(order < number, (self.added + order) % self.rows, self.rows)
        data = jax.tree.map(lambda ring, value: ring.at[at].set(value, mode="drop"), self.data, steps)
        valid = jnp.broadcast_to((order < number)[:, None], steps.reward.shape).astype(jnp.float32)
        priority = self.priority
        if priority is not None:
            index = (at[:, None] * self.environments + jnp.arange(self.environments)[None]).reshape(-1)
            index = jnp.where(valid.reshape(-1) > 0, index, priority.tree.leaves)
            weight = jnp.broadcast_to(self._weight(priority.largest, priority.largest), index.shape)
            priority = Priority(priority.tree.set(index, weight), priority.largest)
        return replace(
            self,
            data=data,
            added=self.added + jnp.asarray(number, jnp.int32),
            moments=self.moments.add(steps, valid),
            episodes=self.episodes.add(steps, valid),
            priority=priority,
        )

    def cut(self, given_up: Array) -> "Replay":
        """Mark the newest step of each environment where `given_up`, (environments,), as the last of its episode."""
        at = (self.added - 1) % self.rows
        truncated = jnp.where(given_up, 1.0, self.data.truncated[at])
        running = jnp.where(given_up, 0.0, self.episodes.running)
        data = self.data._replace(truncated=self.data.truncated.at[at].set(truncated))
        return replace(self, data=data, episodes=replace(self.episodes, running=running))

    def normalise(self, reward_floor: float = 0.0) -> "Replay":
        """Take the scales of everything seen so far into use."""
        return replace(self, normalizer=self.moments.normalizer(reward_floor))

    def forget_episodes(self) -> "Replay":
        """Count the episodes that end from now on."""
        zero = Episodes(self.episodes.running, jnp.zeros(()), jnp.zeros((), jnp.int32))
        return replace(self, episodes=zero)

    def prioritise(self, index: Array, error: Array, counts: Array) -> "Replay":
        """Draw the transitions at `index` by `error` from now on, where `counts` is 1; all (rows,)."""
        assert self.priority is not None
        # Of a batch the largest says little of all.
        before = self.priority.largest if self.by_loss else 1e-6
        largest = jnp.maximum(jnp.where(counts > 0, error, 0).max(), before)
        index = jnp.where(counts > 0, index, self.priority.tree.leaves)
        return replace(self, priority=Priority(self.priority.tree.set(index, self._weight(error, largest)), largest))

    def measured(self, priority: Priority, rows: Array | int) -> Priority:
        """How to draw where errors were measured elsewhere, on this experience when it had been given `rows` (): steps that came
        later have the largest."""
        index = jnp.arange(self.capacity)
        index = jnp.where(self.age(index) < self.added - rows, index, priority.tree.leaves)
        weight = jnp.broadcast_to(self._weight(priority.largest, priority.largest), index.shape)
        return Priority(priority.tree.set(index, weight), priority.largest)

    def _weight(self, error: Array, largest: Array) -> Array:
        adjusted = jnp.maximum(error, 1.0) if self.by_loss else error + 0.01 * largest + 1e-9
        return adjusted**self.alpha

    # ---- drawing

    def newest(self) -> Array:
        """(environments,) position of each environment's newest step."""
        return (self.added - 1) % self.rows * self.environments + jnp.arange(self.environments)

    def age(self, index: Array) -> Array:
        """How many rows have been added since those at `index`, any shape, int32: 0 for the newest."""
        return (self.added - 1 - index // self.environments) % self.rows

    def importance(self, index: Array) -> Array:
        """How much transitions count that were drawn together by their priority; shape of `index`, in (0, 1]."""
        if self.priority is None or self.by_loss:
            return jnp.ones(index.shape)
        weight = jnp.maximum(self.priority.tree.weight(index), 1e-12)
        return (weight.min() / weight) ** self.beta

    def raw(self, index: Array) -> Transition:
        """Transitions at `index`, any shape, in the environment's units; fields get that shape in front."""
        return jax.tree.map(lambda ring: ring.reshape(self.capacity, *ring.shape[2:])[index], self.data)

    def gather(self, index: Array) -> Transition:
        """The same normalised."""
        return self.normalised(self.raw(index))

    def normalised(self, raw: Transition) -> Transition:
        """In the scales in use; leading axes are kept."""
        return raw._replace(
            obs=self.normalizer.obs(raw.obs),
            next_obs=self.normalizer.obs(raw.next_obs),
            reward=raw.reward / self.normalizer.reward_scale,
        )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions, with replacement, by priority."""
        if self.priority is None:
            return self.draw_evenly(key, shape)
        tree = self.priority.tree
        found = tree.find(jax.random.uniform(key, shape) * tree.total)
        return jnp.minimum(found, jnp.maximum(self.size - 1, 0))

    def draw_evenly(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions, with replacement, all equally often."""
        return jax.random.randint(key, shape, 0, jnp.maximum(self.size, 1))

    def beginnings(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Positions, with replacement, of steps with which episodes begin, equally often; of any where none is known to."""
        over = jnp.maximum(self.data.terminated, self.data.truncated) > 0
        row, oldest = jnp.arange(self.rows), jnp.where(self.added > self.rows, self.added % self.rows, 0)
        begins = jnp.where((row == oldest)[:, None], self.added <= self.rows, jnp.roll(over, 1, axis=0))
        begins = (begins & (row < self.added)[:, None]).reshape(-1)
        number = jnp.cumsum(begins.astype(jnp.int32))
        drawn = jax.random.randint(key, shape, 0, jnp.maximum(number[-1], 1))
        found = jnp.searchsorted(number, drawn, side="right")
        return jnp.where(number[-1] > 0, found, self.draw_evenly(key, shape))

    def sample(self, key: Array, shape: tuple[int, ...]) -> Transition:
        return self.gather(self.draw(key, shape))

    def survey(self, key: Array, most: int | None = None) -> tuple[Array, Array]:
        """Positions on which to measure something, and which of them count, (rows,) each: all where no more than `most` can be
        held, else `most` drawn equally often; by default as many as `surveyed` says."""
        most = surveyed(self.capacity) if most is None else most
        if self.capacity <= most:
            index = jnp.arange(self.capacity)
            return index, (index < self.size).astype(jnp.float32)
        index = self.draw_evenly(key, (most,))
        return index, jnp.broadcast_to((self.size > 0).astype(jnp.float32), (most,))

    def in_order(self) -> Transition:
        """All that is held, oldest first, in the environment's units; fields (rows, environments, ...). Not for compiled calls: its
        size depends on how much there is."""
        held = min(int(self.added), self.rows)
        index = (int(self.added) - held + jnp.arange(held)) % self.rows
        return jax.tree.map(lambda x: x[index], self.data)

    def sequence(self, end: Array, length: int) -> Sequence:
        """The `length` steps of one environment up to and including the one at position `end`, () int32."""
        row, environment = end // self.environments, end % self.environments
        held = jnp.minimum(self.added, self.rows)
        oldest = self.added - held
        age = (row - oldest) % self.rows - length + 1 + jnp.arange(length)
        valid = (age >= 0) & (age < held)
        steps = self.gather((oldest + jnp.maximum(age, 0)) % self.rows * self.environments + environment)
        ended = jnp.maximum(steps.terminated, steps.truncated) > 0
        known = jnp.concatenate([jnp.zeros(1, bool), valid[:-1] & ~ended[:-1]])
        return Sequence(steps, (~known).astype(jnp.float32), valid.astype(jnp.float32))

    def onward(self, start: Array, length: int) -> Sequence:
        """The steps of one environment from the one at position `start`, () int32, on to the end of its episode, at most `length`;
        valid is 0 from there on."""
        row, environment = start // self.environments, start % self.environments
        held = jnp.minimum(self.added, self.rows)
        oldest = self.added - held
        age = (row - oldest) % self.rows + jnp.arange(length)
        steps = self.gather((oldest + jnp.minimum(age, held - 1)) % self.rows * self.environments + environment)
        ended = jnp.maximum(steps.terminated, steps.truncated) > 0
        goes_on = jnp.concatenate([jnp.ones(1, bool), (age[1:] < held) & ~ended[:-1]])
        valid = jnp.cumprod(goes_on.astype(jnp.float32))
        return Sequence(steps, jnp.zeros(length), valid)
