"""The agent that learns from each real step: its arithmetic by hand, what its model learns, and what it refuses."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, known, same, small

from spikedream import config as configuration
from spikedream.agents.dyna import Dyna, Imagined
from spikedream.agents.online import Both, Returns, StreamActorCritic
from spikedream.config import Config, ConfigError, twin
from spikedream.ops.slow_copy import PolynomialAverage
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.affine import Affine
from spikedream.snn.conventional import GRU, Linear
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.sparsity import Pruning
from spikedream.types import Transition
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment

KEY = jax.random.key(0)
PLAIN = StreamActorCritic(actor=Linear(), critic=Linear(), gamma=0.9, trace_decay=0.5, entropy=0.0, sparsity=0.0)


def world(spec: Any) -> Any:
    model = TrueEnvironment("CartPole" if spec.discrete else "Pendulum")
    return known(model, model.init(spec, KEY), spec)


def experience(spec: Any, *steps: Transition, capacity: int = 4) -> Any:
    """Not normalised."""
    replay = ReplayBuffer(capacity).init(spec)
    for step in steps:
        replay = replay.add(jax.tree.map(lambda x: x[None, None], step), 1)
    return replay


def step(obs: Any, action: Any, reward: float, following: Any, terminated: float = 0.0, truncated: float = 0.0) -> Transition:
    numbers = (obs, action, reward, following, terminated, truncated, 0.0)
    return Transition(*(jnp.asarray(x, jnp.float32) for x in numbers))


def test_the_scale_of_rewards_is_the_deviation_of_the_discounted_return():
    rewards, ends, returns = [1.0, 0.5, -2.0, 3.0, 1.0], [0, 0, 1, 0, 0], Returns(*(jnp.zeros(()) for _ in range(4)))
    running, seen = 0.0, []
    for reward, end in zip(rewards, ends, strict=True):
        running = 0.9 * (1 - end) * running + reward
        seen.append(running)
        returns = returns.add(jnp.asarray(reward), jnp.asarray(0.9 * (1 - end)))
        wanted = np.std(seen, ddof=1) if len(seen) > 1 else 1.0
        assert float(returns.scale()) == pytest.approx(wanted, rel=1e-5)


def by_hand(params: Affine, trace: np.ndarray, gradient: np.ndarray, error: float, caution: float) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 3 of Elsayed et al. 2024, with a step size of one; weights and biases below one another."""
    trace = 0.9 * 0.5 * trace + gradient
    taken = 1 / max(caution * max(abs(error), 1.0) * np.abs(trace).sum(), 1.0)
    return np.vstack([params.weight, params.bias[None]]) + taken * error * trace, trace


def test_two_steps_by_hand_and_the_end_of_an_episode():
    state = jax.jit(lambda k: PLAIN.init(DISCRETE, world(DISCRETE), k))(KEY)
    learn, traces = jax.jit(PLAIN.learn), [np.zeros((5, 2)), np.zeros((5, 1))]
    moves = [
        step([1.0, 0.0, -1.0, 0.5], [1.0, 0.0], 2.0, [0.5, 0.5, 0.0, 1.0]),
        step([0.5, 0.5, 0.0, 1.0], [0.0, 1.0], -1.0, [9.0, 9.0, 9.0, 9.0], terminated=1.0),
    ]
    scales = [1.0, float(np.std([2.0, -1.0], ddof=1))]
    for move, scale in zip(moves, scales, strict=True):
        params, at = state.params, np.append(np.asarray(move.obs), 1.0)[:, None]
        value, after = (float(params.critic(x[None])[0, 0]) for x in (move.obs, move.next_obs))
        error = float(move.reward) / scale + 0.9 * (1 - float(move.terminated)) * after - value
        chances = np.asarray(jax.nn.softmax(params.actor(move.obs[None])[0]))
        actor, traces[0] = by_hand(params.actor, traces[0], at * (np.asarray(move.action) - chances)[None], error, 3.0)
        critic, traces[1] = by_hand(params.critic, traces[1], at, error, 2.0)
        state, metrics = learn(state, world(DISCRETE), experience(DISCRETE, move), KEY)
        assert float(metrics["td_error"]) == pytest.approx(abs(error), rel=1e-5)
        for found, wanted in ((state.params.actor, actor), (state.params.critic, critic)):
            np.testing.assert_allclose(np.vstack([found.weight, found.bias[None]]), wanted, rtol=1e-4, atol=1e-6)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(state.traces)), "the traces outlived their episode"


