"""What every registered world model and agent must honour, alone and joined in an `Algorithm`, and what a checkpoint must."""

import functools
import typing
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from small import CONTINUOUS, DISCRETE, SPECS, encoders, filled, finite, kinds, known, same, shapes, small

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.dreams import Dreams
from spikedream.agents.dyna import Dyna
from spikedream.agents.evolution import Evolution
from spikedream.agents.mpc import MPC, AnyPlanner
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.online import StreamActorCritic
from spikedream.agents.policy_head import SquashedGaussian
from spikedream.agents.ppo import PPO
from spikedream.agents.representation import SALE
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.agents.stable_baselines_heads import HEADS
from spikedream.algorithm import Algorithm
from spikedream.bonuses.disagreement import Disagreement
from spikedream.bonuses.intrinsic_curiosity import IntrinsicCuriosity
from spikedream.bonuses.random_network_distillation import RandomNetworkDistillation
from spikedream.config import AnyAgent, AnyBonus, AnyWorldModel, twin
from spikedream.ops.distributions import Huber
from spikedream.ops.imagination import Imagination
from spikedream.ops.schedule import ImaginedShare
from spikedream.ops.slow_copy import HardCopy
from spikedream.replay.ring import ReplayBuffer
from spikedream.runs import checkpoint
from spikedream.snn.batch_norm import BatchNormMLP
from spikedream.snn.conventional import GRU
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.networks import BPTT, AnyNetwork, AnyRule, SpikingNetwork
from spikedream.snn.neurons import AnyNeuron
from spikedream.snn.readouts import AnyReadout
from spikedream.types import Transition, firing_rates
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.fine_tuning import FineTuning
from spikedream.world_models.priors import PriorSearch
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment

KEY, OTHER = jax.random.key(0), jax.random.key(1)
CAPACITY = 24
WITHOUT_CHANCE = {TrueEnvironment}  # nothing in these depends on the key

# Every kind with its defaults, and with the parts that it may have beside them.
AGENTS: dict[str, Any] = {
    **{kind.__name__: small(kind()) for kind in kinds(AnyAgent)},
    **{f"MPC-{kind.__name__}": small(MPC(search=kind(), policy=twin(Dreamer()))) for kind in kinds(AnyPlanner)},
    "MPC-collects": small(MPC(policy=twin(Dreamer()), when="collect", proposals=2)),
    "PPO-imagines": small(twin(PPO(imagination=Imagination(threshold=0.0)))),
    "OffPolicy-SAC": small(twin(OffPolicy(policy=SquashedGaussian(), n_step=3, target="mean", critics=3, subset=2))),
    "OffPolicy-TD7": small(
        twin(OffPolicy(representation=SALE(), actor_sees="both", slow=HardCopy(2), clip_value=True, value=Huber()))
    ),
    "OffPolicy-CrossQ": small(twin(OffPolicy(policy=SquashedGaussian(), slow=None, critic=BatchNormMLP()))),
    "OffPolicy-dreams": small(
        twin(OffPolicy(dreams=Dreams(starts=3, horizon=2, every=1, begin=0, capacity=9, trust=None, stretches=3)))
    ),
    "StreamActorCritic-dyna": small(StreamActorCritic(dyna=Dyna(steps=3, begin=0))),
    "Evolution-twin": small(twin(Evolution(deviation_rate=0.1))),
    "StableBaselines-SAC": small(StableBaselines("SAC")),
    "StableBaselines-DQN": small(StableBaselines("DQN")),
    "StableBaselines-TD3": small(StableBaselines("TD3")),
    "Dreamer-from-both": small(twin(Dreamer(imagined_share=ImaginedShare(0.5, 0.5), start_noise=0.5, error_limit=1.0))),
}
PRIORITIES = typing.get_args(typing.get_type_hints(ReplayBuffer)["priority"])

world_kinds = pytest.mark.parametrize("kind", kinds(AnyWorldModel))
both_specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
WITHOUT_VALUES = (Evolution, StableBaselines)  # none that the loop can ask


def plays(agent, spec):
    if isinstance(agent, StableBaselines):
        return spec.discrete in HEADS[agent.algorithm]
    return not (spec.discrete and isinstance(agent, OffPolicy))


PLAYED = [(name, spec) for name in AGENTS for spec in SPECS if plays(AGENTS[name], SPECS[spec])]
every_agent = pytest.mark.parametrize(
    ("agent", "spec"), [(AGENTS[name], SPECS[spec]) for name, spec in PLAYED], ids=["-".join(names) for names in PLAYED]
)


def world_model(kind, spec):
    if kind is TrueEnvironment:
        return TrueEnvironment("CartPole" if spec.discrete else "Pendulum")
    return small(kind())


@functools.cache
def experience(spec):
    return filled(spec, 20, CAPACITY, jax.random.key(7))


