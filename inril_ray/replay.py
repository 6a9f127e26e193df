"""Past experience in ring arrays, in the learner's memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from inril_ray.types import FloatArray, InrilError, Rollout


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """N decisions and what followed: what losses of values are computed on."""

    obs: Tensor
    """[N, O]"""
    actions: Tensor
    """[N, H, A] normalised chunks."""
    rewards: Tensor
    """[N] sum over the executed steps of the chunk, scaled."""
    next_obs: Tensor
    """[N, O] observation after the chunk; the final one where the episode ended."""
    terminated: Tensor
    """[N] 1 where the task ended the episode, else 0: time limits bootstrap."""
    index: Tensor
    """[N] place in the ring; -1 for demonstrations."""
    note: Tensor
    """[N] a number that the algorithm keeps with each transition, such as the return that followed."""
    seed: int
    """Of the noise that losses draw, so that a loss that is asked for twice is the same."""

    def generator(self, stream: int) -> torch.Generator:
        """Return a random stream of this minibatch; different numbers give different streams."""
        return torch.Generator().manual_seed(self.seed * 8 + stream)

    def noise(self, stream: int, *shape: int) -> Tensor:
        """Return standard normal noise of a shape."""
        return torch.randn(shape, generator=self.generator(stream)).to(self.obs.device)

    def uniform(self, stream: int, *shape: int) -> Tensor:
        """Return numbers in [0, 1) of a shape."""
        return torch.rand(shape, generator=self.generator(stream)).to(self.obs.device)


class Replay:
    """A ring of the newest ``capacity`` rows; a row is one decision of every environment.

    Args:
        capacity: rows.
        num_envs: B.
        obs_dim: O.
        chunk_shape: (H, A).
        device: where the arrays live.
        reward_scale: rewards are multiplied by it when they come in.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_dim: int,
        chunk_shape: tuple[int, int],
        device: torch.device,
        reward_scale: float = 1.0,
    ) -> None:
        self.capacity, self.num_envs, self.device, self.reward_scale = capacity, num_envs, device, reward_scale
        self._shapes = {
            "obs": (obs_dim,), "actions": chunk_shape, "rewards": (), "next_obs": (obs_dim,), "terminated": (),
            "cut": (), "valid": (), "note": (),
        }  # fmt: skip
        self._arrays = {name: torch.zeros(0, num_envs, *shape, device=device) for name, shape in self._shapes.items()}
        self._next = 0
        self._choices = torch.zeros(0, dtype=torch.int64, device=device)

    def bytes_after(self, rows: int) -> int:
        """Return the bytes that the arrays take once so many rows came in."""
        numbers = sum(math.prod(shape) for shape in self._shapes.values())
        return min(rows, self.capacity) * self.num_envs * numbers * self._arrays["obs"].element_size()

    def free_bytes(self) -> int:
        """Return the bytes of memory that are free where the arrays live."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def __len__(self) -> int:
        """Valid transitions that are held."""
        return len(self._choices)

    @property
    def num_rows(self) -> int:
        """Rows that are held."""
        return len(self._arrays["obs"])

    def add(self, rollout: Rollout, note: FloatArray | None = None) -> int:
        """Take in a rollout, oldest rows make room; return how many of its transitions are not valid.

        The last row counts as the end of its trajectory: what follows may start elsewhere.

        Args:
            rollout: [T, B] decisions.
            note: [T, B] kept with the transitions; 0 by default.
        """
        if rollout.obs.shape[1] != self.num_envs:
            raise InrilError(f"The rollout is of {rollout.obs.shape[1]} environments, the replay of {self.num_envs}.")
        cut = rollout.terminated | rollout.truncated
        cut[-1] = True
        rows = {
            "obs": rollout.obs,
            "actions": rollout.chains[:, :, -1],
            "rewards": rollout.rewards * self.reward_scale,
            "next_obs": rollout.next_obs,
            "terminated": rollout.terminated,
            "cut": cut,
        }
        valid = rollout.valid.copy()
        for value in rows.values():
            valid &= np.isfinite(value).reshape(*valid.shape, -1).all(axis=-1)
        rows |= {"valid": valid, "note": np.zeros(valid.shape, np.float32) if note is None else note}
        for start in range(0, len(valid), self.capacity):
            part = {k: np.nan_to_num(v[start : start + self.capacity].astype(np.float32)) for k, v in rows.items()}
            self._put({k: torch.from_numpy(v).to(self.device) for k, v in part.items()})
        self._choices = self._arrays["valid"].flatten().nonzero()[:, 0]
        if len(self._choices) == 0:
            raise InrilError("No valid sample is left in the replay: every one was not finite.")
        return int((~valid).sum())

    def _put(self, rows: Mapping[str, Tensor]) -> None:
        count, held = len(rows["obs"]), self.num_rows
        grow = min(count, self.capacity - held)
        if grow:
            self._arrays = {k: torch.cat([v, rows[k][:grow]]) for k, v in self._arrays.items()}
        rest = {k: v[grow:] for k, v in rows.items()}
        if count > grow:
            places = (self._next + torch.arange(count - grow, device=self.device)) % self.capacity
            for name, array in self._arrays.items():
                array[places] = rest[name]
            self._next = int(self._next + count - grow) % self.capacity

    def sample(self, size: int, generator: torch.Generator) -> Transitions:
        """Draw valid transitions with replacement."""
        drawn = torch.randint(len(self._choices), (size,), generator=generator).to(self.device)
        return self.take(self._choices[drawn], generator)

    def take(self, index: Tensor, generator: torch.Generator) -> Transitions:
        """Return transitions by their places."""
        flat = {k: v.flatten(0, 1)[index] for k, v in self._arrays.items() if k not in ("cut", "valid")}
        return Transitions(**flat, index=index, seed=_seed(generator))

    def replace_actions(self, index: Tensor, actions: Tensor) -> None:
        """Overwrite the chunks [N, H, A] at places [N]."""
        self._arrays["actions"].flatten(0, 1)[index] = actions

    def in_order(self, *names: str) -> dict[str, Tensor]:
        """Return the named arrays [rows, B, ...], or all, from the oldest to the newest row."""
        return {k: torch.roll(v, -self._next, 0) for k, v in self._arrays.items() if not names or k in names}

    def places_in_order(self) -> Tensor:
        """Return the place in the ring [rows * B] of each transition of :meth:`in_order`."""
        rows = torch.arange(self.num_rows, device=self.device).roll(-self._next)
        return (rows[:, None] * self.num_envs + torch.arange(self.num_envs, device=self.device)).flatten()

    def state_dict(self) -> dict[str, Any]:
        """Return arrays and position."""
        return {**self._arrays, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, as it comes out of a checkpoint."""
        self._arrays = {k: torch.as_tensor(np.array(state[k])).to(self.device) for k in self._arrays}
        self._next = int(state["next"])
        self._choices = self._arrays["valid"].flatten().nonzero()[:, 0]


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**40, (1,), generator=generator))


