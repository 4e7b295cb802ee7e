"""The cart-pole of the Institute of Neuroinformatics, Zürich: its equations of motion, once for floats, NumPy and JAX.

Physics, parameters and starts are those of SensorsINI/CartPoleSimulation. The angle is 0 upright and grows counter-clockwise, the
position grows to the right; the pole's centre of mass is at (position - l sin angle, l cos angle), l half its length. Everything is
in SI units. Functions take the module whose `sin` and `cos` they are to use: `math` for floats, `numpy` or `jax.numpy` for arrays
of any shape; nothing else in them depends on what the numbers are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

from spikedream.bounds import check_bounds

# Half-widths of the uniform random starts of the swing-up, of angle, angular velocity, and of position and velocity in half tracks.
SWING_UP_STARTS = (math.radians(180), math.radians(1200), 0.8, 0.5)
BALANCING_STARTS = 0.05  # of all four numbers, as in Gymnasium's CartPole-v1
BALANCED = math.radians(12)  # the largest angle that counts as upright, likewise
SENSOR_NOISE = (0.0, 0.075, 0.0005, 0.005)  # standard deviations of angle, angular velocity, position, velocity


class Motion(NamedTuple):
    """The state; each a float or an array."""

    angle: Any  # rad, in (-pi, pi]
    angular_velocity: Any  # rad/s
    position: Any  # m, of the cart, from the middle of the track
    velocity: Any  # m/s


@dataclass(frozen=True)
class CartPole:
    """The parameters of the physical cart-pole, and how time is cut."""

    cart_mass: float = 0.230  # kg
    pole_mass: float = 0.087  # kg
    length: float = 0.395  # m, of the whole pole
    gravity: float = 9.81  # m/s^2
    motor: float = 1.77  # N, at full drive
    friction: float = 3.22  # N s/m, of the cart
    joint_friction: float = 5e-5  # N m s
    half_track: float = 0.198  # m, from the middle to where the cart hits the end
    inertia: float = 1 / 3  # k: the pole's moment of inertia about its centre is k m l^2; 1/3 is a thin rod's
    tick: float = 0.02  # s between decisions
    substeps: int = 10  # of the integrator in a tick

    def __post_init__(self) -> None:
        positive, not_negative = (1e-9, None), (0, None)
        check_bounds(self, cart_mass=positive, pole_mass=positive, length=positive, half_track=positive, tick=positive)
        check_bounds(self, motor=not_negative, friction=not_negative, joint_friction=not_negative, gravity=not_negative)
        check_bounds(self, inertia=not_negative, substeps=(1, None))

    def accelerations(self, xp: Any, motion: Motion, force: Any) -> tuple[Any, Any]:
        """Angular acceleration of the pole and acceleration of the cart under a `force` (N) on the cart.

        The Lagrange equations of T = (M + m)/2 v^2 - m l cos(a) v w + (k + 1)/2 m l^2 w^2 and V = m g l cos(a), solved for both,
        with friction F v of the cart and J w of the joint.
        """
        l, k, m, sin, cos = self.length / 2, self.inertia, self.pole_mass, xp.sin(motion.angle), xp.cos(motion.angle)  # noqa: E741
        w, v = motion.angular_velocity, motion.velocity
        joint = self.joint_friction * w / l
        pushed = force - self.friction * v - m * l * w * w * sin
        cart = (m * self.gravity * sin * cos - joint * cos + (k + 1) * pushed) / ((k + 1) * (self.cart_mass + m) - m * cos * cos)
        return (self.gravity * sin + cart * cos - joint / m) / ((k + 1) * l), cart

    def energy(self, xp: Any, motion: Motion) -> Any:
        """T + V, in J; V is 0 where the pole is level."""
        l, m, cos = self.length / 2, self.pole_mass, xp.cos(motion.angle)  # noqa: E741
        w, v = motion.angular_velocity, motion.velocity
        kinetic = (self.cart_mass + m) / 2 * v * v - m * l * cos * v * w + (self.inertia + 1) / 2 * m * l * l * w * w
        return kinetic + m * self.gravity * l * cos

    def integrate(self, xp: Any, motion: Motion, force: Any, dt: float) -> tuple[Motion, Any]:
        """The state `dt` seconds later, by Euler-Cromer, the angle not yet wrapped; and whether the cart bounced off the end.

        The bounce is the source's: velocity reversed, and 2 v cos(a) / l taken off the angular velocity. To conserve energy, that
        would have to be divided by k + 1.
        """
        turning, pushing = self.accelerations(xp, motion, force)
        w, v = motion.angular_velocity + turning * dt, motion.velocity + pushing * dt
        angle, position = motion.angle + w * dt, motion.position + v * dt
        bounced = (abs(position) > self.half_track) & (position * v > 0)
        w = w - bounced * (2 * v * xp.cos(angle) / (self.length / 2))
        angle = angle + bounced * (w * dt)
        v = v - bounced * (2 * v)
        return Motion(angle, w, position + bounced * (v * dt), v), bounced

    def step(self, xp: Any, motion: Motion, drive: Any) -> tuple[Motion, Any]:
        """The state a tick later under a `drive` of the motor in [-1, 1]; and whether the cart bounced off the end meanwhile."""
        dt, hit = self.tick / self.substeps, False
        for _ in range(self.substeps):
            motion, bounced = self.integrate(xp, motion, self.motor * drive, dt)
            hit = hit | bounced
        return motion._replace(angle=wrapped(motion.angle)), hit


def check_physics(physics: Mapping[str, Any]) -> None:
    """Raises ValueError unless these are fields of `CartPole` within their bounds, each a number or the ends of a range from which
    it is drawn, lowest first."""
    if not isinstance(physics, Mapping):
        raise ValueError(f"physics is {physics!r}; it must be names and values, of {', '.join(f.name for f in fields(CartPole))}")
    known = [each.name for each in fields(CartPole)]
    for name, value in physics.items():
        if name not in known:
            raise ValueError(f"physics has no {name!r}; known: {', '.join(known)}")
        drawn = isinstance(value, list | tuple)
        ends = value if drawn else (value,)
        if name == "substeps" and not isinstance(value, Integral):
            raise ValueError(f"physics.substeps is {value!r}; it must be a whole number")
        if len(ends) != 1 + drawn or not all(isinstance(x, Real) and math.isfinite(x) for x in ends):
            raise ValueError(f"physics.{name} is {value!r}; it must be a number, or the lowest and the highest of a range")
        if ends[0] > ends[-1]:
            raise ValueError(f"physics.{name} is {value!r}; the lowest of a range comes first")
    for end in (0, -1):
        CartPole(**{name: value[end] if isinstance(value, list | tuple) else value for name, value in physics.items()})


def wrapped(angle: Any) -> Any:
    """The same angle in (-pi, pi]; the remainder of floats, NumPy and JAX has the divisor's sign in all three."""
    return math.pi - (math.pi - angle) % (2 * math.pi)


