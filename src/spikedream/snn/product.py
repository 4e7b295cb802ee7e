"""Matrix products of synapses: in float32, or from factors rounded to bfloat16 and summed in float32.

Which of them is JAX's own setting `jax_default_matmul_precision`, where a program is traced: "BF16_BF16_F32" for the second, as
`precisely` sets it. XLA's back end for CPUs does not heed that for products of float32, so it is heeded here. Spikes are exact in
bfloat16.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

NARROW = "BF16_BF16_F32"
WORTHWHILE = 4096  # weights, below which rounding saves nothing: the last layer of a critic stays exact
UNROLLED = 16  # products side by side, as of an ensemble's members; more are made in float32

Precision = Literal["float32", "bfloat16"]
Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]  # as of `jax.lax.dot_general`


def precisely(precision: Precision) -> contextlib.AbstractContextManager[None]:
    """What is traced inside makes its products so."""
    return jax.default_matmul_precision(NARROW) if precision == "bfloat16" else contextlib.nullcontext()


def fastest() -> Precision:
    """The precision in which this machine makes products of the usual size in less time, at least a fifth less where it is
    bfloat16: measured, in a second."""
    x, weight = jnp.ones((1280, 256)), jnp.ones((256, 256))
    seconds: dict[Precision, float] = {}
    for precision in ("float32", "bfloat16"):
        with precisely(precision):
            multiply = jax.jit(lambda x, weight: product(x, weight)).lower(x, weight).compile()
        seconds[precision] = min(_seconds(multiply, x, weight) for _ in range(20))
    return "bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"


def _seconds(function: Any, *arguments: Array) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begun


def product(x: Array, weight: Array) -> Array:
    """(rows, in_size) by (in_size, out_size)."""
    if jax.config.values["jax_default_matmul_precision"] != NARROW or weight.size < WORTHWHILE:
        return x @ weight
    return narrow_dot.bind(x, weight, dimensions=(((1,), (0,)), ((), ())))


narrow_dot = Primitive("narrow_dot")


def _rest(ndim: int, *taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if not any(i in axes for axes in taken))


def _shape(x: Any, y: Any, *, dimensions: Dimensions) -> Any:
    (x_summed, y_summed), (x_batch, y_batch) = dimensions
    free = [x.shape[i] for i in _rest(x.ndim, x_summed, x_batch)] + [y.shape[i] for i in _rest(y.ndim, y_summed, y_batch)]
    return ShapedArray((*(x.shape[i] for i in x_batch), *free), jnp.dtype("float32"))


def _compute(x: Array, y: Array, *, dimensions: Dimensions) -> Array:
    """Only products of two plain matrices, rows by columns, are asked of XLA: it has no fast path for others, and for some none."""
    (x_summed, y_summed), (x_batch, y_batch) = dimensions
    count = math.prod(x.shape[i] for i in x_batch)
    if count > UNROLLED:
        return jax.lax.dot_general(x, y, dimensions, precision=jax.lax.Precision.DEFAULT)
    shape, summed = _shape(x, y, dimensions=dimensions).shape, math.prod(x.shape[i] for i in x_summed)
    x = x.astype(jnp.bfloat16).transpose(*x_batch, *_rest(x.ndim, x_summed, x_batch), *x_summed).reshape(count, -1, summed)
    y = y.astype(jnp.bfloat16).transpose(*y_batch, *y_summed, *_rest(y.ndim, y_summed, y_batch)).reshape(count, summed, -1)
    products = [jax.lax.dot(x[i], y[i], preferred_element_type=jnp.float32) for i in range(count)]
    return (products[0] if count == 1 else jnp.stack(products)).reshape(shape)


def _transposed_x(cotangent: Array, x: Any, y: Array, *, dimensions: Dimensions) -> Array:
    (x_summed, y_summed), (x_batch, y_batch) = dimensions
    x_free, y_free = _rest(x.aval.ndim, x_summed, x_batch), _rest(y.ndim, y_summed, y_batch)
    batch, after = len(x_batch), len(x_batch) + len(x_free)
    columns = tuple(range(after, after + len(y_free)))
    found = narrow_dot.bind(cotangent, y, dimensions=((columns, y_free), (tuple(range(batch)), y_batch)))
    # Its axes are those of the batch, the free ones of x, and the summed ones in the order that they have in y.
    order = (*x_batch, *x_free, *(x_summed[i] for i in np.argsort(y_summed)))
    return found.transpose(*np.argsort(order))


def _transposed_y(cotangent: Array, x: Array, y: Any, *, dimensions: Dimensions) -> Array:
    (x_summed, y_summed), (x_batch, y_batch) = dimensions
    batch, x_free = len(x_batch), _rest(x.ndim, x_summed, x_batch)
    rows = tuple(range(batch, batch + len(x_free)))
    found = narrow_dot.bind(x, cotangent, dimensions=((x_free, rows), (x_batch, tuple(range(batch)))))
    order = (*y_batch, *(y_summed[i] for i in np.argsort(x_summed)), *_rest(y.aval.ndim, y_summed, y_batch))
    return found.transpose(*np.argsort(order))


def _batched(arrays: Sequence[Array], axes: Sequence[int | None], *, dimensions: Dimensions) -> tuple[Array, int]:
    (x, y), (x_axis, y_axis) = arrays, axes
    (x_summed, y_summed), (x_batch, y_batch) = dimensions

    def behind(dims: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i + 1 for i in dims)

    if x_axis is not None:
        x, x_summed, x_batch = jnp.moveaxis(x, x_axis, 0), behind(x_summed), behind(x_batch)
    if y_axis is not None:
        y, y_summed, y_batch = jnp.moveaxis(y, y_axis, 0), behind(y_summed), behind(y_batch)
    if x_axis is not None and y_axis is not None:
        x_batch, y_batch = (0, *x_batch), (0, *y_batch)
    found = narrow_dot.bind(x, y, dimensions=((x_summed, y_summed), (x_batch, y_batch)))
    if x_axis is not None and y_axis is not None:
        return found, 0
    # A new axis is the first of the free ones of its factor.
    return found, len(x_batch) + (0 if x_axis is not None else len(_rest(x.ndim, x_summed, x_batch)))


narrow_dot.def_impl(lambda x, y, dimensions: jax.jit(_compute, static_argnames="dimensions")(x, y, dimensions=dimensions))
narrow_dot.def_abstract_eval(_shape)
mlir.register_lowering(narrow_dot, mlir.lower_fun(_compute, multiple_results=False))
ad.defbilinear(narrow_dot, _transposed_x, _transposed_y)
batching.primitive_batchers[narrow_dot] = _batched
