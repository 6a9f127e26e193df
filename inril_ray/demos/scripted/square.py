"""A scripted Square demonstrator of adjustable quality."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.demos.scripted.arm import DOWN, UP, ArmStyle, ArmStyleConfig
from inril_ray.types import FloatArray

APPROACH, DESCEND, GRASP, RAISE, CARRY, LOWER, RELEASE, LEAVE = range(8)
PEG = np.array([0.23, 0.1, 0.95])
"""Top of the square peg, metres (robosuite's arena)."""
HANDLE_M = 0.054
"""From the middle of the nut to the middle of its handle, along the nut's x axis."""
TRAVEL_HEIGHT_M = 1.02
FITS = (np.pi / 2, np.pi, -np.pi / 2)
"""Yaws at which the nut fits the peg; at the fourth, 0, the handle would be out of the arm's reach."""


class SquareDemonstrator(Demonstrator):
    """Turn over the handle, grasp it, raise, turn the nut to the peg, lower it, let go; start again when it slipped.

    Args:
        rng: random stream of the episode.
        config: quality.
    """

    Config = ArmStyleConfig
    reads = ("v15",)

    def __init__(self, rng: np.random.Generator, config: ArmStyleConfig) -> None:
        self._style = ArmStyle(rng, config)
        self._phase, self._count = APPROACH, 0
        self._grasp_turn: float | None = None
        """Half a turn or none, from the nut's yaw to the hand's; settled once, or it would flip back and forth."""
        self._fit: float | None = None
        """Yaw at which the nut is put onto the peg; settled once for each grasp."""

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [7] for an observation [23] in the order of robosuite 1.5."""
        hand, turned = obs[0:3].astype(np.float64), Rotation.from_quat(obs[3:7].astype(np.float64))
        nut, nut_turned = obs[16:19].astype(np.float64), Rotation.from_quat(obs[19:23].astype(np.float64))
        style = self._style
        forward = nut_turned.apply([1.0, 0.0, 0.0])
        yaw = np.arctan2(forward[1], forward[0])
        handle = nut + HANDLE_M * np.array([np.cos(yaw), np.sin(yaw), 0.0]) + 0.5 * style.aim
        above, at = handle + UP * (style.hover_m + 0.04), handle + UP * 0.003
        if self._phase <= GRASP:
            # The fingers close across the handle; half a turn makes no difference to them.
            if self._grasp_turn is None:
                self._grasp_turn = _wrap(yaw, np.pi) - yaw
            turn = _about_vertical(turned, yaw + self._grasp_turn)
        else:
            if self._fit is None:
                self._fit = min(FITS, key=lambda fit: abs(_wrap(fit - yaw, 2 * np.pi)))
            turn = _about_vertical(turned, _yaw(turned) + _wrap(self._fit - yaw, 2 * np.pi))
        tilt = float(np.linalg.norm(turn))
        off = PEG - nut
        self._advance(hand, above, at, tilt, off, float(np.linalg.norm(handle - hand)))
        over = hand[:2] + off[:2]
        goal = {
            APPROACH: above,
            DESCEND: at,
            GRASP: at,
            RAISE: np.array([hand[0], hand[1], TRAVEL_HEIGHT_M]),
            CARRY: np.array([over[0], over[1], TRAVEL_HEIGHT_M]),
            LOWER: np.array([over[0], over[1], hand[2] - 0.03]),
            RELEASE: hand,
            LEAVE: np.array([hand[0], hand[1], TRAVEL_HEIGHT_M]),
        }[self._phase]
        closed = GRASP <= self._phase <= LOWER
        calm = self._phase in (RELEASE, LEAVE)
        slow = 0.5 if self._phase in (DESCEND, LOWER) else 1.0
        return style.action(goal - hand, 1.0 if closed else -1.0, None if calm else turn, slow)

    def _advance(
        self, hand: FloatArray, above: FloatArray, at: FloatArray, tilt: float, off: FloatArray, slip: float
    ) -> None:
        """Go on to the next phase where the present one is done.

        Args:
            hand: [3] position of the hand.
            above: [3] where to hover.
            at: [3] where to grasp.
            tilt: angle still to be turned.
            off: [3] from the nut to the top of the peg.
            slip: distance between hand and handle.
        """
        phase, style = self._phase, self._style
        level = np.hypot(off[0], off[1])
        self._count += 1
        over_handle = np.hypot(*(above - hand)[:2]) < 0.01 and abs(above[2] - hand[2]) < 0.03 and tilt < 0.12
        done = {
            APPROACH: over_handle,
            DESCEND: np.linalg.norm(at - hand) < 0.012,
            GRASP: self._count > 4 + style.pause,
            RAISE: hand[2] > TRAVEL_HEIGHT_M - 0.03,
            CARRY: level < 0.004 and tilt < 0.08,
            LOWER: off[2] > 0.01,
            RELEASE: self._count > 4,
            LEAVE: False,
        }[phase]
        if done:
            self._phase, self._count = phase + 1, 0
        elif (phase in (RAISE, CARRY, LOWER) and slip > 0.05) or (
            phase == LEAVE and off[2] < 0.05 and self._count > 15
        ):
            self._phase, self._count = APPROACH, 0  # it slipped, or did not fall onto the peg
            self._grasp_turn = self._fit = None


def _wrap(angle: float, period: float) -> float:
    """Return an angle in [-period / 2, period / 2)."""
    return float((angle + period / 2) % period - period / 2)


def _yaw(hand: Rotation) -> float:
    forward = hand.apply([1.0, 0.0, 0.0])
    return float(np.arctan2(forward[1], forward[0]))


def _about_vertical(hand: Rotation, yaw: float) -> FloatArray:
    """Return the rotation vector [3] that makes a hand point straight down, at an angle about the vertical."""
    return (Rotation.from_euler("z", yaw) * DOWN * hand.inv()).as_rotvec()
