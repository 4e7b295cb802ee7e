"""Sparse synapses: which there are, that no others act, and that they are counted and exported as they are."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spikedream.agents.actor_critic import apply_gradient
from spikedream.export import c99
from spikedream.nodes import described
from spikedream.ops.slow_copy import HardCopy, Polyak
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import PopulationReadout
from spikedream.snn.sparsity import Pruning, RandomConnections, pruned, synapses

KEY = jax.random.key(0)
NETWORK = SpikingNetwork((16, 12), ticks=3, neuron=LIF(recurrent=True), readout=PopulationReadout(4), bias=(0.0, 2.0))
SPARSE = replace(NETWORK, sparsity=RandomConnections(0.25))
PRUNED = replace(NETWORK, sparsity=Pruning(0.2, begin=2, steps=8, every=2))


@partial(jax.jit, static_argnums=(0, 1, 2))
def begun(network, inputs=4, outputs=2, key=KEY):
    return network.init(inputs, outputs, key)


def densities(params) -> list[float]:
    """Of the weights that act."""
    used = params.present
    return [float((np.asarray(w) != 0).mean()) for w in synapses((used.layers, used.readout))]


def test_a_network_with_all_of_its_weights_is_the_one_without_a_mask():
    dense, pruning = begun(NETWORK), begun(PRUNED)
    assert dense.mask is None and len(jax.tree.leaves(dense)) < len(jax.tree.leaves(pruning))
    x = jnp.ones(4)
    np.testing.assert_array_equal(*(jax.jit(lambda p, n=n: n(p, x).value)(p) for n, p in ((NETWORK, dense), (PRUNED, pruning))))


def test_random_connections_are_as_many_for_each_neuron_and_keep_the_variance():
    network = SpikingNetwork((400,), sparsity=RandomConnections(0.1))
    wide = begun(network, 200)
    weight = wide.present.layers[0].synapse.weight
    assert ((weight != 0).sum(0) == 20).all()
    np.testing.assert_allclose(jnp.square(weight).sum(0).mean(), 0.7**2, rtol=0.1)
    assert densities(begun(SPARSE)) == [0.25] * 5
    other = begun(network, 200, key=jax.random.key(1))
    assert not jnp.array_equal(weight != 0, other.present.layers[0].synapse.weight != 0)


def test_pruning_follows_its_schedule_takes_the_weakest_and_brings_none_back():
    """d[n] = .2 + .8 (1 - p)^3 with p = (n - 2) / 8: at 4, 6, 8 and 10 that is .5375, .3, .2125 and .2."""
    params, found = begun(PRUNED, 5), []
    before = params.present.layers[0].synapse.weight
    prune = jax.jit(pruned)
    for _ in range(12):
        params = prune(params, params)
        found.append(densities(params)[0])
    np.testing.assert_allclose(found[3:], [0.5375, 0.5375, 0.3, 0.3, 0.2125, 0.2125, 0.2, 0.2, 0.2], atol=0.5 / before.size)
    assert found[:3] == [1.0, 1.0, 1.0]
    after = params.present.layers[0].synapse.weight
    assert jnp.abs(before)[after != 0].min() > jnp.abs(before)[after == 0].max()
    grown = eqx.tree_at(lambda p: p.layers[0].synapse.weight, params, jnp.full_like(before, 9.0))
    np.testing.assert_array_equal(prune(params, grown).present.layers[0].synapse.weight != 0, after != 0)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.1)],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("network", [SPARSE, PRUNED], ids=["random", "pruned"])
def test_what_is_not_there_stays_away_under_every_optimiser_and_in_slow_copies(optimizer, network):
    params = begun(network)
    moments, slow, copy = jax.jit(optimizer.init)(params), params, params
    x = jax.random.normal(KEY, (4,))
    slope = jax.jit(jax.grad(lambda p: network(p, x).value.sum()))
    learn = jax.jit(lambda p, m: apply_gradient(optimizer, slope(p), m, p))
    follow, follow_hard = jax.jit(Polyak(0.5).follow), jax.jit(HardCopy(2).follow)
    for n in range(1, 13):
        params, moments = learn(params, moments)
        slow, copy = follow(slow, params, n), follow_hard(copy, params, n)
    wanted = [0.25] * 5 if network is SPARSE else [0.2] * 5
    np.testing.assert_allclose(densities(params), wanted, atol=0.03)
    for _ in range(10):
        slow = follow(slow, params, 0)
    assert densities(slow) == densities(params) == densities(copy)
    gradient = slope(params)
    for g, w in zip(
        synapses((gradient.layers, gradient.readout)), synapses((params.present.layers, params.present.readout)), strict=True
    ):
        assert not np.asarray(g)[np.asarray(w) == 0].any()


def test_what_is_not_there_is_neither_counted_nor_exported():
    network = SpikingNetwork((40,), ticks=3, neuron=LIF(recurrent=True), readout=PopulationReadout(8), bias=(0.0, 2.0))
    sparse = replace(network, sparsity=RandomConnections(0.1))
    dense_params, params = begun(network, 20), begun(sparse, 20)
    products = [each for each in jax.jit(sparse.operations)(params, jnp.ones(20)) if each.connections is not None][
        :-1
    ]  # but the decoder's
    assert all(float(each.connections.nonzero) <= 0.11 * each.connections.weights for each in products) and len(products) == 3
    whole, compact = (c99.source(described(n, p), 20, "") for n, p in ((network, dense_params), (sparse, params)))
    assert compact.weights < 0.25 * whole.weights and "_sparse(" in compact.code and "_sparse(" not in whole.code
