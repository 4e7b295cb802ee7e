"""What each verb of the loop does in a turn, and when: each has a clock of its own, in real steps."""

from dataclasses import dataclass

from spikedream.bounds import check_bounds


def check_period(part: object, name: str) -> None:
    """Raises ValueError unless the field `name` is None or at least 1."""
    if getattr(part, name) is not None:
        check_bounds(part, **{name: (1, None)})


@dataclass(frozen=True)
class Collect:
    """How much real experience a turn adds. A turn collects, and then does whatever else is due."""

    seed_episodes: int = 4  # with random actions, in the first turn; with 0 the agent acts from the start
    seed_steps: int | None = None  # in place of seed_episodes: so many real steps with random actions
    seed_limit: int | None = None  # random steps after which the first turn ends, however many episodes that are
    steps: int = 25  # with the agent's own, in each turn after that, rounded up to a step of all environments
    growth: float = 0.0  # of all experience so far, that a turn adds where that is more than `steps`
    environments: int = 1  # played side by side
    workers: bool = False  # each environment in a process of its own
    threads: bool = False  # each in a thread of its own, for those that wait: for a clock, a device or another process
    episode_steps: int | None = None  # after which an episode is cut short, to see more starts; None: as evaluation's last

    def __post_init__(self) -> None:
        check_bounds(self, seed_episodes=(0, None), steps=(1, None), environments=(1, None), growth=(0, None))
        check_period(self, "seed_limit")
        check_period(self, "episode_steps")
        check_period(self, "seed_steps")


@dataclass(frozen=True)
class Fit:
    """When the world model is fitted, and the scale of experience brought up to date; always in the first turn."""

    every: int | None = None  # real steps; None: in each turn
    then: int | None = None  # gradient steps of each fit after the first; None: the world model's own `updates`

    def __post_init__(self) -> None:
        check_period(self, "every")
        check_period(self, "then")


@dataclass(frozen=True)
class Improve:
    """How many agent updates a turn makes (for Dreamer: dreams), in whole blocks."""

    first: int = 600  # in the first turn, rounded up
    then: int = 200  # in each turn after that, rounded up; in the last one as many fewer as the budget leaves fewer steps to it
    ratio: float | None = None  # in place of `then`: updates for each real step after the first turn; what is left over waits
    block: int = 50  # updates in one compiled call

    def __post_init__(self) -> None:
        check_bounds(self, first=(0, None), then=(0, None), block=(1, None))
        if self.ratio is not None:
            check_bounds(self, ratio=(0, None))


@dataclass(frozen=True)
class Evaluation:
    """Greedy episodes on fresh seeds; their steps do not count as real steps."""

    every: int | None = None  # real steps; None: in each turn. Always in the first turn and in the last
    episodes: int = 100
    confirmations: int = 0  # further evaluations that must also reach the threshold before the run counts as solved
    stop: bool = True  # as soon as it is solved; otherwise it goes on to the end of its budget

    def __post_init__(self) -> None:
        check_period(self, "every")
        check_bounds(self, episodes=(1, None), confirmations=(0, None))


@dataclass(frozen=True)
class Checkpointing:
    """When the run is saved; always when it stops."""

    every: int | None = None  # real steps; None: in each turn
    best: bool = False  # whether what acted in the best evaluation so far is kept, too

    def __post_init__(self) -> None:
        check_period(self, "every")
