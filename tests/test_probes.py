"""Small learning problems with known answers: what a model must find in data, and an agent in a world that is known."""

from dataclasses import replace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, changed_rows, holding

from spikedream.config import twin
from spikedream.envs.spaces import decode_actions
from spikedream.replay.normalizer import Normalizer
from spikedream.snn.encoders import DirectCurrent
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import MembraneReadout, RateReadout
from spikedream.spec import Spec
from spikedream.types import Transition
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.true_environment import TrueEnvironment, TrueState

KEY = jax.random.key(0)
# ---- the ensemble

PLANE = Spec(2, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))
BOUND = 1.0  # an episode ends where the first entry passes it

ENSEMBLE = Ensemble(
    members=3,
    dynamics=SpikingNetwork(
        hidden=(24,), ticks=4, neuron=LIF(decay=(0.99, 0.999)), encoder=DirectCurrent(), readout=MembraneReadout()
    ),
    ending=SpikingNetwork(
        hidden=(48,), ticks=4, neuron=LIF(decay=(0.5, 0.95)), readout=RateReadout(), fan_in=1, gain=1.5, bias=(-2.0, 1.0)
    ),
    ending_sparsity=1e-3, gaussian=False, termination="mean", learning_rate=5e-3, weight_decay=1e-4, curvature_penalty=1.0,
    gradient_clip=10.0, batch=64, updates=600, holdout=0.0, check_every=200, patience=4, terminal_weight=50.0,
    support_weight=1.0, support_margin=0.1, obs_bound=20.0,
)  # fmt: skip


def linear_step(obs, action):
    return obs + 0.2 * obs @ jnp.array([[0.0, -1.0], [1.0, 0.0]]) + action * jnp.array([[0.1, 0.3]])


def plane_experience():
    obs_key, action_key = jax.random.split(KEY)
    obs = jax.random.uniform(obs_key, (400, 2), minval=-1.2, maxval=1.2)
    action = jax.random.uniform(action_key, (400, 1), minval=-1, maxval=1)
    following = linear_step(obs, action)
    ended = (following[:, 0] > BOUND).astype(jnp.float32)
    # No state was acted in beyond the bound: the episode was over.
    inside = obs[:, 0] <= BOUND
    steps = Transition(obs, action, jnp.full(400, 0.7), following, ended, jnp.zeros(400), jnp.zeros(400))
    steps = jax.tree.map(lambda x: x[inside], steps)
    return holding(PLANE, steps, 512)


def updated(model, state, experience):
    return jax.jit(lambda s, e: model.update(s, e, KEY, model.updates))(state, experience)


@pytest.fixture(scope="module", params=["spiking", "conventional"])
def fitted(request):
    model = ENSEMBLE if request.param == "spiking" else twin(ENSEMBLE)
    experience = plane_experience()
    state = jax.jit(lambda k: model.init(PLANE, k))(KEY)
    state, metrics = updated(model, state, experience)
    assert int(metrics["model_updates"]) == 600
    return model, state, experience


def predict(model, state, obs, action):
    """Predictions for normalised observations, (rows, obs_size), each by the member of its own key."""

    def one(obs, action, key):
        return model.step(state, model.start(state, obs, key), action, key)[1]

    return jax.jit(jax.vmap(one))(obs, action, jax.random.split(jax.random.key(3), obs.shape[0]))


def test_ensemble_learns_linear_dynamics_and_a_constant_reward(fitted):
    model, state, experience = fitted
    obs = jax.random.uniform(jax.random.key(4), (300, 2), minval=-0.8, maxval=0.8)
    action = jax.random.uniform(jax.random.key(5), (300, 1), minval=-0.9, maxval=0.9)
    prediction = predict(model, state, experience.normalizer.obs(obs), action)
    truth = linear_step(obs, action)
    error = experience.normalizer.raw_obs(prediction.obs) - truth
    change = jnp.sqrt(jnp.mean((truth - obs) ** 2, axis=0))
    np.testing.assert_array_less(jnp.sqrt(jnp.mean(error**2, axis=0)), 0.08 * change)
    # 0.7 / 0.7: rewards leave replay divided by the largest.
    assert float(jnp.sqrt(jnp.mean(jnp.square(prediction.reward - 1)))) < 0.12


