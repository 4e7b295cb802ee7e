"""What every network, encoder, readout and neuron must tell of its operations, and what they are by hand."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import encoders, kinds, small

from spikedream.snn.affine import Affine
from spikedream.snn.batch_norm import BatchNormMLP
from spikedream.snn.conventional import GRU, MLP, Linear
from spikedream.snn.encoders import DirectCurrent, GaussianPopulation
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF, AnyNeuron, CubaLIF
from spikedream.snn.operations import memory, product_operations, scaled, summed
from spikedream.snn.readouts import AnyReadout, LeakyReadout, MembraneReadout, PopulationReadout, RateReadout

KEY = jax.random.key(0)
X = jnp.array([0.9, -0.4, 0.3])
NETWORKS = [
    *(small(kind()) for kind in kinds(AnyNetwork)),
    *(small(SpikingNetwork(), readout=small(kind())) for kind in kinds(AnyReadout)),
    *(small(SpikingNetwork(), encoder=small(encoder)) for encoder in encoders()),
    *(small(SpikingNetwork(neuron=kind(recurrent=True), persistent=True)) for kind in kinds(AnyNeuron)),
    small(MLP(norm="layer", skip=True, fan_in=1)),
    small(BatchNormMLP()),
    small(SpikingNetwork(neuron=LIF(norm="layer", decay_input=True, recurrent=True), branches=(0.5, 0.9))),
    small(SpikingNetwork(encoder=GaussianPopulation(squash=True, currents=1))),
]


def told(network: Any, params: Any, x: jax.Array = X) -> dict[tuple[str, str], float]:
    """Numbers by part and kind, of the second of two steps."""

    @jax.jit
    def second(params: Any, x: jax.Array) -> Any:
        return network.operations(params, x, network(params, x, network.start(params), KEY).carry, KEY)

    found = second(params, x)
    assert len({(o.part, o.kind) for o in found}) == len(found), "two entries of one name"
    return {(o.part, o.kind): float(o.number) for o in found}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_every_network_tells_its_operations(network: Any) -> None:

    @jax.jit
    def compute(key: jax.Array) -> Any:
        params = network.init(3, 2, key)
        operations = lambda x: network.operations(params, x, network.start(params), key)  # noqa: E731
        spikes = network(params, X, network.start(params), key).spikes
        return params, operations(X), jax.vmap(operations)(jnp.stack([X, X])), spikes

    params, found, again, spikes = compute(KEY)
    for one, two in zip(found, again, strict=True):  # of one call, whoever maps
        assert one.number.shape == () and float(one.number) >= 0
        assert np.array_equal(two.number, [one.number, one.number])
        assert (one.part, one.kind, one.arithmetic) == (two.part, two.kind, two.arithmetic)
    # Every matrix of weights takes part, once or at each tick. Those of an encoder are receptive fields.
    products = [o.connections for o in found if o.connections is not None]
    assert sum(c.weights for c in products) == weights(params) - weights(getattr(params, "encoder", None))
    assert {c.rows * c.repeats for c in products} <= {1, getattr(network, "ticks", 1)}
    fires = any(o.kind == "spike" for o in found)
    assert fires is bool(spikes)
    assert not fires or memory(network.state(params)) > 0
    assert memory(network.start(params)) in (0, memory(network.state(params)))


def weights(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)


def test_a_spiking_network_by_hand() -> None:
    """Two inputs, three neurons that fire at every tick, never, and at every second tick; two outputs."""
    network = SpikingNetwork(hidden=(3,), ticks=4, neuron=LIF(decay=(1e-6, 1e-6)), readout=RateReadout())
    params = network.init(2, 2, KEY)
    # No input current but the bias: 1 fires each tick; 0 never; .6 without a leak at ticks 2 and 4.
    layer = eqx.tree_at(
        lambda p: (p.synapse, p.neuron.decay),
        params.layers[0],
        (Affine(jnp.array([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]), jnp.array([1.0, 0.0, 0.6])), jnp.array([-30.0, -30.0, 30.0])),
    )
    readout = Affine(jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), jnp.zeros(2))
    params = eqx.tree_at(lambda p: (p.layers, p.readout), params, ((layer,), readout))
    trains = network(params, jnp.array([0.5, 0.5])).spikes[0]
    np.testing.assert_array_equal(trains, [[1, 0, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1]])
    assert told(network, params, jnp.array([0.5, 0.5])) == {
        ("layer 1", "multiply_accumulate"): 1,  # one weight is not zero, once for all ticks
        ("layer 1", "bias"): 3,
        ("layer 1", "neuron_update"): 12,
        ("layer 1", "spike"): 6,
        ("readout", "add"): 6,
        ("readout", "multiply_accumulate"): 5,
        ("readout", "bias"): 2,
    }
    found = network.operations(params, jnp.array([0.5, 0.0]))
    (entry,) = [o.connections for o in found if o.part == "layer 1" and o.connections]
    # In NeuroBench's terms the constant current is multiplied at each of the four ticks, by the one weight of a non-zero input.
    assert (entry.weights, entry.rows, entry.repeats, float(entry.effective)) == (6, 1, 4, 4)
    (activity,) = [o.activity for o in found if o.activity]
    assert (activity.outputs, float(activity.nonzero)) == (12, 6)


def test_spikes_meet_the_weights_of_the_next_layer_that_are_not_zero() -> None:
    spikes = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    weight = jnp.array([[1.0, 0.0], [1.0, 1.0], [2.0, 3.0]])
    made = product_operations("layer", spikes, weight, spiking=True)
    assert (made.kind, float(made.number)) == ("synaptic_operation", 1 + 2 + 2)
    real = product_operations("layer", spikes, weight, spiking=False)
    assert (real.kind, float(real.number), float(real.connections.effective)) == ("multiply_accumulate", 2 * 5, 5)
    grouped = product_operations("layer", spikes, weight.reshape(1, 3, 2), spiking=True)
    assert float(grouped.number) == 5
    assert float(scaled((made,), 3)[0].number) == 15


def test_recurrent_weights_hear_the_spikes_of_the_tick_before() -> None:
    network = SpikingNetwork(hidden=(2,), ticks=3, neuron=LIF(recurrent=True), persistent=True)
    params = network.init(3, 1, KEY)
    first = network(params, X, network.start(params))
    trains = network(params, X, first.carry).spikes[0]
    heard = float(first.spikes[0][-1].sum() + trains[:-1].sum())
    assert heard > 0
    assert told(network, params)["layer 1, recurrent", "synaptic_operation"] == 2 * heard
    silent = network.operations(params, X, network.start(params))
    assert sum(float(o.number) for o in silent if "recurrent" in o.part) == 2 * float(first.spikes[0][:-1].sum())


def test_a_population_reads_and_is_read_by_hand() -> None:
    network = SpikingNetwork(
        hidden=(5,), ticks=3, encoder=GaussianPopulation(fields=4), readout=PopulationReadout(neurons=2, neuron=CubaLIF())
    )
    params = network.init(3, 2, KEY)
    hidden, out = network(params, X).spikes
    entering = network.encoder.encode(params.encoder, X, 3, None)
    found = told(network, params)
    assert found["encoder", "receptive_field"] == 12 and found["encoder", "neuron_update"] == 36
    assert found["encoder", "spike"] == float(entering.sum()) > 0
    assert found["layer 1", "synaptic_operation"] == 5 * float(entering.sum())
    assert found["layer 1", "bias"] == 15
    assert found["output population", "synaptic_operation"] == 4 * float(hidden.sum())
    assert found["output population", "neuron_update"] == 12
    assert found["readout", "add"] == found["output population", "spike"] == float(out.sum())
    assert found["decoder", "multiply_accumulate"] == 4 and found["decoder", "bias"] == 2


def test_what_readouts_of_membranes_do_by_hand() -> None:
    membranes = SpikingNetwork(hidden=(5,), ticks=3, encoder=DirectCurrent(), readout=MembraneReadout())
    params = membranes.init(3, 2, KEY)
    found = told(membranes, params)
    assert found["readout", "membrane_read"] == 5 and found["readout", "multiply_accumulate"] == 10
    assert found["readout, spikes", "multiply_accumulate"] == 0  # they begin at zero
    leaky = SpikingNetwork(hidden=(5,), ticks=3, readout=LeakyReadout())
    params = leaky.init(3, 2, KEY)
    found = told(leaky, params)
    assert found["readout", "synaptic_operation"] == 2 * found["layer 1", "spike"]
    assert found["readout", "neuron_update"] == 6 and found["readout", "membrane_read"] == 2


def test_conventional_networks_by_hand() -> None:
    mlp = MLP(hidden=(5, 4), activation="relu", norm="layer", skip=False)
    found = told(mlp, mlp.init(3, 2, KEY))
    assert [found[f"layer {i}", "multiply_accumulate"] for i in (1, 2, 3)] == [15, 20, 8]
    assert [found[f"layer {i}", "activation"] for i in (1, 2)] == [5, 4]
    thin = MLP(hidden=(5,), fan_in=1)
    assert told(thin, thin.init(3, 2, KEY))["layer 1", "multiply_accumulate"] == 5
    linear = Linear()
    assert told(linear, linear.init(3, 2, KEY)) == {("layer 1", "multiply_accumulate"): 6, ("layer 1", "bias"): 2}
    gru = GRU(hidden=5)
    found = told(gru, gru.init(3, 2, KEY))
    assert found["cell, input", "multiply_accumulate"] == 3 * 5 * 3
    assert found["cell, memory", "multiply_accumulate"] == 3 * 5 * 5
    assert found["readout", "multiply_accumulate"] == 10


def test_members_are_added_up() -> None:
    network = SpikingNetwork(hidden=(4,), ticks=2, readout=RateReadout())
    params = jax.vmap(lambda k: network.init(3, 2, k))(jax.random.split(KEY, 3))
    each = [network.operations(jax.tree.map(lambda x, i=i: x[i], params), X) for i in range(3)]
    for whole, *parts in zip(summed(jax.vmap(lambda p: network.operations(p, X))(params)), *each, strict=True):
        assert float(whole.number) == sum(float(part.number) for part in parts)
        if whole.connections is not None:
            assert whole.connections.weights == sum(part.connections.weights for part in parts)
        if whole.activity is not None:
            assert whole.activity.outputs == sum(part.activity.outputs for part in parts)
