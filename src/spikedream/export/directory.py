"""A run's policy as files that need neither Python nor JAX: C99, or a NIR graph with what stands beside it."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spikedream.export import neuromorphic
from spikedream.export.c99 import source
from spikedream.export.emulator import BOARDS, Board
from spikedream.export.program import Source, literal
from spikedream.export.vectors import TOLERANCE, UNDECIDED, Vector, check_asked, test_vectors
from spikedream.nodes import Bounds, Node, Unexportable, numbers
from spikedream.runs.checkpoint import make_directory
from spikedream.runs.run import Run
from spikedream.snn.fixed_point import FixedPoint
from spikedream.snn.learning_rules.bptt import BPTT
from spikedream.snn.networks import SpikingNetwork

C_FILES = Path(__file__).parent / "c"
VECTORS = 32
Target = Literal["c", "nir"]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    directory: Path
    weights: int  # bytes of constant tables, or of `policy.nir`
    state: int | None  # bytes that C works in; None where the target does not tell
    vectors: int
    left_out: int  # observations on which rounding decides who fires: no test vectors


def export_policy(
    run: Run,
    to: Target = "c",
    out: str | Path | None = None,
    board: str | None = None,
    vectors: int = VECTORS,
    bits: int | None = None,
) -> Exported:
    """Write the greedy policy of a run, from an observation in the environment's own units to its action.

    Args:
        run: an opened run.
        to: "c" or "nir".
        out: a directory, of which files of the same names are replaced; by default `export/c` or `export/nir` in the run's.
        board: refuse what this one cannot hold, one of `BOARDS`; for "c".
        vectors: observations of the environment that stand beside it, with what the policy does there.
        bits: of the weights, in fixed point, where the run is not in fixed point already; for "c". It is not fine-tuned for that.

    Raises:
        Unexportable: the policy, or a part of it, cannot leave Python so, or the board cannot hold it.
        ImportError: the package `nir` is not installed.
        BrokenEnvironment: the environment cannot be played.
    """
    if to not in TARGETS:
        raise Unexportable(f"there is no target {to!r}; targets are {', '.join(TARGETS)}")
    if board is not None and (board not in BOARDS or to != "c"):
        raise Unexportable(f"--board {board} is for --to c, and boards are {', '.join(BOARDS)}")
    check_asked(vectors)
    run = run if bits is None else rounded(run, bits)
    nodes = policy_nodes(run)
    directory = Path(out) if out is not None else run.directory / "export" / to
    return TARGETS[to](run, nodes, directory, None if board is None else BOARDS[board], vectors)


def rounded(run: Run, bits: int) -> Run:
    """`run` with its actor in fixed point, as it is.

    Raises:
        Unexportable: there is no such actor, or it has no form in fixed point.
    """

    def in_fixed_point(agent: Any) -> Any:
        if not isinstance(getattr(agent, "actor", None), SpikingNetwork):
            raise Unexportable(f"--bits is for spiking actors, and {type(agent).__name__} has none")
        # By which rule it has learned changes nothing that it does.
        return replace(agent, actor=replace(agent.actor, fixed_point=FixedPoint(bits), rule=BPTT()))

    agent: Any = run.algorithm.agent
    try:
        held = getattr(agent, "policy", None)
        inner = replace(agent, policy=in_fixed_point(held)) if hasattr(held, "actor") else in_fixed_point(agent)
    except ValueError as error:
        raise Unexportable(str(error)) from error
    coarse = copy.copy(run)
    coarse.algorithm = replace(run.algorithm, agent=inner)
    return coarse


def policy_nodes(run: Run) -> tuple[Node, ...]:
    """The greedy policy from the environment's own units to them."""
    nodes = run.algorithm.describe(run.algorithm.policy(run.state))
    bounds = () if run.spec.discrete else (Bounds(numbers(run.spec.action_low), numbers(run.spec.action_high)),)
    return *nodes, *bounds


# ---- NIR


def _write_nir(run: Run, nodes: tuple[Node, ...], directory: Path, board: Board | None, vectors: int) -> Exported:
    graph, beside = neuromorphic.graph(nodes), neuromorphic.beside(nodes)
    found, left_out = test_vectors(run, nodes, vectors)
    make_directory(directory)
    size = neuromorphic.save(graph, beside, found, nodes, directory)
    return Exported(directory, size, None, len(found), left_out)


# ---- C


