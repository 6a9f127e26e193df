"""The fast backend against stock robosuite, and our files against robomimic's own reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest

from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.demos.episodes import Expectation
from inril_ray.demos.formats.robomimic_hdf5 import RobomimicHdf5
from inril_ray.demos.store import DemoStore, load
from inril_ray.envs.base import EnvConfig, SimVectorEnv
from inril_ray.envs.robomimic.fast import FastRobomimicEnv
from inril_ray.envs.robomimic.physics import Physics
from inril_ray.envs.robomimic.scenes import LiftScene, TransportScene
from inril_ray.record import record
from inril_ray.registry import resolve
from inril_ray.types import InrilError

pytestmark = [
    pytest.mark.sim,
    # Invalid escape sequences in robosuite's and robomimic's sources; a SyntaxWarning from Python 3.12 on.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

TASK = "robomimic/lift"
BUNDLED = Path(str(files("inril_ray.data") / "lift_scripted.hdf5"))
SPEC = envs.spec(TASK, EnvConfig())
EXPECTATION = Expectation(env_name=SPEC.recorded_as, obs_keys=SPEC.obs_keys, action_dim=SPEC.action_dim)


def make(backend: str, num_envs: int, seed: int, purpose: str = "train", task: str = TASK) -> SimVectorEnv:
    return envs.make(task, num_envs=num_envs, seed=seed, purpose=purpose, config=EnvConfig(backend=backend))


def positions(env: SimVectorEnv) -> np.ndarray:
    if isinstance(env, FastRobomimicEnv):
        return np.stack([data.qpos for data in env.physics.data])
    return np.stack([np.array(e.sim.data.qpos) for e in env.envs])


def velocities(env: SimVectorEnv) -> np.ndarray:
    if isinstance(env, FastRobomimicEnv):
        return np.stack([data.qvel for data in env.physics.data])
    return np.stack([np.array(e.sim.data.qvel) for e in env.envs])


# -- physics ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[t for t in envs.TASKS if t.startswith("robomimic/")])
def rivals(request: pytest.FixtureRequest) -> Iterator[dict[str, SimVectorEnv]]:
    made = {b: make(b, 2, 5, task=request.param) for b in ("fast", "kernel", "stock")}
    yield made
    made["stock"].close()


@pytest.mark.parametrize("backend", ["fast", "kernel"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_stock_after_20_random_steps(rivals: dict[str, SimVectorEnv], backend: str, seed: int) -> None:
    ours, stock = rivals[backend], rivals["stock"]
    rng = np.random.default_rng(seed)
    options = {"seed": seed}
    for _ in range(2):  # twice: the second episode follows a soft reset
        start, expected = ours.reset(**options)[0], stock.reset(**options)[0]
        options = {}
        np.testing.assert_allclose(start, expected, rtol=0, atol=1e-6)
        before = positions(ours)
        np.testing.assert_allclose(before, positions(stock), rtol=0, atol=1e-12)
        for _ in range(20):
            action = rng.uniform(-1, 1, (2, ours.task_spec.action_dim)).astype(np.float32)
            obs, reward, *_ = ours.step(action)
            want, wanted, *_ = stock.step(action)
            np.testing.assert_allclose(obs, want, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(reward, wanted)
        np.testing.assert_allclose(positions(ours), positions(stock), rtol=0, atol=1e-9)
        np.testing.assert_allclose(velocities(ours), velocities(stock), rtol=0, atol=1e-7)
        assert np.abs(positions(ours) - before).max() > 0.05, "nothing moved: the test shows nothing"


def test_put_away_objects_change_nothing_else() -> None:
    """They fall through the floor here, and land on it in robosuite."""
    fast, stock = make("fast", 1, 0, task="robomimic/square"), make("stock", 1, 0, task="robomimic/square")
    fast.reset()
    stock.reset()
    rng = np.random.default_rng(0)
    for _ in range(70):
        action = rng.uniform(-0.3, 0.3, (1, 7)).astype(np.float32)
        obs, want = fast.step(action)[0], stock.step(action)[0]
        np.testing.assert_allclose(obs, want, rtol=0, atol=1e-6)
    model = fast.physics.models[0]
    height = int(model.joint("RoundNut_joint0").qposadr[0]) + 2
    assert positions(fast)[0, height] < -1.0 < 0.0 < positions(stock)[0, height] < 0.1
    state = fast.sim_state(0)
    assert state[1 + height] == 10.0, "a replay in robosuite must not begin inside the floor"
    stock.close()


# -- rules of robosuite 1.4.1 -----------------------------------------------------------------------------------------
OLD = np.load(Path(__file__).parents[1] / "golden" / "robosuite_141.npz")


class Draws:
    """Stands in for the generator that draws a hammer: gives the values of a recorded one."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def uniform(self, low: float, high: float) -> float:
        return self._values.pop(0)

    def random(self) -> float:
        return 0.0


