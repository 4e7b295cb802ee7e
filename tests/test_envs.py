"""Environments as the learner sees them: their spaces, side by side, in processes of their own; and those of our own."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import spikedream
from spikedream.config import Config, ConfigError, merge, named
from spikedream.envs import make
from spikedream.envs.hidden_velocity import HiddenVelocity
from spikedream.envs.host import LEARN, HostEnvironments, Position, episode_seed
from spikedream.envs.make import make_environment, make_own, make_vector, reward_threshold, spec_of
from spikedream.envs.spaces import BrokenEnvironment, decode_actions, random_action, translate
from spikedream.runs.evaluate import Evaluator
from spikedream.types import Transition

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
        env = HostEnvironments(name, {}, asked, seed=0)
        assert env.spec.obs_size == 2
        steps, action = 0, np.zeros((1, env.spec.action_size), np.float32)
        env.begin()
        if "CartPole" in name:  # kept upright by holding its state still
            inner = env._group._players[0]._env.unwrapped
        while env.positions[0].obs is not None and steps < 1000:
            if "CartPole" in name:
                inner.state = np.zeros(4)
            step, taken = env.step(action, np.zeros(1))
            steps += taken
        assert steps == wanted and float(step.truncated[0]) == 1.0 and float(step.terminated[0]) == 0.0
        env.close()


@pytest.mark.parametrize("hidden", [(4,), (-1,), (0, 1, 2, 3), (0, 7)])
def test_entries_that_do_not_exist_cannot_be_hidden(hidden):
    with pytest.raises(ValueError, match=r"cannot hide the entries \[.*\] of an observation of 4 numbers"):
        HiddenVelocity(gymnasium.make("CartPole-v1"), hidden)


# ---- spaces


def test_parts_of_an_observation_become_one_vector_in_the_order_of_the_space() -> None:
    env = make_environment("environments:Structured-v0", {}, None)
    obs, _ = env.reset(seed=0)
    own: Any = env.unwrapped
    assert list(own.observation_space) == ["flags", "grid", "kind"]  # Gymnasium sorts them; the environment's own order is another
    several = [0, 1, 0, 1, 0, 0, 1]  # two bits, then one of two, then one of three
    kind = [0, 0, 1] if own.x > 0 else [0, 1, 0]  # counted from 5
    np.testing.assert_array_equal(obs, np.array([*several, own.x, 2, 3, 4, *kind], np.float32))
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)
    env.close()


FLAT = Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(
    ("space", "obs", "wanted"),
    [
        (Box(-1, 1, (2, 2), np.float64), [[1, 2], [3, 4]], [1, 2, 3, 4]),
        (Box(-1, 1, (), np.float64), 0.5, [0.5]),
        (Discrete(3), 1, [0, 1, 0]),
        (Discrete(3, start=-1), -1, [1, 0, 0]),
        (MultiBinary((2, 2)), np.array([[0, 1], [1, 1]], np.int8), [0, 1, 1, 1]),
        (MultiDiscrete([2, 2]), np.array([1, 0]), [0, 1, 1, 0]),
        (Dict({"b": Discrete(2), "a": Box(0, 9, (1,))}), {"b": 1, "a": np.array([7.0])}, [7, 0, 1]),
    ],
    ids=str,
)
def test_an_observation_is_flattened(space: gymnasium.Space, obs: Any, wanted: list[float]) -> None:
    translation = translate("X", space, Discrete(2))
    assert translation.spec.obs_size == len(wanted) and not translation.plain
    np.testing.assert_array_equal(translation.observation(obs), wanted)


@pytest.mark.parametrize(
    ("space", "size", "own"),
    [
        (Discrete(3, start=4), 3, [4, 5, 6]),
        (MultiDiscrete([2, 3]), 6, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]),
        (MultiDiscrete([2, 2], start=[0, 4]), 4, [[0, 4], [0, 5], [1, 4], [1, 5]]),
        (MultiBinary(2), 4, [[0, 0], [0, 1], [1, 0], [1, 1]]),
    ],
    ids=str,
)
def test_every_combination_is_one_choice(space: gymnasium.Space, size: int, own: list[Any]) -> None:
    translation = translate("X", FLAT, space)
    assert translation.spec.discrete and translation.spec.action_size == size
    for choice, wanted in zip(decode_actions(translation.spec, np.eye(size, dtype=np.float32)), own, strict=True):
        action = translation.action(choice)
        np.testing.assert_array_equal(action, wanted)
        assert space.contains(action)
        action *= 0  # whatever an environment does to it: the next one is whole
        np.testing.assert_array_equal(translation.action(choice), wanted)


def test_continuous_actions_of_several_dimensions() -> None:
    space = Box(np.array([[0, -1], [2, 3]], np.float32), np.array([[1, 1], [4, 4]], np.float32))
    translation = translate("X", FLAT, space)
    spec = translation.spec
    assert not spec.discrete and spec.action_low == (0, -1, 2, 3) and spec.action_high == (1, 1, 4, 4)
    decoded = decode_actions(spec, np.array([[-1, 0, 1, 9]], np.float32))[0]
    np.testing.assert_array_equal(translation.action(decoded), [[0, 0], [4, 4]])
    assert translate("X", FLAT, Box(-1, 1, (2,))).plain and translate("X", FLAT, Discrete(2)).plain


@pytest.mark.parametrize(
    ("observed", "taken", "says"),
    [
        (Box(0, 255, (64, 64, 3), np.uint8), Discrete(2), "an image; supported are flat Box observations"),
        (Dict({"a": Box(0, 1, (12, 12))}), Discrete(2), "an image; supported are flat Box observations"),
        (gymnasium.spaces.Sequence(Discrete(2)), Discrete(2), "supported are flat Box observations"),
        (Dict({}), Discrete(2), "which holds no number"),
        (FLAT, MultiDiscrete([8, 8, 9]), "576 combinations, and supported are up to 512"),
        (FLAT, MultiBinary(10), "1024 combinations, and supported are up to 512"),
        (FLAT, Dict({"a": Discrete(2)}), "supported are Discrete, MultiDiscrete, MultiBinary and bounded Box actions"),
        (FLAT, Box(0, np.inf, (20,)), "supported are bounded Box actions"),
    ],
    ids=str,
)
def test_spaces_without_a_flat_form_are_refused(observed: gymnasium.Space, taken: gymnasium.Space, says: str) -> None:
    with pytest.raises(BrokenEnvironment, match=says) as error:
        translate("X-v0", observed, taken)
    assert str(error.value).startswith("X-v0 ") and "\n" not in str(error.value)


def test_the_action_that_was_chosen_arrives_while_learning_and_in_evaluation() -> None:
    host, vector = (
        HostEnvironments("environments:Structured-v0", {}, None, 0),
        make_vector("environments:Structured-v0", {}, None, 6),
    )
    assert host.spec.obs_size == 14 and host.spec.action_size == 6 and vector.single_action_space == Discrete(6)
    host.begin()
    rewards = [float(host.step(np.eye(6)[i : i + 1], np.zeros(1))[0].reward[0]) for i in (0, 5, 1)]
    assert rewards == [4, 16, 5]  # ten times the first number, 0 or 1, and the second, which counts from 4
    vector.reset(seed=0)
    np.testing.assert_array_equal(vector.step(np.arange(6))[1], [4, 5, 6, 14, 15, 16])
    host.close()
    vector.close()


def test_an_observation_that_does_not_fit_its_space_is_an_error() -> None:
    host = HostEnvironments("environments:NotAsSaid-v0", {}, None, 0)
    with pytest.raises(
        BrokenEnvironment, match=r"NotAsSaid-v0 has no such observation: array\(.*; its space is Dict\('x': Discrete\(2\)\)"
    ):
        host.begin()
    host.close()


def test_a_vectorised_form_is_used_where_nothing_has_to_be_translated() -> None:
    for name, synchronous in (("CartPole-v1", False), ("Pendulum-v1", True)):
        envs = make_vector(name, {}, 30, 3)
        assert isinstance(envs, gymnasium.vector.SyncVectorEnv) == synchronous and envs.num_envs == 3
        envs.close()


# ---- the end of an episode, and repeated actions


def play(host: HostEnvironments, steps: int, seed: int = 0) -> list[Transition]:
    """With random actions, of which each environment and step has its own."""
    played = []
    for t in range(steps):
        host.begin()
        actions = [random_action(host.spec, np.random.default_rng([seed, t, i])) for i in range(host.count)]
        played.append(host.step(np.stack(actions), np.full(host.count, -0.5))[0])
    return played


def test_an_environment_that_ends_its_episodes_needs_no_time_limit() -> None:
    host = HostEnvironments("environments:SelfTruncating-v0", {}, None, 0)
    ends = [float(step.truncated[0]) for step in play(host, 21)]
    assert ends == [0, 0, 0, 0, 0, 0, 1] * 3 and host.positions[0].episode == 3
    host.close()


def test_an_episode_without_an_end_is_stopped_and_says_how_to_limit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "LONGEST_EPISODE", 30)
    says, endless = "has not ended an episode in 30 steps and names no time limit: give one with --max-episode-steps", {"length": 0}
    host = HostEnvironments("environments:SelfTruncating-v0", endless, None, 0, action_repeat=4)
    with pytest.raises(BrokenEnvironment, match=says):
        play(host, 8)
    host.close()
    evaluator = Evaluator(Config(env="environments:SelfTruncating-v0", env_kwargs=endless), 2)
    with pytest.raises(BrokenEnvironment, match=says):
        evaluator(Always(1), None, jax.random.key(0), 0)
    evaluator.close()
    for kwargs, limit in ((endless, 40), ({"length": 30}, None)):
        host = HostEnvironments("environments:SelfTruncating-v0", kwargs, limit, 0)
        assert sum(float(step.truncated[0]) for step in play(host, 40)) == 1
        host.close()


class Always:
    """In the place of an `Algorithm`, as far as evaluation needs one."""

    def __init__(self, choice: int):
        self.spec, self.choice = spec_of("environments:Walk-v0", {}, None), choice

    def start(self, *_: Any) -> None: ...

    def act(self, policy: Any, carry: Any, obs: np.ndarray, key: Any, greedy: bool) -> Any:
        from types import SimpleNamespace

        action = np.eye(2, dtype=np.float32)[np.full(len(obs), self.choice)]
        return SimpleNamespace(action=action, carry=None, rate=np.zeros(len(obs)), key=key)


@pytest.mark.parametrize("terminates", [False, True])
def test_a_repeated_action_adds_rewards_and_stops_where_the_episode_does(terminates: bool) -> None:
    kwargs = {"terminates": terminates}
    host = HostEnvironments("environments:SelfTruncating-v0", kwargs, None, 0, action_repeat=3)
    host.begin()
    outcomes = [host.step(np.eye(2)[:1], np.zeros(1)) for _ in range(3)]
    assert [taken for _, taken in outcomes] == [3, 3, 1]
    assert [float(step.reward[0]) for step, _ in outcomes] == [1 + 2 + 3, 4 + 5 + 6, 7]
    ends = [float((step.terminated if terminates else step.truncated)[0]) for step, _ in outcomes]
    assert ends == [0, 0, 1] and len(host.positions[0].actions) == 0 and host.positions[0].episode == 1
    x = [float(step.obs[0, 0]) for step, _ in outcomes]
    np.testing.assert_allclose(np.diff(x), -0.03, atol=1e-6)
    host.close()
    config = merge(Config(), {"env": "environments:SelfTruncating-v0", "env_kwargs": kwargs, "action_repeat": 3})
    evaluator = Evaluator(config, 4)
    result = evaluator(Always(1), None, jax.random.key(0), 0)
    evaluator.close()
    assert result.returns.tolist() == [28.0] * 4 and result.lengths.tolist() == [7] * 4
    with pytest.raises(ConfigError, match="action_repeat is 0; it must be at least 1"):
        merge(Config(), {"action_repeat": 0})


# ---- side by side


def assert_same(a: list[Transition], b: list[Transition], rows: slice = slice(None)) -> None:
    assert len(a) == len(b) > 0
    for left, right in zip(a, b, strict=True):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_array_equal(x[rows], y)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_each_of_several_environments_plays_as_if_it_were_alone(env: str) -> None:
    """The i-th plays the episodes i, i + 3, i + 6 ... of the very seeds that one environment would meet."""
    host = HostEnvironments(env, {}, 40, seed=5, count=3)
    played = play(host, 100)
    assert played[0].obs.shape == (3, host.spec.obs_size) and played[0].action.shape == (3, host.spec.action_size)
    assert all(leaf.dtype == np.float32 and leaf.shape[0] == 3 for step in played for leaf in step)
    alone = gymnasium.make(env, max_episode_steps=40)
    for i in range(3):
        episode, done, obs = i, True, None
        for t, step in enumerate(played):
            if done:
                obs, _ = alone.reset(seed=episode_seed(5, LEARN, episode))
            np.testing.assert_array_equal(step.obs[i], obs)
            action = decode_actions(host.spec, random_action(host.spec, np.random.default_rng([0, t, i]))[None])[0]
            obs, reward, terminated, truncated, _ = alone.step(action)
            np.testing.assert_array_equal(step.next_obs[i], np.asarray(obs, np.float32))
            assert step.reward[i] == np.float32(reward) and step.terminated[i] == terminated and step.truncated[i] == truncated
            done = terminated or truncated
            episode += 3 * done
        assert host.positions[i].episode == episode > i
    assert all(float(x) == -0.5 for step in played for x in step.log_prob)
    alone.close()
    host.close()


def test_begin_says_which_episodes_are_fresh_and_leaves_the_past_alone() -> None:
    host = HostEnvironments("CartPole-v1", {}, 4, seed=0, count=2)
    assert host.begin().tolist() == [True, True] and host.begin().tolist() == [False, False]
    push = np.tile(np.eye(2, dtype=np.float32)[:1], (2, 1))
    last = [host.step(push, np.zeros(2))[0] for _ in range(4)][-1]
    assert last.truncated.tolist() == [1, 1] and all(position.obs is None for position in host.positions)
    kept, before = last.next_obs.copy(), host.positions
    assert [position.episode for position in before] == [2, 3]
    assert host.begin().tolist() == [True, True]
    np.testing.assert_array_equal(last.next_obs, kept)
    host.step(push, np.zeros(2))
    push[:] = 0  # the caller's own array: what was done stays done
    assert host.positions[0].actions[0].tolist() == [1, 0]
    host.close()
    with pytest.raises(ValueError, match="must be at least 1"):
        HostEnvironments("CartPole-v1", {}, None, 0, count=0)


def copied(positions: list[Position]) -> list[Position]:
    """As a checkpoint would keep them."""
    return [Position(p.episode, [a.copy() for a in p.actions], None if p.obs is None else p.obs.copy()) for p in positions]


@pytest.mark.parametrize("workers", [False, True], ids=["here", "workers"])
def test_going_back_leads_to_where_it_was(workers: bool) -> None:
    arguments: dict[str, Any] = {"count": 3, "workers": workers, "action_repeat": 2}
    first = HostEnvironments("CartPole-v1", {}, None, 1, **arguments)
    second = HostEnvironments("CartPole-v1", {}, None, 1, **arguments)
    play(first, 6)
    while all(position.obs is not None for position in first.positions):  # until one of them is between two episodes
        push = np.tile(np.eye(2, dtype=np.float32)[:1], (3, 1))
        first.step(push, np.zeros(3))
    positions = copied(first.positions)
    assert second.restore(positions).tolist() == [True, True, True]
    for there, here in zip(positions, second.positions, strict=True):
        assert there.episode == here.episode and len(there.actions) == len(here.actions)
        assert (there.obs is None) == (here.obs is None)
    assert_same(play(first, 25, seed=2), play(second, 25, seed=2))
    first.close()
    second.close()


def test_where_going_back_leads_elsewhere_the_next_episode_begins() -> None:
    host = HostEnvironments("environments:Unseeded-v0", {}, None, 1, count=2)
    play(host, 2)
    positions = copied(host.positions)
    assert all(position.obs is not None for position in positions)
    fresh = [positions[0], Position(7, [], None)]
    assert host.restore(fresh).tolist() == [False, True]
    assert [(p.episode, p.actions, p.obs) for p in host.positions] == [(2, [], None), (7, [], None)]
    assert host.begin().all()
    host.close()
    other = HostEnvironments("environments:SelfTruncating-v0", {"length": 2}, None, 1)  # shorter than what is replayed
    assert other.restore([Position(4, [np.eye(2)[0]] * 3, np.zeros(2, np.float32))]).tolist() == [False]
    assert other.positions[0].episode == 5
    other.close()


# ---- in threads and processes of their own


def test_threads_play_the_same_and_wait_side_by_side() -> None:
    arguments = ("environments:Structured-v0", {}, 9, 3)
    here, there = (HostEnvironments(*arguments, count=3, threads=threads) for threads in (False, True))
    assert_same(play(here, 30), play(there, 30))
    waiting = HostEnvironments("environments:Waits-v0", {"seconds": 0.05}, None, 0, count=8, threads=True)
    waiting.begin()
    start = time.perf_counter()
    waiting.step(np.tile(np.eye(2, dtype=np.float32)[:1], (8, 1)), np.zeros(8))
    assert time.perf_counter() - start < 8 * 0.05 / 2
    for host in (here, there, waiting):
        host.close()
    with pytest.raises(ValueError, match="not both"):
        HostEnvironments("CartPole-v1", {}, None, 0, workers=True, threads=True)


def processes(host: HostEnvironments) -> list[subprocess.Popen]:
    return host._group._processes


def test_workers_play_the_same_and_are_gone_afterwards() -> None:
    arguments = ("environments:Structured-v0", {}, 9, 3)
    here, there = (HostEnvironments(*arguments, count=3, workers=workers, action_repeat=2) for workers in (False, True))
    assert here.spec == there.spec
    assert_same(play(here, 30), play(there, 30))
    here.close()
    started = processes(there)
    assert 1 <= len(started) <= 3 and all(process.poll() is None for process in started)
    there.close()
    assert all(process.poll() == 0 for process in started)
    there.close()  # twice does no harm
    with pytest.raises(BrokenEnvironment, match="have been closed"):
        play(there, 1)


def test_a_process_that_plays_environments_imports_no_jax() -> None:
    code = "import spikedream.envs.workers, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_worker_that_is_killed_is_told_and_none_is_left() -> None:
    host = HostEnvironments("environments:Walk-v0", {}, None, 0, count=4, workers=True)
    play(host, 2)
    started = processes(host)
    os.kill(started[-1].pid, signal.SIGKILL)
    with pytest.raises(BrokenEnvironment, match=r"Walk-v0: the worker process of environments? .*3 died \(SIGKILL\)"):
        play(host, 2)
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("Raises", r"raised RuntimeError in step\(\): the motor is on fire"),
        ("Exits", r"the worker process of environments? 0.* died \(exit status 3\)"),
    ],
)
def test_an_environment_that_fails_in_a_worker_is_told_and_no_worker_is_left(env: str, says: str) -> None:
    host = HostEnvironments(f"environments:{env}-v0", {}, None, 0, count=2, workers=True)
    with pytest.raises(BrokenEnvironment, match=says):
        play(host, 50)
    assert all(process.poll() is not None for process in processes(host))


def test_environments_of_different_spaces_are_not_played_side_by_side(tmp_path: Path) -> None:
    before = children()
    for workers in (False, True):
        claim = str(tmp_path / f"claim-{workers}")
        with pytest.raises(BrokenEnvironment, match="makes environments of different spaces, which cannot be played side by side"):
            HostEnvironments("environments:Fickle-v0", {"claim": claim}, None, 0, count=3, workers=workers)
    assert children() <= before


def children() -> set[str]:
    """Processes that this one has started and that are still there."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(entry.parent.name)
    return found


