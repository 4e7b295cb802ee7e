"""Ends what a killed process has left: its descendants, which would go on for a minute, and a directory of theirs.

Run as a program of its own, by its file, with the process to watch and the directory as arguments; its standard input ends when
that process does. Where there is no /proc it does nothing.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
from pathlib import Path

EVERY = 1.0  # seconds between two looks at who descends from it
PROC = Path("/proc")


def descendants(root: int) -> dict[int, str]:
    """Process id to the time at which it began, of all that live."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append((int(entry.name), fields[19]))
    found, front = {}, [root]
    while front:
        new = [child for pid in front for child in children.get(pid, ())]
        found |= dict(new)
        front = [pid for pid, _ in new]
    return found


def began(process: int) -> str | None:
    with contextlib.suppress(OSError, IndexError):
        return (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[19]
    return None


def main(root: int, home: Path) -> None:
    known: dict[int, str] = {}
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        known |= descendants(root)
    for process, when in known.items():
        if process != os.getpid() and began(process) == when:  # not another one of the same number
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