@pytest.mark.parametrize("backend", ["fast", "kernel"])
@pytest.mark.parametrize("task", ["lift", "can", "square", "transport"])
def test_v141_equals_recordings_of_robosuite_141(task: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = json.loads(str(OLD["starts"]))[task]
    if task == "lift":
        from robosuite.models.objects import BoxObject

        cube = BoxObject(name="cube", size=start["cube_size"])
        monkeypatch.setattr(LiftScene, "draw", lambda self, rng: cube)
    if task == "transport":
        draw, values = TransportScene.draw, (0.015, 0.2, 150.0, 4.0, start["head_halfsize"])
        monkeypatch.setattr(TransportScene, "draw", lambda self, rng: draw(self, Draws(*values)))
    found = {}
    for semantics in ("v141", "v15"):
        config = EnvConfig(backend=backend, semantics=semantics)
        env = envs.make(f"robomimic/{task}", num_envs=1, seed=0, config=config)
        env.reset()
        everyone = np.ones(1, bool)
        noise = np.array(start["rest"]) - env.physics.arms.rest
        env.physics.begin(0, noise, {joint: np.array(pose) for joint, pose in start["placed"].items()})
        poses, fingers = env.physics.observe()
        env.scene.begin(poses, everyone)
        obs, rewards = [env._vector(poses, fingers)[0]], []
        for action in OLD[f"{task}_actions"]:
            outcome = env.advance(action[None], everyone)
            obs.append(outcome.obs[0])
            rewards.append(outcome.reward[0])
        found[semantics] = np.array(obs), positions(env)[0], rewards
    obs, qpos, rewards = found["v141"]
    np.testing.assert_allclose(obs, OLD[f"{task}_obs"], rtol=0, atol=1e-6)
    unused = [a for a, value in enumerate(OLD[f"{task}_qpos"]) if abs(value) > 2]  # put away
    used = np.setdiff1d(np.arange(len(qpos)), [a for u in unused for a in range(u - 2, u + 5)])
    np.testing.assert_allclose(qpos[used], OLD[f"{task}_qpos"][used], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(rewards, OLD[f"{task}_rewards"])
    new, newer, _ = found["v15"]
    assert np.abs(newer[:7] - qpos[:7]).max() > 0.1, "the rules make no difference: the test shows nothing"
    assert np.abs(new[0] - obs[0]).max() > 0.1


def test_stock_refuses_the_old_rules() -> None:
    with pytest.raises(InrilError, match="simulates robosuite 1.5 only"):
        envs.make(TASK, num_envs=1, seed=0, config=EnvConfig(backend="stock", semantics="v141"))


def test_kernel_falls_back_on_an_unknown_release(monkeypatch: pytest.MonkeyPatch) -> None:
    from inril_ray.envs.robomimic import kernel

    monkeypatch.setattr(kernel, "CHECKED_RELEASE", "0.0.0")
    with pytest.warns(UserWarning, match="was checked with MuJoCo 0.0.0"):
        assert kernel.kernel_or_fallback() is Physics


# -- successful episodes ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trajectories:
    """Scripted episodes of the fast backend, [T, B, ...]."""

    start: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    actions: np.ndarray
    success: np.ndarray


SCRIPTED_SEED = 3
DEMONSTRATED = [task for task in DEMONSTRATORS if task.startswith("robomimic/")]


def succeed(task: str, num_envs: int) -> Trajectories:
    """Run a demonstrator on the fast backend until all its episodes have succeeded for five steps."""
    cls = resolve(DEMONSTRATORS, task, "demonstrator")
    env = make("fast", num_envs, SCRIPTED_SEED, task=task)
    actors = [cls(np.random.default_rng(i), cls.Config(noise=0.05)) for i in range(num_envs)]
    start = obs = env.reset()[0]
    rows: list[tuple[np.ndarray, ...]] = []
    while len(rows) < env.task_spec.max_episode_steps - 1:
        action = np.stack([a.act(o) for a, o in zip(actors, obs, strict=True)])
        obs, reward, _, _, info = env.step(action)
        rows.append((obs, reward, action, info["success"]))
        if np.any([r[3] for r in rows[:-5]], axis=0).all():
            break
    observations, rewards, actions, success = (np.stack(c) for c in zip(*rows, strict=True))
    return Trajectories(start=start, obs=observations, reward=rewards, actions=actions, success=success)


@pytest.mark.parametrize("task", DEMONSTRATED)
def test_observations_and_rewards_equal_along_successful_episodes(task: str) -> None:
    """The recorded actions are replayed open-loop: stock goes the same way, to the same success."""
    num_envs = 3 if task == TASK else 1
    scripted = succeed(task, num_envs)
    assert scripted.success.any(axis=0).all(), "the demonstrator did not succeed: the test shows nothing"
    assert scripted.reward.sum() > 3
    stock = make("stock", num_envs, SCRIPTED_SEED, task=task)
    np.testing.assert_allclose(stock.reset()[0], scripted.start, rtol=0, atol=1e-6)
    for step, action in enumerate(scripted.actions):
        obs, reward, terminated, truncated, info = stock.step(action)
        np.testing.assert_allclose(obs, scripted.obs[step], rtol=0, atol=1e-5, err_msg=f"step {step}")
        np.testing.assert_array_equal(reward, scripted.reward[step], err_msg=f"step {step}")
        np.testing.assert_array_equal(info["success"], scripted.success[step])
        assert not (terminated | truncated).any()
    stock.close()


def test_cubes_differ_between_environments_as_in_robosuite() -> None:
    fast, stock = make("fast", 3, 4), make("stock", 3, 4)
    model = fast.physics.models[0]
    geom = fast.physics.mujoco.mj_name2id(model, fast.physics.mujoco.mjtObj.mjOBJ_GEOM, "cube_g0")
    sizes = np.stack([model.geom_size[geom] for model in fast.physics.models])
    expected = np.stack([e.sim.model.geom_size[e.sim.model.geom_name2id("cube_g0")] for e in stock.envs])
    np.testing.assert_allclose(sizes, expected, rtol=0, atol=1e-9)
    assert len({tuple(row) for row in sizes}) == 3
    assert ((sizes >= 0.020) & (sizes <= 0.022)).all()
    stock.close()


def test_recorded_model_and_state_describe_the_simulation() -> None:
    fast = make("fast", 1, 0)
    fast.reset()
    mujoco = fast.physics.mujoco
    model = mujoco.MjModel.from_xml_string(fast.model_xml(0))
    state = fast.sim_state(0)
    assert state.shape == (1 + model.nq + model.nv,)
    np.testing.assert_array_equal(state[1 : 1 + model.nq], positions(fast)[0])
    np.testing.assert_allclose(model.body_mass, fast.physics.models[0].body_mass, rtol=1e-12)


# -- files ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def robomimic_dataset() -> Iterator[type]:
    """robomimic's own reader, told which observations there are."""
    obs_utils = pytest.importorskip("robomimic.utils.obs_utils", reason="robomimic is not installed")
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_modality_mapping_from_dict(
        {"low_dim": [key for key, _ in envs.spec("robomimic/transport", EnvConfig()).obs_keys]}
    )
    yield SequenceDataset
    obs_utils.OBS_KEYS_TO_MODALITIES = obs_utils.OBS_MODALITIES_TO_KEYS = None


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    path = tmp_path_factory.mktemp("record") / "lift.hdf5"
    return path, record(TASK, path, num_demos=3, seed=11, held_out=1, num_envs=3)


@pytest.fixture(params=["recorded", "bundled"])
def demo_file(request: pytest.FixtureRequest, recorded: tuple[Path, dict[str, float]]) -> Path:
    return recorded[0] if request.param == "recorded" else BUNDLED


def test_robomimic_reads_our_files(demo_file: Path, robomimic_dataset: type) -> None:
    arrays = load(demo_file, EXPECTATION)
    starts = arrays.episode_starts
    for mask, wanted in (("train", ~arrays.held_out), ("valid", arrays.held_out)):
        data = robomimic_dataset(
            hdf5_path=str(demo_file),
            obs_keys=tuple(key for key, _ in SPEC.obs_keys),
            dataset_keys=("actions", "rewards", "dones"),
            seq_length=4,
            pad_seq_length=False,
            frame_stack=1,
            hdf5_cache_mode="all",
            filter_by_attribute=mask,
        )
        lengths = np.diff(starts)[wanted]
        assert data.n_demos == wanted.sum() > 0
        assert len(data) == (lengths - 3).sum()
        first = int(starts[:-1][wanted][0])
        for offset in (0, 1, int(lengths[0]) - 4):
            item, row = data[offset], first + offset
            np.testing.assert_array_equal(item["actions"], arrays.actions[row : row + 4])
            np.testing.assert_array_equal(item["rewards"], arrays.rewards[row : row + 4])
            obs = np.concatenate([item["obs"][key] for key, _ in SPEC.obs_keys], axis=1)
            np.testing.assert_allclose(obs, arrays.obs[row : row + 4], rtol=0, atol=1e-7)
            following = np.concatenate([item["next_obs"][key] for key, _ in SPEC.obs_keys], axis=1)
            np.testing.assert_allclose(following[:-1], obs[1:], rtol=0, atol=1e-7)
        assert item["dones"].tolist() == [0, 0, 0, 1]
        data.close_and_delete_hdf5_handle()


def test_stored_values_are_consistent(demo_file: Path) -> None:
    with h5py.File(demo_file) as file:
        data = file["data"]
        assert data.attrs["total"] == sum(d.attrs["num_samples"] for d in data.values())
        env_args = json.loads(data.attrs["env_args"])
        assert env_args["env_name"] == "Lift"
        assert env_args["env_version"].startswith("1.5")
        names = {x.decode() for mask in ("train", "valid") for x in file[f"mask/{mask}"][()]}
        assert names == set(data)
        for demo in data.values():
            obs, following = demo["obs/object"][()], demo["next_obs/object"][()]
            np.testing.assert_array_equal(obs[1:], following[:-1])
            assert np.abs(demo["actions"][()]).max() <= 1.0
            relative = obs[:, 0:3] - demo["obs/robot0_eef_pos"][()]
            np.testing.assert_allclose(obs[:, 7:10], relative, rtol=0, atol=2e-7)
            rewards = demo["rewards"][()]
            np.testing.assert_array_equal(rewards > 0, following[:, 2] > 0.84)
            assert int(np.argmax(rewards > 0)) == len(rewards) - 6, "five steps are kept after the first success"


def test_recording_is_reproducible_and_says_how_it_went(
    recorded: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    path, summary = recorded
    again = record(TASK, tmp_path / "again.hdf5", num_demos=3, seed=11, held_out=1, num_envs=3)
    assert (tmp_path / "again.hdf5").read_bytes() == path.read_bytes()
    assert again == summary
    assert 0.5 < summary["demonstrator_success_rate"] <= 1.0
    assert summary["episodes_tried"] >= 3
    assert RobomimicHdf5.inspect(path).source == "scripted"
    assert [p.name for p in path.parent.iterdir()] == ["lift.hdf5"]


@pytest.mark.parametrize("backend", ["fast", "stock"])
def test_recorded_actions_replayed_succeed(recorded: tuple[Path, dict[str, float]], backend: str) -> None:
    """Open loop, from the initial states of ``demos``, found again by the first observation."""
    episodes = list(RobomimicHdf5.read(recorded[0], EXPECTATION))
    env = make(backend, 3, 11, purpose="demos")
    start = env.reset()[0]
    replayed: set[int] = set()
    for episode in episodes:
        found = np.flatnonzero(np.abs(start - episode.obs[0]).max(axis=1) < 1e-6)
        if len(found) == 0:
            continue  # it was the second try of its environment
        index = int(found[0])
        active = np.arange(3) == index
        for step, action in enumerate(episode.actions):
            np.testing.assert_allclose(env.obs[index], episode.obs[step], rtol=0, atol=1e-6)
            outcome, _, _ = env.advance_guarded(np.tile(action, (3, 1)), active)
            assert outcome.reward[index] == episode.rewards[step]
        assert outcome.success[index]
        replayed.add(index)
    assert len(replayed) >= 2
    env.close()


@pytest.mark.parametrize("task", [t for t in DEMONSTRATED if t != TASK])
def test_other_tasks_recordings_replay_in_stock_and_are_read_by_robomimic(
    task: str, tmp_path: Path, robomimic_dataset: type
) -> None:
    """Recorded on the fast backend, replayed open-loop in robosuite, from the same initial state."""
    path, spec = tmp_path / "demo.hdf5", envs.spec(task, EnvConfig())
    summary = record(task, path, num_demos=1, seed=2, num_envs=1, quality={"noise": 0.1})
    assert summary["episodes_tried"] == 1, "another initial state: choose a seed whose first episode succeeds"
    episode = next(RobomimicHdf5.read(path, Expectation.of(spec)))
    stock = make("stock", 1, 2, purpose="demos", task=task)
    obs = stock.reset()[0]
    for step, action in enumerate(episode.actions):
        np.testing.assert_allclose(obs[0], episode.obs[step], rtol=0, atol=1e-5, err_msg=f"step {step}")
        obs, reward, *_ = stock.step(action[None])
        assert reward[0] == episode.rewards[step]
    assert reward[0] == 1.0
    stock.close()
    keys = tuple(key for key, _ in spec.obs_keys)
    data = robomimic_dataset(
        hdf5_path=str(path),
        obs_keys=keys,
        dataset_keys=("actions", "rewards"),
        seq_length=4,
        pad_seq_length=False,
        frame_stack=1,
        hdf5_cache_mode="all",
    )
    assert len(data) == len(episode.actions) - 3
    read = np.concatenate([data[7]["obs"][key] for key in keys], axis=1)
    np.testing.assert_allclose(read, episode.obs[7:11], rtol=0, atol=1e-7)
    data.close_and_delete_hdf5_handle()


def test_bundled_file_is_small_labelled_and_fits_the_task() -> None:
    assert BUNDLED.stat().st_size < 2_000_000
    info = RobomimicHdf5.inspect(BUNDLED)
    assert (info.source, info.semantics, info.env_name, info.warnings) == ("scripted", "v15", "Lift", ())
    arrays = load(BUNDLED, EXPECTATION)
    assert arrays.info.source == "scripted"
    assert arrays.held_out.sum() >= 1
    assert arrays.obs.shape[1] == 19
    assert DemoStore(arrays, 4).num_windows > 500


def test_bundled_observations_are_those_of_the_simulator() -> None:
    """Initial states and first steps are found again from the provenance that the file states."""
    arrays = load(BUNDLED, EXPECTATION)
    made_by = arrays.info.metadata["made_by"]
    env = make("fast", made_by["num_envs"], made_by["seed"], purpose="demos")
    starts = arrays.episode_starts[:-1]
    matched: set[int] = set()
    for _ in range(2):
        initial = env.reset()[0]
        distance = np.abs(arrays.obs[starts][:, None] - initial[None]).max(axis=2)
        pairs = [(int(e), int(i)) for e, i in np.argwhere(distance < 1e-6)]
        actions = np.zeros((env.num_envs, 7), np.float32)
        active = np.zeros(env.num_envs, bool)
        for step in range(5):
            for episode, index in pairs:
                row = starts[episode] + step
                np.testing.assert_allclose(env.obs[index], arrays.obs[row], rtol=0, atol=1e-6)
                actions[index], active[index] = arrays.actions[row], True
            env.advance_guarded(actions, active)
        matched |= {episode for episode, _ in pairs}
    assert len(matched) >= 6, f"only {len(matched)} of {len(starts)} episodes begin where the simulator does"
