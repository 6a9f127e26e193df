"""MimicGen's tasks on a machine without MimicGen, or with another package of that name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from inril_ray import envs
from inril_ray.envs.base import EnvConfig
from inril_ray.envs.mimicgen import find_installation
from inril_ray.types import InrilError

NAMES = [name for name in envs.TASKS if name.startswith("mimicgen/")]


def make(task: str = "mimicgen/coffee") -> None:
    envs.make(task, num_envs=1, seed=0)


def package(folder: Path, *files: str) -> None:
    """Write a package, all of whose modules fail on import."""
    for file in ("__init__.py", *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise AssertionError('imported')")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are found in first."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("task", "recorded_as", "object_dim", "steps"),
    [
        ("coffee", "Coffee_D0", 57, 400),
        ("coffee_d2", "Coffee_D2", 57, 400),
        ("threading_d1", "Threading_D1", 28, 400),
        ("nut_assembly", "NutAssembly_D0", 28, 500),
        ("mug_cleanup_d1", "MugCleanup_D1", 29, 500),
        ("hammer_cleanup", "HammerCleanup_D0", 28, 500),
    ],
)
def test_spec(task: str, recorded_as: str, object_dim: int, steps: int) -> None:
    spec = envs.spec(f"mimicgen/{task}", EnvConfig())
    assert spec.obs_keys[-1] == ("object", object_dim)
    assert (spec.obs_dim, spec.action_dim, spec.control_hz) == (9 + object_dim, 7, 20)
    assert (spec.recorded_as, spec.max_episode_steps, spec.semantics) == (recorded_as, steps, "")


@pytest.mark.parametrize("name", NAMES)
def test_names_say_the_level(name: str) -> None:
    env_name = envs.spec(name, EnvConfig()).recorded_as
    assert env_name is not None
    plain, level = env_name.split("_")
    task, _, suffix = name.removeprefix("mimicgen/").partition("_d")
    assert plain == "".join(part.capitalize() for part in task.split("_"))
    assert level == f"D{suffix or 0}"


def test_missing_installation_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        InrilError, match=r"^mimicgen is not installed\. .*git clone https://github.com/NVlabs/mimicgen"
    ):
        make()


def test_package_of_the_same_name_is_refused_without_importing_it(site: Path) -> None:
    package(site / "mimicgen", "generate.py")
    with pytest.raises(InrilError, match=r"another package: it has no envs/robosuite/coffee\.py.*NVlabs") as caught:
        make()
    assert str(site / "mimicgen") in str(caught.value)
    assert "mimicgen" not in sys.modules


def test_module_of_the_same_name_is_refused_without_importing_it(site: Path) -> None:
    (site / "mimicgen.py").write_text("raise AssertionError('imported')")
    with pytest.raises(InrilError, match=r"mimicgen\.py is another package"):
        make()


def test_hammer_needs_the_task_zoo_as_well(site: Path) -> None:
    package(site / "mimicgen", "envs/robosuite/coffee.py")
    package(site / "robosuite_task_zoo")
    with pytest.raises(InrilError, match=r"robosuite_task_zoo at .* is another package.*ARISE-Initiative"):
        make("mimicgen/hammer_cleanup")


def test_real_installation_is_found_without_importing_it(site: Path) -> None:
    package(site / "mimicgen", "envs/robosuite/coffee.py")
    assert find_installation("mimicgen", "envs/robosuite/coffee.py", "") == site / "mimicgen"


@pytest.mark.parametrize("options", [{"backend": "fast"}, {"semantics": "v141"}])
def test_there_is_one_way_to_simulate(site: Path, options: dict[str, Any]) -> None:
    package(site / "mimicgen", "envs/robosuite/coffee.py")
    with pytest.raises(InrilError, match="mimicgen/coffee has"):
        envs.make("mimicgen/coffee", num_envs=1, seed=0, config=EnvConfig(**options))
