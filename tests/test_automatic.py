"""What a run chooses by measurement, each choice where the right one is known."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, holding, known, same, small
from test_resume import Notes

import spikedream
from spikedream import config as configuration
from spikedream import training
from spikedream.agents.dreamer import Dreamer
from spikedream.agents.mpc import MPC
from spikedream.bonuses.blind import BlindState, WhileBlind
from spikedream.cli import parse_train
from spikedream.config import twin
from spikedream.ops.schedule import ImaginedShare
from spikedream.replay.normalizer import identity, no_moments
from spikedream.replay.ring import ReplayBuffer
from spikedream.replay.spread import LONGEST, cycle, horizon, left_by_action, repeat_for
from spikedream.reports.chosen import chosen_html
from spikedream.runners.sync import Trainer
from spikedream.runs.collect import cycle_of
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.readouts import MembraneReadout
from spikedream.spec import Spec
from spikedream.types import Transition
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.priors import PriorSearch
from spikedream.world_models.weights import Weights

KEY = jax.random.key(0)
CHOOSING = {"selection": "PolicySelection"}
PLANE = Spec(2, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))


def steps_of(obs, action, reward, following, terminated=0.0):
    """Transitions of one environment; fields (rows, ...)."""
    nothing = jnp.zeros(len(reward))
    fields = (jnp.asarray(x, jnp.float32) for x in (obs, action, reward, following))
    return Transition(*fields, nothing + terminated, nothing, nothing)


@jax.jit
def _scales(moments, steps, valid):
    return moments.add(steps, valid).normalizer()


def scales(reward, parts=1):
    """Those of rewards (rows,), added in so many parts, with an observation that stays the same."""
    nothing = jnp.zeros((len(reward), 1))
    steps, moments = steps_of(nothing, nothing, reward, nothing), no_moments(1, spread=True)
    for part in np.array_split(np.arange(len(reward)), parts):
        moments = moments.add(jax.tree.map(lambda x, rows=part: x[rows][:, None], steps), jnp.ones((len(part), 1)))
    return moments.normalizer()


# ---- scales


def test_one_crash_does_not_set_the_scale_of_rewards_and_an_even_reward_does():
    rng = np.random.default_rng(0)
    shaped = rng.normal(0, 1, 999).astype(np.float32)
    crash = np.append(shaped, np.float32(-100))
    found = scales(crash, parts=7)
    assert float(found.reward_scale) == pytest.approx(4 * np.sqrt(np.square(crash).mean()), rel=1e-4)
    assert float(found.reward_low) == pytest.approx(-100 / float(found.reward_scale), rel=1e-4)
    largest = np.abs(shaped).max()
    assert float(scales(shaped).reward_scale) == pytest.approx(min(largest, 4 * np.sqrt(np.square(shaped).mean())), rel=1e-4)
    for even in (np.full(50, -1, np.float32), np.sin(np.arange(50, dtype=np.float32))):
        assert float(scales(even).reward_scale) == pytest.approx(np.abs(even).max(), rel=1e-5)


def test_scales_that_follow_the_largest_reward_measure_no_spread():
    replay = ReplayBuffer(8).init(DISCRETE)
    assert replay.moments.rewards is None and replay.normalise().normalizer.horizon is None
    spread = ReplayBuffer(8, scale="spread").init(DISCRETE)
    assert same(spread.normalizer, identity(4, spread=True))
    assert jax.tree.structure(spread.normalizer) == jax.tree.structure(spread.normalise().normalizer)


@pytest.mark.parametrize("period", [20, 60, 300])
def test_a_sine_goes_round_in_its_period(period):
    obs = np.stack([np.sin(2 * np.pi * np.arange(period * 10 + 1) / period), np.zeros(period * 10 + 1)], axis=1)
    change = np.square(np.diff(obs, axis=0)).mean(0)
    assert float(cycle(jnp.asarray(obs.var(0)), jnp.asarray(change))) == pytest.approx(period, rel=0.02)
    steps = [Transition(a[None], a[None], 0, b[None], 0, 0, 0) for a, b in itertools.pairwise(obs)]  # type: ignore[arg-type]
    assert cycle_of(steps) == pytest.approx(period, rel=0.02)


def test_a_cycle_is_the_median_of_the_entries_that_move():
    variance = jnp.array([1.0, 1.0, 1.0, 0.0])
    periods = np.array([30.0, 40.0, 500.0])
    change = jnp.asarray(np.append(np.square(2 * np.pi / periods), 0.0))
    assert float(cycle(variance, change)) == pytest.approx(40, rel=1e-4)
    assert float(cycle(jnp.zeros(2), jnp.zeros(2))) == 1.0


@pytest.mark.parametrize("steps, held", [(1, 1), (25, 1), (37, 1), (40, 2), (117, 5)])
def test_an_action_is_held_so_that_a_cycle_has_some_25_decisions(steps, held):
    assert repeat_for(steps) == held


@pytest.mark.parametrize("cycle, rarity, length, steps", [
    (40.0, 0.0, np.inf, 60), (40.0, 0.5, np.inf, (60 + LONGEST) / 2), (4000.0, 0.0, np.inf, LONGEST),
    (40.0, 0.0, 50.0, 25), (4.0, 0.0, 50.0, 6), (40.0, 1.0, 1.0, 1),
])  # fmt: skip
def test_rewards_count_over_a_cycle_and_a_half_rare_ones_further_and_none_beyond_an_episode(cycle, rarity, length, steps):
    assert float(horizon(*map(jnp.asarray, (cycle, rarity, length)))) == pytest.approx(steps)


@pytest.mark.parametrize("terminated, steps", [(0, 5.0), (1, LONGEST)])
def test_an_episode_s_length_bounds_the_horizon_only_where_nothing_ends_it_sooner(terminated, steps):
    """Four episodes of ten steps, cut by a limit; rewards that never differ."""
    obs = np.sin(np.arange(41, dtype=np.float32))[:, None]
    over = jnp.asarray(np.arange(40) % 10 == 9, jnp.float32)
    ended = jnp.zeros(40).at[4].set(terminated)
    taken = Transition(jnp.asarray(obs[:-1]), jnp.zeros((40, 1)), jnp.ones(40), jnp.asarray(obs[1:]), ended, over, jnp.zeros(40))
    rows = jax.tree.map(lambda x: x[:, None], taken)
    spec = Spec(1, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))
    found = ReplayBuffer(64, scale="spread").init(spec).add(rows, 40).normalise().normalizer
    assert float(found.horizon) == pytest.approx(steps)


def test_rewards_are_rare_where_few_events_tell():
    sine, goal = np.sin(np.arange(400, dtype=np.float32)), np.zeros(400, np.float32)
    goal[7] = 1
    for reward, rare in ((sine, 0), (goal, 1), (np.full(400, -1, np.float32), 1)):
        found = no_moments(1, spread=True).rewards.add(jnp.asarray(1.0), jnp.asarray(reward)[:, None], jnp.ones((400, 1)))
        assert float(found.rarity(jnp.asarray(reward.min()), jnp.asarray(reward.max()))) == rare


def test_an_agent_looks_as_far_ahead_as_the_scales_say_and_says_where_none_do():
    agent, world = small(Dreamer(gamma=None)), known(None, None, DISCRETE)
    with pytest.raises(ValueError, match="Set replay"):
        agent.discount(world)
    measured = replace(world, normalizer=replace(world.normalizer, horizon=jnp.asarray(50.0)))
    assert float(agent.discount(measured)) == pytest.approx(0.98)
    assert Dreamer(gamma=0.9).discount(measured) == 0.9


def test_an_agent_is_as_pessimistic_as_its_model_errs():
    model = small(Ensemble())
    state = jax.eval_shape(lambda k: model.init(DISCRETE, k), KEY)
    state = replace(state, confidence=jnp.exp(jnp.asarray(-0.25)))
    agent, world = Dreamer(uncertainty_penalty=None), known(model, state, DISCRETE)
    assert float(agent.pessimism(world)) == pytest.approx(0.5)
    for dread, pessimism in ((0.0, 0.5), (1.0, 1.0)):
        afraid = replace(world, normalizer=replace(world.normalizer, dread=jnp.asarray(dread)))
        assert float(agent.pessimism(afraid)) == pytest.approx(pessimism)
    assert Dreamer(uncertainty_penalty=0.25).pessimism(afraid) == 0.25


@pytest.mark.parametrize(("in_passing", "last", "ends", "dread"), [
    (1.0, 1.0, 1.0, 1), (1.0, 1.0, 0.0, 0), (-1.0, -1.0, 1.0, 0), (-1.0, 100.0, 1.0, 0), (1.0, -100.0, 1.0, 1),
])  # fmt: skip
def test_an_ending_costs_where_it_ends_rewards(in_passing, last, ends, dread):
    """Whatever comes with it: the reward for a goal is no reason to fear the goal."""
    nothing = jnp.zeros((4, 1))
    reward = np.array([in_passing] * 3 + [last])
    steps = steps_of(nothing, nothing, reward, nothing, terminated=jnp.zeros(4).at[3].set(ends))
    found = _scales(no_moments(1, spread=True), jax.tree.map(lambda x: x[:, None], steps), jnp.ones((4, 1)))
    assert float(found.dread) == dread


def test_an_ending_costs_only_where_the_others_pay_as_a_rule():
    """Shaping that comes to a little more than nothing is no reason to stay in the air for ever."""
    nothing = jnp.zeros((100, 1))
    for around, dread in ((0.1, 0), (1.5, 1)):
        steps = steps_of(nothing, nothing, np.tile([around - 1, around + 1], 50), nothing, jnp.zeros(100).at[99].set(1.0))
        found = _scales(no_moments(1, spread=True), jax.tree.map(lambda x: x[:, None], steps), jnp.ones((100, 1)))
        assert float(found.dread) == dread


SHAPED = np.tile([0.0, 0.02], 200)


@pytest.mark.parametrize(("reward", "ends", "weight"), [
    (np.full(400, 1.0), False, 1.0),  # tells nothing
    (SHAPED, False, 2 / 0.25),  # in units of the largest
    (SHAPED, True, 2 / 0.25),
    (np.tile([1.0, 1.02], 200), False, 2 * 16),
    (np.append(np.zeros(399), 100.0), False, 2 * 16),
    (np.append(np.zeros(399), 100.0), True, 1.0),  # one goal is no variance, with a cost of each step or without
    (np.append(0.1 * SHAPED[1:], 100.0), True, 1.0),
    (np.append(np.tile([0.0, 1.0], 200)[1:], -10.0), True, 2 * 16 * 0.25 / 0.524),  # variance in passing, and of all
])  # fmt: skip
def test_the_reward_s_error_counts_as_much_as_all_of_the_observation(reward, ends, weight):
    terminated = jnp.zeros(400).at[399].set(ends)
    steps = rows(lambda o, a: jnp.zeros(400), PLANE, 400)._replace(reward=jnp.asarray(reward, jnp.float32), terminated=terminated)
    replay = ReplayBuffer(400, scale="spread").init(PLANE).add(jax.tree.map(lambda x: x[:, None], steps), 400).normalise()
    model = small(Ensemble(reward_weight=None))
    state = model.init(PLANE, KEY)
    weights = model.rescale(state, replay)[1]
    assert float(weights.reward) == pytest.approx(weight, rel=0.02) and weights.last_reward == 1.0
    assert small(Ensemble(reward_weight=3.0)).rescale(state, replay)[1][1:3] == (3.0, 3.0)
    with pytest.raises(ValueError, match="measured on the spread of rewards"):
        model.rescale(state, holding(PLANE, steps, 400))


@pytest.mark.parametrize("terminated, counts", [(0.0, 5.0), (1.0, 0.5)])
def test_a_reward_that_comes_with_an_ending_has_a_weight_of_its_own(terminated, counts):
    """By what the loss grows where nothing but the weights differ: of the reward's squared error, one of three targets."""
    model = small(twin(Ensemble()))
    state = model.init(PLANE, KEY)
    member = jax.tree.map(lambda x: x[0], state.members)
    steps = rows(lambda o, a: o[:, 0], PLANE, 8)._replace(terminated=jnp.full(8, terminated))
    drawn = (steps, jnp.zeros((8, 0)), jnp.ones(8))

    def loss(reward, last_reward):
        weights = Weights(jnp.ones(()), reward, last_reward, jnp.ones((), bool))
        return float(jax.jit(lambda: model.each.loss(member, drawn, KEY, scale=state.scale, weights=weights))())

    mean = model.each.of_all(state.members, steps, drawn[1], KEY)[0][0]
    error = float(jnp.square(mean[:, -1] - steps.reward).mean()) / 3
    assert loss(5.0, 0.5) - loss(0.0, 0.0) == pytest.approx(counts * error, rel=1e-3)


