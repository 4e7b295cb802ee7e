"""PPO: its arithmetic by hand, what it imagines, and small problems with known answers."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, filled, finite, holding, known, same

from spikedream.agents.actor_critic import Lesson
from spikedream.agents.ppo import PPO
from spikedream.ops.distributions import Regression
from spikedream.ops.imagination import Imagination
from spikedream.ops.schedule import ImaginedShare
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.conventional import MLP
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF, CubaLIF
from spikedream.snn.protocols import Output
from spikedream.snn.readouts import MembraneReadout, PopulationReadout
from spikedream.spec import Spec
from spikedream.types import Prediction, Transition

KEY, OTHER = jax.random.key(0), jax.random.key(1)
ARMS = Spec(2, 3, discrete=True)
DIAL = Spec(2, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))

SMALL = MLP(hidden=(16,), activation="tanh", gain=0.1)
AGENT = PPO(
    actor=SMALL, critic=SMALL, value=Regression(), rollout=32, passes=4, batch=16, gamma=0.9, return_lambda=0.95, clip=0.2,
    value_clip=0.2, target_kl=1.0, entropy=1e-3, learning_rate=1e-2, critic_learning_rate=1e-2, gradient_clip=1.0,
    advantage_floor=0.01,
)  # fmt: skip
IMAGINATION = Imagination(threshold=0.5, least=8, most=16, horizon=4, discount=0.5, chunk=4, recent=10)


class Memory(NamedTuple):
    obs: jax.Array


@dataclass(frozen=True)
class Still:
    """Nothing moves. The best of the discrete actions is the second, the best continuous action 0.5."""

    discrete: bool = True
    certainty: float = 0.75
    uncertainty: float = 0.0
    calls: list | None = field(default=None, hash=False)  # gets one entry for each step imagined

    members, recurrent = 1, False

    def confidence(self, state):
        return jnp.asarray(self.certainty)

    def start(self, state, obs, key):
        return Memory(obs)

    def feature(self, state, memory):
        return memory.obs

    def step(self, state, memory, action, key):
        if self.calls is not None:
            jax.debug.callback(lambda _: self.calls.append(1), action)
        reward = action[1] if self.discrete else 1 - jnp.square(action[0] - 0.5)
        zero = jnp.zeros(())
        return memory, Prediction(memory.obs, reward, zero, jnp.asarray(self.uncertainty), zero, zero, ())


class Untouchable:
    """A world model that nobody may ask anything but whether it remembers, and where it would start."""

    members, recurrent = 1, False

    def start(self, state, obs, key):
        return Memory(obs)


class Remembering(Untouchable):
    recurrent = True


@dataclass(frozen=True)
class Proportional:
    """A critic whose value of an observation is its first entry times the one parameter."""

    def init(self, in_size, out_size, key):
        return jnp.ones(())

    def start(self, params):
        return ()

    def __call__(self, params, x, carry=(), key=None):
        return Output(params * x[:1], (), ())


@dataclass(frozen=True)
class Praise:
    reward_floor: float = 0.25

    def bound(self, state, normalizer):
        return self.reward_floor / normalizer.reward_scale

    def reward(self, state, obs, action, prediction):
        return jnp.asarray(0.25)


def world(model, experience=None):
    """Seen through the normaliser of `experience`, or as it is."""
    seen = known(model, (), ARMS)
    return seen if experience is None else replace(seen, normalizer=experience.normalizer)


def begun(agent, spec):
    return jax.jit(lambda k: agent.init(spec, world(Untouchable()), k))(KEY)


def updated(agent, model, spec=DISCRETE, rows=40, key=OTHER):
    experience = filled(spec, rows, 64, KEY)
    return jax.jit(lambda s, e, k: agent.update(s, world(model, e), e, k))(begun(agent, spec), experience, key)


# ---- advantages


def compiled(method):
    """What an eager call would compile operation by operation. The hyper-parameters of a part are no arrays."""
    return eqx.filter_jit(method)


def test_advantages_by_hand_over_a_termination_a_truncation_and_an_unfinished_end():
    obs, following = jnp.array([0.2, 0.4, 0.1, 0.3, 0.6]), jnp.array([0.4, 0.9, 0.3, 0.8, 0.6])
    wide = lambda x: jnp.stack([x, jnp.zeros(5)], axis=1)  # noqa: E731
    data = Transition(
        wide(obs),
        jnp.tile(jnp.eye(3)[:1], (5, 1)),
        jnp.array([1.0, 0.4, 0.0, 1.0, 0.2]),
        wide(following),
        jnp.array([0.0, 1.0, 0.0, 0.0, 0.0]),
        jnp.array([0.0, 0.0, 0.0, 1.0, 0.0]),
        jnp.zeros(5),
    )
    experience = ReplayBuffer(5).init(ARMS).add(jax.tree.map(lambda x: x[:, None], data), jnp.asarray(5))  # not normalised
    agent = replace(AGENT, critic=Proportional(), rollout=5, gamma=0.5, return_lambda=0.5)
    state = begun(agent, ARMS)
    steps, metrics = compiled(agent._real_steps)(state, world(Untouchable()), experience, KEY)
    lesson = compiled(agent._lesson)(state, world(Untouchable()), steps)
    np.testing.assert_array_equal(steps.goes_on, [1, 0, 1, 0, 0])
    # Rewards count half (1 - gamma). From behind:
    # 0.1 + 0.5 x 0.6 | 0.5 + 0.5 x 0.8, 0.5 (0.3 + 0.9) / 2 | 0.2, 0.5 + 0.5 (0.4 + 0.2) / 2
    np.testing.assert_allclose(lesson.target, [0.65, 0.2, 0.3, 0.9, 0.4], rtol=1e-6)
    np.testing.assert_allclose(lesson.advantage, [0.45, -0.2, 0.2, 0.6, -0.2], rtol=1e-5)
    assert float(metrics["real_reward"]) == pytest.approx(2.6 / 5)


def test_the_newest_steps_of_environments_side_by_side_are_trajectories_of_their_own():
    agent = replace(AGENT, critic=Proportional(), rollout=6, gamma=0.5, return_lambda=1.0)
    obs = jnp.arange(8.0).reshape(4, 2)[..., None] * jnp.ones((1, 1, 2)) / 10  # step t of environment n observes (2 t + n) / 10
    none = jnp.zeros((4, 2))
    steps = Transition(obs, jnp.tile(jnp.eye(3)[0], (4, 2, 1)), none + 1, obs + 0.2, none, none, none)
    experience = ReplayBuffer(8).init(ARMS, 2).add(steps, jnp.asarray(4))
    found, _ = compiled(agent._real_steps)(begun(agent, ARMS), world(Untouchable()), experience, KEY)
    np.testing.assert_allclose(found.obs[:, 0], [0.2, 0.4, 0.6, 0.3, 0.5, 0.7], rtol=1e-6)
    np.testing.assert_array_equal(found.goes_on, [1, 1, 0, 1, 1, 0])


def test_steps_that_are_not_there_have_no_weight():
    agent = replace(AGENT, rollout=32)
    state, experience = begun(agent, DISCRETE), filled(DISCRETE, 20, 64, KEY)
    steps, _ = compiled(agent._real_steps)(state, world(Untouchable()), experience, KEY)
    np.testing.assert_array_equal(steps.weight, np.arange(32) >= 12)
    assert finite(agent.update(state, world(Untouchable(), experience), experience, KEY))


def test_log_probabilities_are_those_of_the_present_policy():
    state, experience = begun(AGENT, DISCRETE), filled(DISCRETE, 40, 64, KEY)
    steps, _ = AGENT._real_steps(state, world(Untouchable()), experience, KEY)
    logits = jax.vmap(lambda x: AGENT.actor(state.actor, x).value)(steps.obs)
    np.testing.assert_allclose(steps.log_prob, (jax.nn.log_softmax(logits) * steps.action).sum(1), rtol=1e-5)


def test_a_bonus_is_added_to_real_and_imagined_rewards():
    agent, experience = replace(AGENT, imagination=IMAGINATION), filled(DISCRETE, 40, 64, KEY)
    state, plain = begun(agent, DISCRETE), world(Still(), experience)
    praised = replace(plain, bonus=Praise())
    real = [compiled(agent._real_steps)(state, w, experience, KEY)[0].reward for w in (praised, plain)]
    np.testing.assert_allclose(real[0], real[1] + 0.25, rtol=1e-5)
    one_step = replace(IMAGINATION, horizon=1)  # so that a target is a reward and a value
    lessons = [compiled(agent._imagined)(one_step, state, w, experience, KEY)[0] for w in (praised, plain)]
    made = np.asarray(lessons[0].weight) > 0
    # The value of what follows may rise a little too: its bound does, by the largest bonus.
    gained = np.asarray(lessons[0].target - lessons[1].target)[made] / (1 - agent.gamma)
    assert (gained > 0.25 - 1e-4).all() and np.median(gained) == pytest.approx(0.25, rel=1e-3)


# ---- losses


def sample(value, target, obs):
    rows = jnp.ones(len(value))
    return Lesson(obs[:, None], (), jax.random.split(KEY, len(value)), rows[:, None], rows, value, target, rows, rows)


def test_value_loss_is_the_larger_of_the_plain_and_the_clipped_one():
    before, now = jnp.full(4, 0.5), jnp.array([0.8, 0.8, 0.6, 0.2])
    target = jnp.array([1.0, 0.6, 1.0, 0.0])
    agent = replace(AGENT, critic=Proportional(), value=Regression(), value_clip=0.2)
    gradient = jax.jit(jax.jacobian(lambda w, weight: agent._critic_loss(w, sample(before, target, now), weight)))
    # The first and last have moved more than 0.2 towards their targets, the second has moved past its own.
    found = jnp.stack([gradient(jnp.ones(()), row) for row in jnp.eye(4)])
    np.testing.assert_allclose(found, [0.0, (0.8 - 0.6) * 0.8, (0.6 - 1.0) * 0.6, 0.0], rtol=1e-5, atol=1e-7)

    def larger(w, i):
        value = w * now[i]
        held = before[i] + jnp.clip(value - before[i], -0.2, 0.2)
        return jnp.maximum(0.5 * (value - target[i]) ** 2, 0.5 * (held - target[i]) ** 2)

    np.testing.assert_allclose(found, [jax.grad(larger)(1.0, i) for i in range(4)], rtol=1e-5, atol=1e-7)


def test_a_value_that_has_moved_within_its_bounds_is_never_held_by_a_rounding_error():
    agent = replace(AGENT, critic=Proportional(), value=Regression(), value_clip=0.2)
    before = jax.random.uniform(KEY, (500,))
    now = before + 0.1 * jax.random.uniform(OTHER, (500,), minval=-1)
    gradient = jax.grad(lambda w, i: agent._critic_loss(w, sample(before[i], jnp.array([2.0]), now[i]), jnp.ones(1)))
    found = jax.jit(jax.vmap(lambda i: gradient(jnp.ones(()), i[None])))(jnp.arange(500))
    np.testing.assert_allclose(found, (now - 2.0) * now, rtol=1e-4)


def test_learning_stops_once_the_policy_has_moved_too_far():
    # One mini-batch in a pass: the first step starts at a divergence of exactly 0, the second does not.
    agent = replace(AGENT, batch=32, passes=6)
    once, _ = updated(replace(agent, passes=1), Untouchable())
    stopped, metrics = updated(replace(agent, target_kl=0.0), Untouchable())
    assert int(metrics["gradient_steps"]) == 1 and float(metrics["approximate_kl"]) > 0
    assert same(stopped, once)
    free, metrics = updated(agent, Untouchable())
    assert int(metrics["gradient_steps"]) == 6 and not same(free.actor, once.actor)


def test_gradients_are_clipped_by_their_global_norm():
    def moved(clip):
        agent = replace(AGENT, batch=32, passes=1, gradient_clip=clip)
        after, _ = updated(agent, Untouchable())
        moments = after.actor_optimizer[1][0].mu
        return jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(moments)))

    assert float(moved(1e-3)) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # Adam's first moment after one step: a tenth of the gradient
    assert float(moved(1e3)) > 1e-3


# ---- imagination


@pytest.mark.parametrize(
    ("confidence", "chunks"), [(0.0, 0), (0.49, 0), (0.5, 2), (0.75, 6), (0.7, 6), (1.0, 10)]
)  # fmt: skip
def test_rollouts_lie_on_a_line_from_the_threshold_to_full_confidence(confidence, chunks):
    how = Imagination(threshold=0.5, least=20, most=100, chunk=10)
    # 20 + 80 (c - 0.5) / 0.5 rollouts, in whole chunks of ten
    assert int(how.chunks_needed(jnp.asarray(confidence), jnp.asarray(0))) == chunks


def test_rollouts_fall_with_the_share_of_imagined_data():
    how = Imagination(threshold=0.5, least=20, most=100, chunk=10, share=ImaginedShare(1.0, 0.0, begin=100, steps=200))
    found = [int(how.chunks_needed(jnp.asarray(0.75), jnp.asarray(steps))) for steps in (50, 100, 200, 299, 300, 900)]
    assert found == [6, 6, 3, 1, 0, 0]
    certain = Imagination(threshold=1.0, least=20, most=100, chunk=10)
    assert int(certain.chunks_needed(jnp.ones(()), jnp.asarray(0))) == 10


@pytest.mark.parametrize(("certainty", "rollouts"), [(0.4, 0), (0.5, 8), (0.6, 12), (1.0, 16)])
def test_only_the_rollouts_that_are_needed_are_imagined(certainty, rollouts):
    model = Still(certainty=certainty, calls=[])
    state, metrics = updated(replace(AGENT, imagination=IMAGINATION), model)
    jax.effects_barrier()
    assert len(model.calls) == int(metrics["imagined_steps"]) == rollouts * 4
    assert int(metrics["rollouts"]) == rollouts
    assert float(metrics["imagined_share"]) == pytest.approx(rollouts * 4 / (32 + rollouts * 4))
    assert float(metrics["confidence"]) == pytest.approx(certainty)
    # 32 real samples and the imagined ones, in mini-batches of 16, four passes
    assert int(metrics["gradient_steps"]) == 4 * (32 + rollouts * 4) // 16
    assert finite((state, metrics))


def test_imagined_steps_weigh_as_much_as_the_model_is_trusted():
    agent = replace(AGENT, imagination=IMAGINATION)
    state, experience = begun(agent, DISCRETE), filled(DISCRETE, 40, 64, KEY)
    lessons, metrics = compiled(agent._imagined)(IMAGINATION, state, world(Still(certainty=0.75), experience), experience, KEY)
    weight = np.asarray(lessons.weight)
    np.testing.assert_allclose(weight, np.where(np.arange(64) < 48, 0.5 * 0.75, 0.0))  # 12 of 16 rollouts of 4 steps
    assert float(metrics["rollout_length"]) == 4
    starts = np.asarray(lessons.obs[:48:4])
    newest = np.asarray(experience.gather(jnp.arange(30, 40)).obs)
    assert all((np.abs(newest - start[None]).max(1) < 1e-6).any() for start in starts)


def test_steps_after_too_much_uncertainty_do_not_count():
    how = replace(IMAGINATION, uncertainty_limit=1.0)
    np.testing.assert_array_equal(how.trusted(jnp.array([0.4, 0.5, 0.2, 0.0])), [1, 1, 0, 0])
    agent = replace(AGENT, critic=Proportional(), imagination=how)
    state, experience = begun(agent, DISCRETE), filled(DISCRETE, 40, 64, KEY)
    seen = world(Still(certainty=1.0, uncertainty=0.4), experience)
    lessons, metrics = compiled(agent._imagined)(how, state, seen, experience, KEY)
    one = jax.tree.map(lambda x: x[:4], lessons)
    np.testing.assert_allclose(one.weight, [0.5, 0.5, 0, 0])
    assert float(metrics["rollout_length"]) == 2
    # The last trusted step is followed by the value of where it led, which is within the rewards seen.
    low, high = min(float(experience.normalizer.reward_low), 0), max(float(experience.normalizer.reward_high), 0)
    value = float(jnp.clip(one.obs[1, 0], low, high))  # nothing moves, and a value is the first entry
    reward = float(jnp.clip(one.action[1, 1], low, high))
    assert float(one.target[1]) == pytest.approx(0.1 * reward + 0.9 * value, abs=1e-5)
    trusting, _ = updated(replace(agent, imagination=IMAGINATION), Still(uncertainty=0.4))
    distrusting, _ = updated(replace(agent, imagination=replace(how, uncertainty_limit=0.1)), Still(uncertainty=0.4))
    plain, _ = updated(replace(agent, imagination=None), Untouchable())
    assert same_numbers(distrusting, plain) and not same_numbers(trusting, plain)


def same_numbers(a, b):
    """Two compiled programs may round differently."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in pairs)


