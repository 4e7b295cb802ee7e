"""The INI cart-pole: its equations against the Lagrangian, its parameters, its environments, and NumPy against JAX."""

import math
from dataclasses import asdict, replace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spikedream  # noqa: F401  registers the ids
from spikedream.algorithm import Act
from spikedream.config import Config
from spikedream.dynamics.ini_cartpole import CartPole, Motion, balanced, observed, seen, swing_up_reward, wrapped
from spikedream.envs.make import make_own, spec_of
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.replay.normalizer import identity
from spikedream.runs.evaluate import Evaluator
from spikedream.world_models.true_environment import TrueEnvironment, TrueState

FREE = CartPole(friction=0.0, joint_friction=0.0, half_track=1e6)


def states(number):
    drawn = np.random.default_rng(0).uniform(-1, 1, (number, 4)) * [np.pi, 15.0, 0.15, 1.0]
    return Motion(*drawn.T)


def test_the_published_parameters():
    published = {
        "cart_mass": 0.230, "pole_mass": 0.087, "length": 0.395, "gravity": 9.81, "motor": 1.77, "friction": 3.22,
        "joint_friction": 5e-5, "half_track": 0.198, "inertia": 1 / 3, "tick": 0.02, "substeps": 10,
    }  # fmt: skip
    assert asdict(CartPole()) == published
    with pytest.raises(ValueError, match="length is 0; it must be at least"):
        CartPole(length=0)


def test_the_equations_are_those_of_the_lagrangian():
    """By hand for the momenta: d/dt dL/dv = u - F v, d/dt dL/dw = dL/da - J w, along the accelerations."""
    cartpole, (a, w, x, v) = CartPole(), states(300)
    force = np.random.default_rng(1).uniform(-2, 2, 300)
    turning, pushing = cartpole.accelerations(np, Motion(a, w, x, v), force)
    M, m, l, k = cartpole.cart_mass, cartpole.pole_mass, cartpole.length / 2, cartpole.inertia  # noqa: E741
    of_cart = (M + m) * pushing - m * l * (np.cos(a) * turning - np.sin(a) * w**2)
    np.testing.assert_allclose(of_cart, force - cartpole.friction * v, atol=1e-12)
    of_pole = (k + 1) * m * l**2 * turning - m * l * (np.cos(a) * pushing - np.sin(a) * w * v)
    by_place = m * l * np.sin(a) * w * v + m * cartpole.gravity * l * np.sin(a)
    np.testing.assert_allclose(of_pole, by_place - cartpole.joint_friction * w, atol=1e-12)


def test_power_in_is_what_the_motor_gives_less_friction():
    cartpole, motion = CartPole(), states(300)
    force, dt = np.random.default_rng(1).uniform(-2, 2, 300), 1e-6
    turning, pushing = cartpole.accelerations(np, motion, force)
    # A parabola through the state, so that the difference quotient is exact to second order.
    moved = [
        Motion(motion.angle + s * motion.angular_velocity + s * s / 2 * turning, motion.angular_velocity + s * turning,
               motion.position + s * motion.velocity, motion.velocity + s * pushing)
        for s in (-dt, dt)
    ]  # fmt: skip
    power = (cartpole.energy(np, moved[1]) - cartpole.energy(np, moved[0])) / (2 * dt)
    v, w = motion.velocity, motion.angular_velocity
    np.testing.assert_allclose(power, force * v - cartpole.friction * v**2 - cartpole.joint_friction * w**2, atol=1e-6)
    assert np.ptp(power) > 1


@pytest.mark.parametrize("start", [Motion(math.pi - 0.7, 0.0, 0.0, 0.0), Motion(0.3, -4.0, 0.0, 0.4)])
def test_without_friction_or_drive_energy_stays_to_the_integrators_order(start):
    def drift(substeps):
        cartpole, motion = replace(FREE, substeps=substeps), start
        energies = [cartpole.energy(math, motion)]
        for _ in range(100):
            motion, _ = cartpole.step(math, motion, 0.0)
            energies.append(cartpole.energy(math, motion))
        return max(abs(e - energies[0]) for e in energies)

    coarse, fine = drift(10), drift(20)
    assert coarse < 0.02  # J; the pole falls through 0.34
    assert 1.7 < coarse / fine < 2.4  # first order


def test_a_pole_in_its_bearing_swings_with_its_own_period():
    """Small oscillations about hanging, under a cart too heavy to move: T = 2 pi sqrt((k + 1) l / g), in closed form."""
    cartpole = CartPole(cart_mass=1e6, friction=0.0, joint_friction=0.0)
    motion, crossings, previous = Motion(math.pi - 0.05, 0.0, 0.0, 0.0), [], 0.0
    for tick in range(150):
        motion, _ = cartpole.step(math, motion, 0.0)
        swing = wrapped(motion.angle - math.pi)
        if previous < 0 <= swing:
            crossings.append(tick - swing / (swing - previous))
        previous = swing
    period = 2 * math.pi * math.sqrt(4 / 3 * cartpole.length / 2 / cartpole.gravity)
    assert np.diff(crossings) * cartpole.tick == pytest.approx(period, rel=2e-3)