def test_ensemble_is_less_certain_off_its_data(fitted):
    model, state, experience = fitted
    known = experience.gather(jnp.arange(300))
    angle = jnp.linspace(0, 2 * jnp.pi, 300)
    far = 6.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    inside = predict(model, state, known.obs, known.action).uncertainty
    outside = predict(model, state, far, known.action).uncertainty
    assert float(inside.mean()) < 0.1
    assert float(outside.min()) > 10 * float(inside.mean())
    # Disagreement alone, without the count of what lies outside the data's range.
    disagreeing = replace(model, support_weight=0.0)
    inside = predict(disagreeing, state, known.obs, known.action).uncertainty
    outside = predict(disagreeing, state, far, known.action).uncertainty
    assert float(outside.mean()) > 3 * float(inside.mean())


def test_support_uncertainty_is_the_distance_from_the_widened_range_of_the_data(fitted):
    model, state, experience = fitted
    size = int(experience.size)
    reached = np.asarray(experience.gather(jnp.arange(size)).next_obs)
    low, high = reached.min(0), reached.max(0)
    np.testing.assert_allclose(state.low, low - 0.1 * (high - low), rtol=1e-5)
    np.testing.assert_allclose(state.high, high + 0.1 * (high - low), rtol=1e-5)
    far = jnp.array([[5.0, 0.0], [0.0, -7.0]])
    both = predict(model, state, far, jnp.zeros((2, 1)))
    alone = predict(replace(model, support_weight=0.0), state, far, jnp.zeros((2, 1)))
    reached, low, high = (np.asarray(x) for x in (both.obs, state.low, state.high))
    outside = np.maximum(low - reached, 0) + np.maximum(reached - high, 0)
    np.testing.assert_allclose(both.uncertainty - alone.uncertainty, outside.sum(1), rtol=1e-3)
    assert (outside.sum(1) > 1).all()


def test_ensemble_learns_where_episodes_end(fitted):
    model, state, experience = fitted
    obs = jax.random.uniform(jax.random.key(4), (2000, 2), minval=-1.2, maxval=jnp.array([[BOUND, 1.2]]))
    action = jax.random.uniform(jax.random.key(5), (2000, 1), minval=-1, maxval=1)
    reached = np.asarray(linear_step(obs, action))[:, 0]
    said = np.asarray(predict(model, state, experience.normalizer.obs(obs), action).terminated) > 0.5
    beyond, short = reached > BOUND + 0.1, reached < BOUND - 0.2
    assert beyond.sum() > 15 and short.sum() > 1000
    assert said[beyond].mean() > 0.95
    assert said[short].mean() < 0.03


def held(experience):
    """The transitions in the ring, fields (capacity, ...), in the environment's units."""
    return jax.tree.map(lambda x: x[:, 0], experience.data)


def noise_experience(std, rows):
    obs_key, noise_key, action_key = jax.random.split(KEY, 3)
    obs = jax.random.normal(obs_key, (rows, 2))
    action = jax.random.uniform(action_key, (rows, 1), minval=-1, maxval=1)
    following = obs + std[None] * jax.random.normal(noise_key, (rows, 2))
    zero = jnp.zeros(rows)
    return holding(PLANE, Transition(obs, action, jnp.full(rows, 0.5), following, zero, zero, zero), rows)


def test_gaussian_head_recovers_the_noise():
    std = np.array([0.4, 0.1])
    model = replace(twin(ENSEMBLE), gaussian=True, members=2, updates=800)
    experience = noise_experience(jnp.asarray(std, jnp.float32), 1000)
    state, _ = updated(model, jax.jit(lambda k: model.init(PLANE, k))(KEY), experience)
    obs = jnp.tile(jnp.array([[0.3, -0.2]]), (2000, 1))
    imagined = predict(model, state, obs, jnp.zeros((2000, 1))).obs
    found = (imagined - obs).std(0) * experience.normalizer.scale
    np.testing.assert_allclose(found, std, rtol=0.3)


