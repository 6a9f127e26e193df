"""A tiny real experiment on Lift: seconds, but every part of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

TINY = {
    "task": "robomimic/lift",
    "num_iterations": 4,
    "env": {"max_episode_steps": 20},
    "actor": {"hidden_dim": 16},
    "pretrain": {"num_epochs": 5},
    "rl": {"minibatch_size": 50, "num_epochs": 2, "critic_hidden_dim": 16},
    "interleave": {"every": 2, "il_steps": 3, "relation_every": 1},
    "rollout": {"num_envs": 4, "num_decisions": 5},
    "evaluation": {"every": 2, "num_episodes": 4, "final_episodes": 6, "num_envs": 4},
    "checkpoint": {"every": 2},
    "tracking": {"trackers": ["jsonl"]},
    "compute": {"device": "cpu"},
    "video": False,
}


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path
