"""Learning rules against backpropagation through time: equal where exact, near where not, and at a cost that does not grow."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import kinds

from spikedream.snn.affine import Affine
from spikedream.snn.encoders import DirectCurrent, GaussianPopulation
from spikedream.snn.learning_rules.influence import at_rest
from spikedream.snn.learning_rules.pattern import Every, Own, Some, over_blocks
from spikedream.snn.learning_rules.protocol import SpikingLayer
from spikedream.snn.learning_rules.rtrl import kept
from spikedream.snn.networks import BPTT, RTRL, AnyRule, EProp, SnAp, SpikingNetwork
from spikedream.snn.neurons import LIF, AdaptiveCubaLIF, AdaptiveLIF, CubaLIF, heard
from spikedream.snn.readouts import LeakyReadout, MembraneReadout, PopulationReadout
from spikedream.snn.surrogates import Rectangular

INPUTS, OUTPUTS = 3, 2


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def gradient(network: SpikingNetwork, rule: AnyRule, steps: int = 1, *, online: bool = False, dtype=jnp.float64):
    """Of a loss of `steps` environment steps by the parameters and by what entered; `online` never looks back at a step."""
    network = replace(network, rule=rule)
    key, x_key, weight_key = jax.random.split(jax.random.key(1), 3)
    params = jax.jit(network.init, static_argnums=(0, 1))(INPUTS, OUTPUTS, key)
    params = wide(params) if dtype == jnp.float64 else params
    x = 1.5 * jax.random.normal(x_key, (steps, INPUTS), dtype)
    weights = jax.random.normal(weight_key, (steps, OUTPUTS), dtype)

    def one(params, carry, x, weights):
        out = network(params, x, jax.lax.stop_gradient(carry) if online else carry)
        rates = sum(jnp.square(spikes.mean(0)).sum() for spikes in out.spikes)
        return (out.value * weights).sum() + 0.1 * rates, out.carry

    def total(params, x):
        def step(carry, now):
            loss, carry = one(params, carry, *now)
            return carry, loss

        return jax.lax.scan(step, network.start(params), (x, weights))[1].sum()

    def forward(params, x):
        def step(now, row):
            carry, total = now
            found, carry = jax.grad(one, has_aux=True)(params, carry, *row)
            return (carry, jax.tree.map(jnp.add, total, found)), None

        return jax.lax.scan(step, (network.start(params), jax.tree.map(jnp.zeros_like, params)), (x, weights))[0][1]

    return jax.jit(forward if online else jax.grad(total, (0, 1)))(params, x)


def difference(a, b) -> float:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def cosine(a, b) -> float:
    a, b = (np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


SMALL = SpikingNetwork(hidden=(6,), ticks=4, readout=MembraneReadout())
HEARING = replace(SMALL, neuron=LIF(recurrent=True, recurrent_gain=1.5, learn_threshold=True))
EXACT = {
    "LIF": (SMALL, RTRL()),
    "hard reset, current, leaky readout": (replace(SMALL, neuron=CubaLIF(learn_threshold=True), readout=LeakyReadout()), RTRL()),
    "adaptive, without reset in the gradient": (replace(SMALL, neuron=AdaptiveLIF(detach_reset=True)), RTRL()),
    "all hear all": (HEARING, RTRL()),
    "many tire and hear few": (
        replace(SMALL, hidden=(20,), neuron=AdaptiveCubaLIF(recurrent=True, recurrent_fan_in=2, surrogate=Rectangular(3.0))),
        RTRL(),
    ),
    "branches": (replace(HEARING, hidden=(9,), branches=(0.5, 0.8, 0.9)), RTRL()),
    "e-prop where none hears another": (replace(SMALL, readout=PopulationReadout()), EProp()),
    "SnAp as far as it goes": (replace(HEARING, neuron=replace(HEARING.neuron, recurrent_fan_in=2)), SnAp(7)),
}


@pytest.mark.parametrize(("network", "rule"), EXACT.values(), ids=EXACT)
def test_equal_to_backpropagation_through_time_where_exact(network, rule, float64):
    wanted, found = (gradient(network, each) for each in (BPTT(), rule))
    assert difference(wanted, found) < 1e-10 < 1e-3 < difference(wanted, jax.tree.map(jnp.zeros_like, wanted))


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("network", [SMALL, HEARING], ids=["apart", "hearing"])
def test_exact_over_the_steps_of_an_episode_without_looking_back(network, online, float64):
    network = replace(network, persistent=True)
    wanted, found = gradient(network, BPTT(), 4)[0], gradient(network, RTRL(), 4, online=online)
    assert difference(wanted, found if online else found[0]) < 1e-10
    # Without the carried influence a step knows of itself alone.
    assert difference(wanted, gradient(network, BPTT(), 4, online=True)) > 1e-3


def test_exact_for_all_but_the_encoder_where_the_input_changes_from_tick_to_tick(float64):
    network = replace(HEARING, encoder=GaussianPopulation(fields=3))
    (wanted, _), (found, _) = (gradient(network, rule) for rule in (BPTT(), RTRL()))
    assert difference((wanted.layers, wanted.readout), (found.layers, found.readout)) < 1e-10
    assert 0.5 < cosine(wanted.encoder, found.encoder) < 1 - 1e-4


def test_the_last_of_several_layers_is_exact_and_those_before_are_near(float64):
    network = replace(SMALL, hidden=(12, 8))
    (wanted, _), (found, _) = (gradient(network, rule) for rule in (BPTT(), RTRL()))
    assert difference((wanted.layers[1], wanted.readout), (found.layers[1], found.readout)) < 1e-10
    assert 0.7 < cosine(wanted.layers[0], found.layers[0]) < 0.999


def test_snap_comes_nearer_with_each_order_and_keeps_a_part_of_the_influence():
    few = LIF(recurrent=True, recurrent_gain=2.0, recurrent_fan_in=4)
    network = SpikingNetwork(hidden=(40,), ticks=12, neuron=few)
    exact, *near = (gradient(network, rule, dtype=jnp.float32)[0].layers for rule in (RTRL(), SnAp(1), SnAp(2)))
    near = [cosine(exact, each) for each in near]
    assert near[0] < 0.95 < near[1] < 0.9999
    patterns = [kept(few, 40, 1, order - 1) for order in (1, 2)]
    assert [pattern.most for pattern in patterns] == [1, 5]
    assert isinstance(kept(few, 40, 1, 40), Every) and isinstance(kept(LIF(), 40, 1, 1), Own)


def test_each_hears_as_many_as_are_told_and_is_heard_by_as_many():
    neuron = LIF(recurrent=True, recurrent_fan_in=3)
    found = heard(neuron, 12, 2)
    assert (found.sum(0) == 3).all() and (found.sum(1) == 3).all()
    assert not found[:6, 6:].any() and not found[6:, :6].any()
    params = replace(SMALL, hidden=(12,), neuron=neuron).init(INPUTS, OUTPUTS, jax.random.key(0)).layers[0].neuron
    state = neuron.start(12)._replace(spikes=jnp.zeros(12).at[5].set(1.0))
    moved = neuron.step(params, state, jnp.zeros(12)).v != 0
    np.testing.assert_array_equal(moved, heard(neuron, 12)[5])
    with pytest.raises(ValueError, match="recurrent_fan_in is 0"):
        LIF(recurrent_fan_in=0)


@pytest.mark.parametrize("number", [0, 5, 8, 13, 30])
def test_what_is_not_active_is_not_visited(number):
    active = jnp.arange(30) % 30 < number

    def count(index, counts, total):
        return total.at[index].add(counts)

    np.testing.assert_array_equal(over_blocks(active, count, jnp.zeros(30)), active.astype(float))


def test_eprop_without_the_reset_is_off_and_points_the_same_way(float64):
    network = replace(SMALL, hidden=(20,), ticks=8)
    exact, _ = gradient(network, BPTT())
    assert difference(exact, gradient(network, EProp())[0]) < 1e-10
    assert 0.7 < cosine(exact.layers, gradient(network, EProp(reset=False))[0].layers) < 0.995
    hearing = replace(network, neuron=LIF(recurrent=True))
    assert 0.7 < cosine(gradient(hearing, BPTT())[0], gradient(hearing, EProp())[0]) < 0.999


def test_random_feedback_carries_the_gradient_through_fixed_weights(float64):
    network = SpikingNetwork(hidden=(6,), ticks=4, rule=EProp("random"))
    params = wide(jax.jit(network.init, static_argnums=(0, 1))(INPUTS, OUTPUTS, jax.random.key(0)))
    x = jnp.arange(1.0, 1 + INPUTS)

    @partial(jax.jit, static_argnums=1)
    def value_and_slope(params, network):
        return jax.value_and_grad(lambda p: network(p, x).value.sum())(params)

    wanted, found = value_and_slope(params, network)
    symmetric = replace(network, rule=EProp())
    assert wanted == value_and_slope(params, symmetric)[0]
    # By hand: with the readout's weights replaced by those that are drawn for their shape.
    feedback = jax.random.normal(jax.random.key(6 * 65_537 + OUTPUTS), (6, OUTPUTS), jnp.float64) / 6**0.5
    other = eqx.tree_at(lambda p: p.readout.weight, params, feedback)
    assert difference(found.layers, value_and_slope(other, symmetric)[1].layers) < 1e-12
    assert difference(found.readout, value_and_slope(params, symmetric)[1].readout) < 1e-12
    assert difference(found.layers, value_and_slope(params, symmetric)[1].layers) > 1e-3


@pytest.mark.parametrize("rule", [kind() for kind in kinds(AnyRule)], ids=lambda rule: type(rule).__name__)
def test_no_rule_changes_what_the_network_says(rule):
    network = replace(HEARING, encoder=DirectCurrent(), persistent=True)
    params, x = network.init(INPUTS, OUTPUTS, jax.random.key(0)), jnp.arange(1.0, 1 + INPUTS)
    say = jax.jit(lambda network: network(params, x, network(params, x, network.start(params)).carry), static_argnums=0)
    wanted, found = say(network), say(replace(network, rule=rule))
    np.testing.assert_allclose(found.value, wanted.value, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.spikes[0], wanted.spikes[0])


@partial(jax.jit, static_argnums=(0, 1))
def learned_online(network, steps, params):
    """Summed gradient of so many steps, each learned from as it comes."""

    def loss(params, carry, i):
        out = network(params, jnp.sin(i * jnp.arange(1.0, 1 + INPUTS)), carry)
        return jnp.square(out.value).sum(), out.carry

    def step(now, i):
        carry, total = now
        found, carry = jax.grad(loss, has_aux=True)(params, carry, i)
        return (carry, jax.tree.map(jnp.add, total, found)), None

    first = (network.start(params), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(step, first, jnp.arange(steps, dtype=jnp.float32))[0][1]


def memory(function, *arguments) -> int:
    found = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return found.temp_size_in_bytes


def test_memory_does_not_grow_with_the_steps():
    network = replace(HEARING, persistent=True, rule=RTRL())
    params = network.init(INPUTS, OUTPUTS, jax.random.key(0))
    short, long = (memory(partial(learned_online, network, steps), params) for steps in (100, 10_000))
    assert long - short <= 4 * 10_000 + 100  # the steps' own numbers, which are counted off

    def whole(steps, params):
        back = replace(network, rule=BPTT())

        def step(carry, i):
            out = back(params, jnp.sin(i * jnp.arange(1.0, 1 + INPUTS)), carry)
            return out.carry, jnp.square(out.value).sum()

        return jax.lax.scan(step, back.start(params), jnp.arange(steps, dtype=jnp.float32))[1].sum()

    backwards = [memory(jax.grad(partial(whole, steps)), params) for steps in (100, 10_000)]
    assert backwards[1] > 50 * backwards[0]


def test_influences_that_decay_become_zero_and_no_denormals():
    network = replace(SMALL, persistent=True, rule=RTRL(), neuron=LIF(decay=(0.5, 0.6)), bias=(-2.0, -1.0))
    params = network.init(INPUTS, OUTPUTS, jax.random.key(0))
    layer = params.layers[0]
    start = network.start(params)
    touched = jax.tree.map(lambda x: x + 1.0, start[2])

    def step(influence, _):
        state = network.neuron.start(6)  # silent from here on, whatever entered before
        found = network.rule.window(network.neuron, layer, jnp.zeros((1, INPUTS)), state, influence, 4)
        return found.influence, None

    after = jax.jit(lambda influence: jax.lax.scan(step, influence, None, length=60)[0])(touched[0])
    weights = np.asarray(after["synapse"].v[:INPUTS])
    assert not weights.any() and np.asarray(after["synapse"].v[INPUTS]).all()
    numbers = np.concatenate([np.abs(x).reshape(-1) for x in jax.tree.leaves(after)])
    assert not ((numbers > 0) & (numbers < np.finfo(np.float32).tiny)).any()


def test_influence_is_kept_in_the_order_of_its_pattern():
    synapse, params = Affine(jnp.zeros((INPUTS, 10)), jnp.zeros(10)), LIF(recurrent=True, recurrent_fan_in=2)
    neurons = params.init(10, jax.random.key(0))
    listened = heard(params, 10)
    for pattern, shape in ((Own(10), (4, 10)), (Every(10), (10, 4, 10)), (Some(listened, 1), (10, 3, 4))):
        found = at_rest(params, pattern, SpikingLayer(synapse, neurons))
        assert found["synapse"].v.shape == shape and set(found) == {"synapse", "neuron", "recurrent"}


@pytest.mark.parametrize("rule", [RTRL(), SnAp(), EProp()])
def test_neurons_that_a_rule_does_not_hold_for_are_refused(rule):
    with pytest.raises(ValueError, match=f'{type(rule).__name__} follows each neuron by itself, which norm "layer" of LIF'):
        SpikingNetwork(neuron=LIF(norm="layer"), rule=rule)
