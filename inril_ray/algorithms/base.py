"""The algorithm contract: rollouts become experience, experience becomes minibatches, minibatches become losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.demos.store import DemoArrays
from inril_ray.policies.base import Policy
from inril_ray.types import EnvSpec, Rollout

UnitFloat = Annotated[float, Field(ge=0, le=1)]


@config
class AlgorithmConfig:
    """What all algorithms have."""

    actor_lr: PositiveFloat = 1e-4
    actor_min_lr: NonNegativeFloat | None = None
    """The actor's learning rate falls to this along half a cosine; None keeps it constant, as DPPO does here."""
    lr_warmup_iterations: NonNegativeInt = 0
    """Iterations over which it rises to its full value first, from ``actor_min_lr``."""
    lr_decay_iterations: PositiveInt | None = None
    """Iterations after which it has fallen, and stays; None: those of the run."""
    critic_lr: PositiveFloat = 1e-3
    critic_min_lr: NonNegativeFloat | None = None
    """As ``actor_min_lr``, without a rise."""
    weight_decay: NonNegativeFloat = 0.0
    adam_eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat | None = None
    discount: UnitFloat = 0.999
    """Per decision (chunk), not per control step."""
    critic_warmup_iterations: NonNegativeInt = 0
    """First iterations that train the critic only."""
    critic_hidden_dim: PositiveInt = 256
    critic_num_hidden: PositiveInt = 3


@dataclass(frozen=True, kw_only=True)
class AlgorithmContext:
    """What an algorithm is made for."""

    policy: Policy
    spec: EnvSpec
    num_envs: int
    """Environments of all workers together."""
    device: torch.device
    """Where tensors live."""
    num_iterations: int = 100
    """Iterations of the run."""
    demos: DemoArrays | None = None
    """Demonstrations, for algorithms that learn from their rewards too."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses of one minibatch."""

    policy: Tensor
    """Scalar: the actor's."""
    value: Tensor | None = None
    """Scalar: the critic's, weighted, where it is trained on the actor's minibatches."""
    stats: Mapping[str, Tensor]
    """Scalars without gradient, for the log."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """One step of learning."""

    minibatch: Any
    critic: bool = True
    actor: bool = True
    make: Callable[[], Any] | None = None
    """Makes the minibatch, only if the step is taken: where that changes something or costs much."""


class Experience(ABC):
    """What one iteration learns from."""

    stats: dict[str, float]

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Samples in a minibatch of the actor."""

    @property
    @abstractmethod
    def nominal_updates(self) -> int:
        """Gradient steps of the actor in one full iteration: the ``matched`` size of an imitation iteration."""

    @abstractmethod
    def updates(self, generator: torch.Generator) -> Iterator[Update]:
        """Yield the iteration's steps. Later ones may depend on what earlier ones have learned."""

    @abstractmethod
    def sample(self, generator: torch.Generator, limit: int | None = None) -> Any:
        """Draw one minibatch of the actor with replacement; learning goes on as if it had not been drawn.

        Args:
            generator: of the draw.
            limit: on-policy minibatches, which may be large, get no more samples than this.
        """


class Algorithm(ABC):
    """Turns rollouts into minibatches and minibatches into losses.

    Args:
        config: its settings.
        context: what it is made for.
    """

    Config: ClassVar[type]
    policies: ClassVar[tuple[str, ...]] = ()
    """Policies that it can train, of the table of policies."""
    joint_loss: ClassVar[bool] = False
    """:meth:`loss` contains the critic's, which is stepped with the actor's by the optimiser ``critic``."""
    joint_clip: ClassVar[bool] = False
    """The gradients of actor and critic are clipped together."""
    first_rise: ClassVar[int] = 1
    """Steps of the learning rate's rise that the first iteration is past: DPPO's count begins with an evaluation."""

    config: Any
    device: torch.device
    num_iterations: int
    """Iterations of the run."""

    @staticmethod
    def problem(config: Any, actor: Any) -> str | None:  # noqa: ARG004 - subclasses need them
        """Return what keeps these settings from going with those of the policy, if anything does."""
        return None

    @staticmethod
    def behaviour(config: Any, policy: Policy, spec: EnvSpec) -> Policy:  # noqa: ARG004 - subclasses need them
        """Return what acts in the environments: the policy, or something that chooses with the help of critics.

        Rollout workers make it from a policy of theirs and load weights into it.
        """
        return policy

    @property
    @abstractmethod
    def acting(self) -> Policy:
        """What acts now, over the weights that are being learned."""

    def begin(self, policy: Policy) -> None:  # noqa: B027 - most algorithms have nothing to prepare
        """Take note of the policy that fine-tuning starts from."""

    def replay_memory(self, rows: int) -> tuple[int, int] | None:
        """Return how many bytes the past takes after so many decisions of every environment, and how many are free.

        Free where it lives, in the computer's or the GPU's memory. None: past experience is not kept.
        """
        return None

    @abstractmethod
    def prepare(self, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> Experience:
        """Compute what is fixed over the iteration's updates. No gradient.

        Args:
            rollout: the joined fragments of all workers.
            policy: the current policy.
            fresh_start: every environment was reset before the first step.
        """

    def update_critics(self, policy: Policy, minibatch: Any) -> Mapping[str, Tensor]:
        """Step the critics that are trained apart from the actor; return statistics."""
        return {}

    def parts(self, minibatch: Any) -> list[tuple[Any, float]]:
        """Split a minibatch that is too large for one pass; the weights add up to 1."""
        return [(minibatch, 1.0)]

    @abstractmethod
    def loss(self, policy: Policy, minibatch: Any) -> Losses:
        """Return the losses of a minibatch. Asked twice, it returns the same."""

    def advantage_loss(self, policy: Policy, minibatch: Any) -> Tensor | None:
        """Return a loss that is only measured: of imitating what did well, where :meth:`loss` imitates all."""
        return None

    def after_actor_step(self, policy: Policy, losses: Losses) -> None:  # noqa: B027 - most have nothing to do
        """Follow a step of the actor: averaged copies, temperatures."""

    def should_stop(self, stats: Mapping[str, Tensor]) -> bool:
        """Tell whether this iteration's updates end after this minibatch."""
        return False

    def trains_actor(self, iterations_done: int) -> bool:
        """Tell whether the critic's warm-up is over."""
        return iterations_done >= self.config.critic_warmup_iterations

    def actor_lr(self, iterations_done: int) -> float:
        """Return the constant or the decayed learning rate of the actor for the next iteration."""
        cfg, warmup = self.config, self.config.lr_warmup_iterations
        if cfg.actor_min_lr is not None and iterations_done < warmup:
            rise = (iterations_done + self.first_rise) / warmup
            return cfg.actor_min_lr + (cfg.actor_lr - cfg.actor_min_lr) * rise
        return self._fallen(cfg.actor_lr, cfg.actor_min_lr, iterations_done, warmup)

    def critic_lr(self, iterations_done: int) -> float:
        """Return that of the critic."""
        return self._fallen(self.config.critic_lr, self.config.critic_min_lr, iterations_done, 0)

    def _fallen(self, peak: float, low: float | None, done: int, start: int) -> float:
        """Return a rate that falls along half a cosine from iteration ``start`` on, or the constant one."""
        if low is None:
            return peak
        last = self.config.lr_decay_iterations or self.num_iterations
        fallen = min((done - start) / max(1, last - start), 1.0)
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * fallen))

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Return what has weights beside the policy, by name."""

    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers of :meth:`modules`, by name."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and arrays, beside modules and optimisers, that a checkpoint needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - see state_dict
        """Put back what :meth:`state_dict` returned."""