def known_world(spec):
    """A world that costs nothing to compile, for the agents' own contract."""
    model = world_model(TrueEnvironment, spec)
    return known(model, model.init(spec, KEY), spec)


# ---- world models


@world_kinds
@both_specs
def test_world_model_shapes(kind, spec):
    model = world_model(kind, spec)
    state = jax.eval_shape(lambda k: model.init(spec, k), KEY)
    obs, action = jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size)
    memory = jax.eval_shape(model.start, state, obs, KEY)
    following, prediction = jax.eval_shape(model.step, state, memory, action, KEY)
    assert memory.obs.shape == (spec.obs_size,)
    assert shapes(following) == shapes(memory)
    assert shapes(jax.eval_shape(model.observe, state, memory, action, obs, KEY)) == shapes(memory)
    assert prediction.obs.shape == (spec.obs_size,)
    numbers = ("reward", "terminated", "disagreement", "outside", "noise")
    assert all(getattr(prediction, name).shape == () for name in numbers)
    assert {x.dtype for x in jax.tree.leaves(prediction)} == {jnp.dtype("float32")}
    feature = jax.eval_shape(model.feature, state, memory)
    assert feature.shape == (model.feature_size(spec),) and feature.dtype == jnp.float32
    assert model.recurrent is (model.feature_size(spec) > spec.obs_size)
    errors = jax.eval_shape(model.errors, state, experience(spec), jnp.arange(5), KEY)
    assert errors.shape == (5,) and errors.dtype == jnp.float32
    confidence = jax.eval_shape(model.confidence, state)
    assert confidence.shape == () and confidence.dtype == jnp.float32
    after, metrics = jax.eval_shape(model.update, state, experience(spec), KEY, model.updates)
    assert shapes(after) == shapes(state)
    assert all(x.shape == () for x in metrics.values()) and "model_loss" in metrics


@partial(jax.jit, static_argnums=(0, 1))
def begun(model, spec, key=KEY):
    return model.init(spec, key)


@partial(jax.jit, static_argnums=0)
def fitted(model, state, replay, key):
    return model.update(state, replay, key, model.updates)


def initialised(model, spec):
    state = begun(model, spec)
    if isinstance(model, TrueEnvironment):
        return state
    ensemble = state.ensemble if isinstance(model, Recurrent) else state
    # As after a fit, in which episodes have ended and rewards were seen.
    ensemble = eqx.tree_at(lambda s: (s.rewards, s.endings), ensemble, (jnp.array([-9.0, 9.0]), jnp.ones(())))
    return replace(state, ensemble=ensemble) if isinstance(model, Recurrent) else ensemble


@world_kinds
@pytest.mark.parametrize("gaussian", [False, True])
def test_a_member_alone_says_what_it_says_among_the_others(kind, gaussian):
    spec, model = DISCRETE, world_model(kind, DISCRETE)
    if gaussian:
        if kind is TrueEnvironment:
            pytest.skip("its only member is the truth")
        changes = {"gaussian": True, "termination": "mean"}
        changed = replace(model.ensemble, **changes) if kind is Recurrent else replace(model, **changes)
        model = replace(model, ensemble=changed) if kind is Recurrent else changed
    state, obs, action = initialised(model, spec), jnp.full(spec.obs_size, 0.1), jnp.array([1.0, 0.0])

    @jax.jit  # one compiled call serves every member
    def said(index):
        memory = model.observe(state, model.start(state, obs, KEY), action, obs + 0.1, KEY)
        one, its_state, its_memory = model.member(state, memory, index)
        assert one.members == 1
        followed = memory if kind is TrueEnvironment else memory._replace(member=index)
        features = model.feature(state, memory), one.feature(its_state, its_memory)
        return *features, model.step(state, followed, action, OTHER)[1], one.step(its_state, its_memory, action, OTHER)[1]

    alone = []
    for index in range(model.members):
        feature, its_feature, among, by_itself = said(np.int32(index))
        assert same(its_feature, feature)
        np.testing.assert_allclose(by_itself.obs, among.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_itself.reward, among.reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_itself.noise, among.noise, rtol=1e-5)
        assert bool(among.noise > 0) is gaussian
        if gaussian:  # each judges by itself where it is alone
            assert 0 < float(by_itself.terminated) < 1
        alone.append(np.asarray(by_itself.obs))
    assert model.members == 1 or np.abs(alone[0] - alone[1]).max() > 1e-3


def test_termination_is_the_mean_or_the_largest_of_the_members():
    model = small(Ensemble(), members=3)
    state, action = initialised(model, DISCRETE), jnp.eye(2)[0]

    @jax.jit
    def said(state):
        memory = model.start(state, jnp.zeros(4), KEY)
        found = [replace(model, termination=how).step(state, memory, action, OTHER)[1] for how in ("mean", "max")]
        logits = jax.vmap(lambda member: model.ending(member.ending, found[0].obs, key=OTHER).value[0])(state.members)
        return *(prediction.terminated for prediction in found), jax.nn.sigmoid(logits / model.ending_temperature)

    mean, largest, probability = map(np.asarray, said(state))
    assert float(mean) == pytest.approx(probability.mean(), rel=1e-5)
    assert float(largest) == pytest.approx(probability.max(), rel=1e-5)
    assert probability.max() > probability.min()