def test_without_imagination_the_world_is_not_touched():
    assert not AGENT.uses_world and replace(AGENT, imagination=IMAGINATION).uses_world
    state, metrics = updated(AGENT, Untouchable())
    model = Still(calls=[])
    again, same_metrics = updated(AGENT, model)
    jax.effects_barrier()
    assert same((state, metrics), (again, same_metrics)) and not model.calls
    assert int(metrics["imagined_steps"]) == 0 and "confidence" not in metrics


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_share_of_zero_is_plain_ppo(rounds):
    none = ImaginedShare(0.0, 0.0)
    model = Still(calls=[])
    state, metrics = updated(replace(AGENT, imagination=replace(IMAGINATION, share=none, rounds=rounds)), model)
    jax.effects_barrier()
    plain, _ = updated(AGENT, Untouchable())
    assert same_numbers(state, plain)
    assert int(metrics["imagined_steps"]) == 0 and not model.calls


def test_real_steps_take_part_in_the_first_round_only():
    model = Still(certainty=0.5, calls=[])
    _, metrics = updated(replace(AGENT, imagination=replace(IMAGINATION, rounds=3)), model)
    jax.effects_barrier()
    # Eight rollouts of four steps in each round, 32 real steps in the first; sixteen to a mini-batch, four passes
    assert len(model.calls) == int(metrics["imagined_steps"]) == 3 * 32
    assert int(metrics["gradient_steps"]) == 4 * (4 + 2 + 2)


