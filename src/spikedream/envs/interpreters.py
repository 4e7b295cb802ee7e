"""Fresh interpreters that answer requests.

One is neither forked, which a process in which JAX runs does not survive, nor does it import the user's script again. Request and
answer are pickles over its standard input and output; it ends when its input does, so that none outlives the process that started
it.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol, cast

from spikedream.envs.spaces import BrokenEnvironment

PATIENCE = 5.0  # seconds in which one closes what it has, before it is killed
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from importlib import import_module; import_module(sys.argv[2]).main()"
)  # fmt: skip


class Failure(str):
    """An answer: the message of a `BrokenEnvironment`."""


class Answering(Protocol):
    """What lives in one: the attribute `spec` answers the request that makes it, its methods all others."""

    @property
    def spec(self) -> Any: ...
    def close(self) -> None: ...


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(module: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """One that runs `main` of a module, which calls `serve`; `environment` is added to that of this process."""
    # Environments written in JAX must not take the learner's accelerator. A process group of its own: Ctrl-C is for the learner,
    # which finishes its step before it stops.
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps([str(path) for path in sys.path]), module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {}),
        process_group=0 if os.name == "posix" else None,
    )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
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


def ask(process: subprocess.Popen[bytes], whose: str, what: str, arguments: Sequence[Any]) -> None:
    """Raises BrokenEnvironment where it turns out to be dead; `whose` it is, is said then."""
    with _living(process, whose):
        _write(cast(BinaryIO, process.stdin), (what, arguments))


def answer(process: subprocess.Popen[bytes], whose: str) -> Any:
    """To the oldest request that was not yet answered; raises BrokenEnvironment where that is the answer, or it is dead."""
    with _living(process, whose):
        found = pickle.load(cast(BinaryIO, process.stdout))
    if isinstance(found, Failure):
        raise BrokenEnvironment(found)
    return found


@contextlib.contextmanager
def _living(process: subprocess.Popen[bytes], whose: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        raise BrokenEnvironment(_death(process, whose)) from error


def _death(process: subprocess.Popen[bytes], whose: str) -> str:
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return f"{whose} no longer answers"
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"{whose} died ({how})"


def _write(pipe: BinaryIO, message: Any) -> None:
    pipe.write(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
    pipe.flush()


# ---- in the interpreter


def serve(make: Callable[..., Answering]) -> None:
    """Answer requests until there are no more, the first with `make`. What environments print goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    made: Answering | None = None
    try:
        while True:
            what, arguments = pickle.load(requests)
            try:
                if made is None:
                    made = make(*arguments)
                    found: Any = made.spec
                else:
                    found = getattr(made, what)(*arguments)
            except BrokenEnvironment as error:
                found = Failure(error)
            _write(answers, found)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        pass  # the learner has closed its end, or is no more
    finally:
        if made is not None:
            made.close()
        with contextlib.suppress(OSError):
            answers.close()
