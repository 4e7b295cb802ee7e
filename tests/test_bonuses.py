"""Curiosity: what is new pays, what is known does not; and its weight follows the external return, computed by hand."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import program
from small import CONTINUOUS, DISCRETE, SPECS, filled, finite, holding, known, same, shapes, small

from spikedream.bonuses.disagreement import Disagreement
from spikedream.bonuses.fitting import Fitting
from spikedream.bonuses.intrinsic_curiosity import IntrinsicCuriosity
from spikedream.bonuses.random_network_distillation import RandomNetworkDistillation
from spikedream.bonuses.weight import AdaptiveWeight
from spikedream.config import twin
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.networks import SpikingNetwork
from spikedream.types import Prediction, Transition
from spikedream.world import World
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.true_environment import TrueEnvironment

KEY, OTHER = jax.random.key(0), jax.random.key(1)
BONUSES: list[Any] = [RandomNetworkDistillation, IntrinsicCuriosity, Disagreement]
LEARNED = BONUSES[:2]
METRICS = {"bonus_mean", "extrinsic_mean", "beta"}
every_bonus = pytest.mark.parametrize("kind", BONUSES)
learned_bonus = pytest.mark.parametrize("kind", LEARNED)
both_specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
both_networks = pytest.mark.parametrize("convert", [lambda part: part, twin], ids=["spiking", "conventional"])


MODEL = small(twin(Ensemble()), support_weight=0.0)  # two members; where one leads then does not matter


@functools.cache
def unfitted(spec):
    return jax.jit(lambda k: MODEL.init(spec, k))(KEY)


def experience(spec):
    return filled(spec, 20, 24, jax.random.key(7))


def init(bonus, spec, key=KEY):
    return jax.jit(lambda m, k: bonus.init(spec, known(MODEL, m, spec), k))(unfitted(spec), key)


@functools.partial(jax.jit, static_argnums=0)
def _update(bonus, state, model, replay, key):
    return bonus.update(state, World(MODEL, model, replay.normalizer), replay, key)


def update(bonus, spec, state, replay, key):
    return _update(bonus, state, unfitted(spec), replay, key)


@jax.jit
def uncertainties(model, steps):
    """(rows,) of steps (rows, ...)."""
    world = World(MODEL, model, None)
    return jax.vmap(lambda s: world.step(world.start(s.obs, KEY), s.action, KEY)[1].uncertainty)(steps)


@functools.partial(jax.jit, static_argnums=0)
def rewards(bonus, state, steps, uncertainty):
    """(rows,) of steps (rows, ...)."""
    return jax.vmap(lambda o, a, n, u: bonus.reward(state, o, a, said(n, u)))(steps.obs, steps.action, steps.next_obs, uncertainty)


def said(following, disagreement, outside=0.0):
    """A world model's prediction, as far as a bonus looks at it."""
    zero = jnp.zeros(())
    return Prediction(following, zero, zero, disagreement, jnp.asarray(outside), zero, ())


# ---- what every bonus keeps


@every_bonus
@both_specs
def test_update_keeps_the_states_shape_repeats_itself_and_is_traced_once(kind, spec):
    bonus, replay, model, traces = small(kind()), experience(spec), unfitted(spec), []
    state = init(bonus, spec)

    @jax.jit
    def fit(state, key):
        traces.append(1)
        return bonus.update(state, World(MODEL, model, replay.normalizer), replay, key)

    assert same(state, init(bonus, spec))
    assert same(state, init(bonus, spec, OTHER)) is (kind is Disagreement)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    first, metrics = fit(state, KEY)
    assert same((first, metrics), fit(state, KEY))
    assert same(first, fit(state, OTHER)[0]) is (kind is Disagreement)  # which learns nothing of its own
    assert shapes(first) == shapes(state) and finite(first) and finite(metrics) and not same(first, state)
    assert metrics.keys() == METRICS | ({"bonus_loss"} if kind in LEARNED else set())
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())
    fit(first, KEY)
    assert len(traces) == 1


