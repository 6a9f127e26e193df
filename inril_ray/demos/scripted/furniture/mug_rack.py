"""The expert of mug_rack."""

from __future__ import annotations

import math

import numpy as np

from inril_ray.demos.scripted.furniture.expert import (
    CENTRE,
    CLOSE,
    OPEN,
    UP,
    FurnitureExpert,
    Goal,
    flat,
    looking_down,
    wrapped,
)
from inril_ray.envs.furniture.tasks.mug_rack import PEG_LENGTH, PEGS, POST, RISE
from inril_ray.rotations import matrix_of_vector
from inril_ray.types import FloatArray

RACK, MUG = 0, 1
KNOB = PEG_LENGTH + 0.035
"""Where the handle is brought first, along the peg, metres."""
WALL, RIM = 0.039, 0.045
"""From the mug's axis to the middle of its wall, from its middle to its rim, metres."""
LOOP = np.array([0.053, 0.0, 0.0])
"""Middle of the handle's opening, mug frame."""
MAX_YAW, MAX_CHANGE = math.radians(110.0), math.radians(150.0)
"""Of the hand while it grasps and hangs the mug, and between the two: the last joint reaches no further."""
NEAREST, FREE = 0.25, 0.40
"""The hand may be tilted the less, the nearer it is to the base between these distances: the elbow needs room."""
SETTLED = 5
"""Control steps for which mug and rack may still slide at the beginning."""
LIFT, OVER_RACK = 0.20, 0.14
"""How high the mug is lifted, and how much more if it has to pass over the rack, metres."""


