"""Environments on the wall clock, here mostly on one that tests turn by hand, and a run that learns in real time."""

import time

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from spikedream import cli, training
from spikedream import config as configuration
from spikedream.envs.host import HostEnvironments
from spikedream.envs.real_time import Pace, RealTime, Timing, together
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.reports.curves import GROUPS, curves
from spikedream.runners.sync import Trainer

TICK = 0.02


class Clock:
    """Goes on only by what is slept, and by what is added to `now`."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


class Counting(gymnasium.Env):
    """Observes how many steps there have been, pays 1 for each, keeps the actions, and ends after `length`."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float32), Box(-9, 9, (1,), np.float32)

    def __init__(self, length=1000, clock=None, takes=0.0):
        self.length, self.clock, self.takes = length, clock, takes

    def reset(self, *, seed=None, options=None):
        self.actions = []
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.actions.append(float(action[0]))
        if self.clock is not None:
            self.clock.now += self.takes
        return np.array([len(self.actions)], np.float32), 1.0, len(self.actions) == self.length, False, {"own": 3}


def on_a_clock(pace=Pace(), repeat=1, **kwargs):  # noqa: B008  frozen
    clock = Clock()
    own = Counting(clock=clock, **kwargs)
    env = RealTime(own, pace, repeat, clock, clock.sleep)
    env.reset()
    return env, own, clock


def act(env, clock, action, after):
    """Decide `after` so many ticks."""
    clock.now += after * TICK
    return env.step(np.array([action], np.float32))


def test_an_action_in_time_counts_for_its_whole_tick_and_the_answer_comes_when_that_is_over():
    env, own, clock = on_a_clock()
    for i in range(1, 6):
        obs, reward, over, cut, info = act(env, clock, i, 0.75)
        assert (obs[0], reward, over, cut, info) == (i, 1.0, False, False, {"own": 3, "ticks": 1})
        assert clock.now == pytest.approx(100 + i * TICK)
    timing = env.take_timing()
    assert own.actions == [1, 2, 3, 4, 5] and (timing.ticks, timing.missed) == (5, 0)
    np.testing.assert_allclose(timing.latency, 0.75 * TICK, rtol=1e-6)
    np.testing.assert_allclose(timing.jitter, 0, atol=1e-9)
    assert env.take_timing() == Timing()  # they are told once


@pytest.mark.parametrize(("late", "meanwhile"), [("hold", 1.0), ("idle", 0.0)])
def test_the_environment_goes_on_without_an_action(late, meanwhile):
    env, own, clock = on_a_clock(Pace(late=late))
    act(env, clock, 1, 0.5)
    obs, reward, _, _, info = act(env, clock, 2, 3.5)  # three ticks pass, and it is in time for the fourth
    assert own.actions == [1, meanwhile, meanwhile, meanwhile, 2]
    assert (obs[0], reward, info["ticks"]) == (5, 4.0, 4) and clock.now == pytest.approx(100 + 5 * TICK)
    timing = env.take_timing()
    assert (timing.ticks, timing.missed) == (5, 3) and timing.metrics()["realtime/missed"] == pytest.approx(0.6)
    # Before anything is decided, it idles; and an episode may end before an action has come at all.
    env.reset()
    assert own.actions == []
    own.length = 2
    obs, reward, over, _, info = act(env, clock, 7, 9.5)
    assert own.actions == [0, 0] and over and reward == 2 and info["ticks"] == 2
    assert env.take_timing().missed == 2


def test_an_action_is_repeated_for_ticks():
    env, own, clock = on_a_clock(repeat=3)
    obs, reward, _, _, info = act(env, clock, 1, 0.1)
    assert (obs[0], reward, info["ticks"]) == (3, 3.0, 3) and clock.now == pytest.approx(100 + 3 * TICK)
    _, _, _, _, info = act(env, clock, 2, 1.2)
    assert own.actions == [1, 1, 1, 1, 2, 2, 2] and info["ticks"] == 4
    own.length = 8
    assert act(env, clock, 3, 0.1)[4]["ticks"] == 1
    assert len(env.take_timing().latency) == 3


def test_what_computes_for_longer_than_a_tick_is_late_and_what_always_does_is_refused():
    env, _, clock = on_a_clock(takes=0.5 * TICK)
    act(env, clock, 1, 0.75)
    assert env.take_timing().jitter[0] == pytest.approx(0.25 * TICK)
    env, _, clock = on_a_clock(takes=1.5 * TICK)
    with pytest.raises(BrokenEnvironment, match="longer than its tick of 20 ms: it cannot keep real time"):
        for _ in range(100):
            act(env, clock, 1, 0.1)
    with pytest.raises(ValueError, match="tick is 0; it must be at least"):
        Pace(tick=0)


