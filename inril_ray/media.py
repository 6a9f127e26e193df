"""Pictures of one evaluation episode before and after fine-tuning."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inril_ray import envs
from inril_ray.checkpoint import replace_text
from inril_ray.envs.base import PURPOSES
from inril_ray.envs.base_actions import BaseActions
from inril_ray.envs.chunking import ChunkedEnv
from inril_ray.experiment import ExperimentConfig, acting_with, task_spec
from inril_ray.policies.base import Policy
from inril_ray.rollout import ActionNoise, decision_env
from inril_ray.types import EpisodeStats


def choose_episode(before: Sequence[float], after: Sequence[float], num_envs: int) -> int:
    """Return the evaluation episode that gained most: one that failed before and succeeded after, if there is one.

    Only the first round is considered, whose noise streams can be begun anew.
    """
    gains = [a - b for b, a in zip(before, after, strict=False)][:num_envs]
    return gains.index(max(gains))


def film(config: ExperimentConfig, weights: Mapping[str, Any], episode: int) -> tuple[list[np.ndarray], str]:
    """Run one evaluation episode of a policy and draw every second control step.

    Returns:
        frames [height, width, 3], and how the episode ended: ``success``, ``failure`` or ``return 1130``.

    Raises:
        InrilError: no OpenGL library, or the simulator has no pictures.
    """
    spec, policy = task_spec(config), acting_with(config, weights)
    sim = envs.make(config.task, num_envs=1, seed=config.seed, config=config.env, purpose="eval", first_env=episode)
    frames: list[np.ndarray] = []
    advance = sim.advance

    def filmed(actions: np.ndarray, active: np.ndarray) -> Any:
        outcome = advance(actions, active)
        if sim.elapsed[0] % 2 == 0:
            frames.append(sim.render_env(0))
        return outcome

    sim.advance = filmed  # type: ignore[method-assign]
    ended = _play(decision_env(sim, policy), policy, config.seed, episode)
    sim.close()
    if spec.score_range is not None:
        return frames, f"return {ended.returns[0]:.0f}"
    return frames, "success" if ended.success[0] else "failure"


@torch.no_grad()
def _play(env: ChunkedEnv | BaseActions, policy: Policy, seed: int, episode: int) -> EpisodeStats:
    noise = ActionNoise(seed, PURPOSES.index("eval"), [episode], policy.noise_shape)
    obs = env.reset()
    while True:
        action = policy.act(torch.from_numpy(obs), noise.draw(), deterministic=True)
        obs = env.step(action.chunk.numpy()).obs
        ended = env.pop_episodes()
        if len(ended.success):
            return ended


def write_before_and_after(
    run_dir: Path,
    config: ExperimentConfig,
    read_base: Callable[[], Mapping[str, Any]],
    final: Mapping[str, Any],
    episode: int,
) -> str:
    """Write ``media/before.mp4``, ``after.mp4`` and ``media.json`` into a run directory; return a sentence.

    Beside each video lies its last frame as PNG, which reports show until it is played: how the episode ended.
    Where there can be no pictures, ``media.json`` says why, those of a former end are removed, and the run goes on.
    """
    folder = run_dir / "media"
    folder.mkdir(exist_ok=True)
    record: dict[str, Any] = {"episode": episode}
    try:
        for name, weights in (("before", read_base()), ("after", final)):
            frames, record[name] = film(config, weights, episode)
            write_video(folder / f"{name}.mp4", frames, fps=config_fps(config))
            write_picture(folder / f"{name}.png", frames[-1])
        record["note"] = (
            f"Evaluation episode {episode}: {record['before']} before, {record['after']} after fine-tuning."
        )
    except Exception as error:  # of a renderer or an encoder: the run is complete without
        reason = str(error).strip().splitlines() or [type(error).__name__]
        record = {"error": f"No pictures: {reason[0]}"}
        for name in ("before", "after"):
            for end in ("mp4", "png"):
                (folder / f"{name}.{end}").unlink(missing_ok=True)
    replace_text(folder / "media.json", json.dumps(record))
    return str(record.get("note") or record["error"])


def config_fps(config: ExperimentConfig) -> float:
    """Return the frame rate at which every second control step plays in real time."""
    return task_spec(config).control_hz / 2


def write_picture(path: Path, frame: np.ndarray) -> None:
    """Write a frame [height, width, 3] as PNG, a file that appears when it is complete."""
    import imageio.v2 as imageio

    partial = path.with_name(f".{path.stem}.partial.png")
    try:
        imageio.imwrite(partial, frame)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_video(path: Path, frames: list[np.ndarray], fps: float) -> None:
    """Write frames [height, width, 3] as MP4, a file that appears when it is complete."""
    import imageio.v2 as imageio

    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        with imageio.get_writer(partial, fps=fps, codec="libx264", quality=7, macro_block_size=16) as writer:
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
