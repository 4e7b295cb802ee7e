"""What made a result: version, commit, source, processor, packages."""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from spikedream.config import Config

PACKAGE = Path(__file__).resolve().parents[1]
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # the widest first; results round differently from one to the next
WITHOUT_EFFECT = ("reports", "export", "experiments", "cli.py", "commands.py", "flags.py", "training.py", "__main__.py")  # on a run
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LOOPS, DESCRIPTION = {"Sync": "runners/sync.py", "Parallel": "runners/parallel.py"}, ("config.py", "processes.py", "verbs.py")
OF_BASELINES = ("envs", "runs", "agents/stable_baselines_learner.py", "experiments/baselines.py")


def version() -> str:
    return importlib.metadata.version("spikedream")


@functools.cache
def commit() -> str | None:
    """Of the working copy that spikedream is imported from, with `+dirty` where its `src` differs from that commit; None where it
    is imported from anywhere else, such as an installed package inside somebody's own repository."""
    root = _git(PACKAGE, "rev-parse", "--show-toplevel")
    head = _git(PACKAGE, "rev-parse", "HEAD")
    if root is None or head is None or Path(root).resolve() / "src" / "spikedream" != PACKAGE:
        return None
    return head + ("+dirty" if _git(PACKAGE.parent, "status", "--porcelain", "--", ".") else "")


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says, or None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code(config: Any) -> str:
    """A hash of the source that a result depends on, comments and docstrings apart; it changes with every change there that may
    change numbers, and with many that do not.

    Args:
        config: a `Config`, whose run depends on the loop, on its own parts, and on what these import; a baseline's, whose run
            depends on the environments, the evaluation and its own file.
    """
    if isinstance(config, Config):
        parts = {type(part).__module__ for part in _parts(config)}
        return _code(
            _imported(
                {
                    LOOPS[type(config.runner).__name__],
                    *(f"{module.replace('.', '/')}.py".removeprefix("spikedream/") for module in parts),
                }
            )
        )
    return _code(frozenset(name for name in _sources() if name.startswith(OF_BASELINES)))


def code_of_script(script: Path) -> str:
    """The same of a measurement that is not of runs: it depends on the script that made it, on all of spikedream but what is made
    of runs afterwards, and on that too where it is measured."""
    effective = frozenset(name for name in _sources() if not name.startswith(WITHOUT_EFFECT))
    source = script.read_text()
    measured = _code(effective | _imported(set(_imported_by(source))))
    return hashlib.sha256(f"{measured}\n{program(source)}".encode()).hexdigest()


def _parts(part: Any) -> Iterator[Any]:
    """What a description holds, at any depth, and itself."""
    if dataclasses.is_dataclass(part):
        yield part
        for field in dataclasses.fields(part):
            yield from _parts(getattr(part, field.name))


def _imported(names: set[str]) -> frozenset[str]:
    """`names` and all that they import, save the description of runs: it names every part that there is, and what it says of this
    one stands beside the result."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in _sources() and name not in found and name not in DESCRIPTION:
            found.add(name)
            names |= _imports(name)
    return frozenset(found)


@functools.cache
def _imports(name: str) -> frozenset[str]:
    return _imported_by(_sources()[name].read_text())


def _imported_by(source: str) -> frozenset[str]:
    """The files of the package that a source may import; of a name in one that is no file too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spikedream"):
            path = node.module.replace(".", "/").removeprefix("spikedream").removeprefix("/")
            found |= {f"{path}.py", *(f"{path}/{alias.name}.py".removeprefix("/") for alias in node.names)}
    return frozenset(found)


@functools.cache
def _sources() -> dict[str, Path]:
    """Path in the package to file."""
    return {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def _code(names: frozenset[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n{_program(name)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _program(name: str) -> str:
    return program(_sources()[name].read_text())


def program(source: str) -> str:
    """What a source says without comments, docstrings and layout; alike under each version of Python that runs it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body[:] = node.body[1:] or [ast.Pass()]
    return told(tree)


def told(node: Any) -> str:
    """A syntax tree, or a part of one. What is empty is left out, since versions differ in the empty fields that their nodes have,
    and in the empty pieces of formatted strings; how they write a tree as source differs too, in the quotes of such strings."""
    if isinstance(node, list):
        return f"[{' '.join(map(told, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr([part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")])
    fields = ((name, getattr(node, name, None)) for name in node._fields)
    return f"({type(node).__name__} {' '.join(f'{name}={told(value)}' for name, value in fields if value not in (None, []))})"


@functools.cache
def processor() -> str:
    """A name for people of what computes here, with the cores that this process may use, among which sums are divided; the
    accelerator comes first, where there is one. Two that differ in name may round differently; two of one name ought not to."""
    device = jax.devices()[0]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = f"{_cpu()}, {usable} core{'s' if usable > 1 else ''}"
    return here if device.platform == "cpu" else f"{device.device_kind}, {here}"


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line.partition(":") for line in information.read_text().splitlines()]
        said = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # of the first core
        flags = said.get("flags", "").split()
        widest = next((f" ({name})" for name in VECTORS if name in flags), "")
        return (said.get("model name") or platform.machine()) + widest
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def peak_memory_mb() -> int:
    """Of this process. Linux's `ru_maxrss` would count the parent's memory too, when the process was forked from a larger one."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Of what decides numbers, and of further `packages`."""
    names = ("spikedream", "jax", "jaxlib", "equinox", "optax", "gymnasium", "numpy", *packages)
    return {name: importlib.metadata.version(name) for name in names} | {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
