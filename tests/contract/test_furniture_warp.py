"""The furniture tasks on mujoco_warp, held against the same model on MuJoCo in C. Kernels compile for minutes, once."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray import envs
from inril_ray.demos import DEMONSTRATORS
from inril_ray.envs.base import EnvConfig, FurnitureOptions
from inril_ray.envs.furniture import logic, robot
from inril_ray.envs.furniture.tasks import FURNITURE
from inril_ray.registry import resolve
from inril_ray.types import InrilError

TASK = "furniture/one_leg_low"
EVERY, STEPS = 16, 300
"""Control steps between the states that are compared, and of the episode that they are from."""
HELD = {
    "joints": (-0.1863602, 0.5988843, 0.6099045, -2.0154302, -0.0628686, 1.6721711, -1.9712611),
    "fingers": (0.0143824, 0.0143821),
    "leg": (0.3678454, 0.1971784, 0.104422, 0.5361719, 0.4683536, 0.5296559, -0.4611174),
}
"""A leg that lies flat between the fingers, from a scripted episode: penetrates them by 0.64 mm."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and here is none")


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    pytest.importorskip("mujoco_warp", reason="needs inril-ray[furniture]")


def physics(num_envs: int, **options: Any) -> Any:
    from inril_ray.envs.furniture.warp import WarpPhysics

    return WarpPhysics(FURNITURE["one_leg"], num_envs, **{"device": "cpu", **options})


@pytest.fixture(scope="module")
def episode() -> dict[str, np.ndarray]:
    """States of a scripted episode on MuJoCo in C, the controls of the next control step, and where it leads."""
    env: Any = envs.make(TASK, num_envs=1, seed=0, purpose="demos")
    demonstrator = resolve(DEMONSTRATORS, TASK, "demonstrator")
    expert = demonstrator(np.random.default_rng(0), demonstrator.Config())
    simulation, active, rows = env.physics, np.ones(1, bool), []
    obs = env.reset_envs(active)
    for step in range(STEPS):
        action = expert.act(obs[0])[None]
        data = simulation._data[0]
        row = {
            "qpos": data.qpos.copy(), "qvel": data.qvel.copy(), "warm_start": data.qacc_warmstart.copy(),
            "equalities": data.eq_active.astype(bool), "obstacle": data.mocap_pos[0].copy(),
        }  # fmt: skip
        if step % EVERY == EVERY // 2:
            before = env.get_state()
            opens = logic.gripper_opens(action[:, 9], env.opens)
            row["controls"] = logic.controls(
                np.clip(action.astype(float), -1, 1), simulation.qpos, opens, env.where, robot.FINGER_FORCE
            )[0]
            simulation.step(row["controls"][None], active)
            row["after"] = simulation.qpos[0].copy()
            env.set_state(before)
            rows.append(row)
        obs = env.advance_guarded(action, active)[0].obs
    env.close()
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def load(simulation: Any, states: dict[str, np.ndarray]) -> None:
    simulation.begin(torch.ones(len(simulation.qpos), dtype=torch.bool, device=simulation.qpos.device))
    simulation.qpos[:], simulation.qvel[:] = simulation.array(states["qpos"]), simulation.array(states["qvel"])
    simulation._warm_start[:] = simulation.array(states["warm_start"])
    simulation.active_equalities[:] = simulation.array(states["equalities"])
    simulation.obstacle[:] = simulation.array(states["obstacle"])


