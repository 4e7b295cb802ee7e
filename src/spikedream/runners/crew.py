"""Parts of a run as Ray actors: started, asked, waited for, given up.

Ray restarts and retries nothing here: who is lost is reported, once, and whoever drives decides. What is put belongs to the driver
and outlives every part.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from spikedream.runners import reaper
from spikedream.runners.stop import ClusterError

CONNECT = 10.0  # seconds in which a cluster must answer
PROBE = 60.0  # seconds in which each of its machines must tell its versions
GRACE = 5.0  # seconds beyond its time in which a part's answer may still travel


class Lost(NamedTuple):
    """In place of an answer: the part is gone."""

    why: str
    error: BaseException | None = None  # that it raised


class _Question(NamedTuple):
    name: str
    until: float  # seconds of the monotonic clock
    within: float  # seconds


def check_ray(otherwise: str = "use --runner Sync") -> None:
    """Raises ImportError, with what to do, where Ray is not installed. To be called before a run begins."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError(f"Ray is not installed: pip install 'spikedream[ray]', or {otherwise}")


class Crew:
    """Of one run.

    Args:
        address: host:port of a cluster to join; None starts Ray on this machine, for as long as the crew lives.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: there is no cluster, or its Python, Ray or spikedream differs.
    """

    def __init__(self, address: str | None):
        check_ray()
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or Ray writes a token into the user's home
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # or its workers come last wherever anything else runs
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of a lost part one error is told, here, and not by Ray
        import ray  # pyright: ignore[reportMissingImports] - an extra

        self._ray, self._home, self._reaper = ray, None, None
        self._actors: dict[str, Any] = {}
        self._open: dict[Any, _Question] = {}  # by the reference to the answer
        address = None if address == "local" else address
        self.joined = address is not None
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address is not None:
            _check_address(address)
        else:
            # Ray's records of itself, which go when the run does; a short path, since sockets lie in it.
            self._home = tempfile.mkdtemp(prefix="spikedream-")
            self._reaper = subprocess.Popen(
                [sys.executable, "-S", reaper.__file__, str(os.getpid()), self._home], stdin=subprocess.PIPE, start_new_session=True
            )
            quiet |= {"num_cpus": 0, "include_dashboard": False, "_temp_dir": self._home}
        try:
            with warnings.catch_warnings():
                # JAX warns of every fork. Ray's, which becomes another program at once, comes before JAX has threads.
                warnings.filterwarnings("ignore", message=".*fork", category=RuntimeWarning)
                ray.init(address=address or "local", **quiet)
            if self.joined:
                self._check_versions()
        except ClusterError:
            self.close()
            raise
        except Exception as error:
            self.close()
            where = f"the cluster at {address}" if self.joined else "Ray on this machine"
            raise ClusterError(f"cannot use {where}: {_line(error)}") from error
        self._gpu = bool(ray.cluster_resources().get("GPU"))

    def _check_versions(self) -> None:
        """Of every machine there: any may be given a part."""
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            NodeAffinitySchedulingStrategy,
        )

        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in self._ray.nodes() if node["Alive"]}
        there, here = self._ray.remote(_probe()), _probe()()
        asked = {
            there.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): address
            for node, address in nodes.items()
        }
        late = self._ray.wait(list(asked), num_returns=len(asked), timeout=PROBE)[1]
        if late:
            raise ClusterError(f"the cluster's machine {asked[late[0]]} runs nothing: it has not answered within {PROBE:g} s")
        for answer, address in asked.items():
            found = self._ray.get(answer)
            wrong = [f"{name} {found[name] or 'missing'} there, {own} here" for name, own in here.items() if found[name] != own]
            if wrong:
                raise ClusterError(
                    f"the cluster's machine {address} differs from this one: {'; '.join(wrong)}; install the same on both"
                )

    # ---- parts

    def start(self, name: str, kind: type, *arguments: Any, accelerated: bool = False) -> None:
        """A part of this name, in place of one that was there; what it is asked waits until it is made."""
        self.stop(name)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
        if accelerated and self._gpu:
            options["num_gpus"] = 0.25
        if self.joined:
            options["scheduling_strategy"] = "SPREAD"
        self._actors[name] = self._ray.remote(kind).options(**options).remote(*arguments)

    def stop(self, name: str) -> None:
        """At once; nothing is told of it."""
        self._open = {reference: question for reference, question in self._open.items() if question.name != name}
        actor = self._actors.pop(name, None)
        if actor is not None:
            self._ray.kill(actor)

    def asked(self, name: str) -> int:
        """Questions that it has still to answer."""
        return sum(question.name == name for question in self._open.values())

    def ask(self, name: str, method: str, *arguments: Any, within: float) -> None:
        """The answer comes by `wait`, or `Lost` where it takes longer than `within` seconds after the one before; of a lost part
        all questions are answered by one `Lost`."""
        now = time.monotonic()
        begins = max((question.until - GRACE for question in self._open.values() if question.name == name), default=now)
        reference = getattr(self._actors[name], method).remote(*arguments)
        self._open[reference] = _Question(name, begins + within + GRACE, within)

    def put(self, value: Any) -> Any:
        """For several parts, once; stands for the value among the arguments of `ask`."""
        return self._ray.put(value)

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        """What has been answered, by the names of the parts, at least one unless none is within so many seconds."""
        if not self._open:
            time.sleep(seconds)
            return []
        try:
            ready = self._ray.wait(list(self._open), num_returns=1, timeout=seconds)[0]
            if ready:
                ready = self._ray.wait(list(self._open), num_returns=len(self._open), timeout=0)[0]
        except Exception as error:
            raise ClusterError(f"Ray is gone: {_line(error)}") from error
        found: list[tuple[str, Any]] = []
        for reference in ready:
            if reference in self._open:  # those of one that has just been lost are not
                name = self._open.pop(reference).name
                found.append((name, self._answer(reference)))
                if isinstance(found[-1][1], Lost):
                    self.stop(name)
        now = time.monotonic()
        late = {question.name: question.within for question in self._open.values() if question.until < now}
        for name, within in late.items():
            self.stop(name)
            found.append((name, Lost(f"no answer within {within:g} s")))
        return found

    def _answer(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference, timeout=GRACE)
        except self._ray.exceptions.RayError as error:
            return self._lost(error)

    def _lost(self, error: Exception) -> Lost:
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = getattr(error, "cause", None)
            cause = cause if isinstance(cause, BaseException) else error
            return Lost(_line(cause), cause)
        if isinstance(error, self._ray.exceptions.RayActorError):
            # Where it could not be made, the last line of what Ray tells is the reason.
            made = "creation task" not in str(error)
            return Lost("its process died" if made else _line(ValueError(str(error).strip().splitlines()[-1])))
        return Lost(_line(error))

    # ---- for who asks by himself, from several threads

    def room(self, kind: type, *arguments: Any) -> Any:
        """An actor; of a cluster that was joined it takes a processor, and waits until one is free."""
        options = {"num_cpus": 1, "scheduling_strategy": "SPREAD"} if self.joined else {"num_cpus": 0}
        return self._ray.remote(kind).options(max_restarts=0, **options).remote(*arguments)

    def get(self, reference: Any, within: float | None) -> Any:
        """An answer, in so many seconds. Raises ClusterError where it does not come."""
        try:
            return self._ray.get(reference, timeout=within)
        except self._ray.exceptions.RayError as error:
            lost = self._lost(error)
            raise ClusterError(f"the cluster has lost it: {lost.why}") from error

    def leave(self, room: Any) -> None:
        """End an actor, after its own `close`."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(room.close.remote(), timeout=GRACE)
        self._ray.kill(room)

    def close(self) -> None:
        """End every part, and Ray where it was started here."""
        for name in list(self._actors):
            self.stop(name)
        self._ray.shutdown()
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.communicate()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)


def _probe() -> Callable[[], dict[str, str | None]]:
    """What tells the versions of wherever it is called. A function inside a function travels as it is, not by its name: the other
    side may not have spikedream."""

    def versions() -> dict[str, str | None]:
        import importlib.metadata
        import platform

        found: dict[str, str | None] = {"Python": platform.python_version()}
        for name in ("spikedream", "jax"):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        return found

    return versions


def _check_address(address: str) -> None:
    """Ray itself would go on asking for minutes."""
    if address == "auto":  # Ray's word for the cluster that this machine belongs to
        return
    host, _, port = address.rpartition(":")
    if "://" in host or not host or not port.isdigit():
        raise ClusterError(f"{address!r} is no address of a cluster; it looks like 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except OSError as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