def test_the_cart_bounces_off_the_end_of_its_track():
    cartpole, dt = CartPole(gravity=0.0), 1e-9
    before = Motion(0.4, 2.0, cartpole.half_track, 0.7)
    after, bounced = cartpole.integrate(math, before, 0.0, dt)
    assert bounced and after.velocity == pytest.approx(-0.7) and after.position == pytest.approx(cartpole.half_track)
    assert after.angular_velocity == pytest.approx(2.0 - 2 * 0.7 * math.cos(0.4) / (cartpole.length / 2))
    inwards, bounced = cartpole.integrate(math, before._replace(velocity=-0.7), 0.0, dt)
    assert not bounced and inwards.velocity == pytest.approx(-0.7)
    # However it is driven, it stays on the track, and is seen to bounce.
    motion, hits = Motion(2.0, 0.0, 0.0, 0.0), 0
    for tick in range(400):
        motion, hit = cartpole.step(math, motion, 1.0 if tick % 80 < 40 else -1.0)
        hits += hit
        assert abs(motion.position) <= cartpole.half_track + 1e-12
    assert hits > 5


def test_angles_are_wrapped_and_read_back():
    turns = np.array([0.3, -0.3, math.pi, -math.pi, 3.5, -3.5, 20.0])
    right = np.arctan2(np.sin(turns), np.cos(turns))
    right[3] = math.pi  # not -pi
    np.testing.assert_allclose(wrapped(turns), right, atol=1e-12)
    assert wrapped(-math.pi) == math.pi
    motion = states(50)
    for there, back in zip(motion, seen(np, observed(np, motion)), strict=True):
        np.testing.assert_allclose(back, there, atol=1e-12)


def test_the_swing_ups_reward_by_hand():
    cartpole = CartPole()
    still = Motion(0.0, 0.0, 0.0, 0.0)
    assert swing_up_reward(cartpole, math, still, 0.0) == 1
    assert swing_up_reward(cartpole, math, still, 1.0) == pytest.approx(0.8)
    assert swing_up_reward(cartpole, math, still._replace(angle=math.pi / 3), 0.0) == pytest.approx(0.75)
    assert swing_up_reward(cartpole, math, still._replace(position=-0.198), 0.0) == pytest.approx(0.0, abs=1e-9)
    for share, off_ends in ((0.85, 1.0), (0.925, 0.75)):
        centred = (1 + 0.1 ** (share**2)) / 2
        assert swing_up_reward(cartpole, math, still._replace(position=share * 0.198), 0.0) == pytest.approx(centred * off_ends)
    assert swing_up_reward(cartpole, math, still._replace(angular_velocity=5.0), 0.0) == pytest.approx(0.55)
    rewards = swing_up_reward(cartpole, np, states(1000), np.linspace(-1, 1, 1000))
    assert rewards.min() > -1e-9 and rewards.max() <= 1