def test_an_ending_is_the_surer_the_lower_its_temperature():
    state, action, odds = initialised(small(Ensemble(), members=1), DISCRETE), jnp.eye(2)[0], []
    for temperature in (1.0, 0.5):
        model = small(Ensemble(ending_temperature=temperature), members=1)
        step = jax.jit(lambda s, model=model: model.step(s, model.start(s, jnp.zeros(4), KEY), action, OTHER)[1])
        said = float(step(state).terminated)
        odds.append(said / (1 - said))
    assert odds[1] == pytest.approx(odds[0] ** 2, rel=1e-4)


@world_kinds
@both_specs
def test_memory_holds_the_present_observation_and_the_past_only_where_recurrent(kind, spec):
    model = world_model(kind, spec)
    state = initialised(model, spec)
    first, second, third = (np.full(spec.obs_size, x, np.float32) for x in (0.1, 0.2, -0.3))
    idle, push = np.zeros(spec.action_size, np.float32), np.eye(1, spec.action_size, dtype=np.float32)[0]

    @jax.jit
    def seen(obs, action):
        memory = model.observe(state, model.start(state, obs, KEY), action, second, KEY)
        memory = model.observe(state, memory, idle, third, KEY)
        return memory.obs, model.feature(state, memory)

    def features(obs, action):
        obs, feature = seen(obs, action)
        np.testing.assert_array_equal(obs, third)
        return np.asarray(feature)

    @jax.jit
    def afresh(obs):
        memory = model.start(state, obs, KEY)
        return model.feature(state, memory), model.step(state, memory, push, KEY)

    fresh = np.asarray(afresh(third)[0])
    np.testing.assert_array_equal(fresh[: spec.obs_size], third)
    np.testing.assert_array_equal(features(first, idle)[: spec.obs_size], third)
    others = [fresh, features(second, idle), features(first, push)]
    for other in others:
        assert np.array_equal(features(first, idle), other) is not model.recurrent
    following, prediction = afresh(first)[1]
    np.testing.assert_array_equal(following.obs, prediction.obs)


@world_kinds
def test_confidence_is_a_share_and_zero_before_the_first_fit(kind):
    model = world_model(kind, DISCRETE)
    state = begun(model, DISCRETE)
    assert float(model.confidence(state)) == (1.0 if kind is TrueEnvironment else 0.0)
    after, _ = fitted(model, state, experience(DISCRETE), KEY)
    assert 0 <= float(model.confidence(after)) <= 1
    assert kind is Recurrent or float(model.confidence(after)) > 0  # test_recurrent.py: where there is something to learn


def test_no_likelihood_makes_a_model_surer_than_sure():
    model = small(Ensemble(gaussian=True))
    state = begun(model, DISCRETE)
    after, metrics = fitted(model, state, experience(DISCRETE), KEY)
    assert float(metrics["model_error"]) > 0 and float(after.confidence) == pytest.approx(np.exp(-float(metrics["model_error"])))


def test_confidence_and_errors_are_those_of_held_out_steps():
    model = small(Ensemble(), holdout=0.5)
    start, replay = begun(model, DISCRETE), experience(DISCRETE)
    after, metrics = fitted(model, start, replay, KEY)

    @jax.jit
    def told(state, replay):
        """Which are held out and the errors, and these by hand: of the members' mean, in units of the typical change, over the
        observation's entries and the reward."""
        rows, steps = jnp.arange(20), replay.gather(jnp.arange(20))
        inputs = jnp.concatenate([steps.obs, steps.action], axis=1)
        mean = jax.vmap(lambda m: jax.vmap(lambda x: model.each.moments(m, x, KEY)[0])(inputs))(state.members).mean(0)
        change = (steps.next_obs - steps.obs) / state.scale[None]
        by_hand = jnp.square(mean - jnp.concatenate([change, steps.reward[:, None]], axis=1)).mean(1)
        return model.split.held(start.key, replay, rows), model.errors(state, replay, rows, KEY), by_hand

    held, errors, by_hand = map(np.asarray, told(after, replay))
    assert 3 < held.sum() < 17
    wanted = errors[held].mean()
    assert float(metrics["model_error"]) == pytest.approx(wanted, rel=1e-4)
    assert float(model.confidence(after)) == float(metrics["model_confidence"]) == pytest.approx(np.exp(-wanted), rel=1e-4)
    np.testing.assert_allclose(errors, by_hand, rtol=1e-4)


