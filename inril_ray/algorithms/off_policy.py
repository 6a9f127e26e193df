"""What algorithms with a replay share: critics of chunks, their averaged copies, and experience drawn from the past."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    AlgorithmContext,
    Experience,
    UnitFloat,
    Update,
)
from inril_ray.config import config
from inril_ray.losses.value import ensemble_loss, td_target
from inril_ray.policies.base import Action, Policy
from inril_ray.policies.networks import Activation, QEnsemble
from inril_ray.replay import DemoTransitions, Replay, Transitions, mixed
from inril_ray.types import EnvSpec, FloatArray, InrilError, Rollout


@config
class OffPolicyConfig(AlgorithmConfig):
    """Settings of learning from a replay. Defaults are those of DPPO's baselines for Robomimic."""

    batch_size: PositiveInt = 1000
    replay_ratio: PositiveFloat = 128
    """How often a transition is used, on average: an iteration makes (new transitions / batch size) times as many
    updates."""
    buffer_size: PositiveInt = 5000
    """Rows of the replay; a row is one decision of every environment."""
    reward_scale: PositiveFloat = 1.0
    """Rewards are multiplied by it."""
    polyak: UnitFloat = 0.005
    """Share of the new weights in the averaged copies, after each step."""
    critic_steps: PositiveInt = 1
    """Steps of the critics for each of the actor."""
    time_limits: Literal["bootstrap", "terminal"] = "bootstrap"
    """What follows a time limit. ``bootstrap``: the value of the final observation, as if the episode went on.
    ``terminal``: nothing, as if the task had ended."""
    num_critics: PositiveInt = 2
    critic_layer_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class ReplayExperience(Experience):
    """The replay after a rollout came in."""

    algorithm: OffPolicyAlgorithm
    num_updates: int
    stats: dict[str, float]

    @property
    def batch_size(self) -> int:
        """Transitions in a minibatch."""
        return self.algorithm.config.batch_size

    @property
    def nominal_updates(self) -> int:
        """Steps of the actor."""
        return self.algorithm.actor_updates(self.num_updates)

    def updates(self, generator: torch.Generator) -> Iterator[Update]:
        """Yield what the algorithm makes of the replay."""
        return self.algorithm.updates(self.num_updates, generator)

    def sample(self, generator: torch.Generator, limit: int | None = None) -> Transitions:
        """Draw a minibatch of the actor."""
        return self.algorithm.draw(generator, limit)


