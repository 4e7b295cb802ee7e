"""Environments in processes of their own, so that several processors step them at once.

A worker is a fresh interpreter that plays part of the environments, as many workers as there are processors. It is neither forked,
which a process in which JAX runs does not survive, nor does it import the user's script again. Request and answer are pickles over
its standard input and output; a worker ends when its input does, so that none outlives the process that started it.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import cloudpickle
import gymnasium
import numpy as np

from spikedream.envs.make import registered
from spikedream.envs.player import Players, Step, same_spec
from spikedream.envs.real_time import Pace, Timing, together
from spikedream.envs.spaces import BrokenEnvironment

PATIENCE = 5.0  # seconds in which a worker closes its environments, before it is killed
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from spikedream.envs.workers import main; main()"


class Workers:
    """A group in several processes.

    Args:
        env_id, kwargs, max_episode_steps, action_repeat, count, pace: as in `Players`.

    Raises:
        BrokenEnvironment: as in `Players`, or where a worker dies; none is left behind then.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any],
        max_episode_steps: int | None,
        action_repeat: int,
        count: int,
        pace: Pace | None = None,
    ):
        self._id = env_id
        self._parts = np.array_split(np.arange(count), min(count, processors()))
        # An id that the user's own script has registered is not known to an interpreter that does not run it.
        spec = cloudpickle.dumps(registered(env_id))
        self._processes = [_start() for _ in self._parts]
        self._stop = weakref.finalize(self, _stop, self._processes)
        arguments = [(env_id, dict(kwargs), max_episode_steps, action_repeat, len(part), pace) for part in self._parts]
        self.spec = same_spec(env_id, self._ask("make", [(spec, cloudpickle.dumps(a)) for a in arguments]))

    def reset(self, seeds: Mapping[int, int]) -> dict[int, np.ndarray]:
        return self._gather("reset", seeds)

    def step(self, actions: np.ndarray) -> Step:
        answers = self._ask("step", [(actions[part],) for part in self._parts])
        return Step(*(np.concatenate(field) for field in zip(*answers, strict=True)))

    def replay(self, episodes: Mapping[int, tuple[int, np.ndarray]]) -> dict[int, np.ndarray | None]:
        return self._gather("replay", episodes)

    def take_timing(self) -> Timing:
        return together(self._ask("take_timing", [()] * len(self._parts)))

    def close(self) -> None:
        self._stop()

    def _gather(self, what: str, of: Mapping[int, Any]) -> dict[int, Any]:
        """The answers for some environments; a worker numbers its own from 0."""
        requests = [({j: of[i] for j, i in enumerate(part.tolist()) if i in of},) for part in self._parts]
        answers = self._ask(what, requests)
        return {int(part[j]): x for part, answer in zip(self._parts, answers, strict=True) for j, x in answer.items()}

    def _ask(self, what: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Every worker's answer, all working at once."""
        if not self._stop.alive:
            raise BrokenEnvironment(f"{self._id}: the worker processes have been closed")
        try:
            for process, part, given in zip(self._processes, self._parts, arguments, strict=True):
                with self._living(process, part):
                    _write(cast(BinaryIO, process.stdin), (what, given))
            answers = []
            for process, part in zip(self._processes, self._parts, strict=True):
                with self._living(process, part):
                    answers.append(_read(cast(BinaryIO, process.stdout)))
            return answers
        except BaseException:  # Ctrl-C too: what is half asked would be answered to the next question
            self.close()
            raise

    @contextlib.contextmanager
    def _living(self, process: subprocess.Popen[bytes], part: np.ndarray) -> Iterator[None]:
        """Says it where a worker, which plays `part` of the environments, turns out to be dead."""
        try:
            yield
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise BrokenEnvironment(self._death(process, part)) from error

    def _death(self, process: subprocess.Popen[bytes], part: np.ndarray) -> str:
        which = f"environment {part[0]}" if len(part) == 1 else f"environments {part[0]} to {part[-1]}"
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return f"{self._id}: the worker process of {which} no longer answers"
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"{self._id}: the worker process of {which} died ({how})"


class Failure(str):
    """A worker's answer: the message of a `BrokenEnvironment`."""


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> subprocess.Popen[bytes]:
    # Environments written in JAX must not take the learner's accelerator. A process group of its own: Ctrl-C is for the learner,
    # which finishes its step before it stops.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps([str(path) for path in sys.path])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0 if os.name == "posix" else None,
    )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written to one that is dead
                cast(BinaryIO, pipe).close()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write(pipe: BinaryIO, message: Any) -> None:
    pipe.write(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
    pipe.flush()


def _read(pipe: BinaryIO) -> Any:
    """Raises BrokenEnvironment where that is the answer."""
    answer = pickle.load(pipe)
    if isinstance(answer, Failure):
        raise BrokenEnvironment(answer)
    return answer


# ---- in the worker


def main() -> None:
    """Answer requests until there are no more. What the environments print goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    players = None
    try:
        while True:
            what, arguments = pickle.load(requests)
            try:
                if players is None:
                    players = _make(*arguments)
                    answer: Any = players.spec
                else:
                    answer = getattr(players, what)(*arguments)
            except BrokenEnvironment as error:
                answer = Failure(error)
            _write(answers, answer)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        pass  # the learner has closed its end, or is no more
    finally:
        if players is not None:
            players.close()
        with contextlib.suppress(OSError):
            answers.close()


def _make(spec: bytes, arguments: bytes) -> Players:
    env_id, *rest = pickle.loads(arguments)
    try:
        registered(env_id)
    except BrokenEnvironment:
        own = pickle.loads(spec)
        gymnasium.registry[own.id] = own
    return Players(env_id, *rest)
