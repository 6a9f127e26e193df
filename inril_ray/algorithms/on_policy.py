"""What on-policy algorithms share: clipped policy gradients with advantages over action chunks."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    AlgorithmContext,
    Experience,
    Losses,
    UnitFloat,
    Update,
)
from inril_ray.config import config
from inril_ray.losses.policy_gradient import clipped_surrogate, normalized
from inril_ray.losses.returns import RewardScaler, gae
from inril_ray.losses.value import explained_variance, value_loss
from inril_ray.policies.base import Policy
from inril_ray.policies.networks import Activation, ResidualDepth, ValueNetwork
from inril_ray.types import InrilError, Rollout

VALUE_CHUNK = 65_536
"""Observations that the critic evaluates at once: bounds the memory of 1024-environment rollouts."""


@config
class OnPolicyConfig(AlgorithmConfig):
    """Settings of clipped policy gradients. Defaults are DPPO's for Robomimic."""

    num_epochs: PositiveInt = 10
    """Passes over each rollout."""
    minibatch_size: PositiveInt = 7500
    """Samples in a minibatch; a sample is one scored step of one decision. The last partial one is dropped."""
    accumulate: PositiveInt | None = None
    """Samples in one pass; the gradients of larger minibatches are added up and equal those of one pass."""
    gae_lambda: UnitFloat = 0.95
    clip_ratio: PositiveFloat = 0.01
    value_coef: NonNegativeFloat = 0.5
    critic_num_hidden: ResidualDepth = 3
    critic_activation: Activation = "mish"
    target_kl: PositiveFloat | None = 1.0
    """Stop the iteration's updates when a minibatch's approximate KL exceeds this."""
    scale_rewards: bool = True
    """Divide rewards by the running deviation of the discounted return."""
    time_limits: Literal["terminal", "bootstrap", "next_episode"] = "terminal"
    """What follows a time limit. ``terminal``: nothing, as if the task had ended; what is maximised is what an episode
    is scored by. ``bootstrap``: the value of the final observation, as if the episode went on. ``next_episode``: DPPO's
    code; the recursion of the advantages runs on into the next episode, and the last row bootstraps from the
    observation after the reset. Which learns, and why: docs/methods.md."""


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """N samples: scored steps of decisions."""

    obs: Tensor
    """[N, O]"""
    before: Tensor
    """[N, H, A]"""
    after: Tensor
    """[N, H, A]"""
    step: Tensor
    """[N] index of the scored step."""
    old_log_prob: Tensor
    """[N]"""
    advantage: Tensor
    """[N]"""
    returns: Tensor
    """[N]"""
    normalized: bool = False
    """The advantages are, over a larger minibatch."""

    def split(self, size: int) -> list[Minibatch]:
        """Return parts of at most so many samples, with the advantages normalised over all of them."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "normalized"]
        columns = {name: getattr(self, name) for name in names} | {"advantage": normalized(self.advantage)}
        return [
            Minibatch(**{k: v[i : i + size] for k, v in columns.items()}, normalized=True)
            for i in range(0, len(self.step), size)
        ]


@dataclass(frozen=True, kw_only=True)
class PreparedRollout(Experience):
    """A rollout with its advantages, flattened to D valid decisions of F scored steps, on the learner's device."""

    obs: Tensor
    """[D, O]"""
    chains: Tensor
    """[D, F+1, H, A]"""
    log_probs: Tensor
    """[D, F]"""
    advantages: Tensor
    """[D]"""
    returns: Tensor
    """[D]"""
    minibatch_size: int
    num_epochs: int
    stats: dict[str, float]

    @property
    def num_samples(self) -> int:
        """D times F."""
        return self.log_probs.numel()

    @property
    def num_minibatches(self) -> int:
        """Full minibatches in one pass."""
        return max(1, self.num_samples // self.minibatch_size)

    @property
    def batch_size(self) -> int:
        """Samples in a minibatch: all where there are fewer."""
        return min(self.minibatch_size, self.num_samples)

    @property
    def nominal_updates(self) -> int:
        """Minibatches times epochs."""
        return self.num_epochs * self.num_minibatches

    def updates(self, generator: torch.Generator) -> Iterator[Update]:
        """Yield the minibatches of all passes."""
        for _ in range(self.num_epochs):
            for minibatch in self.minibatches(generator):
                yield Update(minibatch=minibatch)

    def minibatches(self, generator: torch.Generator) -> Iterator[Minibatch]:
        """Yield one shuffled pass; the last partial minibatch is dropped unless it is the only one."""
        order = torch.randperm(self.num_samples, generator=generator).to(self.obs.device)
        for i in range(self.num_minibatches):
            yield self._take(order[i * self.minibatch_size : (i + 1) * self.minibatch_size])

    def sample(self, generator: torch.Generator, limit: int | None = None) -> Minibatch:
        """Draw one minibatch with replacement."""
        size = min(self.batch_size, limit or self.batch_size)
        return self._take(torch.randint(self.num_samples, (size,), generator=generator))

    def _take(self, index: Tensor) -> Minibatch:
        index = index.to(self.obs.device)
        steps = self.log_probs.shape[1]
        row, step = index // steps, index % steps
        return Minibatch(
            obs=self.obs[row],
            before=self.chains[row, step],
            after=self.chains[row, step + 1],
            step=step,
            old_log_prob=self.log_probs[row, step],
            advantage=self.advantages[row],
            returns=self.returns[row],
        )


class OnPolicyAlgorithm(Algorithm):
    """Clipped policy gradient with GAE over action chunks. Subclasses weight and clip the scored steps."""

    joint_loss = True
    config: OnPolicyConfig

    def __init__(self, config: OnPolicyConfig, context: AlgorithmContext) -> None:
        self.config, self.device, self._policy = config, context.device, context.policy
        self.num_iterations = context.num_iterations
        self.critic = self.make_critic(context).to(context.device)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=config.critic_lr, weight_decay=config.weight_decay, eps=config.adam_eps
        )
        self.reward_scaler = RewardScaler(context.num_envs)
        by_step = self.step_weights(context.policy.num_scored_steps)
        self._by_step = torch.tensor(by_step, device=context.device)
        """[2, F] weight of the advantage and clip ratio of each scored step."""

    def make_critic(self, context: AlgorithmContext) -> nn.Module:
        """Return an untrained value network."""
        cfg = self.config
        return ValueNetwork(context.spec.obs_dim, cfg.critic_hidden_dim, cfg.critic_num_hidden, cfg.critic_activation)

    @property
    def acting(self) -> Policy:
        """The policy."""
        return self._policy

    def modules(self) -> dict[str, nn.Module]:
        """Return the critic."""
        return {"critic": self.critic}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the critic's."""
        return {"critic": self.critic_optimizer}

    @abstractmethod
    def step_weights(self, num_scored_steps: int) -> tuple[list[float], list[float]]:
        """Return, for each scored step, the weight of its advantage and its clip ratio."""

    def prepare(self, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> PreparedRollout:
        """Scale rewards, evaluate the critic, estimate advantages; see :meth:`Algorithm.prepare`."""
        cfg = self.config
        if cfg.time_limits == "terminal":
            rollout = rollout.ended_by_time_limits()
        rewards = self.scaled_rewards(rollout, fresh_start=fresh_start)
        values = self._values(rollout.obs, policy)
        if cfg.time_limits == "next_episode":
            next_values = np.concatenate([values[1:], self._values(rollout.last_obs[None], policy)])
            truncated = np.zeros_like(rollout.truncated)
        else:
            next_values, truncated = self._next_values(rollout, values, policy), rollout.truncated
        advantages = gae(
            rewards,
            values,
            next_values,
            rollout.terminated,
            truncated,
            discount=cfg.discount,
            gae_lambda=cfg.gae_lambda,
        )
        valid = rollout.valid & np.isfinite(advantages)
        if not valid.any():
            raise InrilError("No valid sample is left in the rollout: every one was not finite.")
        returns = advantages + values

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[valid], dtype=np.float32)).to(self.device)

        explained = explained_variance(torch.from_numpy(values[valid]), torch.from_numpy(returns[valid]))
        return PreparedRollout(
            obs=tensor(rollout.obs),
            chains=tensor(rollout.chains),
            log_probs=tensor(rollout.log_probs),
            advantages=tensor(advantages),
            returns=tensor(returns),
            minibatch_size=cfg.minibatch_size,
            num_epochs=cfg.num_epochs,
            stats={"explained_variance": float(explained), "dropped_samples": float((~valid).sum())},
        )

    def scaled_rewards(self, rollout: Rollout, *, fresh_start: bool) -> np.ndarray:
        """Return rewards [T, B] as the critic sees them."""
        if not self.config.scale_rewards:
            return rollout.rewards
        return self.reward_scaler(rollout.rewards, rollout.terminated | rollout.truncated, fresh_start)

    @torch.no_grad()
    def _values(self, obs: np.ndarray, policy: Policy) -> np.ndarray:
        """Return the critic's values [...] of observations [..., O]."""
        # A copy, because fragments from the object store are read-only and PyTorch can't say so of a tensor.
        flat = torch.from_numpy(np.array(obs.reshape(-1, obs.shape[-1]))).to(self.device)
        parts = [self.critic(policy.normalizer.obs(part)) for part in flat.split(VALUE_CHUNK)]
        return torch.cat(parts).cpu().numpy().reshape(obs.shape[:-1])

    def _next_values(self, rollout: Rollout, values: np.ndarray, policy: Policy) -> np.ndarray:
        """Return the values [T, B] of the next observations; most are the values of the next decision."""
        known = np.zeros(values.shape, bool)
        known[:-1] = (rollout.next_obs[:-1] == rollout.obs[1:]).all(axis=-1)  # not where an episode ended
        next_values = np.empty_like(values)
        next_values[known] = np.roll(values, -1, axis=0)[known]
        next_values[~known] = self._values(rollout.next_obs[~known], policy)
        return next_values

    def parts(self, minibatch: Minibatch) -> list[tuple[Minibatch, float]]:
        """Split a minibatch that is larger than ``accumulate``."""
        size, total = self.config.accumulate, len(minibatch.step)
        if size is None or total <= size:
            return [(minibatch, 1.0)]
        return [(part, len(part.step) / total) for part in minibatch.split(size)]

    def loss(self, policy: Policy, minibatch: Minibatch) -> Losses:
        """Return PPO's losses over scored steps; see :meth:`Algorithm.loss`."""
        weight, clip_ratio = self._by_step[:, minibatch.step]
        log_prob = policy.log_prob(minibatch.obs, minibatch.before, minibatch.after, minibatch.step)
        advantage = minibatch.advantage if minibatch.normalized else normalized(minibatch.advantage)
        surrogate, kl, clip_fraction = clipped_surrogate(
            log_prob, minibatch.old_log_prob, advantage * weight, clip_ratio
        )
        values = self.critic(policy.normalizer.obs(minibatch.obs))
        value = value_loss(values, minibatch.returns)
        stats = {
            "policy_loss": surrogate.detach(),
            "value_loss": value.detach(),
            "approx_kl": kl,
            "clip_fraction": clip_fraction,
        }
        return Losses(policy=surrogate, value=self.config.value_coef * value, stats=stats)

    def should_stop(self, stats: Mapping[str, Tensor]) -> bool:
        """Tell whether the approximate KL exceeds its target."""
        return self.config.target_kl is not None and bool(stats["approx_kl"] > self.config.target_kl)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the reward scaler."""
        return {"reward_scaler": self.reward_scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.reward_scaler.load_state_dict(state["reward_scaler"])
