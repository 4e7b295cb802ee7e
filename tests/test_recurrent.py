"""What must be remembered: a recurrent world model on a system whose velocity nobody sees."""

from dataclasses import dataclass, fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import changed_rows, filled, finite, holding, same
from toys import ARMS, still, toy

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.evolution import Evolution
from spikedream.bonuses.disagreement import Disagreement
from spikedream.bonuses.weight import AdaptiveWeight
from spikedream.dream_env.stepped_dreams import SteppedDreams
from spikedream.replay.ring import Priority
from spikedream.replay.sum_tree import empty_tree
from spikedream.snn.conventional import GRU, MLP
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.spec import Spec
from spikedream.types import Transition
from spikedream.world import World
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


@partial(jax.jit, static_argnums=0)
def initial(model):
    return model.init(LINE, KEY)


@partial(jax.jit, static_argnums=0)
def updated(model, state, experience):
    return model.update(state, experience, KEY, model.updates)


def fitted_to(model, experience):
    return updated(model, initial(model), experience)


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
    return wrong(seeing(ENSEMBLE, state, drift(KEY)), same_scale(drift(OTHER), drift(KEY)))


def seeing(model, state, experience):
    return World(model, state, experience.normalizer)


def same_scale(experience, fitted):
    return replace(experience, normalizer=fitted.normalizer)


def test_what_is_remembered_predicts_what_one_observation_cannot(fitted, forgetful):
    model, state, experience = fitted
    remembering = wrong(seeing(model, state, experience), same_scale(drift(OTHER), experience))
    assert forgetful[1:].min() > 0.6, "the system can be predicted from one observation"
    assert remembering[1:].max() < 0.4 * forgetful[1:].min()
    assert remembering[0] > 2 * remembering[3]  # nobody knows a velocity from one observation
    assert float(model.confidence(state)) > 0.3


def test_an_imagined_trajectory_keeps_the_velocity_that_was_observed(fitted):
    model, state, experience = fitted
    world, fresh = seeing(model, state, experience), same_scale(drift(OTHER), experience)

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
    world = seeing(model, state, experience)
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
        belief = world.belief(memory, sequence.steps.action[t])
    # Nothing of the first episode is left in the second.
    other = sequence._replace(steps=sequence.steps._replace(obs=sequence.steps.obs.at[:5].add(3.0)))
    changed = jax.jit(lambda s: jax.vmap(world.feature)(world.memories(s, KEY)))(other)
    np.testing.assert_array_equal(changed[5:], remembered[5:])
    assert (np.abs(changed[:5] - remembered[:5]).max(1) > 0.1).all()


def test_errors_stand_at_the_ring_positions_of_their_steps(fitted):
    model, state, experience = fitted
    # Written on over the edge: the oldest 23 steps make way for the first 23 again, one of them and an old one wrong.
    wrong_at = jnp.array([11, 305])
    changed = changed_rows(experience, next_obs=lambda x: x.at[wrong_at].add(4.0))
    rolled = replace(changed, added=jnp.asarray(experience.capacity + 23, jnp.int32))
    errors = np.asarray(jax.jit(model.errors)(state, rolled, jnp.arange(experience.capacity), KEY))
    assert set(np.argsort(errors)[-2:]) == {11, 305}
    # What is seen as it is remembered: by hand for a step in the middle of an episode.
    world = seeing(model, state, experience)
    sequence = rolled.sequence(jnp.asarray(107), 6)  # its episode began with it
    memory = jax.tree.map(lambda x: x[-1], world.memories(sequence, KEY))
    inputs = jnp.concatenate([sequence.steps.obs[-1], memory.latent, sequence.steps.action[-1]])
    mean = jax.vmap(lambda m: model.ensemble.each.moments(m, inputs, KEY)[0])(state.ensemble.members).mean(0)
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
    other = changed_rows(experience, next_obs=lambda x: x[::-1])
    for chosen, differs in ((blind, False), (seeing, True)):
        dynamics = [fitted_to(chosen, e)[0].ensemble.members.dynamics for e in (experience, other)]
        assert same(*dynamics) is not differs


def test_priorities_change_what_is_fitted():
    small = replace(ENSEMBLE, updates=4, check_every=4, batch=4)
    model = Recurrent(network=GRU(hidden=4), latent=2, ensemble=small, context=3, open_loop=1)
    experience = filled(LINE, 20, 24, KEY)
    plain, _ = fitted_to(model, experience)
    priority = Priority(empty_tree(24), jnp.ones(()))
    index = jnp.arange(24)
    chosen = replace(experience, priority=priority, alpha=1.0, beta=0.5).prioritise(index, 1.0 * (index == 7), 1.0 * (index < 20))
    again, _ = fitted_to(model, chosen)
    assert not same(plain, again)