@world_kinds
def test_world_model_repeats_itself_under_one_key(kind):
    spec = DISCRETE
    model = world_model(kind, spec)
    init = partial(begun, model, spec)
    fit = partial(fitted, model)
    state = init(KEY)
    assert same(state, init(KEY))
    assert same(state, init(OTHER)) is (kind in WITHOUT_CHANCE)
    first, metrics = fit(state, experience(spec), KEY)
    assert same((first, metrics), fit(state, experience(spec), KEY))
    assert same(first, fit(state, experience(spec), OTHER)[0]) is (kind in WITHOUT_CHANCE)
    assert finite(first) and finite(metrics)
    assert not same(first, state)


@world_kinds
@both_specs
def test_world_models_predictions_are_probable_and_differentiable(kind, spec):
    model = world_model(kind, spec)
    state = begun(model, spec)
    obs = jnp.full(spec.obs_size, 0.1)
    action = jnp.eye(2)[0] if spec.discrete else jnp.full(spec.action_size, 0.4)

    def imagined(obs, action):
        prediction = model.step(state, model.start(state, obs, KEY), action, OTHER)[1]
        return prediction.obs.sum() + prediction.reward, prediction

    gradient, prediction = jax.jit(jax.grad(imagined, argnums=(0, 1), has_aux=True))(obs, action)
    assert finite(gradient) and finite(prediction)
    assert same(prediction.rates, firing_rates(prediction.spikes))
    assert 0 <= float(prediction.terminated) <= 1 and float(prediction.uncertainty) >= 0
    assert bool((gradient[0] != 0).any())
    assert spec.discrete or bool((gradient[1] != 0).any())


def test_ensemble_makes_at_most_the_updates_it_was_given():
    with pytest.raises(ValueError, match="check_every is 2, which does not divide updates"):
        small(twin(Ensemble()), updates=3, check_every=2)
    model = small(twin(Ensemble()), updates=3, check_every=200)
    _, metrics = fitted(model, begun(model, DISCRETE), experience(DISCRETE), KEY)
    assert int(metrics["model_updates"]) == 3


def test_ensemble_fit_leaves_decays_that_are_not_learned_where_they_were():
    dynamics = Ensemble().dynamics
    fixed = replace(dynamics, neuron=replace(dynamics.neuron, learn_decay=False, learn_threshold=False))
    model = small(Ensemble(dynamics=fixed), weight_decay=0.1, learning_rate=0.01)
    state = begun(model, DISCRETE)
    after, _ = fitted(model, state, experience(DISCRETE), KEY)
    neuron = [layer.neuron for layer in state.members.dynamics.layers]
    assert same(neuron, [layer.neuron for layer in after.members.dynamics.layers])


def test_ensemble_members_start_differently_and_see_different_data():
    model = small(Ensemble(), weight_decay=0.0)
    state = begun(model, DISCRETE)
    weights = state.members.dynamics.layers[0].synapse.weight
    assert weights.shape[0] == 2 and not same(weights[0], weights[1])
    # Twins at the start part, since each draws its own mini-batches.
    alike = eqx.tree_at(lambda s: s.members, state, jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), state.members))
    after, _ = fitted(model, alike, experience(DISCRETE), KEY)
    weights = after.members.dynamics.layers[0].synapse.weight
    assert not same(weights[0], weights[1])


def test_what_is_held_out_stays_held_out_and_is_never_trained_on():
    model, replay = small(Ensemble(), holdout=0.3), experience(DISCRETE)

    @jax.jit
    def told(replay):
        held = [model.split.held(KEY, replay, jnp.arange(rows)) for rows in (200, 100)]
        return *held, model.split.draw(KEY, replay, OTHER, (50, 40), KEY), model.split.draw_held(KEY, replay, OTHER, (50, 40))

    held, fewer, trained, judged = map(np.asarray, told(replay))
    np.testing.assert_array_equal(held[:100], fewer)
    assert 0.15 < held.mean() < 0.45
    assert set(trained.ravel()) == set(np.flatnonzero(~held[:20])) and set(judged.ravel()) == set(np.flatnonzero(held[:20]))


def test_where_nothing_or_all_is_held_out_by_chance_everything_serves_as_both():
    model = small(Ensemble(), holdout=0.3)
    replay = experience(DISCRETE)
    held = np.asarray(jax.jit(lambda r: model.split.held(KEY, r, jnp.arange(20)))(replay))
    judges = jax.jit(lambda r, alone: model.split.judges(KEY, r, jnp.arange(20), alone))
    for only in (int(held.argmax()), int(held.argmin())):
        alone = (np.arange(20) == only).astype(np.float32)
        assert float((np.asarray(judges(replay, alone)) * alone).sum()) == 1
    one = filled(DISCRETE, 1, CAPACITY, KEY)
    draw = jax.jit(lambda r: (model.split.draw(KEY, r, OTHER, (9,), KEY), model.split.draw_held(KEY, r, OTHER, (9,))))
    assert not any(np.asarray(rows).any() for rows in draw(one))