# ---- curiosity


def rows(reward, spec=CONTINUOUS, number=200):
    """Random steps whose rewards are a function of observation and action."""
    obs_key, action_key = jax.random.split(KEY)
    obs = jax.random.normal(obs_key, (number, spec.obs_size))
    action = jax.random.uniform(action_key, (number, spec.action_size), minval=-1, maxval=1)
    if spec.discrete:
        action = jax.nn.one_hot(jnp.argmax(action, axis=1), spec.action_size)
    return steps_of(obs, action, reward(obs, action), obs + 0.1)


@pytest.mark.parametrize(
    "reward, spec, left",
    [
        (lambda o, a: -0.1 * jnp.square(a[:, 0]), CONTINUOUS, 0.0),  # what an effort costs
        (lambda o, a: jnp.full(len(o), -1.0), DISCRETE, 0.0),  # what a step costs
        (lambda o, a: jnp.where(a[:, 0] > 0, -1.0, 0.5), DISCRETE, 0.0),
        (lambda o, a: o[:, 0], CONTINUOUS, 1.0),
        (lambda o, a: o[:, 0] - jnp.std(o[:, 0]) / jnp.std(a[:, 0]) * a[:, 0], CONTINUOUS, 0.5),
    ],
)
def test_what_rewards_tell_beyond_the_action(reward, spec, left):
    assert float(left_by_action(rows(reward, spec), jnp.ones(200))) == pytest.approx(left, abs=0.1 if left else 1e-3)


