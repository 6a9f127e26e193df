"""A partly trained PPO policy: the demonstrator of the Gym tasks, as "medium" is in D4RL.

D4RL stopped a SAC policy at about a third of an expert's return. PPO gets there in minutes on one CPU core, SAC in
hours. The numbers are those that are known to work here: 16 environments, two layers of 64, observations scaled by
running moments, rewards by the running deviation of the return. Source: Schulman et al. 2017; Fu et al. 2020 (D4RL).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from inril_ray import envs
from inril_ray.config import config
from inril_ray.demos.demonstrator import Demonstrator
from inril_ray.envs.base import EnvConfig
from inril_ray.losses.policy_gradient import clipped_surrogate, normalized
from inril_ray.losses.returns import RewardScaler, gae
from inril_ray.losses.value import value_loss
from inril_ray.types import EnvSpec, FloatArray, InrilError

NUM_ENVS, NUM_STEPS, NUM_EPOCHS, MINIBATCH = 16, 256, 10, 256
DISCOUNT, GAE_LAMBDA, CLIP_RATIO, LEARNING_RATE, MAX_GRAD_NORM = 0.99, 0.95, 0.2, 3e-4, 0.5
MEDIUM_RETURN = {"gym/hopper": 1400.0, "gym/walker2d": 2850.0, "gym/halfcheetah": 4770.0}
"""Mean returns of D4RL's medium data."""


@config
class MediumConfig:
    """When training stops."""

    target_return: float | None = None
    """Mean return of the last 20 training episodes to stop at; None takes that of D4RL's medium data."""
    max_env_steps: PositiveInt = 5_000_000
    """Give up after so many control steps."""


class MediumPolicy(Demonstrator):
    """A Gaussian policy that PPO has trained up to a return.

    Args:
        rng: random stream of the episode.
        config: when training stopped.
        network: from :meth:`train`.
    """

    Config = MediumConfig
    source = "rl"
    keeps_failures = True

    def __init__(self, rng: np.random.Generator, config: MediumConfig, network: ActorCritic) -> None:
        self._rng, self._network = rng, network

    @torch.no_grad()
    def act(self, obs: FloatArray) -> FloatArray:
        """Sample the action [A] for an observation [O]."""
        mean = self._network.actor(self._network.scaled(obs[None]))[0].numpy()
        noise = self._rng.normal(size=mean.shape) * self._network.log_std.exp().numpy()
        return np.clip(mean + noise, -1.0, 1.0).astype(np.float32)

    @staticmethod
    def train(
        task: str, config: MediumConfig, seed: int, say: Callable[[str], None], env: EnvConfig | None = None
    ) -> ActorCritic:
        """Train until the mean return of the last 20 episodes reaches the target.

        Args:
            task: a name in the task table; None of its episodes' initial states are those of recording.
            config: when to stop.
            seed: of everything.
            say: takes progress, a line for every 100,000 control steps.
            env: options of the environments; the task's defaults if None.

        Raises:
            InrilError: no target is known for the task, or it is not reached.
        """
        target = MEDIUM_RETURN.get(task) if config.target_return is None else config.target_return
        if target is None:
            raise InrilError(f"target_return = None: no medium return is known for {task}; give one.")
        return _Trainer(task, seed, env).until(target, config.max_env_steps, say)


class ActorCritic(nn.Module):
    """Mean, standard deviation and value, of observations scaled by running moments."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.actor = _network(spec.obs_dim, spec.action_dim, 0.01)
        self.critic = _network(spec.obs_dim, 1, 1.0)
        self.log_std = nn.Parameter(torch.full((spec.action_dim,), -0.5), requires_grad=True)
        for name, value in (("mean", torch.zeros(spec.obs_dim)), ("var", torch.ones(spec.obs_dim))):
            self.register_buffer(name, value.double())
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    def watch(self, obs: FloatArray) -> None:
        """Take observations [B, O] into the running moments (Chan, Golub and LeVeque 1979)."""
        x = torch.from_numpy(obs).double()
        delta, total = x.mean(0) - self.mean, self.count + len(x)
        spread = self.var * self.count + x.var(0, unbiased=False) * len(x) + delta**2 * self.count * len(x) / total
        self.mean, self.var, self.count = self.mean + delta * len(x) / total, spread / total, total

    def scaled(self, obs: FloatArray) -> Tensor:
        """Scale observations [B, O]."""
        x = (torch.from_numpy(obs).double() - self.mean) / (self.var + 1e-8).sqrt()
        return x.clamp(-10.0, 10.0).float()

    def distribution(self, x: Tensor) -> torch.distributions.Normal:
        """Return the actions' distribution for scaled observations [B, O]."""
        return torch.distributions.Normal(self.actor(x), self.log_std.exp())

    def value(self, x: Tensor) -> Tensor:
        """Return the value [B] of scaled observations [B, O]."""
        return self.critic(x)[:, 0]