SCRIPT = """
import gymnasium, numpy as np, os, signal, sys
sys.path.insert(0, {tests!r})
from environments import Walk
from spikedream.envs.host import HostEnvironments

class Mine(Walk):
    pass

gymnasium.register("Mine-v0", Mine, max_episode_steps=20)
host = HostEnvironments("Mine-v0", {{}}, None, 0, count=2, workers=True)
host.begin()
host.step(np.eye(2), np.zeros(2))
print(*(process.pid for process in host._group._processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_an_id_of_the_users_own_script_works_and_no_worker_outlives_it(tmp_path: Path) -> None:
    """A script without an `if __name__ == "__main__"`, killed where it can clean up nothing."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    workers = done.stdout.split()
    assert workers and done.returncode == -signal.SIGKILL, done.stderr

    def running(pid: str) -> bool:
        stat = Path("/proc", pid, "stat")
        try:
            return stat.read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    end = time.monotonic() + 20
    while any(running(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(running(pid) for pid in workers)


# ---- dm_control


@pytest.mark.extras
def test_dm_control_is_played_without_a_time_limit_and_comes_back_to_where_it_was() -> None:
    host, again = (HostEnvironments("dm_control/cartpole-swingup-v0", {}, None, 0, action_repeat=2) for _ in range(2))
    assert host.spec.obs_size == 5 and host.spec.action_size == 1 and not host.spec.discrete
    play(host, 20)
    assert again.restore(copied(host.positions)).all()
    assert_same(play(host, 10, seed=1), play(again, 10, seed=1))
    assert [float(step.truncated[0]) for step in play(host, 470)][-1] == 1  # it stops itself after 1,000 steps
    host.close()
    again.close()


@pytest.mark.skipif(importlib.util.find_spec("dm_control") is not None, reason="dm_control is installed")
def test_dm_control_says_what_to_install() -> None:
    with pytest.raises(BrokenEnvironment, match=r"needs dm_control.*: pip install 'spikedream\[dm-control\]'"):
        spec_of("dm_control/cartpole-swingup-v0", {}, None)


# ---- MuJoCo


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs spikedream[mujoco]")
def test_mujoco_is_played_without_a_warning_or_a_file_and_comes_back_to_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    host, again = (HostEnvironments("HalfCheetah-v4", {}, None, 0) for _ in range(2))
    assert host.spec.obs_size == 17 and host.spec.action_size == 6 and not host.spec.discrete
    play(host, 30)
    assert again.restore(copied(host.positions)).all()
    assert_same(play(host, 10, seed=1), play(again, 10, seed=1))
    host.close()
    again.close()
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs spikedream[mujoco]")
def test_mujoco_is_drawn_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        importlib.import_module("mujoco.egl")
    except Exception:
        pytest.skip("EGL does not work here")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    env = make_own("Hopper-v4", {}, None, "rgb_array")
    env.reset(seed=0)
    frame = np.asarray(env.render())
    env.close()
    assert frame.shape == (480, 480, 3) and len(np.unique(frame.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("tries", "otherwise", "given", "said"),
    [
        ("json", None, {}, "egl"),
        ("no_such_module", None, {}, None),
        ("no_such_module", "disabled", {}, "disabled"),
        ("json", None, {"MUJOCO_GL": "osmesa"}, "osmesa"),
        ("json", "disabled", {"DISPLAY": ":0"}, None),
    ],
)
def test_mujoco_is_told_how_to_draw_where_there_is_no_display(tries, otherwise, given, said, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", given)
    monkeypatch.setattr(sys, "platform", "linux")
    make.draw_without_display(tries, otherwise)
    assert given.get("MUJOCO_GL") == said


def test_the_compact_humanoid_sees_positions_and_velocities_only() -> None:
    pytest.importorskip("mujoco")
    compact, whole = named("humanoid-compact"), named("humanoid")
    observed = []
    for env in (make_own(compact.env, compact.env_kwargs, None), make_own(whole.env, {}, None)):
        first = env.reset(seed=3)[0]
        observed.append(np.stack([first, *(env.step(np.full(17, 0.1))[0] for _ in range(5))]))
        env.close()
    assert observed[0].shape == (6, 45)
    np.testing.assert_array_equal(observed[0], observed[1][:, :45])


def test_mujoco_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "mujoco" else there(name, *rest))
    with pytest.raises(BrokenEnvironment, match=r"HalfCheetah-v4 needs mujoco: pip install 'spikedream\[mujoco\]'"):
        spec_of("HalfCheetah-v4", {}, None)