def test_curiosity_is_awake_while_blind_and_no_longer_once_a_reward_tells_something():
    weight, raw = WhileBlind(awake=2.0), jnp.full(200, 3.0)

    def after(state, reward, terminated=0.0):
        steps = rows(reward)._replace(terminated=jnp.full(200, 0.0).at[0].set(terminated))
        replay = holding(CONTINUOUS, steps, 200)
        return weight.update(state, raw, steps, jnp.ones(200), replay)

    state, metrics = after(weight.init(), lambda o, a: jnp.full(len(o), -0.5))
    assert float(state.beta) == pytest.approx(1.0) and float(metrics["blind"]) == 1  # two of the rewards' size
    assert float(weight.reward(state, jnp.asarray(3.0))) == pytest.approx(1.0)
    assert float(weight.reward(state, jnp.asarray(300.0))) == float(weight.bound(state, None)) == pytest.approx(5.0)
    seeing, metrics = after(state, lambda o, a: o[:, 0])
    assert float(seeing.beta) == float(metrics["beta"]) == float(metrics["blind"]) == 0
    assert float(after(state, lambda o, a: jnp.zeros(len(o)), terminated=1.0)[0].beta) == 0
    assert float(after(weight.init(), lambda o, a: o[:, 0])[0].beta) == 0
    assert isinstance(state, BlindState)


