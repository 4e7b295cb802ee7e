"""JAX's random bits by a compiled function of our own: the same bits, in programs that are quicker to compile.

On CPUs XLA compiles the hash anew for every draw in a program, which is a fifth of what the tests take.
"""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

NAME = "spikedream_tests_threefry"
COMPILER = shutil.which("cc")


def hashed(*words: jax.Array) -> list[jax.Array]:
    """Two words of the key and two to hash, shapes that broadcast together."""
    shape = np.broadcast_shapes(*(word.shape for word in words))
    out = jax.ShapeDtypeStruct(shape, np.uint32)
    return jax.ffi.ffi_call(NAME, (out, out))(*(jnp.broadcast_to(word, shape) if word.shape else word for word in words))


def use() -> None:
    """Where there is a C compiler."""
    if COMPILER is None:
        return
    with tempfile.TemporaryDirectory() as place:
        library, source = Path(place) / "threefry.so", Path(__file__).with_suffix(".c")
        command = [COMPILER, "-O2", "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        function = ctypes.CDLL(str(library)).threefry
    jax.ffi.register_ffi_target(NAME, jax.ffi.pycapsule(function), platform="cpu")
    mlir.register_lowering(threefry2x32_p, mlir.lower_fun(hashed, multiple_results=True), platform="cpu")
