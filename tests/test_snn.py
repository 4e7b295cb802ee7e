"""Spiking neurons against closed forms, surrogate gradients, encoders and readouts by hand, and the contract of every network."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import encoders, finite, kinds, same, shapes, small

from spikedream.ops.fitting import matrices
from spikedream.snn import surrogates
from spikedream.snn.affine import Affine
from spikedream.snn.conventional import GRU, MLP, Linear
from spikedream.snn.encoders import DirectCurrent, GaussianPopulation
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF, AdaptiveCubaLIF, AdaptiveLIF, AnyNeuron, CubaLIF, LeakyIntegrator
from spikedream.snn.readouts import (
    AnyReadout,
    LeakyReadout,
    MembraneReadout,
    MembraneWeights,
    PopulationReadout,
    PopulationVectorReadout,
    PopulationVectorWeights,
    PopulationWeights,
    RateReadout,
)
from spikedream.snn.surrogates import ArcTan, FastSigmoid, Rectangular, spike

KEY = jax.random.key(0)
NEURONS = kinds(AnyNeuron)
SURROGATES = kinds(surrogates.AnySurrogate)
NETWORKS = kinds(AnyNetwork)
FEED_FORWARD = [kind for kind in NETWORKS if not kind().persistent]
LAYERED = [kind for kind in FEED_FORWARD if kind is not Linear]
NO_LEAK = 20.0  # its logistic function is 1 in float32


def run(neuron, params, inputs):
    """States of one neuron under `inputs`, (ticks,); every field becomes (ticks,)."""
    state, history = neuron.start(1), []
    for x in inputs:
        state = neuron.step(params, state, jnp.full(1, x, jnp.float32))
        history.append(state)
    return jax.tree.map(lambda *values: np.asarray(jnp.stack(values))[:, 0], *history)


def without_leak(params):
    return eqx.tree_at(lambda p: p.decay, params, jnp.full_like(params.decay, NO_LEAK))


# ---- membranes


def test_lif_below_threshold_is_a_geometric_series():
    b, x, t = 0.9, 0.05, np.arange(30)
    neuron = LIF(decay=(b, b))
    trace = run(neuron, neuron.init(1, KEY), [x] * 30)
    assert not trace.spikes.any()
    np.testing.assert_allclose(trace.v, x * (1 - b ** (t + 1)) / (1 - b), rtol=1e-5)


def test_lif_hard_reset_fires_with_the_closed_form_period():
    b, x, threshold = 0.8, 0.3, 0.7
    neuron = LIF(decay=(b, b), threshold=threshold, reset="hard")
    trace = run(neuron, neuron.init(1, KEY), [x] * 40)
    period = math.ceil(math.log(1 - threshold * (1 - b) / x) / math.log(b))
    assert period == 3
    np.testing.assert_array_equal(np.flatnonzero(trace.spikes), np.arange(period - 1, 40, period))
    assert (trace.v[trace.spikes == 1] == 0).all()


def test_lif_soft_reset_keeps_what_lies_above_threshold():
    # u = 0.6 0.9 1.05* | 0.05/2 + 0.6 = 0.625, 0.9125, 1.05625* | 0.628125, 0.9140625, 1.05703125*
    neuron = LIF(decay=(0.5, 0.5), threshold=1.0, reset="soft")
    trace = run(neuron, neuron.init(1, KEY), [0.6] * 9)
    np.testing.assert_array_equal(trace.spikes, [0, 0, 1] * 3)
    np.testing.assert_allclose(trace.v, [0.6, 0.9, 0.05, 0.625, 0.9125, 0.05625, 0.628125, 0.9140625, 0.05703125], rtol=1e-5)


def test_soft_reset_without_leak_fires_as_often_as_the_charge_fills_the_threshold():
    neuron = LIF(threshold=1.0)
    trace = run(neuron, without_leak(neuron.init(1, KEY)), [0.3] * 23)
    np.testing.assert_array_equal(np.cumsum(trace.spikes), np.floor(0.3 * np.arange(1, 24) + 1e-4))


def test_a_spike_comes_at_the_threshold_itself_and_not_below():
    neuron = LIF(decay=(0.5, 0.5), threshold=1.0)
    params = neuron.init(1, KEY)
    assert run(neuron, params, [1.0]).spikes[0] == 1
    assert run(neuron, params, [1.0 - 1e-6]).spikes[0] == 0


@pytest.mark.parametrize("threshold", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("kind", [LIF, AdaptiveLIF])
def test_soft_reset_without_leak_conserves_charge(kind, threshold):
    neuron = kind(threshold=threshold, reset="soft", **({"adaptation": 0.0} if kind is AdaptiveLIF else {}))
    inputs = np.random.default_rng(0).uniform(-0.3, 0.9, 200).astype(np.float32)
    trace = run(neuron, without_leak(neuron.init(1, KEY)), inputs)
    assert 20 < trace.spikes.sum() < 200
    np.testing.assert_allclose(threshold * trace.spikes.sum() + trace.v[-1], inputs.sum(), atol=1e-4)


def test_cuba_lif_answers_an_impulse_with_a_double_exponential():
    a, b, t = 0.6, 0.9, np.arange(40)
    neuron = CubaLIF(synapse_decay=(a, a), decay=(b, b), threshold=10.0)
    trace = run(neuron, neuron.init(1, KEY), [1.0] + [0.0] * 39)
    np.testing.assert_allclose(trace.current, a**t, rtol=1e-4)
    np.testing.assert_allclose(trace.v, (b ** (t + 1) - a ** (t + 1)) / (b - a), rtol=1e-4)


def test_cuba_lif_hard_reset_clears_the_membrane_but_not_the_current():
    # i = 0.4 0.6 0.7; u = 0.4, 0.3 + 0.6 = 0.9*, 0 + 0.7 = 0.7*
    neuron = CubaLIF(synapse_decay=(0.5, 0.5), decay=(0.75, 0.75), threshold=0.5, reset="hard")
    trace = run(neuron, neuron.init(1, KEY), [0.4] * 3)
    np.testing.assert_array_equal(trace.spikes, [0, 1, 1])
    np.testing.assert_allclose(trace.current, [0.4, 0.6, 0.7], rtol=1e-6)
    np.testing.assert_allclose(trace.v, [0.4, 0, 0], rtol=1e-6)


def test_adaptive_lif_threshold_rises_with_a_spike_and_decays():
    c, k = 0.8, 2.0
    neuron = AdaptiveLIF(decay=(0.1, 0.1), adaptation_decay=(c, c), adaptation=k, reset="hard")
    params = neuron.init(1, KEY)
    trace = run(neuron, params, [1.2] + [0.0] * 9)
    np.testing.assert_array_equal(trace.spikes, [1] + [0] * 9)
    np.testing.assert_allclose(trace.adaptation, [0, *((1 - c) * c ** np.arange(9))], rtol=1e-5)
    # The threshold is 1 at rest and 1 + 2 * 0.2 = 1.4 right after a spike; 1.2 reaches the one and not the other.
    np.testing.assert_array_equal(run(neuron, params, [1.2, 1.2]).spikes, [1, 0])
    np.testing.assert_array_equal(run(neuron, params, [1.2, 1.41]).spikes, [1, 1])


def test_adaptive_lif_soft_reset_subtracts_the_raised_threshold():
    neuron = AdaptiveLIF(decay=(0.5, 0.5), adaptation_decay=(0.8, 0.8), adaptation=2.0, reset="soft")
    trace = run(neuron, neuron.init(1, KEY), [1.0, 1.5])
    np.testing.assert_allclose(trace.v, [0.0, 0.1], atol=1e-6)


def test_adaptive_cuba_lif_by_hand():
    # i = 0.7 0.35 0.875 1.1375 1.26875 from inputs 0.7 0 0.7 0.7 0.7; the threshold rises by 0.1 a spike and decays by 0.9.
    # u = 0.7* | 0.35 | 0.75 x 0.35 + 0.875 = 1.1375* | 1.1375* | 1.26875*, against 0.5, 0.6, 0.59, 0.681, 0.7629
    neuron = AdaptiveCubaLIF()
    trace = run(neuron, neuron.init(1, KEY), [0.7, 0.0, 0.7, 0.7, 0.7])
    np.testing.assert_array_equal(trace.spikes, [1, 0, 1, 1, 1])
    np.testing.assert_allclose(trace.current, [0.7, 0.35, 0.875, 1.1375, 1.26875], rtol=1e-5)
    np.testing.assert_allclose(trace.v, [0, 0.35, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(trace.adaptation, [0, 0.1, 0.09, 0.181, 0.2629], rtol=1e-5)


def test_adaptive_cuba_lif_answers_an_impulse_as_cuba_lif_until_it_fires():
    a, b, t = 0.6, 0.9, np.arange(20)
    neuron = AdaptiveCubaLIF(synapse_decay=(a, a), decay=(b, b), threshold=10.0)
    trace = run(neuron, neuron.init(1, KEY), [1.0] + [0.0] * 19)
    np.testing.assert_allclose(trace.v, (b ** (t + 1) - a ** (t + 1)) / (b - a), rtol=1e-4)
    assert not trace.adaptation.any()


@pytest.mark.parametrize("kind", NEURONS)
def test_a_decaying_input_makes_the_membrane_a_running_average(kind):
    # Without a synaptic memory: v[t] = x (1 - b^(t+1)), whatever b is.
    b, x, t = 0.8, 0.3, np.arange(25)
    memory = {"synapse_decay": (1e-6, 1e-6)} if hasattr(kind(), "synapse_decay") else {}
    neuron = kind(decay=(b, b), threshold=1.0, decay_input=True, **memory)
    trace = run(neuron, neuron.init(1, KEY), [x] * 25)
    np.testing.assert_allclose(trace.v, x * (1 - b ** (t + 1)), rtol=1e-4)


@pytest.mark.parametrize("branches", [1, 2])
def test_a_layer_norm_standardises_the_whole_current_of_each_branch(branches):
    neuron = LIF(decay=(1e-6, 1e-6), threshold=9.0, norm="layer", recurrent=True)
    recurrent = jnp.arange(6 * 6 / branches).reshape((branches, 6 // branches, 6 // branches) if branches > 1 else (6, 6))
    params = replace(neuron.init(6, KEY), recurrent=recurrent, branches=branches)
    x, spikes = np.array([0.3, -2.0, 5.0, 0.1, 0.2, -0.4], np.float32), np.array([1.0, 0, 1, 0, 1, 1], np.float32)
    state = neuron.start(6)._replace(spikes=jnp.asarray(spikes))
    blocks = [recurrent] if branches == 1 else list(recurrent)
    fed = [part @ np.asarray(block) for part, block in zip(np.split(spikes, branches), blocks, strict=True)]
    each = np.split(x + np.concatenate(fed), branches)
    wanted = np.concatenate([(part - part.mean()) / np.sqrt(part.var() + 1e-5) for part in each])
    np.testing.assert_allclose(jax.jit(neuron.step)(params, state, jnp.asarray(x)).v, wanted, atol=2e-4)


def test_leaky_integrator_is_a_geometric_series_and_never_fires():
    b, x, t = 0.9, 5.0, np.arange(30)
    neuron = LeakyIntegrator(decay=(b, b))
    trace = run(neuron, neuron.init(1, KEY), [x] * 30)
    assert not trace.spikes.any()
    np.testing.assert_allclose(trace.v, x * (1 - b ** (t + 1)) / (1 - b), rtol=1e-5)


@pytest.mark.parametrize("kind", NEURONS)
def test_recurrent_weights_carry_last_ticks_spikes(kind):
    neuron = kind(threshold=1.0, recurrent=True)
    params = eqx.tree_at(lambda p: p.recurrent, neuron.init(2, KEY), jnp.array([[0.0, 3.0], [0.0, 0.0]]))
    first = neuron.step(params, neuron.start(2), jnp.array([2.0, 0.0]))
    second = neuron.step(params, first, jnp.zeros(2))
    assert first.spikes.tolist() == [1, 0]
    assert second.spikes[1] == 1  # driven by 3.0 through the weight from neuron 0


@pytest.mark.parametrize("kind", NEURONS)
def test_decays_spread_over_the_layer_between_the_given_bounds(kind):
    neuron = kind(decay=(0.3, 0.9))
    np.testing.assert_allclose(jax.nn.sigmoid(neuron.init(4, KEY).decay), [0.3, 0.5, 0.7, 0.9], rtol=1e-5)


# ---- gradients


@pytest.mark.parametrize("kind", SURROGATES)
def test_surrogate_has_unit_area_or_as_documented_unit_peak(kind):
    surrogate = kind()
    x = np.sinh(np.linspace(-16, 16, 400_001))  # dense at 0, wide enough for heavy tails
    area = np.trapezoid(np.asarray(surrogate.derivative(jnp.asarray(x, jnp.float32)), np.float64), x)
    if kind is FastSigmoid:
        assert float(surrogate.derivative(jnp.zeros(()))) == 1.0
        assert area == pytest.approx(2 / surrogate.sharpness, rel=1e-3)
    else:
        assert area == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind", SURROGATES)
def test_spike_is_a_step_with_the_surrogates_derivative_forward_and_backward(kind):
    surrogate, x = kind(), jnp.array([-1.3, -0.4, -1e-3, 0.0, 0.2, 0.45, 2.0])
    wanted = surrogate.derivative(x)
    value, tangent = jax.jvp(lambda e: spike(e, surrogate), (x,), (jnp.full_like(x, 2.0),))
    np.testing.assert_array_equal(value, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(tangent, 2 * wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda e: (3 * spike(e, surrogate)).sum())(x), 3 * wanted, rtol=1e-6)
    assert wanted.max() > 0 and (wanted >= 0).all()


def test_rectangular_surrogate_is_exactly_zero_outside_its_width():
    derivative = Rectangular(width=0.5).derivative(jnp.array([-0.26, -0.24, 0.0, 0.24, 0.26]))
    assert derivative.tolist() == [0, 2, 2, 2, 0]


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("u", [0.8, 1.3])
def test_gradient_through_the_reset_is_there_unless_detached(reset, detach, u):
    surrogate = ArcTan()
    neuron = LIF(threshold=1.0, reset=reset, detach_reset=detach, surrogate=surrogate)
    params, fired = neuron.init(1, KEY), float(u >= 1)
    slope = jax.grad(lambda x: neuron.step(params, neuron.start(1), x).v[0])(jnp.full(1, u))
    bump = 0.0 if detach else float(surrogate.derivative(jnp.asarray(u - 1.0)))
    wanted = 1 - bump if reset == "soft" else (1 - fired) - u * bump
    assert float(slope[0]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize(("decay", "threshold"), [(False, True), (True, False)])
@pytest.mark.parametrize("readout", [RateReadout(), MembraneReadout()], ids=["rate", "membrane"])
def test_what_is_not_to_be_learned_gets_no_gradient(kind, decay, threshold, readout):
    neuron = kind(threshold=0.8, learn_decay=decay, learn_threshold=threshold)
    network = SpikingNetwork(hidden=(12,), ticks=5, neuron=neuron, readout=readout, gain=2.0)
    params = network.init(3, 2, KEY)
    loss = jax.jit(jax.grad(lambda p: network(p, jnp.array([1.0, -0.5, 0.7])).value.sum()))
    slopes = loss(params).layers[0].neuron
    for slope in (slopes.decay, slopes.synapse_decay, slopes.adaptation_decay):
        assert slope is None or bool((slope != 0).any()) is decay
    assert bool((slopes.threshold != 0).any()) is threshold


# ---- encoders


@pytest.mark.parametrize("encoder", encoders(), ids=repr)
def test_encoder_gives_the_channels_it_announces(encoder):
    out = jax.eval_shape(lambda x, k: encoder.encode(encoder.init(3), x, 5, k), jnp.zeros(3), KEY)
    assert out.shape[1] == encoder.channels(3)
    assert out.shape[0] in (1, 5)


def test_direct_current_is_the_input():
    x = jnp.array([0.3, -2.0])
    assert DirectCurrent().encode(None, x, 7, None).tolist() == x[None].tolist()


def test_deterministic_population_fires_in_proportion_to_its_gaussian_activation():
    encoder = GaussianPopulation(fields=3, span=1.0, width=0.5)  # means -1, 0, 1
    train = encoder.encode(encoder.init(1), jnp.array([0.25]), 10, None)
    activation = np.exp(-0.5 * ((0.25 - np.array([-1, 0, 1])) / 0.5) ** 2)  # 0.0439, 0.8825, 0.3247
    np.testing.assert_array_equal(train.sum(0), np.floor(10 * activation))  # 0, 8, 3
    assert set(np.unique(train)) == {0.0, 1.0}
    peak = encoder.encode(encoder.init(1), jnp.array([0.0]), 10, None)
    assert peak[:, 1].tolist() == [1.0] * 10


def test_a_population_as_a_current_is_its_activation_and_squashing_is_of_the_input():
    x, centres = np.array([0.25, -3.0]), np.array([-1, 0, 1])
    for squash in (False, True):
        encoder = GaussianPopulation(fields=3, span=1.0, width=0.5, mode="current", squash=squash)
        seen = np.tanh(x) if squash else x
        wanted = np.exp(-0.5 * ((seen[:, None] - centres) / 0.5) ** 2).ravel()
        np.testing.assert_allclose(encoder.encode(encoder.init(2), jnp.asarray(x), 5, None), wanted[None], rtol=1e-4)


def test_poisson_population_fires_at_its_activation_on_average_and_passes_the_gradient():
    encoder = GaussianPopulation(fields=3, span=1.0, width=0.5, mode="poisson")
    params, x = encoder.init(1), jnp.array([0.25])
    train = encoder.encode(params, x, 20_000, KEY)
    activation = np.exp(-0.5 * ((0.25 - np.array([-1, 0, 1])) / 0.5) ** 2)
    assert set(np.unique(train)) == {0.0, 1.0}
    np.testing.assert_allclose(train.mean(0), activation, atol=4 * 0.5 / math.sqrt(20_000))
    slope = jax.jacobian(lambda y: encoder.encode(params, y, 4, KEY).mean(0))(x)[:, 0]
    np.testing.assert_allclose(slope, activation * -(0.25 - np.array([-1, 0, 1])) / 0.25, rtol=1e-4)


def test_poisson_population_differs_between_keys_and_refuses_to_go_without_one():
    encoder = GaussianPopulation(mode="poisson")
    params, x = encoder.init(2), jnp.array([0.5, -0.5])
    first, again, other = (encoder.encode(params, x, 8, k) for k in (KEY, KEY, jax.random.key(1)))
    assert same(first, again) and not same(first, other)
    with pytest.raises(ValueError, match="needs a key"):
        encoder.encode(params, x, 8, None)


def test_deterministic_population_passes_a_gradient_to_input_and_receptive_fields():
    encoder = GaussianPopulation(fields=3, span=1.0)
    gradient = jax.grad(lambda p, x: encoder.encode(p, x, 6, None).sum(), argnums=(0, 1))(encoder.init(1), jnp.array([0.4]))
    assert finite(gradient)
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradient))


def test_the_last_inputs_enter_as_constant_currents_beside_the_spikes_of_a_population():
    encoder, x = GaussianPopulation(fields=3, currents=2), jnp.array([0.4, -0.3, 7.0])
    assert encoder.channels(3) == 5
    encoded = encoder.encode(encoder.init(3), x, 4, None)
    alone = replace(encoder, currents=0)
    np.testing.assert_array_equal(encoded[:, :3], alone.encode(alone.init(1), x[:1], 4, None))
    np.testing.assert_array_equal(encoded[:, 3:], jnp.tile(x[None, 1:], (4, 1)))
    with pytest.raises(ValueError, match="currents is 2; of the network's 2 inputs at least one must be encoded"):
        encoder.init(2)


# ---- readouts

SPIKES = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # (ticks, neurons)


def test_rate_readout_by_hand():
    params = Affine(jnp.array([[3.0], [-6.0]]), jnp.array([0.5]))
    value, state, trains = RateReadout().decode(params, None, SPIKES, jnp.full((3, 2), 9.0))
    assert float(value[0]) == pytest.approx(3 * 2 / 3 - 6 / 3 + 0.5)
    assert state is None and trains == ()


def test_membrane_readout_by_hand():
    params = MembraneWeights(Affine(jnp.array([[3.0], [-6.0]]), jnp.array([0.5])), jnp.array([[10.0], [20.0]]))
    v = jnp.array([[7.0, 7.0], [7.0, 7.0], [0.3, -0.6]])  # the last counts
    value, _, trains = MembraneReadout().decode(params, None, SPIKES, v)
    charge = 3 * (2 / 3 + 0.1) - 6 * (1 / 3 - 0.2) + 0.5
    assert float(value[0]) == pytest.approx(charge + 10 * 2 / 3 + 20 / 3, rel=1e-6)
    assert trains == ()
    assert float(MembraneReadout().curvature(params)) == pytest.approx((100 + 400) / 2)


def test_leaky_readout_by_hand():
    readout = LeakyReadout(neuron=LeakyIntegrator(decay=(0.5, 0.5)))
    params = eqx.tree_at(lambda p: p.synapse, readout.init(2, 1, KEY), Affine(jnp.array([[1.0], [4.0]]), jnp.zeros(1)))
    value, state, _ = readout.decode(params, readout.start(params), SPIKES, jnp.zeros((3, 2)))
    assert float(state.v[0]) == pytest.approx(1 / 4 + 4 / 2 + 1)
    assert float(value[0]) == pytest.approx((1 / 4 + 4 / 2 + 1) / 3)


def test_population_readout_by_hand():
    # Neuron 0: i = 1.2 0.6 0.3, u = 1.2* 0.6* 0.3; neuron 1: i = -1.2 ..., silent. Neurons 2, 3 (second output): 0.4 a tick
    # from the bias, i = 0.4 0.6 0.7, u = 0.4 0.9* 0.7*; and none.
    neuron = CubaLIF(synapse_decay=(0.5, 0.5), decay=(0.75, 0.75), threshold=0.5, reset="hard")
    readout = PopulationReadout(neurons=2, neuron=neuron)
    params = PopulationWeights(
        Affine(jnp.array([[1.2, -1.2, 0.0, 0.0]]), jnp.array([0.0, 0.0, 0.4, 0.0])),
        readout.neuron.init(4, KEY),
        jnp.array([[2.0, -3.0], [6.0, 1.0]]),
        jnp.array([0.1, -0.2]),
    )
    value, _, (train,) = readout.decode(params, readout.start(params), jnp.array([[1.0], [0.0], [0.0]]), jnp.zeros((3, 1)))
    np.testing.assert_array_equal(train, [[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]])
    np.testing.assert_allclose(value, [2 * 2 / 3 + 0.1, 6 * 2 / 3 - 0.2], rtol=1e-6)


@pytest.mark.parametrize("membranes", [True, False])
def test_population_vector_readout_by_hand(membranes):
    v = jnp.array([[0.3, 0.6], [0.0, -0.3], [0.0, 0.0]])
    seen = np.array([2 / 3, 1 / 3, 0.1, 0.1] if membranes else [2 / 3, 1 / 3])  # mean spikes, mean membranes
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in ((seen.size, 4), (4, 6), (4, 2))]
    readout = PopulationVectorReadout(hidden=4, neurons=3, span=1.5, share=0.6, membranes=membranes)
    params = PopulationVectorWeights(*(Affine(*map(jnp.float32, pair)) for pair in weights))
    (mix, activity, direct) = weights
    hidden = seen @ mix[0] + mix[1]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    hidden = hidden / (1 + np.exp(-hidden))
    active = np.exp((hidden @ activity[0] + activity[1]).reshape(2, 3))
    vector = 1.5 * (active[:, 2] - active[:, 0]) / active.sum(1)  # preferred values -1.5, 0, 1.5
    wanted = 0.6 * vector + 0.4 * (hidden @ direct[0] + direct[1])
    value, state, trains = readout.decode(params, None, SPIKES, v)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    assert state is None and trains == ()


@pytest.mark.parametrize("threshold", [1.0, 0.6])
def test_membrane_readout_makes_a_network_without_leak_start_affine(threshold):
    network = SpikingNetwork(hidden=(7,), ticks=6, neuron=LIF(threshold=threshold), readout=MembraneReadout())
    params = network.init(3, 2, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].neuron, params, without_leak(params.layers[0].neuron))
    x = jax.random.normal(jax.random.key(1), (50, 3))
    out = jax.jit(jax.vmap(lambda row: network(params, row)))(x)
    assert 0.1 < float(out.spikes[0].mean()) < 0.9
    synapse, charge = params.layers[0].synapse, params.readout.charge
    by_hand = (x @ synapse.weight + synapse.bias[None]) / threshold @ charge.weight + charge.bias[None]
    np.testing.assert_allclose(out.value, by_hand, atol=2e-5)
    assert float(network.curvature(params)) == 0.0


def test_membrane_readout_counts_the_charge_of_its_own_step_only():
    network = SpikingNetwork(hidden=(7,), ticks=6, neuron=LIF(), readout=MembraneReadout(), persistent=True)
    params = network.init(3, 2, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].neuron, params, without_leak(params.layers[0].neuron))
    synapse, charge, carry = params.layers[0].synapse, params.readout.charge, network.start(params)
    for x in jax.random.normal(jax.random.key(1), (4, 3)):
        out = jax.jit(network.__call__)(params, x, carry)
        carry = out.carry
        by_hand = (x @ synapse.weight + synapse.bias) @ charge.weight + charge.bias
        np.testing.assert_allclose(out.value, by_hand, atol=2e-5)
    assert float(jnp.abs(carry[0][0].v).max()) > 0.1


# ---- networks


@pytest.mark.parametrize("kind", NEURONS)
def test_branches_are_networks_side_by_side_whose_spikes_are_joined(kind):
    """A network of two branches says what two of one branch say that hear the same and are read together."""
    neuron, decays = kind(recurrent=True, norm="layer", recurrent_gain=2.0, threshold=0.4), (0.3, 0.9)
    whole = SpikingNetwork(hidden=(8,), ticks=4, neuron=neuron, branches=decays)
    params, x = whole.init(3, 2, KEY), jnp.array([0.9, -0.4, 0.6])
    layer, neurons = params.layers[0], params.layers[0].neuron
    np.testing.assert_allclose(jax.nn.sigmoid(neurons.decay), [0.3] * 4 + [0.9] * 4, rtol=1e-5)
    assert neurons.recurrent.shape == (2, 4, 4)
    trains = []
    for i, here in enumerate((slice(0, 4), slice(4, 8))):
        apart = jax.tree.map(lambda leaf, i=i, here=here: leaf[i] if leaf.ndim == 3 else leaf[here], neurons)
        alone = replace(whole, hidden=(4,), branches=())
        synapse = Affine(layer.synapse.weight[:, here], layer.synapse.bias[here])
        first = replace(layer, synapse=synapse, neuron=replace(apart, branches=1))
        trains.append(alone(replace(params, layers=(first,), readout=Affine(jnp.zeros((4, 2)), jnp.zeros(2))), x).spikes[0])
    joined = whole(params, x)
    np.testing.assert_array_equal(joined.spikes[0], jnp.concatenate(trains, axis=1))
    assert 0 < float(joined.spikes[0].mean()) < 1


def test_branches_must_share_each_layer_equally():
    with pytest.raises(ValueError, match=r"hidden is \[9, 6\]; 2 branches"):
        SpikingNetwork(hidden=(9, 6), branches=(0.5, 0.9))
    with pytest.raises(ValueError, match="branches is"):
        SpikingNetwork(branches=(0.5, 1.0))


def test_time_constants_of_branches_are_no_weights_that_decay():
    network = SpikingNetwork(hidden=(6,), branches=(0.5, 0.9), neuron=AdaptiveLIF(recurrent=True))
    weights = matrices(network.init(3, 2, KEY)).layers[0].neuron
    assert weights.recurrent and not (weights.decay or weights.threshold or weights.adaptation_decay)


def assert_binary_between_layers(network):
    params = network.init(3, 2, KEY)
    out = jax.jit(lambda p, x: network(p, x, key=KEY))(params, jnp.array([1.5, -0.4, 0.8]))
    assert [train.shape for train in out.spikes[:2]] == [(3, 6), (3, 5)]
    for train in out.spikes:
        assert set(np.unique(train)) <= {0.0, 1.0}
    assert all(float(train.sum()) > 0 for train in out.spikes[:2])
    assert finite(out.value)


@pytest.mark.parametrize("readout", kinds(AnyReadout))
@pytest.mark.parametrize("neuron", NEURONS)
def test_only_binary_spikes_travel_between_layers(neuron, readout):
    assert_binary_between_layers(SpikingNetwork(hidden=(6, 5), ticks=3, neuron=neuron(), readout=small(readout()), gain=3.0))


@pytest.mark.parametrize("encoder", encoders(), ids=repr)
def test_only_binary_spikes_travel_between_layers_behind_every_encoder(encoder):
    assert_binary_between_layers(SpikingNetwork(hidden=(6, 5), ticks=3, encoder=encoder, gain=3.0))


@pytest.mark.parametrize(
    ("neuron", "readout"),
    [(kind, RateReadout()) for kind in NEURONS] + [(LIF, LeakyReadout()), (LIF, PopulationReadout(neurons=4))],
)
def test_carried_membranes_continue_as_one_long_run(neuron, readout):
    network = SpikingNetwork(hidden=(8, 6), ticks=3, neuron=neuron(), readout=readout, persistent=True, gain=2.0)
    params, x = network.init(3, 2, KEY), jnp.array([0.9, -0.4, 0.6])
    call, twice = jax.jit(network.__call__), jax.jit(replace(network, ticks=6).__call__)
    first = call(params, x, network.start(params))
    second = call(params, x, first.carry)
    long = twice(params, x, network.start(params))
    assert same(first, call(params, x, network.start(params)))
    assert not same(second.spikes, first.spikes)
    for a, b, whole in zip(first.spikes, second.spikes, long.spikes, strict=True):
        np.testing.assert_array_equal(jnp.concatenate([a, b]), whole)
    for a, b in zip(jax.tree.leaves(second.carry), jax.tree.leaves(long.carry), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", FEED_FORWARD)
def test_without_persistence_nothing_is_carried(kind):
    network = small(kind())
    params = network.init(3, 2, KEY)
    assert network.start(params) == ()
    assert network(params, jnp.ones(3)).carry == ()


@pytest.mark.parametrize("kind", LAYERED)
def test_fan_in_limits_what_a_first_layer_unit_listens_to(kind):
    network = small(kind(), hidden=(6,), fan_in=1)
    params = network.init(3, 2, KEY)
    whole = replace(network, fan_in=3)
    assert same(whole(params, jnp.ones(3)), replace(network, fan_in=None)(params, jnp.ones(3)))
    # Gradient of the output by a first-layer weight is zero where it is not listened to: a third is left of each column.
    first = (lambda p: p.layers[0].synapse.weight) if kind is SpikingNetwork else (lambda p: p.layers[0].weight)
    slope = jax.jit(jax.grad(lambda p: jnp.square(network(p, jnp.array([0.7, -0.9, 0.5])).value).sum()))(params)
    listened = np.asarray(first(slope)) != 0
    assert (listened.sum(0) <= 1).all() and listened.sum() >= 3
    assert (listened.sum(1) <= 2).all()  # the six units share the three inputs evenly


def test_a_fan_in_of_one_keeps_the_variance_of_the_input_current():
    network = SpikingNetwork(hidden=(4000,), ticks=1, neuron=LIF(threshold=1e6), bias=(0.0, 0.0))
    params = network.init(4, 1, KEY)
    x = jax.random.normal(jax.random.key(1), (4,))
    x = x / jnp.sqrt(jnp.mean(x**2))
    spread = {}
    for fan_in in (1, None):
        thinned = replace(network, fan_in=fan_in, persistent=True)
        spread[fan_in] = float(jnp.std(thinned(params, x, thinned.start(params)).carry[0][0].v))
    assert spread[None] == pytest.approx(0.7, rel=0.05)
    assert spread[1] == pytest.approx(spread[None], rel=0.1)


@pytest.mark.parametrize("kind", LAYERED)
def test_twin_is_conventional_and_keeps_widths(kind):
    network = small(kind(), hidden=(9, 4), fan_in=2)
    conventional = network.twin()
    assert isinstance(conventional, MLP)
    assert (conventional.hidden, conventional.fan_in) == ((9, 4), 2)
    params = conventional.init(3, 2, KEY)
    assert [layer.weight.shape for layer in params.layers] == [(3, 9), (9, 4), (4, 2)]
    assert conventional(params, jnp.ones(3)).spikes == ()
    assert conventional.twin() == conventional


def test_twin_of_a_normalised_network_behind_a_population_vector_has_its_layers_and_norm():
    network = SpikingNetwork(hidden=(9, 4), neuron=AdaptiveLIF(norm="layer"), readout=PopulationVectorReadout(hidden=5))
    assert network.twin() == MLP((9, 4, 5), norm="layer")


def test_a_linear_network_is_affine_and_its_own_twin():
    network = Linear(gain=2.0)
    params = network.init(3, 2, KEY)
    x, y = jnp.array([0.4, -0.8, 1.1]), jnp.array([3.0, 0.0, -2.0])
    at = lambda x: network(params, x).value  # noqa: E731
    np.testing.assert_allclose(at(2 * x - y), 2 * at(x) - at(y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at(x), x @ params.weight + params.bias, rtol=1e-6)
    assert network.twin() is network and network(params, x).spikes == () and float(network.curvature(params)) == 0.0


def test_twin_of_a_network_that_starts_linear_starts_linear():
    conventional = SpikingNetwork(hidden=(8,), readout=MembraneReadout()).twin()
    params, x = conventional.init(3, 2, KEY), jnp.array([0.5, -2.0, 1.0])
    np.testing.assert_allclose(conventional(params, x).value, x @ params.skip, rtol=1e-6)
    assert float(conventional.curvature(params)) == 0.0


def test_twin_of_a_network_with_a_memory_has_one_too():
    conventional = SpikingNetwork(hidden=(9, 4), persistent=True, readout=MembraneReadout(gain=0.3)).twin()
    assert conventional == GRU(hidden=4, gain=0.3) and conventional.persistent
    assert conventional.twin() == conventional
    assert not SpikingNetwork(hidden=(9, 4)).twin().persistent


def test_gru_by_hand():
    network = GRU(hidden=2)
    params = network.init(3, 1, KEY)
    cell, x = params.cell, np.array([0.7, -0.9, 0.5], np.float32)
    carry, state = (), np.zeros(2, np.float32)
    for _ in range(2):  # from rest, then from what the first call left
        out = network(params, jnp.asarray(x), carry)
        carry = out.carry
        from_input, from_state = np.split(cell.weight_ih @ x + cell.bias, 3), np.split(cell.weight_hh @ state, 3)
        reset, keep = (1 / (1 + np.exp(-from_input[i] - from_state[i])) for i in range(2))
        new = np.tanh(from_input[2] + reset * (from_state[2] + cell.bias_n))
        state = (1 - keep) * new + keep * state
        np.testing.assert_allclose(out.carry, state, rtol=1e-5)
        np.testing.assert_allclose(out.value, state @ params.output.weight + params.output.bias, rtol=1e-5)
    assert out.spikes == () and float(network.curvature(params)) == 0.0
    assert float(network.readout_l1(params)) == pytest.approx(float(jnp.abs(params.output.weight).sum()))
    np.testing.assert_array_equal(network.start(params), np.zeros(2))


def test_mlp_by_hand():
    network = MLP(hidden=(2,), activation="relu")
    params = network.init(2, 1, KEY)
    hidden = Affine(jnp.array([[1.0, -1.0], [2.0, 1.0]]), jnp.array([0.5, 0.0]))
    params = eqx.tree_at(lambda p: p.layers, params, (hidden, Affine(jnp.array([[2.0], [3.0]]), jnp.array([-1.0]))))
    assert float(network(params, jnp.array([1.0, 2.0])).value[0]) == pytest.approx(2 * 5.5 + 3 * 1 - 1)
    assert float(network.readout_l1(params)) == 5.0


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("persistent", [False, True])
def test_network_shapes(kind, persistent):
    network = small(kind())
    if network.persistent != persistent:
        if kind is not SpikingNetwork:
            return  # it is always one or the other
        network = replace(network, persistent=persistent)
    params = jax.eval_shape(lambda k: network.init(5, 3, k), KEY)
    carry = jax.eval_shape(network.start, params)
    out = jax.eval_shape(network, params, jnp.zeros(5), carry, KEY)
    assert out.value.shape == (3,) and out.value.dtype == jnp.float32
    assert shapes(out.carry) == shapes(carry)
    assert jax.eval_shape(network.curvature, params).shape == ()
    assert jax.eval_shape(network.readout_l1, params).shape == ()


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_repeats_itself_under_one_key_and_not_under_another(kind):
    network, x = small(kind()), jnp.array([0.4, -0.8, 1.1])
    a, b, c = (network.init(3, 2, jax.random.key(seed)) for seed in (0, 0, 1))
    assert same(a, b) and same(network(a, x), network(b, x))
    assert not same(a, c) and not same(network(a, x).value, network(c, x).value)


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_gradients_are_finite_and_reach_the_first_layer(kind):
    network = small(kind())
    params = network.init(3, 2, KEY)
    x = jnp.array([0.4, -0.8, 1.1])
    gradient = jax.jit(jax.grad(lambda p, x: jnp.square(network(p, x).value).sum(), (0, 1)))(params, x)
    assert finite(gradient)
    first = gradient[0].cell if kind is GRU else gradient[0] if kind is Linear else gradient[0].layers[0]
    assert bool((jax.tree.leaves(first)[0] != 0).any())


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_maps_over_samples_and_over_members(kind):
    network = small(kind())
    x = jax.random.normal(jax.random.key(2), (4, 3))
    members = jax.jit(jax.vmap(lambda k: network.init(3, 2, k)))(jax.random.split(KEY, 3))
    singles = [jax.tree.map(lambda leaf, m=m: leaf[m], members) for m in range(3)]

    def value(p, row):
        return network(p, row).value

    together = jax.jit(jax.vmap(jax.vmap(value, in_axes=(None, 0)), in_axes=(0, None)))(members, x)
    apart = jnp.stack([jnp.stack([jax.jit(value)(member, row) for row in x]) for member in singles])
    assert together.shape == (3, 4, 2)
    np.testing.assert_allclose(together, apart, atol=1e-5)
