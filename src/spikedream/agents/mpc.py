"""An agent that plans each action anew inside the world model (model-predictive control), with what a learned policy knows if
there is one. After PETS (Chua et al. 2018) for planning on an ensemble; POLO (Lowrey et al. 2019) and TD-MPC (Hansen et al.
2022) for the terminal value and the policy's proposals.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.actor_critic import Learner
from spikedream.bounds import check_bounds
from spikedream.nodes import Node, Unexportable, described
from spikedream.ops.dream import Dream, dream, playback
from spikedream.ops.returns import survival
from spikedream.planners.cem import CEM
from spikedream.planners.mppi import MPPI
from spikedream.planners.plan import check_proposals
from spikedream.planners.random_shooting import RandomShooting
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics, PyTree
from spikedream.world import Belief, Intention, World

AnyPlanner = CEM | MPPI | RandomShooting


class MPCState(eqx.Module):
    policy: PyTree  # the learned policy's state; empty without one
    spec: Spec = eqx.field(static=True)


class MPCPolicy(eqx.Module):
    """What acting needs: the learned policy, and the critic that judges where plans end; empty without them."""

    policy: PyTree
    critic: PyTree
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
    policy: Learner | None = None  # learns in dreams; gives the terminal value and proposes candidates
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

    uses_world = True
    acts_in_world = True
    on_policy_steps = None
    online = False

    @property
    def selects(self) -> bool:
        return self.policy is not None and self.policy.selects

    def _discount(self, world: World) -> tuple[Array | float, Array | float]:
        """Gamma, and what one reward counts, so that returns are on the scale of the critic's values; undiscounted ones are plain
        sums."""
        gamma = self.gamma if self.policy is None else self.policy.discount(world)
        return gamma, 1.0 if self.policy is None and self.gamma == 1 else 1 - gamma

    def init(self, spec: Spec, world: World, key: Array) -> MPCState:
        if self.particles == "one" and self.search.candidates % world.model.members:
            raise ValueError(
                f"candidates is {self.search.candidates}, which {world.model.members} members cannot share equally; that is needed"
                ' where particles is "one"'
            )
        return MPCState(() if self.policy is None else self.policy.init(spec, world, key), spec)

    def policy_of(self, state: MPCState) -> MPCPolicy:
        if self.policy is None:
            return MPCPolicy((), (), state.spec)
        critic = self.policy.critic_of(state.policy) if self.terminal_value else ()
        return MPCPolicy(self.policy.policy_of(state.policy), critic, state.spec)

    def start(self, policy: MPCPolicy, world: World) -> MPCCarry:
        actor = () if self.policy is None else self.policy.rest(policy.policy)
        return MPCCarry(world.blank(policy.spec), self.search.start(policy.spec, self.horizon), actor)

    def act(self, policy: MPCPolicy, world: World, carry: MPCCarry, obs: Array, key: Array, greedy: bool) -> Decision:
        follow_key, decide_key, plan_key = jax.random.split(key, 3)
        memory = world.follow(carry.belief, obs, follow_key)
        decision = Decision(jnp.zeros(policy.spec.action_size), (), jnp.zeros(()), ())
        if self.policy is not None:
            decision = self.policy.decide(policy.policy, carry.policy, world.feature(memory), decide_key, greedy)
        plan = carry.plan
        if self._plans(greedy):
            found = self.plan(policy, world, memory, carry, plan_key, greedy)
            sequence = found.actions if greedy else found.sample
            plan, decision = found.memory, decision._replace(action=sequence[0], log_prob=jnp.zeros(()))
        return decision._replace(carry=MPCCarry(world.belief(memory, decision.action), plan, decision.carry))

    def intended(self, policy: MPCPolicy, world: World, carry: MPCCarry, obs: Array, key: Array) -> Intention | None:
        if not self._plans(greedy=True):
            return None
        follow_key, _, plan_key = jax.random.split(key, 3)
        memory = world.follow(carry.belief, obs, follow_key)
        return Intention(memory, self.plan(policy, world, memory, carry, plan_key, greedy=True).actions)

    def describe(self, policy: MPCPolicy) -> tuple[Node, ...]:
        if self._plans(greedy=True):
            raise Unexportable(
                "MPC plans each decision in its world model and cannot be exported; with a policy and when = collect it"
                " decides by the policy alone and can, as can Dreamer, PPO and OffPolicy"
            )
        return described(self.policy, policy.policy)

    def _plans(self, greedy: bool) -> bool:
        return self.when == "always" or (self.when == "evaluate") == greedy

    def plan(self, policy: MPCPolicy, world: World, memory: Any, carry: MPCCarry, key: Array, greedy: bool):
        """One whole search from the world's memory; answers a `Plan`. Curiosity is for learning: a greedy plan is after the
        environment's own reward, up to its end; what a learned policy proposes, and what its critic says of the end, it has learned
        with the bonus."""
        world = world.without_bonus() if greedy else world
        propose_key, plan_key = jax.random.split(key)
        proposals = jnp.zeros((0, self.horizon, policy.spec.action_size))
        if self.policy is not None and self.proposals:
            decide = partial(self.policy.decide, policy.policy, greedy=False)
            memories, carries = (
                jax.tree.map(lambda x: jnp.broadcast_to(x, (self.proposals, *x.shape)), tree) for tree in (memory, carry.policy)
            )
            imagined, _ = dream(world, lambda c, o, k: decide(c, o, k), carries, memories, self.horizon, propose_key)
            proposals = jnp.swapaxes(imagined.decision.action, 0, 1)
        return self.search.plan(policy.spec, carry.plan, partial(self._score, policy, world, memory), proposals, plan_key)

    def _score(self, policy: MPCPolicy, world: World, memory: Any, actions: Array, key: Array) -> Array:
        """(candidates,) of `actions` (candidates, horizon, action_size)."""
        members = world.model.members
        if self.particles == "one":
            groups = actions.reshape(members, -1, *actions.shape[1:])
            judge = jax.vmap(partial(self._returns, policy, world, memory))
            # Candidates have fixed places in a search (kept elites first, proposals last): no member always gets the same ones.
            key, order = jax.random.split(key)
            return judge(jax.random.permutation(order, members), groups, jax.random.split(key, members)).reshape(-1)
        judge = jax.vmap(partial(self._returns, policy, world, memory), in_axes=(0, None, 0))
        return judge(jnp.arange(members), actions, jax.random.split(key, members)).mean(0)

    def _returns(self, policy: MPCPolicy, world: World, memory: Any, member: Array, actions: Array, key: Array) -> Array:
        """Discounted return of each sequence where it goes as one member says, (candidates,), scaled by 1 - gamma as the critic's
        values are."""
        # The others are asked too, at every step, where it counts whether they agree.
        alone = self.uncertainty_penalty == 0 and world.bonus is None
        world, memory = world.member(memory, member, alone=alone or world.model.members == 1)
        count, (dream_key, value_key) = actions.shape[0], jax.random.split(key)
        memories = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), memory)
        imagined, _ = dream(world, playback, (actions, jnp.zeros(count, jnp.int32)), memories, self.horizon, dream_key)
        prediction = imagined.prediction
        reward = prediction.reward + prediction.bonus - self.uncertainty_penalty * prediction.uncertainty
        alive = jax.vmap(survival, in_axes=1, out_axes=1)(prediction.terminated)
        gamma, unit = self._discount(world)
        discount = gamma ** jnp.arange(self.horizon)
        returns = unit * (discount[:, None] * alive * reward).sum(0)
        if self.policy is not None and self.terminal_value:
            returns = returns + gamma**self.horizon * self._terminal(policy, imagined, alive, value_key)
        return returns

    def _terminal(self, policy: MPCPolicy, imagined: Dream, alive: Array, key: Array) -> Array:
        """(candidates,) value of where the plans end, 0 for those that have terminated."""
        assert self.policy is not None
        value = jax.vmap(partial(self.policy.value_of, policy.critic, key=key))(imagined.following[-1])
        return alive[-1] * (1 - imagined.prediction.terminated[-1]) * value

    def update(self, state: MPCState, world: World, experience: Experience, key: Array) -> tuple[MPCState, Metrics]:
        if self.policy is None:
            return state, {"imagined_steps": jnp.zeros((), jnp.int32)}
        policy, metrics = self.policy.update(state.policy, world, experience, key)
        return MPCState(policy, state.spec), metrics

    def select(self, state: MPCState, world: World, experience: Experience, key: Array) -> tuple[MPCState, Metrics]:
        assert self.policy is not None
        policy, metrics = self.policy.select(state.policy, world, experience, key)
        return MPCState(policy, state.spec), metrics

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> None:
        return None

    def judged(self, state: MPCState) -> None:
        return None

    def errors(self, state: MPCState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """Raises ValueError without a policy: planning alone has no value function."""
        if self.policy is None:
            raise ValueError(
                'replay.priority = "td_error" needs a value function: set agent.policy to Dreamer, or use "model_error"'
            )
        return self.policy.errors(state.policy, world, experience, index, key)
