"""An environment elsewhere, in real time: a physical one, or `spikedream serve-env`. Registered as `RemoteEnvironment-v0`."""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from spikedream.envs.real_time import KEEPS_TIME, Timing
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.envs.wire import PROTOCOL, BadMessage, Line, LineLost, check_protocol, entry, numbers, read_space

RETRY = 0.1  # seconds between tries to connect


class RemoteEnvironment(gymnasium.Env):
    """Speaks the protocol of docs/hardware.md, one connection for each episode.

    The other side advances by its own clock. A step sends the action and waits for the end of the tick; ticks that had passed
    before are made up for: `info["ticks"]` says how many ended since the last step, and their rewards are added up. A line that
    breaks is taken up again, in the same episode, as long as the other side waits for it.

    It keeps time itself: with `--realtime` there is no further clock, turns end with episodes, and what is told of jitter is by how
    much the time between two observations differs from the ticks between them.

    Args:
        address: as host:port.
        patience: seconds within which the other side must answer, a lost line must be back, or a busy one free.

    Raises:
        BrokenEnvironment: here and in every method, where nobody answers in time, or not as the protocol says.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], KEEPS_TIME: True}

    def __init__(self, address: str = "", patience: float = 10.0):
        if not address:
            raise ValueError(
                "no address is given; where it is played is told by --env-kwargs.address HOST:PORT of `spikedream serve-env`"
            )
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"address is {address!r}; it must be host:port, as 127.0.0.1:7777")
        self._address, self._patience = (host or "127.0.0.1", int(port)), patience
        self._line: Line | None = None
        self._session, self._tick, self._return = "", 0, 0.0
        self._over, self._shown, self._timing = True, 0.0, Timing()
        self.name, self.tick, self.observation_space, self.action_space = self._checked(self._described)
        self._drop()

    def _described(self) -> tuple[str, float, Box | Discrete, Box | Discrete]:
        told = self._ask("describe")
        observed, taken = (read_space(told.get(name), f"description.{name}") for name in ("observation", "action"))
        return entry(told, "name", str), entry(told, "tick", float), observed, taken

    # ---- the environment

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.close()
        self._tick, self._return, self._over = 0, 0.0, False
        obs = self._checked(lambda: self._taken_in(self._ask("episode", seed=seed)))
        self._shown = time.perf_counter()
        return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before, earned, shown = self._tick, self._return, self._shown
        self._timing.latency.append(time.perf_counter() - shown)
        obs, terminated, truncated = self._checked(lambda: self._played(action))
        self._shown, ticks = time.perf_counter(), self._tick - before
        self._timing.ticks, self._timing.missed = self._timing.ticks + ticks, self._timing.missed + ticks - 1
        self._timing.jitter.append(abs(self._shown - shown - ticks * self.tick))
        self._over = terminated or truncated
        if self._over:
            self._drop()
        return obs, self._return - earned, terminated, truncated, {"ticks": ticks}

    def take_timing(self) -> Timing:
        """Since the last call."""
        taken, self._timing = self._timing, Timing()
        return taken

    def close(self) -> None:
        """Ends the episode under way, if there is one: the other side stops its motor at once."""
        if self._line is not None and not self._over:
            with contextlib.suppress(LineLost):
                self._line.send(type="end")
        self._drop()

    def _played(self, action: Any) -> tuple[Any, bool, bool]:
        """The state at the end of the first tick that an action can have counted for."""
        chosen = int(action) if isinstance(self.action_space, Discrete) else np.asarray(action, np.float64).reshape(-1).tolist()
        newest, sent, until = None, False, time.perf_counter() + self._patience
        while time.perf_counter() < until:
            try:
                assert self._line is not None
                message = self._line.receive(0.0 if not sent else until - time.perf_counter())
                if message is not None:
                    newest = self._state(message)
                    if sent or newest[1] or newest[2]:
                        return newest
                elif not sent:
                    self._line.send(type="act", tick=self._tick, action=chosen)
                    sent = True
            except LineLost:
                self._drop()
                newest, sent = self._state(self._ask("resume", session=self._session)), False
                if newest[1] or newest[2]:
                    return newest
        raise BadMessage(f"no state has come for {self._patience:g} s")

    def _taken_in(self, message: dict[str, Any]) -> Any:
        self._session = entry(message, "session", str)
        return self._state(message)[0]

    def _state(self, message: dict[str, Any]) -> tuple[Any, bool, bool]:
        """Observation, terminated, truncated."""
        _expect(message, "state")
        if isinstance(self.observation_space, Discrete):
            obs: Any = entry(message, "observation", int)
        else:
            obs = numbers(message, "observation", self.observation_space.shape[0]).astype(np.float32)  # type: ignore[index]
        tick, total = entry(message, "tick", int), entry(message, "return", float)
        if tick < self._tick:
            raise BadMessage(f"state.tick went back from {self._tick} to {tick}")
        self._tick, self._return = tick, total
        return obs, entry(message, "terminated", bool), entry(message, "truncated", bool)

    # ---- the line

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Connect, ask for something and return the answer; try again where nobody is there or another learner is."""
        until, wrong = time.perf_counter() + self._patience, "nobody answers"
        while (left := until - time.perf_counter()) > 0:
            self._drop()
            try:
                self._line = Line(socket.create_connection(self._address, timeout=left))
                self._line.send(type=what, protocol=PROTOCOL, **more)
                answer = self._line.receive(until - time.perf_counter())
            except OSError as error:
                wrong = error.strerror or str(error)
                answer = {"type": "busy"}
            if answer is None:
                break
            if answer["type"] != "busy":
                if answer["type"] != "error":
                    check_protocol(answer)
                return _expect(answer, "description" if what == "describe" else "state")
            wrong = str(answer.get("message", wrong))
            time.sleep(RETRY)
        raise BadMessage(f"{wrong}, for {self._patience:g} s")

    def _drop(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _checked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except BadMessage as error:
            self.close()
            raise BrokenEnvironment(f"{':'.join(map(str, self._address))}: {error}") from error


def _expect(message: dict[str, Any], kind: str) -> dict[str, Any]:
    if message["type"] == "error":
        raise BadMessage(f"refused: {message.get('message')}")
    if message["type"] != kind:
        raise BadMessage(f"a message of type {message['type']!r} came; expected was {kind!r}")
    return message


def register() -> None:
    """Make the id above known to Gymnasium; importing spikedream does it."""
    if "RemoteEnvironment-v0" not in gymnasium.registry:
        gymnasium.register("RemoteEnvironment-v0", f"{__name__}:{RemoteEnvironment.__name__}")
