"""Every demonstrator records a file that its task accepts, in the format of its suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.demos.episodes import Expectation
from inril_ray.demos.planners.hammer import NAIL, cost
from inril_ray.demos.scripted.fetch import FetchStyleConfig, PushDemonstrator
from inril_ray.demos.store import load
from inril_ray.envs.base import EnvConfig
from inril_ray.medium import MediumConfig, MediumPolicy
from inril_ray.record import FORMATS, record
from inril_ray.types import InrilError
from tests.fakes import FAKE_TASK_NAME, register_fake_task

pytestmark = [
    pytest.mark.sim,
    # Invalid escape sequences in robosuite's and robomimic's sources; a SyntaxWarning from Python 3.12 on.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]
QUICK: dict[str, dict[str, Any]] = {"rl": {"target_return": -1000.0}}
"""Settings that keep a recording short: an untrained policy."""


TASKS = [
    # Of the levels of furniture, which are numbers of the same code, `make test` has one.
    pytest.param(task, marks=pytest.mark.drill if task.endswith(("_med", "_high")) else [])
    for task in DEMONSTRATORS
    if task not in ("adroit/hammer", "gym/halfcheetah")
]


def make(task: str, path: Path, **options: Any) -> dict[str, float]:
    quality = QUICK["rl"] if task.startswith("gym/") else {}
    return record(task, path, **{"num_demos": 2, "seed": 3, "num_envs": 2, "quality": quality, **options})


@pytest.mark.parametrize("task", TASKS)
def test_recording_fits_its_task_and_says_who_acted(task: str, tmp_path: Path) -> None:
    """The hammer is tested below; the cheetah has the same demonstrator as the others, and no short episodes."""
    path = tmp_path / "demos"
    summary = make(task, path)
    spec = envs.spec(task, EnvConfig())
    arrays = load(path, Expectation.of(spec))
    assert len(arrays.held_out) == 2
    assert arrays.info.source == ("rl" if task.startswith("gym/") else "scripted")
    assert spec.semantics in ("", arrays.info.semantics), "every format says by which rules, where there are several"
    assert arrays.obs.shape[1] == spec.obs_dim
    assert np.abs(arrays.actions).max() <= 1.0
    lengths = np.diff(arrays.episode_starts)
    assert lengths.max() <= spec.max_episode_steps
    assert summary["mean_length"] == pytest.approx(lengths.mean())
    if task.startswith("gym/"):
        assert (arrays.success == -1).all(), "there is no success in these tasks"
        assert "demonstrator_success_rate" not in summary
    else:
        assert summary["demonstrator_success_rate"] == pytest.approx(
            arrays.success.mean() if task.startswith("fetch/") else 2 / summary["episodes_tried"]
        )
    assert [p.name for p in tmp_path.iterdir()] == ["demos"], "nothing half-written is left"
    again = tmp_path / "again"
    make(task, again)
    assert load(again, Expectation.of(spec)).info.content_hash == arrays.info.content_hash


def test_the_planner_drives_the_nail_in_and_is_labelled(tmp_path: Path) -> None:
    summary = make("adroit/hammer", tmp_path / "hammer", num_demos=1, num_envs=1)
    arrays = load(tmp_path / "hammer", Expectation.of(envs.spec("adroit/hammer", EnvConfig())))
    assert arrays.info.source == "planner"
    assert summary["demonstrator_success_rate"] == 1.0
    assert arrays.success.tolist() == [1]
    assert arrays.obs[0, NAIL] < 0.01 < 0.08 < arrays.obs[-1, NAIL]


def test_cost_prefers_the_nail_further_in() -> None:
    obs = np.zeros((2, 8, 46))
    obs[0, :, NAIL], obs[1, :, NAIL] = 0.05, 0.02
    better, worse = cost(obs)
    assert better < worse
    obs[1, :, NAIL] = 0.05
    obs[1, :, 33:36] = 0.3  # the palm is away from the hammer
    assert cost(obs)[0] < cost(obs)[1]


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_success_rate_of_fetch_is_a_parameter(rate: float, tmp_path: Path) -> None:
    summary = record("fetch/push", tmp_path / "push", num_demos=60, seed=0, num_envs=20, quality={"success_rate": rate})
    # Four standard deviations of 60 draws, and what a wrong goal may still achieve by chance.
    assert abs(summary["demonstrator_success_rate"] - rate) < 4 * np.sqrt(0.25 / 60)
    assert rate > 0 or summary["demonstrator_success_rate"] < 0.1


@pytest.mark.parametrize("rate", [-0.1, 0.99])
def test_success_rate_out_of_reach_is_refused(rate: float) -> None:
    with pytest.raises(InrilError, match=f"success_rate = {rate}: PushDemonstrator reaches at most 0.86"):
        PushDemonstrator(np.random.default_rng(0), FetchStyleConfig(success_rate=rate))


@pytest.mark.parametrize("task", ["fetch/push", "gym/hopper"])
def test_formats_without_masks_hold_nothing_out(task: str, tmp_path: Path) -> None:
    with pytest.raises(InrilError, match=f"held_out = 1: {FORMATS[task.split('/')[0]]}.*has no mask"):
        make(task, tmp_path / "x", held_out=1)


@pytest.mark.parametrize("task", ["fetch/push", "robomimic/lift", "gym/hopper"])
def test_what_exists_is_not_overwritten(task: str, tmp_path: Path) -> None:
    precious = tmp_path / "demos"
    precious.write_text("hours of work")
    with pytest.raises(InrilError, match=r"exists; demonstrations are not overwritten"):
        make(task, precious)
    assert precious.read_text() == "hours of work"


def test_training_learns_and_gives_up_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fake_task(monkeypatch)
    lines: list[str] = []
    config = MediumConfig(target_return=6.0, max_env_steps=150_000)
    MediumPolicy.train(FAKE_TASK_NAME, config, 0, lines.append)
    assert lines[-1].startswith("stopped after ")
    hopeless = MediumConfig(target_return=11.0, max_env_steps=5_000)
    with pytest.raises(InrilError, match="max_env_steps = 5000: the mean return is .* the target 11"):
        MediumPolicy.train(FAKE_TASK_NAME, hopeless, 0, lines.append)
    with pytest.raises(InrilError, match="no medium return is known for fake/reach"):
        MediumPolicy.train(FAKE_TASK_NAME, MediumConfig(), 0, lines.append)


def test_provenance_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lift.hdf5"
    make("robomimic/lift", path, quality={"noise": 0.1}, held_out=1, config=EnvConfig(backend="fast"))
    with h5py.File(path) as file:
        source = json.loads(file["data"].attrs["inril_source"])
    assert source["quality"] == {"noise": 0.1, "aim_error_m": 0.004, "min_speed": 0.55}
    assert (source["kind"], source["seed"], source["robosuite"]) == ("scripted", 3, "1.5.2")
    assert source["env"] == {
        "task": "robomimic/lift",
        "backend": "fast",
        "semantics": "v15",
        "control_hz": 20.0,
        "action_range": [-1.0, 1.0],
        "max_steps": 300,
    }


# -- what a file says about its recording is how it was recorded ------------------------------------------------------
@pytest.mark.parametrize(("task", "rules"), [("robomimic/lift", "v141"), ("gym/hopper", "v5")])
def test_a_file_states_the_rules_that_it_was_recorded_under(
    task: str, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a configuration; the defaults are tested above."""
    path, options, used = tmp_path / "demos.hdf5", EnvConfig(semantics=rules), set()
    original = envs.make

    def noted(name: str, **given: Any) -> Any:
        used.add(envs.spec(name, given["config"]).semantics)
        return original(name, **given)

    monkeypatch.setattr(envs, "make", noted)
    make(task, path, config=options)
    assert used == {rules}, "what was trained for the recording was so under its rules, too"
    arrays = load(path, Expectation.of(envs.spec(task, options)))  # its numbers are recomputed by these rules
    assert arrays.info.semantics == rules
    assert arrays.info.metadata["made_by"]["env"]["semantics"] == rules
    with pytest.raises(InrilError, match=f"recorded with the rules of .*{rules}"):
        load(path, Expectation.of(envs.spec(task, EnvConfig())))