# ---- what outlives a change of scale


def other_scale(experience):
    """The same experience through a normaliser that has since changed."""
    normalizer = experience.normalizer
    return replace(experience, normalizer=replace(normalizer, mean=normalizer.mean + 3.0, scale=2 * normalizer.scale))


def test_a_belief_goes_on_in_the_units_of_a_normaliser_that_has_changed(fitted):
    model, state, experience = fitted
    before, after = seeing(model, state, experience), seeing(model, state, other_scale(experience))
    raw = jnp.array([[1.0], [1.5]])
    memory = before.follow(before.blank(LINE), before.normalizer.obs(raw[0]), KEY)
    belief, seen = before.belief(memory, jnp.array([0.2])), []

    @dataclass(frozen=True)
    class Watched(Recurrent):
        def _read(self, network, carry, obs, change, action, key):
            seen.append(change)
            return super()._read(network, carry, obs, change, action, key)

    watched = Watched(**{f.name: getattr(model, f.name) for f in fields(model)})
    replace(after, model=watched).follow(belief, after.normalizer.obs(raw[1]), KEY)
    # Two readings: of a fresh start, without a change, and of what has been seen since.
    wanted = (raw[1] - raw[0]) / after.normalizer.scale / state.ensemble.scale
    assert not seen[0].any()
    np.testing.assert_allclose(seen[1], wanted, rtol=1e-4)


# ---- what is judged by what is remembered


def test_what_is_recalled_at_a_replayed_step_is_what_was_remembered_there(fitted):
    model, state, experience = fitted
    world, index = seeing(model, state, experience), jnp.array([3, 5, LENGTH + 2])
    recalled = jax.jit(lambda e: world.recall(e, index, KEY))(experience)
    for row, end in enumerate(index.tolist()):
        sequence = experience.sequence(jnp.asarray(end), end % LENGTH + 1)  # its episode began with it
        memory = jax.tree.map(lambda x: x[-1], world.memories(sequence, KEY))
        np.testing.assert_allclose(recalled.latent[row], memory.latent, rtol=1e-3, atol=1e-4)


def test_disagreement_and_temporal_differences_are_judged_with_the_past_in_mind(fitted):
    model, state, experience = fitted
    world, index = seeing(model, state, experience), jnp.arange(EPISODES * LENGTH)
    steps = experience.gather(index)

    def disagreement(memory):
        said = jax.jit(jax.vmap(lambda m, a: world.step(m, a, KEY)[1].disagreement))(memory, steps.action)
        return np.asarray(said)

    remembered, blank = (
        jax.jit(lambda: world.recall(experience, index, KEY))(),
        jax.jit(lambda: jax.vmap(lambda o: world.start(o, KEY))(steps.obs))(),
    )
    wanted, forgetful = disagreement(remembered), disagreement(blank)
    assert np.corrcoef(wanted, forgetful)[0, 1] < 0.9, "the past makes no difference here"
    bonus = Disagreement(AdaptiveWeight(cap=1e9), outside=False)
    bonus_state, _ = jax.jit(lambda s: bonus.update(s, world, experience, KEY))(bonus.init(LINE, world, KEY))
    assert float(bonus_state.weight.scale) == pytest.approx(float(np.sqrt(np.square(wanted).mean())), rel=1e-3)

    agent = Dreamer(actor=MLP(hidden=(4,)), critic=MLP(hidden=(8,)), trajectories=4, horizon=2)
    agent_state = jax.jit(lambda k: agent.init(LINE, world, k))(KEY)
    errors = jax.jit(lambda s: agent.errors(s, world, experience, index, KEY))(agent_state)
    after = jax.jit(jax.vmap(lambda m, s: world.observe(m, s, KEY)))(remembered, steps)
    value = jax.jit(jax.vmap(lambda m: agent.value_of(agent_state.target, world.feature(m), KEY)))
    unit = 1 - agent.gamma
    target = steps.reward + agent.gamma * (1 - steps.terminated) * value(after) / unit
    np.testing.assert_allclose(errors, np.square(target - value(remembered) / unit), rtol=1e-2, atol=1e-4)


