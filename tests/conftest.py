"""Strict numerics, one thread a worker, what makes programs quick to compile, and the longest files first."""

import functools
import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the numbers below are claims about the mathematics, not about a device
os.environ.setdefault("NPROC", "1")  # XLA's thread pool: the networks are tiny, and pytest-xdist brings its own processes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiling is most of the work. Without these passes it takes a third of the time, and networks this small run as fast; a program
# that is split, to be compiled by many threads, takes a sixth more of one.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
# In the environment, so that processes which tests start keep their programs there too, and the small ones as well.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spikedream" / "xla-tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # where in the source each operation is from: a tenth of compiling

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the seventy processes that tests start compiles all sources anew
os.environ.pop("MAKEFLAGS", None)  # what tests build with `make` is no job of the `make` that runs them

import jax
import pytest
import threefry
from jax._src.interpreters import mlir
from jaxlib.mlir import ir

fresh_context = mlir.make_ir_context
shared_context = functools.cache(fresh_context)


def context() -> ir.Context:
    """In which a program is written down: ten thousand are, and each made its own in three milliseconds. One that is written down
    while another is, for a constant in that, would land inside it."""
    try:
        return fresh_context() if ir.Context.current else shared_context()
    except ValueError:  # none is entered
        return shared_context()


mlir.make_ir_context = context
jax.config.update("jax_numpy_rank_promotion", "raise")
threefry.use()

# A file's tests stay together, for what its fixtures build; with the longest ones first the workers end together.
LONGEST_FIRST = (
    "test_numbers_of_parts", "test_learning", "test_resume", "test_algorithm", "test_cli", "test_study", "test_ppo",
    "test_planners", "test_recurrent", "test_bonuses", "test_envs", "test_config", "test_off_policy", "test_results",
    "test_probes_of_agents", "test_export", "test_report", "test_runners", "test_snn", "test_probes", "test_learning_rules",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gc.freeze()  # tracing makes many small objects: without this, looking for garbage among all others is a tenth of the time
    gc.set_threshold(100_000, 20, 100)
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_sessionfinish() -> None:
    gc.freeze()  # pytest looks twice for garbage at the very end, among all programs that were traced: for seconds


MAPS = Path("/proc/self/maps")
tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _few_memory_maps() -> Iterator[None]:
    """Every compiled function holds memory maps, of which Linux allows a process 65,530; past that XLA dies. A test adds 1,300 at
    most, and counting them takes ten milliseconds: every tenth test does."""
    yield
    if next(tests) % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
