"""What every registered world model and agent must honour, alone and joined in an `Algorithm`, and what a checkpoint must."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, SPECS, encoders, filled, finite, kinds, same, shapes, small

from spikedream import checkpoint
from spikedream.agents.dreamer import Dreamer
from spikedream.algorithm import Algorithm
from spikedream.config import AnyAgent, AnyWorldModel, twin
from spikedream.snn.codings import AnyReadout, GaussianPopulation
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import AnyNeuron
from spikedream.types import Transition, World
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.true_environment import TrueEnvironment

KEY, OTHER = jax.random.key(0), jax.random.key(1)
CAPACITY = 24
WITHOUT_CHANCE = {TrueEnvironment}  # nothing in these depends on the key

world_kinds = pytest.mark.parametrize("kind", kinds(AnyWorldModel))
agent_kinds = pytest.mark.parametrize("kind", kinds(AnyAgent))
both_specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def world_model(kind, spec):
    if kind is TrueEnvironment:
        return TrueEnvironment("CartPole" if spec.discrete else "Pendulum")
    return small(kind())


def experience(spec):
    return filled(spec, 20, CAPACITY, jax.random.key(7))


def known_world(spec):
    """A world that costs nothing to compile, for the agents' own contract."""
    model = world_model(TrueEnvironment, spec)
    return World(model, model.init(spec, KEY))


# ---- world models


@world_kinds
@both_specs
def test_world_model_shapes(kind, spec):
    model = world_model(kind, spec)
    state = jax.eval_shape(lambda k: model.init(spec, k), KEY)
    carry = jax.eval_shape(model.start, state, jnp.zeros(spec.obs_size), KEY)
    following, prediction = jax.eval_shape(model.step, state, carry, jnp.zeros(spec.action_size), KEY)
    assert shapes(following) == shapes(carry)
    assert prediction.obs.shape == (spec.obs_size,)
    assert prediction.reward.shape == prediction.terminated.shape == prediction.uncertainty.shape == ()
    assert {x.dtype for x in jax.tree.leaves(prediction)} == {jnp.dtype("float32")}
    after, metrics = jax.eval_shape(model.update, state, experience(spec), KEY)
    assert shapes(after) == shapes(state)
    assert all(x.shape == () for x in metrics.values()) and "model_loss" in metrics


@world_kinds
def test_world_model_repeats_itself_under_one_key(kind):
    spec = DISCRETE
    model = world_model(kind, spec)
    init = jax.jit(lambda k: model.init(spec, k))
    fit = jax.jit(model.update)
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
    state = jax.jit(lambda k: model.init(spec, k))(KEY)
    obs = jnp.full(spec.obs_size, 0.1)
    action = jnp.eye(2)[0] if spec.discrete else jnp.full(spec.action_size, 0.4)

    def imagined(obs, action):
        prediction = model.step(state, model.start(state, obs, KEY), action, OTHER)[1]
        return prediction.obs.sum() + prediction.reward, prediction

    gradient, prediction = jax.jit(jax.grad(imagined, argnums=(0, 1), has_aux=True))(obs, action)
    assert finite(gradient) and finite(prediction)
    assert 0 <= float(prediction.terminated) <= 1 and float(prediction.uncertainty) >= 0
    assert bool((gradient[0] != 0).any())
    assert spec.discrete or bool((gradient[1] != 0).any())


def test_ensemble_makes_at_most_the_updates_it_was_given():
    with pytest.raises(ValueError, match="check_every is 2, which does not divide updates"):
        small(twin(Ensemble()), updates=3, check_every=2)
    model = small(twin(Ensemble()), updates=3, check_every=200)
    _, metrics = jax.jit(model.update)(jax.jit(lambda k: model.init(DISCRETE, k))(KEY), experience(DISCRETE), KEY)
    assert int(metrics["model_updates"]) == 3


def test_ensemble_fit_leaves_decays_that_are_not_learned_where_they_were():
    dynamics = Ensemble().dynamics
    fixed = replace(dynamics, neuron=replace(dynamics.neuron, learn_decay=False, learn_threshold=False))
    model = small(Ensemble(dynamics=fixed), weight_decay=0.1, learning_rate=0.01)
    state = jax.jit(lambda k: model.init(DISCRETE, k))(KEY)
    after, _ = jax.jit(model.update)(state, experience(DISCRETE), KEY)
    neuron = [layer.neuron for layer in state.members.dynamics.layers]
    assert same(neuron, [layer.neuron for layer in after.members.dynamics.layers])