def test_what_came_long_ago_is_not_read_again():
    """A new network's latent state is linear in what it reads now, in the middle of an episode as at its start."""
    network = Recurrent().network
    params = network.init(3, 8, KEY)
    read = jax.jit(lambda carry, x: network(params, x, carry, KEY)[:2])
    *past, now = jax.random.normal(OTHER, (201, 3))
    first, _ = read(network.start(params), now)
    carry = network.start(params)
    for x in past:
        _, carry = read(carry, x)
    later, _ = read(carry, now)
    np.testing.assert_allclose(later, first, atol=0.02)


def of_dreamer(agent, world, experience):
    return agent._starts(agent.init(LINE, world, KEY), world, experience, OTHER)[0].memory


DREAMS = Dreamer(actor=MLP((4,)), critic=MLP((4,)), trajectories=200, context=4)
STARTS = {
    "Dreamer": lambda noise, *where: of_dreamer(replace(DREAMS, start_noise=noise), *where),
    "Dreamer within a limit": lambda noise, *where: of_dreamer(replace(DREAMS, start_noise=noise, error_limit=1e6), *where),
    "Evolution": lambda noise, *where: (
        Evolution(actor=MLP((4,)), trajectories=200, start_noise=noise)._starts(*where, OTHER).memory
    ),
    "SteppedDreams": lambda noise, *where: SteppedDreams(start_noise=noise)._starts(*where, 200, OTHER),
}


@pytest.mark.parametrize("dreams", STARTS)
def test_dreams_begin_around_a_remembered_past_and_keep_what_it_told(fitted, dreams):
    model, state, experience = fitted
    world = seeing(model, state, experience)

    @partial(jax.jit, static_argnums=0)
    def begin(noise):
        memory = STARTS[dreams](noise, world, experience)
        after, _ = jax.vmap(lambda memory: world.step(memory, jnp.zeros(1), KEY))(memory)
        return memory.obs[:, 0], (after.obs - memory.obs)[:, 0]

    (still, told), (moved, told_there) = begin(0.0), begin(0.5)
    assert 0.4 < (moved - still).std() < 0.6
    assert np.corrcoef(told, told_there)[0, 1] > 0.9


def test_no_dream_of_a_remembering_world_begins_where_it_is_less_sure_than_allowed(fitted):
    model, state, experience = fitted
    world = seeing(model, state, experience)
    begin = jax.jit(of_dreamer, static_argnums=0)
    still = begin(DREAMS, world, experience)
    for limit, moves in ((1e-6, False), (1e6, True)):
        moved = begin(replace(DREAMS, start_noise=0.5, error_limit=limit), world, experience)
        alike = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(still), strict=True)]
        assert not any(alike[:2]) if moves else all(alike)


def begun(agent, state, world, experience):
    """The world's memory, and the actor's, where dreams begin."""
    if isinstance(agent, Dreamer):
        return agent._starts(state, world, experience, OTHER)[0]
    starts = agent._starts(world, experience, OTHER)
    return starts.memory, agent._remembered(state.actor, world, starts.past, KEY)


@pytest.mark.parametrize("agent", [
    Dreamer(actor=GRU(4), critic=MLP((4,)), trajectories=30, context=24), Evolution(actor=GRU(4), trajectories=30, context=24),
])  # fmt: skip
def test_a_remembering_actor_dreams_on_from_what_it_would_remember_of_the_real_steps(agent):
    world, experience, rows = toy(still(), ARMS), filled(ARMS, 20, 24, KEY), jnp.arange(20)
    state = jax.jit(lambda k: agent.init(ARMS, world, k))(KEY)
    memory, carry = jax.jit(lambda s: begun(agent, s, world, experience))(state)
    steps, act = experience.gather(rows), jax.jit(lambda obs, carry: agent.actor(state.actor, obs, carry, KEY).carry)
    wanted = [resting := agent.actor.start(state.actor)]
    for obs, ended in zip(steps.obs, steps.terminated, strict=True):
        wanted.append(resting if ended else act(obs, wanted[-1]))
    at = np.abs(np.asarray(memory.obs)[:, None] - np.asarray(steps.obs)).sum(-1).argmin(1)  # where each start was replayed
    remembered = np.stack(jax.tree.leaves(wanted))[at]
    np.testing.assert_allclose(jax.tree.leaves(carry)[0], remembered, rtol=1e-4, atol=1e-5)
    assert len(set(at)) > 10 and (np.abs(remembered).max(1) > 0.01).mean() > 0.5
