"""The environment contract: batched, with autoreset, a NaN guard and one random stream per episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from pydantic import Field, PositiveInt

from inril_ray.config import config, shown
from inril_ray.types import BoolArray, EnvSpec, FloatArray, InrilError, SuccessRule

PURPOSES = ("train", "eval", "demos")
COUNTERS = ("episode", "elapsed", "stage", "terminated", "truncated")
RESETS = 3
"""Episodes in a row that may begin with numbers that are not finite; then the simulator is broken."""
REAL, WHOLE, TRUTH = "iuf", "iu", "b"
"""Kinds of numpy's types."""


@config
class FurnitureOptions:
    """Options of the furniture tasks."""

    threads: PositiveInt = 1
    """That a process steps its environments with on CPU cores; results don't depend on it."""
    pad_obs: bool = False
    """Pad observations of tasks with two parts by zeros to the 44 numbers that IN-RIL's table states; they have 37."""
    meshes: bool = False
    """Draw parts with the meshes of furniture-bench 0.1 (MIT), downloaded once; physics never uses them."""
    perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability, for every part and control step, of a push like that of the reset."""
    contacts: PositiveInt | None = None
    """That ``warp`` has memory for, per environment; all share it. A run that needs more stops and says so."""
    constraints: PositiveInt | None = None
    """Rows of constraints that ``warp`` has memory for, in each environment."""
    warp_device: Literal["cuda", "cpu"] = "cuda"
    """Where ``warp`` simulates. On a CPU it crawls: that is for tests."""


@config
class EnvConfig:
    """Options of the environments."""

    backend: str | None = None
    """``fast``: our batched stepper; ``stock``: the simulator's own environment, the reference; ``kernel``: a faster
    stepper with raw pointers into MuJoCo; ``cpu``: the furniture tasks' own model on CPU cores; ``warp``: the same on
    one GPU, for a thousand environments. None takes the first of those that the task has."""
    semantics: str | None = None
    """Which release's rules the simulator follows, where releases differ silently: ``v15`` or ``v141`` for Robomimic,
    ``v4`` or ``v5`` for Gym. None takes the task's first. Demonstrations recorded under other rules are refused."""
    max_episode_steps: PositiveInt | None = None
    """Control steps per episode; None takes the benchmark's."""
    terminate_on_success: bool = False
    """End an episode at the first success. Off in the benchmarks, whose returns count successful steps."""
    success: SuccessRule | None = None
    """When an episode counts as a success: ``reached``, solved after any control step; ``final``, after its last one;
    ``held``, throughout one whole executed chunk (DPPO's rule, for comparison with its tables; it depends on
    ``actor.action_horizon``). None takes the task's own, or ``reached`` where episodes end at success. Every comparison
    goes by it; other rates are told, too."""
    furniture: FurnitureOptions = FurnitureOptions()


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Entry of the task table: subclasses say what the task looks like and make it. Knows no simulator by itself."""

    name: str
    backends: tuple[str, ...] = ("stock",)
    """Ways to simulate it; the first is the default."""
    semantics: tuple[str, ...] = ()
    """Rules that can be chosen; the first is the default. Empty where there is nothing to choose."""
    success: SuccessRule = "reached"
    """What counts as a success if the configuration doesn't say."""

    def chosen_success(self, config: EnvConfig) -> SuccessRule:
        """Return the rule of success that a configuration asks for; episodes that end at success have reached it.

        Raises:
            InrilError: another rule is asked for where episodes end at success, which can't show more.
        """
        if not config.terminate_on_success:
            return config.success or self.success
        if config.success not in (None, "reached"):
            raise InrilError(
                f"env.success = {config.success!r} looks at what follows a success, where env.terminate_on_success "
                "ends the episode. Leave it out, or set env.terminate_on_success=false."
            )
        return "reached"

    def chosen_backend(self, config: EnvConfig) -> str:
        """Return the backend that a configuration asks for.

        Raises:
            InrilError: the task does not have it.
        """
        if config.backend is not None and config.backend not in self.backends:
            raise InrilError(f"env.backend = {shown(config.backend)}: {self.name} has {', '.join(self.backends)}.")
        return config.backend or self.backends[0]

    def needs_gpu(self, config: EnvConfig) -> bool:
        """Tell whether the task simulates on a GPU under a configuration."""
        return False

    def chosen_semantics(self, config: EnvConfig) -> str:
        """Return the rules that a configuration asks for, or an empty text where the task has nothing to choose.

        Raises:
            InrilError: the task does not have them.
        """
        if config.semantics is not None and config.semantics not in self.semantics:
            choices = ", ".join(self.semantics) or "nothing to choose"
            raise InrilError(f"env.semantics = {config.semantics!r}: {self.name} has {choices}.")
        return config.semantics or next(iter(self.semantics), "")

    def solved(self, obs: FloatArray) -> BoolArray | None:
        """Tell in which of N observations [N, O] the task is solved; None where they don't tell."""
        return None

    @abstractmethod
    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return the task's dimensions and horizon under a configuration; loads no simulator."""

    @abstractmethod
    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments; see :func:`inril_ray.envs.make`."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one control step did in every environment. Rows of inactive environments are unchanged or zero."""

    obs: FloatArray
    """[B, O]"""
    reward: FloatArray
    """[B]"""
    terminated: BoolArray
    """[B] ended by the task, time limits apart, whether it was solved or can't be any more."""
    success: BoolArray
    """[B] the success state holds now."""
    stage: npt.NDArray[np.int64]
    """[B] goals reached so far."""


