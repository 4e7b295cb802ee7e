"""Cells of a study on the machines of a Ray cluster: each in a process there, as on this machine; what it leaves comes back here.

Where both sides see the same directories a cell writes in place. Otherwise what it has written is fetched now and then, and when it
ends or is stopped: so the study goes on wherever its cells run next.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spikedream.runners import reaper
from spikedream.runners.crew import Crew, check_ray

EVERY = 1.0  # seconds between two looks at a cell
FETCHED = 60.0  # seconds between two fetches of what it has written
ANSWER = 300.0  # seconds in which a machine must answer, once it has begun


class Seen(NamedTuple):
    """What a look at a cell shows."""

    status: int | None  # its process's exit status, None while it runs
    said: str  # since the last look
    written: bytes | None  # its directory, packed; None where both sides see it, or it is not yet time


class Room:
    """Where one cell runs; an actor on some machine of the cluster."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="spikedream-cell-"))
        # Where this process is killed, the cell's must not go on: it may be begun elsewhere.
        command = [sys.executable, "-S", reaper.__file__, str(os.getpid()), str(self._home)]
        self._reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._process: subprocess.Popen | None = None
        self._directory: Path | None = None  # to be fetched
        self._stopped = False
        self._read, self._fetched = 0, time.monotonic()

    def sees(self, file: Path, token: str) -> bool:
        """Whether `file` is here what it is there."""
        return file.is_file() and file.read_text() == token

    def begin(self, arguments: Sequence[str], directory: Path, packed: bytes | None) -> None:
        """Run a module with its arguments, which may name files beside `directory`, where it writes.

        Args:
            arguments: the module and its arguments.
            directory: as it is called where the study is.
            packed: that directory and its settings; None where it is seen from here.
        """
        if packed is not None:
            unpack(packed, self._home)
            self._directory = self._home / directory.name
            beside = f"{directory.parent}{os.sep}"
            arguments = [x.replace(beside, f"{self._home}{os.sep}") if x.startswith(beside) else x for x in arguments]
        with self._log.open("w") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=subprocess.STDOUT)

    @property
    def _log(self) -> Path:
        return self._home / "said"

    def look(self, stop: bool) -> Seen:
        """How it goes; asks it to `stop`, on which it saves."""
        assert self._process is not None
        if stop and not self._stopped and self._process.poll() is None:
            self._process.terminate()  # once: a second one would end it at once
            self._stopped = True
        status, written = self._process.poll(), None
        with self._log.open("rb") as log:
            log.seek(self._read)
            said = log.read()
        self._read += len(said)
        due = status is not None or time.monotonic() - self._fetched >= FETCHED
        if self._directory is not None and due and self._directory.exists():
            self._fetched, written = time.monotonic(), pack(self._home, [self._directory.name])
        return Seen(status, said.decode(errors="replace"), written)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._reaper.kill()
        self._reaper.communicate()
        shutil.rmtree(self._home, ignore_errors=True)


class Cluster:
    """Processes there, with the interface of `cells.Processes`.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: there is no cluster, or its Python, Ray or spikedream differs.
    """

    def __init__(self) -> None:
        check_ray("leave --cluster out")
        self._crew, self._stopping = Crew(os.environ.get("RAY_ADDRESS")), threading.Event()

    def run(self, arguments: Sequence[str], directory: Path, settings: Path, log: Path) -> int:
        """The exit status of a module with its arguments, somewhere; what it says goes to `log`.

        Raises:
            ClusterError: it was lost there.
        """
        room = self._crew.room(Room)
        try:
            there = Place(directory, settings)
            packed = None if there.seen_by(self._crew, room) else there.packed()
            self._crew.get(room.begin.remote(arguments, directory, packed), ANSWER)
            while True:
                seen: Seen = self._crew.get(room.look.remote(self._stopping.is_set()), ANSWER)
                with log.open("a") as file:
                    file.write(seen.said)
                if seen.written is not None:
                    there.replace(seen.written)
                if seen.status is not None:
                    return seen.status
                time.sleep(EVERY)
        finally:
            self._crew.leave(room)

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        self._crew.close()


class Place(NamedTuple):
    """Where a cell's files are here."""

    directory: Path
    settings: Path

    def seen_by(self, crew: Crew, room: Any) -> bool:
        file, token = self.directory.with_name(f".{self.directory.name}.seen"), uuid.uuid4().hex
        file.write_text(token)
        try:
            # As long as it takes until a processor is free.
            return crew.get(room.sees.remote(file, token), None)
        finally:
            file.unlink()

    def packed(self) -> bytes:
        names = [path.name for path in (self.directory, self.settings) if path.exists()]
        return pack(self.directory.parent, names)

    def replace(self, packed: bytes) -> None:
        """By what has been fetched, all of it or nothing."""
        parent = self.directory.parent
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=parent) as new:
            unpack(packed, Path(new))
            if self.directory.exists():
                self.directory.rename(Path(new) / "before")
            (Path(new) / self.directory.name).rename(self.directory)


def pack(directory: Path, names: Sequence[str]) -> bytes:
    """These files and directories in `directory`, also while somebody writes there. The heads of checkpoints come first: what they
    need was there before them, and is kept for a while."""
    paths = [path for name in names for path in ((directory / name), *(directory / name).rglob("*"))]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(paths, key=lambda path: (not path.is_dir(), path.suffix != ".json", path)):
            with contextlib.suppress(FileNotFoundError):
                archive.add(path, path.relative_to(directory), recursive=False)
    return content.getvalue()


def unpack(packed: bytes, directory: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(directory, filter="data")
