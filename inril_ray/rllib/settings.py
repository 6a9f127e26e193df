"""What an algorithm's configuration carries to its learners, and what of RLlib can't be interleaved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from inril_ray.config import build
from inril_ray.demos.episodes import DemoError, Expectation
from inril_ray.demos.store import DemoArrays, load
from inril_ray.distributed.demo_service import fetch
from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.gradient_separation.base import Separation
from inril_ray.interleave import InterleaveConfig
from inril_ray.registry import resolve
from inril_ray.schedules import SCHEDULES
from inril_ray.schedules.base import Schedule
from inril_ray.types import InrilError

KEY = "inril_ray"
"""Our entry of ``learner_config_dict``, and of a learner's state."""


class DemoSource:
    """Where learners get the demonstrations from.

    Args:
        demos: a file that every learner's node has, arrays, or the handle of a
            :class:`inril_ray.distributed.demo_service.DemoService`.
        expectation: what the task requires of a file; None takes what is there.

    Raises:
        InrilError: something else, or a file that is missing.
    """

    def __init__(self, demos: str | Path | DemoArrays | list[Any], expectation: Expectation | None) -> None:
        if isinstance(demos, (str, Path)):
            demos = Path(demos).absolute()
            if not demos.exists():
                raise DemoError(demos, "does not exist.")
        elif not isinstance(demos, (DemoArrays, list)):
            raise InrilError(
                f"demos = {type(demos).__name__}: a path, DemoArrays or the handle of a DemoService is needed."
            )
        self._demos, self._expectation = demos, expectation

    def load(self) -> DemoArrays:
        """Return the demonstrations: a converted file by memory map, a handle as views of the node's copy."""
        if isinstance(self._demos, Path):
            return load(self._demos, self._expectation)
        return fetch(self._demos) if isinstance(self._demos, list) else self._demos

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """RLlib copies configurations often; the arrays never change."""
        return self

    def __repr__(self) -> str:
        held = self._demos.info.source_file if isinstance(self._demos, DemoArrays) else self._demos
        return f"DemoSource({str(held)!r})"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The entry :data:`KEY` of ``learner_config_dict``, validated."""

    demos: DemoSource
    interleave: InterleaveConfig
    schedule: Schedule
    separation: Separation
    module_id: str
    """The module that imitates."""

    @staticmethod
    def of(config: AlgorithmConfig) -> Settings:
        """Read and validate the settings of an algorithm.

        Raises:
            InrilError: a value is not allowed, or doesn't go with the algorithm's own settings.
        """
        return Settings.read(config.learner_config_dict[KEY], config)

    @staticmethod
    def read(values: Mapping[str, Any], config: AlgorithmConfig) -> Settings:
        """Validate the settings that an algorithm has, or is to get.

        Raises:
            InrilError: as above.
        """
        check(config)
        interleave = build(InterleaveConfig, values["interleave"], "interleave")
        if interleave.bc_source == "base":
            raise InrilError("interleave.bc_source = 'base': RLlib keeps no cloned policy. Choose 'demos'.")
        if values["separation"] == "network":
            others = ", ".join(name for name in SEPARATIONS if name != "network")
            raise InrilError(f"separation = 'network': RLlib has no residual policies. Choose one of: {others}.")
        return Settings(
            demos=values["demos"],
            interleave=interleave,
            schedule=resolve(SCHEDULES, values["schedule"], "schedule").from_config(interleave),
            separation=resolve(SEPARATIONS, values["separation"], "separation").from_config(interleave),
            module_id=values["module_id"],
        )


def check(config: AlgorithmConfig) -> None:
    """Refuse what can't be interleaved correctly.

    Raises:
        InrilError: names the setting and what is allowed.
    """
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        raise InrilError("config.api_stack(…): interleaving needs RLlib's new API stack, both parts enabled.")
    if not config.is_online:
        raise InrilError(f"{type(config).__name__}: an offline algorithm has no reinforcement to interleave with.")
    if config._env_to_module_connector is not None:
        raise InrilError(
            "config.env_runners(env_to_module_connector=…): connectors such as MeanStdFilter change what the module "
            "sees; demonstrations hold the environment's observations. Only None is allowed: put a fixed "
            "transformation into the module or the environment."
        )
    if config.torch_compile_learner:
        raise InrilError("config.framework(torch_compile_learner=True): only False is allowed.")
    if config._torch_grad_scaler_class is not None:
        raise InrilError("config.experimental(_torch_grad_scaler_class=…): only None is allowed.")