class OffPolicyAlgorithm(Algorithm):
    """Keeps a replay and, unless a subclass has none, critics of (observation, chunk) with an averaged copy."""

    config: OffPolicyConfig
    replay: Replay
    activation: ClassVar[Activation] = "mish"
    """Of the critics."""
    mixes_demos: ClassVar[bool] = False
    """Half of every minibatch are demonstrations."""

    @staticmethod
    def problem(config: Any, actor: Any) -> str | None:  # noqa: ARG004 - see Algorithm
        """See :meth:`Algorithm.problem`."""
        return needs_whole_chain(actor)

    def __init__(self, config: OffPolicyConfig, context: AlgorithmContext) -> None:
        self.config, self.device, self.context = config, context.device, context
        self.num_iterations = context.num_iterations
        self._policy, self.action_dim = context.policy, context.spec.action_dim
        self.chunk_shape = (context.policy.horizon, context.spec.action_dim)
        self.replay = Replay(
            config.buffer_size,
            context.num_envs,
            context.spec.obs_dim,
            self.chunk_shape,
            context.device,
            config.reward_scale,
        )
        self._modules: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        if config.num_critics:
            self.critics = self.add_module("critics", self.new_critics(config, context.policy, context.spec))
            self.target_critics = self.add_copy("target_critics", self.critics)
        self.demos: DemoTransitions | None = None
        OffPolicyAlgorithm.begin(self, context.policy)  # what subclasses add is not there yet

    def begin(self, policy: Policy) -> None:
        """Bring the demonstrations into the units of the policy's normaliser, which comes with its weights."""
        if self.mixes_demos:
            self.demos = self._demo_transitions()

    @classmethod
    def new_critics(cls, config: Any, policy: Policy, spec: EnvSpec) -> QEnsemble:
        """Return untrained critics of a policy's chunks."""
        return QEnsemble(
            spec.obs_dim,
            policy.horizon * spec.action_dim,
            num=config.num_critics,
            hidden_dims=(config.critic_hidden_dim,) * config.critic_num_hidden,
            layer_norm=config.critic_layer_norm,
            activation=cls.activation,
        )

    def _demo_transitions(self) -> DemoTransitions:
        demos, cfg = self.context.demos, self.config
        if demos is None:
            raise InrilError(f"{type(self).__name__} learns from demonstrations, and none were given.")
        demos.require_rewards(type(self).__name__)
        return DemoTransitions(
            obs=demos.obs,
            actions=demos.actions,
            rewards=demos.rewards,
            episode_starts=demos.episode_starts,
            final_obs=demos.final_obs,
            terminated=demos.terminated,
            left_out=demos.held_out,
            horizon=self.chunk_shape[0],
            normalize=self._policy.normalizer.action,
            device=self.device,
            reward_scale=cfg.reward_scale,
            discount=cfg.discount,
        )

    def add_module(self, name: str, module: nn.Module, lr: float | None = None) -> Any:
        """Register a module with an optimiser of its own."""
        cfg = self.config
        self._modules[name] = module.to(self.device)
        self._optimizers[name] = torch.optim.AdamW(
            module.parameters(), lr=lr or cfg.critic_lr, weight_decay=cfg.weight_decay, eps=cfg.adam_eps
        )
        return module

    def add_copy(self, name: str, module: nn.Module) -> Any:
        """Register a copy that follows by averaging and is not trained."""
        self._modules[name] = copy.deepcopy(module).requires_grad_(False).to(self.device)
        return self._modules[name]

    @property
    def acting(self) -> Policy:
        """The policy."""
        return self._policy

    def modules(self) -> dict[str, nn.Module]:
        """Return critics and copies."""
        return self._modules

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return those of the critics."""
        return self._optimizers

    # -- experience ---------------------------------------------------------------------------------------------------
    def prepare(self, rollout: Rollout, policy: Policy, *, fresh_start: bool) -> Experience:
        """Put a rollout into the replay; see :meth:`Algorithm.prepare`."""
        return self.experience(rollout)

    def experience(self, rollout: Rollout, note: FloatArray | None = None) -> ReplayExperience:
        """Put a rollout into the replay, with a number [T, B] for each transition."""
        if self.config.time_limits == "terminal":
            rollout = rollout.ended_by_time_limits()
        dropped = self.replay.add(rollout, note)
        new = int(rollout.valid.sum())
        stats = {"dropped_samples": float(dropped), "replay_size": float(len(self.replay))}
        return ReplayExperience(algorithm=self, num_updates=self.num_updates(new), stats=stats)

    def replay_memory(self, rows: int) -> tuple[int, int]:
        """See :meth:`Algorithm.replay_memory`."""
        return self.replay.bytes_after(rows), self.replay.free_bytes()

    def num_updates(self, new_transitions: int) -> int:
        """Return the updates of an iteration: floor(new / batch size * replay ratio), at least 1."""
        return max(1, int(new_transitions / self.config.batch_size * self.config.replay_ratio))

    def actor_updates(self, num_updates: int) -> int:
        """Return how many of an iteration's updates step the actor."""
        return max(1, num_updates // self.config.critic_steps)

    def updates(self, num_updates: int, generator: torch.Generator) -> Iterator[Update]:
        """Yield the iteration's updates; the actor is stepped on the last of every ``critic_steps``."""
        every = self.config.critic_steps
        for i in range(max(num_updates, every)):
            yield Update(minibatch=self.draw(generator), actor=(i + 1) % every == 0)

    def draw(self, generator: torch.Generator, limit: int | None = None) -> Transitions:
        """Draw a minibatch, of at most so many transitions."""
        size = min(self.config.batch_size, limit or self.config.batch_size)
        if self.demos is None:
            return self.replay.sample(size, generator)
        half = max(1, size // 2)
        return mixed(self.demos.sample(half, generator), self.replay.sample(half, generator))

    # -- steps --------------------------------------------------------------------------------------------------------
    def step(self, name: str, loss: Tensor) -> None:
        """Take one step of the optimiser of a module; a loss that is not finite changes nothing."""
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self._modules[name].parameters() if p.grad is not None])
        if bool(norm.isfinite()):
            optimizer.step()

    def follow(self, copy_name: str, name: str | None = None, *, source: nn.Module | None = None) -> None:
        """Average a copy with what it follows."""
        own = self._modules[copy_name].parameters()
        followed = source if source is not None else self._modules[name or copy_name.removeprefix("target_")]
        with torch.no_grad():
            for a, b in zip(own, followed.parameters(), strict=True):
                a.lerp_(b, self.config.polyak)

    def target_actor(self, policy: Policy) -> Policy:
        """Return what chooses the chunks that follow, in targets."""
        return policy

    def update_critics(self, policy: Policy, minibatch: Transitions) -> Mapping[str, Tensor]:
        """Step the critics towards the lesser value of what follows."""
        with torch.no_grad():
            noise = minibatch.noise(2, len(minibatch.obs), *policy.noise_shape)
            following = self.target_actor(policy).sample(minibatch.next_obs, noise)
        return self.regress_critics(policy, minibatch, following)

    def regress_critics(self, policy: Policy, batch: Transitions, following: Tensor) -> Mapping[str, Tensor]:
        """Step the critics to r + discount x the least averaged value of the chunks [N, H, A] that follow."""
        obs, next_obs = policy.normalizer.obs(batch.obs), policy.normalizer.obs(batch.next_obs)
        with torch.no_grad():
            best = self.target_critics(next_obs, following).min(dim=0).values
            target = td_target(batch.rewards, batch.terminated, best, self.config.discount)
        q = self.critics(obs, batch.actions)
        loss = ensemble_loss(q, target)
        self.step("critics", loss)
        self.follow("target_critics")
        return critic_stats(q, target, loss)

    def imitate_replay(self, policy: Policy, batch: Transitions, weight: Tensor | None = None) -> Tensor:
        """Return the imitation loss of the replay's own actions, over all denoising steps, perhaps weighted [N]."""
        noise = batch.noise(0, *batch.actions.shape)
        uniform = batch.uniform(1, len(batch.obs))
        actions = policy.normalizer.unnormalize_action(batch.actions)
        return policy.il_loss(batch.obs, actions, noise, uniform, "all", weight=weight)

    def state_dict(self) -> dict[str, Any]:
        """Return the replay."""
        return {"replay": self.replay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.replay.load_state_dict(state["replay"])
        OffPolicyAlgorithm.begin(self, self._policy)


def needs_whole_chain(actor: Any) -> str | None:
    """Return why a diffusion policy can't be trained as a whole, if it can't."""
    steps = getattr(actor, "executed_steps", None)
    if steps is not None and actor.finetuned_steps != steps:
        return f"actor.finetuned_steps = {actor.finetuned_steps}: all {steps} steps are trained, so it must be {steps}."
    if actor.prediction_horizon != getattr(actor, "action_horizon", actor.prediction_horizon):
        return (
            f"actor.action_horizon = {actor.action_horizon}: values are of whole chunks, so it must be "
            f"actor.prediction_horizon = {actor.prediction_horizon}."
        )
    return None


def critic_stats(q: Tensor, target: Tensor, loss: Tensor) -> Mapping[str, Tensor]:
    """Return what is logged of critics: their loss, the mean target, and the spread between the members.

    Args:
        q: [E, N] values.
        target: [N].
        loss: scalar.
    """
    return {"value_loss": loss.detach(), "q_target": target.mean(), "q_spread": q.detach().std(dim=0).mean()}


def unscored(chunk: Tensor, policy: Policy) -> Action:
    """Return the action of normalised chunks [B, H, A] that have no log-probability."""
    return Action(
        chunk=policy.normalizer.unnormalize_action(chunk),
        chain=torch.stack([torch.zeros_like(chunk), chunk], dim=1),
        log_probs=torch.zeros(len(chunk), 1, device=chunk.device),
    )


class Choosing(Policy):
    """Acts with a policy and a say of critics. Its parameters are the policy's and theirs.

    Args:
        policy: proposes.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.horizon, self.action_horizon = policy.horizon, policy.action_horizon
        self.num_scored_steps = 1

    @property
    def normalizer(self) -> Any:  # type: ignore[override]
        """The policy's."""
        return self.policy.normalizer

    @property
    def alone(self) -> Policy:
        """The proposing policy; see :attr:`Policy.alone`."""
        return Alone(self)

    def log_prob(self, obs: Tensor, before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        """Not defined: what is chosen depends on all proposals."""
        raise TypeError(f"{type(self).__name__} has no log-probability.")

    def il_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return that of the policy."""
        return self.policy.il_loss(*args, **kwargs)

    def bc_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return that of the policy."""
        return self.policy.bc_loss(*args, **kwargs)

    def trainable(self) -> list[nn.Parameter]:
        """Return all parameters that change: what workers need."""
        frozen = {id(p) for p in self.policy.parameters()} - {id(p) for p in self.policy.trainable()}
        return [p for p in self.parameters() if id(p) not in frozen]

    def pretrained(self) -> nn.Module:
        """Return that of the policy."""
        return self.policy.pretrained()

    def begin_finetuning(self) -> None:
        """Begin that of the policy."""
        self.policy.begin_finetuning()


class Alone(Choosing):
    """Executes the first proposal: what the policy does by itself, on the noise that it would have proposed from.

    Args:
        choosing: whose policy, over the same weights.
    """

    def __init__(self, choosing: Choosing) -> None:
        super().__init__(choosing.policy)
        self.noise_shape = choosing.noise_shape

    @property
    def alone(self) -> Policy:
        """Itself."""
        return self

    def act(self, obs: Tensor, noise: Tensor, *, deterministic: bool) -> Action:
        """Choose action chunks; see :meth:`Policy.act`."""
        shape = self.policy.noise_shape
        first = noise.flatten(1)[:, : math.prod(shape)].reshape(-1, *shape)
        return self.policy.act(obs, first, deterministic=deterministic)
