"""What every registered agent must honour, and every network in an agent or a world model."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import AGENTS, KEY, OTHER, WITHOUT_VALUES, begun, every_agent, every_network, experience, known_world, label, learns
from small import CONTINUOUS, DISCRETE, finite, kinds, known, same, shapes, small

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.ppo import PPO
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.config import twin
from spikedream.snn.conventional import GRU
from spikedream.snn.networks import BPTT, AnyRule, SpikingNetwork
from spikedream.snn.neurons import AnyNeuron
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.recurrent import Recurrent


@every_agent
def test_agent_shapes(agent, spec):
    world = known_world(spec)
    state = jax.eval_shape(lambda k: agent.init(spec, world, k), KEY)
    policy = jax.eval_shape(agent.policy_of, state)
    carry = jax.eval_shape(lambda p: agent.start(p, world), policy)
    for greedy in (False, True):
        act = partial(agent.act, world=world, obs=jnp.zeros(spec.obs_size), key=KEY, greedy=greedy)
        decision = jax.eval_shape(lambda p, c, act=act: act(policy=p, carry=c), policy, carry)
        assert decision.action.shape == (spec.action_size,) and decision.action.dtype == jnp.float32
        assert decision.log_prob.shape == ()
        assert shapes(decision.carry) == shapes(carry)
    if isinstance(agent, StableBaselines):  # the rest is done outside: test_stable_baselines.py
        with pytest.raises(TypeError, match="improves outside compiled programs"):
            jax.eval_shape(lambda s, e, k: agent.update(s, world, e, k), state, experience(spec), KEY)
        return
    after, metrics = jax.eval_shape(lambda s, e, k: agent.update(s, world, e, k), state, experience(spec), KEY)
    assert shapes(after) == shapes(state)
    assert all(x.shape == () for x in jax.tree.leaves(metrics))
    assert metrics["imagined_steps"].dtype == jnp.int32
    assert agent.host_learner(spec, world, experience(spec), KEY) is None
    judged = jax.eval_shape(agent.judged, after)
    assert (judged is not None) is isinstance(agent, OffPolicy)
    assert judged is None or (judged.index.dtype == jnp.int32 and judged.error.shape == judged.index.shape == (agent.batch,))
    assert isinstance(agent.uses_world, bool) and isinstance(agent.acts_in_world, bool)
    intention = jax.eval_shape(lambda p, c: agent.intended(p, world, c, jnp.zeros(spec.obs_size), KEY), policy, carry)
    assert (intention is not None) is plans(agent, greedy=True)
    assert intention is None or intention.actions.shape == (agent.horizon, spec.action_size)
    if isinstance(agent, WITHOUT_VALUES):
        with pytest.raises(ValueError, match="needs a value function"):
            agent.errors(state, world, experience(spec), jnp.arange(5), KEY)
    elif learns(agent):
        rows = jnp.arange(5)
        errors = jax.eval_shape(lambda s, e, k: agent.errors(s, world, e, rows, k), state, experience(spec), KEY)
        assert errors.shape == (5,) and errors.dtype == jnp.float32


def plans(agent, greedy):
    return isinstance(agent, MPC) and (agent.when == "always" or (agent.when == "evaluate") == greedy)


@every_agent
def test_agent_acts_within_its_space_and_by_its_key_alone(agent, spec):
    world, obs = known_world(spec), jnp.full(spec.obs_size, 0.3)
    init = jax.jit(lambda k: agent.init(spec, world, k))
    state = init(KEY)
    assert same(state, init(KEY)) and same(state, init(OTHER)) is not learns(agent)

    @partial(jax.jit, static_argnums=2)
    def act(state, key, greedy):
        policy = agent.policy_of(state)
        return agent.act(policy, world, agent.start(policy, world), obs, key, greedy)

    keys = jax.random.split(KEY, 20)
    actions = np.stack([act(state, k, False).action for k in keys])
    if spec.discrete:
        assert set(np.unique(actions)) == {0.0, 1.0} and (actions.sum(1) == 1).all()
    elif plans(agent, greedy=False) or isinstance(agent, OffPolicy | StableBaselines):
        assert (np.abs(actions) <= 1).all()
    else:
        assert (np.abs(actions) < 1).all()
    assert len(np.unique(actions, axis=0)) > 1
    assert same(act(state, KEY, False), act(state, KEY, False))
    assert same(act(state, KEY, True), act(state, KEY, True))
    if not plans(agent, greedy=True):
        assert len(np.unique(np.stack([act(state, k, True).action for k in keys]), axis=0)) == 1


@pytest.mark.parametrize("name", ["Dreamer", "PPO", "MPC-CEM"])
def test_errors_are_squared_temporal_differences_of_each_step(name):
    spec, world, agent = DISCRETE, known_world(DISCRETE), AGENTS[name]
    state, replay = jax.jit(lambda k: agent.init(spec, world, k))(KEY), experience(DISCRETE)
    errors = jax.jit(lambda s: agent.errors(s, world, replay, jnp.arange(20), KEY))(state)
    policy, inner = (agent.policy, state.policy) if isinstance(agent, MPC) else (agent, state)
    critic = inner.critic if isinstance(policy, PPO) else inner.target
    value = jax.jit(jax.vmap(lambda obs: policy.value_of(critic, obs, KEY)))
    steps = replay.gather(jnp.arange(20))
    # Values are averages of rewards to come: divided by 1 - gamma they are sums.
    before, after = (value(obs) / (1 - policy.gamma) for obs in (steps.obs, steps.next_obs))
    by_hand = jnp.square(steps.reward + policy.gamma * (1 - steps.terminated) * after - before)
    np.testing.assert_allclose(errors, by_hand, rtol=2e-3, atol=1e-4)


@every_network
@pytest.mark.parametrize("kind", [Dreamer, PPO, OffPolicy])
def test_agent_can_be_traced_with_every_network(kind, network):
    if kind is not Dreamer and network.persistent:
        return  # refused; test_ppo.py, test_off_policy.py
    spec = CONTINUOUS if kind is OffPolicy else DISCRETE
    agent, world = small(kind(), actor=network, critic=network), known_world(spec)
    state = jax.eval_shape(lambda k: agent.init(spec, world, k), KEY)
    after, _ = jax.eval_shape(lambda s, e, k: agent.update(s, world, e, k), state, experience(spec), KEY)
    assert shapes(after) == shapes(state)


remembering = [replace(small(SpikingNetwork()), neuron=kind(), persistent=True) for kind in kinds(AnyNeuron)]
remembering += [replace(remembering[0], rule=kind()) for kind in kinds(AnyRule) if kind is not BPTT]


@pytest.mark.parametrize("network", [*remembering, small(GRU())], ids=label)
def test_recurrent_can_be_traced_with_every_network_that_has_a_memory(network):
    model = small(Recurrent(network=network))
    state = jax.eval_shape(lambda k: model.init(DISCRETE, k), KEY)
    after, _ = jax.eval_shape(model.update, state, experience(DISCRETE), KEY, model.updates)
    assert shapes(after) == shapes(state)
    errors = jax.eval_shape(model.errors, state, experience(DISCRETE), jnp.arange(5), KEY)
    assert errors.shape == (5,)


def test_twins_of_parts_with_a_memory_have_one_too():
    model = twin(Recurrent())
    assert isinstance(model.network, GRU) and model.network.hidden == Recurrent().network.hidden[-1]
    assert model.latent == Recurrent().latent and not isinstance(model.ensemble.dynamics, SpikingNetwork)
    persistent = twin(Dreamer(actor=SpikingNetwork(hidden=(12, 7), persistent=True)))
    assert persistent.actor.hidden == 7 and persistent.actor.persistent


@every_network
def test_ensemble_can_be_traced_with_every_network(network):
    model = small(Ensemble(dynamics=network, ending=network))
    state = jax.eval_shape(lambda k: model.init(DISCRETE, k), KEY)
    after, _ = jax.eval_shape(model.update, state, experience(DISCRETE), KEY, model.updates)
    assert shapes(after) == shapes(state)


def test_dreamer_refuses_to_differentiate_through_discrete_actions():
    with pytest.raises(ValueError, match='"clipped" or "reinforce"'):
        small(twin(Dreamer()), gradient="model").init(DISCRETE, known_world(DISCRETE), KEY)


@pytest.mark.parametrize(("spec", "gradient"), [(DISCRETE, "clipped"), (DISCRETE, "reinforce"), (CONTINUOUS, "model")])
def test_dreamer_update_moves_every_network_and_repeats_itself(spec, gradient):
    agent, world = small(twin(Dreamer()), gradient=gradient), known_world(spec)
    state = jax.jit(lambda k: agent.init(spec, world, k))(KEY)
    update = jax.jit(lambda s, e, k: agent.update(s, world, e, k))
    after, metrics = update(state, experience(spec), KEY)
    assert finite(after) and finite(metrics)
    assert not same(after.actor, state.actor) and not same(after.critic, state.critic) and not same(after.target, state.target)
    assert int(metrics["imagined_steps"]) == agent.trajectories * agent.horizon
    assert same(after, update(state, experience(spec), KEY)[0])
    assert not same(after, update(state, experience(spec), OTHER)[0])


@pytest.mark.parametrize("kind", [kind for kind in kinds(AnyRule) if kind is not BPTT])
def test_an_agent_learns_by_every_rule(kind):
    network = replace(small(SpikingNetwork()), rule=kind())
    agent, world = small(Dreamer(), actor=network, critic=network, trajectories=2, horizon=2), known_world(DISCRETE)
    state = jax.jit(lambda k: agent.init(DISCRETE, world, k))(KEY)
    after, _ = jax.jit(lambda s, e, k: agent.update(s, world, e, k))(state, experience(DISCRETE), KEY)
    weights = [(s.actor.layers[0].synapse.weight, s.critic.layers[0].synapse.weight) for s in (state, after)]
    assert finite(after) and not any(same(before, now) for before, now in zip(*weights, strict=True))


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_a_plan_that_members_disagree_about_is_worth_less_with_and_without_discount(gamma):
    model = small(twin(Ensemble()), support_weight=0.0)
    world = known(model, begun(model, CONTINUOUS), CONTINUOUS)
    actions = jax.random.uniform(OTHER, (5, 3, 1), minval=-1, maxval=1)

    def scores(penalty):
        agent = MPC(horizon=3, gamma=gamma, uncertainty_penalty=penalty)
        state, memory = agent.init(CONTINUOUS, world, KEY), world.start(jnp.full(3, 0.3), KEY)
        return jax.jit(lambda a: agent._score(state, world, memory, a, KEY))(actions)

    assert bool((scores(0.0) - scores(1.0) > 1e-3).all())
