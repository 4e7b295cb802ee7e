"""The mathematics by hand or against numpy and scipy: returns, distributions, normaliser, replay, and the one dream."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import Array
from small import finite, known, same

from spikedream.ops.calibration import LEVELS, coverage, deviation_factor, half_width
from spikedream.ops.distributions import Categorical, Regression, TanhNormal, TwoHot, symexp, symlog
from spikedream.ops.dream import dream
from spikedream.ops.fitting import adamw, fit, matrices, start
from spikedream.ops.returns import lambda_returns, survival, vtrace
from spikedream.ops.schedule import ImaginedShare
from spikedream.ops.when import when
from spikedream.spec import Spec
from spikedream.types import Decision, Prediction, Transition

KEY = jax.random.key(0)

# ---- returns

REWARD, VALUE = jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 20.0, 30.0])


@pytest.mark.parametrize(
    ("lambda_", "wanted"),
    [
        (0.0, [1 + 0.5 * 10, 2 + 0.5 * 20, 3 + 0.5 * 30]),
        (1.0, [1 + 0.5 * (2 + 0.5 * 18), 2 + 0.5 * 18, 3 + 0.5 * 30]),
        # G2 = 18; G1 = 2 + 0.5 (10 + 9) = 11.5; G0 = 1 + 0.5 (5 + 5.75) = 6.375
        (0.5, [6.375, 11.5, 18.0]),
    ],
)
def test_lambda_returns_by_hand(lambda_, wanted):
    np.testing.assert_allclose(lambda_returns(REWARD, jnp.full(3, 0.5), VALUE, lambda_=lambda_), wanted, rtol=1e-6)


def test_where_a_trajectory_does_not_go_on_the_value_stands_for_the_rest():
    goes_on = jnp.array([1.0, 0.0, 1.0])
    returns = lambda_returns(REWARD, jnp.full(3, 0.5), VALUE, goes_on, lambda_=0.5)
    np.testing.assert_allclose(returns, [1 + 0.5 * (5 + 6), 2 + 0.5 * 20, 18], rtol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_nothing_passes_a_discount_of_zero(lambda_):
    discount = jnp.array([0.9, 0.0, 0.9])
    returns = lambda_returns(REWARD, discount, VALUE, lambda_=lambda_)
    assert float(returns[1]) == 2.0
    assert float(returns[0]) == pytest.approx(1 + 0.9 * ((1 - lambda_) * 10 + lambda_ * 2))
    # What lies behind the end changes nothing in front of it.
    other = lambda_returns(REWARD.at[2].set(99.0), discount, VALUE.at[1:].set(-99.0), lambda_=lambda_)
    np.testing.assert_array_equal(returns[:2], other[:2])


def test_survival_is_the_chance_to_be_alive_before_each_step():
    np.testing.assert_allclose(survival(jnp.array([0.0, 0.5, 0.2, 1.0, 0.0])), [1, 1, 0.5, 0.4, 0], rtol=1e-6)


VALUE_OF, ALIVE = jnp.array([4.0, 5.0, 6.0]), jnp.array([1.0, 1.0, 0.0])  # of the states acted in; the last step is the last


@pytest.mark.parametrize("same_critic", [True, False])
@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
def test_vtrace_on_policy_gives_the_lambda_returns(lambda_, same_critic):
    # On one trajectory the state after a step is the one in which the next is taken, but what is said to follow may be another
    # critic's value, or clipped.
    value, following = VALUE_OF, jnp.append(VALUE_OF[1:] - (0.0 if same_critic else 2.0), 30.0)
    found = vtrace(REWARD, jnp.full(3, 0.5), value, following, jnp.ones(3), ALIVE, lambda_)
    np.testing.assert_allclose(found, lambda_returns(REWARD, jnp.full(3, 0.5), following, lambda_=lambda_), rtol=1e-6)


def test_vtrace_by_hand_with_its_ratios_clipped_at_one():
    following, ratio = jnp.array([5.5, 7.0, 8.0]), jnp.array([0.5, 3.0, 0.25])
    found = vtrace(REWARD, jnp.full(3, 0.5), VALUE_OF, following, ratio, ALIVE, 0.8)
    # From behind: 6 + 0.25 (3 + 4 - 6); 5 + 1 (2 + 3.5 - 5) + 0.4 x 1 (6.25 - 7); 4 + 0.5 (1 + 2.75 - 4) + 0.4 x 0.5 (5.2 - 5.5)
    np.testing.assert_allclose(found, [4 - 0.125 - 0.06, 5 + 0.5 - 0.3, 6 + 0.25], rtol=1e-6)
    # A ratio above one counts as one; of zero, nothing is learned from the step, nor past it from those behind it.
    same_found = vtrace(REWARD, jnp.full(3, 0.5), VALUE_OF, following, ratio.at[1].set(1.0), ALIVE, 0.8)
    assert same(found, same_found)
    nothing = vtrace(REWARD, jnp.full(3, 0.5), VALUE_OF, following, ratio.at[1].set(0.0), ALIVE, 0.8)
    np.testing.assert_allclose(nothing, [4 - 0.125 - 0.1, 5.0, 6.25], rtol=1e-6)  # 4 + 0.5 (-0.25) + 0.2 (5 - 5.5)


def test_vtrace_passes_nothing_over_the_end_of_an_episode():
    following, one = jnp.array([5.5, 7.0, 8.0]), jnp.ones(3)
    apart = ALIVE.at[0].set(0.0)  # the second step is of another episode
    found = vtrace(REWARD, jnp.full(3, 0.5), VALUE_OF, following, one, apart, 0.9)
    assert float(found[0]) == pytest.approx(1 + 0.5 * 5.5)  # cut off, not ended: the value of what follows counts
    other = vtrace(REWARD.at[1:].set(-99.0), jnp.full(3, 0.5), VALUE_OF, following, one, apart, 0.9)
    assert float(other[0]) == float(found[0])
    ended = vtrace(REWARD, jnp.array([0.0, 0.5, 0.5]), VALUE_OF, following, one, apart, 0.9)
    assert float(ended[0]) == pytest.approx(1.0)


# ---- schedules and calibration


@pytest.mark.parametrize(("steps", "share"), [(0, 1.0), (100, 1.0), (150, 0.8), (300, 0.2), (301, 0.2), (10_000, 0.2)])
def test_imagined_share_follows_a_line(steps, share):
    schedule = ImaginedShare(1.0, 0.2, begin=100, steps=200)
    assert float(schedule(jnp.asarray(steps, jnp.int32))) == pytest.approx(share)
    assert not schedule.always_one and ImaginedShare().always_one and not ImaginedShare(0.0, 1.0).always_one


def test_half_widths_are_those_of_the_normal_distribution():
    found = [float(half_width(level)) for level in (0.5, 0.9)]
    np.testing.assert_allclose(found, [0.67449, 1.64485], rtol=1e-4)


def test_exact_normal_errors_are_covered_as_promised():
    z = jax.random.normal(KEY, (20_000, 3))
    found = coverage(z, jnp.ones(20_000))
    assert found.keys() == {f"calibration/coverage_{100 * level:.0f}" for level in LEVELS} | {"calibration/error"}
    for level in LEVELS:
        assert float(found[f"calibration/coverage_{100 * level:.0f}"]) == pytest.approx(level, abs=0.01)
    assert float(found["calibration/error"]) < 0.01
    assert float(coverage(2 * z, jnp.ones(20_000))["calibration/error"]) > 0.15


def test_coverage_by_hand():
    # Half-widths for 10, 30, 50, 70 and 90 %: 0.126, 0.385, 0.674, 1.036, 1.645
    z = jnp.array([[0.1, -0.5], [-1.0, 1.5], [0.0, 9.0], [0.3, -0.3]])
    found = coverage(z, jnp.array([1.0, 1.0, 1.0, 0.0]))
    shares = np.array([2, 2, 3, 4, 5]) / 6
    assert [float(found[f"calibration/coverage_{p}"]) for p in (10, 30, 50, 70, 90)] == pytest.approx(list(shares))
    assert float(found["calibration/error"]) == pytest.approx(np.abs(shares - np.array(LEVELS)).mean(), rel=1e-5)
    assert float(coverage(z, jnp.zeros(4))["calibration/coverage_50"]) == 0.0


def test_deviation_factor_repairs_a_wrong_scale_of_each_target():
    wrong = jnp.array([[0.5, 1.0, 3.0]])  # deviations predicted twice too large, right, three times too small
    z, counts = jax.random.normal(KEY, (5000, 3)) * wrong, (jnp.arange(5000) < 4000).astype(jnp.float32)
    z = jnp.where(counts[:, None] > 0, z, 1e6)  # what does not count is not looked at
    factor = deviation_factor(z, counts)
    np.testing.assert_allclose(factor, wrong[0], rtol=0.05)
    assert float(coverage(z / factor[None], counts)["calibration/coverage_90"]) == pytest.approx(0.9, abs=1e-3)
    np.testing.assert_array_equal(deviation_factor(z, jnp.zeros(5000)), np.ones(3))
    np.testing.assert_allclose(deviation_factor(1e3 * z, counts), np.full(3, 10.0))


# ---- fitting

POINTS = jnp.array([[1.0, 2.0], [-3.0, 0.5]])  # (members, 2)


def fitted(check=None, patience=3, updates=200, key=KEY, rate=0.1):
    """Two members, each drawn towards its own point."""
    params = {"at": jnp.zeros((2, 2))}
    draw = lambda params, key: POINTS + 0.0 * jax.random.normal(key, (2, 2))  # noqa: E731
    loss = lambda params, batch, key: jnp.square(params["at"] - batch).sum()  # noqa: E731
    optimizer, settings = adamw(0.0, 10.0), {"rate": rate, "updates": updates, "block": 10, "patience": patience}
    return jax.jit(lambda k: fit(params, start(optimizer, params), loss, draw, check, optimizer, **settings, key=k))(key)


def test_fit_without_a_check_makes_all_updates_and_returns_the_last():
    found = fitted()
    assert int(found.step) == 200 and int(found.waited) == 0
    np.testing.assert_allclose(found.best["at"], POINTS, atol=0.02)
    assert same(found.best, found.params) and float(found.train_loss) < 0.01
    assert int(fitted(updates=7).step) == 10  # whole blocks


def test_fit_stops_when_no_member_improves_and_keeps_each_members_best():
    # Held out is a point that each member passes on its way, the second later than the first.
    halfway = POINTS * jnp.array([[0.2], [0.6]])

    def check(params):
        return jnp.square(params["at"] - halfway).sum(1)

    found, everything = (fitted(check, updates=1000, rate=0.02, patience=p) for p in (3, 10**6))
    assert int(everything.step) == 1000 and 30 < int(found.step) < 300 and int(found.waited) == 3
    assert same(found.best, everything.best) and same(found.best_loss, everything.best_loss)
    np.testing.assert_allclose(found.best_loss, check(found.best), rtol=1e-6)
    assert (check(found.best) < 0.5 * check(found.params)).all()


def test_fit_keeps_the_best_of_a_member_that_improves_no_more_while_another_does():
    def check(params):
        return jnp.stack([jnp.square(params["at"][0] - 0.1 * POINTS[0]).sum(), jnp.square(params["at"][1] - POINTS[1]).sum()])

    found = fitted(check, updates=1000, rate=0.02)
    assert float(found.best_loss[0]) < 0.5 < float(check(found.params)[0])
    np.testing.assert_allclose(found.best["at"][1], POINTS[1], atol=0.05)


def test_a_check_that_is_never_a_number_leaves_the_first_parameters():
    found = fitted(lambda params: jnp.full(2, jnp.nan))
    assert int(found.step) == 30 and not found.best["at"].any()


def test_weights_are_told_from_the_rest_where_members_are_stacked():
    members = {"weight": jnp.zeros((3, 4, 2)), "bias": jnp.zeros((3, 2))}
    assert matrices(members, stacked=1) == {"weight": True, "bias": False}
    assert matrices(jax.tree.map(lambda x: x[0], members)) == {"weight": True, "bias": False}


def test_only_weights_decay_and_gradients_are_clipped_by_their_global_norm():
    optimizer = adamw(0.5, 1.0)
    params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    none = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(params), params))
    changes, state = update(none)
    np.testing.assert_allclose(changes["weight"], np.full((2, 2), 0.5), rtol=1e-5)
    np.testing.assert_array_equal(changes["bias"], 0)
    steep = {"weight": jnp.full((2, 2), 6.0), "bias": jnp.full(2, 5.0)}  # norm sqrt(4 x 36 + 2 x 25) = 13.93
    _, state = update(steep)
    first = next(x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    assert float(first["weight"][0, 0]) == pytest.approx(0.1 * 6 / np.sqrt(194), rel=1e-5)
    assert float(first["bias"][0]) == pytest.approx(0.1 * 5 / np.sqrt(194), rel=1e-5)


# ---- value distributions


@partial(jax.jit, static_argnums=0)
def encoding(head, target):
    """The target distribution that `head.loss` compares with: softmax minus the gradient."""
    logits = jnp.zeros(head.bins)
    return jax.nn.softmax(logits) - jax.grad(head.loss)(logits, jnp.asarray(target, jnp.float32))


@partial(jax.jit, static_argnums=0)
def centres(head):
    return jax.vmap(lambda i: head.mean(jax.nn.one_hot(i, head.bins) * 1e4))(jnp.arange(head.bins))


@pytest.mark.parametrize("target", [-1.4, -0.731, -1e-3, 0.0, 0.02, 0.5, 1.33])
def test_two_hot_encoding_has_the_target_as_its_mean(target):
    head = TwoHot(bins=21, limit=1.5)
    weights = np.asarray(encoding(head, target))
    assert weights @ np.asarray(centres(head)) == pytest.approx(target, abs=1e-5)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert (weights > -1e-5).all() and (weights > 1e-5).sum() <= 2
    hot = np.flatnonzero(weights > 1e-5)
    assert hot[-1] - hot[0] <= 1


@pytest.mark.parametrize(("target", "bin_"), [(1.5, -1), (7.0, -1), (1e6, -1), (-1.5, 0), (-99.0, 0)])
def test_two_hot_clips_to_its_limit(target, bin_):
    head = TwoHot(bins=21, limit=1.5)
    assert float(encoding(head, target)[bin_]) == pytest.approx(1, abs=1e-4)


def test_two_hot_centres_are_symmetric_and_even_in_symlog():
    head = TwoHot(bins=11, limit=4.0)
    found = np.asarray(centres(head))
    assert found[0] == pytest.approx(-4, rel=1e-5) and found[-1] == pytest.approx(4, rel=1e-5)
    np.testing.assert_allclose(found, -found[::-1], atol=1e-6)
    np.testing.assert_allclose(np.diff(np.asarray(symlog(jnp.asarray(found)))), 2 * np.log(5) / 10, rtol=1e-4)


@pytest.mark.parametrize("head", [TwoHot(bins=21), Regression()], ids=["two-hot", "regression"])
def test_value_loss_is_least_where_the_mean_is_the_target(head):
    target = jnp.asarray(0.37)
    best = jnp.full(1, 0.37) if isinstance(head, Regression) else jnp.log(jnp.maximum(encoding(head, 0.37), 1e-9))
    assert float(head.mean(best)) == pytest.approx(0.37, abs=1e-5)
    assert float(jnp.abs(jax.grad(head.loss)(best, target)).max()) < 1e-5
    nudges = 0.3 * jax.random.normal(KEY, (20, head.parameters))
    assert (jax.vmap(lambda d: head.loss(best + d, target))(nudges) > head.loss(best, target)).all()


def test_regression_by_hand():
    assert float(Regression().loss(jnp.array([0.5]), jnp.asarray(2.0))) == pytest.approx(0.5 * 1.5**2)
    assert float(Regression().mean(jnp.array([0.5]))) == 0.5


def test_symexp_inverts_symlog():
    x = jnp.array([-1e4, -3.0, -0.1, 0.0, 1e-3, 2.0, 1e4])
    np.testing.assert_allclose(symexp(symlog(x)), x, rtol=1e-5)
    np.testing.assert_allclose(symlog(jnp.array([np.e - 1, 1 - np.e])), [1, -1], rtol=1e-6)


# ---- action distributions

LOGITS = jnp.array([0.3, -1.2, 2.0])


def test_categorical_against_scipy():
    head, p = Categorical(3), np.exp(np.asarray(LOGITS)) / np.exp(np.asarray(LOGITS)).sum()
    log_probs = jax.vmap(lambda a: head.log_prob(LOGITS, a))(jnp.eye(3))
    np.testing.assert_allclose(log_probs, np.log(p), rtol=1e-5)
    assert float(head.entropy(LOGITS)) == pytest.approx(scipy.stats.entropy(p), rel=1e-5)
    assert head.mode(LOGITS).tolist() == [0, 0, 1]
    draws = jax.vmap(lambda k: head.sample(LOGITS, k))(jax.random.split(KEY, 20_000))
    assert set(np.unique(draws)) == {0.0, 1.0} and (draws.sum(1) == 1).all()
    np.testing.assert_allclose(draws.mean(0), p, atol=0.015)


def test_categorical_entropy_and_gradient_survive_certainty():
    logits = jnp.array([1e4, 0.0, -1e4])
    head = Categorical(3)
    assert float(head.entropy(logits)) == pytest.approx(0, abs=1e-6)
    assert finite(jax.grad(head.entropy)(logits)) and finite(jax.grad(lambda x: head.log_prob(x, jnp.eye(3)[0]))(logits))


def bounded(mean):
    """The mean before squashing: held within +-4, and hardly changed near zero."""
    return 4 * np.tanh(mean / 4)


def deviation(head, raw):
    """The standard deviation before squashing, found from the density at the mode of a centred distribution."""
    density = float(jnp.exp(head.log_prob(jnp.array([0.0, raw]), jnp.zeros(1))))
    return 1 / (density * np.sqrt(2 * np.pi))


@pytest.mark.parametrize(("mean", "raw"), [(0.0, 0.0), (0.8, -2.0), (-0.5, 3.0)])
def test_tanh_normal_density_integrates_to_one_and_is_the_transformed_normal(mean, raw):
    head, parameters = TanhNormal(1), jnp.array([mean, raw])
    # Even in the normal's own space, so that the grid resolves the edges.
    x = np.linspace(-4.5, 4.5, 20_001)
    action = np.tanh(x)
    actions = jnp.asarray(action, jnp.float32)[:, None]
    log_prob = np.asarray(jax.vmap(lambda a: head.log_prob(parameters, a))(actions), np.float64)
    assert np.trapezoid(np.exp(log_prob), action) == pytest.approx(1, abs=5e-3)
    std = deviation(head, raw)
    by_hand = scipy.stats.norm.logpdf(x, bounded(mean), std) - np.log(1 - action**2)
    inner = np.abs(action) < 0.99
    np.testing.assert_allclose(log_prob[inner], by_hand[inner], atol=2e-2)


def test_tanh_normal_adds_over_dimensions():
    head, one = TanhNormal(2), TanhNormal(1)
    both = head.log_prob(jnp.array([0.1, -0.4, 0.5, -1.0]), jnp.array([0.3, 0.2]))
    apart = one.log_prob(jnp.array([0.1, 0.5]), jnp.array([0.3])) + one.log_prob(jnp.array([-0.4, -1.0]), jnp.array([0.2]))
    assert float(both) == pytest.approx(float(apart), rel=1e-5)


@pytest.mark.parametrize("raw", [-50.0, 50.0])
def test_tanh_normal_deviation_stays_within_its_bounds(raw):
    head = TanhNormal(1, min_std=0.05, max_std=1.0)
    assert deviation(head, raw) == pytest.approx(0.05 if raw < 0 else 1.0, rel=1e-3)


def test_tanh_normal_samples_mode_and_entropy():
    head, parameters = TanhNormal(1), jnp.array([0.3, -1.0])
    std = deviation(head, -1.0)
    assert float(head.mode(parameters)[0]) == pytest.approx(np.tanh(bounded(0.3)), rel=1e-5)
    draws = np.asarray(jax.vmap(lambda k: head.sample(parameters, k))(jax.random.split(KEY, 20_000)))[:, 0]
    assert np.arctanh(draws).mean() == pytest.approx(bounded(0.3), abs=0.02)
    assert np.arctanh(draws).std() == pytest.approx(std, rel=0.03)
    documented = scipy.stats.norm.entropy(scale=std) + np.log(1 - np.tanh(bounded(0.3)) ** 2)
    assert float(head.entropy(parameters)) == pytest.approx(documented, rel=1e-3)


@pytest.mark.parametrize("mean", [-30.0, 30.0])
def test_tanh_normal_stays_finite_where_tanh_saturates(mean):
    head, parameters = TanhNormal(1), jnp.array([mean, 0.0])
    action = head.sample(parameters, KEY)
    assert abs(float(action[0])) < 1
    assert finite((head.log_prob(parameters, action), jax.grad(head.log_prob)(parameters, action), head.entropy(parameters)))


# ---- the dream


class Drift(eqx.Module):
    velocity: jax.Array  # (obs_size,)


class Place(NamedTuple):
    obs: jax.Array
    steps: jax.Array


@dataclass(frozen=True)
class Linear:
    """obs' = obs + velocity + action; the reward is the first entry of obs'; ends once that passes `bound`. It is seen twice as
    large as it is, next to the number of steps."""

    bound: float = 1e9

    def init(self, spec: Spec, key: jax.Array) -> Drift:
        return Drift(jnp.arange(1.0, spec.obs_size + 1))

    def start(self, state, obs, key):
        return Place(obs, jnp.zeros((), jnp.int32))

    def feature(self, state, memory):
        return jnp.append(2 * memory.obs, memory.steps.astype(jnp.float32))

    def step(self, state, memory, action, key):
        obs = memory.obs + state.velocity + action
        ended = (obs[0] > self.bound).astype(jnp.float32)
        spikes = (jnp.ones((3, 2)),)
        return Place(obs, memory.steps + 1), Prediction(
            obs, obs[0], ended, memory.steps * 0.25, memory.steps * 0.75, jnp.zeros(()), spikes
        )


def counting(carry, obs, key):
    """Acts with minus a tenth of where it is; remembers how often it acted."""
    return Decision(-0.05 * obs[:2], carry + 1, jax.random.uniform(key), (jnp.zeros((4, 2)).at[0].set(1.0),))


@pytest.fixture(scope="module")
def dreamt():
    spec = Spec(2, 2, discrete=False, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    world = known(Linear(bound=4.0), Linear().init(spec, KEY), spec)
    obs = jnp.array([[0.0, 0.0], [10.0, -1.0], [-5.0, 2.0]])
    memory = jax.vmap(world.start)(obs, jax.random.split(KEY, 3))
    return obs, *dream(world, counting, jnp.zeros(3, jnp.int32), memory, 5, KEY)


def test_dream_follows_the_worlds_dynamics(dreamt):
    start, seen, _ = dreamt
    obs = np.asarray(start)
    for t in range(5):
        np.testing.assert_allclose(seen.obs[t, :, :2], 2 * obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.decision.action[t], -0.1 * obs, rtol=1e-5, atol=1e-6)
        obs = 0.9 * obs + np.array([1.0, 2.0])
        np.testing.assert_allclose(seen.prediction.obs[t], obs, rtol=1e-5)
        np.testing.assert_allclose(seen.following[t, :, :2], 2 * obs, rtol=1e-5)
        np.testing.assert_allclose(seen.prediction.reward[t], obs[:, 0], rtol=1e-5)
        np.testing.assert_array_equal(seen.prediction.terminated[t], obs[:, 0] > 4)


def test_dream_hands_memories_on_and_files_them_under_the_step_that_began_with_them(dreamt):
    _, seen, ends = dreamt
    np.testing.assert_array_equal(seen.obs[1:], seen.following[:-1])
    np.testing.assert_array_equal(seen.carry, np.tile(np.arange(5)[:, None], (1, 3)))
    np.testing.assert_array_equal(seen.decision.carry, seen.carry + 1)
    np.testing.assert_array_equal(seen.prediction.uncertainty, seen.carry)  # the world's own count of steps
    np.testing.assert_array_equal(seen.obs[..., 2], seen.carry)
    np.testing.assert_array_equal(ends.memory.obs, seen.prediction.obs[-1])
    np.testing.assert_array_equal(ends.memory.steps, [5, 5, 5])
    np.testing.assert_array_equal(ends.carry, [5, 5, 5])


def test_a_dream_goes_on_from_where_another_stopped(dreamt):
    start, seen, _ = dreamt
    world = known(Linear(bound=4.0), Linear().init(PLANE, KEY), PLANE)
    memory = jax.vmap(world.start)(start, jax.random.split(KEY, 3))
    _, ends = dream(world, counting, jnp.zeros(3, jnp.int32), memory, 2, KEY)
    rest, last = dream(world, counting, ends.carry, ends.memory, 3, KEY)
    np.testing.assert_allclose(rest.obs, seen.obs[2:], rtol=1e-5)
    np.testing.assert_array_equal(last.memory.steps, [5, 5, 5])


PLANE = Spec(2, 2, discrete=False)


@dataclass(frozen=True)
class Surprise:
    """Pays what was uncertain, and the way that was made."""

    reward_floor: float = 9.0

    def bound(self, state, normalizer):
        return self.reward_floor / normalizer.reward_scale

    def reward(self, state, obs, action, prediction):
        return state * (prediction.uncertainty + (prediction.obs - obs)[1] - action[1])


def test_a_bonus_is_added_beside_the_reward_in_every_step_of_a_dream(dreamt):
    start, seen, _ = dreamt
    plain = known(Linear(bound=4.0), Linear().init(PLANE, KEY), PLANE)
    world = replace(plain, bonus=Surprise(), bonus_state=jnp.asarray(0.5))
    memory = jax.vmap(world.start)(start, jax.random.split(KEY, 3))
    found, _ = dream(world, counting, jnp.zeros(3, jnp.int32), memory, 5, KEY)
    np.testing.assert_allclose(found.prediction.bonus, 0.5 * (np.arange(5)[:, None] + 2.0) * np.ones(3), rtol=1e-4)
    np.testing.assert_array_equal(found.prediction.reward, seen.prediction.reward)
    assert world.largest_bonus == 9.0 and plain.largest_bonus == 0.0
    step = Transition(*(jnp.zeros(2), jnp.array([0.0, 0.25]), *jnp.zeros((1,)), jnp.array([0.0, 1.0]), *jnp.zeros((3,))))
    at = world.start(step.obs, KEY)
    assert float(world.intrinsic(at, step, KEY)) == pytest.approx(0.5 * 0.75)  # of the real step, not of what the model says
    assert float(plain.intrinsic(at, step, KEY)) == 0.0


def test_dream_reduces_spikes_to_rates_and_draws_fresh_keys(dreamt):
    _, seen, _ = dreamt
    np.testing.assert_allclose(seen.decision.spikes[0], np.full(5, 0.25))
    np.testing.assert_allclose(seen.prediction.spikes[0], np.ones(5))
    assert len(np.unique(seen.decision.log_prob)) == 15


# ---- a branch that stays one


@pytest.mark.parametrize("due", [(False, False, False), (True, False, True), (True, True, True)])
def test_a_branch_is_taken_by_those_that_are_due_and_computed_where_there_are_any(due: tuple[bool, ...]) -> None:
    made = []

    def double(x: Array) -> Array:
        jax.debug.callback(lambda: made.append(1))
        return 2 * x

    x = jnp.asarray([1.0, 2.0, 3.0])
    wanted = np.where(due, 2 * x, x)
    np.testing.assert_array_equal(jax.vmap(lambda d, x: when(d, double, x))(jnp.asarray(due), x), wanted)
    jax.effects_barrier()
    assert bool(made) == any(due)
    np.testing.assert_array_equal([when(jnp.asarray(d), double, y) for d, y in zip(due, x, strict=True)], wanted)
