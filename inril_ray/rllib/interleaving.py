"""Give an algorithm of RLlib interleaved imitation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.serialization import deserialize_type

from inril_ray.config import to_dict
from inril_ray.demos.store import DemoArrays
from inril_ray.interleave import InterleaveConfig
from inril_ray.rllib.learner import InterleavingLearner
from inril_ray.rllib.settings import KEY, DemoSource, Settings
from inril_ray.rllib.tasks import expectation_of
from inril_ray.types import InrilError


def with_interleaving(
    config: AlgorithmConfig,
    *,
    demos: str | Path | DemoArrays | list[Any],
    interleave: InterleaveConfig | Mapping[str, Any] | None = None,
    schedule: str = "fixed",
    separation: str = "upgrad",
    module_id: str = DEFAULT_MODULE_ID,
) -> AlgorithmConfig:
    """Mix :class:`InterleavingLearner` into the learner of an algorithm.

    The settings stand in ``config.learner_config_dict["inril_ray"]`` as plain data, so Ray Tune can search over them.

    Args:
        config: of an online algorithm on the new API stack; changed in place.
        demos: a file that every learner's node has, arrays (for small sets: they travel with the configuration), or the
            handle of a :class:`inril_ray.distributed.demo_service.DemoService`, for one copy on each node.
        interleave: how imitation is interleaved. An iteration is one call of the learner's ``update``.
        schedule: a name in ``inril_ray.schedules.SCHEDULES``.
        separation: a name in ``inril_ray.gradient_separation.SEPARATIONS``.
        module_id: the module that imitates, where there are several.

    Raises:
        InrilError: a value is not allowed, or the algorithm can't be interleaved; ``config`` is unchanged.
    """
    values = {
        "demos": DemoSource(demos, expectation_of(config)),
        "interleave": to_dict(interleave) if isinstance(interleave, InterleaveConfig) else dict(interleave or {}),
        "schedule": schedule,
        "separation": separation,
        "module_id": module_id,
    }
    Settings.read(values, config)
    learner: Any = deserialize_type(config.learner_class)
    if not issubclass(learner, TorchLearner):
        raise InrilError(f"learner_class = {learner.__name__}: interleaving needs a TorchLearner.")
    return config.learners(learner_class=interleaving(learner), learner_config_dict={KEY: values})


@functools.cache
def interleaving(learner: type[TorchLearner]) -> type[InterleavingLearner]:
    """Return a learner class that interleaves imitation, for one that doesn't.

    It has nothing but its bases, and is pickled as a definition rather than by name.
    """
    if issubclass(learner, InterleavingLearner):
        return learner
    return type(f"Interleaving{learner.__name__}", (InterleavingLearner, learner), {})
