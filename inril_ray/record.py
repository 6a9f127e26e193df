"""Record demonstrations: a demonstrator in a simulator, written in the format that the field uses for the task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inril_ray import __version__, envs
from inril_ray.config import build, to_dict
from inril_ray.demos import DEMONSTRATORS
from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.demos.episodes import RecordedEpisode
from inril_ray.demos.formats import d4rl_hdf5, furniture_pickle, minari, resip_zarr, robomimic_hdf5
from inril_ray.envs.base import EnvConfig
from inril_ray.registry import resolve
from inril_ray.types import InrilError

FORMATS = {
    "robomimic": "robomimic HDF5",
    "fetch": "Minari",
    "adroit": "Minari",
    "gym": "D4RL HDF5",
    "furniture": "ResiP zarr or FurnitureBench pickles",
}
"""Suite to the format that its demonstrations come in."""


def can_hold_out(task: str) -> bool:
    """Tell whether the format of a task's demonstrations can mark episodes that are kept out of training."""
    return task.startswith("robomimic/")


def record(
    task: str,
    path: Path,
    *,
    num_demos: int,
    seed: int,
    held_out: int = 0,
    quality: Mapping[str, Any] | None = None,
    num_envs: int = 10,
    max_steps: int | None = None,
    tail_steps: int = 5,
    config: EnvConfig | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Record episodes of a demonstrator and write them in the format of the task's suite.

    Args:
        task: name in the task table; needs a demonstrator.
        path: file to write, a directory for Minari and for furniture, whose name ends in ``.zarr`` for ResiP's layout;
            nothing may be there.
        num_demos: episodes to keep, successful ones only unless failures are part of the demonstrations.
        seed: seed of initial states and demonstrator.
        held_out: how many of them form the ``valid`` mask; robomimic HDF5 only.
        quality: settings of the demonstrator.
        num_envs: environments stepped together, no more than ``num_demos``; part of what fixes the file.
        max_steps: give an episode up, or end it, after so many control steps; None takes the task's limit.
        tail_steps: steps kept after the first success, as in teleoperated data; they may go beyond ``max_steps``.
        config: options of the environments, such as rules and backend; the file says which. Not those that judge or end
            an episode.
        say: takes progress.

    Returns:
        ``demonstrator_success_rate``, ``mean_length``, ``mean_return``, ``episodes_tried``.

    Raises:
        InrilError: no demonstrator for the task or these options, the file exists, or fewer than one in twenty episodes
            succeed.
    """
    demonstrator: type[Demonstrator] = resolve(DEMONSTRATORS, task, "demonstrator (by task)")
    suite = task.split("/")[0]
    least_values = (("num_demos (--num)", num_demos, 1), ("seed", seed, 0), ("max_steps", max_steps, 1))
    for name, value, least in least_values:
        if value is not None and value < least:
            raise InrilError(f"{name} = {value}: must be at least {least}.")
    if not 0 <= held_out < num_demos:
        raise InrilError(f"held_out = {held_out}: must be at least 0 and less than num_demos = {num_demos}.")
    if held_out and not can_hold_out(task):
        raise InrilError(f"held_out = {held_out}: {FORMATS[suite]}, the format of {task}, has no mask for them; use 0.")
    if path.exists():
        raise InrilError(f"{path} exists; demonstrations are not overwritten. Give another name, or delete it.")
    if suite == "furniture" and path.suffix == ".zarr":
        resip_zarr.zarr_package()
    path.parent.mkdir(parents=True, exist_ok=True)  # before the work, which may take minutes
    num_envs = min(num_envs, num_demos)
    style = build(demonstrator.Config, quality or {}, "quality")
    options = config or EnvConfig()
    _check_options(task, demonstrator, options)
    limit = max_steps or envs.spec(task, options).max_episode_steps
    unlimited = dataclasses.replace(options, max_episode_steps=10 * limit)  # what follows a late success is kept
    env = envs.make(task, num_envs=num_envs, seed=seed, purpose="demos", config=unlimited)
    new_actor = _actor_maker(demonstrator, style, env, task, seed, options, say)
    collected = _Collection(env, new_actor, limit, tail_steps, demonstrator.keeps_failures)
    kept, tried = collected.until(num_demos)
    has_success = kept[0].success is not None
    rate = len(kept) / max(tried, 1)
    if demonstrator.keeps_failures:
        rate = sum(bool(e.success[-1]) for e in kept if e.success is not None) / len(kept)
    source = {
        "kind": demonstrator.source,
        "made_by": f"inril_ray {__version__}",
        "seed": seed,
        "num_envs": num_envs,
        "quality": to_dict(style),
        "env": _described(task, options, limit),
        **({"success_rate": round(rate, 4)} if has_success else {}),
        **env.versions(),
    }
    _write(suite, path, kept, env, source, held_out, limit)
    return {
        **({"demonstrator_success_rate": rate} if has_success else {}),
        "mean_length": float(np.mean([len(e.actions) for e in kept])),
        "mean_return": float(np.mean([e.rewards.sum() for e in kept])),
        "episodes_tried": float(tried),
    }


def _check_options(task: str, demonstrator: type[Demonstrator], options: EnvConfig) -> None:
    """Refuse options that have no meaning in a recording, and rules that the demonstrator would misread."""
    for name, default in (("terminate_on_success", False), ("success", None), ("max_episode_steps", None)):
        if getattr(options, name) != default:
            raise InrilError(
                f"env.{name} = {getattr(options, name)!r}: recorded episodes end tail_steps after their first success, "
                "or after --max-steps; leave it out."
            )
    if options.furniture.pad_obs:
        raise InrilError("env.furniture.pad_obs = True: recordings hold no padding; it is added where they are read.")
    rules = envs.entry(task).chosen_semantics(options)
    if demonstrator.reads is not None and rules not in demonstrator.reads:
        raise InrilError(
            f"env.semantics = {rules!r}: the script of {task} reads observations in the order of "
            f"{' or '.join(demonstrator.reads)} only."
        )


def _described(task: str, options: EnvConfig, limit: int) -> dict[str, Any]:
    """Return how the environments were set up, for the records: what was chosen, with defaults filled in."""
    entry, spec = envs.entry(task), envs.spec(task, options)
    return {
        "task": task,
        "backend": entry.chosen_backend(options),
        **({"semantics": spec.semantics} if spec.semantics else {}),
        "control_hz": spec.control_hz,
        "action_range": [spec.action_low, spec.action_high],
        "max_steps": limit,
        **({"furniture": to_dict(options.furniture)} if task.startswith("furniture/") else {}),
    }


def _actor_maker(
    demonstrator: Any, style: Any, env: Any, task: str, seed: int, options: EnvConfig, say: Callable[[str], None]
) -> Callable[[int], Demonstrator]:
    """Return what makes the demonstrator of the episode that an environment is in."""
    trained = demonstrator.train(task, style, seed, say, options) if demonstrator.source == "rl" else None

    def new_actor(i: int) -> Demonstrator:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i, int(env.episode[i]))))
        if demonstrator.source == "planner":
            return demonstrator(rng, style, partial(env.predict, i))
        return demonstrator(rng, style) if trained is None else demonstrator(rng, style, trained)

    return new_actor


class _Collection:
    """Episodes in the order in which they started; in the order of success, quick ones would be favoured."""

    def __init__(
        self, env: Any, new_actor: Callable[[int], Demonstrator], limit: int, tail_steps: int, keep_failures: bool
    ) -> None:
        self._env, self._new_actor = env, new_actor
        self._limit, self._tail_steps, self._keep_failures = limit, tail_steps, keep_failures
        self._results: dict[int, RecordedEpisode | None] = {}

    def until(self, num_demos: int) -> tuple[list[RecordedEpisode], int]:
        """Return so many episodes, and how many were tried for them."""
        env = self._env
        everyone = np.ones(env.num_envs, bool)
        obs = env.reset_envs(everyone)
        actors = [self._new_actor(i) for i in range(env.num_envs)]
        attempt, next_attempt = np.arange(env.num_envs), env.num_envs
        steps: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
        while True:
            settled = range(int(attempt.min()))
            good = [k for k in settled if self._results[k] is not None]
            if len(good) >= num_demos:
                kept = [self._results[k] for k in good[:num_demos]]
                return [e for e in kept if e is not None], good[num_demos - 1] + 1
            if len(settled) >= 40 and len(good) < len(settled) / 20:
                raise InrilError(
                    f"The demonstrator succeeded in {len(good)} of {len(settled)} episodes; raise its quality."
                )
            states = [env.sim_state(i) if hasattr(env, "sim_state") else None for i in range(env.num_envs)]
            actions = np.stack([actor.act(o) for actor, o in zip(actors, obs, strict=True)])
            outcome, _, broken = env.advance_guarded(actions, everyone)
            over = np.zeros(env.num_envs, bool)
            for i in range(env.num_envs):
                success = bool(outcome.success[i])
                steps[i].append((obs[i], outcome.obs[i], actions[i], outcome.reward[i], success, states[i]))
                over[i] = self._settle(i, int(attempt[i]), steps[i], bool(outcome.terminated[i]), bool(broken[i]))
            obs = outcome.obs
            if over.any():
                obs = env.reset_envs(over)
                for i in np.flatnonzero(over).tolist():
                    attempt[i], next_attempt = next_attempt, next_attempt + 1
                    actors[i], steps[i] = self._new_actor(i), []

    def _settle(self, i: int, attempt: int, steps: list[tuple[Any, ...]], terminated: bool, broken: bool) -> bool:
        """Tell whether the episode of an environment is over, and if it is, keep it or give it up."""
        first = next((t for t, s in enumerate(steps) if s[4]), None)
        full = terminated or len(steps) >= self._limit
        if self._keep_failures:
            over, wanted = full, True
        else:
            wanted = first is not None and len(steps) > first + self._tail_steps
            over = wanted or (first is None and full)
        if over or broken:
            self._results[attempt] = self._episode(i, steps, terminated) if wanted and not broken else None
        return over or broken

    def _episode(self, i: int, steps: list[tuple[Any, ...]], terminated: bool) -> RecordedEpisode:
        obs, next_obs, actions, rewards, success, states = zip(*steps, strict=True)
        has_success = self._env.task_spec.score_range is None  # tasks that are scored by return have no success
        return RecordedEpisode(
            obs=np.stack(obs),
            next_obs=np.stack(next_obs),
            actions=np.stack(actions),
            rewards=np.stack(rewards),
            terminated=terminated,
            success=np.array(success) if has_success else None,
            states=None if states[0] is None else np.stack(states),
            model_xml=self._env.model_xml(i) if hasattr(self._env, "model_xml") else None,
        )


def _write(
    suite: str, path: Path, kept: list[RecordedEpisode], env: Any, source: dict[str, Any], held_out: int, limit: int
) -> None:
    spec = env.task_spec
    if suite == "robomimic":
        entry: Any = envs.entry(spec.task)
        described = json.dumps(entry.env_args(env.versions()["robosuite"], spec.semantics), indent=4)
        args = {"env_args": described, "obs_keys": spec.obs_keys, "num_held_out": held_out}
        robomimic_hdf5.write(path, kept, source=source, **args)
    elif suite == "gym":
        d4rl_hdf5.write(path, kept, env_name=spec.recorded_as, semantics=spec.semantics, source=source)
    elif suite == "furniture" and path.suffix == ".zarr":
        resip_zarr.write(path, kept, task=spec.recorded_as, source=source)
    elif suite == "furniture":
        furniture_pickle.write(path, kept, furniture=spec.recorded_as, source=source)
    else:
        minari.write(
            path,
            kept,
            env_spec=_gymnasium_spec(env.env_id, limit),
            obs_keys=spec.obs_keys,
            action_range=(spec.action_low, spec.action_high),
            source=source,
            dataset_id=f"{spec.task.replace('_', '-')}/{source['kind']}-v0",
        )


def _gymnasium_spec(env_id: str, max_episode_steps: int) -> str:
    import gymnasium

    return dataclasses.replace(gymnasium.spec(env_id), max_episode_steps=max_episode_steps).to_json()
