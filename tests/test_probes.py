"""Small learning problems with known answers: what a model must find in data, and an agent in a world that is known."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, finite, holding, same

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.mpc import MPC, MPCState
from spikedream.bonuses.disagreement import Disagreement
from spikedream.config import twin
from spikedream.envs.host import decode_actions
from spikedream.ops.distributions import Regression, TwoHot
from spikedream.ops.schedule import ImaginedShare
from spikedream.planners.cem import CEM
from spikedream.planners.mppi import MPPI
from spikedream.planners.random_shooting import RandomShooting
from spikedream.replay.normalizer import Normalizer, identity
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
    steps = Transition(obs, action, jnp.full(400, 0.7), following, ended, jnp.zeros(400), jnp.zeros(400))
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
    zero = jnp.zeros(rows)
    return holding(PLANE, Transition(obs, action, jnp.full(rows, 0.5), following, zero, zero, zero), rows)


def test_gaussian_head_recovers_the_noise():
    std = np.array([0.4, 0.1])
    model = replace(twin(ENSEMBLE), gaussian=True, members=2, updates=800)
    experience = noise_experience(jnp.asarray(std, jnp.float32), 1000)
    state, _ = jax.jit(model.update)(jax.jit(lambda k: model.init(PLANE, k))(KEY), experience, KEY)
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


GAUSSIAN = replace(twin(ENSEMBLE), gaussian=True, holdout=0.2, members=3, updates=600, support_weight=0.0)


@pytest.fixture(scope="module")
def gaussian():
    """State and metrics by the number of steps that were fitted to."""
    start = jax.jit(lambda k: GAUSSIAN.init(PLANE, k))(KEY)
    update = jax.jit(GAUSSIAN.update)
    return {rows: (windy_experience(rows), *update(start, windy_experience(rows), KEY)) for rows in (40, 1000)}


def test_gaussian_ensemble_tells_noise_from_what_it_does_not_know(gaussian):
    uncertainty, noise = {}, {}
    fresh = windy_experience(300, jax.random.key(9)).data
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
    fresh = windy_experience(1000, jax.random.key(9)).data
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
    data = experience.data._replace(next_obs=experience.data.next_obs.at[wrong].add(0.5))
    errors = np.asarray(jax.jit(model.errors)(state, replace(experience, data=data), KEY))[: int(experience.size)]
    assert set(np.argsort(errors)[-3:]) == {3, 77, 200}
    assert errors[np.asarray(wrong)].min() > 20 * np.median(errors)


def test_fitting_against_the_worst_perturbations_makes_a_model_less_sensitive_to_them():
    # Few steps with much noise: a model without the defence learns some of it by heart.
    experience, sensitivity, states = windy_experience(40), {}, {}
    obs = jax.random.uniform(jax.random.key(4), (200, 2), minval=-1, maxval=1)
    action = jax.random.uniform(jax.random.key(5), (200, 1), minval=-1, maxval=1)
    for radius in (0.0, 1.0):
        model = replace(twin(ENSEMBLE), members=2, updates=400, curvature_penalty=0.0, adversarial=radius)
        state, _ = jax.jit(model.update)(jax.jit(lambda k, m=model: m.init(PLANE, k))(KEY), experience, KEY)
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


class Place(NamedTuple):
    obs: jax.Array


class Known:
    """What the worlds below have in common: one member, and no memory but the observation."""

    members, recurrent = 1, False

    def feature_size(self, spec):
        return spec.obs_size

    def start(self, state, obs, key):
        return Place(obs)

    def feature(self, state, memory):
        return memory.obs

    def member(self, state, memory, index):
        return self, state, memory


def said(obs, reward, terminated=0.0, uncertainty=0.0):
    reward, terminated, uncertainty = (jnp.asarray(x, jnp.float32) for x in (reward, terminated, uncertainty))
    return Place(obs), Prediction(obs, reward, terminated, uncertainty, jnp.zeros(()), ())


@dataclass(frozen=True)
class Still(Known):
    """Nothing moves. The best of the discrete actions is the second, the best continuous action 0.5; or with `reward` set, all
    are alike. Ends with probability `ending` at each step. With `doubt`, the model is sure of the best action only."""

    discrete: bool
    reward: float | None = None
    ending: float = 0.0
    doubt: bool = False

    def step(self, state, memory, action, key):
        short = 1 - action[1] if self.discrete else jnp.square(action[0] - 0.5)
        reward = 1 - short if self.reward is None else self.reward
        return said(memory.obs, reward, self.ending, short if self.doubt else 0.0)


@dataclass(frozen=True)
class TwoStep(Known):
    """obs = (phase, memory). The first action is remembered, the second does nothing, pays what was remembered, and ends."""

    discrete: bool

    def step(self, state, memory, action, key):
        phase, kept = memory.obs
        remembered = action[1] if self.discrete else action[0]
        obs = jnp.stack([jnp.ones(()), jnp.where(phase > 0.5, kept, remembered)])
        pay = kept if self.discrete else 1 - jnp.square(kept - 0.5)
        return said(obs, jnp.where(phase > 0.5, pay, 0.0), phase)


@dataclass(frozen=True)
class Corridor(Known):
    """obs counts up by one a step; every step pays one; ends when the count reaches three."""

    def step(self, state, memory, action, key):
        obs = memory.obs + 1
        return said(obs, 1.0, (obs[0] > 2.5).astype(jnp.float32))


def origin(spec, action=None, reward=None, log_prob=None):
    """Sixteen steps at the origin, each an episode, that pay from -1 to 1 if nothing else is said."""
    still, none = jnp.zeros((16, 2)), jnp.zeros(16)
    action = jnp.zeros((16, spec.action_size)) if action is None else action
    reward = jnp.linspace(-1, 1, 16) if reward is None else reward
    return holding(spec, Transition(still, action, reward, still, none, none + 1, none if log_prob is None else log_prob), 16)


def practise(agent, model, spec, updates, experience=None):
    """The agent's state after dreams from the origin, where rewards in [-1, 1] have been seen; and its metrics."""
    experience, world = origin(spec) if experience is None else experience, World(model, ())

    @jax.jit
    def run(key, experience):
        start, key = jax.random.split(key)
        return jax.lax.scan(
            lambda s, k: agent.update(s, world, experience, k), agent.init(spec, world, start), jax.random.split(key, updates)
        )

    return run(KEY, experience)


