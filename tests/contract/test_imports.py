"""What importing loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("ray", "mlflow", "wandb", "mujoco", "robosuite", "gymnasium_robotics")
STATEMENTS = {
    "package": "import inril_ray",
    "command_line": "import inril_ray.cli",
    "tables": (
        "import inril_ray.algorithms, inril_ray.demos, inril_ray.envs, inril_ray.gradient_separation, "
        "inril_ray.policies, inril_ray.schedules, inril_ray.tracking"
    ),
    "spec_of_every_task": (
        "from inril_ray import envs; from inril_ray.envs.base import EnvConfig; "
        "[envs.spec(t, EnvConfig(backend=b)) for t in envs.TASKS for b in envs.entry(t).backends]"
    ),
    "learner": "import inril_ray.learner, inril_ray.rollout, inril_ray.evaluate, inril_ray.demos.store",
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_importing_loads_nothing_heavy(name: str) -> None:
    code = f"{STATEMENTS[name]}\nimport sys\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_check_sees_a_heavy_module() -> None:
    code = f"import mujoco, sys\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "['mujoco']"
