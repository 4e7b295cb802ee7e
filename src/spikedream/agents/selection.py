"""Which policy acts greedily: chosen by what it is worth in dreams that it did not learn from, and not because it came last."""

from dataclasses import dataclass, replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents.acting import ActorPolicy, HasActor
from spikedream.bounds import check_bounds
from spikedream.ops.dream import dream
from spikedream.ops.returns import survival
from spikedream.types import Experience, Metrics, PyTree
from spikedream.world import World


class SelectionState(eqx.Module):
    averages: tuple[PyTree, ...]  # of the actor, one for each rate
    chosen: Array  # () int32: 0 what acts otherwise, then the averages


@dataclass(frozen=True)
class PolicySelection:
    """A running average of the actor acts greedily in place of what acts otherwise where the newest model speaks for it: where its
    return is higher, and not by chance, in dreams from where real episodes began and from replayed states, in each member by
    itself. All candidates have the same starts and the same randomness, so that what is judged is a difference for each start: a
    lead that a few of them make is none. Replayed states are drawn as those that are learned from: where replay has priorities,
    what was predicted worst is seen most often, and counts as often, for no importance makes the mean one over all experience.
    Actors that keep a state between steps would begin these dreams at rest: `constraints.py` refuses them."""

    rates: tuple[float, ...] = (0.01, 0.002)  # of these averages, per update; 1: the actor as its last update left it
    starts: int = 32  # of dreams in each member, at least; as many where real episodes began as at replayed states
    steps: int = 500  # of such a dream, which ends where the model says that with a probability above one half
    caution: float = 2.0  # standard errors, over the starts, by which a mean difference is lowered

    def __post_init__(self) -> None:
        check_bounds(self, rates=(1e-6, 1), starts=(1, None), steps=(1, None), caution=(0, None))

    def init(self, actor: PyTree) -> SelectionState:
        averages = tuple(jax.tree.map(jnp.array, actor) for _ in self.rates)  # own buffers: the phases donate the state
        return SelectionState(averages, jnp.zeros((), jnp.int32))

    def follow(self, state: SelectionState, actor: PyTree) -> SelectionState:
        """After an update that made `actor`."""
        followed = zip(state.averages, self.rates, strict=True)
        return SelectionState(tuple(optax.incremental_update(actor, old, rate) for old, rate in followed), state.chosen)

    def chosen(self, state: SelectionState, actor: PyTree) -> PyTree:
        """Parameters of what acts greedily, where `actor` acts otherwise."""
        return jax.tree.map(lambda *leaves: jax.lax.select_n(state.chosen, *leaves), actor, *state.averages)

    def select(
        self,
        state: SelectionState,
        agent: HasActor,
        policy: ActorPolicy,
        rate: float,
        world: World,
        experience: Experience,
        key: Array,
    ) -> tuple[SelectionState, Metrics]:
        """Choose anew.

        Args:
            state: of the selection.
            agent: whose actor it is.
            policy: what acts otherwise.
            rate: at which that is an average.
            world: in whose members candidates are judged, by the environment's own reward.
            experience: where dreams begin.
            key: randomness.
        """
        recall_key, begin_key, draw_key, dream_key = jax.random.split(key, 4)
        each = -(-self.starts // 2)
        index = jnp.concatenate([experience.beginnings(begin_key, (each,)), experience.draw_evenly(draw_key, (each,))])
        memories, world = world.recall(experience, index, recall_key), world.without_bonus()
        carries = jax.tree.map(lambda x: jnp.broadcast_to(x, (2 * each, *x.shape)), agent.actor.start(policy.actor))

        def worth(actor: PyTree, member: Array) -> Array:
            """(2 each,) returns of its dreams, in the environment's units."""
            alone = world.member(jax.tree.map(lambda x: x[0], memories), member, alone=True)[0]
            starts = jax.vmap(lambda memory: world.member(memory, member, alone=True)[1])(memories)
            decide = partial(agent.decide, replace(policy, actor=actor), greedy=True)
            prediction = dream(alone, lambda c, o, k: decide(c, o, k), carries, starts, self.steps, dream_key)[0].prediction
            reward = jnp.clip(prediction.reward, *world.normalizer.reward_range()) * world.normalizer.reward_scale
            ended = (prediction.terminated > 0.5).astype(jnp.float32)
            return (reward * jax.vmap(survival, in_axes=1, out_axes=1)(ended)).sum(0)

        candidates = jax.tree.map(lambda *x: jnp.stack(x), policy.actor, *state.averages)
        by_member = jax.vmap(jax.vmap(worth, in_axes=(None, 0)), in_axes=(0, None))
        returns = by_member(candidates, jnp.arange(world.model.members))  # (candidates, members, 2 each)
        gain, rates = (returns - returns[:1]).mean(1), (rate, *self.rates)
        chosen = jnp.argmax(gain.mean(1) - self.caution * gain.std(1) / jnp.sqrt(2.0 * each)).astype(jnp.int32)
        said = returns.mean(2)  # (candidates, members)
        metrics = {f"selection/return_{x:g}": mean for x, mean in zip(rates, said.mean(1), strict=True)}
        metrics |= {"selection/rate": jnp.asarray(rates)[chosen], "selection/return": said.mean(1)[chosen]}
        return SelectionState(state.averages, chosen), metrics | {"selection/spread": said.std(1)[chosen]}
