"""Rules of the simulator: those that a file states, and those that its numbers follow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.envs.registration import EnvSpec

from inril_ray import envs
from inril_ray.cli import main
from inril_ray.demos.episodes import DemoError, Expectation, FileInfo, RecordedEpisode
from inril_ray.demos.formats import minari
from inril_ray.demos.semantics import AGE, DIRECTION, ORDER, check_arrays, check_task
from inril_ray.demos.store import convert, load
from inril_ray.envs.base import EnvConfig
from inril_ray.types import FloatArray
from tests.unit import test_demos_lerobot

PATH = Path("demos.hdf5")
OLD = np.load(Path(__file__).parents[1] / "golden" / "robosuite_141.npz")
"""What robosuite 1.4.1 observed."""
ENV_NAMES = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare", "transport": "TwoArmTransport"}


def old_obs(task: str) -> dict[str, FloatArray]:
    obs, hands = OLD[f"{task}_obs"], 18 if task == "transport" else 9
    return {"robot0_eef_pos": obs[:, 0:3], "robot0_eef_quat": obs[:, 3:7], "object": obs[:, hands:].copy()}


def carried(release: str, task: str = "can", steps: int = 20) -> dict[str, FloatArray]:
    """A hand that turns, and an object that it moves by 2 cm a step, observed under the rules of a release."""
    rng = np.random.default_rng(4)
    quat = rng.normal(size=(steps, 4))
    quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    hand, pos = rng.normal(size=(steps, 3)), 0.02 * np.arange(steps)[:, None] + np.zeros(3)
    if task == "lift":
        offset = pos - hand if release == "v15" else hand - pos
        return {
            "robot0_eef_pos": hand,
            "robot0_eef_quat": quat,
            "object": np.concatenate([pos, quat, offset], axis=1),
        }
    seen = np.concatenate([pos[:1], pos[:-1]]) if release == "v15" else pos
    x, y, z, w = quat.T
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    relative = np.einsum("jin,nj->ni", rotation, seen - hand)
    absolute, relative = np.concatenate([pos, quat], axis=1), np.concatenate([relative, quat], axis=1)
    if release == "v15":
        relative[0] = 0.0
    parts = [relative, absolute] if release == "v15" else [absolute, relative]
    return {"robot0_eef_pos": hand, "robot0_eef_quat": quat, "object": np.concatenate(parts, axis=1)}


@pytest.mark.parametrize("task", ENV_NAMES)
def test_recordings_of_robosuite_141_follow_its_rules(task: str) -> None:
    check_arrays(PATH, "demo_0", ENV_NAMES[task], "v141", old_obs(task))
    with pytest.raises(DemoError, match="says v15, but its numbers have another release's rule") as caught:
        check_arrays(PATH, "demo_0", ENV_NAMES[task], "v15", old_obs(task))
    assert (caught.value.episode, caught.value.field) == ("demo_0", "obs/object")
    assert (DIRECTION if task == "lift" else ORDER) in str(caught.value)


@pytest.mark.parametrize("release", ["v15", "v141"])
@pytest.mark.parametrize("task", ["lift", "can"])
def test_made_up_recordings_follow_their_own_rules_only(task: str, release: str) -> None:
    obs, other = carried(release, task), {"v15": "v141", "v141": "v15"}[release]
    check_arrays(PATH, "demo_0", ENV_NAMES[task], release, obs)
    with pytest.raises(DemoError) as caught:
        check_arrays(PATH, "demo_0", ENV_NAMES[task], other, obs)
    names = {rule for rule in (ORDER, AGE, DIRECTION) if rule in str(caught.value)}
    assert names == ({DIRECTION} if task == "lift" else {ORDER, AGE})


def test_the_rule_that_differs_is_named_alone() -> None:
    obs = carried("v141")
    swapped = {**obs, "object": np.roll(obs["object"], 7, axis=1)}  # the order of 1.5, the age of 1.4.1
    with pytest.raises(DemoError) as caught:
        check_arrays(PATH, "demo_0", "PickPlaceCan", "v15", swapped)
    assert AGE in str(caught.value)
    assert ORDER not in str(caught.value)
    with pytest.raises(DemoError) as caught:
        check_arrays(PATH, "demo_0", "PickPlaceCan", "v141", swapped)
    assert ORDER in str(caught.value)
    assert AGE not in str(caught.value)


def test_an_object_that_rests_tells_nothing_of_age() -> None:
    obs = carried("v141")
    still = {key: np.repeat(value[:1], 10, axis=0) for key, value in obs.items()}
    check_arrays(PATH, "demo_0", "PickPlaceCan", "v141", still)
    still["object"] = np.roll(still["object"], 7, axis=1)
    check_arrays(PATH, "demo_0", "PickPlaceCan", "v15", still)


def test_numbers_of_no_release_are_an_error() -> None:
    obs = carried("v15")
    obs["robot0_eef_pos"] = obs["robot0_eef_pos"] + 0.1
    with pytest.raises(DemoError, match="follows the rules of no known release"):
        check_arrays(PATH, "demo_0", "PickPlaceCan", "v15", obs)


def test_what_can_not_be_recomputed_is_not_checked() -> None:
    obs = carried("v141")
    check_arrays(PATH, "demo_0", "Coffee_D0", "v15", obs)
    check_arrays(PATH, "demo_0", "PickPlaceCan", "v15", {"object": obs["object"]})
    check_arrays(PATH, "demo_0", "PickPlaceCan", "v15", {k: v[:1] for k, v in obs.items()})


@pytest.mark.sim
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("release", ["v15", "v141"])
@pytest.mark.parametrize("task", ENV_NAMES)
def test_the_simulator_follows_the_rules_that_it_names(task: str, release: str) -> None:
    env = envs.make(f"robomimic/{task}", num_envs=1, seed=0, config=EnvConfig(semantics=release))
    everyone, rng, spec = np.ones(1, bool), np.random.default_rng(0), env.task_spec
    rows = [env.reset_envs(everyone)[0].copy()]
    for _ in range(30):
        actions = rng.uniform(-1, 1, (1, spec.action_dim)).astype(np.float32)
        rows.append(env.advance_guarded(actions, everyone)[0].obs[0].copy())
    starts = np.cumsum([0, *(width for _, width in spec.obs_keys)])
    obs = {key: np.stack(rows)[:, s : s + width] for (key, width), s in zip(spec.obs_keys, starts, strict=False)}
    check_arrays(PATH, "demo_0", str(spec.recorded_as), release, obs)
    with pytest.raises(DemoError, match="another release's rule"):
        check_arrays(PATH, "demo_0", str(spec.recorded_as), {"v15": "v141", "v141": "v15"}[release], obs)


# -- every format -----------------------------------------------------------------------------------------------------
LIFT_KEYS = (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2), ("object", 10))


def as_minari(path: Path) -> Path:
    """What robosuite 1.4.1 observed in Lift, in a Minari set."""
    obs = OLD["lift_obs"]
    steps = len(obs) - 1
    episode = RecordedEpisode(
        obs=obs[:-1], next_obs=obs[1:], actions=np.zeros((steps, 7)), rewards=np.zeros(steps), terminated=False
    )
    minari.write(
        path,
        [episode],
        env_spec=EnvSpec("Lift").to_json(),
        obs_keys=LIFT_KEYS,
        action_range=(-1.0, 1.0),
        source={"kind": "scripted"},
        dataset_id="lift/scripted-v0",
    )
    return path


def as_lerobot(path: Path) -> Path:
    """The same in a LeRobot set of one episode, which does not say what it is of."""
    obs = OLD["lift_obs"].astype(np.float32)
    start, columns = 0, {}
    for key, width in LIFT_KEYS:
        columns[f"observation.{key}"] = test_demos_lerobot.vectors(obs[:, start : start + width])
        start += width
    columns["action"] = test_demos_lerobot.vectors(np.zeros((len(obs), 7)))
    columns |= {"episode_index": pa.array(np.zeros(len(obs), int)), "frame_index": pa.array(np.arange(len(obs)))}
    features = {key: {"dtype": "float32", "shape": [1]} for key in columns}
    about = {"codebase_version": "v3.0", "total_episodes": 1, "total_frames": len(obs), "features": features}
    for folder in ("data", "meta/episodes"):
        (path / folder / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), path / "data" / "chunk-000" / "file-000.parquet")
    episodes = pa.table({"episode_index": [0], "length": [len(obs)]})
    pq.write_table(episodes, path / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    (path / "meta" / "info.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("write", [as_minari, as_lerobot])
def test_numbers_of_other_rules_are_found_in_every_format(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "set")
    old, new = (Expectation.of(envs.spec("robomimic/lift", EnvConfig(semantics=s))) for s in ("v141", "v15"))
    assert any("v141 was assumed" in w for w in load(path, old).info.metadata["warnings"])
    with pytest.raises(
        DemoError, match="was taken to follow v15, but its numbers have another release's rule"
    ) as caught:
        convert(path, tmp_path / "out.arrow", new)
    assert DIRECTION in str(caught.value)
    assert (caught.value.episode, caught.value.field) == ("0", "obs/object")
    assert not (tmp_path / "out.arrow").exists()
    stated = dataclasses.replace(new, recorded_semantics="v15")
    assert any("the file says nothing" in w for w in load(path, stated).info.metadata["warnings"])


# -- what a file states -----------------------------------------------------------------------------------------------
def info(env_name: str, semantics: str) -> FileInfo:
    return FileInfo(format="any", env_name=env_name, semantics=semantics, source="unknown")


def task(env_name: str | None, semantics: str = "") -> Expectation:
    return Expectation(env_name=env_name, obs_keys=(("observation", 3),), action_dim=2, semantics=semantics)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (("Lift", "v15"), ("Lift", "v15")),
        (("AdroitHandHammerSparse", "v1"), ("AdroitHandHammer", "")),
        (("FetchPushDense", "v4"), ("FetchPush", "")),
        (("Anything", "v3"), (None, "")),
    ],
)
def test_what_fits_comes_without_warnings(recorded: tuple[str, str], expected: tuple[str | None, str]) -> None:
    assert check_task(PATH, info(*recorded), task(*expected)) == ()


@pytest.mark.parametrize(
    ("recorded", "expected", "message"),
    [
        (("Lift", "v15"), ("PickPlaceCan", "v15"), "in environment 'Lift', the task needs 'PickPlaceCan'"),
        (("Lift", "v15"), ("Lift", "v141"), r"robosuite 1\.5 \(v15\), the task simulates v141"),
        (("Hopper", "v5"), ("Hopper", "v4"), "friction of Walker2d"),
        (("Hopper", "v2"), ("Hopper", "v5"), r"gym's v2 environments \(v2\), the task simulates v5"),
        (("Hopper", "v0"), ("Hopper", "v4"), "rules of v0, which are not known here; the task simulates v4"),
    ],
)
def test_what_does_not_fit_is_an_error(recorded: tuple[str, str], expected: tuple[str, str], message: str) -> None:
    with pytest.raises(DemoError, match=message):
        check_task(PATH, info(*recorded), task(*expected))


def test_what_is_nearly_equal_or_not_stated_is_a_warning() -> None:
    assert "returns can differ slightly" in check_task(PATH, info("Hopper", "v2"), task("Hopper", "v4"))[0]
    unknown = check_task(PATH, info("", ""), task("Hopper", "v4"))
    assert "Hopper was assumed" in unknown[0]
    assert "v4 was assumed" in unknown[1]


def mislabelled(path: Path) -> Path:
    """What robosuite 1.4.1 observed in Lift, in a file that names 1.5."""
    obs = {**old_obs("lift"), "robot0_gripper_qpos": OLD["lift_obs"][:, 7:9]}
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.zeros((len(obs["object"]), 7))
        for key, array in obs.items():
            file[f"data/demo_0/obs/{key}"] = array
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "env_version": "1.5.1", "type": 1})
    return path


def test_a_wrong_label_is_told_refused_and_can_be_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = str(mislabelled(tmp_path / "lift.hdf5")), tmp_path / "lift.arrow"
    assert main(["demos", "inspect", file]) == 0
    assert "warning       obs/object of the first episode says v15, but its numbers have" in capsys.readouterr().out
    convert = ["demos", "convert", file, str(store), "--task", "robomimic/lift"]
    assert main(convert) == 1
    assert "`inril demos convert --semantics` states the rules" in capsys.readouterr().err
    assert not store.exists()
    right = ["--semantics", "v141", "--set", "env.semantics=v141"]
    assert main([*convert, *right]) == 0
    assert "taken to follow the rules v141, as asked; the file says v15" in capsys.readouterr().out
    assert (
        load(store, Expectation.of(envs.spec("robomimic/lift", EnvConfig(semantics="v141")))).info.semantics == "v141"
    )
    assert main([*convert, "--semantics", "v14"]) == 1
    assert "inril: --semantics v14: robomimic/lift is recorded by the rules v15 or v141." in capsys.readouterr().err
