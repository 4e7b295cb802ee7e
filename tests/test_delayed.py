"""Simulated latency, and the pending actions that make up for it."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from spikedream.envs.delayed import Delayed
from spikedream.envs.host import HostEnvironments
from spikedream.envs.make import make_environment, make_own, make_vector, spec_of
from spikedream.envs.spaces import BrokenEnvironment, idle_action


class Echo(gymnasium.Env):
    """Observes the step's number, and pays what action it was given."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float32), Box(-9, 9, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.now += 1
        return np.array([self.now], np.float32), float(action[0]), self.now == 7, False, {}


def play(env, actions):
    rows, ended = [env.reset()[0]], False
    paid = []
    for action in actions:
        obs, reward, ended, _, _ = env.step(np.array([action], np.float32))
        rows.append(obs)
        paid.append(reward)
    return rows, paid, ended


@pytest.mark.parametrize("seen", [0, 1, 3])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_delays_by_hand(seen, done):
    obs, paid, ended = play(Delayed(Echo(), seen, done), range(1, 8))
    assert [float(x[0]) for x in obs] == [max(t - seen, 0) for t in range(8)]
    assert paid == [max(t - done, 0) for t in range(1, 8)] and ended  # 0: nothing had been decided yet
    env = Delayed(Echo(), seen, done, pending_actions=True)
    for _ in range(2):  # the second episode knows nothing of the first
        obs, again, _ = play(env, range(1, 8))
        assert again == paid and env.observation_space.contains(obs[-1])
        for t, (first, *pending) in enumerate(obs):
            assert first[0] == max(t - seen, 0)
            assert [float(a[0]) for a in pending] == [max(a, 0) for a in range(t - seen - done + 1, t + 1)]


def test_any_environment_can_be_delayed_by_its_keyword_arguments():
    delays = {"observation_delay": 1, "action_delay": 2, "pending_actions": True}
    assert spec_of("CartPole-v1", delays, None).obs_size == 4 + 3 * 2  # choices are one-hot
    assert spec_of("Pendulum-v1", delays, None).obs_size == 3 + 3
    assert spec_of("Pendulum-v1", {"action_delay": 2}, None).obs_size == 3
    assert spec_of("INICartPole-v0", delays | {"noise": 1.0}, None).obs_size == 5 + 3
    env = make_environment("CartPole-v1", delays, None)
    env.reset(seed=0)
    obs = np.stack([env.step(a)[0] for a in (1, 0, 1)])
    np.testing.assert_array_equal(obs[:, 4:], [[1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1]])
    # It brings a vectorised form of its own, which has no delays.
    envs = make_vector("CartPole-v1", delays, None, 2)
    assert envs.reset(seed=0)[0].shape == (2, 10)
    envs.close()
    with pytest.raises(BrokenEnvironment, match="action_delay is -1; it must be a whole number of steps"):
        make_own("CartPole-v1", {"action_delay": -1}, None)
    with pytest.raises(BrokenEnvironment, match="observation_delay is 0"):
        make_own("CartPole-v1", {"observation_delay": 0.5}, None)


def test_a_delayed_episode_is_restored():
    kwargs = {"observation_delay": 2, "action_delay": 1, "pending_actions": True}
    make = lambda: HostEnvironments("INICartPoleSwingUp-v0", kwargs, None, seed=3)  # noqa: E731
    first, second = make(), make()
    first.begin()
    rng = np.random.default_rng(0)
    for _ in range(5):
        first.step(rng.uniform(-1, 1, (1, 1)), np.zeros(1))
    assert second.restore(first.positions).all()
    action = np.array([[0.5]])
    np.testing.assert_array_equal(first.step(action, np.zeros(1))[0].next_obs, second.step(action, np.zeros(1))[0].next_obs)


@pytest.mark.parametrize(
    ("space", "nothing"),
    [
        (Box(-1, 1, (2,)), [0, 0]), (Box(2, 3, (1,)), [2]), (Discrete(3, start=4), 4),
        (MultiDiscrete([2, 3], start=[1, 5]), [1, 5]), (MultiBinary(3), [0, 0, 0]),
    ],
)  # fmt: skip
def test_to_do_nothing(space, nothing):
    np.testing.assert_array_equal(idle_action(space), nothing)
    assert space.contains(idle_action(space))


def test_observations_in_parts_can_be_delayed():
    class Parts(Echo):
        observation_space = Dict({"now": Box(-np.inf, np.inf, (1,), np.float32), "kind": Discrete(2)})

        def reset(self, **kwargs):
            return {"now": super().reset(**kwargs)[0], "kind": 1}, {}

    gymnasium.register("Parts-v0", Parts)
    env = make_environment("Parts-v0", {"action_delay": 1, "pending_actions": True}, 5)
    np.testing.assert_array_equal(env.reset()[0], [0, 1, 0, 0])
    del gymnasium.registry["Parts-v0"]