def windy_experience(rows, key=KEY, std=(0.15, 0.05)):
    """`linear_step` with normal noise."""
    obs_key, noise_key, action_key = jax.random.split(key, 3)
    obs = jax.random.uniform(obs_key, (rows, 2), minval=-1.2, maxval=1.2)
    action = jax.random.uniform(action_key, (rows, 1), minval=-1, maxval=1)
    following = linear_step(obs, action) + jnp.array([std]) * jax.random.normal(noise_key, (rows, 2))
    zero = jnp.zeros(rows)
    return holding(PLANE, Transition(obs, action, jnp.full(rows, 0.5), following, zero, zero, zero), 1000)


GAUSSIAN = replace(twin(ENSEMBLE), gaussian=True, holdout=0.2, members=6, updates=600, support_weight=0.0)


@pytest.fixture(scope="module")
def gaussian():
    """State and metrics by the number of steps that were fitted to."""
    start = jax.jit(lambda k: GAUSSIAN.init(PLANE, k))(KEY)
    update = jax.jit(lambda e: GAUSSIAN.update(start, e, KEY, GAUSSIAN.updates))
    return {rows: (windy_experience(rows), *update(windy_experience(rows))) for rows in (40, 1000)}


def test_gaussian_ensemble_tells_noise_from_what_it_does_not_know(gaussian):
    uncertainty, noise = {}, {}
    fresh = held(windy_experience(300, jax.random.key(9)))
    for rows, (experience, state, _) in gaussian.items():
        prediction = predict(GAUSSIAN, state, experience.normalizer.obs(fresh.obs), fresh.action)
        uncertainty[rows], noise[rows] = float(prediction.uncertainty[:300].mean()), float(prediction.noise[:300].mean())
    experience, state, _ = gaussian[1000]
    wanted = np.array([0.15, 0.05]) / np.asarray(experience.normalizer.scale * state.scale)
    assert noise[1000] == pytest.approx(wanted.mean(), rel=0.15)  # aleatoric: stays
    assert uncertainty[1000] < 0.5 * uncertainty[40]  # epistemic: falls with what has been seen
    assert uncertainty[1000] < 0.25 * noise[1000]


def test_gaussian_ensembles_intervals_hold_what_they_promise(gaussian):
    experience, state, metrics = gaussian[1000]
    assert 0.8 < float(metrics["calibration/coverage_90"]) <= 1 and float(metrics["calibration/error"]) < 0.1
    assert 0.1 < float(state.confidence) < 1
    # On steps that nobody has seen, by the imagined ones themselves.
    fresh = held(windy_experience(1000, jax.random.key(9)))
    obs = experience.normalizer.obs(fresh.obs)
    samples = jax.jit(
        jax.vmap(lambda k: jax.vmap(lambda o, a: GAUSSIAN.step(state, GAUSSIAN.start(state, o, k), a, k)[1].obs)(obs, fresh.action))
    )(jax.random.split(KEY, 100))
    low, high = np.quantile(np.asarray(samples), [0.05, 0.95], axis=0)
    truth = np.asarray(experience.normalizer.obs(fresh.next_obs))
    assert ((truth >= low) & (truth <= high)).mean() == pytest.approx(0.9, abs=0.05)


def test_errors_are_large_where_the_model_is_wrong(fitted):
    model, state, experience = fitted
    wrong = jnp.array([3, 77, 200])
    changed = changed_rows(experience, next_obs=lambda x: x.at[wrong].add(0.5))
    errors = np.asarray(jax.jit(model.errors)(state, changed, jnp.arange(int(experience.size)), KEY))
    assert set(np.argsort(errors)[-3:]) == {3, 77, 200}
    assert errors[np.asarray(wrong)].min() > 20 * np.median(errors)


