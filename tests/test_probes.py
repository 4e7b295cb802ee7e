"""Small learning problems with known answers: what a model must find in data, and an agent in a world that is known."""

from dataclasses import dataclass, replace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, finite, holding

from spikedream.agents.dreamer import Dreamer
from spikedream.config import twin
from spikedream.envs.host import decode_actions
from spikedream.ops.distributions import Regression, TwoHot
from spikedream.ops.normalizer import Normalizer
from spikedream.snn.codings import DirectCurrent, MembraneReadout, PopulationReadout, RateReadout
from spikedream.snn.networks import MLP, SpikingNetwork
from spikedream.snn.neurons import LIF, CubaLIF
from spikedream.types import Prediction, Spec, Transition, World
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
    steps = Transition(obs, action, jnp.full(400, 0.7), following, ended, jnp.zeros(400))
    steps = jax.tree.map(lambda x: x[inside], steps)
    return holding(PLANE, steps, 512)


@pytest.fixture(scope="module", params=["spiking", "conventional"])
def fitted(request):
    model = ENSEMBLE if request.param == "spiking" else twin(ENSEMBLE)
    experience = plane_experience()
    state = jax.jit(lambda k: model.init(PLANE, k))(KEY)
    state, metrics = jax.jit(model.update)(state, experience, KEY)
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
    print("ERR", jnp.sqrt(jnp.mean(error**2, axis=0)) / change, jnp.sqrt(jnp.mean(jnp.square(prediction.reward - 1))))
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


def noise_experience(std, rows):
    obs_key, noise_key, action_key = jax.random.split(KEY, 3)
    obs = jax.random.normal(obs_key, (rows, 2))
    action = jax.random.uniform(action_key, (rows, 1), minval=-1, maxval=1)
    following = obs + std[None] * jax.random.normal(noise_key, (rows, 2))
    return holding(PLANE, Transition(obs, action, jnp.full(rows, 0.5), following, jnp.zeros(rows), jnp.zeros(rows)), rows)


def test_gaussian_head_recovers_the_noise():
    std = np.array([0.4, 0.1])
    model = replace(twin(ENSEMBLE), gaussian=True, members=2, updates=800)
    experience = noise_experience(jnp.asarray(std, jnp.float32), 1000)
    state, _ = jax.jit(model.update)(jax.jit(lambda k: model.init(PLANE, k))(KEY), experience, KEY)
    obs = jnp.tile(jnp.array([[0.3, -0.2]]), (2000, 1))
    imagined = predict(model, state, obs, jnp.zeros((2000, 1))).obs
    found = (imagined - obs).std(0) * experience.normalizer.scale
    np.testing.assert_allclose(found, std, rtol=0.3)


def test_fitting_stops_early_once_held_out_loss_stops_falling():
    # Pure noise: whatever is learned beyond the mean is learned by heart.
    model = replace(
        twin(ENSEMBLE), members=2, updates=20_000, holdout=0.3, check_every=50, patience=3, curvature_penalty=0.0, batch=32
    )
    experience = noise_experience(jnp.ones(2), 60)
    _, metrics = jax.jit(model.update)(jax.jit(lambda k: model.init(PLANE, k))(KEY), experience, KEY)
    assert 50 <= int(metrics["model_updates"]) < 2000
    assert np.isfinite(float(metrics["model_holdout_loss"]))
    assert float(metrics["model_holdout_loss"]) > float(metrics["model_loss"])


# ---- the agent in known worlds

