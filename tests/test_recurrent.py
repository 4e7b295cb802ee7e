"""What must be remembered: a recurrent world model on a system whose velocity nobody sees."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled, finite, holding, same

from spikedream.snn.networks import GRU, MLP, SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.types import Belief, Spec, Transition, World
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.recurrent import Recurrent

KEY, OTHER = jax.random.key(0), jax.random.key(1)
LINE = Spec(1, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))
EPISODES, LENGTH = 60, 6

ENSEMBLE = Ensemble(
    members=2, dynamics=MLP(hidden=(16,), skip=True), ending=MLP(hidden=(4,)), batch=16, updates=400, check_every=200,
    learning_rate=1e-2, support_weight=0.0,
)  # fmt: skip
NETWORKS = {
    "spiking": SpikingNetwork(hidden=(16,), ticks=3, persistent=True, neuron=LIF(decay=(0.95, 0.999))),
    "gru": GRU(hidden=16),
}


def drift(key):
    """Episodes of a point that moves with a velocity of its own in each, and a little with the action; the reward is constant."""
    start_key, velocity_key, action_key = jax.random.split(key, 3)
    start = jax.random.uniform(start_key, (EPISODES, 1), minval=-6, maxval=6)  # so wide that a place tells little of the velocity
    velocity = jax.random.uniform(velocity_key, (EPISODES, 1), minval=-1, maxval=1)
    action = jax.random.uniform(action_key, (EPISODES, LENGTH), minval=-1, maxval=1)
    position = jnp.concatenate([start, start + jnp.cumsum(velocity + 0.3 * action, axis=1)], axis=1)
    rows = EPISODES * LENGTH
    last = jnp.tile((jnp.arange(LENGTH) == LENGTH - 1).astype(jnp.float32), EPISODES)
    zero, flat = jnp.zeros(rows), partial(jnp.reshape, shape=(rows, 1))
    return holding(
        LINE, Transition(flat(position[:, :-1]), flat(action), zero + 0.5, flat(position[:, 1:]), zero, last, zero), rows
    )


def predictions(world, experience):
    """One step ahead, along all that is stored: (episodes, length) normalised, and the truth."""
    capacity = experience.capacity
    everything = experience.sequence(jnp.asarray(capacity - 1), capacity)
    memory = world.memories(everything, KEY)
    steps = everything.steps
    following = jax.vmap(lambda m, a: world.step(m, a, KEY)[1].obs)(memory, steps.action)
    return following.reshape(EPISODES, LENGTH), steps.next_obs.reshape(EPISODES, LENGTH)


def wrong(world, experience):
    """(length,) root mean square error by the number of steps since the episode began, in units of the typical change."""
    found, truth = jax.jit(lambda e: predictions(world, e))(experience)
    change = (truth[:, 1:] - truth[:, :-1]).reshape(-1)
    return np.asarray(jnp.sqrt(jnp.square(found - truth).mean(0)) / jnp.sqrt(jnp.square(change).mean()))


def fitted_to(model, experience):
    state = jax.jit(lambda k: model.init(LINE, k))(KEY)
    return jax.jit(model.update)(state, experience, KEY)


@pytest.fixture(scope="module", params=NETWORKS)
def fitted(request):
    model = Recurrent(network=NETWORKS[request.param], latent=4, ensemble=ENSEMBLE, context=3, open_loop=3)
    experience = drift(KEY)
    state, metrics = fitted_to(model, experience)
    assert finite((state, metrics)) and int(metrics["model_updates"]) == 400
    return model, state, experience


@pytest.fixture(scope="module")
def forgetful():
    """The error of an ensemble that sees the present alone."""
    state, _ = fitted_to(replace(ENSEMBLE, batch=64), drift(KEY))
    return wrong(World(ENSEMBLE, state), same_scale(drift(OTHER), drift(KEY)))


def same_scale(experience, fitted):
    return replace(experience, normalizer=fitted.normalizer)


def test_what_is_remembered_predicts_what_one_observation_cannot(fitted, forgetful):
    model, state, experience = fitted
    remembering = wrong(World(model, state), same_scale(drift(OTHER), experience))
    assert forgetful[1:].min() > 0.6, "the system can be predicted from one observation"
    assert remembering[1:].max() < 0.4 * forgetful[1:].min()
    assert remembering[0] > 2 * remembering[3]  # nobody knows a velocity from one observation
    assert float(model.confidence(state)) > 0.3


def test_an_imagined_trajectory_keeps_the_velocity_that_was_observed(fitted):
    model, state, experience = fitted
    world, fresh = World(model, state), same_scale(drift(OTHER), experience)

    @jax.jit
    def imagine(ends):
        """Four steps onward of the third observation of episodes."""

        def one(end):
            seen = fresh.sequence(end, 3)
            memory = jax.tree.map(lambda x: x[-1], world.memories(seen, KEY))
            ahead = fresh.sequence(end + 3, 4).steps

            def step(memory, action):
                memory, prediction = world.step(memory, action, KEY)
                return memory, prediction.obs[0]

            return jax.lax.scan(step, memory, ahead.action)[1], ahead.next_obs[:, 0], ahead.obs[0, 0]

        return jax.vmap(one)(ends)

    found, truth, start = imagine(jnp.arange(EPISODES) * LENGTH + 2)
    moved = np.asarray(truth[:, -1] - start)
    assert np.sqrt(np.square(found[:, -1] - truth[:, -1]).mean()) < 0.4 * np.sqrt(np.square(moved).mean())
    assert np.corrcoef(found[:, -1] - start, moved)[0, 1] > 0.9


def test_remembering_is_following_step_by_step_and_forgets_at_an_episodes_start(fitted):
    model, state, experience = fitted
    world = World(model, state)
    length = 10  # over the end of the first episode
    sequence = experience.sequence(jnp.asarray(LENGTH + 4), length)
    assert sequence.first.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    remembered = jax.jit(lambda s: jax.vmap(world.feature)(world.memories(s, KEY)))(sequence)
    follow = jax.jit(lambda belief, obs: world.follow(belief, obs, OTHER))
    belief = world.blank(LINE)
    for t in range(length):
        belief = world.blank(LINE) if sequence.first[t] else belief
        memory = follow(belief, sequence.steps.obs[t])
        np.testing.assert_allclose(world.feature(memory), remembered[t], rtol=1e-4, atol=1e-5)
        belief = Belief(memory, sequence.steps.action[t], jnp.ones(()))
    # Nothing of the first episode is left in the second.
    other = sequence._replace(steps=sequence.steps._replace(obs=sequence.steps.obs.at[:5].add(3.0)))
    changed = jax.jit(lambda s: jax.vmap(world.feature)(world.memories(s, KEY)))(other)
    np.testing.assert_array_equal(changed[5:], remembered[5:])
    assert (np.abs(changed[:5] - remembered[:5]).max(1) > 0.1).all()


def test_errors_stand_at_the_ring_positions_of_their_steps(fitted):
    model, state, experience = fitted
    # Written on over the edge: the oldest 23 steps make way for the first 23 again, one of them and an old one wrong.
    data, begin = experience.data, 23
    wrong_at = jnp.array([11, 305])
    data = data._replace(next_obs=data.next_obs.at[wrong_at].add(4.0))
    rolled = replace(experience, data=data, count=jnp.asarray(experience.capacity + begin, jnp.int32))
    errors = np.asarray(jax.jit(model.errors)(state, rolled, KEY))
    assert set(np.argsort(errors)[-2:]) == {11, 305}
    # What is seen as it is remembered: by hand for a step in the middle of an episode.
    world = World(model, state)
    sequence = rolled.sequence(jnp.asarray(107), 6)  # its episode began with it
    memory = jax.tree.map(lambda x: x[-1], world.memories(sequence, KEY))
    inputs = jnp.concatenate([sequence.steps.obs[-1], memory.latent, sequence.steps.action[-1]])
    mean = jax.vmap(lambda m: model.ensemble.moments(m, inputs, KEY)[0])(state.ensemble.members).mean(0)
    change = (sequence.steps.next_obs[-1] - sequence.steps.obs[-1]) / state.ensemble.scale
    by_hand = np.square(mean - jnp.append(change, sequence.steps.reward[-1])).mean()
    assert errors[107] == pytest.approx(float(by_hand), rel=1e-3, abs=1e-6)


def test_the_model_is_fitted_on_its_own_predictions_after_the_context(fitted):
    model, state, experience = fitted
    sequence = experience.sequence(jnp.asarray(5), 6)  # three steps of context, three in open loop
    rest = model.network.start(state.network)
    unroll = jax.jit(lambda s: model._unroll(state.network, state.ensemble.members, state.ensemble.scale, rest, s, KEY))
    obs, latent, age = unroll(sequence)
    np.testing.assert_array_equal(obs[:3], sequence.steps.obs[:3])
    assert latent.shape == (6, 4) and age.tolist() == [0, 1, 2, 3, 4, 5]
    assert (np.abs(obs[3:] - sequence.steps.obs[3:]) > 1e-6).all()
    np.testing.assert_allclose(obs[3:], sequence.steps.obs[3:], atol=0.5)
    # The real observations after the context are not looked at, those in it are.
    hidden = sequence._replace(steps=sequence.steps._replace(obs=sequence.steps.obs.at[3:].set(9.0)))
    assert same(unroll(hidden)[0], obs)
    seen = sequence._replace(steps=sequence.steps._replace(obs=sequence.steps.obs.at[1].add(1.0)))
    assert not np.array_equal(unroll(seen)[0][3:], obs[3:])
    # Where another episode begins, real observations are given again until it has burnt in.
    begins = sequence._replace(first=sequence.first.at[4].set(1.0))
    found, _, age = unroll(begins)
    assert age.tolist() == [0, 1, 2, 3, 0, 1]
    np.testing.assert_array_equal(found[4:], sequence.steps.obs[4:])
    assert float(found[3, 0]) != float(sequence.steps.obs[3, 0])


def test_nothing_is_learned_from_the_first_steps_of_an_episode():
    # With a burn-in as long as every episode, no error counts: what is left are the penalties, whatever the data.
    model = Recurrent(
        network=GRU(hidden=4), latent=2, ensemble=replace(ENSEMBLE, updates=2, check_every=2, batch=4), context=LENGTH + 1
    )
    blind, seeing = replace(model, burn_in=LENGTH), replace(model, burn_in=0)
    experience = drift(KEY)
    other = replace(experience, data=experience.data._replace(next_obs=experience.data.next_obs[::-1]))
    for chosen, differs in ((blind, False), (seeing, True)):
        dynamics = [fitted_to(chosen, e)[0].ensemble.members.dynamics for e in (experience, other)]
        assert same(*dynamics) is not differs


def test_priorities_change_what_is_fitted():
    small = replace(ENSEMBLE, updates=4, check_every=4, batch=4)
    model = Recurrent(network=GRU(hidden=4), latent=2, ensemble=small, context=3, open_loop=1)
    experience = filled(LINE, 20, 24, KEY)
    plain, _ = fitted_to(model, experience)
    chosen = replace(experience, error=jnp.zeros(24).at[7].set(1.0), alpha=1.0, beta=0.5)
    again, _ = fitted_to(model, chosen)
    assert not same(plain, again)
