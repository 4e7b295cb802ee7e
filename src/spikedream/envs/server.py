"""An environment for learners elsewhere, in real time: the other end of `RemoteEnvironment-v0`, and of docs/hardware.md."""

import contextlib
import math
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from gymnasium.spaces import Box, Discrete

from spikedream.envs.player import Player
from spikedream.envs.real_time import Pace
from spikedream.envs.spaces import BrokenEnvironment, idle_action
from spikedream.envs.wire import PROTOCOL, BadMessage, Line, LineLost, check_protocol, entry, numbers, told_space

ASK = 5.0  # seconds in which whoever connects must say what it wants
LATE = 10  # steps in a row that take longer than a tick before an environment counts as too slow for the clock


class Session:
    """One episode, on the clock from its first observation to its end, whether or not anybody acts in it.

    Args:
        env_id, kwargs: of the environment, which is closed in the end: a physical one stops its motor then.
        pace: of the clock; until an action comes the last is held or not, as it says ...
        silence: ... and after so many ticks without one the environment is given none, as at once where the line is lost.
        patience: seconds for which a lost line may come back, and an environment may be left without an action.
        stop: set from elsewhere, ends it.
    """

    def __init__(self, env_id: str, kwargs: Mapping[str, Any], pace: Pace, silence: int, patience: float, stop: threading.Event):
        self.token = secrets.token_hex(8)
        self._player = Player(env_id, kwargs, None, 1)
        self._pace, self._silence, self._patience = pace, silence, patience
        self._stop = stop
        self._idle = idle_action(self._player.action_space)
        self._line: Line | None = None
        self._back: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._state: dict[str, Any] = {}

    def attach(self, line: Line) -> None:
        """A lost line is back, or a new one takes its place."""
        self._back.put(line)

    def run(self, line: Line, seed: int) -> None:
        """Play to the end; raises BadMessage where the learner does not keep to the protocol, BrokenEnvironment where it fails."""
        self._line = line
        try:
            self._show(0, self._player.reset(seed), 0.0, False, False)
            self._play()
        except (BadMessage, BrokenEnvironment) as error:
            self._state = {"type": "error", "protocol": PROTOCOL, "message": str(error)}
            self._tell()
            raise
        finally:
            self._player.close()
            for left in (self._line, *self._waiting()):
                if left is not None:
                    left.close()

    def _play(self) -> None:
        tick, total, quiet, late, held, due = 0, 0.0, 0, 0, self._idle, time.perf_counter() + self._pace.tick
        while quiet * self._pace.tick < self._patience:
            if self._stop.is_set():
                raise BadMessage("the server has been stopped")
            chosen = self._listen(due)
            if chosen is _END:
                return
            quiet, held = (quiet + 1, held) if chosen is None else (0, chosen)
            holds = quiet == 0 or (self._pace.late == "hold" and quiet < self._silence and self._line is not None)
            begun = time.perf_counter()
            after = self._player.step(held if holds else self._idle)
            late = late + 1 if (took := time.perf_counter() - begun) > self._pace.tick else 0
            tick, total, due = tick + 1, total + after.reward, max(due + self._pace.tick, time.perf_counter())
            self._show(tick, after.obs, total, after.terminated, after.truncated)
            if after.terminated or after.truncated:
                return
            if late == LATE:
                raise BrokenEnvironment(
                    f"{LATE} steps in a row have each taken longer than a tick of {1000 * self._pace.tick:g} ms, the last"
                    f" {1000 * took:.0f} ms: the environment cannot keep real time; serve it with a longer --tick"
                )
        raise BadMessage(f"no action has come for {self._patience:g} s")

    def _listen(self, due: float) -> Any:
        """The last action that comes until the tick is over; None where none does, `_END` where the learner wants no more."""
        chosen = None
        while True:
            left = due - time.perf_counter()
            for line in self._waiting(max(left, 0) if self._line is None else None):
                if self._line is not None:
                    self._line.close()
                self._line = line
                self._tell()
            if left <= 0:
                return chosen
            if self._line is None:
                continue
            try:
                message = self._line.receive(due - time.perf_counter())
            except LineLost:
                self._lose()
                continue
            if message is not None:
                if message["type"] == "end":
                    return _END
                chosen = self._action(message)

    def _waiting(self, seconds: float | None = None) -> list[Line]:
        """Lines that are back, waiting for one for so many seconds."""
        with contextlib.suppress(queue.Empty):
            return [self._back.get_nowait() if seconds is None else self._back.get(timeout=seconds)]
        return []

    def _action(self, message: dict[str, Any]) -> Any:
        if message["type"] != "act":
            raise BadMessage(f'a message of type {message["type"]!r} came; expected was "act" or "end"')
        space = self._player.action_space
        if isinstance(space, Discrete):
            choice = entry(message, "action", int)
            if not 0 <= choice < space.n:
                raise BadMessage(f"act.action is {choice}; it must be from 0 to {space.n - 1}")
            return choice
        assert isinstance(space, Box)
        action = numbers(message, "action", space.shape[0])
        if not ((action >= space.low - 1e-6) & (action <= space.high + 1e-6)).all():
            raise BadMessage(f"act.action is {action.tolist()}; it must be from {space.low.tolist()} to {space.high.tolist()}")
        return action.astype(space.dtype).clip(space.low, space.high)

    def _show(self, tick: int, obs: Any, total: float, terminated: bool, truncated: bool) -> None:
        self._state = {
            "type": "state", "protocol": PROTOCOL, "session": self.token, "tick": tick, "observation": obs.tolist(),
            "return": total, "terminated": terminated, "truncated": truncated,
        }  # fmt: skip
        self._tell()

    def _tell(self) -> None:
        if self._line is not None:
            try:
                self._line.send(**self._state)
            except LineLost:
                self._lose()

    def _lose(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


_END = object()


class Server:
    """Plays an environment for whoever connects.

    Args:
        env_id: with flat observations, or ones that can be made so.
        kwargs: of the environment.
        host, port: to listen on; port 0 takes a free one.
        pace, silence, patience: as in `Session`.
        sessions: episodes at a time; a physical environment has one.
        say: told in a line what happens.

    Raises:
        BrokenEnvironment: the environment cannot be made or used.
        OSError: it cannot listen there.
        ValueError: a number is out of bounds.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any],
        host: str,
        port: int,
        pace: Pace,
        silence: int,
        patience: float,
        sessions: int,
        say: Callable[[str], None],
    ):
        bounds = {"port": (port, 0, 65535), "silence": (silence, 0, math.inf), "patience": (patience, 0, 3600)}
        for name, (value, least, most) in (bounds | {"sessions": (sessions, 1, 99)}).items():
            if not least <= value <= most:
                raise ValueError(f"{name} is {value:g}; it must be from {least} to {most:g}")
        self._make = lambda: Session(env_id, kwargs, pace, silence, patience, self._stop)
        self._most, self._say, self._stop = sessions, say, threading.Event()
        player = Player(env_id, kwargs, None, 1)
        self._description = {
            "type": "description", "protocol": PROTOCOL, "name": env_id, "tick": pace.tick, "silence": silence,
            "observation": told_space(player.observation_space), "action": told_space(player.action_space),
        }  # fmt: skip
        player.close()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, port))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Until `stop`, and until the episodes under way have stopped their motors."""
        threads: list[threading.Thread] = []
        with self._listener:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, (host, port, *_) = self._listener.accept()
                    threads = [thread for thread in threads if thread.is_alive()]
                    threads.append(threading.Thread(target=self._receive, args=(connection, f"{host}:{port}"), daemon=True))
                    threads[-1].start()
        for thread in threads:
            thread.join(ASK)

    def stop(self, why: str = "") -> None:
        """Soon, from any thread or signal; `why` is not told."""
        self._stop.set()

    def _receive(self, connection: socket.socket, whose: str) -> None:
        line = Line(connection)
        try:
            request = line.receive(ASK)
            if request is None:
                raise BadMessage(f"nothing was asked for in {ASK:g} s")
            check_protocol(request)
            if self._answer(line, request, whose):
                return
        except (BadMessage, BrokenEnvironment) as error:
            self._say(f"{whose}: {error}")
            with contextlib.suppress(LineLost):
                line.send(type="error", protocol=PROTOCOL, message=str(error))
        except LineLost:
            pass
        line.close()

    def _answer(self, line: Line, request: dict[str, Any], whose: str) -> bool:
        """Whether the line is a session's from now on."""
        what = request["type"]
        if what == "describe":
            line.send(**self._description)
        elif what == "resume":
            session = self._sessions.get(entry(request, "session", str))
            if session is None:
                raise BadMessage("that episode is over: the line was lost for too long, or this is another server")
            self._say(f"{whose}: the line is back")
            session.attach(line)
            return True
        elif what == "episode":
            self._episode(line, secrets.randbits(31) if request.get("seed") is None else entry(request, "seed", int), whose)
        else:
            raise BadMessage(f'a message of type {what!r} came; expected was "describe", "episode" or "resume"')
        return False

    def _episode(self, line: Line, seed: int, whose: str) -> None:
        if seed < 0:
            raise BadMessage(f"episode.seed is {seed}; it must be at least 0")
        with self._lock:
            busy = len(self._sessions) >= self._most
            if not busy:
                session = self._make()
                self._sessions[session.token] = session
        if busy:
            line.send(type="busy", protocol=PROTOCOL, message=f"all {self._most} sessions are in use")
            return
        self._say(f"{whose}: an episode begins")
        try:
            session.run(line, seed)
        finally:
            with self._lock:
                del self._sessions[session.token]
        self._say(f"{whose}: the episode is over")
