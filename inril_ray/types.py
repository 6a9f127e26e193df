"""What the parts of the library hand to each other.

Shape legend, used in every docstring:

=====  =====================================================================
``T``  chunk decisions in one rollout (time)
``B``  parallel environments
``N``  samples in a batch
``K``  denoising steps of a diffusion policy; ``F`` of them fine-tuned
``H``  actions in a chunk (prediction horizon)
``O``  observation dimension
``A``  action dimension
=====  =====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


SuccessRule = Literal["reached", "held", "final"]
"""When an episode is a success. ``reached``: its task is solved after any control step. ``held``: after every step of
one whole executed chunk (DPPO's rule; it depends on the length of chunks), or in the step that ends the episode.
``final``: after its last step."""


class InrilError(Exception):
    """An error that the user can act on. Its text is the whole message: the CLI prints it without a traceback."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What the numbers of actions and rewards mean, as a recording or a task states it; None where it does not."""

    robots: tuple[str, ...] | None = None
    """Models of the arms."""
    controller: str | None = None
    """What turns actions into torques, such as ``OSC_POSE``."""
    action_type: str | None = None
    """``delta``: a change from the present pose; ``absolute``: the pose itself."""
    action_frame: str | None = None
    """Frame that actions are in: ``world`` or ``base``."""
    action_scale: tuple[float, ...] | None = None
    """Metres, then radians, that an action of 1 asks for; a single number stands for all."""
    stiffness: tuple[float, ...] | None = None
    damping: tuple[float, ...] | None = None
    """Damping ratio."""
    interpolation: str | None = None
    """How goals are approached within a control step: ``none``, ``linear``."""
    control_hz: float | None = None
    """Actions in a second."""
    action_low: tuple[float, ...] | None = None
    """Least action; a single number stands for all."""
    action_high: tuple[float, ...] | None = None
    rewards: str | None = None
    """``sparse``: for reaching goals only; ``dense``: for coming nearer, too, by the environment's own formula."""
    changed_by: tuple[str, ...] | None = None
    """Wrappers and options that give numbers another meaning than the plain environment's."""


UNSTATED = Interface()


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What a task looks like from outside. Dimensions come from here, never from a configuration."""

    task: str
    """Name in the task table, ``suite/name``."""
    obs_dim: int
    action_dim: int
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    control_hz: float
    obs_keys: tuple[tuple[str, int], ...]
    """Order and width of the parts of the observation vector."""
    action_low: float = -1.0
    action_high: float = 1.0
    recorded_as: str | None = None
    """Name of the environment in published data sets; None accepts any."""
    semantics: str = ""
    """Rules that the simulator follows, such as ``v15`` for robosuite 1.5; empty where releases agree."""
    score_range: tuple[float, float] | None = None
    """Returns that count as scores 0 and 100 (D4RL's normalisation)."""
    num_stages: int = 1
    """Successive goals of the task; ``info["stage"]`` counts those reached."""
    success: SuccessRule = "reached"
    """What counts as a success, in every comparison."""
    interface: Interface = UNSTATED
    """What actions and rewards mean, beside ``control_hz`` and the bounds."""
    reward_values: tuple[float, ...] | None = None
    """What a control step can pay; None where that is any number."""
    pays_success: bool = False
    """A control step pays 1 if it ends solved, else 0."""


@dataclass(frozen=True, kw_only=True)
class EpisodeStats:
    """Outcomes of the episodes that ended in a rollout or an evaluation, in the order in which they ended."""

    envs: npt.NDArray[np.int64]
    """[E] index of the environment, among all of the experiment."""
    returns: FloatArray
    """[E] sum of rewards per episode."""
    lengths: npt.NDArray[np.int64]
    """[E] control steps executed."""
    success: BoolArray
    """[E] by the rule of the task, :attr:`EnvSpec.success`: one of the three that follow."""
    reached: BoolArray
    """[E] solved after any control step; see :data:`SuccessRule`."""
    held: BoolArray
    """[E] solved throughout one whole executed chunk, or when the episode ended."""
    final: BoolArray
    """[E] solved after the last control step."""

    def rows(self, index: Any) -> EpisodeStats:
        """Return some episodes, chosen or reordered by a numpy index."""
        return EpisodeStats(**{f.name: getattr(self, f.name)[index] for f in fields(EpisodeStats)})

    @staticmethod
    def concatenate(parts: list[EpisodeStats]) -> EpisodeStats:
        """Join the episodes of several workers, in the order given."""
        return EpisodeStats(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(EpisodeStats)}
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One fragment of experience: T chunk decisions in B environments, time-major, float32.

    ``chains`` holds what the algorithm needs to score the sampled chunk again: for a diffusion policy the F+1
    states around its fine-tuned denoising steps, for a Gaussian policy (F=1) a zero and the sampled chunk.
    """

    obs: FloatArray
    """[T, B, O] observation at each decision."""
    chains: FloatArray
    """[T, B, F+1, H, A] normalised action chunks."""
    log_probs: FloatArray
    """[T, B, F] behaviour log-probability of every fine-tuned step, mean over the executed chunk."""
    rewards: FloatArray
    """[T, B] sum over the executed steps of the chunk."""
    terminated: BoolArray
    """[T, B] the task ended the episode: no bootstrap."""
    truncated: BoolArray
    """[T, B] the time limit (or the NaN guard) ended it: bootstrap from ``next_obs``."""
    valid: BoolArray
    """[T, B] False where the NaN guard dropped the sample."""
    next_obs: FloatArray
    """[T, B, O] observation after the chunk; the *final* one where the episode ended."""
    last_obs: FloatArray
    """[B, O] observation at the decision that comes after the last row: of a new episode where that row ended one."""
    policy_version: int
    """Version of the weights that acted."""
    env_steps: int
    """Control steps executed (chunks cut by the end of an episode count what they executed)."""
    episodes: EpisodeStats
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds in ``simulation`` and ``inference``."""
    nan_resets: int = 0
    """Environments that the NaN guard reset."""
    worker: int = 0

    def size_bytes(self) -> int:
        """Bytes in arrays, for the object-store budget."""
        return sum(v.nbytes for f in fields(self) if isinstance(v := getattr(self, f.name), np.ndarray))

    def ended_by_time_limits(self) -> Rollout:
        """Return the same experience with time limits as ends of the task; what the NaN guard cut is none."""
        limit = self.truncated & self.valid
        return replace(self, terminated=self.terminated | limit, truncated=self.truncated & ~limit)

    @staticmethod
    def concatenate(parts: list[Rollout]) -> Rollout:
        """Join the fragments of several workers along the environment axis, in the order given."""
        if len(parts) == 1:
            return parts[0]

        def joined(name: str, axis: int = 1) -> Any:
            return np.concatenate([getattr(p, name) for p in parts], axis=axis)

        return Rollout(
            obs=joined("obs"),
            chains=joined("chains"),
            log_probs=joined("log_probs"),
            rewards=joined("rewards"),
            terminated=joined("terminated"),
            truncated=joined("truncated"),
            valid=joined("valid"),
            next_obs=joined("next_obs"),
            last_obs=joined("last_obs", axis=0),
            policy_version=min(p.policy_version for p in parts),
            env_steps=sum(p.env_steps for p in parts),
            episodes=EpisodeStats.concatenate([p.episodes for p in parts]),
            timings_s={k: max(p.timings_s.get(k, 0.0) for p in parts) for k in parts[0].timings_s},
            nan_resets=sum(p.nan_resets for p in parts),
        )


@dataclass(frozen=True, kw_only=True)
class DemoBatch:
    """Windows of demonstrations: what an imitation loss is computed on."""

    obs: FloatArray
    """[N, O] observation at the start of the window."""
    actions: FloatArray
    """[N, H, A] the actions that follow, in the units of the environment."""
    images: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Name of a camera to its pictures [N, height, width, channels] at the start of the window."""


@dataclass(frozen=True, kw_only=True)
class NormalizerStats:
    """Per-dimension range of the data that a policy was cloned from."""

    obs_low: FloatArray
    obs_high: FloatArray
    action_low: FloatArray
    action_high: FloatArray
