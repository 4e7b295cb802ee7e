"""Environments elsewhere: real sockets, a real server process, and others at the end of the line that misbehave."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import spikedream
from spikedream import cli
from spikedream.envs.host import HostEnvironments
from spikedream.envs.make import make_own
from spikedream.envs.real_time import Pace
from spikedream.envs.server import LATE, Server
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.envs.wire import BadMessage, Line, LineLost, entry, numbers, read_space, told_space

TICK = 0.01
RIG = []  # what the environments below were given, in order; None where one was closed


class Rig(gymnasium.Env):
    """Two numbers observed: how many steps there have been, and the last action. Ends after `length`."""

    def __init__(self, length=10_000, trouble=""):
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-1, 1, (1,), np.float32)
        self.length, self.trouble = length, trouble

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        RIG.append(float(action[0]))
        if self.trouble == "slow" or (self.trouble == "stutters" and self.now % LATE):
            time.sleep(1.5 * TICK)
        if self.trouble == "raises" and self.now > 3:
            raise OSError("the cable is out")
        return np.array([self.now, action[0]], np.float32), 1.0, self.now == self.length, False, {}

    def close(self):
        RIG.append(None)


gymnasium.register("Rig-v0", Rig)


@pytest.fixture
def serve():
    """Starts a server in a thread; what it said is kept in `said`."""
    running = []

    def start(env_id="Rig-v0", silence=3, patience=0.5, sessions=1, port=0, late="hold", **kwargs):
        server = Server(env_id, kwargs, "127.0.0.1", port, Pace(TICK, late), silence, patience, sessions, server_said.append)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return server

    server_said = []
    start.said = server_said
    RIG.clear()
    yield start
    for server, thread in running:
        server.stop()
        thread.join(5)
        assert not thread.is_alive()


def remote(server, **kwargs):
    return make_own("RemoteEnvironment-v0", {"address": f"127.0.0.1:{server.port}", **kwargs}, None)


def connect(server):
    return Line(socket.create_connection(("127.0.0.1", server.port), timeout=2))


def push(x):
    return np.array([x], np.float32)


# ---- the two ends together


def test_an_episode_is_played_in_real_time_and_its_end_ends_the_line(serve):
    server = serve(length=30)
    env = remote(server)
    assert env.observation_space == Box(-np.inf, np.inf, (2,), np.float32) and env.action_space == Box(-1, 1, (1,), np.float32)
    for _ in range(2):
        first, _ = env.reset(seed=4)
        begun, ticks, over, total = time.perf_counter(), 0, False, 0.0
        np.testing.assert_array_equal(first, [0, 0])
        while not over:
            obs, reward, over, cut, info = env.step(push(0.25))
            ticks, total = ticks + info["ticks"], total + reward
            assert obs[0] == ticks and not cut and (obs[1] == 0.25 or over)
        assert ticks == total == 30 and time.perf_counter() - begun > 30 * TICK - 0.02  # a loaded machine may be slower
    env.close()
    assert RIG.count(None) >= 2  # closed after each


def test_what_a_slow_learner_misses_is_made_up_for_and_the_motor_stops_after_some_ticks_of_silence(serve):
    env = remote(serve(silence=3, patience=10.0))
    env.reset()
    env.step(push(0.5))
    time.sleep(0.1)
    _, reward, _, _, info = env.step(push(-0.5))
    assert 9 <= info["ticks"] <= 14 and reward == info["ticks"]
    assert env.step(push(-0.5))[0][1] == -0.5  # what was sent as a tick ended counts from the next one on
    given = [x for x in RIG if x is not None]
    first = given.index(0.5)
    held = given[first:].index(0.0)
    assert 2 <= held <= 4 and set(given[first + held : -1]) <= {0.0, -0.5}  # held for the ticks of silence, then idle
    env.close()


def test_without_holding_the_environment_idles_in_each_tick_without_an_action(serve):
    env = remote(serve(late="idle", patience=10.0))
    env.reset()
    env.step(push(0.5))
    time.sleep(0.05)
    env.step(push(0.5))
    patience = time.monotonic() + 5.0
    while (RIG.count(0.5) < 2 or RIG.count(0.0) < 3) and time.monotonic() < patience:  # a loaded machine ticks later
        time.sleep(TICK)
    time.sleep(3 * TICK)  # nor is the second one held
    given = [x for x in RIG if x is not None]
    assert given.count(0.5) == 2 and given.count(0.0) >= 3
    env.close()


def test_a_lost_line_is_taken_up_again_in_the_same_episode(serve):
    env = remote(serve(patience=5.0, silence=50))
    env.reset()
    for _ in range(3):
        before = env.step(push(0.5))[0]
    RIG.clear()
    env.unwrapped._line._connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    after, reward, *_, info = env.step(push(0.75))
    assert after[0] > before[0] + 3 and reward == info["ticks"] == after[0] - before[0]
    assert 0.0 in RIG[1:-1] and set(RIG[1:-1]) <= {0.0, 0.75}  # the motor had stopped at once, long before silence would stop it
    # What is shown first may be the end of the tick in which the action came: it counts from the next one on.
    assert after[1] in (0.0, 0.75) and env.step(push(0.75))[0][1] == 0.75
    assert serve.said[-1].endswith("the line is back")
    env.close()


def test_whoever_leaves_stops_the_motor_and_frees_the_environment(serve):
    server = serve(patience=30.0)
    first, second = remote(server), remote(server, patience=0.3)
    first.reset()
    with pytest.raises(BrokenEnvironment, match="all 1 sessions are in use, for 0"):
        second.reset()
    first.close()
    assert second.reset()[0].shape == (2,)
    # Without a word, as by kill -9: no more than the ticks that pass meanwhile.
    second.step(push(1.0))
    RIG.clear()
    second.unwrapped._line.close()
    time.sleep(0.08)
    assert RIG[2:] and set(RIG[2:]) == {0.0}


def test_an_episode_without_a_learner_ends_after_a_time(serve):
    server = serve(patience=0.1)
    env = remote(server)
    env.reset()
    env.unwrapped._line.close()
    deadline = time.perf_counter() + 5
    while None not in RIG[2:] and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert serve.said[-1].endswith("no action has come for 0.1 s")
    with pytest.raises(BrokenEnvironment, match="that episode is over: the line was lost for too long"):
        env.step(push(0.0))


def test_the_environments_own_failure_is_told(serve):
    env = remote(serve(trouble="raises"))
    env.reset()
    with pytest.raises(BrokenEnvironment, match=r"refused: Rig-v0 raised OSError in step.*the cable is out"):
        for _ in range(10):
            env.step(push(0.1))


def test_an_environment_that_is_slower_than_its_clock_is_told_to_the_learner(serve):
    env = remote(serve(trouble="slow", patience=10.0))
    env.reset()
    with pytest.raises(BrokenEnvironment, match=f"refused: {LATE} steps in a row .* a tick of 10 ms, .* a longer --tick") as told:
        for _ in range(3 * LATE):
            env.step(push(0.1))
    assert "\n" not in str(told.value) and len([x for x in RIG if x is not None]) == LATE
    deadline = time.perf_counter() + 5
    while RIG[-1] is not None and time.perf_counter() < deadline:
        time.sleep(TICK)
    assert RIG[-1] is None


def test_a_few_late_ticks_are_no_reason_to_end_an_episode(serve):
    env = remote(serve(trouble="stutters", patience=10.0, length=2 * LATE + 5))
    env.reset()
    over = False
    while not over:
        obs, _, over, *_ = env.step(push(0.1))
    assert obs[0] == 2 * LATE + 5


def test_a_learner_in_real_time_has_no_second_clock(serve):
    server = serve(length=20)
    envs = HostEnvironments(
        "RemoteEnvironment-v0", {"address": f"127.0.0.1:{server.port}"}, None, 0, action_repeat=2, pace=Pace(9.0)
    )
    try:
        envs.begin()
        begun, taken = time.perf_counter(), 0
        while envs.positions[0].obs is not None:
            taken += envs.step(np.zeros((1, 1)), np.zeros(1))[1]
        assert taken == 20 and time.perf_counter() - begun < 5  # of the pace nothing is seen
        timing = envs.take_timing()
        assert timing.ticks == 20 and len(timing.latency) == len(timing.jitter) >= 5 and timing.missed == 20 - len(timing.latency)
    finally:
        envs.close()


def test_discrete_choices_travel_too(serve):
    server = serve("CartPole-v1")
    env = remote(server)
    assert env.action_space == Discrete(2)
    env.reset(seed=1)
    assert env.observation_space.contains(env.step(1)[0])
    env.close()


# ---- the server against others


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


REFUSED = [
    (b"\xff\xff\xff\xff", "a message says that it has 4294967295 bytes; it must have from 1 to 65536"),
    (struct.pack(">I", 0), "a message says that it has 0 bytes"),
    (frame(b"GET / HTTP/1.1"), "a message is not JSON"),
    (frame(b"\xff\xfe"), "a message is not JSON"),
    (frame(b"[" * 60_000), "a message is not JSON"),
    (frame(b'{"type": "act", "action": [NaN]}'), "NaN is no number"),
    (frame(b"[1]"), 'a message must be a JSON object with a text "type"'),
    (frame(b'{"type": "act", "action": [0.1, 0.2]}'), "act.action is .* it must be a list of 1 numbers"),
    (frame(b'{"type": "act", "action": ["0.1"]}'), "it must be a list of 1 numbers"),
    (frame(b'{"type": "act", "action": [true]}'), "it must be a list of 1 numbers"),
    (frame(b'{"type": "act", "action": [1e999]}'), "action holds inf; it must be finite"),
    (frame(b'{"type": "act", "action": [1.5]}'), "act.action is .1.5.; it must be from .-1.0. to .1.0."),
    (frame(b'{"type": "dance"}'), 'a message of type \'dance\' came; expected was "act" or "end"'),
]


@pytest.mark.parametrize(("sent", "says"), REFUSED, ids=range(len(REFUSED)))
def test_the_server_refuses_what_is_wrong_in_one_line_and_stops_the_motor(serve, sent, says):
    with closing(connect(serve())) as line:
        line.send(type="episode", protocol=1)
        line._connection.sendall(sent)
        told = {"type": "state"}
        while told["type"] == "state":
            told = line.receive(2.0)
        assert told["type"] == "error" and "\n" not in told["message"]
        with pytest.raises(LineLost):
            line.receive(2.0)
    assert re.search(says, told["message"])
    deadline = time.perf_counter() + 2
    while not (serve.said and serve.said[-1].endswith(told["message"])) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert serve.said[-1].endswith(told["message"]) and RIG[-1] is None


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"type": "episode", "protocol": 2}, "the other side speaks protocol 2; this side speaks 1"),
        ({"type": "episode"}, "the other side speaks protocol null"),
        ({"type": "episode", "protocol": 1, "seed": -1}, "episode.seed is -1; it must be at least 0"),
        ({"type": "episode", "protocol": 1, "seed": "x"}, 'episode.seed is "x"; it must be of type int'),
        ({"type": "resume", "protocol": 1, "session": "no"}, "that episode is over"),
        ({"type": "dance", "protocol": 1}, "expected was"),
    ],
)
def test_the_server_refuses_what_it_does_not_offer(serve, request_, says):
    with closing(connect(serve())) as line:
        line.send(**request_)
        told = line.receive(2.0)
    assert told["type"] == "error" and says in told["message"]


# ---- the learner against others


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "nobody answers, for 0"),
        ({"type": "description", "protocol": 7}, "the other side speaks protocol 7; this side speaks 1"),
        ({"type": "description", "protocol": 1, "observation": {"choices": 2}, "action": {"choices": 2}},
         "description.name is null; it must be of type str"),
        ({"type": "description", "protocol": 1, "name": "x", "observation": {"low": [0], "high": []}, "action": {"choices": 2}},
         "description.observation is .*; it must be choices, at least 1, or equally long lists"),
        ({"type": "state", "protocol": 1}, "a message of type 'state' came; expected was 'description'"),
        ({"type": "error", "protocol": 1, "message": "not today"}, "refused: not today"),
    ],
)  # fmt: skip
def test_the_learner_refuses_what_is_wrong(answer, says):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(2)

        def play():
            connection, _ = listener.accept()
            with connection:
                if answer is not None:
                    connection.sendall(frame(json.dumps(answer).encode()))
                connection.recv(4096)
                connection.recv(4096)  # until it leaves

        thread = threading.Thread(target=play)
        thread.start()
        with pytest.raises(BrokenEnvironment, match=says):
            make_own("RemoteEnvironment-v0", {"address": f"127.0.0.1:{listener.getsockname()[1]}", "patience": 0.3}, None)
        thread.join(5)


def test_nobody_there_and_no_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BrokenEnvironment, match=f"127.0.0.1:{port}: Connection refused, for 0"):
        make_own("RemoteEnvironment-v0", {"address": f"127.0.0.1:{port}", "patience": 0.2}, None)
    with pytest.raises(BrokenEnvironment, match="address is 'here'; it must be host:port"):
        make_own("RemoteEnvironment-v0", {"address": "here"}, None)
    with pytest.raises(BrokenEnvironment, match=r"no address is given; .* --env-kwargs.address HOST:PORT of .spikedream serve-env"):
        make_own("RemoteEnvironment-v0", {}, None)


def test_what_a_message_holds():
    message = {"type": "m", "whole": 3, "huge": 10**400, "text": "x", "flag": True, "list": [1, 2.5]}
    assert entry(message, "whole", int) == 3 and entry(message, "whole", float) == 3.0 and entry(message, "flag", bool) is True
    np.testing.assert_array_equal(numbers(message, "list", 2), [1, 2.5])
    for name, kind in (("flag", int), ("text", float), ("huge", float), ("none", str)):
        with pytest.raises(BadMessage):
            entry(message, name, kind)
    for space in (Discrete(3), Box(-np.inf, 2.5, (2,), np.float32)):
        assert read_space(json.loads(json.dumps(told_space(space))), "it") == space


# ---- the process


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["Nothing-v0"], "no environment 'Nothing-v0' is registered"),
        (["CartPole-v1", "--port", "70000"], "port is 70000; it must be from 0 to 65535"),
        (["CartPole-v1", "--env-kwargs", "{a"], "--env-kwargs {a cannot be read"),
        (["INICartPole-v0", "--port", "0", "--env-kwargs", "{noise: -1}"], "noise is -1; it must be at least 0"),
        (["CartPole-v1", "--port", "0", "--sessions", "0"], "sessions is 0; it must be from 1 to 99"),
        (["CartPole-v1", "--port", "0", "--tick", "0"], "tick is 0.0; it must be at least"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["serve-env", *arguments])
    told = capsys.readouterr().err
    assert stopped.value.code == 1 and says in told and told.count("\n") == 1


def test_a_port_in_use_is_told(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        cli.main(["serve-env", "CartPole-v1", "--port", str(taken.getsockname()[1])])
    assert "cannot listen on 127.0.0.1:" in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_a_server_process_is_trained_on_and_ends_on_a_signal(tmp_path):
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(spikedream.__file__)), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "spikedream", "serve-env", "INICartPoleSwingUp-v0", "--port", "0", "--tick", "0.005"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )
    try:
        head = process.stdout.readline()
        assert head.startswith("INICartPoleSwingUp-v0 on 127.0.0.1:") and "5 ms a step" in head
        port = head.split(":")[1].split(",")[0]
        env = make_own("RemoteEnvironment-v0", {"address": f"127.0.0.1:{port}"}, None)
        assert env.observation_space.shape == (5,)
        obs, _ = env.reset(seed=3)
        np.testing.assert_allclose(obs, make_own("INICartPoleSwingUp-v0", {}, None).reset(seed=3)[0], atol=1e-6)
        rewards = [env.step(np.zeros(1))[1] for _ in range(20)]
        assert all(reward >= 0 for reward in rewards) and sum(rewards) > 0
        process.send_signal(signal.SIGTERM)
        with pytest.raises(BrokenEnvironment, match=r"the server has been stopped|Connection refused"):
            for _ in range(100):
                env.step(np.zeros(1))
        assert process.wait(10) == 0
    finally:
        process.kill()
        _, err = process.communicate()
    assert "Traceback" not in err and "an episode begins" in err