@every_bonus
@pytest.mark.parametrize("spec, convert", [(DISCRETE, twin), (CONTINUOUS, lambda part: part)], ids=["discrete", "continuous"])
def test_reward_is_a_bounded_scalar_with_finite_gradients(kind, spec, convert):
    bonus = convert(small(kind(), weight=AdaptiveWeight(cap=1e6)))  # at the cap there would be no gradient
    state, _ = update(bonus, spec, init(bonus, spec), experience(spec), KEY)
    obs, action = jnp.linspace(-1, 1, spec.obs_size), jnp.full(spec.action_size, 0.5)
    inputs = obs, action, obs + 0.3, jnp.asarray(0.2)
    reward = jax.value_and_grad(lambda o, a, n, u: bonus.reward(state, o, a, said(n, u)), argnums=(0, 1, 2, 3))
    value, gradient = jax.jit(reward)(*inputs)
    assert value.shape == () and value.dtype == jnp.float32 and 0 < float(value) <= bonus.reward_floor
    assert finite(gradient)
    used = {RandomNetworkDistillation: [2], IntrinsicCuriosity: [0, 1, 2], Disagreement: [3]}[kind]
    assert [i for i in range(4) if bool((gradient[i] != 0).any())] == used


@every_bonus
def test_reported_means_are_those_of_the_stored_transitions(kind):
    bonus, replay = small(kind()), experience(DISCRETE)
    state, metrics = update(bonus, DISCRETE, init(bonus, DISCRETE), replay, KEY)
    steps = replay.gather(jnp.arange(20))
    uncertainty = uncertainties(unfitted(DISCRETE), steps)
    np.testing.assert_allclose(metrics["bonus_mean"], rewards(bonus, state, steps, uncertainty).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["extrinsic_mean"], steps.reward.mean(), rtol=1e-5)
    assert float(metrics["bonus_mean"]) > 0


@learned_bonus
def test_every_number_changes_what_is_learned(kind):
    bonus, replay = small(twin(kind())), experience(DISCRETE)

    def learned(part, compiled=False):
        """What the reward of a step depends on after a fit; or if `compiled`, its value."""

        def run(key, replay):
            state, _ = update(part, DISCRETE, init(part, DISCRETE, key), replay, key)
            steps = replay.gather(jnp.arange(24))
            return rewards(part, state, steps, jnp.ones(24))

        return np.asarray(run(KEY, replay)) if compiled else program(run, KEY, replay)

    def others(part):
        """(name, `part` with another number there)"""
        for name, value in ((f.name, getattr(part, f.name)) for f in dataclasses.fields(part)):
            if isinstance(value, int | float):
                other = value + 1 if isinstance(value, int) else 1e-3 if name == "gradient_clip" else value / 2
                yield name, dataclasses.replace(part, **{name: other})

    reference = learned(bonus)
    fittings = ((name, dataclasses.replace(bonus, fitting=fitting)) for name, fitting in others(bonus.fitting))
    for name, other in (*others(bonus), *fittings):
        assert learned(other) != reference, name
    changed = dataclasses.replace(bonus, fitting=dict(others(bonus.fitting))["learning_rate"])
    assert not np.array_equal(learned(changed, compiled=True), learned(bonus, compiled=True))


@learned_bonus
def test_encoders_that_draw_their_spikes_give_the_same_bonus_each_time(kind):
    network = SpikingNetwork(encoder=GaussianPopulation(mode="poisson"))
    fields = {f.name: network for f in dataclasses.fields(kind) if isinstance(getattr(kind(), f.name), SpikingNetwork)}
    bonus = small(kind(**fields))
    state, _ = update(bonus, CONTINUOUS, init(bonus, CONTINUOUS), experience(CONTINUOUS), KEY)
    steps = jax.tree.map(lambda x: jnp.stack([x, x]), experience(CONTINUOUS).gather(jnp.asarray(3)))
    one, two = rewards(bonus, state, steps, jnp.zeros(2))
    assert float(one) == float(two) > 0


