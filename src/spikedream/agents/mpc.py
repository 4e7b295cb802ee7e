"""An agent that plans each action anew inside the world model (model-predictive control), with what a learned policy knows if
there is one. After PETS (Chua et al. 2018) for planning on an ensemble; POLO (Lowrey et al. 2019) and TD-MPC (Hansen et al.
2022) for the terminal value and the policy's proposals.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.dreamer import Dreamer
from spikedream.ops.dream import Dream, dream, playback
from spikedream.ops.returns import survival
from spikedream.planners.cem import CEM
from spikedream.planners.mppi import MPPI
from spikedream.planners.plan import check_proposals
from spikedream.planners.random_shooting import RandomShooting
from spikedream.types import Belief, Decision, Experience, Metrics, PyTree, Spec, World, check_bounds

AnyPlanner = CEM | MPPI | RandomShooting


class MPCState(eqx.Module):
    policy: PyTree  # the learned policy's state; empty without one
    spec: Spec = eqx.field(static=True)


class MPCCarry(NamedTuple):
    belief: Belief
    plan: PyTree  # what the next plan starts from
    policy: PyTree  # the actor's memory


@dataclass(frozen=True)
class MPC:
    """Hyper-parameters. A plan's score is its discounted return in dreams of the ensemble's members, averaged over them."""

    search: AnyPlanner = CEM()
    horizon: int = 15  # steps that a plan looks ahead
    gamma: float = 0.99  # the policy's own counts where there is one
    particles: Literal["all", "one"] = "all"  # every member judges each candidate, or one (each member as many candidates)
    uncertainty_penalty: float = 0.0  # reward lost in a step per unit of the model's uncertainty
    policy: Dreamer | None = None  # learns in dreams; gives the terminal value and proposes candidates
    terminal_value: bool = True  # of the policy's critic, at the plan's end
    proposals: int = 0  # candidates that the policy proposes
    when: Literal["always", "collect", "evaluate"] = "always"  # elsewhere the policy acts by itself

    def __post_init__(self) -> None:
        check_bounds(self, horizon=(1, None), gamma=(0, 1), uncertainty_penalty=(0, None), proposals=(0, None))
        check_proposals(self.proposals, self.search.places)
        if self.policy is None and (self.when != "always" or self.proposals):
            asked = f'when = "{self.when}"' if self.when != "always" else f"proposals = {self.proposals}"
            raise ValueError(f"{asked} needs a policy: set agent.policy to Dreamer")
        if self.policy is not None and not self.policy.imagined_share.always_one and self.when != "evaluate":
            raise ValueError(
                "policy.imagined_share is below 1, but of actions that were planned nobody knows how likely they were;"
                ' set when = "evaluate"'
            )

    @property
    def uses_world(self) -> bool:
        return True

    @property
    def on_policy_steps(self) -> None:
        return None

    @property
    def _discount(self) -> float:
        return self.gamma if self.policy is None else self.policy.gamma

    @property
    def _unit(self) -> float:
        """What one reward counts, so that returns are on the scale of the critic's values; undiscounted ones are plain sums."""
        return 1 - self._discount if self._discount < 1 else 1.0

    def init(self, spec: Spec, world: World, key: Array) -> MPCState:
        if self.particles == "one" and self.search.candidates % world.model.members:
            raise ValueError(
                f"candidates is {self.search.candidates}, which {world.model.members} members cannot share equally; that is needed"
                ' where particles is "one"'
            )
        return MPCState(() if self.policy is None else self.policy.init(spec, world, key), spec)

    def start(self, state: MPCState, world: World) -> MPCCarry:
        actor = () if self.policy is None else self.policy.start(state.policy, world).actor
        return MPCCarry(world.blank(state.spec), self.search.start(state.spec, self.horizon), actor)

    def act(self, state: MPCState, world: World, carry: MPCCarry, obs: Array, key: Array, greedy: bool) -> Decision:
        follow_key, policy_key, plan_key = jax.random.split(key, 3)
        memory = world.follow(carry.belief, obs, follow_key)
        decision = Decision(jnp.zeros(state.spec.action_size), (), jnp.zeros(()), ())
        if self.policy is not None:
            decision = self.policy.decide(state.policy, carry.policy, world.feature(memory), policy_key, greedy)
        plan = carry.plan
        if self.when == "always" or (self.when == "evaluate") == greedy:
            # Curiosity is for learning: what is asked for greedily is the environment's own reward.
            wanted = replace(world, bonus=None) if greedy else world
            found = self.plan(state, wanted, memory, carry.policy, carry.plan, plan_key)
            sequence = found.actions if greedy else found.sample
            plan, decision = found.memory, decision._replace(action=sequence[0], log_prob=jnp.zeros(()))
        belief = Belief(memory, decision.action, jnp.ones(()))
        return decision._replace(carry=MPCCarry(belief, plan, decision.carry))

    def plan(self, state: MPCState, world: World, memory: Any, carry: PyTree, start: PyTree, key: Array):
        """One whole search from the world's memory, with the policy's own memory `carry`; answers a `Plan`."""
        propose_key, plan_key = jax.random.split(key)
        proposals = jnp.zeros((0, self.horizon, state.spec.action_size))
        if self.policy is not None and self.proposals:
            policy = partial(self.policy.decide, state.policy, greedy=False)
            memories, carries = (
                jax.tree.map(lambda x: jnp.broadcast_to(x, (self.proposals, *x.shape)), tree) for tree in (memory, carry)
            )
            imagined, _ = dream(world, lambda c, o, k: policy(c, o, k), carries, memories, self.horizon, propose_key)
            proposals = jnp.swapaxes(imagined.decision.action, 0, 1)
        return self.search.plan(state.spec, start, partial(self._score, state, world, memory), proposals, plan_key)

    def _score(self, state: MPCState, world: World, memory: Any, actions: Array, key: Array) -> Array:
        """(candidates,) of `actions` (candidates, horizon, action_size)."""
        members = world.model.members
        if self.particles == "one":
            groups = actions.reshape(members, -1, *actions.shape[1:])
            judge = jax.vmap(partial(self._returns, state, world, memory))
            # Candidates have fixed places in a search (kept elites first, proposals last): no member always gets the same ones.
            key, order = jax.random.split(key)
            return judge(jax.random.permutation(order, members), groups, jax.random.split(key, members)).reshape(-1)
        judge = jax.vmap(partial(self._returns, state, world, memory), in_axes=(0, None, 0))
        return judge(jnp.arange(members), actions, jax.random.split(key, members)).mean(0)

    def _returns(self, state: MPCState, world: World, memory: Any, member: Array, actions: Array, key: Array) -> Array:
        """Discounted return of each sequence where it goes as one member says, (candidates,), scaled by 1 - gamma as the critic's
        values are."""
        # The others are asked too, at every step, where it counts whether they agree.
        alone = self.uncertainty_penalty == 0 and world.bonus is None
        world, memory = world.member(memory, member, alone=alone or world.model.members == 1)
        count = actions.shape[0]
        memories = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), memory)
        imagined, _ = dream(world, playback, (actions, jnp.zeros(count, jnp.int32)), memories, self.horizon, key)
        prediction = imagined.prediction
        reward = prediction.reward + prediction.bonus - self.uncertainty_penalty * prediction.uncertainty
        alive = jax.vmap(survival, in_axes=1, out_axes=1)(prediction.terminated)
        discount = self._discount ** jnp.arange(self.horizon)
        returns = self._unit * (discount[:, None] * alive * reward).sum(0)
        if self.policy is not None and self.terminal_value:
            returns = returns + self._discount**self.horizon * self._terminal(state, imagined, alive, key)
        return returns

    def _terminal(self, state: MPCState, imagined: Dream, alive: Array, key: Array) -> Array:
        """(candidates,) value of where the plans end, 0 for those that have terminated."""
        assert self.policy is not None
        value = jax.vmap(partial(self.policy.value_of, state.policy.target, key=key))(imagined.following[-1])
        return alive[-1] * (1 - imagined.prediction.terminated[-1]) * value

    def update(self, state: MPCState, world: World, experience: Experience, key: Array) -> tuple[MPCState, Metrics]:
        if self.policy is None:
            return state, {"imagined_steps": jnp.zeros((), jnp.int32)}
        policy, metrics = self.policy.update(state.policy, world, experience, key)
        return MPCState(policy, state.spec), metrics

    def errors(self, state: MPCState, world: World, experience: Experience, key: Array) -> Array:
        """Raises ValueError without a policy: planning alone has no value function."""
        if self.policy is None:
            raise ValueError(
                'replay.priority = "td_error" needs a value function: set agent.policy to Dreamer, or use "model_error"'
            )
        return self.policy.errors(state.policy, world, experience, key)
