"""A scripted Transport demonstrator of adjustable quality.

Each arm has a list of jobs, a job is a list of way-points; what slips is grasped again. The arms agree through what
both can see: where the hammer is, and how far apart the other's fingers are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
from scipy.spatial.transform import Rotation

from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.demos.scripted.arm import DOWN, UP, ArmStyle, ArmStyleConfig
from inril_ray.types import FloatArray

FIRST, SECOND = 0, 1
"""The first arm takes the hammer out of its bin, the second puts it into the other. Each arm's own forward is along y,
so its fingers open along x."""
LID_PLACE = np.array([-0.2, -0.45, 0.84])
"""Where the lid's handle is put down, on the free half of the first table, metres."""
MEETING = np.array([0.0, 0.07, 1.05])
"""Where the second arm takes hold of the handle. With the hands at this height, the arms reach furthest; still, a few
centimetres to either side one of them would be stretched out."""
WAITING = np.array([0.0, 0.25, 1.25])
"""Where the second arm waits for it."""
GRIPS_M = (-0.04, 0.085)
"""Where along the handle each arm holds it, from its middle: the wrists have room."""
TRAVEL_HEIGHT_M = 0.98
"""Above the bins, without the hover height of the episode. Higher, and the elbow is bent to its limit."""
LEAVING, AWAY = np.array([0.0, -0.1, 1.18]), np.array([0.0, -0.3, 1.2])
"""Where the first arm goes when it has let go of the hammer."""
RAISED = np.array([0.0, 0.2, 1.18])
"""Where the second arm goes with it, before it is over the bins: the head may hang down as far as their walls."""
GRIP_DEPTH_M = 0.005
"""How far below the handle's middle the second hand closes, since its pads are above the point between the fingers; too
high, they slip off (robosuite's Panda gripper)."""
START_BIN = np.array([0.2, -0.45, 0.806])
"""Middle of the floor of the hammer's first bin, which is not observed, metres (robosuite's ``TwoArmTransport``)."""
HANDLE_M = 0.1
"""From the middle of the handle to its ends (robosuite's hammer)."""
BALANCE_M = 0.018
"""From the middle of the handle to the middle of the hammer, towards the head."""
HELD_MM = (27.0, 36.0)
"""Openings of a hand that holds the handle; with less between them, the fingers are slipping off."""
OPEN_M = 0.06
"""Opening of a hand that has let go."""
LOST_M = 0.06
"""What is further from the closed hand has slipped."""
MAX_TILT = 0.15
"""Radians by which a hand at its way-point may be turned away from its goal."""


class View:
    """An observation [59] of Transport by name; metres and radians in the world's frame."""

    def __init__(self, obs: FloatArray) -> None:
        o = obs.astype(np.float64)
        self.hands = (o[0:3], o[9:12])
        self.turned = (Rotation.from_quat(o[3:7]), Rotation.from_quat(o[12:16]))
        self.openings = (o[7] - o[8], o[16] - o[17])
        """Between the fingers of each hand; 8 cm at most."""
        self.hammer, self.trash, self.lid = o[18:21], o[25:28], o[32:35]
        self.target_bin, self.trash_bin = o[39:42], o[42:45]
        axis = Rotation.from_quat(o[21:25]).apply(UP)
        self.middle = self.hammer + BALANCE_M * axis
        self.along = axis if axis[1] > 0 else -axis
        """[3] the handle's direction, from the first arm to the second; the head may be at either end."""
        self.handle_yaw = float(np.arctan2(self.along[1], self.along[0]))
        forward = Rotation.from_quat(o[28:32]).apply([1.0, 0.0, 0.0])
        self.trash_yaw = float(np.arctan2(forward[1], forward[0]))

    def half(self, arm: int) -> FloatArray:
        """Return where an arm holds the handle, [3]."""
        return self.hammer + GRIPS_M[arm] * self.along

    def handle_at(self, arm: int) -> FloatArray:
        """Return the place [3] on the handle that is nearest to a hand; its half may be any when the hammer hangs."""
        reach = float((self.hands[arm] - self.hammer) @ self.along)
        return self.hammer + np.clip(reach, -HANDLE_M, HANDLE_M) * self.along

    def held_by(self, arm: int) -> bool:
        """Whether an arm's fingers are closed about the handle, which is 3 cm thick."""
        near = np.linalg.norm(self.handle_at(arm) - self.hands[arm]) < 0.03
        return bool(near and HELD_MM[0] < 1000.0 * self.openings[arm] < HELD_MM[1])

    def thrown_away(self) -> bool:
        """Whether the rubbish lies in its bin."""
        off = np.abs(self.trash - self.trash_bin)
        return bool(off[0] < 0.14 and off[1] < 0.14 and off[2] < 0.05)