# ---- small problems with known answers


def practise(agent, model, spec, iterations, at_random=False):
    """The agent's state after on-policy iterations in a world that is known."""

    def iterate(state, key):
        act_key, update_key = jax.random.split(key)
        rows, still = agent.rollout, jnp.zeros((agent.rollout, 2))

        def step(key):
            action = agent.decide(state, jnp.zeros(2), key, greedy=False).action
            return action, model.step((), Memory(jnp.zeros(2)), action, key)[1].reward

        action, reward = jax.vmap(step)(jax.random.split(act_key, rows))
        reward = jax.random.permutation(update_key, reward) if at_random else reward
        none, last = jnp.zeros(rows), (jnp.arange(rows) == rows - 1).astype(jnp.float32)
        experience = holding(spec, Transition(still, action, reward, still, none, last, none), rows)
        return agent.update(state, world(model, experience), experience, update_key)

    return jax.jit(lambda s, k: jax.lax.scan(iterate, s, jax.random.split(k, iterations)))(begun(agent, spec), OTHER)


def greedy_action(agent, state):
    return np.asarray(agent.act(agent.policy_of(state), world(Untouchable()), (), jnp.zeros(2), KEY, True).action)


def assert_best(agent, state):
    action = greedy_action(agent, state)
    if len(action) == 1:
        assert abs(action[0] - 0.5) < 0.15
    else:
        assert action.argmax() == 1


