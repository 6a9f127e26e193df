"""Where robosuite 1.4.1 and 1.5 differ silently: the same shapes, other numbers.

Measured by stepping robosuite 1.4.1 and 1.5.2 side by side; ``tests/golden/robosuite_141.npz`` holds what 1.4.1 did.
Another difference, the reference frame of the controller, is no choice here: it is always the world, which is what
1.4.1 does and what every published data set states.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How one release of robosuite acts and observes."""

    gripper_ramps: bool
    """The gripper command moves by 0.01 in each of the 25 physics steps, not by 0.2 at once."""
    zero_rotation_holds_goal: bool
    """An action without any rotation keeps the old orientation goal, instead of taking the present orientation."""
    relative_pose_lags: bool
    """Can and Square: the pose of the object in the hand is that of one control step ago, and zero after a reset."""
    absolute_pose_first: bool
    """Can and Square: the object's own pose comes before its pose in the hand; Transport: its two truth values come
    last, not before the vectors from the hands."""
    offset_points_to_hand: bool
    """Lift: the last three numbers of the observation are hand minus cube, not cube minus hand."""


RULES: dict[str, Rules] = {
    "v15": Rules(
        gripper_ramps=False,
        zero_rotation_holds_goal=False,
        relative_pose_lags=True,
        absolute_pose_first=False,
        offset_points_to_hand=False,
    ),
    "v141": Rules(
        gripper_ramps=True,
        zero_rotation_holds_goal=True,
        relative_pose_lags=False,
        absolute_pose_first=True,
        offset_points_to_hand=True,
    ),
}