Place = Callable[[View], FloatArray]
Angle = Callable[[View], float]


@dataclass(frozen=True)
class Step:
    """A way-point: left ``wait`` control steps after the hand is there and ``until`` holds."""

    goal: Place
    """[3] where the hand is to be."""
    yaw: Angle
    """The hand's angle about the vertical; half a turn makes no difference to the fingers."""
    closed: bool
    near: float = 0.02
    wait: int = 0
    speed: float = 1.0
    held: Place | None = None
    """[3] what must be in the hand; when it is not, the job starts again."""
    until: Callable[[View], bool] = lambda _: True
    patience: int = 10_000
    """Control steps after which the job starts again."""


@dataclass(frozen=True)
class Job:
    """What an arm does from beginning to end, or again from the beginning."""

    steps: list[Step]
    done: Callable[[View], bool] = lambda _: False
    """Whether it need not start again."""


class Arm:
    """One arm on its way through its jobs; it stays at the last way-point of the last.

    Args:
        which: ``FIRST`` or ``SECOND``.
        style: of the episode.
        jobs: in their order.
    """

    def __init__(self, which: int, style: ArmStyle, jobs: list[Job]) -> None:
        self._which, self._style, self._jobs = which, style, jobs
        self.job, self.step, self._count, self._age = 0, 0, 0, 0

    def act(self, view: View) -> FloatArray:
        """Return the action [7]."""
        hand = view.hands[self._which]
        self._advance(view, hand)
        step = self._jobs[self.job].steps[self.step]
        return self._style.action(
            step.goal(view) - hand, 1.0 if step.closed else -1.0, self._turn(view, step), step.speed
        )

    def _advance(self, view: View, hand: FloatArray) -> None:
        job = self._jobs[self.job]
        step = job.steps[self.step]
        self._age += 1
        slipped = step.held is not None and np.linalg.norm(step.held(view) - hand) > LOST_M
        if slipped or self._age > step.patience:
            self._go(self.job + job.done(view), 0)
            return
        there = np.linalg.norm(step.goal(view) - hand) < step.near and np.linalg.norm(self._turn(view, step)) < MAX_TILT
        if self._count > 0 or (there and step.until(view)):
            self._count += 1
        if self._count <= step.wait:
            return
        if self.step + 1 < len(job.steps):
            self._go(self.job, self.step + 1)
        elif self.job + 1 < len(self._jobs):
            self._go(self.job + 1, 0)

    def _go(self, job: int, step: int) -> None:
        self.job, self.step, self._count, self._age = job, step, 0, 0

    def _turn(self, view: View, step: Step) -> FloatArray:
        return (Rotation.from_euler("z", step.yaw(view)) * DOWN * view.turned[self._which].inv()).as_rotvec()


class TransportDemonstrator(Demonstrator):
    """Lid off, hammer out, rubbish away, the hammer from hand to hand and into its bin.

    Args:
        rng: random stream of the episode.
        config: quality.
    """

    Config = ArmStyleConfig
    reads = ("v15",)

    def __init__(self, rng: np.random.Generator, config: ArmStyleConfig) -> None:
        first, second = ArmStyle(rng, config), ArmStyle(rng, config)
        self._arms = (Arm(FIRST, first, _first_jobs(first)), Arm(SECOND, second, _second_jobs(second)))

    def act(self, obs: FloatArray) -> FloatArray:
        """Return the action [14] for an observation [59] in the order of robosuite 1.5."""
        view = View(obs)
        return np.concatenate([arm.act(view) for arm in self._arms])


def _first_jobs(style: ArmStyle) -> list[Job]:
    forward, lid = _always(np.pi / 2), attrgetter("lid")
    half, handle = partial(View.half, arm=FIRST), partial(View.handle_at, arm=FIRST)

    def across(view: View) -> float:
        # What turns the handle is the hand: it is turned by what the handle lacks.
        return _yaw(view, FIRST) + np.pi / 2 - view.handle_yaw

    def meet(view: View) -> FloatArray:
        return view.hands[FIRST] + MEETING - view.half(SECOND)

    def center(view: View) -> FloatArray:
        return view.hands[FIRST] + START_BIN - view.middle

    height = TRAVEL_HEIGHT_M + style.hover_m
    take_off_lid = [
        *_grasp(style, lid, forward, LOST_M),
        Step(lambda _: _at_height(START_BIN, height), forward, True, held=lid),
        *_put(FIRST, lid, lambda _: LID_PLACE, forward, lid, height),
    ]
    hand_over = [
        *_grasp(style, half, lambda v: v.handle_yaw, 0.045),
        # The bin is hardly longer than the hammer.
        Step(lambda v: center(v) + 0.05 * UP, across, True, held=handle),
        Step(lambda v: _at_height(center(v), height), across, True, held=handle),
        Step(meet, across, True, held=handle),
        # The other hand pulls, too.
        Step(meet, across, True, near=0.1, held=handle, until=lambda v: v.held_by(SECOND), wait=style.pause),
        Step(lambda v: v.hands[FIRST], forward, False, until=lambda v: v.openings[FIRST] > OPEN_M),
        Step(lambda _: LEAVING, forward, False, near=0.03),
        Step(lambda _: AWAY, forward, False),
    ]
    return [Job(take_off_lid), Job(hand_over)]