SPIKING = {
    "actor": SpikingNetwork(hidden=(16,), ticks=3, neuron=LIF(), readout=PopulationReadout(neurons=6, neuron=CubaLIF())),
    "critic": SpikingNetwork(hidden=(16,), ticks=3, neuron=LIF(), readout=MembraneReadout(gain=0.1)),
}


@pytest.mark.parametrize("networks", [{}, SPIKING], ids=["conventional", "spiking"])
@pytest.mark.parametrize("spec", [ARMS, DIAL], ids=["discrete", "continuous"])
def test_ppo_finds_the_best_action(spec, networks):
    agent = replace(AGENT, rollout=64, **networks)
    state, metrics = practise(agent, Still(spec.discrete), spec, 60)
    assert_best(agent, state)
    assert finite(state) and finite(metrics)
    assert float(metrics["real_reward"][0]) < float(metrics["real_reward"][-10:].mean()) <= 1.0001
    if networks:
        assert 0 < float(metrics["firing_rate/actor"][-1]) < 1


def test_ppo_learns_from_imagination_what_real_rewards_do_not_tell():
    imagination = replace(IMAGINATION, discount=1.0)
    agent = replace(AGENT, imagination=imagination)
    state, _ = practise(agent, Still(certainty=1.0), ARMS, 40, at_random=True)
    assert_best(agent, state)


