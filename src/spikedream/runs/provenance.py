"""What made a result: version, commit, source, processor, packages."""

import ast
import functools
import hashlib
import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from spikedream.config import Config

PACKAGE = Path(__file__).resolve().parents[1]
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # the widest first; results round differently from one to the next
WITHOUT_EFFECT = ("reports", "experiments", "cli.py", "__main__.py")  # on what a run of ours gives
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
OF_BASELINES = ("envs", "runs", "experiments/baselines.py")


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
    """A hash of the source that the result of `config` depends on, comments and docstrings apart; it changes with every change that
    may change numbers, and with many that do not.

    Args:
        config: a `Config`, whose runs depend on all of spikedream but what is made of them afterwards; or a baseline's, whose
            depend on the environments, the evaluation and their own file.
    """
    return _code(isinstance(config, Config))


@functools.cache
def _code(ours: bool) -> str:
    names = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}
    if ours:
        names = {name: file for name, file in names.items() if not name.startswith(WITHOUT_EFFECT)}
    else:
        names = {name: file for name, file in names.items() if name.startswith(OF_BASELINES)}
    digest = hashlib.sha256()
    for name, file in names.items():
        digest.update(f"{name}\n{program(file.read_text())}\n".encode())
    return digest.hexdigest()


def program(source: str) -> str:
    """The same program without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body[:] = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@functools.cache
def processor() -> str:
    """A name for people of what computes here; the accelerator comes first, where there is one. Two that differ in name may
    round differently; two of one name ought not to."""
    device = jax.devices()[0]
    return _cpu() if device.platform == "cpu" else f"{device.device_kind}, {_cpu()}"


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