def test_fitting_against_the_worst_perturbations_makes_a_model_less_sensitive_to_them():
    # Few steps with much noise: a model without the defence learns some of it by heart.
    experience, sensitivity, states = windy_experience(40), {}, {}
    obs = jax.random.uniform(jax.random.key(4), (200, 2), minval=-1, maxval=1)
    action = jax.random.uniform(jax.random.key(5), (200, 1), minval=-1, maxval=1)
    for radius in (0.0, 1.0):
        model = replace(twin(ENSEMBLE), members=2, updates=400, curvature_penalty=0.0, adversarial=radius)
        state, _ = updated(model, jax.jit(lambda k, m=model: m.init(PLANE, k))(KEY), experience)
        shift = 0.2 * jnp.sign(jax.random.normal(jax.random.key(6), (200, 2)))

        def following(obs, model=model, state=state):
            return predict(model, state, obs, action).obs

        sensitivity[radius] = float(jnp.abs(following(obs + shift) - following(obs)).mean())
        states[radius] = state
    assert not np.array_equal(*(jax.tree.leaves(s.members)[0] for s in states.values()))
    assert sensitivity[1.0] < 0.8 * sensitivity[0.0]


def test_fitting_stops_early_once_held_out_loss_stops_falling():
    # Pure noise: whatever is learned beyond the mean is learned by heart.
    model = replace(
        twin(ENSEMBLE), members=2, updates=20_000, holdout=0.3, check_every=50, patience=3, curvature_penalty=0.0, batch=32
    )
    experience = noise_experience(jnp.ones(2), 60)
    _, metrics = updated(model, jax.jit(lambda k: model.init(PLANE, k))(KEY), experience)
    assert 50 <= int(metrics["model_updates"]) < 2000
    assert np.isfinite(float(metrics["model_holdout_loss"]))
    assert float(metrics["model_holdout_loss"]) > float(metrics["model_loss"])


# ---- the true environment

NORMALIZER = Normalizer(
    jnp.array([0.1, -0.2, 0.05, 0.3]), jnp.array([0.5, 2.0, 0.1, 1.5]), jnp.asarray(4.0), jnp.asarray(-1.0), jnp.asarray(1.0)
)


def true_step(name, normalizer, raw_obs, actions):
    model, state = TrueEnvironment(name), TrueState(normalizer)

    def one(obs, action):
        return model.step(state, model.start(state, obs, KEY), action, KEY)[1]

    prediction = jax.jit(jax.vmap(one))(normalizer.obs(jnp.asarray(raw_obs)), jnp.asarray(actions))
    return normalizer.raw_obs(prediction.obs), prediction.reward * normalizer.reward_scale, prediction


def test_true_cart_pole_steps_as_gymnasiums():
    rng = np.random.default_rng(0)
    states = (rng.uniform(-1, 1, (200, 4)) * [2.6, 3.0, 0.24, 3.0]).astype(np.float32)
    actions = np.eye(2, dtype=np.float32)[rng.integers(2, size=200)]
    env, rows = gymnasium.make("CartPole-v1").unwrapped, []
    env.reset(seed=0)
    for state, action in zip(states, decode_actions(DISCRETE, actions), strict=True):
        env.state, env.steps_beyond_terminated = state.astype(np.float64), None
        rows.append(env.step(action)[:3])
    obs, reward, prediction = true_step("CartPole", NORMALIZER, states, actions)
    ended = np.array([row[2] for row in rows])
    assert 20 < ended.sum() < 180
    np.testing.assert_allclose(obs, np.stack([row[0] for row in rows]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reward, [row[1] for row in rows])
    np.testing.assert_array_equal(prediction.terminated, ended)
    np.testing.assert_array_equal(prediction.uncertainty, 0)


def test_true_pendulum_steps_as_gymnasiums():
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (200, 2)) * [np.pi, 8.0]
    raw_obs = np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1).astype(np.float32)
    actions = rng.uniform(-1, 1, (200, 1)).astype(np.float32)
    env, rows = gymnasium.make("Pendulum-v1").unwrapped, []
    env.reset(seed=0)
    for state, action in zip(states, decode_actions(CONTINUOUS, actions), strict=True):
        env.state = state
        rows.append(env.step(action)[:3])
    normalizer = Normalizer(NORMALIZER.mean[:3], NORMALIZER.scale[:3], *jax.tree.leaves(NORMALIZER)[2:])
    obs, reward, prediction = true_step("Pendulum", normalizer, raw_obs, actions)
    np.testing.assert_allclose(obs, np.stack([row[0] for row in rows]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reward, [row[1] for row in rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(prediction.terminated, 0)
