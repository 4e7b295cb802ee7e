"""The mathematics by hand or against numpy and scipy: returns, distributions, normaliser, replay, and the one dream."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from small import DISCRETE, finite, holding, same

from spikedream.ops.distributions import Categorical, Regression, TanhNormal, TwoHot, symexp, symlog
from spikedream.ops.dream import dream
from spikedream.ops.normalizer import identity, measure
from spikedream.ops.replay import empty
from spikedream.ops.returns import lambda_returns, survival
from spikedream.types import Decision, Prediction, Spec, Transition, World

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
    np.testing.assert_allclose(lambda_returns(REWARD, jnp.full(3, 0.5), VALUE, lambda_), wanted, rtol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_nothing_passes_a_discount_of_zero(lambda_):
    discount = jnp.array([0.9, 0.0, 0.9])
    returns = lambda_returns(REWARD, discount, VALUE, lambda_)
    assert float(returns[1]) == 2.0
    assert float(returns[0]) == pytest.approx(1 + 0.9 * ((1 - lambda_) * 10 + lambda_ * 2))
    # What lies behind the end changes nothing in front of it.
    other = lambda_returns(REWARD.at[2].set(99.0), discount, VALUE.at[1:].set(-99.0), lambda_)
    np.testing.assert_array_equal(returns[:2], other[:2])


def test_survival_is_the_chance_to_be_alive_before_each_step():
    np.testing.assert_allclose(survival(jnp.array([0.0, 0.5, 0.2, 1.0, 0.0])), [1, 1, 0.5, 0.4, 0], rtol=1e-6)


# ---- value distributions


def encoding(head, target):
    """The target distribution that `head.loss` compares with: softmax minus the gradient."""
    logits = jnp.zeros(head.bins)
    return jax.nn.softmax(logits) - jax.grad(head.loss)(logits, jnp.asarray(target, jnp.float32))


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


# ---- normaliser and replay


def test_normalizer_measures_valid_rows_like_numpy():
    rng = np.random.default_rng(0)
    obs, reward = rng.normal(3, 2, (50, 3)).astype(np.float32), rng.uniform(-4, 2, 50).astype(np.float32)
    valid = (np.arange(50) < 30).astype(np.float32)
    found = measure(jnp.asarray(obs), jnp.asarray(reward), jnp.asarray(valid))
    np.testing.assert_allclose(found.mean, obs[:30].mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.scale, obs[:30].std(0), rtol=1e-4)
    largest = np.abs(reward[:30]).max()
    assert float(found.reward_scale) == pytest.approx(largest)
    assert float(found.reward_low) == pytest.approx(reward[:30].min() / largest)
    assert float(found.reward_high) == pytest.approx(reward[:30].max() / largest)
    assert max(abs(float(found.reward_low)), abs(float(found.reward_high))) == pytest.approx(1)


def test_normalizer_obs_and_raw_obs_are_inverse_over_leading_axes():
    obs = jax.random.normal(KEY, (4, 5, 3)) * 7 + 2
    found = measure(obs.reshape(-1, 3), jnp.ones(20), jnp.ones(20))
    normalised = found.obs(obs)
    np.testing.assert_allclose(normalised.reshape(-1, 3).mean(0), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(normalised.reshape(-1, 3).std(0), np.ones(3), rtol=1e-4)
    np.testing.assert_allclose(found.raw_obs(normalised), obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.obs(obs[0, 0]), normalised[0, 0], rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.3, 1234.567, 1e6 + 0.5])
def test_a_column_that_never_changed_is_centred_and_left_unscaled(constant):
    obs = jnp.stack([jnp.full(1000, constant), jnp.linspace(0, 1, 1000)], axis=1)
    found = measure(obs, jnp.zeros(1000), jnp.ones(1000))
    assert float(found.scale[0]) == 1.0
    np.testing.assert_allclose(found.obs(obs)[:, 0], 0, atol=1e-6 * max(1, abs(constant)))
    assert float(found.reward_scale) == 1.0  # no reward seen either


def test_identity_normalizer_changes_nothing():
    obs = jnp.array([3.0, -2.0])
    assert same(identity(2).obs(obs), obs) and same(identity(2).raw_obs(obs), obs)


def step_number(i):
    obs = np.full(4, i, np.float32)
    action = np.eye(2, dtype=np.float32)[i % 2]
    return Transition(obs, action, np.float32(i), obs + 1, np.float32(i % 3 == 0), np.float32(0))


def test_replay_overwrites_the_oldest_and_counts_everything():
    replay, add = empty(DISCRETE, 5), jax.jit(lambda r, s: r.add(s))
    assert int(replay.size) == 0 and replay.capacity == 5
    for i in range(8):
        replay = add(replay, step_number(i))
        assert int(replay.count) == i + 1 and int(replay.size) == min(i + 1, 5)
    assert replay.data.reward.tolist() == [5, 6, 7, 3, 4]
    assert replay.data.obs[:, 0].tolist() == [5, 6, 7, 3, 4]
    assert replay.data.next_obs[:, 3].tolist() == [6, 7, 8, 4, 5]
    assert replay.data.terminated.tolist() == [0, 1, 0, 1, 0]


def test_replay_samples_only_rows_that_were_filled_and_all_of_them():
    steps = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *(step_number(i + 1) for i in range(3)))
    replay = eqx.tree_at(lambda r: r.normalizer, holding(DISCRETE, steps, 50), identity(4))
    drawn = replay.sample(KEY, (40, 10))
    assert drawn.obs.shape == (40, 10, 4) and drawn.reward.shape == (40, 10)
    assert set(np.unique(drawn.reward)) == {1.0, 2.0, 3.0}
    # The fields of a row stay together.
    np.testing.assert_array_equal(drawn.obs[..., 0], drawn.reward)
    np.testing.assert_array_equal(drawn.next_obs[..., 0], drawn.reward + 1)


def test_replay_normalises_what_it_hands_out_and_keeps_what_it_holds():
    steps = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *(step_number(i) for i in range(6)))
    replay = holding(DISCRETE, steps, 20)
    everything = replay.gather(jnp.arange(6))
    np.testing.assert_allclose(everything.obs[:, 0], (np.arange(6) - 2.5) / np.arange(6).std(), rtol=1e-5)
    np.testing.assert_allclose(everything.next_obs[:, 0], (np.arange(1, 7) - 2.5) / np.arange(6).std(), rtol=1e-5)
    np.testing.assert_allclose(everything.reward, np.arange(6) / 5, rtol=1e-6)
    np.testing.assert_array_equal(everything.action, steps.action)
    np.testing.assert_array_equal(replay.data.reward[:6], np.arange(6))
    assert same(replay.sample(KEY, (7,)), replay.sample(KEY, (7,)))
    assert not same(replay.sample(KEY, (7,)), replay.sample(jax.random.key(1), (7,)))


# ---- the dream


class Drift(eqx.Module):
    velocity: jax.Array  # (obs_size,)


@dataclass(frozen=True)
class Linear:
    """obs' = obs + velocity + action; the reward is the first entry of obs'; ends once that passes `bound`."""

    bound: float = 1e9

    def init(self, spec: Spec, key: jax.Array) -> Drift:
        return Drift(jnp.arange(1.0, spec.obs_size + 1))

    def start(self, state, obs, key):
        return obs, jnp.zeros((), jnp.int32)

    def step(self, state, carry, action, key):
        obs, steps = carry
        obs = obs + state.velocity + action
        ended = (obs[0] > self.bound).astype(jnp.float32)
        return (obs, steps + 1), Prediction(obs, obs[0], ended, steps.astype(jnp.float32), (jnp.ones((3, 2)),))

    def update(self, state, experience, key):
        return state, {}


def counting(carry, obs, key):
    """Acts with minus a tenth of what it sees; remembers how often it acted."""
    return Decision(-0.1 * obs, carry + 1, jax.random.uniform(key), (jnp.zeros((4, 2)).at[0].set(1.0),))


@pytest.fixture(scope="module")
def dreamt():
    spec = Spec(2, 2, discrete=False, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    world = World(Linear(bound=4.0), Linear().init(spec, KEY))
    obs = jnp.array([[0.0, 0.0], [10.0, -1.0], [-5.0, 2.0]])
    return obs, dream(world, counting, jnp.zeros(3, jnp.int32), obs, 5, KEY)


def test_dream_follows_the_worlds_dynamics(dreamt):
    start, seen = dreamt
    obs = np.asarray(start)
    for t in range(5):
        np.testing.assert_allclose(seen.obs[t], obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.decision.action[t], -0.1 * obs, rtol=1e-5, atol=1e-6)
        obs = 0.9 * obs + np.array([1.0, 2.0])
        np.testing.assert_allclose(seen.prediction.obs[t], obs, rtol=1e-5)
        np.testing.assert_allclose(seen.prediction.reward[t], obs[:, 0], rtol=1e-5)
        np.testing.assert_array_equal(seen.prediction.terminated[t], obs[:, 0] > 4)


def test_dream_hands_memories_on_and_files_them_under_the_step_that_began_with_them(dreamt):
    _, seen = dreamt
    np.testing.assert_array_equal(seen.obs[1:], seen.prediction.obs[:-1])
    np.testing.assert_array_equal(seen.carry, np.tile(np.arange(5)[:, None], (1, 3)))
    np.testing.assert_array_equal(seen.decision.carry, seen.carry + 1)
    np.testing.assert_array_equal(seen.prediction.uncertainty, seen.carry)  # the world's own count of steps


def test_dream_reduces_spikes_to_rates_and_draws_fresh_keys(dreamt):
    _, seen = dreamt
    np.testing.assert_allclose(seen.decision.spikes[0], np.full(5, 0.25))
    np.testing.assert_allclose(seen.prediction.spikes[0], np.ones(5))
    assert len(np.unique(seen.decision.log_prob)) == 15
