"""The imitation loss of an RLModule's actor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian, TorchSquashedGaussian
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from inril_ray.demos.store import DemoArrays
from inril_ray.losses.imitation import gaussian_log_prob
from inril_ray.policies.tanh_gaussian import TanhGaussianConfig
from inril_ray.types import DemoBatch, FloatArray, InrilError

IMITATION_STD = TanhGaussianConfig().imitation_std


class ActorImitation:
    """Negative log-likelihood of demonstrated actions under the actor of a module; mean over dimensions.

    A spread with parameters of its own (RLlib's ``free_log_std``) gets no gradient from it, as in our own policies: RL
    decides on that. One that the network computes gets it: imitation moves its layers, and left to itself it would
    drift and take the weight off the demonstrations. A squashed Gaussian is compared after squashing, around tanh(mean)
    with a fixed spread: actions at the bounds have no finite likelihood (:mod:`inril_ray.policies.tanh_gaussian`).

    Args:
        module: not wrapped for distributed training.
        demos: held against the module's spaces.
        normalize_actions: the module acts in [-1, 1] where the action space is bounded, as RLlib has it by default.
        device: where the module lives.

    Raises:
        InrilError: the demonstrations or the module don't fit.
    """

    def __init__(self, module: Any, demos: DemoArrays, *, normalize_actions: bool, device: Any) -> None:
        _check(module, demos)
        self._squashed = issubclass(module.get_train_action_dist_cls(), TorchSquashedGaussian)
        self._device = device
        # RLlib's own wrappers around these two run without gradient, and forward_train wants more than observations.
        own_forward = type(module)._forward is not RLModule._forward
        self._forward = module._forward if own_forward else module._forward_inference
        space = module.action_space
        self._scaled = normalize_actions and space.is_bounded()
        self._low, self._high = space.low, space.high
        trainable = [p for p in module.parameters() if p.requires_grad]
        logits = self._logits(demos.obs[:1])
        if not logits.requires_grad:
            raise InrilError(f"{type(module).__name__}: its forward pass for inference has no gradient.")
        mean, log_std = logits.chunk(2, dim=-1)
        reached = _gradients(logits, trainable)
        self.parameters: list[nn.Parameter] = [p for p in trainable if reached[p] is not None]
        """What the distribution of actions depends on: all that imitation and separation touch."""
        # Both are parts of one tensor, so what only the other part depends on has a gradient of zeros, not None.
        of_mean, of_spread = _gradients(mean, self.parameters), _gradients(log_std, self.parameters)
        self.spread = {p for p in self.parameters if bool(of_spread[p].any()) and not bool(of_mean[p].any())}
        """Those of the spread's own, which imitation leaves alone."""

    def _logits(self, obs: FloatArray) -> Tensor:
        return self._forward({Columns.OBS: self._tensor(obs)})[Columns.ACTION_DIST_INPUTS]

    def _tensor(self, array: FloatArray) -> Tensor:
        return torch.from_numpy(np.array(array, np.float32)).to(self._device)

    def loss(self, demos: DemoBatch) -> Tensor:
        """Return the loss of a minibatch of single steps."""
        actions = demos.actions[:, 0]
        if self._scaled:
            actions = 2.0 * (actions - self._low) / (self._high - self._low) - 1.0
        mean, log_std = self._logits(demos.obs).chunk(2, dim=-1)
        if self._squashed:
            mean, std = mean.tanh(), torch.full_like(mean, IMITATION_STD)
        else:
            std = log_std.detach().exp() if self.spread else log_std.exp()
        return -gaussian_log_prob(self._tensor(actions), mean, std).mean()


def _gradients(output: Tensor, parameters: list[nn.Parameter]) -> dict[nn.Parameter, Any]:
    found = torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
    return dict(zip(parameters, found, strict=True))


def _check(module: Any, demos: DemoArrays) -> None:
    """Refuse a module that can't imitate, or not from these demonstrations."""
    name = type(module).__name__
    if not isinstance(module, TorchRLModule) or module.is_stateful():
        raise InrilError(f"{name}: imitation needs a TorchRLModule that is not recurrent.")
    distribution = module.get_train_action_dist_cls()
    if not issubclass(distribution, (TorchDiagGaussian, TorchSquashedGaussian)):
        raise InrilError(f"{name} acts by {distribution.__name__}: a Gaussian, plain or squashed, is needed.")
    for kind, space, array in (
        ("observation", module.observation_space, demos.obs),
        ("action", module.action_space, demos.actions),
    ):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise InrilError(f"{kind}_space = {space}: imitation needs a Box with one axis.")
        if space.shape[0] != array.shape[1]:
            raise InrilError(
                f"demos = {demos.info.source_file!r}: {kind}s have width {array.shape[1]}, the module's "
                f"{kind}_space has {space.shape[0]}."
            )