def assert_close_to_c(simulation: Any, states: dict[str, np.ndarray]) -> None:
    """Metres and radians from where MuJoCo in C is after a control step."""
    found, where = simulation.numpy(simulation.qpos).astype(float), simulation.where
    off = np.stack([np.abs(found - states["after"])[:, a : a + 3].max(1) for a in where.parts_qpos], axis=1).max(1)
    turned = np.abs(found - states["after"])[:, list(where.joints)].max(1)
    # Box against box, C leaves out corners of a finger's face now and then, and then the leg turns in the hand there.
    assert np.mean(off < 50e-6) > 0.8, off
    assert off.max() < 500e-6, off
    assert np.mean(turned < 1e-4) > 0.8, turned
    assert turned.max() < 1e-3, turned
    assert np.median(off) < 1e-6
    assert np.median(turned) < 1e-5


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_agrees_with_mujoco_in_c(episode: dict[str, np.ndarray]) -> None:
    simulation = physics(len(episode["qpos"]))
    tray, leg = (simulation.where.parts_qpos[k] for k in (0, 4))
    qpos, equalities = episode["qpos"], episode["equalities"]
    welds = list(simulation.where.screws[0].welds)
    assert np.abs(qpos[:, tray] - qpos[0, tray]).max() > 0.02, "the episode pushes the tray"
    assert qpos[:, leg + 2].max() > 0.1, "and lifts the leg"
    assert equalities[:, welds].any(), "and screws it in"
    load(simulation, episode)
    simulation.step(simulation.array(episode["controls"]), torch.ones(len(qpos), dtype=torch.bool))
    assert_close_to_c(simulation, episode)


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_boxes_that_lie_flat_on_each_other_have_no_deep_contacts() -> None:
    simulation, rng = physics(16), np.random.default_rng(0)
    model, where = simulation.model, simulation.where
    qpos = np.tile(model.qpos0, (16, 1))
    qpos[:, list(where.joints)], qpos[:, list(where.fingers)] = HELD["joints"], HELD["fingers"]
    leg = where.parts_qpos[4]
    qpos[:, leg : leg + 7] = HELD["leg"] + 1e-7 * rng.normal(size=(16, 7))
    simulation.qpos[:] = simulation.array(qpos)
    simulation._simulator.step(simulation._model, simulation._data)
    contact, count = simulation._data.contact, int(simulation._data.nacon.numpy()[0])
    pair = sorted(model.geom(name).id for name in ("finger1_3", "square_table_leg4_0"))
    found = (np.sort(contact.geom.numpy()[:count], axis=1) == pair).all(axis=1)
    distances = contact.dist.numpy()[:count][found]
    assert len(distances) >= 16
    assert distances.min() > -0.001, "the release's own collision function has contacts 28 mm deep here"


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_environments_that_are_not_active_stay_bit_for_bit(episode: dict[str, np.ndarray]) -> None:
    few = {name: value[[1, 1, 3, 3]] for name, value in episode.items()}
    simulation = physics(4)
    load(simulation, few)
    simulation.qpos[2, 0] = float("nan")
    before = simulation.get_state()
    simulation.step(simulation.array(few["controls"]), torch.tensor([True, False, False, True]))
    after = simulation.get_state()
    np.testing.assert_array_equal(before[[1, 2]], after[[1, 2]])
    assert (before[[0, 3]] != after[[0, 3]]).any(1).all()


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_not_finite_stays_where_it_is(episode: dict[str, np.ndarray]) -> None:
    few = {name: value[[3, 3, 3]] for name, value in episode.items()}
    simulation, everywhere = physics(3), torch.ones(3, dtype=torch.bool)
    load(simulation, few)
    simulation.qvel[1, 20] = float("nan")
    simulation.qpos[1, 3] = float("inf")
    simulation.step(simulation.array(few["controls"]), everywhere)
    simulation.step(simulation.array(few["controls"]), everywhere)
    qpos = simulation.numpy(simulation.qpos)
    assert not np.isfinite(qpos[1]).all()
    np.testing.assert_array_equal(qpos[0], qpos[2])
    alone = physics(3)
    load(alone, few)
    alone.step(alone.array(few["controls"]), everywhere)
    alone.step(alone.array(few["controls"]), everywhere)
    np.testing.assert_array_equal(qpos[0], alone.numpy(alone.qpos)[0])


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("limit", "name"), [({"contacts": 4}, "contacts"), ({"constraints": 20}, "constraints")])
def test_running_out_of_memory_is_an_error(episode: dict[str, np.ndarray], limit: dict[str, int], name: str) -> None:
    few = {key: value[[3, 3]] for key, value in episode.items()}
    simulation = physics(2, **limit)
    load(simulation, few)
    with pytest.raises(InrilError, match=rf"env\.furniture\.{name} = {limit[name]} to \d+ or more"):
        simulation.step(simulation.array(few["controls"]), torch.ones(2, dtype=torch.bool))


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_environment_runs_and_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(3)
    actions = rng.uniform(-1, 1, (6, 2, 10)).astype(np.float32)
    actions[..., :3] = rng.uniform((0.4, -0.1, 0.1), (0.6, 0.1, 0.3), (6, 2, 3))
    options = FurnitureOptions(perturbation=0.3, warp_device="cuda" if torch.cuda.is_available() else "cpu")
    config = EnvConfig(backend="warp", max_episode_steps=5, furniture=options)
    env: Any = envs.make("furniture/one_leg_med", num_envs=2, seed=0, config=config)
    assert env.physics.device.is_cpu == (not torch.cuda.is_available())
    obs, _ = env.reset()
    assert obs.dtype == np.float32
    assert env.versions()["mujoco-warp"] == "3.8.1"
    for row in actions[:3]:
        env.step(row)
    state = env.get_state()
    wanted = [env.step(row)[0] for row in actions[3:]]  # over the end of an episode
    env.set_state(state)
    found = [env.step(row)[0] for row in actions[3:]]
    if env.physics.device.is_cpu:
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InrilError, match="The state of the simulation has shape"):
        env.physics.set_state(state["physics"][:, 1:])
    env.physics.qpos[0, 0] = float("nan")
    *_, truncated, info = env.step(actions[0])
    assert truncated.tolist()[0]
    assert info["nan_reset"].tolist() == [True, False]
    env.close()


