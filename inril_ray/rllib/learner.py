"""A learner of RLlib that interleaves imitation: the counterpart of :class:`inril_ray.learner.Learner`."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.impala.impala_learner import IMPALALearner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor, nn

from inril_ray.demos.store import DemoStore
from inril_ray.diagnostics import separation_metrics, step_harm
from inril_ray.gradient_separation.base import Separation, SeparationReport
from inril_ray.gradient_separation.naive import Naive
from inril_ray.gradient_separation.relation import GradientRelation
from inril_ray.interleaving_theory import InterleavingTheory, IterationContext
from inril_ray.metrics import MeanMetrics, checked
from inril_ray.pretrain import epoch_batches
from inril_ray.rllib.imitation import ActorImitation
from inril_ray.rllib.settings import KEY, Settings
from inril_ray.types import DemoBatch, InrilError

Gradients = Sequence[Tensor | None]
Pair = list[tuple[nn.Parameter, Tensor, Tensor]]
"""Parameters that both losses reach, with both gradients."""
IMITATE, MEASURE = 8, 9
"""Random streams of demonstrations."""


class InterleavingLearner(TorchLearner):
    """Mixed into an algorithm's learner by :func:`inril_ray.rllib.with_interleaving`.

    An iteration is one call of ``update`` with data of the imitating module. It hangs on RLlib's hooks rather than on
    ``update`` itself, which IMPALA and APPO bypass in their learner thread. All learners make the same imitation steps:
    each draws demonstrations of its own, and the gradients are averaged. The draws depend on (seed, iteration, rank)
    only, so no random state is kept.
    """

    # -- hooks of RLlib -----------------------------------------------------------------------------------------------
    def build(self) -> None:
        """Build the algorithm's learner, then what interleaving needs.

        Raises:
            InrilError: a setting is not allowed, or the demonstrations don't fit the module.
        """
        super().build()
        self.interleaving = settings = Settings.of(self.config)
        config = settings.interleave
        if settings.module_id not in self.module:
            raise InrilError(f"module_id = {settings.module_id!r}: choose one of {', '.join(self.module.keys())}.")
        arrays = settings.demos.load()
        self._imitation = ActorImitation(
            self._actor, arrays, normalize_actions=bool(self.config.normalize_actions), device=self.device
        )
        self._demos = DemoStore(arrays, prediction_horizon=1)
        self._il_optimizer = torch.optim.AdamW(
            self._imitation.parameters, lr=config.il_lr, weight_decay=config.il_weight_decay, eps=config.il_adam_eps
        )
        names = ("iteration", "rl_iterations", "rl_updates", "il_iterations", "il_updates")
        self.counters: dict[str, int] = dict.fromkeys(names, 0)
        self._theory = InterleavingTheory(config.adaptive.ema, c_il=config.adaptive.c_il)
        self._begin_iteration()

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Ask the schedule what this iteration does."""
        super().before_gradient_based_update(timesteps=timesteps)
        self._begin_iteration()

    def _update(self, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Learn from a minibatch, and keep it for the gradients that imitation is held against."""
        if self.interleaving.module_id in batch:
            self._kept.append(batch[self.interleaving.module_id])
            self._num_minibatches += 1
        return super()._update(batch)

    def compute_gradients(self, loss_per_module: dict[str, Tensor], **kwargs: Any) -> dict[Any, Any]:
        """Return the gradients of a reinforcement step; those of the actor as the schedule wants them."""
        gradients = dict(super().compute_gradients(loss_per_module, **kwargs))
        iteration, actor = self._iteration, self._imitation.parameters
        took_rl, took_il = True, False
        if self.interleaving.module_id not in loss_per_module or not gradients:
            return gradients
        if not iteration.rl:
            for p in actor:
                p.grad = None
        elif iteration.regularized:
            loss, il = self._il_gradients(self._draw())
            for p, g in zip(actor, il, strict=True):
                if g is not None:
                    p.grad = self._bc_weight * g + (0.0 if p.grad is None else p.grad)
            self._means.add({"bc_loss": loss})
        elif self._merged:
            self._rl_batch_size = len(self._kept[-1])
            combining = self.interleaving.separation.merged()
            report, _ = self._combine(combining, [p.grad for p in actor], self._draw())
            took_rl, took_il = report.took
            if not (took_rl or took_il):  # zeros would still move what the optimiser has momentum for
                for p in actor:
                    p.grad = None
        self.counters["rl_updates"] += iteration.rl and took_rl
        self.counters["il_updates"] += took_il
        for p in actor:
            gradients.pop(p, None)
        return gradients | {p: p.grad for p in actor if p.grad is not None}

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Imitate or measure, where the schedule has it, and log."""
        super().after_gradient_based_update(timesteps=timesteps)
        if self._num_minibatches:
            metrics, module_id = checked(self._finish_iteration()), self.interleaving.module_id
            self.metrics.log_dict(metrics, key=module_id, window=1)
            # Where RLlib joins several updates into one result it takes means: of counters the last is wanted.
            self.metrics.log_dict({n: float(c) for n, c in self.counters.items()}, key=module_id, reduce="max")

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return RLlib's state and ours: counters, schedule, theory and the optimiser of imitation."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(KEY, components, not_components):
            state[KEY] = {
                "counters": dict(self.counters),
                "schedule": self.interleaving.schedule.state_dict(),
                "theory": self._theory.state_dict(),
                "optimizer": convert_to_numpy(self._il_optimizer.state_dict()),
                "demos": self._demos.info.content_hash,
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned.

        Raises:
            InrilError: the demonstrations differ; nothing is changed.
        """
        own = state.get(KEY)
        if own is not None and own["demos"] != self._demos.info.content_hash:
            raise InrilError(
                f"The demonstrations differ from those of the checkpoint: SHA-256 {self._demos.info.content_hash[:12]} "
                f"({self._demos.info.source_file}), it had {own['demos'][:12]}."
            )
        super().set_state(state)
        if own is not None:
            self.counters = dict(own["counters"])
            self.interleaving.schedule.load_state_dict(own["schedule"])
            self._theory.load_state_dict(own["theory"])
            optimizer = own["optimizer"]
            moments = convert_to_torch_tensor(optimizer["state"], device=self.device)
            self._il_optimizer.load_state_dict({**optimizer, "state": moments})

    # -- one iteration ------------------------------------------------------------------------------------------------
    def _begin_iteration(self) -> None:
        settings, done = self.interleaving, self.counters["iteration"]
        self._iteration = settings.schedule.next(done)
        self._merged = self._iteration.il and self._iteration.rl and settings.interleave.phase == "merged"
        self._bc_weight = settings.interleave.bc_weight * settings.interleave.bc_decay**done
        self._kept: deque[Any] = deque(maxlen=settings.interleave.relation_pairs)
        """The last minibatches of the module."""
        self._num_minibatches = 0
        self._rl_batch_size = 0
        """Samples in the last gradient of reinforcement that was held against one of imitation."""
        self._rng = self._stream(IMITATE)
        self._means, self._relation, self._num_pairs = MeanMetrics(), GradientRelation(), 0
        self._dropped = self._stalled = 0

    def _finish_iteration(self) -> dict[str, float]:
        iteration, settings = self._iteration, self.interleaving
        config, start = settings.interleave, time.perf_counter()
        probe, metrics = float("nan"), {}
        if iteration.il and not self._merged:
            metrics["il_probe_loss_before"] = self._probe_loss()
            metrics |= self._imitate()
        elif not iteration.il and self.counters["iteration"] % config.relation_every == 0:
            self._measure_relation()
        if iteration.il or self.counters["iteration"] % config.relation_every == 0:
            metrics["il_probe_loss"] = probe = self._probe_loss()
        metrics["il_s" if iteration.il else "diagnostics_s"] = time.perf_counter() - start
        metrics |= self._means.means()
        if iteration.regularized:
            metrics["bc_weight"] = self._bc_weight
        if iteration.il:
            metrics |= {"dropped_objectives": float(self._dropped), "stalled_steps": float(self._stalled)}
        self.counters["iteration"] += 1
        self.counters["rl_iterations"] += iteration.rl
        self.counters["il_iterations"] += iteration.il
        context = self._context()
        self._theory.observe(self._relation.estimate(), context, probe)
        settings.schedule.observe(self._theory.relation, context)
        return metrics | self._relation.metrics() | self._theory.metrics() | settings.schedule.decision()

    def _imitate(self) -> dict[str, float]:
        """Make one imitation iteration; see :meth:`inril_ray.learner.Learner`, whose steps these are."""
        reinforced = self._iteration.rl
        separation = self.interleaving.separation if reinforced else Naive()
        optimizers = [self._il_optimizer] if self._imitates_with_own(reinforced) else self._rl_optimizers()
        quiet = self._without_metrics()
        yardstick = self._rows(self._kept[0])
        before = self._surrogate(quiet, yardstick)
        for step, demos in enumerate(self._demo_batches()):
            rl = self._rl_gradients(quiet, self._rows(self._kept[step % len(self._kept)]))
            # An optimiser of RL may hold the critic as well; what has no gradient is left alone.
            self._actor.zero_grad(set_to_none=True)
            report, pair = self._combine(separation, rl, demos)
            old = [p.detach().clone() for p, _, _ in pair]
            if any(report.took) and self._clipped():
                for optimizer in optimizers:
                    optimizer.step()
                self.counters["il_updates"] += report.took[1]
            if pair:
                change = [p.detach() - o for (p, _, _), o in zip(pair, old, strict=True)]
                self._means.add(step_harm(change, [g for _, g, _ in pair], [h for _, _, h in pair]))
        return {"rl_surrogate_before": before, "rl_surrogate_after": self._surrogate(quiet, yardstick)}

    def _combine(self, separation: Separation, rl: Gradients, demos: DemoBatch) -> tuple[SeparationReport, Pair]:
        """Write the combined gradient into ``.grad`` of the actor.

        Returns:
            what was done, and the gradients if this pair is measured.
        """
        actor = self._imitation.parameters
        loss, il = self._il_gradients(demos)
        pair: Pair = []
        if self._num_pairs < self.interleaving.interleave.relation_pairs:
            pair = self._measure(rl, il)
        report = separation.merge(rl, il, actor)
        self._means.add({"il_loss": loss, **separation_metrics(report)})
        self._dropped += bool(report.dropped)
        self._stalled += report.stalled
        return report, pair

    def _measure(self, rl: Gradients, il: Gradients) -> Pair:
        """Take a pair of gradients into the relation; return copies of what it takes in."""
        rows = zip(self._imitation.parameters, rl, il, strict=True)
        pair = [(p, g.clone(), h.clone()) for p, g, h in rows if g is not None and h is not None]
        self._relation.add([g for _, g, _ in pair], [h for _, _, h in pair])
        self._num_pairs += 1
        return pair

    def _measure_relation(self) -> None:
        """Take in pairs of gradients without a step, from streams of their own: measuring must not change learning."""
        config, rng = self.interleaving.interleave, self._stream(MEASURE)
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            quiet = self._without_metrics()
            for minibatch in self._pieces():
                _, il = self._il_gradients(self._demos.sample(rng, config.il_batch_size))
                self._measure(self._rl_gradients(quiet, minibatch), il)

    # -- gradients ----------------------------------------------------------------------------------------------------
    @property
    def _actor(self) -> Any:
        """The imitating module without the wrapper of distributed training, which must not see imitation."""
        return self.module[self.interleaving.module_id].unwrapped()

    def _without_metrics(self) -> Any:
        """Return a view of this learner that computes losses over the bare module and logs nowhere."""
        view: Any = copy.copy(self)
        view.metrics = MetricsLogger(stats_cls_lookup=self.config.stats_cls_lookup, root=False)
        view._temp_losses = {}  # SAC keeps the parts of its loss for compute_gradients
        view._module = {self.interleaving.module_id: self._actor}
        return view

    def _rl_loss(self, view: Any, minibatch: Any) -> Tensor:
        module_id = self.interleaving.module_id
        return view.compute_loss_for_module(
            module_id=module_id,
            config=self.config.get_config_for_module(module_id),
            batch=minibatch,
            fwd_out=self._actor.forward_train(minibatch),
        )

    def _rl_gradients(self, view: Any, minibatch: Any) -> Gradients:
        """Return the gradient of the algorithm's loss by the actor, averaged over learners."""
        self._rl_batch_size = len(minibatch)
        loss = self._rl_loss(view, minibatch)
        return self._averaged(torch.autograd.grad(loss, self._imitation.parameters, allow_unused=True))

    def _il_gradients(self, demos: DemoBatch) -> tuple[Tensor, Gradients]:
        """Return the imitation loss, and its gradient averaged over learners."""
        loss = self._imitation.loss(demos)
        actor, spread = self._imitation.parameters, self._imitation.spread
        found = torch.autograd.grad(loss, actor, allow_unused=True)
        gradients = [None if p in spread else g for p, g in zip(actor, found, strict=True)]
        return loss.detach(), self._averaged(gradients)

    def _averaged(self, gradients: Gradients) -> Gradients:
        if not self.distributed:
            return gradients
        present = [g for g in gradients if g is not None]
        flat = torch.cat([g.flatten() for g in present])
        torch.distributed.all_reduce(flat)
        parts = (flat / torch.distributed.get_world_size()).split([g.numel() for g in present])
        means = iter([part.view_as(g).clone() for part, g in zip(parts, present, strict=True)])
        return [None if g is None else next(means) for g in gradients]

    def _clipped(self) -> bool:
        """Clip the actor's gradient as RLlib is told to; tell whether there is one, and it is finite."""
        gradients = {p: p.grad for p in self._imitation.parameters if p.grad is not None}
        if not gradients or not nn.utils.get_total_norm(list(gradients.values())).isfinite():
            return False
        config = self.config.get_config_for_module(self.interleaving.module_id)
        clip = self._get_clip_function()
        clip(gradients, grad_clip=config.grad_clip, grad_clip_by=config.grad_clip_by)
        for parameter, gradient in gradients.items():  # clipping by value makes new ones
            parameter.grad = gradient
        return True

    def _imitates_with_own(self, reinforced: bool) -> bool:
        settings = self.interleaving
        return (not reinforced or settings.separation.optimizer == "il") and not settings.interleave.share_optimizer

    def _rl_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the algorithm's optimisers that step the actor."""
        actor = set(self._imitation.parameters)
        named = self.get_optimizers_for_module(self.interleaving.module_id)
        return [o for _, o in named if any(p in actor for group in o.param_groups for p in group["params"])]

    # -- data ---------------------------------------------------------------------------------------------------------
    def _stream(self, purpose: int) -> np.random.Generator:
        rank = torch.distributed.get_rank() if self.distributed else 0
        key = (purpose, self.counters["iteration"], rank)
        return np.random.default_rng(np.random.SeedSequence(self.config.seed or 0, spawn_key=key))

    def _draw(self) -> DemoBatch:
        return self._demos.sample(self._rng, self.interleaving.interleave.il_batch_size)

    def _demo_batches(self) -> Iterable[DemoBatch]:
        config = self.interleaving.interleave
        if config.il_steps == "epoch":
            return epoch_batches(self._demos, self._rng, config.il_batch_size)
        return (self._draw() for _ in range(self._num_il_steps()))

    def _num_il_steps(self) -> int:
        config = self.interleaving.interleave
        if config.il_steps == "epoch":
            return -(-self._demos.num_windows // config.il_batch_size)
        return self._num_minibatches if config.il_steps == "matched" else config.il_steps

    def _rows(self, minibatch: Any) -> Any:
        """Return no more of a minibatch than imitation is held against."""
        limit = self.interleaving.interleave.relation_batch_size
        return minibatch if self._time_major or len(minibatch) <= limit else minibatch[:limit]

    def _pieces(self) -> list[Any]:
        """Return as many minibatches as pairs are measured, of different samples: parts of the kept ones if need be."""
        pairs = self.interleaving.interleave.relation_pairs
        parts = 1 if self._time_major else -(-pairs // len(self._kept))
        size = max(1, min(len(m) for m in self._kept) // parts)
        pieces = list(self._kept) if parts == 1 else [m[k * size :][:size] for m in self._kept for k in range(parts)]
        return [self._rows(piece) for piece in pieces[:pairs]]

    @property
    def _time_major(self) -> bool:
        """The loss wants whole trajectories."""
        return isinstance(self, IMPALALearner)

    # -- diagnostics --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _surrogate(self, view: Any, minibatch: Any) -> float:
        return float(self._rl_loss(view, minibatch))

    @torch.no_grad()
    def _probe_loss(self) -> float:
        return float(self._imitation.loss(self._demos.probe()))

    def _context(self) -> IterationContext:
        iteration, config = self._iteration, self.interleaving.interleave
        optimizers = self._rl_optimizers()
        rl_lr = float(self._get_optimizer_lr(optimizers[0])) if optimizers else 0.0
        own = not self._merged and self._imitates_with_own(iteration.rl)
        return IterationContext(
            iterations_done=self.counters["iteration"],
            reinforced=iteration.rl,
            imitated=iteration.il,
            rl_steps=self._num_minibatches,
            il_steps=self._num_minibatches if self._merged else self._num_il_steps(),
            rl_lr=rl_lr,
            il_lr=config.il_lr if own else rl_lr,
            rl_batch_size=self._rl_batch_size,
            il_batch_size=config.il_batch_size,
        )