DREAMER = Dreamer(
    actor=MLP(hidden=(16,), activation="tanh", gain=0.1),
    critic=MLP(hidden=(16,), activation="tanh", gain=0.1),
    value=TwoHot(bins=21, limit=1.5), gradient="clipped", trajectories=32, horizon=4, restart=0.1, start_noise=0.0, gamma=0.9,
    return_lambda=0.95, passes=2, minibatches=2, clip=0.2, entropy=1e-3, learning_rate=1e-2, critic_learning_rate=1e-2,
    gradient_clip=1.0, target_rate=0.1, uncertainty_penalty=1.0, advantage_floor=0.01,
)  # fmt: skip
SPIKING = replace(
    DREAMER,
    actor=SpikingNetwork(hidden=(16,), ticks=3, neuron=LIF(), readout=PopulationReadout(neurons=6, neuron=CubaLIF())),
    critic=SpikingNetwork(hidden=(16,), ticks=3, neuron=LIF(), readout=MembraneReadout(gain=0.1)),
)
ARMS = Spec(2, 3, discrete=True)
DIAL = Spec(2, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))


@dataclass(frozen=True)
class Still:
    """Nothing moves. The best of the discrete actions is the second, the best continuous action 0.5; or with `reward` set, all
    are alike. Ends with probability `ending` at each step. With `doubt`, the model is sure of the best action only."""

    discrete: bool
    reward: float | None = None
    ending: float = 0.0
    doubt: bool = False

    def start(self, state, obs, key):
        return obs

    def step(self, state, carry, action, key):
        short = 1 - action[1] if self.discrete else jnp.square(action[0] - 0.5)
        reward = 1 - short if self.reward is None else jnp.asarray(self.reward)
        return carry, Prediction(carry, reward, jnp.asarray(self.ending), short if self.doubt else jnp.zeros(()), ())


@dataclass(frozen=True)
class TwoStep:
    """obs = (phase, memory). The first action is remembered, the second does nothing, pays what was remembered, and ends."""

    discrete: bool

    def start(self, state, obs, key):
        return obs

    def step(self, state, carry, action, key):
        phase, memory = carry[0], carry[1]
        remembered = action[1] if self.discrete else action[0]
        obs = jnp.stack([jnp.ones(()), jnp.where(phase > 0.5, memory, remembered)])
        pay = memory if self.discrete else 1 - jnp.square(memory - 0.5)
        return obs, Prediction(obs, jnp.where(phase > 0.5, pay, 0.0), phase, jnp.zeros(()), ())


@dataclass(frozen=True)
class Corridor:
    """obs counts up by one a step; every step pays one; ends when the count reaches three."""

    def start(self, state, obs, key):
        return obs

    def step(self, state, carry, action, key):
        obs = carry + 1
        return obs, Prediction(obs, jnp.ones(()), (obs[0] > 2.5).astype(jnp.float32), jnp.zeros(()), ())


def practise(agent, model, spec, updates):
    """The agent's state after dreams from the origin, where rewards in [-1, 1] have been seen; and its metrics."""
    still, idle, none = jnp.zeros((16, 2)), jnp.zeros((16, spec.action_size)), jnp.zeros(16)
    steps = Transition(still, idle, jnp.linspace(-1, 1, 16), still, none, none)
    experience, world = holding(spec, steps, 16), World(model, ())

    @jax.jit
    def run(key):
        start, key = jax.random.split(key)
        return jax.lax.scan(
            lambda s, k: agent.update(s, world, experience, k), agent.init(spec, start), jax.random.split(key, updates)
        )

    return run(KEY)


def greedy_action(agent, state):
    return np.asarray(agent.act(state, World(None, ()), agent.start(state), jnp.zeros(2), KEY, greedy=True).action)


def assert_best(agent, state):
    action = greedy_action(agent, state)
    if len(action) == 1:
        assert abs(action[0] - 0.5) < 0.15
    else:
        assert action.argmax() == 1


def critic_value(agent, state):
    return float(agent.value.mean(agent.critic(state.critic, jnp.zeros(2)).value))