@pytest.mark.sim
def test_logic_computes_the_same_in_torch(episode: dict[str, np.ndarray]) -> None:
    furniture = FURNITURE["one_leg"]
    from inril_ray.envs.furniture.model import addresses, compile_model

    where = addresses(compile_model(furniture), furniture)
    action = np.tile([0.5, 0.0, 0.2, 1.0, 0.1, 0.0, 0.0, -1.0, 0.0, 1.0], (len(episode["qpos"]), 1))
    hole, opens = np.full(len(action), -1), np.ones(len(action), bool)

    def results(qpos: Any, qvel: Any, obstacle: Any, action: Any, hole: Any, opens: Any) -> list[Any]:
        pos, quat = logic.part_poses(qpos, where)
        return [
            logic.observe(qpos, qvel, obstacle, where, FURNITURE["one_leg"]),
            logic.controls(action, qpos, logic.gripper_opens(action[:, 9], opens), where, 13.0),
            logic.assembled(pos, quat, furniture),
            *logic.thread_events(pos, quat, -qpos[:, -1], hole, furniture, furniture.screws[0]),
        ]

    arrays = (episode["qpos"], episode["qvel"], episode["obstacle"], action, hole, opens)
    for ours, other in zip(results(*arrays), results(*map(torch.from_numpy, arrays)), strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"mujoco-warp": None}, r"needs mujoco-warp, which is not installed: pip install 'inril-ray\[furniture\]'"),
        ({"warp-lang": "1.19.0"}, "needs warp-lang 1.12.1, found 1.19.0: mujoco-warp 3.8.1 breaks with newer"),
        ({"mujoco": "3.9.0"}, "needs mujoco 3.8.1, found 3.9.0: .* the same release"),
    ],
)
def test_other_releases_are_refused(
    found: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inril_ray.envs.furniture.warp import import_warp

    installed = metadata.version

    def version(package: str) -> str:
        release = found.get(package, installed(package))
        if release is None:
            raise metadata.PackageNotFoundError(package)
        return release

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(InrilError, match=message):
        import_warp()


@needs_gpu
@pytest.mark.gpu
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_graph_on_the_gpu_does_what_c_does(episode: dict[str, np.ndarray]) -> None:
    num_envs = len(episode["qpos"])
    simulation, active = physics(num_envs, device="cuda:0"), np.ones(num_envs, bool)
    assert simulation._graph is not None
    active[::2] = False
    on = simulation.array(active)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            load(simulation, episode)
            before = simulation.get_state()
            simulation.step(simulation.array(episode["controls"]), on)
            np.testing.assert_array_equal(simulation.get_state()[~active], before[~active])
            simulation.step(simulation.array(episode["controls"]), ~on)  # the others, from where they were
            assert_close_to_c(simulation, episode)
        torch.cuda.synchronize()
    small = physics(num_envs, device="cuda:0", constraints=20)
    load(small, episode)
    with pytest.raises(InrilError, match=r"env\.furniture\.constraints"):
        small.step(small.array(episode["controls"]), on)
