"""What a traced function computes, as text: two functions with the same text give the same numbers for every input."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from small import CONTINUOUS, DISCRETE

from spikedream.agents.off_policy import OffPolicy
from spikedream.algorithm import TrainState
from spikedream.config import Config
from spikedream.types import Spec

Live = tuple[bool, ...]  # which values count, in the order of the variables


def program(function: Callable, *inputs: Any) -> str:
    """Everything that decides what `function` returns, and nothing else: constants, shapes, operations, also those of loops and
    branches. What is computed and thrown away is not in it, so neither is a number that is read for nothing else. Nothing is
    compiled or run."""
    try:
        return _whole(jax.make_jaxpr(function)(*inputs))
    finally:
        _slice.cache_clear()


def outcome(config: Config, *verbs: str) -> str:
    """The program of `init`, these verbs and then what counts: the fitted world, if that is all there is, else a decision."""
    spec, key = spec_for(config), jax.random.key(0)
    algorithm = config.algorithm(spec)
    known = jax.eval_shape(algorithm.init, key)

    def run(key: jax.Array, known: TrainState, obs: jax.Array) -> Any:
        state = replace(algorithm.init(key), replay=known.replay)  # whatever was experienced
        if "fit" not in verbs:
            state = replace(state, world=known.world)  # whatever was fitted
        for verb in verbs:
            arguments = (config.world_model.updates,) if verb == "fit" else ()
            state = getattr(algorithm, verb)(state, *arguments)[0]
        if "dream" not in verbs and verbs:
            return floats(state.world)
        act = algorithm.act(algorithm.policy(state), state.carry, obs, state.keys.collect, False)
        return act.action, act.log_prob

    return program(run, key, known, jnp.zeros((1, spec.obs_size)))


def spec_for(config: Config) -> Spec:
    return CONTINUOUS if isinstance(config.agent, OffPolicy) else DISCRETE


def floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def _whole(body: ClosedJaxpr | Jaxpr) -> str:
    return _slice(body, (True,) * len((body.jaxpr if isinstance(body, ClosedJaxpr) else body).outvars))[1]


@functools.cache  # a loop's body is asked for again and again until it is known what counts
def _slice(body: ClosedJaxpr | Jaxpr, live: Live) -> tuple[Live, str]:
    """Which inputs the live outputs depend on, and the text of the operations between them, the last one first."""
    jaxpr, constants = (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())
    values = dict(zip(jaxpr.constvars, constants, strict=False))
    names: dict[Var, int] = {}  # of live variables, in the order in which they are come across

    def read(atom: Any) -> str:
        if isinstance(atom, Literal):
            return _constant(atom.val)
        if atom in values:
            return _constant(values[atom])
        return f"v{names.setdefault(atom, len(names))}:{_shape(atom.aval)}"

    lines = ["return " + " ".join(read(atom) for atom, counts in zip(jaxpr.outvars, live, strict=True) if counts)]
    for operation in reversed(jaxpr.eqns):
        wanted = tuple(v in names for v in operation.outvars)
        if any(wanted):
            used, text = _operation(operation, wanted)
            written = " ".join(read(v) if counts else "_" for v, counts in zip(operation.outvars, wanted, strict=True))
            taken = " ".join(read(v) for v, counts in zip(operation.invars, used, strict=True) if counts)
            lines.append(f"{written} = {operation.primitive.name} {taken} {text}")
    inputs = tuple(v in names for v in jaxpr.invars)
    lines.append("given " + " ".join(read(v) for v, counts in zip(jaxpr.invars, inputs, strict=True) if counts))
    return inputs, "\n".join(lines)


@functools.cache  # writing these down would be most of the work
def _shape(aval: Any) -> str:
    return aval.str_short()


def _operation(operation: Any, live: Live) -> tuple[Live, str]:
    """Which inputs of an operation count where these of its outputs do, and the text of its settings."""
    settings, inner = operation.params, INNER.get(operation.primitive.name)
    if inner is None:
        return (True,) * len(operation.invars), _settings(settings)
    used, texts = inner(settings, live)
    rest = {name: value for name, value in settings.items() if not _holds_program(value)}
    return used, "\n".join((_settings(rest), *texts))


def _call(settings: dict, live: Live) -> tuple[Live, Sequence[str]]:
    (body,) = (value for value in settings.values() if _holds_program(value))
    used, text = _slice(body, live)
    return used, (text,)


def _scan(settings: dict, live: Live) -> tuple[Live, Sequence[str]]:
    constants, carried = settings["num_consts"], settings["num_carry"]
    carry, stacked = live[:carried], live[carried:]
    while True:  # what a step needs of what the step before left behind counts too
        used, text = _slice(settings["jaxpr"], carry + stacked)
        needed = _either(carry, used[constants : constants + carried])
        if needed == carry:
            return used[:constants] + carry + used[constants + carried :], (text,)
        carry = needed


def _while(settings: dict, live: Live) -> tuple[Live, Sequence[str]]:
    of_condition, of_body = settings["cond_nconsts"], settings["body_nconsts"]
    condition, asked = _slice(settings["cond_jaxpr"], (True,))
    carry = _either(live, condition[of_condition:])  # how often the loop turns decides everything that it leaves
    while True:
        used, text = _slice(settings["body_jaxpr"], carry)
        needed = _either(carry, used[of_body:])
        if needed == carry:
            return condition[:of_condition] + used[:of_body] + carry, (asked, text)
        carry = needed


def _branches(settings: dict, live: Live) -> tuple[Live, Sequence[str]]:
    used, texts = zip(*(_slice(branch, live) for branch in settings["branches"]), strict=True)
    return (True, *(any(of) for of in zip(*used, strict=True))), texts


INNER: dict[str, Callable[[dict, Live], tuple[Live, Sequence[str]]]] = {
    **dict.fromkeys(("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint"), _call),
    "scan": _scan, "while": _while, "cond": _branches,
}  # fmt: skip


def _either(a: Live, b: Live) -> Live:
    return tuple(x or y for x, y in zip(a, b, strict=True))


def _holds_program(value: Any) -> bool:
    several = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(x, ClosedJaxpr | Jaxpr) for x in several)


def _settings(settings: dict) -> str:
    return " ".join(f"{name}={_setting(value)}" for name, value in sorted(settings.items()) if name != "name")


def _setting(value: Any) -> str:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return _whole(value)
    if isinstance(value, np.ndarray | jax.Array):
        return _constant(value)
    # Derivatives not yet asked for: what takes them holds their operations itself.
    return "" if callable(value) and not isinstance(value, type) else str(value)


def _constant(value: Any) -> str:
    is_key = isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    typed = np.asarray(jax.random.key_data(value) if is_key else value)
    return f"{typed.dtype}{typed.shape}{typed.tobytes().hex()}"