def greedy_action(agent, state, model=Known()):  # noqa: B008
    world = World(model, ())
    return np.asarray(agent.act(state, world, agent.start(state, world), jnp.zeros(2), KEY, greedy=True).action)


def assert_best(agent, state, model=Known()):  # noqa: B008
    action = greedy_action(agent, state, model)
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
    np.testing.assert_array_equal(state.pool.obs, np.full((32, 2), 2.0))
    np.testing.assert_array_equal(state.pool.ends.memory.obs, state.pool.obs)
    np.testing.assert_array_equal(state.pool.alive, 1.0)
    state, _ = practise(agent, Corridor(), ARMS, 4)  # the third step ended them, the fourth is a first one again
    np.testing.assert_array_equal(state.pool.obs, np.full((32, 2), 1.0))


# ---- learning from real steps


def random_pulls(spec):
    """What sixteen random actions earned, of which the second (or 0.5) is the best."""
    keys = jax.random.split(jax.random.key(8), 2)
    if spec.discrete:
        action = jnp.eye(3)[jnp.arange(16) % 3]
        return origin(spec, action, action[:, 1], jnp.full(16, -jnp.log(3.0)))
    action = jnp.linspace(-0.95, 0.95, 16)[jax.random.permutation(keys[0], 16)][:, None]
    return origin(spec, action, 1 - jnp.square(action[:, 0] - 0.5), jnp.full(16, -jnp.log(2.0)))


@pytest.mark.parametrize("spec", [ARMS, DIAL], ids=["discrete", "continuous"])
def test_without_imagined_data_the_agent_learns_from_real_steps_alone(spec):
    agent, useless = replace(DREAMER, imagined_share=ImaginedShare(0.0, 0.0), horizon=2), Still(spec.discrete, reward=0.5)
    state, metrics = practise(agent, useless, spec, 250, random_pulls(spec))
    assert_best(agent, state)
    assert finite((state, metrics)) and not metrics["imagined_share"].any()
    # What the world says does not even count a little.
    other, _ = practise(agent, Still(spec.discrete, reward=-0.7, doubt=True), spec, 250, random_pulls(spec))
    np.testing.assert_array_equal(*(np.asarray(jax.tree.leaves(s.actor)[0]) for s in (state, other)))