def _write_c(run: Run, nodes: tuple[Node, ...], directory: Path, board: Board | None, vectors: int) -> Exported:
    made = source(nodes, run.spec.obs_size, f"{run.config.env}, {run.config.preset}, seed {run.config.seed}: by spikedream export")
    if board is not None:
        board.check(made.weights, made.state, "actor")
    found, left_out = test_vectors(run, nodes, vectors)
    make_directory(directory)
    for file in C_FILES.iterdir():
        shutil.copyfile(file, directory / file.name)
    (directory / "actor.h").write_text(made.header)
    (directory / "actor.c").write_text(made.code)
    (directory / "vectors.h").write_text(_vectors(run, found))
    (directory / "README.md").write_text(_readme(run, made, len(found), left_out))
    return Exported(directory, made.weights, made.state, len(found), left_out)


def _vectors(run: Run, found: list[Vector]) -> str:
    """As C."""
    layers = [train.shape for train in found[0].trains]
    places = np.cumsum([0, *(ticks * size for ticks, size in layers)])
    action = "int action" if run.spec.discrete else "float action[ACTOR_OUTPUTS]"
    tolerance = literal(TOLERANCE * (max(np.subtract(run.spec.action_high, run.spec.action_low), default=1)))
    rows = ",\n".join(_row(run, vector, int(places[-1]) // 8 + 1) for vector in found)
    return f"""/* Observations of {run.config.env}, and what the trained policy does there in JAX. */
#define VECTORS {len(found)}
#define VECTOR_SPIKES {places[-1]}
#define VECTOR_TOLERANCE {tolerance}

/* Where a layer's spikes begin, tick by tick, in the bits of a vector; and how many neurons it has. */
static const int vector_layers[] = {{{", ".join(map(str, places))}}};
static const int vector_neurons[] = {{{", ".join(str(size) for _, size in layers) or "0"}}};

struct vector {{
    float observation[ACTOR_INPUTS];
    int begins; /* an episode */
    {action};
    uint8_t spikes[VECTOR_SPIKES / 8 + 1];
    uint32_t output[ACTOR_OUTPUTS]; /* the bits of floats whose sums are taken in the order of the code */
}};

static const struct vector vectors[VECTORS] = {{
{rows},
}};
"""


def _row(run: Run, vector: Vector, size: int) -> str:
    bits = np.concatenate([np.ravel(train) for train in vector.trains]) if vector.trains else np.zeros(0)
    spikes = np.packbits(bits.astype(bool), bitorder="little")
    spikes = np.concatenate([spikes, np.zeros(size - spikes.size, np.uint8)])
    observation = ", ".join(map(literal, vector.observation))
    action = str(int(vector.action)) if run.spec.discrete else "{" + ", ".join(map(literal, np.ravel(vector.action))) + "}"
    output = ", ".join(f"0x{word:08x}u" for word in vector.output.view(np.uint32))
    return f"    {{{{{observation}}}, {int(vector.begins)}, {action}, {{{', '.join(map(str, spikes))}}}, {{{output}}}}}"


def _readme(run: Run, made: Source, vectors: int, left_out: int) -> str:
    if run.spec.discrete:
        answer = f"the index of the action, from 0 to {run.spec.action_size - 1}"
        call = "int choice = actor_act(&actor, observation);"
    else:
        answer = f"{run.spec.action_size} numbers within the environment's bounds"
        call = f"float action[{run.spec.action_size}];\n    actor_act(&actor, observation, action);"
    return f"""# The policy of {run.config.env} in C99

Made by `spikedream export` from {run.config.preset}, seed {run.config.seed}. It observes {run.spec.obs_size} numbers in the
environment's own units and answers {answer}.

    #include "actor.h"

    static struct actor actor;
    actor_reset(&actor); /* when an episode begins */
    {call}

`actor.c`, `actor.h` and `arithmetic.h` are all it needs: no allocation, no library, {made.weights} bytes of constants,
`sizeof(struct actor)` = {made.state} bytes of state on a machine without padding, and a few words of stack. Compile with
`-ffp-contract=off`, and no `-ffast-math`: then every machine computes the same bits.

`make test` compares it with {vectors} observations from the environment, in episodes in which every other action was random
({left_out} more were left out, on which a membrane came within {UNDECIDED:g} of its threshold, where rounding decides). The spikes,
tick by tick, and the action are those of the trained policy in JAX; the output has the bits of a reference in NumPy that sums in
the order of this code.
"""


TARGETS: dict[str, Callable[[Run, tuple[Node, ...], Path, Board | None, int], Exported]] = {"c": _write_c, "nir": _write_nir}