# ---- priors


def test_the_simplest_prior_that_predicts_nearly_as_well_is_taken():
    search = PriorSearch(curvatures=(1.0, 0.1, 0.01, 0.0), margin=0.1)

    def chosen(change, ending, terminations=3.0):
        prior, _ = search.choose(jnp.array(change), jnp.array(ending), jnp.asarray(terminations))
        return float(prior.curvature), float(prior.additive)

    assert chosen([0.105, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2]) == (1.0, 1.0)
    assert chosen([0.5, 0.2, 0.1, 0.109], [0.3, 0.1, 0.3, 0.1]) == (pytest.approx(0.01), 0.0)
    assert chosen([0.5, 0.2, 0.15, 0.1], [0.3, 0.1, 0.3, 0.1], terminations=0.0) == (0.0, 1.0)


@pytest.mark.parametrize("convert", [lambda network: network, twin], ids=["spiking", "conventional"])
def test_an_additive_network_is_one_of_a_single_input_for_each_neuron(convert):
    network = convert(SpikingNetwork(hidden=(6,), ticks=3))
    params = network.init(3, 1, KEY)
    x = jnp.array([0.3, -1.0, 0.7])
    alone = replace(network, fan_in=1)(params, x, key=KEY).value
    np.testing.assert_allclose(network(network.additive(params, jnp.ones(())), x, key=KEY).value, alone, rtol=1e-6)
    whole = network(params, x, key=KEY).value
    np.testing.assert_array_equal(network(network.additive(params, jnp.zeros(())), x, key=KEY).value, whole)
    assert not np.allclose(whole, alone)


