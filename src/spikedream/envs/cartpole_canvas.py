"""Drawing a cart-pole with pygame, in a window or off screen."""

import math

import numpy as np
import pygame
from pygame import gfxdraw

from spikedream.dynamics.ini_cartpole import CartPole, Motion

SIZE = (640, 560)
SCALE = 2  # the drawing is made larger by this and then smoothed: pygame draws jagged edges
PAPER, INK, FAINT, CART, POLE, PUSH = (250, 250, 248), (60, 64, 72), (206, 208, 212), (52, 73, 102), (196, 98, 45), (46, 139, 110)


class Canvas:
    """Args: window: open one, or only draw."""

    def __init__(self, window: bool):
        pygame.display.init()
        self._window = pygame.display.set_mode(SIZE) if window else None
        if window:
            pygame.display.set_caption("INI cart-pole")
        self._large = pygame.Surface((SIZE[0] * SCALE, SIZE[1] * SCALE))
        self._picture = pygame.Surface(SIZE)
        self._clock = pygame.time.Clock()

    def draw(self, cartpole: CartPole, motion: Motion, drive: float) -> None:
        """The state, and below the cart the motor's push."""
        surface, (width, height) = self._large, self._large.get_size()
        metre = min(0.44 * width / (cartpole.half_track + 0.06), 0.44 * height / cartpole.length)
        floor = 0.5 * height
        surface.fill(PAPER)

        def across(position: float) -> float:
            return width / 2 + position * metre

        def box(centre: float, top: float, wide: float, high: float, colour: tuple[int, int, int], radius: int = 0) -> None:
            pygame.draw.rect(surface, colour, pygame.Rect(centre - wide / 2, top, wide, high), border_radius=radius * SCALE)

        cart_wide, cart_high = 0.06 * metre, 0.028 * metre
        end = cartpole.half_track * metre + cart_wide / 2
        box(width / 2, floor + cart_high / 2, 2 * end, 3 * SCALE, INK)
        box(width / 2, floor + cart_high / 2 + 8 * SCALE, 1.5 * SCALE, 8 * SCALE, FAINT)
        for side in (-1, 1):
            box(width / 2 + side * (end + 4 * SCALE), floor - cart_high, 8 * SCALE, 2 * cart_high, INK, 2)
        x = across(motion.position)
        box(x, floor - cart_high / 2, cart_wide, cart_high, CART, 5)
        push = drive * 0.05 * metre
        if abs(drive) > 0.01:
            middle, arrow = floor + cart_high + 14 * SCALE, 6 * SCALE * (1 if push > 0 else -1)
            box(x + push / 2, middle - 2 * SCALE, abs(push), 4 * SCALE, PUSH)
            _filled(surface, [(x + push, middle - 7 * SCALE), (x + push + arrow, middle), (x + push, middle + 7 * SCALE)], PUSH)
        self._pole(x, floor, cartpole.length * metre, motion.angle)
        pygame.transform.smoothscale(surface, SIZE, self._picture)

    def _pole(self, x: float, y: float, length: float, angle: float) -> None:
        along = np.array([-math.sin(angle), -math.cos(angle)])
        aside = np.array([along[1], -along[0]]) * 4 * SCALE
        foot, top = np.array([x, y]), np.array([x, y]) + length * along
        _filled(self._large, [foot - aside, foot + aside, top + aside, top - aside], POLE)
        for centre, radius, colour in ((top, 4, POLE), (foot, 7, INK), (foot, 3, PAPER)):
            at = round(centre[0]), round(centre[1])
            gfxdraw.filled_circle(self._large, *at, radius * SCALE, colour)

    def pixels(self) -> np.ndarray:
        """(height, width, 3) bytes."""
        return np.transpose(pygame.surfarray.array3d(self._picture), (1, 0, 2)).copy()

    def show(self, frames_per_second: int) -> None:
        """In the window, in its own time."""
        assert self._window is not None
        self._window.blit(self._picture, (0, 0))
        pygame.event.pump()
        self._clock.tick(frames_per_second)
        pygame.display.flip()

    def close(self) -> None:
        pygame.display.quit()


def _filled(surface: pygame.Surface, corners: list, colour: tuple[int, int, int]) -> None:
    pygame.draw.polygon(surface, colour, [(float(a), float(b)) for a, b in corners])
