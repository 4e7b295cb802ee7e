"""Replay on the disk: a file that only grows. A checkpoint names how much of it is its own, so that saving costs what is new."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.replay.ring import Replay
from spikedream.runs.checkpoint import CheckpointError, Extent, make_directory, naming_older, write_file
from spikedream.types import Transition

BLOCK = 1 << 14  # rows that are written at one time


class ReplayLog:
    """Rows of a replay's ring in the order they came, each the transitions of all environments at one step as float32 numbers.

    Once the file holds twice what the ring can, a new one is begun with what the ring holds, and the old one goes when no
    checkpoint needs it any more.

    Args:
        directory: of the checkpoints.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._extent: Extent | None = None
        self._hash = hashlib.sha256()

    def save(self, replay: Replay) -> Extent:
        """Append what has come since the last time.

        Raises:
            CheckpointError: it cannot be written; what was there before is untouched.
        """
        make_directory(self.directory)
        added, held = int(replay.added), self._extent
        grown = held is None or added - held.first > 2 * replay.rows or added - (held.first + held.rows) > replay.rows
        if grown or held is None:
            first = max(0, added - replay.rows)
            self._hash = hashlib.sha256()
            held = Extent(f"replay-{first}-{added}.f32", first, 0, _width(replay), self._hash.hexdigest())
        path, digest = self.directory / held.file, self._hash.copy()
        if held.rows == 0:
            write_file(path, b"")
        try:
            with path.open("r+b") as file:
                # What lies behind belongs to no checkpoint: it was written before a crash.
                file.truncate(4 * held.rows * held.width)
                file.seek(0, os.SEEK_END)
                for content in _parts(replay, held.first + held.rows, added):
                    digest.update(content)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}; what was there before is untouched") from error
        self._hash, self._extent = digest, held._replace(rows=added - held.first, sha256=digest.hexdigest())
        return self._extent

    def load(self, extent: Extent, replay: Replay) -> Replay:
        """`replay` with the transitions of the log in its ring, and the log ready to go on from there.

        Raises:
            CheckpointError: the file is missing, damaged, or of another configuration; the message says how to go on from the
                checkpoint before, where that can be done.
        """
        if extent.width != _width(replay):
            file = self.directory / extent.file
            raise CheckpointError(f"{file} holds rows of {extent.width} numbers, the configuration needs {_width(replay)}")
        with naming_older(self.directory):
            content, self._hash = extent.read(self.directory)
        self._extent = extent
        rows = np.frombuffer(content, np.float32).reshape(extent.rows, extent.width)[-replay.rows :]
        return with_rows(replay, rows, extent.first + extent.rows - len(rows))

    def begin_anew(self) -> None:
        """The next save writes all that the ring holds into a new file: something that was saved has changed."""
        self._extent = None


def _parts(replay: Replay, start: int, end: int) -> Iterator[bytes]:
    """Ring rows `start` to `end`, counted from the first ever added, a block at a time: a whole replay is not copied at once."""
    while start < end:
        rows = rows_of(replay, start, min(start + BLOCK, end))
        if not np.isfinite(rows).all():
            raise CheckpointError("the replay holds numbers that are not finite")
        start += len(rows)
        yield rows.tobytes()


def _width(replay: Replay) -> int:
    return sum(x[0].size for x in jax.tree.leaves(replay.data))


def rows_of(replay: Replay, start: int, end: int) -> np.ndarray:
    """Ring rows `start` to `end`, counted from the first ever added, (end - start, width) float32."""
    size = 1 << max(end - start - 1, 0).bit_length()  # few sizes, few compilations
    index = (start + np.minimum(np.arange(size), max(end - start - 1, 0))) % replay.rows
    parts = [np.asarray(x).reshape(size, -1) for x in jax.tree.leaves(_take(replay.data, index))]
    return np.concatenate(parts, axis=1)[: end - start]


@jax.jit
def _take(data: Transition, index: jax.Array) -> Transition:
    return jax.tree.map(lambda x: x[index], data)


def with_rows(replay: Replay, rows: np.ndarray, first: int) -> Replay:
    """`rows` (n, width), of which the first is the ring's row number `first` ever added."""
    at, column, fields = (first + np.arange(len(rows))) % replay.rows, 0, []
    leaves, structure = jax.tree.flatten(replay.data)
    for leaf in leaves:
        size = leaf[0].size
        ring = np.zeros(leaf.shape, np.float32)
        ring[at] = rows[:, column : column + size].reshape(len(rows), *leaf.shape[1:])
        fields.append(jnp.array(ring))
        column += size
    return replace(replay, data=jax.tree.unflatten(structure, fields))