def test_held_out_experience_tells_a_linear_world_from_a_curved_one():
    network = twin(SpikingNetwork(hidden=(32,), readout=MembraneReadout()))
    model = replace(twin(small(Ensemble())), dynamics=network, updates=800, check_every=800, batch=32)
    model = replace(model, search=PriorSearch(curvatures=(10.0, 0.1), effort=1.0, margin=1.0))
    update = jax.jit(lambda state, replay, key: model.update(state, replay, key, 800))
    state, found = jax.jit(lambda k: model.init(PLANE, k))(KEY), {}
    for name, bend in (("linear", 0.0), ("curved", 1.0)):
        start = rows(lambda o, a: jnp.zeros(len(o)), PLANE, 300)
        change = jnp.concatenate([start.action, 0.3 * start.obs[:, :1] + bend * jnp.square(start.obs[:, 1:])], axis=1)
        change += 0.05 * jax.random.normal(KEY, change.shape)
        replay = holding(PLANE, start._replace(next_obs=start.obs + change), 300)
        after, metrics = update(state, replay, KEY)
        found[name] = float(metrics["prior/curvature"])
        held_out = float(metrics["prior/error_10" if name == "linear" else "prior/error_0.1"])
        assert float(metrics["prior/error"]) == held_out > 0
        assert float(after.confidence) == float(metrics["model_confidence"]) == pytest.approx(np.exp(-held_out))
    assert found == {"linear": 10.0, "curved": pytest.approx(0.1)}


# ---- all together


@pytest.mark.parametrize(("env", "held", "kept"), [("MountainCarContinuous-v0", 2, 0), ("Pendulum-v1", 1, 100)])
def test_a_run_begins_by_measuring_for_how_long_to_hold_an_action(env, held, kept, tmp_path):
    growing = {"seed_episodes": 1, "steps": 10, "growth": 0.25}
    settings = {"env": env, "action_repeat": None, "budget": 500, "collect": growing}
    config = configuration.merge(configuration.named("debug"), settings)
    trainer = Trainer(config, tmp_path, Notes(), alone=False)
    try:
        assert trainer.config.repeat == held and trainer.progress.real_steps == 100
        assert len(trainer.collector.pending) == trainer.progress.collected == kept
        assert configuration.load(tmp_path / "config.yaml").action_repeat == held
        trainer.play()
        trainer.remember()
        assert trainer.turn_steps() == int(0.25 * int(trainer.state.replay.count)) > 10
    finally:
        trainer.close()


def test_the_report_says_what_was_chosen_and_why():
    first = {"scale/cycle": 61.0, "scale/action_repeat": 2.0, "scale/horizon": 50.0, "prior/curvature": 1.0}
    row = {
        "scale/horizon": 40.0,
        "prior/curvature": 0.1,
        "prior/error_1": 0.25,
        "prior/error_0.1": 0.125,
        "beta": 0.5,
        "blind": 1.0,
        "dream_limit": 0.125,
        "dream_trusted": 0.75,
    }
    page = chosen_html([first, row])
    assert "about 61 of the environment" in page and "40 (gamma 0.975)" in page and "50 (" not in page
    assert "0.25 with 1, 0.125 with 0.1" in page and "no reward has told one state from another" in page
    assert "0.125" in page and "steps 75% came before" in page and "half an episode" in page
    assert "<code>--agent.gamma</code>" in page and "pessimism" not in page
    assert chosen_html([{"beta": 0.5}]) == ""


