"""The environments that spikedream brings along."""

import gymnasium
import numpy as np
import pytest

import spikedream
from spikedream.envs.hidden_velocity import HiddenVelocity
from spikedream.envs.host import HostEnvironment, reward_threshold

assert spikedream.__version__  # importing it registers them

HIDDEN = {
    "CartPoleHiddenVelocity-v0": ("CartPole-v1", [0, 2], 500, 475.0),
    "PendulumHiddenVelocity-v0": ("Pendulum-v1", [0, 1], 200, None),
}


@pytest.mark.parametrize(("name", "wanted"), HIDDEN.items(), ids=HIDDEN)
def test_velocities_are_hidden_and_all_else_is_as_it_was(name, wanted):
    base, shown, limit, threshold = wanted
    assert gymnasium.spec(name).max_episode_steps == limit and reward_threshold(name) == threshold
    env, whole = gymnasium.make(name), gymnasium.make(base)
    assert env.observation_space.shape == (len(shown),) and env.observation_space.dtype == np.float32
    np.testing.assert_array_equal(env.observation_space.low, whole.observation_space.low[shown])
    assert env.action_space == whole.action_space
    (obs, _), (everything, _) = env.reset(seed=3), whole.reset(seed=3)
    np.testing.assert_array_equal(obs, everything[shown])
    env.action_space.seed(0)
    for _ in range(8):
        action = env.action_space.sample()
        ours, theirs = env.step(action), whole.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0][shown])
        assert ours[1:4] == theirs[1:4] and env.observation_space.contains(ours[0])
    env.close()
    whole.close()


@pytest.mark.parametrize("name", HIDDEN)
def test_the_time_limit_is_the_registered_one_or_the_one_asked_for(name):
    for asked, wanted in ((None, HIDDEN[name][2]), (7, 7), (900, 900)):
        env = HostEnvironment(name, {}, asked, seed=0)
        assert env.spec.obs_size == 2
        steps, action = 0, np.zeros(env.spec.action_size, np.float32)
        env.reset()
        if "CartPole" in name:  # kept upright by holding its state still
            inner = env._env.unwrapped
        while env.position.obs is not None and steps < 1000:
            if "CartPole" in name:
                inner.state = np.zeros(4)
            step = env.step(action)
            steps += 1
        assert steps == wanted and float(step.truncated) == 1.0 and float(step.terminated) == 0.0
        env.close()


@pytest.mark.parametrize("hidden", [(4,), (-1,), (0, 1, 2, 3), (0, 7)])
def test_entries_that_do_not_exist_cannot_be_hidden(hidden):
    with pytest.raises(ValueError, match=r"cannot hide the entries \[.*\] of an observation of 4 numbers"):
        HiddenVelocity(gymnasium.make("CartPole-v1"), hidden)
