"""The line between a learner and an environment elsewhere: length-prefixed JSON over TCP, as docs/hardware.md describes it."""

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

PROTOCOL = 1
LARGEST_MESSAGE = 65_536  # bytes
_HEADER = struct.Struct(">I")


class LineLost(ConnectionError):
    """The other side is gone."""


class BadMessage(Exception):
    """What came is not what the protocol says; one line that says what is wrong and what would be right."""


class Line:
    """A connection over which messages go both ways.

    Args:
        connection: which it closes in the end.
    """

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each message at once
        self._connection, self._received = connection, bytearray()

    def send(self, **message: Any) -> None:
        """Raises LineLost, also where the other side has not read for a second."""
        body = json.dumps(message, allow_nan=False).encode()
        try:
            self._connection.settimeout(1.0)
            self._connection.sendall(_HEADER.pack(len(body)) + body)
        except OSError as error:
            raise LineLost(str(error)) from error

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None where none is complete within so many `seconds`, which may be 0.

        Raises:
            LineLost: there will be none.
            BadMessage: it is too large, or no JSON object with a type.
        """
        until = time.perf_counter() + seconds
        while (message := self._complete()) is None:
            left = until - time.perf_counter()
            try:
                self._connection.settimeout(max(left, 0))
                more = self._connection.recv(LARGEST_MESSAGE)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                raise LineLost(str(error)) from error
            if not more:
                raise LineLost("the other side has closed it")
            self._received += more
        return message

    def _complete(self) -> dict[str, Any] | None:
        if len(self._received) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._received)
        if not 0 < size <= LARGEST_MESSAGE:
            raise BadMessage(f"a message says that it has {size} bytes; it must have from 1 to {LARGEST_MESSAGE}")
        if len(self._received) < _HEADER.size + size:
            return None
        body = bytes(self._received[_HEADER.size : _HEADER.size + size])
        del self._received[: _HEADER.size + size]
        try:
            message = json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"a message is not JSON: {' '.join(str(error).split())}") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise BadMessage('a message must be a JSON object with a text "type"')
        return message

    def close(self) -> None:
        self._connection.close()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


# ---- what messages hold


def entry(message: Mapping[str, Any], name: str, kind: type) -> Any:
    """What `message` holds under `name`; a whole number also serves as a float. Raises BadMessage where that is of another kind."""
    value: Any = message.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = _finite(value, name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadMessage(f"{message['type']}.{name} is {_short(value)}; it must be of type {kind.__name__}")
    return _finite(value, name) if kind is float else value


def numbers(message: Mapping[str, Any], name: str, size: int) -> np.ndarray:
    """(size,) floats that `message` holds under `name`; raises BadMessage where they are not so many finite numbers."""
    value: Any = message.get(name)
    right = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not right or len(value) != size:
        raise BadMessage(f"{message['type']}.{name} is {_short(value)}; it must be a list of {size} numbers")
    return np.array([_finite(x, name) for x in value], np.float64)


def _finite(value: float, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadMessage(f"{name} holds {number}; it must be finite")
    return number


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def check_protocol(message: Mapping[str, Any]) -> None:
    """Raises BadMessage where the other side speaks another version."""
    if message.get("protocol") != PROTOCOL:
        raise BadMessage(f"the other side speaks protocol {_short(message.get('protocol'))}; this side speaks {PROTOCOL}")


def told_space(space: Box | Discrete) -> dict[str, Any]:
    """A flat space as plain data; a bound that is infinite is null."""
    if isinstance(space, Discrete):
        return {"choices": int(space.n)}
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {name: [x if math.isfinite(x) else None for x in bound] for name, bound in bounds.items()}


def read_space(data: Any, what: str) -> Box | Discrete:
    """The inverse of `told_space`; raises BadMessage where `data` is none."""
    if isinstance(data, dict) and isinstance(choices := data.get("choices"), int) and not isinstance(choices, bool) and choices > 0:
        return Discrete(choices)
    try:
        low, high = (
            np.array([sign * np.inf if x is None else float(x) for x in data[name]], np.float32)
            for name, sign in (("low", -1), ("high", 1))
        )
        if low.shape == high.shape and low.size and (low <= high).all():
            return Box(low, high)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise BadMessage(
        f"{what} is {_short(data)}; it must be choices, at least 1, or equally long lists low and high of numbers or null"
    )