@pytest.mark.parametrize("spec, share, gradient", [
    (CONTINUOUS, {}, "model"), (DISCRETE, {}, "clipped"), (CONTINUOUS, {"imagined_share": ImaginedShare(0.5, 0.5)}, "clipped"),
])  # fmt: skip
def test_a_gradient_that_is_not_asked_for_is_the_one_that_suits_the_actions(spec, share, gradient):
    asked = Dreamer(gradient=None, **share)
    for agent, of in ((asked, lambda agent: agent), (MPC(policy=asked, when="evaluate"), lambda agent: agent.policy)):
        assert of(replace(configuration.named("debug"), agent=agent).algorithm(spec).agent).gradient == gradient
    assert replace(configuration.named("debug"), agent=Dreamer(gradient="reinforce")).algorithm(spec).agent.gradient == "reinforce"
    with pytest.raises(ValueError, match="`settled` gives the one"):
        asked.init(spec, known(None, None, spec), KEY)


def test_an_environment_without_a_preset_gets_the_automatic_configuration():
    given, automatic = configuration.named("Acrobot-v1"), configuration.named("automatic")
    assert replace(given, preset="automatic", env=automatic.env) == automatic and given.env == "Acrobot-v1"
    assert given.action_repeat is None and given.agent.gamma is None and given.world_model.search is not None


REALTIME, SPREAD, OWN = "before a clock runs", "runner Parallel counts in turns of one length", "of its own policy"


@pytest.mark.parametrize(
    ("asked", "given", "why"),
    [
        ({}, {}, []),
        ({"realtime": True}, {"action_repeat": 1}, [REALTIME]),
        ({"realtime": True, "action_repeat": 2}, {}, []),
        ({"runner": "Parallel"}, {"action_repeat": 1, "collect": {"growth": 0.0}}, [SPREAD]),
        ({"runner": "Parallel", "action_repeat": 3}, {"collect": {"growth": 0.0}}, [SPREAD]),
        ({"runner": "Parallel", "realtime": {"tick": 0.1}}, {"action_repeat": 1, "collect": {"growth": 0.0}}, [REALTIME, SPREAD]),
        (
            {"agent": {"kind": "PPO", "rollout": 300}},
            {"action_repeat": 1, "collect": {"seed_episodes": 0, "steps": 300, "growth": 0.0}, "budget": 10200,
             "improve": {"first": 1, "then": 1, "block": 1}},
            [f"PPO learns once from each 300 steps {OWN}", "PPO learns from 300 steps at a time"],
        ),
        (
            {"agent": "StreamActorCritic", "budget": 70},
            {"action_repeat": 1, "collect": {"seed_episodes": 0}, "improve": {"first": 0, "then": 0}, "bonus": None},
            ["StreamActorCritic learns from each step as it comes", "own rewards: bonus is None instead of Disagreement"],
        ),
        (
            {"agent": "StableBaselines"}, {"replay": {"priority": "uniform"}},
            ['priority "td_error" needs a value function, which StableBaselines has not'],
        ),
        ({"agent": "MPC"}, {"replay": {"priority": "uniform"}}, ["needs a value function, which MPC has not"]),
        ({"agent": {"kind": "MPC", "policy": "Dreamer"}}, {}, []),
        (
            {"agent": "PPO", "bonus": None},
            {"action_repeat": 1, "collect": {"seed_episodes": 0, "steps": 256, "growth": 0.0}, "budget": 10240,
             "improve": {"first": 1, "then": 1, "block": 1}, "replay": {"priority": "uniform"}},
            [f"PPO learns once from each 256 steps {OWN}", "PPO learns from 256 steps at a time", "nothing here draws by it"],
        ),
        ({"world_model": {"members": 1}}, {"bonus": None}, ["Disagreement needs a world model of at least 2 members"]),
        ({"world_model": {"robust": False}}, {"world_model": {"impacts": False}}, ["impacts are what robust dynamics miss"]),
        (
            {"replay": {"scale": "largest"}},
            {"agent": {"gamma": 0.99}, "world_model": {"reward_weight": 1.0, "robust": False, "impacts": False}},
            [f'{it} is measured where replay.scale is "spread"' for it in ("rewards count", "error counts", "observation moves")],
        ),
        (
            {"agent": {"critic": {"rule": {"kind": "EProp", "feedback": "random"}}}},
            {"agent": {"gradient": "clipped"}},
            ["random feedback would make noise of a gradient through the model"],
        ),
    ],
)  # fmt: skip
def test_what_the_automatic_configuration_chooses_gives_way_and_says_so(asked, given, why):
    for name in ("CartPole-v1", "automatic"):
        config, lines = configuration.resolve(name, asked)
        config.check()
        assert config == configuration.merge(configuration.merge(configuration.named(name), asked), given)
        assert len(lines) == len(why) and all(text in line for text, line in zip(why, lines, strict=True))


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("CartPole-v1", {"realtime": True, "action_repeat": None}, r"before a clock runs.*; set action_repeat to 1 \(it is None\)"),
        ("CartPole-v1", {"runner": "Parallel", "collect": {"growth": 0.05}}, r"set collect.growth to 0.0 \(it is 0.05\)"),
        ("CartPole-v1", {"agent": "PPO", "collect": {"steps": 25}}, r"set collect.steps to 256 \(it is 25\)$"),
        ("CartPole-v1", {"agent": "PPO", "budget": 300}, r"set budget to 512 \(it is 300\)"),
        ("CartPole-v1", {"agent": "StreamActorCritic", "bonus": "Disagreement"}, r"set bonus to None \(it is Disagreement\)"),
        ("ppo-cartpole", {"collect": {"growth": 0.1}}, r"set collect.growth to 0.0 \(it is 0.1\)"),
        ("pendulum", {"action_repeat": None, "realtime": True}, r"set action_repeat to 1"),
        ("pendulum", {"agent": CHOOSING | {"actor": {"persistent": True}}}, "at rest, not with .*; set agent.selection to None"),
        ("cem-pendulum", {"agent": {"policy": CHOOSING | {"kind": "Dreamer", "actor": "GRU"}}}, "agent.policy.selection to None"),
    ],
)  # fmt: skip
def test_what_somebody_asked_for_himself_does_not_give_way(name, asked, says):
    config, _ = configuration.resolve(name, asked)
    with pytest.raises(ValueError, match=says):
        config.check()