def test_ensemble_members_start_differently_and_see_different_data():
    model = small(Ensemble(), holdout=0.5)
    state = jax.jit(lambda k: model.init(DISCRETE, k))(KEY)
    weights = state.members.dynamics.layers[0].synapse.weight
    assert weights.shape[0] == 2 and not same(weights[0], weights[1])
    held_out = model._held_out(state.key, experience(DISCRETE))
    assert held_out.shape == (2, CAPACITY) and not same(held_out[0], held_out[1])


@pytest.mark.parametrize(("wrong", "spec"), [("Pendulum", DISCRETE), ("CartPole", CONTINUOUS)])
def test_true_environment_refuses_another_environments_sizes(wrong, spec):
    with pytest.raises(ValueError, match="observes"):
        TrueEnvironment(wrong).init(spec, KEY)


# ---- agents


@agent_kinds
@both_specs
def test_agent_shapes(kind, spec):
    agent, world = small(kind()), known_world(spec)
    state = jax.eval_shape(lambda k: agent.init(spec, k), KEY)
    carry = jax.eval_shape(agent.start, state)
    for greedy in (False, True):
        act = partial(agent.act, world=world, obs=jnp.zeros(spec.obs_size), key=KEY, greedy=greedy)
        decision = jax.eval_shape(lambda s, c, act=act: act(state=s, carry=c), state, carry)
        assert decision.action.shape == (spec.action_size,) and decision.action.dtype == jnp.float32
        assert decision.log_prob.shape == ()
        assert shapes(decision.carry) == shapes(carry)
    after, metrics = jax.eval_shape(lambda s, e, k: agent.update(s, world, e, k), state, experience(spec), KEY)
    assert shapes(after) == shapes(state)
    assert all(x.shape == () for x in metrics.values())
    assert metrics["imagined_steps"].dtype == jnp.int32


@agent_kinds
@both_specs
def test_agent_acts_within_its_space_and_by_its_key_alone(kind, spec):
    agent, world, obs = small(kind()), known_world(spec), jnp.full(spec.obs_size, 0.3)
    init = jax.jit(lambda k: agent.init(spec, k))
    state = init(KEY)
    assert same(state, init(KEY)) and not same(state, init(OTHER))
    act = jax.jit(lambda s, k, greedy: agent.act(s, world, agent.start(s), obs, k, greedy), static_argnums=2)
    keys = jax.random.split(KEY, 20)
    actions = np.stack([act(state, k, False).action for k in keys])
    if spec.discrete:
        assert set(np.unique(actions)) == {0.0, 1.0} and (actions.sum(1) == 1).all()
    else:
        assert (np.abs(actions) < 1).all()
    assert len(np.unique(actions, axis=0)) > 1
    assert same(act(state, KEY, False), act(state, KEY, False))
    assert len(np.unique(np.stack([act(state, k, True).action for k in keys]), axis=0)) == 1


def exercised_parts():
    spiking = small(SpikingNetwork())
    yield from (replace(spiking, neuron=kind()) for kind in kinds(AnyNeuron))
    yield from (replace(spiking, encoder=encoder) for encoder in encoders())
    yield from (replace(spiking, readout=kind()) for kind in kinds(AnyReadout))
    yield replace(spiking, persistent=True)
    yield from (small(kind()) for kind in kinds(AnyNetwork))


def label(network):
    if not isinstance(network, SpikingNetwork):
        return type(network).__name__
    mode = network.encoder.mode if isinstance(network.encoder, GaussianPopulation) else ""
    parts = (network.neuron, network.encoder, network.readout)
    return "-".join([*(type(part).__name__ for part in parts), mode, "persistent" * network.persistent]).strip("-")


every_network = pytest.mark.parametrize("network", list(exercised_parts()), ids=label)


@every_network
@agent_kinds
def test_agent_can_be_traced_with_every_network(kind, network):
    agent, world = small(kind(), actor=network, critic=network), known_world(DISCRETE)
    state = jax.eval_shape(lambda k: agent.init(DISCRETE, k), KEY)
    after, _ = jax.eval_shape(lambda s, e, k: agent.update(s, world, e, k), state, experience(DISCRETE), KEY)
    assert shapes(after) == shapes(state)


