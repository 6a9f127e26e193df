"""The update loop: reinforcement every iteration, imitation after every m of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inril_ray.algorithms.base import Algorithm, Experience, Losses
from inril_ray.checkpoint import load_module, load_optimizer
from inril_ray.demos.store import DemoStore
from inril_ray.diagnostics import (
    PROBE_SIZE,
    Probe,
    base_plans,
    gradient_pair,
    rollout_metrics,
    separation_metrics,
    step_harm,
)
from inril_ray.gradient_separation.base import Separation, SeparationReport
from inril_ray.gradient_separation.naive import Naive
from inril_ray.gradient_separation.relation import GradientRelation
from inril_ray.interleave import InterleaveConfig
from inril_ray.interleaving_theory import InterleavingTheory, IterationContext
from inril_ray.metrics import MeanMetrics
from inril_ray.policies.base import Policy
from inril_ray.policies.residual import ResidualPolicy
from inril_ray.pretrain import epoch_batches, gradients_finite, imitation_inputs
from inril_ray.schedules.base import Schedule
from inril_ray.types import DemoBatch, InrilError, Rollout


class Learner:
    """Owns the policy, the optimisers and every random stream of learning.

    Args:
        policy: cloned; fine-tuned in place.
        algorithm: RL algorithm with its critics.
        schedule: which updates an iteration makes.
        separation: how the two gradients are combined.
        demos: demonstrations.
        config: interleaving.
        seed: of minibatches and noise.
        device: where the policy lives.
        measure_base: measure how far the policy is from the cloned one; keeps a copy of that.
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        schedule: Schedule,
        separation: Separation,
        demos: DemoStore,
        config: InterleaveConfig,
        *,
        seed: int,
        device: torch.device,
        measure_base: bool = False,
    ) -> None:
        self.policy, self.algorithm = policy, algorithm
        self.schedule, self.separation, self.demos, self.config = schedule, separation, demos, config
        self.device = device
        self.parameters, self.il_parameters = policy.trainable(), policy.imitated()
        self.shared = [id(p) for p in self.parameters] == [id(p) for p in self.il_parameters]
        """Reinforcement and imitation train the same parameters."""
        rl = algorithm.config
        self.actor_optimizer = torch.optim.AdamW(
            self.parameters, lr=rl.actor_lr, weight_decay=rl.weight_decay, eps=rl.adam_eps
        )
        self.il_optimizer = torch.optim.AdamW(
            self.il_parameters, lr=config.il_lr, weight_decay=config.il_weight_decay, eps=config.il_adam_eps
        )
        self.max_grad_norm: float | None = rl.max_grad_norm
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.demo_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(8,)))
        self.counters = {
            "iteration": 0,
            "env_steps": 0,
            "rl_iterations": 0,
            "rl_updates": 0,
            "il_iterations": 0,
            "il_updates": 0,
        }
        self.step_scale = 1.0
        """Multiplies the policy's learning rates."""
        self.theory = InterleavingTheory(config.adaptive.ema, c_il=config.adaptive.c_il)
        self._measures_base = measure_base
        self._probe = Probe(demos, device)
        self._cloned: Policy | None = None

    @property
    def version(self) -> int:
        """Version of the current weights: the number of iterations learned."""
        return self.counters["iteration"]

    @property
    def critic_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser of the critic that is stepped with the actor."""
        return self.algorithm.optimizers().get("critic")

    def begin(self, *, cloned: bool = True) -> None:
        """Make the cloned policy the start of fine-tuning; one that is not cloned imitates once before any rollout.

        Source of the latter: IN-RIL section 2, whose cycle starts with imitation, and appendix H.2.3.
        """
        self.policy.begin_finetuning()
        if not cloned:
            for demos in epoch_batches(self.demos, self.demo_rng, self.config.il_batch_size):
                self._clear(self.il_parameters)
                self._il_loss(demos, self.generator).backward()
                if gradients_finite(self.il_parameters):
                    self._step(self.il_optimizer, self.il_parameters)
        self.algorithm.begin(self.policy)
        self._keep_cloned()

    def _keep_cloned(self) -> None:
        if self.config.bc_source == "base" or self._measures_base:
            self._cloned = copy.deepcopy(self.policy).requires_grad_(False)

    def learn(self, rollout: Rollout, *, fresh_start: bool) -> dict[str, float]:
        """Learn from one rollout; return metrics.

        Args:
            rollout: the joined fragments of all workers.
            fresh_start: every environment was reset before the first step.
        """
        iteration = self.schedule.next(self.counters["iteration"])
        merged = iteration.il and iteration.rl and self.config.phase == "merged"
        metrics = rollout_metrics(rollout, self.version, self.policy)
        batch = self.algorithm.prepare(rollout, self.policy, fresh_start=fresh_start)
        metrics |= batch.stats

        start = time.perf_counter()
        before = self._probe.losses(self.policy) if merged else {}
        spent = time.perf_counter() - start

        start = time.perf_counter()
        train_actor = iteration.rl and self.algorithm.trains_actor(self.version)
        imitated = iteration.il and (train_actor or not merged)
        relation = GradientRelation()
        metrics |= self._reinforce(
            batch, relation if merged else None, train_actor=train_actor, regularized=iteration.regularized
        )
        metrics["rl_s"] = time.perf_counter() - start

        start = time.perf_counter()
        if not merged:
            before = self._probe.losses(self.policy)
        if iteration.il:
            metrics |= {f"{name}_before": value for name, value in before.items()}
        else:
            metrics |= before
            if self.version % self.config.relation_every == 0:
                metrics |= self._measure_relation(batch, relation)
        metrics["diagnostics_s"] = spent + time.perf_counter() - start

        start = time.perf_counter()
        if iteration.il and not merged:
            metrics |= self._imitate(batch, relation, reinforced=iteration.rl)
        if iteration.il:
            metrics |= self._probe.losses(self.policy)
        metrics["il_s"] = time.perf_counter() - start
        if self._measures_base:
            assert self._cloned is not None
            metrics["kl_base"] = self._probe.divergence(self.policy, self._cloned)

        self.counters["iteration"] += 1
        self.counters["env_steps"] += rollout.env_steps
        self.counters["rl_iterations"] += train_actor
        self.counters["il_iterations"] += imitated
        context = self._context(batch, reinforced=train_actor, imitated=imitated, merged=merged)
        self.theory.observe(relation.estimate(), context, metrics["il_probe_loss"])
        self.schedule.observe(self.theory.relation, context)
        metrics |= relation.metrics() | self.theory.metrics() | self.schedule.decision()
        return metrics | {name: float(count) for name, count in self.counters.items()}

    # -- reinforcement ------------------------------------------------------------------------------------------------
    def _reinforce(
        self, batch: Experience, merged: GradientRelation | None, *, train_actor: bool, regularized: bool
    ) -> dict[str, float]:
        """Make one RL iteration.

        Args:
            batch: what to learn from.
            merged: every step of the actor combines both gradients, and the first pairs are taken in; None for neither.
            train_actor: False trains the critics only.
            regularized: every step of the actor adds the weighted imitation loss.
        """
        means, skipped, stopped = MeanMetrics(), 0, False
        combining, reports = self.separation.merged(), list[SeparationReport]()
        weight = self.config.bc_weight * self.config.bc_decay**self.version if regularized else 0.0
        for group in self.actor_optimizer.param_groups:
            group["lr"] = self.step_scale * self.algorithm.actor_lr(self.version)
        for name in ("critic", "critics", "value"):
            for group in self.algorithm.optimizers()[name].param_groups if name in self.algorithm.optimizers() else ():
                group["lr"] = self.algorithm.critic_lr(self.version)
        for update in batch.updates(self.generator):
            if update.critic:
                means.add(self.algorithm.update_critics(self.policy, update.minibatch))
            if not update.actor or not (train_actor or self.algorithm.joint_loss):
                continue
            minibatch = update.minibatch if update.make is None else update.make()
            self._clear([*self.parameters, *self._joint_critic()])
            parts: list[tuple[Losses, float]] = []
            for part, share in self.algorithm.parts(minibatch):
                losses = self.algorithm.loss(self.policy, part)
                parts.append((losses, share))
                loss = losses.value if losses.value is not None else torch.zeros((), device=self.device)
                if train_actor and merged is not None:
                    il_loss = self._il_loss(self._il_batch(), self.generator)
                    if len(reports) < self.config.relation_pairs:
                        merged.add(*gradient_pair(losses.policy, il_loss, self.parameters)[1:])
                    report = combining.backward(losses.policy, il_loss, self.parameters)
                    if not any(report.took):  # zeros would still move what the optimiser has momentum for
                        self._clear(self.parameters)
                    means.add({"il_loss": il_loss, **separation_metrics(report)})
                    reports.append(report)
                elif train_actor:
                    loss = loss + losses.policy
                    if weight:
                        bc_loss = self._bc_loss(minibatch)
                        loss = loss + weight * bc_loss
                        means.add({"bc_loss": bc_loss})
                if loss.requires_grad:
                    (share * loss).backward()
            losses = _whole(parts)
            means.add(losses.stats)
            if gradients_finite([*self.parameters, *self._joint_critic()]):
                self._step_actor(train_actor)
                if train_actor:
                    took_rl, took_il = reports[-1].took if merged is not None else (True, False)
                    self.counters["rl_updates"] += took_rl
                    self.counters["il_updates"] += took_il
                    self.algorithm.after_actor_step(self.policy, losses)
            else:
                skipped += 1
            if train_actor and self.algorithm.should_stop(losses.stats):
                stopped = True
                break
        metrics = means.means()
        if weight:
            metrics["bc_weight"] = weight
        if reports:
            metrics["dropped_objectives"] = float(sum(bool(r.dropped) for r in reports))
            metrics["stalled_steps"] = float(sum(r.stalled for r in reports))
        return metrics | {"skipped_updates": float(skipped), "early_stop": float(stopped)}

    def _joint_critic(self) -> list[nn.Parameter]:
        return list(self.algorithm.modules()["critic"].parameters()) if self.algorithm.joint_loss else []

    def _step_actor(self, train_actor: bool) -> None:
        """Step the actor, if it is trained, and the critic whose loss came with it."""
        optimizer = self.critic_optimizer if self.algorithm.joint_loss else None
        if self.algorithm.joint_clip and self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_([*self.parameters, *self._joint_critic()], self.max_grad_norm)
            if train_actor:
                self.actor_optimizer.step()
        elif train_actor:
            self._step(self.actor_optimizer, self.parameters)
        if optimizer is not None:
            optimizer.step()

    def _step(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()

    @staticmethod
    def _clear(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None

    def _bc_loss(self, minibatch: Any) -> Tensor:
        """Return the loss that regularises reinforcement: of demonstrations, or of samples of the cloned policy.

        Source of the latter: DPPO's behaviour-cloning loss on the observations that were visited.
        """
        if self.config.bc_source != "base":
            return self._il_loss(self._il_batch(), self.generator)
        assert self._cloned is not None
        obs = minibatch.obs
        noise = torch.randn(len(obs), *self._cloned.noise_shape, generator=self.generator).to(self.device)
        chain = self._cloned.act(obs, noise, deterministic=False).chain
        step = torch.randint(self._cloned.num_scored_steps, (len(obs),), generator=self.generator).to(self.device)
        row = torch.arange(len(obs), device=self.device)
        return -self.policy.log_prob(obs, chain[row, step], chain[row, step + 1], step).mean()

    # -- imitation ----------------------------------------------------------------------------------------------------
    def _imitate(self, batch: Experience, relation: GradientRelation, *, reinforced: bool) -> dict[str, float]:
        """Make one imitation iteration: each step separates the gradient of demonstrations from that of the rollout.

        Args:
            batch: what was last learned from.
            relation: takes in the gradients of the first steps.
            reinforced: the schedule reinforces; where it doesn't, the gradient of RL is measured but not applied.
        """
        if not self.shared:
            return self._imitate_apart(batch)
        separation = self.separation if reinforced else Naive()
        optimizer = self.il_optimizer if self._imitates_with_own(reinforced) else self.actor_optimizer
        means, dropped, stalled = MeanMetrics(), 0, 0
        yardstick = batch.sample(self.generator)
        before = self._surrogate(yardstick)
        for i, demos in enumerate(self._il_batches(batch)):
            minibatch = batch.sample(self.generator, self.config.relation_batch_size)
            rl_loss = self.algorithm.loss(self.policy, minibatch).policy
            il_loss = self._il_loss(demos, self.generator)
            measured = i < self.config.relation_pairs
            if measured:
                shared, *pair = gradient_pair(rl_loss, il_loss, self.parameters)
                relation.add(*pair)
                old = [p.detach().clone() for p in shared]
            report = separation.backward(rl_loss, il_loss, self.parameters)
            dropped, stalled = dropped + bool(report.dropped), stalled + report.stalled
            if any(report.took) and gradients_finite(self.parameters):
                self._step(optimizer, self.parameters)
                self.counters["il_updates"] += report.took[1]
            if measured:
                change = [p.detach() - o for p, o in zip(shared, old, strict=True)]
                means.add(step_harm(change, *pair))
            means.add({"il_loss": il_loss, **separation_metrics(report)})
        surrogate = {"rl_surrogate_before": before, "rl_surrogate_after": self._surrogate(yardstick)}
        return means.means() | surrogate | {"dropped_objectives": float(dropped), "stalled_steps": float(stalled)}

    def _imitates_with_own(self, reinforced: bool) -> bool:
        """Tell whether imitation is stepped by an optimiser of its own."""
        return (not reinforced or self.separation.optimizer == "il") and not self.config.share_optimizer

    def _imitate_apart(self, batch: Experience) -> dict[str, float]:
        """Imitate with the base of a residual policy; without separation (naive), with its correction as well."""
        assert isinstance(self.policy, ResidualPolicy)
        means, skipped = MeanMetrics(), 0
        naive = isinstance(self.separation, Naive)
        stepped = [(self.il_optimizer, self.il_parameters)] + [(self.actor_optimizer, self.parameters)] * naive
        generator = torch.Generator().manual_seed(self.version)
        plans = base_plans(self.policy, batch.sample(generator, PROBE_SIZE).obs.cpu().numpy(), self.version)
        before = plans()
        for demos in self._il_batches(batch):
            inputs = imitation_inputs(demos, self.generator, self.device)
            self._clear([*self.il_parameters, *self.parameters])
            il_loss = self.policy.il_loss(*inputs, self.config.il_timesteps)
            il_loss.backward()
            means.add({"il_loss": il_loss})
            if naive:
                noise = torch.randn(len(demos.obs), *self.policy.base.noise_shape, generator=self.generator)
                correction_loss = self.policy.correction_il_loss(*inputs[:2], noise.to(self.device))
                correction_loss.backward()
                means.add({"correction_il_loss": correction_loss})
            if gradients_finite([p for _, parameters in stepped for p in parameters]):
                for optimizer, parameters in stepped:
                    self._step(optimizer, parameters)
                self.counters["il_updates"] += 1
            else:
                skipped += 1
        change = float(np.abs(plans() - before).mean())
        return means.means() | {"dropped_objectives": float(skipped), "base_change": change}

    def _il_batches(self, batch: Experience) -> Any:
        if self.config.il_steps == "epoch":
            return epoch_batches(self.demos, self.demo_rng, self.config.il_batch_size)
        return (self._il_batch() for _ in range(self._num_il_steps(batch)))

    def _num_il_steps(self, batch: Experience) -> int:
        if self.config.il_steps == "epoch":
            return -(-self.demos.num_windows // self.config.il_batch_size)
        return batch.nominal_updates if self.config.il_steps == "matched" else self.config.il_steps

    def _context(self, batch: Experience, *, reinforced: bool, imitated: bool, merged: bool) -> IterationContext:
        rl_lr = self.step_scale * self.algorithm.actor_lr(self.version - 1)
        own = not merged and self._imitates_with_own(reinforced)
        return IterationContext(
            iterations_done=self.version,
            reinforced=reinforced,
            imitated=imitated,
            rl_steps=batch.nominal_updates,
            il_steps=batch.nominal_updates if merged else self._num_il_steps(batch),
            rl_lr=rl_lr,
            il_lr=self.step_scale * self.config.il_lr if own else rl_lr,
            rl_batch_size=batch.batch_size if merged else min(batch.batch_size, self.config.relation_batch_size),
            il_batch_size=self.config.il_batch_size,
        )

    def _il_batch(self) -> DemoBatch:
        return self.demos.sample(self.demo_rng, self.config.il_batch_size)

    def _il_loss(self, demos: DemoBatch, generator: torch.Generator) -> Tensor:
        inputs = imitation_inputs(demos, generator, self.device)
        return self.policy.il_loss(*inputs, self.config.il_timesteps)

    # -- diagnostics --------------------------------------------------------------------------------------------------
    def _measure_relation(self, batch: Experience, relation: GradientRelation) -> dict[str, float]:
        """Take in pairs of gradients; return what is measured beside the relation."""
        if not self.shared:
            return {}
        # From streams of its own: measuring more or less must not change what is learned.
        generator = torch.Generator().manual_seed(self.version)
        rng = np.random.default_rng(self.version)
        advantage = GradientRelation()
        for _ in range(self.config.relation_pairs):
            minibatch = batch.sample(generator, self.config.relation_batch_size)
            rl_loss = self.algorithm.loss(self.policy, minibatch).policy
            demos = self.demos.sample(rng, self.config.il_batch_size)
            _, rl, il = gradient_pair(rl_loss, self._il_loss(demos, generator), self.parameters)
            relation.add(rl, il)
            advantage_loss = self.algorithm.advantage_loss(self.policy, minibatch)
            if advantage_loss is not None:
                advantage.add(torch.autograd.grad(advantage_loss, self.parameters), il)
        names = {"rho": "rho_advantage", "grad_norm_rl": "grad_norm_advantage"}
        return {names[name]: value for name, value in advantage.metrics().items() if name in names}

    @torch.no_grad()
    def _surrogate(self, minibatch: Any) -> float:
        return float(self.algorithm.loss(self.policy, minibatch).policy)

    def scale_steps(self, scale: float) -> None:
        """Multiply the policy's learning rates, of reinforcement and imitation, from now on."""
        self.step_scale = scale
        for group in self.il_optimizer.param_groups:
            group["lr"] = scale * self.config.il_lr

    # -- state --------------------------------------------------------------------------------------------------------
    def modules(self) -> dict[str, nn.Module]:
        """Return everything with weights, by name."""
        return {"policy": self.policy, **self.algorithm.modules()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers by name."""
        return {"actor": self.actor_optimizer, **self.algorithm.optimizers(), "il": self.il_optimizer}

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimisers, counters, random streams, schedule and algorithm state."""
        acting = self.algorithm.acting
        return {
            "modules": {name: dict(module.state_dict()) for name, module in self.modules().items()},
            "acting": {} if acting is self.policy else dict(acting.state_dict()),
            "cloned": dict(self._cloned.state_dict()) if self._cloned else {},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
            "counters": dict(self.counters),
            "step_scale": self.step_scale,
            "generator": self.generator.get_state(),
            "demo_rng": self.demo_rng.bit_generator.state,
            "demos": self.demos.info.content_hash,
            "schedule": self.schedule.state_dict(),
            "theory": self.theory.state_dict(),
            "algorithm": self.algorithm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, as it comes out of a checkpoint.

        Raises:
            InrilError: the demonstrations or the shapes of the networks differ.
        """
        if state["demos"] != self.demos.info.content_hash:
            raise InrilError(
                f"The demonstrations differ from those of the checkpoint: SHA-256 {self.demos.info.content_hash[:12]} "
                f"({self.demos.info.source_file}), it had {state['demos'][:12]}."
            )
        for name, module in self.modules().items():
            load_module(module, state["modules"][name])
        if state["cloned"]:
            self._keep_cloned()
        if self._cloned is not None and state["cloned"]:
            load_module(self._cloned, state["cloned"])
        for name, optimizer in self.optimizers().items():
            load_optimizer(optimizer, state["optimizers"][name])
        self.scale_steps(state.get("step_scale", 1.0))  # of the configuration's rates, which a population changes
        self.counters = dict(state["counters"])
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))
        self.demo_rng.bit_generator.state = state["demo_rng"]
        self.schedule.load_state_dict(state["schedule"])
        self.theory.load_state_dict(state["theory"])
        self.algorithm.load_state_dict(state["algorithm"])


def _whole(parts: Sequence[tuple[Losses, float]]) -> Losses:
    """Return the losses of a minibatch from those of its parts and their shares."""
    if len(parts) == 1:
        return parts[0][0]
    stats = {name: sum(share * losses.stats[name] for losses, share in parts) for name in parts[0][0].stats}
    policy = sum(share * losses.policy.detach() for losses, share in parts)
    return Losses(policy=policy, stats=stats)  # type: ignore[arg-type]