def test_without_holdout_the_model_is_judged_on_all_that_it_has_seen():
    model, replay = small(Ensemble()), experience(DISCRETE)
    state = begun(model, DISCRETE)
    after, metrics = fitted(model, state, replay, KEY)
    wanted = float(jax.jit(lambda s: model.errors(s, replay, jnp.arange(20), KEY).mean())(after))
    assert float(metrics["model_error"]) == pytest.approx(wanted, rel=1e-4)
    assert float(after.confidence) == pytest.approx(np.exp(-wanted), rel=1e-4)


def test_a_fit_goes_on_with_the_moments_of_the_last_and_takes_the_steps_it_is_told():
    model, replay = small(twin(Ensemble()), updates=4, check_every=2), experience(DISCRETE)
    update = jax.jit(model.update)
    state = begun(model, DISCRETE)
    first, metrics = update(state, replay, KEY, 4)
    assert int(metrics["model_updates"]) == 4 and not same(first.optimizer, state.optimizer)
    again = update(first, replay, OTHER, 4)[0]
    forgetful = update(replace(first, optimizer=state.optimizer), replay, OTHER, 4)[0]
    assert not same(again.members, forgetful.members)
    assert int(update(state, replay, KEY, 2)[1]["model_updates"]) == 2
    assert int(update(state, replay, KEY, 7)[1]["model_updates"]) == 8  # whole blocks


def test_recurrent_refuses_a_network_without_memory_and_a_holdout():
    for network in (SpikingNetwork(), small(twin(Dreamer()).actor)):
        with pytest.raises(ValueError, match="network keeps no state between steps; it must be a GRU or a SpikingNetwork"):
            Recurrent(network=network)
    assert Recurrent(network=GRU()).recurrent
    with pytest.raises(ValueError, match=r"ensemble.holdout must be 0"):
        Recurrent(ensemble=Ensemble(holdout=0.1))


@pytest.mark.parametrize(("wrong", "spec"), [("Pendulum", DISCRETE), ("CartPole", CONTINUOUS)])
def test_true_environment_refuses_another_environments_sizes(wrong, spec):
    with pytest.raises(ValueError, match="observes"):
        TrueEnvironment(wrong).init(spec, KEY)


# ---- agents


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


def learns(agent):
    return not isinstance(agent, MPC) or agent.policy is not None


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


def exercised_parts():
    """Every part in a network; neurons, encoders and readouts side by side, as many of each as of what there is the most."""
    spiking = small(SpikingNetwork())
    beside = [[kind() for kind in kinds(AnyNeuron)], encoders(), [kind() for kind in kinds(AnyReadout)]]
    for place in range(max(map(len, beside))):
        neuron, encoder, readout = (parts[place % len(parts)] for parts in beside)
        yield replace(spiking, neuron=neuron, encoder=encoder, readout=readout)
    yield from (replace(spiking, rule=kind()) for kind in kinds(AnyRule) if kind is not BPTT)
    yield replace(spiking, persistent=True)
    yield from (small(kind()) for kind in kinds(AnyNetwork) if kind is not SpikingNetwork)


def label(network):
    if not isinstance(network, SpikingNetwork):
        return type(network).__name__
    mode = network.encoder.mode if isinstance(network.encoder, GaussianPopulation) else ""
    parts = (network.neuron, network.encoder, network.readout)
    rule = type(network.rule).__name__
    return "-".join([*(type(part).__name__ for part in parts), mode, rule, "persistent" * network.persistent]).strip("-")


every_network = pytest.mark.parametrize("network", list(exercised_parts()), ids=label)


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


# ---- joined


def sized(algorithm):
    """How often each verb has been compiled."""
    verbs = ("init", "start", "restart", "act", "remember", "learn", "fit", "dream")
    return {verb: getattr(type(algorithm), verb)._cache_size() for verb in verbs}


def one_turn(algorithm, state, spec):
    """Each verb once, as the runner calls them."""
    policy, obs = algorithm.policy(state), np.full((1, spec.obs_size), 0.1, np.float32)
    carry = algorithm.restart(policy, state.carry, np.array([True]))
    act = algorithm.act(policy, carry, obs, state.keys.collect, False)
    number = np.zeros((1, 1), np.float32)
    action, log_prob = np.asarray(act.action)[None], np.asarray(act.log_prob)[None]
    step = Transition(obs[None], action, number + 0.5, obs[None] + 0.1, number, number, log_prob)
    state = replace(state, carry=act.carry, keys=replace(state.keys, collect=act.key))
    if algorithm.agent.online:
        state, learned = algorithm.learn(state, step)
        state, rest = algorithm.fit(state, np.int32(algorithm.world_model.updates))
        return state, {**learned, **rest}
    state = replace(state, replay=algorithm.remember(state.replay, step, np.int32(1)))
    state, fitted = algorithm.fit(state, np.int32(algorithm.world_model.updates))
    state, dreamt = algorithm.dream(state)
    return state, {**fitted, **dreamt}