@pytest.mark.parametrize(
    "kind, field, value, message",
    [
        *((kind, "features", 0, "features is 0; it must be at least 1") for kind in LEARNED),
        *((Fitting, name, 0, f"{name} is 0; it must be at least 1") for name in ("batch", "updates")),
        (Fitting, "learning_rate", -1e-3, "learning_rate is -0.001"),
        (Fitting, "gradient_clip", 0.0, "gradient_clip is 0.0"),
        (IntrinsicCuriosity, "forward_share", 1.5, "forward_share is 1.5; it must be from 0 to 1"),
        (AdaptiveWeight, "low", 0.0, "low is 0.0"),
        (AdaptiveWeight, "high", 0.001, "high is 0.001; it must be at least 0.005"),
        (AdaptiveWeight, "start", 0.2, "start is 0.2; it must be from 0.005 to 0.1"),
        (AdaptiveWeight, "rate", -1.0, "rate is -1"),
        (AdaptiveWeight, "fast", 1.5, "fast is 1.5"),
        (AdaptiveWeight, "slow", -0.1, "slow is -0.1"),
        (AdaptiveWeight, "slow", 0.5, r"slow is 0.5; it must be less than fast \(0.5\)"),
        (AdaptiveWeight, "cap", 0.0, "cap is 0.0"),
        (AdaptiveWeight, "scale_rate", 2.0, "scale_rate is 2.0"),
    ],
)
def test_impossible_fields_are_refused(kind, field, value, message):
    with pytest.raises(ValueError, match=message):
        kind(**{field: value})


# ---- what each finds new


def drive(rows=256):
    """A thing pushed by the action, next to a number that nothing influences; the actions only ever push gently."""
    keys = jax.random.split(jax.random.key(3), 4)
    obs, noise = jax.random.normal(keys[0], (rows, 3)), jax.random.normal(keys[1], (rows,))
    action = jax.random.uniform(keys[2], (rows, 1), minval=-1, maxval=1)
    following = jnp.stack([obs[:, 0] + 0.5 * action[:, 0], 0.9 * obs[:, 1], noise], axis=1)
    zero = jnp.zeros(rows)
    return holding(CONTINUOUS, Transition(obs, action, zero, following, zero, zero, zero), rows)


@functools.cache
def taught(kind, convert):
    """The bonus, its state after two phases on `drive`, and the metrics of both."""
    bonus = convert(kind())
    state = init(bonus, CONTINUOUS)
    state, first = update(bonus, CONTINUOUS, state, drive(), KEY)
    state, second = update(bonus, CONTINUOUS, state, drive(), OTHER)
    return bonus, state, first, second


def paid(kind, convert, shift):
    """Mean unweighted reward of the transitions of `drive` if the next observation had been elsewhere by `shift`."""
    bonus, state, _, _ = taught(kind, convert)
    steps = drive().gather(jnp.arange(256))
    steps = steps._replace(next_obs=steps.next_obs + jnp.asarray(shift)[None])
    return float(rewards(bonus, state, steps, jnp.zeros(256)).mean() / state.weight.beta)


@learned_bonus
@both_networks
def test_fitting_warm_starts_and_the_bonus_of_what_is_known_fades(kind, convert):
    _, _, first, second = taught(kind, convert)
    assert float(second["bonus_loss"]) < 0.5 * float(first["bonus_loss"])
    assert float(second["bonus_mean"]) < 0.8 * float(first["bonus_mean"])


@both_networks
def test_random_network_distillation_pays_for_states_off_the_data(convert):
    known, near, far = (paid(RandomNetworkDistillation, convert, [x, x, x]) for x in (0.0, 2.0, 8.0))
    assert 3 * known < near < far <= 5


@both_networks
def test_intrinsic_curiosity_pays_for_dynamics_it_has_not_seen_but_not_for_noise(convert):
    known, pushed, noise = (paid(IntrinsicCuriosity, convert, x) for x in ([0.0, 0, 0], [2.0, 0, 0], [0.0, 0, 2.0]))
    assert known < 1 and pushed > 4 * known
    # The error of predicting the observation itself would be the same for both, in units of their deviations.
    assert noise < 0.4 * pushed


def test_random_target_never_changes():
    bonus = small(RandomNetworkDistillation())
    state = init(bonus, DISCRETE)
    after, _ = update(bonus, DISCRETE, state, experience(DISCRETE), KEY)
    assert same(state.target, after.target) and not same(state.predictor, after.predictor)


