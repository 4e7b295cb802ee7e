"""How often a phase of a run calls which network: what a description of a world model or an agent says.

A description stands beside each kind of world model and agent (`model_calls`, `agent_calls`), since what they call is theirs; what
a call costs, each network says of itself (`Network.operations`).
"""

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

from jax import Array

from spikedream.snn.operations import Operations
from spikedream.types import PyTree
from spikedream.world import Belief, World

Parts = dict[str, tuple[Operations, ...]]  # of each network, by its name
Memories = dict[str, tuple[PyTree, PyTree]]  # of each network: its parameters, and what it holds between ticks or steps


# What an optimiser does to one parameter in a step. Adam: Kingma & Ba 2015, algorithm 1; overshooting-bounded gradient descent, its
# trace included: Elsayed et al. 2024, algorithm 3.
ADAM = (("multiply", 8), ("add", 4), ("square_root", 1), ("divide", 1))
BOUNDED = (("multiply", 2), ("add", 3))


class Calls(NamedTuple):
    forward: float = 0.0
    backward: float = 0.0  # of these, how many are differentiated by weights and inputs; by one of the two counts half
    steps: float = 0.0  # of the optimiser on its parameters
    optimizer: tuple[tuple[str, float], ...] = ADAM


class Totals(NamedTuple):
    """What a run has counted; None where it has not."""

    decisions: int | None  # of the policy's own while it collected
    fits: int | None
    fit_steps: int | None  # gradient steps of all fits
    updates: int
    imagined_steps: int
    gradient_steps: int | None  # that PPO says it made
    surveyed: int  # transitions on which a fit is judged


class DescribesModel(Protocol):
    def memories(self, state: PyTree) -> Memories: ...
    def step(self, state: PyTree, memory: Any, action: Array, key: Array) -> Parts:
        """Of one call of each network, of all members, as in an imagined step."""
        ...

    def asked(self, state: PyTree) -> dict[str, Array | float]:
        """How often an imagined step calls each network."""
        ...

    def informed(self, state: PyTree, by: PyTree) -> PyTree:
        """`state` with what `by` has seen that decides how much is computed."""
        ...

    def observe(self, state: PyTree, belief: Belief, obs: Array, key: Array) -> Parts:
        """Of following one real step; nothing where nothing is remembered."""
        ...

    def fit(self, totals: Totals, met: Collection[str] = ...) -> dict[str, Calls] | None:
        """Of all fits; `met`: the networks for rare events of which there were any, all where it is not said."""
        ...


class DescribesAgent(Protocol):
    def memories(self, state: PyTree) -> Memories: ...
    def decision(self, policy: PyTree, world: World, carry: Any, obs: Array, action: Array, key: Array) -> Parts:
        """Of one greedy decision on the normalised `obs`, for `action`."""
        ...

    def each(self, state: PyTree, world: World, memory: Any, action: Array, key: Array) -> Parts:
        """Of one call of each network that it learns, where the world's memory is `memory` and `action` was taken."""
        ...

    @property
    def collects_so(self) -> bool:
        """Whether it decides in the same way while it collects."""
        ...

    def fit(self, totals: Totals) -> dict[str, Calls]:
        """Of a model of its own."""
        ...

    def imagine(self, totals: Totals) -> dict[str, Calls] | None:
        """Of all its dreams, apart from the world model's steps."""
        ...

    def learn(self, totals: Totals) -> dict[str, Calls] | None: ...