class MugRackExpert(FurnitureExpert):
    """Pinch the mug's wall away from the handle, tilt the handle up, push it over a peg's knob, let go.

    The mug's opening stays above its bottom, and its axis across the peg: it swings below the peg when it is free. The
    peg, and the side from which the mug comes, are chosen at random among those for which the last joint has room.
    """

    first = "over_mug"

    def begin(self) -> None:
        """Choose where the wall is pinched, how far the mug is tilted and pushed on, and which pegs are preferred."""
        rng = self.rng
        self.depth = 0.014 + rng.uniform(-1, 1) * self.config.grasp_m
        self.around = math.pi + math.radians(rng.uniform(-30.0, 30.0))
        self.tilt = math.radians(rng.uniform(0.0, 40.0))
        self.final = rng.uniform(0.050, 0.058)
        self.taste = rng.uniform(0.0, 1.0, (len(PEGS), 2))
        self.peg, self.side, self.swapped = 0, 1, False

    # -- where things are ---------------------------------------------------------------------------------------------
    def _on_peg(self, along: float) -> FloatArray:
        """Return the point of the chosen peg's axis that is so far from its foot."""
        direction, height = PEGS[self.peg]
        out = np.array([math.cos(direction), math.sin(direction), 0.0])
        point = POST * out + height * UP + along * (math.cos(RISE) * out + math.sin(RISE) * UP)
        return self.parts[RACK] + self.turns[RACK] @ point

    def _across(self, peg: int, side: int) -> FloatArray:
        """Return the horizontal direction that the handle has from the mug when it goes on a peg."""
        direction = PEGS[peg][0]
        return side * flat(self.turns[RACK] @ np.array([-math.sin(direction), math.cos(direction), 0.0]))

    def _choose(self) -> None:
        """Choose the peg, the side from which the mug comes, and which finger goes into it."""
        lowest = math.inf
        for peg in range(len(PEGS)):
            for k, side in enumerate((1, -1)):
                for swapped in (False, True):
                    turned = self.around + swapped * math.pi + math.pi / 2 - CENTRE
                    handles = self.turns[MUG][:, 0], self._across(peg, side)
                    here, there = (wrapped(math.atan2(h[1], h[0]) + turned) for h in handles)
                    # A hand turns by the shorter way, which must not be the one through the joint's limit.
                    beyond = max(abs(here) - MAX_YAW, abs(there) - MAX_YAW, abs(there - here) - MAX_CHANGE, 0.0)
                    cost = self.taste[peg, k] + 10.0 * beyond
                    if cost < lowest:
                        lowest, self.peg, self.side, self.swapped = cost, peg, side, swapped

    def _grasp(self, height: float) -> Goal:
        """Return the hand's pose around the wall of the upright mug, raised by ``height``."""
        x, _, z = self.turns[MUG].T
        outwards = flat(math.cos(self.around) * x - math.sin(self.around) * z)
        point = self.parts[MUG] + WALL * outwards + (RIM - self.depth + height) * UP
        return point, looking_down(-outwards if self.swapped else outwards)

    def _carried(self, point: FloatArray) -> Goal:
        """Return the hand's goal that brings the middle of the handle's opening to a point, the mug tilted."""
        across = self._across(self.peg, self.side)
        grasped = self._on_peg(KNOB)[0] - (LOOP[0] + WALL) * across[0]
        tilt = self.tilt * min(1.0, max(0.0, (grasped - NEAREST) / (FREE - NEAREST)))
        upright = np.stack([across, UP, np.cross(across, UP)], axis=1)
        turn = matrix_of_vector(tilt * np.cross(across, UP)) @ upright
        move = turn @ self.turns[MUG].T
        return point - turn @ LOOP + move @ (self.pos - self.parts[MUG]), move @ self.turn

    def _handle(self) -> FloatArray:
        return self.parts[MUG] + self.turns[MUG] @ LOOP

    def _behind(self) -> bool:
        """Tell whether the mug has to pass over the rack to its place."""
        place = self._on_peg(PEG_LENGTH) - LOOP[0] * self._across(self.peg, self.side)
        rack = self.parts[RACK]
        return float((place - rack)[:2] @ (rack - self.parts[MUG])[:2]) > 0.0

    # -- phases -------------------------------------------------------------------------------------------------------
    def over_mug(self) -> Goal:
        """Move above the wall; a mug that has fallen over is left alone."""
        self.grip = OPEN
        if self.turns[MUG][2, 1] < 0.9:
            return self.pos, self.turn
        if self.count <= SETTLED:
            self._choose()
        goal = self._grasp(0.06)
        if self.reached(goal, 0.004, 0.06, 60):
            self.go("down_to_mug")
        return goal

    def down_to_mug(self) -> Goal:
        """Lower the open hand around it."""
        goal = self.held = self._grasp(0.0)
        if self.reached(goal, 0.003, 0.05, 30):
            self.go("grasp_mug")
        return goal

    def grasp_mug(self) -> Goal:
        """Close on it."""
        self.high = self._behind()
        self.lifted = self.held[0] + (LIFT + OVER_RACK * self.high) * UP
        return self.close_or_open(CLOSE, 6, "lift_mug")

    def lift_mug(self) -> Goal:
        """Lift it."""
        goal = self.lifted, self.held[1]
        if self.reached(goal, 0.03, 0.2, 25):
            self.go("approach" if self.parts[MUG][2] > 0.09 else self.first)
        return goal

    def approach(self) -> Goal:
        """Bring the handle in front of the peg's knob, from above where the rack is in the way."""
        point = self._on_peg(KNOB)
        off = self._handle() - point
        if float(np.abs(off).max()) < 0.006:
            self.go("push_on")
        elif self.count > 60:  # an arm that finds no way with the mug tilted does it without
            self.go("push_on" if self.tilt == 0.0 else "approach")
            self.tilt = 0.0
        if self.high:
            point = point + min(0.18, 2.0 * max(0.0, float(np.linalg.norm(off[:2])) - 0.01)) * UP
        return self._carried(point)

    def push_on(self) -> Goal:
        """Push the handle over the knob, along the peg."""
        point = self._on_peg(self.final)
        if float(np.abs(self._handle() - point).max()) < 0.005 or self.count > 40:
            self.go("lower")
        return self._carried(point)

    def lower(self) -> Goal:
        """Lower it onto the peg."""
        point = self._on_peg(self.final) - 0.012 * UP
        if float(np.abs(self._handle() - point).max()) < 0.005 or self.count > 8:
            self.held = self.pos.copy(), self.turn.copy()
            self.go("let_go")
        return self._carried(point)

    def let_go(self) -> Goal:
        """Open the hand."""
        return self.close_or_open(OPEN, 5, "back_off")

    def back_off(self) -> Goal:
        """Leave against the way the hand looks."""
        goal = self.held[0] - 0.10 * self.held[1][:, 2], self.held[1]
        if self.count > 30 and self.parts[MUG][2] < 0.06:
            self.held = np.array([*self.pos[:2], 0.40]), self.turn.copy()
            self.go("rise")
        return goal

    def rise(self) -> Goal:
        """The mug has dropped: get out of the rack's way, and begin again."""
        if self.reached(self.held, 0.03, 0.3, 30):
            self.go(self.first)
        return self.held
