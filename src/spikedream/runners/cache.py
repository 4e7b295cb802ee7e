"""Compiled phases are kept between processes."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Unless the user has chosen a place or switched it off."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None and os.environ.get(
        "JAX_ENABLE_COMPILATION_CACHE", "1"
    ) not in ("0", "false"):
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "spikedream" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