# ---- what it refuses


def test_what_needs_a_memory_is_refused():
    with pytest.raises(ValueError, match=r"PPO keeps no memory of an episode, which Remembering needs.*Dreamer and MPC"):
        AGENT.init(DISCRETE, world(Remembering()), KEY)
    for name in ("actor", "critic"):
        agent = replace(AGENT, **{name: SpikingNetwork(hidden=(4,), persistent=True)})
        with pytest.raises(ValueError, match="persistent"):
            agent.init(CONTINUOUS, world(Untouchable()), KEY)


@pytest.mark.parametrize(
    "fields",
    [{"threshold": 1.1}, {"discount": -0.1}, {"least": 65, "most": 64}, {"most": 100, "chunk": 32}, {"uncertainty_limit": -1.0},
     {"horizon": 0}, {"recent": 0}, {"rounds": 0}],
    ids=str,
)  # fmt: skip
def test_imagination_refuses_numbers_out_of_bounds(fields):
    with pytest.raises(ValueError, match="|".join(fields)):
        Imagination(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"rollout": 0}, {"passes": 0}, {"batch": 0}, {"clip": 0.0}, {"value_clip": 0.0}, {"gamma": 1.0}, {"target_kl": -1.0}],
    ids=str,
)  # fmt: skip
def test_ppo_refuses_numbers_out_of_bounds(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        PPO(**fields)