@pytest.mark.parametrize(
    ("ending", "head"), [(0.0, TwoHot(bins=21, limit=1.5)), (0.25, Regression())], ids=["two-hot-for-ever", "regression-ending"]
)
def test_value_of_a_constant_reward(ending, head):
    agent = replace(DREAMER, value=head)
    state, _ = practise(agent, Still(True, reward=0.6, ending=ending), ARMS, 300)
    # (1 - gamma) 0.6 / (1 - gamma (1 - ending)): 0.6 for ever, less where it may end
    assert critic_value(agent, state) == pytest.approx(0.1 * 0.6 / (1 - 0.9 * (1 - ending)), abs=0.03)


def test_rewards_beyond_those_ever_seen_do_not_count():
    state, _ = practise(DREAMER, Still(True, reward=50.0), ARMS, 300)
    assert critic_value(DREAMER, state) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [(ARMS, "clipped"), (ARMS, "reinforce"), (DIAL, "clipped"), (DIAL, "reinforce"), (DIAL, "model")],
    ids=["discrete-clipped", "discrete-reinforce", "continuous-clipped", "continuous-reinforce", "continuous-model"],
)
def test_agent_finds_the_best_action(spec, gradient):
    agent = replace(DREAMER, gradient=gradient)
    state, metrics = practise(agent, Still(spec.discrete), spec, 250)
    assert_best(agent, state)
    assert finite(state) and finite(metrics)
    # dream_return is the sum over a horizon of four; at best each step pays one.
    assert float(metrics["dream_return"][:5].mean()) < float(metrics["dream_return"][-20:].mean()) <= 4


def test_spiking_agent_finds_the_best_action():
    state, metrics = practise(SPIKING, Still(discrete=True), ARMS, 250)
    assert_best(SPIKING, state)
    assert 0 < float(metrics["firing_rate/actor"][-1]) < 1


@pytest.mark.parametrize(
    ("spec", "gradient", "lambda_"),
    [(ARMS, "clipped", 0.0), (ARMS, "clipped", 0.95), (DIAL, "model", 0.95)],
    ids=["discrete-clipped-0", "discrete-clipped-0.95", "continuous-model-0.95"],
)
def test_agent_credits_an_action_with_what_it_pays_a_step_later(spec, gradient, lambda_):
    agent = replace(DREAMER, gradient=gradient, return_lambda=lambda_)
    state, metrics = practise(agent, TwoStep(spec.discrete), spec, 400)
    assert_best(agent, state)
    assert float(metrics["dream_survival"][-1]) == 0.0


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [(ARMS, "clipped"), (DIAL, "reinforce"), (DIAL, "model")],
    ids=["discrete-clipped", "continuous-reinforce", "continuous-model"],
)
def test_agent_avoids_what_the_model_is_not_sure_of(spec, gradient):
    agent = replace(DREAMER, gradient=gradient)
    state, metrics = practise(agent, Still(spec.discrete, reward=0.5, doubt=True), spec, 250)
    assert_best(agent, state)
    assert float(metrics["dream_uncertainty"][-20:].mean()) < 0.5 * float(metrics["dream_uncertainty"][:3].mean())


def test_a_dream_that_has_ended_earns_nothing_more():
    _, metrics = practise(replace(DREAMER, horizon=8), Corridor(), ARMS, 2)
    np.testing.assert_allclose(metrics["dream_return"], 3.0)
    np.testing.assert_array_equal(metrics["dream_survival"], 0.0)
    np.testing.assert_array_equal(metrics["imagined_steps"], 8 * 32)


def test_a_dream_that_was_still_going_is_continued_by_the_next():
    agent = replace(DREAMER, horizon=1, restart=0.0)
    state, _ = practise(agent, Corridor(), ARMS, 2)
    np.testing.assert_array_equal(state.pool, np.full((32, 2), 2.0))
    np.testing.assert_array_equal(state.pool_alive, 1.0)
    state, _ = practise(agent, Corridor(), ARMS, 4)  # the third step ended them, the fourth is a first one again
    np.testing.assert_array_equal(state.pool, np.full((32, 2), 1.0))


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
