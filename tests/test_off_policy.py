"""The off-policy agent: its targets by hand, its copies, what it refuses, and problems whose answers are known."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, filled, finite, holding, known, same, small
from toys import DIAL, KEY, greedy_action, practise, still

from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.policy_head import Deterministic, SquashedGaussian, Temperature
from spikedream.agents.representation import SALE, average_l1
from spikedream.agents.transitions import real
from spikedream.bonuses.disagreement import Disagreement
from spikedream.ops.distributions import Huber, Regression, TwoHot
from spikedream.ops.slow_copy import HardCopy, Polyak
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.batch_norm import BatchNormMLP
from spikedream.snn.conventional import GRU, MLP
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import CubaLIF
from spikedream.snn.readouts import PopulationReadout
from spikedream.types import Transition
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment

NETWORK = MLP(hidden=(16,), activation="tanh", gain=0.1)
AGENT = OffPolicy(
    actor=NETWORK, critic=NETWORK, policy=Deterministic(noise=0.1, target_noise=0.2, target_clip=0.5), slow=Polyak(0.05),
    critics=2, policy_delay=2, gamma=0.9, batch=32, learning_rate=3e-3, critic_learning_rate=1e-2,
)  # fmt: skip


def pendulum():
    model = TrueEnvironment("Pendulum")
    return known(model, model.init(CONTINUOUS, KEY), CONTINUOUS)


@functools.partial(jax.jit, static_argnums=0)
def begin(agent, world, key):
    return agent.init(CONTINUOUS, world, key)


def steps_at_the_origin(rows=64, **fields):
    """Each an episode, with actions all over their range; each pays 1 - (action - 0.5)^2."""
    action = jnp.linspace(-1, 1, rows)[:, None]
    none, at = jnp.zeros(rows), jnp.zeros((rows, 2))
    plain = Transition(at, action, 1 - jnp.square(action[:, 0] - 0.5), at, none + 1, none, none)
    return holding(DIAL, plain._replace(**fields), rows)


def learn(agent, experience, updates=1500):
    return practise(agent, still(), DIAL, updates, experience)


@functools.partial(jax.jit, static_argnums=0)
def values(agent, state, action):
    critics = agent._critics
    out = critics(state.now.critics, state.now.encoder, jnp.zeros((1, 2)), jnp.full((1, 1), action), KEY)
    return critics.means(out)[0]


@functools.partial(jax.jit, static_argnums=0)
def batch_of(agent, world, experience, index):
    return real(world, experience, index, agent.gamma, agent.n_step, KEY)


SPIKING = SpikingNetwork(
    hidden=(24,), ticks=4, neuron=CubaLIF(), encoder=GaussianPopulation(fields=6), readout=PopulationReadout(neurons=6)
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actor": SPIKING, "learning_rate": 5e-3},
        {"policy": SquashedGaussian(temperature=Temperature(-2.0, 0.01)), "policy_value": "min"},
        {"representation": SALE(16, NETWORK, NETWORK, 3e-3), "actor_sees": "both", "slow": HardCopy(25), "clip_value": True,
         "value": Huber()},
        {"slow": None, "critic": BatchNormMLP(hidden=(16,), activation="tanh", momentum=0.9), "momentum": 0.5},
        {"value": TwoHot(bins=41, limit=3.0), "target": "mean", "critics": 3, "subset": 2, "policy_value": "mean"},
    ],
    ids=["td3", "spiking", "sac", "td7", "crossq", "two-hot"],
)  # fmt: skip
def test_agent_finds_the_best_action_and_its_value_from_replayed_steps(changes):
    agent = replace(AGENT, **changes)
    state, metrics = learn(agent, steps_at_the_origin())
    assert finite(state) and finite(metrics)
    assert greedy_action(agent, state) == pytest.approx(0.5, abs=0.2)
    assert np.mean(values(agent, state, 0.5)) == pytest.approx(1.0, abs=0.15)
    assert np.mean(values(agent, state, -0.9)) < 0


def test_values_are_sums_of_rewards_to_come_in_the_environments_own_units():
    rows = 64
    # 5 for ever, whatever is done: 5 / (1 - 0.9).
    experience = steps_at_the_origin(rows, reward=jnp.full(rows, 5.0), terminated=jnp.zeros(rows))
    assert float(experience.normalizer.reward_scale) == 5.0
    agent = replace(AGENT, slow=HardCopy(20), critic_learning_rate=2e-2)
    state, metrics = learn(agent, experience)
    assert np.mean(values(agent, state, 0.0)) == pytest.approx(50, rel=0.1)
    assert float(metrics["target_value"][-1]) == pytest.approx(50, rel=0.1)


def test_targets_by_hand():
    agent = replace(AGENT, policy=Deterministic(target_noise=0.0))
    world, experience = pendulum(), filled(CONTINUOUS, 20, 24, KEY)
    state = begin(agent, world, KEY)
    state = replace(state, slow=begin(agent, world, jax.random.key(3)).now)  # another than the present one
    index = jnp.arange(20)
    steps, scale = experience.gather(index), float(experience.normalizer.reward_scale)
    following = jax.vmap(lambda obs: jnp.tanh(agent.actor(state.slow.actor, obs).value))(steps.next_obs)
    both = jax.vmap(
        lambda c: jax.vmap(lambda o, a: agent.critic(c.network, jnp.concatenate([o, a])).value[0])(steps.next_obs, following)
    )(state.slow.critics)
    wanted = scale * steps.reward + 0.9 * (1 - steps.terminated) * both.min(0)
    batch = batch_of(agent, world, experience, index)
    np.testing.assert_allclose(jax.jit(agent._target)(state, batch, KEY), wanted, rtol=1e-5, atol=1e-5)
    now = jax.vmap(
        lambda c: jax.vmap(lambda o, a: agent.critic(c.network, jnp.concatenate([o, a])).value[0])(steps.obs, steps.action)
    )(state.now.critics)
    errors = jax.jit(agent.errors)(state, world, experience, index, KEY)
    np.testing.assert_allclose(errors, jnp.square(now - wanted[None]).max(0), rtol=1e-4, atol=1e-5)


def test_n_step_targets_end_where_the_episode_does():
    agent = replace(AGENT, n_step=3)
    reward, none = jnp.arange(1.0, 9.0), jnp.zeros(8)
    obs = jnp.tile(jnp.arange(8.0)[:, None], (1, 3))
    #                 an episode is cut after the third step and one ends with the sixth; the last two are of one that goes on
    plain = Transition(obs, jnp.zeros((8, 1)), reward, obs + 0.5, none.at[5].set(1), none.at[2].set(1), none)
    experience = holding(CONTINUOUS, plain, 8)
    batch = batch_of(agent, pendulum(), experience, jnp.arange(8))
    g = 0.9
    wanted = [1 + 2 * g + 3 * g**2, 2 + 3 * g, 3, 4 + 5 * g + 6 * g**2, 5 + 6 * g, 6, 7 + 8 * g, 8]
    np.testing.assert_allclose(batch.reward, wanted, rtol=1e-5)
    np.testing.assert_allclose(batch.discount, [g**3, g**2, g, 0, 0, 0, g**2, g], rtol=1e-5)
    later = experience.normalizer.raw_obs(batch.later)[:, 0]
    np.testing.assert_allclose(later, [2.5, 2.5, 2.5, 5.5, 5.5, 5.5, 7.5, 7.5], rtol=1e-4)
    np.testing.assert_allclose(experience.normalizer.raw_obs(batch.next_obs)[:, 0], np.arange(8) + 0.5, rtol=1e-4)


def test_onward_steps_of_several_environments_in_a_ring_that_has_gone_round():
    replay = ReplayBuffer(capacity=8).init(CONTINUOUS, 2)
    rows = jnp.arange(6.0)
    fields = jnp.stack([rows, rows + 100], axis=1)  # the environment shows in the reward
    none = jnp.zeros((6, 2))
    steps = Transition(jnp.zeros((6, 2, 3)), jnp.zeros((6, 2, 1)), fields, jnp.zeros((6, 2, 3)), none, none.at[4, 1].set(1), none)
    add = jax.jit(lambda replay, step: replay.add(step, 1))
    for row in range(6):
        replay = add(replay, jax.tree.map(lambda x, row=row: np.asarray(x)[row : row + 1], steps))
    at = lambda row, environment: (row % 4) * 2 + environment  # noqa: E731
    onward = jax.jit(lambda index, steps: replay.onward(index, steps), static_argnums=1)
    seen = onward(jnp.asarray(at(3, 0)), 4)
    np.testing.assert_array_equal(seen.valid, [1, 1, 1, 0])  # 3, 4, 5, and then nothing newer
    np.testing.assert_array_equal(seen.steps.reward[:3], [3, 4, 5])
    seen = onward(jnp.asarray(at(3, 1)), 3)
    np.testing.assert_array_equal(seen.valid, [1, 1, 0])
    np.testing.assert_array_equal(seen.steps.reward[:2], [103, 104])


def test_only_every_so_many_updates_the_actor_learns_and_the_copies_follow():
    agent = replace(AGENT, slow=HardCopy(3), representation=SALE(8, NETWORK, NETWORK), clip_value=True)
    world, experience = pendulum(), filled(CONTINUOUS, 20, 24, KEY)
    state = begin(agent, world, KEY)
    update = jax.jit(lambda s, k: agent.update(s, world, experience, k)[0])
    history = [state]
    for key in jax.random.split(KEY, 6):
        history.append(update(history[-1], key))
    for before, after in itertools.pairwise(history):
        number = int(after.updates)
        assert not same(before.now.critics, after.now.critics) and not same(before.encoder, after.encoder)
        assert same(before.now.actor, after.now.actor) is (number % 2 == 1)
        if number % 3:
            assert same(before.slow, after.slow) and same(before.now.encoder, after.now.encoder)
            assert same(before.range[2:], after.range[2:])
        else:
            # What targets are made of sees through the encoder that the critics were trained with.
            assert same(after.slow, replace(after.now, encoder=before.now.encoder)) and same(after.now.encoder, after.encoder)
            assert same(after.range[2:], after.range[:2]) and float(after.range.high) > float(after.range.low)


def test_polyak_average_moves_by_its_rate():
    copy, params = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    np.testing.assert_allclose(Polyak(0.25).follow(copy, params, jnp.asarray(1))["w"], 0.25)
    assert same(HardCopy(2).follow(copy, params, jnp.asarray(1)), copy)
    assert same(HardCopy(2).follow(copy, params, jnp.asarray(4)), params)


def test_values_beyond_those_seen_until_the_last_copy_do_not_count():
    agent = replace(AGENT, slow=HardCopy(5), clip_value=True, policy=Deterministic(target_noise=0.0))
    world, experience = pendulum(), filled(CONTINUOUS, 20, 24, KEY)
    state = begin(agent, world, KEY)
    batch = real(world, experience, jnp.arange(20), agent.gamma, agent.n_step, KEY)
    # Before the first copy no value has been seen.
    np.testing.assert_array_equal(agent._target(state, batch, KEY), batch.reward)
    narrow = replace(state, range=state.range._replace(used_low=jnp.asarray(0.125), used_high=jnp.asarray(0.125)))
    np.testing.assert_allclose(agent._target(narrow, batch, KEY), batch.reward + 0.125 * batch.discount, rtol=1e-6)


def test_temperature_rises_where_the_policy_is_too_sure():
    temperature = Temperature(entropy=-1.0)
    loss = lambda log_prob: jax.grad(temperature.loss)(jnp.zeros(()), jnp.asarray(log_prob), 2)  # noqa: E731
    assert float(loss(3.0)) == -1.0  # descent raises it: the entropy, -3, is below -2
    assert float(loss(1.0)) == 1.0


def test_representation_predicts_the_next_observations_embedding():
    sale = SALE(8, NETWORK, NETWORK)
    params = sale.init(CONTINUOUS, KEY)
    obs, action = jnp.array([0.1, -0.4, 2.0]), jnp.array([0.3])
    embedded = sale.embed(params, obs)
    assert float(jnp.abs(embedded).mean()) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(average_l1(jnp.array([1.0, -3.0])), [0.5, -1.5])
    wanted = jnp.square(sale.embed_pair(params, embedded, action) - sale.embed(params, obs + 1)).mean()
    assert float(sale.loss(params, obs, action, obs + 1)) == pytest.approx(float(wanted))
    # The next embedding is a target, not a thing to learn.
    through = jax.grad(lambda p: sale.loss(p, jnp.zeros(3), action, obs))(params)
    fixed = jax.grad(lambda p: jnp.square(sale.embed_pair(p, sale.embed(p, jnp.zeros(3)), action) - sale.embed(params, obs)).mean())
    assert same(through, fixed(params))


def test_the_share_of_targets_that_two_hot_values_cannot_follow_is_told():
    rewards = jnp.where(jnp.arange(64) < 32, 5.0, -0.5)  # each an episode: the targets
    agent, experience = replace(AGENT, value=TwoHot(bins=11, limit=3.0), batch=256), steps_at_the_origin(reward=rewards)
    assert float(learn(agent, experience, 1)[1]["targets_beyond_limit"][0]) == pytest.approx(0.5, abs=0.15)
    assert "targets_beyond_limit" not in learn(replace(agent, value=Huber()), experience, 1)[1]


def test_width_of_a_receptive_field_is_its_deviation():
    fields = GaussianPopulation(fields=2, span=1, width=0.387, mode="current")
    drive = fields.encode(fields.init(1), jnp.zeros(1), 1, None)
    np.testing.assert_allclose(drive, np.exp(-0.5 / 0.387**2), rtol=1e-5)  # at a distance of 1 (Tang et al. 2020, eq. 2)


def test_huber_by_hand():
    head = Huber(threshold=2.0)
    loss = [float(head.loss(jnp.array([x]), jnp.asarray(0.0))) for x in (1.0, -2.0, 5.0)]
    assert loss == pytest.approx([0.5, 2.0, 8.0])
    assert float(head.mean(jnp.array([3.0]))) == 3.0


def test_what_was_surprising_is_drawn_more_often():
    replay = ReplayBuffer(capacity=8, priority="loss", alpha=0.5).init(CONTINUOUS)
    data = jax.tree.map(lambda x: x[:4], filled(CONTINUOUS, 4, 8, KEY).data)
    replay = replay.add(data, 4)
    np.testing.assert_allclose(replay.priority.tree.weight(jnp.arange(4)), 1.0)
    replay = replay.prioritise(jnp.array([1, 2]), jnp.array([0.2, 9.0]), jnp.ones(2))
    np.testing.assert_allclose(replay.priority.tree.weight(jnp.arange(4)), [1, 1, 3, 1])
    replay = replay.add(data, 1)  # as surprising as the most surprising so far
    replay = replay.prioritise(jnp.array([2]), jnp.array([4.0]), jnp.ones(1)).add(data, 1)
    np.testing.assert_allclose(replay.priority.tree.weight(jnp.arange(6)), [1, 1, 2, 1, 3, 3])
    np.testing.assert_array_equal(replay.importance(jnp.arange(4)), 1.0)


def test_a_transition_that_was_drawn_twice_is_judged_once():
    agent, world = replace(AGENT, batch=64), pendulum()
    experience = filled(CONTINUOUS, 5, 8, KEY)
    state = begin(agent, world, KEY)
    judged = agent.judged(jax.jit(lambda s: agent.update(s, world, experience, KEY))(state)[0])
    by_index = {}
    for index, error in zip(np.asarray(judged.index), np.asarray(judged.error), strict=True):
        by_index.setdefault(int(index), set()).add(float(error))
    assert len(by_index) == 5 and all(len(errors) == 1 for errors in by_index.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": 3}, r"subset is 3; it must be from 1 to critics \(2\)"),
        ({"actor": GRU()}, "can keep no state between them; use Dreamer"),
        ({"actor": SpikingNetwork(persistent=True)}, "can keep no state between them; use Dreamer"),
        ({"actor_sees": "both"}, 'actor_sees is "both", but there is no representation'),
        ({"representation": SALE()}, "a representation needs copies that stand still for a while: set slow to HardCopy"),
        ({"clip_value": True}, "clip_value needs copies that stand still"),
        ({"critics": 0}, "critics is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(AGENT, **changes)


def test_worlds_that_it_cannot_act_in_are_refused():
    with pytest.raises(ValueError, match="needs a continuous action space; Dreamer, PPO and MPC act in discrete ones"):
        AGENT.init(DISCRETE, pendulum(), KEY)
    recurrent = small(Recurrent())
    world = known(recurrent, jax.eval_shape(lambda k: recurrent.init(CONTINUOUS, k), KEY), CONTINUOUS)
    with pytest.raises(ValueError, match="a recurrent world model is of no use"):
        AGENT.init(CONTINUOUS, world, KEY)
    curious = replace(pendulum(), bonus=Disagreement())
    with pytest.raises(ValueError, match="n_step is 2, but a bonus is given for single steps only"):
        replace(AGENT, n_step=2).init(CONTINUOUS, curious, KEY)


def test_a_bonus_counts_as_reward():
    class Constant:
        largest = 1.0

        def reward(self, state, obs, action, prediction):
            return jnp.asarray(0.25)

    world, experience = pendulum(), filled(CONTINUOUS, 20, 24, KEY)
    index = jnp.arange(20)
    plain = real(world, experience, index, 0.9, 1, KEY)
    curious = real(replace(world, bonus=Constant()), experience, index, 0.9, 1, KEY)
    scale = float(experience.normalizer.reward_scale)
    np.testing.assert_allclose(curious.reward - plain.reward, 0.25 * scale, rtol=1e-4)


def test_activity_penalty_silences_the_actor_down_to_its_target():
    agent = replace(AGENT, actor=SPIKING, learning_rate=5e-3)
    rates = []
    for penalty, target in ((0.0, 0.0), (5.0, 0.0), (5.0, 0.2)):
        _, metrics = learn(replace(agent, activity_penalty=penalty, activity_target=target), steps_at_the_origin())
        rates.append(float(metrics["firing_rate/actor"][-1]))
    assert rates[1] < 0.5 * rates[0] and rates[1] < 0.15 < rates[2] < 0.25 < rates[0]


def test_noise_explores_and_is_clipped():
    head = Deterministic(noise=10.0, target_noise=10.0, target_clip=0.5)
    keys = jax.random.split(KEY, 100)
    explored = jax.vmap(lambda k: head.sample(jnp.zeros(1), k)[0])(keys)
    assert float(jnp.abs(explored).max()) == 1.0
    targets = jax.vmap(lambda k: head.target(jnp.zeros(1), k)[0])(keys)
    assert float(jnp.abs(targets).max()) == 0.5
    assert float(head.mode(jnp.array([0.5]))[0]) == pytest.approx(np.tanh(0.5))
    with pytest.raises(ValueError, match=r"max_std is 0\.1; it must be above min_std"):
        SquashedGaussian(min_std=0.2, max_std=0.1)
    assert Regression().parameters == 1