@pytest.mark.parametrize("reward", [2.0, -2.0])
def test_entropy_makes_less_sure_whatever_the_error(reward):
    agent, sure = replace(PLAIN, entropy=0.5), jnp.array([1.0, -1.0])
    state = jax.jit(lambda k: agent.init(DISCRETE, world(DISCRETE), k))(KEY)
    params = Both(Affine(jnp.zeros((4, 2)), sure), Affine(jnp.zeros((4, 1)), jnp.zeros(1)))
    # As much of each action as is probable: the policy gradient of that is zero.
    move = step(jnp.ones(4), jax.nn.softmax(sure), reward, jnp.ones(4))
    after, _ = jax.jit(agent.learn)(replace(state, params=params), world(DISCRETE), experience(DISCRETE, move), KEY)
    logits = after.params.actor(jnp.ones((1, 4)))[0]
    assert float(state.distribution.entropy(logits)) > float(state.distribution.entropy(sure)) + 1e-3


def test_a_share_of_each_neurons_first_weights_is_zero_and_may_grow():
    agent = StreamActorCritic(actor=SpikingNetwork(hidden=(30,)), critic=Linear(), sparsity=0.75)
    actor = jax.jit(lambda k: agent.init(DISCRETE, world(DISCRETE), k))(KEY).params.actor
    weight, readout = np.asarray(actor.layers[0].synapse.weight), np.asarray(actor.readout.weight)
    assert ((weight == 0).sum(0) == 3).all() and len(np.unique(weight[weight != 0])) == 30
    assert ((readout == 0).sum(0) == 22).all()


def test_weights_are_pruned_as_it_learns():
    sparse = SpikingNetwork(hidden=(10,), ticks=2, sparsity=Pruning(0.3, begin=0, steps=2, every=1))
    agent = StreamActorCritic(actor=sparse, critic=Linear(), sparsity=0.0)
    state = jax.jit(lambda k: agent.init(DISCRETE, world(DISCRETE), k))(KEY)
    learn, seen = jax.jit(agent.learn), experience(DISCRETE, step(jnp.ones(4), jnp.eye(2)[0], 1.0, jnp.ones(4)))
    for _ in range(3):
        state, _ = learn(state, world(DISCRETE), seen, KEY)
    (first, _) = state.params.actor.mask.kept
    assert float((first > 0.5).mean()) == pytest.approx(0.3, abs=0.02)


def test_what_would_have_to_remember_an_episode_is_refused():
    with pytest.raises(ValueError, match="no memory of an episode, which a persistent network needs"):
        StreamActorCritic(actor=GRU(4)).init(DISCRETE, world(DISCRETE), KEY)
    model = small(Recurrent())
    with pytest.raises(ValueError, match="no memory of an episode, which Recurrent needs"):
        PLAIN.init(DISCRETE, known(model, None, DISCRETE), KEY)


GOOD = {"agent": "StreamActorCritic", "collect": {"seed_episodes": 0}, "improve": {"first": 0, "then": 0}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"collect": {"environments": 2}}, r"set collect.environments to 1 \(it is 2\)"),
        ({"collect": {"seed_episodes": 4}}, "set collect.seed_episodes to 0"),
        ({"collect": {"seed_steps": 4}}, "set collect.seed_steps to None"),
        ({"improve": {"then": 1}}, "set improve.then to 0"),
        ({"bonus": "Disagreement"}, "set bonus to None"),
    ],
)
def test_a_loop_in_which_it_cannot_learn_is_refused(wrong, message):
    good = configuration.merge(Config(), GOOD)
    good.check()
    with pytest.raises(ValueError, match=message):
        configuration.merge(good, wrong).check()


