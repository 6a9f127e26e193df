"""Past experience: what is kept, what is drawn, what is saved."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from inril_ray import checkpoint
from inril_ray.replay import DemoTransitions, Replay, mixed
from inril_ray.types import InrilError, Rollout
from tests.fakes import CPU, tiny_policy, tiny_rollouts


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    """Three rollouts of six decisions in four environments; rewards tell rollout, decision and environment."""
    found = tiny_rollouts(tiny_policy(), 3)
    label = 10 * np.arange(6)[:, None] + np.arange(4)
    return [dataclasses.replace(r, rewards=(100 * k + label).astype(np.float32)) for k, r in enumerate(found)]


def make(capacity: int = 100, scale: float = 1.0) -> Replay:
    return Replay(capacity, 4, 3, (3, 2), CPU, scale)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_transitions_keep_their_rows_together(rollouts):
    replay = make(scale=0.5)
    replay.add(rollouts[0])
    assert len(replay) == 24
    batch = replay.sample(200, generator())
    for i in range(200):
        t, b = divmod(round(2 * float(batch.rewards[i])), 10)
        np.testing.assert_array_equal(batch.obs[i], rollouts[0].obs[t, b])
        np.testing.assert_array_equal(batch.actions[i], rollouts[0].chains[t, b, -1])
        np.testing.assert_array_equal(batch.next_obs[i], rollouts[0].next_obs[t, b])
        assert batch.terminated[i] == rollouts[0].terminated[t, b]
    assert len(set(batch.rewards.tolist())) == 24, "every transition is drawn"


@pytest.mark.parametrize(("capacity", "oldest"), [(100, 0), (18, 0), (12, 100), (7, 150), (6, 200), (4, 220), (1, 250)])
def test_the_oldest_rows_make_room(rollouts, capacity, oldest):
    replay = make(capacity)
    for rollout in rollouts:
        replay.add(rollout)
    rows = replay.in_order()
    held = rows["rewards"][:, 0].tolist()
    expected = [100 * k + 10 * t for k in range(3) for t in range(6)][-capacity:]
    assert held == expected
    assert held[0] == oldest
    assert len(replay) == 4 * len(expected)
    places = replay.places_in_order()
    np.testing.assert_array_equal(replay.take(places, generator()).rewards, rows["rewards"].flatten())


@pytest.mark.parametrize("capacity", [100, 18, 4])
def test_its_size_is_foreseen(rollouts, capacity):
    replay = make(capacity)
    foreseen = replay.bytes_after(18)
    for rollout in rollouts:
        replay.add(rollout)
    assert sum(array.nbytes for array in replay.in_order().values()) == foreseen
    assert 0 < replay.free_bytes() < 2**50


def test_the_final_observation_is_what_followed_a_time_limit(rollouts):
    replay = make()
    replay.add(rollouts[0])
    t, b = (int(x[0]) for x in np.nonzero(rollouts[0].truncated))
    batch = replay.take(torch.tensor([4 * t + b]), generator())
    np.testing.assert_array_equal(batch.next_obs[0], rollouts[0].next_obs[t, b])
    assert not np.array_equal(batch.next_obs[0], rollouts[0].obs[t + 1, b]), "that is of the next episode"
    assert batch.terminated[0] == 0
    assert replay.in_order()["cut"][t, b] == 1


def test_rollouts_are_cut_from_each_other(rollouts):
    replay = make()
    for rollout in rollouts:
        replay.add(rollout)
    cut = replay.in_order()["cut"].numpy().astype(bool)
    over = np.concatenate([r.terminated | r.truncated for r in rollouts])
    over[[5, 11, 17]] = True
    np.testing.assert_array_equal(cut, over)


def test_what_is_not_valid_or_not_finite_is_never_drawn(rollouts):
    valid, obs = rollouts[0].valid.copy(), rollouts[0].obs.copy()
    valid[2, 1] = False
    obs[3, 3, 0] = np.nan
    replay = make()
    assert replay.add(dataclasses.replace(rollouts[0], valid=valid, obs=obs)) == 2
    assert len(replay) == 22
    drawn = set(replay.sample(500, generator()).rewards.tolist())
    assert not drawn & {21.0, 33.0}
    assert len(drawn) == 22
    with pytest.raises(InrilError, match="No valid sample is left in the replay"):
        make().add(dataclasses.replace(rollouts[0], valid=np.zeros_like(valid)))
    with pytest.raises(InrilError, match="of 4 environments, the replay of 5"):
        Replay(10, 5, 3, (3, 2), CPU).add(rollouts[0])


def test_actions_can_be_replaced(rollouts):
    replay = make()
    replay.add(rollouts[0])
    batch = replay.sample(5, generator())
    replay.replace_actions(batch.index, torch.full((5, 3, 2), 9.0))
    assert (replay.take(batch.index, generator()).actions == 9.0).all()
    assert (replay.in_order()["actions"] == 9.0).flatten(2).all(dim=2).sum() == len(set(batch.index.tolist()))


def test_a_saved_replay_goes_on_bit_by_bit(rollouts, tmp_path):
    first, second = make(9), make(9)
    for rollout in rollouts[:2]:
        first.add(rollout, note=rollout.rewards + 0.5)
    path = checkpoint.write(tmp_path, 0, {"replay": first.state_dict()}, keep=1)
    second.load_state_dict(checkpoint.read(path)["replay"])
    for replay in (first, second):
        replay.add(rollouts[2], note=rollouts[2].rewards + 0.5)
    a, b = first.sample(50, generator()), second.sample(50, generator())
    for name in ("obs", "actions", "rewards", "next_obs", "terminated", "index", "note"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert torch.equal(a.note, a.rewards + 0.5)
    assert a.seed == b.seed


def test_noise_is_of_the_seed_that_the_minibatch_drew(rollouts):
    """Eight streams for each seed, none of which is another's; drawn after the places."""
    replay = make()
    replay.add(rollouts[0])
    batch, same = replay.sample(5, generator(3)), generator(3)
    drawn = torch.randint(24, (5,), generator=same)
    seed = int(torch.randint(2**40, (1,), generator=same))
    assert batch.index.tolist() == drawn.tolist()
    assert batch.seed == seed
    for stream in (0, 3, 7):
        assert torch.equal(batch.noise(stream, 2, 3), torch.randn(2, 3, generator=generator(8 * seed + stream)))
        assert torch.equal(batch.uniform(stream, 4), torch.rand(4, generator=generator(8 * seed + stream)))