@pytest.mark.parametrize("physics", [{}, {"pole_mass": 0.15, "length": 0.2, "motor": 3.0, "half_track": 0.18}])
@pytest.mark.parametrize("name", ["INICartPole", "INICartPoleSwingUp"])
def test_the_environment_and_the_world_model_are_one_physics(name, physics):
    kwargs = {"physics": physics}
    env = gymnasium.make(f"{name}-v0", **kwargs).unwrapped
    rng, motion = np.random.default_rng(3), states(100)
    if name == "INICartPole":  # where it leans little, so that some of the steps end it and some do not
        motion = motion._replace(angle=motion.angle / 10, angular_velocity=motion.angular_velocity / 10)
    motion = motion._replace(position=motion.position * 1.3)  # some hit the ends
    drives, rows = rng.uniform(-1, 1, (100, 1)).astype(np.float32), []
    for i in range(100):
        first, _ = env.reset(options={"motion": [float(x[i]) for x in motion]})
        rows.append((first, *env.step(drives[i])[:3]))
    chosen = Config(env=f"{name}-v0", env_kwargs=kwargs, world_model=TrueEnvironment(name))
    model, state = chosen.algorithm(spec_of(chosen.env, kwargs, None)).world_model, TrueState(identity(5))

    def one(obs, drive):
        return model.step(state, model.start(state, obs, jax.random.key(0)), drive, jax.random.key(0))[1]

    first, obs, reward, terminated = zip(*rows, strict=True)
    imagined = jax.jit(jax.vmap(one))(jnp.stack(first), jnp.asarray(drives))
    np.testing.assert_allclose(imagined.obs, np.stack(obs), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(imagined.reward, reward, atol=2e-4)
    np.testing.assert_array_equal(imagined.terminated, terminated)
    assert 10 < sum(terminated) < 90 if name == "INICartPole" else not any(terminated)


def test_starts_lie_in_their_ranges_and_fill_them():
    for name, widths in (("INICartPole-v0", [0.05] * 4), ("INICartPoleSwingUp-v0", [np.pi, np.radians(1200), 0.1584, 0.099])):
        env = gymnasium.make(name).unwrapped
        starts = np.array([(env.reset(seed=i), env.motion)[1] for i in range(300)])
        assert (np.abs(starts) <= widths).all() and (np.abs(starts).max(0) > 0.95 * np.array(widths)).all()
        assert gymnasium.spec(name).max_episode_steps == (500 if name == "INICartPole-v0" else 1000)


def test_balancing_ends_at_twelve_degrees_or_at_the_end_of_the_track():
    env = gymnasium.make("INICartPole-v0").unwrapped
    idle, steps = np.zeros(1, np.float32), []
    for start in ((0.2, 0.0, 0.0, 0.0), (0.0, 0.0, 0.19, 0.5)):
        env.reset(options={"motion": start})
        ended, length = False, 0
        while not ended:
            _, reward, ended, truncated, info = env.step(idle)
            length += 1
            assert reward == 1 and not truncated
        steps.append((length, info["bounced"], abs(info["angle"]) > math.radians(12)))
    assert steps[0][1:] == (False, True) and steps[1][:2] == (1, True)


def test_success_is_to_stand_for_the_last_five_seconds():
    env = gymnasium.make("INICartPoleSwingUp-v0").unwrapped
    env.reset(options={"motion": (0.0, 0.0, 0.0, 0.0)})
    told = [env.step(np.zeros(1))[4]["is_success"] for _ in range(260)]
    assert told.index(True) == 249 and all(told[249:])
    env.motion = env.motion._replace(angle=0.3)
    assert env.step(np.zeros(1))[4]["is_success"] is False


class Idle:
    """Decides to do nothing; in place of an `Algorithm`."""

    spec = spec_of("INICartPoleSwingUp-v0", {}, None)

    def start(self, policy, batch):
        return ()

    def act(self, policy, carry, obs, key, greedy):
        return Act(np.zeros((len(obs), 1), np.float32), (), np.zeros(len(obs)), np.zeros(len(obs)), key)


def test_an_evaluation_tells_the_share_of_successes():
    class Prepared(gymnasium.Wrapper):
        """Starts upright where the seed's drawn start is in the left half; without friction to disturb it, it stays."""

        def reset(self, **kwargs):
            self.env.reset(**kwargs)
            left = self.env.unwrapped.motion.position < 0
            return self.env.reset(options={"motion": (0.0 if left else math.pi, 0.0, -0.1 if left else 0.1, 0.0)})

    evaluator = Evaluator(Config(env="INICartPoleSwingUp-v0", max_episode_steps=260), 6)
    evaluator._envs.envs = [Prepared(env) for env in evaluator._envs.envs]
    result = evaluator(Idle(), None, jax.random.key(0), 1)
    assert result.success is not None and result.success.dtype == bool and 0 < result.success.sum() < 6
    np.testing.assert_array_equal(result.success, result.returns > 200)
    assert result.successes() == {"eval_success": result.success.mean()}
    evaluator.close()
    plain = Evaluator(Config(env="Pendulum-v1", max_episode_steps=3), 2)
    assert plain(Idle(), None, jax.random.key(0), 1).successes() == {}
    plain.close()


def test_physics_noise_and_what_is_wrong_with_them():
    env = gymnasium.make("INICartPoleSwingUp-v0", random_physics=True, physics={"friction": 1.0}).unwrapped
    drawn = [(env.reset(seed=i), env.cartpole)[1] for i in range(50)]
    lengths, masses = np.array([c.length for c in drawn]), np.array([c.pole_mass for c in drawn])
    assert 0.2 <= lengths.min() < 0.23 and 0.47 < lengths.max() <= 0.5 and masses.min() >= 0.015 and masses.max() <= 0.15
    assert {c.friction for c in drawn} == {1.0} and env.reset(seed=3) and env.cartpole == drawn[3]
    noisy, exact = (gymnasium.make("INICartPole-v0", noise=noise).unwrapped for noise in (2.0, 0.0))
    errors = np.array([noisy.reset(seed=i)[0] - exact.reset(seed=i)[0] for i in range(400)])
    np.testing.assert_allclose(errors.std(0)[[0, 3, 4]], [0.001, 0.01, 0.15], rtol=0.15)
    for kwargs, message in (
        ({"physics": {"lenght": 0.3}}, "physics has no 'lenght'; known: cart_mass"),
        ({"physics": {"length": [-0.1, 0.3]}}, "length is -0.1"),
        ({"noise": -1.0}, "noise is -1.0; it must be at least 0"),
    ):
        with pytest.raises(BrokenEnvironment, match=message):
            make_own("INICartPole-v0", kwargs, None)


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        ({"length": [0.5, 0.3]}, r"physics\.length is \[0\.5, 0\.3\]; the lowest of a range comes first"),
        ({"length": [0.3, 0.4, 0.5]}, r"physics\.length is \[0\.3, 0\.4, 0\.5\]; it must be a number, or the lowest"),
        ({"length": []}, r"physics\.length is \[\]; it must be a number, or the lowest"),
        ({"length": "long"}, r"physics\.length is 'long'; it must be a number, or the lowest"),
        ({"gravity": math.nan}, r"physics\.gravity is nan; it must be a number, or the lowest"),
        ({"pole_mass": [0.0, 0.1]}, r"pole_mass is 0\.0; it must be at least"),
        ({"cart_mass": -1}, r"cart_mass is -1; it must be at least"),
        (5, r"physics is 5; it must be names and values, of cart_mass"),
        ({"substeps": [5, 10]}, r"physics\.substeps is \[5, 10\]; it must be a whole number"),
    ],
)
def test_physics_that_cannot_be_are_told_in_one_line(physics, message):
    with pytest.raises(BrokenEnvironment, match=message) as told:
        make_own("INICartPoleSwingUp-v0", {"physics": physics}, None)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=message):
        TrueEnvironment("INICartPole", physics)