@both_specs
def test_intrinsic_curiosity_tells_actions_by_cross_entropy_or_squared_error(spec):
    bonus = small(twin(IntrinsicCuriosity()), forward_share=0.0, fitting=Fitting(learning_rate=0.0, updates=1))
    state, replay = init(bonus, spec), filled(spec, 1, 2, KEY)
    step, networks = replay.gather(jnp.asarray(0)), state.networks
    before, after = (bonus.encoder(networks.encoder, x).value for x in (step.obs, step.next_obs))
    told, action = (np.asarray(x) for x in (bonus.inverse(networks.inverse, jnp.concatenate([before, after])).value, step.action))
    by_hand = np.log(np.exp(told).sum()) - told @ action if spec.discrete else np.square(told - action).mean()
    _, metrics = update(bonus, spec, state, replay, KEY)
    assert float(metrics["bonus_loss"]) == pytest.approx(float(by_hand), rel=1e-4)


def test_disagreement_passes_through_scaled_weighted_and_capped():
    bonus = Disagreement(AdaptiveWeight(cap=3.0))
    state, _ = update(bonus, DISCRETE, init(bonus, DISCRETE), experience(DISCRETE), KEY)
    steps = experience(DISCRETE).gather(jnp.arange(20))
    seen = uncertainties(unfitted(DISCRETE), steps)
    scale = float(np.sqrt(np.square(np.asarray(seen)).mean()))
    np.testing.assert_allclose(state.weight.scale, scale, rtol=1e-5)
    uncertainty = scale * jnp.array([0.0, 0.5, 2.9, 3.0, 100.0])
    steps = jax.tree.map(lambda x: x[:5], steps)
    np.testing.assert_allclose(
        rewards(bonus, state, steps, uncertainty) * experience(DISCRETE).normalizer.reward_scale,  # in the environment's units
        0.05 * np.array([0, 0.5, 2.9, 3, 3]),
        rtol=1e-5,
        atol=1e-9,
    )


def test_disagreement_needs_somebody_to_disagree():
    model, bonus = TrueEnvironment("CartPole"), Disagreement()
    alone = known(model, model.init(DISCRETE, KEY), DISCRETE)
    with pytest.raises(ValueError, match="at least 2 members; TrueEnvironment has 1"):
        bonus.init(DISCRETE, alone, KEY)


# ---- scale and cap


def test_scale_is_a_running_root_mean_square_of_what_is_stored():
    weight, replay = AdaptiveWeight(scale_rate=0.25), filled(DISCRETE, 2, 4, KEY)
    state = weight.init()
    assert float(weight.reward(state, jnp.asarray(2.0))) == pytest.approx(0.1)  # unmeasured: as it is
    counts, steps = jnp.array([1.0, 1.0, 0.0, 0.0]), replay.gather(jnp.arange(4))
    state, metrics = weight.update(state, jnp.array([3.0, 4.0, 99.0, jnp.pi]), steps, counts, replay)
    assert float(state.scale) == pytest.approx(math.sqrt(12.5))
    paid = float(metrics["bonus_mean"] * replay.normalizer.reward_scale)
    assert paid == pytest.approx(0.05 * 3.5 / math.sqrt(12.5))
    state, _ = weight.update(state, jnp.array([1.0, 1.0, 0.0, 0.0]), steps, counts, replay)
    assert float(state.scale) == pytest.approx(0.75 * math.sqrt(12.5) + 0.25)


def test_no_reward_is_larger_than_the_floor_of_rewards():
    weight = AdaptiveWeight(start=0.1, cap=4.0)
    assert weight.reward_floor == pytest.approx(0.4) and Disagreement(weight).reward_floor == weight.reward_floor
    assert AdaptiveWeight().reward_floor == pytest.approx(0.5)
    paid = weight.reward(weight.init(), jnp.array([3.9, 4.0, 4.1, 1e30]))
    np.testing.assert_allclose(paid, [0.39, 0.4, 0.4, 0.4], rtol=1e-6)


# ---- weight


def played(episodes, capacity=12, going=(), truncated=False):
    """A replay into which whole episodes of the given rewards were written, then the steps of an unfinished one."""
    replay, zero = ReplayBuffer(capacity).init(DISCRETE), jnp.zeros(4)
    rows = [(r, i == len(e) - 1) for e in episodes for i, r in enumerate(e)] + [(r, False) for r in going]
    for reward, ended in rows:
        end = [float(ended and not truncated), float(ended and truncated)]
        scalars = [jnp.asarray(x, jnp.float32) for x in (reward, *end)]
        step = Transition(zero, jnp.array([1.0, 0]), scalars[0], zero, scalars[1], scalars[2], zero[0])
        replay = _add(replay, jax.tree.map(lambda x: x[None, None], step))
    return replay.normalise()


