"""Small planning problems with known answers, and what a planner makes of its policy, its members and a bonus."""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DISCRETE, known, same
from toys import ARMS, CORRIDOR, DIAL, DREAMER, KEY, TWO_STEP, Known, Rules, origin, practise, said, still, toy

from spikedream.agents.mpc import MPC, MPCState
from spikedream.bonuses.disagreement import Disagreement
from spikedream.planners.cem import CEM
from spikedream.planners.mppi import MPPI
from spikedream.planners.random_shooting import RandomShooting
from spikedream.replay.normalizer import identity
from spikedream.world_models.true_environment import TrueEnvironment, TrueState

PLANNERS = {"cem": CEM(40, 3, 6), "mppi": MPPI(40, 4, 0.2), "random": RandomShooting(200)}


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _act(agent, spec, world, policy, greedy):
    state = agent.init(spec, world, KEY) if policy is None else MPCState(policy, spec)
    policy = agent.policy_of(state)
    return agent.act(policy, world, agent.start(policy, world), jnp.zeros(2), KEY, greedy)


def planned(agent, world, spec, greedy=True, policy=None):
    return _act(agent, spec, toy(world, spec) if isinstance(world, Rules) else world, policy, greedy)


@functools.partial(jax.jit, static_argnums=0)
def scores(agent, world, actions, policy=()):
    memory = world.start(jnp.zeros(2), KEY)
    return agent._score(agent.policy_of(MPCState(policy, ARMS)), world, memory, actions, KEY)


@pytest.mark.parametrize("search", PLANNERS.values(), ids=PLANNERS)
@pytest.mark.parametrize("spec", [ARMS, DIAL], ids=["discrete", "continuous"])
def test_planner_finds_the_best_action(spec, search):
    for rules in (still(), TWO_STEP):
        decision = planned(MPC(search=search, horizon=2), rules, spec)
        assert decision.action.argmax() == 1 if spec.discrete else abs(float(decision.action[0]) - 0.5) < 0.3
        assert float(decision.log_prob) == 0.0 and decision.spikes == ()


@pytest.mark.parametrize("search", PLANNERS.values(), ids=PLANNERS)
def test_planner_pushes_the_true_cart_to_where_the_pole_falls(search):
    agent, model = MPC(search=search, horizon=20, gamma=0.99), TrueEnvironment("CartPole")
    world = known(model, TrueState(identity(4)), DISCRETE)
    policy = agent.policy_of(agent.init(DISCRETE, world, KEY))
    act = jax.jit(lambda obs: agent.act(policy, world, agent.start(policy, world), obs, KEY, True).action.argmax())
    leaning = jnp.array([0.0, 0.0, 0.12, 0.6])
    assert int(act(leaning)) == 1 and int(act(-leaning)) == 0


def test_planner_avoids_what_the_model_is_not_sure_of():
    sure = still(reward=0.5, doubt=True)
    assert planned(MPC(horizon=2, uncertainty_penalty=1.0), sure, ARMS).action.argmax() == 1


class Followed(NamedTuple):
    obs: jax.Array
    member: jax.Array


@dataclass(frozen=True)
class Apart(Known):
    """Members that, where there are two, disagree about the first action, which pays a little more than the others."""

    members: int = 2
    more: float = 0.1

    def start(self, state, obs, key):
        return Followed(obs, jnp.zeros((), jnp.int32))

    def member(self, state, memory, index):
        return replace(self, members=1), state, memory

    def step(self, state, memory, action, key):
        _, prediction = said(memory.obs, 0.5 + self.more * action[0], uncertainty=action[0] * (self.members - 1))
        return memory, prediction


@pytest.mark.parametrize("particles", ["all", "one"])
@pytest.mark.parametrize(("penalty", "leaves"), [(0.0, True), (1.0, False)])
def test_planner_penalises_plans_over_which_the_members_part(penalty, particles, leaves):
    agent = MPC(search=RandomShooting(200), horizon=2, uncertainty_penalty=penalty, particles=particles)
    assert bool(planned(agent, known(Apart(), (), ARMS), ARMS).action[0]) is leaves


@pytest.mark.parametrize("particles", ["all", "one"])
def test_planner_is_curious_about_what_the_members_disagree_about(particles):
    model, bonus = Apart(), Disagreement()
    agent = MPC(search=RandomShooting(4), horizon=1, gamma=0.9, particles=particles)
    first, second = jnp.eye(3)[:2]
    actions = jnp.stack([first, second, first, second])[:, None]

    plain = known(model, (), ARMS)
    seeking = replace(plain, bonus=bonus, bonus_state=bonus.init(ARMS, plain, KEY))
    curious = scores(agent, seeking, actions) - scores(agent, plain, actions)
    assert float(curious[0]) == float(curious[2]) > 0 == float(curious[1]) == float(curious[3])