def copied(state):
    """The phases donate what they are given. By way of NumPy, for which nothing is compiled."""

    def copy(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(copy(jax.random.key_data(leaf))) if is_key else jnp.asarray(np.array(leaf))

    return jax.tree.map(copy, state)


RND, ICM = small(twin(RandomNetworkDistillation())), small(twin(IntrinsicCuriosity()))
JOINED = [  # world model, agent, bonus, how experience is drawn, for which action spaces
    (Ensemble, "Dreamer", None, "uniform", SPECS),
    (TrueEnvironment, "Dreamer", None, "td_error", ["discrete"]),
    (Recurrent, "Dreamer-from-both", RND, "model_error", ["continuous"]),
    (Ensemble, "MPC-MPPI", Disagreement(), "td_error", ["discrete"]),
    (TrueEnvironment, "MPC-RandomShooting", None, "uniform", ["discrete"]),
    (Ensemble, "MPC", None, "model_error", ["continuous"]),
    (Ensemble, "PPO-imagines", ICM, "td_error", ["continuous"]),
    (TrueEnvironment, "OffPolicy-TD7", None, "loss", ["continuous"]),
    (Ensemble, "OffPolicy-dreams", None, "uniform", ["continuous"]),
    (TrueEnvironment, "StreamActorCritic-dyna", None, "uniform", ["discrete"]),
    (TrueEnvironment, "Evolution-twin", None, "uniform", ["discrete"]),
]
TRACED = [  # what is joined of the same parts in another way; compiling these, too, would see no more
    (Recurrent, "Dreamer", RND, "model_error", ["discrete"]),
    (Recurrent, "MPC", None, "model_error", ["continuous"]),
    (Recurrent, "Dreamer-from-both", Disagreement(), "uniform", ["continuous"]),
    (Recurrent, "Evolution", RND, "model_error", ["continuous"]),
    (Ensemble, "PPO", RND, "model_error", ["discrete"]),
    (Ensemble, "OffPolicy", RND, "td_error", ["continuous"]),
    (Ensemble, "OffPolicy-SAC", None, "loss", ["continuous"]),
    (Ensemble, "OffPolicy-dreams", Disagreement(), "loss", ["continuous"]),
    (Ensemble, "StreamActorCritic", None, "td_error", ["continuous"]),
    (Ensemble, "StreamActorCritic-dyna", None, "uniform", ["continuous"]),
]


def test_every_kind_is_joined_with_others():
    worlds, names, bonuses, priorities, _ = zip(*JOINED, strict=True)
    assert set(worlds) == set(kinds(AnyWorldModel)) and set(priorities) == set(PRIORITIES)
    assert {type(bonus) for bonus in bonuses if bonus} == set(kinds(AnyBonus))
    agents = [AGENTS[name] for name in names]
    assert {type(agent) for agent in agents} == set(kinds(AnyAgent)) - {StableBaselines}  # joined in test_stable_baselines.py
    assert {type(agent.search) for agent in agents if isinstance(agent, MPC)} == set(kinds(AnyPlanner))


def imagined_steps(agent, metrics):
    """Of two updates, or of one real step."""
    agent = agent.policy if isinstance(agent, MPC) else agent
    if isinstance(agent, StreamActorCritic):
        return agent.dyna.steps if agent.dyna else 0
    if isinstance(agent, Dreamer):
        return 2 * agent.trajectories * agent.horizon
    if isinstance(agent, Evolution):
        return 2 * agent.population * agent.trajectories * agent.horizon
    if isinstance(agent, OffPolicy):
        return 2 * agent.dreams.starts * agent.dreams.horizon if agent.dreams else 0
    if agent is None or agent.imagination is None:
        return 0
    assert 0 < int(metrics["rollouts"]) <= 2 * agent.imagination.most
    return agent.imagination.horizon * int(metrics["rollouts"])


@pytest.mark.parametrize(
    ("world_kind", "name", "bonus", "priority", "spec"),
    [
        pytest.param(w, a, b, p, SPECS[s], id="-".join([w.__name__, a, type(b).__name__ if b else "no", p, s]))
        for w, a, b, p, specs in JOINED
        for s in specs
    ],
)
def test_algorithm_runs_repeats_compiles_once_and_survives_a_checkpoint(world_kind, name, bonus, priority, spec):
    agent, model = AGENTS[name], world_model(world_kind, spec)
    if (world_kind, name, spec) != (Ensemble, "Dreamer", DISCRETE):  # what networks are made of matters little to the joints
        agent, model = twin(agent), twin(model)  # whose programs are half as long
    algorithm = Algorithm(spec, model, agent, bonus, ReplayBuffer(CAPACITY, priority), block=2)
    start = algorithm.init(KEY)
    held = experience(spec)
    start = replace(start, replay=algorithm.remember(start.replay, jax.tree.map(lambda x: x[:20], held.data), np.int32(20)))
    first, metrics = one_turn(algorithm, copied(start), spec)
    assert finite(first) and finite(metrics)
    assert int(first.counters.imagined_steps) == imagined_steps(agent, metrics)
    assert int(first.counters.updates) == (1 if agent.online else 2)
    assert ("bonus_mean" in metrics) is (bonus is not None)
    assert not same(first.world, start.world) or not (agent.uses_world or bonus)
    if priority == "loss":
        assert len(np.unique(first.replay.priority.tree.weight(agent.judged(first.agent).index))) > 1
    elif priority != "uniform":
        weights = first.replay.priority.tree.weight(jnp.arange(20))
        assert len(np.unique(weights)) > (1 if world_kind is not TrueEnvironment or priority == "td_error" else 0)
    assert int(first.replay.count) == 21
    verbs = ("collect", "fit", "dream")
    assert not any(same(getattr(first.keys, verb), getattr(start.keys, verb)) for verb in verbs)

    compiled = sized(algorithm)
    assert same((first, metrics), one_turn(algorithm, copied(start), spec)), "the same state gave another turn"
    other = copied(replace(start, keys=algorithm.init(OTHER).keys))
    another = one_turn(algorithm, other, spec)[0]
    assert not same(*((s.agent if learns(agent) else s.world) for s in (first, another))), "another key gave the same turn"
    second, _ = one_turn(algorithm, copied(first), spec)
    assert sized(algorithm) == compiled, "a verb was compiled again on the state of a later turn"

    arrays = checkpoint.flatten(first, "state")
    template = jax.eval_shape(algorithm.init, KEY)
    restored = checkpoint.unflatten(template, "state", arrays)
    assert same(restored, first)
    assert same(second, one_turn(algorithm, restored, spec)[0]), "a restored run went another way"
    assert sized(algorithm) == compiled, "a verb was compiled again on a restored state"


def key_uses(jaxpr, names, uses):
    """Adds to `uses` {key: ways} what a program and those inside it make of keys. `names` of its inputs are those that the program
    around it knows them by."""
    for equation in jaxpr.eqns:
        given = [names.get(x, x) if isinstance(x, Var) else x for x in equation.invars]
        if equation.primitive.name in ("random_split", "random_bits", "random_fold_in"):
            uses.setdefault(given[0], set()).add((equation.primitive.name, equation.params.get("shape")))
        programs = [x for name, x in equation.params.items() if name != "cond_jaxpr"]  # of a while loop: takes other inputs
        for inner in jax.tree.leaves(programs, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                key_uses(inner, dict(zip(inner.invars, given[len(given) - len(inner.invars) :], strict=True)), uses)


def keys_used_in_two_ways(jaxpr):
    """Of a program and those inside it: keys that are split and also folded in, split into different numbers or split and drawn
    from. As `fold_in(key, i)` is `split(key, n)[i]` for every n, what comes of the one and of the other would be the same
    randomness. Drawing the same twice is meant: it compares things under the same chance."""
    uses = {}
    key_uses(jaxpr, {}, uses)
    return [key for key, ways in uses.items() if len(ways) > 1]


@pytest.mark.parametrize("other", [lambda k: jax.random.fold_in(k, 1), lambda k: jax.random.split(k, 3), jax.random.uniform])
def test_a_key_that_is_used_in_two_ways_is_seen(other):
    split, keys = jax.random.split, jax.random.split(KEY)

    def looped(key):  # one way before a loop, the other inside it
        return split(key), jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, other(key)), (0, other(KEY)))

    assert keys_used_in_two_ways(jax.make_jaxpr(lambda k: (split(k), other(k)))(KEY).jaxpr)
    assert keys_used_in_two_ways(jax.make_jaxpr(looped)(KEY).jaxpr)
    inside = jax.make_jaxpr(lambda k: jax.lax.scan(lambda c, x: (c, (split(x), jax.jit(other)(x))), 0, k))(keys)
    assert keys_used_in_two_ways(inside.jaxpr)
    one = jax.make_jaxpr(lambda k: [(split(x), split(x), other(y)) for x, y in [split(k)]])(KEY)
    assert not keys_used_in_two_ways(one.jaxpr)


