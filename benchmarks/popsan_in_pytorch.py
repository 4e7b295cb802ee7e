"""PopSAN in TD3, an ensemble of spiking world models and their dreams in plain PyTorch: what `pytorch.py` measures beside ours.

Written as such code is best written without compiling it: the layers' synapses take one product over all ticks, members and time
scales lie side by side in one tensor, what is not learned from has no gradient, and Adam is the fused one. Run by `pytorch.py` in a
Python that has torch, gymnasium and mujoco; needs nothing else, and nothing of spikedream.

It says which torch it is, and answers each line of its input, `["PART", CALLS]`, with the milliseconds of so many calls. With
`--autocast` products are in bfloat16 where PyTorch makes them so.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional

OBS, ACTIONS, BATCH, HIDDEN = 17, 6, 256, 256  # HalfCheetah
ACTOR_TICKS, FIELDS, NEURONS = 5, 10, 10
MEMBERS, SCALES, WIDTH, MODEL_TICKS, CENTRES = 3, 3, 85, 8, 8
STARTS, HORIZON, EVERY, RING = 1024, 5, 250, 100_000


class Spike(torch.autograd.Function):
    """1 where the threshold has been reached; its kinds differ in their surrogate gradient."""

    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        ctx.save_for_backward(excess)
        return (excess >= 0).to(excess.dtype)


class Rectangular(Spike):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (excess,) = ctx.saved_tensors
        return gradient * (excess.abs() < 0.5)


class SuperSpike(Spike):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (excess,) = ctx.saved_tensors
        return gradient / (1 + 10 * excess.abs()).square()


# ---- the actor: PopSAN (Tang et al. 2020)


class CubaLIF(nn.Module):
    """Current-based LIF neurons behind their synapses."""

    def __init__(self, inputs: int, size: int):
        super().__init__()
        self.synapse = nn.Linear(inputs, size)

    def forward(self, spikes: Tensor) -> Tensor:
        """(ticks, batch, inputs) -> (ticks, batch, size)."""
        train, current, v = [], 0.0, 0.0
        for x in self.synapse(spikes):
            current = 0.5 * current + x
            u = 0.75 * v + current
            fired = Rectangular.apply(u - 0.5)
            v = u * (1 - fired)
            train.append(fired)
        return torch.stack(train)


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(-1, 1, FIELDS).repeat(OBS, 1))
        self.log_width = nn.Parameter(torch.full((OBS, FIELDS), math.log(0.05**0.5)))
        outputs = ACTIONS * NEURONS
        self.layers = nn.Sequential(CubaLIF(OBS * FIELDS, HIDDEN), CubaLIF(HIDDEN, HIDDEN), CubaLIF(HIDDEN, outputs))
        self.decoder = nn.Parameter(torch.randn(ACTIONS, NEURONS) / NEURONS**0.5)
        self.bias = nn.Parameter(torch.zeros(ACTIONS))

    def forward(self, obs: Tensor) -> Tensor:
        drive = torch.exp(-0.5 * ((torch.tanh(obs)[..., None] - self.mean) * torch.exp(-self.log_width)).square()).flatten(1)
        train, v = [], 0.0
        for _ in range(ACTOR_TICKS):  # integrates, fires at 1 and subtracts
            v = v + drive
            train.append(Rectangular.apply(v - 0.999))
            v = v - train[-1].detach()
        rates = self.layers(torch.stack(train)).mean(0)
        return torch.tanh((rates.unflatten(-1, (ACTIONS, NEURONS)) * self.decoder).sum(-1) + self.bias)


def critic() -> nn.Module:
    return nn.Sequential(nn.Linear(OBS + ACTIONS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


def adam(module: nn.Module, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=3e-4, weight_decay=weight_decay, fused=True)


class TD3:
    def __init__(self) -> None:
        self.actor, self.critics = Actor(), nn.ModuleList([critic(), critic()])
        self.slow_actor, self.slow_critics = deepcopy(self.actor), deepcopy(self.critics)
        self.actor_optimizer, self.critic_optimizer = adam(self.actor), adam(self.critics)
        self.updates = 0

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, following: Tensor, terminated: Tensor) -> None:
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            later = torch.cat([following, (self.slow_actor(following) + noise).clamp(-1, 1)], -1)
            value = torch.minimum(*(each(later) for each in self.slow_critics))
            target = reward + 0.99 * (1 - terminated) * value
        now = torch.cat([obs, action], -1)
        loss = sum(functional.mse_loss(each(now), target) for each in self.critics)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        self.updates += 1
        if self.updates % 2 == 0:
            first = self.critics[0].requires_grad_(False)
            loss = -first(torch.cat([obs, self.actor(obs)], -1)).mean()
            self.actor_optimizer.zero_grad()
            loss.backward()
            self.actor_optimizer.step()
            first.requires_grad_(True)
        with torch.no_grad():
            for slow, fast in ((self.slow_actor, self.actor), (self.slow_critics, self.critics)):
                torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 0.005)


# ---- the world models: adaptive LIF of several time scales, all members side by side


class Affine(nn.Module):
    """(members, rows, inputs) -> (members, rows, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(MEMBERS, inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(MEMBERS, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class SpikingLayer(nn.Module):
    """Three time scales beside one another, each recurrent within itself and normalised by itself:
    (members, ticks x rows, inputs) -> spikes and membranes of each tick, (members, rows, SCALES, WIDTH)."""

    def __init__(self, inputs: int):
        super().__init__()
        self.synapse = Affine(inputs, SCALES * WIDTH)
        self.recurrent = nn.Parameter(torch.randn(MEMBERS * SCALES, WIDTH, WIDTH) * 0.5 / WIDTH**0.5)
        leak = (1 / torch.linspace(1.5, 8, SCALES))[:, None, None].expand(MEMBERS, SCALES, 1, WIDTH)
        self.leak = nn.Parameter(torch.logit(leak))
        self.fade = nn.Parameter(torch.logit(torch.full((MEMBERS, SCALES, 1, WIDTH), 0.9)))
        self.threshold = nn.Parameter(torch.full((MEMBERS, SCALES, 1, WIDTH), 0.5))

    def forward(self, x: Tensor, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        leak, fade = torch.sigmoid(self.leak), torch.sigmoid(self.fade)
        # (ticks, members, scales, rows, width); one tick serves for all where the input is constant
        currents = self.synapse(x).view(MEMBERS, -1, rows, SCALES, WIDTH).permute(1, 0, 3, 2, 4)
        spikes = v = adaptation = torch.zeros(MEMBERS, SCALES, rows, WIDTH)
        train, membranes = [], []
        for tick in range(MODEL_TICKS):
            current = currents[min(tick, len(currents) - 1)]
            if tick > 0:
                current = current + torch.bmm(spikes.flatten(0, 1), self.recurrent).view_as(spikes)
                adaptation = torch.lerp(spikes, adaptation, fade)
            u = torch.lerp(v, functional.layer_norm(current.float(), (WIDTH,)), leak)
            spikes = SuperSpike.apply(u - self.threshold - adaptation)
            v = u * (1 - spikes)
            train.append(spikes.transpose(1, 2))
            membranes.append(v.transpose(1, 2))
        return train, membranes


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inputs, outputs = OBS + ACTIONS, OBS + 1
        self.register_buffer("values", torch.linspace(-3, 3, CENTRES))
        self.centre = nn.Parameter(torch.linspace(-3, 3, CENTRES).repeat(MEMBERS, 1, inputs, 1))
        self.log_width = nn.Parameter(torch.full((MEMBERS, 1, inputs, CENTRES), math.log(0.375)))
        self.layers = nn.ModuleList([SpikingLayer(inputs * CENTRES), SpikingLayer(SCALES * WIDTH)])
        self.readout = Affine(2 * SCALES * WIDTH, HIDDEN)
        self.population, self.linear = Affine(HIDDEN, outputs * CENTRES), Affine(HIDDEN, outputs)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(members, rows, ...) each -> change of the observation and reward, (members, rows, OBS + 1)."""
        x, rows = torch.cat([obs, action], -1), obs.shape[1]
        code = torch.exp(-0.5 * ((x[..., None] - self.centre) * torch.exp(-self.log_width)).square()).flatten(2)
        first, last = self.layers
        train, _ = first(code, rows)
        means = [sum(each).flatten(2) / MODEL_TICKS for each in last(torch.stack(train, 1).view(MEMBERS, -1, SCALES * WIDTH), rows)]
        hidden = functional.silu(functional.layer_norm(self.readout(torch.cat(means, -1)), (HIDDEN,)))
        shares = self.population(hidden).unflatten(-1, (-1, CENTRES)).softmax(-1)
        return (0.7 * (shares @ self.values) + 0.3 * self.linear(hidden)).float()


# ---- learning


class Learner:
    """Replay, agent, world model and environment of one training."""

    def __init__(self, rows: int = 10_000, capacity: int = 100_000):
        self.agent, self.ensemble = TD3(), Ensemble()
        self.model_optimizer = adam(self.ensemble, 1e-5)
        self.replay, self.stored = self._ring(capacity), rows
        self.imagined, self.dreamt = self._ring(RING), 0
        for field in self.replay[:4]:
            field[:rows] = torch.randn(rows, field.shape[1])
        self.replay[1].tanh_()
        self.env = gymnasium.make("HalfCheetah-v4")
        self.obs, _ = self.env.reset(seed=0)

    def _ring(self, capacity: int) -> list[Tensor]:
        """Observation, action, reward, next observation, termination."""
        return [torch.zeros(capacity, size) for size in (OBS, ACTIONS, 1, OBS, 1)]

    def batch(self, ring: list[Tensor], stored: int, *shape: int) -> list[Tensor]:
        index = torch.randint(min(stored, len(ring[0])), shape)
        return [field[index] for field in ring]

    def update(self) -> None:
        """Of actor and critics; half of the batch is imagined once there are dreams."""
        if self.dreamt == 0:
            self.agent.update(*self.batch(self.replay, self.stored, BATCH))
            return
        half = BATCH // 2
        real, imagined = self.batch(self.replay, self.stored, half), self.batch(self.imagined, self.dreamt, half)
        self.agent.update(*(torch.cat(pair) for pair in zip(real, imagined, strict=True)))

    def fit(self) -> None:
        """One update of the ensemble, each member on a batch of its own."""
        obs, action, reward, following, _ = self.batch(self.replay, self.stored, MEMBERS, BATCH)
        loss = MEMBERS * functional.mse_loss(self.ensemble(obs, action), torch.cat([following - obs, reward], -1))
        self.model_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.ensemble.parameters(), 1.0)
        self.model_optimizer.step()

    @torch.no_grad()
    def dream(self) -> None:
        """Short rollouts from replayed states; what the members disagree about stays out, and all that would follow."""
        obs = self.batch(self.replay, self.stored, STARTS)[0]
        alive, member, rows = torch.ones(STARTS, dtype=torch.bool), torch.randint(MEMBERS, (STARTS,)), torch.arange(STARTS)
        for step in range(HORIZON):
            action = self.agent.actor(obs)
            action = (action + 0.1 * torch.randn_like(action)).clamp(-1, 1)
            predicted = self.ensemble(obs.expand(MEMBERS, -1, -1), action.expand(MEMBERS, -1, -1))
            uncertainty = predicted[..., :OBS].var(0).mean(-1, keepdim=True).sqrt()
            chosen = predicted[member, rows]
            following, reward = obs + chosen[:, :OBS], chosen[:, OBS:] - uncertainty
            alive &= uncertainty[:, 0] < 0.5 * 0.85**step
            self.keep(obs[alive], action[alive], reward[alive], following[alive])
            obs = following

    def keep(self, *steps: Tensor) -> None:
        index = (self.dreamt + torch.arange(len(steps[0]))) % RING
        for field, new in zip(self.imagined, steps, strict=False):
            field[index] = new
        self.dreamt += len(steps[0])

    def step(self) -> None:
        """Act, step, remember, learn; dreams apart."""
        with torch.no_grad():
            action = self.agent.actor(torch.as_tensor(self.obs, dtype=torch.float32)[None])
            action = (action + 0.1 * torch.randn_like(action)).clamp(-1, 1)[0]
        following, reward, terminated, truncated, _ = self.env.step(action.numpy())
        at = self.stored % len(self.replay[0])
        new = (self.obs, action, float(reward), following, float(terminated))
        for field, value in zip(self.replay, new, strict=True):
            field[at] = torch.as_tensor(value)
        self.stored += 1
        self.obs = self.env.reset()[0] if terminated or truncated else following
        self.fit()
        self.update()


def milliseconds(call: Callable[[], None], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def measured(learner: Learner, training: Learner, part: str, calls: int) -> list[float]:
    """Milliseconds of each call; `training` is the one that has dreamed."""

    def pair() -> None:
        learner.update()
        learner.update()

    def steps() -> None:
        for _ in range(10):
            training.step()

    if part == "update":  # the policy delay is 2
        return [ms / 2 for ms in milliseconds(pair, calls)]
    if part == "step":  # with the due share of the dreams
        taken, dreams = milliseconds(steps, calls), milliseconds(training.dream, calls)
        return [ms / 10 + dream / EVERY for ms, dream in zip(taken, dreams, strict=True)]
    return milliseconds({"model update": learner.fit, "dream": learner.dream}[part], calls)


def main() -> None:
    torch.manual_seed(0)
    learner, training = Learner(), Learner()
    training.dream()
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        part, calls = json.loads(line)
        with torch.autocast("cpu", torch.bfloat16, enabled="--autocast" in sys.argv, cache_enabled=False):
            print(json.dumps(measured(learner, training, part, calls)), flush=True)


if __name__ == "__main__":
    main()
