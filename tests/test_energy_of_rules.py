"""What a gradient takes by each learning rule, against counts by hand."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from spikedream.export.calls import Calls
from spikedream.export.energy import _lines
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.networks import BPTT, RTRL, AnyRule, EProp, SnAp, SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import RateReadout
from spikedream.snn.surrogates import ArcTan, Rectangular

KEY = jax.random.key(0)
MAC, ADD = (("multiply", 1), ("add", 1)), (("add", 1),)
TWO = SpikingNetwork(hidden=(2,), ticks=3, neuron=LIF(decay=(0.5, 0.5)), bias=(0.0, 0.0))


def of_gradient(network: SpikingNetwork, rule: AnyRule, params, x) -> dict[tuple[str, str, tuple], float]:
    """Numbers by part, kind and arithmetic, of what is done beside the forward pass."""
    found = _lines({"a": replace(network, rule=rule).operations(params, x)}, {"a": Calls(0, 1)})
    return {(line.part, line.kind, line.arithmetic): line.number for line in found}


def test_of_neurons_apart_one_influence_stands_for_all_synapses_of_a_constant_current() -> None:
    params = TWO.init(3, 1, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].synapse.weight, params, jnp.array([[0.0, 0.1], [0.1, 0.1], [0.1, 0.1]]))
    x = jnp.array([0.1, 0.2, 0.0])
    found, backpropagated = (of_gradient(TWO, rule, params, x) for rule in (RTRL(), BPTT()))
    # Of the decay and of the current on v and s, at 3 ticks: v from v and s from v, and each with its cotangent.
    assert found.pop(("layer 1, influences", "influence", MAC)) == 3 * 2 * 2 * (2 + 2)
    # A current enters both, as what the decay does by itself.
    assert found.pop(("layer 1, influences", "add", ADD)) == 3 * 2 * 2 * 2
    # The weights' gradient and the error to what entered are products there too; that of the biases is in the influences.
    assert found[("layer 1", "backward", MAC)] == backpropagated[("layer 1", "backward", MAC)] == 2 * 5
    assert backpropagated.pop(("layer 1", "backward", ADD)) == 2 * 2
    assert found == backpropagated
    assert of_gradient(TWO, EProp(), params, x) == of_gradient(TWO, RTRL(), params, x) == of_gradient(TWO, SnAp(), params, x)


@pytest.mark.parametrize(
    ("rule", "surrogate", "influences", "additions"),
    [
        # Four columns: decay, current, two recurrent weights. From the first tick on the one neuron that is near its threshold
        # passes on its influences of both neurons' parameters by its one weight; of which what enters is added to the current.
        (RTRL(), Rectangular(1.0), 3 * 16 * (2 + 2 + 2) + 2 * 1 * 2 * 4, 3 * 2 * 2 + 3 * 2 + 4),
        (RTRL(), ArcTan(), 3 * 16 * (2 + 2 + 2) + 2 * 3 * 2 * 4, 3 * 2 * 2 + 3 * 2 + 4),
        # On the neuron itself: the second hears itself, but is silent.
        (SnAp(1), Rectangular(1.0), 3 * 8 * (2 + 2 + 2), 3 * 2 * 2 + 3 * 2 + 4),
        (SnAp(1), ArcTan(), 3 * 8 * (2 + 2 + 2) + 2 * 1 * 4, 3 * 2 * 2 + 3 * 2 + 4),
        # Nothing is passed on: what enters reaches v and s.
        (EProp(), ArcTan(), 3 * 8 * (2 + 2), 3 * 2 * 2 + 2 * (3 * 2 + 4)),
    ],
    ids=["RTRL, one active", "RTRL, all active", "SnAp-1, one active", "SnAp-1, all active", "e-prop"],
)
def test_where_neurons_hear_each_other_what_is_not_there_or_not_active_passes_nothing_on(
    rule: AnyRule, surrogate, influences: int, additions: int
) -> None:
    """The first neuron reaches its threshold at all three ticks, the second is far below. Of four recurrent weights one is 0."""
    network = replace(TWO, neuron=replace(TWO.neuron, recurrent=True, surrogate=surrogate))
    params = network.init(1, 1, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].synapse.bias, params, jnp.array([1.0, -5.0]))
    params = eqx.tree_at(lambda p: p.layers[0].neuron.recurrent, params, jnp.array([[0.0, 0.1], [0.1, 0.1]]))
    found = of_gradient(network, rule, params, jnp.zeros(1))
    assert found[("layer 1, influences", "influence", MAC)] == influences
    assert found[("layer 1, influences", "add", ADD)] == additions
    assert not any(part == "layer 1, recurrent" for part, *_ in found)


def test_of_spikes_that_enter_each_synapse_has_an_influence_and_random_feedback_all_its_weights() -> None:
    """One of two fields fires at each of three ticks. Of four synapses one is zero."""
    network = replace(TWO, encoder=GaussianPopulation(fields=2))
    params = network.init(1, 1, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].synapse.weight, params, jnp.array([[0.0, 0.1], [0.1, 0.1]]))
    for rule, through in ((EProp(), 3), (EProp("random"), 4), (RTRL(), 3)):
        found = of_gradient(network, rule, params, jnp.full(1, -3.0))
        # Decay, two synapses and a bias.
        assert found[("layer 1, influences", "influence", MAC)] == 3 * 2 * 4 * (2 + 2)
        assert found[("layer 1, influences", "add", ADD)] == 2 * (3 * 2 + 3 * 2 + 3 * 2)
        # What reaches v and s of each neuron and tick, and then through the weights.
        assert found[("layer 1", "backward", MAC)] == 3 * 2 * 2 + 3 * through


def test_influences_are_no_part_of_a_decision_and_random_feedback_passes_through_all_of_a_readout() -> None:
    network = replace(TWO, readout=RateReadout())
    params = network.init(3, 1, KEY)
    params = eqx.tree_at(lambda p: p.readout.weight, params, jnp.array([[0.0], [1.0]]))
    x = jnp.zeros(3)
    decisions = [_lines({"a": replace(network, rule=rule).operations(params, x)}) for rule in (BPTT(), RTRL(), EProp("random"))]
    assert decisions[0] == decisions[1] == decisions[2]
    found = of_gradient(network, EProp("random"), params, x)
    assert (found[("readout, weights", "multiply_accumulate", MAC)], found[("readout, feedback", "backward", MAC)]) == (1, 2)
    assert ("readout", "backward", MAC) not in found


def test_influences_of_a_persistent_network_are_of_each_synapse() -> None:
    network = replace(TWO, persistent=True)
    params = network.init(3, 1, KEY)
    found = _lines({"a": replace(network, rule=RTRL()).operations(params, jnp.ones(3))}, {"a": Calls(0, 1)})
    numbers = {(line.part, line.kind): line.number for line in found}
    # Decay, current, three synapses and a bias; each synapse adds its input times what a current does.
    assert numbers[("layer 1, influences", "influence")] == 3 * 2 * 6 * (2 + 2) + 2 * 3 * 2 * 3
