"""The base policy is the cloned one, acting alone: critics that have learned nothing have no say in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray.algorithms import ALGORITHMS
from inril_ray.algorithms.off_policy import Choosing
from inril_ray.backend import LocalBackend
from inril_ray.card import write_card
from inril_ray.experiment import ExperimentConfig, WorkerParts, acting_with, critics_choose, load_config
from inril_ray.report import write_run_report
from inril_ray.run import run
from inril_ray.run_dir import read_acting, read_pretrained
from inril_ray.session import BEST
from inril_ray.tracking.jsonl import read_metrics
from tests.fakes import ACTOR_OF, POLICY_OF, TINY_POLICY, TINY_RL, fake_demos, register_fake_task, tiny_policy

CHOOSING = ("ibrl", "idql")


def config_of(algorithm: str, task: str, seed: int = 0, **settings: Any) -> ExperimentConfig:
    kind = POLICY_OF[algorithm]
    tiny = {
        "task": task,
        "algorithm": algorithm,
        "policy": kind,
        "seed": seed,
        "num_iterations": 2,
        "actor": {**TINY_POLICY[kind], **ACTOR_OF.get(algorithm, {})},
        "rl": TINY_RL[algorithm],
        "separation": "network" if algorithm == "residual_ppo" else "upgrad",
        "interleave": {"every": 1, "il_steps": 1, "il_batch_size": 8},
        "pretrain": {"num_epochs": 2, "warmup_epochs": 1, "batch_size": 16, "ema_every": 1},
        "rollout": {"num_envs": 4, "num_decisions": 4},
        "evaluation": {"every": 0, "final_episodes": 12, "num_envs": 6},
        "tracking": {"trackers": ["jsonl"]},
        "video": False,
    }
    return load_config([tiny, settings])


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> str:
    return register_fake_task(monkeypatch)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_critics_choose_in_these_algorithms_and_no_others(algorithm: str, task: str) -> None:
    config = config_of(algorithm, task)
    acting = WorkerParts(config, 0, 1).policy
    assert critics_choose(config) == isinstance(acting, Choosing) == (algorithm in CHOOSING)
    assert (acting.alone is acting) == (algorithm not in CHOOSING)


@pytest.mark.parametrize("algorithm", CHOOSING)
def test_one_clone_has_one_base_score_whatever_the_critics(algorithm: str, task: str) -> None:
    """Two seeds, the same evaluation episodes: critics that nothing has taught differ, the base policy doesn't."""
    clone = tiny_policy(POLICY_OF[algorithm], **ACTOR_OF.get(algorithm, {})).state_dict()
    base, chosen = [], []
    for seed in (0, 1):
        backend = LocalBackend(config_of(algorithm, task, seed), fake_demos())
        backend.load_policy(clone)
        backend.worker.config = dataclasses.replace(backend.worker.config, seed=7)  # of the evaluation
        base.append(backend.evaluate(24, alone=True))
        # Opposite opinions, since untrained critics of two seeds may agree by chance.
        critics: Any = backend.worker.policy.critics
        critics.forward = lambda _, chunks, sign=1 - 2 * seed: sign * chunks.flatten(1).sum(dim=1)[None]
        if algorithm == "ibrl":  # its two proposals are the same until one of them learns
            for parameter in backend.worker.policy.cloned.actor.parameters():  # type: ignore[union-attr]
                parameter.data.mul_(-3.0)
        chosen.append(backend.evaluate(24))
    for name, first in vars(base[0]).items():
        np.testing.assert_array_equal(first, getattr(base[1], name), err_msg=name)
    assert not np.array_equal(chosen[0].returns, chosen[1].returns), "the critics have no say: shows nothing"


def test_base_and_final_evaluation_share_their_noise(task: str) -> None:
    """Where critics prefer the first proposal, IDQL does what the base policy does, step by step."""
    acting = WorkerParts(config_of("idql", task), 0, 1).policy
    obs, noise = torch.zeros(5, 3), torch.randn(5, *acting.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in acting.critics.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    assert acting.alone.noise_shape == acting.noise_shape
    torch.testing.assert_close(
        acting.alone.act(obs, noise, deterministic=True).chunk, acting.act(obs, noise, deterministic=True).chunk
    )


@pytest.mark.parametrize("algorithm", ["dppo", "idql"])
def test_what_critics_make_of_the_base_is_another_number(algorithm: str, task: str, tmp_path: Path) -> None:
    config = config_of(algorithm, task, guard={"action": "rollback"})
    lines: list[str] = []
    summary = run(config, tmp_path, LocalBackend, demos=fake_demos(), say=lines.append)
    first = read_metrics(tmp_path)[0]
    chosen = algorithm == "idql"
    assert ("untrained" in summary) == ("untrained_score" in first) == chosen
    assert any("critics choosing that have learned nothing yet" in line for line in lines) == chosen
    assert first["score"] == summary["base"]["score"]
    if chosen:
        assert first["untrained_score"] == summary["untrained"]["score"]
    assert json.loads((tmp_path / "summary.json").read_text())["base"] == summary["base"]
    card = write_card(tmp_path / "card", tmp_path, evaluations={}, film=False) / "README.md"
    for text in (card.read_text(), write_run_report(tmp_path).read_text()):
        assert ("critics choosing that have learned nothing yet" in text) == chosen
        assert "An episode is a success if the task is solved after any of its control steps" in text
    # What is read back to be evaluated or filmed acts as it did.
    parts = WorkerParts(config, 0, 1)
    parts.policy = acting_with(config, read_pretrained(tmp_path))
    assert parts.evaluate(12).success.astype(int).tolist() == summary["base"]["outcomes"]
    parts.policy = acting_with(config, read_acting(tmp_path, "checkpoints"))
    assert isinstance(parts.policy, Choosing) == chosen
    assert parts.evaluate(12).success.astype(int).tolist() == summary["final"]["outcomes"]
    if summary["best"]["iteration"] == 0:
        kept = read_acting(tmp_path, BEST)
        parts.policy = acting_with(config, kept)
        assert parts.evaluate(12).success.astype(int).tolist() == summary["best"]["outcomes"]
