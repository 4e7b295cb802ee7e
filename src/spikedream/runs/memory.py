"""Whether a run fits into this machine's memory, asked before anything of it is made."""

import os

import jax

from spikedream.algorithm import Algorithm


def physical_bytes() -> int | None:
    """Of this machine; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_memory(algorithm: Algorithm) -> None:
    """Raises ValueError, naming the largest array, where the training state alone is larger than the machine's memory."""
    there = physical_bytes()
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(algorithm.init, jax.random.key(0)))
    sizes = {jax.tree_util.keystr(path).lstrip("."): leaf.size * leaf.dtype.itemsize for path, leaf in leaves}
    if there is not None and sum(sizes.values()) > there:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"this run would hold {sum(sizes.values()) / 2**30:,.0f} GiB, and this machine has {there / 2**30:,.0f}: its largest"
            f" array is {largest}; lower replay.capacity, or agent.dreams.capacity where the agent has dreams"
        )