def test_with_imagined_data_alone_real_rewards_are_not_looked_at():
    agent = replace(DREAMER, horizon=2)
    state, _ = practise(agent, Still(True), ARMS, 250, random_pulls(ARMS))
    assert_best(agent, state)
    experience = random_pulls(ARMS)
    shuffled = replace(experience, data=experience.data._replace(reward=jnp.roll(experience.data.reward, 1)))
    other, _ = practise(agent, Still(True), ARMS, 250, shuffled)
    np.testing.assert_array_equal(*(np.asarray(jax.tree.leaves(s.actor)[0]) for s in (state, other)))


def test_the_share_moves_from_imagined_to_real_steps():
    # The world prefers the second action, the real steps (now they say so) the first.
    experience = random_pulls(ARMS)
    real = replace(experience, data=experience.data._replace(reward=experience.data.action[:, 0])).normalise()
    for share, best in ((0.95, 1), (0.05, 0)):
        agent = replace(DREAMER, imagined_share=ImaginedShare(share, share), horizon=2)
        state, metrics = practise(agent, Still(True), ARMS, 250, real)
        assert greedy_action(agent, state).argmax() == best
        np.testing.assert_allclose(metrics["imagined_share"], share, rtol=1e-6)


def test_real_steps_credit_an_action_with_what_it_pays_a_step_later():
    # Episodes of two steps under random actions; the second pays what the first one chose.
    rows, spec = 96, ARMS
    first = jnp.arange(rows) % 2 == 0
    action = jnp.eye(3)[jax.random.randint(KEY, (rows,), 0, 3)]
    kept = jnp.concatenate([jnp.zeros(1), action[:-1, 1]])
    obs = jnp.where(first[:, None], 0.0, jnp.stack([jnp.ones(rows), kept], axis=1))
    following = jnp.stack([jnp.ones(rows), jnp.where(first, action[:, 1], kept)], axis=1)
    reward, ended = jnp.where(first, 0.0, kept), 1.0 - first
    steps = Transition(obs, action, reward, following, ended, jnp.zeros(rows), jnp.full(rows, -jnp.log(3.0)))
    agent = replace(DREAMER, imagined_share=ImaginedShare(0.0, 0.0))
    experience = holding(spec, steps, rows)
    state, _ = practise(agent, Still(True, reward=0.0), spec, 250, experience)
    world, obs = World(Known(), ()), experience.normalizer.obs(jnp.zeros(2))
    assert int(agent.act(state, world, agent.start(state, world), obs, KEY, greedy=True).action.argmax()) == 1


# ---- planning

PLANNERS = {"cem": CEM(40, 3, 6), "mppi": MPPI(40, 4, 0.2), "random": RandomShooting(200)}


def planned(agent, model, spec, obs=None, greedy=True, policy=None):
    world, obs = World(model, ()), jnp.zeros(2) if obs is None else jnp.asarray(obs)

    @jax.jit
    def act(key):
        state = agent.init(spec, world, key)
        state = state if policy is None else MPCState(policy, spec)
        return agent.act(state, world, agent.start(state, world), obs, key, greedy)

    return act(KEY)


@pytest.mark.parametrize("search", PLANNERS.values(), ids=PLANNERS)
@pytest.mark.parametrize("spec", [ARMS, DIAL], ids=["discrete", "continuous"])
def test_planner_finds_the_best_action(spec, search):
    for model in (Still(spec.discrete), TwoStep(spec.discrete)):
        decision = planned(MPC(search=search, horizon=2), model, spec)
        assert decision.action.argmax() == 1 if spec.discrete else abs(float(decision.action[0]) - 0.5) < 0.3
        assert float(decision.log_prob) == 0.0 and decision.spikes == ()


