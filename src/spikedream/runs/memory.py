"""Whether runs fit into the memory where they learn, asked before anything of them is made."""

import os

import jax

from spikedream.algorithm import Algorithm


def physical_bytes() -> int | None:
    """Of this machine; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def accelerator_bytes() -> int | None:
    """That a program may take of the device that trains; None where that is the host's processor, or where it does not say."""
    device = jax.devices()[0]
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")


def check_memory(algorithm: Algorithm, seeds: int = 1) -> None:
    """Raises ValueError, naming the largest array, where the training states of so many seeds together are larger than the memory
    of the device that trains."""
    there, where = accelerator_bytes(), "the accelerator"
    if there is None:
        there, where = physical_bytes(), "this machine"
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(algorithm.init, jax.random.key(0)))
    sizes = {jax.tree_util.keystr(path).lstrip("."): leaf.size * leaf.dtype.itemsize for path, leaf in leaves}
    needed = seeds * sum(sizes.values())
    if there is not None and needed > there:
        largest = max(sizes, key=lambda name: sizes[name])
        what = "this run" if seeds == 1 else f"{seeds} seeds together"
        fewer = "" if seeds == 1 else ", or run fewer of them together"
        raise ValueError(
            f"{what} would hold {needed / 2**30:,.1f} GiB, and {where} has {there / 2**30:,.1f}: its largest array is {largest};"
            f" lower replay.capacity, or agent.dreams.capacity where the agent has dreams{fewer}"
        )
