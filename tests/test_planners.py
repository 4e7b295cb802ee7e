"""Planners on score functions whose best sequence is known, and their arithmetic by hand."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from programs import program
from small import same

from spikedream.planners.cem import CEM, CEMMemory, CEMSearch, coloured_noise
from spikedream.planners.mppi import MPPI, smooth_noise, softmax_weights
from spikedream.planners.plan import draw, mode, shift_mean, start_mean
from spikedream.planners.random_shooting import RandomShooting
from spikedream.spec import Spec

KEY = jax.random.key(0)
HORIZON = 4
DISCRETE = Spec(4, 3, discrete=True)
CONTINUOUS = Spec(3, 2, discrete=False, action_low=(-2.0, -2.0), action_high=(2.0, 2.0))
SPECS = [pytest.param(DISCRETE, id="discrete"), pytest.param(CONTINUOUS, id="continuous")]
PLANNERS: list[Any] = [RandomShooting(candidates=24), CEM(24, 3, 6, min_spread=0.2), MPPI(24, 3)]
EVERY = pytest.mark.parametrize("planner", PLANNERS, ids=lambda p: type(p).__name__)

TARGET = jnp.array([[0.5, -0.9], [-0.3, 0.2], [1.0, 0.0], [0.1, 0.7]])  # (horizon, action_size), for continuous actions
CHOICES = jnp.eye(3)[jnp.array([2, 0, 1, 2])]  # the same for discrete ones


def target(spec):
    return CHOICES if spec.discrete else TARGET


def near(wanted, actions, key):
    """Minus the squared distance from the wanted sequence: for discrete actions, minus twice the number of wrong choices."""
    return -jnp.square(actions - wanted[None]).sum((1, 2))


def none(spec):
    return jnp.zeros((0, HORIZON, spec.action_size))


def compiled(planner):
    """Its `plan`, of one program."""
    return jax.jit(planner.plan, static_argnums=(0, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _plan(planner, spec, wanted, memory, proposals, key):
    return planner.plan(spec, memory, functools.partial(near, wanted), proposals, key)


def planned(planner, spec, key=KEY, memory=None, proposals=None, wanted=None):
    memory = planner.start(spec, HORIZON) if memory is None else memory
    wanted = target(spec) if wanted is None else wanted
    return _plan(planner, spec, wanted, memory, none(spec) if proposals is None else proposals, key)


def valid(spec, actions):
    if spec.discrete:
        return set(np.unique(actions)) <= {0.0, 1.0} and bool((actions.sum(-1) == 1).all())
    return bool((jnp.abs(actions) <= 1).all())


# ---- what every planner keeps


@EVERY
@pytest.mark.parametrize("spec", SPECS)
def test_plan_has_its_shapes_and_stays_within_the_actions(planner, spec):
    plan = planned(planner, spec)
    shape = (HORIZON, spec.action_size)
    assert plan.actions.shape == plan.sample.shape == shape and plan.score.shape == ()
    assert valid(spec, plan.actions) and valid(spec, plan.sample)
    start = planner.start(spec, HORIZON)
    assert jax.tree.map(jnp.shape, plan.memory) == jax.tree.map(jnp.shape, start)
    assert jax.tree.map(jnp.result_type, plan.memory) == jax.tree.map(jnp.result_type, start)


@EVERY
@pytest.mark.parametrize("spec", SPECS)
def test_exactly_the_candidates_are_scored_and_all_are_actions(planner, spec):
    proposals = jnp.stack([target(spec), target(spec)[::-1]])
    seen = []

    def score(actions, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), actions)
        return near(target(spec), actions, key)

    compiled(planner)(spec, planner.start(spec, HORIZON), score, proposals, KEY)
    jax.effects_barrier()
    assert len(seen) == getattr(planner, "iterations", 1)
    for actions in seen:
        assert actions.shape == (24, HORIZON, spec.action_size) and valid(spec, actions)
        np.testing.assert_array_equal(actions[-2:], proposals)
    assert len(np.unique(seen[0], axis=0)) > 10


@EVERY
@pytest.mark.parametrize("spec", SPECS)
def test_same_key_same_plan_and_another_key_another(planner, spec):
    assert same(planned(planner, spec), planned(planner, spec))
    assert not same(planned(planner, spec).sample, planned(planner, spec, key=jax.random.key(1)).sample)


@EVERY
@pytest.mark.parametrize("spec", SPECS)
def test_a_batch_of_problems_is_planned_like_each_alone(planner, spec):
    keys = jax.random.split(KEY, 3)
    wanted = jnp.stack([target(spec), target(spec)[::-1], jnp.roll(target(spec), 1, axis=0)])
    memories = [planned(planner, spec, key).memory for key in keys]
    memory = jax.tree.map(lambda *leaves: jnp.stack(leaves), *memories)
    batch = jax.vmap(lambda w, m, k: _plan(planner, spec, w, m, none(spec), k))(wanted, memory, keys)
    for i in range(3):
        alone = planned(planner, spec, keys[i], memories[i], wanted=wanted[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), batch, alone)


@EVERY
def test_a_second_call_is_not_traced_again(planner):
    traces = []

    @jax.jit
    def plan(memory, key):
        traces.append(1)
        return planner.plan(CONTINUOUS, memory, functools.partial(near, TARGET), none(CONTINUOUS), key)

    memory = plan(planner.start(CONTINUOUS, HORIZON), KEY).memory
    plan(memory, jax.random.key(1))
    assert len(traces) == 1


@EVERY
@pytest.mark.parametrize("spec", SPECS)
def test_the_score_draws_from_a_fresh_key_each_time(planner, spec):
    seen = []

    def score(actions, key):
        jax.debug.callback(lambda k: seen.append(tuple(np.asarray(k))), jax.random.key_data(key))
        return near(target(spec), actions, key)

    plan = compiled(planner)
    for key in jax.random.split(KEY, 2):
        plan(spec, planner.start(spec, HORIZON), score, none(spec), key)
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 2 * getattr(planner, "iterations", 1)


@EVERY
def test_a_score_that_is_no_number_shows(planner):
    def score(actions, key):
        return near(TARGET, actions, key).at[3].set(jnp.nan)

    assert np.isnan(compiled(planner)(CONTINUOUS, planner.start(CONTINUOUS, HORIZON), score, none(CONTINUOUS), KEY).score)


def numbers():
    """Every numeric field with continuous actions; with discrete ones too where it does something else there."""
    found = [(p, f.name) for p in PLANNERS for f in dataclasses.fields(p) if isinstance(getattr(p, f.name), int | float)]
    twofold = {"spread", "min_spread", "momentum", "noise_beta", "smoothing"}
    return [(p, name, spec) for p, name in found for spec in (CONTINUOUS, DISCRETE) if spec is CONTINUOUS or name in twofold]


def identifier(x):
    return x if isinstance(x, str) else "discrete" if x == DISCRETE else "continuous" if x == CONTINUOUS else type(x).__name__


def with_changed(planner: Any, name: str) -> Any:
    value = getattr(planner, name)
    return dataclasses.replace(planner, **{name: value * 2 if isinstance(value, int) else value * 0.5})


@pytest.mark.parametrize(("planner", "name", "spec"), numbers(), ids=identifier)
def test_every_number_changes_the_plan(planner, name, spec):
    assert second_plan(planner, spec) != second_plan(with_changed(planner, name), spec)


@functools.cache
def second_plan(planner, spec):
    """What is computed to execute the second plan of two in a row."""

    def run(key, wanted):
        first = planned(planner, spec, key, wanted=wanted)
        return planned(planner, spec, jax.random.fold_in(key, 1), first.memory, wanted=wanted).actions

    return program(run, KEY, target(spec))


@pytest.mark.parametrize(
    ("planner", "name"), list(zip(PLANNERS, ("repeat", "min_spread", "temperature"), strict=True)), ids=identifier
)
def test_another_plan_is_other_numbers(planner, name):
    """The test above compares what would be computed; here it is."""
    first, second = planned(planner, CONTINUOUS), planned(with_changed(planner, name), CONTINUOUS)
    assert not np.array_equal(first.actions, second.actions)


@EVERY
def test_a_horizon_of_one_step_is_planned(planner):
    plan = planned(planner, DISCRETE, memory=planner.start(DISCRETE, 1), proposals=jnp.zeros((0, 1, 3)), wanted=CHOICES[:1])
    np.testing.assert_array_equal(plan.actions, CHOICES[:1])


# ---- proposals


@EVERY
@pytest.mark.parametrize("spec", SPECS)
def test_the_best_proposal_wins(planner, spec):
    planner = dataclasses.replace(planner, temperature=1e-3) if isinstance(planner, MPPI) else planner
    others = jnp.zeros((1, HORIZON, spec.action_size)).at[..., 0].set(1)
    plan = planned(planner, spec, proposals=jnp.concatenate([others, target(spec)[None], others]))
    np.testing.assert_allclose(plan.actions, target(spec), atol=1e-5)
    assert float(plan.score) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("planner", [*PLANNERS, CEM(24, 3, 6, keep_elites=1)], ids=["rs", "cem", "mppi", "cem-keeps-all"])
def test_proposals_leave_a_place(planner):
    places = 24 - getattr(planner, "kept", 0)
    proposals = jnp.zeros((places - 1, HORIZON, 2))
    assert planned(planner, CONTINUOUS, proposals=proposals).actions.shape == (HORIZON, 2)
    with pytest.raises(ValueError, match=f"proposes {places} sequences; there must be fewer than {places}"):
        planned(planner, CONTINUOUS, proposals=jnp.zeros((places, HORIZON, 2)))


# ---- finding what is best


@pytest.mark.parametrize(
    "planner", [CEM(200, 12, 20, min_spread=0.01), MPPI(200, 12, 0.3, spread=0.2, smoothing=0)], ids=["cem", "mppi"]
)
@pytest.mark.parametrize("spec", SPECS)
def test_the_optimum_is_found(planner, spec):
    plan = planned(planner, spec)
    np.testing.assert_allclose(plan.actions, target(spec), atol=0.12)
    assert float(plan.score) > (-1e-6 if spec.discrete else -0.05)


def test_cem_executes_the_best_or_the_mean():
    best, mean = CEM(24, 3, 6), CEM(24, 3, 6, execute="mean")
    for spec in (DISCRETE, CONTINUOUS):
        one, other = planned(best, spec), planned(mean, spec)
        assert float(near(target(spec), one.actions[None], KEY)[0]) == pytest.approx(float(one.score), rel=1e-5)
        assert same(one.memory, other.memory) and float(one.score) == float(other.score)
        likeliest = mode(spec, other.memory.mean)[:-1]  # shifted: the executed plan's second step is its first
        np.testing.assert_allclose(other.actions[1:], likeliest, atol=1e-6)


def test_random_shooting_executes_the_best_of_all_sequences():
    # 3 choices over 2 steps: 200 draws hold all nine sequences.
    wanted = jnp.eye(3)[jnp.array([1, 2])]
    plan = planned(RandomShooting(200), DISCRETE, memory=(), proposals=jnp.zeros((0, 2, 3)), wanted=wanted)
    np.testing.assert_array_equal(plan.actions, wanted)
    assert float(plan.score) == 0 and same(plan.sample, plan.actions)


@pytest.mark.parametrize("spec", SPECS)
def test_random_shooting_holds_actions(spec):
    seen = []

    def score(actions, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), actions)
        return actions[:, 0, 0]

    compiled(RandomShooting(50, repeat=3))(spec, (), score, jnp.zeros((0, 8, spec.action_size)), KEY)
    jax.effects_barrier()
    (actions,) = seen
    for begin in (0, 3, 6):
        block = actions[:, begin : begin + 3]
        np.testing.assert_array_equal(block, np.broadcast_to(block[:, :1], block.shape))
    assert (actions[:, 2] != actions[:, 3]).any() and (actions[:, 5] != actions[:, 6]).any()


def test_search_that_learns_beats_one_shot_where_good_sequences_are_rare():
    # 3^10 sequences, one of them right, 400 scored by each planner; the deceptive part pays for category 0 at every step, less than
    # the right one does.
    right = jnp.eye(3)[jnp.array([1, 2, 2, 1, 1, 2, 1, 2, 1, 2])]

    def score(actions, key):
        return (actions * right[None]).sum((1, 2)) + 0.3 * actions[:, :, 0].sum(1)

    def mean_score(planner):
        plan = jax.jit(jax.vmap(lambda k: planner.plan(DISCRETE, planner.start(DISCRETE, 10), score, jnp.zeros((0, 10, 3)), k)))
        plans = plan(jax.random.split(KEY, 8))
        return float(jax.vmap(lambda a: score(a[None], KEY)[0])(plans.actions).mean())

    shooting, cem, mppi = mean_score(RandomShooting(400)), mean_score(CEM(100, 4, 10)), mean_score(MPPI(100, 4))
    assert cem > shooting + 0.5 and cem > 9
    assert mppi > shooting + 0.5 and mppi > 9


# ---- from one step to the next


@pytest.mark.parametrize("planner", [CEM(60, 3, 6), MPPI(60, 3)], ids=["cem", "mppi"])
@pytest.mark.parametrize("spec", SPECS)
def test_memory_is_the_plan_one_step_later(planner, spec):
    planner = dataclasses.replace(planner, execute="mean") if isinstance(planner, CEM) else planner
    plan = planned(planner, spec)
    mean = plan.memory.mean if isinstance(planner, CEM) else plan.memory
    np.testing.assert_allclose(mode(spec, mean)[:-1], plan.actions[1:], atol=1e-6)
    np.testing.assert_allclose(mean[-1], [1 / 3] * 3 if spec.discrete else [0, 0], rtol=1e-6)


def test_shift_by_hand():
    mean = jnp.array([[0.1, 0.9], [0.4, 0.6], [0.7, 0.3]])
    two = Spec(1, 2, discrete=True)
    np.testing.assert_allclose(shift_mean(two, mean), [[0.4, 0.6], [0.7, 0.3], [0.5, 0.5]])
    np.testing.assert_allclose(shift_mean(CONTINUOUS, mean), [[0.4, 0.6], [0.7, 0.3], [0, 0]])


@pytest.mark.parametrize("planner", [CEM(20, 1, 5), MPPI(20, 1)], ids=["cem", "mppi"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_warm_start_helps(planner, spec):
    # The task moves on by one step between plans, as it does while acting.
    first, later = target(spec), jnp.roll(target(spec), -1, axis=0)
    thorough, cold, warm, unmoved = dataclasses.replace(planner, iterations=8), [], [], []
    for key in jax.random.split(KEY, 20):
        next_key = jax.random.fold_in(key, 1)
        memory = planned(thorough, spec, key, wanted=first).memory
        warm.append(planned(planner, spec, next_key, memory, wanted=later).score)
        cold.append(planned(planner, spec, next_key, wanted=later).score)
        unmoved.append(planned(planner, spec, next_key, memory, wanted=first).score)
    assert np.mean(warm) > np.mean(cold) + 0.1
    assert np.mean(warm) > np.mean(unmoved) + 0.1  # the memory is of the step to come, not of the one that was planned


# ---- CEM by hand


def refit(spec, planner, candidates, scores, mean, spread, score=-jnp.inf):
    like = jnp.zeros((planner.kept, *mean.shape))
    search = CEMSearch(mean, spread, like, jnp.zeros((), bool), jnp.zeros_like(mean), jnp.asarray(score))
    return jax.jit(planner._refit, static_argnums=0)(spec, search, candidates, scores)


def test_cem_refits_continuous_by_hand():
    planner = CEM(candidates=4, elites=2, momentum=0.25, spread=0.5, min_spread=0.2, keep_elites=0.5)
    one = Spec(1, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))
    candidates = jnp.array([[[-1.0], [0.1]], [[0.2], [0.1]], [[0.6], [0.3]], [[1.0], [1.0]]])
    scores = jnp.array([0.0, 2.0, 5.0, -1.0])  # the elites are numbers 2 and 1, in this order
    found = refit(one, planner, candidates, scores, jnp.array([[0.8], [0.0]]), jnp.full((2, 1), 0.4))
    # mean 0.25 x 0.8 + 0.75 x 0.4 and 0.75 x 0.2; deviations 0.2 and 0.1: 0.25 x 0.4 + 0.75 x 0.2 = 0.25, and 0.175 below the floor
    np.testing.assert_allclose(found.mean, [[0.5], [0.15]], rtol=1e-6)
    np.testing.assert_allclose(found.spread, [[0.25], [0.2]], rtol=1e-6)
    np.testing.assert_array_equal(found.elites, candidates[2:3])
    np.testing.assert_array_equal(found.best, candidates[2])
    assert float(found.score) == 5 and bool(found.warm)
    # A better one from an earlier iteration stays the best.
    earlier = refit(one, planner, candidates, scores, jnp.zeros((2, 1)), jnp.full((2, 1), 0.4), score=7.0)
    assert float(earlier.score) == 7 and not earlier.best.any()


def test_cem_refits_discrete_by_hand():
    planner = CEM(candidates=4, elites=2, momentum=0.25, spread=0.5, min_spread=0.1, keep_elites=0)
    candidates = jnp.eye(3)[jnp.array([[0, 0], [1, 1], [1, 2], [0, 0]])]
    mean = jnp.array([[0.2, 0.4, 0.4], [1.0, 0.0, 0.0]])
    found = refit(DISCRETE, planner, candidates, jnp.array([0.0, 5.0, 2.0, -1.0]), mean, jnp.full((2, 3), 0.8))
    np.testing.assert_allclose(found.mean, [[0.05, 0.85, 0.1], [0.25, 0.375, 0.375]], rtol=1e-6)
    np.testing.assert_allclose(found.spread, np.full((2, 3), 0.25 * 0.8), rtol=1e-6)
    later = refit(DISCRETE, planner, candidates, jnp.array([0.0, 5.0, 2.0, -1.0]), mean, jnp.full((2, 3), 0.2))
    np.testing.assert_allclose(later.spread, np.full((2, 3), 0.1), rtol=1e-6)
    assert found.elites.shape == (0, 2, 3)


def test_kept_elites_are_scored_again_and_in_the_next_plan_one_step_on():
    planner = CEM(candidates=10, iterations=2, elites=4, keep_elites=0.5)
    assert planner.kept == 2
    seen = []

    def score(actions, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), actions)
        return near(TARGET, actions, key)

    plan = compiled(planner)
    first = plan(CONTINUOUS, planner.start(CONTINUOUS, HORIZON), score, none(CONTINUOUS), KEY)
    plan(CONTINUOUS, first.memory, score, none(CONTINUOUS), jax.random.key(1))
    jax.effects_barrier()
    assert first.memory.warm and seen[0][:2].any()  # without a memory all are drawn

    def two_best(actions):
        return actions[np.argsort(-np.asarray(near(TARGET, jnp.asarray(actions), KEY)), kind="stable")[:2]]

    np.testing.assert_array_equal(seen[1][:2], two_best(seen[0]))
    best = two_best(seen[1])
    np.testing.assert_array_equal(seen[2][:2], np.concatenate([best[:, 1:], best[:, -1:]], axis=1))


@pytest.mark.parametrize(("share", "elites", "kept"), [(0, 5, 0), (0.01, 5, 1), (0.3, 12, 4), (0.28, 25, 7), (1, 5, 5)])
def test_the_share_of_kept_elites_is_rounded_up(share, elites, kept):
    assert CEM(elites=elites, keep_elites=share).kept == kept


def test_no_category_dies_out():
    # Never the best, category 2 is drawn all the same in later plans: in a share of min_spread / 3 of the draws.
    certain = CEMMemory(jnp.tile(jnp.array([[1.0, 0.0, 0.0]]), (2, 1)), jnp.zeros((0, 2, 3)), jnp.zeros((), bool))
    actions = draw(DISCRETE, certain.mean, jnp.full((2, 3), 0.15), jax.random.normal(KEY, (20_000, 2, 3)))
    np.testing.assert_allclose(actions.mean((0, 1)), [0.9, 0.05, 0.05], atol=0.01)


# ---- MPPI by hand


def test_mppi_weights_by_hand():
    scores = jnp.array([1.0, 3.0, 5.0])  # deviation sqrt(8/3)
    weights = np.exp(np.array([-4, -2, 0]) / (0.5 * np.sqrt(8 / 3)))
    np.testing.assert_allclose(softmax_weights(scores, 0.5), weights / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(softmax_weights(1e3 * scores - 7, 0.5), weights / weights.sum(), rtol=1e-4)  # of any scale
    np.testing.assert_allclose(softmax_weights(jnp.full(4, 3.0), 0.5), np.full(4, 0.25))


@pytest.mark.parametrize("spec", SPECS)
def test_mppi_moves_to_the_weighted_mean_of_what_it_scored(spec):
    seen = []

    def score(actions, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), actions)
        return near(target(spec), actions, key)

    plan = compiled(MPPI(candidates=3, iterations=1, temperature=0.7))(spec, start_mean(spec, HORIZON), score, none(spec), KEY)
    jax.effects_barrier()
    scores = np.asarray(near(target(spec), jnp.asarray(seen[0]), KEY))
    weights = np.exp((scores - scores.max()) / (0.7 * scores.std()))
    mean = (weights[:, None, None] * seen[0]).sum(0) / weights.sum()
    np.testing.assert_allclose(plan.memory[:-1], mean[1:], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(plan.actions, mode(spec, jnp.asarray(mean)), rtol=1e-4, atol=1e-6)
    assert float(plan.score) == pytest.approx(scores.max(), rel=1e-5)


# ---- noise and draws

LIKE = jnp.zeros((8, 2))
smooth, coloured = (jax.jit(noise, static_argnums=(1, 3)) for noise in (smooth_noise, coloured_noise))
drawn = jax.jit(draw, static_argnums=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.6])
def test_smooth_noise_has_its_variance_and_correlation(smoothing):
    noise = np.asarray(smooth(KEY, 20_000, LIKE, smoothing))
    assert noise.shape == (20_000, 8, 2)
    correlation = (noise[:, :, None, 0] * noise[:, None, :, 0]).mean(0)
    distance = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    np.testing.assert_allclose(correlation, np.where(distance == 0, 1, smoothing**distance), atol=0.04)
    assert abs((noise[..., 0] * noise[..., 1]).mean()) < 0.02


@pytest.mark.parametrize("horizon", [1, 7, 8])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_coloured_noise_has_its_variance_and_spectrum(beta, horizon):
    noise = np.asarray(coloured(KEY, 20_000, jnp.zeros((horizon, 2)), beta))
    assert noise.shape == (20_000, horizon, 2)
    np.testing.assert_allclose(noise.var(0), np.ones((horizon, 2)), atol=0.05)
    power = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean((0, 2))
    number = np.maximum(np.arange(horizon // 2 + 1), 1.0)
    np.testing.assert_allclose(power / power[0], number**-beta, rtol=0.06)


def test_white_noise_is_left_as_it_was_drawn():
    np.testing.assert_allclose(coloured(KEY, 5, LIKE, 0.0), jax.random.normal(KEY, (5, 8, 2)), atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.95])
def test_discrete_draws_have_their_probabilities_and_persist_with_their_noise(smoothing):
    mean = jnp.tile(jnp.array([[0.6, 0.3, 0.1]]), (8, 1))
    noise = smooth(KEY, 20_000, mean, smoothing)
    actions = np.asarray(drawn(DISCRETE, mean, jnp.full((8, 3), 0.3), noise))
    wanted = 0.7 * np.array([0.6, 0.3, 0.1]) + 0.1
    np.testing.assert_allclose(actions.mean(0), np.tile(wanted, (8, 1)), atol=0.02)
    stays = (actions[:, 1:] * actions[:, :-1]).sum(-1).mean()
    if smoothing:
        assert stays > 0.75
    else:
        assert stays == pytest.approx((wanted**2).sum(), abs=0.01)


def test_the_gumbel_noise_is_gumbel_far_into_the_tails():
    x = np.array([-6.0, -1.0, 0.0, 2.0, 6.0])
    gumbel = -np.log(-np.asarray(jax.scipy.stats.norm.logcdf(jnp.asarray(x, jnp.float32))))
    np.testing.assert_allclose(gumbel, -np.log(-scipy.stats.norm.logcdf(x)), rtol=1e-4)


def test_continuous_draws_by_hand():
    mean, spread = jnp.array([[0.5, -0.5]]), jnp.array([[0.1, 1.0]])
    actions = draw(CONTINUOUS, mean, spread, jnp.array([[[1.0, 0.2]], [[9.0, -3.0]]]))
    np.testing.assert_allclose(actions, [[[0.6, -0.3]], [[1.0, -1.0]]], rtol=1e-6)


# ---- fields


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (RandomShooting, "candidates", 0), (RandomShooting, "repeat", 0),
        (CEM, "candidates", 1), (CEM, "iterations", 0), (CEM, "elites", 0), (CEM, "elites", 125), (CEM, "momentum", 1.0),
        (CEM, "momentum", -0.1), (CEM, "spread", 0.0), (CEM, "spread", 1.5), (CEM, "min_spread", 0.6), (CEM, "min_spread", -0.1),
        (CEM, "keep_elites", 1.1), (CEM, "keep_elites", -0.1), (CEM, "noise_beta", -1.0),
        (MPPI, "candidates", 1), (MPPI, "iterations", 0), (MPPI, "temperature", 0.0), (MPPI, "spread", 0.0), (MPPI, "spread", 2.0),
        (MPPI, "smoothing", 1.0), (MPPI, "smoothing", -0.1),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(kind, field, value):
    with pytest.raises(ValueError, match=rf"^{field} is {value}; it must be "):
        kind(**{field: value})
