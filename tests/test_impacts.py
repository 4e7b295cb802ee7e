"""Impacts that robust dynamics leave out: what counts as one, how they are learned, and that dreams have them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DISCRETE, small
from test_automatic import PLANE, steps_of
from test_robust import moments_of

from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.networks import GRU, SpikingNetwork
from spikedream.snn.readouts import MembraneReadout
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.impacts import impact_loss, impacts_met, struck, typical_impact
from spikedream.world_models.recurrent import Recurrent

KEY = jax.random.key(8)
ROWS = 600


def test_a_typical_impact_is_the_mean_of_changes_each_as_likely_as_it_is_large():
    even = jax.random.normal(KEY, (ROWS, 2))
    assert not typical_impact(moments_of(even)).any()
    flag = jnp.zeros(ROWS).at[:30].set(1.0)  # whose changes are all alike, however rare
    moments = moments_of(even.at[:, 0].set(flag))
    usual = 2 * 30 / ROWS
    np.testing.assert_allclose(typical_impact(moments), [1 / usual, 0], rtol=1e-4)


def test_impacts_are_what_the_dynamics_miss_by_far():
    missed = jnp.full((9, 2), 0.1).at[0, 0].set(12.0).at[1, 1].set(12.0)
    impact = jnp.array([4.0, 0.0])  # the second entry has none
    right = jnp.zeros((9, 4)).at[:, :2].set(-9.0).at[0, 0].set(9.0).at[0, 2].set(3.0)
    assert impact_loss(right, missed, impact, jnp.ones(9)) < 1e-3
    for wrong in (right.at[0, 0].set(-9.0), right.at[2, 0].set(9.0), right.at[0, 2].set(-3.0)):
        assert impact_loss(wrong, missed, impact, jnp.ones(9)) > 0.4
    for disregarded in (right.at[1, 1].set(9.0), right.at[2, 2].set(5.0)):
        assert impact_loss(disregarded, missed, impact, jnp.ones(9)) < 1e-3
    assert impact_loss(right.at[2, 0].set(9.0), missed, impact, jnp.ones(9).at[2].set(0.0)) < 1e-3


def test_impacts_are_met_where_a_change_is_missed_by_far():
    missed = jnp.full((9, 2), 0.1).at[4, 0].set(12.0)
    np.testing.assert_array_equal(impacts_met(missed, jnp.ones(9)), [True, False])
    assert not impacts_met(missed, jnp.ones(9).at[4].set(0.0)).any()


def test_they_come_as_likely_as_is_told_and_together():
    told = jnp.array([0.0, 0.0, -30.0, 2.0, 3.0, 1.0])
    jumps = jax.vmap(lambda key: struck(told, jnp.array([5.0, 1.0, 1.0]), key))(jax.random.split(KEY, 2000))
    there = jumps[:, 0] != 0
    assert float(there.mean()) == pytest.approx(0.5, abs=0.05) and not jumps[:, 2].any()
    np.testing.assert_array_equal(jumps[there, :2], jnp.broadcast_to(jnp.array([10.0, 3.0]), (int(there.sum()), 2)))
    np.testing.assert_array_equal(jumps[~there], jnp.zeros((int((~there).sum()), 3)))


def falling():
    """Steps of what falls, by 0.02 to 0.08 of its height, 0 to 1, as the action says, until it touches the floor: then the second
    entry becomes 1, and it stays."""
    keys = jax.random.split(KEY, 2)
    lies = jnp.arange(ROWS) % 10 == 0
    height = jnp.where(lies, 0.0, jax.random.uniform(keys[0], (ROWS,)))
    action = jax.random.uniform(keys[1], (ROWS, 1), minval=-1, maxval=1)
    falls = height - jnp.where(lies, 0.0, 0.05 - 0.03 * action[:, 0])
    touches = falls <= 0
    obs = jnp.stack([height, lies.astype(jnp.float32)], axis=1)
    following = jnp.stack([jnp.maximum(falls, 0.0), touches.astype(jnp.float32)], axis=1)
    steps = steps_of(obs, action, jnp.zeros(ROWS), following, jnp.zeros(ROWS, bool))
    return ReplayBuffer(ROWS, scale="spread").init(PLANE).add(jax.tree.map(lambda x: x[:, None], steps), ROWS).normalise()


def test_what_falls_touches_the_floor_in_dreams_too():
    replay = falling()
    normalizer = replay.normalizer
    model = Ensemble(members=2, dynamics=SpikingNetwork(hidden=(64,), readout=MembraneReadout()), robust=True, impacts=True)
    told = {}
    for impacts in (True, False):
        model = replace(model, impacts=impacts)
        fit = jax.jit(lambda state, model=model: model.update(state, replay, KEY, 600))
        met = fit(jax.jit(partial(model.init, PLANE))(KEY))[0]
        assert not impacts or (not met.impact.any() and met.met.tolist() == [False, True])  # none is dreamed before it is learned
        state, metrics = fit(met)
        assert metrics["scale/rare_changes"] == 0.5 and metrics.get("scale/impacts") == (0.5 if impacts else None)

        def dreamed(heights, key, model=model, state=state):
            """Contacts, (rows, 20 steps), from so high without contact."""
            predict = partial(model.predict, state, latent=jnp.zeros(0), action=jnp.zeros(1), member=jnp.zeros((), jnp.int32))

            def step(obs, key):
                after = predict(obs=obs, key=key).obs
                return after, normalizer.raw_obs(after)[1]

            start = normalizer.obs(jnp.stack([heights, jnp.zeros(heights.shape)], axis=1))
            keys = jax.random.split(key, len(heights))
            return jax.vmap(lambda obs, key: jax.lax.scan(step, obs, jax.random.split(key, 20))[1])(start, keys)

        told[impacts] = jax.jit(dreamed)(jnp.linspace(0.3, 0.5, 50), KEY)  # the floor is 6 to 10 steps away
    assert (told[True][:, :4] > 0.5).mean() < 0.05
    assert (told[True][:, -1] > 0.5).mean() > 0.9
    assert (told[False] > 0.5).mean() < 0.05  # what has fallen through the floor, forever


@pytest.mark.parametrize("kind", ["ensemble", "recurrent"])
def test_impacts_are_what_robust_models_miss(kind):
    ensemble = small(Ensemble(impacts=True))
    model = ensemble if kind == "ensemble" else Recurrent(GRU(4), 2, ensemble, context=2)
    with pytest.raises(ValueError, match="set robust to true, or impacts to false"):
        model.init(DISCRETE, KEY)