def _second_jobs(style: ArmStyle) -> list[Job]:
    forward, trash = _always(-np.pi / 2), attrgetter("trash")
    half, handle = partial(View.half, arm=SECOND), partial(View.handle_at, arm=SECOND)
    # Held from behind, the hammer would be put down with the hand too near to the arm's own base.
    aside = _always(-np.pi)

    def grip(view: View) -> FloatArray:
        return half(view) - GRIP_DEPTH_M * UP

    def along(view: View) -> float:
        return view.handle_yaw - np.pi

    def square(view: View) -> float:
        return _nearest(view.trash_yaw, np.pi / 2, -np.pi / 2)

    height = TRAVEL_HEIGHT_M + style.hover_m
    throw_away = [
        # Lower, the fingers push against the floor of the bin.
        *_grasp(style, lambda v: v.trash + 0.005 * UP, square, 0.02),
        Step(lambda v: _at_height(v.target_bin, height), forward, True, held=trash),
        *_put(SECOND, trash, lambda v: v.trash_bin + 0.12 * UP, forward, trash, height),
    ]
    take_over = [
        Step(
            lambda _: WAITING,
            forward,
            False,
            near=0.05,
            until=lambda v: v.held_by(FIRST) and bool(np.linalg.norm(half(v) - MEETING) < 0.03),
        ),
        Step(lambda v: half(v) + 0.1 * UP, along, False),
        Step(lambda v: half(v) + 0.04 * UP, along, False, speed=0.6),
        Step(grip, along, False, near=0.015, speed=0.5, patience=100),
        Step(grip, along, True, near=LOST_M, until=lambda v: v.held_by(SECOND), patience=30),
        Step(grip, along, True, near=LOST_M, wait=4, until=lambda v: not v.held_by(FIRST)),
        Step(half, along, True, near=LOST_M, until=lambda v: v.hands[FIRST][2] > LEAVING[2] - 0.04),
        Step(lambda _: RAISED, along, True, near=0.03, held=handle),
        *_put(SECOND, handle, lambda v: v.target_bin + 0.13 * UP, aside, lambda v: v.middle, RAISED[2]),
    ]
    return [Job(throw_away, View.thrown_away), Job(take_over)]


def _grasp(style: ArmStyle, thing: Place, yaw: Angle, near: float) -> list[Step]:
    """Return the way-points that end with the hand closed about a thing, ``near`` metres from it at most."""
    height = TRAVEL_HEIGHT_M + style.hover_m

    def aim(view: View) -> FloatArray:
        return thing(view) + 0.5 * style.aim

    return [
        Step(lambda v: _at_height(aim(v), height), yaw, False),
        # Twice, since a hand drifts to the side while it comes down.
        Step(lambda v: aim(v) + 0.04 * UP, yaw, False, speed=0.6),
        Step(aim, yaw, False, near=0.012, speed=0.5),
        Step(aim, yaw, True, near=near, wait=4 + style.pause, patience=40),
        Step(aim, yaw, True, near=near, patience=10),
    ]


def _put(arm: int, held: Place, place: Place, yaw: Angle, thing: Place, height: float) -> list[Step]:
    """Return the way-points that move a thing to its place, and the hand up again."""

    def move(view: View) -> FloatArray:
        return view.hands[arm] + place(view) - thing(view)

    return [
        Step(lambda v: _at_height(move(v), height), yaw, True, held=held),
        Step(move, yaw, True, held=held, speed=0.6),
        Step(lambda v: v.hands[arm], yaw, False, until=lambda v: v.openings[arm] > OPEN_M),
        Step(lambda v: _at_height(place(v), height), yaw, False),
    ]


def _at_height(pos: FloatArray, height: float) -> FloatArray:
    return np.array([pos[0], pos[1], height])


def _always(angle: float) -> Angle:
    return lambda _: angle


def _yaw(view: View, arm: int) -> float:
    forward = view.turned[arm].apply([1.0, 0.0, 0.0])
    return float(np.arctan2(forward[1], forward[0]))


def _nearest(angle: float, period: float, to: float) -> float:
    """Return the angle, plus a multiple of the period, that is nearest to another."""
    return to + (angle - to + period / 2) % period - period / 2
