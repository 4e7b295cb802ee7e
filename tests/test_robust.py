"""A model that impacts do not spoil: what it learns of the steps between them, and where it says that a task ends."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import holding
from test_automatic import PLANE, steps_of

from spikedream.config import twin
from spikedream.replay.normalizer import no_moments
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.readouts import MembraneReadout
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.robust import bounded_squares, huber, rare_changes, usual_change, width

KEY = jax.random.key(5)
ROWS = 600


def moments_of(change, spread=True):
    """After steps by so much, (rows, 2)."""
    steps = jax.tree.map(lambda x: x[:, None], steps_of(jnp.zeros(change.shape), jnp.zeros((len(change), 1)), change[:, 0], change))
    return no_moments(2, spread).add(steps, jnp.ones((len(change), 1)))


def test_errors_count_by_their_square_up_to_where_few_are():
    missed = jnp.stack([jnp.full(9, 0.01).at[0].set(30.0), jnp.linspace(-2, 2, 9)], axis=1)
    near, far = bounded_squares(missed, jnp.ones(9)).T
    assert near[1] == pytest.approx(1e-4, rel=1e-3)
    assert near[0] == pytest.approx(0.09 * np.log1p(30**2 / 0.09))  # beyond 0.3 typical changes, at the least
    wide = 3.5 * 1.0  # of errors of which one is as good as another: their median
    np.testing.assert_allclose(far, wide**2 * np.log1p(np.square(missed[:, 1]) / wide**2), rtol=1e-5)
    told = bounded_squares(missed, jnp.zeros(9).at[4].set(1.0))[:, 1]  # the others do not count
    np.testing.assert_allclose(told, 0.09 * np.log1p(np.square(missed[:, 1]) / 0.09), rtol=1e-5, atol=1e-7)


def test_a_rare_reward_counts_however_far_it_is():
    gradient = jax.vmap(jax.grad(lambda missed: huber(missed[None], 4.0, 4)[0]))  # of unit 1
    np.testing.assert_allclose(gradient(jnp.array([0.1, -0.2, 1.0, 50.0])), [0.2, -0.4, 0.6, 0.6], rtol=1e-5)
    assert bool(jnp.isfinite(huber(jnp.ones(2), 0.0, 4)).all())


@pytest.mark.parametrize("rows", [1, 2, 63, 64])
@pytest.mark.parametrize("counting", [0, 1, 9, 30, 64])
def test_errors_count_less_from_3_5_of_the_median_of_those_that_count(rows, counting):
    missed, counts = 9 * jax.random.normal(KEY, (rows, 3)), jnp.arange(rows)[::-1] < counting
    median = np.median(np.abs(missed)[np.asarray(counts)], axis=0) if counting else np.zeros(3)
    np.testing.assert_allclose(width(missed, counts), np.maximum(3.5 * median, 0.3)[None], rtol=1e-6)


def test_a_typical_change_is_the_root_mean_square_unless_few_changes_set_it():
    even = jax.random.normal(KEY, (ROWS, 2))
    moments = moments_of(even)
    np.testing.assert_array_equal(usual_change(moments), jnp.sqrt(moments.change))
    assert rare_changes(moments) == 0
    moments = moments_of(even.at[:6, 0].set(100.0))
    assert float(usual_change(moments)[0]) == pytest.approx(2 * float(jnp.abs(even.at[:6, 0].set(100.0))[:, 0].mean()), rel=1e-4)
    assert usual_change(moments)[1] == jnp.sqrt(moments.change[1]) and rare_changes(moments) == 0.5
    with pytest.raises(ValueError, match="goes by how far the observation moves on average"):
        usual_change(moments_of(even, spread=False))


def impacts():
    """Steps by three tenths of the action, in the second entry by one; but one in fifty there goes by 10 either way, which nothing
    foretells. Those beyond 1 in the first end the task, with an impact that throws it back to 0."""
    keys = jax.random.split(KEY, 4)
    obs = jax.random.uniform(keys[0], (ROWS, 2), minval=-1, maxval=1)
    action = jax.random.uniform(keys[1], (ROWS, 1), minval=-1, maxval=1)
    following = obs.at[:, 0].add(0.3 * action[:, 0]).at[:, 1].add(0.1 * action[:, 0])
    hit = jax.random.uniform(keys[2], (ROWS,)) < 0.02
    following = following.at[:, 1].add(jnp.where(hit, 10 * jnp.sign(jax.random.normal(keys[3], (ROWS,))), 0))
    ends = jnp.abs(following[:, 0]) > 1
    steps = steps_of(obs, action, jnp.zeros(ROWS), following.at[:, 0].set(jnp.where(ends, 0.0, following[:, 0])), ends)
    rows = jax.tree.map(lambda x: x[:, None], steps)
    return ReplayBuffer(ROWS, scale="spread").init(PLANE).add(rows, ROWS).normalise(), steps, ~hit & ~ends


@pytest.mark.parametrize("kind", ["spiking", "conventional"])
def test_what_happens_between_impacts_is_learned_and_so_is_which_steps_end_in_one(kind):
    replay, steps, calm = impacts()
    model = Ensemble(members=2, dynamics=SpikingNetwork(hidden=(64,), readout=MembraneReadout()))
    model = model if kind == "spiking" else twin(model)

    def judged(model):
        """Errors of what the second entry does between impacts, in changes there, and probabilities of an ending there and where
        it ends."""
        state = jax.jit(lambda k: model.update(model.init(PLANE, k), replay, k, 1000)[0])(KEY)
        normalizer = replay.normalizer
        predict = partial(model.predict, state, latent=jnp.zeros(0), member=jnp.zeros((), jnp.int32), key=KEY)
        found = jax.jit(jax.vmap(lambda obs, action: predict(obs=normalizer.obs(obs), action=action)))(steps.obs, steps.action)
        missed = normalizer.raw_obs(found.obs)[:, 1] - steps.next_obs[:, 1]
        moved = (steps.next_obs - steps.obs)[:, 1]
        error = (jnp.square(missed) * calm).sum() / (jnp.square(moved) * calm).sum()
        ends = steps.terminated > 0
        return (
            float(error),
            float((found.terminated * calm).sum() / calm.sum()),
            float((found.terminated * ends).sum() / ends.sum()),
        )

    error, false_alarms, foretold = judged(replace(model, robust=True))
    assert error < 0.05 and false_alarms < 0.15 and foretold > 0.8
    error, _, foretold = judged(model)
    assert error > 1 and foretold < 0.5


def test_what_the_robust_go_by_is_measured_with_the_spread_of_rewards():
    steps = impacts()[1]
    model = Ensemble(members=1, robust=True)
    with pytest.raises(ValueError, match="set that, or world_model"):
        model.rescale(model.init(PLANE, KEY), holding(PLANE, steps, ROWS))
