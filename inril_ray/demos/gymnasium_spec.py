"""What gymnasium's descriptions of an environment and of its actions state about the meaning of recorded numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from inril_ray.types import UNSTATED, Interface

HARMLESS = re.compile(
    r"reward_type=|render|width=|height=|camera|default_camera|max_geom|visual|max_episode_steps=|reset_noise_scale=|"
    r"TimeLimit|OrderEnforcing|PassiveEnvChecker|RecordEpisodeStatistics|RecordVideo|DataCollector|Autoreset"
)
"""Options and wrappers of gymnasium that leave actions, observations and rewards as they are."""
PAY = re.compile(r"_weight=|_reward=|_reward_|contact_cost|\w*Reward$")
"""Those that change rewards alone."""
MEANING = re.compile(
    r"frame_skip=|xml_file=|model_path=|obs_type=|_observation=|include_|control|"
    r"\w*(Action|Observation|Frame|Stack|Skip|Repeat|Normalize|Rescale|Flatten|Filter|Delay)\w*(?<!Reward)$"
)
"""Those that change actions or observations."""


def interface(env_spec: Mapping[str, Any], action_space: Mapping[str, Any]) -> Interface:
    """Return what is stated about actions and rewards.

    Args:
        env_spec: gymnasium's ``EnvSpec`` as plain data; empty where there is none.
        action_space: Minari's form of the space; empty where there is none.
    """
    box = action_space.get("type") == "Box"
    low, high = (tuple(map(float, action_space.get(key) or ())) if box else () for key in ("low", "high"))
    bounded = any(math.isfinite(x) for x in (*low, *high))
    bounds: dict[str, Any] = {"action_low": low, "action_high": high} if bounded else {}
    if not env_spec:
        return replace(UNSTATED, **bounds)
    name, kind, changes = str(env_spec.get("id", "")), _options(env_spec).get("reward_type"), _changes(env_spec)
    words = [word for word in ("sparse", "dense") if kind == word or word.capitalize() in name]
    paid = [change for change in changes if PAY.search(change)]
    return Interface(
        **bounds,
        rewards=f"with {', '.join(paid)}" if paid else next(iter(words), None),
        changed_by=tuple(change for change in changes if MEANING.search(change)),
    )


def warnings(env_spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a warning of options and wrappers that may or may not change what numbers mean."""
    others = [c for c in _changes(env_spec) if not MEANING.search(c) and not PAY.search(c)]
    told = "was recorded with {}: whether that changes what its numbers mean is not known here."
    return (told.format(", ".join(others)),) if others else ()


def _options(env_spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return env_spec.get("kwargs") or {}


def _changes(env_spec: Mapping[str, Any]) -> list[str]:
    """Return the options and wrappers by which the environment differs from the registered one."""
    options = [f"{name}={value}" for name, value in _options(env_spec).items()]
    wrappers = [str(w.get("name", "")) for w in env_spec.get("additional_wrappers") or () if isinstance(w, dict)]
    return [change for change in (*options, *wrappers) if not HARMLESS.match(change)]