@pytest.mark.parametrize("search", PLANNERS.values(), ids=PLANNERS)
def test_planner_pushes_the_true_cart_to_where_the_pole_falls(search):
    agent, model = MPC(search=search, horizon=20, gamma=0.99), TrueEnvironment("CartPole")
    world = World(model, TrueState(identity(4)))
    state = agent.init(DISCRETE, world, KEY)
    act = jax.jit(lambda obs: agent.act(state, world, agent.start(state, world), obs, KEY, True).action.argmax())
    leaning = jnp.array([0.0, 0.0, 0.12, 0.6])
    assert int(act(leaning)) == 1 and int(act(-leaning)) == 0


def test_planner_avoids_what_the_model_is_not_sure_of():
    sure = Still(True, reward=0.5, doubt=True)
    assert planned(MPC(horizon=2, uncertainty_penalty=1.0), sure, ARMS).action.argmax() == 1


class Followed(NamedTuple):
    obs: jax.Array
    member: jax.Array


@dataclass(frozen=True)
class Apart(Known):
    """Members that, where there are two, disagree about the first action, which pays a little more than the others."""

    members: int = 2
    more: float = 0.1

    def start(self, state, obs, key):
        return Followed(obs, jnp.zeros((), jnp.int32))

    def member(self, state, memory, index):
        return replace(self, members=1), state, memory

    def step(self, state, memory, action, key):
        _, prediction = said(memory.obs, 0.5 + self.more * action[0], uncertainty=action[0] * (self.members - 1))
        return memory, prediction


@pytest.mark.parametrize("particles", ["all", "one"])
@pytest.mark.parametrize(("penalty", "leaves"), [(0.0, True), (1.0, False)])
def test_planner_penalises_plans_over_which_the_members_part(penalty, particles, leaves):
    agent = MPC(search=RandomShooting(200), horizon=2, uncertainty_penalty=penalty, particles=particles)
    assert bool(planned(agent, Apart(), ARMS).action[0]) is leaves


@pytest.mark.parametrize("particles", ["all", "one"])
def test_planner_is_curious_about_what_the_members_disagree_about(particles):
    model, bonus = Apart(), Disagreement()
    agent = MPC(search=RandomShooting(4), horizon=1, gamma=0.9, particles=particles)
    first, second = jnp.eye(3)[:2]
    actions = jnp.stack([first, second, first, second])[:, None]

    def scores(world):
        return agent._score(MPCState((), ARMS), world, model.start((), jnp.zeros(2), KEY), actions, KEY)

    plain = World(model, ())
    curious = scores(World(model, (), bonus, bonus.init(ARMS, plain, KEY))) - scores(plain)
    assert float(curious[0]) == float(curious[2]) > 0 == float(curious[1]) == float(curious[3])


def test_planner_is_curious_while_it_learns_and_not_when_it_is_asked_for_its_best():
    model, bonus = Apart(more=-0.01), Disagreement()
    plain, agent = World(model, ()), MPC(search=RandomShooting(200), horizon=1, gamma=0.9)
    curious = World(model, (), bonus, bonus.init(ARMS, plain, KEY))

    def decided(world, greedy):
        state = MPCState((), ARMS)
        return agent.act(state, world, agent.start(state, world), jnp.zeros(2), KEY, greedy)

    learning, asked = decided(curious, False), decided(curious, True)
    assert bool(learning.action[0]), "where the members part, there is something to find out"
    assert same(asked, decided(plain, True)) and not bool(asked.action[0])


def test_one_particle_a_candidate_needs_members_that_share_them_equally():
    agent = MPC(search=RandomShooting(9), particles="one")
    with pytest.raises(ValueError, match="candidates is 9, which 2 members cannot share equally"):
        agent.init(ARMS, World(Apart(), ()), KEY)
    agent.init(ARMS, World(Still(True), ()), KEY)


@pytest.fixture(scope="module")
def two_step_policy():
    return practise(DREAMER, TwoStep(True), ARMS, 400)[0]


