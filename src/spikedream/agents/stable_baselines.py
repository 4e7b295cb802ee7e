"""An agent of Stable-Baselines3 that practises in the learned world.

It improves outside compiled programs, by its `host_learner`, in dreams that it steps like any environment. What it decides with,
the actor's network, is mirrored as arrays in the agent's state: so it acts, is evaluated, saved, exported and priced as any other
agent, also where Stable-Baselines3 is not installed. Its networks are conventional.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.stable_baselines_heads import HEADS, Head
from spikedream.bounds import check_bounds
from spikedream.dream_env.stepped_dreams import SteppedDreams
from spikedream.dream_env.vector import check_stable_baselines3
from spikedream.nodes import Node, described
from spikedream.snn.conventional import MLP, MLPParams
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics
from spikedream.world import Belief, World

if TYPE_CHECKING:
    from spikedream.agents.stable_baselines_learner import StableBaselinesLearner

# What the constructor is given by this agent, or what its mirrored actor cannot follow.
OURS = ("policy", "env", "seed", "verbose", "tensorboard_log", "_init_setup_model", "use_sde", "sde_sample_freq")
OURS_OF_POLICY = ("net_arch", "activation_fn", "features_extractor_class", "features_extractor_kwargs", "use_sde", "squash_output")


class StableBaselinesState(eqx.Module):
    """The mirrored actor, which is all that acting needs."""

    actor: MLPParams
    spread: Array  # what it explores with; see its head
    spec: Spec = eqx.field(static=True)


@dataclass(frozen=True)
class StableBaselines:
    """Hyper-parameters. An update is so many imagined `steps`, with the gradient steps that the algorithm makes of them."""

    algorithm: Literal["PPO", "A2C", "DQN", "SAC", "TD3"] = "PPO"
    hidden: tuple[int, ...] = (64, 64)  # of the actor and of each critic
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    trajectories: int = 64  # dreams side by side
    dreams: SteppedDreams = SteppedDreams()
    steps: int = 1024  # imagined, of all dreams together, in an update; rounded up to what the algorithm takes at a time
    schedule: int = 100_000  # imagined steps over which exploration falls, and settings that are written as lin_0.001
    weights: str | None = (
        None  # a .zip that such an agent has left, whose weights it starts from; what is pickled there is not read
    )
    settings: dict[str, Any] = field(default_factory=dict, hash=False)  # of the algorithm's constructor, as that library names them

    def __post_init__(self) -> None:
        at_least_one = (1, None)
        check_bounds(self, hidden=at_least_one, trajectories=at_least_one, steps=at_least_one, schedule=at_least_one)
        policy = self.settings.get("policy_kwargs", {})
        wrong = [name for name in OURS if name in self.settings]
        wrong += [f"policy_kwargs.{name}" for name in OURS_OF_POLICY if name in policy]
        if wrong:
            raise ValueError(
                f"settings.{wrong[0]} cannot be set; networks are given by agent.hidden and agent.activation, the seed is the"
                " run's, and there is no state-dependent exploration"
            )

    uses_world = True
    acts_in_world = False
    online = False
    selects = False
    on_policy_steps = None

    # ---- acting

    @property
    def actor(self) -> MLP:
        return MLP(self.hidden, self.activation)

    def head(self, spec: Spec) -> Head:
        """Raises ValueError where the algorithm cannot act so."""
        heads = HEADS[self.algorithm]
        if spec.discrete not in heads:
            wanted, others = ("continuous", "discrete")[:: 1 if spec.discrete else -1]
            able = ", ".join(name for name, them in HEADS.items() if spec.discrete in them)
            raise ValueError(f"{self.algorithm} needs a {wanted} action space; {able} act in {others} ones: set agent.algorithm")
        return heads[spec.discrete](spec.action_size)

    @property
    def noise(self) -> float:
        """Standard deviation of what is added to its actions, in half the width of their range. The library has none for TD3."""
        return float(self.settings.get("action_noise", 0.1 if self.algorithm == "TD3" else 0.0))

    def init(self, spec: Spec, world: World, key: Array) -> StableBaselinesState:
        """Before the first update it acts with weights of its own."""
        head = self.head(spec)
        actor = self.actor.init(world.model.feature_size(spec), head.parameters, key)
        return StableBaselinesState(actor, head.spread(self.noise), spec)

    def policy_of(self, state: StableBaselinesState) -> StableBaselinesState:
        return state

    def start(self, policy: StableBaselinesState, world: World) -> Belief:
        return world.blank(policy.spec)

    def act(self, policy: StableBaselinesState, world: World, carry: Belief, obs: Array, key: Array, greedy: bool) -> Decision:
        follow_key, action_key = jax.random.split(key)
        memory, head = world.follow(carry, obs, follow_key), self.head(policy.spec)
        out = self.actor(policy.actor, world.feature(memory)).value
        action, log_prob = (head.mode(out), jnp.zeros(())) if greedy else head.sample(out, policy.spread, action_key)
        return Decision(action, world.belief(memory, action), log_prob, ())

    def intended(self, policy: StableBaselinesState, world: World, carry: Belief, obs: Array, key: Array) -> None:
        return None

    def describe(self, policy: StableBaselinesState) -> tuple[Node, ...]:
        return *described(self.actor, policy.actor), *self.head(policy.spec).describe()

    # ---- improving

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> "StableBaselinesLearner":
        """Raises ImportError where Stable-Baselines3 is not installed, and ValueError where it does not take the settings."""
        check_stable_baselines3()
        from spikedream.agents.stable_baselines_learner import StableBaselinesLearner

        return StableBaselinesLearner(self, spec, world, experience, key)

    def update(
        self, state: StableBaselinesState, world: World, experience: Experience, key: Array
    ) -> tuple[StableBaselinesState, Metrics]:
        raise TypeError("StableBaselines improves outside compiled programs, by its host_learner: see Algorithm.dream_on_host")

    def judged(self, state: StableBaselinesState) -> None:
        return None

    def errors(self, state: StableBaselinesState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """Raises ValueError: its critics are outside."""
        raise ValueError('replay.priority = "td_error" needs a value function inside, which StableBaselines has not: "model_error"')