def test_what_is_not_said_changes_nothing(rollouts):
    """Rewards as they are, notes of 0; what is not finite is held as a number, and never drawn."""
    rewards, obs = rollouts[0].rewards.copy(), rollouts[0].obs.copy()
    rewards[0, 0], obs[1, 1, 0] = np.inf, np.nan
    replay = Replay(100, 4, 3, (3, 2), CPU)
    assert replay.num_rows == len(replay) == 0
    assert replay.add(dataclasses.replace(rollouts[0], rewards=rewards, obs=obs)) == 2
    assert (replay.num_rows, len(replay)) == (6, 22)
    rows = replay.in_order()
    assert all(array.isfinite().all() and array.dtype == torch.float32 for array in rows.values())
    assert rows["rewards"][1:].tolist() == rewards[1:].tolist()
    assert not rows["note"].any()
    assert rows["valid"].tolist() == (np.isfinite(rewards) & np.isfinite(obs).all(axis=-1)).tolist()
    assert set(replay.in_order("note", "valid")) == {"note", "valid"}


def test_noise_of_a_minibatch_is_its_own(rollouts):
    replay = make()
    replay.add(rollouts[0])
    g = generator()
    a, b = replay.sample(5, g), replay.sample(5, g)
    assert torch.equal(a.noise(0, 3), a.noise(0, 3))
    assert not torch.equal(a.noise(0, 3), a.noise(1, 3))
    assert not torch.equal(a.noise(0, 3), b.noise(0, 3))


