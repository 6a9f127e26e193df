"""How imitation is interleaved: the settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from inril_ray.config import config
from inril_ray.policies.base import Timesteps
from inril_ray.schedules.adaptive import AdaptiveConfig


@config
class InterleaveConfig:
    """How imitation is interleaved. Defaults are IN-RIL's for Robomimic Lift."""

    every: PositiveInt = 10
    """m: RL iterations between imitation iterations."""
    il_steps: Literal["matched", "epoch"] | Annotated[int, Field(ge=1)] = "matched"
    """Gradient steps of an imitation iteration: as many as those of an RL iteration, one pass over the demonstrations,
    or a number."""
    il_batch_size: PositiveInt = 256
    il_lr: PositiveFloat = 1e-4
    il_weight_decay: NonNegativeFloat = 1e-6
    il_timesteps: Timesteps = "finetuned"
    """Denoising steps that imitation trains: those that fine-tuning executes, or all."""
    il_adam_eps: PositiveFloat = 1e-8
    share_optimizer: bool = False
    """Imitation is stepped by the optimiser of RL."""
    phase: Literal["inserted", "merged"] = "inserted"
    """``inserted``: an iteration of imitation after every m of RL; ``merged``: every step of every m-th RL iteration
    combines both gradients."""
    bc_weight: NonNegativeFloat = 0.1
    """Weight of imitation in every RL step, for the schedule ``bc_reg``."""
    bc_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of that weight with each iteration."""
    bc_source: Literal["demos", "base"] = "demos"
    """What is imitated there: demonstrations, or the cloned policy on the observations of the rollout."""
    row_normalise: bool = False
    """Separate unit gradients and give the result the scale of the reinforcement gradient. For ablations."""
    cagrad_radius: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """c of the separation ``cagrad``: how far a step may leave the mean gradient, as a share of its norm."""
    relation_pairs: Annotated[int, Field(ge=2)] = 4
    """Pairs of gradients in a measurement of how they relate. From 3 on, rho has a standard error."""
    relation_every: PositiveInt = 3
    """Iterations from one measurement to the next; imitation iterations are always measured, by their first steps."""
    relation_batch_size: PositiveInt = 1024
    """Samples of RL at most in a pair and in a step of imitation; RL's own minibatches may be far larger."""
    adaptive: AdaptiveConfig = AdaptiveConfig()
    """The rule of the schedule ``adaptive``; its averages and c_I are those of the log in any case."""
