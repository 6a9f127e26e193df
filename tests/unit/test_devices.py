"""Every algorithm with every policy on a pretended GPU: clone, act, learn, imitate, save, load, go on.

``synchronisations.json`` is the budget: how often the host may wait for the device in one step of cloning, of
reinforcement and of imitation, and in a rollout of four decisions of four environments. ``python -m
tests.unit.test_devices`` writes it anew; do so where a change needs fewer, or say in the commit why it needs more.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inril_ray import checkpoint, pretrain
from inril_ray.algorithms import ALGORITHMS
from inril_ray.backend import LocalBackend
from inril_ray.distributed.weights import flatten, unflatten
from inril_ray.distributed.workers import _numpy
from inril_ray.experiment import ExperimentConfig, acting_device, load_acting, load_config, policy_weights
from inril_ray.registry import resolve
from inril_ray.replay import Transitions
from tests.fakes import ACTOR_OF, FAKE_TASK_NAME, TINY_POLICY, TINY_RL, fake_demos, register_fake_task
from tests.pretended_gpu import Fault, PretendedGpu

BUDGET = Path(__file__).parents[1] / "synchronisations.json"
PAIRS = [(a, p) for a in sorted(ALGORITHMS) for p in resolve(ALGORITHMS, a, "algorithm").policies]
MEASURED = 2
"""Steps of each imitation whose gradients are compared."""
UNET = {"widths": (8,), "ddim_steps": 2, "finetuned_steps": 2}
"""Smaller than that of other tests, since a step of it is a thousand operators."""
WHOLE_UNET_CHAIN = {"prediction_horizon": 4, "action_horizon": 4}


def config_of(algorithm: str, policy: str, *layers: dict[str, Any]) -> ExperimentConfig:
    actor = {**TINY_POLICY[policy], **ACTOR_OF.get(algorithm, {})}
    if policy == "residual_unet":
        actor["base"] = {**actor["base"], **UNET}
    if policy == "diffusion_unet":
        actor |= UNET | (WHOLE_UNET_CHAIN if algorithm in ACTOR_OF else {})
    tiny = {
        "task": FAKE_TASK_NAME,
        "algorithm": algorithm,
        "policy": policy,
        "separation": "network" if policy.startswith("residual") else "upgrad",
        "num_iterations": 3,
        "actor": actor,
        "rl": TINY_RL[algorithm],
        "pretrain": {"num_epochs": 1, "batch_size": 16, "warmup_epochs": 0},
        "interleave": {"every": 2, "il_steps": 3, "il_batch_size": 8, "relation_every": 1, "relation_pairs": MEASURED},
        "rollout": {"num_envs": 4, "num_decisions": 4},
        "evaluation": {"num_episodes": 2, "num_envs": 2},
    }
    return load_config([tiny, *layers])


class Ledger:
    """How often the host waited in each kind of step; the worst step counts."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu, self.worst = gpu, {}

    def note(self, step: str, before: Counter[str]) -> None:
        spent = self._gpu.kinds() - before
        self.worst[step] = self.worst.get(step, Counter()) | spent

    def steps(self, step: str, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items; what happens while one is made and until the next one is asked for is one step."""
        number, before = 0, self._gpu.kinds()
        for item in items:
            yield item
            measured = step == "imitation" and number < MEASURED
            self.note(f"{step}, measured" if measured else step, before)
            number, before = number + 1, self._gpu.kinds()

    def watch(self, backend: LocalBackend, patch: pytest.MonkeyPatch) -> None:
        learner, collector = backend.learner, backend.worker.collector
        batches, prepare, collect = pretrain.epoch_batches, learner.algorithm.prepare, collector.collect

        def prepared(*arguments: Any, **options: Any) -> Any:
            batch = prepare(*arguments, **options)
            updates, drawn = batch.updates, learner._il_batches
            object.__setattr__(batch, "updates", lambda *a: self.steps("reinforcement", updates(*a)))
            patch.setattr(learner, "_il_batches", lambda *a: self.steps("imitation", drawn(*a)), raising=False)
            return batch

        def collected(version: int) -> Any:
            before = self._gpu.kinds()
            rollout = collect(version)
            self.note("rollout", before)
            return rollout

        patch.setattr(pretrain, "epoch_batches", lambda *a: self.steps("cloning", batches(*a)))
        patch.setattr(learner.algorithm, "prepare", prepared)
        patch.setattr(collector, "collect", collected)


def ran(config: ExperimentConfig, folder: Path, patch: pytest.MonkeyPatch) -> tuple[LocalBackend, Ledger]:
    """Run all parts of a run on the pretended GPU that is there; check that it goes on from its checkpoint exactly."""
    gpu = PretendedGpu()
    with gpu:
        backend, ledger = LocalBackend(config, fake_demos()), Ledger(gpu)
        assert on_gpu(backend.worker.policy) == (acting_device(config).type == "cuda")
        ledger.watch(backend, patch)
        backend.pretrain()
        backend.iterate()
        assert len(backend.evaluate(2).success) == 2
        checkpoint.write(folder, 1, backend.state_dict(), 2)
        checkpoint.write(folder, 2, _numpy(backend.state_dict()), 2)  # as it comes from a learner on Ray
        other = LocalBackend(config, fake_demos())
        other.load_state_dict(checkpoint.read(checkpoint.newest(folder)))
        assert all(
            on_gpu(module) for module in (*backend.learner.modules().values(), *other.learner.modules().values())
        )
        acting = backend.learner.algorithm.acting
        vector = flatten(policy_weights(acting, everything=True))
        load_acting(other.worker.policy, unflatten(vector, policy_weights(other.worker.policy, everything=True)))
        backend.iterate()
        other.iterate()
        assert gpu.faults == []
        for one, two in zip(weights_of(backend), weights_of(other), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
    return backend, ledger


def on_gpu(module: torch.nn.Module) -> bool:
    kinds = {tensor.device.type for tensor in module.state_dict().values()}
    assert len(kinds) == 1
    return kinds == {"cuda"}


def weights_of(backend: LocalBackend) -> Iterator[torch.Tensor]:
    for module in (*backend.learner.modules().values(), backend.worker.policy):
        for tensor in module.state_dict().values():
            yield tensor.cpu()


def test_the_budget_is_of_every_pair() -> None:
    assert list(json.loads(BUDGET.read_text())) == [f"{a}/{p}" for a, p in PAIRS]


@pytest.mark.parametrize(("algorithm", "policy"), PAIRS, ids=["/".join(pair) for pair in PAIRS])
def test_a_run_on_a_gpu_mixes_no_devices_and_waits_no_more_than_budgeted(
    algorithm: str, policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register_fake_task(monkeypatch)
    _, ledger = ran(config_of(algorithm, policy), tmp_path, monkeypatch)
    exceeded = over(ledger, json.loads(BUDGET.read_text())[f"{algorithm}/{policy}"])
    assert not exceeded, f"more than {BUDGET.name} allows: {exceeded}"


def over(ledger: Ledger, budget: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    more = {step: dict(found - Counter(budget[step])) for step, found in ledger.worst.items()}
    return {step: kinds for step, kinds in more.items() if kinds}


VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "merged": ("dppo", "diffusion_mlp", {"interleave": {"phase": "merged"}}),
    "bc_reg of the base": ("dppo", "diffusion_mlp", {"schedule": "bc_reg", "interleave": {"bc_source": "base"}}),
    "il_only": ("ppo", "gaussian_mlp", {"schedule": "il_only", "interleave": {"il_steps": "epoch"}}),
    "distance from the base": ("ppo", "gaussian_mlp", {"guard": {"action": "warn", "kl_limit": 9.0}}),
    "cagrad": ("ppo", "gaussian_mlp", {"separation": "cagrad", "interleave": {"row_normalise": True}}),
    "naive": ("residual_ppo", "residual_gaussian", {"separation": "naive"}),
    "no cloning": ("ppo", "gaussian_mlp", {"pretrain": {"num_epochs": 0}}),
    "acting on the CPU": ("residual_ppo", "residual_mlp", {"compute": {"worker_gpu": 0}}),
    "critics that choose, on the CPU": ("idql", "diffusion_mlp", {"compute": {"worker_gpu": 0}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_else_learns_mixes_no_devices(variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_fake_task(monkeypatch)
    algorithm, policy, layer = VARIANTS[variant]
    ran(config_of(algorithm, policy, layer), tmp_path, monkeypatch)


# -- the test of the test ---------------------------------------------------------------------------------------------
def test_a_planted_mix_of_devices_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_fake_task(monkeypatch)
    inputs = pretrain.imitation_inputs
    monkeypatch.setattr(pretrain, "imitation_inputs", lambda batch, g, _: inputs(batch, g, torch.device("cpu")))
    with pytest.raises(Fault, match="on the CPU"):
        ran(config_of("ppo", "gaussian_mlp"), tmp_path, monkeypatch)


def test_a_planted_generator_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_fake_task(monkeypatch)

    def noise(self: Transitions, stream: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator(stream), device=self.obs.device)

    monkeypatch.setattr(Transitions, "noise", noise)
    with pytest.raises(Fault, match="generator of the CPU"):
        ran(config_of("sac", "tanh_gaussian"), tmp_path, monkeypatch)


def test_a_planted_wait_exceeds_the_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_fake_task(monkeypatch)
    ppo = resolve(ALGORITHMS, "ppo", "algorithm")
    loss = ppo.loss

    def watched(self: Any, *arguments: Any) -> Any:
        losses = loss(self, *arguments)
        assert float(losses.policy.detach()) < 1e9
        return losses

    monkeypatch.setattr(ppo, "loss", watched)
    _, ledger = ran(config_of("ppo", "gaussian_mlp"), tmp_path, monkeypatch)
    budget = json.loads(BUDGET.read_text())["ppo/gaussian_mlp"]
    wait = {"number": 1}
    assert over(ledger, budget) == {"reinforcement": wait, "imitation, measured": wait, "imitation": wait}


def test_a_learner_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_fake_task(monkeypatch)
    with pytest.raises(AssertionError):
        ran(config_of("ppo", "gaussian_mlp", {"compute": {"device": "cpu"}}), tmp_path, monkeypatch)


def write() -> None:
    """Write the budget."""
    rows = {}
    for algorithm, policy in PAIRS:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            register_fake_task(patch)
            _, ledger = ran(config_of(algorithm, policy), Path(folder), patch)
        rows[f"{algorithm}/{policy}"] = {step: dict(sorted(kinds.items())) for step, kinds in ledger.worst.items()}
    lines = ",\n".join(f"{json.dumps(pair)}: {json.dumps(row)}" for pair, row in rows.items())
    BUDGET.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    write()
