"""A world model that remembers, for environments whose single observations do not tell all.

A recurrent network, spiking or a GRU, reads the observations and actions one by one and keeps a latent state; the members of an
ensemble predict from observation, latent state and action. It is the deterministic path of PlaNet's model (Hafner et al. 2019,
figure 2b) with an ensemble on top; there is no decoder, since an observation is a part of the state.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.ops.fitting import adamw, matrices, start
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import MembraneReadout
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, Prediction, PyTree, Sequence, Transition
from spikedream.world import World
from spikedream.world_models.ensemble import Ensemble, EnsembleState


class RecurrentState(eqx.Module):
    network: PyTree  # parameters of the recurrent network
    ensemble: EnsembleState
    optimizer: PyTree  # of the network and the ensemble's members together
    idle: Array  # (action_size,) zeros: the action before the first


class RecurrentMemory(NamedTuple):
    obs: Array  # (obs_size,)
    latent: Array  # (latent,) what the agent sees beside the observation
    carry: PyTree  # of the recurrent network
    member: Array  # () int32


@dataclass(frozen=True)
class Recurrent:
    """Hyper-parameters.

    At each step the network is given the observation, its change since the last step in units of the typical change (as an event
    camera reports changes), and the last action.
    """

    # The latent state has to hold a velocity precisely: of spikes alone it learned CartPoleHiddenVelocity-v0 several times slower.
    # Its neurons do not leak: what leaks of the charge of an older step would be read as if it had come in with this one, so that
    # a model that learned from the first steps of sequences went wrong in the middle of an episode.
    network: AnyNetwork = SpikingNetwork(
        persistent=True,
        neuron=LIF(decay=(0.99999, 0.99999), learn_decay=False, recurrent=True, recurrent_gain=0.0),
        ticks=4,
        readout=MembraneReadout(),
    )
    latent: int = 8
    ensemble: Ensemble = Ensemble(updates=1000, batch=32)  # the batch counts sequences
    context: int = 6  # steps in which real observations are given
    open_loop: int = 0  # steps after that, in which the model goes on by its own predictions
    burn_in: int = 1  # steps at the start of an episode or sequence that nothing is learned from: too little is known there
    warm_up: int = 16  # newest real steps from which the memory at a replayed step is recalled

    def __post_init__(self) -> None:
        check_bounds(self, latent=(1, None), context=(1, None), open_loop=(0, None), burn_in=(0, None), warm_up=(1, None))
        if self.burn_in >= self.context + self.open_loop:
            length = self.context + self.open_loop
            raise ValueError(
                f"burn_in is {self.burn_in}; a sequence has {length} steps (context + open_loop), and none would be learned"
            )
        if not self.network.persistent:
            raise ValueError("network keeps no state between steps; it must be a GRU or a SpikingNetwork with persistent = true")
        if self.ensemble.holdout > 0:
            raise ValueError(
                "ensemble.holdout must be 0: sequences overlap, so that none can be held out by chance; the newest can, by"
                " ensemble.fine_tuning.holdout_newest"
            )
        if self.ensemble.search is not None:
            raise ValueError("ensemble.search must be None: sequences overlap, so that none can be held out")

    @property
    def members(self) -> int:
        return self.ensemble.members

    recurrent = True

    @property
    def holdout_newest(self) -> float:
        return self.ensemble.holdout_newest

    @property
    def updates(self) -> int:
        return self.ensemble.updates

    def feature_size(self, spec: Spec) -> int:
        return spec.obs_size + self.latent

    def init(self, spec: Spec, key: Array) -> RecurrentState:
        network_key, ensemble_key = jax.random.split(key)
        network = self.network.init(2 * spec.obs_size + spec.action_size, self.latent, network_key)
        ensemble = self.ensemble.init(spec, ensemble_key, self.latent)
        optimizer = start(self._optimizer(), _alone((network, ensemble.members)))
        # Its members are fitted together with the network.
        ensemble = eqx.tree_at(lambda s: s.optimizer, ensemble, ())
        return RecurrentState(network, ensemble, optimizer, jnp.zeros(spec.action_size))

    def _optimizer(self) -> optax.GradientTransformation:
        def weights(params: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            network, members = params
            return matrices(network), matrices(members, stacked=1)

        return adamw(self.ensemble.weight_decay, self.ensemble.gradient_clip, weights)

    # ---- predicting

    def start(self, state: RecurrentState, obs: Array, key: Array) -> RecurrentMemory:
        member = jax.random.randint(key, (), 0, self.members)
        rest = self.network.start(state.network)
        latent, carry = self._read(state.network, rest, obs, jnp.zeros(obs.shape), state.idle, key)
        return RecurrentMemory(obs, latent, carry, member)

    def observe(self, state: RecurrentState, memory: RecurrentMemory, action: Array, obs: Array, key: Array) -> RecurrentMemory:
        change = (obs - memory.obs) / state.ensemble.scale
        latent, carry = self._read(state.network, memory.carry, obs, change, action, key)
        return RecurrentMemory(obs, latent, carry, memory.member)

    def _read(self, network: PyTree, carry: Any, obs: Array, change: Array, action: Array, key: Array) -> tuple[Array, PyTree]:
        out = self.network(network, jnp.concatenate([obs, change, action]), carry, key)
        return out.value, out.carry

    def step(self, state: RecurrentState, memory: RecurrentMemory, action: Array, key: Array) -> tuple[RecurrentMemory, Prediction]:
        predict_key, read_key = jax.random.split(key)
        prediction = self.ensemble.predict(state.ensemble, memory.obs, memory.latent, action, memory.member, predict_key)
        return self.observe(state, memory, action, prediction.obs, read_key), prediction

    def feature(self, state: RecurrentState, memory: RecurrentMemory) -> Array:
        return jnp.concatenate([memory.obs, memory.latent])

    def member(
        self, state: RecurrentState, memory: RecurrentMemory, index: Array
    ) -> "tuple[Recurrent, RecurrentState, RecurrentMemory]":
        alone = RecurrentState(state.network, self.ensemble.select(state.ensemble, index), (), state.idle)
        return replace(self, ensemble=replace(self.ensemble, members=1)), alone, memory._replace(member=jnp.zeros((), jnp.int32))

    def confidence(self, state: RecurrentState) -> Array:
        return state.ensemble.confidence

    def errors(self, state: RecurrentState, experience: Experience, index: Array, key: Array) -> Array:
        return self.ensemble.squared_errors(self._missed(state, experience, experience.gather(index), index, key))

    def _missed(self, state: RecurrentState, experience: Experience, steps: Transition, index: Array, key: Array) -> Array:
        """(rows, obs_size + 1) as `Ensemble.missed`, of the `steps` at `index`, (rows,)."""
        recall_key, error_key = jax.random.split(key)
        memory = World(self, state, experience.normalizer).recall(experience, index, recall_key)
        return self.ensemble.missed(state.ensemble, steps, memory.latent, error_key)

    # ---- fitting

    def update(
        self, state: RecurrentState, experience: Experience, key: Array, updates: Array | int
    ) -> tuple[RecurrentState, Metrics]:
        """Warm-started steps on mini-batches of sequences."""
        hyper, length = self.ensemble, self.context + self.open_loop
        ensemble, weights = hyper.rescale(state.ensemble, experience)
        rest = self.network.start(state.network)
        fit_key, survey_key, error_key, *check_keys = jax.random.split(key, 5 if hyper.split.holds_out else 3)

        def sequences(ends: Array) -> Sequence:
            return jax.vmap(jax.vmap(lambda end: experience.sequence(end, length)))(ends)

        def draw(params: PyTree, key: Array) -> tuple[Sequence, Array]:
            ends = hyper.split.draw(ensemble.key, experience, key, (1, hyper.batch), fit_key)
            return sequences(ends), experience.importance(ends)

        def loss(params: tuple[PyTree, PyTree], drawn: tuple[Sequence, Array], key: Array) -> Array:
            (network, members), (drawn_sequences, importance) = params, drawn
            unroll_key, loss_key = jax.random.split(key)
            unroll = jax.vmap(lambda s, k: self._unroll(network, members, ensemble.scale, rest, s, k))
            obs, latent, age = unroll(drawn_sequences, jax.random.split(unroll_key, hyper.batch))
            counts = drawn_sequences.valid * importance[:, None] * (age >= self.burn_in)
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (drawn_sequences.steps._replace(obs=obs), latent, counts))
            of_one = partial(hyper.each.loss, scale=ensemble.scale, weights=weights, impact=ensemble.impact)
            losses = jax.vmap(lambda m: of_one(m, flat, loss_key))(members)
            return losses.mean() + hyper.curvature_penalty * self.network.curvature(network)

        def check(params: tuple[PyTree, PyTree]) -> Array:
            held_key, loss_key = check_keys
            ends = hyper.split.draw_held(ensemble.key, experience, held_key, (1, hyper.batch), length)
            return jax.vmap(loss, in_axes=(0, 0, None))(params, (sequences(ends), jnp.ones(ends.shape)), loss_key)

        params = _alone((state.network, ensemble.members))
        fitted = hyper.fit(params, state.optimizer, loss, draw, check, self._optimizer(), updates, fit_key)
        network, members = jax.tree.map(lambda x: x[0], fitted.best)
        ensemble = hyper.fitted(ensemble, members, ())
        after = RecurrentState(network, ensemble, fitted.optimizer, jnp.array(state.idle))
        index, counts = experience.survey(survey_key, 1000)
        if hyper.split.holds_out:
            counts = counts * hyper.split.judges(ensemble.key, experience, index, counts)
        steps = experience.gather(index)
        missed = self._missed(after, experience, steps, index, error_key)
        error = (hyper.squared_errors(missed) * counts).sum() / jnp.maximum(counts.sum(), 1)
        after = eqx.tree_at(lambda s: s.ensemble.confidence, after, jnp.exp(-error))
        met = hyper.meet(after.ensemble, missed, counts * (1 - steps.terminated))
        after = eqx.tree_at(lambda s: s.ensemble, after, met)
        metrics = {
            "model_loss": fitted.train_loss,
            "model_updates": fitted.step,
            "model_error": error,
            "model_confidence": after.ensemble.confidence,
        }
        return after, metrics | {"model_holdout_loss": fitted.best_loss.mean()} if hyper.split.holds_out else metrics

    def _unroll(
        self, network: PyTree, members: PyTree, scale: Array, rest: PyTree, sequence: Sequence, key: Array
    ) -> tuple[Array, Array, Array]:
        """The observations that the model went by, (length, obs_size), the latent states, (length, latent), and the steps since
        the first, (length,). The observations are real ones during the context and while an episode burns in, after that the
        model's own predictions, by the mean of the members."""

        def step(before: tuple[Array, Array, Array, PyTree, Array], now: tuple[Transition, Array, Array, Array]):
            predicted, last, action, carry, age = before
            real, first, given, key = now
            age = jnp.where(first > 0, 0, age + 1)
            obs = jnp.where((age <= self.burn_in) | given, real.obs, predicted)
            change = jnp.where(first > 0, 0.0, (obs - last) / scale)
            carry = jax.tree.map(lambda resting, old: jnp.where(first > 0, resting, old), rest, carry)
            latent, carry = self._read(network, carry, obs, change, action * (1 - first), key)
            inputs = jnp.concatenate([obs, latent, real.action])
            mean = jax.vmap(lambda m: self.ensemble.each.moments(m, inputs, key)[0])(members).mean(0)
            return (obs + mean[:-1] * scale, obs, real.action, carry, age), (obs, latent, age)

        length = sequence.first.shape[0]
        obs, action = sequence.steps.obs, sequence.steps.action
        start = (obs[0], obs[0], jnp.zeros(action.shape[1]), rest, jnp.zeros((), jnp.int32))
        given = jnp.arange(length) < self.context
        return jax.lax.scan(step, start, (sequence.steps, sequence.first, given, jax.random.split(key, length)))[1]


def _alone(params: PyTree) -> PyTree:
    """As those of an ensemble of one, leaves (1, ...)."""
    return jax.tree.map(lambda x: x[None], params)
