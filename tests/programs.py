"""What a traced function computes, as text: two functions with the same text give the same numbers for every input."""

import functools
from collections.abc import Callable, Iterator, Sequence
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
from spikedream.spec import Spec

Live = tuple[bool, ...]  # which values count, in the order of the variables


def program(function: Callable, *inputs: Any) -> str:
    """Everything that decides what `function` returns, and nothing else: constants, shapes, operations, also those of loops and
    branches. What is computed and thrown away is not in it, so neither is a number that is read for nothing else. Nothing is
    compiled or run."""
    try:
        return _whole(jax.make_jaxpr(function)(*inputs))
    finally:
        _needs.cache_clear()
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
        greedy = algorithm.agent.selects  # what was selected acts then
        act = algorithm.act(algorithm.policy(state), state.carry, obs, state.keys.collect, greedy)
        return act.action, act.log_prob

    return program(run, key, known, jnp.zeros((1, spec.obs_size)))


def spec_for(config: Config) -> Spec:
    return CONTINUOUS if isinstance(config.agent, OffPolicy) else DISCRETE


def floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def _whole(body: ClosedJaxpr | Jaxpr) -> str:
    return _slice(body, (True,) * len((body.jaxpr if isinstance(body, ClosedJaxpr) else body).outvars))


@functools.cache  # a loop's body is asked for again and again until it is known what counts
def _needs(body: ClosedJaxpr | Jaxpr, live: Live) -> tuple[Live, list[tuple[Any, Live, Live]]]:
    """Which inputs the live outputs depend on, and the operations between them, the last one first, each with its outputs and its
    inputs that count."""
    jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body
    read = {atom for atom, counts in zip(jaxpr.outvars, live, strict=True) if counts and isinstance(atom, Var)}
    operations = []
    for operation in reversed(jaxpr.eqns):
        wanted = tuple(v in read for v in operation.outvars)
        if any(wanted):
            inner = INNER.get(operation.primitive.name)
            used = (True,) * len(operation.invars) if inner is None else inner(operation.params, wanted)[0]
            read.update(v for v, counts in zip(operation.invars, used, strict=True) if counts and isinstance(v, Var))
            operations.append((operation, wanted, used))
    return tuple(v in read for v in jaxpr.invars), operations


def _used(body: ClosedJaxpr | Jaxpr, live: Live) -> Live:
    return _needs(body, live)[0]


@functools.cache
def _slice(body: ClosedJaxpr | Jaxpr, live: Live) -> str:
    """The text of what the live outputs need."""
    jaxpr, constants = (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())
    values = dict(zip(jaxpr.constvars, constants, strict=False))
    names: dict[Var, int] = {}  # of live variables, in the order in which they are come across

    def read(atoms: Sequence[Any], live: Live) -> Iterator[str]:
        for atom, counts in zip(atoms, live, strict=True):
            if counts and isinstance(atom, Literal):
                yield _constant(atom.val)
            elif counts:
                known = atom in values
                yield _constant(values[atom]) if known else f"v{names.setdefault(atom, len(names))}:{_shape(atom.aval)}"

    inputs, operations = _needs(body, live)
    lines = ["return", *read(jaxpr.outvars, live)]
    for operation, wanted, used in operations:
        lines += ["\n", *read(operation.outvars, wanted), "=", operation.primitive.name, *read(operation.invars, used)]
        lines.append(_text(operation, wanted))
    return " ".join((*lines, "given", *read(jaxpr.invars, inputs)))


@functools.cache  # writing these down would be most of the work
def _shape(aval: Any) -> str:
    return aval.str_short()


def _text(operation: Any, live: Live) -> str:
    """The text of an operation's settings, and of what it calls."""
    settings, inner = operation.params, INNER.get(operation.primitive.name)
    if inner is None:
        return _settings(settings)
    rest = {name: value for name, value in settings.items() if not _holds_program(value)}
    return "\n".join((_settings(rest), *(_slice(body, counts) for body, counts in inner(settings, live)[1])))


Called = Sequence[tuple[ClosedJaxpr | Jaxpr, Live]]  # and which of its outputs count


def _call(settings: dict, live: Live) -> tuple[Live, Called]:
    (body,) = (value for value in settings.values() if _holds_program(value))
    return _used(body, live), ((body, live),)


def _scan(settings: dict, live: Live) -> tuple[Live, Called]:
    constants, carried, body = settings["num_consts"], settings["num_carry"], settings["jaxpr"]
    carry, stacked = live[:carried], live[carried:]
    while True:  # what a step needs of what the step before left behind counts too
        used = _used(body, carry + stacked)
        needed = _either(carry, used[constants : constants + carried])
        if needed == carry:
            return used[:constants] + carry + used[constants + carried :], ((body, carry + stacked),)
        carry = needed


def _while(settings: dict, live: Live) -> tuple[Live, Called]:
    of_condition, of_body = settings["cond_nconsts"], settings["body_nconsts"]
    asked, body = settings["cond_jaxpr"], settings["body_jaxpr"]
    condition = _used(asked, (True,))
    carry = _either(live, condition[of_condition:])  # how often the loop turns decides everything that it leaves
    while True:
        used = _used(body, carry)
        needed = _either(carry, used[of_body:])
        if needed == carry:
            return condition[:of_condition] + used[:of_body] + carry, ((asked, (True,)), (body, carry))
        carry = needed


def _branches(settings: dict, live: Live) -> tuple[Live, Called]:
    branches = settings["branches"]
    used = zip(*(_used(branch, live) for branch in branches), strict=True)
    return (True, *(any(of) for of in used)), [(branch, live) for branch in branches]


INNER: dict[str, Callable[[dict, Live], tuple[Live, Called]]] = {
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
    return f"{typed.dtype.str}{typed.shape}{typed.tobytes().hex()}"