def test_who_trains_is_told_what_was_given_up(tmp_path, monkeypatch):
    begun, notes = [], Notes()
    monkeypatch.setattr(training, "_go", lambda config, *rest, **more: begun.append(config))
    spikedream.train("CartPole-v1", out=tmp_path / "run", settings={"realtime": True}, listener=notes)
    assert begun[0].action_repeat == 1 and "action_repeat is 1 instead of None" in notes.texts[0]
    command = parse_train(["CartPole-v1", "--realtime"])
    assert command.config == begun[0] and list(command.given_up) == notes.texts


RANDOM = {"rule": {"kind": "EProp", "feedback": "random"}}


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        (
            "td3",
            {"agent": {"critic": {"kind": "SpikingNetwork", **RANDOM}}},
            "^agent.actor learns by the gradient of what enters agent.critic, which random feedback would make noise;"
            r" set agent.critic.rule.feedback to symmetric \(it is random\)$",
        ),
        ("pendulum", {"agent": {"gradient": "model", "critic": RANDOM}}, "set agent.critic.rule.feedback to symmetric"),
        ("pendulum", {"agent": {"gradient": "model"}, "world_model": {"dynamics": RANDOM}}, "world_model.dynamics.rule.feedback"),
        ("cartpole", {"world_model": {"adversarial": 0.1, "dynamics": RANDOM}}, "world_model.dynamics.rule.feedback"),
        ("cartpole-hidden", {"world_model": {"ensemble": {"dynamics": RANDOM}}}, "^world_model.network learns by"),
        ("cartpole", {"bonus": {"kind": "IntrinsicCuriosity", "forward": RANDOM}}, "set bonus.forward.rule.feedback"),
    ],
    ids=["critic", "critic of a dream", "dynamics of a dream", "adversarial", "memory", "features"],
)
def test_random_feedback_is_refused_where_something_learns_by_the_gradient_of_the_inputs(name, asked, says):
    config, _ = configuration.resolve(name, asked)
    with pytest.raises(ValueError, match=says):
        config.check()


def test_random_feedback_is_kept_where_nothing_learns_through_the_network():
    for name, asked in (
        ("cartpole", {"agent": {"actor": RANDOM, "critic": RANDOM}}),
        ("online-cartpole", {"agent": {"critic": RANDOM}}),
    ):
        configuration.resolve(name, asked)[0].check()
