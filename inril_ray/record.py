"""Record demonstrations: a demonstrator in a simulator, written in robomimic's own format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray import __version__, envs
from inril_ray.config import build, to_dict
from inril_ray.demos import DEMONSTRATORS
from inril_ray.demos.formats.robomimic_hdf5 import RecordedEpisode, write
from inril_ray.envs.base import EnvConfig
from inril_ray.registry import resolve
from inril_ray.types import InrilError


def record(
    task: str,
    path: Path,
    *,
    num_demos: int,
    seed: int,
    held_out: int = 1,
    quality: Mapping[str, Any] | None = None,
    num_envs: int = 10,
    max_steps: int = 200,
    tail_steps: int = 5,
) -> dict[str, float]:
    """Record successful scripted episodes and write them as robomimic HDF5.

    Args:
        task: name in the task table; needs a demonstrator.
        path: file to write.
        num_demos: successful episodes to keep.
        seed: seed of initial states and demonstrator.
        held_out: how many of them form the ``valid`` mask.
        quality: settings of the demonstrator.
        num_envs: environments stepped together; part of what fixes the file.
        max_steps: give an episode up after so many control steps.
        tail_steps: steps kept after the first success, as in teleoperated data.

    Returns:
        ``demonstrator_success_rate``, ``mean_length``, ``episodes_tried``.

    Raises:
        InrilError: no demonstrator for the task, or fewer than one in twenty episodes succeed.
    """
    demonstrator = resolve(DEMONSTRATORS, task, "scripted demonstrator (by task)")
    if not 0 <= held_out < num_demos:
        raise InrilError(f"held_out = {held_out}: must be at least 0 and less than num_demos = {num_demos}.")
    style = build(demonstrator.Config, quality or {}, "quality")
    env = envs.make(
        task, num_envs=num_envs, seed=seed, purpose="demos", config=EnvConfig(max_episode_steps=10 * max_steps)
    )
    everyone = np.ones(num_envs, bool)
    obs = env.reset_envs(everyone)

    def new_actor(i: int) -> Any:
        key = (i, int(env.episode[i]))
        return demonstrator(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)), style)

    # Episodes are kept in the order in which they started; in the order of success, quick ones would be favoured.
    actors = [new_actor(i) for i in range(num_envs)]
    attempt, next_attempt = np.arange(num_envs), num_envs
    results: dict[int, RecordedEpisode | None] = {}
    steps: list[list[tuple[Any, ...]]] = [[] for _ in range(num_envs)]
    while True:
        settled = [results[k] for k in range(int(attempt.min()))]
        kept = [episode for episode in settled if episode is not None]
        if len(kept) >= num_demos:
            break
        if len(settled) >= 40 and len(kept) < len(settled) / 20:
            raise InrilError(
                f"The demonstrator succeeded in {len(kept)} of {len(settled)} episodes; raise its quality."
            )
        states = [env.sim_state(i) for i in range(num_envs)]  # type: ignore[attr-defined]
        actions = np.stack([actor.act(o) for actor, o in zip(actors, obs, strict=True)])
        outcome, _, _ = env.advance_guarded(actions, everyone)
        over = np.zeros(num_envs, bool)
        for i in range(num_envs):
            steps[i].append((obs[i], outcome.obs[i], actions[i], outcome.reward[i], states[i]))
            first = next((t for t, s in enumerate(steps[i]) if s[3] > 0), None)
            success = first is not None and len(steps[i]) > first + tail_steps
            over[i] = success or (first is None and len(steps[i]) >= max_steps)
            if over[i]:
                results[int(attempt[i])] = _episode(steps[i], env.model_xml(i)) if success else None  # type: ignore[attr-defined]
        obs = outcome.obs
        if over.any():
            obs = env.reset_envs(over)
            for i in np.flatnonzero(over).tolist():
                attempt[i], next_attempt = next_attempt, next_attempt + 1
                actors[i], steps[i] = new_actor(i), []
    tried = len(settled)
    kept = kept[:num_demos]
    rate = len(kept) / max(tried, 1)
    source = {
        "kind": "scripted",
        "made_by": f"inril_ray {__version__}",
        "seed": seed,
        "num_envs": num_envs,
        "quality": to_dict(style),
        "success_rate": round(rate, 4),
        **env.versions(),
    }
    write(
        path,
        kept,
        env_args=env.env_args(),  # type: ignore[attr-defined]
        obs_keys=env.task_spec.obs_keys,
        source=source,
        num_held_out=held_out,
    )
    return {
        "demonstrator_success_rate": rate,
        "mean_length": float(np.mean([len(e.actions) for e in kept])),
        "episodes_tried": float(tried),
    }


def _episode(steps: list[tuple[Any, ...]], model_xml: str) -> RecordedEpisode:
    obs, next_obs, actions, rewards, states = (np.stack(column) for column in zip(*steps, strict=True))
    return RecordedEpisode(
        obs=obs, next_obs=next_obs, actions=actions, rewards=rewards, states=states, model_xml=model_xml
    )