# -- demonstrations ---------------------------------------------------------------------------------------------------
def demo_transitions(**changes) -> DemoTransitions:
    """Two episodes of four steps; observations count steps, rewards are 1 at the end of each."""
    arrays = {
        "obs": np.arange(8.0)[:, None],
        "actions": np.arange(8.0)[:, None],
        "rewards": np.array([0, 0, 0, 1, 0, 0, 0, 1.0]),
        "episode_starts": np.array([0, 4, 8]),
        "final_obs": np.array([[50.0], [np.nan]]),
        "terminated": np.array([True, True]),
        "left_out": np.array([False, False]),
        **changes,
    }
    return DemoTransitions(**arrays, horizon=2, normalize=lambda a: a / 10, device=CPU, reward_scale=3.0, discount=0.5)


def test_demonstrations_become_chunks_and_what_followed():
    batch = demo_transitions().sample(300, generator())
    rows = {
        int(o): (a.tolist(), float(r), float(n), float(d), float(v))
        for o, a, r, n, d, v in zip(
            batch.obs[:, 0], batch.actions[..., 0], batch.rewards, batch.next_obs[:, 0], batch.terminated, batch.note,
            strict=True,
        )
    }  # fmt: skip
    ten = lambda *x: pytest.approx([v / 10 for v in x])  # noqa: E731
    assert rows == {
        0: (ten(0, 1), 0.0, 2.0, 0.0, 1.5),
        1: (ten(1, 2), 0.0, 3.0, 0.0, 1.5),
        2: (ten(2, 3), 3.0, 50.0, 1.0, 3.0),
        4: (ten(4, 5), 0.0, 6.0, 0.0, 1.5),
        5: (ten(5, 6), 0.0, 7.0, 0.0, 1.5),
    }, "of the second episode no final observation is known, so its last chunk is left out"
    assert (batch.index == -1).all()


def test_demonstrations_without_scale_and_discount():
    arrays = {
        "obs": np.arange(4.0)[:, None],
        "actions": np.arange(4.0)[:, None],
        "rewards": np.array([1.0, 2.0, 3.0, 4.0]),
        "episode_starts": np.array([0, 4]),
        "final_obs": np.array([[9.0]]),
        "terminated": np.array([False]),
        "left_out": np.array([False]),
    }
    demos = DemoTransitions(**arrays, horizon=2, normalize=lambda a: a, device=CPU)
    assert len(demos) == 3
    batch = demos.sample(100, g := generator(4))
    assert {(float(o), float(r), float(n), float(v)) for o, r, n, v in zip(
        batch.obs[:, 0], batch.rewards, batch.next_obs[:, 0], batch.note, strict=True
    )} == {(0.0, 3.0, 2.0, 10.0), (1.0, 5.0, 3.0, 9.0), (2.0, 7.0, 9.0, 7.0)}  # fmt: skip
    assert not batch.terminated.any(), "a time limit bootstraps"
    same = generator(4)
    assert batch.obs[:, 0].tolist() == torch.randint(3, (100,), generator=same).tolist(), "in the order of their steps"
    assert batch.seed == int(torch.randint(2**40, (1,), generator=same))
    assert torch.equal(g.get_state(), same.get_state())
    assert {t.dtype for t in (batch.obs, batch.actions, batch.rewards, batch.note)} == {torch.float32}


def test_held_out_demonstrations_are_left_out():
    batch = demo_transitions(left_out=np.array([False, True])).sample(50, generator())
    assert batch.obs.max() < 4
    with pytest.raises(InrilError, match="No demonstration is longer than a chunk of 2"):
        demo_transitions(left_out=np.array([True, True]))


def test_mixtures_alternate(rollouts):
    replay = make()
    replay.add(rollouts[0])
    own = replay.sample(6, generator())
    demos = dataclasses.replace(own, rewards=own.rewards - 1000, note=own.note - 1, seed=own.seed + 1)
    batch = mixed(demos, own)
    assert batch.seed == own.seed
    assert torch.equal(batch.note[0::2], demos.note)
    assert torch.equal(batch.rewards[0::2], demos.rewards)
    assert torch.equal(batch.rewards[1::2], own.rewards)
    assert len(batch.obs) == 12
