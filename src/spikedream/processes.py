"""How a run is spread over processes: the settings of its runner."""

from dataclasses import dataclass
from typing import Any, ClassVar

from spikedream.bounds import check_bounds


@dataclass(frozen=True)
class Sync:
    """One process, one verb after the other; it resumes to the same numbers."""

    collectors: ClassVar[int] = 1
    even_turns: ClassVar[bool] = False  # whether it counts in turns of one length, and collects from the beginning

    def check(self, config: Any) -> None: ...


@dataclass(frozen=True)
class Parallel:
    """Collectors, a trainer of the world model, a trainer of the agent and an evaluator in processes of their own, on Ray.

    Real steps are counted in turns, of `collect.steps` each. Where learning may not run further ahead of experience it waits, and
    where experience may not run further ahead of learning the collectors wait.
    """

    even_turns: ClassVar[bool] = True
    collectors: int = 1  # each with `collect.environments` of its own
    ahead: float = 1.0  # dreams and fits for each real step, as a multiple of what Sync makes; no more, however slow collectors are
    lead: float | None = 1.0  # turns that experience may be ahead of learning, in real time until an episode ends; None: any number
    rows: int = 64  # steps of its environments that a collector hands over together, at most
    seconds: float = 0.1  # after which a collector hands over what it has, and dreams what they have come to
    queue: int = 64  # rows that wait for those of slower collectors, before their places are filled with what is there
    step_seconds: float = 10.0  # for one step of an environment; who plays one that takes longer is started anew
    start_seconds: float = 180.0  # for a process to start and compile
    evaluation_seconds: float = 1800.0  # for an evaluation with its confirmations
    fit_seconds: float = 3600.0  # for a fit of the world model, or a block of agent updates
    failures: int = 5  # of one part, one right after the other, that end the run
    address: str | None = None  # host:port of a Ray cluster to join; None: RAY_ADDRESS where that is set, else this machine alone

    def __post_init__(self) -> None:
        check_bounds(self, collectors=(1, None), rows=(1, None), queue=(1, None), failures=(1, None), ahead=(1e-6, None))
        check_bounds(self, seconds=(0, None), step_seconds=(0, None), start_seconds=(0, None))
        check_bounds(self, evaluation_seconds=(0, None), fit_seconds=(0, None))
        if self.lead is not None:
            check_bounds(self, lead=(0, None))

    def check(self, config: Any) -> None:
        """Raises ValueError unless a run of this `Config` can be spread over processes."""
        if config.agent.on_policy_steps is not None:
            raise ValueError(
                f"runner Parallel collects while it learns, and {type(config.agent).__name__} learns only from steps of the very"
                " policy that it improves: one would always wait for the other; use runner Sync, with collect.environments"
            )
        if config.agent.online:
            raise ValueError(
                f"runner Parallel has an agent trainer of its own, but {type(config.agent).__name__} learns from each step before"
                " it takes the next; use runner Sync"
            )


AnyRunner = Sync | Parallel