def test_planner_looks_beyond_its_horizon_through_the_policys_critic(two_step_policy):
    # A single step ahead nothing is paid: only the critic knows that the second action is the good one.
    agent = MPC(search=RandomShooting(60), horizon=1, policy=DREAMER)
    assert planned(agent, TwoStep(True), ARMS, policy=two_step_policy).action.argmax() == 1
    with_it, without = (
        agent._score(MPCState(two_step_policy, ARMS), World(TwoStep(True), ()), Place(jnp.zeros(2)), jnp.eye(3)[:, None], KEY)
        for agent in (agent, replace(agent, terminal_value=False))
    )
    np.testing.assert_array_equal(without, np.zeros(3))
    value = jax.vmap(lambda x: DREAMER.value_of(two_step_policy.target, x, KEY))(jnp.array([[1.0, 0], [1.0, 1], [1.0, 0]]))
    np.testing.assert_allclose(with_it, 0.9 * value, rtol=1e-4)


def test_a_plans_score_is_its_discounted_return_while_alive():
    agent, actions = MPC(horizon=5, gamma=0.9, search=RandomShooting(4)), jnp.zeros((1, 5, 3))
    state = MPCState((), ARMS)
    score = float(agent._score(state, World(Corridor(), ()), Place(jnp.zeros(2)), actions, KEY)[0])
    assert score == pytest.approx(0.1 * (1 + 0.9 + 0.81), rel=1e-5)
    half = float(agent._score(state, World(Still(True, 0.5, ending=0.5), ()), Place(jnp.zeros(2)), actions, KEY)[0])
    assert half == pytest.approx(0.1 * 0.5 * sum(0.45**t for t in range(5)), rel=1e-5)
    undiscounted = replace(agent, gamma=1.0)
    assert float(undiscounted._score(state, World(Corridor(), ()), Place(jnp.zeros(2)), actions, KEY)[0]) == pytest.approx(3.0)


@pytest.mark.parametrize("when", ["always", "collect", "evaluate"])
@pytest.mark.parametrize("greedy", [False, True])
def test_planner_plans_only_when_asked_and_lets_the_policy_act_elsewhere(when, greedy, two_step_policy):
    agent = MPC(search=RandomShooting(30), horizon=2, policy=DREAMER, when=when)
    decision = planned(agent, TwoStep(True), ARMS, greedy=greedy, policy=two_step_policy)
    plans = when == "always" or (when == "evaluate") == greedy
    by_policy = DREAMER.decide(two_step_policy, (), jnp.zeros(2), jax.random.split(KEY, 3)[1], greedy)
    assert float(decision.log_prob) == pytest.approx(0.0 if plans else float(by_policy.log_prob), rel=1e-5)
    assert plans or same(decision.action, by_policy.action)


def test_what_a_planner_needs_a_policy_for_is_refused_without_one():
    asked_for: dict[str, Any] = {
        'when = "evaluate"': {"when": "evaluate"}, 'when = "collect"': {"when": "collect"}, "proposals = 3": {"proposals": 3},
    }  # fmt: skip
    for asked, fields in asked_for.items():
        with pytest.raises(ValueError, match=f"{asked}.*needs a policy: set agent.policy to Dreamer"):
            MPC(**fields)
    agent = MPC()
    with pytest.raises(ValueError, match=r'"td_error" needs a value function: set agent\.policy to Dreamer'):
        agent.errors(MPCState((), ARMS), World(Still(True), ()), origin(ARMS), KEY)


def test_what_the_policy_proposes_is_among_the_candidates(two_step_policy):
    # One sequence of its own against sixteen of a policy that has learned: the plan begins as the policy does.
    agent = MPC(search=RandomShooting(17), horizon=2, policy=DREAMER, proposals=16, terminal_value=False)
    seen = []

    @dataclass(frozen=True)
    class Listening(RandomShooting):
        def plan(self, spec, memory, score, proposals, key):
            seen.append(proposals)
            return super().plan(spec, memory, score, proposals, key)

    agent = replace(agent, search=Listening(17))
    state, world = MPCState(two_step_policy, ARMS), World(TwoStep(True), ())
    agent.act(state, world, agent.start(state, world), jnp.zeros(2), KEY, True)
    assert seen[0].shape == (16, 2, 3)
    first = np.asarray(seen[0][:, 0]).mean(0)
    assert first.argmax() == 1 and first[1] > 0.6


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