@pytest.mark.parametrize(("world_kind", "name", "bonus", "priority", "specs"), [*JOINED, *TRACED])
def test_no_verb_changes_the_state_s_form_or_uses_a_key_in_two_ways(world_kind, name, bonus, priority, specs):
    spec = SPECS[next(iter(specs))]
    algorithm = Algorithm(spec, world_model(world_kind, spec), AGENTS[name], bonus, ReplayBuffer(CAPACITY, priority), block=2)
    state, obs = jax.eval_shape(algorithm.init, KEY), jnp.zeros((1, spec.obs_size))
    act = lambda s: algorithm.act(algorithm.policy(s), s.carry, obs, s.keys.collect, False)  # noqa: E731
    verbs = [(algorithm.init, (KEY,)), (algorithm.fit, (state, 4)), (algorithm.dream, (state,)), (act, (state,))]
    if algorithm.agent.online:
        verbs.append((algorithm.learn, (state, jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:])), state.replay.data))))
    for verb, arguments in verbs:
        jaxpr, after = jax.make_jaxpr(verb, return_shape=True)(*arguments)
        assert not keys_used_in_two_ways(jaxpr.jaxpr)
        if verb in (algorithm.fit, algorithm.dream, algorithm.learn):
            assert shapes(after[0]) == shapes(state)