@every_network
def test_ensemble_can_be_traced_with_every_network(network):
    model = small(Ensemble(dynamics=network, ending=network))
    state = jax.eval_shape(lambda k: model.init(DISCRETE, k), KEY)
    after, _ = jax.eval_shape(model.update, state, experience(DISCRETE), KEY)
    assert shapes(after) == shapes(state)


def test_dreamer_refuses_to_differentiate_through_discrete_actions():
    with pytest.raises(ValueError, match='"clipped" or "reinforce"'):
        small(twin(Dreamer()), gradient="model").init(DISCRETE, KEY)


@pytest.mark.parametrize(("spec", "gradient"), [(DISCRETE, "clipped"), (DISCRETE, "reinforce"), (CONTINUOUS, "model")])
def test_dreamer_update_moves_every_network_and_repeats_itself(spec, gradient):
    agent, world = small(twin(Dreamer()), gradient=gradient), known_world(spec)
    state = jax.jit(lambda k: agent.init(spec, k))(KEY)
    update = jax.jit(lambda s, e, k: agent.update(s, world, e, k))
    after, metrics = update(state, experience(spec), KEY)
    assert finite(after) and finite(metrics)
    assert not same(after.actor, state.actor) and not same(after.critic, state.critic) and not same(after.target, state.target)
    assert int(metrics["imagined_steps"]) == agent.trajectories * agent.horizon
    assert same(after, update(state, experience(spec), KEY)[0])
    assert not same(after, update(state, experience(spec), OTHER)[0])


# ---- joined


def sized(algorithm):
    """How often each verb has been compiled."""
    verbs = ("init", "start", "act", "remember", "fit", "dream")
    return {verb: getattr(type(algorithm), verb)._cache_size() for verb in verbs}


def one_turn(algorithm, state, spec):
    """Each verb once, as the runner calls them."""
    carry = algorithm.start(state, 2)
    act = algorithm.act(state, carry, jnp.full((2, spec.obs_size), 0.1), np.uint32(3), False)
    step = Transition(
        np.full(spec.obs_size, 0.1, np.float32),
        np.asarray(act.action[0]),
        np.float32(0.5),
        np.full(spec.obs_size, 0.2, np.float32),
        np.float32(0),
        np.float32(0),
    )
    state, fitted = algorithm.fit(algorithm.remember(state, step))
    state, dreamt = algorithm.dream(state)
    return state, {**fitted, **dreamt}


def copied(state):
    """The phases donate what they are given."""
    return jax.tree.map(jnp.copy, state)


@pytest.mark.parametrize("agent_kind", kinds(AnyAgent))
@pytest.mark.parametrize("world_kind", kinds(AnyWorldModel))
@both_specs
def test_algorithm_runs_repeats_compiles_once_and_survives_a_checkpoint(world_kind, agent_kind, spec):
    algorithm = Algorithm(spec, world_model(world_kind, spec), small(agent_kind()), CAPACITY, block=2)
    start = algorithm.init(KEY)
    start = eqx.tree_at(lambda s: s.replay, start, experience(spec))
    first, metrics = one_turn(algorithm, copied(start), spec)
    assert finite(first) and finite(metrics)
    assert int(metrics["imagined_steps"]) == 2 * algorithm.agent.trajectories * algorithm.agent.horizon
    assert int(first.replay.count) == 21
    assert not same(first.key, start.key)

    compiled = sized(algorithm)
    assert same((first, metrics), one_turn(algorithm, copied(start), spec)), "the same state gave another turn"
    other = copied(eqx.tree_at(lambda s: s.key, start, algorithm.init(OTHER).key))
    assert not same(first.agent, one_turn(algorithm, other, spec)[0].agent), "another key gave the same turn"
    second, _ = one_turn(algorithm, copied(first), spec)
    assert sized(algorithm) == compiled, "a verb was compiled again on the state of a later turn"

    arrays = checkpoint.flatten(first, "state")
    template = jax.eval_shape(algorithm.init, KEY)
    restored = checkpoint.unflatten(template, "state", arrays)
    assert same(restored, first)
    assert same(second, one_turn(algorithm, restored, spec)[0]), "a restored run went another way"
    assert sized(algorithm) == compiled, "a verb was compiled again on a restored state"


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
