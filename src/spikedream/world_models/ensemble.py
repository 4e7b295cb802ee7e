"""An ensemble of networks that predicts normalised state change, reward and termination.

Spiking or conventional by the fields `dynamics` and `ending`; the members differ in their initial weights and in the order in which
they see the data. After PETS (Chua et al. 2018) for the ensemble and MOPO (Yu et al. 2020) for using its disagreement.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.ops.calibration import coverage, deviation_factor
from spikedream.ops.fitting import FitState, Loss, adamw, fit, start
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.sparsity import pruned
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, Prediction, PyTree, Transition, firing_rates
from spikedream.world_models.fine_tuning import FineTuning, Split
from spikedream.world_models.impacts import impacts_met, struck, typical_impact
from spikedream.world_models.member import Member, MemberModel
from spikedream.world_models.priors import Prior, PriorSearch, SearchState
from spikedream.world_models.robust import rare_changes, usual_change
from spikedream.world_models.weights import Weights, weigh

SURVEYED = 2000  # transitions, of which those that are held out judge a prior


class EnsembleState(eqx.Module):
    members: PyTree  # a Member, leaves (members, ...)
    optimizer: PyTree  # of the members, leaves (members, ...)
    key: Array  # decides which transitions are held out, for the whole run
    scale: Array  # (obs_size,) typical change of the normalised observation, a root mean square or less
    low: Array  # (obs_size,) smallest normalised observation in the experience
    high: Array  # (obs_size,) largest
    rewards: Array  # (2,) smallest and largest normalised reward in the experience, or 0 where that lies outside
    endings: Array  # () 1 once the experience holds a termination; before that none is predicted
    spread: Array  # (obs_size + 1,) by which predicted deviations are multiplied, so that 90 % intervals hold 90 % of held-out data
    # () exp(-mean squared error) on held-out transitions: of the members, or else of the search's candidate with the prior that was
    # chosen; of the members on all where none are held out; 0 before the first fit.
    confidence: Array
    search: SearchState | None = None  # where priors are chosen
    # (obs_size,) typical one in units of `scale`, 0 of entries of which the members have not learned any; None: none are predicted
    impact: Array | None = None
    met: Array | None = None  # (obs_size,) bool, of which entries the last fit has missed some: the next one learns them


class EnsembleMemory(NamedTuple):
    obs: Array  # (obs_size,)
    member: Array  # () int32, whose predictions this trajectory follows


@dataclass(frozen=True)
class Ensemble:
    """Hyper-parameters of the ensemble.

    Each imagined trajectory follows one member (TS-infinity of PETS) while all of them are evaluated for their disagreement.
    """

    members: int = 4
    dynamics: AnyNetwork = SpikingNetwork(neuron=LIF(decay=(0.99, 0.999)))  # little leak: counts spikes precisely
    ending: AnyNetwork = SpikingNetwork(hidden=(128,), neuron=LIF(decay=(0.5, 0.95)), gain=1.5, bias=(-2.0, 1.0))
    ending_sparsity: float = 1e-2  # L1 penalty on the ending's readout weights
    ending_temperature: float = 0.25  # divides the logits of endings, which few spikes and the penalty keep small (Guo et al. 2017)
    gaussian: bool = False  # predict a variance too, trained by likelihood (aleatoric uncertainty)
    termination: Literal["mean", "max"] = "max"  # of the members' probabilities; "max" is pessimistic
    learning_rate: float = 5e-3  # at the start of a phase; falls to a hundredth along a cosine
    weight_decay: float = 1e-4
    curvature_penalty: float = 0.0  # on the dynamics' departure from a linear map (see `Network.curvature`)
    gradient_clip: float = 10.0  # global norm, per member
    batch: int = 64
    updates: int = 2000  # per phase, at most
    holdout: float = 0.0  # share of the transitions that are never trained on; 0 switches early stopping and calibration off
    check_every: int = 200  # updates between checks on held-out data
    patience: int = 4  # checks without improvement before fitting stops
    fine_tuning: FineTuning = FineTuning()
    adversarial: float = 0.0  # radius, in standard deviations, of worst-case perturbations of the observation while fitting
    # Of the reward's error while fitting, as of so many entries of the observation; None: in units of its own variance, as theirs
    # are, as of all of them, which is measured with replay.scale "spread".
    reward_weight: float | None = 1.0
    # Which network predicts the reward with which a task ends. Where it is the ending's, that can be had only by ending: none of it
    # is promised for states nearby.
    terminal_reward: Literal["dynamics", "ending"] = "dynamics"
    # Whether rare events, such as impacts, set neither the units of changes nor what is learned of the steps between them; measured
    # with replay.scale "spread". Endings are then told from what the dynamics predict.
    robust: bool = False
    # Whether a robust model predicts them nonetheless, by a network like the ending's, from where the dynamics lead.
    impacts: bool = False
    terminal_weight: float = 50.0  # upper bound on how much more a terminal example counts
    support_weight: float = 0.0  # uncertainty per standard deviation outside the range of all experience (MOReL's unknown states)
    support_margin: float = 0.2  # by how much of its own width that range is widened at each end
    search: PriorSearch | None = None  # chooses curvature_penalty and whether the ending's fan_in is 1; None: they are as given
    obs_bound: float = 20.0  # imagined observations stay within this many standard deviations

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, members=at_least_one, batch=at_least_one, updates=at_least_one, check_every=at_least_one)
        check_bounds(self, patience=at_least_one, learning_rate=not_negative, weight_decay=not_negative, holdout=(0, 0.9))
        check_bounds(self, curvature_penalty=not_negative, ending_sparsity=not_negative, gradient_clip=(1e-9, None))
        check_bounds(self, terminal_weight=at_least_one, support_weight=not_negative, support_margin=not_negative)
        check_bounds(self, ending_temperature=(1e-3, None))
        if self.reward_weight is not None:
            check_bounds(self, reward_weight=not_negative)
        check_bounds(self, obs_bound=(1, None), adversarial=not_negative)
        if self.updates % min(self.check_every, self.updates):
            raise ValueError(f"check_every is {self.check_every}, which does not divide updates ({self.updates})")
        plateau = self.fine_tuning.plateau
        if plateau is not None and not self.split.holds_out:
            raise ValueError("fine_tuning.plateau needs steps that are held out; set fine_tuning.holdout_newest")
        if plateau is not None and plateau.patience >= self.patience:
            raise ValueError(
                f"patience is {self.patience}: fitting would stop before its learning rate falls (fine_tuning.plateau.patience is"
                f" {plateau.patience}); it must be larger"
            )

    @property
    def each(self) -> MemberModel:
        """What is of each member, by the same names."""
        return MemberModel(**{each.name: getattr(self, each.name) for each in fields(MemberModel)})

    @property
    def split(self) -> Split:
        """Of the experience, into what a fit learns from and what it is judged by."""
        return Split(self.holdout, self.fine_tuning)

    @property
    def holdout_newest(self) -> float:
        return self.fine_tuning.holdout_newest

    def init(self, spec: Spec, key: Array, latent: int = 0) -> EnsembleState:
        """`latent`: further inputs of the dynamics, beside observation and action. Raises ValueError for impacts without robust."""
        if self.impacts and not self.robust:
            raise ValueError("impacts are what robust dynamics miss; set robust to true, or impacts to false")
        member_key, holdout_key = jax.random.split(key)
        found = None
        if self.search is not None:
            member_key, search_key = jax.random.split(member_key)
            found = self._init_search(spec, latent, self.search, search_key)
        members: PyTree = jax.vmap(lambda k: self.each.init(spec, latent, k))(jax.random.split(member_key, self.members))
        low, high = jnp.zeros(spec.obs_size), jnp.zeros(spec.obs_size)
        spread, unknown = jnp.ones(spec.obs_size + 1), jnp.zeros(())
        optimizer = start(self._optimizer(), members)
        scale, nothing = jnp.ones(spec.obs_size), jnp.zeros(2)
        impact, met = (jnp.zeros(spec.obs_size), jnp.zeros(spec.obs_size, bool)) if self.impacts else (None, None)
        measured = (scale, low, high, nothing, jnp.zeros(()), spread, unknown)
        return EnsembleState(members, optimizer, holdout_key, *measured, found, impact, met)

    def _init_search(self, spec: Spec, latent: int, search: PriorSearch, key: Array) -> SearchState:
        keys = jax.random.split(key, len(search.curvatures))
        candidate = replace(self.each, impacts=False)  # which are not what priors are about
        members: PyTree = jax.vmap(lambda k: candidate.init(spec, latent, k))(keys)
        return search.init(members, start(self._optimizer(), members))

    def _optimizer(self) -> optax.GradientTransformation:
        return adamw(self.weight_decay, self.gradient_clip)

    # ---- predicting

    recurrent = False
    warm_up = 1

    def feature_size(self, spec: Spec) -> int:
        return spec.obs_size

    def feature(self, state: EnsembleState, memory: EnsembleMemory) -> Array:
        return memory.obs

    def start(self, state: EnsembleState, obs: Array, key: Array) -> EnsembleMemory:
        return EnsembleMemory(obs, jax.random.randint(key, (), 0, self.members))

    def observe(self, state: EnsembleState, memory: EnsembleMemory, action: Array, obs: Array, key: Array) -> EnsembleMemory:
        return self.start(state, obs, key)

    def member(
        self, state: EnsembleState, memory: EnsembleMemory, index: Array
    ) -> "tuple[Ensemble, EnsembleState, EnsembleMemory]":
        return replace(self, members=1), self.select(state, index), EnsembleMemory(memory.obs, jnp.zeros((), jnp.int32))

    def select(self, state: EnsembleState, index: Array) -> EnsembleState:
        """The state of an ensemble that holds one member alone."""
        alone = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=True), state.members)
        return eqx.tree_at(lambda s: s.members, state, alone)

    def step(self, state: EnsembleState, memory: EnsembleMemory, action: Array, key: Array) -> tuple[EnsembleMemory, Prediction]:
        prediction = self.predict(state, memory.obs, jnp.zeros(0), action, memory.member, key)
        return EnsembleMemory(prediction.obs, memory.member), prediction

    def predict(self, state: EnsembleState, obs: Array, latent: Array, action: Array, member: Array, key: Array) -> Prediction:
        """What `member` (), int32, says follows `action` in the state (obs, latent); the others give the disagreement."""
        noise_key, dynamics_key, ending_key, *impact_key = jax.random.split(key, 4 if self.impacts else 3)
        inputs = jnp.concatenate([obs, latent, action])
        mean, log_variance, spikes = jax.vmap(self.each.moments, in_axes=(0, None, None))(state.members, inputs, dynamics_key)
        change, deviation, rates = mean[member], jnp.zeros(mean.shape[1:]), firing_rates(spikes)
        if self.gaussian:
            deviation = state.spread * jnp.exp(0.5 * log_variance[member])
            change = change + deviation * jax.random.normal(noise_key, change.shape)
        obs = jnp.clip(obs + change[:-1] * state.scale, -self.obs_bound, self.obs_bound)
        prior = None if state.search is None else state.search.chosen
        ending = self.each.endings(state.members, prior, state.endings > 0, obs, ending_key)
        if state.impact is not None:
            tell_key, strike_key = jax.random.split(*impact_key)
            told = self.each.jumps(state.members, (state.impact > 0).any(), obs, tell_key)
            jump = struck(told.value[member], state.impact, strike_key)
            obs = jnp.clip(obs + jump * state.scale, -self.obs_bound, self.obs_bound)
            spikes, rates = (*spikes, *told.spikes), (*rates, *told.rates)
        outside = jnp.maximum(state.low - obs, 0) + jnp.maximum(obs - state.high, 0)
        probability = jax.nn.sigmoid(ending.value[:, 0] / self.ending_temperature) * state.endings
        terminated = probability.max() if self.termination == "max" else probability.mean()
        reward = jnp.clip(change[-1], state.rewards[0], state.rewards[1])
        if self.each.endings_pay:
            last = jnp.clip(ending.value[member, 1], state.rewards[0], state.rewards[1])
            reward = (1 - terminated) * reward + terminated * last
        return Prediction(
            obs=obs,
            reward=reward,
            terminated=terminated,
            disagreement=jnp.sqrt(mean[:, :-1].var(0).mean() + 1e-12),
            outside=self.support_weight * outside.sum(),
            noise=deviation[:-1].mean(),
            spikes=(*spikes, *ending.spikes),
            rates=(*rates, *ending.rates),
        )

    def confidence(self, state: EnsembleState) -> Array:
        return state.confidence

    def errors(self, state: EnsembleState, experience: Experience, index: Array, key: Array) -> Array:
        steps = experience.gather(index)
        return self.squared_errors(self.missed(state, steps, _no_latent(steps), key))

    def missed(self, state: EnsembleState, steps: Transition, latent: Array, key: Array) -> Array:
        """(rows, obs_size + 1) by the members' mean; fields of `steps` (rows, ...), `latent` (rows, latent) inputs."""
        return self.each.misses(self.each.of_all(state.members, steps, latent, key)[0].mean(0), state.scale, steps)

    def squared_errors(self, missed: Array) -> Array:
        """(rows,) where so much is `missed`, (rows, obs_size + 1)."""
        return self.each.squared(missed, jnp.ones(missed.shape[0])).mean(1)

    # ---- fitting

    def update(
        self, state: EnsembleState, experience: Experience, key: Array, updates: Array | int
    ) -> tuple[EnsembleState, Metrics]:
        """Warm-started mini-batch steps; with `holdout`, stops early and returns each member's best parameters."""
        state, weights = self.rescale(state, experience)
        searched: Metrics = {}
        if self.search is None:
            fit_key, check_key, survey_key, error_key = jax.random.split(key, 4)
        else:
            fit_key, search_key, survey_key, error_key, check_key = jax.random.split(key, 5)
            state, searched = self._choose(state, experience, search_key, updates, weights)
        prior = None if state.search is None else state.search.chosen
        loss = partial(self.each.loss, scale=state.scale, weights=weights, prior=prior, impact=state.impact)

        def draw(members: Member, key: Array) -> tuple[Transition, Array, Array]:
            """Each member draws, with replacement, from the transitions that may be trained on."""
            index = self.split.draw(state.key, experience, key, (self.members, self.batch), fit_key)
            return experience.gather(index), jnp.zeros((*index.shape, 0)), experience.importance(index)

        def check(members: Member) -> Array:
            steps = experience.gather(self.split.draw_held(state.key, experience, check_key, (self.members, 256)))
            drawn = (steps, jnp.zeros((*steps.reward.shape, 0)), jnp.ones(steps.reward.shape))
            return jax.vmap(loss, in_axes=(0, 0, None))(members, drawn, check_key)

        fitted = self.fit(state.members, state.optimizer, loss, draw, check, self._optimizer(), updates, fit_key)
        state = self.fitted(state, fitted.best, fitted.optimizer)
        index, counts = experience.survey(survey_key)
        counts = counts * self.split.judges(state.key, experience, index, counts)
        state, measured = self._validate(state, experience, index, counts, error_key)
        if self.search is not None and not self.split.holds_out:  # the members have learned from all that there is
            state = eqx.tree_at(lambda s: s.confidence, state, jnp.exp(-searched["prior/error"]))
            measured["model_confidence"] = state.confidence
        metrics = {"model_loss": fitted.train_loss, "model_updates": fitted.step} | measured | searched
        if self.reward_weight is None:
            metrics["scale/reward_weight"] = jnp.asarray(weights.reward)
        if self.robust:
            metrics["scale/rare_changes"] = rare_changes(experience.moments)
        if state.impact is not None:
            metrics["scale/impacts"] = (state.impact > 0).mean()
        return state, metrics | {"model_holdout_loss": fitted.best_loss.mean()} if self.split.holds_out else metrics

    def fit(
        self,
        params: PyTree,
        moments: PyTree,
        loss: Loss,
        draw: Callable[[PyTree, Array], Any],
        check: Callable[[PyTree], Array],
        optimizer: optax.GradientTransformation,
        updates: Array | int,
        key: Array,
    ) -> FitState:
        """As `spikedream.ops.fitting.fit` with these hyper-parameters; checked only where something is held out."""
        return fit(
            params,
            moments,
            loss,
            draw,
            check if self.split.holds_out else None,
            optimizer,
            rate=self.learning_rate,
            updates=updates,
            block=min(self.check_every, self.updates),
            patience=self.patience,
            key=key,
            settle=pruned,
            plateau=self.fine_tuning.falls(),
        )

    def _choose(
        self, state: EnsembleState, experience: Experience, key: Array, updates: Array | int, weights: Weights
    ) -> tuple[EnsembleState, Metrics]:
        """The state with the prior that is best on held-out transitions, and what decided."""
        search, found = self.search, state.search
        assert search is not None and found is not None
        fit_key, survey_key, error_key = jax.random.split(key, 3)
        split, candidates = Split(search.holdout, self.fine_tuning), search.candidates
        loss = partial(self.each.loss, scale=state.scale, weights=weights)

        def draw(members: Member, key: Array) -> tuple[Transition, Array, Array, Prior]:
            index = split.draw(state.key, experience, key, (len(search.curvatures), self.batch), fit_key)
            return experience.gather(index), jnp.zeros((*index.shape, 0)), experience.importance(index), candidates

        fitted = fit(
            found.members,
            found.optimizer,
            lambda member, drawn, key: loss(member, drawn[:3], key, prior=drawn[3]),
            draw,
            None,
            self._optimizer(),
            rate=self.learning_rate,
            updates=jnp.maximum(search.effort * updates, 1),
            block=min(self.check_every, self.updates),
            patience=1,
            key=fit_key,
            settle=pruned,
        )
        index, counts = experience.survey(survey_key, most=SURVEYED)
        steps, held = experience.gather(index), counts * split.held(state.key, experience, index)
        errors = jax.vmap(partial(self.each.held_out, steps, held, state.scale, weights, error_key))(fitted.params, candidates)
        prior, metrics = search.choose(*errors, (steps.terminated * held).sum())
        after = SearchState(fitted.params, fitted.optimizer, prior)
        return eqx.tree_at(lambda s: s.search, state, after), metrics

    def rescale(self, state: EnsembleState, experience: Experience) -> tuple[EnsembleState, Weights]:
        """The state with scales and ranges of all experience, and what counts how much."""
        moments, normalizer = experience.moments, experience.normalizer
        change = usual_change(moments) if self.robust else jnp.sqrt(moments.change)
        low, high = normalizer.obs(moments.low), normalizer.obs(moments.high)
        scale, margin = change / normalizer.scale + 1e-6, self.support_margin * (high - low)
        endings = jnp.minimum(moments.terminated.astype(jnp.float32), 1.0)
        measured = (scale, low - margin, high + margin, jnp.stack(normalizer.reward_range()), endings)
        state = eqx.tree_at(lambda s: (s.scale, s.low, s.high, s.rewards, s.endings), state, measured)
        if state.met is not None:
            state = eqx.tree_at(lambda s: s.impact, state, jnp.where(state.met, typical_impact(moments), 0.0))
        return state, weigh(experience, self.terminal_weight, self.reward_weight, self.each.endings_pay)

    def fitted(self, state: EnsembleState, members: PyTree, optimizer: PyTree) -> EnsembleState:
        """The state after fitting, before anything is measured."""
        exact = jnp.ones(state.spread.shape)
        return eqx.tree_at(lambda s: (s.members, s.optimizer, s.spread), state, (members, optimizer, exact))

    def meet(self, state: EnsembleState, missed: Array, counts: Array) -> EnsembleState:
        """The state that knows where there are impacts, where so much is `missed`, (rows, obs_size + 1), after a fit; `counts`,
        (rows,), is 0 where a row does not."""
        if state.met is None:
            return state
        return eqx.tree_at(lambda s: s.met, state, impacts_met(missed[:, :-1], counts))

    def _validate(
        self, state: EnsembleState, experience: Experience, index: Array, held: Array, key: Array
    ) -> tuple[EnsembleState, Metrics]:
        """Error, impacts and, for Gaussian heads, calibration on the transitions at `index`, (rows,), where `held`, (rows,), is 1.
        Deviations are scaled on one half of them, and how much lies inside the predicted intervals is measured on the other."""
        steps = experience.gather(index)
        mean, deviation = self.each.of_all(state.members, steps, _no_latent(steps), key)
        number = jnp.maximum(held.sum(), 1)
        missed = self.each.misses(mean.mean(0), state.scale, steps)
        error = (self.each.squared(missed, held).mean(1) * held).sum() / number
        state = eqx.tree_at(lambda s: s.confidence, state, jnp.exp(-error))
        state = self.meet(state, missed, held * (1 - steps.terminated))
        metrics = {"model_error": error, "model_confidence": state.confidence}
        if not self.gaussian or not self.split.holds_out:
            return state, metrics
        half = jnp.arange(held.shape[0]) % 2
        factor = deviation_factor(self._standard_errors(state, steps, key), held * half)
        state = eqx.tree_at(lambda s: s.spread, state, factor)
        return state, metrics | {
            "model_noise": (deviation.mean(0)[:, :-1].mean(1) * held).sum() / number,
            "model_disagreement": (mean.std(0)[:, :-1].mean(1) * held).sum() / number,
            **coverage(self._standard_errors(state, steps, key), held * (1 - half)),
        }

    def _standard_errors(self, state: EnsembleState, steps: Transition, key: Array) -> Array:
        """(rows, obs_size + 1) errors of the members' equal mixture over its deviation, aleatoric and epistemic together
        (Lakshminarayanan et al. 2017, section 2.4)."""
        mean, deviation = self.each.of_all(state.members, steps, _no_latent(steps), key)
        total = jnp.sqrt(jnp.square(deviation).mean(0) + mean.var(0)) * state.spread[None]
        return self.each.misses(mean.mean(0), state.scale, steps) / total


def _no_latent(steps: Transition) -> Array:
    return jnp.zeros((*steps.reward.shape, 0))
