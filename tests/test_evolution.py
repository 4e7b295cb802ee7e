"""Evolution against what it must come to, and against its equations by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import finite, same
from toys import ARMS, DIAL, KEY, TWO_STEP, assert_best, origin, practise, still, toy

from spikedream.agents.evolution import Evolution, _noise
from spikedream.snn.conventional import MLP, Linear
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF, CubaLIF
from spikedream.snn.readouts import PopulationReadout

CONVENTIONAL = Evolution(actor=MLP(hidden=(8,), activation="tanh"), population=16, trajectories=4, horizon=4, gamma=0.9)
SPIKING = replace(
    CONVENTIONAL,
    actor=SpikingNetwork(hidden=(12,), ticks=3, neuron=LIF(recurrent=True), readout=PopulationReadout(neurons=6, neuron=CubaLIF())),
)


def test_it_finds_the_best_continuous_action() -> None:
    agent = replace(CONVENTIONAL, learning_rate=0.05)
    state, metrics = practise(agent, still(), DIAL, 200)
    assert_best(agent, state)
    assert finite(state) and finite(metrics)
    np.testing.assert_array_equal(metrics["imagined_steps"], 16 * 4 * 4)


def test_a_spiking_policy_finds_what_pays_a_step_later_and_its_neurons_stay_as_they_were() -> None:
    state, metrics = practise(SPIKING, TWO_STEP, ARMS, 200)
    assert_best(SPIKING, state)
    start = jax.jit(lambda k: SPIKING.init(ARMS, toy(TWO_STEP, ARMS), k))(jax.random.split(KEY)[0])  # as it practises from
    before, after = start.actor.layers[0], state.actor.layers[0]
    assert same(before.neuron.decay, after.neuron.decay) and same(before.neuron.threshold, after.neuron.threshold)
    assert not same(before.synapse, after.synapse) and not same(before.neuron.recurrent, after.neuron.recurrent)
    assert 0 < float(metrics["firing_rate/actor"][-1]) < 1
    np.testing.assert_array_equal(metrics["deviation"], metrics["deviation"][0])


def test_a_generation_is_as_the_equations_say() -> None:
    """Of a linear policy: rank by rank, weight by weight."""
    agent = Evolution(
        actor=Linear(), population=6, trajectories=3, horizon=2, deviation=0.3, deviation_rate=0.4, learning_rate=0.01
    )
    world, experience = toy(still(), DIAL), origin(DIAL)
    state = agent.init(DIAL, world, KEY)
    key = jax.random.key(5)
    after, metrics = jax.jit(agent.update)(state, world, experience, key)
    noise_key, start_key, dream_key = jax.random.split(key, 3)
    half = np.asarray(_noise(state.actor, 3, noise_key).bias)
    noise = np.concatenate([half, -half])
    both = _noise(state.actor, 3, noise_key)
    starts = agent._starts(world, experience, start_key)
    judge = jax.jit(lambda actor: agent._fitness(state, actor, world, starts, dream_key).value)
    fitness = []
    for i in range(6):
        sign, n = (1, i) if i < 3 else (-1, i - 3)
        actor = jax.tree.map(lambda mean, x, n=n, sign=sign: mean + sign * 0.3 * x[n], state.actor, both)
        fitness.append(float(judge(actor)))
    assert float(metrics["fitness"]) == pytest.approx(np.mean(fitness), rel=1e-5)
    assert float(metrics["fitness_best"]) == pytest.approx(max(fitness), rel=1e-5)
    utility = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])[np.argsort(np.argsort(fitness))] / 9
    gradient = (utility[:, None] * noise).sum(0) / 0.3
    # Adam's first step is as long as the learning rate, whatever the gradient.
    np.testing.assert_allclose(after.actor.bias - state.actor.bias, 0.01 * np.sign(gradient), rtol=1e-3)
    wanted = 0.3 * np.exp(0.5 * 0.4 * (utility[:, None] * (noise**2 - 1)).sum(0))
    np.testing.assert_allclose(after.deviation.bias, wanted, rtol=1e-5)
    assert len(jnp.unique(after.deviation.weight)) > 1


def test_candidates_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="population is 5; candidates come in pairs"):
        Evolution(population=5)