def observed(xp: Any, motion: Motion) -> tuple[Any, Any, Any, Any, Any]:
    """What a learner sees: position, cosine and sine of the angle, velocity, angular velocity. In the order of dm_control's
    cart-pole; the angle itself, which jumps where the pole hangs, is left out."""
    return motion.position, xp.cos(motion.angle), xp.sin(motion.angle), motion.velocity, motion.angular_velocity


def seen(xp: Any, obs: Any) -> Motion:
    """The state that was `observed` as `obs`, five numbers."""
    position, cos, sin, velocity, angular_velocity = (obs[i] for i in range(5))
    return Motion(xp.atan2(sin, cos), angular_velocity, position, velocity)


def balanced(cartpole: CartPole, motion: Motion) -> Any:
    """Whether the pole is within 12 degrees of upright and the cart on the track."""
    return (abs(motion.angle) < BALANCED) & (abs(motion.position) < cartpole.half_track)


def swing_up_reward(cartpole: CartPole, xp: Any, motion: Motion, drive: Any) -> Any:
    """In [0, 1]: upright x centred x little drive x little rotation x off the ends.

    The first four are dm_control's reward for its cart-pole (Tassa et al. 2018, `suite/cartpole.py`), whose 2 m to each side are
    half a track here. The last is the bound in the cost of the source's controllers, 1 up to 0.85 of half the track and 0 at its
    end: without, a pole is also kept upright by leaning the cart against the end.

    Args:
        motion: after the step.
        drive: of the motor during it, in [-1, 1].
    """

    def within(ratio: Any) -> Any:
        """1 at 0, falling as a Gaussian to 0.1 at +-1."""
        return 0.1 ** (ratio * ratio)

    upright = (xp.cos(motion.angle) + 1) / 2
    centred = (1 + within(motion.position / cartpole.half_track)) / 2
    idle = (4 + (1 - drive * drive)) / 5
    calm = (1 + within(motion.angular_velocity / 5)) / 2
    beyond = (abs(motion.position) / cartpole.half_track - 0.85) / 0.15
    beyond = (beyond + abs(beyond)) / 2
    return upright * centred * idle * calm * (1 - beyond * beyond)