class DemoTransitions:
    """Demonstrations as transitions: from every step a chunk of ``horizon`` actions and what followed.

    Their note is the discounted sum of scaled rewards to the end of the episode. Chunks that reach beyond the end of
    their episode are left out, and so are the last ones where no final observation is known, or not whether the task
    ended the episode.

    Args:
        obs: [S, O] observations of all episodes.
        actions: [S, A] in the units of the environment.
        rewards: [S].
        episode_starts: [E + 1] first step of each episode, and S.
        final_obs: [E, O] observation after the last action, NaN where unknown.
        terminated: [E] 1 where the task ended the episode, 0, or -1 where it is unknown.
        left_out: [E] not learned from.
        horizon: H.
        normalize: maps actions to [-1, 1].
        device: where tensors live.
        reward_scale: as that of the replay they are mixed with.
        discount: of the return to go, per chunk.
    """

    def __init__(
        self,
        *,
        obs: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
        final_obs: np.ndarray,
        terminated: np.ndarray,
        left_out: np.ndarray,
        horizon: int,
        normalize: Callable[[Tensor], Tensor],
        device: torch.device,
        reward_scale: float = 1.0,
        discount: float = 1.0,
    ) -> None:
        starts, following, ended, to_go = [], [], [], np.zeros(len(obs), np.float64)
        sums = np.zeros(len(obs), np.float64)
        for e, (first, end) in enumerate(pairwise(episode_starts)):
            if left_out[e]:
                continue
            known = bool(np.isfinite(final_obs[e]).all()) and terminated[e] >= 0
            for t in range(end - 1, first - 1, -1):
                sums[t] = rewards[t : min(t + horizon, end)].sum() * reward_scale
                to_go[t] = sums[t] + (discount * to_go[t + horizon] if t + horizon < end else 0.0)
                last = t + horizon == end
                if t + horizon > end or (last and not known):
                    continue
                starts.append(t)
                following.append(final_obs[e] if last else obs[t + horizon])
                ended.append(last and bool(terminated[e]))
        if not starts:
            raise InrilError(f"No demonstration is longer than a chunk of {horizon} actions.")
        at = np.array(starts)[::-1].copy()
        self._obs = torch.from_numpy(np.array(obs[at], np.float32)).to(device)
        chunks = torch.from_numpy(np.array(actions[at[:, None] + np.arange(horizon)], np.float32))
        self._actions = normalize(chunks.to(device))
        self._rewards = torch.from_numpy(sums[at].astype(np.float32)).to(device)
        self._next_obs = torch.from_numpy(np.array(following[::-1], np.float32)).to(device)
        self._terminated = torch.from_numpy(np.array(ended[::-1], np.float32)).to(device)
        self._note = torch.from_numpy(to_go[at].astype(np.float32)).to(device)

    def __len__(self) -> int:
        """Transitions."""
        return len(self._rewards)

    def sample(self, size: int, generator: torch.Generator) -> Transitions:
        """Draw transitions with replacement."""
        drawn = torch.randint(len(self), (size,), generator=generator).to(self._obs.device)
        return Transitions(
            obs=self._obs[drawn],
            actions=self._actions[drawn],
            rewards=self._rewards[drawn],
            next_obs=self._next_obs[drawn],
            terminated=self._terminated[drawn],
            index=torch.full_like(drawn, -1),
            note=self._note[drawn],
            seed=_seed(generator),
        )


def mixed(demos: Transitions, online: Transitions) -> Transitions:
    """Interleave equal numbers of demonstrated and own transitions, so that every slice holds both."""

    def zipped(name: str) -> Tensor:
        return torch.stack([getattr(demos, name), getattr(online, name)], dim=1).flatten(0, 1)

    names = ("obs", "actions", "rewards", "next_obs", "terminated", "index", "note")
    return Transitions(**{name: zipped(name) for name in names}, seed=online.seed)
