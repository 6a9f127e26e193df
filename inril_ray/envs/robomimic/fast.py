"""The fast backends: robosuite's own compiled model, stepped without robosuite's Python.

Three quarters of a stock control step is controller code in Python, most of the rest collision detection. Here the
controller is compiled (``osc.py``), visual shapes are dropped from the model (they take part in nothing but memory),
and observations and rewards are computed for the whole batch at once. Trajectories equal stock robosuite to rounding.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np

from inril_ray.envs.base import EnvConfig, SimVectorEnv, StepOutcome
from inril_ray.envs.rendering import ModelRenderer, import_mujoco
from inril_ray.envs.robomimic.physics import Arms, Physics
from inril_ray.envs.robomimic.rendering import agentview, package_versions
from inril_ray.envs.robomimic.scenes import AWAY, Scene
from inril_ray.envs.robomimic.semantics import RULES
from inril_ray.envs.robomimic.slim import hollow, slim, with_object
from inril_ray.envs.robomimic.tasks import RobomimicTask, make_robosuite
from inril_ray.types import BoolArray, FloatArray, InrilError

JOINT_NOISE_RAD = 0.02
"""Standard deviation of the initial joint angles (robosuite's default)."""


class FastRobomimicEnv(SimVectorEnv):
    """A batch of environments over one robosuite task.

    Where robosuite draws parts of the model at random when it builds it (the size of Lift's cube, the head of
    Transport's hammer), every environment has a model of its own; otherwise they share one.
    """

    def __init__(
        self, task: RobomimicTask, config: EnvConfig, num_envs: int, seed: int, purpose: str, first_env: int
    ) -> None:
        # First: gymnasium closes an environment whose construction failed.
        self._renderers: dict[tuple[int, int, int], ModelRenderer] = {}
        super().__init__(task.spec(config), num_envs, seed, purpose, first_env)
        mujoco = import_mujoco()
        self.task, self._terminate_on_success = task, config.terminate_on_success
        template = make_robosuite(task, self.env_rng(0), edit=hollow)
        rules = RULES[task.chosen_semantics(config)]
        self.scene: Scene = task.scene(template, rules)
        self._rng = template.rng
        self._template_xml = template.model.get_xml()
        self._things = [self.scene.draw(self.env_rng(i)) for i in range(num_envs)]
        reference = template.sim.model._model
        own = range(num_envs if self._things[0] is not None else 1)
        models = [_compile(mujoco, slim(self.model_xml(i), self.scene.unused), reference, self._things[i]) for i in own]
        backend = task.chosen_backend(config)
        if backend == "kernel":
            from inril_ray.envs.robomimic.kernel import kernel_or_fallback

            make_physics = kernel_or_fallback()
        else:
            make_physics = Physics
        arms = Arms(template)
        self.physics = make_physics(
            mujoco, models * (num_envs // len(models)), arms, rules, self.scene.frames, self.scene.contacts
        )
        del template, reference
        _return_memory(mujoco)

    def _begin_episodes(self, mask: BoolArray) -> FloatArray:
        for i in np.flatnonzero(mask).tolist():
            # Robosuite's samplers hold a reference to this generator, so its state is replaced, not the generator.
            # The draws and their order are robosuite's: joint noise of each arm, then the objects.
            self._rng.bit_generator.state = self.episode_rng(i).bit_generator.state
            noise = self._rng.standard_normal((self.physics.arms.num, 7)) * JOINT_NOISE_RAD
            self.physics.begin(i, noise, self.scene.place(self._things[i]))
        poses, fingers = self.physics.observe()
        self.scene.begin(poses, mask)
        return self._vector(poses, fingers)

    def advance(self, actions: FloatArray, active: BoolArray) -> StepOutcome:
        """Execute one control step in the environments where ``active``."""
        clipped = np.clip(actions.astype(np.float64), self.task_spec.action_low, self.task_spec.action_high)
        self.physics.step(clipped, active)
        poses, fingers = self.physics.observe()
        success = active & self.scene.success(poses)
        return StepOutcome(
            obs=self._vector(poses, fingers),
            reward=success.astype(np.float32),
            terminated=success & self._terminate_on_success,
            success=success,
            stage=np.maximum(self.stage, success),
        )

    def _vector(self, poses: Any, fingers: FloatArray) -> FloatArray:
        arms = np.concatenate([poses.hand_pos, poses.hand_quat, fingers], axis=2)
        return np.concatenate([arms.reshape(self.num_envs, -1), self.scene.observe(poses)], axis=1)

    def get_state(self) -> dict[str, Any]:
        """Return counters and the complete physics and controller state of every environment."""
        own = {"physics": self.physics.get_state(), "scene": self.scene.get_state(), "obs": self.obs.copy()}
        return {**super().get_state(), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get_state` returned; the continuation is bit-identical."""
        super().set_state(state)
        self.physics.set_state(state["physics"])
        self.scene.set_state(state["scene"])
        self.obs[:] = state["obs"]

    def sim_state(self, index: int) -> FloatArray:
        """Return robomimic's flat state of one environment: time, positions, velocities.

        Objects that the task puts away are given where robosuite puts them; here they fall through the floor, which a
        replay in robosuite would not survive.
        """
        data, model = self.physics.data[index], self.physics.models[index]
        qpos, qvel = data.qpos.copy(), data.qvel.copy()
        for body in self.scene.unused:
            joint = model.joint(model.body(body).jntadr[0])
            qpos[joint.qposadr[0] : joint.qposadr[0] + 7], qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = AWAY, 0.0
        return np.concatenate([[data.time], qpos, qvel])

    def model_xml(self, index: int) -> str:
        """Return the MJCF model of one environment, as robosuite would build it."""
        thing = self._things[index]
        return self._template_xml if thing is None else with_object(self._template_xml, thing)

    def render_env(self, index: int, width: int = 320, height: int = 240) -> np.ndarray:
        """Return a picture [height, width, 3] of one environment."""
        key = (index, width, height)
        if key not in self._renderers:
            model = import_mujoco().MjModel.from_xml_string(self.model_xml(index))
            self._renderers[key] = agentview(model, width, height)
        return self._renderers[key].render(self.physics.data[index].qpos)

    def close_extras(self, **kwargs: object) -> None:
        """Free the renderers, which OpenGL no longer allows when the process ends."""
        for renderer in self._renderers.values():
            renderer.close()

    def versions(self) -> dict[str, str]:
        """Return the versions of robosuite and MuJoCo."""
        return package_versions()


def _return_memory(mujoco: Any) -> None:
    """Give back what building took: 250 MB that the allocator would keep, for each of a node's workers."""
    mujoco.mj_clearCache(mujoco.mj_getCache())
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's only
    if trim is not None:
        trim(0)


def _compile(mujoco: Any, xml: str, reference: Any, thing: Any | None) -> Any:
    """Compile a slim model and check it against robosuite's, which made edits after compiling its own."""
    model = mujoco.MjModel.from_xml_string(xml)
    drawn = -1 if thing is None else mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, thing.root_body)
    same = np.arange(model.nbody) != drawn  # its size, and with it its mass, is drawn for each environment
    if model.nbody != reference.nbody or not np.array_equal(model.body_mass[same], reference.body_mass[same]):
        raise InrilError("The slim model differs from robosuite's in its bodies or their masses.")
    model.body_pos[:], model.body_quat[:] = reference.body_pos, reference.body_quat
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    return model
