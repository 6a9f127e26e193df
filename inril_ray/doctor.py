"""What is installed, and what each task needs."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import psutil

from inril_ray import envs
from inril_ray.envs.base import EnvConfig
from inril_ray.threads import available_cpus
from inril_ray.types import InrilError

CHECKED = {
    "ray": ("2.60", "cluster runs; without it: --local"),
    "torch": ("2.11 or newer", "learning"),
    "torchvision": ("matching torch", "robomimic's readers"),
    "numpy": ("1.26", "robosuite needs 1.x"),
    "mujoco": ("3.8.1", "simulators; robosuite breaks from 3.10 on"),
    "robosuite": ("1.5.2", "Robomimic tasks"),
    "robomimic": ("0.3.0", "its own data set readers"),
    "gymnasium-robotics": ("1.4.2", "Fetch and Adroit tasks"),
    "gymnasium": ("1.2.2", "environment interface"),
    "mujoco-warp": ("3.8.1", "furniture tasks on a GPU"),
    "warp-lang": ("1.12.1", "furniture tasks on a GPU"),
    "pyarrow": ("20 or newer", "demonstration store"),
    "mlflow": ("3.17 or newer", "experiment tracking"),
}
"""Package to the version that works and what it is for."""


def examine() -> list[str]:
    """Return the findings as lines to print."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    lines = [
        f"Python {platform.python_version()}, {available_cpus()} CPUs, {memory.available / 2**30:.1f} GiB of memory "
        f"free, {disk.free / 2**30:.0f} GiB of disk free, GPU: {_gpu()}",
        "",
        "packages",
    ]
    for name, (wanted, purpose) in CHECKED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        lines.append(f"  {name:18s} {found:16s} wanted {wanted:16s} {purpose}")
    lines += ["", "tasks"]
    answers = {task: _try(task) for task in envs.TASKS}
    for task, answer in answers.items():
        # What is missing may be missing for a whole suite: it is said once.
        first = next(t for t, a in answers.items() if a == answer)
        lines.append(f"  {task:27s} {answer if first == task else f'as {first}'}")
    return [*lines, "", f"rendering         {_rendering()}", f"env.backend=warp  {_warp()}"]


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    free, total = torch.cuda.mem_get_info()
    count = torch.cuda.device_count()
    return f"{torch.cuda.get_device_name()} x {count}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free on the first"


def _warp() -> str:
    """Tell whether this machine can simulate on a GPU; makes no environment, whose kernels compile for minutes."""
    from inril_ray.envs.furniture.warp import import_warp, require_gpu

    try:
        require_gpu()
        import_warp()
    except InrilError as error:
        return f"not ready here: {error} On Ray, workers look for one on the nodes."
    return "ready"


def _try(task: str) -> str:
    """Make one environment and step it once: the only answer that can be trusted."""
    try:
        env = envs.make(task, num_envs=1, seed=0, config=EnvConfig())
        env.reset()
        env.step(env.action_space.sample())
    except InrilError as error:
        return f"not ready: {error}"
    env.close()
    spec = env.task_spec
    return (
        f"ready: observation {spec.obs_dim}, action {spec.action_dim}, {spec.max_episode_steps} steps, {env.versions()}"
    )


def _rendering() -> str:
    try:
        env = envs.make(next(iter(envs.TASKS)), num_envs=1, seed=0)
        env.reset()
        env.render_env(0, 64, 48)
        env.close()
    except InrilError as error:
        return str(error)
    return "works without a display"