def test_planner_is_curious_while_it_learns_and_not_when_it_is_asked_for_its_best():
    model, bonus = Apart(more=-0.01), Disagreement()
    plain, agent = known(model, (), ARMS), MPC(search=RandomShooting(200), horizon=1, gamma=0.9)
    curious = replace(plain, bonus=bonus, bonus_state=bonus.init(ARMS, plain, KEY))
    learning, asked = planned(agent, curious, ARMS, greedy=False), planned(agent, curious, ARMS)
    assert bool(learning.action[0]), "where the members part, there is something to find out"
    assert same(asked, planned(agent, plain, ARMS)) and not bool(asked.action[0])


def test_one_particle_a_candidate_needs_members_that_share_them_equally():
    agent = MPC(search=RandomShooting(9), particles="one")
    with pytest.raises(ValueError, match="candidates is 9, which 2 members cannot share equally"):
        agent.init(ARMS, known(Apart(), (), ARMS), KEY)
    agent.init(ARMS, toy(still(), ARMS), KEY)


@pytest.fixture(scope="module")
def two_step_policy():
    return practise(DREAMER, TWO_STEP, ARMS, 400)[0]


def test_planner_looks_beyond_its_horizon_through_the_policys_critic(two_step_policy):
    # A single step ahead nothing is paid: only the critic knows that the second action is the good one.
    agent = MPC(search=RandomShooting(60), horizon=1, policy=DREAMER)
    assert planned(agent, TWO_STEP, ARMS, policy=two_step_policy).action.argmax() == 1
    with_it, without = (
        scores(agent, toy(TWO_STEP, ARMS), jnp.eye(3)[:, None], two_step_policy)
        for agent in (agent, replace(agent, terminal_value=False))
    )
    np.testing.assert_array_equal(without, np.zeros(3))
    value = jax.jit(jax.vmap(lambda x: DREAMER.value_of(two_step_policy.target, x, KEY)))(jnp.array([[1.0, 0], [1.0, 1], [1.0, 0]]))
    np.testing.assert_allclose(with_it, 0.9 * value, rtol=1e-4)


def test_a_plans_score_is_its_discounted_return_while_alive():
    agent, actions = MPC(horizon=5, gamma=0.9, search=RandomShooting(4)), jnp.zeros((1, 5, 3))
    score = float(scores(agent, toy(CORRIDOR, ARMS), actions)[0])
    assert score == pytest.approx(0.1 * (1 + 0.9 + 0.81), rel=1e-5)
    half = float(scores(agent, toy(still(0.5, ending=0.5), ARMS), actions)[0])
    assert half == pytest.approx(0.1 * 0.5 * sum(0.45**t for t in range(5)), rel=1e-5)
    assert float(scores(replace(agent, gamma=1.0), toy(CORRIDOR, ARMS), actions)[0]) == pytest.approx(3.0)


@pytest.mark.parametrize("when", ["always", "collect", "evaluate"])
@pytest.mark.parametrize("greedy", [False, True])
def test_planner_plans_only_when_asked_and_lets_the_policy_act_elsewhere(when, greedy, two_step_policy):
    agent = MPC(search=RandomShooting(30), horizon=2, policy=DREAMER, when=when)
    decision = planned(agent, TWO_STEP, ARMS, greedy=greedy, policy=two_step_policy)
    plans = when == "always" or (when == "evaluate") == greedy
    by_policy = DREAMER.decide(DREAMER.policy_of(two_step_policy), (), jnp.zeros(2), jax.random.split(KEY, 3)[1], greedy)
    assert float(decision.log_prob) == pytest.approx(0.0 if plans else float(by_policy.log_prob), rel=1e-5)
    assert plans or same(decision.action, by_policy.action)


def test_what_a_planner_needs_a_policy_for_is_refused_without_one():
    asked_for: dict[str, Any] = {
        'when = "evaluate"': {"when": "evaluate"}, 'when = "collect"': {"when": "collect"}, "proposals = 3": {"proposals": 3},
    }  # fmt: skip
    for asked, fields in asked_for.items():
        with pytest.raises(ValueError, match=f"{asked}.*needs a policy: set agent.policy to Dreamer"):
            MPC(**fields)
    agent = MPC()
    with pytest.raises(ValueError, match=r'"td_error" needs a value function: set agent\.policy to Dreamer'):
        agent.errors(MPCState((), ARMS), toy(still(), ARMS), origin(ARMS), jnp.arange(3), KEY)


def test_what_the_policy_proposes_is_among_the_candidates(two_step_policy):
    # One sequence of its own against sixteen of a policy that has learned: the plan begins as the policy does.
    agent = MPC(search=RandomShooting(17), horizon=2, policy=DREAMER, proposals=16, terminal_value=False)
    seen = []

    @dataclass(frozen=True)
    class Listening(RandomShooting):
        def plan(self, spec, memory, score, proposals, key):
            seen.append(proposals)
            return super().plan(spec, memory, score, proposals, key)

    agent = replace(agent, search=Listening(17))
    policy, world = agent.policy_of(MPCState(two_step_policy, ARMS)), toy(TWO_STEP, ARMS)
    agent.act(policy, world, agent.start(policy, world), jnp.zeros(2), KEY, True)
    assert seen[0].shape == (16, 2, 3)
    first = np.asarray(seen[0][:, 0]).mean(0)
    assert first.argmax() == 1 and first[1] > 0.6