HOLDING = FineTuning(holdout_newest=0.25, share=0.5, of="random")


@pytest.mark.parametrize(
    "model",
    [small(Ensemble(search=PriorSearch())), Recurrent(GRU(4), 2, small(Ensemble(fine_tuning=HOLDING)), context=2)],
    ids=["searches", "holds out"],
)
def test_no_fit_uses_a_key_in_two_ways(model):
    """Of those that no algorithm above has. Whether `chosen` shares none with the steps of a fit: test_fine_tuning.py."""
    state = jax.eval_shape(lambda k: model.init(DISCRETE, k), KEY)
    jaxpr = jax.make_jaxpr(model.update)(state, experience(DISCRETE), KEY, 4)
    assert not keys_used_in_two_ways(jaxpr.jaxpr)


# ---- checkpoints


def tree():
    numbers = {"a": jnp.array([1.0, -0.0, jnp.nan, 1e-40]), "n": jnp.arange(2)}
    return {**numbers, "key": jax.random.key(5), "keys": jax.random.split(KEY, 3)}


def test_checkpoint_returns_every_bit_from_the_disk(tmp_path):
    arrays = checkpoint.flatten(tree(), "t")
    checkpoint.save(tmp_path, 7, arrays, {"steps": 7})
    read = checkpoint.load(tmp_path)
    restored = checkpoint.unflatten(tree(), "t", read.arrays)
    assert read.counters == {"steps": 7}
    assert jax.tree.structure(restored) == jax.tree.structure(tree())
    again = checkpoint.flatten(restored, "t")
    assert {name: x.tobytes() for name, x in again.items()} == {name: x.tobytes() for name, x in arrays.items()}
    assert same(jax.random.normal(restored["key"], (3,)), jax.random.normal(jax.random.key(5), (3,)))


def test_unflatten_names_a_missing_array():
    arrays = checkpoint.flatten(tree(), "t")
    del arrays["t['a']"]
    with pytest.raises(checkpoint.CheckpointError, match=r"lacks t\['a'\]"):
        checkpoint.unflatten(tree(), "t", arrays)


def test_unflatten_names_a_superfluous_array():
    arrays = checkpoint.flatten({**tree(), "more": jnp.zeros(1)}, "t")
    with pytest.raises(checkpoint.CheckpointError, match=r"t\['more'\].*does not have"):
        checkpoint.unflatten(tree(), "t", arrays)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("t['a']", np.zeros(3, np.float32)),
        ("t['a']", np.zeros(4, np.float64)),
        ("t['n']", np.zeros(2, np.float32)),
        ("t['key']", np.zeros((1, 2), np.uint32)),
    ],
)
def test_unflatten_names_an_array_of_another_shape_or_type(name, wrong):
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.unflatten(tree(), "t", {**checkpoint.flatten(tree(), "t"), name: wrong})
    assert name in str(error.value) and f"{wrong.dtype}{list(wrong.shape)}" in str(error.value)


def test_two_trees_share_a_file_by_their_prefixes():
    arrays = {**checkpoint.flatten(tree(), "state"), **checkpoint.flatten({"b": jnp.ones(2)}, "statement")}
    assert same(checkpoint.unflatten({"b": jnp.zeros(2)}, "statement", arrays), {"b": jnp.ones(2)})
    assert same(checkpoint.unflatten(tree(), "state", arrays)["keys"], tree()["keys"])


def test_checkpoint_that_was_changed_on_disk_is_refused(tmp_path):
    checkpoint.save(tmp_path, 7, checkpoint.flatten(tree(), "t"), {})
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        checkpoint.load(tmp_path)


def test_only_the_newest_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (3, 20, 100):
        checkpoint.save(tmp_path, step, {"x": np.full(1, step)}, {"steps": step})
    assert len(list(tmp_path.iterdir())) == 2 * checkpoint.KEPT
    assert checkpoint.load(tmp_path).counters == {"steps": 100}
    assert checkpoint.load(tmp_path).arrays["x"].tolist() == [100]


def test_an_empty_directory_holds_no_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path)


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