def _network(in_dim: int, out_dim: int, last_gain: float) -> nn.Sequential:
    layers = [nn.Linear(in_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out_dim)]
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class _Trainer:
    def __init__(self, task: str, seed: int, env: EnvConfig | None) -> None:
        self._env = envs.make(task, num_envs=NUM_ENVS, seed=seed, config=env)
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = ActorCritic(self._env.task_spec)
        self._optimizer = torch.optim.Adam(self.network.parameters(), LEARNING_RATE, eps=1e-5)
        self._scaler = RewardScaler(NUM_ENVS, DISCOUNT)
        self._obs = self._env.reset()[0]
        self._running = np.zeros(NUM_ENVS)
        self._returns: deque[float] = deque(maxlen=20)

    def until(self, target: float, max_env_steps: int, say: Callable[[str], None]) -> ActorCritic:
        env_steps, reached = 0, -np.inf
        while env_steps < max_env_steps:
            self._update(self._collect())
            before, env_steps = env_steps, env_steps + NUM_ENVS * NUM_STEPS
            if len(self._returns) == self._returns.maxlen:
                reached = float(np.mean(self._returns))
            if before // 100_000 != env_steps // 100_000:
                say(f"{env_steps} env steps, mean return {reached:.0f}, target {target:.0f}")
            if reached >= target:
                say(f"stopped after {env_steps} env steps at a mean return of {reached:.0f}")
                return self.network
        raise InrilError(f"max_env_steps = {max_env_steps}: the mean return is {reached:.0f}, the target {target:.0f}.")

    @torch.no_grad()
    def _collect(self) -> dict[str, Tensor]:
        """Return NUM_STEPS decisions of every environment, flattened."""
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        rewards, terminated, truncated = (np.zeros((NUM_STEPS, NUM_ENVS)) for _ in range(3))
        net = self.network
        for t in range(NUM_STEPS):
            net.watch(self._obs)
            x = net.scaled(self._obs)
            wanted = net.distribution(x)
            action = wanted.mean + wanted.stddev * torch.randn(wanted.mean.shape, generator=self._generator)
            obs, rewards[t], terminated[t], truncated[t], info = self._env.step(action.numpy())
            final = np.where(info["_final_obs"][:, None], info["final_obs"], obs) if "final_obs" in info else obs
            score = wanted.log_prob(action).sum(1)
            rows.append((x, action, score, net.value(x), net.value(net.scaled(final))))
            self._running += rewards[t]
            over = (terminated[t] + truncated[t]) > 0
            self._returns.extend(self._running[over].tolist())
            self._running[over] = 0.0
            self._obs = obs
        x, actions, scores, values, next_values = (torch.stack(column) for column in zip(*rows, strict=True))
        ended, cut = terminated > 0, truncated > 0
        advantages = gae(
            self._scaler(rewards, ended | cut, fresh_start=False),
            values.numpy(),
            next_values.numpy(),
            ended,
            cut,
            discount=DISCOUNT,
            gae_lambda=GAE_LAMBDA,
        )
        parts = {"x": x, "actions": actions, "scores": scores, "advantages": torch.from_numpy(advantages).float()}
        parts["returns"] = parts["advantages"] + values
        return {name: part.flatten(0, 1) for name, part in parts.items()}

    def _update(self, batch: dict[str, Tensor]) -> None:
        net = self.network
        for _ in range(NUM_EPOCHS):
            for chosen in torch.randperm(len(batch["x"]), generator=self._generator).split(MINIBATCH):
                x, actions, scores, advantages, returns = (part[chosen] for part in batch.values())
                score = net.distribution(x).log_prob(actions).sum(1)
                policy_loss = clipped_surrogate(score, scores, normalized(advantages), CLIP_RATIO)[0]
                self._optimizer.zero_grad()
                (policy_loss + value_loss(net.value(x), returns)).backward()
                nn.utils.clip_grad_norm_(net.parameters(), MAX_GRAD_NORM)
                self._optimizer.step()