@pytest.mark.parametrize("name", ["steps", "horizon", "learning_rate", "memory", "rehearsals", "begin_remembered"])
def test_settings_of_the_model_have_bounds(name):
    with pytest.raises(ConfigError, match=f"agent.dyna.{name} is -1"):
        configuration.merge(Config(), GOOD | {"agent": {"kind": "StreamActorCritic", "dyna": {"kind": "Dyna", name: -1}}})


# ---- imagining


def test_the_model_learns_from_single_steps_what_they_have_in_common():
    dyna = Dyna(dynamics=Linear(), ending=Linear(), learning_rate=0.03, rehearsals=0)
    state = dyna.init(CONTINUOUS, KEY)

    @jax.jit
    def run(state, key):
        def one(now, key):
            state, replay = now
            obs_key, action_key, fit_key = jax.random.split(key, 3)
            obs, action = jax.random.normal(obs_key, (3,)), jax.random.normal(action_key, (1,))
            following = obs + 0.1 * jnp.roll(obs, 1) + 0.2 * action
            taken = step(obs, action, 0.5, following, terminated=following[0] > 1)
            replay = replay.add(jax.tree.map(lambda x: x[None, None], taken), 1)
            state, metrics = dyna.fit(state, replay, taken, fit_key)
            return (state, replay), metrics["model_error"]

        return jax.lax.scan(one, (state, experience(CONTINUOUS)), jax.random.split(key, 600))

    (state, replay), errors = run(state, KEY)
    assert float(errors[-50:].mean()) < 1e-3 < 0.1 < float(errors[:20].mean())
    obs, action = jnp.array([0.3, -0.2, 0.1]), jnp.array([0.5])
    found = dyna.imagine(state, replay, obs, action, KEY)
    np.testing.assert_allclose(found.obs, obs + 0.1 * jnp.roll(obs, 1) + 0.2 * action, atol=0.03)
    assert float(found.reward) == pytest.approx(0.5, abs=0.05) and float(found.terminated) == 0
    assert float(dyna.imagine(state, replay, jnp.array([2.0, 0.0, 0.0]), action, KEY).terminated) == 1
    far = jnp.array([-50.0, 0.0, 0.0])
    assert float(dyna.imagine(state, replay, far, action, KEY).terminated) == 1, "what was never seen was believed"


def test_a_dream_begins_anew_at_the_newest_state_that_did_not_end():
    dyna = small(twin(Dyna(horizon=5, begin_remembered=0.0)))
    state, obs, following = dyna.init(DISCRETE, KEY), jnp.arange(4.0), jnp.arange(4.0) + 1
    action = jnp.array([1.0, 0.0])
    alive, dead = (step(obs, action, 1.0, following, terminated=end) for end in (0.0, 1.0))
    replay = experience(DISCRETE, alive)
    begun = dyna.awake(state, replay, alive, KEY)
    np.testing.assert_array_equal(begun.obs, following)
    np.testing.assert_array_equal(dyna.awake(state, replay, dead, KEY).obs, obs)
    on = dyna.onward(begun, replay, Imagined(2 * obs, jnp.ones(()), jnp.zeros(())))
    np.testing.assert_array_equal(on.obs, 2 * obs)
    assert int(on.age) == 1 and same(dyna.awake(on, replay, alive, KEY).obs, on.obs)
    over = dyna.onward(begun, replay, Imagined(2 * obs, jnp.ones(()), jnp.ones(())))
    np.testing.assert_array_equal(dyna.awake(over, replay, alive, KEY).obs, following)


