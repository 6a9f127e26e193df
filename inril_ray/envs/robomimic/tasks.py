"""What the Robomimic tasks are: names, sizes, controller, and the environment arguments stored in data sets.

Source: the published ``env_args`` of robomimic's v1.4.1 data sets, in the form that robosuite 1.5 understands (the
composite controller, with the reference frame stated because its default changed from world to base).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv, Task
from inril_ray.envs.rendering import import_mujoco
from inril_ray.envs.robomimic.scenes import CanScene, LiftScene, Scene, SquareScene, TransportScene
from inril_ray.types import BoolArray, EnvSpec, FloatArray, InrilError, Interface

CONTROL_HZ = 20
SUBSTEPS = 25
"""Physics steps of 2 ms per control step."""
OSC_KP = 150.0
OLD_RELEASE = "1.4.1"
"""Of robosuite, whose rules ``v141`` are."""
OSC_OUTPUT = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
"""Metres and radians that an action of 1 asks for."""


@dataclass(frozen=True, kw_only=True)
class RobomimicTask(Task):
    """One task of the benchmark."""

    backends: tuple[str, ...] = ("fast", "kernel", "stock")
    semantics: tuple[str, ...] = ("v15", "v141")
    env_name: str
    """Name of the environment class in robosuite."""
    obs_keys: tuple[tuple[str, int], ...]
    """DPPO's order: robot keys first, the object last."""
    max_episode_steps: int
    num_arms: int = 1
    reward_values: tuple[float, ...] = (0.0, 1.0)
    """What a control step can pay: 1 when it ends solved, and what is paid for parts of that."""
    solved_above: tuple[int, float] | None = None
    """Number of the observation, and the metres above which it must be, where that is all of the rule of success."""
    scene: type[Scene]
    """What differs from the other tasks."""

    @property
    def action_dim(self) -> int:
        """Translation, rotation and gripper of every arm."""
        return 7 * self.num_arms

    def solved(self, obs: FloatArray) -> BoolArray | None:
        """Compare the height; see :meth:`Task.solved`."""
        if self.solved_above is None:
            return None
        column, height = self.solved_above
        return obs[:, column] > height

    def spec(self, config: EnvConfig) -> EnvSpec:
        """Return the task's dimensions and horizon under a configuration."""
        return EnvSpec(
            task=self.name,
            obs_dim=sum(width for _, width in self.obs_keys),
            action_dim=self.action_dim,
            max_episode_steps=config.max_episode_steps or self.max_episode_steps,
            control_hz=float(CONTROL_HZ),
            obs_keys=self.obs_keys,
            recorded_as=self.env_name,
            semantics=self.chosen_semantics(config),
            success=self.chosen_success(config),
            interface=Interface(
                robots=("Panda",) * self.num_arms,
                controller="OSC_POSE",
                action_type="delta",
                action_frame="world",
                action_scale=tuple(OSC_OUTPUT.tolist()),
                stiffness=(OSC_KP,),
                damping=(1.0,),
                interpolation="none",
                rewards="sparse",
                changed_by=(),
            ),
            reward_values=self.reward_values,
            pays_success=self.reward_values == (0.0, 1.0),
        )

    def make(self, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int) -> SimVectorEnv:
        """Make a batch of environments; see :func:`inril_ray.envs.make`."""
        if self.chosen_backend(config) == "stock":
            if self.chosen_semantics(config) != "v15":
                raise InrilError(
                    f"env.backend = 'stock' simulates robosuite 1.5 only, not env.semantics = {config.semantics!r}; "
                    "use fast or kernel."
                )
            from inril_ray.envs.robomimic.stock import StockRobomimicEnv as Backend
        else:
            from inril_ray.envs.robomimic.fast import FastRobomimicEnv as Backend
        return Backend(self, config, num_envs, seed, purpose, first_env)

    def env_args(self, robosuite_version: str, semantics: str = "v15") -> dict[str, Any]:
        """Return robomimic's ``env_args`` for data recorded here.

        Args:
            robosuite_version: that simulates.
            semantics: rules that it follows. Those of 1.4.1 are stated as that release's, in its words: by them, not by
                what simulated them, a reader knows what the numbers mean.
        """
        if semantics == "v141":
            return self._env_args_141()
        part = {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": OSC_OUTPUT.tolist(),
            "output_min": (-OSC_OUTPUT).tolist(),
            "kp": OSC_KP,
            "damping_ratio": 1,
            "impedance_mode": "fixed",
            "kp_limits": [0, 300],
            "damping_ratio_limits": [0, 10],
            "position_limits": None,
            "orientation_limits": None,
            "uncouple_pos_ori": True,
            "input_type": "delta",
            "input_ref_frame": "world",
            "interpolation": None,
            "ramp_ratio": 0.2,
            "gripper": {"type": "GRIP"},
        }
        return {
            "env_name": self.env_name,
            "env_version": robosuite_version,
            "type": 1,  # robomimic's code for robosuite environments
            "env_kwargs": {
                "robots": ["Panda"] * self.num_arms,
                "controller_configs": {"type": "BASIC", "body_parts": {"right": part}},
                "has_renderer": False,
                "has_offscreen_renderer": False,
                "use_camera_obs": False,
                "use_object_obs": True,
                "reward_shaping": False,
                "control_freq": CONTROL_HZ,
                "ignore_done": True,
                "lite_physics": True,
                **({"env_configuration": "opposed"} if self.num_arms == 2 else {}),
            },
        }

    def _env_args_141(self) -> dict[str, Any]:
        """Return the same in the words of robosuite 1.4, whose controllers have no parts and no choice of frame."""
        described = self.env_args(OLD_RELEASE)
        kwargs = described["env_kwargs"]
        part = dict(kwargs["controller_configs"]["body_parts"]["right"])
        for name in ("input_type", "input_ref_frame", "gripper"):
            del part[name]
        kwargs["controller_configs"] = {**part, "control_delta": True}
        del kwargs["lite_physics"]
        if self.num_arms == 2:
            kwargs["env_configuration"] = "single-arm-opposed"
        return described


