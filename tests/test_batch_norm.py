"""Batch normalisation in critics: by hand, in one pass with what targets are made of, and what refuses it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, filled, known, same, small

from spikedream.agents.action_values import ActionValues
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.transitions import real
from spikedream.config import Config, ConfigError, merge
from spikedream.ops.distributions import Regression
from spikedream.snn.batch_norm import SMALL, BatchNormMLP
from spikedream.snn.conventional import MLP
from spikedream.world_models.true_environment import TrueEnvironment

KEY = jax.random.key(0)
NETWORK = BatchNormMLP(hidden=(4,), activation="tanh", momentum=0.9)
ROWS = jax.random.normal(KEY, (6, 3)) * jnp.array([1.0, 5.0, 0.2])[None] + 2


def settle(network, params, rows, times):
    def step(params, _):
        out, running = network.on_batch(params, rows)
        return replace(params, running=running), out

    params, outs = jax.lax.scan(step, params, None, times)
    return outs[-1], params


def test_rows_are_standardised_in_front_of_each_layer():
    params = NETWORK.init(3, 2, KEY)
    scale, shift = (jnp.arange(1.0, 5.0), jnp.linspace(-1.0, 1.0, 4))
    params = replace(params, scale=(params.scale[0], scale), shift=(params.shift[0], shift))
    out, running = NETWORK.on_batch(params, ROWS)
    first, last = params.layers
    x = np.asarray(ROWS)
    hidden = np.tanh((x - x.mean(0)) / np.sqrt(x.var(0) + SMALL) @ np.asarray(first.weight) + np.asarray(first.bias))
    standard = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + SMALL)
    wanted = (standard * np.asarray(scale) + np.asarray(shift)) @ np.asarray(last.weight) + np.asarray(last.bias)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
    # Running moments begin at 0 and 1 and move by a tenth.
    np.testing.assert_allclose(running.mean[0], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running.variance[1], 0.9 + 0.1 * hidden.var(0), rtol=1e-5)
    assert float(running.updates) == 1


def test_asked_by_itself_a_row_is_standardised_by_the_running_moments():
    out, params = settle(NETWORK, NETWORK.init(3, 2, KEY), ROWS, 200)
    alone = jax.vmap(lambda row: NETWORK(params, row).value)(ROWS)
    np.testing.assert_allclose(alone, out, rtol=1e-3, atol=1e-4)
    fresh = jax.vmap(lambda row: NETWORK(NETWORK.init(3, 2, KEY), row).value)(ROWS)
    assert float(jnp.abs(fresh - out).max()) > 0.1


def test_renormalised_rows_are_what_they_would_be_by_themselves_within_the_limits():
    params = NETWORK.init(3, 2, KEY)
    moved = replace(params.running, mean=(jnp.full(3, 1.5), jnp.full(4, 0.1)), variance=(jnp.full(3, 2.0), jnp.full(4, 0.5)))
    params = replace(params, running=moved)
    wide = replace(NETWORK, warm_up=0, scale_limit=1e6, shift_limit=1e6)
    alone = jax.vmap(lambda row: NETWORK(params, row).value)(ROWS)
    np.testing.assert_allclose(wide.on_batch(params, ROWS)[0], alone, rtol=1e-4, atol=1e-4)
    narrow = replace(wide, scale_limit=1.0, shift_limit=0.0)  # which leaves plain batch normalisation
    np.testing.assert_allclose(narrow.on_batch(params, ROWS)[0], NETWORK.on_batch(params, ROWS)[0], rtol=1e-5)


def test_running_moments_are_not_learned():
    params = NETWORK.init(3, 2, KEY)
    for warm_up in (0, 100):
        network = replace(NETWORK, warm_up=warm_up)
        slope = jax.jit(jax.grad(lambda p, network=network: jnp.square(network.on_batch(p, ROWS)[0]).sum()))
        gradient = jax.tree.map(np.asarray, slope(params))
        assert not any(x.any() for x in jax.tree.leaves(gradient.running))
        assert all(x.any() for x in jax.tree.leaves((gradient.layers[0].weight, gradient.scale, gradient.shift[1])))


@pytest.mark.parametrize("critic", [NETWORK, MLP(hidden=(4,))], ids=["batch", "none"])
def test_two_batches_are_judged_in_one_pass(critic):
    critics = ActionValues(critic, 2, Regression(), None)
    params, joint = jax.jit(lambda k: critics.init(CONTINUOUS, k))(KEY), jax.jit(critics.joint, static_argnums=1)
    key = jax.random.key(1)
    first, second = ((jax.random.normal(k, (5, 3)), jax.random.uniform(k, (5, 1), minval=-1)) for k in jax.random.split(key))
    now, later, running = joint(params, None, first, second, key)
    alone = joint(params, None, first, first, key)[0]
    assert now.shape == later.shape == (5, 2, 1)
    if critic is NETWORK:
        rows = jnp.concatenate([jnp.concatenate(pair, axis=1) for pair in (first, second)])
        one = jax.tree.map(lambda x: x[1], params).network
        np.testing.assert_allclose(jnp.concatenate([now, later])[:, 1], critic.on_batch(one, rows)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(running.mean[0][1], 0.1 * rows.mean(0), rtol=1e-4, atol=1e-6)
        assert float(jnp.abs(alone - now).max()) > 1e-3
    else:
        assert running is None
        np.testing.assert_allclose(alone, now, rtol=1e-5)


def test_without_copies_targets_are_made_of_what_is_learned():
    model = TrueEnvironment("Pendulum")
    world, experience = known(model, model.init(CONTINUOUS, KEY), CONTINUOUS), filled(CONTINUOUS, 20, 24, KEY)
    agent = small(OffPolicy(actor=MLP(), critic=BatchNormMLP(), slow=None, learning_rate=0.0, critic_learning_rate=1e-2))
    state = jax.jit(lambda k: agent.init(CONTINUOUS, world, k))(KEY)
    assert state.slow is None
    batch = jax.jit(lambda e: real(world, e, jnp.arange(8), agent.gamma, 1, KEY))(experience)
    after = jax.jit(lambda s: agent._learn_critics(s, batch, KEY)[0])(state)
    target = jax.jit(lambda s: agent._target(s, batch, KEY))
    # The actor learns nothing here, so that the values are what moves the targets.
    assert not same(target(after), target(state))
    assert float(after.now.critics.network.running.updates[0]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critic": "BatchNormMLP"}, "agent.critic is BatchNormMLP.*set slow to None"),
        ({"slow": None, "clip_value": True}, "set slow to HardCopy"),
        ({"actor": "BatchNormMLP"}, "agent.actor has no kind 'BatchNormMLP'"),
        ({"critic": {"kind": "BatchNormMLP", "scale_limit": 0.5}, "slow": None}, "agent.critic.scale_limit is 0.5"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        merge(Config(), {"agent": {"kind": "OffPolicy", **changes}})