def test_dreams_in_the_truth_know_its_physics_or_are_refused():
    swing_up = Config(env="INICartPoleSwingUp-v0", world_model=TrueEnvironment("INICartPoleSwingUp"))
    for kwargs, message in (
        ({"physics": {"length": [0.3, 0.5]}}, r"physics\.length is \[0\.3, 0\.5\], so that each episode has another physics"),
        ({"physics": [1, 2]}, r"physics is \[1, 2\]; it must be names and values"),
        ({"random_physics": True}, "random_physics is set, so that each episode has another physics"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(swing_up, env_kwargs=kwargs).check()
    own = replace(swing_up, env_kwargs={"physics": {"length": 0.3}}, world_model=TrueEnvironment("INICartPole", {"length": 0.2}))
    assert own.algorithm(spec_of(own.env, own.env_kwargs, None)).world_model.physics == {"length": 0.2}
    heavy = Config(env="Pendulum-v1", env_kwargs={"g": 5.0}, world_model=TrueEnvironment("Pendulum"))
    model: Any = heavy.algorithm(spec_of(heavy.env, heavy.env_kwargs, None)).world_model
    env: Any = gymnasium.make("Pendulum-v1", g=5.0)
    obs, _ = env.reset(seed=0)
    said: Any = model.step(TrueState(identity(3)), model.start((), obs, None), jnp.array([0.5]), jax.random.key(0))[1]
    np.testing.assert_allclose(said.obs, env.step(np.array([1.0], np.float32))[0], atol=1e-5)
    with pytest.raises(ValueError, match="physics has no 'length'; of Pendulum: g"):
        TrueEnvironment("Pendulum", {"length": 1.0})
    for wrong in ([9.0, 10.0], "x", math.inf):
        with pytest.raises(ValueError, match=r"physics\.g is .*; it must be a number"):
            TrueEnvironment("Pendulum", {"g": wrong})


def test_it_is_drawn(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make("INICartPoleSwingUp-v0", render_mode="rgb_array").unwrapped
    pictures = []
    for angle in (0.5, -0.5):
        env.reset(options={"motion": (angle, 0.0, 0.0, 0.0)})
        pictures.append(env.render())
    left, right = pictures
    assert left.shape == (560, 640, 3) and left.dtype == np.uint8
    assert (left != right).any() and np.abs(left.astype(int) - right[:, ::-1].astype(int)).mean() < 1  # mirror images
    env.close()
    human = gymnasium.make("INICartPole-v0", render_mode="human")
    human.reset(seed=0)
    human.step(np.zeros(1))
    human.close()


def test_balanced_is_a_bound_on_angle_and_place():
    cartpole = CartPole()
    angles, places = np.array([0.2, 0.21, 0.2, -0.2]), np.array([0.0, 0.0, 0.198, -0.19])
    np.testing.assert_array_equal(balanced(cartpole, Motion(angles, 0, places, 0)), [True, False, False, True])