class SimVectorEnv(VectorEnv):
    """Base of all environments: subclasses supply physics, this class supplies the bookkeeping of the contract.

    The gymnasium interface (``reset``, ``step``) follows ``autoreset``, one of gymnasium's modes. ``SAME_STEP``:
    finished environments start anew in the step that finished them, and ``info["final_obs"]`` with its mask
    ``info["_final_obs"]`` tells where they ended. ``NEXT_STEP``: in the step after that, which ignores their action.
    ``DISABLED``: they rest, with reward 0, until ``reset`` is called, for all (lockstep) or with
    ``options={"reset_mask": mask}``. Always in ``info``: ``success``, ``stage`` and ``nan_reset``.

    Args:
        spec: dimensions and horizon of the task.
        num_envs: environments in the batch.
        seed: seed of the experiment.
        purpose: one of ``PURPOSES``.
        first_env: index of environment 0 among all of the experiment.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}

    @property
    def autoreset(self) -> AutoresetMode:
        """When ``step`` starts the next episode of finished environments."""
        return self.metadata["autoreset_mode"]

    @autoreset.setter
    def autoreset(self, mode: AutoresetMode) -> None:
        self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode(mode)}

    def __init__(self, spec: EnvSpec, num_envs: int, seed: int, purpose: str, first_env: int) -> None:
        if num_envs < 1:
            raise InrilError(f"num_envs = {num_envs}: at least 1 environment is needed.")
        if purpose not in PURPOSES:
            raise InrilError(f"purpose = {purpose!r}: choose one of {', '.join(PURPOSES)}.")
        self.task_spec = spec
        self.num_envs = num_envs
        self.base_seed, self.purpose, self.first_env = seed, purpose, first_env
        high = np.full(spec.obs_dim, np.inf, np.float32)
        self.single_observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.single_action_space = gym.spaces.Box(
            spec.action_low, spec.action_high, (spec.action_dim,), dtype=np.float32
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episode = np.full(num_envs, -1, np.int64)
        """[B] index of the running episode of each environment: part of its random stream."""
        self.elapsed = np.zeros(num_envs, np.int64)
        """[B] control steps executed in the running episode."""
        self.obs = np.zeros((num_envs, spec.obs_dim), np.float32)
        self.stage = np.zeros(num_envs, np.int64)
        self.terminated, self.truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        """[B] how an episode that ``step`` finished has ended, until the next one begins."""

    # -- what a simulator supplies ------------------------------------------------------------------------------------
    @abstractmethod
    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step in the environments where ``active``; leave the others untouched.

        Args:
            actions: [B, A]; values outside the action range are clipped.
            active: [B].
        """

    @abstractmethod
    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        """Start a new episode in the environments of ``mask``, using :meth:`episode_rng`; return obs [B, O]."""

    # -- bookkeeping --------------------------------------------------------------------------------------------------
    def env_rng(self, index: int) -> np.random.Generator:
        """Random stream for what stays fixed over an environment's life, such as the size of its objects."""
        return self._stream(index, 0)

    def episode_rng(self, index: int) -> np.random.Generator:
        """Random stream of the running episode of one environment."""
        return self._stream(index, 1 + int(self.episode[index]))

    def _stream(self, index: int, number: int) -> np.random.Generator:
        key = (PURPOSES.index(self.purpose), self.first_env + index, number)
        return np.random.default_rng(np.random.SeedSequence(self.base_seed, spawn_key=key))

    def reset_envs(self, mask: BoolArray) -> FloatArray:
        """Start the next episode in the environments of ``mask``; return the observations of all, [B, O].

        Episodes that begin with an observation that is not finite are left out.

        Raises:
            InrilError: several in a row do, or the simulator's array does not fit.
        """
        self.elapsed[mask] = 0
        self.stage[mask] = 0
        self.terminated[mask] = self.truncated[mask] = False
        for _ in range(RESETS):
            self.episode[mask] += 1
            obs = self._begin_episodes(mask)
            self._fits("_begin_episodes", "observations", obs, REAL, (self.num_envs, self.task_spec.obs_dim))
            with np.errstate(over="ignore"):  # what is not finite in single precision is not finite
                self.obs[mask] = obs[mask]
            mask = mask & ~np.isfinite(self.obs).all(axis=1)
            if not mask.any():
                return self.obs.copy()
        raise InrilError(
            f"{type(self).__name__}: the first observations of {RESETS} episodes in a row were not finite in "
            f"environments {np.flatnonzero(mask)[:5].tolist()}."
        )

    def _fits(self, method: str, name: str, array: Any, kinds: str, shape: tuple[int, ...]) -> None:
        """Refuse what a simulator must not return: numpy would broadcast or reinterpret it in silence."""
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.shape != shape:
            got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            wanted = {REAL: "real numbers", WHOLE: "whole numbers", TRUTH: "booleans"}[kinds]
            raise InrilError(
                f"{type(self).__name__}.{method} returned {name} as {got}; an array {list(shape)} of {wanted} is "
                "needed."
            )

    def advance_guarded(self, actions: FloatArray, active: BoolArray) -> tuple[StepOutcome, BoolArray, BoolArray]:
        """Advance, and apply the time limit and the NaN guard.

        An environment whose observation or reward is not finite keeps its last finite observation, gets reward 0 and
        is reported in the third result; it must be reset before it goes on.

        Returns:
            outcome, truncated [B] (time limit), broken [B] (not finite).

        Raises:
            InrilError: the simulator returns an array of another shape or kind.
        """
        outcome, each = self.advance(np.nan_to_num(actions), active), (self.num_envs,)
        self._fits("advance", "obs", outcome.obs, REAL, (self.num_envs, self.task_spec.obs_dim))
        self._fits("advance", "reward", outcome.reward, REAL, each)
        self._fits("advance", "terminated", outcome.terminated, TRUTH, each)
        self._fits("advance", "success", outcome.success, TRUTH, each)
        self._fits("advance", "stage", outcome.stage, WHOLE, each)
        with np.errstate(over="ignore"):
            found, reward = outcome.obs.astype(np.float32), outcome.reward.astype(np.float32)
        broken = active & ~(np.isfinite(found).all(axis=1) & np.isfinite(reward))
        obs = np.where((active & ~broken)[:, None], found, self.obs)
        outcome = StepOutcome(
            obs=obs,
            reward=np.where(broken | ~active, np.float32(0.0), reward),
            terminated=outcome.terminated & active & ~broken,
            success=outcome.success & active & ~broken,
            stage=np.where(active & ~broken, outcome.stage, self.stage),
        )
        self.elapsed[active] += 1
        self.obs, self.stage = obs.copy(), outcome.stage.copy()
        truncated = active & ~outcome.terminated & ~broken & (self.elapsed >= self.task_spec.max_episode_steps)
        return outcome, truncated, broken

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict]:
        """Start a new episode in every environment, or in those of ``options["reset_mask"]``.

        Args:
            seed: begin the random streams anew from this seed.
            options: ``reset_mask``, boolean [B].

        Raises:
            InrilError: the mask does not fit.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise InrilError(
                f"options['reset_mask'] = {mask!r}: {self.num_envs} booleans are needed, at least one true."
            )
        if seed is not None:
            self.base_seed = seed
            self.episode[mask] = -1
        return self.reset_envs(mask), {}

    def step(
        self, actions: FloatArray
    ) -> tuple[FloatArray, npt.NDArray[np.floating[Any]], BoolArray, BoolArray, dict[str, Any]]:
        """Execute one control step in all environments that have not finished; see the class for those that have."""
        over = self.terminated | self.truncated
        outcome, truncated, broken = self.advance_guarded(np.asarray(actions, np.float32), ~over)
        info: dict[str, Any] = {"success": outcome.success, "stage": outcome.stage, "nan_reset": broken}
        obs = outcome.obs
        if self.autoreset is AutoresetMode.NEXT_STEP and over.any():
            obs = self.reset_envs(over)
        self.terminated |= outcome.terminated
        self.truncated |= truncated | broken
        terminated, truncated = self.terminated.copy(), self.truncated.copy()
        over = terminated | truncated
        if self.autoreset is AutoresetMode.SAME_STEP and over.any():
            info["final_obs"], info["_final_obs"] = obs, over
            obs = self.reset_envs(over)
        return obs, outcome.reward, terminated, truncated, info

    # -- what a checkpoint needs --------------------------------------------------------------------------------------
    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the counters that determine every later initial state. Simulators that can, add their own state.

        Every array has a row for each environment, or none: checkpoints are dealt out to any number of workers.
        """
        return {name: getattr(self, name).copy() for name in COUNTERS}

    def set_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what :meth:`get_state` returned."""
        for name in COUNTERS:
            if state[name].shape != (self.num_envs,):
                raise InrilError(
                    f"Environment state {name} is for {len(state[name])} environments, not {self.num_envs}."
                )
            getattr(self, name)[:] = state[name]

    # -- pictures and provenance --------------------------------------------------------------------------------------
    def render_env(self, index: int, width: int = 320, height: int = 240) -> npt.NDArray[np.uint8]:
        """Return a picture [height, width, 3] of one environment.

        Raises:
            InrilError: no OpenGL library can be loaded, or this simulator has no pictures.
        """
        raise InrilError(f"{type(self).__name__} cannot render.")

    def versions(self) -> dict[str, str]:
        """Return the versions of the simulator packages, for the records."""
        return {}