def test_timings_add_up():
    a, b = Timing(10, 1, [0.001] * 999 + [0.1], [0.0]), Timing(30, 3, [0.001], [0.002])
    both = together([a, b])
    assert (both.ticks, both.missed) == (40, 4)
    told = both.metrics()
    assert told["realtime/missed"] == 0.1 and told["realtime/latency_ms"] == pytest.approx(1.0)
    assert told["realtime/latency_ms_99"] == pytest.approx(1.0) and told["realtime/jitter_ms"] == pytest.approx(1.0)
    assert Timing().metrics() == {}


@pytest.mark.parametrize("workers", [False, True])
def test_environments_side_by_side_keep_the_wall_clock(workers):
    envs = HostEnvironments("INICartPoleSwingUp-v0", {}, None, 0, 2, workers, action_repeat=2, pace=Pace(0.01))
    try:
        envs.begin()
        first = envs.step(np.zeros((2, 1)), np.zeros(2))[1]
        begun, taken = time.perf_counter(), 0
        for _ in range(10):
            taken += envs.step(np.zeros((2, 1)), np.zeros(2))[1]
        ticks = (time.perf_counter() - begun) / 0.01
        assert -1 < ticks - taken / 2 < 10  # all that passed are counted
        timing = envs.take_timing()
        assert timing.ticks == first + taken and len(timing.latency) == 22
        time.sleep(0.055)
        assert envs.step(np.zeros((2, 1)), np.zeros(2))[1] >= 2 * (2 + 5)
        assert envs.take_timing().missed >= 10
        # It cannot be had again: another begins in its place.
        assert not envs.restore(envs.positions).any()
    finally:
        envs.close()


def test_a_run_in_real_time_plays_whole_episodes_and_tells_how_the_clock_was_kept(tmp_path):
    changes = {
        "env": "INICartPole-v0", "max_episode_steps": 25, "budget": 1000, "realtime": {"tick": 0.01}, "collect": {"steps": 10},
        "evaluation": {"episodes": 2}, "agent": {"actor": "MLP", "critic": "MLP"}, "world_model": {"dynamics": "MLP"},
    }  # fmt: skip
    config = configuration.merge(configuration.Config(), changes)
    several = configuration.merge(config, {"collect": {"environments": 2}})
    with pytest.raises(ValueError, match="environments is 2; where acting and learning take turns, real time has one"):
        Trainer(several, tmp_path, training._Silence())
    trainer, told = Trainer(config, tmp_path, training._Silence(), alone=False), []
    try:
        for _ in range(3):  # first random episodes, then the agent's own
            trainer.play()
            trainer.remember()
            # Between episodes: no clock runs while it learns. A turn is at least as many steps as wanted.
            assert trainer.collector.between_episodes and trainer.progress.collected >= 10
            trainer.evaluate()
            trainer.turn_over()
            told.append(trainer.progress.row)
    finally:
        trainer.close()
    assert sum(row["realtime/ticks"] for row in told) == told[-1]["real_steps"] == trainer.progress.real_steps
    assert all(0 <= row["realtime/missed"] < 1 and 0 < row["realtime/latency_ms"] < 10 for row in told)
    group = next(group for group in GROUPS if group.anchor == "real-time")
    assert "Ticks without an action" in curves(group, told)
    assert configuration.load(tmp_path / "config.yaml").realtime == Pace(0.01)


def test_real_time_is_switched_on_and_set():
    assert configuration.merge(configuration.Config(), {"realtime": True}).realtime == Pace()
    assert cli.parse_train(["debug", "--realtime"]).config.realtime == Pace()
    assert cli.parse_train(["debug", "--realtime.tick", "0.05", "--realtime.late", "idle"]).config.realtime == Pace(0.05, "idle")
    for both in (["--realtime", "--realtime.tick", "0.05"], ["--realtime.tick", "0.05", "--realtime"]):
        assert cli.parse_train(["debug", *both]).config.realtime == Pace(0.05)
    assert cli.parse_train(["debug"]).config.realtime is None
    with pytest.raises(configuration.ConfigError, match=r"realtime\.tick is 0\.0; it must be at least"):
        cli.parse_train(["debug", "--realtime.tick", "0"])
