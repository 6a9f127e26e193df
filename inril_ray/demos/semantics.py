"""Which rules a recording follows: whether a task follows the same, and whether the recorded numbers do.

Releases of a simulator differ silently: the same shapes, other numbers. So every data set states its rules, a task
compares them with its own, and where observations contain one thing twice they are recomputed. The rules of robosuite
were measured by stepping 1.4.1 and 1.5.2 side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inril_ray.demos.episodes import DemoError, Episode, Expectation, FileInfo
from inril_ray.demos.interface import check_interface
from inril_ray.types import FloatArray

ROBOSUITE_RULES = (
    "the gripper's ramp (0.01 in each physics step, or 0.2 at once), the goal of an action without rotation (the old "
    "one, or the present orientation), the order of `object` in Can, Square and Transport, the age of the object's "
    "pose in the hand in Can and Square, the direction of the offset between hand and cube in Lift"
)
LOCOMOTION_RULES = "the friction of Walker2d's right foot, the healthy reward of the last step in Hopper and Walker2d"
RELEASES = {
    "v141": ("robosuite 1.4.1", ROBOSUITE_RULES),
    "v15": ("robosuite 1.5", ROBOSUITE_RULES),
    "v2": ("gym's v2 environments", LOCOMOTION_RULES),
    "v4": ("gymnasium's v4 environments", LOCOMOTION_RULES),
    "v5": ("gymnasium's v5 environments", LOCOMOTION_RULES),
}
"""Semantics to the release that has them and what differs between it and its neighbours."""
NEARLY_EQUAL = {("v2", "v4"): "recorded with MuJoCo 2.1 (v2): the same task as v4, but returns can differ slightly."}
"""(recorded, simulated) to the warning that comes with them."""

ORDER = "the order of `object`"
AGE = "the age of the object's pose in the relative pose"
DIRECTION = "the direction of the offset between hand and cube"
CHECKED = ("object", "robot0_eef_pos", "robot0_eef_quat")
"""Observations that contain one thing twice."""
TOLERANCE_M = 1e-3
"""Recordings agree with their own rules to 1e-7, and disagree with others by centimetres."""


def recordable(simulated: Sequence[str]) -> list[str]:
    """Return the rules that a recording may follow for a task that can simulate these."""
    return [*simulated, *(recorded for recorded, near in NEARLY_EQUAL if near in simulated)]


def check_task(path: Path, info: FileInfo, expectation: Expectation) -> tuple[str, ...]:
    """Compare what a file says about its environment with what a task simulates.

    Returns:
        Warnings.

    Raises:
        DemoError: another environment, other rules, or actions that mean something else.
    """
    warnings = []
    if expectation.env_name is not None:
        if not info.env_name:
            warnings.append(f"the file does not say which environment it is of; {expectation.env_name} was assumed.")
        elif _base_name(info.env_name) != _base_name(expectation.env_name):
            raise DemoError(
                path,
                f"was recorded in environment {info.env_name!r}, the task needs {expectation.env_name!r}.",
                field="env_name",
            )
    check_interface(path, info.stated, expectation.interface)
    recorded, simulated = info.semantics, expectation.semantics
    if recorded and simulated and recorded != simulated:
        if recorded not in RELEASES:
            raise DemoError(
                path,
                f"follows the rules of {recorded}, which are not known here; the task simulates {simulated}. Where the "
                f"two are known to be equal, `inril demos convert --semantics {simulated}` states them instead.",
                field="semantics",
            )
        if (recorded, simulated) not in NEARLY_EQUAL:
            release, rules = RELEASES[recorded]
            raise DemoError(
                path,
                f"was recorded with the rules of {release} ({recorded}), the task simulates {simulated}. These differ "
                f"silently in: {rules}. Pass --set env.semantics={recorded} where the task has it, or record again.",
                field="semantics",
            )
        warnings.append(NEARLY_EQUAL[recorded, simulated])
    elif simulated and not recorded:
        warnings.append(f"the file does not say which rules it follows; {simulated} was assumed.")
    return tuple(warnings)


def _base_name(env_name: str) -> str:
    """Return the name without the kind of reward, which is no part of what is imitated."""
    return re.sub(r"(Sparse|Dense)$", "", env_name)


def check_episodes(
    path: Path, info: FileInfo, episodes: Sequence[Episode], expectation: Expectation | None
) -> tuple[str, ...]:
    """Recompute what observations contain twice, in any format; see :func:`check_arrays`.

    Args:
        path: file, for the message.
        info: the rules that it states; where it states none, those of the task are taken.
        episodes: as they were read.
        expectation: of the task. With none, only the first episode is looked at.

    Returns:
        A warning, where no task needs the numbers and they contradict the rules.

    Raises:
        DemoError: they do, and a task needs them.
    """
    if expectation is None:
        try:
            check_arrays(path, "", info.env_name, info.semantics, _parts(episodes[0]))
        except DemoError as error:
            return (f"obs/object of the first episode {error.reason}",)
        return ()
    if expectation.recorded_semantics is not None:
        return ()
    env_name, stated = info.env_name or expectation.env_name or "", bool(info.semantics)
    for episode in episodes:
        semantics = info.semantics or expectation.semantics
        check_arrays(path, episode.name, env_name, semantics, _parts(episode), stated=stated)
    return ()


def _parts(episode: Episode) -> dict[str, FloatArray]:
    ends = np.cumsum([width for _, width in episode.keys])[:-1]
    return dict(zip([key for key, _ in episode.keys], np.split(episode.obs, ends, axis=1), strict=True))


def check_arrays(
    path: Path, episode: str, env_name: str, semantics: str, obs: Mapping[str, FloatArray], *, stated: bool = True
) -> None:
    """Recompute what robosuite's observations contain twice, under the rules of either release.

    Args:
        path: file, for the message.
        episode: name, for the message.
        env_name: robosuite's name of the environment; others than the benchmark's are not checked.
        semantics: the rules that it follows; others than robosuite's are not checked.
        obs: key to [L, width]; nothing is checked where one of ``CHECKED`` is missing.
        stated: the file says that it follows them.

    Raises:
        DemoError: the numbers follow other rules than the file says; names the rule that differs.
    """
    if env_name not in HYPOTHESES or semantics not in ("v141", "v15") or not all(key in obs for key in CHECKED):
        return
    width, hypotheses = HYPOTHESES[env_name]
    parts = [np.asarray(obs[key], np.float64) for key in CHECKED]
    if parts[0].shape[1] != width or len(parts[0]) < 2:
        return
    # The first step is left out: no earlier pose exists then, and robosuite 1.5 shows zeros.
    errors = [(rules, float(np.abs(error[1:]).max())) for rules, error in hypotheses(*parts)]
    own = next(error for rules, error in errors if set(rules.values()) == {semantics})
    if own <= TOLERANCE_M:
        return
    rules, best = min(errors, key=lambda x: x[1])
    if best > TOLERANCE_M:
        raise DemoError(
            path,
            f"follows the rules of no known release: the relative pose is off by {best:.3g} m at best.",
            episode=episode,
            field="obs/object",
        )
    different = " and ".join(rule for rule, release in rules.items() if release != semantics)
    claim = f"{'says' if stated else 'was taken to follow'} {semantics}"
    raise DemoError(
        path,
        f"{claim}, but its numbers have another release's rule for {different} (off by {own:.3g} m under {semantics}, "
        f"by {best:.1g} m otherwise). Where that is known to be right, `inril demos convert --semantics` states the "
        "rules instead of the file.",
        episode=episode,
        field="obs/object",
    )


Hypotheses = Iterator[tuple[dict[str, str], npt.NDArray[np.float64]]]
"""Pairs of (rule to the release that has it so, difference [L, 3] in metres)."""


def _lift(obj: FloatArray, hand: FloatArray, _quat: FloatArray) -> Hypotheses:
    yield {DIRECTION: "v15"}, obj[:, 7:10] - (obj[:, :3] - hand)
    yield {DIRECTION: "v141"}, obj[:, 7:10] - (hand - obj[:, :3])


def _one_object(obj: FloatArray, hand: FloatArray, quat: FloatArray) -> Hypotheses:
    for order, pos, seen in (("v141", obj[:, :3], obj[:, 7:10]), ("v15", obj[:, 7:10], obj[:, :3])):
        before = np.concatenate([pos[:1], pos[:-1]])
        for age, used in (("v141", pos), ("v15", before)):
            yield {ORDER: order, AGE: age}, seen - _from_hand(quat, used - hand)


def _transport(obj: FloatArray, hand: FloatArray, _quat: FloatArray) -> Hypotheses:
    offset = obj[:, :3] - hand
    yield {ORDER: "v141"}, obj[:, 27:30] - offset
    yield {ORDER: "v15"}, obj[:, 29:32] - offset


def _from_hand(quat: FloatArray, vectors: FloatArray) -> FloatArray:
    """Rotate vectors [L, 3] by the inverses of quaternions [L, 4] (x, y, z, w)."""
    axis, w = -quat[:, :3], quat[:, 3:]
    twice = 2.0 * np.cross(axis, vectors)
    return vectors + w * twice + np.cross(axis, twice)


HYPOTHESES = {
    "Lift": (10, _lift),
    "PickPlaceCan": (14, _one_object),
    "NutAssemblySquare": (14, _one_object),
    "TwoArmTransport": (41, _transport),
}
"""Environment to the width of ``object`` and the differences under every combination of rules."""
