"""Checkpoints: arrays by tree path in safetensors, counters in JSON, a hash over the arrays. No pickle anywhere.

A checkpoint is complete or absent: each file is written under a temporary name, flushed to the disk and renamed, the JSON last.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from spikedream.types import PyTree

KEPT = 2  # the newest, and the one before it
LARGEST_PART = 1 << 24  # bytes that are hashed at one time


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of another configuration; the message says which."""


class Checkpoint(NamedTuple):
    arrays: dict[str, np.ndarray]
    counters: dict[str, Any]


class Extent(NamedTuple):
    """What a checkpoint keeps of a replay log; its counters hold it as `replay`."""

    file: str
    first: int  # ring row that the file begins with, counted from the first ever added
    rows: int  # in the file
    width: int  # numbers in a row
    sha256: str

    def read(self, directory: Path) -> tuple[bytes, Any]:
        """All that it keeps, and the hash that goes on from there.

        Raises:
            CheckpointError: the file is missing, cut short or changed.
        """
        path, size, digest = directory / self.file, 4 * self.rows * self.width, hashlib.sha256()
        try:
            with path.open("rb") as file:
                content = file.read(size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if len(content) < size:
            raise CheckpointError(f"{path} is cut short: of {size:,} bytes it holds {len(content):,}")
        for start in range(0, size, LARGEST_PART):
            digest.update(content[start : start + LARGEST_PART])
        if digest.hexdigest() != self.sha256:
            raise CheckpointError(f"{path} is not as it was written (its SHA-256 differs)")
        return content, digest


def flatten(tree: PyTree, prefix: str) -> dict[str, np.ndarray]:
    """Leaves by path, as in `state.agent.actor.layers[0].synapse.weight`; keys as their raw data."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {prefix + jax.tree_util.keystr(path): np.asarray(_raw(leaf)) for path, leaf in leaves}


def unflatten(template: PyTree, prefix: str, arrays: dict[str, np.ndarray]) -> PyTree:
    """The inverse, into the structure of `template` (arrays or `jax.ShapeDtypeStruct`s).

    Raises:
        CheckpointError: an array is missing, superfluous, or of another shape or type than the template's.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [prefix + jax.tree_util.keystr(path) for path, _ in leaves]
    ours = (name for name in arrays if name.startswith(prefix) and name[len(prefix) :][:1] in ("", ".", "["))
    strange = sorted(set(ours) - set(names))
    if strange:
        raise CheckpointError(f"the checkpoint holds {strange[0]}, which the configuration does not have")
    restored = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name not in arrays:
            raise CheckpointError(f"the checkpoint lacks {name}, which the configuration needs")
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        wanted = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        if arrays[name].shape != wanted.shape or arrays[name].dtype != wanted.dtype:
            raise CheckpointError(
                f"{name} is {arrays[name].dtype}{list(arrays[name].shape)} in the checkpoint,"
                f" {wanted.dtype}{list(wanted.shape)} in the configuration"
            )
        restored.append(jax.random.wrap_key_data(jnp.array(arrays[name])) if is_key else jnp.array(arrays[name]))
    return jax.tree_util.tree_unflatten(structure, restored)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def write_file(path: Path, content: bytes) -> None:
    """All of `content` under `path`, or nothing: an existing file survives a full disk, a crash and a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # a directory on the way may be none
            temporary.unlink()
        raise CheckpointError(f"cannot write {path}: {error.strerror}; what was there before is untouched") from error


def make_directory(directory: Path) -> None:
    """Where there is none. Raises CheckpointError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make {directory}: {error.strerror}") from error


def save(directory: Path, step: int, arrays: dict[str, np.ndarray], counters: dict[str, Any], log: str | None = None) -> None:
    """Write the checkpoint of real step `step` and drop all but the newest `KEPT`, with the files that only those needed.

    Args:
        directory: of the checkpoints; made if absent.
        step: real steps taken.
        arrays: by their tree paths.
        counters: plain data.
        log: a file in `directory` that the checkpoint needs beside its own, and that only grows.

    Raises:
        CheckpointError: it cannot be written; older ones are untouched.
    """
    make_directory(directory)
    content = save_arrays({name: np.array(x, order="C") for name, x in arrays.items()})
    stem = f"{max((_serial(head) for head in heads(directory)), default=0) + 1:06d}-step{step}"
    write_file(directory / f"{stem}.safetensors", content)
    head = {"sha256": hashlib.sha256(content).hexdigest(), "log": log, "counters": counters}
    write_file(directory / f"{stem}.json", json.dumps(head, indent=1).encode())
    newest = heads(directory)[-KEPT:]
    logs = {json.loads(file.read_text()).get("log") for file in newest}
    kept = {file.stem for file in newest}
    for file in directory.iterdir():  # also arrays without a head: the process was killed between the two
        if file.stem not in kept and file.name not in logs:
            file.unlink()


def heads(directory: Path) -> list[Path]:
    """The JSON file of each checkpoint, oldest first."""
    return sorted((file for file in directory.glob("*.json") if file.name.split("-")[0].isdigit()), key=_serial)


def _serial(head: Path) -> int:
    return int(head.name.split("-")[0])


def load(directory: Path) -> Checkpoint:
    """The newest checkpoint.

    Raises:
        CheckpointError: there is none, or it is not as it was written; the message says how to go on from the one before it.
    """
    found = heads(directory)
    if not found:
        raise CheckpointError(f"no checkpoint in {directory}")
    with naming_older(directory):
        return _read(found[-1])


@contextmanager
def naming_older(directory: Path) -> Iterator[None]:
    """Where the newest checkpoint turns out to be damaged, the error says how to go on from one before it, if that is whole."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_older(heads(directory))}") from error


def _older(found: list[Path]) -> str:
    for head in reversed(found[:-1]):
        if _is_whole(head):
            return f"; the one before it, {head.name}, is whole: to go on from there, delete {found[-1]}"
    return "; the one before it is damaged, too" if found[:-1] else ""


def _is_whole(head_file: Path) -> bool:
    """With what it keeps of a replay log, which it shares with the one after it."""
    try:
        replay = _read(head_file).counters.get("replay")
        if replay is not None:
            Extent(**replay).read(head_file.parent)
    except (CheckpointError, TypeError):
        return False
    return True


def _read(head_file: Path) -> Checkpoint:
    file = head_file.with_suffix(".safetensors")
    try:
        head = json.loads(head_file.read_text())
        content = file.read_bytes()
        digest, counters = head["sha256"], head["counters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{head_file} cannot be read ({type(error).__name__}: {error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{file} is not as it was written (its SHA-256 differs from the one in {head_file.name})")
    try:
        return Checkpoint(load_arrays(content), counters)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