def test_every_real_step_is_remembered_equally_often_and_dreams_begin_there():
    dyna = Dyna(dynamics=Linear(), memory=3, rehearsals=0, begin_remembered=1.0)

    @jax.jit
    @jax.vmap
    def kept(key):
        def one(now, number_and_key):
            (state, replay, _), (i, key) = now, number_and_key
            taken = step(jnp.full(4, i), [1.0, 0.0], 1.0, jnp.full(4, i + 0.5))
            replay = replay.add(jax.tree.map(lambda x: x[None, None], taken), 1)
            state, _ = dyna.fit(state, replay, taken, key)
            return (state, replay, dyna.awake(state, replay, taken, key).obs), state.kept.obs[:, 0]

        start = dyna.init(DISCRETE, key), experience(DISCRETE, capacity=4), jnp.zeros(4)  # a ring that forgets
        (*_, begun), each = jax.lax.scan(one, start, (jnp.arange(12.0), jax.random.split(key, 12)))
        return each[2], each[-1], begun

    first, last, begun = map(np.asarray, kept(jax.random.split(KEY, 2000)))
    assert (first == np.arange(3)).all(), "there was room for all"
    np.testing.assert_allclose(
        np.bincount(last.ravel().astype(int), minlength=12) / 2000, 3 / 12, atol=0.04
    )  # four standard deviations
    assert (begun[:, :1] == last).any(1).all() and len(np.unique(begun)) == 12


def test_rehearsing_is_learning_from_what_is_remembered():
    dyna = Dyna(dynamics=Linear(), memory=1, rehearsals=5, learning_rate=0.01)
    first = step(jnp.ones(4), [1.0, 0.0], 1.0, jnp.full(4, 2.0))
    seen, state = experience(DISCRETE, first), dyna.init(DISCRETE, KEY)
    rehearsed, _ = jax.jit(dyna.fit)(state, seen, first, KEY)
    for _ in range(6):
        state, _ = jax.jit(dyna.fit_one)(state, seen, first, KEY)
    for ours, theirs in zip(jax.tree.leaves(rehearsed.networks), jax.tree.leaves(state.networks), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_average_of_the_actor_acts_where_none_explores():
    params = [{"w": jnp.asarray(float(w))} for w in (4.0, -2.0, 7.0)]
    for degree, wanted in ((0.0, 3.0), (1.0, (4 - 2 * 2 + 3 * 7) / 6)):  # step t counts in proportion to t ** degree
        average = {"w": jnp.asarray(100.0)}
        for n, each in enumerate(params, 1):
            average = PolynomialAverage(degree).follow(average, each, jnp.asarray(n))
        assert float(average["w"]) == pytest.approx(wanted, rel=1e-6)
    agent = replace(PLAIN, average=PolynomialAverage(0.0))
    state, moves = agent.init(DISCRETE, world(DISCRETE), KEY), []
    for i in range(2):
        moves.append(step(jnp.full(4, 0.5 + i), [1.0, 0.0], 1.0, jnp.full(4, 1.5 + i)))
        before = state.params.actor
        state, _ = jax.jit(agent.learn)(state, world(DISCRETE), experience(DISCRETE, *moves), KEY)
    np.testing.assert_allclose(state.average.bias, (before.bias + state.params.actor.bias) / 2, rtol=1e-5)
    policy = replace(agent.policy_of(state), actor=Affine(jnp.zeros((4, 2)), jnp.array([9.0, -9.0])))
    policy = replace(policy, average=Affine(jnp.zeros((4, 2)), jnp.array([-9.0, 9.0])))
    chosen = [agent.act(policy, world(DISCRETE), (), jnp.ones(4), KEY, greedy).action for greedy in (True, False)]
    assert [int(x.argmax()) for x in chosen] == [1, 0]


def test_imagined_steps_are_learned_from_and_begin_when_told():
    moves = [step(jnp.full(4, 0.1 * i), [1.0, 0.0], 1.0, jnp.full(4, 0.1 * i + 0.1)) for i in range(3)]
    agent = replace(PLAIN, dyna=small(twin(Dyna(begin=3, steps=2))))
    state = agent.init(DISCRETE, world(DISCRETE), KEY)
    without = PLAIN.init(DISCRETE, world(DISCRETE), KEY)
    without = replace(without, params=state.params)
    for number in range(1, 4):
        seen = experience(DISCRETE, *moves[:number])
        state, metrics = jax.jit(agent.learn)(state, world(DISCRETE), seen, KEY)
        without, _ = jax.jit(PLAIN.learn)(without, world(DISCRETE), seen, KEY)
        assert int(metrics["imagined_steps"]) == (2 if number == 3 else 0)
        assert same(state.params, without.params) is (number < 3)
    assert isinstance(state.dreamt, Both)
