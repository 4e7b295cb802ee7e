"""What every registered world model must honour."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import (
    CAPACITY,
    KEY,
    OTHER,
    WITHOUT_CHANCE,
    begun,
    both_specs,
    experience,
    fitted,
    initialised,
    world_kinds,
    world_model,
)
from small import CONTINUOUS, DISCRETE, filled, finite, same, shapes, small

from spikedream.agents.dreamer import Dreamer
from spikedream.config import twin
from spikedream.snn.conventional import GRU
from spikedream.snn.networks import SpikingNetwork
from spikedream.types import firing_rates
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment


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