def test_env_args_of_old_rules_are_in_the_words_of_the_old_release() -> None:
    """As in the published files of robosuite 1.4.1, which its own code takes."""
    old, new = (envs.entry("robomimic/transport").env_args("1.5.2", rules) for rules in ("v141", "v15"))
    assert (old["env_version"], new["env_version"]) == ("1.4.1", "1.5.2")
    assert old["env_kwargs"]["env_configuration"] == "single-arm-opposed"
    assert "lite_physics" not in old["env_kwargs"]
    controller = old["env_kwargs"]["controller_configs"]
    assert (controller["type"], controller["control_delta"], controller["kp"]) == ("OSC_POSE", True, 150.0)
    assert not {"body_parts", "input_type", "input_ref_frame", "gripper"} & controller.keys()
    assert new["env_kwargs"]["controller_configs"]["body_parts"]["right"]["input_type"] == "delta"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"terminate_on_success": True}, "env.terminate_on_success = True: recorded episodes end tail_steps after"),
        ({"success": "held"}, "env.success = 'held': recorded episodes"),
        ({"max_episode_steps": 7}, "env.max_episode_steps = 7: .* or after --max-steps"),
        ({"semantics": "v4"}, "env.semantics = 'v4': robomimic/lift has v15, v141"),
    ],
)
def test_options_without_a_meaning_in_a_recording_are_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InrilError, match=said):
        make("robomimic/lift", tmp_path / "x", config=EnvConfig(**options))


@pytest.mark.parametrize("task", ["robomimic/can", "robomimic/square", "robomimic/transport"])
def test_a_script_that_would_misread_the_observation_is_not_asked(task: str, tmp_path: Path) -> None:
    with pytest.raises(InrilError, match=f"the script of {task} reads observations in the order of v15 only"):
        make(task, tmp_path / "x", config=EnvConfig(semantics="v141"))
