"""Shipped settings: one file for each algorithm (defaults, suites, tasks) and named configurations such as ``demo``.

What a user asks for is held against their names and keys here, before PyTorch or a simulator is loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from inril_ray.algorithms import ALGORITHMS
from inril_ray.config import merge, nested, read_yaml, unknown_key
from inril_ray.envs import TASKS
from inril_ray.gradient_separation import SEPARATIONS
from inril_ray.policies import POLICIES
from inril_ray.registry import resolve
from inril_ray.schedules import SCHEDULES
from inril_ray.types import InrilError

BUNDLED_DEMOS = {"robomimic/lift": "lift_scripted.hdf5"}
"""Task to the data set that ships with the package."""
KEYS = "keys.json"
"""All keys of a configuration, of a sweep, and of ``rl`` and ``actor`` by algorithm and policy, and the faults of
drills: ``make golden`` writes them from where they are made, and a test compares, so a new one is a decision."""
MIN_SEEDS = 3
"""Of a verdict."""
TABLES: dict[str, Mapping[str, str]] = {
    "task": TASKS,
    "algorithm": ALGORITHMS,
    "policy": POLICIES,
    "schedule": SCHEDULES,
    "separation": SEPARATIONS,
}
"""Key whose value is a name to the names that there are."""


def preset(algorithm: str, task: str, policy: str | None = None) -> dict[str, Any]:
    """Return the shipped settings of an algorithm for a task: those of the suite and the task, then the algorithm's.

    Args:
        algorithm: name.
        task: name.
        policy: name; None takes the algorithm's own.
    """
    shared, own = _preset_file("tasks"), _preset_file(algorithm)
    keys = (task.split("/")[0], task)
    common: dict[str, Any] = {}
    for key in keys:
        common = merge(common, shared.get(key, {}))
    result = dict(own.get("defaults", {}))
    for key in keys:
        result = merge(result, own.get(key, {}))
    actors, by_policy = common.pop("actors", {}), result.pop("by_policy", {})
    name = policy or result.get("policy", "diffusion_mlp")
    return merge(merge({**common, "actor": actors.get(name, {})}, result), by_policy.get(name, {}))


@functools.cache
def _preset_file(name: str) -> dict[str, Any]:
    path = resources.files("inril_ray.presets") / f"{name}.yaml"
    if not path.is_file():
        return {}
    with resources.as_file(path) as file:
        return read_yaml(file)


def shipped_config(name: str) -> dict[str, Any]:
    """Return a configuration that ships with the package, such as ``demo``.

    Raises:
        InrilError: there is none of that name; lists those there are.
    """
    folder = resources.files("inril_ray.presets")
    path = folder / f"{name}.yaml"
    if name in {*ALGORITHMS, "tasks"} or not path.is_file():
        found = sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))
        names = ", ".join(n for n in found if n not in {*ALGORITHMS, "tasks"})
        raise InrilError(f"{name!r} is neither a file nor a shipped configuration ({names}).")
    with resources.as_file(path) as file:
        return read_yaml(file)


# -- what is asked for ------------------------------------------------------------------------------------------------
def check_name(table: Mapping[str, str], name: Any, kind: str) -> None:
    """Refuse a name that is not in a table.

    Raises:
        InrilError: lists the names.
    """
    if not isinstance(name, str):
        raise InrilError(f"Configuration {kind} = {name!r}: a name is needed, one of {', '.join(sorted(table))}.")
    if name not in table:
        resolve(table, name, kind)


def known_keys() -> dict[str, Any]:
    """Return what :data:`KEYS` holds: keys as nested mappings, whose leaves are None."""
    return json.loads((resources.files("inril_ray.presets") / KEYS).read_text(encoding="utf-8"))


def check_request(layers: Sequence[Mapping[str, Any]], *, whole: bool = True) -> None:
    """Refuse names and keys that there are not, and demonstrations that are not there; values are checked later.

    Args:
        layers: of a configuration, later ones on top.
        whole: False where they are laid over the configuration of a run that goes on.

    Raises:
        InrilError: names what is wrong, and what there is.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(values, layer)
    if whole and not isinstance(values.get("task"), str):
        raise InrilError("No task given. Pass --task, for example --task robomimic/lift.")
    for kind, table in TABLES.items():
        if kind in values and (kind, values[kind]) != ("policy", None):  # which is the algorithm's own
            check_name(table, values[kind], kind)
    known, parts = known_keys(), {"rl": values.get("algorithm"), "actor": values.get("policy")}
    if whole:
        parts["rl"] = parts["rl"] or "dppo"
        shipped = preset(parts["rl"], values["task"], parts["actor"])
        parts["actor"] = parts["actor"] or shipped.get("policy", "diffusion_mlp")
    own = {part: known[part].get(name) for part, name in parts.items()}
    for path, choices in _unknown(values, {**known["config"], **own}):
        raise InrilError(unknown_key(path, choices))
    check_demos(values, whole=whole)
    if isinstance(values.get("pretrained"), str):
        check_start(values["pretrained"])


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that a verdict can't be made of.

    Raises:
        InrilError: they are too few, or not all different.
    """
    if len(seeds) < MIN_SEEDS or len(set(seeds)) != len(seeds):
        raise InrilError(f"seeds = {list(seeds)}: a verdict needs at least {MIN_SEEDS} different seeds.")


def check_faults(faults: Sequence[str]) -> None:
    """Refuse what is no fault.

    Raises:
        InrilError: lists the faults.
    """
    known = known_keys()["faults"]
    unknown = sorted(set(faults) - set(known))
    if unknown or not faults:
        raise InrilError(
            f"--faults {', '.join(map(repr, unknown)) or '(none)'}: choose of {', '.join(map(repr, known))}."
        )


def sweep_values(path: Path) -> dict[str, Any]:
    """Read the file of a sweep, whose names and keys there are, and those of its configuration.

    Raises:
        InrilError: see :func:`check_request`; names the file.
    """
    values = read_yaml(path)
    layers = [values["base"]] if isinstance(values.get("base"), Mapping) else []
    try:
        for name, choices in _unknown(values, known_keys()["sweep"]):
            raise InrilError(unknown_key(name, choices))
        if isinstance(values.get("config"), str):
            layers.insert(0, named_config(values["config"]))
        check_request(layers, whole=False)  # whose algorithm and policy its settings may choose
        _check_settings(values)
    except InrilError as error:
        raise InrilError(f"{path}: {error}") from None
    return values


def _check_settings(values: Mapping[str, Any]) -> None:
    """Refuse keys that there are not in the settings of a sweep, whatever algorithm and policy they choose."""
    known = known_keys()
    known = known["config"] | {part: functools.reduce(merge, known[part].values()) for part in ("rl", "actor")}
    space, arms = values.get("space"), values.get("arms")
    for setting in (space, *(arms if isinstance(arms, list) else ())):
        for key in setting if isinstance(setting, Mapping) else ():
            for name, choices in _unknown(nested({str(key): None}), known):
                raise InrilError(unknown_key(name, choices))


def named_config(name: str) -> dict[str, Any]:
    """Return the configuration in a YAML file, or that of a shipped name.

    Raises:
        InrilError: there is no such file or name, or it can't be read.
    """
    path = Path(name)
    return read_yaml(path) if path.suffix in (".yaml", ".yml") else shipped_config(name)


def check_demos(values: Mapping[str, Any], *, whole: bool = True) -> None:
    """Refuse to begin without demonstrations.

    Raises:
        InrilError: the file is not there, or none is named and none ships for the task.
    """
    demos, task = values.get("demos"), values.get("task")
    if isinstance(demos, str) and not Path(demos).exists():
        raise InrilError(f"Demonstration file {demos}: does not exist.")
    if whole and demos is None and task not in BUNDLED_DEMOS:
        raise InrilError(
            f"No demonstrations ship for task {task}. Pass --demos FILE; `inril demos download` and `inril demos make` "
            "get some."
        )


def check_start(pretrained: str) -> None:
    """Refuse what can't be the directory of a run to start from.

    Raises:
        InrilError: says what it is.
    """
    try:
        check_run(Path(pretrained))
    except InrilError as error:
        raise InrilError(f"pretrained = {pretrained!r}: {error}") from None


def check_run(path: Path) -> None:
    """Refuse what is not the directory of a run.

    Raises:
        InrilError: says what it is.
    """
    if (path / "config.json").exists() or (path / "checkpoints").is_dir():
        return
    what = "there is no config.json in it" if path.is_dir() else "it is a file" if path.exists() else "it is not there"
    raise InrilError(f"{path} holds no readable run: {what}.")


def _unknown(values: Any, known: Any, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the dotted name of each key that is not known, with those that are there."""
    if isinstance(values, Mapping) and isinstance(known, Mapping):
        for key, value in values.items():
            if key not in known:
                yield f"{prefix}{key}", list(known)
            else:
                yield from _unknown(value, known[key], f"{prefix}{key}.")