_add = jax.jit(lambda replay, step: replay.add(step, jnp.asarray(1)))


def test_disagreement_counts_the_distance_from_everything_seen_unless_told_not_to():
    both, alone = Disagreement(), Disagreement(outside=False)
    state, zero = init(both, DISCRETE), jnp.zeros(4)
    paid = [float(bonus.reward(state, zero, zero[:2], said(zero, 0.5, outside=1.0))) for bonus in (both, alone)]
    assert paid == pytest.approx([0.05 * 1.5, 0.05 * 0.5])


measure = jax.jit(
    lambda weight, state, replay: weight.update(state, jnp.ones(12), replay.gather(jnp.arange(12)), jnp.ones(12), replay),
    static_argnums=0,
)


def follow(weight, history, state=None):
    """The betas after each of the replays."""
    state, betas = weight.init() if state is None else state, []
    for replay in history:
        state, metrics = measure(weight, state, replay)
        assert float(metrics["beta"]) == float(state.beta)
        betas.append(float(state.beta))
    return betas, state


def test_beta_follows_the_trend_as_computed_by_hand():
    weight = AdaptiveWeight(start=0.05, rate=0.5, fast=0.5, slow=0.1)
    history = [played([[1, 1]]), played([[5, 1]]), played([[2]]), played([], going=[7]), played([[0, 0]])]
    betas, state = follow(weight, history)
    # returns 2, 6, 2, none, 0; recent 2, 4, 3, 3, 1.5; usual 2, 2.4, 2.36, 2.36, 2.124; width 0, 4, 4, 4, 6
    trends = np.array([0, 1.6 / 4, 0.64 / 4, 0, -0.624 / 6])
    np.testing.assert_allclose(betas, 0.05 * np.exp(-0.5 * np.cumsum(trends)), rtol=1e-5)
    held = (state.recent, state.usual, state.lowest, state.highest, state.known)
    np.testing.assert_allclose([float(x) for x in held], [1.5, 2.124, 0, 6, 1], rtol=1e-5)


@pytest.mark.parametrize("unit, offset", [(1.0, 0.0), (100.0, 0.0), (0.01, -5.0)])
def test_beta_falls_while_returns_rise_and_rises_while_they_fall_whatever_their_unit(unit, offset):
    weight = AdaptiveWeight(low=1e-4)
    returns = [*range(0, 30, 2), *range(30, 0, -2)]
    betas, _ = follow(weight, [played([[unit * r + offset]]) for r in returns])
    assert np.all(np.diff(betas[:16]) < 0) and np.all(np.diff(betas[21:]) > 0)  # `recent` lags a little behind the turn
    plain, _ = follow(weight, [played([[r]]) for r in returns])
    np.testing.assert_allclose(betas, plain, rtol=1e-3)


def test_beta_stays_where_returns_do_and_within_its_bounds():
    weight = AdaptiveWeight(rate=5.0)
    never, _ = follow(weight, [played([[0, 0]])] * 10)
    assert never == pytest.approx([0.05] * 10)
    best, state = follow(weight, [played([[float(r)]]) for r in range(30)])
    assert min(best) == best[-1] == pytest.approx(0.005)
    plateau, state = follow(weight, [played([[29.0]])] * 200, state)
    assert plateau[-1] == pytest.approx(0.005)
    worst, _ = follow(weight, [played([[float(-r)]]) for r in range(60)], state)
    assert max(worst) == worst[-1] == pytest.approx(0.1)
    fixed, _ = follow(AdaptiveWeight(start=0.03, low=0.03, high=0.03), [played([[float(r)]]) for r in range(5)])
    assert fixed == pytest.approx([0.03] * 5)


@pytest.mark.parametrize("field, value", [("start", 0.04), ("low", 0.049), ("rate", 0.2), ("fast", 0.9), ("slow", 0.3)])
def test_every_number_of_the_weight_counts(field, value):
    history = [played([[1, 1]]), played([[1, 1], [5, 1]]), played([[7]])]
    assert follow(AdaptiveWeight(**{field: value}), history)[0] != follow(AdaptiveWeight(), history)[0]
