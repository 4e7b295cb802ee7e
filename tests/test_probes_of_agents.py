"""Small learning problems with known answers: what an agent must find by dreaming in a known world, or from real steps."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import changed_rows, finite, holding, known
from toys import (
    ARMS,
    CORRIDOR,
    DIAL,
    DREAMER,
    KEY,
    SPIKING,
    TWO_STEP,
    Known,
    _begin,
    _updates,
    assert_best,
    greedy_action,
    origin,
    practise,
    said,
    seen,
    still,
    toy,
)  # fmt: skip

from spikedream.ops.distributions import Regression, TwoHot
from spikedream.ops.schedule import ImaginedShare
from spikedream.replay.ring import Priority
from spikedream.replay.sum_tree import empty_tree
from spikedream.types import Transition


@functools.partial(jax.jit, static_argnums=0)
def _value(agent, critic):
    return agent.value.mean(agent.critic(critic, jnp.zeros(2)).value)


def critic_value(agent, state):
    return float(_value(agent, state.critic))


@pytest.mark.parametrize(
    ("ending", "head"), [(0.0, TwoHot(bins=21, limit=1.5)), (0.25, Regression())], ids=["two-hot-for-ever", "regression-ending"]
)
def test_value_of_a_constant_reward(ending, head):
    agent = replace(DREAMER, value=head)
    state, _ = practise(agent, still(reward=0.6, ending=ending), ARMS, 300)
    # (1 - gamma) 0.6 / (1 - gamma (1 - ending)): 0.6 for ever, less where it may end
    assert critic_value(agent, state) == pytest.approx(0.1 * 0.6 / (1 - 0.9 * (1 - ending)), abs=0.03)


def test_rewards_beyond_those_ever_seen_do_not_count():
    state, _ = practise(DREAMER, still(reward=50.0), ARMS, 300)
    assert critic_value(DREAMER, state) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [(ARMS, "clipped"), (ARMS, "reinforce"), (DIAL, "clipped"), (DIAL, "reinforce"), (DIAL, "model")],
    ids=["discrete-clipped", "discrete-reinforce", "continuous-clipped", "continuous-reinforce", "continuous-model"],
)
def test_agent_finds_the_best_action(spec, gradient):
    agent = replace(DREAMER, gradient=gradient)
    state, metrics = practise(agent, still(), spec, 250)
    assert_best(agent, state)
    assert finite(state) and finite(metrics)
    # dream_return is the sum over a horizon of four; at best each step pays one.
    assert float(metrics["dream_return"][:5].mean()) < float(metrics["dream_return"][-20:].mean()) <= 4


def test_spiking_agent_finds_the_best_action():
    state, metrics = practise(SPIKING, still(), ARMS, 250)
    assert_best(SPIKING, state)
    assert 0 < float(metrics["firing_rate/actor"][-1]) < 1


@pytest.mark.parametrize(
    ("spec", "gradient", "lambda_"),
    [(ARMS, "clipped", 0.0), (ARMS, "clipped", 0.95), (DIAL, "model", 0.95)],
    ids=["discrete-clipped-0", "discrete-clipped-0.95", "continuous-model-0.95"],
)
def test_agent_credits_an_action_with_what_it_pays_a_step_later(spec, gradient, lambda_):
    agent = replace(DREAMER, gradient=gradient, return_lambda=lambda_)
    state, metrics = practise(agent, TWO_STEP, spec, 400)
    assert_best(agent, state)
    assert float(metrics["dream_survival"][-1]) == 0.0


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [(ARMS, "clipped"), (DIAL, "reinforce"), (DIAL, "model")],
    ids=["discrete-clipped", "continuous-reinforce", "continuous-model"],
)
def test_agent_avoids_what_the_model_is_not_sure_of(spec, gradient):
    agent = replace(DREAMER, gradient=gradient)
    state, metrics = practise(agent, still(reward=0.5, doubt=True), spec, 250)
    assert_best(agent, state)
    assert float(metrics["dream_uncertainty"][-20:].mean()) < 0.5 * float(metrics["dream_uncertainty"][:3].mean())


def test_a_dream_that_has_ended_earns_nothing_more():
    _, metrics = practise(replace(DREAMER, horizon=8), CORRIDOR, ARMS, 2)
    np.testing.assert_allclose(metrics["dream_return"], 3.0)
    np.testing.assert_array_equal(metrics["dream_survival"], 0.0)
    np.testing.assert_array_equal(metrics["imagined_steps"], 8 * 32)


def test_a_dream_that_was_still_going_is_continued_by_the_next():
    agent = replace(DREAMER, horizon=1, restart=0.0)
    state, _ = practise(agent, CORRIDOR, ARMS, 2)
    np.testing.assert_array_equal(state.pool.obs, np.full((32, 2), 2.0))
    np.testing.assert_array_equal(state.pool.ends.memory.obs, state.pool.obs)
    np.testing.assert_array_equal(state.pool.alive, 1.0)
    state, _ = practise(agent, CORRIDOR, ARMS, 4)  # the third step ended them, the fourth is a first one again
    np.testing.assert_array_equal(state.pool.obs, np.full((32, 2), 1.0))


# ---- dreams within a limit of uncertainty


class SureNearTheOrigin(Known):
    """A world that moves by its state, (2,), at each step; sure within 0.3 of the origin, and wrong by 0.5 on what was held out."""

    def step(self, state, memory, action, key):
        return said(memory.obs + state, 1.0, uncertainty=jnp.abs(memory.obs).max() > 0.3)

    def confidence(self, state):
        return jnp.exp(-jnp.square(0.5))


@functools.partial(jax.jit, static_argnums=0)
def _begun_and_dreamt(agent, drift, experience):
    """Where dreams begin, their lessons, and how many go on after an update."""
    world = seen(known(SureNearTheOrigin(), drift, ARMS))
    state = agent.init(ARMS, world, KEY)
    starts, importance = agent._starts(state, world, experience, KEY)
    _, (_, _, lessons) = agent._imagined_loss(state.actor, state, world, starts, importance, KEY)
    after, metrics = agent.update(state, world, experience, KEY)
    return starts.memory.obs, lessons, after.pool.alive, metrics


@pytest.mark.parametrize("horizon, counted, going", [(2, [1, 1], 1), (4, [1, 1, 1, 0], 0)])  # in the third step 0.3 is passed
def test_a_dream_counts_up_to_the_first_step_that_is_too_uncertain(horizon, counted, going):
    agent, drift = (
        replace(DREAMER, horizon=horizon, error_limit=1.0),
        jnp.array([0.2, 0.0]),
    )  # 0.3 is passed in the third step
    _, lessons, alive, metrics = _begun_and_dreamt(agent, drift, origin(ARMS))
    np.testing.assert_array_equal(lessons.weight, np.broadcast_to(np.array(counted)[:, None], (horizon, 32)))
    np.testing.assert_array_equal(alive, going)
    trusted = min(horizon, 2)
    assert float(metrics["dream_trusted"]) == pytest.approx(trusted / horizon)
    if horizon == 4:  # what comes after the doubtful step counts as its value says, not as it was dreamt
        without = _begun_and_dreamt(replace(agent, error_limit=None), drift, origin(ARMS))[1]
        np.testing.assert_array_equal(lessons.target[3], without.target[3])
        assert not np.allclose(lessons.target[2], without.target[2])
        # Twice as many mean errors are allowed, and a doubt of one is within them.
        np.testing.assert_array_equal(_begun_and_dreamt(replace(agent, error_limit=2.0), drift, origin(ARMS))[1].weight, 1)


def test_dreams_begin_around_what_was_seen_only_where_the_model_is_sure():
    starts = {}
    for limit in (None, 2.0):  # half of which a start may be uncertain by
        agent = replace(DREAMER, start_noise=0.3, trajectories=256, error_limit=limit)
        starts[limit] = np.abs(_begun_and_dreamt(agent, jnp.zeros(2), origin(ARMS))[0]).max(1)
    assert (starts[None] > 0.3).mean() > 0.3 and starts[2.0].max() <= 0.3
    at_rest = (starts[2.0] == 0).mean()
    assert 0.3 < at_rest < 0.7  # where noise would have led too far; the others keep theirs


# ---- learning from real steps


def random_pulls(spec):
    """What sixteen random actions earned, of which the second (or 0.5) is the best."""
    keys = jax.random.split(jax.random.key(8), 2)
    if spec.discrete:
        action = jnp.eye(3)[jnp.arange(16) % 3]
        return origin(spec, action, action[:, 1], jnp.full(16, -jnp.log(3.0)))
    action = jnp.linspace(-0.95, 0.95, 16)[jax.random.permutation(keys[0], 16)][:, None]
    return origin(spec, action, 1 - jnp.square(action[:, 0] - 0.5), jnp.full(16, -jnp.log(2.0)))


@pytest.mark.parametrize("spec", [ARMS, DIAL], ids=["discrete", "continuous"])
def test_without_imagined_data_the_agent_learns_from_real_steps_alone(spec):
    agent, useless = replace(DREAMER, imagined_share=ImaginedShare(0.0, 0.0), horizon=2), still(reward=0.5)
    state, metrics = practise(agent, useless, spec, 250, random_pulls(spec))
    assert_best(agent, state)
    assert finite((state, metrics)) and not metrics["imagined_share"].any()
    # What the world says does not even count a little.
    other, _ = practise(agent, still(reward=-0.7, doubt=True), spec, 250, random_pulls(spec))
    np.testing.assert_array_equal(*(np.asarray(jax.tree.leaves(s.actor)[0]) for s in (state, other)))


def test_with_imagined_data_alone_real_rewards_are_not_looked_at():
    agent = replace(DREAMER, horizon=2)
    state, _ = practise(agent, still(), ARMS, 250, random_pulls(ARMS))
    assert_best(agent, state)
    experience = random_pulls(ARMS)
    shuffled = changed_rows(experience, reward=lambda x: jnp.roll(x, 1))
    other, _ = practise(agent, still(), ARMS, 250, shuffled)
    np.testing.assert_array_equal(*(np.asarray(jax.tree.leaves(s.actor)[0]) for s in (state, other)))


def test_the_share_moves_from_imagined_to_real_steps():
    # The world prefers the second action, the real steps (now they say so) the first.
    experience = random_pulls(ARMS)
    real = changed_rows(experience, reward=lambda x: experience.data.action[:, 0, 0])
    for share, best in ((0.95, 1), (0.05, 0)):
        agent = replace(DREAMER, imagined_share=ImaginedShare(share, share), horizon=2)
        state, metrics = practise(agent, still(), ARMS, 250, real)
        assert greedy_action(agent, state).argmax() == best
        np.testing.assert_allclose(metrics["imagined_share"], share, rtol=1e-6)


def test_real_steps_credit_an_action_with_what_it_pays_a_step_later():
    # Episodes of two steps under random actions; the second pays what the first one chose.
    rows, spec = 96, ARMS
    first = jnp.arange(rows) % 2 == 0
    action = jnp.eye(3)[jax.random.randint(KEY, (rows,), 0, 3)]
    kept = jnp.concatenate([jnp.zeros(1), action[:-1, 1]])
    obs = jnp.where(first[:, None], 0.0, jnp.stack([jnp.ones(rows), kept], axis=1))
    following = jnp.stack([jnp.ones(rows), jnp.where(first, action[:, 1], kept)], axis=1)
    reward, ended = jnp.where(first, 0.0, kept), 1.0 - first
    steps = Transition(obs, action, reward, following, ended, jnp.zeros(rows), jnp.full(rows, -jnp.log(3.0)))
    agent = replace(DREAMER, imagined_share=ImaginedShare(0.0, 0.0))
    experience = holding(spec, steps, rows)
    state, _ = practise(agent, still(reward=0.0), spec, 250, experience)
    assert greedy_action(agent, state, experience.normalizer.obs(jnp.zeros(2))).argmax() == 1


def test_a_slow_actor_acts_and_is_the_running_average_of_the_one_that_learns():
    agent, world, experience = replace(DREAMER, actor_rate=0.25), toy(still(), DIAL), origin(DIAL)
    state = _begin(agent, DIAL, world, KEY)

    def weights(actor):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(actor)])

    expected = weights(state.actor)
    for key in jax.random.split(KEY, 3):
        state, _ = _updates(agent, state, world, experience, key[None])
        expected = 0.75 * expected + 0.25 * weights(state.actor)
    np.testing.assert_allclose(weights(agent.policy_of(state).actor), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected - weights(state.actor)).max() > 1e-4
    assert agent.policy_of(state).actor is state.slow_actor and DREAMER.policy_of(state).actor is state.actor


def test_starts_and_real_steps_that_are_drawn_by_priority_count_by_their_importance():
    agent = replace(DREAMER, imagined_share=ImaginedShare(0.5, 0.5), trajectories=64)
    world, evenly = toy(still(), ARMS), origin(ARMS, log_prob=jnp.full(16, -99.0))  # steps as unlikely as any policy takes them
    evenly = changed_rows(evenly, obs=lambda x: x.at[:, 0].set(jnp.arange(16.0)))  # which tells them apart
    by_priority = replace(evenly, priority=Priority(empty_tree(16), jnp.ones(())), alpha=1.0, beta=0.5)
    by_priority = by_priority.prioritise(jnp.arange(16), jnp.where(jnp.arange(16) == 3, 15.0, 1.0), jnp.ones(16))

    @jax.jit
    def counted(experience):
        """Which steps dreams begin at, and real lessons end at, and what these count."""
        state = agent.init(ARMS, world, KEY)
        starts, importance = agent._starts(state, world, experience, KEY)
        _, (_, _, dreamt) = agent._imagined_loss(state.actor, state, world, starts, importance, KEY)
        real = agent._real_lessons(state, world, experience, KEY)
        return (starts.memory.obs[:, 0], dreamt.weight), (real.obs[-1, :, 0], real.weight[-1:])

    scale = evenly.normalizer
    for obs, weight in counted(by_priority):
        step = np.asarray(obs * scale.scale[0] + scale.mean[0]).round()
        assert 16 < (step == 3).sum() < 48  # 15 of the 30 that all weigh together
        wanted = np.where(step == 3, (1.15 / 15.15) ** 0.5, 1.0)
        np.testing.assert_allclose(weight, np.broadcast_to(wanted, weight.shape), rtol=1e-4)
    for _, weight in counted(evenly):
        np.testing.assert_array_equal(weight, 1.0)