def _task(
    name: str,
    env_name: str,
    scene: type[Scene],
    object_dim: int,
    max_episode_steps: int,
    num_arms: int = 1,
    solved_above: tuple[int, float] | None = None,
) -> Any:
    arm = (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2))
    hands = tuple((f"robot{i}_{key}", width) for i in range(num_arms) for key, width in arm)
    return RobomimicTask(
        name=f"robomimic/{name}",
        env_name=env_name,
        scene=scene,
        obs_keys=(*hands, ("object", object_dim)),
        num_arms=num_arms,
        max_episode_steps=max_episode_steps,
        solved_above=solved_above,
    )


LIFT = _task("lift", "Lift", LiftScene, 10, 300, solved_above=(11, 0.84))
"""Lift a cube 4 cm above the table, which is 0.8 m high."""
CAN = _task("can", "PickPlaceCan", CanScene, 14, 300)
"""Put a can from one bin into its place in another."""
SQUARE = _task("square", "NutAssemblySquare", SquareScene, 14, 400)
"""Put a square nut on a peg."""
TRANSPORT = _task("transport", "TwoArmTransport", TransportScene, 41, 800, num_arms=2)
"""Two arms: hand a hammer over from a lidded bin, and clear the place where it goes."""


def make_robosuite(task: RobomimicTask, seed: Any, *, edit: Callable[[str], str] | None = None) -> Any:
    """Make robosuite's own environment of a task, quietly.

    DPPO's setting is kept: resets are soft, so what robosuite draws when it builds a model (the size of Lift's cube)
    stays fixed over the life of the environment.

    Args:
        task: which task.
        seed: seed of robosuite's generator, which draws the model's random parts.
        edit: changes the model's MJCF before it is compiled.

    Raises:
        InrilError: robosuite is not installed, or is not the release whose model and controller are reproduced here.
    """
    robosuite = import_robosuite()
    kwargs = dict(task.env_args(robosuite.__version__)["env_kwargs"])
    env_class = stock = robosuite.environments.base.REGISTERED_ENVS[task.env_name]
    if edit is not None:
        own = {"edit_model_xml": lambda self, xml: edit(stock.edit_model_xml(self, xml))}
        env_class = type(stock)(f"{task.env_name}Edited", (stock,), own)
    with quiet(), _robots_compiled_once(robosuite):
        return env_class(hard_reset=False, seed=seed, renderer="mujoco", **kwargs)


def import_robosuite() -> Any:
    """Import robosuite without its warnings.

    Raises:
        InrilError: it is missing or is another release; the message says what to install.
    """
    import_mujoco()  # first: it settles which OpenGL platform MuJoCo will use
    # On import robosuite turns every logger to its own handlers and, without a display, probes for OpenGL.
    with quiet():
        try:
            import robosuite
        except ImportError as error:
            raise InrilError(
                f"The Robomimic tasks need robosuite 1.5.2 ({error}). "
                "Install it with: pip install 'inril-ray[robosuite]'"
            ) from None
    if robosuite.__version__ != "1.5.2":
        raise InrilError(
            f"The Robomimic tasks need robosuite 1.5.2, found {robosuite.__version__}; other releases move the "
            "controller or the order of the observation. Install it with: pip install 'inril-ray[robosuite]'"
        )
    return robosuite


@contextlib.contextmanager
def _robots_compiled_once(robosuite: Any) -> Iterator[None]:
    """Keep robosuite from compiling every robot for itself, too: three quarters of the time, and kept in memory.

    In release 1.5.2 nothing reads that model but inverse kinematics of whole bodies, which come as packages apart.
    """
    robot_model = robosuite.models.robots.RobotModel
    stock = robot_model.set_mujoco_model
    robot_model.set_mujoco_model = lambda *_: None
    try:
        yield
    finally:
        robot_model.set_mujoco_model = stock


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence robosuite's warnings about optional parts that are not used here."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            yield
    finally:
        logging.disable(previous)
