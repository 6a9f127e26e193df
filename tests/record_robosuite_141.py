"""Record what robosuite 1.4.1 does, for the tests of ``env.semantics=v141``.

Needs an environment of its own, because robosuite 1.4.1 and 1.5.2 exclude each other::

    python -m venv old && old/bin/pip install robosuite==1.4.1 mujoco==3.8.1 "numpy<2"
    old/bin/python tests/record_robosuite_141.py tests/golden/robosuite_141.npz
"""

from __future__ import annotations

import json
import sys

import numpy as np

TASKS = {"lift": ("Lift", 1), "can": ("PickPlaceCan", 1), "square": ("NutAssemblySquare", 1)}
TASKS["transport"] = ("TwoArmTransport", 2)
NUM_STEPS = 30
FREE = 0
"""MuJoCo's code for a free joint."""


def controller() -> dict:
    """The published settings, in the form of robosuite 1.4."""
    limit = [0.05] * 3 + [0.5] * 3
    return {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": limit,
        "output_min": [-x for x in limit],
        "kp": 150,
        "damping": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "control_delta": True,
        "interpolation": None,
        "ramp_ratio": 0.2,
    }


def record(name: str, num_arms: int) -> tuple[dict, dict]:
    """Step one environment through random actions, with and without rotation."""
    import robosuite

    if robosuite.__version__ != "1.4.1":
        sys.exit(f"robosuite 1.4.1 is needed, found {robosuite.__version__}.")
    np.random.seed(7)
    env = robosuite.make(
        name,
        robots=["Panda"] * num_arms,
        controller_configs=controller(),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        reward_shaping=False,
        control_freq=20,
        ignore_done=True,
        hard_reset=False,
        **({"env_configuration": "single-arm-opposed"} if num_arms == 2 else {}),
    )
    env.reset()
    keys = [f"robot{i}_{k}" for i in range(num_arms) for k in ("eef_pos", "eef_quat", "gripper_qpos")]

    def vector(observed: dict) -> np.ndarray:
        return np.concatenate([observed[k] for k in (*keys, "object-state")])

    obs = [vector(env.reset())]
    model, data = env.sim.model, env.sim.data
    free = [j for j in range(model.njnt) if model.jnt_type[j] == FREE]
    start = {
        "rest": [np.array(data.qpos[r._ref_joint_pos_indexes]).tolist() for r in env.robots],
        "placed": {
            model.joint_id2name(j): data.qpos[model.jnt_qposadr[j] : model.jnt_qposadr[j] + 7].tolist() for j in free
        },
        "cube_size": np.array(env.cube.size).tolist() if name == "Lift" else None,
        "head_halfsize": float(env.transport.payload.head_halfsize) if num_arms == 2 else None,
    }
    rng, actions, rewards = np.random.default_rng(3), [], []
    for step in range(NUM_STEPS):
        action = rng.uniform(-0.7, 0.7, (num_arms, 7)).astype(np.float32)
        if step // 5 % 2:
            action[:, 3:6] = 0.0
        observed, reward, _, _ = env.step(action.ravel().astype(np.float64))
        actions.append(action.ravel())
        obs.append(vector(observed))
        rewards.append(reward)
    return start, {
        "actions": np.array(actions),
        "obs": np.array(obs, np.float32),
        "rewards": np.array(rewards, np.float32),
        "qpos": np.array(data.qpos),
    }


def main() -> None:
    """Write one file for all tasks."""
    arrays, starts = {}, {}
    for task, (name, num_arms) in TASKS.items():
        starts[task], found = record(name, num_arms)
        arrays.update({f"{task}_{key}": value for key, value in found.items()})
    np.savez_compressed(sys.argv[1], starts=json.dumps(starts), **arrays)


if __name__ == "__main__":
    main()
